"""Quantize, Dequantize, Rescale, Elementwise, Concat, Lookup: bit-exact in the default domain.

`standard` has no QLinearAdd, QLinearMul or QLinearConcat; there DequantizeLinear, the float operator and QuantizeLinear
may round the other way at a boundary: at most one LSB, on a small share of the elements.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qatc.compiler.integer import Concat, Dequantize, Elementwise, Lookup, Quantize, Rescale
from qatc.compiler.quant import Array, QuantParams
from tests.backends.emitting import UNSET, Net, Result, emitted, grid, integers, same

pytestmark = pytest.mark.usefixtures("exact_runtime")
BYTES = ["uint8", "int8"]
OPS = ["Add", "Sub", "Mul"]
_SHARE = 0.1  # of the elements of one small tensor, in the standard domain


def exact_but_for_standard(net: Net, out: str) -> dict[str, Result]:
    results = same(net, out, within=1)
    assert results["auto"].worst == 0
    assert results["standard"].share < _SHARE
    return results


def elementwise(
    op: str,
    types: Sequence[str] = ("uint8", "uint8", "uint8"),
    shapes: tuple[Sequence[int], Sequence[int]] = ((2, 3, 4, 5), (4, 5)),
    *,
    constant: bool = False,
    bounds: tuple[int, int] | None = None,
    opset: int = 17,
    seed: int = 0,
) -> tuple[Net, str]:
    dice = np.random.default_rng(seed)
    net = Net(opset)
    a_grid, b_grid, out = (grid(dice, t) for t in types)
    if op == "Mul":
        out = QuantParams.per_tensor(a_grid.scale[0] * b_grid.scale[0] * 60, out.zero_point[0], types[2])
    a = net.input(integers(dice, a_grid, shapes[0]), a_grid)
    b_values = integers(dice, b_grid, shapes[1])
    b = net.constant(b_values, b_grid) if constant else net.input(b_values, b_grid)
    lo, hi = bounds or (out.qmin, out.qmax)
    return net, net.add(Elementwise, (a, b), out, op=op, lo=lo, hi=hi)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("shape", [(4, 5), (1,), (), (3, 1, 1), (2, 3, 4, 5)], ids=str)
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=5)
def test_sums_and_products_of_bytes(op: str, constant: bool, shape: tuple[int, ...], seed: int) -> None:
    net, out = elementwise(op, shapes=((2, 3, 4, 5), shape), constant=constant, seed=seed)
    results = exact_but_for_standard(net, out)
    assert {"Add": "QLinearAdd", "Sub": "QLinearAdd", "Mul": "QLinearMul"}[op] in results["auto"].ops
    assert op in results["standard"].ops


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    "types", [("int8",) * 3, ("uint8", "int8", "uint8"), ("int8", "uint8", "uint8"), ("uint8", "uint8", "int8")]
)
@pytest.mark.parametrize("constant", [False, True])
def test_types_mix(op: str, types: Sequence[str], constant: bool) -> None:
    exact_but_for_standard(*elementwise(op, types, constant=constant))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("opset", [13, 21])
@pytest.mark.parametrize("types", [("int16",) * 3, ("uint16", "uint8", "uint16"), ("uint16", "uint8", "uint8")])
def test_sixteen_bits_go_through_floats(op: str, opset: int, types: Sequence[str]) -> None:
    results = same(*elementwise(op, types, opset=opset))
    assert results["auto"].domains == {""}


@pytest.mark.parametrize("types", [BYTES, ["uint8"], ["int8", "uint16"]])
@pytest.mark.parametrize("count", [3, 5])
def test_sums_of_many_go_through_floats(count: int, types: Sequence[str]) -> None:
    dice, net = np.random.default_rng(count), Net()
    grids = [grid(dice, types[i % len(types)]) for i in range(count)]
    shapes = [(2, 3, 4, 5), (4, 5), (), (3, 1, 1), (2, 3, 4, 5)]
    names = [net.input(integers(dice, g, shape), g) for g, shape in zip(grids, shapes[:count], strict=True)]
    out = QuantParams.per_tensor(grids[0].scale[0] * 2, 120, "uint8")
    results = same(net, net.add(Elementwise, names, out, op="Add", lo=3, hi=250))
    assert results["auto"].domains == {""}
    assert results["auto"].ops["Add"] == count - 1


@pytest.mark.parametrize("op", OPS)
def test_bounds_are_a_clip_on_integers(op: str) -> None:
    assert same(*elementwise(op, bounds=(20, 180)), within=1)["auto"].ops["Clip"] == 1


# -- rescaling --------------------------------------------------------------------------------------------------------
def rescale(
    have: QuantParams, want: QuantParams, bounds: tuple[int, int] | None = None, opset: int = 17
) -> tuple[Net, str]:
    net = Net(opset)
    every = np.arange(have.qmin, have.qmax + 1).astype(have.container)
    x = net.input(np.resize(every, (2, 2, -(-every.size // 4))), have)
    lo, hi = bounds or (want.qmin, want.qmax)
    return net, net.add(Rescale, (x,), want, lo=lo, hi=hi)


@pytest.mark.parametrize("opset", [17, 21])
@pytest.mark.parametrize("have", [*BYTES, "int16", "uint16"])
@pytest.mark.parametrize("want", [*BYTES, "int16", "uint16"])
@pytest.mark.parametrize("bounds", [None, (5, 100)], ids=str)
def test_rescaling_every_code(have: str, want: str, bounds: tuple[int, int] | None, opset: int) -> None:
    dice = np.random.default_rng(1)
    results = same(*rescale(grid(dice, have), grid(dice, want), bounds, opset))
    if have == want and have in BYTES:
        assert "QLinearConcat" in results["auto"].ops


@pytest.mark.parametrize("dtype", [*BYTES, "int16"])
def test_one_grid_is_only_clamped(dtype: str) -> None:
    own = grid(np.random.default_rng(2), dtype)
    ops = same(*rescale(own, own, (10, 20)))["auto"].ops
    assert dtype == "int16" or set(ops) == {"Clip"}
    if dtype in BYTES:
        assert set(same(*rescale(own, own))["auto"].ops) == {"Identity"}


@pytest.mark.parametrize(("have", "want"), [("uint8", "int8"), ("int8", "uint8")])
def test_signedness_is_a_shift(have: str, want: str) -> None:
    own = grid(np.random.default_rng(3), have)
    same(*rescale(own, own.as_dtype(want)))
    same(*rescale(own, own.as_dtype(want), (3, 33)))


@pytest.mark.parametrize(("have", "want"), [("uint8", "int8"), ("int8", "uint8")])
@pytest.mark.parametrize("bounds", [((-200, 300), (-200, 300)), ((10, 90), (-50, 70)), ((-30, 60), (0, 100))])
def test_floats_are_rounded_to_the_type_that_is_read(have: str, want: str, bounds: Sequence[tuple[int, int]]) -> None:
    """QuantizeLinear alone; where others read the first type as well, both are there."""
    dice = np.random.default_rng(5)
    own = QuantParams.per_tensor(0.05, 100 if have == "uint8" else -28, have)
    moved = own.as_dtype(want)
    ranges = [(max(lo, p.qmin), min(hi, p.qmax)) for (lo, hi), p in zip(bounds, (own, moved), strict=True)]
    net = Net()
    x = net.input(dice.normal(0, 5, (3, 40)).astype(np.float32))
    q = net.add(Quantize, (x,), own, (3, 40), lo=ranges[0][0], hi=ranges[0][1])
    out = net.add(Rescale, (q,), moved, (3, 40), lo=ranges[1][0], hi=ranges[1][1])
    for result in same(net, out).values():
        assert result.ops["QuantizeLinear"] == 1
        assert set(result.ops) <= {"QuantizeLinear", "Clip"}
    assert q not in emitted(net.graph).names
    net.add(Dequantize, (q,))
    assert same(net, out)["auto"].ops["QuantizeLinear"] == 2
    assert q in emitted(net.graph).names


def test_a_scalar() -> None:
    net = Net()
    x = net.input(np.array(77, np.uint8), QuantParams.per_tensor(0.1, 3))
    same(net, net.add(Rescale, (x,), QuantParams.per_tensor(0.07, 9), ()))


@pytest.mark.parametrize("dtype", ["int16", "uint16"])
@pytest.mark.parametrize("opset", [17, 21])
def test_16_bits_are_clamped_as_integers(dtype: str, opset: int) -> None:
    dice, net = np.random.default_rng(5), Net(opset)
    params = grid(dice, dtype)
    x = net.input(integers(dice, params, (3, 40)), params)
    ops = same(net, net.add(Rescale, (x,), params, (3, 40), lo=100, hi=9000))["auto"].ops
    assert set(ops) == {"Cast", "Clip"}


# -- concatenation ----------------------------------------------------------------------------------------------------
def concat(
    types: Sequence[str], *, one_grid: bool = False, constant: bool = False, bounds: tuple[int, int] | None = None
) -> tuple[Net, str]:
    dice = np.random.default_rng(4)
    net, out, inputs = Net(), grid(dice, types[0]), list[str]()
    for index, dtype in enumerate(types):
        own = out if one_grid else grid(dice, dtype)
        value = integers(dice, own, (2, 3 + index, 4))
        inputs.append(net.constant(value, own) if constant and index else net.input(value, own))
    lo, hi = bounds or (out.qmin, out.qmax)
    return net, net.add(Concat, inputs, out, axis=1, lo=lo, hi=hi)


@pytest.mark.parametrize(
    "types", [("uint8", "uint8"), ("int8", "int8", "int8"), ("int8", "uint8"), ("int16", "int16")], ids=str
)
@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("bounds", [None, (10, 100)], ids=str)
def test_concatenation_rescales(types: Sequence[str], constant: bool, bounds: tuple[int, int] | None) -> None:
    ops = same(*concat(types, constant=constant, bounds=bounds))["auto"].ops
    assert ("QLinearConcat" in ops) == (types[0] != "int16")


def test_concatenation_on_one_grid_only_moves() -> None:
    assert set(same(*concat(("uint8", "uint8"), one_grid=True))["auto"].ops) == {"Concat"}
    assert set(same(*concat(("uint8", "uint8"), one_grid=True, bounds=(3, 9)))["auto"].ops) == {"Concat", "Clip"}
    same(*concat(("int16", "int16"), one_grid=True))
    same(*concat(("int16", "int16"), one_grid=True, bounds=(3, 9)))


# -- tables -----------------------------------------------------------------------------------------------------------
def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def leaky(slope: float) -> Callable[[Array], Array]:
    return lambda x: np.where(x < 0, slope * x, x)


def lookup(
    function: Callable[[Array], Array],
    have: QuantParams | None = None,
    want: QuantParams | None = None,
    shape: Sequence[int] = (2, 3, 64),
    known: Sequence[int | str | None] | None = UNSET,  # type: ignore[assignment]
) -> tuple[Net, str]:
    have = have or QuantParams.per_tensor(0.05, 128)
    want = want or QuantParams.per_tensor(0.05, 128)
    net = Net()
    info = np.iinfo(have.container)
    codes = np.arange(int(info.min), int(info.max) + 1)
    table = want.quantize(function(have.scale[0] * (codes - have.zero_point[0])))
    x = net.input(
        np.resize(codes[have.qmin - info.min : have.qmax - info.min + 1], shape).astype(have.container), have, known
    )  # type: ignore[arg-type]
    out_shape = tuple(shape) if known is UNSET else known
    lo, hi = int(table.min()), int(table.max())
    return net, net.add(Lookup, (x, net.constant(table)), want, out_shape, lo=lo, hi=hi, function="f")


FUNCTIONS = {
    "silu": lambda x: x * sigmoid(x),
    "sigmoid": sigmoid,
    "leaky": leaky(0.1013),
    "clip": lambda x: np.clip(x, -2, 3),
    "scaled": lambda x: 1.3713 * x,
    "falling": lambda x: -x,
    "tanh": np.tanh,
}


@pytest.mark.parametrize("have", BYTES)
@pytest.mark.parametrize("want", [*BYTES, "int16"])
@pytest.mark.parametrize("function", list(FUNCTIONS))
def test_any_function_is_exact(function: str, have: str, want: str) -> None:
    zero = {"uint8": 128, "int8": 0, "int16": 0}
    same(
        *lookup(
            FUNCTIONS[function],
            QuantParams.per_tensor(0.05, zero[have], have),
            QuantParams.per_tensor(0.04, zero[want], want),
        )
    )


@given(st.integers(0, 2**32 - 1), st.sampled_from(BYTES), st.sampled_from(BYTES))
@settings(max_examples=25)
def test_any_table_is_exact(seed: int, have: str, want: str) -> None:
    """Tables that look a little like the operators that are recognized, and tables of noise."""
    dice = np.random.default_rng(seed)
    slope, noise = dice.uniform(-1.5, 1.5, 2), dice.uniform(0, 0.1) * (dice.random() < 0.5)
    function = lambda x: np.where(x < 0, slope[0] * x, slope[1] * x) + noise * dice.normal(size=256)  # noqa: E731
    lowest = int(dice.integers(0, 100)) + (0 if have == "uint8" else -128)
    own = grid(dice, have).with_range(lowest, lowest + int(dice.integers(1, 150)))
    same(*lookup(function, own, grid(dice, want)))


@pytest.mark.parametrize("shape", [(256,), (), (2, 3, 64)], ids=str)
def test_tables_of_any_rank(shape: tuple[int, ...]) -> None:
    same(*lookup(np.tanh, shape=shape))


@pytest.mark.parametrize("known", [("N", 3, "W"), ("N", 3, 64), None], ids=str)
def test_tables_of_unknown_shapes(known: tuple[int | str, ...] | None) -> None:
    same(*lookup(np.tanh, known=known))


def test_tables_become_the_fastest_operator() -> None:
    unit = QuantParams.per_tensor(1 / 256, 0)
    assert set(same(*lookup(FUNCTIONS["clip"]))["auto"].ops) == {"Clip"}
    assert set(same(*lookup(FUNCTIONS["scaled"]))["auto"].ops) == {"QLinearConcat"}
    assert set(same(*lookup(sigmoid, want=unit))["auto"].ops) == {"QLinearSigmoid"}
    assert set(same(*lookup(leaky(0.1013)))["auto"].ops) == {"QLinearLeakyRelu"}
    assert "GatherElements" in same(*lookup(np.tanh))["auto"].ops
    assert "Gather" not in same(*lookup(np.tanh))["auto"].ops


def gated(
    have: QuantParams | None = None, factor: QuantParams | None = None, want: QuantParams | None = None
) -> tuple[Net, str]:
    """A table of x times its sigmoid, which is rounded to the grid `factor` first."""
    factor = factor or QuantParams.per_tensor(1 / 256, 0)
    net, out = lookup(lambda x: x * factor.dequantize(factor.quantize(sigmoid(x))), have, want)
    net.graph.factors[out] = factor
    return net, out


def test_a_product_with_a_rounded_sigmoid_is_two_kernels() -> None:
    assert set(same(*gated())["auto"].ops) == {"QLinearSigmoid", "QLinearMul"}
    signed = [QuantParams.per_tensor(scale, zero, "int8") for scale, zero in ((0.05, 3), (1 / 256, -128), (0.04, -120))]
    assert set(same(*gated(*signed))["auto"].ops) == {"QLinearSigmoid", "QLinearMul"}
    narrow = QuantParams.per_tensor(1 / 15, 0).with_range(0, 15)  # sigmoid(0) is seven steps and a half
    assert set(same(*gated(factor=narrow))["auto"].ops) == {"QLinearSigmoid", "QLinearMul"}


def test_other_products_stay_tables() -> None:
    """Of another function, of a sigmoid that saturates, that rounds beside a boundary, or in the other type."""
    unit = QuantParams.per_tensor(1 / 256, 0)
    net, out = lookup(lambda x: x * unit.dequantize(unit.quantize(0.9 * sigmoid(x))))
    net.graph.factors[out] = unit
    assert "GatherElements" in same(net, out)["auto"].ops
    assert "GatherElements" in same(*gated(factor=unit.with_range(0, 100)))["auto"].ops
    tie = QuantParams.per_tensor(float(sigmoid(np.float64(0.05))) / 100.5, 0)
    assert "GatherElements" in same(*gated(factor=tie))["auto"].ops
    assert "GatherElements" in same(*gated(factor=unit.as_dtype("int8")))["auto"].ops


def test_a_silu_may_be_computed_in_floats() -> None:
    """Where it is asked for, and where no entry lies so near a rounding boundary that float error could move it."""
    silu, fast = FUNCTIONS["silu"], {"DequantizeLinear", "QuickGelu", "QuantizeLinear"}
    assert set(same(*lookup(silu), ["fast"])["fast"].ops) == fast
    wide = QuantParams.per_tensor(0.04, 3, "int16")  # whose rounding is many operators
    assert "GatherElements" in same(*lookup(silu, want=wide), ["fast"])["fast"].ops
    tie = QuantParams.per_tensor(float(silu(np.float64(1.5))) / 20.5, 128)
    assert "GatherElements" in same(*lookup(silu, want=tie), ["fast"])["fast"].ops
    assert "GatherElements" in same(*lookup(np.tanh), ["fast"])["fast"].ops
    assert "GatherElements" in same(*lookup(silu), ["auto"])["auto"].ops


@given(st.integers(0, 2**32 - 1), st.sampled_from(BYTES), st.sampled_from(BYTES))
@settings(max_examples=25)
def test_any_silu_in_floats_is_exact(seed: int, have: str, want: str) -> None:
    dice = np.random.default_rng(seed)
    same(*lookup(FUNCTIONS["silu"], grid(dice, have), grid(dice, want)), ["fast"])


@given(st.integers(0, 2**32 - 1), st.sampled_from(BYTES))
@settings(max_examples=25)
def test_any_product_with_a_rounded_sigmoid_is_exact(seed: int, dtype: str) -> None:
    dice = np.random.default_rng(seed)
    factor = QuantParams.per_tensor(float(dice.uniform(0.5, 1)) / 255, 0).as_dtype(dtype)
    same(*gated(grid(dice, dtype), factor, grid(dice, dtype)))


# -- floats -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("opset", [17, 21])
@pytest.mark.parametrize("dtype", [*BYTES, "int16", "uint16"])
@pytest.mark.parametrize("bounds", [None, (4, 90)], ids=str)
@pytest.mark.parametrize("per_channel", [False, True])
def test_to_integers_and_back(dtype: str, bounds: tuple[int, int] | None, opset: int, per_channel: bool) -> None:
    dice = np.random.default_rng(5)
    own = grid(dice, dtype)
    if per_channel:
        own = QuantParams.per_channel(dice.uniform(0.01, 0.1, 4), 1, dice.integers(3, 100, 4), dtype)
    wide = dtype.endswith("16") and opset < 21 and per_channel  # only com.microsoft has these
    domains = ["auto"] if wide else ["auto", "standard"]
    net = Net(opset)
    lo, hi = bounds or (own.qmin, own.qmax)
    q = net.add(Quantize, [net.input(dice.normal(0, 5, (2, 4, 5)).astype(np.float32))], own, (2, 4, 5), lo=lo, hi=hi)
    same(net, q, domains)
    same(net, net.add(Dequantize, [q]), domains)
    bias = net.constant(dice.normal(0, 1, 4 if per_channel else 1).astype(np.float32))
    same(net, net.add(Dequantize, [q, bias]), domains)


@pytest.mark.parametrize("dtype", ["int16", "uint16"])
@pytest.mark.parametrize("via", [Dequantize, None])
def test_two_grids_of_sixteen_bits_in_a_row(dtype: str, via: type[Dequantize] | None) -> None:
    """ONNX Runtime's optimizations would make one pair of Q/DQ of two, on a third grid."""
    net = Net(opset=21)
    values = np.random.default_rng(2).normal(size=(4, 64)).astype(np.float32)
    first = QuantParams.per_tensor(4 / 65535, 1000, dtype)
    second = QuantParams.per_tensor(3 / 65535, 100, dtype)
    rounded = net.add(Quantize, [net.input(values)], first, values.shape)
    if via is None:
        again = net.add(Rescale, [rounded], second, values.shape)
    else:
        again = net.add(Quantize, [net.add(Dequantize, [rounded], None, values.shape)], second, values.shape)
    out = net.add(Dequantize, [again], None, values.shape)
    same(net, out, ("auto", "standard"))

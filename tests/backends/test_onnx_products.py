"""Conv and MatMul: every emitted form computes what the reference says, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from qatc.backends.onnx.weights import Weight, narrow
from qatc.compiler.integer import Conv, Dequantize, MatMul, Move, Quantize, Shape, raw_accumulator
from qatc.compiler.quant import Array, QuantParams
from tests.backends.emitting import DOMAINS, UNSET, Net, emitted, grid, integers, same

pytestmark = pytest.mark.usefixtures("exact_runtime")
INT32 = {"lo": -(2**31), "hi": 2**31 - 1}


@dataclass(frozen=True)
class Case:
    """A convolution to try. `end`: "quantized", "raw" or "real"; `zeros`: how the weight's zero points lie."""

    spatial: int = 2
    channels: int = 4
    filters: int = 6
    kernel: int = 3
    stride: int = 1
    dilation: int = 1
    pads: Sequence[int] | int = 1
    groups: int = 1
    transposed: bool = False
    output_padding: int = 0
    end: str = "quantized"
    bias: bool = True
    zeros: str = "none"
    weight: str = "int8"
    x: str = "uint8"
    y: str = "uint8"
    bounds: tuple[int, int] | None = None
    size: int = 9
    known: str = "all"  # or "channels", or "spatial"
    seed: int = 0


def weight_of(
    dice: np.random.Generator, shape: Sequence[int], axis: int | None, case: Case
) -> tuple[Array, QuantParams]:
    middle = 128 if case.weight == "uint8" else 0
    channels = 1 if axis is None else shape[axis]
    zeros, reach = {
        "none": (np.zeros(channels, int), 127),
        "one": (np.full(channels, 7), 120),
        "narrow": (dice.integers(-8, 9, channels), 110),
        "wide": (dice.integers(-100, 101, channels), 127),
        "far": (np.full(channels, 60), 127),  # nine bits from the zero point, eight from another one
    }[case.zeros]
    q = dice.integers(-reach, reach + 1, shape)
    scale = dice.uniform(0.001, 0.01, channels)
    zeros = [int(z) + middle for z in zeros]
    if axis is None:
        params = QuantParams.per_tensor(float(scale[0]), zeros[0], case.weight)
    else:
        params = QuantParams.per_channel(scale, axis, zeros, case.weight)
    return (q + middle).astype(case.weight), params


def known_shape(shape: Sequence[int], known: str) -> Shape:
    if known == "channels":
        return ("batch", shape[1], *(f"d{i}" for i in range(len(shape) - 2)))
    return ("batch", *shape[1:]) if known == "spatial" else tuple(shape)


def conv(case: Case) -> tuple[Net, str]:
    dice = np.random.default_rng(case.seed)
    net, spatial = Net(), case.spatial
    x_grid = grid(dice, case.x)
    shape = (2, case.channels) + (case.size,) * spatial
    x = net.input(integers(dice, x_grid, shape), x_grid, known_shape(shape, case.known))
    kernel = (case.kernel,) * spatial
    if case.transposed:
        w_shape = (case.channels, case.filters // case.groups, *kernel)
        axis = 1 if case.groups == 1 else None
    else:
        w_shape, axis = (case.filters, case.channels // case.groups, *kernel), 0
    values, w_grid = weight_of(dice, w_shape, axis, case)
    scales = np.broadcast_to(np.asarray(w_grid.scale) * x_grid.scale[0], case.filters)
    fields: dict[str, Any] = {
        "strides": (case.stride,) * spatial,
        "pads": (case.pads,) * 2 * spatial if isinstance(case.pads, int) else tuple(case.pads),
        "dilations": (case.dilation,) * spatial,
        "groups": case.groups,
        "acc_scale": tuple(scales.tolist()),
        "transposed": case.transposed,
        "output_padding": (case.output_padding,) * spatial if case.output_padding else (),
    }
    inputs = [x, net.constant(values, w_grid)]
    taps = int(np.prod(w_shape)) / case.filters
    return net, _end(net, dice, Conv, inputs, scales, taps, case, fields, 1, (None,) * (spatial + 2))


def _end(
    net: Net,
    dice: np.random.Generator,
    kind: type[Conv] | type[MatMul],
    inputs: list[str],
    scales: Array,
    taps: float,
    case: Case,
    fields: dict[str, Any],
    axis: int,
    shape: Shape | None,
) -> str:
    channels = max(len(scales), case.filters)
    if case.end == "quantized":
        scale = float(scales.mean() * 60 * np.sqrt(taps))
        out = QuantParams.per_tensor(scale, grid(dice, case.y).zero_point[0], case.y)
        if case.bias:
            inputs.append(net.constant(dice.integers(-5000, 5000, channels).astype(np.int32)))
        lo, hi = case.bounds or (out.qmin, out.qmax)
        return net.add(kind, inputs, out, None, lo=lo, hi=hi, **fields)
    raw = net.add(kind, inputs, raw_accumulator(tuple(scales.tolist()), axis), shape, **INT32, **fields)
    if case.end == "raw":
        return raw
    if case.bias:
        return net.add(Dequantize, (raw, net.constant(dice.normal(0, 1, channels).astype(np.float32))))
    return net.add(Dequantize, (raw,))


def check(case: Case) -> dict[str, set[str]]:
    """Every option against the reference; a float convolution of scaled weights may round (see `products.py`)."""
    net, out = conv(case)
    results = same(net, out, ["auto", "standard", "fast"], within=1e-3 if case.end == "real" else 0)
    for result in results.values():
        assert "Conv" in result.ops or result.worst == 0
    return {domain: set(result.ops) for domain, result in results.items()}


ORDINARY = [
    Case(),
    Case(bias=False),
    Case(bounds=(3, 200)),
    Case(x="int8", y="int8"),
    Case(x="int8"),
    Case(y="int8"),
    Case(weight="uint8"),
    Case(weight="uint8", zeros="one"),
    Case(groups=2, stride=2),
    Case(channels=6, groups=6),
    Case(known="channels"),
    Case(pads=(0, 1, 2, 1)),
    Case(spatial=1, dilation=2, pads=2),
    Case(spatial=3, stride=2, size=5),
]


@pytest.mark.parametrize("case", ORDINARY, ids=str)
def test_a_convolution_is_one_qlinearconv(case: Case) -> None:
    for ops in check(case).values():
        assert "QLinearConv" in ops
        assert ops <= {"QLinearConv", "Clip", "DequantizeLinear", "QuantizeLinear"}


@pytest.mark.parametrize("zeros", ["none", "one", "narrow", "wide", "far"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("end", ["quantized", "raw", "real"])
@pytest.mark.parametrize("transposed", [False, True])
def test_zero_points_of_weights_are_exact(zeros: str, groups: int, end: str, transposed: bool) -> None:
    check(Case(zeros=zeros, groups=groups, end=end, transposed=transposed, stride=1 + transposed))


@pytest.mark.parametrize("end", ["raw", "real"])
@pytest.mark.parametrize(
    "case",
    [
        Case(channels=20),
        Case(channels=20, bias=False, stride=2, dilation=2),
        Case(channels=20, kernel=1, pads=0),
        Case(channels=20, kernel=1, pads=0, stride=2),
        Case(channels=20, known="channels", stride=2),
        Case(channels=20, spatial=1),
        Case(channels=20, spatial=3, size=5),
        Case(channels=20, zeros="wide"),
        Case(channels=20, zeros="far"),
        Case(channels=20, transposed=True, stride=2),
    ],
    ids=str,
)
def test_a_raw_accumulator_of_many_channels_is_a_matrix_product(case: Case, end: str) -> None:
    """It packs its weights once; with `standard` ConvInteger keeps the graph plain."""
    ops = check(replace(case, end=end))
    assert ("MatMulIntegerToFloat" if end == "real" else "MatMulInteger") in ops["auto"]
    assert "ConvInteger" not in ops["auto"]
    assert "ConvInteger" in ops["standard"]


@pytest.mark.parametrize("end", ["raw", "real"])
@pytest.mark.parametrize(
    "case",
    [
        Case(),
        Case(bias=False, stride=2),
        Case(kernel=1, pads=0, stride=2),
        Case(channels=40, groups=2, known="channels", dilation=2),
        Case(channels=6, groups=6, zeros="narrow"),
        Case(spatial=1, x="int8"),
        Case(spatial=3, size=5, weight="uint8"),
        Case(zeros="wide"),
        Case(transposed=True, stride=2),
    ],
    ids=str,
)
def test_any_other_raw_accumulator_is_a_convolution_of_unsigned_weights(case: Case, end: str) -> None:
    """ONNX Runtime has fast kernels where both are uint8; int8 weights take four times as long."""
    net, out = conv(replace(case, end=end))
    for domain in ("auto", "standard"):
        assert "ConvInteger" in same(net, out, [domain])[domain].ops
        model = emitted(net.graph, domain=domain).model
        types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
        (node,) = (node for node in model.graph.node if node.op_type == "ConvInteger")
        assert [types[name] for name in (node.input[1], node.input[3])] == [TensorProto.UINT8] * 2


@pytest.mark.parametrize(
    "case", [Case(), Case(groups=2), Case(channels=40, groups=2), Case(channels=6, groups=6)], ids=str
)
def test_a_raw_accumulator_of_few_channels_is_a_float_convolution_where_asked_for(case: Case) -> None:
    raw, real = check(replace(case, end="raw")), check(replace(case, end="real"))
    assert raw["fast"] == {"DequantizeLinear", "Conv", "Cast"}
    assert real["fast"] == {"DequantizeLinear", "Conv"}
    assert "Conv" not in raw["auto"] | real["auto"]


@pytest.mark.parametrize("case", [Case(), Case(groups=2, x="int8"), Case(transposed=True, stride=2)], ids=str)
def test_a_float_convolution_that_is_rounded_keeps_its_weights(case: Case) -> None:
    """ONNX Runtime would round them again, with one scale for all channels, where a grid of 16 bits is behind."""
    net, real = conv(replace(case, end="real"))
    out = net.add(Quantize, [real], QuantParams.per_tensor(1e-3, 1000, "uint16"))
    ops = same(net, out, ["fast"], within=1)["fast"].ops
    assert ops["Conv"] == 1
    assert "DequantizeLinear" not in ops


@pytest.mark.parametrize("case", [Case(), Case(groups=2), Case(transposed=True, stride=2)], ids=str)
def test_no_transpose_reads_a_dequantizelinear_of_sums(case: Case) -> None:
    """ONNX Runtime up to 1.27 would quantize the sums to uint8 in between, and then refuse the model."""
    net, real = conv(replace(case, end="real", bias=False))
    out = net.add(Move, [real], op_type="Transpose", attrs={"perm": [0, 2, 3, 1]})
    assert "DequantizeLinear" not in same(net, out, ["auto"], within=1e-5)["auto"].ops


def test_small_groups_are_one_matrix_product_with_zeros() -> None:
    """A matrix product of its own for each group takes longer to begin than to compute."""
    for size, groups in ((3, 1), (40, 6)):
        net, out = conv(Case(channels=6, groups=6, end="raw", size=size))
        assert same(net, out)["auto"].ops == {"ConvInteger": 1}
        net.graph.outputs = [out]
        (node,) = emitted(net.graph).model.graph.node
        assert {a.name: a.i for a in node.attribute}["group"] == groups


@pytest.mark.parametrize(("zero", "value", "dtype"), [(0, 255, "uint8"), (127, -128, "int8")])
def test_sums_beyond_24_bits_are_not_left_to_floats(zero: int, value: int, dtype: str) -> None:
    """Every element is 255 steps from zero, which the sum of 1,152 weights of more than 57 takes beyond 2**24."""
    dice = np.random.default_rng(0)
    net, x_grid = Net(), QuantParams.per_tensor(0.1, zero, dtype)
    shape, taps = (1, 8, 12, 12), 12
    x = net.input(np.full(shape, value, dtype), x_grid)
    values = dice.integers(60, 66, (2, 8, taps, taps)).astype(np.int8)
    w = net.constant(values, QuantParams.per_tensor(0.1, 0, "int8"))
    raw = raw_accumulator((0.01, 0.01), 1)
    fields: dict[str, Any] = {"strides": (1, 1), "pads": (0,) * 4, "dilations": (1, 1), "groups": 1}
    out = net.add(Conv, (x, w), raw, **INT32, **fields, acc_scale=(0.01, 0.01))
    assert "ConvInteger" in same(net, out, ["fast"])["fast"].ops


@given(
    spatial=st.integers(1, 2),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 4),
    pads=st.lists(st.integers(0, 4), min_size=4, max_size=4),
    extra=st.integers(0, 3),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
    known=st.sampled_from(["all", "spatial", "channels"]),
    filters=st.integers(1, 3),
    end=st.sampled_from(["quantized", "raw", "real"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60)
def test_transposed_convolutions(
    spatial: int,
    kernel: int,
    stride: int,
    pads: list[int],
    extra: int,
    dilation: int,
    groups: int,
    known: str,
    filters: int,
    end: str,
    seed: int,
) -> None:
    """The sub-pixel form is the transposed convolution, whatever sticks out or is missing."""
    size = 4
    case = Case(
        spatial=spatial, kernel=kernel, stride=stride, pads=pads[: 2 * spatial], dilation=dilation, groups=groups,
        known=known, transposed=True, output_padding=min(extra, max(stride, dilation) - 1), end=end, size=size,
        seed=seed, filters=filters * groups,
    )  # fmt: skip
    length = (size - 1) * stride + (kernel - 1) * dilation + 1 + case.output_padding
    if all(length - pads[axis] - pads[axis + spatial] >= 1 for axis in range(spatial)):
        check(case)


@pytest.mark.parametrize("end", ["quantized", "real"])
def test_a_transposed_convolution_with_one_filter_has_its_bias_in_every_phase(end: str) -> None:
    check(Case(kernel=3, stride=2, transposed=True, filters=1, output_padding=1, end=end))


def test_a_transposed_convolution_in_three_dimensions() -> None:
    check(Case(spatial=3, kernel=3, stride=2, transposed=True, size=4, output_padding=1))
    check(Case(spatial=3, kernel=2, stride=2, pads=0, transposed=True, size=3, known="channels"))


# -- matrix products --------------------------------------------------------------------------------------------------
def matmul(
    a_shape: Sequence[int],
    b_shape: Sequence[int],
    case: Case,
    *,
    per_channel: bool = True,
    constant: bool = True,
    b_type: str = "int8",
    known: str = "all",
) -> tuple[Net, str]:
    dice = np.random.default_rng(case.seed)
    net, a_grid = Net(), grid(dice, case.x)
    shape: Shape | None = {"all": tuple(a_shape), "some": (*(f"d{i}" for i in a_shape[:-1]), a_shape[-1])}.get(known)
    a = net.input(integers(dice, a_grid, a_shape), a_grid, shape if known != "all" else UNSET)  # type: ignore[arg-type]
    if constant:
        axis = len(b_shape) - 1 if per_channel else None
        values, b_grid = weight_of(dice, b_shape, axis, case)
        b = net.constant(values, b_grid)
    else:
        b_grid = grid(dice, b_type)
        b = net.input(integers(dice, b_grid, b_shape), b_grid)
    scales = np.asarray(b_grid.scale) * a_grid.scale[0]
    result = np.matmul(np.zeros(a_shape), np.zeros(b_shape)).shape
    case = replace(case, filters=b_shape[-1])
    fields = {"acc_scale": tuple(scales.tolist())}
    out_shape = result if known == "all" else None
    out = _end(
        net,
        dice,
        MatMul,
        [a, b],
        scales,
        b_shape[-2] if len(b_shape) > 1 else b_shape[0],
        case,
        fields,
        len(result) - 1,
        out_shape,
    )
    return net, out


SHAPES = [(8,), (3, 8), (2, 5, 8), (2, 3, 4, 8), (2, 1, 3, 4, 8), (1, 2, 1, 2, 3, 8)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("end", ["quantized", "raw", "real"])
@pytest.mark.parametrize("zeros", ["none", "wide"])
@pytest.mark.parametrize("bias", [False, True])
def test_a_constant_matrix(shape: tuple[int, ...], end: str, zeros: str, bias: bool) -> None:
    net, out = matmul(shape, (8, 6), Case(end=end, zeros=zeros, bias=bias))
    same(net, out)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("case", "options"),
    [
        (Case(), {"known": "some"}),
        (Case(), {"known": "nothing"}),
        (Case(zeros="one"), {"per_channel": False}),
        (Case(x="int8", y="int8"), {}),
        (Case(x="int8"), {}),
        (Case(weight="uint8"), {}),
        (Case(zeros="far"), {}),
        (Case(zeros="far", end="raw"), {}),
        (Case(zeros="far", end="real"), {}),
        (Case(bounds=(10, 99)), {}),
    ],
    ids=str,
)
def test_a_constant_matrix_in_other_types(shape: tuple[int, ...], case: Case, options: dict[str, Any]) -> None:
    net, out = matmul(shape, (8, 6), case, **options)
    same(net, out)


def test_the_forms_of_a_constant_matrix() -> None:
    assert set(same(*matmul((3, 8), (8, 6), Case()))["auto"].ops) == {"QGemm"}
    results = same(*matmul((2, 5, 8), (8, 6), Case()))
    assert set(results["auto"].ops) == {"QLinearConv"}
    assert set(results["standard"].ops) == {"QLinearConv", "Transpose"}
    assert set(same(*matmul((2, 5, 8), (8, 6), Case(bias=False)))["standard"].ops) == {"QLinearMatMul"}
    assert set(same(*matmul((2, 5, 8), (8, 6), Case(end="real")))["auto"].ops) == {"MatMulIntegerToFloat"}


@pytest.mark.parametrize("a", ["uint8", "int8"])
@pytest.mark.parametrize("b", ["uint8", "int8"])
@pytest.mark.parametrize("y", ["uint8", "int8"])
@pytest.mark.parametrize("end", ["quantized", "real"])
def test_two_activations(a: str, b: str, y: str, end: str) -> None:
    case = Case(x=a, y=y, end=end, bias=False)
    net, out = matmul((2, 3, 4, 8), (3, 8, 5), case, constant=False, b_type=b, per_channel=False)
    results = same(net, out)
    if end == "quantized" and a == y == "uint8":
        assert set(results["auto"].ops) == {"QLinearMatMul"}


@pytest.mark.parametrize(("a", "b"), [((4, 3, 8), (1, 8, 6)), ((3, 8), (2, 8, 6)), ((4, 2, 3, 8), (2, 8, 6))], ids=str)
@pytest.mark.parametrize("domain", DOMAINS)
def test_stacks_of_constant_matrices(a: tuple[int, ...], b: tuple[int, ...], domain: str) -> None:
    for bias in (False, True):
        net, out = matmul(a, b, Case(bias=bias))
        same(net, out, [domain])


# -- weights ----------------------------------------------------------------------------------------------------------
def _narrow(values: Array, params: QuantParams, summed: int) -> Weight:
    net = Net()
    return narrow(net.graph, net.constant(values, params), summed)


@given(st.integers(0, 2**32 - 1), st.sampled_from(["int8", "uint8"]))
def test_narrow_weights_mean_the_same(seed: int, dtype: str) -> None:
    dice = np.random.default_rng(seed)
    info = np.iinfo(dtype)
    spread = int(dice.integers(1, 120))
    middle = (int(info.min) + int(info.max) + 1) // 2
    zeros = dice.integers(middle - spread, middle + spread, 5)
    params = QuantParams.per_channel(np.full(5, 0.1), 0, [int(z) for z in zeros], dtype)
    values = integers(dice, params.with_range(middle - 120, middle + 119), (5, 4))
    weight = _narrow(values, params, 1)
    meant = weight.values.astype(int) - weight.zero
    if weight.doubled:
        meant = meant[:, :4] + meant[:, 4:]
    np.testing.assert_array_equal(meant, values.astype(int) - zeros[:, None])


def test_a_plain_int8_weight_is_not_copied() -> None:
    values = np.ones((4, 4), np.int8)
    assert _narrow(values, QuantParams.per_tensor(0.1, 0, "int8"), 1).values is values


@pytest.mark.parametrize(("zero", "low", "high"), [(127, -128, 100), (-128, -100, 127)])
def test_a_difference_of_255_on_one_side(zero: int, low: int, high: int) -> None:
    params = QuantParams.per_channel([0.1, 0.1], 0, [zero, 0], "int8")
    values = np.array([[low, high], [low, high]], np.int8)
    weight = _narrow(values, params, 1)
    halves = weight.values.astype(int) - weight.zero
    np.testing.assert_array_equal(halves[:, :2] + halves[:, 2:], values.astype(int) - [[zero], [0]])


@pytest.mark.parametrize("row", [[-256, -170], [-256, -1], [-256, 254], [-255, 0], [0, 255], [-256, -256]])
def test_weights_of_nine_bits(row: list[int]) -> None:
    """Twice an int8 is as low as -256."""
    params = QuantParams.per_tensor(0.1, 0, "int16")
    weight = _narrow(np.array([row], np.int16), params, 1)
    meant = weight.values.astype(int) - weight.zero
    np.testing.assert_array_equal(meant[:, :2] + meant[:, 2:] if weight.doubled else meant, [row])


def test_differences_of_255_on_both_sides_have_no_form() -> None:
    params = QuantParams.per_channel([0.1, 0.1], 0, [-128, 127], "int8")
    with pytest.raises(ValueError, match="255"):
        _narrow(np.array([[127], [-128]], np.int8), params, 1)

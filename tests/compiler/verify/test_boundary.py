"""The exact values that the verification judges by, and their bounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qatc.compiler.integer import (
    Concat,
    Conv,
    Elementwise,
    IntegerGraph,
    LayerNorm,
    MatMul,
    Op,
    Pool,
    Quantize,
    Rescale,
    Resize,
    Softmax,
    Tensor,
    integer_tensor,
)
from qatc.compiler.quant import QuantParams
from qatc.compiler.reference import execute
from qatc.compiler.verify.boundary import UNIT, exact_at, kernel_error, sum_error
from tests.compiler.verify.cases import (
    EXACT,
    FEW,
    ONNX,
)


def one_op(op: Op, tensors: dict[str, tuple[np.ndarray, QuantParams | None]], out: QuantParams) -> IntegerGraph:
    graph = IntegerGraph("one", [], ["y"], [op], {}, {}, 21)
    for name, (value, params) in tensors.items():
        graph.tensors[name] = Tensor(name, value.dtype.name, value.shape, params)
        if name in ("w", "b"):
            graph.constants[name] = value
        else:
            graph.inputs.append(name)
    graph.tensors["y"] = integer_tensor("y", out)
    graph.verify()
    return graph


def random_grid(rng: np.random.Generator, dtype: str = "uint8", step: float = 0.05) -> QuantParams:
    low = 0 if dtype == "uint8" else -128
    return QuantParams.per_tensor(float(rng.uniform(0.3, 1) * step), int(rng.integers(low, low + 256)), dtype)


def integers(rng: np.random.Generator, shape: tuple[int, ...], dtype: str = "uint8") -> np.ndarray:
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max + 1, shape).astype(dtype)


def conv_case(rng: np.random.Generator, *, transposed: bool) -> tuple[IntegerGraph, dict[str, np.ndarray]]:
    rank, groups = int(rng.integers(1, 4)), int(rng.integers(1, 3))
    kernel = tuple(int(k) for k in rng.integers(1, 4, rank))
    cin, cout = groups * int(rng.integers(1, 4)), groups * int(rng.integers(1, 4))
    shape = (2, cin, *(int(d) for d in rng.integers(5, 8, rank)))
    w_shape = (cin, cout // groups, *kernel) if transposed else (cout, cin // groups, *kernel)
    x_params, out = random_grid(rng), random_grid(rng, step=2.0)
    scales = rng.uniform(0.001, 0.01, cout)
    zeros = rng.integers(-3, 4, cout)
    w_params = QuantParams.per_channel(scales, 0, zeros)
    if transposed:
        w_params = QuantParams.per_tensor(float(scales[0]), 3, "int8")
    acc = tuple(x_params.scale[0] * s for s in (w_params.scale * cout if transposed else w_params.scale))
    strides = tuple(int(s) for s in rng.integers(1, 3, rank))
    attrs: dict[str, Any] = {
        "strides": strides,
        "pads": tuple(int(p) for p in rng.integers(0, min(kernel), 2 * rank)),
        "dilations": tuple(int(d) for d in rng.integers(1, 3, rank)),
        "output_padding": tuple(int(rng.integers(0, s)) for s in strides) if transposed else (),
    }
    op = Conv("c", ("x", "w", "b"), ("y",), lo=0, hi=255, groups=groups, acc_scale=acc, transposed=transposed, **attrs)
    x, w = integers(rng, shape), integers(rng, w_shape, "int8")
    bias = rng.integers(-9999, 9999, cout).astype(np.int32)
    graph = one_op(op, {"x": (x, x_params), "w": (w, w_params), "b": (bias, None)}, out)
    graph.real_biases["y"] = bias.astype(np.float64)
    return graph, {"x": x}


def matmul_case(rng: np.random.Generator) -> tuple[IntegerGraph, dict[str, np.ndarray]]:
    k, columns = int(rng.integers(1, 20)), int(rng.integers(1, 6))
    a_shape = (*((2, 3)[: int(rng.integers(0, 3))]), *([4] if rng.integers(2) else []), k)
    a, b = integers(rng, a_shape), integers(rng, (k, columns), "int8")
    a_params, out = random_grid(rng), random_grid(rng, step=2.0)
    w_params = QuantParams.per_channel(rng.uniform(0.001, 0.01, columns), 1, rng.integers(-3, 4, columns))
    acc = tuple(a_params.scale[0] * s for s in w_params.scale)
    op = MatMul("m", ("x", "w"), ("y",), lo=0, hi=255, acc_scale=acc)
    return one_op(op, {"x": (a, a_params), "w": (b, w_params)}, out), {"x": a}


def simple_case(rng: np.random.Generator, kind: str) -> tuple[IntegerGraph, dict[str, np.ndarray]]:
    a, b = integers(rng, (2, 3, 5, 6)), integers(rng, (3, 1, 6) if kind != "Concat" else (2, 2, 5, 6))
    a_params, b_params, out = random_grid(rng), random_grid(rng), random_grid(rng, step=0.2)
    both = {"a": (a, a_params), "b": (b, b_params)}
    match kind:
        case "Add" | "Sub" | "Mul":
            op: Op = Elementwise("e", ("a", "b"), ("y",), lo=0, hi=255, op=kind)
        case "Sum":
            op = Elementwise("e", ("a", "b", "b", "a"), ("y",), lo=0, hi=255, op="Add")
        case "Concat":
            op = Concat("c", ("a", "b"), ("y",), lo=0, hi=255, axis=1)
        case "Rescale":
            op, both = Rescale("r", ("a",), ("y",), lo=0, hi=255), {"a": (a, a_params)}
        case "Quantize":
            real = rng.normal(0, 5, (2, 3, 4)).astype(np.float32)
            op, both = Quantize("q", ("a",), ("y",), lo=0, hi=255), {"a": (real, None)}
        case "Softmax":
            share = QuantParams.per_tensor(float(rng.choice([1 / 256, 0.01])), 0, "uint8")
            op = Softmax("s", ("a",), ("y",), lo=0, hi=255, axis=int(rng.integers(4)))
            return one_op(op, {"a": (a, a_params)}, share), {"a": a}
        case "Resize":
            op = Resize("r", ("a",), ("y",), lo=0, hi=255, axes=(2, 3), sizes=(10, 7), slopes=(2, 5), offsets=(-1, 2),
                        denominators=(4, 6))  # fmt: skip
            both = {"a": (a, a_params)}
        case "LayerNorm":
            constants = {n: (rng.normal(1, 0.5, 6).astype(np.float32), None) for n in ("w", "b")}
            op = LayerNorm("n", ("a", "w", "b"), ("y",), lo=0, hi=255, epsilon=1e-5)
            return one_op(op, {"a": (a, a_params), **constants}, out), {"a": a}
        case _:
            window = {"kernel": (3, 2), "strides": (2, 1), "pads": (1, 0, 1, 1), "ceil_mode": bool(rng.integers(2))}
            attrs: dict[str, Any] = {} if kind == "GlobalPool" else window
            keep = kind != "GlobalPool" or bool(rng.integers(2))
            op = Pool("p", ("a",), ("y",), lo=0, hi=255, mode="average", keepdims=keep,
                      count_include_pad=bool(rng.integers(2)), **attrs)  # fmt: skip
            both = {"a": (a, a_params)}
    return one_op(op, both, out), {n: v for n, (v, _) in both.items()}


def scalar_case(rng: np.random.Generator, kind: str) -> tuple[IntegerGraph, dict[str, np.ndarray]]:
    """Results without dimensions."""
    if kind == "MatMul":
        grids, values = (
            (random_grid(rng), random_grid(rng, "int8")),
            {"a": integers(rng, (9,)), "b": integers(rng, (9,), "int8")},
        )
        scale = (grids[0].scale[0] * grids[1].scale[0],)
        op: Op = MatMul("m", ("a", "b"), ("y",), lo=0, hi=255, acc_scale=scale)
        tensors = {name: (value, grid) for (name, value), grid in zip(values.items(), grids, strict=True)}
        return one_op(op, tensors, random_grid(rng, step=2.0)), values
    graph, feeds = simple_case(rng, kind)
    feeds = {name: value.reshape(-1)[:1].reshape(()) for name, value in feeds.items()}
    graph.constants.update({name: feeds[name] for name in graph.constants})
    return graph, feeds


CASES: dict[str, Callable[[np.random.Generator], tuple[IntegerGraph, dict[str, np.ndarray]]]] = {
    "Conv": lambda rng: conv_case(rng, transposed=False),
    "ConvTranspose": lambda rng: conv_case(rng, transposed=True),
    "MatMul": matmul_case,
    **{
        kind: (lambda rng, kind=kind: simple_case(rng, kind))
        for kind in (
            "Add",
            "Sub",
            "Mul",
            "Sum",
            "Concat",
            "Rescale",
            "Quantize",
            "Softmax",
            "LayerNorm",
            "Resize",
            "Pool",
            "GlobalPool",
        )
    },
    **{
        f"{kind} of scalars": (lambda rng, kind=kind: scalar_case(rng, kind))
        for kind in ("Add", "Sub", "Mul", "Sum", "Rescale", "Quantize", "MatMul")
    },
}


@pytest.mark.parametrize("kind", CASES)
@FEW
@given(seed=st.integers(0, 2**32 - 1))
def test_exact_values_are_what_the_exact_profile_rounds(kind, seed):
    graph, feeds = CASES[kind](np.random.default_rng(seed))
    (op,) = graph.ops
    y = execute(graph, feeds, EXACT)["y"]
    exact = exact_at(graph, op, {**graph.constants, **feeds, "y": y}, np.arange(y.size))
    assert exact is not None
    different = np.clip(exact.rounded, 0, 255) != y.reshape(-1)
    ties = np.abs(np.abs(exact.value - np.rint(exact.value)) - 0.5) < 1e-9
    assert not (different & ~ties).any()


@pytest.mark.parametrize("kind", ["Add", "Sub", "Mul"])
@settings(max_examples=100)
@given(zero=st.tuples(*[st.integers(0, 255)] * 3), steps=st.tuples(*[st.floats(2**-8, 2**8, width=32)] * 2))
def test_kernels_of_two_operands_stay_within_their_bound(kind, zero, steps):
    """All pairs of codes, on scales up to 256 steps of the result."""
    grids = [QuantParams.per_tensor(s, z, "uint8") for s, z in zip((*steps, 1.0), zero, strict=True)]
    a, b = (np.arange(256, dtype=np.uint8).reshape(shape) for shape in ((256, 1), (1, 256)))
    op = Elementwise("op", ("a", "b"), ("y",), lo=0, hi=255, op=kind)
    graph, feeds = one_op(op, {"a": (a, grids[0]), "b": (b, grids[1])}, grids[2]), {"a": a, "b": b}
    y = execute(graph, feeds, ONNX)["y"]
    exact = exact_at(graph, op, {**feeds, "y": y}, np.arange(y.size))
    assert exact is not None
    bound = kernel_error(graph, op)
    assert bound < 4 * UNIT * (510 + 510 * sum(steps)) + 1e-12
    assert exact.integers_may_give(y.reshape(-1), 0, 255, bound).all()


def test_a_code_that_is_off_where_no_tie_is_near_is_a_finding():
    """The kernel's bound excuses what lies next to a tie, nothing else."""
    grid = QuantParams.per_tensor(0.5, 128)
    op = Elementwise("op", ("a", "b"), ("y",), lo=0, hi=255, op="Add")
    codes = np.arange(100, 140, dtype=np.uint8)
    graph = one_op(op, {"a": (codes, grid), "b": (codes, grid)}, QuantParams.per_tensor(0.7, 128))
    exact = exact_at(graph, op, {"a": codes, "b": codes, "y": codes}, np.arange(codes.size))
    assert exact is not None
    clear = np.abs(exact.value - np.floor(exact.value) - 0.5) > 1e-3
    for off in (-1, 1):
        wrong = np.rint(exact.value) + off
        assert not exact.integers_may_give(wrong, 0, 255, kernel_error(graph, op))[clear].any()


@FEW
@given(seed=st.integers(0, 2**32 - 1))
def test_float_convolutions_stay_within_the_bound(seed, run_op):
    rng = np.random.default_rng(seed)
    channels, size = int(rng.integers(8, 200)), 12
    x_params, w_params = random_grid(rng), QuantParams.per_channel(rng.uniform(0.001, 0.01, 4), 0)
    x, w = integers(rng, (1, channels, size, size)), integers(rng, (4, channels, 3, 3), "int8")
    operands = [x_params.dequantize(x), w_params.dequantize(w)]
    (real,) = run_op("Conv", operands, [np.float32], {"pads": [1] * 4}, fed=(0, 1))
    out = QuantParams.per_tensor(float(real.std() / 40), 128, "uint8")
    acc = tuple(x_params.scale[0] * s for s in w_params.scale)
    attrs: dict[str, Any] = {"strides": (1, 1), "pads": (1,) * 4, "dilations": (1, 1), "groups": 1}
    op = Conv("c", ("x", "w"), ("y",), lo=0, hi=255, acc_scale=acc, **attrs)
    graph = one_op(op, {"x": (x, x_params), "w": (w, w_params)}, out)
    exact = exact_at(graph, op, {"x": x, "w": w, "y": np.empty(real.shape)}, np.arange(real.size))
    assert exact is not None
    found = real.reshape(-1).astype(np.float64) / out.scale[0] + out.zero_point[0]
    assert (np.abs(found - exact.value) <= exact.error).all()
    assert np.median(exact.error) < 0.05  # and the bound excuses little


def test_the_bound_of_a_sum_grows_with_its_root():
    assert sum_error(100_000) / sum_error(1_000) < 12
    assert sum_error(1) < 1e-5
    assert sum_error(1) <= sum_error(2) <= sum_error(3)

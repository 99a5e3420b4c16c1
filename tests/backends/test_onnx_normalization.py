"""Softmax and LayerNorm: QLinearSoftmax is what the reference computes but at ties, the float forms within a step."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qatc.compiler.integer import LayerNorm, Softmax
from qatc.compiler.quant import QuantParams
from qatc.compiler.verify.boundary import exact_at
from tests.backends.emitting import DOMAINS, Net, Result, grid, integers, outcome, same
from tests.runtimes import since

_SHARE = 0.1  # of the elements of one small tensor, in float
UNITS = {"uint8": 0, "int8": -128}


@functools.cache
def optimized_domains() -> tuple[str, ...]:
    """The domains to look at: not `standard` where ONNX Runtime's optimizer makes a QLinearSoftmax that wraps around.

    Old ones give -128 for 1 in int8.
    """
    net = one_hot()
    return DOMAINS if outcome(net, "t0", "standard").worst == 0 else DOMAINS[:1]


def one_hot() -> Net:
    net = Net()
    x = net.input(np.array([[127, -128, -128]], np.int8), QuantParams.per_tensor(0.5, 0, "int8"))
    assert net.add(Softmax, (x,), QuantParams.per_tensor(1 / 256, -128, "int8"), (1, 3), axis=1) == "t0"
    return net


def softmax(
    shape: Sequence[int],
    axis: int,
    types: tuple[str, str] = ("uint8", "uint8"),
    *,
    step: float = 1 / 256,
    bounds: tuple[int, int] | None = None,
    known: bool = True,
    seed: int = 0,
) -> tuple[Net, str]:
    dice = np.random.default_rng(seed)
    net, have = Net(), grid(dice, types[0])
    want = QuantParams.per_tensor(step, UNITS[types[1]], types[1])
    value = integers(dice, have, shape)
    x = net.input(value, have, value.shape if known else (None,) * value.ndim)
    lo, hi = bounds or (want.qmin, want.qmax)
    return net, net.add(Softmax, (x,), want, tuple(shape), axis=axis, lo=lo, hi=hi)


def only_at_boundaries(net: Net, out: str, result: Result) -> None:
    """The kernel is the reference but where both rightly round: it adds floats in an order of its own."""
    where = np.flatnonzero(result.found != result.expected)
    assert where.size <= result.found.size // 1000 + 1
    values = {**net.graph.constants, **net.feeds, out: result.expected}
    exact = exact_at(net.graph, net.graph.ops[0], values, where)
    assert exact is not None
    params = net.graph.params(out)
    for codes in (result.found, result.expected):
        assert exact.integers_may_give(codes.reshape(-1)[where], params.qmin, params.qmax).all()


@pytest.mark.parametrize("types", [("uint8", "uint8"), ("int8", "int8"), ("uint8", "int8"), ("int8", "uint8")], ids=str)
@pytest.mark.parametrize(("shape", "axis"), [((3, 2), 1), ((2, 5, 7), 1), ((2, 3, 300), 2), ((40,), 0)], ids=str)
@given(seed=st.integers(0, 2**32 - 1))
@example(seed=31129)  # one of 1,800 elements, uint8 to int8, lies on -121.5 but for 4e-7
@settings(max_examples=5)
def test_the_kernel_is_the_reference(types: tuple[str, str], shape: tuple[int, ...], axis: int, seed: int) -> None:
    net, out = softmax(shape, axis, types, seed=seed)
    results = same(net, out, optimized_domains(), within=1)
    assert results["auto"].ops["QLinearSoftmax"] == 1
    only_at_boundaries(net, out, results["auto"])
    assert "standard" not in results or results["standard"].share < _SHARE


def test_one_hot_rows_saturate() -> None:
    """256 steps of 1/256 are 255: in int8, old kernels wrap around there."""
    assert same(one_hot(), "t0", optimized_domains())["auto"].found.tolist() == [[127, -128, -128]]


def test_a_narrow_result_is_clamped() -> None:
    net, out = softmax((4, 6), 1, bounds=(10, 100), seed=3)
    result = outcome(net, out, "auto")
    assert (result.worst, result.ops["Clip"]) == (0, 1)


@pytest.mark.parametrize(
    "keywords",
    [
        {"step": 0.0039},
        {"step": 0.003},
        {"known": False},
        pytest.param(
            {"shape": (4, 1)}, marks=since(1, 32, "makes the kernel of the float form, which gives 0 for one element")
        ),
    ],
    ids=str,
)
def test_what_the_kernel_computes_otherwise_is_written_in_float(keywords: dict) -> None:
    """It cuts 1 / scale off to a whole number (256.4 becomes 256), and one element overflows."""
    net, out = softmax(**{"shape": (4, 6), "axis": 1, **keywords})
    result = outcome(net, out, "auto")
    assert result.ops["QLinearSoftmax"] == 0
    assert result.worst <= 1
    assert result.share < _SHARE


@pytest.mark.parametrize("types", [("uint8", "uint8"), ("int8", "int8")], ids=str)
@pytest.mark.parametrize(("opset", "uncentered"), [(13, False), (17, False), (13, True), (17, True), (18, True)])
@pytest.mark.parametrize(("shape", "axes", "bias"), [((2, 5, 16), 1, True), ((3, 4, 5), 2, True), ((8,), 1, False)])
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=5)
def test_layer_norm(
    types: tuple[str, str], opset: int, uncentered: bool, shape: tuple[int, ...], axes: int, bias: bool, seed: int
) -> None:
    dice = np.random.default_rng(seed)
    net, have, want = Net(opset), grid(dice, types[0]), grid(dice, types[1])
    inner = shape[len(shape) - axes :]
    names = [net.input(integers(dice, have, shape), have)]
    names += [net.constant(dice.normal(1, 0.5, inner).astype(np.float32)) for _ in range(1 + bias)]
    results = same(net, net.add(LayerNorm, names, want, shape, epsilon=1e-5, uncentered=uncentered), within=1)
    assert all(r.share < _SHARE for r in results.values())

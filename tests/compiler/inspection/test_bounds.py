"""Bounds of accumulators: no input exceeds them, one reaches them; pairs of products by plain enumeration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qatc.compiler.arithmetic import PROFILES
from qatc.compiler.inspection.bounds import clamps, overflows, sum_bounds, weight_facts
from qatc.compiler.integer import Conv, IntegerGraph, MatMul, Rescale, Tensor, integer_tensor, raw_accumulator
from qatc.compiler.quant import QuantParams
from qatc.compiler.reference import execute

INT32 = (-(2**31), 2**31 - 1)


def graph_of(x: np.ndarray, params: QuantParams, w: np.ndarray, weight: QuantParams) -> IntegerGraph:
    tensors = {"x": Tensor("x", x.dtype.name, x.shape, params), "w": Tensor("w", w.dtype.name, w.shape, weight)}
    return IntegerGraph("net", ["x"], ["y"], [], tensors, {"w": w}, 21)


def matmul(x: np.ndarray, params: QuantParams, w: np.ndarray, weight: QuantParams) -> IntegerGraph:
    """The product x @ w as a raw accumulator."""
    graph = graph_of(x, params, w, weight)
    scale = (0.5,) * w.shape[-1]
    graph.tensors["y"] = integer_tensor("y", raw_accumulator(scale, x.ndim - 1))
    graph.ops.append(MatMul("mm", ("x", "w"), ("y",), lo=INT32[0], hi=INT32[1], acc_scale=scale, source="/fc"))
    return graph


def conv(
    x: np.ndarray, params: QuantParams, w: np.ndarray, weight: QuantParams, *, groups: int = 1, transposed: bool = False
) -> IntegerGraph:
    graph = graph_of(x, params, w, weight)
    rank = w.ndim - 2
    scale = (0.5,) * (w.shape[1] * groups if transposed else w.shape[0])
    graph.tensors["y"] = integer_tensor("y", raw_accumulator(scale, 1))
    graph.ops.append(
        Conv("conv", ("x", "w"), ("y",), lo=INT32[0], hi=INT32[1], strides=(1,) * rank, pads=(0,) * 2 * rank,
             dilations=(1,) * rank, groups=groups, acc_scale=scale, transposed=transposed)
    )  # fmt: skip
    return graph


def bounds_of(graph: IntegerGraph):
    op = next(op for op in graph.ops if isinstance(op, Conv | MatMul))
    found = sum_bounds(graph, op, clamps(graph))
    assert found is not None
    return found


def accumulators(graph: IntegerGraph, x: np.ndarray) -> np.ndarray:
    return execute(graph, {"x": x}, PROFILES["exact"])["y"].astype(np.int64)


@given(st.data())
def test_a_matrix_products_bound_is_reached_and_never_exceeded(data: st.DataObject) -> None:
    depth, channels = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 4))
    qmin, qmax = sorted(data.draw(st.tuples(st.integers(0, 255), st.integers(0, 255))))
    zero = data.draw(st.integers(qmin, qmax))
    params = QuantParams.per_tensor(0.5, zero, "uint8", qmin, qmax)
    numbers = st.lists(st.integers(-128, 127), min_size=depth * channels, max_size=depth * channels)
    w = np.array(data.draw(numbers), np.int8).reshape(depth, channels)
    zeros = data.draw(st.lists(st.integers(-3, 3), min_size=channels, max_size=channels))
    weight = QuantParams.per_channel([0.5] * channels, 1, zeros)
    offset = w.astype(np.int64) - np.array(zeros)
    extremes = [np.where((offset[:, c] > 0) == up, qmax, qmin) for c in range(channels) for up in (True, False)]
    x = np.stack(extremes).astype(np.uint8)
    graph = matmul(x, params, w, weight)
    assert np.abs(accumulators(graph, x)).max() == bounds_of(graph).largest
    other = np.random.default_rng(0).integers(qmin, qmax + 1, (50, depth)).astype(np.uint8)
    assert np.abs(accumulators(graph, other)).max() <= bounds_of(graph).largest


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_convolutions_stay_within_their_bounds(groups: int, transposed: bool) -> None:
    rng = np.random.default_rng(groups)
    params = QuantParams.per_tensor(0.5, 90, "uint8")
    shape = (8, 12 // groups, 3, 3) if transposed else (12, 8 // groups, 3, 3)
    w = rng.integers(-128, 128, shape).astype(np.int8)
    x = rng.choice([0, 255], (400, 8, 3, 3)).astype(np.uint8)
    graph = conv(x, params, w, QuantParams.per_tensor(0.5, 0, "int8"), groups=groups, transposed=transposed)
    found = bounds_of(graph)
    assert found.channels == 12
    assert np.abs(accumulators(graph, x)).max() <= found.largest
    if not transposed:  # the one position that reads the whole kernel, with the worst input of one channel
        rows = w.reshape(12, -1)
        channel = int(np.abs(rows.astype(int)).sum(axis=1).argmax())
        worst = np.zeros((2, 8, 3, 3), np.uint8)
        first = channel // (12 // groups) * (8 // groups)
        for index, up in enumerate((True, False)):
            worst[index, first : first + 8 // groups] = np.where((w[channel] > 0) == up, 255, 0)
        reached = np.abs(accumulators(graph, worst)[:, channel]).max()
        alone = conv(x, params, w[channel : channel + 1], QuantParams.per_tensor(0.5, 0, "int8"))
        assert reached == bounds_of(alone).largest


def test_a_clamp_in_front_narrows_the_bound() -> None:
    params = QuantParams.per_tensor(0.5, 0, "uint8")
    w = np.full((4, 2), 127, np.int8)
    graph = matmul(np.zeros((1, 4), np.uint8), params, w, QuantParams.per_tensor(0.5, 0, "int8"))
    assert bounds_of(graph).largest == 4 * 127 * 255
    graph.inputs, graph.ops = ["a"], [Rescale("clip", ("a",), ("x",), lo=0, hi=6), *graph.ops]
    graph.tensors["a"] = Tensor("a", "uint8", (1, 4), params)
    assert bounds_of(graph).largest == 4 * 127 * 6


def test_long_sums_overflow_and_say_so() -> None:
    depth = 70_000
    w = np.full((depth, 3), 127, np.int8)
    w[:, 1] = 0
    params, weight = QuantParams.per_tensor(0.5, 0, "uint8"), QuantParams.per_tensor(0.5, 0, "int8")
    graph = matmul(np.zeros((1, depth), np.uint8), params, w, weight)
    (found,) = overflows(graph)
    assert (found.code, found.node) == ("QAT304", "/fc")
    assert f"may reach {depth * 127 * 255:,}, more than 32 bits hold, in 2 of 3 channels" in found.message
    assert overflows(matmul(np.zeros((1, 4), np.uint8), params, w[:4], weight)) == []


def test_a_heavy_bias_counts() -> None:
    params, weight = QuantParams.per_tensor(0.5, 0, "uint8"), QuantParams.per_tensor(0.5, 0, "int8")
    graph = matmul(np.zeros((1, 4), np.uint8), params, np.full((4, 1), 127, np.int8), weight)
    (op,) = graph.ops
    assert isinstance(op, MatMul)
    out = QuantParams.per_tensor(1.0, 0, "uint8")
    graph.ops = [MatMul("mm", ("x", "w", "b"), ("y",), lo=0, hi=255, acc_scale=op.acc_scale, source="/fc")]
    graph.tensors["y"] = integer_tensor("y", out)
    graph.tensors["b"] = Tensor("b", "int32", (1,))
    graph.constants["b"] = np.array([2**31 - 1], np.int32)
    assert [d.code for d in overflows(graph)] == ["QAT304"]


def test_a_product_of_activations_is_bounded_by_its_depth() -> None:
    params = QuantParams.per_tensor(0.5, 128, "uint8")
    graph = matmul(np.zeros((2, 64), np.uint8), params, np.zeros((64, 8), np.uint8), params)
    del graph.constants["w"]
    graph.inputs = ["x", "w"]
    assert bounds_of(graph).largest == 64 * 128 * 128
    graph.tensors["x"] = Tensor("x", "uint8", (2, "n"), params)
    (op,) = graph.ops
    assert isinstance(op, MatMul)
    assert sum_bounds(graph, op, {}) is None


@given(st.lists(st.integers(-128, 127), min_size=2, max_size=9), st.integers(0, 255), st.booleans())
def test_pairs_by_enumeration(weights: list[int], qmax: int, signed: bool) -> None:
    """What `vpmaddubsw` adds: neighbors' products of raw codes, signed codes moved up by 128."""
    shift = 128 if signed else 0
    params = QuantParams.per_tensor(0.5, 0, "int8" if signed else "uint8", -shift, qmax - shift)
    w = np.array(weights, np.int8)[:, None]
    found = bounds_of(
        matmul(np.zeros((1, len(weights)), params.container), params, w, QuantParams.per_tensor(1, 0, "int8"))
    )
    padded = [*weights, 0] if len(weights) % 2 else weights
    sums = [
        [a * u + b * v for u, v in itertools.product((0, qmax), repeat=2)]
        for a, b in zip(padded[::2], padded[1::2], strict=True)
    ]
    assert found.largest_pair == max(abs(total) for pair in sums for total in pair)
    assert found.pairs == sum(max(pair) > 32767 or min(pair) < -32768 for pair in sums)
    assert found.saturating == (found.pairs > 0)


def test_pairs_of_a_convolution_are_neighboring_channels() -> None:
    params = QuantParams.per_tensor(0.5, 0, "uint8")
    w = np.zeros((1, 4, 1, 2), np.int8)
    w[0, 0, 0, 0] = w[0, 1, 0, 0] = 127  # one position of the kernel, channels 0 and 1: a pair
    w[0, 2, 0, 1] = w[0, 2, 0, 0] = 127  # one channel at two positions: none
    found = bounds_of(conv(np.zeros((1, 4, 1, 2), np.uint8), params, w, QuantParams.per_tensor(1, 0, "int8")))
    assert (found.pairs, found.saturating, found.largest_pair) == (1, 1, 2 * 127 * 255)
    depthwise = np.full((4, 1, 3, 3), 127, np.int8)
    found = bounds_of(
        conv(np.zeros((1, 4, 3, 3), np.uint8), params, depthwise, QuantParams.per_tensor(1, 0, "int8"), groups=4)
    )
    assert found.pairs == 0


def test_what_the_weights_show() -> None:
    params, weight = QuantParams.per_tensor(0.5, 0, "uint8"), QuantParams.per_tensor(0.5, 0, "int8")
    w = np.array([[-128, 3, 0], [64, -15, 0]], np.int8)
    (op,) = (graph := matmul(np.zeros((1, 2), np.uint8), params, w, weight)).ops
    assert isinstance(op, MatMul)
    found = weight_facts(graph, op)
    assert found is not None
    assert (found.channels, found.bits, found.weak, found.dead) == (3, 8, 1, 1)
    few = matmul(np.zeros((1, 2), np.uint8), params, np.array([[-7 * 18, 36], [126, 0]], np.int8), weight)
    found = weight_facts(few, op)
    assert found is not None
    assert (found.bits, found.weak) == (4, 0)

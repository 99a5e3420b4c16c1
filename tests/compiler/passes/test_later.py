"""Operators and attributes that a file is too old for, against what they mean."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from qatc.compiler.graph import QuantGraph, value_of
from qatc.compiler.passes.later import bring_down
from qatc.compiler.passes.modernize import modernize
from qatc.compiler.reference import evaluate_onnx
from tests.graphs import loaded


def model(opset: int, body: str, shape: str = "2, 3, 4") -> str:
    return f'<ir_version: 8, opset_import: ["" : {opset}]>\nnet (float[{shape}] x) => (float y) {{ {body} }}'


def result(graph: QuantGraph, x: np.ndarray) -> np.ndarray:
    """What a modernized graph computes, node by node."""
    graph.sort()
    found: dict[str, np.ndarray] = {"x": x}
    for node in graph.nodes:
        values = [found[t.name] if t.name in found else value_of(t) for t in node.inputs]
        (found[node.outputs[0].name],) = evaluate_onnx(node.op, "", graph.opset, values, node.attrs, 1)
    return found["y"]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


MEANINGS: list[tuple[str, int, Callable[[np.ndarray], np.ndarray]]] = [
    ("Swish(x)", 24, lambda x: x * sigmoid(x)),
    ("Swish<alpha = 1.702>(x)", 24, lambda x: x * sigmoid(np.float32(1.702) * x)),
    ("Mish(x)", 18, lambda x: x * np.tanh(np.log1p(np.exp(x)))),
    ("Gelu(x)", 20, lambda x: x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2),
    (
        'Gelu<approximate = "tanh">(x)',
        20,
        lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    ),
    ("HardSwish(x)", 14, lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
]


@pytest.mark.parametrize(("call", "since", "meaning"), MEANINGS)
def test_functions_in_a_file_too_old_for_them(
    call: str, since: int, meaning: Callable[[np.ndarray], np.ndarray]
) -> None:
    x = np.linspace(-5, 5, 24, dtype=np.float32).reshape(2, 3, 4)
    graph = loaded(model(13, f"y = {call}"))
    modernize(graph)
    assert call.split("<")[0].split("(")[0] not in {n.op for n in graph.nodes}
    assert np.allclose(result(graph, x), meaning(x), atol=1e-6)
    newer = loaded(model(since, f"y = {call}"))
    modernize(newer)
    assert len(newer.nodes) == 1


CONSTANTS = "f = Constant<value_floats = [1.0, 2.0, 3.0, 4.0]>() b = Constant<value_floats = [0.0, 1.0, 0.0, -1.0]>()"
ROWS = np.arange(24, dtype=np.float32).reshape(2, 3, 4) ** 2 / 50
FACTOR, BIAS = np.array([1, 2, 3, 4], np.float32), np.array([0, 1, 0, -1], np.float32)


def normalized(x: np.ndarray, axes: tuple[int, ...], epsilon: float, centered: bool) -> np.ndarray:
    d = x - x.mean(axes, keepdims=True) if centered else x
    return d / np.sqrt((d * d).mean(axes, keepdims=True) + epsilon)


@pytest.mark.parametrize(
    ("call", "meaning"),
    [
        ("LayerNormalization(x, f)", lambda x: normalized(x, (2,), 1e-5, True) * FACTOR),
        ("LayerNormalization(x, f, b)", lambda x: normalized(x, (2,), 1e-5, True) * FACTOR + BIAS),
        ("LayerNormalization<epsilon = 0.5>(x, f, )", lambda x: normalized(x, (2,), 0.5, True) * FACTOR),
        ("LayerNormalization<axis = -2>(x, f)", lambda x: normalized(x, (1, 2), 1e-5, True) * FACTOR),
        ("LayerNormalization<axis = 1>(x, f)", lambda x: normalized(x, (1, 2), 1e-5, True) * FACTOR),
        ("RMSNormalization(x, f)", lambda x: normalized(x, (2,), 1e-5, False) * FACTOR),
    ],
)
def test_normalization_in_a_file_too_old_for_it(call: str, meaning: Callable[[np.ndarray], np.ndarray]) -> None:
    graph = loaded(model(13, f"{CONSTANTS} y = {call}"))
    modernize(graph)
    assert "Normalization" not in " ".join(n.op for n in graph.nodes)
    assert np.allclose(result(graph, ROWS), meaning(ROWS), atol=1e-5)


def test_statistics_that_are_read_leave_a_normalization_as_it_is() -> None:
    graph = loaded(model(13, f"{CONSTANTS} u, m = LayerNormalization(x, f) y = Add(u, m)"))
    modernize(graph)
    assert graph.nodes[0].op == "LayerNormalization"


def test_a_normalization_with_more_than_it_takes_stays_as_it_is() -> None:
    """An opset that does not know the operator asks for the inputs alone that it cannot do without."""
    graph = loaded(model(13, f"{CONSTANTS} y = LayerNormalization(x, f, b, b)"))
    modernize(graph)
    assert [n.op for n in graph.nodes] == ["LayerNormalization"]


def test_axes_of_a_reduction_become_the_attribute_that_they_were() -> None:
    graph = loaded(model(18, "a = Constant<value_ints = [-1, 0]>() y = ReduceMax(x, a)"))
    modernize(graph)
    assert len(graph.nodes[0].inputs) == 2
    bring_down(graph, 17)
    (node,) = graph.nodes
    assert (node.attrs["axes"], len(node.inputs)) == ([-1, 0], 1)


def test_a_graph_is_never_brought_up() -> None:
    graph = loaded(model(13, "y = Relu(x)"))
    bring_down(graph, 17)
    assert graph.opset == 13


@pytest.mark.parametrize(("allowzero", "shape", "kept"), [(0, [6, 4], False), (1, [6, 4], False), (1, [0, 4], True)])
def test_an_attribute_goes_that_says_what_is_meant_without_it(allowzero: int, shape: list[int], kept: bool) -> None:
    """Allowzero says what a zero means: nothing where there is none."""
    body = f"s = Constant<value_ints = {shape}>() y = Reshape<allowzero = {allowzero}>(x, s)"
    graph = loaded(model(13, body))
    modernize(graph)
    (reshape,) = graph.nodes
    assert ("allowzero" in reshape.attrs) == kept
    newer = loaded(model(14, body))
    modernize(newer)
    assert "allowzero" in newer.nodes[0].attrs


def test_a_part_of_a_shape_is_cut_out_of_the_whole() -> None:
    for attrs, wanted in (("start = 1", [3, 4]), ("end = -1", [2, 3]), ("start = -2, end = 2", [3])):
        graph = loaded(model(15, f"s = Shape<{attrs}>(x) y = Cast<to = 1>(s)"))
        bring_down(graph, 13)
        assert [n.op for n in graph.nodes] == ["Shape", "Slice", "Cast"]
        assert result(graph, ROWS).tolist() == wanted


def test_a_default_that_is_a_word_goes_too() -> None:
    body = "s = Constant<value_floats = [1.0, 1.0, 2.0]>()"
    words = 'mode = "linear", antialias = 0, keep_aspect_ratio_policy = "stretch"'
    graph = loaded(model(13, f"{body} y = Resize<{words}>(x, , s)"))
    modernize(graph)
    (resize,) = graph.nodes
    assert set(resize.attrs) == {"mode"}


@pytest.mark.parametrize(("axis", "size"), [(-1, 2), (2, 2), (1, 1)])
def test_split_by_the_count_of_its_outputs(axis: int, size: int) -> None:
    """Parts of one size, as opset 18 has them; where it does not divide, the last one is smaller."""
    graph = loaded(model(17, f"a, y = Split<axis = {axis}, num_outputs = 2>(x)"))
    modernize(graph)
    (split,) = graph.nodes
    assert "num_outputs" not in split.attrs
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    values = [x, *(value_of(t) for t in split.inputs[1:])]
    _, last = evaluate_onnx("Split", "", graph.opset, values, split.attrs, 2)
    assert np.array_equal(last, x.take(range(x.shape[axis] - size, x.shape[axis]), axis))
    parts = [size for size in (value_of(t) for t in split.inputs[1:]) if size is not None]
    assert all(p.sum() == x.shape[axis] for p in parts)
    newer = loaded(model(18, f"a, y = Split<axis = {axis}, num_outputs = 2>(x)"))
    modernize(newer)
    assert newer.nodes[0].attrs["num_outputs"] == 2


def test_a_split_along_an_axis_that_is_not_there_is_onnx_runtime_s_to_refuse() -> None:
    """It ended in an exception."""
    graph = loaded(model(17, "a, y = Split<axis = 7, num_outputs = 2>(x)"))
    modernize(graph)
    assert graph.nodes[0].attrs == {"axis": 7}


@pytest.mark.parametrize(
    ("shape", "strides", "extra"), [((1, 2, 5), [2], 0), ((2, 1, 3, 4), [2, 3], [1, 0]), ((1, 1, 3), [1], 0)]
)
def test_zeros_are_inserted(shape: tuple[int, ...], strides: list[int], extra: int | list[int]) -> None:
    """Half of a transposed convolution, as OpenPPL's quantizer writes one."""
    call = f"y = InsertZeros<stride = {strides}, output_padding = {extra}>(x)"
    graph = loaded(model(13, call, ", ".join(str(d) for d in shape)))
    modernize(graph)
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    more = np.broadcast_to(extra, len(strides))
    want = np.zeros([*shape[:2], *((d - 1) * s + 1 + e for d, s, e in zip(shape[2:], strides, more, strict=True))])
    want[(slice(None), slice(None), *(slice(None, None, s) for s in strides))] = x
    assert np.array_equal(result(graph, x), want)


def test_zeros_are_not_inserted_where_sizes_are_unknown() -> None:
    graph = loaded(model(13, "y = InsertZeros<stride = [2]>(x)", "1, 2, N"))
    modernize(graph)
    assert [n.op for n in graph.nodes] == ["InsertZeros"]


def test_zeros_are_not_inserted_with_strides_of_another_rank() -> None:
    graph = loaded(model(13, "y = InsertZeros<stride = [2, 2, 2]>(x)", "1, 2, 3, 4"))
    modernize(graph)
    assert [n.op for n in graph.nodes] == ["InsertZeros"]

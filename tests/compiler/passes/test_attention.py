"""Attention of opset 23: the same numbers from two products and a Softmax, or left alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from qatc.compiler.passes.modernize import modernize
from tests.frontends.networks import graph_of
from tests.frontends.running import run
from tests.graphs import to_model

SHAPE = [2, 3, 5, 8]


def model(mask: int | None = None, shapes: list[list[int | str]] | None = None, **attrs: Any) -> onnx.ModelProto:
    shapes = shapes or [SHAPE, [2, 3, 6, 8], [2, 3, 6, 4]]
    inputs = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s) for n, s in zip("qkv", shapes, strict=True)]
    names = ["q", "k", "v"]
    if mask is not None:
        inputs.append(helper.make_tensor_value_info("m", mask, [5, 6]))
        names.append("m")
    node = helper.make_node("Attention", names, ["y"], **attrs)
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


@pytest.mark.parametrize(
    ("mask", "attrs"),
    [
        (None, {}),
        (None, {"scale": 0.25}),
        (None, {"is_causal": 1}),
        (onnx.TensorProto.FLOAT, {}),
        (onnx.TensorProto.BOOL, {}),
    ],
    ids=str,
)
def test_two_products(mask: int | None, attrs: dict[str, Any]) -> None:
    source = model(mask, **attrs)
    graph = graph_of(source)
    modernize(graph)
    graph.verify(stripped=False)
    assert [n.op for n in graph.nodes].count("MatMul") == 2
    rng = np.random.default_rng(0)
    feeds: list[np.ndarray] = [rng.normal(size=s).astype(np.float32) for s in (SHAPE, [2, 3, 6, 8], [2, 3, 6, 4])]
    if mask == onnx.TensorProto.FLOAT:
        feeds.append(rng.normal(size=(5, 6)).astype(np.float32))
    elif mask == onnx.TensorProto.BOOL:
        feeds.append(np.tril(np.ones((5, 6), np.bool_)))
    np.testing.assert_allclose(run(to_model(graph), *feeds)[0], run(source, *feeds)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("kind", [onnx.TensorProto.FLOAT, onnx.TensorProto.BOOL])
def test_a_row_that_a_mask_leaves_nothing_is_zero(kind: int, causal: int) -> None:
    """As in PyTorch, and in ONNX Runtime (older ones have NaN or the mean): padded queries see no key."""
    source = model(kind, is_causal=causal)
    graph = graph_of(source)
    modernize(graph)
    rng = np.random.default_rng(0)
    feeds: list[np.ndarray] = [rng.normal(size=s).astype(np.float32) for s in (SHAPE, [2, 3, 6, 8], [2, 3, 6, 4])]
    kept = rng.random((5, 6)) > 0.3
    kept[1] = False
    kept[3] = [False] * 4 + [True] * 2  # nothing of what is causal
    kept[0, 0] = kept[2, 1] = kept[4, 2] = True
    feeds.append(kept if kind == onnx.TensorProto.BOOL else np.where(kept, 0, -np.inf).astype(np.float32))
    (found,), (wanted,) = run(to_model(graph), *feeds), run(source, *feeds)
    seen = kept & np.tri(5, 6, dtype=np.bool_) if causal else kept
    wanted[:, :, ~seen.any(axis=1)] = 0
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("last", "ops"), [(True, 0), (False, 1)])
def test_a_constant_mask_that_leaves_each_row_something_needs_no_look(last: bool, ops: int) -> None:
    source = model(onnx.TensorProto.BOOL)
    kept = np.ones((5, 6), np.bool_)
    kept[4] = last
    source.graph.input.pop()
    source.graph.initializer.append(onnx.numpy_helper.from_array(kept, "m"))
    graph = graph_of(source)
    modernize(graph)
    assert [n.op for n in graph.nodes].count("IsNaN") == ops


@pytest.mark.parametrize(
    "source",
    [
        model(softcap=2.0),
        model(shapes=[[2, 6, 5, 8], [2, 3, 6, 8], [2, 3, 6, 4]]),
        model(shapes=[[2, 3, "n", 8], [2, 3, "n", 8], [2, 3, "n", 4]], is_causal=1),
        model(shapes=[[2, 5, 24], [2, 6, 24], [2, 6, 12]], q_num_heads=3, kv_num_heads=3),
    ],
)
def test_everything_else_stays(source: onnx.ModelProto) -> None:
    graph = graph_of(source)
    modernize(graph)
    assert [n.op for n in graph.nodes] == ["Attention"]

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

"""Shapes behind operators that ONNX does not have are those that their runtime computes."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest

from qatc.compiler.graph import shape_of
from qatc.compiler.model.foreign import shape_twins
from qatc.compiler.runtime.sessions import RunnableModel
from qatc.compiler.shapes import infer_shapes
from tests.graphs import loaded

B, C = "float[2,3] b = {1, 2, 3, 4, 5, 6}", "float[4,3,1,1] c = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}"


@pytest.mark.parametrize(
    ("x", "node", "constants"),
    [
        ("2,3,5", "com.microsoft.FusedMatMul<alpha=0.5>(x, b)", "float[5,2] b = {1, 2, 3, 4, 5, 6, 7, 8, 9, 0}"),
        ("2,3,5", "com.microsoft.FusedMatMul<transA=1>(x, b)", "float[3,2] b = {1, 2, 3, 4, 5, 6}"),
        ("4,2,3", "com.microsoft.FusedMatMul<transB=1, alpha=0.25>(x, b)", B),
        ("4,2,3", "com.microsoft.FusedMatMul<transA=1, transB=1>(x, x)", ""),
        ("1,3,6,6", 'com.microsoft.FusedConv<activation="Relu", strides=[2,2]>(x, c)', C),
        ("2,3", 'com.microsoft.FusedGemm<activation="Relu", transA=1>(x, b)', B),
        ("2,3", "com.microsoft.BiasGelu(x, d)", "float[3] d = {1, 2, 3}"),
    ],
)
def test_shapes_are_those_of_the_runtime(x: str, node: str, constants: str) -> None:
    text = (
        '<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>\n'
        f"g (float[{x}] x) => (float[] y) <{constants}> {{ f = {node} y = Neg(f) }}"
    )
    if "(x, x)" in node:
        text = text.replace("(x, x)", "(x, e)").replace("{ f", "{ e = Transpose<perm=[0,2,1]>(x) f")
    graph = loaded(text)
    infer_shapes(graph)
    feeds = {"x": np.ones([int(d) for d in x.split(",")], np.float32)}
    assert shape_of(graph.outputs[0]) == RunnableModel(onnx.parser.parse_model(text)).run(feeds)["y"].shape


@pytest.mark.parametrize("domain", ["", "other"])
def test_nodes_of_others_stay(domain: str) -> None:
    node = onnx.helper.make_node("FusedConv", ["x"], ["y"], domain=domain)
    assert shape_twins(node) == [node]


@pytest.mark.parametrize(
    "op", ["FakeQuantWithMinMaxArgs", "FakeQuantWithMinMaxVars", "FakeQuantWithMinMaxVarsPerChannel"]
)
def test_fake_quantization_of_tensorflow_keeps_shapes(op: str) -> None:
    graph = loaded(
        '<ir_version: 8, opset_import: ["": 17]>\n'
        f"g (float[2,3] x, float[3] low) => (float[] y) {{ f = {op}(x, low, low) y = Transpose(f) }}"
    )
    infer_shapes(graph)
    assert shape_of(graph.outputs[0]) == (3, 2)

"""Half precision becomes float32; the interface keeps its types."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qatc import compile_model
from qatc.compiler.graph import QuantGraph
from qatc.compiler.passes.modernize import modernize
from tests.frontends.running import run
from tests.graphs import loaded


def widened(nodes: str, kind: str = "float16") -> QuantGraph:
    text = f"g ({kind}[2,3] x) => ({kind}[2,3] y) {{ c = Cast<to={10 if kind == 'float16' else 16}>(f) {nodes} }}"
    header = '<ir_version: 9, opset_import: ["" : 19]>'
    graph = loaded(f"{header}\n{text.replace('{ c', '<float f = {2.0}> { c')}")
    modernize(graph)
    graph.verify(stripped=False)
    return graph


def test_float16_inside_goes_and_stays_at_the_ends() -> None:
    graph = widened("a = Mul(x, c) b = Cast<to=1>(a) d = Relu(b) e = Cast<to=10>(d) y = Add(e, c)")
    assert [n.op for n in graph.nodes] == ["Cast", "Mul", "Relu", "Add", "Cast"]
    assert [t.dtype for t in (graph.inputs[0], graph.outputs[0])] == [TensorProto.FLOAT16, TensorProto.FLOAT16]
    assert [d.code for d in graph.diagnostics] == ["QAT108"]


def test_bfloat16_becomes_float32_at_the_ends_too() -> None:
    graph = widened("y = Mul(x, c)", "bfloat16")
    assert [n.op for n in graph.nodes] == ["Mul"]
    assert [t.dtype for t in (graph.inputs[0], graph.outputs[0])] == [TensorProto.FLOAT, TensorProto.FLOAT]


def test_an_output_that_is_read_on_is_cast_once() -> None:
    graph = loaded(
        '<ir_version: 9, opset_import: ["" : 19]>\ng (float16[2] x) => (float16[2] y, float16[2] z)'
        " { y = Relu(x) z = Neg(y) }"
    )
    modernize(graph)
    graph.verify(stripped=False)
    assert sorted(n.op for n in graph.nodes) == ["Cast", "Cast", "Cast", "Neg", "Relu"]


def test_single_precision_is_left_alone() -> None:
    graph = loaded('<ir_version: 9, opset_import: ["" : 19]>\ng (float[2] x) => (float[2] y) { y = Relu(x) }')
    before = graph.dump()
    modernize(graph)
    assert (graph.dump(), list(graph.diagnostics)) == (before, [])


@pytest.mark.parametrize("opset", [19, 21])
def test_a_half_precision_export_runs_in_integers(opset: int, tmp_path: Path) -> None:
    """QuantizeLinear with scales of float16, as opset 19 has it."""
    half, rng = np.float16, np.random.default_rng(1)
    values = {
        "s": np.asarray(0.05, half),
        "z": np.asarray(128, np.uint8),
        "w": rng.normal(0, 0.3, (4, 3)).astype(half),
        "ws": np.full(4, 0.01, half),
        "wz": np.zeros(4, np.int8),
        "b": rng.normal(0, 0.3, 4).astype(half),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("QuantizeLinear", ["w", "ws", "wz"], ["wq"], axis=0),
        helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["wd"], axis=0),
        helper.make_node("Gemm", ["xd", "wd", "b"], ["g"], transB=1),
        helper.make_node("QuantizeLinear", ["g", "s", "z"], ["gq"]),
        helper.make_node("DequantizeLinear", ["gq", "s", "z"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "half",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["N", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["N", 4])],
        [numpy_helper.from_array(v, n) for n, v in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    found = compile_model(tmp_path / "model.onnx", qat=True, output=tmp_path / "out")
    assert (found.coverage.share, found.islands) == (1.0, ())
    x = rng.normal(0, 2, (8, 3)).astype(half)
    got, want = (run(m, x)[0] for m in (tmp_path / "out" / "model.onnx", tmp_path / "model.onnx"))
    assert got.dtype == want.dtype == half
    steps = np.rint((got.astype(np.float32) - want.astype(np.float32)) / 0.05)
    assert np.abs(steps).max() <= 1  # half precision may fall to the next step

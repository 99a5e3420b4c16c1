"""Models that choose by processor: the If, what ONNX Runtime makes of it, and how qatc reads it back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import GraphProto, TensorProto, helper, numpy_helper

from qatc.compiler.runtime.processor import by_processor, flattened, is_exact


def _model(value: float, output: str = "y") -> onnx.ModelProto:
    """The sum of x and value, by a node that makes a tensor in between."""
    nodes = [helper.make_node("Add", ["x", "c"], ["t"], "sum"), helper.make_node("Identity", ["t"], [output], "copy")]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in ("x", output)]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], [numpy_helper.from_array(np.float32(value), "c")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _wide() -> GraphProto:
    """The same tensors, from a constant of its own."""
    body = GraphProto(initializer=[numpy_helper.from_array(np.float32(100), "d")])
    body.node.append(helper.make_node("Add", ["x", "d"], ["t"], "sum"))
    body.node.append(helper.make_node("Identity", ["t"], ["y"], "copy"))
    return body


def _run(model: onnx.ModelProto, *, optimize: bool = True) -> float:
    options = onnxruntime.SessionOptions()
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (y,) = session.run(["y"], {"x": np.zeros(2, np.float32)})
    return float(np.asarray(y)[0])


def test_each_branch_read_back_is_the_model_that_went_in() -> None:
    both = by_processor(_model(1), _wide())
    onnx.checker.check_model(both, full_check=True)
    assert [n.op_type for n in both.graph.node] == ["MatMulInteger", "ReduceMin", "Equal", "If"]
    fast, wide = flattened(both, exact=True), flattened(both, exact=False)
    for flat in (fast, wide):
        onnx.checker.check_model(flat, full_check=True)
        assert [(n.op_type, list(n.output)) for n in flat.graph.node] == [("Add", ["t"]), ("Identity", ["y"])]
    assert (_run(fast), _run(wide)) == (1, 100)


@pytest.mark.parametrize("optimize", [True, False])
def test_onnx_runtime_takes_the_branch_that_is_read_back_here(optimize: bool) -> None:
    both = by_processor(_model(1), _wide())
    assert _run(both, optimize=optimize) == _run(flattened(both))


def test_the_choice_is_gone_once_the_model_is_loaded(tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    model = by_processor(_model(1), _wide())
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    loaded = onnx.load(tmp_path / "loaded.onnx")
    assert {n.op_type for n in loaded.graph.node} <= {"Add", "Identity"}


def test_names_that_are_taken_are_left_alone() -> None:
    model = _model(1)
    model.graph.initializer[0].name = model.graph.node[0].input[1] = "exact_8bit_products"
    model.graph.node[0].output[0] = model.graph.node[1].input[0] = "y_chosen"
    wide = _wide()
    wide.node[0].output[0] = wide.node[1].input[0] = "y_chosen"
    both = by_processor(model, wide)
    onnx.checker.check_model(both, full_check=True)
    assert _run(flattened(both, exact=True)) == 1
    assert _run(both) in (1, 100)


def test_an_output_that_no_node_makes_stays_outside() -> None:
    model = _model(1)
    model.graph.output.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, []))
    both = by_processor(model, _wide())
    assert list(both.graph.node[-1].output) == ["y"]
    assert [o.name for o in both.graph.output] == ["y", "c"]


def test_other_models_are_returned_as_they_are() -> None:
    plain = _model(1)
    assert flattened(plain) is plain
    asks = by_processor(_model(1), _wide())
    asks.graph.input.append(helper.make_tensor_value_info("which", TensorProto.BOOL, []))
    asks.graph.node[-1].input[0] = "which"
    del asks.graph.node[:-1]
    assert flattened(asks) is asks


def test_whether_the_processor_is_exact_is_what_chooses_the_branch() -> None:
    assert _run(by_processor(_model(1), _wide())) == (1 if is_exact() else 100)

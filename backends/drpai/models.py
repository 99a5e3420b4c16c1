"""The two models for the vendor's tools: float without fake quantization, and QDQ; both in opset 13."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx
from onnx import version_converter

from qatc.compiler.diagnostics import CompileError, fail, printable
from qatc.compiler.graph import REQUANTIZE, Constant, Node, QuantGraph
from qatc.compiler.model_io import node_proto, value_info
from qatc.compiler.passes.later import later_defaults, plain_value
from qatc.compiler.qdq import to_qdq

OPSET: Final = 13  # the only one that DRP-AI TVM reads
_IR_VERSION: Final = 7  # what came with opset 13
_REDUCTIONS: Final = frozenset(
    {
        "ReduceMax", "ReduceMin", "ReduceMean", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum",
        "ReduceLogSumExp", "ReduceSumSquare",
    }
)  # fmt: skip


def stripped(graph: QuantGraph) -> onnx.ModelProto:
    """The float model: weights on their grids, activations as they come, no quantization left.

    Raises:
        CompileError: QAT302 where an operator has no form in opset 13.
    """
    constants = [
        onnx.numpy_helper.from_array(np.asarray(graph.real(t), order="C"), t.name)
        for t in graph.tensors()
        if isinstance(t, Constant)
    ]
    inputs, outputs = ([value_info(t) for t in ports] for ports in (graph.inputs, graph.outputs))
    for info in (*inputs, *outputs):
        if info.name in graph.integer_ports:
            info.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    body = onnx.helper.make_graph([_plain(n) for n in graph.nodes], graph.name or "graph", inputs, outputs, constants)
    imports = [onnx.helper.make_opsetid("", graph.opset)]
    imports += [onnx.helper.make_opsetid(d, v) for d, v in sorted(graph.domains.items())]
    model = onnx.helper.make_model(body, opset_imports=imports, ir_version=_IR_VERSION, producer_name="qatc")
    return in_opset(model)


def quantized(graph: QuantGraph) -> onnx.ModelProto:
    """The model as QDQ: int8 weights, scalar parameters, float biases and interface.

    Raises:
        CompileError: QAT302 where an operator has no form in opset 13.
    """
    written = to_qdq(graph, bias="float", io="float", ir_version=_IR_VERSION)
    if written.external:
        arrays = dict(written.external)
        for tensor in written.model.graph.initializer:
            if tensor.name in arrays:
                tensor.CopyFrom(onnx.numpy_helper.from_array(arrays[tensor.name], tensor.name))
    return in_opset(written.model)


def in_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in opset 13, changed in place.

    Most operators of later opsets only take more types, so that their nodes read the same. Attributes that came later
    go where they say what holds without them, reductions took their axes as an attribute, and Split its parts as a list
    where they differ. What has no such form is found by ONNX's own checker.

    Raises:
        CompileError: QAT302 where opset 13 cannot say it.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for entry in model.opset_import:
        if entry.domain or entry.version == OPSET:
            continue
        if entry.version < OPSET:
            return _raised(model)
        _list_parts(model)
        entry.version = OPSET
        for node in model.graph.node:
            _drop_defaults(node)
            if node.op_type in _REDUCTIONS and len(node.input) > 1 and node.input[1] in constants:
                axes = onnx.numpy_helper.to_array(constants[node.input[1]]).tolist()
                del node.input[1]
                node.attribute.append(onnx.helper.make_attribute("axes", axes))
    try:
        onnx.checker.check_model(model, full_check=True)  # pyright: ignore[reportUnknownMemberType]
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise _no_form(error) from error
    return model


def _drop_defaults(node: onnx.NodeProto) -> None:
    later = {} if node.domain else later_defaults(node.op_type, OPSET)
    for attribute in list(node.attribute):
        if attribute.name in later and plain_value(attribute) == later[attribute.name]:
            node.attribute.remove(attribute)


def _list_parts(model: onnx.ModelProto) -> None:
    """Split[num_outputs] becomes a Split by the sizes that its parts have, where they are known."""
    counted = [
        n for n in model.graph.node if n.op_type == "Split" and any(a.name == "num_outputs" for a in n.attribute)
    ]
    if not counted:
        return
    inferred = onnx.shape_inference.infer_shapes(model).graph
    dims = {v.name: v.type.tensor_type.shape.dim for v in (*inferred.value_info, *inferred.output)}
    for node in counted:
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        sizes = [dims[n][axis].dim_value if n in dims and len(dims[n]) else 0 for n in node.output]
        if all(sizes):
            node.attribute.remove(next(a for a in node.attribute if a.name == "num_outputs"))
            node.input.append(f"{node.output[0]}_parts")
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(sizes, np.int64), node.input[1]))


def _raised(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        found = version_converter.convert_version(model, OPSET)
    except RuntimeError as error:  # what its C++ code throws
        raise _no_form(error) from error
    found.ir_version = _IR_VERSION
    found.producer_name = "qatc"
    return found


def _no_form(error: Exception) -> CompileError:
    words = [line for line in str(error).splitlines() if line.strip()]
    reason = printable(words[0]) if words else type(error).__name__
    hint = "the vendor's tools read opset 13 only: export the model with opset 13"
    return fail("QAT302", f"the model has no form in opset {OPSET}: {reason}", hint=hint)


def _plain(node: Node) -> onnx.NodeProto:
    if node.op != REQUANTIZE:
        return node_proto(node)
    return onnx.helper.make_node("Identity", [t.name for t in node.inputs], [t.name for t in node.outputs], node.name)

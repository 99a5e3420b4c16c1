"""The two models for the vendor's tools: float without fake quantization, and QDQ.

They are made of a graph that `bring_down` has written in opset 13; what it left is found by ONNX's own checker.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx

from qatc.compiler.backend import Emission
from qatc.compiler.diagnostics import fail, printable
from qatc.compiler.graph import REQUANTIZE, Constant, Node, QuantGraph
from qatc.compiler.model.links import label_of
from qatc.compiler.model.protos import CHECK_ERRORS
from qatc.compiler.model_io import node_proto, value_info
from qatc.compiler.qdq import to_qdq

OPSET: Final = 13  # the only one that DRP-AI TVM reads
_IR_VERSION: Final = 7  # what came with opset 13
_WIDE: Final = 2  # bytes


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
    return _checked(model)


def quantized(graph: QuantGraph) -> onnx.ModelProto:
    """The model as QDQ: int8 weights, scalar parameters, float biases and interface.

    Raises:
        CompileError: QAT302 where an operator has no form in opset 13.
    """
    wide = next((name for name, params in graph.params.items() if params.container.itemsize == _WIDE), None)
    if wide is not None:
        hint = "quantize to 8 bits, or compile it for the target onnx"
        raise fail("QAT302", f"opset {OPSET} cannot quantize to 16 bits", tensor=wide, hint=hint)
    written = to_qdq(graph, bias="float", io="float", ir_version=_IR_VERSION)
    return _checked(Emission(written.model, {}, written.external).complete())


def _checked(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, which ONNX's own checker holds for one of opset 13."""
    only = "the vendor's tools read opset 13 only"
    export = f"{only}: export the model with opset 13"
    for node in model.graph.node:
        if not onnx.defs.has(node.op_type, OPSET, node.domain):
            hint = export
            if onnx.defs.has(node.op_type, node.domain):  # since a later one: no export has it
                hint = f"{only}: end the exported network before it, or write it with operators of opset 13"
            raise fail("QAT302", f"{node.op_type} has no form in opset {OPSET}", node=label_of(node), hint=hint)
    try:
        onnx.checker.check_model(model, full_check=True)  # pyright: ignore[reportUnknownMemberType]
    except CHECK_ERRORS as error:
        words = [line for line in str(error).splitlines() if line.strip()]
        reason = printable(words[0]) if words else type(error).__name__
        raise fail("QAT302", f"the model has no form in opset {OPSET}: {reason}", hint=export) from error
    return model


def _plain(node: Node) -> onnx.NodeProto:
    if node.op != REQUANTIZE:
        return node_proto(node)
    return onnx.helper.make_node("Identity", [t.name for t in node.inputs], [t.name for t in node.outputs], node.name)

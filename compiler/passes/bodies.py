"""What is inside the bodies of Loop, Scan and If: quantizers there stay as they are, and the file's user is told.

A body runs many times, or not at all, on tensors that no operator around it rounds. ONNX Runtime computes it with its
quantizers, in float, so that the results are right; nothing of it becomes integer. An If whose condition is constant
has no body any more (`inline_branches`).

Nor are the operators in bodies brought to a newer opset: those that mean something else there are refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final, cast

import onnx
import onnx.defs

from qatc.compiler.graph import Node, QuantGraph
from qatc.compiler.model.links import label_of
from qatc.compiler.model.protos import all_nodes, domain_of
from qatc.compiler.passes.modernize import OPSET

_QUANTIZERS: Final = frozenset({"QuantizeLinear", "DequantizeLinear"})
_PRODUCTS: Final = frozenset({"Conv", "ConvTranspose", "Einsum", "GRU", "Gemm", "LSTM", "MatMul", "RNN"})
_SPANNING: Final = frozenset({"Softmax", "LogSoftmax", "Hardmax"})  # all axes from one on, before opset 13
_HINT: Final = (
    "export with a fixed number of steps and a decided branch, so that the body is written out,"
    " or export it as a model of its own"
)


def inner_nodes(node: Node) -> Iterator[onnx.NodeProto]:
    """The nodes in the bodies of a node, and in those inside them."""
    for value in node.attrs.values():
        for body in cast("list[object]", value) if isinstance(value, list) else [value]:
            if isinstance(body, onnx.GraphProto):
                yield from all_nodes(body.node)


def nodes_in_bodies(graph: QuantGraph) -> Iterator[tuple[Node, list[onnx.NodeProto]]]:
    """Each node that has bodies, with the nodes in these."""
    for node in graph.nodes:
        inner = list(inner_nodes(node)) if node.attrs else []
        if inner:
            yield node, inner


def quantized_bodies(graph: QuantGraph) -> list[tuple[Node, Counter[str]]]:
    """The nodes whose bodies quantize, with the operators in them counted by type."""
    found = ((node, Counter(n.op_type for n in inner)) for node, inner in nodes_in_bodies(graph))
    return [(node, ops) for node, ops in found if not _QUANTIZERS.isdisjoint(ops)]


def _is_old(node: onnx.NodeProto, opset: int) -> bool:
    """Whether an operator of an older opset has no form in 13, or another meaning."""
    if domain_of(node.domain):
        return False
    if node.op_type in _SPANNING:
        return next((a.i for a in node.attribute if a.name == "axis"), 1) != -1
    if not onnx.defs.has(node.op_type, OPSET, ""):
        return False
    schema = onnx.defs.get_schema(node.op_type, OPSET, "")
    if schema.deprecated or (node.op_type == "Resize" and opset < 11):
        return True
    return any(a.name not in schema.attributes for a in node.attribute)


def report_old(graph: QuantGraph) -> None:
    """Record QAT006 for every node whose bodies hold operators of an opset before 13 that are no longer written so."""
    for node, inner in nodes_in_bodies(graph) if graph.body_opset < OPSET else ():
        old = sorted({n.op_type for n in inner if _is_old(n, graph.body_opset)})
        if old:
            message = f"the body of this {node.op} uses {', '.join(old)} as of opset {graph.body_opset}"
            hint = "export the model again with opset 13 or newer, or run onnx.version_converter on it"
            graph.diagnostics.error("QAT006", message, node=label_of(node), hint=hint)


def report_bodies(graph: QuantGraph) -> None:
    """Record QAT110 for every node whose bodies quantize, and QAT006 as `report_old`."""
    report_old(graph)
    for node, found in quantized_bodies(graph):
        listed = ", ".join(f"{found[op]} {op}" for op in sorted(_PRODUCTS | _QUANTIZERS) if op in found)
        message = f"what the body of this {node.op} quantizes stays in float, and no count has its products: {listed}"
        name = node.outputs[0].name if node.outputs else None
        graph.diagnostics.warning("QAT110", message, node=label_of(node), tensor=name, hint=_HINT)

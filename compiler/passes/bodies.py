"""What is inside the bodies of Loop, Scan and If: quantizers there stay as they are, and the file's user is told.

A body runs many times, or not at all, on tensors that no operator around it rounds. ONNX Runtime computes it with its
quantizers, in float, so that the results are right; nothing of it becomes integer. An If whose condition is constant
has no body any more (`inline_branches`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final, cast

import onnx

from qatc.compiler.graph import Node, QuantGraph
from qatc.compiler.model_io import label_of
from qatc.compiler.protos import all_nodes

_QUANTIZERS: Final = frozenset({"QuantizeLinear", "DequantizeLinear"})
_PRODUCTS: Final = frozenset({"Conv", "ConvTranspose", "Einsum", "GRU", "Gemm", "LSTM", "MatMul", "RNN"})
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


def quantized_bodies(graph: QuantGraph) -> list[tuple[Node, Counter[str]]]:
    """The nodes whose bodies quantize, with the operators in them counted by type."""
    inner = ((node, [n.op_type for n in inner_nodes(node)]) for node in graph.nodes)
    return [(node, Counter(ops)) for node, ops in inner if not _QUANTIZERS.isdisjoint(ops)]


def report_bodies(graph: QuantGraph) -> None:
    """Record QAT110 for every node whose bodies quantize."""
    for node, found in quantized_bodies(graph):
        listed = ", ".join(f"{found[op]} {op}" for op in sorted(_PRODUCTS | _QUANTIZERS) if op in found)
        message = f"what the body of this {node.op} quantizes stays in float, and no count has its products: {listed}"
        name = node.outputs[0].name if node.outputs else None
        graph.diagnostics.warning("QAT110", message, node=label_of(node), tensor=name, hint=_HINT)

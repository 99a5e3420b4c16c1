"""Horizon Robotics: the quantizers that horizon_plugin_pytorch exports, in the domain `horizon`.

    x -> HzQuantize(s, z){bits, axis} -> HzDequantize(s, z){axis} -> y      x -> QuantizeLinear -> DequantizeLinear -> y

Zero points are always zero, and int8 in older exports even where `bits` is 16: the attribute counts. The BPU rounds
halves up, which differs from ONNX on exact ties alone. The other operators of the domain run on that processor only.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from qatc.compiler.frontend import Frontend, FrontendOptions
from qatc.compiler.graph import Node, QuantGraph, value_of
from qatc.frontends.common import qdq
from qatc.frontends.common.operands import no_numbers, refuse
from qatc.frontends.common.standard import finish
from qatc.frontends.common.vendor import by_operators, owned

DOMAIN: Final = "horizon"
_STANDARD: Final = {"HzQuantize": "QuantizeLinear", "HzDequantize": "DequantizeLinear"}
_TYPES: Final[dict[int, np.dtype[Any]]] = {8: np.dtype(np.int8), 16: np.dtype(np.int16)}
_HINT: Final = (
    "export the QAT model (export_to_onnx), not the quantized one, with standard operators around its quantizers"
)


def _standard(graph: QuantGraph) -> None:
    """HzQuantize and HzDequantize become Q and DQ of the type that their bits say; the rest is refused."""
    for node in graph.nodes:
        if node.domain != DOMAIN:
            continue
        if node.op not in _STANDARD:
            refuse(graph, node, "QAT302", f"{node.op} of Horizon's own operators is not supported", _HINT)
            continue
        bits = _bits(graph, node)
        if bits not in _TYPES:
            refuse(graph, node, "QAT103", f"{node.op} has {bits} bits, not 8 or 16")
            continue
        zero = value_of(node.optional(2))
        if zero is not None and zero.dtype != _TYPES[bits]:
            ends = np.iinfo(_TYPES[bits])
            if no_numbers(zero) or not np.all((ends.min <= zero) & (zero <= ends.max) & (zero == np.rint(zero))):
                refuse(graph, node, "QAT202", f"the zero point of this {node.op} is no integer of {bits} bits")
                continue
            node.inputs[2] = graph.constant(f"{node.inputs[2].name}_int{bits}", zero.astype(_TYPES[bits]))
        node.op, node.domain = _STANDARD[node.op], None


def _bits(graph: QuantGraph, node: Node) -> int:
    """The width of the integers: what the quantizer says, also for the dequantizer behind it; else the zero point's."""
    maker = graph.producer(node.inputs[0]) if node.op == "HzDequantize" and node.inputs else None
    zero = value_of(node.optional(2))
    stated = (node if maker is None else maker).attr("bits", 0)
    return stated or 8 * (1 if zero is None else zero.dtype.itemsize)


def _owns(op: str, domain: str) -> bool:
    return domain == DOMAIN


def _normalize(graph: QuantGraph, options: FrontendOptions) -> None:
    qdq.prepare(graph, keep=owned(_owns))
    _standard(graph)
    if graph.diagnostics.errors:
        return
    finish(graph, options, (DOMAIN,))


FRONTEND = Frontend(
    name="horizon",
    description="the quantizer nodes of Horizon's horizon_plugin_pytorch (HzQuantize, HzDequantize)",
    recognize=by_operators(_owns),
    normalize=_normalize,
    confidence=80,
    exporters=("in its documented form: horizon_plugin_pytorch (export_to_onnx)",),
    limits=("Horizon's own operators (RoiResize, GridSample, ...)", "halves are rounded up on the device"),
)

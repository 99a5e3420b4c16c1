"""AMD Quark and Vitis AI: Q/DQ in the domains com.microsoft and com.vai.quantize, extended formats in com.amd.quark.

    x -> com.vai.quantize::FixNeuron(s, z) -> y                    x -> QuantizeLinear -> DequantizeLinear -> y
    x -> ai.onnx.contrib::VaiQuantize(s, z){bit_width} -> y        x -> QuantizeLinear(s, z) [-> Clip] -> y
    x -> com.vai.quantize::VitisQuantizeLinear(s, z) -> y          x -> QuantizeLinear(s, z) -> y
    x -> com.amd.quark::ExtendedQuantizeLinear(s, int8 z) -> y     x -> QuantizeLinear(s, z) -> y
    x -> ExtendedQuantizeLinear(s, bfloat16 z) -> y                refused: BF16
    x -> BFPQuantizeDequantize, MXQuantizeDequantize               refused: block floating point, microscaling

XINT8 keeps every scale a power of two, activations uint8 around 128 and biases int8 with a scale of their own; all of
that is plain Q/DQ to the shared core.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

import numpy as np
from onnx.helper import np_dtype_to_tensor_dtype as tensor_type

from qatc.compiler.frontend import Frontend, FrontendOptions
from qatc.compiler.graph import Node, QuantGraph, value_of
from qatc.compiler.passes.modernize import constants_from_nodes
from qatc.frontends.common import qdq
from qatc.frontends.common.integers import quantizers
from qatc.frontends.common.operands import refuse
from qatc.frontends.common.params import integer_range, quantized_dtype
from qatc.frontends.common.standard import finish
from qatc.frontends.common.vendor import listed, operators, owned, refuse_formats

DOMAINS: Final = ("com.amd.quark", "com.vai.quantize")
_CONTRIB: Final = "ai.onnx.contrib"  # where operators written in Python live, those of others too
_STANDARD: Final = {
    "ExtendedQuantizeLinear": "QuantizeLinear",
    "ExtendedDequantizeLinear": "DequantizeLinear",
    "VitisQuantizeLinear": "QuantizeLinear",
    "VitisDequantizeLinear": "DequantizeLinear",
    "VaiQuantize": "QuantizeLinear",
    "VaiDeQuantize": "DequantizeLinear",
}
_FIX: Final = "FixNeuron"
_BLOCKS: Final = {
    "BFPQuantizeDequantize": "block floating point",
    "BFPFixNeuron": "block floating point",
    "MXQuantizeDequantize": "microscaling (MX) blocks",
    "MXFixNeuron": "microscaling (MX) blocks",
}
_NAMES: Final = {"bfloat16": "BF16", "float16": "FP16", "float32": "FP32"}
_HINT: Final = "quantize with an integer configuration, such as XINT8, A8W8 or A16W8"


def _standard(graph: QuantGraph) -> None:
    """Extended Q/DQ of integer types become standard ones; of other types they are refused, one finding a format."""
    refuse_formats(graph, lambda node: _refused_format(node) if _is_ours(node) else None, _HINT)
    for node in list(graph.nodes):
        if not _is_ours(node) or _refused_format(node) is not None:
            continue
        if node.op == _FIX:
            _in_two(graph, node)
        elif node.op in _STANDARD:
            _clip(graph, node)
            node.op, node.domain = _STANDARD[node.op], None
        else:
            refuse(graph, node, "QAT302", f"{node.op} of {node.domain} is not supported")


def _owns(op: str, domain: str) -> bool:
    return domain in DOMAINS or (domain == _CONTRIB and op in _STANDARD)


_is_ours: Final = owned(_owns)


def _in_two(graph: QuantGraph, node: Node) -> None:
    """A FixNeuron is a Q and a DQ."""
    y, kind = node.outputs[0], _type_of(node)
    integers = graph.variable(f"{y.name}_integers", None if kind is None else tensor_type(kind), y.shape)
    graph.insert("DequantizeLinear", [integers, *node.inputs[1:]], [y])
    node.outputs[0] = integers
    _clip(graph, node)
    node.op, node.domain = "QuantizeLinear", None


def _clip(graph: QuantGraph, node: Node) -> None:
    """Fewer bits than the type has are a Clip behind the quantizer."""
    bits, kind = int(node.attr("bit_width", 0)), _type_of(node)
    if kind is None or kind.kind not in "iu" or not 0 < bits < 8 * kind.itemsize or node.op.endswith("DeQuantize"):
        return
    low, high = integer_range(bits, signed=kind.kind == "i")
    y = node.outputs[0]
    wide = graph.variable(f"{y.name}_wide", tensor_type(kind), y.shape)
    ends = [graph.constant(f"{y.name}_{end}", np.asarray(v, kind)) for end, v in (("low", low), ("high", high))]
    node.outputs[0] = wide
    graph.insert("Clip", [wide, *ends], [y])


def _refused_format(node: Node) -> str | None:
    """The format of a node that is not affine integer quantization, None for one that is."""
    if node.op in _BLOCKS:
        bits = int(node.attr("bit_width", 0))
        kind = str(node.attr("element_dtype", "")).upper()
        return f"{_BLOCKS[node.op]}{f' {kind}' if kind else ''}{f' ({bits} bits)' if bits else ''}"
    if node.op not in _STANDARD and node.op != _FIX:
        return None
    dtype = _type_of(node)
    if dtype is None or quantized_dtype(dtype) is not None:
        return None
    return _NAMES.get(dtype.name, dtype.name)


def _type_of(node: Node) -> np.dtype[np.generic] | None:
    """The type of the zero point, which is the type quantized to; None where it is not written."""
    value = value_of(node.optional(2))
    return None if value is None else value.dtype


def _recognize(graph: QuantGraph, producer: str) -> str | None:
    seen = operators(graph, _owns)
    if seen is None and any(d in graph.domains for d in DOMAINS):
        seen = listed(Counter((n.op, n.domain or "") for n in quantizers(graph)))
        seen = None if seen is None else f"{seen}, imports {', '.join(d for d in DOMAINS if d in graph.domains)}"
    return seen


def _normalize(graph: QuantGraph, options: FrontendOptions) -> None:
    constants_from_nodes(graph)  # zero points, whose types tell the format: `prepare` makes float32 of half precision
    qdq.fold(graph, keep=_is_ours)
    _standard(graph)
    if graph.diagnostics.errors:
        return
    graph.sort()
    qdq.prepare(graph)
    finish(graph, options, (*DOMAINS, _CONTRIB))


FRONTEND = Frontend(
    name="quark",
    description="Q/DQ of AMD Quark and Vitis AI, in standard and vendor domains",
    recognize=_recognize,
    normalize=_normalize,
    confidence=70,
    exporters=(
        "amd-quark 0.9 (ONNX flow; XINT8, A8W8, A16W8, S8S8, U8S8) and 0.13 (ONNX and PyTorch flows)",
        "in their documented form: vai_q_onnx (FixNeuron) and vai_q_pytorch (VaiQuantize)",
    ),
    limits=("BF16, BFP16 and microscaling formats",),
)

"""NVIDIA ModelOpt (TensorRT Model Optimizer): standard Q/DQ for INT8; its other formats are not integer grids.

INT8 exports quantize the inputs of Conv, Gemm and MatMul and their weights, per channel, and nothing else: the shared
core reads them. FP8, INT4 in blocks, MXFP8 and NVFP4 come as operators of the domain `trt` (or as Q/DQ of those types):
refused, each format by its name.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Final

from qatc.compiler.frontend import Frontend, FrontendOptions
from qatc.compiler.graph import Node, QuantGraph, value_of
from qatc.frontends.common import qdq
from qatc.frontends.common.integers import is_q, quantizers
from qatc.frontends.common.operands import refuse
from qatc.frontends.common.standard import finish
from qatc.frontends.common.vendor import listed, operators, refuse_formats

DOMAIN: Final = "trt"
_SCOPE: Final = re.compile("/(?:input|weight)_quantizer/")
_BY_OP: Final = {
    "TRT_FP8QuantizeLinear": "FP8 (E4M3)",
    "TRT_FP8DequantizeLinear": "FP8 (E4M3)",
    "TRT_MXFP8QuantizeLinear": "MXFP8 (E4M3 in blocks of 32)",
    "TRT_MXFP8DequantizeLinear": "MXFP8 (E4M3 in blocks of 32)",
    "TRT_MXFP8DynamicQuantize": "MXFP8 (E4M3 in blocks of 32)",
    "TRT_FP4QDQ": "NVFP4 (E2M1 in blocks of 16)",
    "TRT_FP4DynamicQuantize": "NVFP4 (E2M1 in blocks of 16)",
    "TRT_INT4QuantizeLinear": "INT4 in blocks",
    "TRT_INT4DequantizeLinear": "INT4 in blocks",
}
_HINT: Final = "train and export with an INT8 configuration, such as mtq.INT8_DEFAULT_CFG"


def _formats(graph: QuantGraph) -> dict[int, str]:
    """The formats that operators of TensorRT's domain quantize to; a DequantizeLinear has that of what it reads."""
    found: dict[int, str] = {}
    for node in graph.nodes:
        if _is_quantizer(node):
            maker = graph.producer(node.inputs[0]) if node.inputs else None
            found[id(node)] = _format_of(node) or found.get(id(maker)) or f"{node.op} of TensorRT"
    return found


def _format_of(node: Node) -> str | None:
    if node.op in _BY_OP:
        return _BY_OP[node.op]
    if node.attr("block_size", 0):
        return f"INT4 in blocks of {int(node.attr('block_size'))}"
    types = {str(value.dtype) for t in node.inputs if (value := value_of(t)) is not None}
    small = sorted(t for t in types if t.startswith(("float8", "float4")))
    return small[0].replace("float8_e4m3fn", "FP8 (E4M3)") if small else None


def _refuse(graph: QuantGraph) -> None:
    """Every operator of TensorRT: the quantizers by their formats."""
    for node in graph.nodes:
        if node.domain == DOMAIN and not _is_quantizer(node):
            refuse(graph, node, "QAT302", f"{node.op} of TensorRT is not supported")
    formats = _formats(graph)
    refuse_formats(graph, lambda node: formats.get(id(node)), _HINT)


def _is_quantizer(node: Node) -> bool:
    return node.domain == DOMAIN and ("uantize" in node.op or "QDQ" in node.op)


def _recognize(graph: QuantGraph, producer: str) -> str | None:
    seen = operators(graph, lambda op, domain: domain == DOMAIN)
    if seen is not None:
        return seen
    scoped = [n for n in quantizers(graph) if _SCOPE.search(n.name)]
    seen = listed(Counter((n.op, n.domain or "") for n in scoped if is_q(n)))
    return None if seen is None else f"{seen} in scopes input_quantizer and weight_quantizer"


def _normalize(graph: QuantGraph, options: FrontendOptions) -> None:
    _refuse(graph)
    if not graph.diagnostics.errors:
        qdq.prepare(graph)
        finish(graph, options)


FRONTEND = Frontend(
    name="modelopt",
    description="Q/DQ of NVIDIA ModelOpt; FP8, INT4, MXFP8 and NVFP4 are refused by name",
    recognize=_recognize,
    normalize=_normalize,
    confidence=60,
    exporters=(
        "nvidia-modelopt 0.11, 0.15 and 0.47 (torch.onnx.export and get_onnx_bytes; INT8 and SmoothQuant)",
        "ultralytics 8.4 quantization-aware training (YOLO, YOLOE and RT-DETR), super-gradients 3.7 (YOLO-NAS, YOLOX,"
        " DDRNet, PP-LiteSeg, STDC, RegSeg, SegFormer)",
    ),
    limits=("FP8, MXFP8, NVFP4, block-wise INT4", "additions and pooling have no range of their own (--calibrate)"),
)

"""Operators of PyTorch itself, which its exporter leaves in the file where it has no ONNX form for them.

    org.pytorch._caffe2::Int8Conv(...)                   the layers of converted models, up to PyTorch 1.9
    org.pytorch.aten::ATen(..., operator="conv2d_relu")  the same from 1.10 on, and whatever else has no ONNX form
    prim::TupleConstruct(...)                            pieces of the trace around them

They come with operator_export_type=ONNX_ATEN_FALLBACK. No runtime but Caffe2 knows them, their attributes do not even
have the types that ONNX asks for, and of the integers in them nothing says which is a scale: nothing to compile.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

import onnx

from qatc.compiler.diagnostics import fail, few
from qatc.compiler.model.links import label_of
from qatc.compiler.model.protos import domain_of

_DOMAINS: Final = frozenset(
    {"org.pytorch.aten", "org.pytorch.prim", "org.pytorch._caffe2", "aten", "prim", "quantized", "_caffe2"}
)
_CONVERTED: Final = frozenset({"dequantize", "quantize_per_tensor", "quantize_per_channel", "Int8Dequantize"})
_OF_CONVERTED: Final = (
    "this is a model converted to PyTorch's own integer operators: export the trained model from before convert, with"
    " opset_version=13 and without ONNX_ATEN_FALLBACK; or convert and export it with PyTorch 1.12 or newer"
)
_OF_OTHERS: Final = (
    "export without ONNX_ATEN_FALLBACK and with a newer opset_version, or write this part of the model with operators"
    " that the exporter knows"
)
_SHOWN: Final = 6


def refuse_fallbacks(model: onnx.ModelProto) -> None:
    """Look for PyTorch's own operators.

    Raises:
        CompileError: QAT106 where there are any, with their names.
    """
    if _DOMAINS.isdisjoint([domain_of(o.domain) for o in model.opset_import]):
        return
    nodes = [n for n in model.graph.node if n.domain in _DOMAINS]
    if not nodes:
        return
    count = Counter(map(_name, nodes))
    listed = few([f"{number} {name}" for name, number in count.most_common()], _SHOWN)
    hint = _OF_OTHERS if _CONVERTED.isdisjoint(count) else _OF_CONVERTED
    message = f"the model holds operators of PyTorch itself, which ONNX does not have: {listed}"
    raise fail("QAT106", message, node=label_of(nodes[0]), hint=hint)


def _name(node: onnx.NodeProto) -> str:
    """The operator that PyTorch calls: ATen nodes state it in an attribute."""
    if node.op_type == "ATen":
        for attribute in node.attribute:
            if attribute.name == "operator":
                return attribute.s.decode("utf-8", "replace")
    return node.op_type

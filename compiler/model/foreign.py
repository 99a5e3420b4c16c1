"""What ONNX's shape inference is given for operators that ONNX does not have, at which it would stop.

    BiasGelu(x, b), SkipLayerNormalization(x, ...)    Identity(x): shape and type are their input's
    FusedMatMul[transB, alpha](a, b)                  MatMul(a, Einsum[...ij->...ji](b))
    FusedConv[activation](x, w, b), FusedGemm         Conv(x, w, b), Gemm
    FakeQuantWithMinMaxVars(x, min, max)              Identity(x)

ONNX Runtime's optimizer writes its own ones (models that were optimized before they were quantized), tf2onnx leaves
TensorFlow's fake quantization as it is where Q/DQ is not the same. Only shapes and types are equal.
"""

from __future__ import annotations

from typing import Final

import onnx

from qatc.compiler.model.protos import MICROSOFT

_KEEP_SHAPE: Final = frozenset(
    {"BiasGelu", "FastGelu", "Gelu", "QuickGelu", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization"}
)
_TENSORFLOW: Final = frozenset(
    {"FakeQuantWithMinMaxArgs", "FakeQuantWithMinMaxVars", "FakeQuantWithMinMaxVarsPerChannel"}
)  # which tf2onnx gives no domain of their own
_PLAIN: Final = {"FusedConv": "Conv", "FusedGemm": "Gemm"}
_PRODUCT: Final = "FusedMatMul"
_TRANSPOSED: Final = ("transA", "transB")
_BATCHES: Final = ("transBatchA", "transBatchB")  # of batches that lie elsewhere than in front: no shape is told
_SUM: Final = 3  # the output of a fused sum and normalization that is the sum


def shape_twins(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Nodes of ONNX that give the outputs the shapes and types that `node` does; the node alone if it is of ONNX."""
    if not node.domain and node.op_type in _TENSORFLOW:
        return [onnx.helper.make_node("Identity", node.input[:1], node.output)]
    if node.domain != MICROSOFT:
        return [node]
    if node.op_type in _KEEP_SHAPE:
        kept = [name for name in (*node.output[:1], *node.output[_SUM : _SUM + 1]) if name]
        return [onnx.helper.make_node("Identity", node.input[:1], [name]) for name in kept]
    if node.op_type == _PRODUCT:
        return _product(node)
    if node.op_type in _PLAIN:
        return [_plain(node)]
    return [node]


def _product(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    attrs = {a.name: a.i for a in node.attribute}
    if any(attrs.get(name) for name in _BATCHES):
        return [node]
    made: list[onnx.NodeProto] = []
    operands = list(node.input)
    for index, name in enumerate(_TRANSPOSED[: len(operands)]):
        if attrs.get(name):
            turned = f"{node.output[0]}_{name}"
            made.append(onnx.helper.make_node("Einsum", [operands[index]], [turned], equation="...ij->...ji"))
            operands[index] = turned
    return [*made, onnx.helper.make_node("MatMul", operands, node.output)]


def _plain(node: onnx.NodeProto) -> onnx.NodeProto:
    """The operator without its activation, and without the summand that a fused convolution may have."""
    op = _PLAIN[node.op_type]
    known = onnx.defs.get_schema(op).attributes
    made = onnx.helper.make_node(op, node.input[:3], node.output)
    made.attribute.extend(a for a in node.attribute if a.name in known)
    return made

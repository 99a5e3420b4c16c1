"""How much of an IntegerGraph runs in integers, by operators and by multiply-accumulates.

Multiply-accumulates are counted from the shapes that inference knows; a symbolic dimension counts as one, so the
numbers are those of a single sample.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from qatc.compiler.integer import Conv, Dequantize, Float, IntegerGraph, MatMul, Move, Op, Quantize, Shape
from qatc.compiler.model.protos import MICROSOFT
from qatc.compiler.result import Coverage, Island

_RECURRENT_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def coverage(graph: IntegerGraph) -> Coverage:
    """Count operators and multiply-accumulates, integer and float."""
    integer_macs = float_macs = integer_ops = float_ops = moved = 0
    for op in graph.ops:
        macs = macs_of(graph, op)
        if isinstance(op, Float):
            float_macs += macs
            float_ops += bool(op.reason)
            moved += not op.reason
        elif isinstance(op, Move | Quantize | Dequantize):
            moved += 1
        else:
            integer_macs += macs
            integer_ops += 1
    return Coverage(integer_macs, float_macs, integer_ops, float_ops, moved)


def islands(graph: IntegerGraph) -> tuple[Island, ...]:
    """The operators that stay in float, with reason and cost."""
    return tuple(
        Island(op.source or op.name, op.op_type, op.reason, macs_of(graph, op), op.tensor) for op in graph.islands()
    )


def macs_of(graph: IntegerGraph, op: Op) -> int:
    """Multiply-accumulates of one operator; 0 for those that have none or whose shapes are unknown."""
    out = _shape(graph, op.output) if op.output else None
    operands = [_shape(graph, name) for name in (*op.inputs, "", "")]
    if isinstance(op, Conv):
        return _conv(op.transposed, operands, out)
    if isinstance(op, MatMul):
        return _matmul(operands[0], out, transposed=False)
    if not isinstance(op, Float) or op.domain not in ("", MICROSOFT):
        return 0
    match op.op_type:
        case "Attention" | "QAttention" | "DecoderMaskedSelfAttention" if op.domain:
            return _projected_attention(operands)
        case "Attention" | "MultiHeadAttention" | "DecoderMaskedMultiHeadAttention" | "GroupQueryAttention":
            return _attention(op, operands)
        case "FusedMatMul" | "FusedGemm" | "MatMulIntegerToFloat" | "DynamicQuantizeMatMul":
            return _fused(op.attrs, operands)
        case "Conv" | "ConvTranspose" | "FusedConv" | "DeformConv" | "ConvInteger":
            return _conv(op.op_type == "ConvTranspose", operands, out)
        case "MatMul" | "Gemm" | "MatMulInteger":
            return _matmul(operands[0], out, transposed=bool(op.attrs.get("transA", 0)))
        case "MatMulNBits":
            return _count(operands[0]) * _number(op.attrs, "N", 0)
        case "Einsum":
            return _einsum(op.attrs, operands[: len(op.inputs)])
        case "LSTM" | "GRU" | "RNN":
            return _recurrent(op.op_type, op.attrs, operands)
        case _:
            return 0


def _shape(graph: IntegerGraph, name: str) -> Shape | None:
    if name in graph.constants:
        return graph.constants[name].shape
    found = graph.tensors.get(name)
    return None if found is None else found.sample_shape or found.shape


def _count(shape: Shape | None) -> int:
    return 0 if shape is None else math.prod(d if isinstance(d, int) else 1 for d in shape)


def _number(attrs: Mapping[str, Any], name: str, default: int) -> int:
    """An attribute that is a number; of operators of other domains nobody has looked whether it is one."""
    value = attrs.get(name, default)
    return value if isinstance(value, int) else default


def _conv(transposed: bool, operands: list[Shape | None], out: Shape | None) -> int:
    weight = operands[1]
    if weight is None:
        return 0
    return (_count(operands[0]) if transposed else _count(out)) * _count(weight[1:])


def _matmul(a: Shape | None, out: Shape | None, *, transposed: bool) -> int:
    if not a:
        return 0
    depth = a[len(a) - 2 if transposed and len(a) > 1 else len(a) - 1]
    return _count(out) * (depth if isinstance(depth, int) else 1)


def _fused(attrs: Mapping[str, Any], operands: list[Shape | None]) -> int:
    """A product that ONNX Runtime's optimizer fused: inference knows no shape of its result, so by its operands."""
    a, b = operands[:2]
    if not a or not b or len(b) < 2:
        return 0
    columns = b[-2 if attrs.get("transB", 0) else -1]
    return _count(a) * (columns if isinstance(columns, int) else 1)


def _projected_attention(operands: list[Shape | None]) -> int:
    """com.microsoft's Attention: the projections of [N, S, I] by [I, 3 H], and both products of the attention."""
    x, weight = operands[:2]
    if x is None or weight is None or len(x) != 3 or len(weight) != 2:
        return 0
    width = weight[1] if isinstance(weight[1], int) else 1
    return _count(x) * width + 2 * _count((*x[:2], x[1])) * (width // 3)


# operator -> where the keys of earlier steps are
_PAST: Final = {
    "Attention": 4, "MultiHeadAttention": 6, "DecoderMaskedMultiHeadAttention": 5, "GroupQueryAttention": 3,
}  # fmt: skip


def _attention(op: Float, operands: list[Shape | None]) -> int:
    """Both products of an attention over queries [N, S, H] or [N, heads, S, size] and as many keys as there are."""
    query, key, value = operands[:3]
    place = _PAST[op.op_type]
    past = operands[place] if place < len(op.inputs) else None
    if query is None or any(shape is not None and len(shape) not in (3, 4, 5) for shape in (query, key, value, past)):
        return 0
    wide = _count(query)
    if key is None:  # queries, keys and values in one tensor
        heads = max(1, _number(op.attrs, "num_heads", 1))
        parts = 3.0 if len(query) == 5 else 1 + 2 * max(0, _number(op.attrs, "kv_num_heads", heads)) / heads
        wide, key = round(wide / parts), query
    length = _length(key) + (_length(past) if past is not None else 0)
    if value is None or op.op_type == "GroupQueryAttention":  # the values are as wide as the queries
        return 2 * wide * length
    rows = _count((query[0], query[2 if len(query) == 4 else 1]))
    return (wide + rows * _width(op, query, value)) * length


def _length(shape: Shape) -> int:
    """How many keys [N, L, H], [N, heads, L, size] or [N, L, heads, 2 or 3, size] holds."""
    size = shape[2 if len(shape) == 4 else 1]
    return size if isinstance(size, int) else 1


def _width(op: Float, query: Shape, value: Shape) -> int:
    """The size of all heads' values together; groups of queries share one."""
    if len(value) == 4:
        return _count((query[1] if len(query) == 4 else value[1], value[3]))
    own, shared = (_number(op.attrs, name, 1) for name in ("q_num_heads", "kv_num_heads"))
    return _count(value[2:]) * max(1, own // max(1, shared))


def _einsum(attrs: Mapping[str, Any], operands: list[Shape | None]) -> int:
    """A product of two tensors or more: one multiplication for each combination of indices."""
    terms = str(attrs.get("equation", "")).replace(" ", "").partition("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, operands, strict=False):
        if shape is None or len(shape) != len(term) or len(terms) < 2:
            return 0
        for index, size in zip(term, shape, strict=True):
            sizes[index] = max(sizes.get(index, 1), size if isinstance(size, int) else 1)
    return math.prod(sizes.values()) if sizes else 0


def _recurrent(kind: str, attrs: Mapping[str, Any], operands: list[Shape | None]) -> int:
    x = operands[0]
    if x is None or len(x) != 3:
        return 0
    hidden, features = _number(attrs, "hidden_size", 0), x[2] if isinstance(x[2], int) else 1
    directions = 2 if attrs.get("direction") in (b"bidirectional", "bidirectional") else 1
    return _count(x[:2]) * directions * _RECURRENT_GATES[kind] * hidden * (features + hidden)

"""Move and Float: operators as they are, on whatever integers or floats they read.

ONNX Runtime moves bytes with nearly every movement operator; for 16 and 32 bits a few kernels more are missing, and the
elements take the way over a float type that holds them exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from onnx import TensorProto

from qatc.backends.onnx.writer import Writer, tensor_type
from qatc.compiler.graph import Node, Variable
from qatc.compiler.integer import CHOOSERS, Float, Move
from qatc.compiler.model.links import captures_of
from qatc.compiler.model_io import node_proto
from qatc.compiler.passes.movement import channels_to_end, channels_to_second

_WIDE: Final = frozenset({"int16", "uint16"})
# operator -> element types that have no kernel (ONNX Runtime 1.23 to 1.32, CPU)
_MISSING: Final = {
    "DepthToSpace": _WIDE | {"int32", "int8"},
    "SpaceToDepth": _WIDE | {"int32", "int8", "uint8"},
    "Pad": _WIDE,
    "Resize": _WIDE,
    "Upsample": _WIDE,
    "CenterCropPad": _WIDE,
    "ReduceMax": _WIDE,
    "ReduceMin": _WIDE,
}
# element type -> the type that Where has a kernel for in every version, and Cast goes to and from exactly
_CHOSEN: Final = {"int8": TensorProto.INT32, "int16": TensorProto.INT32, "uint16": TensorProto.INT32}
# the same for Max and Min: ONNX Runtime 1.18 has none for bytes
_COMPARED: Final = {"uint8": TensorProto.INT32, **_CHOSEN}
_THROUGH: Final = {
    **dict.fromkeys(("int8", "uint8", "int16", "uint16"), TensorProto.FLOAT),
    "int32": TensorProto.DOUBLE,
}
_CONV_RANK: Final = 3
_MATRIX: Final = 2
_PAD_VALUE: Final = 2  # the input of Pad that has the elements' type too


def to_last(w: Writer, x: str, spatial: int, out: str = "") -> str:
    """[N, C, spatial...] -> [N, spatial..., C]."""
    return w.node("Transpose", [x], out, perm=channels_to_end(spatial + 2))


def to_first(w: Writer, x: str, spatial: int, out: str = "") -> str:
    """[N, spatial..., C] -> [N, C, spatial...]."""
    return w.node("Transpose", [x], out, perm=channels_to_second(spatial + 2))


def move(w: Writer, op: Move) -> None:
    """`Move`, through a float type where there is no kernel for the elements."""
    inputs = [w.read(name) if name else "" for name in op.inputs]
    dtype = w.graph.tensors[op.inputs[0]].dtype
    if op.op_type in CHOOSERS:
        choose(w, op.op_type, inputs, w.graph.tensors[op.output].dtype, op.output)
        return
    if _as_transpose(w, op, inputs[0]) or _flattens_pooled(w, op, inputs[0]):
        return
    if dtype not in _MISSING.get(op.op_type, ()):
        w.nodes(op.op_type, inputs, op.outputs, attrs=op.attrs)
        return
    back = tensor_type(np.dtype(dtype))
    inputs[0] = w.node("Cast", [inputs[0]], to=_THROUGH[dtype])
    if op.op_type == "Pad" and len(inputs) > _PAD_VALUE and inputs[_PAD_VALUE]:
        inputs[_PAD_VALUE] = w.node("Cast", [inputs[_PAD_VALUE]], to=_THROUGH[dtype])
    made = w.fresh(f"{op.output}_real")
    w.nodes(op.op_type, inputs, [made], attrs=op.attrs)
    w.node("Cast", [made], op.output, to=back)


def choose(w: Writer, op_type: str, inputs: Sequence[str], dtype: str, out: str) -> str:
    """Where, Max or Min of tensors of one type; its name."""
    conditions, through = (1, _CHOSEN.get(dtype)) if op_type == "Where" else (0, _COMPARED.get(dtype))
    if through is None:
        return w.node(op_type, inputs, out)
    sides = [w.node("Cast", [name], to=through) for name in inputs[conditions:]]
    made = w.node(op_type, [*inputs[:conditions], *sides])
    return w.node("Cast", [made], out, to=tensor_type(np.dtype(dtype)))


def _as_transpose(w: Writer, op: Move, x: str) -> bool:
    """A Reshape that moves a channel axis of size one is a Transpose too, which cancels against ONNX Runtime's own."""
    before, after = w.graph.tensors[op.inputs[0]].shape, w.graph.tensors[op.output].shape
    if op.op_type != "Reshape" or before is None or after is None:
        return False
    rank = len(before)
    if rank < _CONV_RANK or rank != len(after) or not all(isinstance(d, int) for d in before[1:]):
        return False
    if before[-1] == 1 and after[1:] == (1, *before[1:-1]):
        to_first(w, x, rank - 2, op.output)
    elif before[1] == 1 and after[1:] == (*before[2:], 1):
        to_last(w, x, rank - 2, op.output)
    else:
        return False
    return True


def _flattens_pooled(w: Writer, op: Move, x: str) -> bool:
    """[N, C, 1, 1] to [N, C] behind a global pooling: by way of [N, 1, 1, C], the order in which that was computed."""
    before, after = w.graph.tensors[op.inputs[0]].shape, w.graph.tensors[op.output].shape
    if op.op_type not in ("Flatten", "Squeeze", "Reshape") or before is None or after is None or len(after) != _MATRIX:
        return False
    pooled = op.inputs[0] in w.pooled and all(d == 1 for d in before[2:])
    if not pooled or before[1] != after[1] or not isinstance(after[1], int):
        return False
    last = to_last(w, x, len(before) - 2)
    w.node("Flatten", [last], op.output, axis=1)
    return True


def float_op(w: Writer, op: Float) -> None:
    """`Float`: the ONNX operator itself; the names that its subgraphs capture follow its tensors."""
    inputs = [w.read(name) if name else "" for name in op.inputs]
    if not captures_of(op.attrs):
        w.nodes(op.op_type, inputs, op.outputs, domain=op.domain, attrs=op.attrs)
        return
    node = Node(
        op.op_type,
        op.name,
        dict(op.attrs),
        [Variable(name) for name in inputs],
        [Variable(name) for name in op.outputs],
        domain=op.domain or None,
    )
    w.proto(node_proto(node))

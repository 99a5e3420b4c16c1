"""Move and Float: operators as they are, on whatever integers or floats they read.

ONNX Runtime moves bytes with every movement operator; for 16 and 32 bits a few kernels are missing, and the elements take
the way over a float type that holds them exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, cast

import onnx_graphsurgeon as gs
from onnx import TensorProto

from qatc.backends.onnx.writer import Writer
from qatc.compiler.integer import Float, Move
from qatc.compiler.model_io import node_proto

_WIDE: Final = frozenset({"int16", "uint16"})
# operator -> element types that have no kernel (ONNX Runtime 1.31, CPU)
_MISSING: Final = {
    "DepthToSpace": _WIDE | {"int32"},
    "SpaceToDepth": _WIDE | {"int32"},
    "Pad": _WIDE,
    "Resize": _WIDE,
    "Upsample": _WIDE,
    "CenterCropPad": _WIDE,
}
_THROUGH: Final = {"int16": TensorProto.FLOAT, "uint16": TensorProto.FLOAT, "int32": TensorProto.DOUBLE}
_PAD_VALUE = 2  # the input of Pad that has the elements' type too


def move(w: Writer, op: Move) -> None:
    """`Move`, through a float type where there is no kernel for the elements."""
    inputs = [w.read(name) if name else "" for name in op.inputs]
    dtype = w.graph.tensors[op.inputs[0]].dtype
    if dtype not in _MISSING.get(op.op_type, ()):
        w.nodes(op.op_type, inputs, op.outputs, attrs=op.attrs)
        return
    back = _element_type(dtype)
    inputs[0] = w.node("Cast", [inputs[0]], to=_THROUGH[dtype])
    if op.op_type == "Pad" and len(inputs) > _PAD_VALUE and inputs[_PAD_VALUE]:
        inputs[_PAD_VALUE] = w.node("Cast", [inputs[_PAD_VALUE]], to=_THROUGH[dtype])
    made = w.fresh(f"{op.output}_real")
    w.nodes(op.op_type, inputs, [made], attrs=op.attrs)
    w.node("Cast", [made], op.output, to=back)


def _element_type(dtype: str) -> int:
    return {"int16": TensorProto.INT16, "uint16": TensorProto.UINT16}.get(dtype, TensorProto.INT32)


def float_op(w: Writer, op: Float) -> None:
    """`Float`: the ONNX operator itself; the names that its subgraphs capture follow its tensors."""
    inputs = [w.read(name) if name else "" for name in op.inputs]
    captures = cast("Sequence[str]", op.attrs.get("_captures", ()))
    if not captures:
        w.nodes(op.op_type, inputs, op.outputs, domain=op.domain, attrs=op.attrs)
        return
    node = gs.Node(
        op.op_type,
        op.name,
        dict(op.attrs),
        [gs.Variable(name) for name in inputs],
        [gs.Variable(name) for name in op.outputs],
        domain=op.domain or None,
    )
    w.proto(node_proto(node))

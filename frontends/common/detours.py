"""Integers that are moved or clamped in a wider type, for want of a kernel, are moved or clamped in their own.

    q: int16 -> Cast(float) -> MaxPool -> Cast(int16)           q -> MaxPool
    q: int16 -> Cast(int32) -> Clip(-7, 7) -> Cast(int16)       q -> Clip(-7, 7)

The wider type has every value of the narrow one, so nothing changes. Packages of 16-bit integers are written so; below
opset 21 their quantizers are arithmetic, which is seen where nothing but movement lies in it (`sinking`).
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx

from qatc.compiler.graph import Constant, Node, QuantGraph, Tensor, Variable, value_of
from qatc.compiler.model.links import is_op
from qatc.compiler.passes.modernize import element_type
from qatc.compiler.passes.movement import is_movement, joined
from qatc.frontends.common.integers import is_q

_NARROW: Final = frozenset(
    {onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.INT16, onnx.TensorProto.UINT16}
)
_WIDE: Final = frozenset(
    {onnx.TensorProto.INT32, onnx.TensorProto.INT64, onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE}
)
_BOUNDS: Final = {"Clip": (1, 2), "Pad": (2,)}  # operands that are values of the tensor's type


def shorten(graph: QuantGraph) -> int:
    """Take the Casts around every such operator out of a graph with folded constants; returns how many operators."""
    casts = [node for node in graph.of("Cast") if node.outputs]
    after = {id(reader): reader for cast in casts for reader in graph.consumers(cast.outputs[0])}
    found = sum(_shorten(graph, node) for node in after.values())
    if found:
        graph.sort()
        graph.clean()
    return found


def _shorten(graph: QuantGraph, node: Node) -> bool:
    parts = joined(node) or (node.inputs[:1] if is_movement(node) or is_op(node, "Clip") else [])
    readers = [reader for tensor in node.outputs for reader in graph.consumers(tensor)]
    kinds = {reader.attr("to") if is_op(reader, "Cast") else None for reader in readers}
    if not parts or len(kinds) != 1 or not kinds <= _NARROW or any(graph.is_output(t) for t in node.outputs):
        return False
    kind = int(kinds.pop() or 0)
    narrow = {id(part): _narrowed(graph, part, kind) for part in parts}
    for index in _BOUNDS.get(node.op, ()):
        bound = node.optional(index)
        if bound is not None:
            narrow[id(bound)] = _constant(graph, bound, kind, clamps=node.op == "Clip")
    made = {key: tensor for key, tensor in narrow.items() if tensor is not None}
    if len(made) < len(narrow) or all(isinstance(t, Constant) for t in made.values()):
        return False
    for index, tensor in enumerate(node.inputs):
        node.inputs[index] = made.get(id(tensor), tensor)
    for tensor in node.outputs:
        if isinstance(tensor, Variable):
            tensor.dtype = kind
    for reader in readers:
        graph.replace(reader.outputs[0], reader.inputs[0])
    return True


def _narrowed(graph: QuantGraph, tensor: Tensor, kind: int) -> Tensor | None:
    """The integers of type `kind` that a tensor is the wider form of."""
    if isinstance(tensor, Constant):
        return _constant(graph, tensor, kind, clamps=False)
    cast = graph.producer(tensor)
    if not is_op(cast, "Cast") or cast.attr("to") not in _WIDE:
        return None
    return cast.inputs[0] if _kind_of(graph, cast.inputs[0]) == kind else None


def _kind_of(graph: QuantGraph, tensor: Tensor) -> int | None:
    """The element type of a tensor, from what makes it where it is not stated."""
    maker = graph.producer(tensor)
    if is_op(maker, "Cast"):
        return int(maker.attr("to"))
    zero = value_of(maker.optional(2)) if maker is not None and is_q(maker) else None
    return element_type(tensor) if zero is None else int(onnx.helper.np_dtype_to_tensor_dtype(zero.dtype))


def _constant(graph: QuantGraph, tensor: Tensor, kind: int, *, clamps: bool) -> Tensor | None:
    """A constant of whole numbers in the type `kind`; ones beyond it have no place there, but as ends of a clamp."""
    value, dtype = value_of(tensor), onnx.helper.tensor_dtype_to_np_dtype(kind)
    if value is None or value.dtype.kind not in "fiu":
        return None
    ends = np.iinfo(dtype)
    inside = np.clip(value, ends.min, ends.max)
    if not np.array_equal(inside, np.rint(inside)) or not (clamps or np.array_equal(inside, value)):
        return None
    return graph.constant(f"{tensor.name}_{dtype.name}", inside.astype(dtype))

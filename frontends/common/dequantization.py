"""Dequantization written out as arithmetic becomes DequantizeLinear.

int8 t -> Cast(float) -> Sub(z) -> Mul(s) -> y          t -> DequantizeLinear -> y
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx

from qatc.compiler.graph import Node, QuantGraph, Tensor, is_constant, value_of
from qatc.compiler.passes.modernize import element_type
from qatc.compiler.quant import DTYPES, dtype_name, dtype_range
from qatc.compiler.rewrite import NoMatch
from qatc.frontends.common.chains import forward, is_whole
from qatc.frontends.common.integers import is_q, source_of
from qatc.frontends.common.params import BYTES

_FLOATS: Final = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE})


def dequantization(graph: QuantGraph, integers: Tensor) -> tuple[Tensor, float, int] | None:
    """Where integers that were cast to float are shifted and scaled: the result, its step and its zero point.

    Raises `NoMatch` where they are scaled, but not onto a grid; None where they are not scaled at all.
    """
    end = next((s for s in forward(graph, integers) if s.multiplied and not s.clamps), None)
    if end is None:
        return None
    zero = -end.offset / end.scale
    if end.scale.size != 1 or zero.size != 1 or not (np.all(end.scale > 0) and np.isfinite(zero).all()):
        raise NoMatch("it is no dequantization")
    if not is_whole(zero):
        raise NoMatch("its zero point is not a whole number")
    return end.tensor, float(end.scale.reshape(-1)[0]), int(np.rint(zero).reshape(-1)[0])


def _rounded_to(graph: QuantGraph, tensor: Tensor) -> str | None:
    """The integer type of a tensor that a QuantizeLinear made, moved or clamped since."""
    maker = source_of(graph, tensor)
    zero = value_of(maker.optional(2)) if maker is not None and is_q(maker) else None
    return None if zero is None or dtype_name(zero.dtype) not in DTYPES else dtype_name(zero.dtype)


def dequantizer(graph: QuantGraph, node: Node) -> bool:
    """Bytes cast to float, shifted and scaled: what `tf2onnx --dequantize` leaves at an integer graph input."""
    dtype = BYTES.get(element_type(node.inputs[0]) or 0) or _rounded_to(graph, node.inputs[0])
    if dtype is None or node.attr("to") not in _FLOATS or is_constant(node.inputs[0]):
        return False
    found = dequantization(graph, node.outputs[0])
    if found is None:
        return False
    end, step, origin = found
    bottom, top = dtype_range(dtype)
    maker = graph.producer(end)
    if maker is None or not bottom <= origin <= top:
        raise NoMatch("it is no dequantization")
    scale = graph.constant(f"{end.name}_scale", np.asarray(step, np.float32))
    zero_point = graph.constant(f"{end.name}_zero_point", np.asarray(origin, dtype))
    maker.op, maker.domain = "DequantizeLinear", None
    maker.inputs = [node.inputs[0], scale, zero_point]
    maker.attrs.clear()
    return True

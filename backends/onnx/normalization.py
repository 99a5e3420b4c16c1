"""Softmax as QLinearSoftmax where that computes one; layer normalization, and the rest, in float between Q and DQ.

QLinearSoftmax cuts 1 / scale of its result off to a whole number, and overflows for a few elements only
(`ort_softmax_factor`); in int8 old versions wrap around, so it always works on uint8.
"""

from __future__ import annotations

import numpy as np

from qatc.backends.onnx.writer import CONTRIB, Writer, stored
from qatc.compiler.arithmetic import ort_softmax_factor
from qatc.compiler.integer import LayerNorm, Softmax
from qatc.compiler.quant import QuantParams

_BYTE = "uint8"
_LAYER_NORMALIZATION = 17  # the opset that has it


def softmax(w: Writer, op: Softmax) -> None:
    """`Softmax`: QLinearSoftmax, or the operator in float."""
    name, out = op.inputs[0], w.graph.params(op.output)
    shape = w.graph.tensors[name].shape
    length = shape[op.axis] if shape is not None else None
    if w.standard or not isinstance(length, int) or ort_softmax_factor(out.scale[0], length) is None:
        real = w.node("Softmax", [w.real(name)], axis=op.axis)
        w.quantize(real, out, op.output, op.lo, op.hi)
        return
    x, grid = w.as_dtype(name, _BYTE)
    have = stored(out)
    byte = QuantParams.per_tensor(out.scale[0], out.zero_point[0], have).as_dtype(_BYTE)
    made = w.target(op.lo, op.hi, have, op.output)
    inputs = (x, w.scale(grid), w.zero(grid), w.scale(byte), w.zero(byte))
    result = w.node("QLinearSoftmax", inputs, made if have == _BYTE else "", domain=CONTRIB, axis=op.axis, opset=13)
    if have != _BYTE:
        w.shift(result, _BYTE, have, made)
    w.clip(made, op.lo, op.hi, have, op.output)


def layer_norm(w: Writer, op: LayerNorm) -> None:
    """`LayerNorm`: LayerNormalization between DequantizeLinear and QuantizeLinear, before opset 17 written out."""
    gamma, *beta = (w.read(name) for name in op.inputs[1:])
    axes, real = w.graph.constants[op.inputs[1]].ndim, w.real(op.inputs[0])
    if w.opset >= _LAYER_NORMALIZATION:
        made = w.node("LayerNormalization", (real, gamma, *beta), axis=-axes, epsilon=float(np.float32(op.epsilon)))
    else:
        last = list(range(-axes, 0))
        distance = w.node("Sub", (real, w.node("ReduceMean", [real], axes=last)))
        variance = w.node("ReduceMean", [w.node("Mul", (distance, distance))], axes=last)
        root = w.node("Sqrt", [w.node("Add", (variance, w.scalar(np.float32(op.epsilon), "float32")))])
        made = w.node("Mul", (w.node("Div", (distance, root)), gamma))
        made = w.node("Add", (made, *beta)) if beta else made
    w.quantize(made, w.graph.params(op.output), op.output, op.lo, op.hi)

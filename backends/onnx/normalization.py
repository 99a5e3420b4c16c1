"""Softmax as QLinearSoftmax where that computes one; layer normalization, and the rest, in float between Q and DQ.

QLinearSoftmax cuts 1 / scale of its result off to a whole number, and overflows for a few elements only
(`ort_softmax_factor`); in int8 old versions wrap around, so it always works on uint8.
"""

from __future__ import annotations

import numpy as np

from qatc.backends.onnx.writer import Writer, in_bytes, stored
from qatc.compiler.arithmetic import ort_softmax_factor
from qatc.compiler.integer import LayerNorm, Softmax
from qatc.compiler.model.protos import MICROSOFT

_BYTE = "uint8"
_LAYER_NORMALIZATION = 17  # the opset that has it
_AXES_AS_INPUT = 18  # the opset from which ReduceMean reads its axes


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
    byte = in_bytes(out, _BYTE)
    made = w.target(op.lo, op.hi, have, op.output)
    inputs = (*w.on(x, grid), w.scale(byte), w.zero(byte))
    result = w.node("QLinearSoftmax", inputs, made if have == _BYTE else "", domain=MICROSOFT, axis=op.axis, opset=13)
    if have != _BYTE:
        w.shift(result, _BYTE, have, made)
    w.clip(made, op.lo, op.hi, have, op.output)


def layer_norm(w: Writer, op: LayerNorm) -> None:
    """`LayerNorm`: LayerNormalization between DequantizeLinear and QuantizeLinear, before opset 17 written out.

    Without the mean it is always written out: old versions of ONNX Runtime have no RMSNormalization (opset 23).
    """
    gamma, *beta = (w.read(name) for name in op.inputs[1:])
    axes, real = w.graph.constants[op.inputs[1]].ndim, w.real(op.inputs[0])
    if w.opset >= _LAYER_NORMALIZATION and not op.uncentered:
        made = w.node("LayerNormalization", (real, gamma, *beta), axis=-axes, epsilon=float(np.float32(op.epsilon)))
    else:
        distance = real if op.uncentered else w.node("Sub", (real, _mean(w, real, axes)))
        variance = _mean(w, w.node("Mul", (distance, distance)), axes)
        root = w.node("Sqrt", [w.node("Add", (variance, w.scalar(np.float32(op.epsilon), "float32")))])
        made = w.node("Mul", (w.node("Div", (distance, root)), gamma))
        made = w.node("Add", (made, *beta)) if beta else made
    w.quantize(made, w.graph.params(op.output), op.output, op.lo, op.hi)


def _mean(w: Writer, x: str, axes: int) -> str:
    """The mean over the last axes, which stay as ones."""
    last = list(range(-axes, 0))
    if w.opset < _AXES_AS_INPUT:
        return w.node("ReduceMean", [x], axes=last)
    return w.node("ReduceMean", (x, w.array(np.asarray(last, np.int64), "axes")))

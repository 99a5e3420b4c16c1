"""Quantize, Dequantize, Rescale, Elementwise and Concat as ONNX operators; Lookup is in `lookup.py`.

ONNX Runtime's contrib operators (QLinearAdd, QLinearMul, QLinearConcat) do in one pass over bytes what three operators
do over floats (DequantizeLinear, the operator, QuantizeLinear); they mean the same, and so they are the default.
"""

from __future__ import annotations

import numpy as np

from qatc.backends.onnx.islands import feeds_float_weights
from qatc.backends.onnx.writer import Writer, stored, tensor_type
from qatc.compiler.arithmetic import mirrored
from qatc.compiler.integer import Concat, Dequantize, Elementwise, Quantize, Rescale
from qatc.compiler.model.protos import MICROSOFT
from qatc.compiler.quant import QuantParams, dtype_range


def quantize(w: Writer, op: Quantize, shifted: Rescale | None = None) -> None:
    """`Quantize`: QuantizeLinear, and a Clip where the range is narrower than the type.

    Where nothing but `shifted` reads its result, which moves it between int8 and uint8, it rounds to that type at once.
    """
    x = w.read(op.inputs[0])
    if w.graph.tensors[x].dtype != "float32":
        x = w.node("Cast", [x], to=1)
    params = w.graph.params(op.output)
    if shifted is None:
        w.quantize(x, params, op.output, op.lo, op.hi)
        return
    moved = w.graph.params(shifted.output)
    step = params.shift_to(stored(moved))
    lo, hi = (min(max(bound + step, shifted.lo), shifted.hi) for bound in (op.lo, op.hi))
    w.quantize(x, moved, shifted.output, lo, hi)


def dequantize(w: Writer, op: Dequantize) -> None:
    """`Dequantize`: DequantizeLinear, and an Add for the bias."""
    name, params = op.inputs[0], w.graph.params(op.inputs[0])
    bias_name = "".join(op.inputs[1:])  # one at most
    bias = w.graph.constants[bias_name] if bias_name else None
    dtype = w.graph.tensors[op.output].dtype
    last = op.output if dtype == "float32" else ""
    plain = bias is None and feeds_float_weights(w, op)
    real = w.dequantize(w.read(name), params, last if bias is None else "", plain=plain)
    if bias is not None:
        rank = w.rank(name)
        if bias.size > 1 and params.axis is not None and rank is not None:
            bias = bias.reshape([-1] + [1] * (rank - 1 - params.axis))
        real = w.node("Add", (real, w.array(bias, f"{bias_name}_shaped")), last)
    if not last:
        w.node("Cast", [real], op.output, to=tensor_type(np.dtype(dtype)))


def rescale(w: Writer, op: Rescale) -> None:
    """`Rescale`: a Clip on one grid, a shift between int8 and uint8, else a table: QLinearConcat of one tensor."""
    have, want = w.graph.params(op.inputs[0]), w.graph.params(op.output)
    x = w.read(op.inputs[0])
    mine, theirs = stored(have), stored(want)
    if have.same_grid(want) and mine == theirs:
        w.clip(x, op.lo, op.hi, theirs, op.output)
        return
    made = w.target(op.lo, op.hi, theirs, op.output)
    if is_shift(have, want):
        w.shift(x, mine, theirs, made)
    elif w.standard or mine != theirs or not have.is_byte or w.rank(op.inputs[0]) == 0:
        w.quantize(w.real(op.inputs[0]), want, op.output, op.lo, op.hi)
        return
    else:
        w.node("QLinearConcat", (w.scale(want), w.zero(want), *w.on(x, have)), made, domain=MICROSOFT, axis=0)
    w.clip(made, op.lo, op.hi, theirs, op.output)


def elementwise(w: Writer, op: Elementwise) -> None:
    """`Elementwise`: QLinearAdd and QLinearMul on bytes, with Sub as the Add of the mirrored right side.

    No kernel adds more than two of them and rounds once: that goes by way of floats.
    """
    out = w.graph.params(op.output)
    grids = [w.graph.params(name) for name in op.inputs]
    direct = not w.standard and len(grids) == 2 and all(p.is_byte for p in (*grids, out))
    if not direct:
        real, *others = (w.real(name) for name in op.inputs)
        for other in others:
            real = w.node(op.op, (real, other))
        w.quantize(real, out, op.output, op.lo, op.hi)
        return
    dtype = stored(out)
    (a, a_grid), (b, b_grid) = (w.as_dtype(name, dtype) for name in op.inputs)
    kind = "QLinearMul" if op.op == "Mul" else "QLinearAdd"
    if op.op == "Sub":
        b, b_grid = _mirrored(w, op.inputs[1], b, b_grid)
    made = w.target(op.lo, op.hi, dtype, op.output)
    w.node(kind, (*w.on(a, a_grid), *w.on(b, b_grid), w.scale(out), w.zero(out)), made, domain=MICROSOFT)
    w.clip(made, op.lo, op.hi, dtype, op.output)


def _mirrored(w: Writer, name: str, b: str, grid: QuantParams) -> tuple[str, QuantParams]:
    """not(q) on the grid with zero point not(z): minus what `b` stands for."""
    dtype = stored(grid)
    ends = sum(dtype_range(dtype))  # not(q) = 255 - q or -1 - q
    constant = w.graph.constants.get(name)
    if constant is not None and constant.dtype.name == dtype:
        return w.array(~constant, f"{name}_mirrored"), mirrored(grid)
    # -1 * (q - 0) + ends, exact in float: a product with the constant 0 on a grid of zero point 1
    one, zero = w.scalar(1.0, "float32"), w.scalar(0, dtype)
    inputs = (b, one, zero, zero, one, w.scalar(1, dtype), one, w.scalar(ends, dtype))
    return w.node("QLinearMul", inputs, domain=MICROSOFT), mirrored(grid)


def concat(w: Writer, op: Concat) -> None:
    """`Concat`: plain on one grid, QLinearConcat else, which rescales by tables."""
    out = w.graph.params(op.output)
    grids = [w.graph.params(name) for name in op.inputs]
    dtype = stored(out)
    made = w.target(op.lo, op.hi, dtype, op.output)
    if all(p.same_grid(out) and p.container == out.container for p in grids):
        if all(w.holds_within(name, op.lo, op.hi) for name in op.inputs):
            made = op.output
        w.node("Concat", [w.read(name) for name in op.inputs], made, axis=op.axis)
        w.clip(made, op.lo, op.hi, dtype, op.output)
        return
    if w.standard or not all(p.is_byte for p in (*grids, out)):
        whole = w.node("Concat", [w.real(name) for name in op.inputs], axis=op.axis)
        w.quantize(whole, out, op.output, op.lo, op.hi)
        return
    inputs = [w.scale(out), w.zero(out)]
    for name in op.inputs:
        inputs += w.on(*w.as_dtype(name, dtype))
    w.node("QLinearConcat", inputs, made, domain=MICROSOFT, axis=op.axis)
    w.clip(made, op.lo, op.hi, dtype, op.output)


def is_shift(have: QuantParams, want: QuantParams) -> bool:
    """Whether the two 8-bit grids are one but for the signedness of their type."""
    apart = have.is_byte and want.is_byte and have.container != want.container
    return apart and have.as_dtype(stored(want)).same_grid(want)

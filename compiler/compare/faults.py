"""Fingerprints of an operator that is computed wrongly: what it would give with one thing about it changed.

Every guess runs the reference executor once more with another rounding, no bias, other padding, and so on. A hypothesis
that does not fit an operator (no bias, no padding, a profile that cannot express its scales) is not made.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from qatc.compiler.compare.forms import Guess
from qatc.compiler.compare.products import product_guesses, raw_guesses
from qatc.compiler.compare.rounding import Plain
from qatc.compiler.compare.saturation import saturated
from qatc.compiler.compare.setting import Setting, operand_guesses, pad_values, roundings
from qatc.compiler.integer import (
    Clamped,
    Concat,
    Conv,
    Dequantize,
    Elementwise,
    LayerNorm,
    Lookup,
    MatMul,
    Move,
    Op,
    Pool,
    Quantize,
    Rescale,
    Resize,
    Softmax,
)
from qatc.compiler.quant import Array, QuantParams

_PAD_INPUT: Final = 2  # Pad reads (data, pads, value)


def guesses(setting: Setting, found: Array | None, *, close: bool) -> Iterator[Guess]:
    """What the operator would give if something about it were wrong.

    Args:
        setting: the operator and its inputs.
        found: the dump of its result, in the graph's axes, where there is one: some guesses look at it.
        close: whether all differences are so small that rounding may explain them.
    """
    op = setting.op
    if isinstance(op, (Conv, MatMul)):
        if setting.graph.params(op.output).dtype == "int32":
            yield from raw_guesses(setting, found)
        else:
            yield from product_guesses(setting, found, close=close)
    elif isinstance(op, Lookup):
        yield from _lookup(setting, op)
    elif isinstance(op, Clamped):
        yield from _clamped(setting, op, found, close=close)
    elif isinstance(op, Dequantize) and len(op.inputs) > 1:
        yield from setting.guess("bias", "the bias is missing", op=dataclasses.replace(op, inputs=op.inputs[:1]))
    elif isinstance(op, Move) and op.op_type == "Pad":
        yield from _moved_padding(setting, op)


# -- rounding -------------------------------------------------------------------------------------------------------
def _rounded(setting: Setting, op: Clamped) -> Iterator[Guess]:
    for text, profile in roundings(setting.profile):
        if not isinstance(op, Quantize):
            yield from setting.guess("rounding", text, profile=profile)
        elif isinstance(profile, Plain) and not np.isnan(setting.values[op.inputs[0]]).any():
            yield Guess("rounding", text, _quantized(setting, op, profile))


def _quantized(setting: Setting, op: Quantize, rounding: Plain) -> Array:
    x, out = setting.values[op.inputs[0]], setting.graph.params(op.output)
    real = np.divide(x, out.scale_array(x.ndim), dtype=np.float32)
    values = rounding.function(real).astype(np.float64) + out.zero_array(x.ndim)
    return np.clip(values, op.lo, op.hi).astype(np.int64)


# -- what clamps ----------------------------------------------------------------------------------------------------
def _clamped(setting: Setting, op: Clamped, found: Array | None, *, close: bool) -> Iterator[Guess]:
    if close and not (isinstance(op, Pool) and op.mode == "max"):
        yield from _rounded(setting, op)
    if isinstance(op, Pool):
        yield from _pool_padding(setting, op)
    elif isinstance(op, Resize):
        yield from _other_places(setting, op)
    elif isinstance(op, Softmax):
        yield from _other_axes(setting, op)
    elif isinstance(op, LayerNorm):
        yield from _normalization(setting, op)
    yield from _operand_zero_points(setting, op)
    yield from _operand_scales(setting, op)
    out = setting.graph.params(op.output)
    if out.dtype == "int32" or out.is_per_channel:
        return
    wide_params = QuantParams.per_tensor(out.scale[0], out.zero_point[0], "int32")
    widened = dataclasses.replace(op, lo=wide_params.qmin, hi=wide_params.qmax)
    wide = setting.rerun(op=widened, params={op.output: wide_params})
    if wide is not None:
        yield from saturated(wide, setting.base, out, op.lo, op.hi, found)


def _operands(setting: Setting, op: Op) -> list[tuple[str, QuantParams]]:
    tensors = setting.graph.tensors
    return [(n, p) for n in dict.fromkeys(op.inputs) if n and (p := tensors[n].params) is not None]


def _operand_zero_points(setting: Setting, op: Clamped) -> Iterator[Guess]:
    if isinstance(op, Pool) and op.mode == "max":
        return
    for name, params in _operands(setting, op):
        yield from operand_guesses(setting, name, params)


def _operand_scales(setting: Setting, op: Clamped) -> Iterator[Guess]:
    """The scales of two operands exchanged, or one used for all; the output's scale used for an operand."""
    if not isinstance(op, (Elementwise, Concat, Rescale, Softmax, LayerNorm)):
        return
    operands = [(n, p) for n, p in _operands(setting, op) if not p.is_per_channel]
    if isinstance(op, Elementwise) and len(operands) == 2:
        (a, pa), (b, pb) = operands
        swapped = {a: _scaled(pa, pb.scale[0]), b: _scaled(pb, pa.scale[0])}
        yield from setting.guess("scale", "the scales of the operands are exchanged", params=swapped)
    candidates: Sequence[tuple[str, QuantParams]] = [*operands, (op.output, setting.graph.params(op.output))]
    for name, params in operands:
        for other, theirs in candidates:
            if other != name and theirs.scale[0] != params.scale[0] and not theirs.is_per_channel:
                changed = {name: _scaled(params, theirs.scale[0])}
                text = f"the operand {name} is taken with the scale of {other}"
                yield from setting.guess("scale", text, params=changed)


def _scaled(params: QuantParams, scale: float) -> QuantParams:
    return dataclasses.replace(params, scale=(scale,))


# -- over an axis --------------------------------------------------------------------------------------------------
def _other_axes(setting: Setting, op: Softmax) -> Iterator[Guess]:
    for axis in range(setting.values[op.inputs[0]].ndim):
        if axis != op.axis:
            other = dataclasses.replace(op, axis=axis)
            text = f"the sum goes along axis {axis}, not along axis {op.axis}"
            yield from setting.guess("axis", text, op=other)


def _other_places(setting: Setting, op: Resize) -> Iterator[Guess]:
    """The coordinates that people mix up, at the same scale or from corner to corner."""
    pairs = [(setting.values[op.inputs[0]].shape[axis], size) for axis, size in zip(op.axes, op.sizes, strict=True)]
    forms = {
        "at its corner": [(n, 0, size) for n, size in pairs],
        "at its center": [(2 * n, n - size, 2 * size) for n, size in pairs],
        "from the first to the last": [(n - 1, 0, max(1, size - 1)) for n, size in pairs],
    }
    for text, lines in forms.items():
        slopes, offsets, denominators = zip(*(tuple(v // math.gcd(*line) for v in line) for line in lines), strict=True)
        other = dataclasses.replace(op, offsets=offsets, slopes=slopes, denominators=denominators)
        yield from setting.guess("coordinates", f"elements are interpolated {text}", op=other)


def _normalization(setting: Setting, op: LayerNorm) -> Iterator[Guess]:
    smallest = dataclasses.replace(op, epsilon=float(np.finfo(np.float32).tiny))
    yield from setting.guess("epsilon", "the epsilon below the root is missing", op=smallest)
    gamma, *beta = op.inputs[1:]
    if beta:
        bare = dataclasses.replace(op, inputs=op.inputs[:2])
        yield from setting.guess("bias", "the bias is missing", op=bare)
    ones = np.ones_like(setting.values[gamma])
    yield from setting.guess("scale", "the factor is missing", values={gamma: ones})


# -- padding --------------------------------------------------------------------------------------------------------
def _pool_padding(setting: Setting, op: Pool) -> Iterator[Guess]:
    if not any(op.pads):
        return
    x = setting.values[op.inputs[0]]
    params = setting.graph.params(op.inputs[0])
    if op.mode == "average":
        toggled = dataclasses.replace(op, count_include_pad=not op.count_include_pad)
        text = "the padding is counted" if toggled.count_include_pad else "the padding is not counted"
        yield from setting.guess("padding", f"{text} in the mean", op=toggled)
    rank = x.ndim - 2
    turned = dataclasses.replace(op, pads=op.pads[rank:] + op.pads[:rank])
    if turned.pads != op.pads:
        yield from setting.guess("padding", "the padding is on the other side", op=turned)
    if op.ceil_mode:
        return
    bare = dataclasses.replace(op, pads=(0,) * (2 * rank))
    widths = [(0, 0), (0, 0), *zip(op.pads[:rank], op.pads[rank:], strict=True)]
    for value in (params.zero_point[0], *pad_values(x.dtype, params.zero_point[0])):
        padded = {op.inputs[0]: np.pad(x, widths, constant_values=value)}
        yield from setting.guess("padding", f"the padding holds the integer {value}", op=bare, values=padded)


def _moved_padding(setting: Setting, op: Move) -> Iterator[Guess]:
    x = setting.values[op.inputs[0]]
    if x.dtype.kind not in "iu" or len(op.inputs) <= _PAD_INPUT or not op.inputs[_PAD_INPUT]:
        return
    name = op.inputs[_PAD_INPUT]
    right = setting.values[name]
    for value in pad_values(x.dtype, int(right.reshape(-1)[0]) if right.size else 0):
        wrong = {name: np.full_like(right, value)}
        yield from setting.guess("padding", f"the padding holds the integer {value}", values=wrong)


# -- tables ---------------------------------------------------------------------------------------------------------
def _lookup(setting: Setting, op: Lookup) -> Iterator[Guess]:
    name = op.inputs[1]
    table = setting.values[name]
    rolled = {name: np.roll(table, table.size // 2)}
    yield from setting.guess("signedness", "the table is indexed with the other signedness", values=rolled)
    zero = setting.graph.params(op.inputs[0]).zero_point[0]
    for shift in (shift for shift in dict.fromkeys((zero, -zero)) if shift):
        moved = {name: np.roll(table, shift)}
        yield from setting.guess("zero-point", "the zero point is applied to the index of the table", values=moved)

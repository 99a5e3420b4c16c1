"""Fingerprints of an operator that is computed wrongly: what it would give with one thing about it changed.

Every guess runs the reference executor once more with another rounding, no bias, other padding, and so on. A hypothesis
that does not fit an operator (no bias, no padding, a profile that cannot express its scales) is not made.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
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
        yield from _made("bias", "the bias is missing", lambda: setting.rerun(op=_without_bias(op)))
    elif isinstance(op, Move) and op.op_type == "Pad":
        yield from _moved_padding(setting, op)


def _without_bias(op: Dequantize) -> Dequantize:
    return dataclasses.replace(op, inputs=op.inputs[:1])


def _made(kind: str, detail: str, make: Callable[[], Array | None]) -> Iterator[Guess]:
    value = make()
    if value is not None:
        yield Guess(kind, detail, value)


# -- rounding -------------------------------------------------------------------------------------------------------
def _rounded(setting: Setting, op: Clamped) -> Iterator[Guess]:
    for text, profile in roundings(setting.profile):
        if isinstance(op, Quantize):
            if not isinstance(profile, Plain):
                continue
            value: Array | None = _quantized(setting, op, profile)
        else:
            value = setting.rerun(profile=profile)
        if value is not None:
            yield Guess("rounding", text, value)


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
        yield from _made("scale", "the scales of the operands are exchanged", lambda: setting.rerun(params=swapped))
    candidates: Sequence[tuple[str, QuantParams]] = [*operands, (op.output, setting.graph.params(op.output))]
    for name, params in operands:
        for other, theirs in candidates:
            if other != name and theirs.scale[0] != params.scale[0] and not theirs.is_per_channel:
                changed = {name: _scaled(params, theirs.scale[0])}
                text = f"the operand {name} is taken with the scale of {other}"
                yield from _made("scale", text, lambda c=changed: setting.rerun(params=c))  # type: ignore[misc]


def _scaled(params: QuantParams, scale: float) -> QuantParams:
    return dataclasses.replace(params, scale=(scale,))


# -- over an axis --------------------------------------------------------------------------------------------------
def _other_axes(setting: Setting, op: Softmax) -> Iterator[Guess]:
    for axis in range(setting.values[op.inputs[0]].ndim):
        if axis != op.axis:
            other = dataclasses.replace(op, axis=axis)
            text = f"the sum goes along axis {axis}, not along axis {op.axis}"
            yield from _made("axis", text, lambda o=other: setting.rerun(op=o))  # type: ignore[misc]


def _normalization(setting: Setting, op: LayerNorm) -> Iterator[Guess]:
    smallest = dataclasses.replace(op, epsilon=float(np.finfo(np.float32).tiny))
    yield from _made("epsilon", "the epsilon below the root is missing", lambda: setting.rerun(op=smallest))
    gamma, *beta = op.inputs[1:]
    if beta:
        bare = dataclasses.replace(op, inputs=op.inputs[:2])
        yield from _made("bias", "the bias is missing", lambda: setting.rerun(op=bare))
    ones = np.ones_like(setting.values[gamma])
    yield from _made("scale", "the factor is missing", lambda: setting.rerun(values={gamma: ones}))


# -- padding --------------------------------------------------------------------------------------------------------
def _pool_padding(setting: Setting, op: Pool) -> Iterator[Guess]:
    if not any(op.pads):
        return
    x = setting.values[op.inputs[0]]
    params = setting.graph.params(op.inputs[0])
    if op.mode == "average":
        toggled = dataclasses.replace(op, count_include_pad=not op.count_include_pad)
        text = "the padding is counted" if toggled.count_include_pad else "the padding is not counted"
        yield from _made("padding", f"{text} in the mean", lambda: setting.rerun(op=toggled))
    rank = x.ndim - 2
    turned = dataclasses.replace(op, pads=op.pads[rank:] + op.pads[:rank])
    if turned.pads != op.pads:
        yield from _made("padding", "the padding is on the other side", lambda: setting.rerun(op=turned))
    if op.ceil_mode:
        return
    bare = dataclasses.replace(op, pads=(0,) * (2 * rank))
    widths = [(0, 0), (0, 0), *zip(op.pads[:rank], op.pads[rank:], strict=True)]
    for value in (params.zero_point[0], *pad_values(x.dtype, params.zero_point[0])):
        padded = np.pad(x, widths, constant_values=value)
        text = f"the padding holds the integer {value}"
        again = setting.rerun(op=bare, values={op.inputs[0]: padded})
        if again is not None:
            yield Guess("padding", text, again)


def _moved_padding(setting: Setting, op: Move) -> Iterator[Guess]:
    x = setting.values[op.inputs[0]]
    if x.dtype.kind not in "iu" or len(op.inputs) <= _PAD_INPUT or not op.inputs[_PAD_INPUT]:
        return
    name = op.inputs[_PAD_INPUT]
    right = setting.values[name]
    for value in pad_values(x.dtype, int(right.reshape(-1)[0]) if right.size else 0):
        wrong = np.full_like(right, value)
        again = setting.rerun(values={name: wrong})
        if again is not None:
            yield Guess("padding", f"the padding holds the integer {value}", again)


# -- tables ---------------------------------------------------------------------------------------------------------
def _lookup(setting: Setting, op: Lookup) -> Iterator[Guess]:
    table = setting.values[op.inputs[1]]
    rolled = setting.rerun(values={op.inputs[1]: np.roll(table, table.size // 2)})
    if rolled is not None:
        yield Guess("signedness", "the table is indexed with the other signedness", rolled)
    params = setting.graph.params(op.inputs[0])
    for shift in dict.fromkeys((params.zero_point[0], -params.zero_point[0])):
        if shift:
            moved = setting.rerun(values={op.inputs[1]: np.roll(table, shift)})
            if moved is not None:
                yield Guess("zero-point", "the zero point is applied to the index of the table", moved)

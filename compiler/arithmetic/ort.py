"""`onnx`: what ONNX Runtime's CPU kernels compute on x86 (AVX2 with FMA and later), bit for bit.

Read off its sources and checked against version 1.31 (`docs/arithmetic.md` lists operator by operator what holds):
QLinearConv, QLinearMatMul and QGemm scale the int32 accumulator by one float32 number per channel, and averages with a
kernel are QLinearConv; QLinearAdd works on scale ratios with fused multiply-adds; QLinearMul rounds product and sum.
Everything that is not an 8-bit kernel there (16-bit tensors, raw accumulators) is dequantized, computed in float32 and
quantized again, and so it is here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Final

import numpy as np

from qatc.compiler.arithmetic.base import Operand, Profile, Rounder, Side, Target
from qatc.compiler.quant import Array, Floats, Integers, QuantParams

_F32 = np.float32
_ROOM: Final = 5.0  # QLinearSoftmax: the natural logarithm of how far its sums stay below float32's largest number
_OVERFLOW: Final = 148.0  # just below exp(_ROOM)
_NEAR_ONE: Final = 2.0**-22


def ort_weight_scales(acc_scale: Sequence[float] | Array, x_scale: float) -> Floats:
    """The weight scales (float32, per channel) to write beside an input scale so that their product is `acc_scale`."""
    return (np.asarray(acc_scale, np.float64).reshape(-1) / float(_F32(x_scale))).astype(_F32)


def ort_multipliers(acc_scale: Sequence[float] | Array, x_scale: float, y_scale: float) -> Floats:
    """The float32 factors that ONNX Runtime makes of x_scale, `ort_weight_scales` and y_scale: (x * w) / y."""
    return _F32(x_scale) * ort_weight_scales(acc_scale, x_scale) / _F32(y_scale)


def ort_interpolation_step(x_scale: float, y_scale: float, divisor: int) -> float:
    """The scale of a QuantizeLinear of sums with integer weights that add up to `divisor`: s_y in units of the sums."""
    return float(_F32(y_scale / x_scale * divisor))


def ort_softmax_factor(y_scale: float, length: int) -> float | None:
    """The whole number that QLinearSoftmax takes for 1 / y_scale; None where it computes something else than a Softmax.

    It cuts 1 / y_scale off to a whole number, and its float32 exponentials, scaled up for a sum of `length`, overflow
    when multiplied with it for a few elements only.
    """
    factor = math.floor(_F32(1) / _F32(y_scale))
    is_near = abs(factor * y_scale - 1) <= _NEAR_ONE
    return float(factor) if is_near and factor < length * _OVERFLOW else None


def _softmax_table(x_scale: float, length: int) -> Floats:
    """exp(-x_scale * distance) times a number that leaves room for a sum of `length`, as QLinearSoftmax makes them."""
    largest = float(np.finfo(_F32).max / _F32(length))
    shift = max(0.0, math.log(largest) - _ROOM) / x_scale
    return np.asarray([math.exp((shift - distance) * x_scale) for distance in range(256)]).astype(_F32)


def fma(a: Array, b: Array | np.float32, c: Array | np.float32) -> Floats:
    """float32 a * b + c with one rounding, for arrays and numbers that broadcast.

    The product of two float32 is exact in float64. The sum is rounded to odd there, which makes the second rounding, to
    float32, the right one (Boldo and Melquiond, 2008).
    """
    product = np.asarray(a, np.float64) * np.asarray(b, np.float64)
    addend = np.asarray(c, np.float64)
    total = np.asarray(product + addend)
    back = total - product
    error = (product - (total - back)) + (addend - back)
    inexact = error != 0
    if inexact.any():
        is_even = (total.view(np.int64) & 1) == 0
        toward = np.where(error > 0, np.inf, -np.inf)
        total = np.where(inexact & is_even, np.nextafter(total, toward), total)
    return total.astype(_F32)


class Onnx(Profile):
    """`onnx`."""

    name = "onnx"
    summary = "float32 multiplier, round half to even: ONNX Runtime on x86"

    def _rounder(self, scales: Array, target: Target, in_scale: float | None, divisor: int = 1) -> Rounder:
        del divisor
        y_scale = _F32(target.scale)
        multipliers = (
            scales.astype(_F32) / y_scale if in_scale is None else ort_multipliers(scales, in_scale, target.scale)
        )
        return _scaled(multipliers, target)

    def _averager(self, count: int, params: QuantParams, target: Target, *, windowed: bool) -> Rounder:
        if windowed:  # QLinearConv with weights of one, each worth 1 / count: what the `onnx` backend writes
            return self._rounder(np.asarray([params.scale[0] / count]), target, params.scale[0])
        # QLinearGlobalAveragePool: the input scale is divided by output scale times element count.
        scale = _F32(params.scale[0]) / (_F32(target.scale) * _F32(count))
        return _scaled(np.asarray(scale).reshape(1), target)

    def _interpolator(self, divisor: int, params: QuantParams, target: Target) -> Rounder:
        step = _F32(ort_interpolation_step(params.scale[0], target.scale, divisor))
        return _rounded(lambda real, _: np.divide(real, step, out=real), target)

    def _rescale(self, q: Integers, params: QuantParams, target: Target) -> Integers:
        return _quantize(params.dequantize(q), target)

    # -- softmax ----------------------------------------------------------------------------------------------------
    def _softmax(self, rows: Integers, params: QuantParams, target: Target) -> Array:
        """QLinearSoftmax where it means a Softmax, else the exact result: the float form that is written then."""
        factor = ort_softmax_factor(target.scale, rows.shape[-1])
        if factor is None or not target.params.is_8bit:
            return super()._softmax(rows, params, target)
        distance = rows.max(axis=-1, keepdims=True).astype(np.int64) - rows
        powers = _softmax_table(params.scale[0], rows.shape[-1])[distance]
        total = np.add.accumulate(powers, axis=-1, dtype=_F32)[:, -1:]  # one after the other, as the kernel adds
        shares = np.rint(powers * _F32(factor) / total).astype(np.int64)
        clamped: Array = np.clip(shares, target.low, target.high)
        return clamped

    # -- element-wise -----------------------------------------------------------------------------------------------
    def _arranged(self, op: str, left: Side, right: Side) -> tuple[str, Side, Side]:
        """Sub of bytes is QLinearAdd of the mirrored right side: not(q), not(zero_point)."""
        if op == "Sub" and left[1].is_byte and right[1].is_byte:
            op, right = "Add", (~right[0], mirrored(right[1]))
        if op == "Add" and _first_is_repeated(left[0].shape, right[0].shape):
            left, right = right, left  # the kernel takes the repeated element second
        return op, left, right

    def _combine(self, op: str, operands: Sequence[Operand], target: Target) -> Array:
        if len(operands) > 2 or not all(params.is_8bit for params in (target.params, *(o.params for o in operands))):
            return _float_combine(op, operands, target)
        left, right = operands
        if op == "Mul":
            ratio = _F32(left.scale) * _F32(right.scale) / _F32(target.scale)
            product = (left.centered() * right.centered()).astype(_F32)
            real = product * ratio + _F32(target.zero)
        else:
            ratio_a, ratio_b = _F32(left.scale) / _F32(target.scale), _F32(right.scale) / _F32(target.scale)
            zero_a, zero_b = _F32(left.zero), _F32(right.zero)
            fixed = _F32(target.zero) - fma(np.asarray(ratio_a), zero_a, ratio_b * zero_b)
            real = fma(left.q.astype(_F32), ratio_a, fma(right.q.astype(_F32), ratio_b, fixed))
        rounded: Array = np.clip(np.rint(real), target.lo, target.hi)
        return rounded


def mirrored(params: QuantParams) -> QuantParams:
    """The grid on which not(q) stands for minus what q stands for on `params` (per tensor, 8 bits)."""
    zero = int(np.invert(np.asarray(params.zero_point[0], params.container)))
    return QuantParams.per_tensor(params.scale[0], zero, params.container.name)


def _scaled(multipliers: Floats, target: Target) -> Rounder:
    def scale(real: Floats, channels: slice) -> Floats:
        real *= multipliers[channels].reshape(-1, 1)
        return real

    return _rounded(scale, target)


def _rounded(scale: Callable[[Floats, slice], Floats], target: Target) -> Rounder:
    """`scale` works on float32 in place: the steps of the result."""
    low, high = target.low, target.high
    wide = target.params.container.itemsize > 2  # float32 cannot hold all results

    def rounder(acc: Array, channels: slice) -> Array:
        real = scale(acc.astype(_F32), channels)
        if wide:
            return np.clip(np.rint(real).astype(np.float64), low, high)
        np.clip(real, low, high, out=real)
        return np.rint(real, out=real)

    return rounder


def _quantize(real: Floats, target: Target) -> Integers:
    """QuantizeLinear: float32 division, half to even, then the zero point."""
    rounded = np.rint(real / _F32(target.scale))
    wide = rounded.astype(np.float64) if target.params.container.itemsize > 2 else rounded
    result: Integers = (np.clip(wide, target.low, target.high) + target.zero).astype(target.params.container)
    return result


def _float_combine(op: str, operands: Sequence[Operand], target: Target) -> Integers:
    """One operand after the other in float32."""
    reals: list[Floats] = [o.centered().astype(_F32) * np.asarray(o.scale, _F32) for o in operands]
    function = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply}[op]
    return _quantize(reduce(function, reals), target)


def _first_is_repeated(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether ONNX Runtime repeats one element of `a` along the innermost axis of the output longer than one."""
    rank = max(len(a), len(b))
    pairs = list(zip((1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b, strict=True))
    shared = min(len(a), len(b))
    for index, (da, db) in enumerate(reversed(pairs)):
        if max(da, db) > 1 or index + 1 >= shared:
            return da == 1
    return True

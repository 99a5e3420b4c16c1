"""Fixed-point multipliers: `tflite`, `cmsis-nn` and `tosa`, each in its two ways to round. Integer arithmetic only.

A real factor is a 31-bit mantissa and a shift, as both specifications make it: factor = mantissa * 2**(shift - 31).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Final

import numpy as np

from qatc.compiler.arithmetic import gemmlowp
from qatc.compiler.arithmetic.base import Operand, Profile, Rounder, Target
from qatc.compiler.arithmetic.gemmlowp import (
    INT32_MAX,
    INT32_MIN,
    doubling_high_multiply,
    quantize_multiplier,
    rounding_shift,
)
from qatc.compiler.diagnostics import fail
from qatc.compiler.quant import Array, Integers, QuantParams

_SMALLEST_SHIFT: Final = -31
_LARGEST_SHIFT: Final = 30
_HALF_OF_31: Final = 1 << 30  # half a unit of what a shift by 31 bits leaves
_HEADROOM: Final = {1: 20, 2: 15}  # bytes of an operand -> bits that addition shifts it up by


class FixedPoint(Profile):
    """What these profiles share: int32 in, factor per channel, int32 out."""

    ties_up = True

    @abstractmethod
    def _scale(self, values: Array, mantissa: Array, shift: Array) -> Array:
        """int32 values (as int64) times mantissa * 2**(shift - 31), rounded."""

    def _rounder(self, scales: Array, target: Target, in_scale: float | None, divisor: int = 1) -> Rounder:
        del in_scale
        mantissa, shift = quantize_multiplier(scales / target.scale / divisor)

        def rounder(acc: Array, channels: slice) -> Array:
            values = self._scale(
                acc.astype(np.int64), mantissa[channels].reshape(-1, 1), shift[channels].reshape(-1, 1)
            )
            return np.clip(values, target.low, target.high)

        return rounder

    def _times(self, values: Array, factor: float) -> Array:
        mantissa, shift = quantize_multiplier(np.asarray([factor]))
        return self._scale(values, mantissa, shift)

    def _combine(self, op: str, operands: Sequence[Operand], target: Target) -> Array:
        for operand in operands:
            if operand.params.container.itemsize not in _HEADROOM:
                raise fail(
                    "QAT302",
                    f"element-wise {op} of {operand.params} has no form in the arithmetic profile {self.name}",
                    hint="it takes 8- and 16-bit tensors",
                )
        if op == "Mul":
            left, right = operands
            real = self._times(left.centered() * right.centered(), left.scale * right.scale / target.scale)
        else:
            bits = min(_HEADROOM[o.params.container.itemsize] for o in operands)
            widest = float(len(operands)) * max(o.scale for o in operands)  # their sum stays as short as one of them
            first, *others = (self._widened(o.centered(), o.scale / widest, bits) for o in operands)
            total = first - others[0] if op == "Sub" else sum(others, first)
            real = self._times(total, widest / (2.0**bits * target.scale))
        result: Array = np.clip(real + target.zero, target.lo, target.hi)
        return result

    @abstractmethod
    def _widened(self, centered: Array, factor: float, bits: int) -> Array:
        """`centered` times factor * 2**bits, rounded."""


class Tflite(FixedPoint):
    """`tflite`: MultiplyByQuantizedMultiplier with its two roundings, as gemmlowp and TensorFlow Lite define it."""

    name = "tflite"
    summary = "31-bit multiplier and shift, rounds twice: TensorFlow Lite"

    def _scale(self, values: Array, mantissa: Array, shift: Array) -> Array:
        widened = self._held(values << np.clip(shift, 0, 32))  # no bit of 32 is left further on
        return rounding_shift(doubling_high_multiply(widened, mantissa), np.maximum(-shift, 0))

    def _held(self, values: Array) -> Array:
        """int64 values as the int32 register of a shift to the left holds them."""
        saturated: Array = np.clip(values, INT32_MIN, INT32_MAX)
        return saturated

    def _widened(self, centered: Array, factor: float, bits: int) -> Array:
        return self._times(centered << bits, factor)

    def _softmax(self, rows: Integers, params: QuantParams, target: Target) -> Array:
        """The 8-bit Softmax of TensorFlow Lite's reference kernels and of CMSIS-NN, which writes steps of 1/256."""
        lowest = int(np.iinfo(target.params.container).min)
        if not target.params.is_8bit or target.scale != 1 / 256 or target.zero != lowest:
            raise fail(
                "QAT302",
                f"the Softmax of the arithmetic profile {self.name} has no form that writes on {target.params}",
                hint=f"its kernel writes on scale 1/256 and zero point {lowest}; or keep Softmax float",
            )
        if rows.shape[-1] >= 1 << gemmlowp.SUM_BITS:
            message = f"a Softmax over {rows.shape[-1]} elements overflows in the arithmetic profile {self.name}"
            raise fail("QAT302", message, hint="its sum has room for 4095; keep Softmax float")
        values: Array = np.clip(gemmlowp.softmax(rows, params.scale[0]), target.low, target.high)
        return values

    def _average(self, total: Array, counts: Array, params: QuantParams, target: Target, *, windowed: bool) -> Integers:
        """On one grid, as TFLite requires of pooling: division that rounds half away from zero.

        TFLite sums the integers as they are, so the direction of "away from zero" follows the integers, not the reals.
        """
        if not params.same_grid(target.params):
            return super()._average(total, counts, params, target, windowed=windowed)
        sums = total.astype(np.int64) + counts * target.zero
        magnitude = (np.abs(sums) + counts // 2) // counts
        signed = np.where(sums > 0, magnitude, -magnitude)
        result: Integers = np.clip(signed, target.lo, target.hi).astype(target.params.container)
        return result


class TfliteSingle(Tflite):
    """`tflite-single`: TensorFlow Lite built with TFLITE_SINGLE_ROUNDING, CMSIS-NN with CMSIS_NN_USE_SINGLE_ROUNDING.

    The product of 64 bits is rounded once, half up. Everything around the multiplication is `tflite`.
    """

    name = "tflite-single"
    summary = "31-bit multiplier and shift, rounds once, half up: TensorFlow Lite with single rounding"

    def _scale(self, values: Array, mantissa: Array, shift: Array) -> Array:
        # QuantizeMultiplier flushes factors below 2**-32 to zero and saturates those that need a shift beyond 30.
        mantissa = np.where(shift > _LARGEST_SHIFT, INT32_MAX, np.where(shift < _SMALLEST_SHIFT, 0, mantissa))
        right = 31 - np.clip(shift, _SMALLEST_SHIFT, _LARGEST_SHIFT)
        rounded: Array = (values * mantissa + (np.int64(1) << (right - 1))) >> right
        return rounded


class CmsisNn(Tflite):
    """`cmsis-nn`: arm_nn_requantize. The same as `tflite`, but that a shift to the left wraps where it overflows."""

    name = "cmsis-nn"
    summary = "31-bit multiplier and shift, rounds twice: CMSIS-NN on Cortex-M"

    def _held(self, values: Array) -> Array:
        wrapped: Array = (values - INT32_MIN) % (1 << 32) + INT32_MIN
        return wrapped


class Tosa(FixedPoint):
    """`tosa`: apply_scale_32 without double rounding."""

    name = "tosa"
    summary = "31-bit multiplier and shift, rounds once, half up: TOSA"

    def _scale(self, values: Array, mantissa: Array, shift: Array) -> Array:
        right = 31 - shift
        excess = np.clip(right - 62, 0, 31)  # the specification ends at 62: smaller factors lose mantissa bits
        right = np.minimum(right, 62)
        if (right < 2).any():
            raise fail(
                "QAT302", "a rescale by 2**29 or more has no form in TOSA", hint="check the scales of this operator"
            )
        scaled: Array = (values * (mantissa >> excess) + self._round(values, right)) >> right
        return scaled

    def _round(self, values: Array, right: Array) -> Array:
        """What is added before the shift."""
        del values
        half: Array = np.int64(1) << (right - 1)
        return half

    def _widened(self, centered: Array, factor: float, bits: int) -> Array:
        return self._times(centered, factor * 2.0**bits)

    def _averager(self, count: int, params: QuantParams, target: Target, *, windowed: bool) -> Rounder:
        if params.scale[0] != target.scale:
            return super()._averager(count, params, target, windowed=windowed)
        bits = (count - 1).bit_length()  # reciprocal_scale(count) of the specification
        multiplier, right = (((1 << 30) + 1) << bits) // count, 30 + bits

        def rounder(acc: Array, channels: slice) -> Array:
            del channels
            values = (acc.astype(np.int64) * multiplier + (1 << (right - 1))) >> right
            clamped: Array = np.clip(values, target.low, target.high)
            return clamped

        return rounder


class TosaDouble(Tosa):
    """`tosa-double`: apply_scale_32 with double rounding, as TOSA's RESCALE has it for models of TensorFlow Lite.

    A shift beyond 31 bits first rounds to 31 bits, half away from zero in the sign of the value; that carries over.
    """

    name = "tosa-double"
    summary = "31-bit multiplier and shift, rounds twice: TOSA with double rounding"

    def _round(self, values: Array, right: Array) -> Array:
        first = np.where(right > 31, np.where(values >= 0, _HALF_OF_31, -_HALF_OF_31), 0)
        rounding: Array = super()._round(values, right) + first
        return rounding

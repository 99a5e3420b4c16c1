"""Exact rational arithmetic: the yardstick `exact` (half to even) and `pow2` (half up, power-of-two scales only).

A float64 estimate decides every element that is not within its own error bound of a rounding boundary; the few others
are decided in integers. Why that is exact: an estimate v of the true value V is computed with at most four roundings of
relative error 2**-53 each, on operands that are exact in float64. So |v - V| <= tolerance as computed below. Where v is
farther than that from every half-integer, V lies on the same side of it, and both round to the same integer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Final

import numpy as np

from qatc.compiler.arithmetic.base import Operand, Profile, Rounder, Target
from qatc.compiler.diagnostics import CompileError, fail
from qatc.compiler.quant import Array, Integers, QuantParams

_EXACT: Final = 1 << 53  # float64 holds every integer up to here
_ERROR: Final = 2.0**-50  # more than four roundings, relative
_SMALL: Final = 1 << 62  # int64 arithmetic cannot overflow below


def round_ratio(numerator: Array, denominator: int, *, half_up: bool = False) -> Array:
    """The integers nearest to numerator / denominator, ties to even (or up); exact.

    Args:
        numerator: integers, dtype int64 (magnitude below 2**62) or object (Python integers of any size).
        denominator: positive.
        half_up: round ties toward positive infinity instead.

    Returns:
        int64 for int64, object for object.
    """
    quotient = numerator // denominator
    twice = (numerator - quotient * denominator) * 2
    tie = twice == denominator
    up = (twice > denominator) | (tie & (half_up | (quotient % 2 == 1)))
    rounded: Array = quotient + up
    return rounded


class Rational(Profile):
    """`exact` and `pow2`."""

    def __init__(self, name: str, summary: str, *, half_up: bool = False, power_of_two: bool = False) -> None:
        self.name = name
        self.summary = summary
        self.ties_up = half_up
        self._power_of_two = power_of_two

    def constant(self, real: Array, params: QuantParams) -> Integers:
        """See `Profile.constant`. `pow2` rounds constants half away from zero, as the tools of shift-only targets do.

        Raises:
            CompileError: QAT302 for `pow2` and a scale that is no power of two.
        """
        if not self._power_of_two:
            return super().constant(real, params)
        values = np.asarray(real, np.float64)
        params.check_shape(values.shape)
        scale = params.scale_array(values.ndim).astype(np.float64)
        wrong = np.asarray(params.scale)[np.frexp(np.asarray(params.scale))[0] != 0.5]
        if wrong.size:
            raise _no_shift("the scale", float(wrong[0]))
        steps = values / scale  # exact, as the scale is a power of two
        whole = np.trunc(steps)
        away = np.copysign(np.abs(steps - whole) >= 0.5, steps)
        nearest = whole + away + params.zero_array(values.ndim)
        clipped: Integers = np.clip(nearest, params.qmin, params.qmax).astype(params.container)
        return clipped

    def _rounder(self, scales: Array, target: Target, in_scale: float | None, divisor: int = 1) -> Rounder:
        del in_scale
        self._check_ratios(scales, target)
        unit = target.scale * divisor  # exact: 24 bits times an element count
        ratios = scales / unit
        is_exact = divisor < 256 and bool(np.all(_is_exact_quotient(ratios, scales, unit)))
        low, high = target.low, target.high
        tolerance = _ERROR * (max(abs(low), abs(high)) + 2)

        def rounder(acc: Array, channels: slice) -> Array:
            real = acc.astype(np.float64)
            widest = max(real.max(initial=0.0), -real.min(initial=0.0))
            real *= ratios[channels].reshape(-1, 1)
            np.clip(real, low - 1, high + 1, out=real)
            if is_exact and widest <= 1 << 31:
                nearest = np.floor(real + 0.5) if self.ties_up else np.rint(real)
            elif widest <= _EXACT:
                nearest = np.rint(real)
                real -= nearest
                np.abs(real, out=real)
                if real.max(initial=0.0) >= 0.5 - tolerance:
                    self._resolve(acc, nearest, real >= 0.5 - tolerance, scales[channels], unit)
            else:
                nearest = np.empty(acc.shape)
                self._resolve(acc, nearest, np.ones(acc.shape, bool), scales[channels], unit)
            return np.clip(nearest, low, high, out=nearest)

        return rounder

    def _resolve(self, acc: Array, nearest: Array, doubtful: Array, scales: Array, unit: float) -> None:
        """Overwrite the doubtful elements of `nearest` with the exact rounding of acc * scale / unit."""
        for channel in np.flatnonzero(doubtful.any(axis=(0, 2))).tolist():
            where = doubtful[:, channel]
            ratio = Fraction(float(scales[channel])) / Fraction(unit)
            units = acc[:, channel][where].astype(np.int64)
            widest = max(int(units.max()), -int(units.min()))
            wide = widest * ratio.numerator >= _SMALL or ratio.denominator >= _SMALL // 2
            product = units.astype(object) * ratio.numerator if wide else units * ratio.numerator
            rounded = round_ratio(product, ratio.denominator, half_up=self.ties_up)
            nearest[:, channel][where] = rounded.astype(np.float64)

    def _combine(self, op: str, operands: Sequence[Operand], target: Target) -> Array:
        terms, scales = [o.centered() for o in operands], [o.scale for o in operands]
        if op == "Mul":  # a requantization whose scale is the product of both, exact in float64 (24 + 24 bits)
            rounder = self._rounder(np.asarray([math.prod(scales)]), target, None)
            return rounder((terms[0] * terms[1]).reshape(-1, 1, 1), slice(0, 1)).reshape(-1) + target.zero
        if op == "Sub":
            terms[1] = -terms[1]
        self._check_ratios(np.asarray(scales), target)
        reals = [term * scale for term, scale in zip(terms, scales, strict=True)]
        bound = sum(float(np.abs(real).max(initial=0.0)) for real in reals) / target.scale
        real: Array = sum(reals[1:], reals[0]) / target.scale
        np.clip(real, target.low - 1, target.high + 1, out=real)
        nearest = np.rint(real)
        doubtful = np.abs(real - nearest) >= 0.5 - _ERROR * (bound + 1) * len(terms)
        if doubtful.any():
            nearest[doubtful] = self._sums([term[doubtful] for term in terms], scales, target)
        clamped: Array = np.clip(nearest, target.low, target.high) + target.zero
        return clamped

    def _sums(self, terms: Sequence[Integers], scales: Sequence[float], target: Target) -> Array:
        """The sum of terms times their scales, divided by target.scale, rounded exactly."""
        ratios = [Fraction(scale) / Fraction(target.scale) for scale in scales]
        common = math.lcm(*(ratio.denominator for ratio in ratios))
        factors = [int(ratio * common) for ratio in ratios]
        widest = sum(int(np.abs(term).max()) * factor for term, factor in zip(terms, factors, strict=True))
        kind = object if widest >= _SMALL or common >= _SMALL // 2 else np.int64
        first, *others = (term.astype(kind) * factor for term, factor in zip(terms, factors, strict=True))
        total: Array = sum(others, first)
        return round_ratio(total, common, half_up=self.ties_up).astype(np.float64)

    # -- power-of-two scales ----------------------------------------------------------------------------------------
    def _check_ratios(self, scales: Array, target: Target) -> None:
        if not self._power_of_two:
            return
        ratios = scales / target.scale
        wrong = ratios[(np.frexp(ratios)[0] != 0.5) | (ratios * target.scale != scales)]
        if wrong.size:
            raise _no_shift("the ratio of two scales", float(wrong[0]))


def _no_shift(what: str, value: float) -> CompileError:
    return fail(
        "QAT302",
        f"{what}, {value:.9g}, is not a power of two, so a shift cannot apply it",
        hint="train with power-of-two scales, or choose a target with another arithmetic profile",
    )


def _is_exact_quotient(quotient: Array, dividend: Array, divisor: float) -> Array:
    """Whether each quotient is exact and short enough (21 bits) for its product with 31 bits, and half a unit more, to
    be exact in float64 too. The check itself is exact: the product with a divisor of at most 32 bits fits 53.
    """
    mantissa = np.frexp(quotient)[0] * 2.0**21
    is_exact: Array = (mantissa == np.rint(mantissa)) & (quotient * divisor == dividend)
    return is_exact

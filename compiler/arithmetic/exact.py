"""Softmax and layer normalization as real numbers, and their exact rounding.

A float64 estimate decides every element that is not within its own error bound of a rounding boundary; the few others
are decided exactly. Rows are the last axis: [R, N].

    softmax      share of exp(-s d) in the row's sum, d = max(q) - q. Such sums of powers of e with different rational
                 exponents are never rational (Lindemann and Weierstrass), so more digits always tell on which side of a
                 boundary the value lies, unless the whole row is equal: then it is 1 / N.
    layer norm   gamma D / sqrt(W + N^2 eps / s^2) + beta with D = N q - sum(q) and W = N sum(q^2) - sum(q)^2: squaring
                 decides it in fractions.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from decimal import Context, Decimal, localcontext
from fractions import Fraction
from typing import Final

import numpy as np
import numpy.typing as npt

from qatc.compiler.quant import Array, Doubles, Integers


@dataclass(frozen=True)
class Steps:
    """Where results go: the output's scale, the bounds before its zero point is added, and what becomes of a tie."""

    scale: float
    low: int
    high: int
    ties_up: bool


_DIGITS: Final = 40  # where the search for the side of a boundary begins: twice float64's
_MOST_DIGITS: Final = 20_000
_UNIT: Final = 2.0**-53


def softmax_steps(rows: Integers, scale: float) -> Doubles:
    """The shares of exp(scale * q) in their row's sum, [R, N], before they are divided by the output's scale."""
    distance = rows.max(axis=-1, keepdims=True).astype(np.int64) - rows
    powers = np.exp(-scale * distance.astype(np.float64))
    shares: Doubles = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def softmax(rows: Integers, scale: float, out: Steps) -> Array:
    """round(share / out.scale) within [out.low, out.high], int64 [R, N]."""
    real = softmax_steps(rows, scale) / out.scale
    tolerance = real * ((rows.shape[-1] + 260 * scale + 16) * 2 * _UNIT)
    nearest, doubtful = _nearest(real, tolerance, out)
    for row in np.flatnonzero(doubtful.any(axis=-1)).tolist():
        distance = int(rows[row].max()) - rows[row].astype(np.int64)
        counts = Counter[int](distance.tolist())
        for column in np.flatnonzero(doubtful[row]).tolist():
            boundary = Fraction(int(np.floor(real[row, column]))) + Fraction(1, 2)
            side = _share_side(int(distance[column]), counts, Fraction(scale), boundary * Fraction(out.scale))
            nearest[row, column] = _beside(boundary, side, ties_up=out.ties_up)
    return np.clip(nearest, out.low, out.high)


def _share_side(distance: int, counts: Counter[int], scale: Fraction, boundary: Fraction) -> int:
    """The sign of exp(-s d) / sum(n exp(-s d)) - boundary."""
    if len(counts) == 1:
        share = Fraction(1, counts[distance])
        return (share > boundary) - (share < boundary)
    digits = _DIGITS
    while digits < _MOST_DIGITS:
        with localcontext(Context(prec=digits)):
            unit = Decimal(scale.numerator) / Decimal(scale.denominator)
            total = sum((Decimal(n) * (-unit * d).exp() for d, n in counts.items()), Decimal(0))
            limit = Decimal(boundary.numerator) / Decimal(boundary.denominator)
            difference = (-unit * distance).exp() / total - limit
            if abs(difference) > limit * Decimal(10) ** (8 - digits):
                return 1 if difference > 0 else -1
        digits *= 4
    raise ArithmeticError("a share of exponentials lies on a rounding boundary, which cannot be")


def layer_norm_steps(rows: Integers, scale: float, epsilon: float, *, centered: bool = True) -> Doubles:
    """(r - mean) / sqrt(variance + epsilon) of each row, [R, N]; rows that are not `centered` have a mean of zero."""
    distance, spread = _moments(rows, centered=centered)
    return distance / np.sqrt(spread + _added(rows.shape[-1], scale, epsilon))


def layer_norm(
    rows: Integers, scale: float, gamma: Array, beta: Array, epsilon: float, out: Steps, *, centered: bool = True
) -> Array:
    """round((gamma * normalized + beta) / out.scale) within [out.low, out.high], int64 [R, N].

    Args:
        rows: the integers, [R, N].
        scale: what one of them is worth.
        gamma: float32 [N].
        beta: float32 [N].
        epsilon: positive.
        out: where the results go.
        centered: whether the mean is subtracted; where not, the integers are counted from their zero point.
    """
    scaled = gamma.astype(np.float64) * layer_norm_steps(rows, scale, epsilon, centered=centered) / out.scale
    offset = beta.astype(np.float64) / out.scale
    tolerance = (np.abs(scaled) + np.abs(offset)) * (32 * _UNIT)
    nearest, doubtful = _nearest(scaled + offset, tolerance, out)
    for row, column in np.argwhere(doubtful).tolist():
        distance, spread = _moments(rows[row : row + 1], centered=centered)
        radicand = Fraction(int(spread[0, 0])) + rows.shape[-1] ** 2 * Fraction(epsilon) / Fraction(scale) ** 2
        boundary = Fraction(int(np.floor(scaled[row, column] + offset[column]))) + Fraction(1, 2)
        left = Fraction(float(gamma[column])) * int(distance[0, column])
        right = boundary * Fraction(out.scale) - Fraction(float(beta[column]))
        side = _root_side(left, right, radicand)
        nearest[row, column] = _beside(boundary, side, ties_up=out.ties_up)
    return np.clip(nearest, out.low, out.high)


def _moments(rows: Integers, *, centered: bool) -> tuple[Array, Array]:
    """N q - sum(q), [R, N], and N sum(q^2) - sum(q)^2, [R, 1]: exact in int64 for 8-bit rows of up to 10^7 elements.

    Without the sums where the rows are not centered.
    """
    values, count = rows.astype(np.int64), rows.shape[-1]
    total = values.sum(axis=-1, keepdims=True) if centered else np.zeros((len(rows), 1), np.int64)
    return count * values - total, count * (values * values).sum(axis=-1, keepdims=True) - total * total


def _added(count: int, scale: float, epsilon: float) -> float:
    return float(count) ** 2 * epsilon / scale**2


def _root_side(left: Fraction, right: Fraction, radicand: Fraction) -> int:
    """The sign of left / sqrt(radicand) - right."""
    left_sign, right_sign = (left > 0) - (left < 0), (right > 0) - (right < 0)
    if left_sign != right_sign:
        return 1 if left_sign > right_sign else -1
    larger, smaller = left * left, right * right * radicand
    return left_sign * ((larger > smaller) - (larger < smaller))


def _nearest(real: Doubles, tolerance: Doubles, out: Steps) -> tuple[Array, npt.NDArray[np.bool_]]:
    """The nearest integers as int64, and which of them the estimate does not decide."""
    bounded = np.clip(real, out.low - 1, out.high + 1)
    distance = np.abs(bounded - np.floor(bounded) - 0.5)
    return np.rint(bounded).astype(np.int64), (distance <= tolerance) & (bounded == real)


def _beside(boundary: Fraction, side: int, *, ties_up: bool) -> int:
    """The integer beside a boundary (k + 1/2) on a side of it, or for a tie the one that the rule takes."""
    below = boundary.numerator // boundary.denominator
    if side == 0:
        return below + 1 if ties_up or below % 2 else below
    return below + (side > 0)

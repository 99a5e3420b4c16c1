"""gemmlowp's 32-bit fixed point, on int64 arrays: multipliers, its two roundings, and the Softmax made of them.

Numbers are written Qm.n: an int32 `raw` stands for raw / 2**n with n = 31 - m bits behind the point. TensorFlow Lite's
and CMSIS-NN's 8-bit Softmax are made of these steps and of nothing else, so results are equal to the last bit.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from qatc.compiler.quant import Array, Integers

INT32_MIN: Final = -(2**31)
INT32_MAX: Final = 2**31 - 1

DIFFERENCE_BITS: Final = 5  # bits in front of the point of what is exponentiated: exp(-32) is nothing in 8 bits
SUM_BITS: Final = 12  # bits in front of the point of the sum of exponentials
_FRACTION: Final = 31 - DIFFERENCE_BITS
_QUARTER: Final = 1 << (_FRACTION - 2)
# exp(-2**(bit - _FRACTION)) as Q0.31 for each bit of a multiple of a quarter, and the other constants of the series.
_FACTORS: Final = tuple(
    zip(
        range(_FRACTION - 2, 31),
        (1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242),
        strict=True,
    )
)
_EXP_OF_EIGHTH: Final = 1895147668  # exp(-1/8), Q0.31
_THIRD: Final = 715827883  # 1/3, Q0.31
_48_OVER_17: Final = 1515870810  # Q2.29
_MINUS_32_OVER_17: Final = -1010580540  # Q2.29


def quantize_multiplier(factor: Array) -> tuple[Array, Array]:
    """Positive factors as int64 (mantissa, shift): factor = mantissa * 2**(shift - 31), 2**30 <= mantissa < 2**31.

    The mantissa is rounded half away from zero, as TensorFlow Lite and the TOSA lowering do.
    """
    fraction, shift = np.frexp(np.asarray(factor, np.float64))
    mantissa = np.floor(fraction * 2.0**31 + 0.5).astype(np.int64)
    carry = mantissa == 1 << 31
    return np.where(carry, mantissa >> 1, mantissa), shift.astype(np.int64) + carry


def doubling_high_multiply(a: Array, b: Array | int) -> Array:
    """SaturatingRoundingDoublingHighMul: (2 * a * b) / 2**32 rounded to nearest, ties toward positive infinity.

    gemmlowp nudges by 2**30 or 1 - 2**30 and truncates toward zero; both signs come to floor((a * b + 2**30) / 2**31).
    Its one overflow, a = b = -2**31, does not occur here.
    """
    product: Array = a * b + (1 << 30)
    shifted: Array = product >> 31
    return shifted


def rounding_shift(x: Array, exponent: Array | int) -> Array:
    """RoundingDivideByPOT: x / 2**exponent rounded to nearest, ties away from zero; 0 for exponents beyond 31."""
    bits: Array = np.asarray(np.minimum(exponent, 33), np.int64)
    mask = (np.int64(1) << bits) - 1
    threshold = (mask >> 1) + (x < 0)
    shifted: Array = (x >> bits) + ((x & mask) > threshold)
    return shifted


def saturating_shift(x: Array, exponent: int) -> Array:
    """The int32 nearest to x * 2**exponent."""
    shifted: Array = np.clip(x << exponent, INT32_MIN, INT32_MAX)
    return shifted


def exp_of_negative(raw: Array) -> Array:
    """exp(x) in Q0.31 of x <= 0 in Q5.26: a series around -1/8, then one factor a bit of the multiple of a quarter."""
    rest = (raw & (_QUARTER - 1)) - _QUARTER
    result = _exp_below_quarter(saturating_shift(rest, DIFFERENCE_BITS))
    multiple = rest - raw
    for bit, factor in _FACTORS:
        result = np.where(multiple & (1 << bit), doubling_high_multiply(result, factor), result)
    return np.where(raw == 0, INT32_MAX, result)


def _exp_below_quarter(raw: Array) -> Array:
    """exp(x) in Q0.31 for -1/4 <= x < 0: five terms of the Taylor series around -1/8."""
    x = raw + (1 << 28)
    x2 = doubling_high_multiply(x, x)
    x3, x4 = doubling_high_multiply(x2, x), doubling_high_multiply(x2, x2)
    tail = doubling_high_multiply(rounding_shift(x4, 2) + x3, _THIRD) + x2
    return _EXP_OF_EIGHTH + doubling_high_multiply(x + rounding_shift(tail, 1), _EXP_OF_EIGHTH)


def reciprocal_of_sum(total: Array) -> tuple[Array, Array]:
    """1 / x of x >= 1 in Q12.19 as (mantissa in Q0.31, bits): 1 / x = mantissa / 2**(31 + bits)."""
    headroom = 32 - np.frexp(total.astype(np.float64))[1].astype(np.int64)  # leading zeros of a uint32
    fraction = (total << headroom) - (1 << 31)  # the sum is (1 + fraction) * 2**bits
    return _one_over_one_plus(fraction), SUM_BITS - headroom


def _one_over_one_plus(raw: Array) -> Array:
    """1 / (1 + x) in Q0.31 for 0 <= x < 1 in Q0.31: three steps of Newton and Raphson from 48/17 - 32/17 d."""
    half = (raw + INT32_MAX + 1) >> 1  # (1 + x) / 2, rounded half up: it is positive
    x = _48_OVER_17 + doubling_high_multiply(half, _MINUS_32_OVER_17)
    for _ in range(3):
        error = (1 << 29) - doubling_high_multiply(half, x)
        x = x + saturating_shift(doubling_high_multiply(x, error), 2)
    return saturating_shift(x, 1)


def softmax(rows: Integers, scale: float) -> Array:
    """Shares of exp(scale * q) in their row's sum in steps of 1/256, int64 [R, N]. `rows`: 8 bits, fewer than 4096."""
    factor = min(scale * 2.0**_FRACTION, 2.0**31 - 1)
    mantissa, shift = (int(v) for v in quantize_multiplier(np.asarray(factor)))
    farthest = ((1 << DIFFERENCE_BITS) - 1 << _FRACTION) >> max(shift, 0)  # below, the exponential counts as zero
    distances = np.arange(256, dtype=np.int64)
    counted = distances <= farthest
    raw = doubling_high_multiply(np.where(counted, -distances, 0) << max(shift, 0), mantissa)
    powers = exp_of_negative(rounding_shift(raw, max(-shift, 0)))
    terms = np.where(counted, rounding_shift(powers, SUM_BITS), 0)
    index = rows.max(axis=-1, keepdims=True).astype(np.int64) - rows
    reciprocal, bits = reciprocal_of_sum(terms[index].sum(axis=-1, keepdims=True))
    shares = rounding_shift(doubling_high_multiply(powers[index], reciprocal), bits + 31 - 8)
    return np.where(counted[index], shares, 0)

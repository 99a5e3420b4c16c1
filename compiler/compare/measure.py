"""How far two tensors are apart: equal share, LSB, SQNR, cosine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from qatc.compiler.quant import Array, QuantParams
from qatc.compiler.verify.tally import decibels

FLOAT_TOLERANCE: Final = 1e-5  # of the largest magnitude, for tensors that are not quantized
_HALF_TOLERANCE: Final = 2e-3  # the same for dumps in float16


@dataclass(frozen=True)
class Measure:
    """The distance of one pair of tensors; the LSB are None for floats that are on no grid."""

    equal_share: float
    max_lsb: int | None
    mean_lsb: float | None
    sqnr_db: float
    cosine: float
    within: bool


def measure(
    found: Array, expected: Array, params: QuantParams | None, tolerance: int, real: QuantParams | None = None
) -> Measure:
    """Compare tensors of one shape.

    Args:
        found: the dump's: int64 for quantized tensors, else of any plain type.
        expected: the package's.
        params: the grid of both, None for tensors that are not quantized.
        tolerance: how many LSB an element may be off.
        real: the grid whose real values floats are, None where they are on none.
    """
    if params is None:
        return _floats(found, expected, None if real is None else real.scale_array(expected.ndim), tolerance)
    difference = found.astype(np.int64) - expected.astype(np.int64)
    magnitude = np.abs(difference)
    largest = int(magnitude.max(initial=0))
    scale = params.scale_array(expected.ndim).astype(np.float64)
    want = (expected.astype(np.float64) - params.zero_array(expected.ndim)) * scale
    error = difference.astype(np.float64) * scale
    return Measure(
        _share(difference == 0),
        largest,
        float(magnitude.mean()) if magnitude.size else 0.0,
        _sqnr(want, error),
        _cosine(want + error, want),
        largest <= tolerance,
    )


def _floats(found: Array, expected: Array, step: Array | None, tolerance: int) -> Measure:
    same = (found == expected) | ((found != found) & (expected != expected))
    if expected.dtype.kind != "f":
        return Measure(_share(same), None, None, math.inf if same.all() else -math.inf, 1.0, bool(same.all()))
    have, want = found.astype(np.float64), expected.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.where(same, 0.0, have - want)
        relative = _HALF_TOLERANCE if found.dtype == np.float16 else FLOAT_TOLERANCE
        largest = float(np.abs(want[np.isfinite(want)]).max(initial=0.0))
        slack = 0.0 if step is None else tolerance * step.astype(np.float64)
        within = bool(np.all(np.abs(error) <= relative * largest + slack))
        steps: Array = np.full(1, np.nan) if step is None else np.abs(error) / step
        counted = bool(steps.size and np.isfinite(steps).all())
        return Measure(
            _share(same),
            round(float(steps.max())) if counted else None,
            float(steps.mean()) if counted else None,
            _sqnr(want, error),
            _cosine(have, want),
            within,
        )


def _share(same: Array) -> float:
    return float(same.mean()) if same.size else 1.0


def _sqnr(signal: Array, noise: Array) -> float:
    value = decibels(float(np.vdot(signal, signal)), float(np.vdot(noise, noise)))
    return -math.inf if math.isnan(value) else value


def _cosine(a: Array, b: Array) -> float:
    left, right = float(np.vdot(a, a)), float(np.vdot(b, b))
    if left == 0 or right == 0:
        return 1.0 if left == right else 0.0
    value = float(np.vdot(a, b)) / math.sqrt(left) / math.sqrt(right)
    return value if math.isfinite(value) else 0.0

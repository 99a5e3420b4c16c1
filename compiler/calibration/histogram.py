"""A streaming histogram, and the ranges that the standard calibration methods find in one.

One pass over the data, bounded memory: when a value falls outside, neighboring bins are merged and the span doubles.
ONNX Runtime's calibrators have the same methods, but they write an augmented copy of the model file, choose tensors by
operator type, keep every batch's intermediate results in memory, and know symmetric entropy ranges only; so the
mathematics is here, in vectors, and the tests compare it with theirs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np

from qatc.compiler.quant import Array, Doubles, QuantParams, dtype_range

Range = tuple[float, float]
_BINS: Final = 1 << 13  # over [-limit, limit]; a power of two, so that pairs can be merged
_LEAST: Final = 2.0**-100  # limit: that of smaller ones is no factor of float32
_COARSE: Final = tuple(np.geomspace(1.0, 0.01, 100).tolist())  # shares of the full range that the search tries
_FINE: Final = tuple(np.linspace(0.96, 1.04, 33).tolist())  # and then of the best one
_PERCENTILE: Final = 99.99
# Of the entropy method: TensorRT's numbers. With 256 levels a level has so few bins that their sampling noise decides.
_ENTROPY_BINS: Final = 2048
_LEVELS: Final = 128


class Histogram:
    """Counts of the values seen, their extremes, and how many there were."""

    def __init__(self) -> None:
        self.counts = np.zeros(_BINS, np.int64)
        self.limit = 0.0
        self.low = math.inf
        self.high = -math.inf

    def add(self, values: Array) -> None:
        """Count finite numbers of any shape."""
        if not values.size:
            return
        flat = values.reshape(-1).astype(np.float32, copy=False)
        low, high = float(flat.min()), float(flat.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._reach(max(-low, high))
        if not self.limit:
            self.counts[_BINS // 2] += flat.size
            return
        places = (flat * np.float32(_BINS / (2 * self.limit))).astype(np.int32)  # towards zero
        places -= flat < 0  # so that every bin is half open, below zero at its lower end
        places += _BINS // 2
        np.clip(places, 0, _BINS - 1, out=places)
        self.counts += np.bincount(places, minlength=_BINS)

    def _reach(self, size: float) -> None:
        if not self.limit:
            if size:
                zeros = int(self.counts[_BINS // 2])
                self.counts[:] = 0
                self.counts[_BINS // 2] = zeros
                self.limit = max(size, _LEAST)
            return
        while size > self.limit:
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.zeros(_BINS, np.int64)
            self.counts[_BINS // 4 : 3 * _BINS // 4] = merged
            self.limit *= 2

    @property
    def centers(self) -> Doubles:
        """The middle of each bin, but never beyond the extremes."""
        step = 2 * self.limit / _BINS
        middles = (np.arange(_BINS, dtype=np.float64) - _BINS // 2 + 0.5) * step
        return np.minimum(np.maximum(middles, self.low), self.high)


def grid_of(span: Range, dtype: str = "uint8", *, symmetric: bool = False) -> QuantParams:
    """The grid of `dtype` that covers `span` and zero; symmetric ones have their zero point in the middle."""
    qmin, qmax = dtype_range(dtype)
    low, high = min(span[0], 0.0), max(span[1], 0.0)
    tiny = float(np.finfo(np.float32).tiny)
    if symmetric:
        middle = 0 if qmin < 0 else (qmax + 1) // 2
        largest = max(-low, high)
        return QuantParams.per_tensor(max(largest / (qmax - middle), tiny) if largest else 1.0, middle, dtype)
    if low == high:
        return QuantParams.per_tensor(1.0, qmin, dtype)
    scale = float(np.float32(max((high - low) / (qmax - qmin), tiny)))
    zero = min(max(round(qmin - low / scale), qmin), qmax)
    return QuantParams.per_tensor(scale, zero, dtype)


# -- the methods --------------------------------------------------------------------------------------------------


def minmax(seen: Histogram, grid: Callable[[Range], QuantParams]) -> Range:
    """The extremes: nothing is cut off."""
    del grid
    return seen.low, seen.high


def percentile(seen: Histogram, grid: Callable[[Range], QuantParams]) -> Range:
    """What holds 99.99 % of the values; of one-sided data the far end alone is cut."""
    del grid
    total = np.cumsum(seen.counts) / max(1, int(seen.counts.sum()))
    outside = 1 - _PERCENTILE / 100
    centers = seen.centers
    below, above = (outside / 2, outside / 2) if seen.low < 0 < seen.high else (outside, outside)
    low = float(centers[int(np.searchsorted(total, below, "right"))]) if seen.low < 0 else seen.low
    high = float(centers[int(np.searchsorted(total, 1 - above, "left"))]) if seen.high > 0 else seen.high
    return low, high


def mse(seen: Histogram, grid: Callable[[Range], QuantParams]) -> Range:
    """What makes the mean square error of quantizing the values smallest; both ends are searched."""
    used = np.flatnonzero(seen.counts)
    values, weights = seen.centers[used], seen.counts[used].astype(np.float64)

    def cost(span: Range) -> float:
        params = grid(span)
        error = params.fake_quantize(values).astype(np.float64) - values
        return float(np.dot(weights, error * error))

    return _search(seen, cost)


def entropy(seen: Histogram, grid: Callable[[Range], QuantParams]) -> Range:
    """What loses the least information: the smallest Kullback-Leibler divergence of the quantized distribution.

    As TensorRT defines it and ONNX Runtime computes it, whatever the grid: 2048 bins around zero merged to 128 levels.
    """
    del grid
    counts = seen.counts.reshape(_ENTROPY_BINS, -1).sum(axis=1).astype(np.float64)
    step, middle = 2 * seen.limit / _ENTROPY_BINS, _ENTROPY_BINS // 2
    reach = min(
        range(_LEVELS // 2, middle + 1),
        key=lambda half: _divergence(counts, middle - half, min(middle + half + 1, _ENTROPY_BINS)),
    )
    return max(seen.low, -reach * step), min(seen.high, (reach + 1) * step)


def _divergence(counts: Doubles, start: int, end: int) -> float:
    """Of the values in bins [start, end) merged to 128 levels, from all values with those outside moved to the ends."""
    inside = counts[start:end]
    real = inside.copy()
    real[0] += counts[:start].sum()
    real[-1] += counts[end:].sum()
    level = np.minimum(np.arange(inside.size) // (inside.size // _LEVELS), _LEVELS - 1)
    taken = real > 0
    shares = np.bincount(level, inside, _LEVELS) / np.maximum(np.bincount(level, taken, _LEVELS), 1)
    p, q = _smooth(real), _smooth(np.where(taken, shares[level], 0.0))
    return math.inf if p is None or q is None else float(np.sum(p * np.log(p / q)))


def _smooth(counts: Doubles) -> Doubles | None:
    """The distribution of `counts` without zeros: a trace is taken off the others; None where that is impossible."""
    taken = counts > 0
    used = int(np.count_nonzero(taken))
    trace = 1e-4
    if not used or trace * (counts.size - used) / used >= float(counts[taken].min()):
        return None
    smooth: Doubles = np.where(taken, counts - trace * (counts.size - used) / used, trace)
    smooth /= smooth.sum()
    return smooth


def _search(seen: Histogram, cost: Callable[[Range], float]) -> Range:
    """The best of shrinking both ends together, then each end alone, first coarsely and then around the best."""
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    span = (low, high)
    if low == high:
        return span
    for shares in (_COARSE, _FINE):
        base = span
        span = min((span, *((base[0] * s, base[1] * s) for s in shares)), key=cost)
        if low < 0 < high:
            left = span
            span = min((span, *((left[0] * s, left[1]) for s in shares)), key=cost)
            right = span
            span = min((span, *((right[0], right[1] * s) for s in shares)), key=cost)
    return max(span[0], low), min(span[1], high)


METHODS: Final[dict[str, Callable[[Histogram, Callable[[Range], QuantParams]], Range]]] = {
    "minmax": minmax,
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
}

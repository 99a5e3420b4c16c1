"""Steps of a staircase: whether they are evenly spaced, which makes it a quantizer, and the line that they lie on.

    y = #{i : x >= t[i]}          t[i] = start + i * step          y = clip(round((x - start) / step + 1/2), 0, n)

Real inputs reach a threshold exactly almost never, so that a little of a step is as good as even. Inputs that are whole
multiples of a unit (sums of integers) see thresholds only through the multiples that reach them: any line between the
last multiple below each threshold and the first one at it gives the same counts, and no input lies on a tie.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from qatc.compiler.quant import Doubles

_UNEVEN: Final = 1e-3  # of a step: how far real thresholds may be from an even spacing
_MARGIN: Final = 2.0**-14  # of a unit: how far offsets of a few digits keep from the multiples
_OWN: Final = 2.0**-21  # of a threshold: what float32 and arithmetic in it left of its place
_FLAT: Final = 2.0**-10  # of the steepest line: the least steep one that is tried
_ROUNDS: Final = 120  # of the search, each leaves two thirds of the interval
_GRIDS: Final = (1.0, 2.0, 4.0, 8.0, 16.0)


@dataclass(frozen=True)
class Steps:
    """Evenly spaced thresholds, a line for each row: `start` + i * `step`.

    A row that no input passes has an infinite step, and `start` is the number of its thresholds that all inputs reach.
    """

    start: Doubles
    step: Doubles


def even_steps(thresholds: Doubles, unit: float | None) -> Steps | None:
    """The lines that rows of ascending thresholds lie on, None where a row lies on none.

    Args:
        thresholds: float64 [rows, n], n at least 1.
        unit: what inputs are whole multiples of, None where they may be any number.
    """
    never = np.isinf(thresholds)
    constant = never.all(axis=1)
    if (never.any(axis=1) & ~constant).any():
        return None
    start = np.count_nonzero(thresholds == -np.inf, axis=1).astype(np.float64)
    step = np.full(len(thresholds), np.inf)
    live = thresholds[~constant]
    if len(live):
        found = None if unit is None else _fit_multiples(live / unit)
        if found is not None and unit is not None:
            found = found[0] * unit, found[1] * unit
        found = found or _fit_real(live)
        if found is None:
            return None
        start[~constant], step[~constant] = found
    return Steps(start, step)


def _fit_real(thresholds: Doubles) -> tuple[Doubles, Doubles] | None:
    count = thresholds.shape[1]
    if count == 1:  # any step does: a short one, which float32 tells from its neighbors
        reach = np.abs(thresholds[:, 0])
        return thresholds[:, 0], np.where(reach > 0, reach, 1.0) * 2.0**-8
    mean = (thresholds[:, -1:] - thresholds[:, :1]) / (count - 1)
    if (mean <= 0).any():
        return None
    start, step, room = _widest(thresholds - _UNEVEN * mean, thresholds + _UNEVEN * mean)
    return (start, step) if (room >= 0).all() and (step > 0).all() else None


def _fit_multiples(thresholds: Doubles) -> tuple[Doubles, Doubles] | None:
    """The same in units: between multiples, at offsets of a few digits where there is room: biases hold those."""
    nearest = np.rint(thresholds)
    exact = np.abs(thresholds - nearest) <= 2.0**-16 + 2.0**-20 * np.abs(nearest)
    first = np.where(exact, nearest, np.ceil(thresholds))
    if first.shape[1] == 1:
        return first[:, 0] - 0.5, np.ones(len(first))
    start, step, room = _widest(first - 1, first)
    blurred = _OWN * np.abs(first).max(axis=1)  # a threshold that float32 moved across a multiple
    spare = room / 2 - _MARGIN - blurred
    if (room / 2 < -blurred).any() or (step <= 0).any():
        return None
    offset = step / 2 - start
    done = np.zeros(len(offset), np.bool_)
    snapped = offset.copy()
    for grid in _GRIDS:
        near = np.rint(offset * grid) / grid
        fits = ~done & (np.abs(near - offset) <= spare)
        snapped[fits], done = near[fits], done | fits
    return step / 2 - snapped, step


def _widest(low: Doubles, high: Doubles) -> tuple[Doubles, Doubles, Doubles]:
    """Start and step of a rising line in the middle of the windows [low, high], and its room; negative for none.

    The room is concave in the step: a ternary search finds its largest value.
    """
    index = np.arange(low.shape[1], dtype=np.float64)
    last = index[-1]
    right: Doubles = (high[:, -1] - low[:, 0]) / last
    left: Doubles = np.maximum((low[:, -1] - high[:, 0]) / last, _FLAT * right)

    def ends(step: Doubles) -> tuple[Doubles, Doubles]:
        sloped = index * step[:, None]
        return (low - sloped).max(axis=1), (high - sloped).min(axis=1)

    for _ in range(_ROUNDS):
        one, two = left + (right - left) / 3, right - (right - left) / 3
        (below, above), (lower, upper) = ends(one), ends(two)
        worse = above - below < upper - lower
        left, right = np.where(worse, one, left), np.where(worse, right, two)
    step = (left + right) / 2
    below, above = ends(step)
    return (below + above) / 2, step, above - below

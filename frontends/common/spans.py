"""The integers of a quantizer that is written as arithmetic: how its clamps count them, and their parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from qatc.compiler.graph import Node, QuantGraph
from qatc.compiler.quant import Doubles, QuantParams, dtype_range
from qatc.compiler.rewrite import NoMatch
from qatc.frontends.common.chains import WHOLE, Clamp, State, is_whole
from qatc.frontends.common.params import make_params, on_whole_zero
from qatc.frontends.common.vendor import container

Rounding = Callable[[Doubles], Doubles]

WAYS: Final = {"Round": np.rint, "Floor": np.floor, "Ceil": np.ceil}
BYTE: Final = 255  # steps between the ends of an 8-bit range


@dataclass(frozen=True)
class Range:
    """q = rounded value + shift, clamped to [low, high]; `zero` is the q that stands for 0."""

    shift: Doubles
    zero: Doubles
    low: int
    high: int


def integers_of(clamps: tuple[Clamp, ...], end: State, way: Rounding = np.rint) -> Range:
    """The integers of a quantizer that rounds in some way: counted as its clamp counts them, if by whole numbers."""
    for clamp in end.clamps:  # of what is rounded already
        ends = [(e - clamp.offset) / clamp.scale for e in (clamp.low, clamp.high) if np.isfinite(e)]
        if not all(is_whole(e) for e in ends):
            raise NoMatch("what it rounded is clamped between two of its steps")
    shift = np.zeros(())
    for clamp in clamps:
        if np.all(clamp.scale == 1) and is_whole(clamp.offset):
            shift = np.rint(clamp.offset)
            break
    low, high = -np.inf, np.inf
    for clamp in clamps:
        ends = [_rounded((e - clamp.offset) / clamp.scale, way) + shift for e in (clamp.low, clamp.high)]
        if any(e.size > 1 and not np.all(e == e.reshape(-1)[0]) for e in ends):
            raise NoMatch("its range differs from channel to channel")
        bottom, top = (float(e.reshape(-1)[0]) for e in ends)
        low, high = max(low, bottom), min(high, top)
    if not (np.isfinite(low) and np.isfinite(high) and low <= high):
        raise NoMatch("the rounded value is not clamped on both sides, so it has no range of integers")
    return Range(shift, shift - end.offset / end.scale, int(low), int(high))


def with_whole_zero(grid: Range, scale: Doubles) -> tuple[Range, float]:
    """The grid with a whole zero point of its type, and how far that moves it: LSQ+ learns fractions of a step."""
    if grid.zero.size != 1 or scale.size != 1:
        return grid, 0.0
    zero = float(grid.zero.reshape(-1)[0])
    dtype = _dtype(grid.low, grid.high)
    bottom, top = (grid.low, grid.high) if dtype is None else dtype_range(dtype)
    whole, offset = on_whole_zero(float(scale.reshape(-1)[0]), zero, (bottom, top))
    if abs(whole - zero) <= WHOLE:
        return grid, 0.0
    return replace(grid, zero=np.asarray(whole, np.float64)), offset


def params_of(
    graph: QuantGraph,
    node: Node,
    grid: Range,
    scale: Doubles,
    shape: tuple[int | str | None, ...] | None,
    tensor: str,
) -> QuantParams | None:
    """The parameters of a range with these scales, None with a finding; `shape` is that of `tensor`.

    Raises `NoMatch` where no 16 bits hold it, or 0 is between two integers.
    """
    low, high, zero = grid.low, grid.high, grid.zero
    if not is_whole(zero):
        raise NoMatch("its zero point is not a whole number")
    zero = np.rint(zero)
    dtype = _dtype(low, high)
    if dtype is None:  # counted from zero it fits a byte
        zero, low, high = zero - low, 0, high - low
        dtype = _dtype(low, high)
    if dtype is None:
        raise NoMatch(f"its range {low}..{high} has more than 16 bits")
    axis = -1 if scale.ndim == 1 else None
    return make_params(graph, node, scale, zero, dtype, axis=axis, shape=shape, qmin=low, qmax=high, tensor=tensor)


def _dtype(low: int, high: int) -> str | None:
    """The narrowest type for a range; None where a shift would save a byte."""
    name = container(low, high)
    is_wide = name not in ("uint8", "int8")
    return None if name == "int32" or (is_wide and high - low <= BYTE) else name


def _rounded(values: Doubles, way: Rounding) -> Doubles:
    """Numbers rounded in some way; those that are meant to be whole are."""
    nearest = np.rint(values)
    return np.where(np.abs(values - nearest) <= WHOLE, nearest, way(values))


def half_up(values: Doubles) -> Doubles:
    """Numbers rounded to the nearest as Floor(v + 0.5) does, of which a clamp may end on a tie."""
    return np.floor(values + 0.5)

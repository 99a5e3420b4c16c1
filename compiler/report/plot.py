"""Inline SVG of per-tensor errors over depth; plain numbers in, `Markup` out, no names but escaped ones.

Deterministic: coordinates are rounded, and a network deeper than the plot is wide is binned, worst tensor first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, TypeAlias

from markupsafe import Markup

from qatc.compiler.report import text
from qatc.compiler.result import TensorCheck

_WIDTH: Final = 920
_LEFT: Final = 52  # room for the axis labels
_TOP: Final = 8
_HEIGHT: Final = 150
_BOTTOM: Final = 22
_COLUMNS: Final = 430  # tensors, or bins of them, that still can be told apart
_HISTOGRAM_BARS: Final = 6

_Point: TypeAlias = "tuple[str, float | None]"  # tooltip and value; None where nothing differs at all


def lsb_plot(checks: Sequence[TensorCheck]) -> Markup:
    """A bar per tensor in the order of execution: its largest difference in LSB."""
    points: list[_Point] = [
        (f"{c.tensor}: at most {c.max_lsb:,} LSB, {text.mean_lsb(c):.3g} on average", float(c.max_lsb)) for c in checks
    ]
    shown = _binned(points, sign=-1)
    ticks = _ticks(0.0, max(1.0, *(value or 0.0 for _, value in shown)), whole=True)
    step = (_WIDTH - _LEFT) / max(1, len(shown))
    wide = max(1.0, min(step - 2, 18.0))
    marks: list[Markup] = []
    for index, (label, value) in enumerate(shown):
        y = _y(value or 0.0, ticks)
        x = _LEFT + (index + 0.5) * step - wide / 2
        high = max(_TOP + _HEIGHT - y, 1.5)  # a tensor that is equal still shows where it is
        place = f'x="{x:.1f}" y="{_TOP + _HEIGHT - high:.1f}" width="{wide:.1f}" height="{high:.1f}"'
        marks.append(Markup(f'<rect class="bar" {place} rx="1">') + _title(label) + Markup("</rect>"))
    return _frame("Largest difference of each tensor in LSB", ticks, "LSB", marks, len(checks))


def sqnr_plot(checks: Sequence[TensorCheck]) -> Markup:
    """A point per tensor in the order of execution: its signal to noise ratio in dB; equal ones on the upper edge."""
    points: list[_Point] = [
        (f"{c.tensor}: {text.decibels(c.sqnr_db)}", c.sqnr_db if math.isfinite(c.sqnr_db) else None) for c in checks
    ]
    shown = _binned(points, sign=1)
    values = [value for _, value in shown if value is not None]
    ticks = _ticks(min(0.0, *values, 0.0), max([*values, 60.0]))
    step = (_WIDTH - _LEFT) / max(1, len(shown))
    places = [
        (_LEFT + (index + 0.5) * step, _TOP if value is None else _y(value, ticks), label, value)
        for index, (label, value) in enumerate(shown)
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in places)
    marks = [Markup('<polyline class="line" points="{}"/>').format(line)] if len(places) > 1 else []
    radius = max(1.2, min(3.5, step / 2.5))
    for x, y, label, value in places:
        kind = "dot equal" if value is None else "dot"
        circle = f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}">'
        marks.append(Markup(circle) + _title(label) + Markup("</circle>"))
    return _frame("Signal to noise ratio of each tensor in dB", ticks, "dB", marks, len(checks))


def histogram(check: TensorCheck) -> Markup:
    """Counts of elements by their difference in LSB, on a logarithmic scale, each bar with its number."""
    last = _HISTOGRAM_BARS - 1
    counts = [check.histogram.get(lsb, 0) for lsb in range(last)]
    counts.append(sum(number for lsb, number in check.histogram.items() if lsb >= last))
    scale = 100 / math.log10(1 + max(1, *counts))
    bars: list[Markup] = []
    for index, number in enumerate(counts):
        y, name = 4 + index * 17, f"{index}" if index < last else f"{last}+"
        length = scale * math.log10(1 + number)
        bars.append(
            Markup(
                f'<text class="axis" x="20" y="{y + 10}" text-anchor="end">{name}</text>'
                f'<rect class="bar" x="26" y="{y}" width="{max(length, 0.5):.1f}" height="13" rx="1"/>'
                f'<text x="{32 + length:.1f}" y="{y + 10}">{number:,}</text>'
            )
        )
    name = Markup('<svg class="histogram" viewBox="0 0 220 110" role="img" aria-label="{}">').format(
        f"Elements by difference in LSB: {check.tensor}"
    )
    return name + Markup("").join(bars) + Markup("</svg>")


def _binned(points: Sequence[_Point], sign: int) -> list[_Point]:
    """At most `_COLUMNS` points; of neighbors that share a column the lowest (`sign` 1) or highest (-1) stays."""
    size = math.ceil(len(points) / _COLUMNS) or 1
    found: list[_Point] = []
    for start in range(0, len(points), size):
        some = points[start : start + size]
        found.append(min(some, key=lambda point: math.inf if point[1] is None else sign * point[1]))
    return found


def _ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Three to six round numbers that enclose [low, high]."""
    raw = max(high - low, 1e-9) / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    step = max(step, 1.0) if whole else step
    first, last = math.floor(low / step), math.ceil(high / step - 1e-9)
    return [step * index for index in range(first, max(last, first + 1) + 1)]


def _y(value: float, ticks: Sequence[float]) -> float:
    return _TOP + _HEIGHT * (1 - (value - ticks[0]) / (ticks[-1] - ticks[0]))


def _title(label: str) -> Markup:
    return Markup("<title>{}</title>").format(text.prose(label))


def _frame(name: str, ticks: Sequence[float], unit: str, marks: Sequence[Markup], depth: int) -> Markup:
    lines: list[Markup] = []
    for tick in ticks:
        y = _y(tick, ticks)
        lines.append(
            Markup(
                f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
                f'<text class="axis" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:,.6g}</text>'
            )
        )
    below = _TOP + _HEIGHT + 16
    lines.append(Markup(f'<text class="axis" x="{_LEFT}" y="{below}">first tensor</text>'))
    end = f'<text class="axis" x="{_WIDTH}" y="{below}" text-anchor="end">tensor {depth:,}</text>'
    lines.append(Markup(end))
    size = f'viewBox="0 0 {_WIDTH} {_TOP + _HEIGHT + _BOTTOM}"'
    head = Markup(f'<svg class="plot" {size} role="img" aria-label="{name} ({unit})">')
    return head + Markup("").join([*lines, *marks]) + Markup("</svg>")

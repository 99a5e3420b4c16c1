"""Inline SVG of per-tensor errors over depth; plain numbers in, `Markup` out, no names but escaped ones.

Deterministic: coordinates are rounded, and a network deeper than the plot is wide is binned, worst tensor first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

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


def lsb_plot(checks: Sequence[TensorCheck]) -> Markup:
    """A bar per tensor in the order of execution: its largest difference in LSB."""
    shown = _binned(checks, lambda check: -check.max_lsb)
    ticks = _ticks(0.0, float(max([1, *(check.max_lsb for check in shown)])), whole=True)
    step = (_WIDTH - _LEFT) / max(1, len(shown))
    wide = max(1.0, min(step - 2, 18.0))
    marks: list[Markup] = []
    for index, check in enumerate(shown):
        high = max(_TOP + _HEIGHT - _y(check.max_lsb, ticks), 1.5)  # what is equal still shows where it is
        x = _LEFT + (index + 0.5) * step - wide / 2
        place = f'x="{x:.1f}" y="{_TOP + _HEIGHT - high:.1f}" width="{wide:.1f}" height="{high:.1f}"'
        label = f"{check.tensor}: at most {check.max_lsb:,} LSB, {text.mean_lsb(check):.3g} on average"
        marks.append(Markup(f'<rect class="bar" {place} rx="1">') + _title(label) + Markup("</rect>"))
    return _frame("Largest difference of each tensor in LSB", ticks, "LSB", marks, len(checks))


def sqnr_plot(checks: Sequence[TensorCheck]) -> Markup:
    """A point per tensor in the order of execution: its signal to noise ratio in dB; equal ones on the upper edge,
    those without any signal on the lower one.
    """
    shown = _binned(checks, lambda check: check.sqnr_db)
    values = [check.sqnr_db for check in shown if math.isfinite(check.sqnr_db)]
    ticks = _ticks(min([*values, 0.0]), max([*values, 60.0]))
    step = (_WIDTH - _LEFT) / max(1, len(shown))
    radius = max(1.2, min(3.5, step / 2.5))
    points: list[str] = []
    marks: list[Markup] = []
    for index, check in enumerate(shown):
        equal = check.sqnr_db == math.inf
        level = check.sqnr_db if math.isfinite(check.sqnr_db) else ticks[-1] if equal else ticks[0]
        x, y = _LEFT + (index + 0.5) * step, _y(level, ticks)
        points.append(f"{x:.1f},{y:.1f}")
        circle = f'<circle class="{"dot equal" if equal else "dot"}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}">'
        label = f"{check.tensor}: {text.decibels(check.sqnr_db)}"
        marks.append(Markup(circle) + _title(label) + Markup("</circle>"))
    if len(points) > 1:
        marks.insert(0, Markup('<polyline class="line" points="{}"/>').format(" ".join(points)))
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
        text.prose(f"Elements by difference in LSB: {check.tensor}")
    )
    return name + Markup("").join(bars) + Markup("</svg>")


def _binned(checks: Sequence[TensorCheck], rank: Callable[[TensorCheck], float]) -> list[TensorCheck]:
    """At most `_COLUMNS` checks; of neighbors that share a column the one of the lowest rank stays."""
    size = max(1, math.ceil(len(checks) / _COLUMNS))
    return [min(checks[start : start + size], key=rank) for start in range(0, len(checks), size)]


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

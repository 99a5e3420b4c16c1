"""The integer graph as SVG: what runs in integers, what in float, what only moves; all names are escaped.

A network of more than `LIMIT` boxes is drawn coarser: neighbors in execution order share one, and the drawing says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup

from qatc.compiler.report import text
from qatc.compiler.report.layout import Layout, layout
from qatc.compiler.result import GraphView, ViewNode

LIMIT: Final = 400  # boxes
_WIDTH: Final = 176  # of a box
_HEIGHT: Final = 38
_PITCH_X: Final = 192
_PITCH_Y: Final = 66
_TOP: Final = 58  # the legend's height
_MARGIN: Final = 16
_TITLE: Final = 24  # characters of a box's lines
_NAME: Final = 27
_TOLD: Final = 4  # operator types that a shared box names

#: The kinds of boxes with what the legend says of them, the gravest last: a shared box shows the gravest of its own.
KINDS: Final = {
    "input": "input",
    "output": "output",
    "moved": "moves or converts data",
    "integer": "integers",
    "fallback": "float: no integer form",
    "island": "float: something is not quantized",
}

#: Colors of the drawing, for the file itself and for the page that it is set into.
STYLE: Final = """\
.graph { --line: #c4c8d0; --text: #16181d; --soft: #5c6270; --input: #dfe6f5; --moved: #eceef1; --integer: #cfeada;
  --fallback: #f6c9c6; --island: #fbe3ab; font: 12px system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
@media (prefers-color-scheme: dark) { .graph { --line: #4a505c; --text: #e8eaee; --soft: #a5acb9; --input: #2c3b5c;
  --moved: #2b2f37; --integer: #1f4a34; --fallback: #6b2a28; --island: #5d4813; } }
.graph rect { stroke: var(--line); } .graph path { fill: none; stroke: var(--line); stroke-width: 1.4; }
.graph text { fill: var(--text); } .graph .name { fill: var(--soft); font-size: 11px; } .graph .op { font-weight: 600; }
.graph .input, .graph .output { fill: var(--input); } .graph .moved { fill: var(--moved); }
.graph .integer { fill: var(--integer); } .graph .fallback { fill: var(--fallback); }
.graph .island { fill: var(--island); }
"""


@dataclass(frozen=True)
class _Box:
    kind: str
    title: str
    name: str
    tip: str


def graph_file(view: GraphView, name: str) -> bytes:
    """The drawing as an SVG file of its own (UTF-8)."""
    found = graph_drawing(view, name, style=STYLE)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{found}\n'.encode()


def graph_drawing(view: GraphView, name: str, *, style: str = "") -> Markup:
    """The drawing as an `<svg>` element; `style` goes into it where the page around does not bring `STYLE`."""
    boxes, edges = _boxes(view)
    placed = layout(len(boxes), edges)
    width = max(_MARGIN * 2 + round(placed.width * _PITCH_X), 860)
    height = _TOP + _MARGIN * 2 + placed.layers * _PITCH_Y
    shift = (width - placed.width * _PITCH_X) / 2
    head = Markup(
        '<svg class="graph" xmlns="http://www.w3.org/2000/svg" width="{0}" height="{1}" viewBox="0 0 {0} {1}" '
        'role="img" aria-label="{2}">'
    ).format(width, height, text.prose(f"The integer graph of {name}"))
    parts = [head, *([Markup("<style>{}</style>").format(Markup(style))] if style else [])]
    parts += _legend(view, len(boxes))
    parts += [_edge(route, shift) for route in placed.routes]
    parts += [_box(box, x, y) for box, (x, y) in zip(boxes, _corners(placed, shift), strict=True)]
    return Markup("").join([*parts, Markup("</svg>")])


# -- what is drawn -------------------------------------------------------------------------------------------------
def _boxes(view: GraphView) -> tuple[list[_Box], list[tuple[int, int]]]:
    """The boxes and the edges between them: the view's own, or groups of neighbors where there are too many."""
    groups = _groups(view.nodes)
    if len(groups) == len(view.nodes):
        return [_single(node) for node in view.nodes], list(view.edges)
    member = [index for index, group in enumerate(groups) for _ in group]
    edges = dict.fromkeys((member[start], member[end]) for start, end in view.edges if member[start] != member[end])
    return [_single(group[0]) if len(group) == 1 else _shared(group) for group in groups], list(edges)


def _groups(nodes: Sequence[ViewNode]) -> list[Sequence[ViewNode]]:
    """Runs of neighbors, at most about `LIMIT`: float apart from integers where that is possible."""
    if len(nodes) <= LIMIT:
        return [[node] for node in nodes]
    runs: list[list[ViewNode]] = []
    for node in nodes:
        if not runs or not _together(runs[-1][-1], node):
            runs.append([])
        runs[-1].append(node)
    if len(runs) > LIMIT:
        runs = [list(nodes)]
    size = 1
    while sum(-(-len(run) // size) for run in runs) > LIMIT:
        size += max(1, size // 8)
    return [run[start : start + size] for run in runs for start in range(0, len(run), size)]


def _together(one: ViewNode, other: ViewNode) -> bool:
    apart = ("input", "output", "fallback", "island")
    return one.kind == other.kind or (one.kind not in apart and other.kind not in apart)


def _single(node: ViewNode) -> _Box:
    tip = f"{node.op_type} {node.name}: {node.detail}" if node.detail else f"{node.op_type} {node.name}"
    return _Box(node.kind, node.op_type, node.name, tip)


def _shared(group: Sequence[ViewNode]) -> _Box:
    gravest = max((node.kind for node in group), key=list(KINDS).index)
    counts = Counter(node.op_type for node in group)
    return _Box(gravest, f"{len(group):,} operators", text.kinds(counts, _TOLD), text.kinds(counts, 30))


# -- how it is drawn -----------------------------------------------------------------------------------------------
def _corners(placed: Layout, shift: float) -> Iterator[tuple[float, float]]:
    for x, layer in placed.places:
        yield shift + x * _PITCH_X - _WIDTH / 2, _TOP + _MARGIN + layer * _PITCH_Y


def _legend(view: GraphView, boxes: int) -> Iterator[Markup]:
    counts = Counter(node.kind for node in view.nodes)
    x = _MARGIN
    for kind, words in KINDS.items():
        if counts[kind]:
            label = f"{words} ({counts[kind]:,})"
            yield Markup('<rect class="{}" x="{}" y="12" width="14" height="14" rx="3"/>').format(kind, x)
            yield Markup('<text x="{}" y="23">{}</text>').format(x + 20, label)
            x += 44 + round(len(label) * 6.4)
    number = len(view.nodes)
    said = f"{boxes:,} boxes for {number:,} operators: neighbors share one" if boxes < number else "from top to bottom"
    yield Markup('<text class="name" x="{}" y="44">{}</text>').format(_MARGIN, said)


def _edge(route: Sequence[tuple[float, int]], shift: float) -> Markup:
    x, y = shift + route[0][0] * _PITCH_X, _TOP + _MARGIN + route[0][1] * _PITCH_Y + _HEIGHT
    steps = [f"M{x:.1f} {y:.1f}"]
    for index, (column, layer) in enumerate(route[1:], 1):
        to, top = shift + column * _PITCH_X, _TOP + _MARGIN + layer * _PITCH_Y
        bend = min(24.0, (top - y) / 2)
        steps.append(f"C{x:.1f} {y + bend:.1f} {to:.1f} {top - bend:.1f} {to:.1f} {top:.1f}")
        x, y = to, top
        if index < len(route) - 1:
            y = top + _HEIGHT
            steps.append(f"V{y:.1f}")
    return Markup('<path d="{}"/>').format("".join(steps))


def _box(box: _Box, x: float, y: float) -> Markup:
    middle = x + _WIDTH / 2
    return Markup(
        '<g><title>{}</title><rect class="{}" x="{:.1f}" y="{:.1f}" width="{}" height="{}" rx="6"/>'
        '<text class="op" x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>'
        '<text class="name" x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text></g>'
    ).format(
        text.prose(box.tip), box.kind, x, y, _WIDTH, _HEIGHT, middle, y + 16, _cut(box.title, _TITLE), middle, y + 30,
        _cut(box.name, _NAME),
    )  # fmt: skip


def _cut(name: str, most: int) -> str:
    """A name that fits its box: the end says more than the start, since paths get longer to the right."""
    safe = text.prose(name).replace("\n", " ")
    return safe if len(safe) <= most else f"{safe[: most // 3]}…{safe[-(most - most // 3 - 1) :]}"

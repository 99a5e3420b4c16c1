"""Sizes: what a graph computes from the shape of a tensor becomes a constant, where the sizes it takes are known.

    Shape(x: ?x16x8x8) -> Gather(1) -> Add(1) -> Div(2) -> Slice(x, 0, .)     ->     Slice(x, 0, 8)
    Shape(x: ?x16x8x8) -> Gather(0, 2, 3, 1) -> Split -> n, h, w, c           ->     n, 8, 8, 16

An exporter that traces with a dynamic batch computes every other size, too (torch.chunk, view, interpolate). ONNX's
shape inference does not see through all of that (it knows no Div), so that everything behind it has unknown sizes.
Sizes that only become known by what was folded before them are found in further rounds.

    Shape(x: nx16x8x8) -> Gather(0) -> Concat(., 2, 8, 8, 8) -> Reshape(x, .)   ->   Reshape(x, [0, 2, 8, 8, 8])

A batch whose size is open leaves no more than that of a view: ONNX copies a size for 0 and works one out for -1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from qatc.compiler.graph import Node, QuantGraph, Tensor, is_constant, shape_of, value_of
from qatc.compiler.model.links import Dim
from qatc.compiler.passes.constants import dims_read, fold_constants
from qatc.compiler.quant import Array
from qatc.compiler.reference.moves import MOVES, Call
from qatc.compiler.shapes import infer_shapes

_TAKERS: Final = frozenset({"Shape", "Gather", "Slice", "Split", "Squeeze", "Unsqueeze"})
_OPEN: Final = -1  # in the place of a size that is not known
_ROUNDS: Final = 64  # each infers shapes once more; networks nest a dozen


def fold_sizes(graph: QuantGraph) -> None:
    """Fold in place; shapes are inferred before (`infer_shapes`) and, where anything was folded, again.

    Raises:
        CompileError: QAT004 where shapes turn out to contradict each other.
    """
    for _ in range(_ROUNDS):
        if not take_sizes(graph):
            break
        fold_constants(graph)
        gather_known_parts(graph)
        infer_shapes(graph)
    _state_reshapes(graph)


def take_sizes(graph: QuantGraph) -> bool:
    """Make constants of the sizes that are taken out of shapes, where they are known; whether there are any."""
    found = _taken(graph)
    for node, tensor, value in found:
        graph.fix(tensor, value)
        graph.explain("sizes", f"{node.op} {node.name} takes sizes that are known: {value.tolist()}")
    if found:
        graph.clean()
    return bool(found)


def _taken(graph: QuantGraph) -> list[tuple[Node, Tensor, Array]]:
    """What is taken out of the shapes of tensors, where only sizes are that are known."""
    held: dict[int, Array] = {}
    found: list[tuple[Node, Tensor, Array]] = []
    for node in graph.of(*_TAKERS):
        values = _sizes(node) if node.op == "Shape" else _moved(node, held)
        for tensor, value in zip(node.outputs, values or (), strict=False):
            held[id(tensor)] = value
            if node.op != "Shape" and (value != _OPEN).all() and (tensor.outputs or graph.is_output(tensor)):
                found.append((node, tensor, value.astype(np.int64)))
    return found


def _sizes(node: Node) -> list[Array] | None:
    shape = None if node.domain else shape_of(node.inputs[0])
    if shape is None:
        return None
    return [np.asarray([d if isinstance(d, int) else _OPEN for d in dims_read(node, shape)])]


def _moved(node: Node, held: dict[int, Array]) -> list[Array] | None:
    """The sizes that a node takes of others, by constants; None where it takes none that there are."""
    if node.domain or not node.inputs or id(node.inputs[0]) not in held:
        return None
    told = [value_of(t) if t.name else None for t in node.inputs[1:]]
    if any(value is None and t.name for value, t in zip(told, node.inputs[1:], strict=True)):
        return None
    try:
        return MOVES[node.op](Call([held[id(node.inputs[0])], *told], node.attrs, len(node.outputs)))
    except (ValueError, TypeError, LookupError):
        return None


def _state_reshapes(graph: QuantGraph) -> None:
    """Give each Reshape that computes its sizes constant ones, where ONNX can fill in what is open."""
    stated = False
    for node in [n for n in graph.of("Reshape") if not is_constant(n.inputs[1])]:
        if graph.is_output(node.outputs[0]):  # whose shape is what the file declares, right or wrong
            continue
        sizes = _fillable(shape_of(node.inputs[0]), shape_of(node.outputs[0]), copies=not node.attr("allowzero", 0))
        if sizes is not None:
            graph.explain("sizes", f"{node.op} {node.name} computes sizes that are {sizes}")
            node.inputs[1] = graph.constant(f"{node.outputs[0].name}_sizes", np.asarray(sizes, np.int64))
            stated = True
    if stated:
        graph.clean()


def _fillable(have: Sequence[Dim] | None, want: Sequence[Dim] | None, *, copies: bool) -> list[int] | None:
    """What to reshape `have` to for `want`: 0 copies a size, -1 is worked out; None where more than one would be."""
    if want is None or 0 in want:
        return None
    kept = [copies and isinstance(w, str) and have is not None and have[i : i + 1] == (w,) for i, w in enumerate(want)]
    sizes = [0 if keeps else w if isinstance(w, int) else _OPEN for keeps, w in zip(kept, want, strict=True)]
    return sizes if sizes.count(_OPEN) <= 1 else None


def gather_known_parts(graph: QuantGraph) -> None:
    """Make a Gather of each Compress by a constant condition along an axis: tf2onnx pads symmetrically with them."""
    for node in graph.of("Compress"):
        condition = value_of(node.optional(1))
        if condition is None or "axis" not in node.attrs or condition.ndim != 1:
            continue
        parts = np.flatnonzero(condition).astype(np.int64)
        node.op, node.inputs[1] = "Gather", graph.constant(f"{node.inputs[1].name}_parts", parts)

"""Sequences of tensors that are split and taken apart at once, as PyTorch's exporter writes `chunk` and `split`.

    SplitToSequence(x, [a, b]) -> {SequenceAt(0) -> y, SequenceAt(1) -> z}        Split(x, [a, b]) -> y, z

A sequence that is read in another way stays, and is refused by its name.
"""

from __future__ import annotations

import numpy as np

from qatc.compiler.graph import Node, QuantGraph, Variable, shape_of, value_of
from qatc.compiler.model.links import is_op
from qatc.compiler.quant import number_of


def split_sequences(graph: QuantGraph) -> None:
    """Replace each SplitToSequence whose parts are read at constant places; the others stay as they are."""
    gone: list[Node] = []
    for node in list(graph.nodes):
        if is_op(node, "SplitToSequence") and len(node.inputs) > 1 and node.inputs[1].name:
            gone += _taken_apart(graph, node)
    graph.remove(gone)
    if gone:
        graph.sort()


def _taken_apart(graph: QuantGraph, node: Node) -> list[Node]:
    sizes = _sizes(node)
    readers = list(dict.fromkeys(graph.consumers(node.outputs[0])))
    if sizes is None or graph.is_output(node.outputs[0]):
        return []
    places: list[int] = []
    for reader in readers:
        place = number_of(value_of(reader.inputs[1])) if is_op(reader, "SequenceAt") else None
        if place is None or not -len(sizes) <= place < len(sizes):
            return []
        places.append(int(place) % len(sizes))
    kind = node.inputs[0].dtype
    parts = [
        graph.variable(f"{node.outputs[0].name}_{i}", kind if isinstance(kind, int) else None)
        for i in range(len(sizes))
    ]
    for reader, place in zip(readers, places, strict=True):
        graph.replace(reader.outputs[0], parts[place])
    listed = graph.constant(f"{node.outputs[0].name}_sizes", np.asarray(sizes, np.int64))
    graph.insert("Split", [node.inputs[0], listed], list[Variable](parts), attrs={"axis": int(node.attr("axis", 0))})
    return [*readers, node]


def _sizes(node: Node) -> list[int] | None:
    """The sizes of the parts: as they are listed, or of one size but for the last; None where they are not known."""
    value, shape = value_of(node.inputs[1]), shape_of(node.inputs[0])
    axis = int(node.attr("axis", 0))
    if value is None or value.dtype.kind not in "iu" or value.ndim > 1:
        return None
    if value.ndim:
        return [int(v) for v in value]
    if shape is None or not -len(shape) <= axis < len(shape):
        return None
    size, step = shape[axis], int(value)
    if not isinstance(size, int) or step <= 0:
        return None
    return [min(step, size - at) for at in range(0, size, step)]

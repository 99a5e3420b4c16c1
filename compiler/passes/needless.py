"""Leave out layout operators that what follows makes needless; they remain where something is rounded in between.

    Transpose(Transpose(x))           x                    where the second undoes the first
    ReduceMean(Transpose(x))          ReduceMean(x)        of other axes: the mean of a channels-last image
    Reshape(Reshape(x))               Reshape(x)           likewise of a Flatten, Squeeze or Unsqueeze

They are left over where quantization stood between them, or what became part of a convolution.
"""

from __future__ import annotations

import numpy as np

from qatc.compiler.graph import Node, QuantGraph, value_of
from qatc.compiler.passes.movement import LAYOUT, order_of, params_through
from qatc.compiler.passes.sums import axes_of


def leave_out_moves(graph: QuantGraph) -> None:
    """Rewrite in place; parameters have been propagated."""
    changed = False
    for node in graph.of("Transpose", "ReduceMean", "Reshape"):
        first = graph.producer(node.inputs[0])
        if first is None or first.domain or first.op not in LAYOUT:
            continue
        params = graph.quant(first.inputs[0])
        if graph.quant(node.inputs[0]) != (None if params is None else params_through(first, params)):
            continue  # it is rounded in between
        if node.op == "Reshape":
            one_grid = params is None or not params.is_per_channel
            changed |= first.op != "Transpose" and one_grid and _at_once(node, first)
        elif first.op == "Transpose" and (order := order_of(first)):
            turn = _undone if node.op == "Transpose" else _averaged
            changed |= turn(graph, node, first, order)
    if changed:
        graph.clean()


def _undone(graph: QuantGraph, node: Node, first: Node, order: tuple[int, ...]) -> bool:
    source, out = first.inputs[0], node.outputs[0]
    if [order[axis] for axis in order_of(node) or ()] != [*range(len(order))]:
        return False
    if graph.quant(out) != graph.quant(source) or graph.is_output(out):
        return False
    graph.replace(out, source)
    return True


def _averaged(graph: QuantGraph, node: Node, first: Node, order: tuple[int, ...]) -> bool:
    axes = {axis % len(order) for axis in axes_of(node) or ()}
    left = [axis for place, axis in enumerate(order) if place not in axes]
    if not axes or left != sorted(left) or node.attr("keepdims", 1):
        return False
    node.inputs[0], others = first.inputs[0], sorted(order[axis] for axis in axes)
    if node.optional(1) is None:
        node.attrs["axes"] = others
    else:  # opset 18
        node.inputs[1] = graph.constant(f"{node.outputs[0].name}_axes", np.asarray(others, np.int64))
    return True


def _at_once(node: Node, first: Node) -> bool:
    sizes = value_of(node.optional(1))
    if sizes is None or not np.all(sizes):  # a zero copies a size of what it reads
        return False
    node.inputs[0] = first.inputs[0]
    return True

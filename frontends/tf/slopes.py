"""Keras' PReLU, of which TensorFlow has no operator: two halves, of which one always is zero.

Relu(x) + c * Relu(-x)    ->    PRelu(x, -c)
"""

from __future__ import annotations

from qatc.compiler.graph import Node, QuantGraph, Tensor, repeats_into, shape_of, value_of
from qatc.compiler.model.links import is_op
from qatc.compiler.passes.modernize import infer_if_possible
from qatc.compiler.quant import Array


def slopes_from_halves(graph: QuantGraph) -> None:
    """Rewrite the graph in place, where the slopes repeat into the shape of what they multiply."""
    found = [(n, *halves) for n in graph.of("Add") if (halves := _halves(graph, n)) is not None]
    if any(shape_of(x) is None for _, x, _ in found):
        infer_if_possible(graph)
    for node, x, factor in found:
        if repeats_into(factor.shape, shape_of(x)):
            node.op, node.inputs = "PRelu", [x, graph.constant(f"{node.outputs[0].name}_slope", -factor)]
    if found:
        graph.clean()


def _halves(graph: QuantGraph, node: Node) -> tuple[Tensor, Array] | None:
    """The tensor and the factor of Relu(x) + c * Relu(-x), else None."""
    makers = [graph.producer(t) for t in node.inputs]
    for upper, scaled in (makers, makers[::-1]):
        if not is_op(upper, "Relu") or not is_op(scaled, "Mul"):
            continue
        for lower, factor in (scaled.inputs, scaled.inputs[::-1]):
            half, value = graph.producer(lower), value_of(factor)
            turned = graph.producer(half.inputs[0]) if is_op(half, "Relu") else None
            if is_op(turned, "Neg") and turned.inputs[0] is upper.inputs[0] and value is not None:
                return upper.inputs[0], value
    return None

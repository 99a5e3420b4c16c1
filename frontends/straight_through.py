"""What changes no value, as arithmetic with straight-through gradients and offsets leaves it.

    r -> Sub(., v) -> Add(., v)     r       likewise with Neg and Add
    v - (v - r)                     r
    y -> Add(0) or Sub(0)           y       (a range that begins at zero)

All of it is gone before a quantizer of arithmetic is looked for.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from qatc.compiler.graph import Constant, Node, QuantGraph, Tensor, is_constant, rank_of, value_of
from qatc.compiler.rewrite import Rules

STRAIGHT_THROUGH: Final = Rules("arithmetic")


@STRAIGHT_THROUGH.on("Add")
def straight_through(graph: QuantGraph, node: Node) -> bool:
    """(a - b) + b is a, and so is (-b + a) + b: a function that is to have the gradient of the identity."""
    for one, other in (node.inputs, node.inputs[::-1]):
        value = _without(graph, one, other)
        if value is not None:
            graph.replace(node.outputs[0], value)
            return True
    return False


@STRAIGHT_THROUGH.on("Sub")
def straight_through_twice(graph: QuantGraph, node: Node) -> bool:
    """Of a - (a - b) only b is left."""
    maker = graph.producer(node.inputs[1])
    if maker is None or maker.domain or maker.op != "Sub" or not _equal(maker.inputs[0], node.inputs[0]):
        return False
    graph.replace(node.outputs[0], maker.inputs[1])
    return True


@STRAIGHT_THROUGH.on("Add", "Sub")
def nothing_changes(graph: QuantGraph, node: Node) -> bool:
    """Add and Sub of zero: what arithmetic with offsets leaves of ranges like 0..a."""
    for index, (constant, data) in enumerate(zip(node.inputs, node.inputs[::-1], strict=True)):
        value, rank = value_of(constant), rank_of(data)
        if value is None or is_constant(data) or (index == 0 and node.op == "Sub"):
            continue
        if value.size == 1 and value.ndim <= (rank or 0) and np.all(value == 0):
            graph.replace(node.outputs[0], data)
            return True
    return False


def _without(graph: QuantGraph, difference: Tensor, taken: Tensor) -> Tensor | None:
    """a, where `difference` is a - `taken`."""
    maker = graph.producer(difference)
    if maker is None or maker.domain or len(maker.inputs) != 2:
        return None
    if maker.op == "Sub":
        return maker.inputs[0] if _equal(maker.inputs[1], taken) else None
    for one, other in (maker.inputs, maker.inputs[::-1]) if maker.op == "Add" else ():
        negative = graph.producer(one)
        if negative is not None and negative.op == "Neg" and _equal(negative.inputs[0], taken):
            return other
    return None


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are one, or constants that hold the same."""
    if one is other:
        return True
    return isinstance(one, Constant) and isinstance(other, Constant) and np.array_equal(one.values, other.values)

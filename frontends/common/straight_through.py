"""What changes no value, as arithmetic with straight-through gradients and offsets leaves it.

    r -> Sub(., v) -> Add(., v)     r       likewise with Neg and Add, and where 1 * (r - v) is added
    v - (v - r)                     r
    y -> Add(0) or Sub(0)           y       (a range that begins at zero)
    y -> Div(1)                     y       (an equalization that was not asked for)
    y + (v - v)                     y
    y + 0 * v                       y       (the share of what is not quantized, once training has faded it out)
    Where(true, y, v)               y       (a quantizer that is switched on)
    Sign(n) * Floor(Sign(n) * n)    n       (jax2tf casts a rounded n to integers so; also Floor, Ceil and Round of it)

All of it is gone before a quantizer of arithmetic is looked for. What is left must have the shape of the whole: a
difference that v broadcasts stays. tf2onnx negates and transposes v wherever it likes, each time anew: what counts is
the tensor behind that.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from qatc.compiler.graph import (
    Constant,
    Node,
    QuantGraph,
    Tensor,
    is_constant,
    rank_of,
    repeats_into,
    shape_of,
    value_of,
)
from qatc.compiler.model.links import computed, is_op
from qatc.compiler.passes.modernize import infer_if_possible
from qatc.compiler.passes.movement import order_of
from qatc.compiler.quant import Array
from qatc.compiler.rewrite import NoMatch, Rules, sweep

_RULES: Final = Rules("arithmetic")
_LONGEST: Final = 8  # transpositions and negations that are looked through


def drop_straight_through(graph: QuantGraph) -> bool:
    """Take out of a modernized graph what changes no value; shapes are inferred where the answer depends on them.

    Returns whether more is known of the graph than before, or less is in it.
    """
    nodes = graph.of("Add", "Sub", "Where")
    found = [p for n in nodes if (p := _undone(graph, n) or _faded(graph, n) or _chosen(n)) is not None]
    inferred = any(shape_of(t) is None for pair in found for t in pair)
    if inferred:
        infer_if_possible(graph)
    return bool(sweep(graph, _RULES)) or inferred


@_RULES.on("Add", "Sub")
def straight_through(graph: QuantGraph, node: Node) -> bool:
    """A function that is to have the gradient of another one, which adds up to itself."""
    found = _undone(graph, node)
    if found is None:
        return False
    if broadcasts(*found):
        raise NoMatch("what is added and taken off again gives the result its shape")
    graph.replace(node.outputs[0], found[0])
    return True


def _undone(graph: QuantGraph, node: Node) -> tuple[Tensor, Tensor] | None:
    """(a, b) where a node adds b to a - b or to -b + a, or subtracts b - a from b, or adds b - b to a."""
    if not is_op(node, "Add", "Sub") or len(node.inputs) != 2:
        return None
    if node.op == "Add":
        for one, other in (node.inputs, node.inputs[::-1]):
            value = _without(graph, one, other)
            if value is not None:
                return value, other
            maker = graph.producer(one)
            if is_op(maker, "Sub") and maker.inputs[0] is maker.inputs[1]:
                return other, maker.inputs[0]
        return None
    maker = graph.producer(node.inputs[1])
    if is_op(maker, "Sub") and _equal(graph, maker.inputs[0], node.inputs[0]):
        return maker.inputs[1], node.inputs[0]
    return None


@_RULES.on("Add", "Sub")
def faded_out(graph: QuantGraph, node: Node) -> bool:
    """A share of zero of another tensor, added."""
    found = _faded(graph, node)
    if found is None or broadcasts(*found):
        return False
    graph.replace(node.outputs[0], found[0])
    return True


def _faded(graph: QuantGraph, node: Node) -> tuple[Tensor, Tensor] | None:
    """(a, b) where a node adds b, which is zero times something, to a, or takes it off."""
    if not is_op(node, "Add", "Sub") or len(node.inputs) != 2:
        return None
    for kept, share in (node.inputs, node.inputs[::-1]) if node.op == "Add" else (node.inputs,):
        maker = graph.producer(share)
        for factor in maker.inputs if is_op(maker, "Mul") else ():
            value = graph.real(factor)
            if value is not None and value.size and not np.any(value) and not is_constant(kept):
                return kept, share
    return None


@_RULES.on("Where")
def switched(graph: QuantGraph, node: Node) -> bool:
    """A choice that a constant makes for all elements."""
    found = _chosen(node)
    if found is None or any(shape_of(t) is None for t in found) or broadcasts(*found):
        return False
    value = value_of(node.inputs[0])
    if value is None or not keeps_shape(value, found[0]):
        return False
    graph.replace(node.outputs[0], found[0])
    return True


def _chosen(node: Node) -> tuple[Tensor, Tensor] | None:
    """The side of a Where that a constant condition takes for all elements, and the other one."""
    if not is_op(node, "Where") or len(node.inputs) != 3:
        return None
    condition, *sides = node.inputs
    value = value_of(condition)
    if value is None or not value.size or np.any(value) != np.all(value):
        return None
    chosen, other = sides if np.all(value) else sides[::-1]
    return chosen, other


def broadcasts(kept: Tensor, other: Tensor) -> bool:
    """Whether a sum of both is known to be larger than `kept`."""
    shape, wide = shape_of(kept), shape_of(other)
    if shape is None or wide is None:
        return False
    return len(wide) > len(shape) or any(a == 1 != b for a, b in zip(shape[::-1], wide[::-1], strict=False))


@_RULES.on("Add", "Sub", "Div")
def nothing_changes(graph: QuantGraph, node: Node) -> bool:
    """Add and Sub of zero, what arithmetic with offsets leaves of ranges like 0..a; and division by one."""
    neutral = 1 if node.op == "Div" else 0
    for index, (constant, data) in enumerate(zip(node.inputs, node.inputs[::-1], strict=True)):
        value = graph.real(constant)
        if value is None or is_constant(data) or (index == 0 and node.op != "Add"):
            continue
        if keeps_shape(value, data) and np.all(value == neutral):
            graph.replace(node.outputs[0], data)
            return True
    return False


@_RULES.on("Mul")
def truncated(graph: QuantGraph, node: Node) -> bool:
    """Whole numbers whose fractions are cut off: the sign is taken off, given back, and nothing was there to cut."""
    for factor, part in (node.inputs, node.inputs[::-1]):
        signs, floor = graph.producer(factor), graph.producer(part)
        if not is_op(signs, "Sign") or not is_op(floor, "Floor"):
            continue
        size = graph.producer(floor.inputs[0])
        values = signs.inputs[0]
        is_size = is_op(size, "Abs") and size.inputs[0] is values
        if is_op(size, "Mul"):
            is_size = sorted(map(id, size.inputs)) == sorted((id(factor), id(values)))
        if is_size and _is_whole(graph, values):
            graph.replace(node.outputs[0], values)
            return True
    return False


@_RULES.on("Round", "Floor", "Ceil")
def rounded_again(graph: QuantGraph, node: Node) -> bool:
    """A rounding of whole numbers."""
    if not _is_whole(graph, node.inputs[0]):
        return False
    graph.replace(node.outputs[0], node.inputs[0])
    return True


def _is_whole(graph: QuantGraph, tensor: Tensor) -> bool:
    """Whether a tensor holds nothing but whole numbers: rounded, and clamped since to whole numbers at most."""
    for _ in range(_LONGEST):
        maker = graph.producer(tensor)
        if is_op(maker, "Round", "Floor", "Ceil"):
            return True
        if not is_op(maker, "Clip", "Min", "Max", "Relu", "Transpose"):
            return False
        data = computed(maker)
        bounds = [v for t in maker.inputs if t.name and (v := graph.real(t)) is not None]
        if len(data) != 1 or not all(np.all(np.isinf(v) | (v == np.rint(v))) for v in bounds):
            return False
        tensor = data[0]
    return False


def _without(graph: QuantGraph, difference: Tensor, taken: Tensor) -> Tensor | None:
    """a, where `difference` is a - `taken`."""
    maker = graph.producer(unscaled(graph, difference))
    if maker is None or maker.domain or len(maker.inputs) != 2:
        return None
    if maker.op == "Sub":
        return maker.inputs[0] if _equal(graph, maker.inputs[1], taken) else None
    if maker.op != "Add":
        return None
    root, order, negative = _seen(graph, taken)
    for one, other in (maker.inputs, maker.inputs[::-1]):
        found = _seen(graph, one)
        if found[1:] == (order, not negative) and _equal(graph, found[0], root):
            return other
    return None


def keeps_shape(value: Array, data: Tensor) -> bool:
    """Whether arithmetic of `data` with a constant surely has the shape of `data`."""
    shape, rank = shape_of(data), rank_of(data)
    if value.size == 1:
        return value.ndim <= (rank or 0)
    return repeats_into(value.shape, shape)


def unscaled(graph: QuantGraph, tensor: Tensor) -> Tensor:
    """What is multiplied by one to make a tensor (QKeras's share of noise, at its end), or else the tensor itself."""
    maker = graph.producer(tensor)
    if not is_op(maker, "Mul") or len(maker.inputs) != 2:
        return tensor
    for factor, data in (maker.inputs, maker.inputs[::-1]):
        value = graph.real(factor)
        if value is not None and keeps_shape(value, data) and np.all(value == 1):
            return data
    return tensor


def _seen(graph: QuantGraph, tensor: Tensor) -> tuple[Tensor, tuple[int, ...] | None, bool]:
    """The tensor that is transposed and negated, where its axes lie (None: where they were), and whether it is negated.

    The result's axis i is axis order[i] of the tensor.
    """
    order: tuple[int, ...] | None = None
    negative = False
    for _ in range(_LONGEST):
        maker = graph.producer(tensor)
        if not is_op(maker, "Neg", "Transpose"):
            break
        if maker.op == "Neg":
            negative = not negative
        else:
            axes = order_of(maker)
            if axes is None or (order is not None and len(order) != len(axes)):
                break
            order = axes if order is None else tuple(axes[i] for i in order)
        tensor = maker.inputs[0]
    return tensor, None if order == tuple(range(len(order or ()))) else order, negative


def _equal(graph: QuantGraph, one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are one, or constants that hold the same."""
    if one is other:
        return True
    if not isinstance(one, Constant) or not isinstance(other, Constant) or graph.quant(one) != graph.quant(other):
        return False
    return np.array_equal(one.values, other.values)

"""Sums, of tensors and over dimensions: one form of them, and what is added up where nobody rounds in between.

Sum(x, y, z)                Add(Add(x, y), z): the order that runtimes add in
Add(Add(x, y), z)           x, y and z are the addends, where the partial sum has no grid and no other reader
ReduceMean(ReduceMean(x))   one ReduceMean over the dimensions of both
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from qatc.compiler.graph import Constant, Node, QuantGraph, Tensor, rank_of, value_of
from qatc.compiler.model.links import computed, is_op, maker_of
from qatc.compiler.rewrite import NoMatch

_LONGEST: Final = 8  # operators between a constant and the sum of what is made of it


def sum_of_pairs(graph: QuantGraph, node: Node) -> bool:
    """A Sum adds one operand after the other, as Adds do; that of one does nothing."""
    so_far, *terms = node.inputs
    for term in terms[:-1]:
        partial = graph.variable(f"{node.outputs[0].name}_partial")
        partial.dtype = node.outputs[0].dtype
        graph.insert("Add", [so_far, term], [partial])
        so_far = partial
    node.op, node.inputs = ("Add", [so_far, terms[-1]]) if terms else ("Identity", [so_far])
    return True


def addends(graph: QuantGraph, node: Node) -> list[Tensor]:
    """What an Add adds up, in order; of another node, what it reads."""
    if not is_op(node, "Add"):
        return list(node.inputs)
    found: list[Tensor] = []
    waiting = list(reversed(node.inputs))
    while waiting:
        tensor = waiting.pop()
        maker = graph.producer(tensor)
        if is_op(maker, "Add") and tensor.name not in graph.params and graph.only_consumer(tensor) is not None:
            waiting += reversed(maker.inputs)
        else:
            found.append(tensor)
    return found


def axes_of(node: Node) -> tuple[int, ...] | None:
    """The axes of a Reduce*, Squeeze or Unsqueeze, from its attribute or its second input; () means all of them.

    Counted from the front where the rank is known. None where they are computed at run time.
    """
    listed, given = node.attr("axes"), node.optional(1)
    if listed is None and given is not None:
        value = value_of(given)
        if value is None:
            return None
        listed = value.reshape(-1).tolist()
    if listed is None:
        return ()
    rank = rank_of(node.outputs[0] if node.op == "Unsqueeze" else node.inputs[0])
    return tuple(int(a) + (rank if rank is not None and a < 0 else 0) for a in listed)


def reduction_of_a_reduction(graph: QuantGraph, node: Node) -> bool:
    """A mean of means over other dimensions is one mean, a sum of sums one sum: all groups have as many elements."""
    x = node.inputs[0]
    inner = graph.producer(x)
    if not is_op(inner, node.op) or graph.only_consumer(x) is None or _is_made_of_constants(graph, inner.inputs[0]):
        return False
    first, second = axes_of(inner), axes_of(node)
    keeps = node.attr("keepdims", 1)
    if not first or not second or min(*first, *second) < 0 or inner.attr("keepdims", 1) != keeps:
        raise NoMatch("which dimensions the two go over is not known, or one keeps them and one does not")
    axes = sorted({*first, *(second if keeps else (_before(axis, first) for axis in second))})
    node.inputs[0] = inner.inputs[0]
    if "axes" in node.attrs:
        node.attrs["axes"] = axes
    else:
        node.inputs[1] = graph.constant(f"{node.outputs[0].name}_axes", np.asarray(axes, np.int64))
    return True


def asks_for_rank(node: Node) -> bool:
    """Whether a reduction of a reduction counts its axes from the end of a tensor of unknown rank."""
    inner = maker_of(node.inputs[0]) if is_op(node, "ReduceMean", "ReduceSum") and node.inputs else None
    return is_op(inner, node.op) and min((*(axes_of(inner) or ()), *(axes_of(node) or ())), default=0) < 0


def _before(axis: int, gone: Iterable[int]) -> int:
    """The number of a dimension while those that are gone were still there."""
    for other in sorted(set(gone)):
        axis += other <= axis
    return axis


def _is_made_of_constants(graph: QuantGraph, tensor: Tensor) -> bool:
    """Whether it is computed of constants alone, such as the scale of a weight: that is folded as the file has it."""
    for _ in range(_LONGEST):
        maker = graph.producer(tensor)
        if maker is None:
            return isinstance(tensor, Constant)
        data = computed(maker)
        if len(data) != 1:
            return not data
        tensor = data[0]
    return False

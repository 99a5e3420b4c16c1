"""Chains of layout operators: what they do to axes, and how that is written by the fewest of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from qatc.compiler.graph import Dim, Node, QuantGraph, Tensor, Variable, rank_of, shape_of
from qatc.compiler.model.links import is_op
from qatc.compiler.model.views import Step, View
from qatc.compiler.passes.movement import LAYOUT, order_of, params_through
from qatc.compiler.passes.sums import axes_of


def view_of(node: Node) -> View | None:
    """What a layout operator makes of its operand; None where it moves elements in other ways, or nobody knows how."""
    before, after = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    rank = None if before is None else len(before)
    if is_op(node, "Transpose"):
        order = order_of(node)
        return _as_view("Transpose", order, len(order)) if order and rank in (None, len(order)) else None
    if before is not None and is_op(node, "Squeeze", "Unsqueeze") and (axes := axes_of(node)):
        view = _as_view(node.op, axes, len(before))
        return view if view is not None and not any(_is_more(before[axis]) for axis in view.left()) else None
    if before is None or after is None or not is_op(node, *LAYOUT):
        return None
    kept, places = ([i for i, size in enumerate(shape) if size != 1] for shape in (before, after))
    if len(kept) != len(places) or not _are_same([(before[a], after[p]) for a, p in zip(kept, places, strict=True)]):
        return None
    at = dict(zip(places, kept, strict=True))
    return View(len(before), tuple(at.get(place) for place in range(len(after))))


def _as_view(op: str, axes: tuple[int, ...], rank: int) -> View | None:
    """What an operator does to a tensor of `rank` dimensions; None where its axes are not those of one."""
    if op == "Transpose":
        return View(rank, axes)
    larger = rank + (len(axes) if op == "Unsqueeze" else 0)
    named = {axis % larger for axis in axes if -larger <= axis < larger}
    if len(named) != len(axes):
        return None
    squeezed = View(larger, tuple(axis for axis in range(larger) if axis not in named))
    return squeezed if op == "Squeeze" else squeezed.inverse()


def _is_more(size: Dim) -> bool:
    return isinstance(size, int) and size != 1


def _are_same(sizes: list[tuple[Dim, Dim]]) -> bool:
    """Whether each pair of sizes is of one size; of as many elements in all, one pair may be unknown."""
    unknown = [
        pair for pair in sizes if None in pair or (pair[0] != pair[1] and not all(isinstance(d, int) for d in pair))
    ]
    known = [pair for pair in sizes if pair not in unknown]
    return all(one == other for one, other in known) and (not unknown or (len(unknown) == 1 and (0, 0) not in known))


@dataclass(frozen=True)
class Chain:
    """A tensor as a view of `source`, by `length` operators that nothing else reads."""

    source: Tensor
    view: View
    length: int

    def steps(self) -> list[Step]:
        """The fewest operators that would do the same."""
        return self.view.steps(shape_of(self.source))


def chains_of(graph: QuantGraph) -> dict[int, Chain]:
    """The views in a graph in order, by the id of the tensor that is one; nothing is rounded within a chain."""
    chains: dict[int, Chain] = {}
    for node in graph.of(*LAYOUT):
        found = chain_to(graph, node, chains)
        if found is not None:
            chains[id(node.outputs[0])] = found
    return chains


def keeps_values(graph: QuantGraph, node: Node) -> bool:
    """Whether nothing is rounded or clamped behind a movement: it is on its operand's grid, within as wide a range."""
    before, after = graph.quant(node.inputs[0]), graph.quant(node.outputs[0])
    moved = None if before is None else params_through(node, before)
    if moved is None or after is None:
        return before is after
    is_one = moved.same_grid(after) and moved.dtype == after.dtype
    return is_one and after.qmin <= moved.qmin and moved.qmax <= after.qmax


def chain_to(graph: QuantGraph, node: Node, chains: Mapping[int, Chain]) -> Chain | None:
    """The chain that a layout operator ends, by those to what it reads; None where it rounds, or is no view."""
    if not keeps_values(graph, node):
        return None
    x = node.inputs[0]
    view, before = view_of(node), chains.get(id(x))
    if view is None:
        return None
    if before is None:
        return Chain(x, view, 1)
    alone = graph.only_consumer(x) is not None
    return Chain(before.source, before.view.then(view), 1 + (before.length if alone else 0))


def write(graph: QuantGraph, source: Tensor, view: View, out: Tensor | None = None) -> Tensor:
    """The view of a tensor with one grid, made by the fewest operators; `out` is given the last one's result."""
    steps = view.steps(shape_of(source))
    if out is not None and not steps:
        graph.replace(out, source)
    elif out is not None:
        graph.detach_producer(out)
    x: Tensor = source
    params = graph.quant(source)
    for index, (op, axes) in enumerate(steps):
        is_turn, is_last = op == "Transpose", index == len(steps) - 1
        made = cast("Variable", out) if out is not None and is_last else graph.variable(f"{source.name}_view")
        operands = [x] if is_turn else [x, graph.constant(f"{made.name}_axes", np.asarray(axes, np.int64))]
        graph.insert(op, operands, [made], hint=f"{made.name}_{op}", attrs={"perm": list(axes)} if is_turn else {})
        step, sizes = _as_view(op, axes, rank_of(x) or 0), shape_of(x)
        made.dtype, made.shape = source.dtype, None if step is None else step.shape(sizes)
        if params is not None:
            graph.params[made.name] = params
        x = made
    return x


def alike(graph: QuantGraph, tensor: Tensor, suffix: str, shape: Sequence[Dim] | None) -> Variable:
    """A new tensor of another one's type and grid; its name has the suffix once."""
    made = graph.variable(f"{tensor.name.removesuffix(suffix)}{suffix}", shape=shape)
    made.dtype = tensor.dtype
    params = graph.quant(tensor)
    if params is not None:
        graph.params[made.name] = params
    return made


def show_at(graph: QuantGraph, chain: Chain, view: Tensor) -> None:
    """What the source file has of a view, which may go, can be seen at what it is a view of."""
    source = chain.source.name
    if source in graph.origin or source not in graph.params:
        return
    back = chain.view.inverse()
    origin, told = graph.origin.get(view.name), graph.turned.get(view.name)
    if origin is not None and back == View.same(back.rank):
        graph.origin[source] = origin
        graph.turned.pop(source, None)
    elif origin is not None:
        graph.turned.setdefault(source, (origin, back))
    elif told is not None:
        graph.turned.setdefault(source, (told[0], told[1].then(back)))

"""Elementwise operators compute in the layout that needs the fewest layout operators around them.

    Conv -> Squeeze -> Relu -> Unsqueeze -> Conv                      Conv -> Relu -> Conv
    Transpose(a) + Transpose(b) -> Pad -> Transpose -> Conv           a + b -> Pad -> Conv

Signals out of TensorFlow come so: convolutions over time are ones over images of height 1, and what is between them
has the channels last. A region is what elementwise operators, Pads and Concats make of each other: its tensors are all
laid out alike, and all of it is turned or nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np

from qatc.compiler.graph import Node, QuantGraph, Tensor, rank_of, shape_of, value_of
from qatc.compiler.model.links import computed, is_op, label_of
from qatc.compiler.model.views import View
from qatc.compiler.passes.chains import Chain, alike, chains_of, show_at, write
from qatc.compiler.passes.movement import LAYOUT
from qatc.compiler.reference.functions import is_elementwise, is_table

_WINDOWS: Final = ("MaxPool", "AveragePool")
_SPATIAL: Final = {"kernel_shape": 1, "strides": 1, "dilations": 1, "pads": 2}  # attribute -> numbers for an axis
_SUFFIX: Final = "_turned"
_CANDIDATES: Final = 4  # layouts that are tried for a region: those that most tensors around it have


@dataclass
class Region:
    """Operators in order; the tensors they read from outside (and how often), and those that outsiders read."""

    nodes: list[Node]
    reads: list[Tensor]
    uses: Counter[int]
    shown: list[Tensor]


def turn_regions(graph: QuantGraph) -> bool:
    """Rewrite a graph with propagated parameters in place; whether anything changed: chains are left to be joined."""
    chains = chains_of(graph)
    if not chains:
        return False
    around = _Around(graph, chains)
    behind, before = set[int](), set[int]()  # ids of tensors that a turned region shows, and of what one's chains view
    done: list[Region] = []  # which keep what the ids are of
    for region in _regions(graph):
        shown = {id(tensor) for tensor in region.shown}
        sources = {id(chains[id(tensor)].source) for tensor in region.reads if id(tensor) in chains}
        if not (behind.isdisjoint(sources) and before.isdisjoint(shown)):
            continue  # the operators between it and a neighbor are gone, or others
        layout = around.best(region)
        if layout is not None:
            where = label_of(region.nodes[0])
            graph.explain("layout", f"{len(region.nodes)} operators from {where} on compute in another layout")
            _turn(graph, region, layout, chains)
            behind |= shown
            before |= sources
            done.append(region)
    if not done:
        return False
    graph.sort()
    graph.clean()
    return True


# -- regions --------------------------------------------------------------------------------------------------------
def _regions(graph: QuantGraph) -> Iterable[Region]:
    members = {id(node): index for index, node in enumerate(graph.nodes) if _is_member(graph, node)}
    seen: set[int] = set()
    for index in members.values():
        waiting, found = [graph.nodes[index]], list[Node]()
        while waiting:
            node = waiting.pop()
            if id(node) in members and id(node) not in seen:
                seen.add(id(node))
                found.append(node)
                makers = [graph.producer(tensor) for tensor in computed(node)]
                waiting += [maker for maker in makers if maker is not None]
                waiting += graph.consumers(node.outputs[0])
        if found:
            found.sort(key=lambda node: members[id(node)])
            yield _region(graph, found)


def _region(graph: QuantGraph, nodes: list[Node]) -> Region:
    inside = {id(node) for node in nodes}
    made = {id(node.outputs[0]): node.outputs[0] for node in nodes}
    reads = [tensor for node in nodes for tensor in computed(node) if id(tensor) not in made]
    shown = [
        tensor
        for tensor in made.values()
        if graph.is_output(tensor) or any(id(reader) not in inside for reader in graph.consumers(tensor))
    ]
    return Region(nodes, [*{id(t): t for t in reads}.values()], Counter(map(id, reads)), shown)


def _is_member(graph: QuantGraph, node: Node) -> bool:
    """Whether a node computes element by element, or pads, joins or pools, tensors of one rank, each on one grid."""
    read, rank = computed(node), rank_of(node.outputs[0]) if len(node.outputs) == 1 else None
    if rank is None or not read or any(rank_of(tensor) != rank for tensor in read) or not _is_of_places(node, rank):
        return False
    return not any(params.is_per_channel for t in (*node.inputs, *node.outputs) if (params := graph.quant(t)))


def _is_of_places(node: Node, rank: int) -> bool:
    """Whether a node treats all axes alike, but for those that it names (see `_turn_places`)."""
    if is_op(node, "Pad"):
        widths = value_of(node.inputs[1])
        return widths is not None and widths.size == 2 * rank and node.optional(3) is None
    if is_op(node, *_WINDOWS):
        return all(len(node.attrs.get(name, ())) in (0, many * (rank - 2)) for name, many in _SPATIAL.items())
    return is_op(node, "Concat") or (is_elementwise(node) and not is_table(node))


# -- layouts --------------------------------------------------------------------------------------------------------
class _Around:
    """What the layout operators around a region are, and would be."""

    def __init__(self, graph: QuantGraph, chains: dict[int, Chain]) -> None:
        self.graph, self.chains = graph, chains
        self.leaves: dict[int, list[View]] = {}  # id of a tensor -> the views of it that others read
        for node in graph.of(*LAYOUT):
            out = node.outputs[0]
            chain = chains.get(id(out))
            if chain is not None and self._is_read(out):
                self.leaves.setdefault(id(chain.source), []).append(chain.view)

    def _is_read(self, tensor: Tensor) -> bool:
        """Whether something else than a chain reads a tensor."""
        readers = self.graph.consumers(tensor)
        return self.graph.is_output(tensor) or not all(map(self._begins, readers))

    def best(self, region: Region) -> View | None:
        """The layout with the fewest operators: a region's tensors, as views of what they become; None if as it is."""
        views = [chain.view for t in region.reads if (chain := self.chains.get(id(t)))]
        views += [view.inverse() for t in region.shown for view in self.leaves.get(id(t), ())]
        best, fewest = None, self._operators(region, None)
        for view, _ in Counter(views).most_common(_CANDIDATES):
            if _fits(view, region) and (needed := self._operators(region, view)) < fewest:
                best, fewest = view, needed
        return best

    def _operators(self, region: Region, layout: View | None) -> int:
        """How many layout operators the region needs around it in a layout (None: as it is)."""
        inside = {id(node) for node in region.nodes}
        count = 0
        for tensor in region.reads:
            chain = self.chains.get(id(tensor)) or _no_chain(tensor)
            count += len((chain if layout is None else _turned(chain, layout)).steps())
            if layout is not None and len(tensor.outputs) > region.uses[id(tensor)]:
                count += len(chain.steps())  # it stays
        for tensor in region.shown:
            back = layout or View.same(rank_of(tensor) or 0)
            shape = back.inverse().shape(shape_of(tensor))
            views = self.leaves.get(id(tensor), [])
            readers = [reader for reader in self.graph.consumers(tensor) if id(reader) not in inside]
            if self.graph.is_output(tensor) or not all(map(self._begins, readers)):
                views = [*views, View.same(len(back.axes))]
            count += sum(len(back.then(view).steps(shape)) for view in views)
        return count

    def _begins(self, reader: Node) -> bool:
        """Whether a reader is the first of a chain."""
        return bool(reader.outputs) and id(reader.outputs[0]) in self.chains


def _no_chain(tensor: Tensor) -> Chain:
    return Chain(tensor, View.same(rank_of(tensor) or 0), 0)


def _turned(chain: Chain, layout: View) -> Chain:
    """What a tensor that is such a view becomes in a layout, by way of what it is made of."""
    return Chain(chain.source, chain.view.then(layout.inverse()), 0)


def _fits(layout: View, region: Region) -> bool:
    """Whether all tensors of a region have a place for each of their axes in a layout."""
    ones = [place for place, axis in enumerate(layout.axes) if axis is None]
    if any(is_op(node, "Concat") and _axis(node, layout) in ones for node in region.nodes):
        return False
    if any(is_op(node, *_WINDOWS) for node in region.nodes) and not _turns_space(layout):
        return False
    for tensor in (*region.reads, *(node.outputs[0] for node in region.nodes)):
        shape = shape_of(tensor)
        if shape is None or len(shape) != len(layout.axes) or any(shape[place] != 1 for place in ones):
            return False
    return True


def _turns_space(layout: View) -> bool:
    """Whether a layout has batch and channels in front, as windows read them, and as many dimensions behind."""
    return layout.axes[:2] == (0, 1) and layout.rank == len(layout.axes) and None not in layout.axes


# -- turning --------------------------------------------------------------------------------------------------------
def _turn(graph: QuantGraph, region: Region, layout: View, chains: dict[int, Chain]) -> None:
    turn = layout.inverse()
    turned: dict[int, Tensor] = {}
    for tensor in region.reads:
        chain = _turned(chains.get(id(tensor)) or _no_chain(tensor), layout)
        if (seen := chains.get(id(tensor))) is not None:
            show_at(graph, seen, tensor)
        turned[id(tensor)] = write(graph, chain.source, chain.view)
    for node in region.nodes:
        _turn_places(graph, node, layout)
        for index, tensor in enumerate(node.inputs):
            if id(tensor) not in turned and not is_op(node, "Pad"):
                node.inputs[index] = _turned_constant(graph, tensor, layout, whole=is_op(node, "Concat"))
            elif id(tensor) in turned:
                node.inputs[index] = turned[id(tensor)]
        old = node.outputs[0]
        new = node.outputs[0] = turned[id(old)] = alike(graph, old, _SUFFIX, turn.shape(shape_of(old)))
        show_at(graph, Chain(new, layout, 1), old)
    for tensor in region.shown:
        write(graph, turned[id(tensor)], layout, tensor)


def _turn_places(graph: QuantGraph, node: Node, layout: View) -> None:
    """Rewrite what names axes of a node's operands."""
    places = layout.inverse().axes
    if is_op(node, "Concat"):
        node.attrs["axis"] = layout.axes[_axis(node, layout)]
    elif is_op(node, "Pad"):
        widths = np.asarray(value_of(node.inputs[1]), np.int64).reshape(2, -1).tolist()
        turned = [0 if place is None else ends[place] for ends in widths for place in places]
        node.inputs[1] = graph.constant(f"{node.outputs[0].name}_pads", np.asarray(turned, np.int64))
    elif is_op(node, *_WINDOWS):
        space = [place - 2 for place in places[2:] if place is not None]
        for name in _SPATIAL:
            values = list(node.attrs.get(name, ()))
            sides = [values[start : start + len(space)] for start in range(0, len(values), len(space))]
            if values:
                node.attrs[name] = [side[place] for side in sides for place in space]


def _axis(concat: Node, layout: View) -> int:
    return int(concat.attr("axis", 0)) % len(layout.axes)


def _turned_constant(graph: QuantGraph, tensor: Tensor, layout: View, *, whole: bool) -> Tensor:
    """An operand in another layout; a number fits any, unless it has to be `whole`."""
    value, turn = value_of(tensor), layout.inverse()
    if value is None or (value.size == 1 and value.ndim <= layout.rank and not whole):
        return tensor
    every = value.reshape((1,) * (turn.rank - value.ndim) + value.shape)
    return graph.constant(f"{tensor.name.removesuffix(_SUFFIX)}{_SUFFIX}", turn.of(every), graph.quant(tensor))

"""Leave out layout operators that what follows makes needless; they remain where something is rounded in between.

    Transpose(Transpose(x))              x                    where the second undoes the first
    Unsqueeze(Transpose(Squeeze(x)))     Transpose(x)         likewise of any that only turn axes (`passes/chains.py`)
    Conv(Unsqueeze(Relu(Squeeze(x))))    Conv(Relu(x))        with elementwise operators between (`passes/regions.py`)
    ReduceMean(Transpose(x))             ReduceMean(x)        of other axes: the mean of a channels-last image
    ReduceMean(Squeeze(ReduceMean(x)))   ReduceMean(x)        over the axes of both
    Reshape(Reshape(x))                  Reshape(x)           likewise of a Flatten, Squeeze or Unsqueeze
    Slice(x), Pad(x)                     x                    of everything, or by nothing

They are left over where quantization stood between them, or what became part of a convolution.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Final

import numpy as np

from qatc.compiler.graph import Node, QuantGraph, Tensor, rank_of, shape_of, value_of
from qatc.compiler.model.links import is_op
from qatc.compiler.model.views import View
from qatc.compiler.passes.chains import Chain, chain_to, chains_of, keeps_values, show_at, write
from qatc.compiler.passes.movement import LAYOUT
from qatc.compiler.passes.regions import turn_regions
from qatc.compiler.passes.sums import axes_of, reduction_of_a_reduction
from qatc.compiler.rewrite import NoMatch

_ROUNDS: Final = 8  # regions that were turned may be one now; each round leaves fewer operators
_LONGEST: Final = 8  # Reshapes behind each other that are left out at once


def leave_out_moves(graph: QuantGraph) -> None:
    """Rewrite in place; parameters have been propagated."""
    _take_whole(graph)
    if not graph.of(*LAYOUT):
        return
    _join(graph)
    for _ in range(_ROUNDS):
        if not turn_regions(graph):
            break
        _join(graph)
    chains = chains_of(graph)
    changed = False
    for node in graph.of("ReduceMean", "Reshape"):
        if node.op == "Reshape":
            changed |= _at_once(graph, node)
        elif (chain := chains.get(id(node.inputs[0]))) is not None:
            changed |= _averaged(graph, node, chain)
    if changed:
        graph.clean()
    joined = [_joins_mean(graph, node) for node in graph.of("ReduceMean")]
    if any(joined):
        graph.clean()


def _joins_mean(graph: QuantGraph, node: Node) -> bool:
    """Make one of a mean and that in front of it, if nothing is rounded in between."""
    with suppress(NoMatch):
        return graph.quant(node.inputs[0]) is None and reduction_of_a_reduction(graph, node)
    return False


def _take_whole(graph: QuantGraph) -> None:
    """Leave out Slices that take everything, and Pads by nothing."""
    idle = [node for node in graph.of("Slice", "Pad") if _does_nothing(graph, node)]
    for node in idle:
        x, out = node.inputs[0], node.outputs[0]
        show_at(graph, Chain(x, View.same(rank_of(x) or 0), 1), out)
        graph.replace(out, x)
    if idle:
        graph.clean()


def _does_nothing(graph: QuantGraph, node: Node) -> bool:
    x, out = node.inputs[0], node.outputs[0]
    if graph.quant(x) != graph.quant(out) or graph.is_output(out):
        return False
    if node.op == "Pad":
        widths = value_of(node.inputs[1])
        return widths is not None and not widths.any()
    before, after = shape_of(x), shape_of(out)
    axes, steps = value_of(node.optional(3)), value_of(node.optional(4))
    if before is None or after is None or len(before) != len(after) or axes is None:
        return False
    if node.optional(4) is not None and (steps is None or (steps != 1).any()):
        return False
    taken: list[int] = axes.reshape(-1).tolist()
    if not all(-len(before) <= axis < len(before) for axis in taken):
        return False
    return all(isinstance(before[axis], int) and before[axis] == after[axis] for axis in taken)


def _join(graph: QuantGraph) -> None:
    """Write each chain of views by the fewest operators."""
    chains: dict[int, Chain] = {}
    changed = False
    for node in graph.of(*LAYOUT):
        chain, out = chain_to(graph, node, chains), node.outputs[0]
        if chain is None:
            continue
        chains[id(out)] = chain
        steps, params = len(chain.steps()), graph.quant(out)
        if steps >= chain.length or (not steps and graph.is_output(out) and not _may_be_output(graph, chain.source)):
            continue
        if steps and params is not None and params.is_per_channel:
            continue
        for tensor in (node.inputs[0], out):
            if (part := chains.get(id(tensor))) is not None:
                show_at(graph, part, tensor)
        changed = True
        if steps:
            write(graph, chain.source, chain.view, out)
            chains[id(out)] = replace(chain, length=steps)
            continue
        graph.replace(out, chain.source)
    if changed:
        graph.sort()
        graph.clean()


def _may_be_output(graph: QuantGraph, tensor: Tensor) -> bool:
    """Whether a tensor can take an output's name, without a copy."""
    return graph.producer(tensor) is not None and not graph.is_output(tensor)


def _averaged(graph: QuantGraph, node: Node, chain: Chain) -> bool:
    """A mean over axes of a view is one over axes of its source; those of size 1 add nothing to it."""
    view, axes = chain.view, {axis % len(chain.view.axes) for axis in axes_of(node) or ()}
    spare = view.left()
    kept = list[int]()
    for axis in [axis for place, axis in enumerate(view.axes) if place not in axes]:
        after = kept[-1] if kept else -1
        kept.append(next((one for one in spare if one > after), -1) if axis is None else axis)
    if not axes or -1 in kept or kept != sorted(set(kept)) or node.attr("keepdims", 1):
        return False
    others = sorted(set(range(view.rank)) - set(kept))
    if not others:  # the mean of single numbers; no axes at all would be every axis
        return False
    node.inputs[0] = chain.source
    if node.optional(1) is None:
        node.attrs["axes"] = others
    else:  # opset 18
        node.inputs[1] = graph.constant(f"{node.outputs[0].name}_axes", np.asarray(others, np.int64))
    return True


def _at_once(graph: QuantGraph, node: Node) -> bool:
    sizes, x = value_of(node.optional(1)), node.inputs[0]
    if sizes is None or not np.all(sizes):  # a zero copies a size of what it reads
        return False
    for _ in range(_LONGEST):
        first = graph.producer(node.inputs[0])
        if not is_op(first, *LAYOUT) or first.op == "Transpose":
            break
        params = graph.quant(first.inputs[0])
        if not keeps_values(graph, first) or (params is not None and params.is_per_channel):
            break  # it is rounded in between, or has a grid for each channel
        node.inputs[0] = first.inputs[0]
    return node.inputs[0] is not x

"""Which integers an activation is stored as, where there is a choice: those of few values begin at 0.

    x: int8, zero point z                  uint8, zero point z + 128          (`QuantParams.as_dtype`)
    Relu(x): int8, never below 0           uint8 as they are, 0 to 127        and not 128 to 255
    x: int4, -8 to 7                       uint8, 0 to 15                     and not 120 to 135

The real numbers stay the same. Two neighboring products of a number up to 127 and an int8 weight fit 16 bits, so that
kernels which add them there are exact (x86 without VNNI). It costs no operator where a Relu bounds the tensor: one of
its two bounds is free either way. Tensors that are only moved, clamped or brought together on their grid begin alike,
so that moving them takes no rescaling.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from typing import Final

from qatc.compiler.graph import REQUANTIZE, Node, QuantGraph, Tensor, is_constant
from qatc.compiler.model.links import is_op
from qatc.compiler.passes.movement import is_movement, joined, pad_value
from qatc.compiler.passes.products import MEANS, PRODUCTS
from qatc.compiler.passes.propagate import clamp_bounds
from qatc.compiler.quant import QuantParams

_HIGHEST: Final = 127  # two products of it and -128 stay in 16 bits
_EVERYTHING: Final = (-float("inf"), float("inf"))

Interval = tuple[float, float]


def from_zero(graph: QuantGraph) -> dict[str, QuantParams]:
    """The uint8 parameters of the activations that begin at 0, by name: one scale, 128 integers at most.

    Their `qmin` and `qmax` are what the tensors reach. Those that no product reads are not among them, nor those whose
    lowest integer is 0 already, nor ports of integers, whose form the user knows.
    """
    reached = _reached(graph)
    if not any(map(_excess, reached.values())):
        return {}
    multiplied = {node.inputs[0].name for node in graph.of(*PRODUCTS)}
    forms: dict[str, QuantParams] = {}
    for group in _groups(graph, reached):
        if multiplied.isdisjoint(group):
            continue
        low, high = min(reached[name].qmin for name in group), max(reached[name].qmax for name in group)
        excess = _excess(reached[group[0]].with_range(low, high))
        for name in group if excess else ():
            params = reached[name]  # its own range: a clamp that cuts nothing off is none
            (zero,) = params.zero_point
            forms[name] = replace(
                params, zero_point=(zero - excess,), qmin=params.qmin - excess, qmax=params.qmax - excess
            )
    return forms


def _excess(params: QuantParams) -> int:
    """By how much the integers begin too high, as far as zero stays on the grid; 0 where they are too many."""
    excess = min(params.qmin, params.zero_point[0])
    return excess if params.qmax - excess <= _HIGHEST else 0


def _reached(graph: QuantGraph) -> dict[str, QuantParams]:
    """The activations of 8 bits and one scale as uint8, `qmin` and `qmax` what they reach as far as is known."""
    reals: dict[int, Interval] = {}
    reached: dict[str, QuantParams] = {}
    made = [(tensor, _EVERYTHING) for tensor in graph.inputs]
    for tensor, (low, high) in chain(made, _results(graph, reals)):
        params = graph.quant(tensor)
        if params is not None and params.is_byte:
            params = params.as_dtype("uint8")
            (least,), (most,) = params.quantize_number(low), params.quantize_number(high)
            reached[tensor.name] = params.with_range(least, most)
            (scale,), (zero,) = params.scale, params.zero_point
            low, high = scale * (least - zero), scale * (most - zero)
        if (low, high) != _EVERYTHING:
            reals[id(tensor)] = low, high
    return reached


def _results(graph: QuantGraph, reals: dict[int, Interval]) -> Iterator[tuple[Tensor, Interval]]:
    """Every result of every node, and where it lies before it is rounded."""
    for node in graph.nodes:
        interval = _interval(graph, node, reals)
        yield from ((tensor, interval) for tensor in node.outputs if tensor.name)


def _interval(graph: QuantGraph, node: Node, reals: dict[int, Interval]) -> Interval:
    """Where the results of a node lie, before they are rounded."""
    x = reals.get(id(node.inputs[0]), _EVERYTHING) if node.inputs else _EVERYTHING
    bounds = clamp_bounds(graph, node)
    if bounds is not None:
        return min(max(x[0], bounds[0]), bounds[1]), max(min(x[1], bounds[1]), bounds[0])
    if node.op == REQUANTIZE:
        return x
    if is_movement(node):
        filled = pad_value(node) if node.op == "Pad" else None
        return x if filled is None else _hull([x, (filled, filled)])
    parts = joined(node)
    if parts:
        return _hull([reals.get(id(t), _EVERYTHING) for t in parts])
    if is_op(node, *MEANS):
        return _hull([x, (0.0, 0.0)])  # of padding
    return (0.0, 1.0) if is_op(node, "Softmax") else _EVERYTHING


def _hull(parts: list[Interval]) -> Interval:
    return min(low for low, _ in parts), max(high for _, high in parts)


def _groups(graph: QuantGraph, reached: dict[str, QuantParams]) -> list[list[str]]:
    """The activations that begin alike; not those which a constant is brought together with, nor integer ports."""
    leader: dict[str, str] = {name: name for name in reached}

    def find(name: str) -> str:
        while leader[name] != name:
            leader[name] = name = leader[leader[name]]
        return name

    fixed = {name for name in graph.integer_ports if name in reached}
    for node in graph.nodes:
        for part, out in _alike(graph, node):
            if out.name not in reached:
                continue
            if is_constant(part):
                fixed.add(out.name)
            elif part.name in reached and reached[part.name].same_grid(reached[out.name]):
                leader[find(part.name)] = find(out.name)
    members: dict[str, list[str]] = {}
    for name in reached:
        members.setdefault(find(name), []).append(name)
    for name in fixed:
        members.pop(find(name), None)
    return list(members.values())


def _alike(graph: QuantGraph, node: Node) -> Iterator[tuple[Tensor, Tensor]]:
    """Operands and results of a node that hold the same integers, or some of them."""
    parts = joined(node)
    if not parts and (is_movement(node) or clamp_bounds(graph, node) is not None):
        parts = node.inputs[:1]
    for part in parts:
        for out in node.outputs:
            yield part, out

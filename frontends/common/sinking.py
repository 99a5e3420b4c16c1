"""Transposes inside a quantizer of arithmetic go behind it: tf2onnx puts them wherever layouts meet.

    x -> Mul(1/s) -> Transpose -> Round -> Mul(s) -> y        x -> Mul(1/s) -> Round -> Mul(s) -> Transpose -> y
    ... -> Cast(int16) -> MaxPool -> Cast(float) -> Mul(s)     ... -> Cast(int16) -> Cast(float) -> Mul(s) -> MaxPool

Rounding, and arithmetic with one number for all elements, do not mind in which order the elements lie. Whatever else
moves integers goes behind what makes real numbers of them, too: packages of 16-bit integers are written so.
"""

from __future__ import annotations

from typing import Final

import onnx

from qatc.compiler.graph import Node, QuantGraph, Tensor, rank_of, shape_of, value_of
from qatc.compiler.model.links import computed, is_op
from qatc.compiler.passes.modernize import element_type
from qatc.compiler.passes.movement import MAXIMA, is_movement

_ROUNDINGS: Final = frozenset({"Round", "Floor"})
_SCALAR: Final = frozenset({"Add", "Sub", "Mul", "Div", "Clip", "Min", "Max"})
_LONGEST: Final = 8  # operators on each side of a rounding
_INTEGERS: Final = frozenset({onnx.TensorProto.INT16, onnx.TensorProto.UINT16})
_RISING: Final = MAXIMA | {"ReduceMax", "ReduceMin"}  # they choose by size


def sink(graph: QuantGraph) -> bool:
    """Move every Transpose between a rounding and the arithmetic around it behind all of that; whether any moved."""
    moved = [_sink_from(graph, _start(graph, n)) for n in graph.of(*_ROUNDINGS)]
    if any(moved):
        graph.sort()
    return any(moved)


def _start(graph: QuantGraph, rounding: Node) -> Node:
    """The first operator of the arithmetic that leads to a rounding, each read by the next alone."""
    at = start = rounding
    for _ in range(2 * _LONGEST):
        data = next(iter(computed(at)), None)
        maker = None if data is None else graph.producer(data)
        if data is None or maker is None or graph.only_consumer(data) is not at:
            break
        source = next(iter(computed(maker)), None)
        if not is_op(maker, "Transpose") and (source is None or not _is_elementwise(maker, source)):
            break
        at = maker
        if not is_op(maker, "Transpose"):
            start = maker
    return start


def _sink_from(graph: QuantGraph, start: Node) -> bool:
    """Walk on from `start` and move what transposes on the way behind each operator; whether anything moved."""
    waiting: list[Node] = []
    last, moved, integers = start, False, False
    for _ in range(4 * _LONGEST):
        node = graph.only_consumer(last.outputs[0])
        if node is None:
            break
        if is_op(node, "Transpose") or (integers and _moves(node)):
            waiting.append(node)
            last = node
            continue
        if not _is_elementwise(node, last.outputs[0]) or not _goes_before(graph, node, last.outputs[0], waiting):
            break
        for movement in reversed(waiting):
            _swap(graph, movement, node)
            moved = True
        if node.op == "Cast":
            integers = node.attr("to") in _INTEGERS
        last = waiting[-1] if waiting else node
    return moved


def _moves(node: Node) -> bool:
    """Whether a node moves the elements of one tensor, and brings in none."""
    return is_movement(node) and len(node.outputs) == 1 and node.op != "Pad"


def _goes_before(graph: QuantGraph, node: Node, data: Tensor, movements: list[Node]) -> bool:
    """Whether arithmetic may come before what moves its data: its numbers have no dimensions, and keep the order."""
    if all(is_op(m, "Transpose") for m in movements):
        return True
    numbers = [v for t in node.inputs if t is not data and (v := graph.real(t)) is not None]
    falls = (node.op in ("Mul", "Div") and any(v < 0 for v in numbers)) or node.inputs[0] is not data
    return not any(v.ndim for v in numbers) and not (falls and any(m.op in _RISING for m in movements))


def _is_elementwise(node: Node, data: Tensor) -> bool:
    """Whether a node does the same to all elements of `data`: a rounding, a Cast, arithmetic with single numbers."""
    if not is_op(node, *_ROUNDINGS, *_SCALAR, "Cast"):
        return False
    others = [value_of(t) for t in node.inputs if t.name and t is not data]
    return all(v is not None and v.size == 1 and v.ndim <= max(1, rank_of(data) or 0) for v in others)


def _swap(graph: QuantGraph, transpose: Node, reader: Node) -> None:
    """`reader` computes what it did before the Transpose, which makes what `reader` made."""
    x, y = transpose.inputs[0], reader.outputs[0]
    index = next(i for i, t in enumerate(reader.inputs) if t is transpose.outputs[0])
    early = graph.variable(f"{y.name}_early", element_type(y), shape_of(x))
    reader.inputs[index], reader.outputs[0] = x, early
    transpose.inputs[0], transpose.outputs[0] = early, y

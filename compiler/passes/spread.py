"""Spread constants: what is stated for each element of a tensor, whose sizes run time decides, is stated once.

    Expand(c, Shape(x)) -> Neg -> Add(Expand(d, Shape(x))) -> Mul(x)        Neg(c) -> Add(d) -> Mul(x)
    x -> Shape -> ConstantOfShape(0) -> Where(b, x, .)                      Where(b, x, 0)

Keras spreads the bits of each element (HGQ2), PyTorch writes full_like and zeros_like; with an open batch none of these
is a constant. Arithmetic with a tensor of that shape needs no such operand, nor does what leads to one.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from qatc.compiler.graph import Node, QuantGraph, Tensor, is_constant, repeats_into, shape_of
from qatc.compiler.model.links import is_op
from qatc.compiler.passes.modernize import element_type, infer_if_possible

_ELEMENTWISE: Final = frozenset(
    {"Abs", "Add", "And", "Cast", "Ceil", "Div", "Equal", "Exp", "Floor", "Greater", "GreaterOrEqual", "Less",
     "LessOrEqual", "Log", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Pow", "Reciprocal", "Relu", "Round", "Sign",
     "Sqrt", "Sub", "Where"}
)  # fmt: skip


def unspread(graph: QuantGraph) -> bool:
    """Rewrite a sorted graph with folded constants in place; whether anything changed, which leaves more to fold."""
    if not any(map(_is_spread, graph.of("Expand", "ConstantOfShape"))):
        return False
    infer_if_possible(graph)
    spreads: dict[int, Tensor | Node] = {}  # id of a tensor -> what is spread, or the node that computes with such
    changed = False
    for node in list(graph.nodes):
        if _is_spread(node):
            spreads[id(node.outputs[0])] = _source(graph, node)
        elif not node.domain and node.op in _ELEMENTWISE and any(id(t) in spreads for t in node.inputs):
            data = [t for t in node.inputs if id(t) not in spreads and not is_constant(t)]
            if not data:
                spreads[id(node.outputs[0])] = node
            for index, tensor in enumerate(node.inputs):
                if id(tensor) in spreads and any(repeats_into(shape_of(tensor), shape_of(other)) for other in data):
                    node.inputs[index] = _once(graph, tensor, spreads)
                    changed = True
    if changed:
        graph.sort()
        graph.clean()
    return changed


def _is_spread(node: Node) -> bool:
    """Whether a node spreads a constant to sizes which are none."""
    if is_op(node, "Expand"):
        return is_constant(node.inputs[0]) and not is_constant(node.inputs[1])
    return is_op(node, "ConstantOfShape") and not is_constant(node.inputs[0])


def _source(graph: QuantGraph, node: Node) -> Tensor:
    """The constant that a node spreads."""
    if node.op == "Expand":
        return node.inputs[0]
    value = np.asarray(node.attr("value", np.zeros(1, np.float32)))
    return graph.constant(f"{node.outputs[0].name}_value", value.reshape(()))


def _once(graph: QuantGraph, tensor: Tensor, spreads: dict[int, Tensor | Node]) -> Tensor:
    """What is spread in a tensor: a constant, or what the same operators make of constants, each made once."""
    waiting = [tensor]
    while waiting:
        last = waiting[-1]
        node = spreads.get(id(last), last)
        missing = [t for t in node.inputs if isinstance(spreads.get(id(t)), Node)] if isinstance(node, Node) else []
        if missing:
            waiting += missing
            continue
        waiting.pop()
        if isinstance(node, Node):
            inputs = [_known(spreads, t) for t in node.inputs]
            name, kind = f"{last.name}_once", element_type(last)
            spreads[id(last)] = graph.apply(node.op, inputs, name, kind, name=node.name, attrs=node.attrs)
    return _known(spreads, tensor)


def _known(spreads: dict[int, Tensor | Node], tensor: Tensor) -> Tensor:
    found = spreads.get(id(tensor), tensor)
    return tensor if isinstance(found, Node) else found

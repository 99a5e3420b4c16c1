"""Spread constants: what is stated for each element of a tensor, whose sizes run time decides, is stated once.

    Expand(c, Shape(x)) -> Neg -> Add(Expand(d, Shape(x))) -> Mul(x)        Neg(c) -> Add(d) -> Mul(x)
    x -> Shape -> ConstantOfShape(0) -> Where(b, x, .)                      Where(b, x, 0)

Keras spreads the bits of each element (HGQ2), PyTorch writes full_like and zeros_like; with an open batch none of these
is a constant. Arithmetic on them comes before the spreading, and arithmetic with a tensor of that shape needs none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from qatc.compiler.graph import Node, QuantGraph, Tensor, is_constant, repeats_into, shape_of
from qatc.compiler.model.links import is_op
from qatc.compiler.passes.modernize import infer_if_possible

_ELEMENTWISE: Final = frozenset(
    {"Abs", "Add", "And", "Cast", "Ceil", "Div", "Equal", "Exp", "Floor", "Greater", "GreaterOrEqual", "Less",
     "LessOrEqual", "Log", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Pow", "Reciprocal", "Relu", "Round", "Sign",
     "Sqrt", "Sub", "Where"}
)  # fmt: skip


def unspread(graph: QuantGraph) -> bool:
    """Rewrite a sorted graph with folded constants in place; whether anything changed, which leaves more to fold."""
    if not any(_source(graph, node) is not None for node in graph.nodes):
        return False
    infer_if_possible(graph)
    spreads: dict[int, tuple[Tensor, Tensor]] = {}  # id of a tensor -> what is spread, and to which sizes
    fixed: set[int] = set()  # what constants alone come to
    changed = False
    for node in list(graph.nodes):
        source = _source(graph, node)
        if source is not None:
            spreads[id(node.outputs[0])] = source, node.inputs[-1]
        elif not node.domain and node.op in _ELEMENTWISE and any(id(t) in spreads for t in node.inputs):
            data = [t for t in node.inputs if id(t) not in spreads and id(t) not in fixed and not is_constant(t)]
            if data:
                changed |= _state_once(node, data, spreads)
            else:
                changed |= _spread_later(graph, node, spreads, fixed)
    if changed:
        graph.sort()
        graph.clean()
    return changed


def _source(graph: QuantGraph, node: Node) -> Tensor | None:
    """The constant that a node spreads to sizes which are none."""
    if is_op(node, "Expand") and is_constant(node.inputs[0]) and not is_constant(node.inputs[1]):
        return node.inputs[0]
    if not is_op(node, "ConstantOfShape") or is_constant(node.inputs[0]):
        return None
    value = np.asarray(node.attr("value", np.zeros(1, np.float32)))
    return graph.constant(f"{node.outputs[0].name}_value", value.reshape(()))


def _state_once(node: Node, data: Sequence[Tensor], spreads: dict[int, tuple[Tensor, Tensor]]) -> bool:
    """Let a node read what is spread to no more than the sizes of its data as it is."""
    changed = False
    for index, tensor in enumerate(node.inputs):
        if id(tensor) in spreads and any(repeats_into(shape_of(tensor), shape_of(other)) for other in data):
            node.inputs[index] = spreads[id(tensor)][0]
            changed = True
    return changed


def _spread_later(graph: QuantGraph, node: Node, spreads: dict[int, tuple[Tensor, Tensor]], fixed: set[int]) -> bool:
    """Let a node of constants, spread or not, compute before they are spread."""
    widest = next(
        (
            t
            for t in node.inputs
            if id(t) in spreads and all(repeats_into(shape_of(o), shape_of(t)) for o in node.inputs)
        ),
        None,
    )
    if widest is None:
        return False
    sizes, out = spreads[id(widest)][1], node.outputs[0]
    node.inputs = [spreads[id(t)][0] if id(t) in spreads else t for t in node.inputs]
    small = graph.variable(f"{out.name}_once", out.dtype if isinstance(out.dtype, int) else None)
    node.outputs = [small]
    graph.insert("Expand", [small, sizes], [out], hint=f"{node.name}_spread")
    spreads[id(out)] = small, sizes
    fixed.add(id(small))
    return True

"""Signs: whatever Sign is given, its result lies on the grid -1, 0, 1 with a step of one; a product may read integers.

    x -> Sign -> Add(0.1) -> Sign -> Conv(w)       x -> Sign -> Add(0.1) -> Sign -> FakeQuant[-1, 1] -> Conv(w)

larq writes so what it binarizes, without a zero. QKeras writes s + (1 - |s|) of a sign s, which becomes larq's form,
and its ternary activations as Cast(|x| >= t) * Sign(x). The sign of a product's sum becomes that product's own result
(the lowering's `signs.py`); any other is taken in float.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from qatc.compiler.graph import FAKE_QUANT, Node, QuantGraph, Tensor, shape_of, value_of
from qatc.compiler.passes.modernize import element_type
from qatc.compiler.passes.movement import is_movement
from qatc.compiler.passes.products import is_product
from qatc.compiler.quant import QuantParams
from qatc.frontends.common.clamps import condition_of
from qatc.frontends.common.external import fake_quantize

_SIGNS: Final = QuantParams.per_tensor(1.0, 0, "int8", -1, 1)


def quantize_signs(graph: QuantGraph) -> None:
    """Put signs onto their grid where a product with quantized weights reads them; no value changes."""
    if not any(_is("Sign", n) for n in graph.nodes):
        return
    for node in [n for n in graph.nodes if _is("Add", n)]:
        _take_zero_for_positive(graph, node)
    found = [n for n in graph.nodes if _makes_signs(graph, n) and _meets_weights(graph, n.outputs[0])]
    for node in found:
        fake_quantize(graph, node.outputs[0], _SIGNS)
    graph.sort()


def _take_zero_for_positive(graph: QuantGraph, node: Node) -> None:
    """Make Sign(s + 0.5) of s + (1 - |s|), where s is a sign."""
    for signs, rest in (node.inputs, node.inputs[::-1]):
        difference = graph.producer(rest)
        if not _is("Sign", graph.producer(signs)) or difference is None or not _is("Sub", difference):
            continue
        one, absolute = value_of(difference.inputs[0]), graph.producer(difference.inputs[1])
        if one is None or one.size != 1 or one.reshape(-1)[0] != 1 or absolute is None:
            continue
        if _is("Abs", absolute) and absolute.inputs[0] is signs:
            half = graph.constant(f"{node.outputs[0].name}_half", np.asarray(0.5, one.dtype))
            shifted = graph.variable(f"{node.outputs[0].name}_shifted", element_type(signs), shape_of(signs))
            graph.insert("Add", [signs, half], [shifted], hint=f"{node.name}_shifted")
            node.op, node.inputs = "Sign", [shifted]
            return


def _makes_signs(graph: QuantGraph, node: Node) -> bool:
    """Whether all that a node can make is -1, 0 and 1: a sign, or one where a condition holds and 0 elsewhere."""
    if _is("Mul", node):
        return any(
            _is("Sign", graph.producer(signs)) and condition_of(graph, factor) is not None
            for signs, factor in (node.inputs, node.inputs[::-1])
        )
    return _is("Sign", node)


def _is(op: str, node: Node | None) -> bool:
    """Whether a node is the standard operator `op`."""
    return node is not None and node.op == op and not node.domain


def _meets_weights(graph: QuantGraph, signs: Tensor) -> bool:
    """Whether a product multiplies what is only moved by what lies on a grid."""
    waiting, seen = [signs], {id(signs)}
    for tensor in waiting:
        for node in dict.fromkeys(graph.consumers(tensor)):
            if is_product(node) and _other_is_quantized(graph, node, tensor):
                return True
            if is_movement(node) and node.inputs[0] is tensor and id(node.outputs[0]) not in seen:
                seen.add(id(node.outputs[0]))
                waiting.append(node.outputs[0])
    return False


def _other_is_quantized(graph: QuantGraph, node: Node, tensor: Tensor) -> bool:
    other = node.inputs[1] if node.inputs[0] is tensor else node.inputs[0]
    while (maker := graph.producer(other)) is not None and is_movement(maker):
        other = maker.inputs[0]
    return graph.quant(other) is not None or (maker is not None and maker.op == FAKE_QUANT)

"""Signs: whatever Sign is given, its result lies on the grid -1, 0, 1 with a step of one; a product may read integers.

    x -> Sign -> Add(0.1) -> Sign -> Conv(w)       x -> Sign -> Add(0.1) -> Sign -> FakeQuant[-1, 1] -> Conv(w)

larq writes so what it binarizes, without a zero. QKeras writes s + (1 - |s|) of a sign s, which becomes larq's form,
and its ternary activations as Cast(|x| >= t) * Sign(x). The sign of a product's sum becomes that product's own result
(the lowering's `signs.py`); any other is taken in float.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx

from qatc.compiler.graph import FAKE_QUANT, Node, QuantGraph, Tensor, shape_of, value_of
from qatc.compiler.passes.modernize import element_type
from qatc.compiler.passes.movement import is_movement
from qatc.compiler.passes.products import is_product
from qatc.compiler.quant import QuantParams
from qatc.frontends.external import fake_quantize

_BOOL: Final = onnx.TensorProto.BOOL
_SIGNS: Final = QuantParams.per_tensor(1.0, 0, "int8", -1, 1)


def quantize_signs(graph: QuantGraph) -> None:
    """Put signs onto their grid where a product with quantized weights reads them; no value changes."""
    for node in [n for n in graph.nodes if n.op == "Add" and not n.domain]:
        _take_zero_for_positive(graph, node)
    found = [n for n in graph.nodes if _makes_signs(graph, n) and _meets_weights(graph, n.outputs[0])]
    for node in found:
        fake_quantize(graph, node.outputs[0], _SIGNS)
    graph.sort()


def _take_zero_for_positive(graph: QuantGraph, node: Node) -> None:
    """Make Sign(s + 0.5) of s + (1 - |s|), where s is a sign."""
    for signs, rest in (node.inputs, node.inputs[::-1]):
        maker, difference = graph.producer(signs), graph.producer(rest)
        if maker is None or maker.op != "Sign" or maker.domain or difference is None or difference.op != "Sub":
            continue
        one, absolute = value_of(difference.inputs[0]), graph.producer(difference.inputs[1])
        if one is None or one.size != 1 or one.reshape(-1)[0] != 1 or absolute is None:
            continue
        if absolute.op == "Abs" and absolute.inputs[0] is signs:
            half = graph.constant(f"{node.outputs[0].name}_half", np.asarray(0.5, one.dtype))
            shifted = graph.variable(f"{node.outputs[0].name}_shifted", element_type(signs), shape_of(signs))
            graph.insert("Add", [signs, half], [shifted], hint=f"{node.name}_shifted")
            node.op, node.inputs = "Sign", [shifted]
            return


def _makes_signs(graph: QuantGraph, node: Node) -> bool:
    """Whether all that a node can make is -1, 0 and 1: a sign, or one where a condition holds and 0 elsewhere."""
    if node.domain:
        return False
    if node.op == "Mul" and len(node.inputs) == 2:
        makers = [graph.producer(t) for t in node.inputs]
        ops = [m.op if m is not None and not m.domain else "" for m in makers]
        return any(
            op == "Sign" and condition is not None and other == "Cast" and element_type(condition.inputs[0]) == _BOOL
            for op, other, condition in zip(ops, ops[::-1], makers[::-1], strict=True)
        )
    return node.op == "Sign"


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

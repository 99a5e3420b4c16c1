"""Signs: whatever Sign is given, its result lies on the grid -1, 0, 1 with a step of one; a product may read integers.

    x -> Sign -> Add(0.1) -> Sign -> Conv(w)       x -> Sign -> Add(0.1) -> Sign -> FakeQuant[-1, 1] -> Conv(w)

larq writes so what it binarizes, without a zero. The sign of a product's sum becomes that product's own result (the
lowering's `signs.py`); any other is taken in float.
"""

from __future__ import annotations

from typing import Final

from qatc.compiler.graph import FAKE_QUANT, Node, QuantGraph, Tensor
from qatc.compiler.passes.movement import is_movement
from qatc.compiler.passes.products import is_product
from qatc.compiler.quant import QuantParams
from qatc.frontends.external import fake_quantize

_SIGNS: Final = QuantParams.per_tensor(1.0, 0, "int8", -1, 1)


def quantize_signs(graph: QuantGraph) -> None:
    """Put what Sign makes onto its grid where a product with quantized weights reads it; no value changes."""
    found = [n for n in graph.nodes if n.op == "Sign" and not n.domain and _meets_weights(graph, n.outputs[0])]
    for node in found:
        fake_quantize(graph, node.outputs[0], _SIGNS)
    if found:
        graph.sort()


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

"""Sums that tf2onnx's Gemm rule took apart: x * W is computed twice there, once inside a Gemm with a computed summand.

    p = MatMul(x, W), t = Mul(p, 16), y = Gemm[alpha=16](x, W, c(t))    ->    y = Add(t, c(t))

QKeras' straight-through rounding, t + (round(t) - t), is such a sum. With a known batch tf2onnx makes a Gemm of its
first half, behind which the rounding cannot be seen.
"""

from __future__ import annotations

import numpy as np

from qatc.compiler.graph import Node, QuantGraph, Tensor, is_constant, value_of
from qatc.compiler.model.links import is_op
from qatc.compiler.quant import number_of


def sums_from_gemms(graph: QuantGraph) -> None:
    """Rewrite the graph in place: a Gemm with a computed summand reads the product where it is computed already."""
    products: dict[tuple[int, int], Tensor] = {
        (id(n.inputs[0]), id(n.inputs[1])): n.outputs[0]
        for n in graph.nodes
        if is_op(n, "MatMul") and len(n.inputs) == 2 and len(n.outputs) == 1
    }
    changed = False
    for node in graph.nodes:
        if products and _is_sum(node):
            product = products.get((id(node.inputs[0]), id(node.inputs[1])))
            if product is not None:
                scaled = _scaled(graph, product, float(node.attr("alpha", 1.0)), node)
                node.op, node.inputs = "Add", [scaled, node.inputs[2]]
                node.attrs.clear()
                changed = True
    if changed:
        graph.sort()


def _is_sum(node: Node) -> bool:
    """Whether it is a Gemm of two operands as they are, plus something computed."""
    plain = is_op(node, "Gemm") and len(node.inputs) == 3 and len(node.outputs) == 1
    if not plain or not node.inputs[2].name or is_constant(node.inputs[2]):
        return False
    return not node.attr("transA", 0) and not node.attr("transB", 0) and float(node.attr("beta", 1.0)) == 1.0


def _scaled(graph: QuantGraph, product: Tensor, alpha: float, node: Node) -> Tensor:
    """`alpha * product`: the tensor that is that already, or a new one."""
    if alpha == 1.0:
        return product
    for reader in graph.consumers(product):
        others = [t for t in reader.inputs if t is not product]
        if is_op(reader, "Mul") and len(others) == 1 and number_of(value_of(others[0])) == alpha:
            return reader.outputs[0]
    name = f"{node.outputs[0].name}_product"
    by = graph.constant(f"{name}_factor", np.asarray(alpha, np.float32))
    return graph.apply("Mul", [product, by], name, name=name)

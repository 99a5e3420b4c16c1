"""Biases that a product of integers cannot add become sums behind it.

    Gemm(q, W<s>, b)  b computed         Gemm(q, W<s>) -> Add(b)
    Gemm[beta=2](q, W<s>, b)  b [M, 1]   Gemm(q, W<s>) -> Add(2 * b)
    Gemm(q, r<s>, b)                     Gemm(q, r<s>) -> Add(b)         two activations: their unit is what it is
    Conv(q, W<s>, b)  b computed         Conv(q, W<s>) -> Add(Unsqueeze(b))

All are exact. Optimizers write such a Gemm for a product and the sum behind it (ONNX Runtime's, in front of its
quantization): a cell's gates, with the state's share added to the input's. What is not quantized stays as it is.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from qatc.compiler.graph import Constant, Node, QuantGraph, Tensor, shape_of
from qatc.compiler.passes.products import per_channel, put_behind

_BIASED: Final = frozenset({"Gemm", "Conv", "ConvTranspose"})


def part_biases(graph: QuantGraph) -> int:
    """Take every such bias apart, in one sweep; returns how many."""
    parted = 0
    for node in [n for n in graph.nodes if n.op in _BIASED]:
        if node.optional(2) is not None and not node.domain and _is_apart(graph, node):
            summand = _summand(graph, node)
            if summand is not None:
                name = node.outputs[0].name
                node.inputs = node.inputs[:2]
                node.attrs.pop("beta", None)
                put_behind(graph, node, "Add", summand, f"{name}_without_bias", f"{name}_bias")
                parted += 1
    if parted:
        graph.sort()
        graph.clean()
    return parted


def _is_apart(graph: QuantGraph, node: Node) -> bool:
    """Whether both operands are quantized, and the bias is no constant of one number for each output channel."""
    x, weight, bias = node.inputs
    if x.name not in graph.params or weight.name not in graph.params or len(node.outputs) != 1:
        return False
    value = graph.real(bias)
    if value is None:
        return True
    if node.op != "Gemm":
        return False
    columns = (shape_of(weight) or (None, None))[0 if node.attr("transB", 0) else -1]
    if not isinstance(weight, Constant):
        return bool(value.any())
    return isinstance(columns, int) and per_channel(value, -1, columns) is None


def _summand(graph: QuantGraph, node: Node) -> Tensor | None:
    """What is to be added: the bias times beta, with its axes in space; None where their number is not known."""
    bias, name = node.inputs[2], node.outputs[0].name
    if node.op != "Gemm":
        shape = shape_of(node.inputs[1])
        if shape is None or len(shape) < 3:
            return None
        axes = graph.constant(f"{name}_axes", np.arange(1, len(shape) - 1, dtype=np.int64))
        return graph.apply("Unsqueeze", [bias, axes], f"{name}_bias_in_space")
    beta, value = float(node.attr("beta", 1.0)), graph.real(bias)
    if beta == 1.0:
        return bias
    if value is not None:
        return graph.constant(f"{name}_scaled_bias", (value * np.float32(beta)).astype(np.float32))
    return graph.apply(
        "Mul", [bias, graph.constant(f"{name}_beta", np.asarray(beta, np.float32))], f"{name}_scaled_bias"
    )

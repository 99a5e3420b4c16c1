"""Numbers that quantized tensors are multiplied by move to where they cost nothing: behind what reads them.

    q -> Mul(c) -> Conv(W<s>, b)           q -> Conv(W<s * c>, b)            the weight's integers stay
    q -> Mul(c), r -> Mul(d) -> MatMul     q, r -> MatMul -> Mul(d) -> Mul(c)
    q -> Div(c) -> ReduceSum               q -> ReduceSum -> Mul(1 / c)      averages, too
    q -> Mul(c) -> Transpose | Reshape     q -> Transpose | Reshape -> Mul(c)

All are exact. The attention that PyTorch exports is such: query and key are each multiplied by the root of the scale.
What is rounded after its factor is another tensor, and a table (`lowering`).
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from qatc.compiler.diagnostics import printable
from qatc.compiler.graph import Node, QuantGraph, Tensor
from qatc.compiler.model.links import label_of
from qatc.compiler.passes.affine import scaled_weight
from qatc.compiler.passes.movement import MAXIMA, is_movement, pad_value, params_through
from qatc.compiler.passes.products import is_product, is_sum, mac_of, put_behind, with_number

_BY: Final = frozenset({"Mul", "Div"})


def move_factors(graph: QuantGraph) -> int:
    """Move every such number as far as it goes, in one sweep over the sorted graph; returns how many moves."""
    if not any(node.op in _BY for node in graph.nodes):
        return 0
    moves = 0
    for node in list(graph.nodes):
        for index, tensor in enumerate(node.inputs[:2]):
            maker = graph.producer(tensor)
            if maker is not None and maker.op in _BY:
                moves += _behind(graph, node, index)
    if moves:
        graph.sort()
        graph.clean()
    return moves


def _factor(graph: QuantGraph, tensor: Tensor) -> tuple[Tensor, float] | None:
    """The quantized tensor and the number that an unrounded tensor is the product of, None where it is none."""
    node = graph.producer(tensor) if tensor.name not in graph.params else None
    found = with_number(graph, node, "Mul", "Div")
    if node is None or found is None or found[0].name not in graph.params:
        return None
    x, number = found
    return (x, number if node.op == "Mul" else 1.0 / number) if number and math.isfinite(number) else None


def _behind(graph: QuantGraph, node: Node, index: int) -> bool:
    """Let a node read a tensor without its factor, and multiply its result instead, or its weight."""
    found = _factor(graph, node.inputs[index])
    if found is None or len(node.outputs) != 1:
        return False
    x, number = found
    if not (_in_weight(graph, node, index, number) or _on_result(graph, node, index, x, number)):
        return False
    node.inputs[index] = x
    graph.explain("factors", f"the factor {number:.6g} moved behind {printable(label_of(node))}")
    return True


def _in_weight(graph: QuantGraph, node: Node, index: int, number: float) -> bool:
    """Multiply the scales of a product's constant weight."""
    mac = mac_of(node)
    if mac is None or index or mac.weight.name not in graph.params:
        return False
    scaled = scaled_weight(mac.weight.values, graph.params[mac.weight.name], mac.axis, np.full(mac.channels, number))
    if scaled is None:
        return False
    node.inputs[1] = graph.constant(f"{mac.weight.name}_scaled", *scaled)
    return True


def _on_result(graph: QuantGraph, node: Node, index: int, x: Tensor, number: float) -> bool:
    """Multiply what the node makes, if a multiple of its operand makes the same multiple of it."""
    out = node.outputs[0]
    carried = None
    if is_product(node):
        if node.optional(2) is not None:
            return False  # its bias is no multiple
    elif index or not (is_sum(node) or _commutes(node, number)):
        return False
    elif not is_sum(node):
        carried = params_through(node, graph.params[x.name])
        if carried is None or out.name in graph.params:
            return False
    elif node.op == "ReduceL1" and number < 0:
        return False
    constant = graph.constant(f"{out.name}_factor", np.asarray(number, np.float32))
    made = put_behind(graph, node, "Mul", constant, f"{out.name}_without_factor", f"{out.name}_factor")
    if carried is not None:
        graph.params[made.name] = carried
    return True


def _commutes(node: Node, number: float) -> bool:
    """Whether the node moves elements: zero is what it may bring in, and maxima keep their order."""
    if not is_movement(node) or (node.op in MAXIMA | {"ReduceMax", "ReduceMin"} and number < 0):
        return False
    return node.op != "Pad" or node.attr("mode", "constant") != "constant" or pad_value(node) == 0

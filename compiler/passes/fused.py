"""Fused: what ONNX Runtime's optimizer wrote as one operator of its own is ONNX's operators again.

    FusedConv[activation=Clip, activation_params=[0, 6]](x, w, b, z)   Clip(Conv(x, w, b) + z, 0, 6)
    FusedGemm[activation=LeakyRelu, activation_alpha=.1](a, b, c)      LeakyRelu[alpha=.1](Gemm(a, b, c))
    FusedMatMul[transB=1, alpha=.25](a, b)                             MatMul(a, Transpose(b)) * .25
    BiasGelu(x, b)                                                     Gelu(x + b), its own operator still
    SkipLayerNormalization(x, s, g, b, c) -> y, _, _, sum              sum = x + c + s; LayerNormalization(sum, g, b)

They stand in files that it saved at its extended level. Functions of one tensor (Gelu, QuickGelu) stay: tables.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import onnx

from qatc.compiler.graph import Node, QuantGraph, Tensor, rank_of
from qatc.compiler.model.protos import MICROSOFT
from qatc.compiler.passes.later import made
from qatc.compiler.rewrite import NoMatch, Rules

FUSED: Final = Rules("modernize")
# The attributes that the numbers of `activation_params` are, in their order.
_PARAMETERS: Final = {"LeakyRelu": ("alpha",), "HardSigmoid": ("alpha", "beta"), "Clip": ("min", "max")}


def is_fused(node: Node) -> bool:
    """Whether a rule here may take the node apart."""
    return node.domain == MICROSOFT and bool(FUSED.of(node))


@FUSED.on("FusedConv", domain=MICROSOFT)
def convolution(graph: QuantGraph, node: Node) -> bool:
    """Apart: the convolution, the tensor that it adds, and the activation."""
    name = str(node.attr("activation", ""))
    numbers = [float(v) for v in node.attr("activation_params", [])]
    summand = node.optional(3)
    node.inputs = node.inputs[:3]
    while not node.inputs[-1].name:
        node.inputs.pop()
    parameters = dict(zip(_PARAMETERS.get(name, ()), numbers, strict=False))
    _become(node, "Conv")
    _activate(graph, node, name, parameters)
    if summand is not None:
        _before(graph, node, "Add", [summand])
    return True


@FUSED.on("FusedGemm", domain=MICROSOFT)
def gemm(graph: QuantGraph, node: Node) -> bool:
    """Apart: the product, and the activation, whose attributes have its name in front."""
    name, prefix = str(node.attr("activation", "")), "activation_"
    parameters = {key.removeprefix(prefix): node.attr(key, 0.0) for key in node.attrs if key.startswith(prefix)}
    _become(node, "Gemm")
    _activate(graph, node, name, parameters)
    return True


@FUSED.on("FusedMatMul", domain=MICROSOFT)
def matrix_product(graph: QuantGraph, node: Node) -> bool:
    """Apart: the transpositions, the product and the factor behind it."""
    if any(node.attr(name) for name in ("transBatchA", "transBatchB")):
        raise NoMatch("its batches lie elsewhere than in front")
    ranks = [rank_of(t) for t in node.inputs]
    turned = [bool(node.attr(name)) for name in ("transA", "transB")]
    if any(turn and rank is None for turn, rank in zip(turned, ranks, strict=True)):
        raise NoMatch("the rank of what it transposes is not known")
    alpha = float(node.attr("alpha", 1.0))
    for index, (turn, rank) in enumerate(zip(turned, ranks, strict=True)):
        if turn and rank is not None and rank > 1:  # a vector has nothing to transpose
            order = [*range(rank - 2), rank - 1, rank - 2]
            operand = node.inputs[index]
            node.inputs[index] = made(graph, "Transpose", [operand], f"{operand.name}_turned", None, perm=order)
    node.attrs.clear()
    _become(node, "MatMul")
    if alpha != 1:
        factor = graph.constant(f"{node.outputs[0].name}_alpha", np.asarray(alpha, np.float32))
        _before(graph, node, "Mul", [factor])
    return True


@FUSED.on("BiasGelu", domain=MICROSOFT)
def biased_gelu(graph: QuantGraph, node: Node) -> bool:
    """The addition in front of the function."""
    node.inputs = [made(graph, "Add", node.inputs, f"{node.outputs[0].name}_biased", None)]
    node.op = "Gelu"
    return True


@FUSED.on("SkipLayerNormalization", domain=MICROSOFT)
def skip_normalization(graph: QuantGraph, node: Node) -> bool:
    """The sums in front of the normalization, of which the larger may be read, too."""
    if any(t.name and (t.outputs or graph.is_output(t)) for t in node.outputs[1:3]):
        raise NoMatch("its mean or deviation is read, too")
    x, skip, factor, *more = node.inputs
    name = node.outputs[0].name
    if len(more) > 1 and more[1].name:
        x = made(graph, "Add", [x, more[1]], f"{name}_biased", None)
    total: Tensor = node.outputs[3] if len(node.outputs) > 3 and node.outputs[3].name else graph.variable(f"{name}_sum")
    node.outputs = node.outputs[:1]
    graph.insert("Add", [x, skip], [total], hint=f"{name}_sum")
    node.inputs = [total, factor, *(t for t in more[:1] if t.name)]
    _become(node, "LayerNormalization")
    node.attrs = {"axis": -1, "epsilon": float(node.attr("epsilon", 1e-12))}
    return True


def _become(node: Node, op: str) -> None:
    """Another operator, one of ONNX itself, with those attributes that it has."""
    known = onnx.defs.get_schema(op).attributes
    node.op, node.domain = op, None
    node.attrs = {name: value for name, value in node.attrs.items() if name in known}


def _activate(graph: QuantGraph, node: Node, name: str, parameters: dict[str, Any]) -> None:
    if not name:
        return
    if name != "Clip":
        _before(graph, node, name, [], parameters)
        return
    bounds = [np.asarray(parameters[key], np.float32) for key in _PARAMETERS[name] if key in parameters]
    _before(graph, node, name, [graph.constant(f"{node.outputs[0].name}_bound", bound) for bound in bounds])


def _before(graph: QuantGraph, node: Node, op: str, others: list[Tensor], attrs: dict[str, Any] | None = None) -> None:
    """Put an operator between a node and its result, which keeps its name."""
    result = node.outputs[0]
    node.outputs[0] = graph.variable(f"{result.name}_{node.op}", shape=result.shape)
    graph.insert(op, [node.outputs[0], *others], [result], hint=f"{result.name}_{op}", attrs=attrs)

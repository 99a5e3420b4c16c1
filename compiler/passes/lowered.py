"""Products of integers that are no fake quantization: what a tool made of a quantized model in a way of its own.

x -> Div(s) -> Round -> Cast(int8) -> Gemm(., W<int8>) -> Cast(float) -> Mul(s) -> Mul(t)
"""

from __future__ import annotations

from typing import Final

import onnx

from qatc.compiler.diagnostics import CompileError, Diagnostic
from qatc.compiler.graph import Node, QuantGraph, Tensor
from qatc.compiler.model.links import is_op, label_of
from qatc.compiler.passes.branches import inline_branches
from qatc.compiler.passes.constants import fold_constants
from qatc.compiler.passes.products import is_product

_FAR: Final = 6  # operators between a scale and the integers: Round, Clip, Cast, ...
_INTEGERS: Final = frozenset(
    getattr(onnx.TensorProto, name) for name in ("INT4", "UINT4", "INT8", "UINT8", "INT16", "UINT16", "INT32")
)
_STATIC: Final = "quantize with scales that are constants, and export the model from before its products were integer"
_BEFORE: Final = "export the model that fake-quantizes in float, from before its products were made integer"


def refuse_products_of_integers(graph: QuantGraph) -> None:
    """Look for products of integers by operators that are meant for real numbers.

    That is not fake quantization any more, but what a tool made of it. Where what it rounds is divided by a number that
    depends on the model's inputs, there is no scale to compile with either. The graph is folded for that, and its
    constant conditions have chosen: nothing else is to be done with it.

    Raises:
        CompileError: where there are any, QAT205 or QAT104 for each.
    """
    fold_constants(graph)
    if inline_branches(graph):
        fold_constants(graph)
    found: list[Diagnostic] = []
    computed = _computed(graph)
    for node in graph.nodes:
        casts = [graph.producer(t) for t in node.inputs[:2]] if is_product(node) else []
        rounded = [n for n in casts if is_op(n, "Cast") and n.attr("to") in _INTEGERS]
        if not rounded:
            continue
        scales = [_scale_of(graph, n) for n in rounded]
        scale = next((s for s in scales if s is not None and id(s) in computed), None)
        if scale is not None:
            message = f"the scale of the integers that this {node.op} multiplies is computed at run time"
            found.append(Diagnostic("QAT205", message, node=label_of(node), tensor=scale.name, hint=_STATIC))
        else:
            message = f"this {node.op} multiplies integers, which is no fake quantization any more"
            found.append(Diagnostic("QAT104", message, node=label_of(node), tensor=node.inputs[0].name, hint=_BEFORE))
    if found:
        raise CompileError(found)


def _scale_of(graph: QuantGraph, cast: Node) -> Tensor | None:
    """What the integers behind a Cast were divided by; None where that is not in sight."""
    node: Node | None = cast
    for _ in range(_FAR):
        if node is None or node.op in ("Div", "Mul"):
            break
        node = graph.producer(node.inputs[0]) if node.inputs else None
    return node.inputs[1] if node is not None and node.op in ("Div", "Mul") else None


def _computed(graph: QuantGraph) -> set[int]:
    """The tensors that depend on the model's inputs, by identity."""
    found = {id(t) for t in graph.inputs}
    for node in graph.nodes:
        if any(id(t) in found for t in node.inputs):
            found.update(map(id, node.outputs))
    return found

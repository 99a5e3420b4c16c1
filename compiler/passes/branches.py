"""Branches: an If whose condition is constant becomes the nodes of the branch that is taken.

    c = Equal(Shape(x)[1], 1) -> If(c) {then: Squeeze(x), else: Identity(x)} -> y        Squeeze(x) -> y

PyTorch writes such conditions on shapes; with known shapes they fold to constants. Names in a body may be those of
tensors around it, or of the other branch's: what the body makes gets new names. Its operators are of the file's opset.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import onnx

from qatc.compiler.graph import Node, QuantGraph, Tensor, Variable, value_of
from qatc.compiler.model.links import is_op
from qatc.compiler.model.protos import captured_names, domain_of
from qatc.compiler.model_io import CAPTURES, captures_of, dims_of
from qatc.compiler.passes.modernize import OPSET, UPGRADE
from qatc.compiler.quant import number_of
from qatc.compiler.rewrite import sweep

_BRANCHES: Final = ("else_branch", "then_branch")


def inline_branches(graph: QuantGraph) -> int:
    """Replace every If of a constant condition by its branch, also those inside; returns how many there were."""
    found = 0
    taken = [n for n in graph.nodes if _condition(n) is not None]
    while taken:
        found += len(taken)
        inner: list[Node] = []
        for node in taken:
            inner += _inline(graph, node)
        graph.remove(taken)
        if graph.body_opset < OPSET:
            sweep(graph, UPGRADE, inner)
        taken = [n for n in inner if _condition(n) is not None]
    if found:
        graph.sort()
        graph.clean()
    return found


def _condition(node: Node) -> bool | None:
    """The constant condition of an If, None where it has none."""
    if not is_op(node, "If") or not node.inputs:
        return None
    number = number_of(value_of(node.inputs[0]))
    return None if number is None else bool(number)


def _inline(graph: QuantGraph, node: Node) -> list[Node]:
    body: onnx.GraphProto = node.attrs[_BRANCHES[bool(_condition(node))]]
    captured = captures_of(node.attrs)
    tensors: dict[str, Tensor] = dict(zip(captured, node.inputs[len(node.inputs) - len(captured) :], strict=True))
    for initializer in body.initializer:
        tensors[initializer.name] = graph.constant(initializer.name, onnx.numpy_helper.to_array(initializer))
    kinds = {v.name: v.type.tensor_type for v in [*body.value_info, *body.output]}
    made: list[Node] = []
    for proto in body.node:
        for name in proto.output:
            kind = kinds.get(name)
            dims = list(dims_of(kind)) if kind is not None and kind.HasField("shape") else None
            element = kind.elem_type if kind is not None and kind.elem_type else None
            tensors[name] = graph.variable(name, element, dims) if name else Variable("")
        made.append(_node(graph, proto, tensors))
    graph.known |= {name for name, tensor in tensors.items() if tensor.name == name}  # a viewer shows those, too
    for output, result in zip(body.output, list(node.outputs), strict=True):
        if result.name:
            graph.replace(result, tensors[output.name])
    return made


def _node(graph: QuantGraph, proto: onnx.NodeProto, tensors: dict[str, Tensor]) -> Node:
    """A node of the body as one of the graph."""
    outer = captured_names(proto)
    attrs: dict[str, Any] = {a.name: _value(a) for a in proto.attribute}
    if outer:
        attrs[CAPTURES] = outer
    inputs = [tensors[n] if n else Variable("") for n in [*proto.input, *outer]]
    hint = proto.name or f"{proto.op_type}_{proto.output[0] if proto.output else ''}"
    outputs = [tensors[n] for n in proto.output]
    return graph.insert(proto.op_type, inputs, outputs, hint=hint, domain=domain_of(proto.domain), attrs=attrs)


def _value(attribute: onnx.AttributeProto) -> Any:
    if attribute.type == onnx.AttributeProto.TENSOR:
        return np.asarray(onnx.numpy_helper.to_array(attribute.t))
    return onnx.helper.get_attribute_value(attribute)

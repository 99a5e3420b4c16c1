"""Branches: an If whose condition is constant becomes the nodes of the branch that is taken.

    c = Equal(Shape(x)[1], 1) -> If(c) {then: Squeeze(x), else: Identity(x)} -> y        Squeeze(x) -> y

PyTorch writes such conditions on shapes; with known shapes they fold to constants. Names in a body may be those of
tensors around it, or of the other branch's: what the body makes gets new names. Its operators are of the file's opset.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import onnx

from qatc.compiler.diagnostics import fail
from qatc.compiler.graph import Node, QuantGraph, Tensor, Variable, value_of
from qatc.compiler.model.links import CAPTURES, captures_of, is_op, label_of
from qatc.compiler.model.protos import captured_names, domain_of
from qatc.compiler.model_io import dims_of
from qatc.compiler.passes.modernize import OPSET, UPGRADE
from qatc.compiler.quant import number_of
from qatc.compiler.rewrite import sweep

_BRANCHES: Final = ("else_branch", "then_branch")


def inline_branches(graph: QuantGraph) -> int:
    """Replace every If of a constant condition by its branch, also those inside; returns how many there were."""
    found = 0
    taken = [n for n in graph.of("If") if _condition(n) is not None]
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
    if body.input or len(body.output) != len(node.outputs):
        found = f"{len(body.input)} inputs and {len(body.output)} outputs"
        raise fail("QAT004", f"the branch has {found}, not none and {len(node.outputs)}", node=label_of(node))
    captured = captures_of(node.attrs)
    tensors: dict[str, Tensor] = dict(zip(captured, node.inputs[len(node.inputs) - len(captured) :], strict=True))
    for initializer in body.initializer:
        tensors[initializer.name] = graph.constant(initializer.name, onnx.numpy_helper.to_array(initializer))
    kinds = {v.name: v.type.tensor_type for v in [*body.value_info, *body.output]}
    made = [_node(graph, proto, tensors, kinds) for proto in body.node]
    graph.known |= {name for name, tensor in tensors.items() if tensor.name == name}  # a viewer shows those, too
    for output, result in zip(body.output, list(node.outputs), strict=True):
        if result.name:
            graph.replace(result, tensors[output.name])
    return made


def _node(
    graph: QuantGraph,
    proto: onnx.NodeProto,
    tensors: dict[str, Tensor],
    kinds: Mapping[str, onnx.TypeProto.Tensor],
) -> Node:
    """A node of the body as one of the graph; what it makes joins `tensors`."""
    outer = captured_names(proto)
    attrs: dict[str, Any] = {a.name: _value(a) for a in proto.attribute}
    if outer:
        attrs[CAPTURES] = outer
    read = [*proto.input, *outer]
    missing = next((n for n in read if n and n not in tensors), None)
    if missing is not None:
        message = "the node reads a tensor that nothing in its branch makes before"
        raise fail("QAT004", message, node=label_of(proto), tensor=missing)
    inputs = [tensors[n] if n else Variable("") for n in read]
    outputs = [_made(graph, name, tensors, kinds.get(name), proto) if name else Variable("") for name in proto.output]
    hint = proto.name or f"{proto.op_type}_{proto.output[0] if proto.output else ''}"
    return graph.insert(proto.op_type, inputs, outputs, hint=hint, domain=domain_of(proto.domain), attrs=attrs)


def _made(
    graph: QuantGraph,
    name: str,
    tensors: dict[str, Tensor],
    kind: onnx.TypeProto.Tensor | None,
    proto: onnx.NodeProto,
) -> Tensor:
    if name in tensors:
        raise fail("QAT004", "this tensor is made a second time", node=label_of(proto), tensor=name)
    dims = list(dims_of(kind)) if kind is not None and kind.HasField("shape") else None
    tensors[name] = graph.variable(name, kind.elem_type or None if kind is not None else None, dims)
    return tensors[name]


def _value(attribute: onnx.AttributeProto) -> Any:
    if attribute.type == onnx.AttributeProto.TENSOR:
        return np.asarray(onnx.numpy_helper.to_array(attribute.t))
    return onnx.helper.get_attribute_value(attribute)

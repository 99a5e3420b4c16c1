"""Looking into the protobuf of an untrusted model: its subgraphs, tensors and names, without recursion on its depth."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import onnx
from onnx import AttributeProto, TensorProto

#: What ONNX's checker and shape inference raise: exceptions of C++ come through as Python's.
CHECK_ERRORS: Final = (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, IndexError)
MICROSOFT: Final = "com.microsoft"  # the domain of ONNX Runtime's own operators
BODIES: Final = frozenset({AttributeProto.GRAPH, AttributeProto.GRAPHS})
_HOLDS_TENSORS: Final = frozenset(
    {AttributeProto.TENSOR, AttributeProto.TENSORS, AttributeProto.SPARSE_TENSOR, AttributeProto.SPARSE_TENSORS}
)


def domain_of(domain: str) -> str:
    """A domain as graphs have it: ONNX's own, which files call "" or "ai.onnx", is ""."""
    return "" if domain == "ai.onnx" else domain


def opsets_of(model: onnx.ModelProto) -> dict[str, int]:
    """The versions of the domains that a model imports; exporters may list one several times."""
    found: dict[str, int] = {}
    for entry in model.opset_import:
        domain = domain_of(entry.domain)
        found[domain] = max(entry.version, found.get(domain, 0))
    return found


def damaged_text(model: onnx.ModelProto) -> object:
    """A name in the file that is not UTF-8, None where all are: protobuf hands such a text out as bytes."""
    texts: list[object] = [model.producer_name, model.producer_version, *(o.domain for o in model.opset_import)]
    waiting: deque[onnx.GraphProto | onnx.FunctionProto] = deque([model.graph, *model.functions])
    while waiting:
        graph = waiting.popleft()
        texts += _own_texts(graph)
        for node in graph.node:
            texts += (node.name, node.op_type, node.domain)
            texts += node.input
            texts += node.output
            for attribute in node.attribute:
                texts += (attribute.name, attribute.ref_attr_name)
                kind = attribute.type
                if kind in _HOLDS_TENSORS:
                    texts += _texts_of(tensors_of(attribute))
                if kind in BODIES:
                    waiting.extend([attribute.g] if kind == AttributeProto.GRAPH else attribute.graphs)
    return None if set(map(type, texts)) == {str} else next(t for t in texts if not isinstance(t, str))


def _own_texts(graph: onnx.GraphProto | onnx.FunctionProto) -> list[object]:
    """Those of a graph or a function without its nodes'."""
    texts: list[object] = [graph.name]
    if isinstance(graph, onnx.FunctionProto):
        texts += (graph.domain, *graph.input, *graph.output, *graph.attribute)
        texts += (o.domain for o in graph.opset_import)
        return texts
    texts += _texts_of(graph.initializer)
    for port in (*graph.input, *graph.output, *graph.value_info):
        texts.append(port.name)
        texts += (d.dim_param for d in port.type.tensor_type.shape.dim)
    for note in graph.quantization_annotation:
        texts.append(note.tensor_name)
        texts += (text for pair in note.quant_parameter_tensor_names for text in (pair.key, pair.value))
    return texts


def _texts_of(tensors: Iterable[TensorProto]) -> Iterator[object]:
    for tensor in tensors:
        yield tensor.name
        for entry in tensor.external_data:
            yield from (entry.key, entry.value)


def all_nodes(nodes: Sequence[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The nodes, and those of their subgraphs."""
    yield from nodes
    for body in all_bodies(nodes):
        yield from body.node


def all_bodies(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    """The subgraphs of the nodes, and those of the nodes in them: what lies inside comes later."""
    waiting = deque(graph for node in nodes for graph in subgraphs(node.attribute))
    while waiting:
        graph = waiting.popleft()
        yield graph
        waiting.extend(inner for node in graph.node for inner in subgraphs(node.attribute))


def body_depth(nodes: Iterable[onnx.NodeProto]) -> int:
    """How many levels of subgraphs lie in each other."""
    depth, level = 0, list(nodes)
    while graphs := [graph for node in level for graph in subgraphs(node.attribute)]:
        depth, level = depth + 1, [node for graph in graphs for node in graph.node]
    return depth


def subgraphs(attributes: Iterable[AttributeProto]) -> list[onnx.GraphProto]:
    """The graphs that attributes hold, those in them not among them."""
    held = [a for a in attributes if a.type in BODIES]
    found = [a.g for a in held if a.type == AttributeProto.GRAPH]
    return found + [g for a in held if a.type == AttributeProto.GRAPHS for g in a.graphs]


def tensors_of(attribute: AttributeProto) -> list[TensorProto]:
    """The tensors that an attribute holds, those of its subgraphs not among them."""
    kind = attribute.type
    if kind not in _HOLDS_TENSORS:
        return []
    if kind == AttributeProto.TENSOR:
        return [attribute.t]
    if kind == AttributeProto.TENSORS:
        return list(attribute.tensors)
    if kind == AttributeProto.SPARSE_TENSOR:
        return [attribute.sparse_tensor.values, attribute.sparse_tensor.indices]
    return [part for s in attribute.sparse_tensors for part in (s.values, s.indices)]


def captured_names(node: onnx.NodeProto) -> list[str]:
    """Names that the node's subgraphs read from the graph around them, in a stable order."""
    made: set[str] = set()
    read: dict[str, None] = {}
    for graph in all_bodies([node]):
        made.update(i.name for i in graph.initializer)
        made.update(i.name for i in graph.input)
        for inner in graph.node:
            read.update(dict.fromkeys(n for n in inner.input if n))
            made.update(inner.output)
        read.update(dict.fromkeys(o.name for o in graph.output))
    return [n for n in read if n not in made]

"""What running a float graph takes: known from its shapes, before anything runs."""

from __future__ import annotations

import math
from collections import defaultdict

import onnx

from qatc.compiler.budget import active
from qatc.compiler.graph import Node, QuantGraph, Tensor, is_constant, value_of
from qatc.compiler.model_io import label_of

_RUN = "use smaller samples (-s NAME=SHAPE), raise --max-memory, or use a machine with more memory"


def peak_activations(graph: QuantGraph) -> tuple[int, Node | None]:
    """Bytes that one sample's activations take at the worst moment, and the operator that runs then.

    Operators run in order, nothing in place, each tensor freed after its last reader; `graph.sample_shapes` are the
    shapes, and a tensor without one counts nothing.
    """
    last: dict[int, int] = {id(t): len(graph.nodes) for t in graph.outputs}
    for index in range(len(graph.nodes) - 1, -1, -1):
        node = graph.nodes[index]
        for tensor in (*node.inputs, *node.outputs):
            if not is_constant(tensor):
                last.setdefault(id(tensor), index)
    ends: defaultdict[int, int] = defaultdict(int)
    sizes = {id(t): _size(graph, t) for t in graph.inputs}
    live = peak = sum(sizes.values())
    worst: Node | None = None
    for key, size in sizes.items():
        ends[last.get(key, 0)] += size
    for index, node in enumerate(graph.nodes):
        weights = sum(_dequantized(graph, t) for t in node.inputs)
        for tensor in node.outputs:
            size = _size(graph, tensor)
            live += size
            ends[last[id(tensor)]] += size
        if live + weights > peak:
            peak, worst = live + weights, node
        live -= ends.pop(index, 0)
    return peak, worst


def _size(graph: QuantGraph, tensor: Tensor) -> int:
    shape = graph.sample_shapes.get(tensor.name)
    if shape is None:
        return 0
    return math.prod(shape) * _itemsize(tensor.dtype)


def _itemsize(kind: object) -> int:
    if not isinstance(kind, int) or kind == onnx.TensorProto.STRING:
        return 4
    try:
        return onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize
    except (KeyError, ValueError, TypeError):
        return 4


def _dequantized(graph: QuantGraph, tensor: Tensor) -> int:
    """A quantized constant is run as floats."""
    value = value_of(tensor)
    return value.size * 4 if value is not None and tensor.name in graph.params else 0


def ask_to_run(graph: QuantGraph) -> None:
    """Ask the budget for one run of the graph. CompileError QAT011 where it takes too much."""
    peak, node = peak_activations(graph)
    where = None if node is None else label_of(node)
    active().ask(peak, "running the model on one sample", _RUN, node=where)

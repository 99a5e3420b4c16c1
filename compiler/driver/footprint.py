"""What running a float graph takes: known from its shapes, before anything runs."""

from __future__ import annotations

import math
from collections import defaultdict

import onnx

from qatc.compiler.budget import active
from qatc.compiler.graph import Node, QuantGraph, Tensor, value_of
from qatc.compiler.model.links import label_of

_SIMULATED = 20  # bytes a weight, measured: two sessions that hold int8 and float32, and those of the package
_RUN = "use smaller samples (-s NAME=SHAPE), raise --max-memory, or use a machine with more memory"


def peak_activations(graph: QuantGraph) -> tuple[int, Node | None]:
    """Bytes that one sample's activations take at the worst moment, and the operator that runs then.

    Operators run in order, nothing in place, each tensor freed after its last reader; `graph.sample_shapes` are the
    shapes, and a tensor without one counts nothing.
    """
    last = {id(t): index for index, node in enumerate(graph.nodes) for t in (*node.inputs, *node.outputs)}
    last |= {id(t): len(graph.nodes) for t in graph.outputs}
    ends: defaultdict[int, int] = defaultdict(int)
    sizes = {id(t): _size(graph, t) for t in graph.inputs}
    live = peak = sum(sizes.values())
    worst: Node | None = None
    for key, size in sizes.items():
        ends[last.get(key, 0)] += size
    for index, node in enumerate(graph.nodes):
        for tensor in node.outputs:
            size = _size(graph, tensor)
            live += size
            ends[last[id(tensor)]] += size
        if live > peak:
            peak, worst = live, node
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


def _weights(graph: QuantGraph) -> int:
    """How many elements the quantized constants have."""
    held = {t.name: value_of(t) for node in graph.nodes for t in node.inputs if t.name in graph.params}
    return sum(value.size for value in held.values() if value is not None)


def ask_to_run(graph: QuantGraph, *, simulated: bool) -> None:
    """Ask the budget for one run of the graph on a sample.

    A simulation (`simulated`) rounds and dequantizes the weights of all operators before it runs the first one, and
    several sessions are open at a time. The package's own model keeps weights as the bytes that they are.

    Raises:
        CompileError: QAT011 where it takes too much.
    """
    peak, node = peak_activations(graph)
    active().ask(peak, "running the model on one sample", _RUN, node=None if node is None else label_of(node))
    weights = _weights(graph) * (_SIMULATED if simulated else 1)
    what = "the weights and activations of the simulation" if simulated else "the weights and activations"
    active().ask(peak + weights, what, f"--no-verify needs less; {_RUN}" if simulated else _RUN)

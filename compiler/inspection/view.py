"""An IntegerGraph as boxes and edges, for drawing: what runs in integers, what in float, and why."""

from __future__ import annotations

from qatc.compiler.integer import Dequantize, Float, IntegerGraph, Lookup, Move, Op, Quantize
from qatc.compiler.result import GraphView, ViewNode


def view(graph: IntegerGraph) -> GraphView:
    """The graph's inputs, operators and outputs, in this order."""
    nodes = [ViewNode(name, "input", "input", _described(graph, name)) for name in graph.inputs]
    maker = {name: index for index, name in enumerate(graph.inputs)}
    edges: list[tuple[int, int]] = []
    for op in graph.ops:
        edges += [(source, len(nodes)) for source in _sources(op.inputs, maker)]
        maker.update((name, len(nodes)) for name in op.outputs if name)
        nodes.append(_node(graph, op))
    for name in graph.outputs:
        edges += [(source, len(nodes)) for source in _sources((name,), maker)]
        nodes.append(ViewNode(name, "output", "output", _described(graph, name)))
    return GraphView(tuple(nodes), tuple(edges))


def _sources(names: tuple[str, ...], maker: dict[str, int]) -> dict[int, None]:
    return dict.fromkeys(maker[name] for name in names if name in maker)


def _node(graph: IntegerGraph, op: Op) -> ViewNode:
    name, detail = op.source or op.name, _described(graph, op.output)
    if isinstance(op, Float):
        kind = "moved" if not op.reason else "island" if op.tensor else "fallback"
        why = op.reason + (f" ({op.tensor})" if op.tensor else "")
        return ViewNode(name, op.title, kind, f"{why}; {detail}" if why else detail)
    if isinstance(op, Move | Quantize | Dequantize):
        return ViewNode(name, op.title, "moved", detail)
    return ViewNode(name, op.title, "integer", f"{op.function}; {detail}" if isinstance(op, Lookup) else detail)


def _described(graph: IntegerGraph, name: str) -> str:
    """A tensor in a few words: `uint8 1x16x32x32, scale 0.02, zero point 128`."""
    tensor = graph.tensors[name]
    shape = tensor.sample_shape or tensor.shape
    size = "" if shape is None else " " + "x".join("?" if d is None else str(d) for d in shape)
    params = tensor.params
    if params is None or params.is_per_channel:
        return f"{tensor.dtype}{size}"
    return f"{tensor.dtype}{size}, scale {params.scale[0]:.6g}, zero point {params.zero_point[0]}"

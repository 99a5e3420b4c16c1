"""Sizes: what a graph computes from the shape of a tensor becomes a constant, where the sizes it takes are known.

    Shape(x: ?x16x8x8) -> Gather(1) -> Add(1) -> Div(2) -> Slice(x, 0, .)     ->     Slice(x, 0, 8)

An exporter that traces with a dynamic batch computes every other size, too (torch.chunk, view, interpolate). ONNX's
shape inference does not see through all of that (it knows no Div), so that everything behind it has unknown sizes.
Sizes that only become known by what was folded before them are found in further rounds.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from qatc.compiler.graph import Node, QuantGraph, shape_of, value_of
from qatc.compiler.model.links import is_op
from qatc.compiler.passes.constants import dims_read, fold_constants
from qatc.compiler.quant import Array
from qatc.compiler.shapes import infer_shapes

_ROUNDS: Final = 64  # each infers shapes once more; networks nest a dozen


def fold_sizes(graph: QuantGraph) -> None:
    """Fold in place; shapes are inferred before (`infer_shapes`) and, where anything was folded, again.

    Raises:
        CompileError: QAT004 where shapes turn out to contradict each other.
    """
    for _ in range(_ROUNDS):
        found = [(node, value) for node in graph.nodes if (value := _taken(graph, node)) is not None]
        if not found:
            return
        for node, value in found:
            graph.fix(node.outputs[0], value)
            graph.explain("sizes", f"{node.op} {node.name} takes sizes that are known: {value.tolist()}")
        graph.clean()
        fold_constants(graph)
        infer_shapes(graph)


def _taken(graph: QuantGraph, node: Node) -> Array | None:
    """What Gather takes out of the shape of a tensor, if it takes known sizes only."""
    if not is_op(node, "Gather") or int(node.attr("axis", 0)) != 0:
        return None
    maker, index = graph.producer(node.inputs[0]), value_of(node.inputs[1])
    if not is_op(maker, "Shape") or index is None:
        return None
    shape = shape_of(maker.inputs[0])
    if shape is None:
        return None
    sizes = dims_read(maker, shape)
    wanted = [int(i) for i in index.reshape(-1)]
    if not all(-len(sizes) <= i < len(sizes) and isinstance(sizes[i], int) for i in wanted):
        return None
    return np.asarray([sizes[i] for i in wanted], np.int64).reshape(index.shape)

"""How much memory the activations of one sample take, tensor by tensor and at the worst moment."""

from __future__ import annotations

import math

import numpy as np

from qatc.compiler.integer import IntegerGraph


def tensor_bytes(graph: IntegerGraph, name: str) -> int:
    """The size of an activation for one sample; symbolic dimensions count as one, unknown shapes as none."""
    tensor = graph.tensors[name]
    shape = tensor.sample_shape or tensor.shape
    if shape is None or tensor.dtype == "object":
        return 0
    return math.prod(d if isinstance(d, int) else 1 for d in shape) * np.dtype(tensor.dtype).itemsize


def peak_bytes(graph: IntegerGraph) -> int:
    """Memory for activations at the worst moment: operators in order, nothing in place, freed after the last reader."""
    last = {name: len(graph.ops) for name in graph.outputs}
    for index, op in reversed(list(enumerate(graph.ops))):
        for name in (*op.inputs, *op.outputs):
            if name and name not in graph.constants:
                last.setdefault(name, index)
    ends: dict[int, list[str]] = {}
    for name, index in last.items():
        ends.setdefault(index, []).append(name)
    live = peak = sum(tensor_bytes(graph, name) for name in graph.inputs)
    for index, op in enumerate(graph.ops):
        live += sum(tensor_bytes(graph, name) for name in op.outputs if name)
        peak = max(peak, live)
        live -= sum(tensor_bytes(graph, name) for name in ends.get(index, ()))
    return peak

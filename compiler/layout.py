"""The layout of a graph's inputs and outputs, such as "NCHW", told from the operators beside them.

What convolutions and pooling read and make is N, C, then the spatial dimensions. From an interface tensor the walk goes
over conversions, clamps and one Transpose to the first of them; where there is none, nothing is claimed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from qatc.compiler.integer import (
    Conv,
    Dequantize,
    Elementwise,
    IntegerGraph,
    LayerNorm,
    Lookup,
    Move,
    Op,
    Pool,
    Quantize,
    Rescale,
    Resize,
    Softmax,
)

CHANNELS_FIRST: Final = {3: "NCW", 4: "NCHW", 5: "NCDHW"}  # rank -> the names of the axes
_FARTHEST: Final = 16  # operators between an interface tensor and the first convolution


def layouts(graph: IntegerGraph) -> dict[str, str]:
    """Interface tensor -> its dimensions' names in order, for those where they can be told."""
    readers, makers = graph.consumers(), graph.producers()

    def ahead(name: str) -> Op | None:
        found = readers.get(name, [])
        return found[0] if len(found) == 1 else None

    found: dict[str, str] = {}
    for name in graph.inputs:
        layout = _walk(graph, name, ahead, forward=True)
        if layout:
            found[name] = layout
    for name in graph.outputs:
        layout = _walk(graph, name, makers.get, forward=False)
        if layout:
            found.setdefault(name, layout)
    return found


def _walk(graph: IntegerGraph, name: str, neighbor: Callable[[str], Op | None], *, forward: bool) -> str | None:
    order, port = list[int](), graph.tensors[name].shape
    for _ in range(_FARTHEST):
        op = neighbor(name)
        match op:
            case Conv() | Pool():
                shape = graph.tensors[name].shape
                if shape is None or port is None or len(port) != len(shape):  # broadcasting may have added axes
                    return None
                return _moved(CHANNELS_FIRST.get(len(shape), ""), order, forward=forward)
            case Move(op_type="Transpose") if not order and "perm" in op.attrs:
                order = [int(axis) for axis in op.attrs["perm"]]
            case Quantize() | Dequantize() | Rescale() | Lookup() | Elementwise() | Resize() | Softmax() | LayerNorm():
                pass
            case _:
                return None
        name = op.outputs[0] if forward else op.inputs[0]
    return None


def _moved(base: str, order: list[int], *, forward: bool) -> str | None:
    """The layout in front of a Transpose whose result has the layout `base`, or behind one of such an operand."""
    if not base or not order:
        return base or None
    if len(order) != len(base):
        return None
    return "".join(base[order.index(axis) if forward else order[axis]] for axis in range(len(base)))

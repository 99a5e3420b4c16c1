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

_NAMES: Final = {3: "NCW", 4: "NCHW", 5: "NCDHW"}
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
    order: list[int] | None = None
    for _ in range(_FARTHEST):
        op = neighbor(name)
        match op:
            case Conv() | Pool():
                shape = graph.tensors[name].shape
                base = _NAMES.get(len(shape)) if shape is not None else None
                return None if base is None else _before(base, order) if forward else _after(base, order)
            case Move(op_type="Transpose") if order is None and "perm" in op.attrs:
                order = [int(axis) for axis in op.attrs["perm"]]
            case Quantize() | Dequantize() | Rescale() | Lookup() | Elementwise() | Resize() | Softmax() | LayerNorm():
                pass
            case _:
                return None
        name = op.outputs[0] if forward else op.inputs[0]
    return None


def _before(base: str, order: list[int] | None) -> str:
    """The layout in front of a Transpose whose result has the layout `base`."""
    if order is None:
        return base
    return "".join(base[order.index(axis)] for axis in range(len(base)))


def _after(base: str, order: list[int] | None) -> str:
    """The layout behind a Transpose whose operand has the layout `base`."""
    return base if order is None else "".join(base[axis] for axis in order)

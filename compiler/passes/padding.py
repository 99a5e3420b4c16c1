"""Padding in front of a window becomes the window's own: one operator instead of two, and no copy of the tensor.

    Pad[0, 0, 1, 1, 0, 0, 1, 1](x) -> Conv          Conv[pads=1, 1, 1, 1](x)
    Pad(x >= 0) -> MaxPool                          MaxPool[pads](x)

Keras writes ZeroPadding2D in front of strided convolutions, PyTorch nn.ZeroPad2d or F.pad. A convolution pads with real
zeros, a MaxPool with what never wins: that is the same for a tensor without negative values, if no window lies in the
padding alone.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from qatc.compiler.graph import Node, QuantGraph, Tensor, shape_of, value_of
from qatc.compiler.model.links import is_op, label_of
from qatc.compiler.passes.movement import pad_value
from qatc.compiler.passes.propagate import clamp_bounds
from qatc.compiler.windows import Window, window

_AXES: Final = 3  # the operand of Pad that names its axes


def absorb_padding(graph: QuantGraph) -> None:
    """Rewrite a graph with propagated parameters in place."""
    pads = [n for n in graph.nodes if n.op == "Pad"]
    if not pads:
        return
    absorbed: set[int] = set()
    for node in reversed(pads):  # the last of several that follow each other is the first to go
        x, padded = node.inputs[0], node.outputs[0]
        readers = [n for n in graph.consumers(padded) if id(n) not in absorbed]
        grown = [_grown(graph, node, reader) for reader in readers]
        if graph.is_output(padded) or graph.quant(x) != graph.quant(padded) or None in grown:
            continue
        for reader, total in zip(readers, grown, strict=True):
            reader.attrs.pop("auto_pad", None)
            reader.attrs["pads"] = total
            graph.explain("padding", f"Pad at {label_of(node)} becomes the pads of {label_of(reader)}")
        graph.bypass(node)
        absorbed.add(id(node))
    if absorbed:
        graph.clean()


def _grown(graph: QuantGraph, node: Node, reader: Node) -> list[int] | None:
    """The pads of a window that pads by itself what a Pad does before it; None where it cannot."""
    kernel = _kernel(node.outputs[0], reader)
    own = window(reader, kernel) if kernel else None
    widths = None if own is None else _widths(node, len(own.kernel))
    if own is None or widths is None or len(own.pads) != len(widths):
        return None
    total = [int(p) + w for p, w in zip(own.pads, widths, strict=True)]
    if reader.op == "MaxPool" and not (_is_inside(own, total) and _is_positive(graph, node.inputs[0])):
        return None
    return total


def _kernel(padded: Tensor, reader: Node) -> tuple[int, ...]:
    """The kernel of a convolution that reads `padded` as its data, or of a MaxPool; () for other readers."""
    if is_op(reader, "Conv") and reader.inputs[0] is padded and reader.inputs[1] is not padded:
        return tuple(d for d in (shape_of(reader.inputs[1]) or ())[2:] if isinstance(d, int))
    if is_op(reader, "MaxPool") and len(reader.outputs) == 1 and not reader.attr("ceil_mode", 0):
        return tuple(reader.attr("kernel_shape") or ())
    return ()


def _widths(node: Node, rank: int) -> list[int] | None:
    """The zeros that a Pad puts before and behind each of the last `rank` axes; None where it does anything else."""
    given, stated = value_of(node.optional(1)), node.optional(_AXES)
    if node.domain or node.attr("mode", "constant") != "constant" or given is None or pad_value(node) != 0:
        return None
    widths = np.zeros((2, rank + 2), np.int64)
    axes = range(rank + 2)
    if stated is not None:
        named = value_of(stated)
        if named is None or named.ndim != 1 or not np.isin(named, np.arange(-rank - 2, rank + 2)).all():
            return None
        axes = (named % (rank + 2)).tolist()
        if len(set(axes)) < len(axes):
            return None
    if given.size != 2 * len(axes):
        return None
    widths[:, axes] = given.reshape(2, -1)
    if (widths < 0).any() or widths[:, :2].any():
        return None
    return widths[:, 2:].reshape(-1).tolist()


def _is_inside(own: Window, total: list[int]) -> bool:
    """Whether each window holds an element of the tensor itself, however it is padded."""
    return set(own.dilations) <= {1} and all(pad < size for pad, size in zip(total, own.kernel * 2, strict=True))


def _is_positive(graph: QuantGraph, x: Tensor) -> bool:
    """Whether a tensor holds no negative number, after it is rounded."""
    maker, params = graph.producer(x), graph.quant(x)
    if params is not None and not params.is_per_channel and params.qmin >= params.zero_point[0]:
        return True
    bounds = None if maker is None else clamp_bounds(graph, maker)
    return bounds is not None and bounds[0] >= 0

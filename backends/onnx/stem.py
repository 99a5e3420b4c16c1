"""The first convolution: an input of one or three channels is widened to four.

ONNX Runtime convolves bytes without copying windows out where the channels come in fours and the filters are 16 or
more; everywhere else it does copy, and takes half as long again (measured, docs/performance.md). Images have three
channels and spectrograms one. Channels more whose weights are zero change no accumulator. Further inside a network
channels hardly ever are odd, and widening there, in channels-last order, would cost what it gains.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from qatc.backends.onnx.writer import Writer, stored
from qatc.compiler.integer import Move, Quantize, Rescale

if TYPE_CHECKING:
    from qatc.backends.onnx.products import Convolution

_TOGETHER: Final = 4  # channels that the fast kernel takes at once
_FILTERS: Final = 16  # it has none for fewer
_STEPS: Final = 4  # operators between the graph's input and its first convolution
_LARGEST: Final = 1 << 18  # bytes that a constant of nothing but padding may take


def widened(w: Writer, c: Convolution) -> Convolution:
    """The convolution with its input's channels and its weight's in fours, where that is faster; else as it is.

    `c.x` is a tensor of the integer graph, [N, C, spatial...]; the result is the same bit for bit.
    """
    filters, channels = c.weight.values.shape[:2]
    missing = -channels % _TOGETHER
    able = c.groups == 1 and not c.weight.zero and stored(c.grid) == "uint8" and filters >= _FILTERS
    if w.standard or not missing or not able:
        return c
    x = _wider(w, c, missing)
    if not x:
        return c
    wide = [(0, 0), (0, missing), *[(0, 0)] * c.spatial]
    return replace(c, x=x, weight=replace(c.weight, values=np.pad(c.weight.values, wide)))


def _wider(w: Writer, c: Convolution, missing: int) -> str:
    """The input with so many channels more, whose values do not matter; "" where that would cost more than it gains."""
    layout = _layout(w, c.x)
    if layout == "first":
        spaces = [0] * c.spatial
        return w.node("Pad", (c.x, w.ints([0, 0, *spaces, 0, missing, *spaces]), w.zero(c.grid)))
    shape = w.graph.tensors[c.x].shape if layout else None
    sizes = [size for size in shape or () if isinstance(size, int)]
    if shape is None or len(sizes) < len(shape):
        return ""
    sizes[1] = missing
    if math.prod(sizes) > _LARGEST:
        return ""
    more = w.array(np.zeros(sizes, np.uint8), f"{w.label}_channels")
    return w.node("Concat", (c.x, more), axis=1)  # in channels-last order it is cheaper than Pad


def _layout(w: Writer, name: str) -> str:
    """In which order the network's input lies whose integers these are, "first" or "last"; "" for what is computed."""
    layout = "first"
    for _ in range(_STEPS):
        if name in w.graph.inputs:
            return layout
        match w.producers.get(name):
            case Quantize() | Rescale() as op:
                name = op.inputs[0]
            case Move(op_type="Transpose") as op:
                layout, name = "last", op.inputs[0]
            case _:
                return ""
    return ""

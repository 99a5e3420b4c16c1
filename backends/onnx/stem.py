"""The first convolution: strides are folded into the channels, or one or three channels are widened to four.

ONNX Runtime convolves bytes without copying windows out where the channels come in fours and the filters are 16 or
more; everywhere else it does copy, and takes half as long again (measured, docs/performance.md). Images have three
channels and spectrograms one. Channels more whose weights are zero change no accumulator. Further inside a network
channels hardly ever are odd, and widening there, in channels-last order, would cost what it gains.

Where the stride is the same along both axes, the blocks of so many pixels can be the channels instead, and the
convolution goes block by block: the same products, but in fewer and longer runs.

    x [N,C,H,W] -> QuantizeLinear -> 7x7 stride 2 over 3 channels
    x -> SpaceToDepth -> [N,4C,H/2,W/2] -> QuantizeLinear -> 4x4 stride 1 over 12 channels
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from qatc.backends.onnx.convolution import Convolution
from qatc.backends.onnx.weights import Weight, narrow
from qatc.backends.onnx.writer import Writer, stored
from qatc.compiler.integer import Conv, Move, Quantize, Rescale
from qatc.compiler.quant import Array

_TOGETHER: Final = 4  # channels that the fast kernel takes at once
_FILTERS: Final = 16  # it has none for fewer
_STEPS: Final = 4  # operators between the graph's input and its first convolution
_LARGEST: Final = 1 << 18  # bytes that a constant of nothing but padding may take
_PLANE: Final = 2  # SpaceToDepth takes images alone
_WORTH: Final = 1.1  # longer runs are worth so many times the products


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


# -- strides in channels ----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Axis:
    """A strided kernel along one axis, in blocks of `stride` positions that begin at position 0."""

    blocks: int  # that a window reads from
    first: int  # where the kernel begins in the first of them
    before: int  # blocks of padding
    after: int

    @classmethod
    def of(cls, size: int, kernel: int, stride: int, begin: int, end: int) -> _Axis:
        """Work out one axis of `size` positions, a multiple of the stride."""
        before = -(-begin // stride)
        first = before * stride - begin
        blocks = (first + kernel - 1) // stride + 1
        outputs = (size + begin + end - kernel) // stride + 1
        return cls(blocks, first, before, outputs - 1 + blocks - before - size // stride)


def foldable(w: Writer, made: Quantize, op: Conv) -> bool:
    """Whether `op`, which alone reads the integers that `made` rounds, is faster with its stride in the channels."""
    return not w.standard and _axes(w, made, op) is not None and _is_plain(w, op)


def _is_plain(w: Writer, op: Conv) -> bool:
    """Whether it is a convolution that `widened` would widen: of uint8 and int8, with enough filters."""
    params, weight = w.graph.params(op.inputs[0]), w.graph.constants.get(op.inputs[1])
    if weight is None or op.transposed or op.groups > 1 or any(d > 1 for d in op.dilations):
        return False
    if stored(params) != "uint8" or w.graph.params(op.output).dtype == "int32":
        return False
    few = weight.shape[0] >= _FILTERS and weight.shape[1] % _TOGETHER
    return bool(few) and narrow(w.graph, op.inputs[1], 1).is_plain


def _axes(w: Writer, made: Quantize, op: Conv) -> list[_Axis] | None:
    """The kernel's axes in blocks; None where sizes are unknown or no multiples, or the products would be too many."""
    source = w.graph.tensors[made.inputs[0]]
    weight = w.graph.constants.get(op.inputs[1])
    stride = op.strides[0]
    if made.inputs[0] not in w.graph.inputs or source.dtype != "float32" or source.shape is None or weight is None:
        return None
    if len(op.strides) != _PLANE or len(source.shape) != _PLANE + 2 or stride == 1 or op.strides[1] != stride:
        return None
    sizes = [size for size in source.shape[2:] if isinstance(size, int) and size % stride == 0]
    if len(sizes) < _PLANE:
        return None
    axes = [
        _Axis.of(size, kernel, stride, op.pads[i], op.pads[i + _PLANE])
        for i, (size, kernel) in enumerate(zip(sizes, weight.shape[2:], strict=True))
    ]
    channels = weight.shape[1]
    products = math.prod(axis.blocks * stride for axis in axes) * channels
    padded = math.prod(weight.shape[2:]) * (channels + -channels % _TOGETHER)
    together = channels * stride * stride % _TOGETHER == 0
    return axes if together and products <= _WORTH * padded and all(axis.after >= 0 for axis in axes) else None


def folded(w: Writer, made: Quantize, op: Conv) -> Convolution:
    """`op` over the blocks of the tensor that `made` rounds, which are written here in its place (see `foldable`)."""
    axes, stride = _axes(w, made, op), op.strides[0]
    if axes is None:
        raise ValueError(f"{op.name} has no strides to fold")
    params = w.graph.params(made.output)
    blocks = w.node("SpaceToDepth", [w.read(made.inputs[0])], blocksize=stride)
    x = w.quantize(blocks, params, "", made.lo, made.hi)
    w.begin(op)
    weight = narrow(w.graph, op.inputs[1], 1)
    pads = (*(axis.before for axis in axes), *(axis.after for axis in axes))
    kernel = replace(weight, values=_in_blocks(weight, axes, stride))
    return Convolution(x, params, kernel, (1, 1), pads, (1, 1), 1)


def _in_blocks(weight: Weight, axes: list[_Axis], stride: int) -> Array:
    """[M, C, h, w] -> [M, (y in block, x in block, C), blocks, blocks], with zeros where the kernel is not."""
    filters, channels, high, wide = weight.values.shape
    rows, columns = axes
    values = np.zeros((filters, channels, rows.blocks * stride, columns.blocks * stride), weight.values.dtype)
    values[:, :, rows.first : rows.first + high, columns.first : columns.first + wide] = weight.values
    split = values.reshape(filters, channels, rows.blocks, stride, columns.blocks, stride)
    return np.ascontiguousarray(split.transpose(0, 3, 5, 1, 2, 4)).reshape(filters, -1, rows.blocks, columns.blocks)

"""Pool: maxima in channels-last order, averages as depthwise convolutions with weights of one.

Measured on 1x64x112x112 bytes, 3x3 stride 2 (docs/performance.md): MaxPool 3.6 ms, NhwcMaxPool 0.04 ms. Averages on
1x64x56x56: QLinearAveragePool 0.4 ms (it sums floats, element by element), QLinearConv with ones 0.02 ms, and exact.
The transposes around a channels-last operator are canceled by ONNX Runtime against those around its convolutions.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Final

import numpy as np
from onnx import TensorProto

from qatc.backends.onnx.convolution import moves_of
from qatc.backends.onnx.moves import choose, to_first, to_last
from qatc.backends.onnx.writer import Writer, in_bytes, stored, tensor_type
from qatc.compiler.arithmetic import ort_weight_scales
from qatc.compiler.diagnostics import fail
from qatc.compiler.integer import Move, Pool
from qatc.compiler.model.protos import MICROSOFT
from qatc.compiler.quant import QuantParams, dtype_range
from qatc.compiler.reference.pooling import Windows, covers

MOST_SIZES: Final = 6  # so many depthwise convolutions and choices are still faster than QLinearAveragePool


def pool(w: Writer, op: Pool) -> None:
    """`Pool` in the forms above; dropped dimensions by Flatten."""
    shape = w.graph.tensors[op.inputs[0]].shape
    whole = not op.kernel or (shape is not None and covers(op, shape[2:]))
    maker = w.producers.get(op.inputs[0])
    if whole and not (isinstance(maker, Move) and maker.op_type == "Unsqueeze"):  # a signal: never channels-last
        w.pooled.add(op.output)
    dtype = stored(w.graph.params(op.inputs[0]))
    want = stored(w.graph.params(op.output))
    out = op.output if op.keepdims else w.fresh(f"{op.output}_kept")
    end = w.ending(dtype, want, *_bounds(w, op), out)
    if op.mode == "max":
        _max(w, op, end.kernel, whole=whole)
    elif whole:
        _global_average(w, op, end.kernel)
    elif not _as_convolutions(w, op, end.kernel):
        _by_kernel(w, op, end.kernel)
    w.end(end)
    if not op.keepdims:
        w.node("Flatten", [out], op.output, axis=1)


def _bounds(w: Writer, op: Pool) -> tuple[int, int]:
    """[lo, hi], but all of the type where none of the integers that a maximum is taken of lies outside."""
    x = op.inputs[0]
    have, want = stored(w.graph.params(x)), stored(w.graph.params(op.output))
    inside = op.mode == "max" and have == want and w.holds_within(x, op.lo, op.hi)
    return dtype_range(want) if inside else (op.lo, op.hi)


# -- maxima -----------------------------------------------------------------------------------------------------------
def _max(w: Writer, op: Pool, out: str, *, whole: bool) -> None:
    x, kind = w.read(op.inputs[0]), stored(w.graph.params(op.inputs[0]))
    unknown = whole and w.rank(op.inputs[0]) is None  # the axes of a ReduceMax are, too
    if kind in ("int16", "uint16") or unknown:  # 16 bits have no kernel; float32 holds them exactly
        made = w.fresh(f"{out}_real")
        _maximum(w, op, w.node("Cast", [x], to=TensorProto.FLOAT), made, whole=whole, bytes_=False)
        w.node("Cast", [made], out, to=tensor_type(np.dtype(kind)))
    else:
        _maximum(w, op, x, out, whole=whole, bytes_=not w.standard)


def _maximum(w: Writer, op: Pool, x: str, out: str, *, whole: bool, bytes_: bool) -> None:
    if whole:
        _maximum_of_all(w, x, w.rank(op.inputs[0]), out)
        return
    attrs, spatial = {**_attributes(op), "ceil_mode": int(op.ceil_mode)}, len(op.kernel)
    if not bytes_:
        w.nodes("MaxPool", [x], [out], attrs=attrs)
        return
    made = w.fresh(f"{out}_nhwc")
    w.nodes("NhwcMaxPool", [to_last(w, x, spatial)], [made], domain=MICROSOFT, attrs=attrs)
    to_first(w, made, spatial, out)


def _maximum_of_all(w: Writer, x: str, rank: int | None, out: str) -> None:
    """The largest over all axes but the first two; `x` is float where nobody knows how many these are."""
    if rank is None:
        w.node("GlobalMaxPool", [x], out)
        return
    axes = list(range(2, rank))
    if w.opset >= 18:
        w.node("ReduceMax", (x, w.ints(axes)), out, keepdims=1)
    else:
        w.node("ReduceMax", [x], out, axes=axes, keepdims=1)


# -- averages ---------------------------------------------------------------------------------------------------------
def _grids(w: Writer, op: Pool) -> tuple[QuantParams, QuantParams]:
    """The grids of input and result, the latter in the input's type."""
    have, want = w.graph.params(op.inputs[0]), w.graph.params(op.output)
    if have.container == want.container:
        return have, want
    return have, in_bytes(want, stored(have))


def _global_average(w: Writer, op: Pool, out: str) -> None:
    have, want = _grids(w, op)
    if w.standard:
        w.quantize(w.node("GlobalAveragePool", [w.real(op.inputs[0])]), want, out)
        return
    inputs = (*w.on(w.read(op.inputs[0]), have), w.scale(want), w.zero(want))
    w.node("QLinearGlobalAveragePool", inputs, out, domain=MICROSOFT)


def _as_convolutions(w: Writer, op: Pool, out: str) -> bool:
    """The average as depthwise QLinearConv with ones; where windows differ in size, one for each size, and a choice.

    Padding contributes nothing to a sum; only what it is divided by depends on how many elements a window counts.
    """
    shape = w.graph.tensors[op.inputs[0]].shape
    channels = shape[1] if shape is not None and len(shape) == len(op.kernel) + 2 else None
    if not isinstance(channels, int):
        return False
    if _rounds_up(op) or (any(op.pads) and not op.count_include_pad):
        try:
            windows = Windows(op, tuple(d for d in (shape or ())[2:] if isinstance(d, int)))
        except ValueError:  # a size is not known, or no window fits
            return False
        counts = windows.counts(op.count_include_pad)
        op = replace(op, pads=(*windows.before, *windows.touched()))
    else:
        counts = np.full((1,) * len(op.kernel), math.prod(op.kernel))
    different = sorted(set(counts.reshape(-1).tolist()), reverse=True)
    if not different or different[-1] == 0 or (len(different) > MOST_SIZES and not _is_dilated(op)):
        return False
    made = _mean(w, op, channels, different[0], out if len(different) == 1 else "")
    for index, count in enumerate(different[1:], 2):
        mask = w.array(counts.reshape(1, 1, *counts.shape) == count, f"{w.label}_windows_of_{count}")
        other = _mean(w, op, channels, count, "")
        made = choose(w, "Where", (mask, other, made), stored(_grids(w, op)[1]), out if index == len(different) else "")
    return True


def _mean(w: Writer, op: Pool, channels: int, count: int, out: str) -> str:
    """All windows' sums divided by `count`."""
    have, want = _grids(w, op)
    scale = ort_weight_scales([have.scale[0] / count], have.scale[0])[0]
    ones = w.array(np.ones((channels, 1, *op.kernel), np.int8), f"ones_{channels}")
    inputs = [*w.on(w.read(op.inputs[0]), have), ones, w.scalar(scale, "float32"), w.scalar(0, "int8")]
    inputs += [w.scale(want), w.zero(want)]
    return w.node("QLinearConv", inputs, out, group=channels, **_attributes(op))


def _by_kernel(w: Writer, op: Pool, out: str) -> None:
    """QLinearAveragePool: windows of different sizes in a tensor whose size is not known, or too many sizes."""
    have, want = _grids(w, op)
    include = any(op.pads) and op.count_include_pad
    overhangs = include and _rounds_up(op)
    if overhangs or _is_dilated(op):  # ONNX Runtime counts what the last window overhangs, and has no dilations
        kind = "that rounds its size up and counts its padding" if overhangs else "with dilations"
        raise fail(
            "QAT009",
            f"average pooling {kind} needs the input's spatial size, and windows that are not all padding",
            node=op.source or op.name,
            tensor=op.inputs[0],
            hint="pin the dimensions with --shape NAME=1,3,224,224",
        )
    attrs = {**_attributes(op), "ceil_mode": int(op.ceil_mode), "count_include_pad": int(include)}
    x = w.read(op.inputs[0])
    del attrs["dilations"]
    if w.standard:
        made = w.fresh(f"{out}_real")
        w.nodes("AveragePool", [w.dequantize(x, have)], [made], attrs=attrs)
        w.quantize(made, want, out)
        return
    w.nodes("QLinearAveragePool", (*w.on(x, have), w.scale(want), w.zero(want)), [out], domain=MICROSOFT, attrs=attrs)


def _attributes(op: Pool) -> dict[str, Any]:
    return {**moves_of(op), "kernel_shape": list(op.kernel)}


def _rounds_up(op: Pool) -> bool:
    return op.ceil_mode and max(op.strides) > 1


def _is_dilated(op: Pool) -> bool:
    """Whether a window leaves elements out."""
    return any(d != 1 for d in op.dilations)

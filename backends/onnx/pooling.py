"""Pool: maxima in channels-last order, averages as depthwise convolutions with weights of one.

Measured on 1x64x112x112 bytes, 3x3 stride 2 (docs/performance.md): MaxPool 3.6 ms, NhwcMaxPool 0.04 ms; QLinearAveragePool
sums floats and takes 15 times as long as QLinearConv with ones, which is exact. The transposes that channels-last order
costs are cancelled by ONNX Runtime against those it puts around its convolutions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from qatc.backends.onnx.elementwise import byte_clamp
from qatc.backends.onnx.writer import CONTRIB, Writer
from qatc.compiler.arithmetic import ort_weight_scales
from qatc.compiler.integer import Pool
from qatc.compiler.quant import QuantParams

_DILATED_AVERAGE = 19  # the opset from which AveragePool has dilations


def pool(w: Writer, op: Pool) -> None:
    """`Pool` in the forms above; dropped dimensions by Flatten."""
    whole = not op.kernel or _covers(w, op)
    dtype = w.graph.params(op.inputs[0]).container.name
    want = w.graph.params(op.output).container.name
    out = op.output if op.keepdims else w.fresh(f"{op.output}_kept")
    made = w.target(op.lo, op.hi, dtype, out) if dtype == want else w.fresh(f"{out}_{dtype}")
    if op.mode == "max":
        _max(w, op, made, whole=whole)
    elif whole:
        _global_average(w, op, made)
    elif not _as_convolution(w, op, made):
        _windowed_average(w, op, made)
    if dtype != want:
        made = w.shift(made, dtype, want, w.target(op.lo, op.hi, want, out))
    w.clip(made, op.lo, op.hi, want, out)
    if not op.keepdims:
        w.node("Flatten", [out], op.output, axis=1)


def _covers(w: Writer, op: Pool) -> bool:
    """Whether the kernel is the whole input without padding."""
    shape = w.graph.tensors[op.inputs[0]].shape
    return shape is not None and op.kernel == tuple(shape[2:]) and not any(op.pads)


def _window(op: Pool) -> tuple[list[int], list[int], list[int], list[int]]:
    """kernel, strides, pads, dilations, spelled out."""
    rank = len(op.kernel)
    strides, dilations = list(op.strides or (1,) * rank), list(op.dilations or (1,) * rank)
    return list(op.kernel), strides, list(op.pads or (0,) * 2 * rank), dilations


# -- maxima -----------------------------------------------------------------------------------------------------------
def _max(w: Writer, op: Pool, out: str, *, whole: bool) -> None:
    x = w.read(op.inputs[0])
    if whole:
        _reduce(w, "ReduceMax", x, w.rank(op.inputs[0]), out)
        return
    kernel, strides, pads, dilations = _window(op)
    attrs = {"kernel_shape": kernel, "strides": strides, "pads": pads, "dilations": dilations, "ceil_mode": int(op.ceil_mode)}
    if w.standard:
        w.nodes("MaxPool", [x], [out], attrs=attrs)
        return
    made = w.fresh(f"{out}_nhwc")
    w.nodes("NhwcMaxPool", [to_last(w, x, len(kernel))], [made], domain=CONTRIB, attrs=attrs)
    to_first(w, made, len(kernel), out)


def _reduce(w: Writer, kind: str, x: str, rank: int | None, out: str) -> None:
    axes = list(range(2, 4 if rank is None else rank))
    if w.opset >= 18:
        w.node(kind, (x, w.ints(axes)), out, keepdims=1)
    else:
        w.node(kind, [x], out, axes=axes, keepdims=1)


def to_last(w: Writer, x: str, spatial: int, out: str = "") -> str:
    """[N, C, spatial...] -> [N, spatial..., C]."""
    return w.node("Transpose", [x], out, perm=[0, *range(2, spatial + 2), 1])


def to_first(w: Writer, x: str, spatial: int, out: str = "") -> str:
    """[N, spatial..., C] -> [N, C, spatial...]."""
    return w.node("Transpose", [x], out, perm=[0, spatial + 1, *range(1, spatial + 1)])


# -- averages ---------------------------------------------------------------------------------------------------------
def _grids(w: Writer, op: Pool) -> tuple[QuantParams, QuantParams]:
    """The grids of input and result, the latter in the input's type."""
    have, want = w.graph.params(op.inputs[0]), w.graph.params(op.output)
    if have.container == want.container:
        return have, want
    wide = QuantParams.per_tensor(want.scale[0], want.zero_point[0], want.container.name)
    return have, wide.as_dtype(have.container.name)


def _global_average(w: Writer, op: Pool, out: str) -> None:
    have, want = _grids(w, op)
    if w.standard:
        w.quantize(w.node("GlobalAveragePool", [w.real(op.inputs[0])]), want, out)
        return
    inputs = (w.read(op.inputs[0]), w.scale(have), w.zero(have), w.scale(want), w.zero(want))
    w.node("QLinearGlobalAveragePool", inputs, out, domain=CONTRIB)


def _as_convolution(w: Writer, op: Pool, out: str) -> bool:
    """The average as a depthwise QLinearConv with ones, where every window divides by the whole kernel's size."""
    shape = w.graph.tensors[op.inputs[0]].shape
    kernel, strides, pads, dilations = _window(op)
    channels = shape[1] if shape is not None else None
    if not isinstance(channels, int) or (any(pads) and not op.count_include_pad):
        return False
    if op.ceil_mode and not _ends_flush(shape or (), kernel, strides, pads, dilations):
        return False
    have, want = _grids(w, op)
    weight_scale = ort_weight_scales([have.scale[0] / math.prod(kernel)], have.scale[0])[0]
    ones = w.array(np.ones((channels, 1, *kernel), np.int8), f"ones_{channels}_{'x'.join(map(str, kernel))}")
    inputs = (
        w.read(op.inputs[0]), w.scale(have), w.zero(have), ones, w.scalar(weight_scale, "float32"), w.scalar(0, "int8"),
        w.scale(want), w.zero(want),
    )  # fmt: skip
    w.node("QLinearConv", inputs, out, group=channels, kernel_shape=kernel, strides=strides, pads=pads, dilations=dilations)
    return True


def _ends_flush(
    shape: Sequence[int | str | None], kernel: list[int], strides: list[int], pads: list[int], dilations: list[int]
) -> bool:
    """Whether rounding the output size up makes no difference, for any size that the shape admits."""
    rank = len(kernel)
    for axis in range(rank):
        if strides[axis] == 1:
            continue
        size = shape[axis + 2]
        if not isinstance(size, int):
            return False
        room = size + pads[axis] + pads[axis + rank] - (kernel[axis] - 1) * dilations[axis] - 1
        if room % strides[axis]:
            return False
    return True


def _windowed_average(w: Writer, op: Pool, out: str) -> None:
    """QLinearAveragePool (floats inside): windows of different sizes."""
    have, want = _grids(w, op)
    kernel, strides, pads, dilations = _window(op)
    x = w.read(op.inputs[0])
    if any(pads) and op.count_include_pad and op.ceil_mode:
        # ONNX Runtime counts the overhang of the last window too; padding beforehand leaves it nothing to count
        rank = len(kernel)
        widths = [0, 0, *pads[:rank], 0, 0, *pads[rank:]]
        x, pads = w.node("Pad", (x, w.ints(widths), w.zero(have))), [0] * 2 * rank
    dilated = any(d != 1 for d in dilations)
    attrs = {
        "kernel_shape": kernel, "strides": strides, "pads": pads, "ceil_mode": int(op.ceil_mode),
        "count_include_pad": int(op.count_include_pad), "dilations": dilations if dilated else None,
    }  # fmt: skip
    if w.standard or dilated:
        made = w.fresh(f"{out}_real")
        w.nodes("AveragePool", [w.dequantize(x, have)], [made], attrs=attrs)
        w.quantize(made, want, out)
        return
    del attrs["dilations"]
    w.nodes("QLinearAveragePool", (x, w.scale(have), w.zero(have), w.scale(want), w.zero(want)), [out], domain=CONTRIB, attrs=attrs)


__all__ = ["byte_clamp", "pool", "to_first", "to_last"]

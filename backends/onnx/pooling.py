"""Pool: maxima in channels-last order, averages as depthwise convolutions with weights of one.

Measured on 1x64x112x112 bytes, 3x3 stride 2 (docs/performance.md): MaxPool 3.6 ms, NhwcMaxPool 0.04 ms; QLinearAveragePool
sums floats and takes 15 times as long as QLinearConv with ones, which is exact. The transposes that channels-last order
costs are cancelled by ONNX Runtime against those it puts around its convolutions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from qatc.backends.onnx.writer import CONTRIB, Writer
from qatc.compiler.arithmetic import ort_weight_scales
from qatc.compiler.diagnostics import fail
from qatc.compiler.integer import Pool
from qatc.compiler.quant import QuantParams


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
    if op.ceil_mode and not _ends_flush(op, shape or ()):
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


def _ends_flush(op: Pool, shape: Sequence[int | str | None]) -> bool:
    """Whether rounding the output size up makes no difference, for any size that the shape admits."""
    kernel, strides, pads, dilations = _window(op)
    rank = len(kernel)
    for axis in range(rank):
        size = shape[axis + 2]
        if strides[axis] == 1:
            continue
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
    ceil_mode = int(op.ceil_mode)
    if any(pads) and op.count_include_pad:
        # ONNX Runtime also counts the overhang of a last window; so padding comes first, and the overhang is what is padded
        widths, pads = _padding_first(w, op)
        x, ceil_mode = w.node("Pad", (x, w.ints(widths), w.zero(have))), 0
    dilated = any(d != 1 for d in dilations)
    attrs = {
        "kernel_shape": kernel, "strides": strides, "pads": pads, "ceil_mode": ceil_mode, "count_include_pad": 0,
        "dilations": dilations if dilated else None,
    }  # fmt: skip
    if w.standard or dilated:
        made = w.fresh(f"{out}_real")
        w.nodes("AveragePool", [w.dequantize(x, have)], [made], attrs=attrs)
        w.quantize(made, want, out)
        return
    inputs = (x, w.scale(have), w.zero(have), w.scale(want), w.zero(want))
    w.nodes("QLinearAveragePool", inputs, [out], domain=CONTRIB, attrs=attrs)


def _padding_first(w: Writer, op: Pool) -> tuple[list[int], list[int]]:
    """Widths of a Pad in front, and the pads that are left: what the last windows overhang, which no mean counts."""
    kernel, strides, pads, dilations = _window(op)
    rank = len(kernel)
    shape = w.graph.tensors[op.inputs[0]].shape
    widths, left = [0] * (2 * rank + 4), [0] * 2 * rank
    for axis in range(rank):
        size = shape[axis + 2] if shape is not None else None
        if not isinstance(size, int):
            raise fail(
                "QAT009",
                "average pooling that rounds its size up and counts its padding needs the input's spatial size",
                node=op.source or op.name,
                tensor=op.inputs[0],
                hint="pin the dimensions with --shape NAME=1,3,224,224",
            )
        padded = size + pads[axis] + pads[axis + rank]
        reach = (kernel[axis] - 1) * dilations[axis] + 1
        count = -(-(padded - reach) // strides[axis]) + 1
        if (count - 1) * strides[axis] >= size + pads[axis]:
            count -= 1  # a window that would begin in the padding behind the input does not exist
        overhang = (count - 1) * strides[axis] + reach - padded
        widths[axis + 2], widths[axis + 4 + rank] = pads[axis], pads[axis + rank] + min(overhang, 0)
        left[axis + rank] = max(overhang, 0)
    return widths, left

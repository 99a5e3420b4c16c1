r"""Transposed convolutions as ordinary ones: ONNX Runtime has no integer ConvTranspose.

A transposed convolution of stride s writes s interleaved results, each an ordinary convolution with every s-th tap of
the kernel (sub-pixel convolution). All of them are one convolution with s times the channels per axis, whose channels
are then laid out in space; what sticks out is cut off. Dilated kernels are first spelled out with zeros between taps.

    x [N,C,H,W] -> QLinearConv -> [N,H',W',(g,ph,pw,m)] -> [N,H',ph,W',pw,(g,m)] -> Slice -> [N,M,H",W"]
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from qatc.backends.onnx.convolution import Convolution
from qatc.backends.onnx.moves import to_first, to_last
from qatc.backends.onnx.products import Product, write
from qatc.backends.onnx.weights import Weight
from qatc.backends.onnx.writer import INT64_MAX, Writer
from qatc.compiler.integer import Conv
from qatc.compiler.quant import Array


@dataclass(frozen=True)
class _Axis:
    """One spatial axis: output position o = position * stride + phase - first, for `taps` taps per phase."""

    stride: int
    taps: int
    before: int  # padding of the ordinary convolution
    after: int
    first: int  # interleaved positions to cut off in front
    last: int  # and behind

    @classmethod
    def of(cls, stride: int, kernel: int, begin: int, end: int, extra: int) -> _Axis:
        """Work out one axis from the transposed convolution's attributes (dilation spelled out).

        Interleaved position t = o + begin runs over [begin, begin + size); phase p of position q is t = q * stride + p
        and reads x[q - m] times tap m * stride + p. The positions q from begin // stride to the last needed are made;
        `extra` is the output padding.
        """
        taps = -(-kernel // stride)
        skipped = begin // stride
        before = taps - 1 - skipped
        reach = kernel + extra - end  # one past the last position that is needed, relative to the last input's first
        after = -(-reach // stride) - 1
        if before < 0:  # more is cut off than the kernel's taps add: make it and cut it
            skipped, before = skipped + before, 0
        surplus = (after + 1) * stride - reach
        if after < 0:
            surplus, after = surplus - after * stride, 0
        return cls(stride, taps, before, after, begin - skipped * stride, surplus)


def transposed(w: Writer, op: Conv, weight: Weight, product: Product, out: str) -> None:
    """Write `op`, a transposed convolution, with its weight [C, M/groups, kernel...]."""
    values = _undilated(weight, op.dilations)
    spatial = values.ndim - 2
    kernel = values.shape[2:]
    extra = op.output_padding or (0,) * spatial
    axes = [_Axis.of(op.strides[i], kernel[i], op.pads[i], op.pads[i + spatial], extra[i]) for i in range(spatial)]
    phases = int(np.prod([a.stride for a in axes]))
    kernels = replace(weight, values=_phases(values, axes, op.groups, weight))
    convolution = Convolution(
        w.read(op.inputs[0]), w.graph.params(op.inputs[0]), kernels, (1,) * spatial,
        (*(a.before for a in axes), *(a.after for a in axes)), (1,) * spatial, op.groups,
    )  # fmt: skip
    scale, bias = _spread(product.scale, op.groups, phases), product.bias
    if bias is not None and bias.size == op.groups * values.shape[1]:  # not one number for all channels
        bias = _repeated(bias, op.groups, phases)
    spread = replace(product, scale=scale, bias=bias)
    if phases == 1 and not any(a.first or a.last for a in axes):
        write(w, convolution, spread, out)
        return
    made = w.fresh(f"{out}_phases")
    write(w, convolution, replace(spread, transposed=True), made)
    _interleave(w, op, made, axes, values.shape[1], out)


def _undilated(weight: Weight, dilations: tuple[int, ...]) -> Array:
    """The kernel with its zeros spelled out."""
    values = weight.values
    for axis, dilation in enumerate(dilations):
        if dilation > 1:
            size = values.shape[axis + 2]
            wide = np.full(_with(values.shape, axis + 2, (size - 1) * dilation + 1), weight.zero, values.dtype)
            wide[(slice(None),) * (axis + 2) + (slice(None, None, dilation),)] = values
            values = wide
    return values


def _with(shape: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    return (*shape[:axis], size, *shape[axis + 1 :])


def _phases(values: Array, axes: list[_Axis], groups: int, weight: Weight) -> Array:
    """[C, M/g, kernel...] -> [(g, phase..., M/g), C/g, taps...], the taps of each phase in reverse order.

    A weight in two halves has them along C, [2C, ...]; they become the halves of every group's channels.
    """
    halves = 2 if weight.doubled else 1
    channels, per_group = values.shape[0] // halves, values.shape[1]
    spatial = len(axes)
    for axis, a in enumerate(axes):
        missing = a.taps * a.stride - values.shape[axis + 2]
        if missing:
            widths = [(0, 0)] * values.ndim
            widths[axis + 2] = (0, missing)
            values = np.pad(values, widths, constant_values=weight.zero)
    sizes = [n for a in axes for n in (a.taps, a.stride)]
    split = values.reshape(halves, groups, channels // groups, per_group, *sizes)
    taps = [4 + 2 * i for i in range(spatial)]
    strides = [5 + 2 * i for i in range(spatial)]
    split = split.transpose(1, *strides, 3, 0, 2, *taps)  # g, phases, m, halves, c, taps
    split = np.flip(split, axis=tuple(range(split.ndim - spatial, split.ndim)))
    return np.ascontiguousarray(split).reshape(-1, halves * channels // groups, *(a.taps for a in axes))


def _spread(scale: Array, groups: int, phases: int) -> Array:
    """Scales per output channel (g, m), repeated for every phase: (g, phase, m)."""
    return scale if scale.size == 1 else _repeated(scale, groups, phases)


def _repeated(values: Array, groups: int, phases: int) -> Array:
    return values.reshape(groups, 1, -1).repeat(phases, axis=1).reshape(-1)


def _interleave(w: Writer, op: Conv, made: str, axes: list[_Axis], per_group: int, out: str) -> None:
    """Lay phases out in space: (g, phase..., m) channels to interleaved positions; then cut."""
    spatial, groups = len(axes), op.groups
    x = to_last(w, made, spatial)
    strides = [a.stride for a in axes]
    if any(s > 1 for s in strides):
        split = w.node("Reshape", (x, w.ints([0] * (spatial + 1) + [groups, *strides, per_group])))
        phase = spatial + 2
        order = [0, *(i for axis in range(spatial) for i in (1 + axis, phase + axis)), spatial + 1, phase + spatial]
        if order != sorted(order):
            split = w.node("Transpose", [split], perm=order)
        x = w.node("Reshape", (split, _shape(w, op, x, axes, groups * per_group)))
    cut = [(axis + 1, a) for axis, a in enumerate(axes) if a.first or a.last]
    if cut:
        starts, ends = [a.first for _, a in cut], [-a.last or INT64_MAX for _, a in cut]
        x = w.node("Slice", (x, w.ints(starts), w.ints(ends), w.ints([axis for axis, _ in cut])))
    to_first(w, x, spatial, out)


def _shape(w: Writer, op: Conv, x: str, axes: list[_Axis], channels: int) -> str:
    """The shape after interleaving: sizes that are known as numbers, one unknown as -1, more of them computed."""
    shape = w.graph.tensors[op.inputs[0]].shape
    sizes: list[int] = []
    for axis, a in enumerate(axes):
        size = shape[axis + 2] if shape is not None else None
        sizes.append((size + a.before + a.after - a.taps + 1) * a.stride if isinstance(size, int) else -1)
    if sizes.count(-1) <= 1:
        return w.ints([0, *sizes, channels])
    have = w.node("Slice", (w.node("Shape", [x]), w.ints([0]), w.ints([len(axes) + 1])))
    grown = w.node("Mul", (have, w.ints([1, *(a.stride for a in axes)])))
    return w.node("Concat", (grown, w.ints([channels])), axis=0)

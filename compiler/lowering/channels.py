"""Functions of a quantized tensor that differ from channel to channel: depthwise 1x1 convolutions of its integers.

    BatchNormalization(x)       Conv(x, +-64 or 0, bias)                             and so Mul, Add, ... per channel
    PRelu(x, slope[C])          Add(Relu(x), Conv(Clip(x, max=0), +-64 or 0))        each on the result's grid

Of the two parts of a PRelu one always is zero, so that their sum is rounded once, as the PRelu is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from qatc.compiler.graph import Constant, Node, Tensor, rank_of, shape_of, value_of
from qatc.compiler.integer import Conv, Elementwise, Rescale
from qatc.compiler.lowering.state import State
from qatc.compiler.model.links import is_op, label_of
from qatc.compiler.passes.affine import Place, affine_of
from qatc.compiler.passes.products import Vector, per_channel
from qatc.compiler.passes.propagate import clamp_bounds
from qatc.compiler.quant import QuantParams

_PEAK: Final = 64  # a power of two keeps a factor's own digits
_COARSE: Final = 0.5  # steps of the result to a unit of the bias, which is rounded to half of that
_STEPS: Final = frozenset({"BatchNormalization", "Mul", "Div", "Add", "Sub"})
_MANY: Final = 16  # channels that processors take at a time
_OF_IMAGES: Final = frozenset(
    {"Conv", "ConvTranspose", "AveragePool", "MaxPool", "GlobalAveragePool", "GlobalMaxPool", "Resize"}
)


@dataclass(frozen=True)
class _Affine:
    """`factor * x + offset`, one number per channel each (axis 1); `normalizes` where batch norm is among the nodes."""

    x: Tensor
    factor: Vector
    offset: Vector
    rank: int
    normalizes: bool


def affine(state: State, node: Node, out: Tensor, lo: int, hi: int) -> bool:
    """An affine per channel of a quantized tensor: a depthwise 1x1 convolution whose weights are +64 or -64.

    BatchNormalization is one, and so are Mul, Div, Add and Sub with constants, any number of them. The factor of a
    channel is the weight's scale times 64, so nothing is rounded but the bias, on a grid 64 times finer than the
    input's. (64 and not 127: a power of two keeps the factor's own digits.) Vectors [N, C] are one position.

    Where that grid is coarser than half a step of the result, which grows many times over, it stays float, and so do
    constants per channel where the convolution would take longer (measured, docs/performance.md): with fewer
    than 16 channels, and between other operators than those of images, such as products of attention, for there the
    channels must be moved last and back.
    """
    found = _affine_of(state, node)
    if found is None or state.usable(out) is None or _is_coarse(state, found, out):
        return False
    many = found.rank > 2 and max(found.factor.size, found.offset.size) >= _MANY
    if not (found.normalizes or (many and _is_of_images(state, found.x, out))):
        return False
    ends = state.int_name(found.x), state.new_int(out)
    offset = found.offset if found.offset.any() else None
    _depthwise(state, node, out, ends, found.factor, offset, (lo, hi), found.rank)
    return True


def is_coarse(state: State, node: Node) -> bool:
    """Whether an affine per channel stays float since its offsets are finer than a bias of the convolution can be."""
    if node.domain or node.op not in _STEPS:
        return False
    out = node.outputs[0]
    while out.name not in state.graph.params:
        reader = state.graph.only_consumer(out)
        if reader is None or clamp_bounds(state.graph, reader) is None:
            return False
        out = reader.outputs[0]
    found = _affine_of(state, node)
    return found is not None and _is_coarse(state, found, out)


def _is_coarse(state: State, found: _Affine, out: Tensor) -> bool:
    have, want = state.usable(found.x), state.usable(out)
    if have is None or want is None or not found.offset.any():
        return False
    units = np.abs(found.factor) * have.scale[0] / _PEAK
    return float(np.where(found.offset != 0, units, 0).max(initial=0)) > _COARSE * want.scale[0]


def _affine_of(state: State, node: Node) -> _Affine | None:
    """The affine that ends in a node, back to a quantized tensor; None where it is none."""
    factor, offset, normalizes = np.ones(1), np.zeros(1), False
    current: Node | None = node
    while current is not None:
        x = next((t for t in current.inputs if not isinstance(t, Constant)), None)
        rank, step = (None, None) if x is None else (rank_of(x), _step(state, current, x))
        if x is None or rank is None or step is None or not all(np.isfinite(v).all() for v in step):
            return None
        if factor.size not in (1, step[0].size):  # the file contradicts itself
            return None
        with np.errstate(over="ignore", invalid="ignore"):
            factor, offset = factor * step[0], factor * step[1] + offset
        normalizes = normalizes or current.op == "BatchNormalization"
        if state.params(x) is not None:
            usable = (
                state.usable(x) is not None and rank >= 2 and np.isfinite(factor).all() and np.isfinite(offset).all()
            )
            return _Affine(x, factor, offset, rank, normalizes) if usable else None
        current = state.graph.producer(x) if state.graph.only_consumer(x) is not None else None
    return None


def _step(state: State, node: Node, x: Tensor) -> tuple[Vector, Vector] | None:
    """Factor and offset per channel that a node applies to `x`, its only computed operand."""
    if node.domain or node.outputs[1:] or node.op not in _STEPS:
        return None
    shape, channels = shape_of(x), _channels(node, x)
    if shape is None or channels is None:
        return None
    found = affine_of(state.graph, node, Place(x, 1 - len(shape), len(shape)), channels)
    if found is None or not found[1].all():
        return None
    up, down, offset = found
    with np.errstate(over="ignore"):
        return up / down, offset


def _channels(node: Node, x: Tensor) -> int | None:
    """How many channels `x` has: its own size says so, or batch norm's."""
    if node.op == "BatchNormalization":
        gamma = value_of(node.inputs[1])
        return None if gamma is None else gamma.size
    shape = shape_of(x)
    channels = shape[1] if shape is not None and len(shape) > 1 else None
    return channels if isinstance(channels, int) else None


def _is_of_images(state: State, x: Tensor, out: Tensor) -> bool:
    """Whether a convolution or pooling makes `x` or reads `out`: these have the channels last, too."""
    graph = state.graph
    maker = graph.producer(x)
    while maker is not None and clamp_bounds(graph, maker) is not None:
        maker = graph.producer(maker.inputs[0])
    beside = [n for n in (maker, *graph.consumers(out)) if n is not None]
    return any(is_op(n, *_OF_IMAGES) for n in beside)


def _depthwise(
    state: State,
    node: Node,
    out: Tensor,
    ends: tuple[str, str],
    factor: Vector,
    offset: Vector | None,
    bounds: tuple[int, int],
    rank: int,
) -> None:
    """The integers ends[1] of factor * x + offset per channel, from the integers ends[0] of x [N, C, spatial...].

    Vectors [N, C] are one position.
    """
    graph, name = state.build.graph, out.name
    source, result = _with_position(state, ends) if rank == 2 else ends
    rank = max(rank, 3)
    step = graph.params(source).scale[0]
    scale = np.maximum(np.abs(factor), float(np.abs(factor).max(initial=0)) * 2.0**-20) / _PEAK
    if offset is not None:
        scale = np.maximum(scale, np.abs(offset) / step / 2.0**30)
    scale = np.maximum(scale, 1e-30)
    weights = np.rint(factor / scale).astype(np.int8).reshape([-1] + [1] * (rank - 1))
    weight = QuantParams.per_channel(scale, 0)
    unit = np.asarray(weight.scale) * step
    inputs = [source, state.build.constant(f"{name}_weight", weights, weight)]
    if offset is not None:
        graph.real_biases[result] = offset / unit
        inputs.append(state.build.constant(f"{name}_bias", np.rint(offset / unit).astype(np.int32)))
    label, ones = label_of(node), (1,) * (rank - 2)
    state.build.add(
        Conv, label, tuple(inputs), (result,), lo=bounds[0], hi=bounds[1], strides=ones, pads=(0,) * 2 * (rank - 2),
        dilations=ones, groups=factor.size, acc_scale=tuple(float(u) for u in unit), source=label,
    )  # fmt: skip
    if result != ends[1]:
        state.move("Squeeze", (result, _position(state)), ends[1])


def prelu(state: State, node: Node, out: Tensor, lo: int, hi: int) -> bool:
    """PRelu with a slope for each channel of [N, C, spatial...] or [N, C]."""
    if not is_op(node, "PRelu"):
        return False
    x = node.inputs[0]
    have, want, rank, shape = state.usable(x), state.usable(out), rank_of(x), shape_of(x)
    value = state.graph.real(node.inputs[1])
    channels = shape[1] if shape is not None and len(shape) > 1 else None
    if have is None or want is None or value is None or rank is None or not isinstance(channels, int):
        return False
    slope = per_channel(value, 1 - rank, channels) if value.ndim <= rank else None
    if slope is None or not np.isfinite(slope).all() or not _holds_zero(have) or not _holds_zero(want):
        return False
    origin, zero = have.zero_point[0], want.zero_point[0]
    source, label = state.int_name(x), label_of(node)
    negative, positive, scaled = (
        state.build.quantized(f"{out.name}_{part}", params, shape)
        for part, params in (("negative", have), ("positive", want), ("scaled", want))
    )
    for made, low, high in ((negative, have.qmin, origin), (positive, zero, want.qmax)):
        state.build.add(Rescale, label, (source,), (made,), lo=low, hi=high, source=label)
    _depthwise(state, node, out, (negative, scaled), slope, None, (want.qmin, want.qmax), rank)
    parts, result = (positive, scaled), (state.new_int(out),)
    state.build.add(Elementwise, label, parts, result, lo=lo, hi=hi, op="Add", source=label)
    return True


def _holds_zero(params: QuantParams) -> bool:
    return params.qmin <= params.zero_point[0] <= params.qmax


def _with_position(state: State, ends: tuple[str, str]) -> tuple[str, str]:
    """Vectors [N, C] as [N, C, 1], and the name of what such a result is."""
    made: list[str] = []
    for name, kind in zip(ends, ("at_one_position", "of_one_position"), strict=True):
        shape = state.build.graph.tensors[name].shape
        wide = None if shape is None else (*shape, 1)
        made.append(state.build.quantized(f"{name}_{kind}", state.build.graph.params(name), wide))
    state.move("Unsqueeze", (ends[0], _position(state)), made[0])
    return made[0], made[1]


def _position(state: State) -> str:
    """The axis of the one position."""
    return state.build.constant("position", np.asarray([2], np.int64))

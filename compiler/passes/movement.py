"""Operators that only move elements: which ones they are, and where a channel axis goes through them.

Rounding commutes with moving: for these operators Q(move(x)) = move(Q(x)), element for element.
MaxPool, ReduceMax, ReduceMin, Max and Min belong here since rounding is monotone, and Resize in its nearest mode.
"""

from __future__ import annotations

import math
from typing import Final, TypeGuard

import numpy as np

from qatc.compiler.graph import Dim, Node, Tensor, rank_of, shape_of, value_of
from qatc.compiler.model.links import is_op
from qatc.compiler.quant import Array, QuantParams, number_of
from qatc.compiler.reference.moves import MOVES, Call

_ALWAYS: Final = frozenset(
    {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Gather", "GatherElements", "GatherND",
     "Expand", "Tile", "Split", "DepthToSpace", "SpaceToDepth", "Identity", "ReverseSequence", "ReduceMax", "ReduceMin"}
)  # fmt: skip
MAXIMA: Final = frozenset({"MaxPool", "GlobalMaxPool"})  # the largest of positions: rising functions commute with it
SIGN_KEEPERS: Final = MAXIMA | {"Transpose"}  # what the sign of a sum may be taken before, with nothing brought in
LAYOUT: Final = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"})  # every element stays, once


def is_value_blind(node: Node) -> bool:
    """Whether the node reads its operand's shape alone: the values do not concern it."""
    return is_op(node, "Shape", "Size")


def is_movement(node: Node) -> bool:
    """Whether the node moves elements of its first input and computes nothing (see `joined` for several inputs)."""
    if node.domain or not node.inputs:
        return False
    if node.op in _ALWAYS:
        return True
    match node.op:
        case "MaxPool":
            return len(node.outputs) == 1
        case "GlobalMaxPool":
            return True
        case "Resize":
            crops = node.attr("coordinate_transformation_mode") == "tf_crop_and_resize"  # brings in a value
            return not crops and str(node.attr("mode", "nearest")) == "nearest"
        case "Pad":
            return str(node.attr("mode", "constant")) != "constant" or pad_value(node) is not None
        case _:
            return False


def joins(node: Node) -> bool:
    """Whether the node brings elements of several operands together as they are (see `joined`)."""
    return is_op(node, "Concat", "Where", "Max", "Min")


def joined(node: Node) -> list[Tensor]:
    """The operands whose elements a Concat, Where, Max or Min brings together as they are; none for other operators."""
    if not joins(node):
        return []
    return list(node.inputs[1:3] if node.op == "Where" else node.inputs)


def pad_value(node: Node) -> float | None:
    """The constant a Pad fills with; None where it is computed at run time."""
    given = node.optional(2)
    return float(node.attr("value", 0.0)) if given is None else number_of(value_of(given))


def params_through(node: Node, params: QuantParams) -> QuantParams | None:
    """Parameters of a movement's output, given those of its input; None where they do not carry over.

    Per-tensor parameters always do, unless a Pad or Resize brings in a value that is not on the grid. Zeros that a Pad
    brings in are on that of every channel, and one integer where the zero points are equal.
    """
    if node.op == "Pad" and node.attr("mode", "constant") == "constant":
        value = pad_value(node)
        if value is None or not on_grid(value, params):
            return None
        if params.is_per_channel:
            sizes, channels = shape_of(node.outputs[0]) or (), params.axis or 0
            whole = sizes[channels : channels + 1] == (len(params.scale),)
            return params if whole and not value and len(set(params.zero_point)) == 1 else None
    if not params.is_per_channel:
        return params
    if node.op not in LAYOUT:
        return None
    axis = axis_through(node, params.axis or 0)
    return _split(node, params) if axis is None else params.with_axis(axis)


def _split(node: Node, params: QuantParams) -> QuantParams | None:
    """Parameters of a tensor whose channels each become several, or become one axis with others: of weights in groups.

    Each new channel has the parameters of the old one that its elements are of; None where they are of several, and
    where each would be of one element: that is no channel any more.
    """
    axis, before, after = params.axis or 0, shape_of(node.inputs[0]), shape_of(node.outputs[0])
    if before is None or after is None or not _are_known(before) or not _are_known(after):
        return None
    inner, channels = math.prod(before[axis + 1 :]), len(params.scale)
    for place, size in enumerate(after):
        within = math.prod(after[place + 1 :])
        if not within or inner % within or size in (0, math.prod(after)):
            continue
        if math.prod(after[:place]) == 1 or size * within % (inner * channels) == 0:
            return params.take(np.arange(size) * within // inner % channels).with_axis(place)
    return None


def _are_known(shape: tuple[Dim, ...]) -> TypeGuard[tuple[int, ...]]:
    return all(isinstance(d, int) for d in shape)


def on_grid(value: float, params: QuantParams) -> bool:
    """Whether a real number is exactly one of the grid's."""
    return all_on_grid(np.asarray(value, np.float64), params)


def all_on_grid(values: Array, params: QuantParams) -> bool:
    """Whether real numbers all are exactly such of the grid."""
    steps = values.astype(np.float64) / params.scale[0]
    if not np.isfinite(steps).all():
        return False
    whole = np.rint(steps)
    q = whole + params.zero_point[0]
    inside = (q >= params.qmin) & (q <= params.qmax)
    return bool((inside & (np.abs(steps - whole) <= 1e-6 * np.maximum(1.0, np.abs(steps)))).all())


def channels_to_second(rank: int) -> list[int]:
    """The order of a Transpose that brings the channels from the last axis to the second."""
    return [0, rank - 1, *range(1, rank - 1)]


def channels_to_end(rank: int) -> list[int]:
    """The order of a Transpose that brings the channels from the second axis to the last."""
    return [0, *range(2, rank), 1]


def order_of(transpose: Node) -> tuple[int, ...] | None:
    """Which axis of its input each axis of a Transpose's result is; None where the model does not say."""
    rank = rank_of(transpose.inputs[0])
    axes = transpose.attr("perm", list(range(rank))[::-1] if rank is not None else [])
    return tuple(int(a) for a in axes) if axes and sorted(axes) == list(range(len(axes))) else None


def axis_through(node: Node, axis: int) -> int | None:
    """Where dimension `axis` of the input lies in the output of a layout operator, if it stays whole; else None."""
    if node.op == "Transpose":
        order = order_of(node) or ()
        return order.index(axis) if axis in order else None
    before, after = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    if before is None or after is None:
        return None
    size = before[axis]
    if not isinstance(size, int):
        return None
    for candidate, other in enumerate(after):
        if other != size:
            continue
        if _same(before[:axis], after[:candidate]) or _same(before[axis + 1 :], after[candidate + 1 :]):
            return candidate
    return None


def _same(one: tuple[Dim, ...], two: tuple[Dim, ...]) -> bool:
    """Whether two runs of dimensions hold the same number of elements, for certain."""
    kept = [tuple(d for d in dims if d != 1) for dims in (one, two)]
    if kept[0] == kept[1]:
        return None not in kept[0]
    if all(isinstance(d, int) for dims in kept for d in dims):
        return math.prod(kept[0]) == math.prod(kept[1])  # type: ignore[arg-type]
    return False


def move_constant(node: Node, value: Array) -> Array | None:
    """A constant moved by a layout operator whose other inputs are constant; None where that cannot be."""
    operands = [value_of(t) if t.name else None for t in node.inputs[1:]]
    if node.op not in LAYOUT or any(t.name and v is None for t, v in zip(node.inputs[1:], operands, strict=True)):
        return None
    try:
        return MOVES[node.op](Call([value, *operands], node.attrs))[0]
    except (ValueError, LookupError):  # numbers that do not fit: the model is broken there, and says so when it is run
        return None

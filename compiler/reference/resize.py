"""Resize: separable, so one index list per axis (onnx.reference walks every element in Python); linear on integers."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Final, TypeVar

import numpy as np

from qatc.compiler.arithmetic import Profile
from qatc.compiler.budget import active
from qatc.compiler.integer import Resize
from qatc.compiler.quant import Array, Integers, QuantParams

_HALFWAY: Final = np.float32(1e-6)  # what places may miss a half by and still be one (ONNX Runtime 1.32)
_ROUND: Final[dict[str, Callable[[Array], Array]]] = {
    "round_prefer_floor": lambda at: np.floor(at) + (at - np.floor(at) > 0.5 + _HALFWAY),
    "round_prefer_ceil": lambda at: np.floor(at) + (at - np.floor(at) > 0.5 - _HALFWAY),
    "floor": np.floor,
    "ceil": np.ceil,
}


def resize_nearest(
    x: Array, scales: Array | None, sizes: Array | None, transformation: str, nearest: str
) -> list[Array] | None:
    """ONNX Resize (opset 11 and later) with mode "nearest", over all axes; None for a variant that is not handled.

    Computed in float32, as ONNX Runtime does: its roundings decide where a place lies on an integer or halfway.
    """
    if nearest not in _ROUND or transformation == "half_pixel_symmetric":  # of whose halves only float32 decides
        return None
    if sizes is not None and sizes.size:
        lengths = [int(n) for n in sizes]
        factors = [np.float32(length) / np.float32(n or 1) for length, n in zip(lengths, x.shape, strict=True)]
    elif scales is not None and scales.size:
        factors = list(scales.astype(np.float32))
        lengths = [int(np.float32(n) * f) for n, f in zip(x.shape, factors, strict=True)]
    else:
        return None
    for axis, (length, factor) in enumerate(zip(lengths, factors, strict=True)):
        if length == x.shape[axis] and factor == 1:
            continue
        at = position(np.arange(length, dtype=np.float32), length, x.shape[axis], np.asarray(factor), transformation)
        if at is None:
            return None
        index = np.clip(_ROUND[nearest](at), 0, x.shape[axis] - 1).astype(np.int64)
        x = np.take(x, index, axis=axis)
    return [x]


At = TypeVar("At", Array, Fraction)


def position(at: At, length: int, before: int, factor: At, transformation: str) -> At | None:
    """Where places of an output of `length` lie in an input of `before`; None for a transformation that is not handled.

    `factor` is the scale. Fractions are exact, arrays are computed in their type.
    """
    if transformation == "asymmetric":
        return at / factor
    if transformation == "half_pixel" or (transformation == "pytorch_half_pixel" and length > 1):
        return ((2 * at + 1) / factor - 1) / 2
    if transformation == "half_pixel_symmetric":
        return ((2 * at + 1 - length) / factor + before - 1) / 2
    if transformation == "tf_half_pixel_for_nn":
        return (2 * at + 1) / factor / 2
    if transformation == "align_corners" and length > 1:
        return at * (before - 1) / (length - 1)
    return at * 0 if transformation in ("pytorch_half_pixel", "align_corners") else None


# -- linear ---------------------------------------------------------------------------------------------------------
def resize_linear(op: Resize, x: Integers, params: QuantParams, out: QuantParams, profile: Profile) -> Integers:
    """The result of `op` on `x`. ValueError when the shape does not fit."""
    if any(not 0 <= axis < x.ndim or not x.shape[axis] for axis in op.axes):
        raise ValueError(f"Resize {op.name}: there are no axes {list(op.axes)} in the shape {list(x.shape)}")
    largest = math.prod(max(n, dict(zip(op.axes, op.sizes, strict=True)).get(i, 1)) for i, n in enumerate(x.shape))
    active().ask(3 * 8 * largest, "an exact interpolation", "compile with --no-verify", node=op.source or op.name)
    total = np.subtract(x, params.zero_array(x.ndim), dtype=np.int64)
    for index, axis in enumerate(op.axes):
        low, high, weight = taps(op, index, x.shape[axis])
        weight = weight.reshape(-1, *(1,) * (x.ndim - axis - 1))
        total = total.take(low, axis) * (op.denominators[index] - weight) + total.take(high, axis) * weight
    return profile.interpolate(total, op.divisor, params, out, op.lo, op.hi)


def taps(op: Resize, index: int, before: int) -> tuple[Array, Array, Array]:
    """Of the axis at `index`: the two places that each element of the result lies between, and the second's weight.

    Weights count in parts of the axis's denominator; the first place has the rest.
    """
    denominator = op.denominators[index]
    at = np.arange(op.sizes[index], dtype=np.int64) * op.slopes[index] + op.offsets[index]
    low, weight = np.divmod(np.clip(at, 0, (before - 1) * denominator), denominator)
    return low, np.minimum(low + 1, before - 1), weight

"""Exact int32 accumulators of convolutions and matrix products, at the speed of BLAS.

A sum of products of integers is exact in floating point, in any order and with fused multiply-adds, as long as no
partial sum can exceed 2**24 (float32) or 2**53 (float64). sum(|w|) * max(|x|) bounds them all, so a cheap look at the
operands picks the fastest type that is still exact; int64 is the last resort. The results wrap to 32 bits as hardware
does, and say how many did.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product
from typing import Final

import numpy as np
import numpy.typing as npt

from qatc.compiler.budget import active
from qatc.compiler.integer import Conv, IntegerGraph, MatMul
from qatc.compiler.quant import Array, Integers, QuantParams
from qatc.compiler.windows import Window

Int32s = npt.NDArray[np.int32]

_PATCHES: Final = 1 << 24  # elements of unrolled input held at a time (64 MB of float32)
_CACHE: Final = 1 << 17  # elements of a depthwise output worked on at a time
_INT32: Final = 1 << 31


def bias_of(op: Conv | MatMul, values: Mapping[str, Array]) -> Array | None:
    """The bias of a product, None where it has none."""
    return values[op.inputs[2]] if len(op.inputs) > 2 and op.inputs[2] else None


def accumulators(graph: IntegerGraph, op: Conv | MatMul, values: Mapping[str, Array], bias: Array | None) -> Int32s:
    """The accumulators of a product, given its operands in `values`."""
    a, b = op.inputs[:2]
    operands = values[a], graph.params(a), values[b], graph.params(b), bias
    return conv(op, *operands) if isinstance(op, Conv) else matmul(*operands)


def conv(
    op: Conv, x: Integers, x_params: QuantParams, w: Integers, w_params: QuantParams, bias: Array | None
) -> Int32s:
    """The accumulators of `op`: [N, M, spatial...], see `Conv`. ValueError when shapes do not fit."""
    geometry = Window(w.shape[2:], op.strides, op.dilations, op.pads)
    weight = _centered(w, w_params)
    if op.transposed:
        per_group = weight.reshape(op.groups, w.shape[0] // op.groups, w.shape[1], -1)
        bound = _bound(per_group, (1, 3), x, x_params)
    else:
        bound = _bound(weight, tuple(range(1, weight.ndim)), x, x_params)
    dtype = _exact_dtype(bound)
    weight = weight.astype(dtype, copy=False)
    shape = _output_shape(op, geometry, x.shape, w.shape)
    padded = math.prod(n + sum(pads) for n, pads in zip(x.shape[2:], geometry.borders, strict=True))
    size = math.prod(x.shape[:2]) * padded + math.prod(shape)
    active().ask(np.dtype(dtype).itemsize * size, "an exact convolution", "compile with --no-verify", node=op.name)
    if 0 in x.shape:
        acc = np.zeros(shape, dtype)
    elif op.transposed:
        acc = _transposed(_centered(x, x_params, dtype), weight, geometry, shape, op.groups)
    elif w.shape[1] == 1:
        acc = _depthwise(_padded(x, x_params, geometry, dtype), weight, geometry, shape, op.groups)
    else:
        acc = _unrolled(_padded(x, x_params, geometry, dtype), weight, geometry, shape, op.groups)
    return _finish(acc, bound, None if bias is None else bias.reshape((-1,) + (1,) * (acc.ndim - 2)))


def matmul(a: Integers, a_params: QuantParams, b: Integers, b_params: QuantParams, bias: Array | None) -> Int32s:
    """The accumulators of `MatMul`, numpy.matmul broadcasting; `bias` along the last axis."""
    right = _centered(b, b_params)
    bound = _bound(right, -2 if right.ndim > 1 else 0, a, a_params)
    dtype = _exact_dtype(bound)
    acc = np.asarray(np.matmul(_centered(a, a_params, dtype), right.astype(dtype, copy=False)))
    return _finish(acc, bound, bias)


# -- operands -------------------------------------------------------------------------------------------------------
def _centered(q: Integers, params: QuantParams, dtype: npt.DTypeLike | None = None) -> Array:
    """The integers less their zero point, in `dtype`, or in the narrowest floating type that holds it."""
    params.check_shape(q.shape)
    if dtype is None:
        dtype = np.float32 if q.dtype.itemsize <= 2 else np.float64
    centered = q.astype(dtype)
    if any(params.zero_point):
        centered -= params.zero_array(q.ndim).astype(dtype)
    return centered


def _bound(weight: Array, axes: int | tuple[int, ...], x: Integers, x_params: QuantParams) -> float:
    """An upper bound of every partial sum's magnitude: largest sum of |weight| over `axes` times largest |x|."""
    if x.size == 0 or weight.size == 0:
        return 0.0
    zeros = x_params.zero_point
    widest = max(abs(int(x.max()) - min(zeros)), abs(int(x.min()) - max(zeros)))
    return float(np.abs(weight).sum(axis=axes, dtype=np.float64).max()) * widest


def _exact_dtype(bound: float) -> npt.DTypeLike:
    if bound <= 1 << 24:
        return np.float32
    return np.float64 if bound <= 1 << 53 else np.int64


def _padded(x: Integers, params: QuantParams, geometry: Window, dtype: npt.DTypeLike) -> Array:
    """Centered input with zeros around it."""
    centered = _centered(x, params, dtype)
    return np.pad(centered, ((0, 0), (0, 0), *geometry.borders)) if any(geometry.pads) else centered


def _finish(acc: Array, bound: float, bias: Array | None) -> Int32s:
    """Add the bias and wrap to int32."""
    if bias is not None and bias.size:
        bound += float(np.abs(bias.astype(np.float64)).max())
    if bound < _INT32:
        values = acc.astype(np.int32)
        if bias is not None:
            values += bias.astype(np.int32)
        return values
    wide = acc.astype(np.int64)
    if bias is not None:
        wide += bias.astype(np.int64)
    return wide.astype(np.int32)


# -- convolutions ---------------------------------------------------------------------------------------------------
def _output_shape(op: Conv, geometry: Window, x: tuple[int, ...], w: tuple[int, ...]) -> tuple[int, ...]:
    rank = len(geometry.kernel)
    if len(x) != rank + 2 or rank not in (1, 2, 3) or len(w) != len(x):
        raise ValueError(f"{op.kind} {op.name}: a weight {list(w)} does not fit the input {list(x)}")
    channels = w[0] if op.transposed else w[1] * op.groups
    if x[1] != channels or w[0] % op.groups:
        raise ValueError(f"{op.kind} {op.name}: {x[1]} channels, a weight {list(w)} and {op.groups} groups do not fit")
    sizes: list[int] = []
    for axis, (n, stride, pads) in enumerate(zip(x[2:], geometry.strides, geometry.borders, strict=True)):
        if op.transposed:
            extra = op.output_padding[axis] if op.output_padding else 0
            sizes.append((n - 1) * stride + geometry.reach(axis) + extra - sum(pads))
        else:
            sizes.append((n + sum(pads) - geometry.reach(axis)) // stride + 1)
    if min(sizes) < 1:
        raise ValueError(f"{op.kind} {op.name}: the kernel {list(geometry.kernel)} does not fit the input {list(x)}")
    return (x[0], w[1] * op.groups if op.transposed else w[0], *sizes)


def _unrolled(x: Array, weight: Array, geometry: Window, shape: tuple[int, ...], groups: int) -> Array:
    """im2col and matrix products; at most `_PATCHES` elements are unrolled at a time."""
    (batch, filters), outer = shape[:2], shape[2:]
    depth = x.shape[1] // groups * math.prod(geometry.kernel)
    weight = weight.reshape(groups, filters // groups, depth)
    acc = np.empty((batch, groups, filters // groups, *outer), weight.dtype)
    per_row = x.shape[1] * math.prod(geometry.kernel) * math.prod(outer[1:])
    rows = max(1, min(outer[0], _PATCHES // max(1, per_row)))
    images = max(1, _PATCHES // max(1, per_row * outer[0])) if rows == outer[0] else 1
    windows = _windows(x, geometry, outer, groups)
    for image, row in product(range(0, batch, images), range(0, outer[0], rows)):
        part = windows[(slice(image, image + images), *(slice(None),) * (2 + len(outer)), slice(row, row + rows))]
        columns = part.reshape(part.shape[0], groups, depth, -1)
        target = acc[image : image + images, :, :, row : row + rows]
        target[...] = np.matmul(weight, columns).reshape(target.shape)
    return acc.reshape(shape)


def _windows(x: Array, geometry: Window, outer: tuple[int, ...], groups: int) -> Array:
    """Padded input as a view [N, groups, channels of a group, kernel..., output...]."""
    batch, channels = x.shape[:2]
    spatial = x.strides[2:]
    return np.lib.stride_tricks.as_strided(
        x,
        (batch, groups, channels // groups, *geometry.kernel, *outer),
        (
            x.strides[0],
            x.strides[1] * (channels // groups),
            x.strides[1],
            *(s * d for s, d in zip(spatial, geometry.dilations, strict=True)),
            *(s * d for s, d in zip(spatial, geometry.strides, strict=True)),
        ),
        writeable=False,
    )


def _depthwise(x: Array, weight: Array, geometry: Window, shape: tuple[int, ...], groups: int) -> Array:
    """One input channel per group: shifted multiply and add, kernel position by kernel position."""
    batch, outer, multiplier = shape[0], shape[2:], shape[1] // groups
    weight = weight.reshape(groups, multiplier, -1)
    acc = np.zeros((batch, groups, multiplier, *outer), weight.dtype)
    step = max(1, _CACHE // max(1, multiplier * math.prod(outer)))
    ones = (1,) * len(outer)
    for image, start in product(range(batch), range(0, groups, step)):
        some = slice(start, start + step)
        target, source = acc[image, some], x[image, some]
        scratch = np.empty_like(target)
        for index, position in enumerate(geometry.positions()):
            factor = weight[some, :, index].reshape(-1, multiplier, *ones)
            shifted = source[(slice(None), *geometry.read_at(position, outer))]
            np.multiply(shifted[:, None], factor, out=scratch)
            target += scratch
    return acc.reshape(shape)


def _transposed(x: Array, weight: Array, geometry: Window, shape: tuple[int, ...], groups: int) -> Array:
    """Matrix products, then each kernel position is added where it lands; the padding is cut off at the end."""
    inner = x.shape[2:]
    weight = weight.reshape(groups, x.shape[1] // groups, -1).transpose(0, 2, 1)
    full = tuple(n + sum(pads) for n, pads in zip(shape[2:], geometry.borders, strict=True))
    inside = tuple(slice(pads[0], pads[0] + n) for n, pads in zip(shape[2:], geometry.borders, strict=True))
    acc = np.empty(shape, weight.dtype)
    for image in range(shape[0]):
        columns = np.matmul(weight, x[image].reshape(groups, x.shape[1] // groups, -1))
        parts = columns.reshape(shape[1], *geometry.kernel, *inner)
        landed: Array = np.zeros((shape[1], *full), weight.dtype)
        for position in geometry.positions():
            landed[(slice(None), *geometry.read_at(position, inner))] += parts[(slice(None), *position)]
        acc[image] = landed[(slice(None), *inside)]
    return acc

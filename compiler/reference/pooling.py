"""Pooling on integers: windows as ONNX lays them out, sums and maxima exact."""

from __future__ import annotations

import math
from functools import reduce

import numpy as np

from qatc.compiler.arithmetic import Profile
from qatc.compiler.budget import active
from qatc.compiler.integer import Pool
from qatc.compiler.quant import Array, Integers, QuantParams
from qatc.compiler.windows import Window


def pool(op: Pool, x: Integers, params: QuantParams, out: QuantParams, profile: Profile) -> Integers:
    """The result of `op` on `x` [N, C, spatial...]. ValueError when the shapes do not fit."""
    if x.ndim < 3:
        raise ValueError(f"Pool {op.name}: needs [N, C, spatial...], found {list(x.shape)}")
    if not op.kernel or covers(op, x.shape[2:]):
        result = _global(op, x, params, out, profile)
    elif op.mode == "max":
        result = np.clip(maxima(op, x), op.lo, op.hi).astype(out.container)
    else:
        result = _average(op, x, params, out, profile)
    return result if op.keepdims else result.reshape(result.shape[:2])


def covers(op: Pool, spatial: tuple[int | str | None, ...]) -> bool:
    """Whether the kernel is the whole input without padding: targets then take their global operator."""
    return op.kernel == spatial and not any(op.pads)


def _global(op: Pool, x: Integers, params: QuantParams, out: QuantParams, profile: Profile) -> Integers:
    axes = tuple(range(2, x.ndim))
    if op.mode == "max":
        largest: Integers = x.max(axis=axes, keepdims=True)
        return largest.clip(op.lo, op.hi).astype(out.container)
    count = math.prod(x.shape[2:])
    total = x.sum(axis=axes, keepdims=True, dtype=np.int64) - params.zero_array(x.ndim) * np.int64(count)
    return profile.average(total, count, params, out, op.lo, op.hi)


class Windows:
    """Where the windows of one pooling lie, per spatial axis. ValueError where the kernel does not fit the sizes."""

    def __init__(self, op: Pool, spatial: tuple[int, ...]) -> None:
        if len(op.kernel) != len(spatial):
            raise ValueError(
                f"Pool {op.name}: a kernel {list(op.kernel)} does not fit the spatial shape {list(spatial)}"
            )
        self.moving = Window(op.kernel, op.strides, op.dilations, op.pads)
        self.before, self.after = op.pads[: len(spatial)], op.pads[len(spatial) :]
        self.spatial = spatial
        self.outer = tuple(self._count(axis, op.ceil_mode) for axis in range(len(spatial)))
        if min(self.outer) < 0:
            raise ValueError(f"Pool {op.name}: the kernel {list(op.kernel)} is larger than the input {list(spatial)}")

    def _count(self, axis: int, ceil_mode: bool) -> int:
        room = self.spatial[axis] + self.before[axis] + self.after[axis] - self.moving.reach(axis)
        stride = self.moving.strides[axis]
        if not ceil_mode:
            return int(room / stride) + 1  # toward zero, as ONNX does: a window that reaches too far is one
        count = -(-room // stride) + 1
        # A window that would begin in the padding after the input does not exist.
        return count - 1 if (count - 1) * stride >= self.spatial[axis] + self.before[axis] else count

    def touched(self) -> tuple[int, ...]:
        """How much padding behind the input the windows touch, per axis."""
        return tuple(
            max(0, (self.outer[a] - 1) * self.moving.strides[a] + self.moving.reach(a) - n - self.before[a])
            for a, n in enumerate(self.spatial)
        )

    def padded(self, x: Array, value: int | float) -> Array:
        """`x` inside as much padding as the windows touch."""
        widths = list(zip(self.before, self.touched(), strict=True))
        size = math.prod(n + before + after for n, (before, after) in zip(x.shape[2:], widths, strict=True))
        active().ask(math.prod(x.shape[:2]) * size * x.itemsize, "padding a pooling", "compile with --no-verify")
        return np.pad(x, [(0, 0), (0, 0), *widths], constant_values=value)

    def views(self, padded: Array) -> list[Array]:
        """For each kernel position, row-major, what it reads: [N, C, output...] each."""
        places = (self.moving.read_at(position, self.outer) for position in self.moving.positions())
        return [padded[(slice(None), slice(None), *place)] for place in places]

    def counts(self, include_pad: bool) -> Array:
        """How many elements the mean of each window divides by: [output...]."""
        places = max(n * size for n, size in zip(self.outer, self.moving.kernel, strict=True))
        active().ask(8 * (3 * places + math.prod(self.outer)), "counting what a pooling divides by")
        per_axis: list[Array] = []
        for axis, outer in enumerate(self.outer):
            starts = np.arange(outer) * self.moving.strides[axis] - self.before[axis]
            at = starts[:, None] + np.arange(self.moving.kernel[axis]) * self.moving.dilations[axis]
            low = -self.before[axis] if include_pad else 0
            high = self.spatial[axis] + (self.after[axis] if include_pad else 0)
            per_axis.append(((at >= low) & (at < high)).sum(axis=1))
        return reduce(np.multiply.outer, per_axis)


def maxima(op: Pool, x: Array) -> Array:
    """The largest element of each window, integers or floats. ValueError where the kernel does not fit."""
    windows = Windows(op, x.shape[2:])
    if 0 in windows.outer:
        return np.zeros((*x.shape[:2], *windows.outer), x.dtype)
    views = windows.views(windows.padded(x, -np.inf if x.dtype.kind == "f" else int(np.iinfo(x.dtype).min)))
    result = views[0].copy()
    for view in views[1:]:
        np.maximum(result, view, out=result)
    return result


def _average(op: Pool, x: Integers, params: QuantParams, out: QuantParams, profile: Profile) -> Integers:
    windows = Windows(op, x.shape[2:])
    if 0 in windows.outer:
        return np.zeros((*x.shape[:2], *windows.outer), out.container)
    dtype = np.int32 if x.dtype.itemsize <= 2 else np.int64
    views = windows.views(windows.padded(np.subtract(x, params.zero_array(x.ndim), dtype=dtype), 0))
    total = views[0].copy()
    for view in views[1:]:
        total += view
    counts = windows.counts(op.count_include_pad)
    return profile.average(total, counts, params, out, op.lo, op.hi, windowed=True)

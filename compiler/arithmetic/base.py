"""What every profile shares: the public operations, their checks, and the walk over cache-sized blocks."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from qatc.compiler.arithmetic import exact
from qatc.compiler.quant import Array, Integers, QuantParams

OPS: Final = ("Add", "Sub", "Mul")
BLOCK: Final = 1 << 15  # elements handled at a time: their float64 temporaries stay in the second-level cache

# A block of accumulators [outer, channels, inner] and which channels they are -> rounded values within the bounds given
# to `Profile._rounder`, any numeric dtype that holds them exactly.
Rounder = Callable[[Array, slice], Array]
Side = tuple[Integers, QuantParams]  # of an element-wise operator: integers and their grid


@dataclass(frozen=True)
class Operand:
    """One side of an element-wise operator, flattened to the output's elements, and its grid."""

    q: Integers
    params: QuantParams

    @property
    def scale(self) -> float:
        """What a step is worth: real = scale * (q - zero)."""
        return self.params.scale[0]

    @property
    def zero(self) -> int:
        """The integer that stands for zero."""
        return self.params.zero_point[0]

    def centered(self) -> Integers:
        """The integers less the zero point, int64."""
        return np.subtract(self.q, self.zero, dtype=np.int64)

    def block(self, part: slice) -> Operand:
        """The operand restricted to some elements."""
        return Operand(self.q[part], self.params)


@dataclass(frozen=True)
class Target:
    """Where results go: the output grid and the clamp."""

    scale: float
    zero: int
    lo: int
    hi: int
    params: QuantParams

    @classmethod
    def of(cls, out: QuantParams, lo: int, hi: int) -> Target:
        """The target of per-tensor parameters; ValueError for per-channel ones or bounds outside [qmin, qmax]."""
        if out.is_per_channel:
            raise ValueError(f"results are rounded onto one grid, not onto {out}")
        if not out.qmin <= lo <= hi <= out.qmax:
            raise ValueError(f"clamp [{lo}, {hi}] is empty or outside {out}")
        return cls(out.scale[0], out.zero_point[0], lo, hi, out)

    @property
    def low(self) -> int:
        """The lower bound before the zero point is added."""
        return self.lo - self.zero

    @property
    def high(self) -> int:
        """The upper bound before the zero point is added."""
        return self.hi - self.zero


class Profile(ABC):
    """How a target rounds. Stateless; all methods are pure and vectorized.

    Accumulators and sums are integers of any numpy integer type (or floats that hold integers exactly, up to 2**53);
    results have the dtype of `out.container` and lie in [lo, hi], which lies in [out.qmin, out.qmax]. ValueError where
    bounds, shapes or parameters do not fit.
    """

    name: str
    summary: str
    ties_up: bool = False  # where `softmax` and `layer_norm` have a value between two integers: up, or to the even one

    # -- operations ---------------------------------------------------------------------------------------------
    def requantize(
        self,
        acc: Array,
        acc_scale: Sequence[float] | Array,
        out: QuantParams,
        lo: int,
        hi: int,
        axis: int,
        *,
        in_scale: float | None = None,
    ) -> Integers:
        """clamp(round(acc * acc_scale / out.scale) + out.zero_point), elementwise.

        Args:
            acc: integers of any shape.
            acc_scale: what one unit of `acc` is worth: one number, or one per index of `axis`.
            out: per-tensor grid of the result.
            lo: smallest result.
            hi: largest result.
            axis: the axis of `acc` along which `acc_scale` varies; ignored for a single scale.
            in_scale: scale of the operator's first input, where there is one. Only `onnx` needs it: ONNX Runtime gets
                two float32 factors, input scale and weight scale, and rounds their product.
        """
        scales = np.asarray(acc_scale, np.float64).reshape(-1)
        target = Target.of(out, lo, hi)
        if scales.size == 1:
            shape = (acc.size, 1, 1)
        elif -acc.ndim <= axis < acc.ndim and acc.shape[axis] == scales.size:
            axis %= acc.ndim
            shape = (math.prod(acc.shape[:axis]), scales.size, math.prod(acc.shape[axis + 1 :]))
        else:
            raise ValueError(f"{scales.size} scales along axis {axis} do not fit the shape {list(acc.shape)}")
        rounder = self._rounder(scales, target, in_scale)
        return _apply(np.ascontiguousarray(acc).reshape(shape), rounder, target).reshape(acc.shape)

    def elementwise(
        self,
        op: str,
        sides: Sequence[Side],
        out: QuantParams,
        lo: int,
        hi: int,
    ) -> Integers:
        """clamp(round((r_a op r_b) / out.scale) + out.zero_point), op one of `OPS`, per-tensor grids; broadcasting.

        Of an Add there may be more than two sides.
        """
        if op not in OPS:
            raise ValueError(f"unknown element-wise operator {op}; known are {', '.join(OPS)}")
        target = Target.of(out, lo, hi)
        shape = np.broadcast_shapes(*(q.shape for q, _ in sides))
        if len(sides) == 2:
            op, *sides = self._arranged(op, *sides)
        operands = [_operand(q, params, shape) for q, params in sides]
        result = np.empty(math.prod(shape), out.container)
        for start in range(0, result.size, BLOCK):
            part = slice(start, start + BLOCK)
            result[part] = self._combine(op, [each.block(part) for each in operands], target)
        return result.reshape(shape)

    def rescale(self, q: Integers, params: QuantParams, out: QuantParams, lo: int, hi: int) -> Integers:
        """clamp(round(r / out.scale) + out.zero_point) for r = params.scale * (q - params.zero_point), elementwise.

        Both grids are per tensor.
        """
        target = Target.of(out, lo, hi)
        _check_one_grid(params)
        if params.same_grid(out) and params.dtype == out.dtype:
            clamped: Integers = q.clip(lo, hi).astype(out.container)
            return clamped
        if q.size <= 256 or not params.is_8bit:
            return self._rescale(q, params, target)
        every = np.arange(256, dtype=np.uint8).view(params.container)
        table = self._rescale(every, params, target)
        return table[np.ascontiguousarray(q).view(np.uint8)]

    def average(
        self,
        total: Array,
        count: int | Array,
        params: QuantParams,
        out: QuantParams,
        lo: int,
        hi: int,
        *,
        windowed: bool = False,
    ) -> Integers:
        """clamp(round(mean / out.scale) + out.zero_point) for mean = params.scale * total / count.

        Args:
            total: sums of q - zero_point.
            count: how many elements each sum has (positive); broadcasts to `total`.
            params: per-tensor grid of the summed tensor.
            out: per-tensor grid of the result.
            lo: smallest result.
            hi: largest result.
            windowed: whether this is pooling with a kernel, not over everything; some targets differ.
        """
        counts = np.asarray(count, np.int64)
        if (counts <= 0).any():
            raise ValueError("an average over no elements has no value")
        return self._average(total, counts, params, Target.of(out, lo, hi), windowed=windowed)

    def interpolate(
        self, total: Array, divisor: int, params: QuantParams, out: QuantParams, lo: int, hi: int
    ) -> Integers:
        """clamp(round(params.scale * total / divisor / out.scale) + out.zero_point), elementwise.

        Args:
            total: sums of q - zero_point times integer weights, within int32.
            divisor: what the weights of each sum add up to.
            params: per-tensor grid of the interpolated tensor.
            out: per-tensor grid of the result.
            lo: smallest result.
            hi: largest result.
        """
        target = Target.of(out, lo, hi)
        rounder = self._interpolator(divisor, params, target)
        return _apply(total.reshape(-1, 1, 1), rounder, target).reshape(total.shape)

    def softmax(self, q: Integers, params: QuantParams, out: QuantParams, lo: int, hi: int, axis: int) -> Integers:
        """clamp(round(share / out.scale) + out.zero_point), the share of exp(r) in its sum along `axis`.

        Exactly rounded, but for profiles whose targets have a kernel of their own.

        Raises:
            CompileError: QAT302 where such a kernel does not write on this grid.
        """
        target = Target.of(out, lo, hi)
        moved = np.moveaxis(q, axis, -1)
        if not q.size:
            return q.astype(out.container)
        values = self._softmax(np.ascontiguousarray(moved).reshape(-1, moved.shape[-1]), params, target)
        placed = (values + target.zero).astype(out.container).reshape(moved.shape)
        return np.ascontiguousarray(np.moveaxis(placed, -1, axis))

    def layer_norm(
        self, q: Integers, params: QuantParams, gamma: Array, beta: Array, epsilon: float, out: QuantParams,
        lo: int, hi: int, *, centered: bool = True,
    ) -> Integers:  # fmt: skip
        """clamp(round((gamma * (r - mean) / sqrt(variance + epsilon) + beta) / out.scale) + out.zero_point).

        Mean and variance are those over the last axes, as many as `gamma` and `beta` (float32, one shape) have. Where
        not `centered`, r takes the place of r - mean, and its square that of the variance (RMS normalization).
        """
        target = Target.of(out, lo, hi)
        if q.shape[q.ndim - gamma.ndim :] != gamma.shape or gamma.shape != beta.shape or not gamma.size:
            raise ValueError(f"a factor {list(gamma.shape)} does not fit the shape {list(q.shape)}")
        rows = q.reshape(-1, gamma.size)
        if not centered:
            rows = rows.astype(np.int16) - params.zero_point[0]
        factors = gamma.reshape(-1), beta.reshape(-1)
        values = self._layer_norm(rows, params, *factors, epsilon, target, centered=centered)
        return (values + target.zero).astype(out.container).reshape(q.shape)

    def constant(self, real: Array, params: QuantParams) -> Integers:
        """The integers of a constant, rounded on the host: as `QuantParams.quantize` unless the target's tools differ.

        Args:
            real: finite numbers of any shape.
            params: their grid, per tensor or per channel.
        """
        return params.quantize(real)

    # -- what a profile defines -----------------------------------------------------------------------------------
    @abstractmethod
    def _rounder(self, scales: Array, target: Target, in_scale: float | None, divisor: int = 1) -> Rounder:
        """A function that rounds acc * scales / (target.scale * divisor) and clamps to [target.low, target.high]."""

    @abstractmethod
    def _combine(self, op: str, operands: Sequence[Operand], target: Target) -> Array:
        """`elementwise` for one flat block, zero point and clamp included."""

    def _softmax(self, rows: Integers, params: QuantParams, target: Target) -> Array:
        """`softmax` for rows [R, N], before the zero point is added."""
        return exact.softmax(rows, params.scale[0], self._steps(target))

    def _layer_norm(
        self, rows: Integers, params: QuantParams, gamma: Array, beta: Array, epsilon: float, target: Target,
        *, centered: bool,
    ) -> Array:  # fmt: skip
        """`layer_norm` for rows [R, N], before the zero point is added (it is gone from rows that are not centered)."""
        steps = self._steps(target)
        return exact.layer_norm(rows, params.scale[0], gamma, beta, epsilon, steps, centered=centered)

    def _steps(self, target: Target) -> exact.Steps:
        return exact.Steps(target.scale, target.low, target.high, self.ties_up)

    def _arranged(self, op: str, left: Side, right: Side) -> tuple[str, Side, Side]:
        """The operator and its operands as the target's kernel has them."""
        return op, left, right

    def _average(self, total: Array, counts: Array, params: QuantParams, target: Target, *, windowed: bool) -> Integers:
        """`average`, clamp and zero point included."""
        result = np.empty(total.shape, target.params.container)
        for each in sorted(set(counts.reshape(-1).tolist())):  # np.unique imports numpy.ma
            where = np.broadcast_to(counts == each, total.shape)
            rounder = self._averager(each, params, target, windowed=windowed)
            result[where] = _apply(total[where].reshape(-1, 1, 1), rounder, target).reshape(-1)
        return result

    def _averager(self, count: int, params: QuantParams, target: Target, *, windowed: bool) -> Rounder:
        del windowed  # the same to most
        return self._rounder(np.asarray(params.scale, np.float64), target, None, count)

    def _interpolator(self, divisor: int, params: QuantParams, target: Target) -> Rounder:
        return self._rounder(np.asarray(params.scale, np.float64), target, None, divisor)

    def _rescale(self, q: Integers, params: QuantParams, target: Target) -> Integers:
        centered = q.astype(np.int64) - params.zero_point[0]
        return self.requantize(centered, params.scale, target.params, target.lo, target.hi, 0)


def _operand(q: Integers, params: QuantParams, shape: tuple[int, ...]) -> Operand:
    """`q` broadcast to `shape` and flattened: a copy of small integers at most."""
    _check_one_grid(params)
    return Operand(np.broadcast_to(q, shape).reshape(-1), params)


def _check_one_grid(params: QuantParams) -> None:
    if params.is_per_channel:
        raise ValueError(f"an element-wise operator reads one grid, not {params}")


def _blocks(outer: int, channels: int, inner: int) -> Iterator[tuple[slice, slice]]:
    """Slices of the first two axes of [outer, channels, inner] of about `BLOCK` elements each, covering all."""
    if channels * inner <= BLOCK:
        step = BLOCK // max(1, channels * inner)
        for start in range(0, outer, step):
            yield slice(start, start + step), slice(0, channels)
        return
    step = max(1, BLOCK // inner)
    for index in range(outer):
        for start in range(0, channels, step):
            yield slice(index, index + 1), slice(start, min(start + step, channels))


def _apply(acc: Array, rounder: Rounder, target: Target) -> Integers:
    """Round [outer, channels, inner] block by block and add the zero point."""
    result = np.empty(acc.shape, target.params.container)
    for outer, channels in _blocks(*acc.shape):
        values = rounder(acc[outer, channels], channels)
        result[outer, channels] = values + target.zero
    return result

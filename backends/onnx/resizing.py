"""Resize: ONNX Runtime's float kernel on integers where it is exact, else gathered and weighted along each axis.

    DequantizeLinear(scale D) -> Resize -> QuantizeLinear              powers of two: all that it computes is exact
    DequantizeLinear(scale D) -> Resize -> Round -> QuantizeLinear     errors below half a unit of the sum
    Transpose, Gather and Gather, Mul and Mul, Add, ..., QuantizeLinear, Transpose                  everything else

Between two convolutions, 64 channels from 56x56 to 112x112 (docs/performance.md): the first is as fast as the Resize of
real numbers (0.84 ms), the second takes 1.07 ms, the third 1.41 ms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from onnx import TensorProto

from qatc.backends.onnx.moves import to_first, to_last
from qatc.backends.onnx.writer import Writer, stored
from qatc.compiler.arithmetic import ort_interpolation_step
from qatc.compiler.integer import Resize
from qatc.compiler.quant import Array, QuantParams
from qatc.compiler.reference.resize import position, taps

_WHOLE: Final = 1 << 24  # up to here float32 holds every integer
_UNIT: Final = 2.0**-24  # of float32's relative rounding errors
_SURE: Final = 0.25  # a bound on an error that Round undoes, with as much to spare
_WAYS: Final = ("half_pixel", "asymmetric", "align_corners")
#: rank -> the sets of axes of which one holds all those that the kernel interpolates along
_KERNELS: Final = {2: [{0, 1}], 3: [{0, 1, 2}], 4: [{2, 3}, {1, 2}], 5: [{2, 3, 4}]}


@dataclass(frozen=True)
class _Kernel:
    """ONNX's Resize that means an operator; `exact` where it does so in float32."""

    way: str
    scales: list[float]
    exact: bool


def resize(w: Writer, op: Resize) -> None:
    """`Resize` in the forms above."""
    name = op.inputs[0]
    have, want = w.graph.params(name), w.graph.params(op.output)
    before = _sizes(w, op)
    reach = 1 << 8 * have.container.itemsize
    kernel = _kernel(op, w.rank(name) or 0, before, reach)
    step = ort_interpolation_step(have.scale[0], want.scale[0], op.divisor)
    grid = QuantParams.per_tensor(step, want.zero_point[0], stored(want))
    if kernel is None:
        _gathered(w, op, before, reach, grid)
        return
    x = _steps(w, w.read(name), have, op.divisor)
    if have.scale == want.scale:  # up to 1.26 at least, ONNX Runtime would interpolate bytes and cut off
        x = w.node("Sum", [x])
    scales = w.array(np.asarray(kernel.scales, np.float32), f"{w.label}_scales")
    made = w.node("Resize", (x, "", scales), mode="linear", coordinate_transformation_mode=kernel.way)
    w.quantize(made if kernel.exact else w.node("Round", [made]), grid, op.output, op.lo, op.hi)


def _steps(w: Writer, x: str, params: QuantParams, factor: int) -> str:
    """Integers less their zero point, times a factor, as float32."""
    return w.dequantize(x, QuantParams.per_tensor(factor, params.zero_point[0], stored(params)))


def _sizes(w: Writer, op: Resize) -> list[int]:
    """The input's size along each axis that is resized."""
    shape = w.graph.tensors[op.inputs[0]].shape or ()
    found = [n for n in (shape[axis] for axis in op.axes if axis < len(shape)) if isinstance(n, int)]
    if len(found) < len(op.axes):
        raise ValueError(f"Resize {op.name} reads a tensor of unknown size")
    return found


# -- as ONNX's Resize -------------------------------------------------------------------------------------------------
def _kernel(op: Resize, rank: int, before: list[int], reach: int) -> _Kernel | None:
    """The Resize of integers times the divisor that is the operator's sum, once it is rounded; None without such."""
    if not any(set(op.axes) <= axes for axes in _KERNELS.get(rank, ())):
        return None
    for way in _WAYS:
        factors = [_factor(op, index, n, way) for index, n in enumerate(before)]
        if None in factors:
            continue
        scales = [1.0] * rank
        for axis, factor in zip(op.axes, factors, strict=True):
            scales[axis] = factor or 1.0
        if _is_exact(op, before, scales, way, reach):
            return _Kernel(way, scales, exact=True)
        # Places are off by three roundings of n at most, weights and what they are multiplied with by one each.
        error = op.divisor * reach * _UNIT * (sum(4 * (n + 1) for n in before) + 16)
        if error < _SURE:
            return _Kernel(way, scales, exact=False)
    return None


def _factor(op: Resize, index: int, before: int, way: str) -> float | None:
    """The float32 scale of an axis that makes ONNX's places the operator's but for float errors, and the same size."""
    size, slope, offset, denominator = op.sizes[index], op.slopes[index], op.offsets[index], op.denominators[index]
    if way == "align_corners":
        found = (size + 0.5) / before  # tells the size alone
        fits = not offset and slope * (size - 1) == denominator * (before - 1) and size > 1
    else:
        found = denominator / slope if slope else 0.0
        fits = slope > 0 and 2 * offset == (slope - denominator if way == "half_pixel" else 0)
    scale = np.float32(found)
    return float(scale) if fits and scale != 1 and int(scale * np.float32(before)) == size else None


def _is_exact(op: Resize, before: list[int], scales: list[float], way: str, reach: int) -> bool:
    """Whether float32 holds all that the kernel computes: places, weights, products and sums.

    At an input's end it takes half of the same element twice.
    """
    if op.divisor & (op.divisor - 1) or op.divisor * reach << len(_WAYS) > _WHOLE:
        return False
    for index, (axis, n) in enumerate(zip(op.axes, before, strict=True)):
        places = np.arange(op.sizes[index], dtype=np.float32)
        found = position(places, op.sizes[index], n, np.asarray(scales[axis], np.float32), way)
        wanted = (places.astype(np.float64) * op.slopes[index] + op.offsets[index]) / op.denominators[index]
        if found is None or not np.array_equal(found, wanted):
            return False
    return True


# -- in integers ------------------------------------------------------------------------------------------------------
def _gathered(w: Writer, op: Resize, before: list[int], reach: int, grid: QuantParams) -> None:
    """Sums of whole float32, else int32, in channels-last order: what is innermost is gathered element by element."""
    have, rank = w.graph.params(op.inputs[0]), w.rank(op.inputs[0]) or 0
    lead = int(min(op.axes) > 1)
    x = w.read(op.inputs[0])
    x = to_last(w, x, rank - 2) if lead else x
    kind = np.dtype(np.float32 if op.divisor * reach <= _WHOLE else np.int32)
    if kind == np.float32:
        x = _steps(w, x, have, 1)
    else:
        x = w.node("Sub", (w.node("Cast", [x], to=TensorProto.INT32), w.scalar(have.zero_point[0], "int32")))
    for index in reversed(range(len(op.axes))):
        axis, denominator = op.axes[index] - lead, op.denominators[index]
        low, high, weight = taps(op, index, before[index])
        if denominator == 1:
            x = _taken(w, x, low, axis)
            continue
        second = weight.reshape(-1, *(1,) * (rank - 1 - axis)).astype(kind)
        sides = ((low, denominator - second), (high, second))
        parts = [w.node("Mul", (_taken(w, x, at, axis), w.array(by, f"{w.label}_weights"))) for at, by in sides]
        x = w.node("Add", parts)
    x = x if kind == np.float32 else w.node("Cast", [x], to=TensorProto.FLOAT)
    if lead:
        to_first(w, w.quantize(x, grid, "", op.lo, op.hi), rank - 2, op.output)
    else:
        w.quantize(x, grid, op.output, op.lo, op.hi)


def _taken(w: Writer, x: str, places: Array, axis: int) -> str:
    return w.node("Gather", (x, w.array(places, f"{w.label}_places")), axis=axis)

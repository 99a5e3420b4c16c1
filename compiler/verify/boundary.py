"""Where the exact result of an operator lies, element by element, and how far float32 arithmetic may be away from it.

A rounding may go the other way in the simulation only where the exact value is closer to the boundary between two
integers than the simulation's float error. Both are computed here, for the few elements that differ: the exact value in
integers (its own code, not the reference executor's: a second witness), the error from a bound on float32 arithmetic.
`docs/verification.md` derives the bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from qatc.compiler.integer import (
    Concat,
    Conv,
    Elementwise,
    IntegerGraph,
    LayerNorm,
    MatMul,
    Op,
    Pool,
    Quantize,
    Rescale,
    Resize,
    Softmax,
)
from qatc.compiler.quant import Array, Doubles, QuantParams

Bools = npt.NDArray[np.bool_]
Index: TypeAlias = tuple[npt.NDArray[np.intp], ...]

UNIT: Final = 2.0**-24  # unit roundoff of float32: half the distance from 1 to the next number
# Float operations of the simulation beside the K additions of a sum: three that make a term (dequantize both factors,
# multiply), bias, two of an affine or batch norm unfolded into four, the division by the output scale, and the
# conversion of the scales themselves.
_STEPS: Final = 16
_SCALES_ERROR: Final = 4 * UNIT  # of s_x * s_w / s_y, relative, where each was rounded to float32
_DOUBLES_ERROR: Final = 2.0**-50  # of a bias that was divided by a few scales in float64
_CUT_ERROR: Final = 2.0**-40  # of a multiple of a step, in steps of float64
_FAILURE: Final = 2.0**-40  # the probability, per element, that the sum's error exceeds its bound
_CHUNK: Final = 1 << 21  # gathered operands at a time


@dataclass(frozen=True)
class Exact:
    """Exact results in LSB of the output's grid, zero point included, neither rounded nor clamped.

    `error` bounds how far float32 arithmetic may be away, `moved` is how far the rounding of the bias to int32 moves
    the integer operator's result.
    """

    value: Doubles
    error: Doubles
    moved: Doubles | float = 0.0

    @property
    def rounded(self) -> Doubles:
        """The nearest integers, ties to even (not clamped)."""
        return np.rint(self.value)

    @property
    def unsure(self) -> Doubles:
        """How likely float32 arithmetic is, at most, to round each to another integer than the nearest."""
        return self.error

    def float_may_give(self, integers: Array, lo: float, hi: float) -> Bools:
        """Which integers float32 arithmetic may have rounded to."""
        return _rounds_to(self.value, integers, lo, hi, self.error)

    def integers_may_give(self, integers: Array, lo: float, hi: float, slack: float = 0.0) -> Bools:
        """Which integers the integer operator may give, with its int32 bias; `slack` is what its profile adds."""
        return _rounds_to(self.value + self.moved, integers, lo, hi, self.error + slack)

    def are_near(self, found: Array, wanted: Array, limit: float) -> Bools:
        """Which pairs of integers are no further apart than `limit`, and the rounding of the bias, allow."""
        near: Bools = np.abs(found - wanted) <= limit + (np.abs(self.moved) if limit else 0.0)
        return near

    def are_by_design(self, wanted: Array, lo: float, hi: float, zero: int) -> Bools:
        """Which differences nobody's arithmetic is to blame for, where `wanted` is what the simulation has.

        It rounds as the exact value does, so that the difference is the bias's rounding or the profile's; or it breaks
        ties its own way: floor(x + 0.5), or scales that are rounded decimals (0.02 * 0.002 / 0.01).
        """
        from_tie = np.abs(self.value - np.floor(self.value) - 0.5)
        tied = from_tie <= _SCALES_ERROR * np.abs(self.value - zero)
        by_design: Bools = (np.clip(self.rounded, lo, hi) == wanted) | tied
        return by_design


@dataclass(frozen=True)
class ExactSign(Exact):
    """Exact sums whose sign is taken, in units of the accumulator; `size` is the magnitude of what is summed up.

    `codes` are the results below zero, at zero and above.
    """

    size: Doubles = field(kw_only=True)
    codes: tuple[int, int, int] = field(kw_only=True)

    @property
    def unsure(self) -> Doubles:
        """A sign has no steps to round to."""
        return np.zeros_like(self.value)

    def float_may_give(self, integers: Array, lo: float, hi: float) -> Bools:
        """Those of every sign that a sum within float32's error of the exact one has; there is nothing to clamp."""
        return self._may_give(integers, self.error)

    def integers_may_give(self, integers: Array, lo: float, hi: float, slack: float = 0.0) -> Bools:
        """The sign of the exact sum, but for the real bias in float64."""
        return self._may_give(integers, self.size * _DOUBLES_ERROR)

    def _may_give(self, integers: Array, error: Doubles) -> Bools:
        below, at, above = self.codes
        negative, positive = self.value - error < 0, self.value + error > 0
        may_be: Bools = ((integers == below) & negative) | ((integers == above) & positive)
        may_be |= (integers == at) & (np.abs(self.value) <= error)
        return may_be

    def are_near(self, found: Array, wanted: Array, limit: float) -> Bools:
        """All, where any difference is allowed: a sign has no neighbor."""
        near: Bools = (found == wanted) | (limit > 0)
        return near

    def are_by_design(self, wanted: Array, lo: float, hi: float, zero: int) -> Bools:
        """Sums of nothing, but for the scales' own float32: what float32 leaves of them has either sign."""
        tied: Bools = np.abs(self.value) <= _SCALES_ERROR * self.size
        return tied


@dataclass(frozen=True)
class ExactCut(Exact):
    """Exact results, half a step lower (not `down`: higher), of what rounds one way."""

    down: bool = field(kw_only=True)

    def integers_may_give(self, integers: Array, lo: float, hi: float, slack: float = 0.0) -> Bools:
        """The exact cut alone, but for what float64 leaves of a multiple of a step."""
        near = _CUT_ERROR * (1 + np.abs(self.value))
        cut = np.floor(self.value + 0.5 + near) if self.down else np.ceil(self.value - 0.5 - near)
        found: Bools = np.clip(cut, lo, hi) == integers
        return found


def _rounds_to(value: Doubles, integers: Array, lo: float, hi: float, error: Doubles) -> Bools:
    distance: Doubles = np.abs(np.minimum(np.maximum(value, lo), hi) - integers)
    return distance <= 0.5 + error


def kernel_error(graph: IntegerGraph, op: Op) -> float:
    """How far ONNX Runtime's QLinearAdd and QLinearMul may be from the exact result, in its steps.

    They compute in float32 with the zero points inside, so that the error goes with those, not with the result: four
    roundings of QLinearAdd see up to both operands and their zero points (`docs/arithmetic.md` has the formula), and
    QLinearMul adds the zero point of the result last.
    """
    if not isinstance(op, Elementwise):
        return 0.0
    out = graph.params(op.output)
    reach = 255.0 + abs(out.zero_point[0])
    if op.op == "Mul":
        return 2 * UNIT * reach
    for name in op.inputs:
        params = graph.params(name)
        reach += params.scale[0] / out.scale[0] * (255 + abs(params.zero_point[0]))
    return 4 * UNIT * reach


def sum_error(terms: int) -> float:
    """How far a float32 sum of `terms` products may be off, relative to the sum of the products' magnitudes.

    The smaller of the worst case n*u / (1 - n*u) and the probabilistic bound of Higham and Mary (2019): n rounding
    errors of mean zero add up to more than lambda * sqrt(n) * u with a probability below 2 exp(-lambda^2 / 2) a step.
    """
    n = terms + _STEPS
    worst = n * UNIT / (1 - n * UNIT)
    deviations = math.sqrt(2 * math.log(2 * n / _FAILURE))
    likely = math.expm1(deviations * math.sqrt(n) * UNIT + n * UNIT**2 / (1 - UNIT))
    return min(worst, likely)


def exact_at(graph: IntegerGraph, op: Op, values: Mapping[str, Array], where: Array) -> Exact | None:
    """The exact results of `op` at flat indices `where` of its output; None for operators that have no rounding.

    Args:
        graph: the operator's graph.
        op: the operator.
        values: what it reads, constants included, and its output's shape under the output's own name.
        where: flat indices into the output, [E].
    """
    shape = values[op.output].shape
    index = index_of(where, shape)
    out = graph.params(op.output)
    step, zero = float(out.scale[0]), int(out.zero_point[0])
    match op:
        case Conv() | MatMul():
            return _product(graph, op, values, index, step, zero)
        case Elementwise():
            real, magnitude = _elementwise(graph, op, values, index, shape)
            return _in_steps(real, magnitude * sum_error(len(op.inputs) - 1), step, zero)
        case Rescale() | Quantize():
            real = _real(values[op.inputs[0]].reshape(shape or (1,))[index], graph.tensors[op.inputs[0]].params, index)
            magnitude = np.abs(real)
        case Softmax():
            return _in_steps(*_softmax(graph, op, values, index), step, zero)
        case LayerNorm():
            return _in_steps(*_layer_norm(graph, op, values, index), step, zero)
        case Concat():
            real = _concat(graph, op, values, index)
            magnitude = np.abs(real)
        case Resize():
            return _in_steps(*_resize(graph, op, values, index), step, zero)
        case Pool(mode="average"):
            real, magnitude, terms = _average(graph, op, values, index)
            return _in_steps(real, magnitude * sum_error(terms), step, zero)
        case _:
            return None
    return _in_steps(real, magnitude * sum_error(1), step, zero)


def index_of(where: Array, shape: tuple[int, ...]) -> Index:
    """The places of flat indices; what has no dimensions counts as a vector of its one element."""
    return np.unravel_index(where, shape or (1,))


def _in_steps(real: Doubles, error: Doubles, step: float, zero: int) -> Exact:
    return Exact(real / step + zero, error / step)


def _real(q: Array, params: QuantParams | None, index: Index) -> Doubles:
    """What gathered integers stand for, in float64; floats as they are."""
    if params is None:
        return q.astype(np.float64)
    scale, zero = np.asarray(params.scale, np.float64), np.asarray(params.zero_point, np.int64)
    channel = 0 if params.axis is None else index[params.axis]
    real: Doubles = (q.astype(np.float64) - zero[channel]) * scale[channel]
    return real


# -- sums of products ---------------------------------------------------------------------------------------------


def _product(
    graph: IntegerGraph, op: Conv | MatMul, values: Mapping[str, Array], index: Index, step: float, zero: int
) -> Exact:
    total, magnitude = product_sums(graph, op, values, index)
    sign = graph.signs.get(op.output)
    channel = index[1 if isinstance(op, Conv) else -1]
    scales = np.asarray(op.acc_scale, np.float64)
    unit = scales[channel] if scales.size > 1 else np.broadcast_to(scales, total.shape)
    real, size = total.astype(np.float64), magnitude.astype(np.float64)
    if sign is not None:
        bias = np.broadcast_to(sign.bias, total.shape) if sign.bias.size == 1 else sign.bias[channel]
        size = size + np.abs(bias)
        return ExactSign(real + bias, size * sum_error(_terms(op, values)), size=size, codes=sign.codes)
    unsure, moved, cut = 0.0, np.zeros(total.shape), graph.cuts.get(op.output)
    if cut is not None:
        bias, worth = (each[channel] if each.size > 1 else each[0] for each in (cut.bias, cut.unit))
        error = (size + np.abs(bias)) * sum_error(_terms(op, values)) * worth
        return ExactCut((real + bias) * worth / step + zero, error / step, down=cut.down)
    if len(op.inputs) > 2 and op.inputs[2]:
        # the bias as it was before its rounding; where that is not known, the rounding moved it by half a unit at most
        stored = np.asarray(values[op.inputs[2]], np.float64).reshape(-1)
        bias = np.asarray(graph.real_biases.get(op.output, stored), np.float64).reshape(-1)
        added = bias[channel] if bias.size > 1 else bias[0]
        real, size = real + added, size + np.abs(added)
        moved = moved + (stored[channel] if stored.size > 1 else stored[0]) - added
        unsure = 0.0 if op.output in graph.real_biases else 0.5
    error = (size * sum_error(_terms(op, values)) + unsure) * unit
    return replace(_in_steps(real * unit, error, step, zero), moved=moved * unit / step)


def _terms(op: Conv | MatMul, values: Mapping[str, Array]) -> int:
    if isinstance(op, MatMul):
        return int(values[op.inputs[0]].shape[-1])
    weight = values[op.inputs[1]]
    return int(weight.size // weight.shape[0]) if not op.transposed else int(weight.size // weight.shape[1])


def product_sums(
    graph: IntegerGraph, op: Conv | MatMul, values: Mapping[str, Array], index: Index
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Sum of (q_a - z_a) * (q_b - z_b), and of the magnitudes, for each output element of `index`; without the bias."""
    a, b = values[op.inputs[0]], values[op.inputs[1]]
    a_params, b_params = graph.params(op.inputs[0]), graph.params(op.inputs[1])
    if isinstance(op, Conv):
        gather = _transposed_gather(op, a, b) if op.transposed else _conv_gather(op, a, b)
        width = b.size // b.shape[1 if op.transposed else 0] * (op.groups if op.transposed else 1)
    else:
        gather, width = _matmul_gather(a, b), a.shape[-1]
    zeros = np.asarray(b_params.zero_point, np.int64)
    zeros = zeros[:1] if (zeros == zeros[0]).all() else zeros
    count = index[0].size
    total, magnitude = np.empty(count, np.int64), np.empty(count, np.int64)
    for part in _parts(count, width):
        here = tuple(i[part] for i in index)
        left, right, used = gather(here)
        left = left.astype(np.int64) - int(a_params.zero_point[0])
        zero = zeros if zeros.size == 1 else zeros[here[1 if isinstance(op, Conv) else -1]]
        terms = left * (right.astype(np.int64) - zero.reshape(-1, *(1,) * (right.ndim - 1)))
        if used is not None:
            terms = np.where(used, terms, 0)
        axes = tuple(range(1, terms.ndim))
        total[part] = terms.sum(axis=axes)
        magnitude[part] = np.abs(terms).sum(axis=axes)
    return total, magnitude


Gather = Callable[[Index], tuple[Array, Array, "Array | None"]]


def _parts(count: int, width: int) -> Iterator[slice]:
    step = max(1, _CHUNK // max(1, width))
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def _matmul_gather(a: Array, b: Array) -> Gather:
    a2 = a[None, :] if a.ndim == 1 else a
    b2 = b[:, None] if b.ndim == 1 else b
    batch = np.broadcast_shapes(a2.shape[:-2], b2.shape[:-2])
    a2 = np.broadcast_to(a2, batch + a2.shape[-2:])
    b2 = np.broadcast_to(b2, batch + b2.shape[-2:])

    def gather(index: Index) -> tuple[Array, Array, Array | None]:
        lead = index[: len(batch)]
        rest = list(index[len(batch) :])
        zero = np.zeros(1, np.intp)
        row = rest.pop(0) if a.ndim > 1 else zero
        column = rest.pop(0) if b.ndim > 1 else zero
        columns = np.swapaxes(b2, -1, -2)
        return a2[(*lead, row)], columns[(*lead, column)], None

    return gather


def _conv_gather(op: Conv, x: Array, weight: Array) -> Gather:
    per_group, width = weight.shape[0] // op.groups, weight.shape[1]

    def gather(index: Index) -> tuple[Array, Array, Array | None]:
        n, m, *places = index
        channels = _span(np.floor_divide(m, per_group) * width, width)
        picked, used = _window(x, n, channels, read_positions(op, weight.shape[2:], places))
        return picked, weight[m], used

    return gather


def read_positions(op: Conv | Pool, kernel: tuple[int, ...], places: Sequence[Array]) -> list[Array]:
    """What windows at some places read along each axis, [E, kernel] each; it may lie outside."""
    return [_span(p * op.strides[d] - op.pads[d], kernel[d], op.dilations[d]) for d, p in enumerate(places)]


def _span(start: Array, count: int, step: int = 1) -> Array:
    """Indices [E, count]: start, start + step, ..."""
    result: Array = start.reshape(-1, 1) + np.arange(count).reshape(1, -1) * step
    return result


def _window(x: Array, n: Array, channels: Array, positions: list[Array]) -> tuple[Array, Array]:
    """x[n, channels, positions...]: [E, C, kernel...], and where the positions are inside x."""
    rank = len(positions)
    used = np.ones((n.size,) + (1,) * (rank + 1), np.bool_)
    picks: list[Array] = [n.reshape(-1, *([1] * (rank + 1))), channels.reshape(n.size, -1, *([1] * rank))]
    for d, position in enumerate(positions):
        spread = position.reshape(n.size, *(-1 if d == e else 1 for e in range(-1, rank)))
        used = used & (spread >= 0) & (spread < x.shape[2 + d])
        picks.append(np.clip(spread, 0, x.shape[2 + d] - 1))
    return x[tuple(picks)], used


def _transposed_gather(op: Conv, x: Array, weight: Array) -> Gather:
    per_group, width = weight.shape[1], weight.shape[0] // op.groups

    def gather(index: Index) -> tuple[Array, Array, Array | None]:
        n, m, *places = index
        positions: list[Array] = []
        for d, p in enumerate(places):
            reach = _span(p + op.pads[d], weight.shape[2 + d], -op.dilations[d])
            whole, rest = np.divmod(reach, op.strides[d])
            positions.append(np.where(rest == 0, whole, -1))
        channels = _span(np.floor_divide(m, per_group) * width, width)
        picked, used = _window(x, n, channels, positions)
        kernels = weight[channels, (m % per_group)[:, None]]
        return picked, kernels, used

    return gather


# -- the others ---------------------------------------------------------------------------------------------------


def _elementwise(
    graph: IntegerGraph, op: Elementwise, values: Mapping[str, Array], index: Index, shape: tuple[int, ...]
) -> tuple[Doubles, Doubles]:
    a, b, *more = (_broadcast_real(values[name], graph.tensors[name].params, index, shape) for name in op.inputs)
    if op.op == "Mul":
        return a * b, np.abs(a * b)
    return sum(more, a + b if op.op == "Add" else a - b), sum(map(np.abs, more), np.abs(a) + np.abs(b))


def _broadcast_real(q: Array, params: QuantParams | None, index: Index, shape: tuple[int, ...]) -> Doubles:
    lead = len(shape) - q.ndim
    own = tuple(np.where(size == 1, 0, index[lead + d]) for d, size in enumerate(q.shape))
    picked = q[own] if own else np.broadcast_to(q, index[0].shape)
    return _real(picked, params, own)


def _concat(graph: IntegerGraph, op: Concat, values: Mapping[str, Array], index: Index) -> Doubles:
    axis = op.axis % len(index)
    result = np.empty(index[0].size)
    start = 0
    for name in op.inputs:
        size = values[name].shape[axis]
        here = (index[axis] >= start) & (index[axis] < start + size)
        own = tuple((i - start if d == axis else i)[here] for d, i in enumerate(index))
        result[here] = _real(values[name][own], graph.tensors[name].params, own)
        start += size
    return result


def _average(graph: IntegerGraph, op: Pool, values: Mapping[str, Array], index: Index) -> tuple[Doubles, Doubles, int]:
    x, params = values[op.inputs[0]], graph.params(op.inputs[0])
    rank, op = x.ndim - 2, op.over(x.shape[2:])
    n, c, *places = index
    places = places or [np.zeros_like(n)] * rank
    count = n.size
    total, magnitude, divisor = np.empty(count), np.empty(count), np.empty(count)
    for part in _parts(count, math.prod(op.kernel)):
        positions = read_positions(op, op.kernel, [p[part] for p in places])
        picked, used = _window(x, n[part], c[part][:, None], positions)
        terms = np.where(used, picked.astype(np.float64) - params.zero_point[0], 0) * params.scale[0]
        axes = tuple(range(1, terms.ndim))
        total[part], magnitude[part] = terms.sum(axis=axes), np.abs(terms).sum(axis=axes)
        counted = np.ones(1)
        for d, position in enumerate(positions):
            low = -op.pads[d] if op.count_include_pad else 0
            high = x.shape[2 + d] + (op.pads[rank + d] if op.count_include_pad else 0)
            counted = counted * ((position >= low) & (position < high)).sum(axis=1)
        divisor[part] = counted
    return total / divisor, magnitude / divisor, math.prod(op.kernel)


def _resize(graph: IntegerGraph, op: Resize, values: Mapping[str, Array], index: Index) -> tuple[Doubles, Doubles]:
    """Interpolated values at some places, and how far float32 may be away: its places are off as well.

    Those of an axis of n elements by four roundings of n; a value moves by that share of the tensor's whole range.
    """
    x, params = values[op.inputs[0]], graph.params(op.inputs[0])
    total, unsure = np.zeros(index[0].size), 0.0
    lines = tuple(zip(op.axes, op.slopes, op.offsets, op.denominators, strict=True))
    for corner in range(1 << len(lines)):
        place, weight = list(index), np.ones(index[0].size)
        for side, (axis, slope, offset, denominator) in enumerate(lines):
            at = (index[axis] * slope + offset).clip(0, (x.shape[axis] - 1) * denominator)
            low, rest = at // denominator, at % denominator
            upper = corner >> side & 1
            place[axis] = np.minimum(low + upper, x.shape[axis] - 1)
            weight = weight * (rest if upper else denominator - rest)
        total += weight * (x[tuple(place)].astype(np.float64) - params.zero_point[0])
    for axis in op.axes:
        unsure += 4 * UNIT * (x.shape[axis] + 1)
    largest = params.scale[0] * float(np.abs(x.astype(np.float64) - params.zero_point[0]).max(initial=0.0))
    error = largest * (2 * unsure + sum_error(1 << len(lines)))
    return total * params.scale[0] / op.divisor, np.full(total.size, error)


# Float operations that end in a relative error of their own: ONNX Runtime's exp (four units, docs/verification.md), the
# two products of dequantization that its argument is the difference of, and what QLinearSoftmax cuts off its factor.
_EXP_STEPS: Final = 16


def _softmax(graph: IntegerGraph, op: Softmax, values: Mapping[str, Array], index: Index) -> tuple[Doubles, Doubles]:
    """The shares at some places, and how far float32 may be away from them."""
    x, params = values[op.inputs[0]], graph.params(op.inputs[0])
    rows = np.moveaxis(x, op.axis, -1)[tuple(i for d, i in enumerate(index) if d != op.axis)]
    rows = np.broadcast_to(rows, (*index[op.axis].shape, x.shape[op.axis]))  # a vector is the row of all its elements
    real = (rows.astype(np.float64) - params.zero_point[0]) * params.scale[0]
    largest = real.max(axis=-1, keepdims=True)
    powers = np.exp(real - largest)
    own = np.take_along_axis(powers, index[op.axis][:, None], axis=-1)[:, 0]
    share = own / powers.sum(axis=-1)
    argument = 4 * np.abs(real).max(axis=-1)  # the exponent's own error becomes a relative one
    return share, share * (sum_error(rows.shape[-1]) + (argument + _EXP_STEPS) * UNIT)


def _layer_norm(
    graph: IntegerGraph, op: LayerNorm, values: Mapping[str, Array], index: Index
) -> tuple[Doubles, Doubles]:
    """Normalized values at some places, and how far float32 may be away: the variance may be E[x^2] - E[x]^2."""
    x, gamma, *rest = (values[name] for name in op.inputs)
    params, beta = graph.params(op.inputs[0]), rest[0] if rest else np.zeros_like(gamma)
    lead = x.ndim - gamma.ndim
    rows = x[index[:lead]].reshape(-1, gamma.size)
    place = np.ravel_multi_index(index[lead:], gamma.shape)
    real = (rows.astype(np.float64) - params.zero_point[0]) * params.scale[0]
    square = (real * real).mean(axis=-1)
    mean = np.zeros_like(square) if op.uncentered else real.mean(axis=-1)
    own = np.take_along_axis(real, place[:, None], axis=-1)[:, 0]
    variance = (square if op.uncentered else real.var(axis=-1)) + op.epsilon
    factor = gamma.reshape(-1)[place].astype(np.float64)
    normal, offset = factor * (own - mean) / np.sqrt(variance), beta.reshape(-1)[place].astype(np.float64)
    bound = sum_error(gamma.size)
    error = np.abs(factor) * (np.abs(own) + np.abs(real).mean(axis=-1)) / np.sqrt(variance) * bound
    error = error + np.abs(normal) * bound * (1 + 2 * square / variance) + np.abs(offset) * _EXP_STEPS * UNIT
    return normal + offset, error

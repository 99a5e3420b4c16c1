"""How large the sums of convolutions and matrix products can become, whatever the input: a proof from the weights.

A channel's accumulator is `sum w'_k * x'_k + bias` with w' = q_w - z_w known and x' = q_x - z_x anywhere in the range
of the input. Its extremes are reached by choosing every x' for itself, so they bound every partial sum as well, in any
order of addition:

    largest  = sum max(w', 0) * max(x') + sum min(w', 0) * min(x') + bias      (0 is among the x': padding, and partial
    smallest = sum max(w', 0) * min(x') + sum min(w', 0) * max(x') + bias       sums leave terms out)

Processors without VNNI (x86 before 2019, most of AMD before Zen 4) multiply unsigned by signed bytes with `vpmaddubsw`,
which adds each product to its neighbor's and *saturates at 16 bits*: q_x0 * q_w0 + q_x1 * q_w1, zero points not taken
off. Neighbors are weights of adjacent input channels at one position of the kernel, the order in which ONNX Runtime
packs them; depthwise convolutions have kernels of their own that do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from qatc.compiler.diagnostics import Diagnostic, Severity
from qatc.compiler.integer import Clamped, Conv, IntegerGraph, MatMul
from qatc.compiler.quant import Array, QuantParams, dtype_range
from qatc.compiler.result import SumBounds, WeightFacts

_INT32: Final = dtype_range("int32")
_INT16: Final = dtype_range("int16")
_SHORTEST: Final = 2**31 // (255 * 254)  # terms that a sum of 8-bit products needs at least to leave 32 bits
_CHUNK: Final = 1 << 22  # weights looked at together
_HEAVY: Final = 2**30  # a bias that large leaves too little of 32 bits for any sum
Ranges = Mapping[str, tuple[int, int]]
Sums = npt.NDArray[np.int64]


def clamps(graph: IntegerGraph) -> Ranges:
    """Tensor name -> the integers that its producer clamps to, where that is less than its parameters allow."""
    return {op.output: (op.lo, op.hi) for op in graph.ops if isinstance(op, Clamped)}


def sum_bounds(graph: IntegerGraph, op: Conv | MatMul, ranges: Ranges) -> SumBounds | None:
    """The bounds of one operator's sums; None for a product of two activations of unknown depth.

    `ranges` are what `clamps` returned.
    """
    weight = graph.constants.get(op.inputs[1])
    if weight is None or weight.ndim < 2:
        return _of_activations(graph, op, ranges)
    largest, smallest = _extremes(graph, op, weight, ranges)
    over = int(((largest > _INT32[1]) | (smallest < _INT32[0])).sum())
    reach = max(int(largest.max(initial=0)), -int(smallest.min(initial=0)))
    return SumBounds(largest.size, reach, over, *_pairs(graph, op, weight, ranges))


def overflows(graph: IntegerGraph) -> list[Diagnostic]:
    """QAT304 for every operator whose accumulator may leave 32 bits; only sums that are long enough are looked at."""
    found: list[Diagnostic] = []
    ranges = clamps(graph)
    for op in graph.ops:
        if not isinstance(op, Conv | MatMul) or not _may_overflow(graph, op):
            continue
        bounds = sum_bounds(graph, op, ranges)
        if bounds is not None and bounds.overflowing:
            found.append(
                Diagnostic(
                    "QAT304",
                    f"the sum may reach {bounds.largest:,}, more than 32 bits hold, in {bounds.overflowing:,} of "
                    f"{bounds.channels:,} channels",
                    Severity.WARNING,
                    op.source or op.name,
                    hint="it is a bound for any input; train with a bit less of weight range, or split the layer",
                )
            )
    return found


def _may_overflow(graph: IntegerGraph, op: Conv | MatMul) -> bool:
    weight = graph.constants.get(op.inputs[1])
    if weight is None or weight.ndim < 2:
        return (_depth(graph, op) or 0) >= _SHORTEST
    outputs = weight.shape[-1] if isinstance(op, MatMul) else weight.shape[1 if op.transposed else 0]
    bias = graph.constants.get(op.inputs[2]) if len(op.inputs) > 2 else None
    heavy = bias is not None and int(np.abs(bias.astype(np.int64)).max(initial=0)) > _HEAVY
    return heavy or weight.size // max(1, outputs) >= _SHORTEST


def _depth(graph: IntegerGraph, op: Conv | MatMul) -> int | None:
    """How many terms a sum of a matrix product has."""
    shape = graph.tensors[op.inputs[0]].sample_shape or graph.tensors[op.inputs[0]].shape
    return shape[-1] if shape and isinstance(shape[-1], int) else None


def _of_activations(graph: IntegerGraph, op: Conv | MatMul, ranges: Ranges) -> SumBounds | None:
    """A product of two activations: every term may be the largest, and which pairs meet is not known."""
    depth = _depth(graph, op)
    if depth is None:
        return None
    spans = [_span(graph.params(name), ranges.get(name)) for name in op.inputs[:2]]
    reach = depth * max(abs(a * b) for a in spans[0] for b in spans[1])
    return SumBounds(1, reach, int(reach > _INT32[1]))


def _span(params: QuantParams, clamp: tuple[int, int] | None) -> tuple[int, int]:
    """The smallest and largest q - zero_point of a tensor, zero among them."""
    low, high = clamp or (params.qmin, params.qmax)
    return min(0, low - max(params.zero_point)), max(0, high - min(params.zero_point))


def weight_facts(graph: IntegerGraph, op: Conv | MatMul) -> WeightFacts | None:
    """What the integers of a weight show; None where it is computed."""
    weight = graph.constants.get(op.inputs[1])
    params = graph.tensors[op.inputs[1]].params
    if weight is None or params is None or weight.ndim < 2 or not weight.size:
        return None
    rows = _rows(op, weight)
    zeros = _zeros(params, rows.shape[0])
    high, low, step = np.zeros(rows.shape[0], np.int64), np.zeros(rows.shape[0], np.int64), 0
    for part in _parts(rows):
        wide = rows[part].astype(np.int16) - zeros[part].astype(np.int16)[:, None]
        high[part], low[part] = wide.max(axis=1), wide.min(axis=1)
        step = int(np.gcd.reduce(wide, axis=None, initial=step)) if step != 1 else 1
    peaks = np.maximum(high, -low)
    dead = peaks == 0
    weak = ~dead & (peaks * 8 < peaks.max()) & (not params.is_per_channel)
    most, least = int(high.max()) // max(1, step), -int(-low.min()) // max(1, step)
    bits = 1 + max(most, -1 - least, 0).bit_length()
    return WeightFacts(rows.shape[0], bits, int(weak.sum()), int(dead.sum()))


def _rows(op: Conv | MatMul, weight: Array) -> Array:
    """The weight as [output channels, terms in the order of addition]: kernel positions, at each the input channels.

    A transposed convolution adds the terms of each output position in another order; there the groups' rows are those
    of the whole kernel, which bounds every position's sum.
    """
    if isinstance(op, MatMul):
        return np.swapaxes(weight, -1, -2).reshape(-1, weight.shape[-2])
    if op.transposed:
        grouped = weight.reshape(op.groups, weight.shape[0] // op.groups, *weight.shape[1:])
        return np.moveaxis(grouped, 2, 1).reshape(op.groups * weight.shape[1], -1)
    return np.moveaxis(weight, 1, -1).reshape(weight.shape[0], -1)


def _zeros(params: QuantParams, channels: int) -> npt.NDArray[np.int64]:
    """The weight's zero point for each row: groups of a transposed weight and stacked matrices share theirs."""
    zeros = np.asarray(params.zero_point, np.int64)
    return np.tile(zeros, channels // zeros.size)


def _extremes(graph: IntegerGraph, op: Conv | MatMul, weight: Array, ranges: Ranges) -> tuple[Sums, Sums]:
    """The largest and the smallest sum of every output channel."""
    low, high = _span(graph.params(op.inputs[0]), ranges.get(op.inputs[0]))
    rows = _rows(op, weight)
    zeros = _zeros(graph.params(op.inputs[1]), rows.shape[0])
    positive, negative = np.zeros(rows.shape[0], np.int64), np.zeros(rows.shape[0], np.int64)
    for part in _parts(rows):
        wide = rows[part].astype(np.int16) - zeros[part].astype(np.int16)[:, None]
        positive[part] = np.maximum(wide, 0).sum(axis=1, dtype=np.int64)
        negative[part] = np.minimum(wide, 0).sum(axis=1, dtype=np.int64)
    bias = np.zeros(1, np.int64)
    if len(op.inputs) > 2 and op.inputs[2]:
        bias = graph.constants[op.inputs[2]].astype(np.int64)
        bias = np.tile(bias, rows.shape[0] // bias.size)
    return positive * high + negative * low + bias, positive * low + negative * high + bias


def _parts(rows: Array) -> list[slice]:
    step = max(1, _CHUNK // max(1, rows.shape[1]))
    return [slice(start, start + step) for start in range(0, rows.shape[0], step)]


def _pairs(graph: IntegerGraph, op: Conv | MatMul, weight: Array, ranges: Ranges) -> tuple[int, int, int]:
    """(largest sum of a pair, pairs that may leave 16 bits, channels with such a pair) of unsigned by signed bytes."""
    x, w = graph.params(op.inputs[0]), graph.params(op.inputs[1])
    depthwise = isinstance(op, Conv) and op.groups > 1 and weight.shape[:2] == (op.groups, 1)
    if not w.is_signed or not (x.is_8bit and w.is_8bit) or depthwise or (isinstance(op, Conv) and op.transposed):
        return 0, 0, 0
    shift = 128 if x.is_signed else 0  # signed inputs are made unsigned on the way in
    low, high = (end + shift for end in ranges.get(op.inputs[0], (x.qmin, x.qmax)))
    rows = _rows(op, weight)
    largest = pairs = channels = 0
    for part in _parts(rows):
        wide = rows[part].astype(np.int32)
        if wide.shape[1] % 2:
            wide = np.pad(wide, ((0, 0), (0, 1)))
        top = np.maximum(wide * high, wide * low)
        bottom = np.minimum(wide * high, wide * low)
        above, below = top[:, ::2] + top[:, 1::2], bottom[:, ::2] + bottom[:, 1::2]
        outside = (above > _INT16[1]) | (below < _INT16[0])
        largest = max(largest, int(above.max(initial=0)), -int(below.min(initial=0)))
        pairs += int(outside.sum())
        channels += int(outside.any(axis=1).sum())
    return largest, pairs, channels

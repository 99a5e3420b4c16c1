"""Sums and means, times a number and plus one: products with ones.

    ReduceSum(x, axes)            x -> Transpose (those dimensions last) -> Reshape [..., K] -> MatMul(ones [K, 1])
    AveragePool(x) * a + b        x -> Conv(ones [C, 1, kernel...], a group for each channel)
    ReduceSum(x, axes) * (1 / K)  ReduceMean(x, axes), likewise divided by K

A mean is a sum with the unit divided by K, in float64: a tie may fall to either side where K is no power of two.
Means of no more than that, which leave two dimensions, are pooling (`operators.py`), which divides by K itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from qatc.compiler.graph import Node, Tensor, rank_of, shape_of
from qatc.compiler.integer import Conv, MatMul, Shape
from qatc.compiler.lowering import mac, operators
from qatc.compiler.lowering.cuts import Makers, Way, emit
from qatc.compiler.lowering.operands import Operands
from qatc.compiler.lowering.state import State
from qatc.compiler.model.links import label_of
from qatc.compiler.passes.products import MEANS, Vector, is_sum
from qatc.compiler.passes.sums import axes_of
from qatc.compiler.quant import LARGEST, SMALLEST, QuantParams, dtype_range
from qatc.compiler.windows import window

_ONE: Final = 2.0**-23  # how far from 1 a file's 1 / K times K may be in float32


@dataclass(frozen=True)
class Affine:
    """What becomes of a sum before it is rounded: times `factor`, which is not zero, plus `bias`."""

    factor: float = 1.0
    bias: float = 0.0
    way: Way | None = None  # how it is rounded, if not to the nearest


@dataclass(frozen=True)
class _Reduction:
    """Which dimensions of a tensor stay and which are summed up, and how many elements a sum has."""

    shape: Shape
    kept: tuple[int, ...]
    summed: tuple[int, ...]
    count: int

    @classmethod
    def of(cls, node: Node) -> _Reduction | None:
        """None where nothing stays, nothing goes, or sizes are not known."""
        shape, axes = shape_of(node.inputs[0]), _axes_of(node)
        if shape is None or not axes or not all(-len(shape) <= a < len(shape) for a in axes):
            return None
        summed = tuple(sorted({a % len(shape) for a in axes}))
        kept = tuple(i for i in range(len(shape)) if i not in summed)
        sizes = [d for i in summed if isinstance(d := shape[i], int)]
        if not kept or len(sizes) != len(summed) or not math.prod(sizes):
            return None
        return cls(shape, kept, summed, math.prod(sizes))

    def share(self, node: Node) -> float:
        """What an element counts in the result."""
        return 1.0 / self.count if node.op in MEANS else 1.0


def _axes_of(node: Node) -> tuple[int, ...] | None:
    return tuple(range(2, rank_of(node.inputs[0]) or 0)) if node.op == "GlobalAveragePool" else axes_of(node)


def reduced(state: State, node: Node, out: Tensor, then: Affine, lo: int, hi: int) -> bool:
    """Make the integers of `out`: a sum or mean and `then`, clamped to [lo, hi]; False where it stays float."""
    if is_long(state, node):
        return False
    if _is_mean(node, then) and operators.pool(state, node, out, lo, hi):
        return True
    if node.op == "AveragePool":
        return _windowed(state, node, out, then, lo, hi)
    return _summed(state, node, out, then, lo, hi)


def _is_mean(node: Node, then: Affine) -> bool:
    """Whether the result is the mean itself: of a sum, divided by how many it adds up."""
    if then.bias or then.way is not None:
        return False
    if node.op in MEANS:
        return then.factor == 1.0
    found = _Reduction.of(node) if node.op == "ReduceSum" else None
    return found is not None and abs(then.factor * found.count - 1.0) <= _ONE


def is_open(node: Node) -> bool:
    """Whether the file leaves open how many elements a sum over whole dimensions has."""
    if not is_sum(node) or node.op == "AveragePool":
        return False
    shape, axes = shape_of(node.inputs[0]), _axes_of(node)
    return bool(axes) and not (shape and all(isinstance(shape[a % len(shape)], int) for a in axes or ()))


def is_noise(state: State, node: Node) -> bool:
    """Whether the result's steps are finer than what float32 knows of the sum: training saw rounding errors.

    The mean of what a normalization made is zero but for those; calibration gives it their range. The error that is
    meant is one standard deviation of the probabilistic bound of docs/verification.md.
    """
    read = _read(state, node, node.outputs[0])
    return read is not None and _is_noise(*read, node, Affine())


def _is_noise(have: QuantParams, want: QuantParams, found: _Reduction, node: Node, then: Affine) -> bool:
    most = _farthest(have) * have.scale[0] * found.count * found.share(node)
    return math.sqrt(found.count) * 2.0**-24 * most * abs(then.factor) > want.scale[0] / 2


def is_long(state: State, node: Node) -> bool:
    """Whether a sum or mean adds up so many elements that 32 bits may not hold it: runtimes wrap around."""
    have = state.usable(node.inputs[0]) if is_sum(node) else None
    if have is None:
        return False
    if node.op == "AveragePool":
        count: int = math.prod(node.attr("kernel_shape"))
    else:
        found = _Reduction.of(node)
        count = 0 if found is None else found.count
    return count * _farthest(have) > dtype_range("int32")[1]


def _farthest(have: QuantParams) -> int:
    """How far an integer may be from its zero point."""
    return max(have.qmax - have.zero_point[0], have.zero_point[0] - have.qmin)


def _read(state: State, node: Node, out: Tensor) -> tuple[QuantParams, QuantParams, _Reduction] | None:
    """A reduction between two grids, and these; None for other operators, and where a grid or size is not known."""
    if not is_sum(node) or node.op == "AveragePool":
        return None
    have, want, found = state.usable(node.inputs[0]), state.usable(out), _Reduction.of(node)
    return None if have is None or want is None or found is None else (have, want, found)


def _summed(state: State, node: Node, out: Tensor, then: Affine, lo: int, hi: int) -> bool:
    """Sums and means over whole dimensions, and ReduceL1 of what is never negative."""
    read = _read(state, node, out)
    if read is None or _is_noise(*read, node, then):
        return False
    x, (have, want, found) = node.inputs[0], read
    if node.op == "ReduceL1" and have.qmin < have.zero_point[0]:
        return False
    ones = _ones(node, have, then, found.share(node), (found.count, 1), axis=1)
    if ones is None:
        return False
    ones.x = state.transposed(x, state.int_name(x), (*found.kept, *found.summed))
    kept = tuple(found.shape[i] for i in found.kept)
    if len(found.summed) > 1:
        last = state.build.constant("sizes", np.asarray([0] * len(kept) + [found.count], np.int64))
        rows = state.build.quantized(f"{x.name}_rows", have, (*kept, found.count))
        ones.x = state.move("Reshape", (ones.x, last), rows)
    keeps = bool(node.attr("keepdims", 1))
    rests = keeps and found.summed == (len(found.shape) - 1,)
    label = label_of(node)

    def column() -> str:
        return state.new_int(out) if rests else state.build.quantized(f"{out.name}_column", want, (*kept, 1))

    def add(inputs: tuple[str, ...], made: str, acc: Vector) -> None:
        scales = tuple(acc.tolist())
        state.build.add(MatMul, label, inputs, (made,), lo=lo, hi=hi, acc_scale=scales, source=label)

    made = _made(state, ones, then, (want, lo, hi), (column, add))
    if made is None:
        return False
    if not rests:
        _shaped(state, found, made, out, want, keeps=keeps)
    return True


def _windowed(state: State, node: Node, out: Tensor, then: Affine, lo: int, hi: int) -> bool:
    """AveragePool with a factor or an offset, where all windows have as many elements."""
    have, want, shape = state.usable(node.inputs[0]), state.usable(out), shape_of(node.inputs[0])
    moving = window(node, tuple(node.attr("kernel_shape")))
    channels = shape[1] if shape is not None and len(shape) > 1 else None
    if have is None or want is None or moving is None or not isinstance(channels, int) or not channels:
        return False
    if node.attr("ceil_mode", 0) or (any(moving.pads) and not node.attr("count_include_pad", 0)):
        return False
    share = 1.0 / math.prod(moving.kernel)
    ones = _ones(node, have, then, share, (channels, 1, *moving.kernel), axis=0)
    if ones is None:
        return False
    ones.x, label = state.int_name(node.inputs[0]), label_of(node)

    def add(inputs: tuple[str, ...], made: str, acc: Vector) -> None:
        state.build.add(
            Conv, label, inputs, (made,), lo=lo, hi=hi, strides=moving.strides, pads=moving.pads,
            dilations=moving.dilations, groups=channels, acc_scale=tuple(np.broadcast_to(acc, channels).tolist()),
            source=label,
        )  # fmt: skip

    return _made(state, ones, then, (want, lo, hi), (lambda: state.new_int(out), add)) is not None


def _ones(
    node: Node, have: QuantParams, then: Affine, share: float, shape: tuple[int, ...], *, axis: int
) -> Operands | None:
    """The weight that adds up elements which count `share` each, its input still to be named; None beyond float32."""
    step = abs(then.factor) * share
    if not (SMALLEST <= step <= LARGEST and SMALLEST <= have.scale[0] * step <= LARGEST):
        return None
    values = np.full(shape, 1 if then.factor > 0 else -1, np.int8)
    params = QuantParams.per_tensor(step, 0, "int8")
    return Operands(node, "", node.inputs[0], params, values, have.scale[0], axis, shape[axis])


def _made(state: State, ones: Operands, then: Affine, result: tuple[QuantParams, int, int], how: Makers) -> str | None:
    """Add the operator as `how` says (see `cuts.emit`); the name of its result, None where it stays float."""
    want, (make, add) = result[0], how
    bias: Vector = np.full(ones.channels or 1, then.bias)
    if then.way is not None:
        return emit(state, ones, bias, then.way, result, how)
    bias = bias if then.bias else np.zeros(0)
    made, names = make(), [ones.x]
    integers = mac.tune(state, ones, bias, want.scale[0])
    names.append(state.build.constant(f"ones_{ones.integers.size}", ones.integers, ones.weight_params))
    if integers is not None:
        names.append(state.build.constant(f"{made}_bias", integers))
        state.build.graph.real_biases[made] = bias / ones.acc_scale
    add(tuple(names), made, ones.acc_scale)
    return made


def _shaped(state: State, found: _Reduction, made: str, out: Tensor, want: QuantParams, *, keeps: bool) -> None:
    """The result in its own shape: the column goes, ones come where the summed dimensions were if they are kept."""
    kept = tuple(found.shape[i] for i in found.kept)
    axes = state.build.constant("column", np.asarray([len(kept)], np.int64))
    if not keeps:
        state.move("Squeeze", (made, axes), state.new_int(out))
        return
    flat = state.move("Squeeze", (made, axes), state.build.quantized(f"{out.name}_flat", want, kept))
    places = state.build.constant("places", np.asarray(found.summed, np.int64))
    state.move("Unsqueeze", (flat, places), state.new_int(out))

"""Sums and means over any dimensions: matrix products with ones.

    ReduceSum(x, axes)     x -> Transpose (those dimensions last) -> Reshape [..., K] -> MatMul(ones [K, 1])

A mean is the same with the unit divided by K, in float64: a tie may fall to either side where K is no power of two.
Means that leave two dimensions are pooling (`operators.py`), which divides by K itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from qatc.compiler.graph import Node, Tensor, shape_of
from qatc.compiler.integer import MatMul, Move, Shape
from qatc.compiler.lowering.state import State
from qatc.compiler.model.links import label_of
from qatc.compiler.passes.modernize import axes_of
from qatc.compiler.quant import LARGEST, SMALLEST, QuantParams

_SUMS: Final = ("ReduceSum", "ReduceMean", "ReduceL1")


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
        shape, axes = shape_of(node.inputs[0]), axes_of(node)
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
        return 1.0 / self.count if node.op == "ReduceMean" else 1.0


def is_noise(state: State, node: Node) -> bool:
    """Whether the result's steps are finer than what float32 knows of the sum: training saw rounding errors.

    The mean of what a normalization made is zero but for those; calibration gives it their range. The error that is
    meant is one standard deviation of the probabilistic bound of docs/verification.md.
    """
    read = _read(state, node)
    if read is None:
        return False
    have, want, found = read
    zero = have.zero_point[0]
    most = max(have.qmax - zero, zero - have.qmin) * have.scale[0] * found.count * found.share(node)
    return math.sqrt(found.count) * 2.0**-24 * most > want.scale[0] / 2


def _read(state: State, node: Node) -> tuple[QuantParams, QuantParams, _Reduction] | None:
    """A reduction between two grids, and these; None for other operators, and where a grid or size is not known."""
    if node.domain or node.op not in _SUMS:
        return None
    have, want, found = state.usable(node.inputs[0]), state.usable(node.outputs[0]), _Reduction.of(node)
    return None if have is None or want is None or found is None else (have, want, found)


def summed(state: State, node: Node, out: Tensor, lo: int, hi: int) -> bool:
    """ReduceSum and ReduceMean, and ReduceL1 of what is never negative."""
    read = _read(state, node)
    if read is None or is_noise(state, node):
        return False
    x, (have, want, found) = node.inputs[0], read
    if node.op == "ReduceL1" and have.qmin < have.zero_point[0]:
        return False
    share = found.share(node)
    if not SMALLEST <= have.scale[0] * share <= LARGEST:
        return False
    name = state.transposed(x, state.int_name(x), (*found.kept, *found.summed))
    kept = tuple(found.shape[i] for i in found.kept)
    if len(found.summed) > 1:
        last = state.build.constant("sizes", np.asarray([0] * len(kept) + [found.count], np.int64))
        name = _moved(
            state, "Reshape", (name, last), state.build.quantised(f"{x.name}_rows", have, (*kept, found.count))
        )
    ones = np.ones((found.count, 1), np.int8)
    weight = state.build.constant(f"ones_{found.count}", ones, QuantParams.per_tensor(share, 0, "int8"))
    keeps = bool(node.attr("keepdims", 1))
    rests = keeps and found.summed == (len(found.shape) - 1,)
    label = label_of(node)
    made = state.new_int(out) if rests else state.build.quantised(f"{out.name}_column", want, (*kept, 1))
    product = MatMul(state.build.fresh(label), (name, weight), (made,), lo=lo, hi=hi,
                     acc_scale=(have.scale[0] * share,), source=label)  # fmt: skip
    state.build.add(product)
    if not rests:
        _shaped(state, found, made, out, want, keeps=keeps)
    return True


def _shaped(state: State, found: _Reduction, made: str, out: Tensor, want: QuantParams, *, keeps: bool) -> None:
    """The result in its own shape: the column goes, ones come where the summed dimensions were if they are kept."""
    kept = tuple(found.shape[i] for i in found.kept)
    axes = state.build.constant("column", np.asarray([len(kept)], np.int64))
    if not keeps:
        _moved(state, "Squeeze", (made, axes), state.new_int(out))
        return
    flat = _moved(state, "Squeeze", (made, axes), state.build.quantised(f"{out.name}_flat", want, kept))
    places = state.build.constant("places", np.asarray(found.summed, np.int64))
    _moved(state, "Unsqueeze", (flat, places), state.new_int(out))


def _moved(state: State, op: str, inputs: tuple[str, ...], result: str) -> str:
    return state.build.add(Move(state.build.fresh(op), inputs, (result,), op_type=op, attrs={}))

"""Linear Resize: each result lies at a rational place between integers, so that their weights are integers.

    Resize[linear](x<P>, _, scales) -> y<Q>     Resize(x: (slope * i + offset) / denominator along each axis)

Runtimes compute the places in float32. What they mean is the rational number: scales that are given are the float32 of
a fraction (2.2 of 11/5), those of sizes are out / in. Where the fraction is none that a few bits can write, the Resize
stays in float.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Final

import numpy as np

from qatc.compiler.graph import Dim, Node, Tensor, shape_of, value_of
from qatc.compiler.integer import Rescale, Resize, fits_int32
from qatc.compiler.lowering.state import State
from qatc.compiler.model.links import is_op, label_of
from qatc.compiler.quant import Array, QuantParams
from qatc.compiler.reference.resize import position

_LARGEST: Final = 1 << 10  # denominator of a scale
_SCALES, _SIZES = 2, 3  # inputs of Resize
_FAR: Final = 2.0**100  # between the steps of input and result: float32 holds what lies between
_UNKNOWN: Final = "its sizes are not known: --shape pins those of the input"
_ODD: Final = "its scale is no fraction that integer weights could express"


class _StaysError(Exception):
    """Why a Resize stays in float, in words for the user."""


_Line = tuple[int, int, int, int, int]  # axis, size, slope, offset, denominator: as `Resize` has them


def interpolates(node: Node | None) -> bool:
    """Whether a node is a Resize by linear interpolation."""
    return is_op(node, "Resize") and str(node.attr("mode", "nearest")) == "linear"


def resize(state: State, node: Node, out: Tensor, lo: int, hi: int) -> bool:
    """A linear Resize of a tensor of 8 or 16 bits."""
    have, want = (state.params(t) for t in (node.inputs[0], out)) if interpolates(node) else (None, None)
    if have is None or want is None or not (_is_narrow(have) and _is_narrow(want)):
        return False
    if not 1 / _FAR < have.scale[0] / want.scale[0] < _FAR:
        return False
    try:
        lines = _fitting(node, out, have)
    except _StaysError:
        return False
    label = label_of(node)
    names = (state.int_name(node.inputs[0]),), (state.new_int(out),)
    if not lines:
        state.build.add(Rescale, label, *names, lo=lo, hi=hi, source=label)
        return True
    axes, sizes, slopes, offsets, denominators = zip(*lines, strict=True)
    state.build.add(
        Resize, label, *names, lo=lo, hi=hi, source=label, axes=axes, sizes=sizes, slopes=slopes, offsets=offsets,
        denominators=denominators,
    )  # fmt: skip
    return True


def stays(state: State, node: Node) -> str | None:
    """Why a linear Resize of a quantized tensor has no integer form, where that is its own fault."""
    have = state.params(node.inputs[0]) if interpolates(node) else None
    if have is None or not _is_narrow(have):
        return None
    try:
        _fitting(node, node.outputs[0], have)
    except _StaysError as why:
        return str(why)
    return None


def _fitting(node: Node, out: Tensor, have: QuantParams) -> list[_Line]:
    """The axes that are resized, where their weights fit."""
    lines = list(_lines(node, out))
    if not fits_int32(math.prod(line[-1] for line in lines), have):
        raise _StaysError(f"the weights of its scales and {have.dtype} values do not fit 32 bits together")
    return lines


def _is_narrow(params: QuantParams) -> bool:
    return not params.is_per_channel and params.container.itemsize <= 2


def _lines(node: Node, out: Tensor) -> Iterator[_Line]:
    """Where the result's elements lie, for each axis that is resized."""
    if node.attr("antialias", 0):
        raise _StaysError("it is antialiased")
    before, after = shape_of(node.inputs[0]), shape_of(out)
    if before is None or after is None or len(before) != len(after):
        raise _StaysError(_UNKNOWN)
    way = str(node.attr("coordinate_transformation_mode", "half_pixel"))
    for axis, (n, size, scale) in enumerate(zip(before, after, _scales(node, before), strict=True)):
        if scale == 1 or (scale is None and n is not None and n == size):
            continue
        if not isinstance(n, int) or not isinstance(size, int) or n < 1 or size < 1:
            raise _StaysError(_UNKNOWN)
        yield axis, size, *_places(Fraction(size, n) if scale is None else scale, way, n, size)


def _places(factor: Fraction, way: str, n: int, size: int) -> tuple[int, int, int]:
    """Slope, offset and denominator of an axis of `n` elements that becomes one of `size`."""
    first, second = (position(Fraction(i), size, n, factor, way) for i in range(2))
    if first is None or second is None:
        raise _StaysError(f"its coordinates ({way}) have no integer form")
    slope = second - first if size > 1 else Fraction(0)
    denominator = math.lcm(slope.denominator, first.denominator)
    return int(slope * denominator), int(first * denominator), denominator


def _scales(node: Node, before: tuple[Dim, ...]) -> list[Fraction | None]:
    """Per axis the scale that is given, None where the two sizes tell it."""
    rank = len(before)
    named = [int(axis) for axis in node.attr("axes") or range(rank)]
    axes = [axis % rank for axis in named if -rank <= axis < rank]
    if len(set(axes)) < len(named):
        raise _StaysError("its axes are not those of its input")
    given, sizes = (_operand(node, index) for index in (_SCALES, _SIZES))
    found: list[Fraction | None] = [Fraction(1)] * rank
    if given is not None:
        values: list[Fraction | None] = [_fraction(float(value)) for value in given.reshape(-1)]
    elif str(node.attr("keep_aspect_ratio_policy", "stretch")) == "stretch" and node.optional(_SCALES) is None:
        values = [None] * len(axes)
    elif sizes is not None:
        values = _common(node, sizes, [before[axis] for axis in axes])
    else:
        raise _StaysError(_UNKNOWN)
    if len(values) != len(axes):
        raise _StaysError(_UNKNOWN)
    for axis, value in zip(axes, values, strict=True):
        found[axis] = value
    return found


def _operand(node: Node, index: int) -> Array | None:
    """Scales or sizes that are constant; None where they are computed or left out."""
    found = value_of(node.optional(index))
    return found if found is not None and found.size else None


def _fraction(scale: float) -> Fraction:
    """The fraction whose float32 is a scale."""
    if not 0 < scale < math.inf:
        raise _StaysError(_ODD)
    found = Fraction(scale).limit_denominator(_LARGEST)
    if not found or np.float32(found.numerator / found.denominator) != np.float32(scale):
        raise _StaysError(_ODD)
    return found


def _common(node: Node, sizes: Array, before: list[Dim]) -> list[Fraction | None]:
    """The one scale of all axes that keeps the aspect ratio."""
    known = [n for n in before if isinstance(n, int) and n > 0]
    if not known or not len(known) == len(before) == sizes.size or sizes.min() < 1:
        raise _StaysError(_UNKNOWN)
    ratios = [Fraction(int(size), n) for size, n in zip(sizes.reshape(-1), known, strict=True)]
    choices = {"not_larger": min(ratios), "not_smaller": max(ratios)}
    found = choices.get(str(node.attr("keep_aspect_ratio_policy")))
    if found is None:
        raise _StaysError(_UNKNOWN)
    return [found] * len(ratios)

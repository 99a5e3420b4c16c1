"""Fake quantization written out as arithmetic, in whatever order, becomes a FakeQuant node.

    x -> Div(s) -> Round -> Add(z) -> Clip(qmin, qmax) -> Sub(z) -> Mul(s) -> y          x -> FakeQuant -> y
    x -> Mul(1/s) -> Add(z) -> Clip -> Round -> Sub(z) -> Mul(s) -> y                    x -> FakeQuant -> y
    x -> Clip(0, a) -> Div(s) -> Round -> Mul(s) -> y                                    x -> FakeQuant -> y
    x -> Div(s) -> Round -> Cast(int8) -> Cast(float) -> Mul(s) -> y                     x -> FakeQuant -> y
    x -> Mul(a) -> Round -> Clip -> Mul(s) -> y                        x -> Mul(a * s) -> FakeQuant -> y
    x -> Div(s) -> Floor -> Clip(qmin, qmax) -> Mul(s) -> y            x -> Div(s) -> Floor -> Mul(s) -> FakeQuant -> y

(what changes no value, as in straight-through gradients, is gone before: see `straight_through`)

What counts is the mathematics, not the order. Every operator with one constant operand around a Round is affine,
v = a * x + b, or a clamp. A stretch around the Round in which what follows undoes what precedes (a2 * a1 = 1,
a2 * b1 + b2 = 0) is a quantizer: its scale is a2, and the clamps on the way, carried to the integers, are its range.
Rounding is monotone, so a clamp before it is one after it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import onnx

from qatc.compiler.graph import (
    FAKE_QUANT,
    Constant,
    Node,
    QuantGraph,
    Tensor,
    is_constant,
    shape_of,
    value_of,
)
from qatc.compiler.model.links import is_op
from qatc.compiler.passes.evaluate import Refused, evaluate
from qatc.compiler.passes.modernize import element_type, infer_if_possible
from qatc.compiler.quant import Array, Doubles, QuantParams, dtype_range
from qatc.compiler.rewrite import NoMatch, Rules, sweep
from qatc.frontends.common import roundings
from qatc.frontends.common.chains import (
    WHOLE,
    Clamp,
    State,
    backward,
    bounds_of,
    fit,
    forward,
    is_whole,
    narrowed,
    variable_of,
)
from qatc.frontends.common.dequantization import dequantizer
from qatc.frontends.common.detours import shorten
from qatc.frontends.common.operands import no_numbers
from qatc.frontends.common.params import make_params, on_whole_zero
from qatc.frontends.common.qdq import in_single, make_double, to_fake_quant
from qatc.frontends.common.sinking import sink
from qatc.frontends.common.straight_through import drop_straight_through, unscaled
from qatc.frontends.common.vendor import container

Rounding = Callable[[Doubles], Doubles]

RULES: Final = Rules("arithmetic")
_CLOSE: Final = 1e-6  # by how much a2 * a1 may miss 1
_DOUBLE: Final = onnx.TensorProto.DOUBLE
_BYTE: Final = 255  # steps between the ends of an 8-bit range
_HALF_A_STEP: Final = 0.5 + 1e-3  # by how much an offset may be rounded on one side alone
_WAYS: Final = {"Round": np.rint, "Floor": np.floor, "Ceil": np.ceil}
_FEW_DIGITS: Final = 2.0**-40  # by how much a float32 may miss itself, calculated in float64


def rewrite(graph: QuantGraph) -> bool:
    """Make FakeQuant nodes of the quantizers in a modernized graph with folded constants.

    Returns whether anything changed, so that looking again may find more.
    """
    changed = [roundings.rewrite(graph), drop_straight_through(graph), shorten(graph), sink(graph)]
    if any(_needs_shape(graph, node) for node in graph.of(*_WAYS)):
        infer_if_possible(graph)
    return bool(sweep(graph, RULES)) or any(changed)


def _needs_shape(graph: QuantGraph, node: Node) -> bool:
    """Whether something rounded, of unknown shape, is multiplied or moved by more than one number: along some axis."""
    x = node.inputs[0]
    if is_constant(x) or shape_of(x) is not None:
        return False
    return any(s.scale.size > 1 or s.offset.size > 1 for s in forward(graph, node.outputs[0]))


# -- quantizers ---------------------------------------------------------------------------------------------------


@RULES.on("Round", "Floor", "Ceil")
@np.errstate(all="ignore")  # constants may be infinite; what they lead to is checked
def quantizer(graph: QuantGraph, node: Node) -> bool:
    """A rounding between operators that undo each other; Floor(v + 0.5) is a Round, and so is Ceil(v - 0.5) by now."""
    source, offset = node.inputs[0], 0.0
    way: Rounding = np.rint
    after = [s for s in forward(graph, node.outputs[0]) if s.multiplied]
    if not after:
        return False
    if isinstance(source, Constant):
        return _constant(graph, node, source, after)
    if node.op == "Ceil":
        return _one_way(graph, node, after)
    if node.op == "Floor":
        half = roundings.less_half(graph, source)
        source, offset = (source, -0.5) if half is None else (half, 0.0)
        way = np.rint if half is None else _half_up
    reason = "nothing around the rounding undoes its scale and offset"
    found = _stretches(graph, source, after, offset)
    if not found and offset:
        return _one_way(graph, node, after)
    if not found and _behind_a_factor(graph, node, source, after, way):
        return True
    for begin, ends in found:
        try:
            return _fake_quant(graph, node, begin, _in_a_byte(begin, ends, way), way)
        except NoMatch as no:  # another stretch may reach the clamp
            reason = no.reason
    raise NoMatch(reason)


def _stretches(graph: QuantGraph, source: Tensor, after: list[State], offset: float) -> list[tuple[State, list[State]]]:
    """Where what follows a rounding undoes what precedes it: the state before, and the states from the one after on.

    Of single numbers the stretch that begins first comes first: what it leaves outside stays arithmetic of floats.
    (One that begins later and ends later holds the next quantizer's division.) Channels that are scaled apart come
    last, the shortest stretch first: no integer product knows such steps of its data. Where there is none of these, the
    offsets may miss each other by part of a step (see `_moved`). A Floor is a Round at an `offset` of -0.5, where none
    of its whole numbers becomes a tie.
    """
    before = list(backward(graph, source, offset))
    if offset:
        before = [b for b in before if not any(_is_tie(v) for v in (b.offset, *_ends_of(b.clamps)))]
    single: list[tuple[int, list[tuple[State, list[State]]]]] = []  # where each begins, and with its later clamps
    apart: list[tuple[State, list[State]]] = []
    for index, end in enumerate(after):
        begins = [i for i, begin in enumerate(before) if _undo(begin, end)]
        found = [(before[i], after[index:]) for i in begins]
        if end.scale.size > 1 or end.offset.size > 1:
            apart += found
        elif index and single and end.scale is after[index - 1].scale and end.offset is after[index - 1].offset:
            single[-1][1].extend(found)  # only clamped further
        else:
            single.append((max(begins, default=-1), found))
    single.sort(key=lambda stretch: stretch[0], reverse=True)
    found = [stretch for _, stretches in single for stretch in stretches] + apart
    if found or offset:
        return found
    return [
        (begin, after[index:])
        for index, end in enumerate(after)
        for begin in before
        if begin.offset.size == end.offset.size == 1 and _undo(begin, end, within=_HALF_A_STEP)
    ]


def _is_tie(values: Doubles) -> bool:
    """Whether a number lies halfway between two whole ones."""
    return bool(np.any(np.abs(np.abs(values - np.rint(values)) - 0.5) <= WHOLE))


def _ends_of(clamps: tuple[Clamp, ...]) -> list[Doubles]:
    """The ends of clamps, as what is rounded."""
    return [(end - clamp.offset) / clamp.scale for clamp in clamps for end in (clamp.low, clamp.high)]


def _undo(before: State, after: State, *, within: float = WHOLE) -> bool:
    """Whether `after` maps the rounded value back: a2 * a1 = 1 and b1 + b2 / a2 = 0, but for so much of a step."""
    if not fit(before.scale, before.offset, after.scale, after.offset):
        return False
    with np.errstate(all="ignore"):
        product = before.scale * after.scale
        offset = _shift_of(before, after)
    return bool(np.all(np.abs(product - 1) <= _CLOSE) and np.all(np.abs(offset) <= within) and np.all(after.scale > 0))


def _shift_of(before: State, after: State) -> Doubles:
    """By how many steps a quantizer moves what it rounds."""
    return before.offset + after.offset / after.scale


def _one_way(graph: QuantGraph, node: Node, after: list[State]) -> bool:
    """A Floor or Ceil of x / s, times s, which stays: floor(v + z) - z is floor(v) (`lowering/cuts.py` cuts off so)."""
    readers = graph.consumers(after[0].tensor)
    if readers and all(n.op == FAKE_QUANT for n in readers):
        return False  # it is written so
    reason = f"it rounds {'down' if node.op == 'Floor' else 'up'}, and nothing behind undoes its scale and offset"
    for begin, ends in _stretches(graph, node.inputs[0], after, 0.0):
        try:
            end = _in_a_byte(begin, ends, _WAYS[node.op])
            if is_whole(begin.offset) and np.all(np.abs(_shift_of(begin, end)) <= WHOLE):
                return _stays(graph, node, begin, end)
        except NoMatch as no:  # another stretch may reach the clamp
            reason = no.reason
    raise NoMatch(reason)


def _stays(graph: QuantGraph, node: Node, begin: State, end: State) -> bool:
    """A rounding between nothing but its step, and a FakeQuant behind; what clamps it is the range."""
    x, maker = begin.tensor, graph.producer(end.tensor)
    if begin.scale.size != 1 or end.scale.size != 1 or end.offset.size != 1 or is_constant(x):
        raise NoMatch("its channels have steps of their own")
    grid = _integers_of(_clamps_around(graph, begin, end), end, _WAYS[node.op])
    params = _params(graph, node, _as_reached(graph, node, begin, end, grid), end.scale, shape_of(x), x.name)
    if params is None or maker is None:
        return False
    node.inputs = [_in_steps(graph, in_single(graph, x), float(begin.scale.reshape(-1)[0]))]
    rounded, name = node.outputs[0], f"{end.tensor.name}_on_grid"
    step = graph.constant(f"{end.tensor.name}_step", np.asarray(params.scale[0], np.float32))
    kind = element_type(node.inputs[0])
    maker.inputs = [graph.apply("Mul", [rounded, step], name, kind, shape_of(rounded), name=node.name)]
    to_fake_quant(graph, maker, params)
    graph.sort()
    return True


def _as_reached(graph: QuantGraph, node: Node, begin: State, end: State, grid: _Range) -> _Range:
    """The range that clamps in front of a Floor or Ceil leave: where 3 * s / s is 2.9999998 in float32, Floor makes 2.

    The end that is meant is a step away then, and all that is clamped would be wrong by that.
    """
    row: list[Node] = []
    tensor = node.inputs[0]
    while (maker := graph.producer(tensor)) is not None and (tensor is not begin.tensor or not begin.clamps):
        x = variable_of(maker)
        if x is None or (tensor is begin.tensor and bounds_of(graph, maker, x) is None):
            break
        row.append(maker)
        if tensor is begin.tensor:
            break
        tensor = x
    ends: Array = np.asarray([-np.inf, np.inf], np.float64 if element_type(tensor) == _DOUBLE else np.float32)
    try:
        for maker in reversed(row):
            x = variable_of(maker)
            operands = [ends if t is x else graph.real(t) for t in maker.inputs]
            with np.errstate(all="ignore"):  # of ends that are infinite
                ends = evaluate(maker, operands, graph.opset)[0].reshape(-1)
    except (Refused, ValueError, TypeError, LookupError):
        return grid
    if ends.size != 2 or grid.shift.size != 1 or np.isnan(ends).any():
        return grid
    low, high = sorted(_WAYS[node.op](ends.astype(np.float64)) + float(grid.shift))
    low, high = (e if abs(e - meant) == 1 else meant for e, meant in ((low, grid.low), (high, grid.high)))
    if end.clamps:  # these hold whatever is rounded
        low, high = max(low, grid.low), min(high, grid.high)
    return replace(grid, low=int(low), high=int(high)) if 0 < high - low <= _BYTE else grid


def _in_steps(graph: QuantGraph, x: Tensor, factor: float) -> Tensor:
    """A tensor times a number, by the operator that has that number in float32."""
    step = 1 / factor
    op, by = ("Div", step) if abs(float(np.float32(step)) - step) <= _FEW_DIGITS * step else ("Mul", factor)
    number = graph.constant(f"{x.name}_{op}", np.asarray(by, np.float32))
    return graph.apply(op, [x, number], f"{x.name}_steps", element_type(x), shape_of(x), name=x.name)


def _behind_a_factor(graph: QuantGraph, node: Node, source: Tensor, after: list[State], way: Rounding) -> bool:
    """A quantizer whose division was merged into what is multiplied before it: v = a * x is rounded to s * q.

    It quantizes s * v, whose step is s. The factor goes where every constant factor goes: into the operator before.
    """
    begin, end = [s for s in backward(graph, source) if not s.multiplied][-1], after[0]
    if is_constant(begin.tensor) or end.scale.size != 1 or end.offset.size != 1 or not np.all(end.scale > 0):
        return False
    if not all(np.isfinite(v).all() for v in (begin.scale, begin.offset, end.scale, end.offset)):
        return False
    begin = replace(begin, tensor=in_single(graph, begin.tensor))
    name, kind, shape = f"{begin.tensor.name}_scaled", element_type(begin.tensor), shape_of(begin.tensor)
    scaled = product = graph.variable(name, kind, shape)
    scale, offset = begin.scale * end.scale, begin.offset * end.scale + end.offset
    moved = replace(begin, tensor=scaled, scale=1 / end.scale, offset=-end.offset / end.scale)
    if not _fake_quant(graph, node, moved, _in_a_byte(moved, after, way), way):
        return False
    if np.any(offset != 0):
        product = graph.variable(f"{name}_product", kind, shape)
        by = graph.constant(f"{name}_offset", np.asarray(offset, np.float32).reshape(()))
        graph.insert("Add", [product, by], [scaled], hint=f"{node.name}_offset")
    factor = graph.constant(f"{name}_factor", np.asarray(scale, np.float32).reshape(()))
    graph.insert("Mul", [begin.tensor, factor], [product], hint=f"{node.name}_factor")
    graph.sort()
    return True


def _in_a_byte(begin: State, after: list[State], way: Rounding = np.rint) -> State:
    """The end of a quantizer: the first of `after`, or the clamp right behind it without which a byte is too small.

    QKeras rounds tanh to -128..128 and clamps that to -128..127.
    """
    end = after[0]
    for state in after if begin.clamps or end.clamps else ():
        if state.scale is not end.scale or state.offset is not end.offset:
            break
        grid = _integers_of((*begin.clamps, *state.clamps), state, way)
        if grid.high - grid.low <= _BYTE:
            return state
    return end


def _fake_quant(graph: QuantGraph, node: Node, begin: State, end: State, way: Rounding = np.rint) -> bool:
    grid = _integers_of(_clamps_around(graph, begin, end), end, way)
    join = _varying(begin.tensor, end.scale)
    if join is not None:
        return _on_one_axis(graph, node, begin, end, grid, join)
    grid, offset = _with_whole_zero(grid, end.scale) if not is_constant(begin.tensor) else (grid, 0.0)
    params = _params(graph, node, grid, end.scale, shape_of(begin.tensor), begin.tensor.name)
    if params is None:
        return False
    maker = graph.producer(end.tensor)
    if maker is None:
        return False
    maker.inputs = [_moved(graph, begin, end)]
    to_fake_quant(graph, maker, params, offset)
    return True


def _clamps_around(graph: QuantGraph, begin: State, end: State) -> tuple[Clamp, ...]:
    """The clamps of a quantizer; where it has none, that which may stand before the division."""
    clamps = (*begin.clamps, *end.clamps)
    above = graph.producer(begin.tensor) if not clamps else None
    bounds = bounds_of(graph, above, above.inputs[0]) if above is not None else None
    return clamps if bounds is None else (Clamp(1 / begin.scale, -begin.offset / begin.scale, *bounds),)


def _varying(tensor: Tensor, scale: Doubles) -> _Joined | None:
    """The axes, the last several, along which the scales of a constant vary; None where it is one, or none, or others.

    The heads of an attention and their sizes are such: the weight is per channel before it is taken apart.
    """
    value = value_of(tensor)
    if value is None or scale.ndim > value.ndim:
        return None
    sizes = (1,) * (value.ndim - scale.ndim) + scale.shape
    varying = [axis for axis, size in enumerate(sizes) if size > 1]
    if len(varying) < 2 or not varying[0] or varying != list(range(varying[0], value.ndim)):  # blocks, or elements
        return None
    whole = all(sizes[axis] == value.shape[axis] for axis in varying)
    return _Joined(varying[0], value.shape) if whole else None


@dataclass(frozen=True)
class _Joined:
    """A constant's shape with its axes from `first` on as one, and numbers for its channels in the same form."""

    first: int
    shape: tuple[int, ...]

    @property
    def flat(self) -> tuple[int, ...]:
        """The shape with these axes in one."""
        return (*self.shape[: self.first], math.prod(self.shape[self.first :]))

    def numbers(self, values: Doubles) -> Doubles:
        """Numbers that vary along these axes alone."""
        return values.reshape(-1) if values.size > 1 else values

    def state(self, state: State) -> State:
        """What is known of the constant, of the joined one."""
        clamps = tuple(replace(c, scale=self.numbers(c.scale), offset=self.numbers(c.offset)) for c in state.clamps)
        scale, offset = self.numbers(state.scale), self.numbers(state.offset)
        return replace(state, scale=scale, offset=offset, clamps=clamps)

    def apart(self, graph: QuantGraph, x: Tensor, out: Tensor) -> None:
        """Make `out` of the joined tensor."""
        sizes = graph.constant(f"{out.name}_sizes", np.asarray(self.shape, np.int64))
        graph.insert("Reshape", [x, sizes], [out], hint=f"{out.name}_apart")


def _on_one_axis(graph: QuantGraph, node: Node, begin: State, end: State, grid: _Range, join: _Joined) -> bool:
    """Quantize a constant whose scales vary along several axes with these in one, and take that apart again."""
    value, maker = value_of(begin.tensor), graph.producer(end.tensor)
    if value is None or maker is None or np.any(np.abs(_shift_of(begin, end)) > WHOLE):
        return False
    name, zero = begin.tensor.name, join.numbers(grid.zero)
    params = _params(graph, node, replace(grid, zero=zero), join.numbers(end.scale), join.flat, name)
    if params is None:
        return False
    out, made = maker.outputs[0], graph.variable(f"{end.tensor.name}_joined", onnx.TensorProto.FLOAT, join.flat)
    maker.inputs, maker.outputs = [graph.constant(f"{name}_joined", value.reshape(join.flat))], [made]
    to_fake_quant(graph, maker, params)
    join.apart(graph, made, out)
    return True


def _moved(graph: QuantGraph, begin: State, end: State) -> Tensor:
    """What a quantizer rounds: its tensor, moved by a part of a step where it adds an offset that it then rounds.

    round((x - low) / s) + round(low / s) is round((x + d) / s) for a d of up to half a step.
    """
    shift = _shift_of(begin, end)
    if np.all(np.abs(shift) <= WHOLE):
        return begin.tensor
    x, name = in_single(graph, begin.tensor), f"{begin.tensor.name}_moved"
    by = graph.constant(f"{name}_by", np.asarray(shift * end.scale, np.float32).reshape(()))
    return graph.apply("Add", [x, by], name, element_type(x), shape_of(x), name=name)


def _with_whole_zero(grid: _Range, scale: Doubles) -> tuple[_Range, float]:
    """The grid with a whole zero point of its type, and how far that moves it: LSQ+ learns fractions of a step."""
    if grid.zero.size != 1 or scale.size != 1:
        return grid, 0.0
    zero = float(grid.zero.reshape(-1)[0])
    dtype = _dtype(grid.low, grid.high)
    bottom, top = (grid.low, grid.high) if dtype is None else dtype_range(dtype)
    whole, offset = on_whole_zero(float(scale.reshape(-1)[0]), zero, (bottom, top))
    if abs(whole - zero) <= WHOLE:
        return grid, 0.0
    return replace(grid, zero=np.asarray(whole, np.float64)), offset


@dataclass(frozen=True)
class _Range:
    """q = rounded value + shift, clamped to [low, high]; `zero` is the q that stands for 0."""

    shift: Doubles
    zero: Doubles
    low: int
    high: int


def _integers_of(clamps: tuple[Clamp, ...], end: State, way: Rounding = np.rint) -> _Range:
    """The integers of a quantizer that rounds in some way: counted as its clamp counts them, if by whole numbers."""
    for clamp in end.clamps:  # of what is rounded already
        ends = [(e - clamp.offset) / clamp.scale for e in (clamp.low, clamp.high) if np.isfinite(e)]
        if not all(is_whole(e) for e in ends):
            raise NoMatch("what it rounded is clamped between two of its steps")
    shift = np.zeros(())
    for clamp in clamps:
        if np.all(clamp.scale == 1) and is_whole(clamp.offset):
            shift = np.rint(clamp.offset)
            break
    low, high = -np.inf, np.inf
    for clamp in clamps:
        ends = [_rounded((e - clamp.offset) / clamp.scale, way) + shift for e in (clamp.low, clamp.high)]
        if any(e.size > 1 and not np.all(e == e.reshape(-1)[0]) for e in ends):
            raise NoMatch("its range differs from channel to channel")
        bottom, top = (float(e.reshape(-1)[0]) for e in ends)
        low, high = max(low, bottom), min(high, top)
    if not (np.isfinite(low) and np.isfinite(high) and low <= high):
        raise NoMatch("the rounded value is not clamped on both sides, so it has no range of integers")
    return _Range(shift, shift - end.offset / end.scale, int(low), int(high))


def _params(
    graph: QuantGraph,
    node: Node,
    grid: _Range,
    scale: Doubles,
    shape: tuple[int | str | None, ...] | None,
    tensor: str,
) -> QuantParams | None:
    low, high, zero = grid.low, grid.high, grid.zero
    if not is_whole(zero):
        raise NoMatch("its zero point is not a whole number")
    zero = np.rint(zero)
    dtype = _dtype(low, high)
    if dtype is None:  # counted from zero it fits a byte
        zero, low, high = zero - low, 0, high - low
        dtype = _dtype(low, high)
    if dtype is None:
        raise NoMatch(f"its range {low}..{high} has more than 16 bits")
    axis = -1 if scale.ndim == 1 else None
    return make_params(graph, node, scale, zero, dtype, axis=axis, shape=shape, qmin=low, qmax=high, tensor=tensor)


def _dtype(low: int, high: int) -> str | None:
    """The narrowest type for a range; None where a shift would save a byte."""
    name = container(low, high)
    is_wide = name not in ("uint8", "int8")
    return None if name == "int32" or (is_wide and high - low <= _BYTE) else name


def _constant(graph: QuantGraph, node: Node, source: Constant, after: list[State]) -> bool:
    """A weight that the exporter divided already: its integers are there, once rounded and clamped.

    What follows may shift it off a whole zero point (DoReFa: 2 * Round(w * 15) / 15 - 1); half of one is one of a grid
    twice as fine.
    """
    after = [_narrow(e) for e in after if _fits_in(source.values.shape, e.scale, e.offset)]
    if not after:
        return False
    ends = [e for e in after if np.all(e.scale > 0)]
    end = next((e for e in reversed(ends) if is_whole(2 * e.offset / e.scale)), after[0])
    join = _varying(source, end.scale)
    is_moved = end.offset.size > end.scale.size  # AdaRound adds 0 or 1 to each element
    if is_moved or np.any(end.scale < 0) or _goes_on(graph, end.tensor):
        raise NoMatch("other constants than steps and zero points act on what it makes of this one")
    if (wrong := no_numbers(source.values)) is not None:
        raise NoMatch(f"the constant {wrong}")
    rounded = _WAYS[node.op](source.values.astype(np.float64))
    if join is not None:
        rounded, end = rounded.reshape(join.flat), join.state(end)
    if not is_whole(end.offset / end.scale):
        rounded *= 2
        end = _twice_as_fine(end)
    if source.values.size < 2 and not end.clamps:
        return False
    grid = _integers_of(end.clamps or (_clamp_around(rounded),), end)
    params = _params(graph, node, grid, end.scale, rounded.shape, source.name)
    if params is None:
        return False
    shift = np.rint(np.asarray(params.zero_array(rounded.ndim), np.float64) + end.offset / end.scale)
    integers: Array = np.clip(rounded + shift, params.qmin, params.qmax).astype(params.container)
    _take_place(graph, end.tensor, graph.constant(source.name, integers, params), join)
    return True


def _twice_as_fine(end: State) -> State:
    clamps = tuple(Clamp(c.scale / 2, c.offset, c.low, c.high) for c in end.clamps)
    return State(end.tensor, end.scale / 2, end.offset, clamps, end.multiplied)


def _clamp_around(rounded: Doubles) -> Clamp:
    """What clamps none of these numbers: -127 to 127, or as far as they reach."""
    low, high = (float(rounded.min()), float(rounded.max())) if rounded.size else (0.0, 0.0)
    return Clamp(np.ones(()), np.zeros(()), min(low, -127.0), max(high, 127.0))


def _take_place(graph: QuantGraph, result: Tensor, constant: Constant, join: _Joined | None) -> None:
    """Put a constant of integers in the place of a tensor, its axes taken apart again where `join` joined them."""
    if join is not None:
        apart = graph.variable(f"{constant.name}_apart", onnx.TensorProto.FLOAT, join.shape)
        join.apart(graph, constant, apart)
        graph.replace(result, apart)
        return
    graph.origin[constant.name] = result.name
    if element_type(result) == onnx.TensorProto.DOUBLE:
        graph.detach_producer(result)
        make_double(graph, constant, result)
    else:
        graph.replace(result, constant)


def _goes_on(graph: QuantGraph, tensor: Tensor) -> bool:
    """Whether constants multiply a constant further: the signs of APoT's magnitudes, the mask of pruned weights."""
    node = graph.only_consumer(tensor)
    return is_op(node, "Mul", "Div") and all(t is tensor or is_constant(t) for t in node.inputs)


def _fits_in(shape: tuple[int, ...], *arrays: Doubles) -> bool:
    """Whether arrays broadcast to a shape, and do not widen it."""
    try:
        return np.broadcast_shapes(shape, *(a.shape for a in arrays)) == shape
    except ValueError:
        return False


def _narrow(end: State) -> State:
    """A state whose scale is stated for each element of a channel, with one for each channel."""
    clamps = tuple(Clamp(_per_channel(c.scale), _per_channel(c.offset), c.low, c.high) for c in end.clamps)
    return replace(end, scale=_per_channel(end.scale), offset=_per_channel(end.offset), clamps=clamps)


def _per_channel(value: Doubles) -> Doubles:
    """Numbers along several axes without what they repeat; channels that have the same number stay channels."""
    return narrowed(value) if sum(size > 1 for size in value.shape) > 1 else value


def _half_up(values: Doubles) -> Doubles:
    """Numbers rounded to the nearest as Floor(v + 0.5) does, of which a clamp may end on a tie."""
    return np.floor(values + 0.5)


def _rounded(values: Doubles, way: Rounding) -> Doubles:
    """Numbers rounded in some way; those that are meant to be whole are."""
    nearest = np.rint(values)
    return np.where(np.abs(values - nearest) <= WHOLE, nearest, way(values))


@RULES.on("Mul")
def times_one(graph: QuantGraph, node: Node) -> bool:
    """What was quantized, multiplied by one: an element that is not quantized at all would be multiplied by zero."""
    data = unscaled(graph, node.outputs[0])
    maker = graph.producer(data)
    if maker is None or maker.op != FAKE_QUANT:
        return False
    graph.replace(node.outputs[0], data)
    return True


RULES.on("Cast")(dequantizer)

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

from dataclasses import replace
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
from qatc.compiler.passes.evaluate import Refused, evaluate
from qatc.compiler.passes.modernize import element_type, infer_if_possible
from qatc.compiler.quant import Array, Doubles
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
    variable_of,
)
from qatc.frontends.common.dequantization import dequantizer
from qatc.frontends.common.detours import shorten
from qatc.frontends.common.divided import Joined, divided_constant, varying
from qatc.frontends.common.qdq import in_single, to_fake_quant
from qatc.frontends.common.sinking import sink
from qatc.frontends.common.spans import BYTE, WAYS, Range, Rounding, half_up, integers_of, params_of, with_whole_zero
from qatc.frontends.common.straight_through import drop_straight_through, unscaled

RULES: Final = Rules("arithmetic")
_CLOSE: Final = 1e-6  # by how much a2 * a1 may miss 1
_DOUBLE: Final = onnx.TensorProto.DOUBLE
_HALF_A_STEP: Final = 0.5 + 1e-3  # by how much an offset may be rounded on one side alone
_FEW_DIGITS: Final = 2.0**-40  # by how much a float32 may miss itself, calculated in float64


def rewrite(graph: QuantGraph) -> bool:
    """Make FakeQuant nodes of the quantizers in a modernized graph with folded constants.

    Returns whether anything changed, so that looking again may find more.
    """
    changed = [roundings.rewrite(graph), drop_straight_through(graph), shorten(graph), sink(graph)]
    if any(_needs_shape(graph, node) for node in graph.of(*WAYS)):
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
        return divided_constant(graph, node, source, after)
    if node.op == "Ceil":
        return _one_way(graph, node, after)
    if node.op == "Floor":
        half = roundings.less_half(graph, source)
        source, offset = (source, -0.5) if half is None else (half, 0.0)
        way = np.rint if half is None else half_up
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
            end = _in_a_byte(begin, ends, WAYS[node.op])
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
    grid = integers_of(_clamps_around(graph, begin, end), end, WAYS[node.op])
    params = params_of(graph, node, _as_reached(graph, node, begin, end, grid), end.scale, shape_of(x), x.name)
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


def _as_reached(graph: QuantGraph, node: Node, begin: State, end: State, grid: Range) -> Range:
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
    low, high = sorted(WAYS[node.op](ends.astype(np.float64)) + float(grid.shift))
    low, high = (e if abs(e - meant) == 1 else meant for e, meant in ((low, grid.low), (high, grid.high)))
    if end.clamps:  # these hold whatever is rounded
        low, high = max(low, grid.low), min(high, grid.high)
    return replace(grid, low=int(low), high=int(high)) if 0 < high - low <= BYTE else grid


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
        grid = integers_of((*begin.clamps, *state.clamps), state, way)
        if grid.high - grid.low <= BYTE:
            return state
    return end


def _fake_quant(graph: QuantGraph, node: Node, begin: State, end: State, way: Rounding = np.rint) -> bool:
    grid = integers_of(_clamps_around(graph, begin, end), end, way)
    join = varying(begin.tensor, end.scale)
    if join is not None:
        return _on_one_axis(graph, node, begin, end, grid, join)
    grid, offset = with_whole_zero(grid, end.scale) if not is_constant(begin.tensor) else (grid, 0.0)
    params = params_of(graph, node, grid, end.scale, shape_of(begin.tensor), begin.tensor.name)
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


def _on_one_axis(graph: QuantGraph, node: Node, begin: State, end: State, grid: Range, join: Joined) -> bool:
    """Quantize a constant whose scales vary along several axes with these in one, and take that apart again."""
    value, maker = value_of(begin.tensor), graph.producer(end.tensor)
    if value is None or maker is None or np.any(np.abs(_shift_of(begin, end)) > WHOLE):
        return False
    name, zero = begin.tensor.name, join.numbers(grid.zero)
    params = params_of(graph, node, replace(grid, zero=zero), join.numbers(end.scale), join.flat, name)
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

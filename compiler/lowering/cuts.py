"""Rounding down and up: quantized sums of integers whose steps are cut off (`Floor`) or filled up (`Ceil`).

    Conv(x, w, b) -> [Relu] -> Div(s) -> Floor -> Mul(s) -> rounded          Conv(x, w, b') -> clamped
    Add(x, y) -> Div(s) -> Floor -> Mul(s) -> rounded                        Add(x, y, c) -> clamped

A sum S of integers reaches the integer j of the result where S >= T, a whole number for each j and channel: with r
units to a step and a bias of B units T = ceil(j r - B), of Ceil floor((j - 1) r - B) + 1. Rounding to the nearest
does that, too, where a bias b puts T + b above the middle between j - 1 and j, and T - 1 + b below. With an odd r
(and B = 0) that is -(r - 1) / 2. With an even one, such as the powers of two, one of them meets the middle. -r / 2
serves a target that rounds ties up. For others the factor is made smaller: 1 - r / 2 then leaves T - 1 + b below the
middle, as long as the numbers are positive. So the sums count from the lowest integer on, and Identity reads what
they make as what it is:

    (S + b) / r, clamped to -128..127          (S + b + 128 r) / r * (1 - 1 / (1020 r)), clamped to 0..255

Nothing of this is trusted. The target's own arithmetic rounds T + b and T - 1 + b, for every j and channel, and must
make j and j - 1 of them; rounding is monotone, so that no other sum is left. Of two tensors it adds all pairs of
integers. Where that fails (scales that have nothing to do with each other, a profile that rounds twice) the Floor stays
in float.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from qatc.compiler.arithmetic import get_profile
from qatc.compiler.diagnostics import CompileError
from qatc.compiler.graph import Node, Tensor, is_constant
from qatc.compiler.integer import Cut, Elementwise
from qatc.compiler.lowering import mac
from qatc.compiler.lowering.operands import Operands, constant_operand
from qatc.compiler.lowering.state import State
from qatc.compiler.model.links import is_op, label_of
from qatc.compiler.passes.movement import LAYOUT, MAXIMA
from qatc.compiler.passes.products import Vector
from qatc.compiler.passes.propagate import clamp_bounds
from qatc.compiler.passes.sums import addends
from qatc.compiler.quant import QuantParams, number_of

_SCALES_ERROR: Final = 2.0**-22  # of a quotient of scales that were rounded to float32, relative
_FEWEST, _MOST = 1 - 2.0**-20, 2.0**24  # units to a step
_MOST_PROVEN: Final = 1 << 23  # integers of all channels: 64 MB for each array of them
_LARGEST: Final = 2.0**30  # of accumulators: what they reach and the bias are below that each
_PACKAGED: Final = "onnx"  # what runs the package's model
_SAME: Final = 1e-6  # by how much the factor behind a Floor may miss the result's scale

Makers = tuple[Callable[[], str], Callable[[tuple[str, ...], str, Vector], None]]


@dataclass(frozen=True)
class Way:
    """How a tensor is rounded: down (or up) to a multiple of `step`, which is divided by, or 1 / step multiplied by."""

    step: float
    down: bool
    divided: bool = True

    def steps(self, real: float) -> float:
        """A number in steps, rounded as float32 has it: 0.5 / 0.1 is 5 there, and less of the numbers that it holds."""
        with np.errstate(all="ignore"):
            x, step = np.float32(real), np.float32(self.step if self.divided else 1 / self.step)
            steps = x / step if self.divided else x * step
        return float(np.floor(steps) if self.down else np.ceil(steps))


def one_way(state: State, node: Node, out: Tensor) -> tuple[Tensor, Way] | None:
    """What a node, Mul(Floor(x / s), s) or the same with Ceil, rounds onto the grid of `out`, and how.

    With a step of one, it is the rounding itself.
    """
    params, rounding = state.usable(out), node
    if is_op(node, "Mul"):
        found = constant_operand(state, node)
        maker = state.graph.producer(found[0]) if found is not None else None
        if params is None or found is None or maker is None or not _is_near(found[1], params.scale[0]):
            return None
        rounding = maker
    elif params is None or params.scale[0] != 1:
        return None
    steps = rounding.inputs[0] if is_op(rounding, "Floor", "Ceil") else None
    if steps is None or steps.name in state.graph.params or state.graph.only_consumer(steps) is None:
        return None
    x, step, divided = _unscaled(state, steps)
    return (x, Way(step, rounding.op == "Floor", divided)) if 0 < step < math.inf else None


def _unscaled(state: State, x: Tensor) -> tuple[Tensor, float, bool]:
    """What a tensor is in steps, that step, and whether it was divided by it, or multiplied by a part of one."""
    node = state.graph.producer(x)
    found = constant_operand(state, node) if is_op(node, "Mul", "Div") else None
    number = number_of(found[1]) if found is not None else None
    if node is None or found is None or not number or (node.op == "Div" and node.inputs[0] is not found[0]):
        return x, 1.0, True
    divided = node.op == "Div"
    return found[0], number if divided else 1 / number, divided


def _is_near(value: npt.NDArray[np.float64], number: float) -> bool:
    return value.size == 1 and bool(abs(value.reshape(-1)[0] - number) <= _SAME * number)


def root_of(
    state: State, x: Tensor, way: Way, params: QuantParams, ends: tuple[int, int]
) -> tuple[Tensor, list[Node], int, int]:
    """The tensor in front of clamps and moves, these moves, and the integers that the clamps leave between `ends`.

    The largest of numbers that are rounded is the largest one, rounded.
    """
    moves: list[Node] = []
    (lo, hi), zero = ends, params.zero_point[0]
    while (node := state.graph.producer(x)) is not None and x.name not in state.graph.params:
        bounds = clamp_bounds(state.graph, node)
        if state.graph.only_consumer(x) is None or (bounds is None and not _moves(node)):
            break
        if bounds is None:
            moves.append(node)
        else:
            low, high = (min(max(way.steps(b) + zero, lo), hi) for b in bounds)
            lo, hi = int(low), int(high)
        x = node.inputs[0]
    return x, moves, lo, hi


def _moves(node: Node) -> bool:
    """Whether a node brings nothing in, and says with constants how it moves."""
    return is_op(node, *MAXIMA, *LAYOUT) and len(node.outputs) == 1 and all(map(is_constant, node.inputs[1:]))


# -- sums of products ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """How a product cuts: its bias, what it takes a unit for, the grid it makes, and what that means."""

    bias: npt.NDArray[np.int32]
    scale: Vector
    grid: QuantParams
    meaning: Cut


def product(
    state: State, node: Node, result: tuple[QuantParams, int, int], bias: Vector | None, alpha: float, way: Way,
    make: Callable[[], str],
) -> bool:  # fmt: skip
    """Lower `alpha * node + bias`, rounded one way, to the integers `make()`; False where it must stay float.

    `result` is their grid, the smallest and the largest.
    """
    found = mac.operands(state, node, alpha)
    if found is None or found.values is None or not found.channels:
        return False
    own = mac.own_bias(state, node)
    total = mac.sum_of(np.zeros(found.channels), None if own is None else own * alpha, bias)

    def add(inputs: tuple[str, ...], made: str, scale: Vector) -> None:
        mac.add(state, found, inputs, made, *result[1:], scale)

    return emit(state, found, total, way, result, (make, add)) is not None


def emit(
    state: State, found: Operands, bias: Vector, way: Way, result: tuple[QuantParams, int, int], how: Makers
) -> str | None:
    """Make a product whose result is rounded one way: its name, None where no product does that exactly.

    Args:
        state: what the lowering knows.
        found: the operands.
        bias: real numbers, one per channel.
        way: how to round.
        result: the grid of the result, its smallest integer and its largest.
        how: what describes the result and returns its name, and what adds the operator of inputs, a result and the
            scale of accumulators.
    """
    want, lo, hi = result
    reaches, unit = mac.reach_of(found), np.broadcast_to(found.acc_scale, bias.shape)
    constant = reaches == 0  # channels without weight: whatever their unit, the middle of four is far from any step
    if constant.any():
        steps = np.floor(bias / way.step) if way.down else np.ceil(bias / way.step) - 1
        unit = np.where(constant, way.step / 4, unit)
        bias = np.where(constant, (steps + 0.5) * way.step, bias)
    have = state.build.graph.params(found.x)
    made = _plan(state, have, want, (lo, hi), unit, bias, way, float(reaches.max(initial=0.0)))
    if made is None:
        return None
    make, add = how
    name = product = make()
    if made.grid != want:
        described = state.build.graph.tensors[name]
        product = state.build.quantized(
            f"{name}_from_lowest", made.grid, described.shape, sample_shape=described.sample_shape
        )
    weight = mac.weight_name(state, found)
    add((found.x, weight, state.build.constant(f"{name}_bias", made.bias)), product, made.scale)
    state.build.graph.cuts[product] = made.meaning
    if product != name:
        state.move("Identity", (product,), name)
    return name


def _plan(
    state: State, have: QuantParams, want: QuantParams, ends: tuple[int, int], unit: Vector, bias: Vector, way: Way,
    reach: float,
) -> _Plan | None:  # fmt: skip
    """How sums of `unit` each, and a real bias, are rounded one way onto a grid; None where that is not exact.

    Args:
        state: what the lowering knows.
        have: the grid of the first operand.
        want: the grid of the result.
        ends: the smallest and largest integer of the result.
        unit: what a unit of the accumulator is worth, one number or one per channel.
        bias: real numbers, one per channel.
        way: how to round.
        reach: how large the accumulators become, without a bias.
    """
    lo, hi = ends
    zero = want.zero_point[0]
    with np.errstate(all="ignore"):
        units, bias = np.broadcast_arrays(way.step / unit, bias / unit)
    if lo >= hi or not (np.all((units >= _FEWEST) & (units <= _MOST)) and reach < _LARGEST):
        return None
    if units.size * (hi - lo) > _MOST_PROVEN:
        return None
    if not np.all(np.abs(bias) < _LARGEST):
        return None
    units, bias = _whole(units, bias)
    codes = np.arange(lo + 1, hi + 1)
    steps = (codes - zero) * units[:, None] - bias[:, None]
    if _are_blurred(steps, units):
        return None
    at = np.ceil(steps) if way.down else np.floor(steps - units[:, None]) + 1
    half = units / 2 if way.down else -units / 2
    found: list[_Plan] = []
    for lowest, scale, whole in _candidates(want, ends, units, at):
        grid = replace(want, zero_point=(lowest,))
        made = _Plan(whole, scale, grid, Cut(bias - half + (zero - lowest) * units, want.scale[0] / units, way.down))
        if _is_proven(state.options.arithmetic, have, made, ends, at):
            if _is_proven(_PACKAGED, have, made, ends, at):
                return made
            found.append(made)
    return found[0] if found else None


def _are_blurred(steps: Vector, units: Vector) -> bool:
    """Whether some steps fall on sums but for float32, between whole numbers of which others do not."""
    off = np.abs(steps - np.rint(steps))
    blurred = (off > 0) & (off <= _SCALES_ERROR * np.abs(steps))
    return bool(blurred[units != np.rint(units)].any())


def _candidates(
    want: QuantParams, ends: tuple[int, int], units: Vector, at: Vector
) -> Iterator[tuple[int, Vector, npt.NDArray[np.int32]]]:
    """From which integer on the sums may count, what a unit of them may count as, and the bias, one per channel.

    Args:
        want: the grid of the result.
        ends: the smallest and largest integer of the result.
        units: units to a step, one per channel.
        at: the sum that reaches each integer, [C, steps].
    """
    lo, hi = ends
    zero = want.zero_point[0]
    codes = np.arange(lo + 1, hi + 1)
    for lowest, share in ((zero, 0.0), (min(zero, lo), 0.25)):
        scale = want.scale[0] / units * (1 - share / ((hi - lowest) * units))
        middles = (codes - lowest - 0.5) * (want.scale[0] / scale)[:, None]
        least = (middles - at).max(axis=1)
        if np.abs(least).max() < _LARGEST:
            for whole in (np.floor(least) + 1, np.ceil(least)):
                yield lowest, scale, whole.astype(np.int32)


def _whole(units: Vector, bias: Vector) -> tuple[Vector, Vector]:
    """Units to a step, and biases in units, as whole numbers where nothing but float32 keeps them from that.

    0.1 * 0.1 goes 30 times into 0.3, but not in float32.
    """
    nearest = np.rint(units)
    off = np.abs(nearest - units)
    meant = (off > 0) & (off <= _SCALES_ERROR * units)
    whole = np.rint(bias)
    near = meant & (np.abs(whole - bias) <= _SCALES_ERROR * np.abs(bias))
    return np.where(meant, nearest, units), np.where(near, whole, bias)


def _is_proven(profile: str, have: QuantParams, made: _Plan, ends: tuple[int, int], at: Vector) -> bool:
    """Whether a profile takes the sums `at` [C, steps] to an integer each, and one less to the integer before."""
    lo, hi = ends
    sums = at + made.bias[:, None]
    if np.abs(sums).max() >= 2 * _LARGEST:
        return False
    acc, codes = sums.astype(np.int64), np.arange(lo, hi + 1)
    requantize = get_profile(profile).requantize
    try:
        return all(
            bool((requantize(q, made.scale, made.grid, lo, hi, 0, in_scale=have.scale[0]) == wanted).all())
            for q, wanted in ((acc, codes[1:]), (acc - 1, codes[:-1]))
        )
    except CompileError:  # it has no form of this factor
        return False


# -- sums of two tensors ------------------------------------------------------------------------------------------


def added(state: State, node: Node, out: Tensor, way: Way, lo: int, hi: int) -> bool:
    """The sum of two quantized tensors, rounded one way: with a third, constant one, it has no tie."""
    want = state.usable(out)
    operands = addends(state.graph, node) if is_op(node, "Add") else []
    grids = [p for t in operands if (p := state.usable(t)) is not None]
    if want is None or len(operands) != 2 or len(grids) != 2:
        return False
    finest = min(way.step, *(p.scale[0] for p in grids))
    counts = [p.scale[0] / finest for p in grids]
    units = way.step / finest
    if not all(c == round(c) for c in (*counts, units) if c < _MOST) or max(*counts, units) >= _MOST:
        return False
    names = [state.int_name(t) for t in operands]
    sides = [(np.arange(p.qmin, p.qmax + 1).astype(p.container), p) for p in grids]
    sides = [(q.reshape(shape), p) for (q, p), shape in zip(sides, ((-1, 1), (1, -1)), strict=True)]
    total = sum((q.astype(np.int64) - p.zero_point[0]) * int(c) for (q, p), c in zip(sides, counts, strict=True))
    cut = total // int(units) if way.down else -(-total // int(units))
    if units > 1:
        offset = QuantParams.per_tensor((units - 1) / 2 * finest, 0, "int8")
        value = np.full(1, -1 if way.down else 1, np.int8)
        sides.append((value.reshape(1, 1), offset))
        names.append(state.build.constant(f"{out.name}_offset", value, offset))
    wanted = np.clip(cut + want.zero_point[0], lo, hi)
    try:
        made = get_profile(state.options.arithmetic).elementwise("Add", sides, want, lo, hi)
    except CompileError:
        return False
    if not (made == wanted).all():
        return False
    label = label_of(node)
    state.build.add(Elementwise, label, tuple(names), (state.new_int(out),), lo=lo, hi=hi, op="Add", source=label)
    return True


def stays(state: State, node: Node) -> bool:
    """Whether a node is part of a rounding down or up that stays in float."""
    behind = state.graph.only_consumer(node.outputs[0]) if is_op(node, "Floor", "Ceil") else None
    return any(n is not None and one_way(state, n, n.outputs[0]) is not None for n in (node, behind))

"""Weights that the exporter divided already: constants that a Round, and what undoes the division, read.

    W / s -> Round -> Clip -> Mul(s) -> y          q -> y, with the parameters s

Their integers are there. The scales of one may vary along its last several axes, where it is taken apart behind its
quantizer: the heads of an attention, and their sizes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import onnx

from qatc.compiler.graph import Constant, Node, QuantGraph, Tensor, is_constant, value_of
from qatc.compiler.model.links import is_op
from qatc.compiler.passes.modernize import element_type
from qatc.compiler.quant import Array, Doubles
from qatc.compiler.rewrite import NoMatch
from qatc.frontends.common.chains import Clamp, State, is_whole, narrowed
from qatc.frontends.common.operands import no_numbers
from qatc.frontends.common.qdq import make_double
from qatc.frontends.common.spans import WAYS, integers_of, params_of


def divided_constant(graph: QuantGraph, node: Node, source: Constant, after: list[State]) -> bool:
    """A weight that the exporter divided already: its integers are there, once rounded and clamped.

    What follows may shift it off a whole zero point (DoReFa: 2 * Round(w * 15) / 15 - 1); half of one is one of a grid
    twice as fine.
    """
    after = [_narrow(e) for e in after if _fits_in(source.values.shape, e.scale, e.offset)]
    if not after:
        return False
    ends = [e for e in after if np.all(e.scale > 0)]
    end = next((e for e in reversed(ends) if is_whole(2 * e.offset / e.scale)), after[0])
    join = varying(source, end.scale)
    is_moved = end.offset.size > end.scale.size  # AdaRound adds 0 or 1 to each element
    if is_moved or np.any(end.scale < 0) or _goes_on(graph, end.tensor):
        raise NoMatch("other constants than steps and zero points act on what it makes of this one")
    if (wrong := no_numbers(source.values)) is not None:
        raise NoMatch(f"the constant {wrong}")
    rounded = WAYS[node.op](source.values.astype(np.float64))
    if join is not None:
        rounded, end = rounded.reshape(join.flat), join.state(end)
    if not is_whole(end.offset / end.scale):
        rounded *= 2
        end = _twice_as_fine(end)
    if source.values.size < 2 and not end.clamps:
        return False
    grid = integers_of(end.clamps or (_clamp_around(rounded),), end)
    params = params_of(graph, node, grid, end.scale, rounded.shape, source.name)
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


def _take_place(graph: QuantGraph, result: Tensor, constant: Constant, join: Joined | None) -> None:
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


def varying(tensor: Tensor, scale: Doubles) -> Joined | None:
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
    return Joined(varying[0], value.shape) if whole else None


@dataclass(frozen=True)
class Joined:
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

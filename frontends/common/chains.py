"""Chains of affine operators and clamps around a rounding, one constant operand each.

v = Clip(x * a + b)        walked up from the rounded value:    v = scale * tensor + offset, clamps on v
y = (r + c) * d            walked down from the rounding:       tensor = scale * r + offset
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt
import onnx

from qatc.compiler.graph import FAKE_QUANT, Node, QuantGraph, Tensor, is_constant, rank_of, value_of
from qatc.compiler.model.links import computed, is_op
from qatc.compiler.passes.propagate import clamp_bounds
from qatc.compiler.quant import Array, Doubles, dtype_range, number_of
from qatc.frontends.common.params import OF_ELEMENT
from qatc.frontends.common.straight_through import keeps_shape

WHOLE: Final = 1e-3  # by how much a zero point or a bound may miss a whole number
LONGEST: Final = 8  # operators on one side of a Round
CLAMPS: Final = frozenset({"Clip", "Min", "Max", "Relu"})
_WIDE: Final = 4  # bytes of integers that arithmetic on rounded values does not leave
_AFFINE: Final = frozenset({"Add", "Sub", "Mul", "Div"})
_FLOATS: Final = frozenset(
    {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
)
_INTEGERS: Final = {kind: name for kind, name in OF_ELEMENT.items() if name != "int32"}

_Number = TypeVar("_Number", bound=np.generic)


@dataclass(frozen=True)
class Clamp:
    """low <= scale * v + offset <= high, where v is the value that is rounded (or the rounded one)."""

    scale: Doubles
    offset: Doubles
    low: float
    high: float


@dataclass(frozen=True)
class State:
    """How far a walk came: before the Round v = scale * tensor + offset, after it tensor = scale * v + offset."""

    tensor: Tensor
    scale: Doubles
    offset: Doubles
    clamps: tuple[Clamp, ...] = field(default=())
    multiplied: bool = False


def is_whole(values: Doubles) -> bool:
    """Whether they are whole numbers, as far as zero points and bounds have to be."""
    return bool(np.all(np.abs(values - np.rint(values)) <= WHOLE))


def fit(*arrays: Array) -> bool:
    """Whether arrays broadcast; a file may hold constants that do not."""
    try:
        np.broadcast_shapes(*(a.shape for a in arrays))
    except ValueError:
        return False
    return True


def start(tensor: Tensor, offset: float = 0.0) -> State:
    """A walk's first state: v = tensor + offset."""
    return State(tensor, np.ones(()), np.asarray(offset))


def _operand(node: Node, tensor: Tensor) -> tuple[Doubles, bool] | None:
    """The constant operand of a binary operator beside `tensor`, and whether `tensor` comes first.

    One number that is stated for each element, or for each of a channel, is that number. None for one that gives the
    result more dimensions.
    """
    if len(node.inputs) != 2:
        return None
    first = node.inputs[0] is tensor
    value = value_of(node.inputs[1 if first else 0])
    if value is None or value.dtype.kind not in "fiu" or not value.size:
        return None
    if value.size == 1 and value.ndim and (rank := rank_of(tensor)) is not None and value.ndim > rank:
        return None
    if value.size > 1 and not is_constant(tensor) and keeps_shape(value, tensor):
        value = narrowed(value)
    return value.astype(np.float64), first


def _is_exact(node: Node) -> bool:
    """Whether arithmetic with a constant is that of real numbers: integers cut fractions off, and narrow ones wrap."""
    kinds = [value.dtype for tensor in node.inputs if (value := value_of(tensor)) is not None]
    return not any(kind.kind in "iu" and (node.op == "Div" or kind.itemsize < _WIDE) for kind in kinds)


def narrowed(value: npt.NDArray[_Number]) -> npt.NDArray[_Number]:
    """An array without what it repeats along its axes: [] where it is one number, else as many axes as before."""
    for axis, size in enumerate(value.shape):
        start = value.take([0], axis)
        if size > 1 and np.all(value == start):
            value = start
    return value.reshape(()) if value.size == 1 else value


def variable_of(node: Node | None) -> Tensor | None:
    """The first input of a node that is no constant."""
    return None if node is None else next(iter(computed(node)), None)


def affine_of(node: Node, tensor: Tensor) -> tuple[Doubles, Doubles] | None:
    """(a, b) with node(tensor) = a * tensor + b, for Add, Sub, Mul, Div with a constant."""
    found = _operand(node, tensor)
    if node.op not in _AFFINE or node.domain or found is None or not _is_exact(node):
        return None
    c, first = found
    one, zero = np.ones(()), np.zeros(())
    match node.op:
        case "Add":
            return one, c
        case "Sub":
            return (one, -c) if first else (-one, c)
        case "Mul":
            return c, zero
        case _:
            return (1 / c, zero) if first and np.all(c != 0) else None


def bounds_of(graph: QuantGraph, node: Node, tensor: Tensor) -> tuple[float, float] | None:
    """(low, high) where the node clamps `tensor` between constants."""
    if node.op in ("Relu", "Clip"):
        return clamp_bounds(graph, node) if node.inputs[0] is tensor else None
    plain = is_op(node, "Min", "Max") and not any(graph.quant(t) for t in node.inputs)
    found = _operand(node, tensor) if plain else None
    bound = None if found is None else number_of(found[0])
    if bound is None:
        return None
    return (-np.inf, bound) if node.op == "Min" else (bound, np.inf)


def forward(graph: QuantGraph, tensor: Tensor) -> Iterator[State]:
    """The states after each operator that alone reads the one before."""
    state = start(tensor)
    for _ in range(LONGEST):
        node = graph.only_consumer(state.tensor)
        if node is None:
            return
        affine, bounds, out = affine_of(node, state.tensor), bounds_of(graph, node, state.tensor), node.outputs[0]
        if affine is not None and fit(state.scale, state.offset, *affine):
            a, b = affine
            multiplied = state.multiplied or node.op in ("Mul", "Div")
            with np.errstate(all="ignore"):  # constants may be infinite; what they lead to is checked
                state = State(out, state.scale * a, state.offset * a + b, state.clamps, multiplied)
        elif bounds is not None:
            clamp = Clamp(state.scale, state.offset, *bounds)
            state = State(out, state.scale, state.offset, (*state.clamps, clamp), state.multiplied)
        elif is_op(node, "Cast"):
            clamps = _clamps_of_cast(node, state)
            if clamps is None:
                return
            state = State(out, state.scale, state.offset, (*state.clamps, *clamps), state.multiplied)
        else:
            return
        yield state


def _clamps_of_cast(node: Node, state: State) -> tuple[Clamp, ...] | None:
    """What a Cast does to rounded values: one to integers saturates, as in every framework that trains so.

    None where it would cut off fractions.
    """
    kind = int(node.attr("to", 0))
    if kind in _FLOATS:
        return ()
    if not (np.all(state.scale == 1) and np.all(state.offset == np.rint(state.offset))):
        return None
    dtype = _INTEGERS.get(kind)
    return () if dtype is None else (Clamp(state.scale, state.offset, *map(float, dtype_range(dtype))),)


def backward(graph: QuantGraph, tensor: Tensor, offset: float = 0.0) -> Iterator[State]:
    """The states before each operator, from the rounded value's input upwards; what is rounded is that and `offset`."""
    state = start(tensor, offset)
    yield state
    for _ in range(LONGEST):
        node = graph.producer(state.tensor)
        data = computed(node) if node is not None else []
        if node is None or node.op == FAKE_QUANT or not data:
            constant = next((t for t in node.inputs if is_constant(t)), None) if node is not None else None
            if node is None or constant is None or node.op not in _AFFINE:
                return
            data = [constant]
        affine, bounds = affine_of(node, data[0]), bounds_of(graph, node, data[0])
        if affine is not None and fit(state.scale, state.offset, *affine):
            a, b = affine
            with np.errstate(all="ignore"):
                state = State(data[0], state.scale * a, state.scale * b + state.offset, state.clamps, True)
        elif bounds is not None:
            # the clamped value u is carried on to v = scale * u + offset
            clamp = Clamp(1 / state.scale, -state.offset / state.scale, *bounds)
            state = State(data[0], state.scale, state.offset, (*state.clamps, clamp), state.multiplied)
        else:
            return
        yield state

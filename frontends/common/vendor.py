"""What the vendor dialects share: grids from arrays of numbers, unwritten channel axes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import numpy as np

from qatc.compiler.diagnostics import counted
from qatc.compiler.graph import FAKE_QUANT, Constant, Dim, Node, QuantGraph, Tensor, rank_of, shape_of, value_of
from qatc.compiler.passes.movement import is_movement, order_of, params_through
from qatc.compiler.passes.products import output_axis
from qatc.compiler.quant import Array, QuantParams, dtype_range
from qatc.frontends.common.operands import no_numbers, refuse
from qatc.frontends.common.params import make_params

_FLOAT: Final = 1  # TensorProto's number for float32
_ARRAYS: Final = (np.ndarray, np.generic)  # arithmetic on an array without dimensions gives a scalar
_TYPES: Final = ("int8", "uint8", "int16", "uint16", "int32")
_SAME_AXES: Final = frozenset(
    {
        "Identity",
        "Cast",
        "Relu",
        "Clip",
        "Abs",
        "Neg",
        "Mul",
        "Div",
        "Add",
        "Sub",
        "QuantizeLinear",
        "DequantizeLinear",
        FAKE_QUANT,
    }
)
_SAME_VALUES: Final = frozenset({"Identity", "Dropout", "MaxPool", "Relu", "ReduceMax"})  # where zero is on the grid


# -- grids --------------------------------------------------------------------------------------------------------


def container(qmin: int, qmax: int, zeros: Iterable[int] = ()) -> str | None:
    """The smallest of int8, uint8, int16, uint16, int32 that holds a range and its zero points, None where none does.

    >>> container(-8, 7), container(0, 15), container(0, 255, [300]), container(-1, 2**40)
    ('int8', 'uint8', 'uint16', None)
    """
    low, high = min([qmin, *zeros]), max([qmax, *zeros])
    fitting = [d for d in _TYPES if dtype_range(d)[0] <= low and high <= dtype_range(d)[1]]
    alike = [d for d in fitting if d.startswith("u") == (qmin >= 0)]
    return next(iter(alike or fitting), None)


def grid(
    graph: QuantGraph, node: Node, scale: Array, zero: Array, bounds: tuple[int, int], axis: int | None = None
) -> QuantParams | None:
    """QuantParams of `node`'s first input from a vendor's numbers; None with every finding recorded.

    Zero points are rounded half to even, the integer type is the smallest that fits. Without `axis`, scales and zero
    points broadcast against the input as in NumPy; with it, they hold one element a channel or one for all.
    """
    x, (low, high) = node.inputs[0], bounds
    value = value_of(x)
    if value is not None and (wrong := no_numbers(value)) is not None:
        refuse(graph, node, "QAT104", f"the constant cannot be quantized: it {wrong}")
        return None
    scale, zero = np.asarray(scale, np.float64), np.rint(np.asarray(zero, np.float64))
    whole = [int(z) for z in zero.reshape(-1).tolist()] if np.isfinite(zero).all() else []
    dtype = container(low, high, whole) if whole else None
    if dtype is None or low > high:
        message = f"no integer type of up to 32 bits holds the range {low}..{high} and its zero point"
        refuse(graph, node, "QAT202", message, "the range must include zero")
        return None
    if axis is not None:
        scale, zero = scale.reshape(-1), zero.reshape(-1)
    elif (rank := rank_of(x)) is not None:
        axis = rank - 1
    if scale.size == 1:
        scale = np.broadcast_to(scale, np.broadcast_shapes(scale.shape, zero.shape))
    shape = shape_of(x)
    return make_params(graph, node, scale, zero, dtype, axis=axis, shape=shape, qmin=low, qmax=high, tensor=x.name)


# -- channels -----------------------------------------------------------------------------------------------------


def output_channel_axis(graph: QuantGraph, tensor: Tensor, rank: int | None = None) -> int | None:
    """The axis of a weight that holds its operator's output channels, through Transpose and element-wise operators.

    0 for Conv, 1 for ConvTranspose, rows or columns for Gemm and MatMul; None where no reader tells. `rank` is the
    weight's, where the file does not state it at `tensor`.
    """
    rank = rank_of(tensor) if rank is None else rank
    waiting: list[tuple[Tensor, tuple[int, ...]]] = [(tensor, ())]  # with the weight's axes in their order there
    seen: set[int] = set()
    for current, order in waiting:
        for node in graph.consumers(current):
            if id(node) in seen:
                continue
            seen.add(id(node))
            axis = _operator_axis(node, current, rank)
            if axis is not None:
                return axis if not order else order[axis] if axis < len(order) else None
            perm = order_of(node) if node.op == "Transpose" else None
            if node.op in _SAME_AXES and node.inputs[0] is current:
                waiting.append((node.outputs[0], order))
            elif perm is not None and len(order) in (0, len(perm)):
                waiting.append((node.outputs[0], tuple(order[p] for p in perm) if order else perm))
    return None


def _operator_axis(node: Node, weight: Tensor, rank: int | None) -> int | None:
    """The output-channel axis of an operator's weight operand (of `rank`, if unknown); None where it does not say."""
    place = next((i for i in (1, 0) if i < len(node.inputs) and node.inputs[i] is weight), None)
    if place is None or (place == 0 and not isinstance(weight, Constant)):
        return None
    own = rank_of(weight)
    return output_axis(node, rank if own is None else own, place)


def has_channels(shape: Sequence[Dim] | None, axis: int, channels: int) -> bool:
    """Whether a tensor has so many channels along an axis, as far as its size there is known."""
    if shape is None:
        return True
    return -len(shape) <= axis < len(shape) and (shape[axis] == channels or not isinstance(shape[axis], int))


def implied_axis(graph: QuantGraph, x: Tensor, channels: int, rounded: Tensor | None = None) -> int | None:
    """The channel axis of a tensor whose scales come without one; None where nothing tells.

    A weight's axis follows from the operator that reads it (or `rounded`, what a quantizer makes of it); an
    activation's channels are axis 1. Where `channels` does not fit there, the only axis of that length is taken.
    """
    shape = shape_of(x)
    likely = output_channel_axis(graph, x if rounded is None else rounded, rank_of(x))
    if likely is None:
        likely = 0 if isinstance(x, Constant) else 1
    if shape is None or has_channels(shape, likely, channels):
        return likely
    fitting = [i for i, size in enumerate(shape) if size == channels]
    return fitting[0] if len(fitting) == 1 else None


def refuse_formats(graph: QuantGraph, format_of: Callable[[Node], str | None], hint: str) -> None:
    """Record QAT103 for the nodes that quantize to formats which are not affine: one a format, at its first node."""
    found: dict[str, list[Node]] = {}
    for node in graph.nodes:
        name = format_of(node)
        if name is not None:
            found.setdefault(name, []).append(node)
    for name, nodes in found.items():
        message = f"{counted(len(nodes), 'operator', 'quantize')} to {name}, not to an affine integer grid"
        refuse(graph, nodes[0], "QAT103", message, hint)


def grid_behind(graph: QuantGraph, tensor: Tensor) -> QuantParams | None:
    """The grid that `tensor` lies on: of the FakeQuant that made it, through operators that only move values."""
    current: Tensor = tensor
    moves: list[Node] = []
    while (node := graph.producer(current)) is not None and node.op != FAKE_QUANT:
        if node.domain or not (node.op in _SAME_VALUES or is_movement(node)):
            return None
        moves.append(node)
        current = node.inputs[0]
    params: QuantParams | None = graph.quant(current) if node is None else node.attrs["params"]
    if params is None or node is None or not moves:
        return params
    whole = not params.is_per_channel and all(params_through(n, params) is not None for n in moves)
    return params if whole else None


# -- canonical form -----------------------------------------------------------------------------------------------


def elementwise(graph: QuantGraph, op: str, x: Tensor, *others: Tensor | Array) -> Tensor:
    """`op(x, ...)` as a new node, of the shape of `x`; arrays become float32 constants."""
    operands = [
        graph.constant(f"{op.lower()}_by", np.asarray(other, np.float32)) if isinstance(other, _ARRAYS) else other
        for other in others
    ]
    return graph.apply(op, [x, *operands], f"{x.name}_{op.lower()}", _FLOAT, x.shape)


def to_constant(graph: QuantGraph, node: Node, integers: Array, params: QuantParams) -> bool:
    """Let readers of a vendor node on a constant read the integers that it stands for; always True."""
    y = node.outputs[0]
    stored = graph.constant(f"{node.inputs[0].name}_{params.dtype}", integers.astype(params.container), params)
    if y.name in graph.known:
        graph.origin[stored.name] = y.name
    graph.replace(y, stored)
    return True


def owned(owns: Callable[[str, str], bool]) -> Callable[[Node], bool]:
    """Whether a node is of an operator that a dialect owns (see `by_operators`)."""
    return lambda node: owns(node.op, node.domain or "")


def by_operators(owns: Callable[[str, str], bool]) -> Callable[[QuantGraph, str], str | None]:
    """The recognizer of a dialect that has operators of its own, told by name and domain ("" is ONNX's)."""
    return lambda graph, producer: operators(graph, owns)


def operators(graph: QuantGraph, owns: Callable[[str, str], bool]) -> str | None:
    """The operators of the source file that a dialect owns, as `listed` has them."""
    return listed({kind: number for kind, number in graph.source_ops.items() if owns(*kind)})


def listed(found: Mapping[tuple[str, str], int]) -> str | None:
    """Operators as "3 Quant, 1 Trunc (qonnx.custom_op.general)", None where there are none."""
    if not found:
        return None
    domains = sorted({domain for _, domain in found if domain})
    listed = ", ".join(f"{number} {op}" for (op, _), number in sorted(found.items(), key=lambda kv: (-kv[1], kv[0])))
    return f"{listed} ({', '.join(domains)})" if domains else listed

"""Layer normalization as exporters write it out before opset 17, RMS normalization before opset 23, TensorFlow always:

    d = Sub(x, ReduceMean(x))                   r = Sqrt(Add(ReduceMean(Pow(d, 2)), epsilon))
    Div(d, r) -> Mul(gamma) -> Add(beta)        Add(Mul(x, a), Sub(beta, Mul(ReduceMean(x), a))), a = gamma / r

RMS normalization has x itself in the place of d. The square may be a product, a division a product with a reciprocal, a
reciprocal root a power of -1/2; factors come in any order, gamma and beta may be left out. PyTorch computes `x - mean`
twice; what counts is that both subtract the same mean from the same tensor.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from qatc.compiler.graph import Constant, Node, QuantGraph, Tensor, rank_of, repeats_into, shape_of
from qatc.compiler.passes.sums import axes_of
from qatc.compiler.quant import Array, number_of

_FACTORS: Final = 6  # of one product


@dataclass(frozen=True)
class Unrolled:
    """A layer normalization: `gamma` and `beta` are float32 of the shape of the last axes of x, `names` theirs."""

    x: Tensor
    gamma: Array
    beta: Array | None
    epsilon: float
    names: tuple[str, str]
    centered: bool = True  # whether the mean is subtracted


def unrolled(graph: QuantGraph, node: Node) -> Unrolled | None:
    """The layer normalization that `node` is the last operator of, None where it is none."""
    found = _core(graph, node, None)
    if found is None and node.op == "Add" and len(node.inputs) == 2:
        product, added = _behind_constant(graph, node)
        found = _core(graph, product, added) if product is not None else _apart(graph, node)
    if found is None:
        return None
    shape = shape_of(found.x)
    inner = None if shape is None else shape[len(shape) - found.axes :]
    if inner is None or not all(isinstance(size, int) for size in inner):
        return None
    sizes = tuple(size for size in inner if isinstance(size, int))
    factors = [_spread(graph, t, sizes) for t in found.gammas]
    beta = None if found.beta is None else _spread(graph, found.beta, sizes)
    if any(f is None for f in factors) or (found.beta is not None and beta is None):
        return None
    gamma = np.ones(sizes, np.float32)
    for factor in factors:
        gamma = gamma * np.asarray(factor)
    end = node.outputs[0].name
    known = found.gammas[0].name if len(found.gammas) == 1 else f"{end}_gamma" if found.gammas else f"{end}_ones"
    names = (known, found.beta.name if found.beta else "")
    return Unrolled(found.x, gamma, beta, found.epsilon, names, found.centered)


@dataclass(frozen=True)
class _Found:
    """What is normalized over how many last axes, and the constants around it."""

    x: Tensor
    axes: int
    epsilon: float
    gammas: tuple[Constant, ...]
    beta: Constant | None
    centered: bool = True


def _maker(graph: QuantGraph, tensor: Tensor) -> Node | None:
    """The operator of ai.onnx that makes a tensor which is not rounded."""
    maker = graph.producer(tensor)
    return maker if maker is not None and not maker.domain and tensor.name not in graph.params else None


def _behind_constant(graph: QuantGraph, node: Node) -> tuple[Node | None, Constant | None]:
    """What makes the computed operand of an operator of two, and its constant one."""
    constants = [t for t in node.inputs if isinstance(t, Constant)]
    data = [t for t in node.inputs if not isinstance(t, Constant)]
    if len(constants) != 1 or len(data) != 1:
        return None, None
    return _maker(graph, data[0]), constants[0]


def _spread(graph: QuantGraph, constant: Constant, shape: tuple[int, ...]) -> Array | None:
    """A constant as float32 in the shape of the normalized axes, None where it has another one."""
    value = graph.real(constant)
    if value is None or not np.isfinite(value).all():
        return None
    value = np.asarray(value, np.float32)
    if value.ndim > len(shape) and set(value.shape[: value.ndim - len(shape)]) == {1}:
        value = value.reshape(value.shape[value.ndim - len(shape) :])
    if not repeats_into(value.shape, shape):
        return None
    return np.ascontiguousarray(np.broadcast_to(value, shape))


@dataclass
class _Product:
    """The factors of a product: constants, at most one deviation that it is divided by, and what else there is."""

    constants: list[Constant] = field(default_factory=list[Constant])
    others: list[Tensor] = field(default_factory=list[Tensor])
    roots: list[Node] = field(default_factory=list[Node])


def _product(graph: QuantGraph, node: Node | None) -> _Product | None:
    """The factors of what a node makes, through Mul, Div and Reciprocal; None where it divides by others."""
    if node is None or node.op not in ("Mul", "Div") or len(node.inputs) != 2:
        return None
    found = _Product()
    waiting = [(node.inputs[0], True), (node.inputs[1], node.op == "Mul")]
    while waiting and len(found.constants) + len(found.others) + len(found.roots) <= _FACTORS:
        current, over = waiting.pop()
        if isinstance(current, Constant):
            if not over:
                return None
            found.constants.append(current)
            continue
        maker = _maker(graph, current)
        match maker.op if maker is not None else "":
            case "Mul" | "Div" if maker is not None and len(maker.inputs) == 2:
                waiting += [(maker.inputs[0], over), (maker.inputs[1], over == (maker.op == "Mul"))]
            case "Reciprocal" if maker is not None:
                waiting.append((maker.inputs[0], not over))
            case "Sqrt" if maker is not None and not over:
                found.roots.append(maker)
            case "Pow" if maker is not None and _power(graph, maker) == (-0.5 if over else 0.5):
                found.roots.append(maker)
            case _ if over:
                found.others.append(current)
            case _:
                return None
    return found if not waiting else None


def _core(graph: QuantGraph, node: Node | None, beta: Constant | None) -> _Found | None:
    """(x - mean) / sqrt(variance + epsilon) or x / sqrt(mean(x^2) + epsilon), times constants in any order."""
    found = _product(graph, node)
    if found is None or len(found.others) != 1 or len(found.roots) != 1:
        return None
    square = _mean_square(graph, found.roots[0])
    if square is None:
        return None
    squared, axes, epsilon = square
    centered, constants = _centered(graph, squared), tuple(found.constants)
    if centered is not None and centered[1] == axes:
        known = _centered(graph, found.others[0]) == centered
        return _Found(*centered, epsilon, constants, beta) if known else None
    return _Found(squared, axes, epsilon, constants, beta, centered=False) if squared is found.others[0] else None


def _apart(graph: QuantGraph, node: Node) -> _Found | None:
    """The sum x * a + (beta - mean * a), with a = gamma / sqrt(variance + epsilon), as TensorFlow has it."""
    for scaled, rest in (node.inputs, node.inputs[::-1]):
        shift = _maker(graph, rest)
        if shift is None or shift.op != "Sub" or not isinstance(shift.inputs[0], Constant):
            continue
        one, other = _product(graph, _maker(graph, scaled)), _product(graph, _maker(graph, shift.inputs[1]))
        if one is None or other is None or not len(one.others) == len(other.others) == len(one.roots) == 1:
            continue
        if other.roots != one.roots or {id(t) for t in one.constants} != {id(t) for t in other.constants}:
            continue
        x, root = one.others[0], one.roots[0]
        square = _mean_square(graph, root)
        centered = None if square is None else _centered(graph, square[0])
        if square is None or centered is None or centered[0] is not x:
            continue
        if centered[1] == square[1] == _mean_axes(graph, other.others[0], x):
            return _Found(x, *square[1:], tuple(one.constants), shift.inputs[0])
    return None


def _centered(graph: QuantGraph, tensor: Tensor) -> tuple[Tensor, int] | None:
    """X and the number of axes of x - mean(x)."""
    node = _maker(graph, tensor)
    if node is None or node.op != "Sub":
        return None
    x, mean = node.inputs
    axes = _mean_axes(graph, mean, x)
    return None if axes is None else (x, axes)


def _mean_axes(graph: QuantGraph, tensor: Tensor, x: Tensor) -> int | None:
    """Over how many last axes `tensor` is the mean of x, its axes kept."""
    node, rank = _maker(graph, tensor), rank_of(x)
    if node is None or node.op != "ReduceMean" or node.inputs[0] is not x or not node.attr("keepdims", 1) or not rank:
        return None
    axes = axes_of(node)
    counted = sorted(a % rank for a in axes) if axes else []
    return len(counted) if counted and counted == list(range(rank - len(counted), rank)) else None


def _mean_square(graph: QuantGraph, root: Node) -> tuple[Tensor, int, float] | None:
    """The d of sqrt(mean(d^2) + epsilon), over how many last axes its mean goes, and epsilon, which is positive."""
    total = _maker(graph, root.inputs[0])
    mean, constant = _behind_constant(graph, total) if total is not None and total.op == "Add" else (None, None)
    number = None if constant is None else number_of(graph.real(constant))
    if mean is None or mean.op != "ReduceMean" or number is None or not np.float32(number) > 0:
        return None
    square = _maker(graph, mean.inputs[0])
    axes = None if square is None else _mean_axes(graph, mean.outputs[0], square.outputs[0])
    if square is None or axes is None or not _is_square(graph, square):
        return None
    return square.inputs[0], axes, float(np.float32(number))


def _is_square(graph: QuantGraph, node: Node) -> bool:
    return node.inputs[0] is node.inputs[1] if node.op == "Mul" else node.op == "Pow" and _power(graph, node) == 2.0


def _power(graph: QuantGraph, node: Node) -> float | None:
    """The exponent of a Pow, None where it is no one number."""
    return number_of(graph.real(node.inputs[1]))

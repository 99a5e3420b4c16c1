"""Layer normalization as exporters write it out before opset 17:

    d = Sub(x, ReduceMean(x))
    Div(d, Sqrt(Add(ReduceMean(Pow(d, 2)), epsilon))) -> Mul(gamma) -> Add(beta)

The square may be a product, the division a product with a reciprocal, and Mul and Add may be left out. PyTorch computes
`x - mean` twice; what counts is that both subtract the same mean from the same tensor.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qatc.compiler.graph import Constant, Node, QuantGraph, Tensor, rank_of, shape_of, value_of
from qatc.compiler.passes.modernize import axes_of
from qatc.compiler.quant import Array


@dataclass(frozen=True)
class Unrolled:
    """A layer normalization: `gamma` and `beta` are float32 of the shape of the last axes of x, `names` theirs."""

    x: Tensor
    gamma: Array
    beta: Array | None
    epsilon: float
    names: tuple[str, str]


def unrolled(graph: QuantGraph, node: Node) -> Unrolled | None:
    """The layer normalization that `node` is the last operator of, None where it is none."""
    added = factor = None
    current: Node | None = node
    if node.op == "Add":
        current, added = _behind_constant(graph, node)
    if current is not None and current.op == "Mul" and any(isinstance(t, Constant) for t in current.inputs):
        current, factor = _behind_constant(graph, current)
    core = _core(graph, current)
    if core is None:
        return None
    x, axes, epsilon = core
    shape = shape_of(x)
    inner = None if shape is None else shape[len(shape) - axes :]
    if inner is None or not all(isinstance(size, int) for size in inner):
        return None
    sizes = tuple(size for size in inner if isinstance(size, int))
    gamma = np.ones(sizes, np.float32) if factor is None else _spread(graph, factor, sizes)
    beta = None if added is None else _spread(graph, added, sizes)
    if gamma is None or (added is not None and beta is None):
        return None
    end = node.outputs[0].name
    names = (factor.name if factor else f"{end}_ones", added.name if added else "")
    return Unrolled(x, gamma, beta, epsilon, names)


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
    if value.ndim > len(shape) or any(a not in (1, b) for a, b in zip(value.shape[::-1], shape[::-1], strict=False)):
        return None
    return np.ascontiguousarray(np.broadcast_to(value, shape))


def _core(graph: QuantGraph, node: Node | None) -> tuple[Tensor, int, float] | None:
    """(x - mean) / sqrt(variance + epsilon): x, how many last axes are normalized, epsilon."""
    if node is None or node.op not in ("Div", "Mul") or len(node.inputs) != 2:
        return None
    for distance, divisor in (node.inputs, node.inputs[::-1])[: 2 if node.op == "Mul" else 1]:
        root = _maker(graph, divisor)
        if node.op == "Mul" and root is not None:
            root = _maker(graph, root.inputs[0]) if root.op == "Reciprocal" else None
        centered = _centered(graph, distance)
        if centered is None or root is None or root.op != "Sqrt":
            continue
        variance, epsilon = _variance(graph, root)
        if variance is not None and variance[0] is centered[0] and variance[1] == centered[1] and epsilon > 0:
            return *centered, epsilon
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
    axes = axes_of(graph, node)
    counted = sorted(a % rank for a in axes) if axes else []
    return len(counted) if counted and counted == list(range(rank - len(counted), rank)) else None


def _variance(graph: QuantGraph, root: Node) -> tuple[tuple[Tensor, int] | None, float]:
    """What sqrt(mean((x - mean)^2) + epsilon) is the deviation of, and epsilon."""
    total = _maker(graph, root.inputs[0])
    if total is None or total.op != "Add":
        return None, 0.0
    mean, epsilon = _behind_constant(graph, total)
    if mean is None or epsilon is None or epsilon.values.size != 1:
        return None, 0.0
    square = _maker(graph, mean.inputs[0]) if mean.op == "ReduceMean" else None
    if square is None or not _is_square(square):
        return None, 0.0
    centered = _centered(graph, square.inputs[0])
    if centered is None or _mean_axes(graph, mean.outputs[0], square.outputs[0]) != centered[1]:
        return None, 0.0
    return centered, float(np.float32(epsilon.values.reshape(-1)[0]))


def _is_square(node: Node) -> bool:
    if node.op == "Mul":
        return node.inputs[0] is node.inputs[1]
    power = value_of(node.inputs[1]) if node.op == "Pow" else None
    return power is not None and power.size == 1 and float(power.reshape(-1)[0]) == 2.0

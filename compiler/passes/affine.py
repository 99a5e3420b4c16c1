"""Fold per-channel affine chains after a convolution or matrix product into its weight scales and bias.

    x -> Conv(W<s_w>, b) -> Div(d) -> BatchNormalization(g, beta, mean, var) -> y
    x -> Conv(W<s_w * |f|>, f * b + o) -> y         f = g / sqrt(var + eps) / d,  o = beta - mean * g / sqrt(var + eps)

The integers of the weight stay: a factor changes the scale of its channel, a negative one negates the channel's
integers as well, zero makes a constant channel (design rule 4.3). BatchNormalization, Mul, Div, Add, Sub and Neg fold
in any order, also across layout operators that keep the channel axis whole. A matrix product keeps its bias as one Add
behind it. PyTorch's ConvBn divides by what batch norm multiplies again; the two cancel, and at gamma = 0, where the
file says 0/0, the limit is taken and reported (QAT210).

The case that must stay: a raw result that somebody else reads too, and a weight that is not quantized.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from qatc.compiler.graph import Constant, Node, QuantGraph, Tensor, rank_of, shape_of
from qatc.compiler.model_io import label_of
from qatc.compiler.passes.movement import axis_through
from qatc.compiler.quant import QuantParams, dtype_range

Vector = npt.NDArray[np.float64]
_CANCELS = 1e-6  # a factor this near 1 is x / d * d computed in float32


@dataclass(frozen=True)
class Mac:
    """A convolution or matrix product with a constant weight: where its output channels are.

    `axis` is the weight's output-channel axis, `from_end` the channel axis of the result counted from the end.
    """

    node: Node
    weight: Constant
    axis: int
    from_end: int
    channels: int


def mac_of(graph: QuantGraph, node: Node) -> Mac | None:
    """What `node` multiplies by, if it is a convolution or product with a constant weight."""
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if not isinstance(weight, Constant) or node.domain:
        return None
    shape = weight.values.shape
    match node.op:
        case "Conv" if len(shape) >= 3:
            return Mac(node, weight, 0, 1 - len(shape), shape[0])
        case "ConvTranspose" if len(shape) >= 3 and node.attr("group", 1) == 1:
            return Mac(node, weight, 1, 1 - len(shape), shape[1])
        case "Gemm" if len(shape) == 2:
            axis = 0 if node.attr("transB", 0) else 1
            return Mac(node, weight, axis, -1, shape[axis])
        case "MatMul" if len(shape) == 2:
            return Mac(node, weight, 1, -1, shape[1])
        case _:
            return None


@dataclass
class _Chain:
    """out = factor * y + offset per channel, as far as the chain was followed; factor = numerator / denominator."""

    numerator: Vector
    denominator: Vector
    offset: Vector
    nodes: list[Node]

    def then(self, up: Vector, down: Vector, offset: Vector) -> None:
        safe = np.where(down == 0, 1.0, down)
        self.numerator, self.denominator = self.numerator * up, self.denominator * down
        self.offset = self.offset * up / safe + offset


def fold_affine(graph: QuantGraph) -> None:
    """Fold every affine chain of the graph, in one sweep."""
    gone: list[Node] = []
    for node in list(graph.nodes):
        mac = mac_of(graph, node)
        if mac is None or mac.weight.name not in graph.params:
            continue
        if node.op == "Gemm":
            _plain_gemm(graph, node)
            mac = mac_of(graph, node)
        if mac is not None and node.outputs[0].name not in graph.params:
            gone += _fold(graph, mac)
    graph.remove(gone)
    graph.sort()
    graph.clean()


def _plain_gemm(graph: QuantGraph, node: Node) -> None:
    """Alpha and beta of a Gemm with quantized weight go into the weight's scale and the bias."""
    alpha, beta = float(node.attr("alpha", 1.0)), float(node.attr("beta", 1.0))
    mac = mac_of(graph, node)
    bias = graph.real(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2].name else None
    if mac is None or (alpha, beta) == (1.0, 1.0) or (len(node.inputs) > 2 and node.inputs[2].name and bias is None):
        return
    if alpha != 1.0:
        _scale_weight(graph, mac, np.full(mac.channels, alpha))
    if bias is not None and beta != 1.0:
        node.inputs[2] = graph.constant(f"{node.inputs[2].name}_beta", (bias * np.float32(beta)).astype(np.float32))
    node.attrs.update(alpha=1.0, beta=1.0)


def _fold(graph: QuantGraph, mac: Mac) -> list[Node]:
    ones = np.ones(mac.channels)
    chain = _Chain(ones.copy(), ones.copy(), np.zeros(mac.channels), [])
    tensor, axis, last_add = mac.node.outputs[0], mac.from_end, None
    while tensor.name not in graph.params:
        node = graph.only_consumer(tensor)
        if node is None or node.domain:
            break
        step = _affine(graph, node, tensor, axis, mac.channels)
        if step is not None:
            chain.then(*step)
            chain.nodes.append(node)
            last_add = node
        else:
            moved = _through_layout(node, tensor, axis)
            if moved is None:
                break
            axis = moved
        tensor = node.outputs[0]
    if last_add is None or (mac.node.op == "MatMul" and _is_bias_alone(chain)):
        return []
    factor = _factor(graph, mac, chain)
    if factor is None:
        return []
    return _apply(graph, mac, chain, factor)


def _is_bias_alone(chain: _Chain) -> bool:
    return len(chain.nodes) == 1 and chain.nodes[0].op == "Add"


def _factor(graph: QuantGraph, mac: Mac, chain: _Chain) -> Vector | None:
    """The chain's factor per channel; None where it divides by zero for good."""
    zero = chain.denominator == 0
    label = label_of(mac.node)
    if (
        np.any(zero & (chain.numerator != 0))
        or not np.isfinite(chain.numerator).all()
        or not np.isfinite(chain.offset).all()
    ):
        graph.diagnostics.error(
            "QAT210",
            "the operators behind this node divide by zero or hold infinite values",
            node=label,
            hint="the batch-norm statistics of the trained model are damaged",
        )
        return None
    if zero.any():
        graph.diagnostics.warning(
            "QAT210",
            f"batch norm's gamma is 0 in {int(zero.sum())} of {zero.size} channels, where the export computes 0/0; "
            "the limit is taken: these channels are constant",
            node=label,
            hint="prune these channels, or keep gamma away from zero in training",
        )
    factor = np.where(zero, 0.0, chain.numerator / np.where(zero, 1.0, chain.denominator))
    factor[np.abs(factor - 1.0) < _CANCELS] = 1.0
    return factor


def _affine(graph: QuantGraph, node: Node, x: Tensor, axis: int, channels: int) -> tuple[Vector, Vector, Vector] | None:
    """(up, down, offset) with node(x) = x * up / down + offset per channel, or None where it is something else."""
    one, zero = np.ones(channels), np.zeros(channels)
    if node.op == "BatchNormalization":
        rank = rank_of(x) if rank_of(x) is not None else rank_of(node.outputs[0])
        values = [graph.real(t) for t in node.inputs[1:5]]
        if any(v is None or v.size != channels for v in values) or (rank is not None and axis != 1 - rank):
            return None
        gamma, beta, mean, var = (np.asarray(v, np.float64) for v in values)
        up = gamma / np.sqrt(var + float(node.attr("epsilon", 1e-5)))
        return up, one, beta - mean * up
    if node.op == "Neg":
        return -one, one, zero
    if node.op not in ("Mul", "Div", "Add", "Sub") or len(node.inputs) != 2:
        return None
    first = node.inputs[0] is x
    other = node.inputs[1] if first else node.inputs[0]
    vector = _per_channel(graph.real(other), axis, channels)
    if vector is None or (node.op == "Div" and not first):
        return None
    match node.op:
        case "Mul":
            return vector, one, zero
        case "Div":
            return one, vector, zero
        case "Add":
            return one, one, vector
        case _:
            return (one, one, -vector) if first else (-one, one, vector)


def _per_channel(value: npt.NDArray[Any] | None, axis: int, channels: int) -> Vector | None:
    """A broadcast constant as one number per channel, or None where it varies along another axis."""
    if value is None or value.dtype.kind != "f":
        return None
    if value.size == 1:
        return np.full(channels, float(value.reshape(-1)[0]))
    if value.ndim < -axis or value.shape[axis] != channels or value.size != channels:
        return None
    return value.reshape(-1).astype(np.float64)


def _through_layout(node: Node, x: Tensor, from_end: int) -> int | None:
    """Where the channel axis (from the end) is after a layout operator, None where it does not stay whole."""
    rank, out_rank = rank_of(x), rank_of(node.outputs[0])
    if rank is None or out_rank is None or node.op not in ("Reshape", "Squeeze", "Unsqueeze", "Transpose", "Flatten"):
        return None
    moved = axis_through(node, rank + from_end, shape_of(x), shape_of(node.outputs[0]))
    return None if moved is None else moved - out_rank


def _apply(graph: QuantGraph, mac: Mac, chain: _Chain, factor: Vector) -> list[Node]:
    node = mac.node
    _scale_weight(graph, mac, factor)
    if node.op == "MatMul":
        return _keep_bias(graph, chain)
    bias = np.zeros(mac.channels)
    if len(node.inputs) > 2 and node.inputs[2].name:
        known = graph.real(node.inputs[2])
        if known is None:
            return []
        bias = np.broadcast_to(known.astype(np.float64).reshape(-1), (mac.channels,))
    folded = (bias * factor + chain.offset).astype(np.float32)
    name = node.inputs[2].name if len(node.inputs) > 2 and node.inputs[2].name else f"{mac.weight.name}_bias"
    tensor = graph.constant(f"{name}_folded", folded)
    if len(node.inputs) > 2:
        node.inputs[2] = tensor
    else:
        node.inputs.append(tensor)
    for gone in chain.nodes:
        _skip(graph, gone)
    return chain.nodes


def _keep_bias(graph: QuantGraph, chain: _Chain) -> list[Node]:
    """A matrix product has no bias input: the chain's offset stays as one Add in the place of its last node."""
    if not chain.offset.any():
        for gone in chain.nodes:
            _skip(graph, gone)
        return chain.nodes
    last = chain.nodes[-1]
    for gone in chain.nodes[:-1]:
        _skip(graph, gone)
    data = next(t for t in last.inputs if not isinstance(t, Constant))
    offset = graph.constant(f"{last.outputs[0].name}_bias", chain.offset.astype(np.float32))
    last.op, last.attrs, last.domain = "Add", {}, None
    last.inputs = [data, offset]
    return chain.nodes[:-1]


def _skip(graph: QuantGraph, node: Node) -> None:
    """Take an affine node out of its chain: its data input stands for its output, which lends it its parameters."""
    data = next(t for t in node.inputs if not isinstance(t, Constant))
    out = node.outputs[0]
    for table in (graph.params, graph.origin):
        if out.name in table:
            table[data.name] = table.pop(out.name)  # type: ignore[assignment]
    graph.replace(out, data)


def _scale_weight(graph: QuantGraph, mac: Mac, factor: Vector) -> None:
    """Multiply the output channels of a quantized weight by `factor`; the integers change only in sign or to zero."""
    params = graph.params[mac.weight.name]
    if np.all(factor == 1.0):
        return
    integers = mac.weight.values
    if not params.is_per_channel and np.all(factor == factor[0]) and factor[0] > 0:
        scaled = replace(params, scale=(params.scale[0] * float(factor[0]),))
    else:
        integers, scaled = _scaled_channels(integers, params, mac.axis, factor)
    mac.node.inputs[1] = graph.constant(f"{mac.weight.name}_scaled", integers, scaled)


def _scaled_channels(
    integers: npt.NDArray[Any], params: QuantParams, axis: int, factor: Vector
) -> tuple[npt.NDArray[Any], QuantParams]:
    count = factor.size
    if params.is_per_channel and params.axis != axis:
        raise ValueError(f"weight channels lie along axis {params.axis}, its output channels along {axis}")
    spread = (
        params
        if params.is_per_channel
        else replace(params, scale=params.scale * count, zero_point=params.zero_point * count, axis=axis)
    )
    zeros = np.asarray(spread.zero_point)
    scales = np.asarray(spread.scale) * np.abs(factor)
    dead = scales < np.finfo(np.float32).tiny
    shape = [-1 if i == axis else 1 for i in range(integers.ndim)]
    flip = (factor < 0).reshape(shape)
    wide = integers.astype(np.int32)
    lowest, highest = dtype_range(params.dtype)
    # -q + 2z mirrors around the zero point; where that leaves the type, ~q = -q - 1 mirrors it onto zero point ~z
    mirrored = 2 * zeros.reshape(shape) - wide
    span = tuple(i for i in range(integers.ndim) if i != axis)
    outside = ((mirrored < lowest) | (mirrored > highest)).any(axis=span) & (factor < 0)
    complement = lowest + highest - wide
    result = np.where(flip, np.where(outside.reshape(shape), complement, mirrored), wide)
    zeros = np.where(outside, lowest + highest - zeros, zeros)
    result = np.where(dead.reshape(shape), zeros.reshape(shape), result)
    scales = np.where(dead, np.asarray(spread.scale), scales)
    qmin, qmax = (params.qmin, params.qmax)
    if (factor < 0).any():
        qmin, qmax = min(qmin, int(result.min(initial=qmin))), max(qmax, int(result.max(initial=qmax)))
    changed = QuantParams(tuple(scales.tolist()), tuple(int(z) for z in zeros), params.dtype, axis, qmin, qmax)
    return result.astype(params.container), changed

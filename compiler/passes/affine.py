"""Fold per-channel affine chains after a convolution or matrix product into its weight scales and bias.

    x -> Conv(W<s_w>, b) -> Div(d) -> BatchNormalization(g, beta, mean, var) -> y
    x -> Conv(W<s_w * |f|>, f * b + o) -> y         f = g / sqrt(var + eps) / d,  o = beta - mean * g / sqrt(var + eps)

The integers of the weight stay: a factor changes the scale of its channel, a negative one negates the channel's
integers as well, zero makes a constant channel. BatchNormalization, Mul, Div, Add, Sub and Neg fold
in any order, also across layout operators that keep the channel axis whole, and across MaxPool where no factor behind
it is negative. A matrix product keeps its bias as one Add behind it. PyTorch's ConvBn divides by what batch norm
multiplies again; the two cancel, and at gamma = 0, where the file says 0/0, the limit is taken and reported
(QAT210).

The case that must stay: a raw result that somebody else reads too, and a weight that is not quantized.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from qatc.compiler.diagnostics import printable
from qatc.compiler.graph import Constant, Node, QuantGraph, Tensor, rank_of
from qatc.compiler.model.links import label_of
from qatc.compiler.passes.movement import LAYOUT, MAXIMA, axis_through, is_value_blind
from qatc.compiler.passes.products import Mac, Vector, mac_of, per_channel
from qatc.compiler.passes.training import trains
from qatc.compiler.quant import LARGEST, SMALLEST, QuantParams, dtype_range

_AFFINE = frozenset({"BatchNormalization", "Mul", "Div", "Add", "Sub"})
_CANCELS = 1e-6  # a factor this near 1 is x / d * d computed in float32


@dataclass
class _Chain:
    """out = factor * y + offset per channel, as far as the chain was followed; factor = numerator / denominator.

    `nodes` are the affine operators, `layouts` the layout operators between them, in order.
    """

    numerator: Vector
    denominator: Vector
    offset: Vector
    nodes: list[Node]
    layouts: list[Node]

    def then(self, up: Vector, down: Vector, offset: Vector) -> None:
        safe = np.where(down == 0, 1.0, down)
        self.numerator, self.denominator = self.numerator * up, self.denominator * down
        self.offset = self.offset * up / safe + offset


@dataclass(frozen=True)
class Place:
    """A tensor on the way down a chain, its channel axis from the end, and its rank where that is known."""

    tensor: Tensor
    axis: int
    rank: int | None


def fold_affine(graph: QuantGraph) -> None:
    """Fold every affine chain of the graph, in one sweep."""
    folded = False
    for node in list(graph.nodes):
        mac = mac_of(node)
        if mac is None or mac.weight.name not in graph.params:
            continue
        if node.op == "Gemm":
            folded |= _plain_gemm(graph, mac)
            mac = mac_of(node)
        if mac is not None and node.outputs[0].name not in graph.params:
            folded |= _fold(graph, mac)
    if folded:
        graph.sort()
        graph.clean()


def _plain_gemm(graph: QuantGraph, mac: Mac) -> bool:
    """Alpha and beta of a Gemm with quantized weight go into the weight's scale and the bias; whether they did."""
    node = mac.node
    alpha, beta = float(node.attr("alpha", 1.0)), float(node.attr("beta", 1.0))
    own = node.optional(2)
    bias = None if own is None else graph.real(own)
    if (alpha, beta) == (1.0, 1.0) or (own is not None and bias is None) or not np.isfinite(beta):
        return False
    scaled = scaled_weight(mac.weight.values, graph.params[mac.weight.name], mac.axis, np.full(mac.channels, alpha))
    if scaled is None:
        return False
    _set_weight(graph, mac, scaled)
    if own is not None and bias is not None and beta != 1.0:
        node.inputs[2] = graph.constant(f"{own.name}_beta", (bias * np.float32(beta)).astype(np.float32))
    node.attrs.update(alpha=1.0, beta=1.0)
    return True


def _fold(graph: QuantGraph, mac: Mac) -> bool:
    """Fold the chain behind one node; whether it did. Nothing changes unless all of it can."""
    chain = _follow(graph, mac)
    alone = [n.op for n in chain.nodes] == ["Add"] and not chain.layouts
    if not chain.nodes or (mac.node.op == "MatMul" and alone):
        return False
    ops = ", ".join(n.op for n in chain.nodes)
    if mac.node.op == "Gemm" and mac.node.attr("beta", 1.0) != 1.0:
        _stays(graph, mac, ops, "its bias has a factor of its own")
        return False
    bias = _bias(graph, mac)
    if bias is None:
        _stays(graph, mac, ops, "its bias is not one constant per channel")
        return False
    factor = _factor(graph, mac, chain)
    if factor is None:
        return False
    scaled = scaled_weight(mac.weight.values, graph.params[mac.weight.name], mac.axis, factor)
    if scaled is None:
        _stays(graph, mac, ops, "its weight's scales cannot say that")
        return False
    graph.explain("affine", f"{ops} folded at {printable(label_of(mac.node))}")
    _set_weight(graph, mac, scaled)
    _set_bias(graph, mac, bias * factor + chain.offset)
    for node in chain.nodes:
        _skip(graph, node)
    for node in chain.layouts:  # what they move is no longer what the source file has under that name
        graph.rename(node.inputs[0], graph.fresh(f"{node.inputs[0].name}_folded"))
    return True


def _stays(graph: QuantGraph, mac: Mac, ops: str, why: str) -> None:
    graph.explain("affine", f"{ops} not folded at {printable(label_of(mac.node))}: {why}")


def _follow(graph: QuantGraph, mac: Mac) -> _Chain:
    """The affine chain behind a node, down to its last affine operator."""
    chain = _Chain(np.ones(mac.channels), np.ones(mac.channels), np.zeros(mac.channels), [], [])
    out = mac.node.outputs[0]
    place = Place(out, mac.from_end, rank_of(out) if mac.node.op == "MatMul" else mac.weight.values.ndim)
    passed: list[Node] = []
    pooled = False
    while place.tensor.name not in graph.params:
        node = _only_reader(graph, place.tensor)
        if node is None or node.domain:
            if any(n.op == "BatchNormalization" for n in graph.consumers(place.tensor)):
                _stays(graph, mac, "BatchNormalization", "its input is read elsewhere, too")
            break
        step = affine_of(graph, node, place, mac.channels)
        if step is None and node.op in _AFFINE:
            _stays(graph, mac, node.op, "the constant is not one number per channel")
        if step is not None and pooled and not (step[0] * step[1] >= 0).all():
            _stays(graph, mac, node.op, "it falls in some channels, behind a maximum")
            break
        if step is not None:
            chain.then(*step)
            chain.nodes.append(node)
            chain.layouts += passed
            passed = []
            place = replace(place, tensor=node.outputs[0])
            continue
        moved = _through_maximum(node, place) or _through_layout(node, place)
        if moved is None:
            break
        pooled = pooled or node.op in MAXIMA
        passed.append(node)
        place = moved
    return chain


def _only_reader(graph: QuantGraph, tensor: Tensor) -> Node | None:
    """The one node that reads the values of `tensor`; folding does not concern those that read its shape."""
    if graph.is_output(tensor):
        return None
    readers = [n for n in graph.consumers(tensor) if not is_value_blind(n)]
    return readers[0] if len(readers) == 1 else None


def _bias(graph: QuantGraph, mac: Mac) -> Vector | None:
    """The node's own bias per channel (zeros where it has none); None where it is not constant or not per channel."""
    bias = None if mac.node.op == "MatMul" else mac.node.optional(2)
    return np.zeros(mac.channels) if bias is None else per_channel(graph.real(bias), -1, mac.channels)


def _factor(graph: QuantGraph, mac: Mac, chain: _Chain) -> Vector | None:
    """The chain's factor per channel; None where it divides by zero for good: it stays as it is."""
    zero = chain.denominator == 0
    label = label_of(mac.node)
    finite = np.isfinite(chain.numerator) & np.isfinite(chain.denominator) & np.isfinite(chain.offset)
    if not finite.all():
        graph.diagnostics.error(
            "QAT210",
            "the operators behind this node hold infinite values, or values that are no numbers",
            node=label,
            hint="the batch-norm statistics of the trained model are damaged",
        )
        return None
    infinite = zero & (chain.numerator != 0)
    if infinite.any():
        graph.diagnostics.warning(
            "QAT210",
            f"the operators behind this node divide {int(infinite.sum())} of {infinite.size} channels by zero; they"
            " stay float and compute what the source computes",
            node=label,
            hint="mend the constant that is divided by, or prune these channels",
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


def affine_of(graph: QuantGraph, node: Node, place: Place, channels: int) -> tuple[Vector, Vector, Vector] | None:
    """(up, down, offset) with node(x) = x * up / down + offset per channel, or None where it is something else."""
    one, zero = np.ones(channels), np.zeros(channels)
    if node.op == "BatchNormalization":
        return _batch_norm(graph, node, place, channels)
    if node.op == "Neg":
        return -one, one, zero
    if node.op not in ("Mul", "Div", "Add", "Sub") or len(node.inputs) != 2:
        return None
    first = node.inputs[0] is place.tensor
    value = graph.real(node.inputs[1] if first else node.inputs[0])
    longest = -place.axis if place.rank is None else place.rank
    if value is None or value.ndim > longest:  # a longer one would give the result more dimensions
        return None
    vector = per_channel(value, place.axis, channels)
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


def _batch_norm(graph: QuantGraph, node: Node, place: Place, channels: int) -> tuple[Vector, Vector, Vector] | None:
    """The same for batch norm, whose channels are axis 1, in its inference form."""
    learned = [graph.real(t) for t in node.inputs[1:5]]
    values = [np.asarray(v, np.float64).reshape(-1) for v in learned if v is not None and v.size == channels]
    if len(values) != 4 or trains(node) or place.rank is None or place.axis != 1 - place.rank:
        return None
    gamma, beta, mean, var = values
    with np.errstate(invalid="ignore", divide="ignore"):  # damaged statistics are reported by the caller
        up = gamma / np.sqrt(var + float(node.attr("epsilon", 1e-5)))
        return up, np.ones(channels), beta - mean * up


def _through_layout(node: Node, place: Place) -> Place | None:
    """Where the channel axis is after a layout operator, None where it does not stay whole."""
    out = node.outputs[0]
    rank, out_rank = rank_of(place.tensor), rank_of(out)
    if rank is None or out_rank is None or node.op not in LAYOUT or node.inputs[0] is not place.tensor:
        return None
    moved = axis_through(node, rank + place.axis)
    return None if moved is None else Place(out, moved - out_rank, out_rank)


def _through_maximum(node: Node, place: Place) -> Place | None:
    """The same behind pooling for the largest of positions, which a rising function may be taken before."""
    if node.op not in MAXIMA or len(node.outputs) != 1 or place.rank is None or place.axis != 1 - place.rank:
        return None
    return replace(place, tensor=node.outputs[0])


def _skip(graph: QuantGraph, node: Node) -> None:
    """Take an affine node out of its chain: its data input stands for its output, under the output's name."""
    data, out = next(t for t in node.inputs if not isinstance(t, Constant)), node.outputs[0]
    name = out.name
    tables = cast("tuple[dict[str, Any], ...]", (graph.params, graph.origin, graph.shifted, graph.turned))
    told = [table.pop(name, None) for table in tables]
    graph.replace(out, data)
    if data.name != name:
        graph.rename(out, graph.fresh(f"{name}_folded"))
        graph.rename(data, name)
    for table, value in zip(tables, told, strict=True):
        if value is not None:
            table[name] = value


def _set_bias(graph: QuantGraph, mac: Mac, bias: Vector) -> None:
    """Give the node its folded bias: a third input, or for a matrix product, which has none, one Add behind it."""
    node = mac.node
    value = bias.astype(np.float32)
    if node.op == "MatMul":
        if value.any():
            out = node.outputs[0]
            raw = graph.variable(f"{out.name}_product", None, out.shape)
            node.outputs[0] = raw
            graph.insert("Add", [raw, graph.constant(f"{out.name}_bias", value)], [out], hint=f"{label_of(node)}_bias")
        return
    own = node.inputs[2].name if len(node.inputs) > 2 else ""
    if not own and not value.any():
        return
    tensor = graph.constant(f"{own or f'{mac.weight.name}_bias'}_folded", value)
    if len(node.inputs) > 2:
        node.inputs[2] = tensor
    else:
        node.inputs.append(tensor)


def _set_weight(graph: QuantGraph, mac: Mac, scaled: tuple[npt.NDArray[Any], QuantParams]) -> None:
    if scaled[1] != graph.params[mac.weight.name] or scaled[0] is not mac.weight.values:
        mac.node.inputs[1] = graph.constant(f"{mac.weight.name}_scaled", *scaled)


def scaled_weight(
    integers: npt.NDArray[Any], params: QuantParams, axis: int, factor: Vector
) -> tuple[npt.NDArray[Any], QuantParams] | None:
    """A quantized weight with its output channels (along `axis`) multiplied by `factor`; scales, signs, zeros change.

    None where that cannot be said: channels along another axis, or a scale that leaves float32 or is no number.
    """
    uniform = factor.size > 0 and bool(np.all(factor == factor[0]))
    scales = np.asarray(params.scale) * (factor[0] if uniform else 1.0)
    if uniform and np.all((scales >= SMALLEST) & (scales <= LARGEST)):
        return integers, replace(params, scale=tuple(scales.tolist()))
    if params.axis not in (None, axis) or not np.all(np.asarray(params.scale) * np.abs(factor) <= LARGEST):
        return None
    count = factor.size
    zeros = params.zero_point * (1 if params.is_per_channel else count)
    spread = replace(params, scale=params.scale * (count // len(params.scale)), zero_point=zeros, axis=axis)
    values, changed = _scaled_channels(integers, spread, axis, factor)
    return values, changed if integers.ndim else changed.channel(0)  # a single number has no axis


def _scaled_channels(
    integers: npt.NDArray[Any], params: QuantParams, axis: int, factor: Vector
) -> tuple[npt.NDArray[Any], QuantParams]:
    zeros = np.asarray(params.zero_point)
    scales = np.asarray(params.scale) * np.abs(factor)
    dead = scales < SMALLEST
    shape = [-1 if i == axis else 1 for i in range(integers.ndim)]
    wide = integers.astype(np.int64)
    lowest, highest = dtype_range(params.dtype)
    # -q + 2z mirrors around the zero point; where that leaves the type, ~q = -q - 1 mirrors it onto zero point ~z
    mirrored = 2 * zeros.reshape(shape) - wide
    span = tuple(i for i in range(integers.ndim) if i != axis)
    outside = ((mirrored < lowest) | (mirrored > highest)).any(axis=span) & (factor < 0)
    complement = lowest + highest - wide
    flipped = np.where(outside.reshape(shape), complement, mirrored)
    result = np.where((factor < 0).reshape(shape), flipped, wide)
    zeros = np.where(outside, lowest + highest - zeros, zeros)
    result = np.where(dead.reshape(shape), zeros.reshape(shape), result)
    scales = np.where(dead, np.asarray(params.scale), scales)
    qmin, qmax = min(params.qmin, int(result.min(initial=highest))), max(params.qmax, int(result.max(initial=lowest)))
    changed = QuantParams(tuple(scales.tolist()), tuple(int(z) for z in zeros), params.dtype, axis, qmin, qmax)
    return result.astype(params.container), changed

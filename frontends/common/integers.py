"""Operators on integers between QuantizeLinear and DequantizeLinear: what they clamp, move and fill in."""

from __future__ import annotations

from typing import Final

import numpy as np

from qatc.compiler.graph import Constant, Node, QuantGraph, Tensor, is_constant, value_of
from qatc.compiler.model.links import maker_of
from qatc.compiler.model.protos import MICROSOFT
from qatc.compiler.passes.movement import is_movement, joined
from qatc.compiler.quant import DTYPES, Array, dtype_name
from qatc.frontends.common.params import linear_params

WIDEST: Final = (-(2**63), 2**63 - 1)
ON_INTEGERS: Final = frozenset({"Cast", "Clip", "Relu", "Min", "Max", "Concat"})
FAR: Final = 64  # operators: to go further back from each of many tensors would take forever
_DOMAINS: Final = frozenset({"", MICROSOFT})
_QDQ: Final = frozenset({"QuantizeLinear", "DequantizeLinear"})


def is_q(node: Node) -> bool:
    """Whether the node is a QuantizeLinear (ai.onnx or com.microsoft)."""
    return node.op == "QuantizeLinear" and (node.domain or "") in _DOMAINS


def is_dq(node: Node) -> bool:
    """Whether the node is a DequantizeLinear (ai.onnx or com.microsoft)."""
    return node.op == "DequantizeLinear" and (node.domain or "") in _DOMAINS


def quantizers(graph: QuantGraph) -> list[Node]:
    """Every QuantizeLinear and DequantizeLinear, in order."""
    return [n for n in graph.nodes if n.op in _QDQ and (n.domain or "") in _DOMAINS]


def source_of(graph: QuantGraph, tensor: Tensor) -> Node | None:
    """What makes integers that are only moved and clamped since; of very many times the last."""
    maker = graph.producer(tensor)
    for _ in range(FAR):
        if maker is None or not (is_movement(maker) or maker.op == "Clip"):
            break
        maker = graph.producer(maker.inputs[0])
    return maker


def data_of(node: Node) -> list[Tensor]:
    """The operands whose integers an operator moves or clamps; none where it does neither."""
    if node.op in ("Concat", "Min", "Max"):
        return [t for t in node.inputs if t.name]
    if node.op == "Where":
        return joined(node)
    return node.inputs[:1] if node.op in ON_INTEGERS or is_movement(node) else []


def constant_of(x: Tensor) -> tuple[Array | None, tuple[int, int]]:
    """The integers of a constant, and the range that a Clip on them states."""
    value = value_of(x)
    if value is not None:
        return value, WIDEST
    clip = maker_of(x)
    if clip is None or not clips_weight(clip):
        return None, WIDEST
    bounds = _clip_bounds(clip)
    return (None, WIDEST) if bounds is None else (value_of(clip.inputs[0]), bounds)


def padding_of(node: Node) -> int | None:
    """The integer that a Pad fills with; None for other operators and modes."""
    if node.op != "Pad" or node.attr("mode", "constant") != "constant":
        return None
    given = value_of(node.optional(2))
    return 0 if given is None or not given.size else int(given.reshape(-1)[0])


def fold_fills(graph: QuantGraph) -> None:
    """Make what a Pad of integers fills with a constant of integers, where a QuantizeLinear makes it of a real one."""
    for node in graph.of("Pad"):
        maker = graph.producer(node.inputs[2]) if len(node.inputs) > 2 else None
        if maker is None or not is_q(maker) or not all(map(is_constant, maker.inputs)) or len(maker.inputs) < 3:
            continue
        real, scale = (value_of(t) for t in maker.inputs[:2])
        if real is None or scale is None or real.size != 1 or scale.size != 1:
            continue
        params = linear_params(graph, maker)
        if params is not None:
            integers = params.quantize(real.astype(np.float32)).astype(params.container)
            node.inputs[2] = graph.constant(node.inputs[2].name, integers)


def clips_weight(node: Node) -> bool:
    """Whether the node is a Clip of constant integers for a DequantizeLinear: folding it would lose the range."""
    return (
        node.op == "Clip"
        and isinstance(node.inputs[0], Constant)
        and dtype_name(node.inputs[0].values.dtype) in DTYPES
        and any(is_dq(reader) for reader in node.outputs[0].outputs)  # type: ignore[arg-type]
    )


def _clip_bounds(node: Node) -> tuple[int, int] | None:
    ends: list[int] = [*WIDEST]
    for index, tensor in enumerate(node.inputs[1:3]):
        if not tensor.name:
            continue
        value = value_of(tensor)
        if value is None or value.size != 1:
            return None
        ends[index] = int(value.reshape(-1)[0])
    return min(ends), ends[1]


def clamp_of(node: Node, tensor: Tensor) -> tuple[int, int] | None:
    """The bounds that an operator clamps the integers in `tensor` to, if that is all it does and they are constant."""
    low, high = WIDEST
    match node.op:
        case "Relu":
            return 0, high
        case "Clip":
            return _clip_bounds(node)
        case "Min" | "Max":
            others = [value_of(t) for t in node.inputs if t is not tensor]
            if len(node.inputs) != 2 or len(others) != 1 or others[0] is None or others[0].size != 1:
                return None
            bound = int(others[0].reshape(-1)[0])
            return (low, bound) if node.op == "Min" else (bound, high)
        case _:
            return None

"""Whole numbers by arithmetic: signs, steps and roundings lie on a grid of step one, which a product reads as integers.

    x -> Sign -> Add(0.1) -> Sign -> Conv(w)       x -> Sign -> Add(0.1) -> Sign -> FakeQuant[-1, 1] -> Conv(w)
    x -> Greater(0) -> Where(1, -1) -> Conv(w)     x -> Greater(0) -> Where(1, -1) -> FakeQuant[-1, 1] -> Conv(w)
    x -> Clip(0, 3) -> Round -> Conv(w)            x -> FakeQuant[0, 3] -> Conv(w)
    x -> Mul(20) -> Round -> Clip -> Conv(w)       x -> Mul(20) -> FakeQuant -> Conv(w)
    x -> Round -> Add(z) -> Clip -> Sub(z) -> Conv(w)     likewise, around the zero point z

larq writes so what it binarizes, without a zero. QKeras writes s + (1 - |s|) of a sign s, and PyTorch takes 1 where s
is zero; both become larq's form. QKeras's ternary activations are Cast(|x| >= t) * Sign(x). The sign of a product's sum
becomes that product's own result (the lowering's `signs.py`); any other is taken in float. Optimizers leave such
roundings, too: onnxsim moves the scale of a convolution's data into its weights.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx

from qatc.compiler.graph import FAKE_QUANT, Node, QuantGraph, Tensor, shape_of
from qatc.compiler.model.links import is_op, maker_of
from qatc.compiler.passes.modernize import element_type
from qatc.compiler.passes.movement import is_movement
from qatc.compiler.passes.products import is_product
from qatc.compiler.quant import QuantParams, dtype_range, number_of
from qatc.frontends.common.chains import State, backward, forward, start
from qatc.frontends.common.clamps import COMPARISONS, condition_of
from qatc.frontends.common.qdq import fake_quantize, to_fake_quant
from qatc.frontends.common.straight_through import broadcasts, keeps_shape

_SIGNS: Final = QuantParams.per_tensor(1.0, 0, "int8", -1, 1)
_MAKERS: Final = frozenset({"Mul", "Round", "Sign", "Where"})  # of signs, steps and whole numbers
_BYTES: Final = ("uint8", "int8")
_FLOATS: Final = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
_STEPS: Final = 255  # of a byte
_LONGEST: Final = 8  # operators between what makes whole numbers and the product that reads them
_BETWEEN: Final = frozenset({"Sign", "Where", "Add", "Sub", "Mul", "Div", "Cast", "Clip", "Pad", "Identity"})


def reaches_product(graph: QuantGraph, node: Node) -> bool:
    """Whether a node makes signs or other whole numbers that soon meet a product, as far as a look can tell."""
    if _whole(graph, node) is None and not is_op(node, "Sign") and not _is_step(graph, node):
        return False
    near = [node]
    for _ in range(_LONGEST):
        readers = [n for m in near for n in itertools.islice(m.outputs[0].outputs, _LONGEST) if isinstance(n, Node)]
        if any(map(is_product, readers)):
            return True
        near = [n for n in readers if not n.domain and (n.op in _BETWEEN or is_movement(n))][:_LONGEST]
    return False


def quantize_signs(graph: QuantGraph) -> None:
    """Put signs, steps and rounded clamps onto their grid where a product with quantized weights reads them.

    No value changes.
    """
    before = len(graph.nodes)
    for node in graph.of("Add"):
        _take_zero_for_positive(graph, node)
    for node in graph.of("Where"):
        _choose_one_for_zero(graph, node)
    made = [(n, _whole(graph, n)) for n in graph.nodes if n.op in _MAKERS]
    rounded = {id(whole.last) for _, whole in made if whole is not None}
    for node, whole in made:
        if whole is not None and _meets_weights(graph, whole.last.outputs[0], rounded):
            _quantize_to_ones(graph, whole)
        elif whole is None and _makes_signs(graph, node) and _meets_weights(graph, node.outputs[0], rounded):
            fake_quantize(graph, node.outputs[0], _SIGNS)
    if len(graph.nodes) > before:
        graph.sort()


def _quantize_to_ones(graph: QuantGraph, whole: _Whole) -> None:
    low, high = whole.low, whole.high
    dtype = next((d for d in _BYTES if _holds(d, (low, high))), None)
    zero = 0 if dtype is not None else -low  # numbers beyond both types are counted from their lowest on
    whole.last.inputs = [whole.source]
    to_fake_quant(graph, whole.last, QuantParams.per_tensor(1.0, zero, dtype or "uint8", low + zero, high + zero))


@dataclass(frozen=True)
class _Whole:
    """A rounding to whole numbers between two of them: what it reads, its last operator, and its ends."""

    source: Tensor
    last: Node
    low: int
    high: int


def _whole(graph: QuantGraph, node: Node) -> _Whole | None:
    """What a Round makes, with the clamps around it, and with a zero point that is added and taken off again.

    None where nothing bounds it on both sides, or where a byte does not hold it.
    """
    if not is_op(node, "Round"):
        return None
    found: _Whole | None = None
    for end in itertools.chain([start(node.outputs[0])], forward(graph, node.outputs[0])):
        if not _counts_ones(end):
            break
        last = graph.producer(end.tensor) or node
        for begin in backward(graph, node.inputs[0]):
            if not _counts_ones(begin):
                break
            if (begin.offset + end.offset).item() == 0 and (ends := _ends(begin, end)) is not None:
                found = _Whole(begin.tensor, last, *ends)
    return found


def _counts_ones(state: State) -> bool:
    """Whether a state is the rounded value, moved by a whole number."""
    if state.scale.size > 1 or state.offset.size > 1 or element_type(state.tensor) not in (None, 0, *_FLOATS):
        return False
    return state.scale.item() == 1 and state.offset.item().is_integer()


def _ends(begin: State, end: State) -> tuple[int, int] | None:
    low, high = -math.inf, math.inf
    for clamp in (*begin.clamps, *end.clamps):
        low, high = max(low, clamp.low - clamp.offset.item()), min(high, clamp.high - clamp.offset.item())
    low, high = low + end.offset.item(), high + end.offset.item()
    if not (low.is_integer() and high.is_integer() and low <= 0 <= high):
        return None
    return (int(low), int(high)) if high - low <= _STEPS else None


def _holds(dtype: str, bounds: tuple[int, int]) -> bool:
    low, high = dtype_range(dtype)
    return low <= bounds[0] <= bounds[1] <= high


def _is_step(graph: QuantGraph, node: Node) -> bool:
    """Whether a Where chooses by comparison between two of -1, 0 and 1."""
    condition = maker_of(node.inputs[0]) if is_op(node, "Where") else None
    if not is_op(condition, *COMPARISONS):
        return False
    sides = [graph.real(t) for t in node.inputs[1:]]
    return all(v is not None and v.size and np.isin(v, (-1.0, 0.0, 1.0)).all() for v in sides)


def _choose_one_for_zero(graph: QuantGraph, node: Node) -> None:
    """Make Sign(s + 0.5) of 1 where a sign s is zero, and s elsewhere; likewise of -1."""
    condition, signs = graph.producer(node.inputs[0]), node.inputs[2]
    chosen = _number(graph, node.inputs[1], signs)
    if not is_op(condition, "Equal") or not is_op(graph.producer(signs), "Sign"):
        return
    compared = [t for t in condition.inputs if t is not signs]
    if len(compared) == 1 and _number(graph, compared[0], signs) == 0 and chosen is not None and abs(chosen) == 1:
        _sign_of_sum(graph, node, signs, chosen / 2)


def _number(graph: QuantGraph, tensor: Tensor, data: Tensor) -> float | None:
    """The one number that a constant holds, which arithmetic with `data` spreads over it."""
    value = graph.real(tensor)
    if value is None or value.dtype.kind not in "fiu" or not value.size or not keeps_shape(value, data):
        return None
    first = value.reshape(-1)[0]
    return float(first) if np.all(value == first) else None


def _sign_of_sum(graph: QuantGraph, node: Node, signs: Tensor, number: float) -> None:
    name = node.outputs[0].name
    half = graph.constant(f"{name}_half", np.asarray(number, np.float32))
    kind, shape, own = element_type(signs), shape_of(signs), f"{node.name}_shifted"
    shifted = graph.apply("Add", [signs, half], f"{name}_shifted", kind, shape, name=own)
    node.op, node.inputs = "Sign", [shifted]


def _take_zero_for_positive(graph: QuantGraph, node: Node) -> None:
    """Make Sign(s + 0.5) of s + (1 - |s|), where s is a sign."""
    for signs, rest in (node.inputs, node.inputs[::-1]):
        sign, difference = graph.producer(signs), graph.producer(rest)
        if not is_op(sign, "Sign") or not is_op(difference, "Sub"):
            continue
        one, absolute = graph.real(difference.inputs[0]), graph.producer(difference.inputs[1])
        if number_of(one) != 1 or absolute is None or broadcasts(sign.inputs[0], difference.inputs[0]):
            continue
        if is_op(absolute, "Abs") and absolute.inputs[0] is signs:
            _sign_of_sum(graph, node, signs, 0.5)
            return


def _makes_signs(graph: QuantGraph, node: Node) -> bool:
    """Whether all that a node can make is -1, 0 and 1: a sign, or one where a condition holds and 0 elsewhere."""
    if is_op(node, "Mul"):
        return any(
            is_op(graph.producer(signs), "Sign") and condition_of(graph, factor) is not None
            for signs, factor in (node.inputs, node.inputs[::-1])
        )
    return is_op(node, "Sign") or _is_step(graph, node)


def _meets_weights(graph: QuantGraph, signs: Tensor, rounded: Collection[int]) -> bool:
    """Whether a product multiplies what is only moved by what lies on a grid, or is `rounded` to whole numbers, too."""
    waiting, seen = [signs], {id(signs)}
    for tensor in waiting:
        for node in dict.fromkeys(graph.consumers(tensor)):
            if is_product(node) and _other_is_quantized(graph, node, tensor, rounded):
                return True
            if is_movement(node) and node.inputs[0] is tensor and id(node.outputs[0]) not in seen:
                seen.add(id(node.outputs[0]))
                waiting.append(node.outputs[0])
    return False


def _other_is_quantized(graph: QuantGraph, node: Node, tensor: Tensor, rounded: Collection[int]) -> bool:
    other = node.inputs[1] if node.inputs[0] is tensor else node.inputs[0]
    while (maker := graph.producer(other)) is not None and is_movement(maker):
        other = maker.inputs[0]
    on_grid = maker is not None and (maker.op == FAKE_QUANT or id(maker) in rounded)
    return on_grid or graph.quant(other) is not None

"""Roundings to the nearest number written in other ways become Round, so that whatever looks for quantizers sees one.

Sign(x) * Floor(|x| + 0.5)                       Round(x)            micronet; half away from zero, as C rounds
Sign(x) * Round(|x| * n) / n                     Round(x * n) / n    APoT, and whatever else quantizes magnitudes
Sign(v) * Floor(|v|), v = x + 0.5 * Sign(x)      Round(x)            torch.trunc
Where(x >= 0, Floor(x + 0.5), Ceil(x - 0.5))     Round(x)
-Floor(-x + 0.5), Ceil(x - 0.5)                  Round(x)            half down (HGQ2's RND_MIN_INF, RND_ZERO)
Sign(x) * Floor(|x|), x >= 0                     Floor(x)            rounding toward zero
Floor(Clip(x, a, b))                             Clip(Floor(x), Floor(a), Floor(b))        and so Ceil
QuantizeLinear(x + c * Sign(x))                  QuantizeLinear(x)   c a millionth of its step (TinyNeuralNetwork)

They differ from it on exact ties at most. A clamp of the magnitude to [0, n] is one of the number to [-n, n].
"""

from __future__ import annotations

from typing import Final

import numpy as np

from qatc.compiler.graph import FAKE_QUANT, Node, QuantGraph, Tensor, shape_of, value_of
from qatc.compiler.model.links import is_op
from qatc.compiler.passes.modernize import element_type
from qatc.compiler.quant import QuantParams, number_of
from qatc.compiler.rewrite import Rules, sweep
from qatc.frontends.common.chains import CLAMPS, affine_of, bounds_of, variable_of
from qatc.frontends.common.clamps import COMPARISONS
from qatc.frontends.common.integers import FAR, is_q

_RULES: Final = Rules("roundings")
_SIGN_KEPT: Final = frozenset(
    {"AveragePool", "GlobalAveragePool", "Mul", "Div", "MaxPool", "Reshape", "Flatten", "Transpose"}
)
_LONGEST: Final = 8  # operators between a magnitude and its sign
_NUDGE: Final = 1e-5  # of a step; float32 itself rounds a number of 255 steps by more
_Step = tuple[str, list[Tensor]]  # an operator of one number, and its constants


def rewrite(graph: QuantGraph) -> int:
    """Rewrite a modernized graph with folded constants in place; returns how many roundings were found."""
    return sweep(graph, _RULES)


# -- magnitudes ---------------------------------------------------------------------------------------------------


@_RULES.on("Mul")
def of_magnitude(graph: QuantGraph, node: Node) -> bool:
    """A magnitude that is rounded, and given its sign again."""
    for signs, magnitude in (node.inputs, node.inputs[::-1]):
        sign = graph.producer(signs)
        if not is_op(sign, "Sign"):
            continue
        if (found := _magnitude(graph, magnitude)) is None:
            if _toward_zero(graph, node, sign, magnitude):
                return True
            continue
        signed = _less_half_of_sign(graph, sign.inputs[0]) or sign.inputs[0]
        if not _same_sign(graph, signed, found[0]):
            continue
        result, steps = found
        for op, constants in steps:
            name = f"{node.outputs[0].name}_signed"
            result = graph.apply(op, [result, *constants], name, element_type(result), shape_of(result), name=node.name)
        graph.replace(node.outputs[0], result)
        return True
    return False


def _magnitude(graph: QuantGraph, tensor: Tensor) -> tuple[Tensor, list[_Step]] | None:
    """What a tensor takes the magnitude of, and what it does with that, rounding it among others.

    All steps are made odd functions: of -x they make what they make of x, with a minus.
    """
    steps: list[_Step] = []
    for _ in range(_LONGEST):
        node = graph.producer(tensor)
        if node is None or node.domain:
            return None
        if node.op == "Abs":
            return (node.inputs[0], steps[::-1]) if any(op == "Round" for op, _ in steps) else None
        data = variable_of(node)
        if data is None:
            return None
        if node.op == "Round":
            steps.append(("Round", []))
        elif node.op == "Floor":
            steps.append(("Round", []))
            less, size = less_half(graph, data), graph.producer(data)
            if less is None:
                x = _less_half_of_sign(graph, size.inputs[0]) if is_op(size, "Abs") else None
                return None if x is None else (x, steps[::-1])
            data = less
        elif (bounds := _keeping_sign(graph, node, data)) is None:
            return None
        elif node.op not in CLAMPS:
            steps.append((node.op, [t for t in node.inputs if t is not data]))
        elif np.isfinite(bounds[1]):
            steps.append(("Clip", _ends(graph, node, data, bounds[1])))
        tensor = data
    return None


def _ends(graph: QuantGraph, node: Node, data: Tensor, end: float) -> list[Tensor]:
    """-end and end, in the type of a clamp's own constants."""
    stated = next(v for t in node.inputs if t is not data and (v := graph.real(t)) is not None)
    return [graph.constant(f"{node.outputs[0].name}_end", np.asarray(v, stated.dtype)) for v in (-end, end)]


def less_half(graph: QuantGraph, tensor: Tensor, half: float = 0.5) -> Tensor | None:
    """The number to which `half` is added."""
    node = graph.producer(tensor)
    data = variable_of(node) if is_op(node, "Add", "Sub") else None
    affine = affine_of(node, data) if node is not None and data is not None else None
    return data if affine is not None and np.all(affine[0] == 1) and np.all(affine[1] == half) else None


def _less_half_of_sign(graph: QuantGraph, tensor: Tensor) -> Tensor | None:
    """The number to which half of its sign is added."""
    found = _less_part_of_sign(graph, tensor)
    return found[0] if found is not None and found[1] == 0.5 else None


def _less_part_of_sign(graph: QuantGraph, tensor: Tensor) -> tuple[Tensor, float] | None:
    """The number to which its sign is added, and how many times that is."""
    total = graph.producer(tensor)
    for x, part in (total.inputs, total.inputs[::-1]) if is_op(total, "Add") else ():
        product = graph.producer(part)
        for signs, factor in (product.inputs, product.inputs[::-1]) if is_op(product, "Mul") else ():
            sign, times = graph.producer(signs), number_of(graph.real(factor))
            if times is not None and is_op(sign, "Sign") and sign.inputs[0] is x:
                return x, times
    return None


def _same_sign(graph: QuantGraph, signed: Tensor, x: Tensor) -> bool:
    """Whether x has the sign of another tensor wherever it is not zero, as far as single numbers scale and clamp."""
    for _ in range(_LONGEST):
        if x is signed:
            return True
        node = graph.producer(x)
        data = variable_of(node)
        if node is None or data is None:
            return False
        if _keeping_sign(graph, node, data) is None:
            return False
        x = data
    return False


def _keeping_sign(graph: QuantGraph, node: Node, data: Tensor) -> tuple[float, float] | None:
    """What an operator clamps numbers to, or scales them without bounds, so that none gets another sign; else None."""
    affine = affine_of(node, data)
    if affine is not None:
        return (-np.inf, np.inf) if np.all(affine[0] > 0) and np.all(affine[1] == 0) else None
    bounds = bounds_of(graph, node, data)
    return bounds if bounds is not None and bounds[0] <= 0 <= bounds[1] else None


@_RULES.on("Neg", "Ceil")
def half_down(graph: QuantGraph, node: Node) -> bool:
    """Ceil(x - 0.5), which may be written by Floor."""
    if node.op == "Ceil":
        x = less_half(graph, node.inputs[0], -0.5)
    else:
        floor = graph.producer(node.inputs[0])
        half = less_half(graph, floor.inputs[0]) if is_op(floor, "Floor") else None
        negative = graph.producer(half) if half is not None else None
        x = negative.inputs[0] if is_op(negative, "Neg") else None
    if x is None:
        return False
    node.op, node.inputs = "Round", [x]
    return True


def _toward_zero(graph: QuantGraph, node: Node, sign: Node, magnitude: Tensor) -> bool:
    """Sign(x) * Floor(|x|) of what is never negative."""
    floor = graph.producer(magnitude)
    size = graph.producer(floor.inputs[0]) if is_op(floor, "Floor") else None
    if not is_op(size, "Abs") or size.inputs[0] is not sign.inputs[0] or not never_negative(graph, size.inputs[0]):
        return False
    node.op, node.inputs = "Floor", [size.inputs[0]]
    return True


def never_negative(graph: QuantGraph, tensor: Tensor) -> bool:
    """Whether a tensor is known to hold no negative number."""
    current = tensor
    for _ in range(FAR):
        node = graph.producer(current)
        if node is None:
            break
        if node.op == FAKE_QUANT:
            params: QuantParams = node.attrs["params"]
            return params.qmin >= max(params.zero_point)
        if node.op in ("Relu", "Sigmoid", "Softmax", "Abs"):
            return True
        factor = graph.real(node.inputs[1]) if node.op in ("Mul", "Div") else np.ones(1)
        if node.op not in _SIGN_KEPT:
            return False
        if factor is None or np.any(factor <= 0):
            return False
        current = node.inputs[0]
    return False


@_RULES.on("Sign")
def half_away_by_nudge(graph: QuantGraph, node: Node) -> bool:
    """A number that is moved away from zero by next to nothing, so that a tie is rounded as TFLite rounds it."""
    product = graph.only_consumer(node.outputs[0])
    total = graph.only_consumer(product.outputs[0]) if is_op(product, "Mul") else None
    found = _less_part_of_sign(graph, total.outputs[0]) if total is not None else None
    if total is None or found is None:
        return False
    changed = False
    for reader in graph.consumers(total.outputs[0]):
        scale = value_of(reader.inputs[1]) if is_q(reader) else None
        if scale is not None and 0 <= found[1] <= _NUDGE * scale.min(initial=np.inf):
            reader.inputs[0], changed = found[0], True
    return changed


# -- choices, and clamps under them -------------------------------------------------------------------------------


@_RULES.on("Where")
def half_away_by_choice(graph: QuantGraph, node: Node) -> bool:
    """Floor(x + 0.5) where x is not negative, and Ceil(x - 0.5) elsewhere, which is a Round by now."""
    condition, *sides = (graph.producer(t) for t in node.inputs)
    if not is_op(condition, *COMPARISONS):
        return False
    down, up = sides if condition.op.startswith("Greater") else sides[::-1]
    if not is_op(down, "Floor") or not is_op(up, "Round") or number_of(graph.real(condition.inputs[1])) != 0:
        return False
    x = less_half(graph, down.inputs[0])
    if x is None or x is not up.inputs[0] or x is not condition.inputs[0]:
        return False
    node.op, node.inputs = "Round", [x]
    return True


@_RULES.on("Floor", "Ceil")
def clamped_before(graph: QuantGraph, node: Node) -> bool:
    """A clamp that is rounded down is a clamp of what is rounded down, and so upwards."""
    rounded_to = np.floor if node.op == "Floor" else np.ceil
    clamp = graph.producer(node.inputs[0])
    if not is_op(clamp, "Clip", "Min", "Max") or graph.only_consumer(node.inputs[0]) is not node:
        return False
    data = variable_of(clamp)
    if data is None or bounds_of(graph, clamp, data) is None:
        return False
    for index, tensor in enumerate(clamp.inputs):
        if tensor is not data and (value := graph.real(tensor)) is not None:
            clamp.inputs[index] = graph.constant(f"{tensor.name}_floor", rounded_to(value))
    rounded = graph.apply(node.op, [data], f"{node.outputs[0].name}_unclamped", element_type(data), shape_of(data))
    clamp.inputs[next(i for i, t in enumerate(clamp.inputs) if t is data)] = rounded
    graph.replace(node.outputs[0], clamp.outputs[0])
    return True

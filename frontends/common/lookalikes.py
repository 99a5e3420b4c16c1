"""Roundings that look like the heads of quantizers: which to keep from being folded, and what to say of the rest.

    w (constant) -> Round -> Clip -> Mul(s)                            kept until `arithmetic.py` has seen it
    x -> ReduceMax -> Div -> s     x -> Div(s) -> Round -> Clip -> Mul(s)           QAT205: a scale found at run time

A look goes a few operators far, whatever the constants are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np

from qatc.compiler.graph import Node, QuantGraph, Tensor, is_constant, shape_of, value_of
from qatc.compiler.model.links import is_op, label_of, maker_of
from qatc.compiler.passes.movement import is_movement, is_value_blind
from qatc.compiler.passes.products import is_product
from qatc.compiler.quant import Array
from qatc.compiler.rewrite import NoMatch
from qatc.frontends.common import arithmetic
from qatc.frontends.common.chains import CLAMPS, LONGEST
from qatc.frontends.common.clamps import COMPARISONS
from qatc.frontends.common.params import quantized_dtype
from qatc.frontends.common.rounded import STATIC, extreme_behind

_ROUNDINGS: Final = frozenset({"Round", "Floor", "Ceil"})
_BEFORE_THE_SCALE: Final = frozenset({"Add", "Sub", "Cast", "CastLike", "Identity", "Neg", "Where", "Transpose"})
_FARTHEST: Final = 2 * LONGEST  # operators from a Round to its scale: a quantizer's, and a clamp in another type
_PROBED: Final = 64  # elements that are looked at before all are
_FEWEST, _BYTE = 3.0, 255.0  # the largest whole number of a weight that was quantized
_ON_A_GRID: Final = "integers need real = scale * (q - zero_point), a whole zero_point, and a clamp on both sides"
_SATURATE: Final = (
    "train and export with quantizers that clamp (HGQ2: overflow_mode='SAT', also for activations, where 'WRAP' is the"
    " default): the same numbers wherever nothing overflows"
)
_SCALING: Final = frozenset({"Sub", "Mul", "Div", "Cast", "CastLike", "Identity"})


def heads_quantizer(node: Node) -> bool:
    """Whether a Round (of a constant weight) starts what looks like a quantizer: folding it would lose its integers."""
    if node.op not in _ROUNDINGS or node.domain:  # asked of every node: without a call
        return False
    found = _scaling(node)
    return found is not None and not _is_offset(node, found[0].outputs[0])


def _is_offset(node: Node, scaled: Tensor) -> bool:
    """Whether rounded constants are added to more elements than they are themselves: a zero point, in real numbers.

    s = (max - min) / 256 and z = Round(min / s) * s; what is rounded then is w - z.
    """
    value, readers = value_of(node.inputs[0]), _few(scaled.outputs)
    if value is None or not readers:
        return False
    if not all(is_op(n, "Add", "Sub") for n in readers):
        return False
    shapes = [shape_of(t) for n in readers for t in n.inputs if t is not scaled]
    sizes = [math.prod(d if isinstance(d, int) else 1 for d in shape) for shape in shapes if shape is not None]
    return bool(sizes) and min(sizes) > value.size


def _scaling(node: Node) -> tuple[Node, Tensor] | None:
    """The Mul or Div that gives rounded values their scale, and the tensor of those values that it reads."""
    for _ in range(_FARTHEST):
        values = node.outputs[0]
        readers = [n for n in _few(values.outputs) if _reads_values(n, values)]
        if len(readers) != 1:
            return None
        node = readers[0]
        if node.op in ("Mul", "Div"):
            return node, values
        if node.op not in CLAMPS and node.op not in _BEFORE_THE_SCALE and not is_movement(node):
            return None
    return None


def _reads_values(node: Node, tensor: Tensor) -> bool:
    """Whether a reader does something with the values: comparisons choose, others read a shape or a type alone."""
    if node.op == "CastLike":
        return node.inputs[0] is tensor
    return node.op not in COMPARISONS and not is_value_blind(node)


def looks_like_quantizer(node: Node) -> bool:
    """Whether `heads_quantizer` holds and a clamp is near by, on either side (constants need not be folded yet)."""
    if not node.inputs or not heads_quantizer(node):
        return False
    if _wraps(node):
        return True
    after, before = [node], [node]
    for _ in range(LONGEST):
        after = _neighbors(reader for n in after for reader in n.outputs[0].outputs)
        before = _neighbors(maker for n in before for tensor in n.inputs for maker in tensor.inputs)
        if any(n.op in ("Clip", "Min", "Max", "Where", "Abs") or _is_condition(n) for n in (*after, *before)):
            return True
    return False


def _wraps(node: Node) -> bool:
    """Whether rounded values are scaled and taken modulo their range, as integers are that overflow (HGQ2)."""
    for _ in range(LONGEST):
        readers = [n for n in _few(node.outputs[0].outputs) if not is_value_blind(n)]
        if any(is_op(n, "Mod") or _is_remainder(n, node.outputs[0]) for n in readers):
            return True
        if len(readers) != 1 or not is_op(readers[0], "Add", "Sub", "Mul", "Div", "Cast", "Identity", "Transpose"):
            return False
        node = readers[0]
    return False


def _is_remainder(node: Node, value: Tensor) -> bool:
    """Whether a node takes Floor(value / range) * range off a value."""
    product = maker_of(node.inputs[1]) if is_op(node, "Sub") and node.inputs[0] is value else None
    floors = [m for t in product.inputs if is_op(m := maker_of(t), "Floor")] if is_op(product, "Mul") else []
    quotients = [maker_of(floor.inputs[0]) for floor in floors]
    return any(is_op(quotient, "Div") and quotient.inputs[0] is value for quotient in quotients)


def _is_condition(node: Node) -> bool:
    """Whether a Cast says a comparison in numbers: a choice by products, as tf2onnx writes it."""
    return is_op(node, "Cast") and is_op(maker_of(node.inputs[0]), *COMPARISONS, "Not")


def holds_weight(node: Node) -> bool:
    """Whether a Cast makes floats of a weight that is stored in integers: a constant on its way into a product."""
    if node.op not in ("Cast", "CastLike") or node.domain or not node.inputs:
        return False
    value = value_of(_unmoved(node.inputs[0]))
    if value is None or value.ndim < 2 or quantized_dtype(value.dtype) in (None, "int32"):
        return False
    return any(is_product(n) for readers in _scaled_by(node) for n in readers)


def _scaled_by(node: Node) -> Iterator[list[Node]]:
    """Who reads a node's result, and what a row of lone readers that scale or move it makes of that."""
    for _ in range(LONGEST):
        readers = _few(node.outputs[0].outputs)
        yield readers
        if len(readers) != 1 or not (readers[0].op in _SCALING or is_movement(readers[0])):
            return
        node = readers[0]


def multiplies_whole_numbers(node: Node) -> bool:
    """Whether a product's weight is whole numbers in floats and its result is scaled: integers that were folded."""
    value = _stored(node.inputs[1]) if is_product(node) else None
    if value is None or value.ndim < 2 or value.dtype.kind != "f" or not value.size:
        return False
    for part in (value.reshape(-1)[:_PROBED], value):
        if not np.all(part == np.rint(part)):
            return False
    if not _FEWEST <= float(np.abs(value).max()) <= _BYTE:
        return False
    row = (readers[0] for readers in _scaled_by(node) if len(readers) == 1)
    scaling = next((n for n in row if n.op in ("Mul", "Div")), None)
    return scaling is not None and any(_stored(t) is not None for t in scaling.inputs)


def _stored(tensor: Tensor) -> Array | None:
    """The value of a constant, also of one that a Constant node makes (nothing is folded yet)."""
    maker = maker_of(tensor)
    if not is_op(maker, "Constant"):
        return value_of(tensor)
    value: Array | None = maker.attr("value")  # None where it is written as value_float and the like
    return value


def _unmoved(tensor: Tensor) -> Tensor:
    """What a tensor was before it was moved, a few operators up (torchao transposes its weights before the Cast)."""
    for _ in range(LONGEST):
        maker = maker_of(tensor)
        if maker is None or not is_movement(maker):
            break
        tensor = maker.inputs[0]
    return tensor


def report_others(graph: QuantGraph) -> None:
    """Say which roundings look like quantizers and are none, and why.

    Where the scale depends on the data nothing can be compiled as it was trained (QAT205, an error); readers of others
    stay float (QAT109, a note).
    """
    for node in list(graph.nodes):
        if node.op not in _ROUNDINGS or not looks_like_quantizer(node):
            continue
        found = _scaled_by_extreme(graph, node)
        if found is not None:
            message = f"the scale of this rounding is found at run time ({found.op} of the data)"
            tensor = node.outputs[0].name
            graph.diagnostics.error("QAT205", message, node=label_of(node), tensor=tensor, hint=STATIC)
            continue
        if _wraps(node):
            _note(graph, node, "values beyond its range wrap around, which integer kernels clamp", _SATURATE)
            continue
        try:
            arithmetic.quantizer(graph, node)
        except NoMatch as no:
            _note(graph, node, no.reason, _ON_A_GRID)


def _note(graph: QuantGraph, node: Node, why: str, hint: str) -> None:
    message = f"this rounding looks like a quantizer, but is none of integers: {why}"
    graph.diagnostics.note("QAT109", message, node=label_of(node), tensor=node.outputs[0].name, hint=hint)


def _scaled_by_extreme(graph: QuantGraph, node: Node) -> Node | None:
    """The reduction that the scale of a rounding comes from, where it is scaled on both sides by what data decide."""
    if not _is_divided_by_data(node):
        return None
    for _ in range(LONGEST):
        found = _scaling(node)
        if found is None:
            return None
        product, values = found
        factors = [t for t in product.inputs if t is not values]
        makers = [maker for t in factors if (maker := graph.producer(t)) is not None]
        scales = [m for m in makers if m.op != "Sign"]
        extreme = next((e for m in scales if (e := extreme_behind(graph, m)) is not None), None)
        if extreme is not None or scales:
            return extreme
        node = product  # scaled by a number, or given its sign, before the scale proper
    return None


def _is_divided_by_data(node: Node) -> bool:
    """Whether something near before a Round multiplies or divides by what is no constant."""
    before = [node]
    for _ in range(LONGEST):
        before = _neighbors(maker for n in before for tensor in n.inputs for maker in tensor.inputs)
        if any(n.op in ("Mul", "Div") and not any(map(is_constant, n.inputs)) for n in before):
            return True
    return False


def _neighbors(nodes: Iterable[object]) -> list[Node]:
    """Those of the nodes that may belong to a quantizer (a few: a hub is none)."""
    chain = ("Add", "Sub", "Mul", "Div", "Cast", "Identity", "Clip", "Min", "Max", "Where", "Abs", "Neg", "Transpose")
    return [n for n in _few(nodes) if n.op in chain]


def _few(nodes: Iterable[object]) -> list[Node]:
    return [n for n in itertools.islice(nodes, LONGEST) if isinstance(n, Node)]

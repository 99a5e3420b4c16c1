"""Clamps written in other ways become Min, Max and Clip, so that whatever looks for quantizers sees one form.

Cast(c) * a + Cast(Not(c)) * b              Where(c, a, b)   tf2onnx writes tf.where so, whatever is chosen
Where(true, x, c)                           x
Where(Less(x, c), c, x)                     Max(x, c)            likewise Greater, LessOrEqual, GreaterOrEqual
Where(Greater(c, x), x, full_like(x, c))    Min(x, c)
Where(Less(x, c), Relu(x), c)               Min(Relu(x), c)      c >= 0; likewise other clamps
Where(Less(x, c), d, a * x + b)             Max(a * x + b, d)    a > 0 and d = a * c + b: QIL
(|x| - |x - a| + a) * 0.5                   Clip(x, 0, a)        PACT, as its paper writes it (also / 2)
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx
from onnx.helper import tensor_dtype_to_np_dtype

from qatc.compiler.graph import Constant, Node, QuantGraph, Tensor, repeats_into, shape_of, value_of
from qatc.compiler.model.links import is_op
from qatc.compiler.passes.modernize import element_type
from qatc.compiler.quant import Array
from qatc.compiler.rewrite import Rules, sweep
from qatc.frontends.common.chains import affine_of, bounds_of, variable_of
from qatc.frontends.common.straight_through import broadcasts

COMPARISONS: Final = frozenset({"Less", "LessOrEqual", "Greater", "GreaterOrEqual"})
_RULES: Final = Rules("clamps")
_BOOL: Final = onnx.TensorProto.BOOL
_TERMS: Final = 3
_LONGEST: Final = 8  # operators of one line
_CLOSE: Final = 1e-5  # by how much of its terms float arithmetic may miss a number


def rewrite(graph: QuantGraph) -> int:
    """Rewrite a modernized graph in place; returns how many clamps were found."""
    return sweep(graph, _RULES)


@_RULES.on("Add")
def chosen_by_product(graph: QuantGraph, node: Node) -> bool:
    """A choice written as a sum of products with 1 and 0; what it is then may be a clamp."""
    terms = [_chosen(graph, t) for t in node.inputs]
    for then, other in (terms, terms[::-1]) if len(terms) == 2 else ():
        inverse = graph.producer(other[0]) if then is not None and other is not None else None
        if then is not None and other is not None and is_op(inverse, "Not") and inverse.inputs[0] is then[0]:
            node.op, node.inputs = "Where", [then[0], then[1], other[1]]
            chosen_by_comparison(graph, node)
            return True
    return False


def _chosen(graph: QuantGraph, term: Tensor) -> tuple[Tensor, Tensor] | None:
    """(condition, value) of a product of a value and a condition in numbers."""
    product = graph.producer(term)
    if not is_op(product, "Mul"):
        return None
    for factor, value in (product.inputs, product.inputs[::-1]):
        condition = condition_of(graph, factor)
        if condition is not None:
            return condition, value
    return None


def condition_of(graph: QuantGraph, tensor: Tensor) -> Tensor | None:
    """The condition that a tensor says in numbers, 1 where it holds and 0 elsewhere."""
    cast = graph.producer(tensor)
    return cast.inputs[0] if is_op(cast, "Cast") and element_type(cast.inputs[0]) == _BOOL else None


@_RULES.on("Where")
def chosen_by_constant(graph: QuantGraph, node: Node) -> bool:
    """One of two tensors, whatever they hold."""
    condition = value_of(node.inputs[0])
    if condition is None or not condition.size or not np.all(condition == condition.reshape(-1)[0]):
        return False
    chosen, other = node.inputs[1:] if condition.reshape(-1)[0] else node.inputs[:0:-1]
    if any(not repeats_into(shape_of(t), shape_of(chosen)) for t in (node.inputs[0], other)):
        return False
    graph.replace(node.outputs[0], chosen)
    return True


@_RULES.on("Where")
def chosen_by_comparison(graph: QuantGraph, node: Node) -> bool:
    """The smaller or the larger of a tensor and a number."""
    condition = graph.producer(node.inputs[0])
    if not is_op(condition, *COMPARISONS):
        return False
    left, right = condition.inputs
    x, bound = (left, _scalar(graph, right)) if not isinstance(left, Constant) else (right, _scalar(graph, left))
    then, other = node.inputs[1], node.inputs[2]
    if bound is None:
        return False
    for kept, end in ((then, _scalar(graph, other)), (other, _scalar(graph, then))):
        if end is not None and _is_met(graph, kept, x, float(bound), float(end)):
            break
    else:
        return False
    if any(broadcasts(kept, t) for t in (*condition.inputs, *node.inputs)):
        return False
    smaller = condition.op.startswith("Less") == (x is left)  # the condition says that x is the smaller one
    node.op = "Min" if smaller == (kept is then) else "Max"
    node.inputs = [kept, graph.constant(f"{node.outputs[0].name}_bound", end)]
    return True


def _is_met(graph: QuantGraph, kept: Tensor, x: Tensor, number: float, end: float) -> bool:
    """Whether `kept` never falls where x rises, and is `end` where x is `number`."""
    row: list[tuple[Node, Tensor]] = []
    while kept is not x and len(row) < _LONGEST:
        node = graph.producer(kept)
        data = variable_of(node)
        if node is None or data is None:
            return False
        row.append((node, data))
        kept = data
    value, size = number, 0.0  # of the largest term
    for node, data in reversed(row):
        affine, ends = affine_of(node, data), bounds_of(graph, node, data)
        if affine is not None and all(v.size == 1 for v in affine) and affine[0] > 0:
            value, offset = value * affine[0].item(), affine[1].item()
            size = max(size * affine[0].item(), abs(value), abs(offset))
            value += offset
        elif ends is not None:
            value = min(max(value, ends[0]), ends[1])
        else:
            return False
    return kept is x and abs(value - end) <= _CLOSE * size


@_RULES.on("Mul", "Div")
def half_of_absolute_values(graph: QuantGraph, node: Node) -> bool:
    """The clamp to [0, a] of PACT, written so that its gradient reaches a."""
    factors = [_number(graph, t) for t in node.inputs]
    if node.op == "Mul" and 0.5 in factors:
        total = node.inputs[1 - factors.index(0.5)]
    elif node.op == "Div" and factors[1] == 2.0:
        total = node.inputs[0]
    else:
        return False
    found = _terms(graph, total)
    bound = next((v for sign, t in found if sign > 0 and (v := _scalar(graph, t)) is not None), None)
    x = next((t for sign, t in _absolute(graph, found) if sign > 0), None)
    shifted = next((t for sign, t in _absolute(graph, found) if sign < 0), None)
    if len(found) != _TERMS or bound is None or bound <= 0 or x is None or shifted is None:
        return False
    if not _is_shifted(graph, shifted, x, float(bound)):
        return False
    if any(broadcasts(x, t) for t in (*node.inputs, shifted, *(t for _, t in found))):
        return False
    node.op, name = "Clip", node.outputs[0].name
    node.inputs = [x, graph.constant(f"{name}_low", np.zeros_like(bound)), graph.constant(f"{name}_high", bound)]
    return True


def _terms(graph: QuantGraph, total: Tensor) -> list[tuple[int, Tensor]]:
    """A sum of up to three terms, each with its sign."""
    found = [(1, total)]
    for _ in range(_TERMS - 1):
        for index, (sign, tensor) in enumerate(found):
            node = graph.producer(tensor)
            if is_op(node, "Add", "Sub"):
                second = sign if node.op == "Add" else -sign
                found[index : index + 1] = [(sign, node.inputs[0]), (second, node.inputs[1])]
                break
    return found


def _absolute(graph: QuantGraph, terms: list[tuple[int, Tensor]]) -> list[tuple[int, Tensor]]:
    """The terms that are absolute values: what they are those of."""
    makers = [(sign, graph.producer(t)) for sign, t in terms]
    return [(sign, m.inputs[0]) for sign, m in makers if is_op(m, "Abs")]


def _is_shifted(graph: QuantGraph, tensor: Tensor, x: Tensor, bound: float) -> bool:
    """Whether `tensor` is x - bound, or bound - x (its absolute value is the same)."""
    node = graph.producer(tensor)
    if node is None or node.domain or len(node.inputs) != 2:
        return False
    numbers = [_number(graph, t) for t in node.inputs]
    if node.op == "Sub":
        return (node.inputs[0] is x and numbers[1] == bound) or (node.inputs[1] is x and numbers[0] == bound)
    return node.op == "Add" and any(t is x and n == -bound for t, n in zip(node.inputs, numbers[::-1], strict=True))


def _number(graph: QuantGraph, tensor: Tensor) -> float | None:
    """The value of a constant of one element, as `_scalar` has it."""
    value = _scalar(graph, tensor)
    return None if value is None else float(value)


def _scalar(graph: QuantGraph, tensor: Tensor) -> Array | None:
    """A constant of one element, [] in its own type, also where it was spread to a shape that run time decides."""
    kinds: list[int] = []
    while (value := value_of(tensor)) is None:
        node = graph.producer(tensor)
        if is_op(node, "ConstantOfShape"):
            value = node.attr("value", np.zeros(1, np.float32))
            break
        if not is_op(node, "Expand", "Identity", "Cast"):
            return None
        kinds += [int(node.attr("to"))] if node.op == "Cast" else []
        tensor = node.inputs[0]
    if value.dtype.kind not in "fiu" or not value.size or not np.all(value == value.reshape(-1)[0]):
        return None
    first: Array = value.reshape(-1)[:1].reshape(())
    for kind in reversed(kinds):
        first = first.astype(tensor_dtype_to_np_dtype(kind))
        if first.dtype.kind not in "fiu":
            return None
    return first

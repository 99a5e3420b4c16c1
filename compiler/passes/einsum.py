"""Einsum of two tensors becomes a matrix product between transpositions, where it is one.

    Einsum[bihd,bjhd->bhij](q, k)    Transpose(q), Transpose(k) -> MatMul: (b h i d) x (b h d j)
    Einsum[bnd,df->bnf](x, w)        MatMul(x, w)
    Einsum[bhwc,hkc->bhwk](q, r)     Transpose(q), Transpose(r) -> MatMul: (b h w c) x (h c k), r the same for every b

One index is summed, at most one stands in the second operand alone; of those in the first alone, the last is its rows,
and over the others the second is repeated. Everything else stays an Einsum: traces, sums over several indices,
ellipses, three operands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qatc.compiler.graph import Node, QuantGraph, Tensor, rank_of
from qatc.compiler.passes.later import made
from qatc.compiler.rewrite import NoMatch


@dataclass(frozen=True)
class _Product:
    """The indices of a matrix product: shared, of one operand alone, the one that is summed, those of the result."""

    shared: str
    first: str
    second: str
    summed: str
    result: str


def einsum_to_product(graph: QuantGraph, node: Node) -> bool:
    """The rule, for Einsum nodes."""
    text = str(node.attr("equation", "")).replace(" ", "")
    found = _parsed(text)
    if found is None or len(node.inputs) != 2:
        raise NoMatch(f"{text} is no product of two matrices")
    operands, product = found
    if any(rank_of(t) not in (None, len(o)) for t, o in zip(node.inputs, operands, strict=True)):
        raise NoMatch(f"{text} does not fit its operands")
    result = node.outputs[0]
    batch, row = product.first[:-1] + product.shared, product.first[-1:]
    a = _ordered(graph, node.inputs[0], operands[0], batch + row + product.summed)
    b = _ordered(graph, node.inputs[1], operands[1], product.shared + product.summed + product.second)
    made = batch + row + product.second
    if not row:
        a = _reshaped(graph, "Unsqueeze", a, [len(product.shared)])
    if not product.second:
        b = _reshaped(graph, "Unsqueeze", b, [len(product.shared) + 1])
    empty = [] if row else [len(batch)]
    empty += [] if product.second else [len(batch) + 1]
    node.op, node.inputs = "MatMul", [a, b]
    node.attrs.clear()
    order = [made.index(i) for i in product.result]
    if order == list(range(len(made))) and not empty:
        return True
    raw = graph.variable(f"{result.name}_product")
    node.outputs[0] = raw
    last: Tensor = raw if not empty else _reshaped(graph, "Squeeze", raw, empty)
    moved = order != sorted(order)
    perm = {"perm": order} if moved else {}
    graph.insert("Transpose" if moved else "Identity", [last], [result], hint=f"{result.name}_order", attrs=perm)
    return True


def _parsed(text: str) -> tuple[list[str], _Product] | None:
    """The operands' indices and the product; None where the equation is something else."""
    left, arrow, result = text.partition("->")
    operands = left.split(",")
    if len(operands) != 2 or not all(o.isalpha() for o in operands) or (result and not result.isalpha()):
        return None
    if not arrow:  # the indices that appear once, in alphabetical order
        result = "".join(sorted(i for i in set("".join(operands)) if "".join(operands).count(i) == 1))
    one, two = operands
    if any(len(set(o)) < len(o) for o in (one, two, result)) or not set(result) <= set(one + two):
        return None
    both = [i for i in one if i in two]
    shared, summed = "".join(i for i in both if i in result), "".join(i for i in both if i not in result)
    first, second = ("".join(i for i in o if i not in both) for o in (one, two))
    if len(summed) != 1 or len(second) > 1 or not set(first + second) <= set(result):
        return None
    return operands, _Product(shared, first, second, summed, result)


def _ordered(graph: QuantGraph, tensor: Tensor, have: str, want: str) -> Tensor:
    """The tensor with its indices in another order."""
    if have == want:
        return tensor
    return made(graph, "Transpose", [tensor], f"{tensor.name}_ordered", None, perm=[have.index(i) for i in want])


def _reshaped(graph: QuantGraph, op: str, tensor: Tensor, axes: Sequence[int]) -> Tensor:
    name = f"{tensor.name}_{op.lower()}"
    return made(graph, op, [tensor, graph.constant(f"{name}_axes", np.asarray(axes, np.int64))], name, None)

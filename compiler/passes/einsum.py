"""Einsum of two tensors becomes a matrix product between transpositions, where it is one.

    Einsum[bihd,bjhd->bhij](q, k)    Transpose(q), Transpose(k) -> MatMul: (b h i d) x (b h d j)
    Einsum[bnd,df->bnf](x, w)        MatMul(x, w)
    Einsum[bhwc,hkc->bhwk](q, r)     Transpose(q), Transpose(r) -> MatMul: (b h w c) x (h c k), r the same for every b
    Einsum[btd,dhk->bthk](x, w)      Reshape(w) -> MatMul: (b t d) x (d (h k)) -> Reshape
    Einsum[bthk,hkd->btd](x, w)      Reshape(x), Reshape(w) -> MatMul: (b t (h k)) x ((h k) d)

Several indices that are summed, or stand in the second operand alone, become one if their sizes are known: the heads of
Keras' and Flax' attention are such. Of those in the first operand alone, the last is its rows, and over the others the
second is repeated. Everything else stays an Einsum: traces, ellipses, three operands.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qatc.compiler.graph import Node, QuantGraph, Tensor, rank_of, shape_of
from qatc.compiler.passes.later import made
from qatc.compiler.rewrite import NoMatch


@dataclass(frozen=True)
class _Product:
    """The indices of a matrix product: shared, of one operand alone, those that are summed, those of the result."""

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
    sizes = _sizes(node.inputs, operands)
    if any(len(group) > 1 and not set(group) <= sizes.keys() for group in (product.summed, product.second)):
        raise NoMatch(f"the sizes of what {text} takes together are not known")
    result = node.outputs[0]
    batch, row = product.first[:-1] + product.shared, product.first[-1:]
    a = _ordered(graph, node.inputs[0], operands[0], batch + row + product.summed)
    b = _ordered(graph, node.inputs[1], operands[1], product.shared + product.summed + product.second)
    a = _together(graph, a, len(batch + row), [product.summed], sizes)
    b = _together(graph, b, len(product.shared), [product.summed, product.second], sizes)
    indices = batch + row + product.second
    if not row:
        a = _reshaped(graph, "Unsqueeze", a, [len(product.shared)])
    if not product.second:
        b = _reshaped(graph, "Unsqueeze", b, [len(product.shared) + 1])
    empty = [] if row else [len(batch)]
    empty += [] if product.second else [len(batch) + 1]
    node.op, node.inputs = "MatMul", [a, b]
    node.attrs.clear()
    order = [indices.index(i) for i in product.result]
    apart = [sizes[i] for i in product.second] if len(product.second) > 1 else []
    if order == list(range(len(indices))) and not empty and not apart:
        return True
    raw = graph.variable(f"{result.name}_product")
    node.outputs[0] = raw
    last: Tensor = raw if not apart else _reshaped(graph, "Reshape", raw, [*[0] * (len(batch) + 1), *apart])
    last = last if not empty else _reshaped(graph, "Squeeze", last, empty)
    moved = order != sorted(order)
    perm = {"perm": order} if moved else {}
    graph.insert("Transpose" if moved else "Identity", [last], [result], hint=f"{result.name}_order", attrs=perm)
    return True


def _sizes(tensors: Sequence[Tensor], operands: Sequence[str]) -> dict[str, int]:
    """The size of each index, as far as the operands tell; one that is repeated for an operand has none."""
    found: dict[str, set[int]] = {}
    for tensor, operand in zip(tensors, operands, strict=True):
        for index, size in zip(operand, shape_of(tensor) or (), strict=False):
            if isinstance(size, int):
                found.setdefault(index, set()).add(size)
    return {index: min(stated) for index, stated in found.items() if len(stated) == 1}


def _together(graph: QuantGraph, tensor: Tensor, kept: int, groups: list[str], sizes: dict[str, int]) -> Tensor:
    """The tensor with one dimension for each group of indices behind the first `kept` ones; empty groups have none."""
    groups = [group for group in groups if group]
    if all(len(group) == 1 for group in groups):
        return tensor
    shape = [0] * kept + [math.prod(sizes[i] for i in group) if len(group) > 1 else -1 for group in groups]
    return _reshaped(graph, "Reshape", tensor, shape)


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
    if not summed or not set(first + second) <= set(result):
        return None
    return operands, _Product(shared, first, second, summed, result)


def _ordered(graph: QuantGraph, tensor: Tensor, have: str, want: str) -> Tensor:
    """The tensor with its indices in another order."""
    if have == want:
        return tensor
    return made(graph, "Transpose", [tensor], f"{tensor.name}_ordered", None, perm=[have.index(i) for i in want])


def _reshaped(graph: QuantGraph, op: str, tensor: Tensor, numbers: Sequence[int]) -> Tensor:
    """The tensor after a Reshape to, or a Squeeze or Unsqueeze of, what the numbers say."""
    name = f"{tensor.name}_{op.lower()}"
    return made(graph, op, [tensor, graph.constant(f"{name}_axes", np.asarray(numbers, np.int64))], name, None)

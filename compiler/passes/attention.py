"""Attention (opset 23) becomes its two products with a Softmax between them, so that each is looked at by itself.

    Attention(q, k, v, mask)    MatMul(q, Transpose(k)) -> Mul(scale) -> Add(mask) -> Softmax -> MatMul(., v)

That is what ONNX defines it to compute, but where a mask leaves a row nothing: runtimes and PyTorch make zero of it, a
Softmax 0 / 0. It is done for tensors [batch, heads, sequence, size] of as many heads each,
without a cache of keys and values, a soft cap or a second result; a causal mask needs sequences of known length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx

from qatc.compiler.graph import Node, QuantGraph, Tensor, shape_of, value_of
from qatc.compiler.passes.later import made
from qatc.compiler.rewrite import NoMatch

_RANK: Final = 4
_BOOL: Final = onnx.TensorProto.BOOL


@dataclass(frozen=True)
class _Form:
    """What an Attention multiplies its scores by, what it adds to them, and (rows, columns) of a causal mask."""

    factor: float
    mask: Tensor | None
    causal: tuple[int, int] | None


def attention_to_products(graph: QuantGraph, node: Node) -> bool:
    """The rule, for Attention nodes of ai.onnx."""
    form = _form_of(graph, node)
    shares = _shares(graph, node, form)
    for index in range(len(node.outputs) - 1, 0, -1):
        node.outputs.pop(index)
    node.op, node.inputs = "MatMul", [shares, node.inputs[2]]
    node.attrs.clear()
    return True


def _form_of(graph: QuantGraph, node: Node) -> _Form:
    """Raises `NoMatch` with what the products would not say."""
    shapes = [shape_of(t) for t in node.inputs[:3]]
    if any(s is None or len(s) != _RANK for s in shapes):
        raise NoMatch("its operands are not known to have four dimensions")
    rows, columns, _ = (s for s in shapes if s is not None)
    if len({s[1] for s in shapes if s is not None}) != 1 or not isinstance(rows[1], int):
        raise NoMatch("its operands have different numbers of heads")
    if any(t.name for t in node.inputs[4:]) or any(t.outputs or graph.is_output(t) for t in node.outputs[1:]):
        raise NoMatch("it keeps keys and values, or has a second result")
    size, scale, causal = rows[3], node.attr("scale"), bool(node.attr("is_causal", 0))
    if node.attr("softcap", 0.0) or (scale is None and not isinstance(size, int)):
        raise NoMatch("its scores are capped, or its scale is not known")
    if causal and not (isinstance(rows[2], int) and isinstance(columns[2], int)):
        raise NoMatch("its causal mask depends on lengths that are not known")
    mask = node.optional(3)
    if mask is not None and not mask.dtype:
        raise NoMatch("the type of its mask is not known")
    factor = float(scale) if scale is not None else 1.0 / float(np.sqrt(int(size or 1)))
    return _Form(factor, mask, (int(rows[2] or 0), int(columns[2] or 0)) if causal else None)


def _shares(graph: QuantGraph, node: Node, form: _Form) -> Tensor:
    """The Softmax of the scores: by how much each value counts."""
    (query, key), name = node.inputs[:2], node.outputs[0].name
    keys = made(graph, "Transpose", [key], f"{name}_keys", perm=[0, 1, 3, 2])
    products = made(graph, "MatMul", [query, keys], f"{name}_products")
    scale = graph.constant(f"{name}_scale", np.asarray(form.factor, np.float32))
    scores = made(graph, "Mul", [products, scale], f"{name}_scores")
    if form.mask is not None:
        scores = made(graph, "Add", [scores, _added(graph, form.mask, name)], f"{name}_masked")
    if form.causal is not None:
        allowed = np.tril(np.ones(form.causal, np.bool_))
        future = graph.constant(f"{name}_causal", np.where(allowed, 0.0, -np.inf).astype(np.float32))
        scores = made(graph, "Add", [scores, future], f"{name}_causal_scores")
    shares = made(graph, "Softmax", [scores], f"{name}_shares", axis=-1)
    if form.mask is not None and (form.causal is not None or not _leaves_something(form.mask)):
        nowhere = made(graph, "IsNaN", [shares], f"{name}_nowhere", _BOOL)
        nothing = graph.constant(f"{name}_nothing", np.asarray(0, np.float32))
        shares = made(graph, "Where", [nowhere, nothing, shares], f"{name}_shares_or_nothing")
    return shares


def _leaves_something(mask: Tensor) -> bool:
    """Whether a mask is a constant that leaves every row some scores."""
    value = value_of(mask)
    if value is None or not value.ndim:
        return False
    kept = value if value.dtype == np.bool_ else value > -np.inf
    return bool(kept.any(axis=-1).all())


def _added(graph: QuantGraph, mask: Tensor, name: str) -> Tensor:
    """The mask as numbers to add: a Boolean one says which scores count."""
    if mask.dtype not in (_BOOL, np.dtype(np.bool_)):
        return mask
    ends = [
        graph.constant(f"{name}_{what}", np.asarray(v, np.float32)) for what, v in (("kept", 0.0), ("left", -np.inf))
    ]
    return made(graph, "Where", [mask, *ends], f"{name}_mask")

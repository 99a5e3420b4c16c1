"""Matrix products whose constant has scales that products of matrices do not know become convolutions.

    MatMul(W<s per row>, x [B, K, N])                Conv(x, W [M, K, 1]<s>)
    MatMul(W, x) -> Add(b per row)                   Conv(x, W [M, K, 1], b)
    MatMul(W<s per matrix> [H, M, K], x)             Reshape(x) [B, H * K, N] -> Conv(W [H * M, K, 1]<s>, groups = H)
                                                     -> Reshape [B, H, M, N]
    MatMul(x [B, H, T, K], W<s per matrix>)          the same between transpositions

All are exact: each result is the same sum of the same products. A product of matrices has a scale for each of the right
one's columns, a convolution one for each channel, in every group.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx

from qatc.compiler.diagnostics import printable
from qatc.compiler.graph import Constant, Dim, Node, QuantGraph, Tensor, rank_of, shape_of
from qatc.compiler.model.links import is_op, label_of
from qatc.compiler.quant import QuantParams

_AFFINE = frozenset({"Add", "Sub", "Mul", "Div", "BatchNormalization"})


@dataclass(frozen=True)
class _Form:
    """A product with `heads` constant matrices, of `channels` rows or columns, over `depth`; the constant is on a side.

    `data` and `result` are the shapes of what the convolution reads, and of the result's matrices [..., M, N].
    """

    constant: Constant
    params: QuantParams
    left: bool
    heads: int
    channels: int
    depth: int
    data: list[Dim]
    result: list[Dim]


def place_constants(graph: QuantGraph) -> int:
    """Rewrite every such product, in one sweep; returns how many."""
    placed = 0
    for node in list(graph.nodes):
        if is_op(node, "MatMul") and len(node.inputs) == 2:
            form = _form(graph, node)
            if form is not None:
                _as_convolution(graph, node, form)
                placed += 1
    if placed:
        graph.sort()
        graph.clean()
    return placed


def _form(graph: QuantGraph, node: Node) -> _Form | None:
    """How the product is a convolution; None where it is none, or need be none."""
    left = isinstance(node.inputs[0], Constant)
    constant, x = node.inputs if left else node.inputs[::-1]
    params, shape = graph.quant(constant), shape_of(x)
    if not isinstance(constant, Constant) or isinstance(x, Constant) or x.name not in graph.params:
        return None
    rank = constant.values.ndim
    if params is None or shape is None or not constant.values.size or not 2 <= rank <= len(shape) <= 4:
        return None
    *outer, rows, columns = constant.values.shape
    heads, (channels, depth) = math.prod(outer), (rows, columns) if left else (columns, rows)
    differs = len(set(params.scale)) > 1 or len(set(params.zero_point)) > 1
    if left and not (differs or _is_scaled_next(graph, node.outputs[0], channels)):
        return None
    if not left and not (differs and params.axis == rank - 3):
        return None
    *around, width = shape if left else (*shape[:-2], shape[-1], shape[-2])
    data = _data_shape(around[:-1], heads, depth, width)
    params = params if differs else params.channel(0)
    made: list[Dim] = [*around[:-1], channels, width]
    return None if data is None else _Form(constant, params, left, heads, channels, depth, data, made)


def _data_shape(outer: list[Dim], heads: int, depth: int, width: Dim) -> list[Dim] | None:
    """[B, H * K, N] for matrices [*outer, K, N]; None where they have no such form, or too many sizes are unknown."""
    if heads > 1:
        return [*(outer[:-1] or [1]), heads * depth, width] if outer and outer[-1] == heads else None
    known = [d for d in outer if isinstance(d, int)]
    if len(outer) < 2:
        return [*(outer or [1]), depth, width]
    if len(known) < len(outer) - 1 or not isinstance(width, int):
        return None
    return [math.prod(known) if len(known) == len(outer) else None, depth, width]


def _is_scaled_next(graph: QuantGraph, tensor: Tensor, rows: int) -> bool:
    """Whether the one reader of a product multiplies its rows by constants, or adds some to them."""
    reader = graph.only_consumer(tensor) if tensor.name not in graph.params else None
    if not is_op(reader, *_AFFINE):
        return False
    if reader.op == "BatchNormalization":
        return rank_of(tensor) == 3
    return any(isinstance(t, Constant) and t.values.ndim > 1 and 1 < t.values.shape[-2] == rows for t in reader.inputs)


def _as_convolution(graph: QuantGraph, node: Node, form: _Form) -> None:
    """Write the product as a convolution, with its operand and result in their shapes."""
    graph.explain(
        "constants", f"{printable(label_of(node))} is a convolution: the constant's scales are of its channels"
    )
    x, out = node.inputs[form.left], node.outputs[0]
    shaped = form.heads > 1 or len(form.result) != len(form.data)
    if not form.left:
        x = _transposed(graph, x, [*form.result[:-2], form.depth, form.result[-1]])
    if shaped:
        x = _reshaped(graph, form, x, form.data)
    node.op, node.attrs = "Conv", {"group": form.heads}
    node.inputs = [x, _weight(graph, form)]
    if not shaped:
        return
    made: list[Dim] = [form.data[0], form.heads * form.channels, form.data[2]]
    product = graph.variable(f"{out.name}_channels", onnx.TensorProto.FLOAT, made)
    node.outputs = [product]
    if form.left:
        _reshaped(graph, form, product, form.result, out)
    else:
        _transposed(graph, _reshaped(graph, form, product, form.result), [], out)


def _weight(graph: QuantGraph, form: _Form) -> Constant:
    """The matrices as the weight [H * M, K, 1] of a convolution with H groups."""
    values, params, rank = form.constant.values, form.params, form.constant.values.ndim
    values = values.reshape(form.heads, *values.shape[-2:])
    values = (values if form.left else values.swapaxes(1, 2)).reshape(-1, form.depth, 1)
    if params.axis is not None:
        heads, channels = np.arange(form.heads), np.arange(form.channels)
        if params.axis < rank - 2:
            params = params.take(np.repeat(heads, form.channels)).with_axis(0)
        elif (params.axis == rank - 2) == form.left:
            params = params.take(np.tile(channels, form.heads)).with_axis(0)
        else:
            params = params.with_axis(1)
    return graph.constant(f"{form.constant.name}_channels", np.ascontiguousarray(values), params)


def _transposed(graph: QuantGraph, x: Tensor, shape: list[Dim], out: Tensor | None = None) -> Tensor:
    """A tensor with its last two dimensions exchanged, on its grid."""
    out = out or graph.variable(f"{x.name}_transposed", onnx.TensorProto.FLOAT, shape)
    rank = rank_of(x) or 2
    graph.insert("Transpose", [x], [out], hint=out.name, attrs={"perm": [*range(rank - 2), rank - 1, rank - 2]})
    return _on_the_same_grid(graph, x, out)


def _reshaped(graph: QuantGraph, form: _Form, x: Tensor, shape: list[Dim], out: Tensor | None = None) -> Tensor:
    """A tensor in another shape, on its grid; of sizes that are not known, a batch in front of heads is copied."""
    out = out or graph.variable(f"{x.name}_reshaped", onnx.TensorProto.FLOAT, shape)
    copied = form.heads > 1
    sizes = [d if isinstance(d, int) else 0 if copied and not index else -1 for index, d in enumerate(shape)]
    graph.insert("Reshape", [x, graph.constant(f"{out.name}_sizes", np.asarray(sizes, np.int64))], [out], hint=out.name)
    return _on_the_same_grid(graph, x, out)


def _on_the_same_grid(graph: QuantGraph, x: Tensor, out: Tensor) -> Tensor:
    params = graph.quant(x)
    if params is not None:
        graph.params.setdefault(out.name, params)
    return out

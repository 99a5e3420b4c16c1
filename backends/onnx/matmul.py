"""MatMul: the fastest integer matrix product for each form of operands.

A constant matrix on the right is a pointwise convolution in channels-last order, which takes bias, per-channel scales
and any leading dimensions as they are (com.microsoft QLinearConv: a fifth faster than QLinearMatMul, measured); two
dimensions are QGemm; two activations are QLinearMatMul; accumulators are MatMulInteger (ToFloat).
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from qatc.backends.onnx.moves import to_first, to_last
from qatc.backends.onnx.products import Product, bias_of, is_uniform, multiply, product_of, to_real, weight_scales
from qatc.backends.onnx.weights import Weight, narrow
from qatc.backends.onnx.writer import Writer, in_bytes, stored
from qatc.compiler.arithmetic import ort_multipliers, ort_weight_scales
from qatc.compiler.integer import Dequantize, MatMul
from qatc.compiler.model.protos import MICROSOFT
from qatc.compiler.quant import QuantParams


def matmul(w: Writer, op: MatMul, fused: Dequantize | None = None) -> None:
    """`MatMul`, together with the Dequantize that alone reads its raw accumulator, if given."""
    weight, product = w.graph.constants.get(op.inputs[1]), product_of(w, op, fused)
    name = fused.output if fused is not None else op.output
    matrix = None if weight is None else narrow(w.graph, op.inputs[1], weight.ndim - 2)
    if matrix is None or matrix.values.ndim != 2 or w.rank(op.inputs[0]) == 1:
        _general(w, op, matrix, product, name)
    elif product.grid is None:
        multiply(w, _operand(w, op, matrix), w.graph.params(op.inputs[0]), matrix, product, name)
    else:
        _fully_connected(w, op, matrix, product, product.grid)


def _operand(w: Writer, op: MatMul, weight: Weight) -> str:
    """The left operand, twice side by side for a weight in two halves."""
    a = w.read(op.inputs[0])
    return w.node("Concat", (a, a), axis=-1) if weight.doubled else a


# -- a constant matrix on the right ----------------------------------------------------------------------------------
def _fully_connected(w: Writer, op: MatMul, weight: Weight, product: Product, grid: QuantParams) -> None:
    have = w.graph.params(op.inputs[0])
    inside = in_bytes(grid, stored(have))
    end = w.ending(stored(have), stored(grid), op.lo, op.hi, op.output)
    rank = w.rank(op.inputs[0])
    a = _operand(w, op, weight)
    if rank is None or not 2 <= rank <= 5:
        _through_rows(w, op, a, weight, product, inside, end.kernel)
    elif rank == 2 and not w.standard:
        _gemm(w, a, have, weight, product, inside, end.kernel)
    elif w.standard and product.bias is None:
        matrix = w.array(weight.values, f"{w.label}_weight", weight.source)
        scales = weight_scales(w, ort_weight_scales(product.scale, have.scale[0]))
        inputs = [matrix, scales, w.scalar(weight.zero, "int8")]
        w.node("QLinearMatMul", (*w.on(a, have), *inputs, w.scale(inside), w.zero(inside)), end.kernel)
    else:
        _pointwise(w, a, have, weight, product, inside, rank, end.kernel)
    w.end(end)


def _through_rows(w: Writer, op: MatMul, a: str, weight: Weight, product: Product, grid: QuantParams, out: str) -> None:
    """Any rank: as a matrix of rows, and back."""
    depth, width = weight.values.shape
    rows = w.node("Reshape", (a, w.ints([-1, depth])))
    have = w.graph.params(op.inputs[0])
    if w.standard:
        made = w.fresh(f"{out}_rows")
        _pointwise(w, rows, have, weight, product, grid, 2, made)
    else:
        made = _gemm(w, rows, have, weight, product, grid, "")
    leading = w.node("Slice", (w.node("Shape", [a]), w.ints([0]), w.ints([-1])))
    w.node("Reshape", (made, w.node("Concat", (leading, w.ints([width])), axis=0)), out)


def _gemm(w: Writer, a: str, have: QuantParams, weight: Weight, product: Product, grid: QuantParams, out: str) -> str:
    matrix = w.array(weight.values, f"{w.label}_weight", weight.source)
    scales = ort_weight_scales(product.scale, have.scale[0])
    zeros = w.scalar(weight.zero, "int8")
    if not is_uniform(scales):  # QGemm wants as many zero points as scales
        zeros = w.array(np.full(len(product.scale), weight.zero, np.int8), f"{w.label}_zero_points")
    bias = "".join(bias_of(w, product))
    inputs = (*w.on(a, have), matrix, weight_scales(w, scales), zeros, bias, w.scale(grid), w.zero(grid))
    return w.node("QGemm", inputs, out, domain=MICROSOFT)


def _pointwise(
    w: Writer, a: str, have: QuantParams, weight: Weight, product: Product, grid: QuantParams, rank: int, out: str
) -> None:
    """A convolution with a kernel of ones over [N, positions..., K]; a matrix becomes [1, rows, K] for it."""
    flat = rank == 2
    spatial = max(rank, 3) - 2
    if flat:
        a = w.node("Unsqueeze", (a, w.ints([0])))
    kernel = weight.values.T.reshape(weight.values.shape[::-1] + (1,) * spatial)  # a view: large ones are never copied
    scales = weight_scales(w, ort_weight_scales(product.scale, have.scale[0]))
    matrix, zero = w.array(kernel, f"{w.label}_weight", weight.source), w.scalar(weight.zero, "int8")
    inputs = [*w.on(a, have), matrix, scales, zero, w.scale(grid), w.zero(grid), *bias_of(w, product)]
    last = "" if flat else out
    if w.standard:
        inputs[0] = to_first(w, a, spatial)
        made = w.node("QLinearConv", inputs, kernel_shape=[1] * spatial)
        made = to_last(w, made, spatial, last)
    else:
        made = w.node("QLinearConv", inputs, last, domain=MICROSOFT, kernel_shape=[1] * spatial, channels_last=1)
    if flat:
        w.node("Squeeze", (made, w.ints([0])), out)


# -- anything else ----------------------------------------------------------------------------------------------------
def _general(w: Writer, op: MatMul, matrix: Weight | None, product: Product, out: str) -> None:
    """Two activations, vectors, and stacks of matrices."""
    (a, a_grid), b, b_zero = (w.read(op.inputs[0]), w.graph.params(op.inputs[0])), "", ""
    if matrix is not None:
        a = _operand(w, op, matrix)
        b, b_zero = w.array(matrix.values, f"{w.label}_weight", matrix.source), w.scalar(matrix.zero, "int8")
    else:
        b, b_grid = w.read(op.inputs[1]), w.graph.params(op.inputs[1])
        if stored(a_grid) == "int8" and stored(b_grid) == "uint8":  # the one pair no kernel takes
            b, b_grid = w.as_dtype(op.inputs[1], "int8")
        b_zero = w.zero(b_grid)
    grid = product.grid
    if grid is not None and product.bias is None and product.scale.size == 1 and grid.container == a_grid.container:
        made = w.target(op.lo, op.hi, stored(grid), out)
        scale = w.scalar(ort_weight_scales(product.scale, a_grid.scale[0])[0], "float32")
        plain = in_bytes(grid, stored(grid))
        w.node("QLinearMatMul", (*w.on(a, a_grid), b, scale, b_zero, w.scale(plain), w.zero(plain)), made)
        w.clip(made, op.lo, op.hi, stored(grid), out)
        return
    last = out if grid is None and not product.real else ""
    acc = w.node("MatMulInteger", (a, b, w.zero(a_grid), b_zero), last)
    if grid is not None:
        _requantize(w, acc, product, a_grid, grid, out)
    elif product.real:
        to_real(w, acc, product, out)


def _requantize(w: Writer, acc: str, product: Product, have: QuantParams, grid: QuantParams, out: str) -> None:
    """What the QLinear kernels do to an accumulator, spelled out: one float32 factor, rounding, zero point."""
    if product.bias is not None:
        acc = w.node("Add", (acc, *bias_of(w, product)))
    factors = ort_multipliers(product.scale, have.scale[0], grid.scale[0])
    real = w.node("Mul", (w.node("Cast", [acc], to=TensorProto.FLOAT), weight_scales(w, factors)))
    unit = QuantParams.per_tensor(1.0, grid.zero_point[0], stored(grid))
    w.quantize(real, unit, out, product.lo, product.hi)

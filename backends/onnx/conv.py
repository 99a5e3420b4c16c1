"""Conv, by what its weight is: constant (`products`), transposed (`transposed`), or computed at run time."""

from __future__ import annotations

from typing import Any

from qatc.backends.onnx.convolution import Convolution, moves_of
from qatc.backends.onnx.products import Product, bias_of, converted, product_of, weight_scales, write
from qatc.backends.onnx.transposed import transposed
from qatc.backends.onnx.weights import narrow
from qatc.backends.onnx.writer import Writer, in_bytes, stored
from qatc.compiler.arithmetic import ort_weight_scales
from qatc.compiler.integer import Conv, Dequantize


def conv(w: Writer, op: Conv, fused: Dequantize | None = None) -> None:
    """`Conv`, together with the Dequantize that alone reads its raw accumulator, if given."""
    product = product_of(w, op, fused)
    out = fused.output if fused is not None else op.output
    if op.inputs[1] not in w.graph.constants:
        _with_computed_weight(w, op, product, out)
        return
    weight = narrow(w.graph, op.inputs[1], 0 if op.transposed else 1)
    if op.transposed:
        transposed(w, op, weight, product, out)
        return
    grid = w.graph.params(op.inputs[0]).channel(0)  # scales per channel are in the accumulator's, like the weight's
    convolution = Convolution(w.read(op.inputs[0]), grid, weight, op.strides, op.pads, op.dilations, op.groups)
    write(w, convolution, product, out)


def _with_computed_weight(w: Writer, op: Conv, product: Product, out: str) -> None:
    """A convolution with a weight of run time, both in uint8: the one pair that no processor saturates."""
    (x, grid), (weight, theirs) = (w.as_dtype(name, "uint8") for name in op.inputs[:2])
    attributes: dict[str, Any] = {**moves_of(op), "group": op.groups}
    if product.grid is None:
        last = "" if product.real else out
        acc = w.node("ConvInteger", (x, weight, w.zero(grid), w.zero(theirs)), last, **attributes)
        converted(w, acc, product, len(op.strides), out)
        return
    end = w.ending("uint8", stored(product.grid), product.lo, product.hi, out)
    inside = in_bytes(product.grid, "uint8")
    scales = weight_scales(w, ort_weight_scales(product.scale, grid.scale[0]))
    inputs = [*w.on(x, grid), weight, scales, w.zero(theirs), w.scale(inside), w.zero(inside), *bias_of(w, product)]
    w.node("QLinearConv", inputs, end.kernel, **attributes)
    w.end(end)

"""Conv: QLinearConv; where the raw accumulator is read, ConvInteger or MatMulInteger over unrolled windows.

ConvInteger is as fast as a float convolution if its weights are uint8: they are the left side of its matrix product,
for which ONNX Runtime has fast kernels of unsigned bytes alone (four times as fast as with int8, measured,
docs/performance.md). It gathers windows and packs weights at each call. With many channels it is faster to unroll the
windows in channels-last order by slices and concatenation, one spatial axis after the other, and to multiply with
MatMulInteger, which packs its weights once. With `standard` it is always ConvInteger.

With the option `accumulators=fast` it is a float convolution where channels are few: of the integers, exact as long as
every sum fits 24 bits, where the accumulator itself is read; of scaled weights, exact but for float rounding, where
real numbers are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from onnx import TensorProto

from qatc.backends.onnx.convolution import Convolution, moves_of
from qatc.backends.onnx.groups import joined, together
from qatc.backends.onnx.islands import ends_on_grid
from qatc.backends.onnx.moves import to_first, to_last
from qatc.backends.onnx.stem import widened
from qatc.backends.onnx.weights import Weight
from qatc.backends.onnx.writer import INT64_MAX, Writer, in_bytes, stored
from qatc.compiler.arithmetic import ort_weight_scales
from qatc.compiler.integer import Conv, Dequantize, MatMul
from qatc.compiler.model.protos import MICROSOFT
from qatc.compiler.quant import Array, Floats, QuantParams

_EXACT_FLOAT: Final = 1 << 24  # float32 holds every integer up to here
_FEW_CHANNELS: Final = 16  # unrolling copies runs of so many bytes at least
_PER_GROUP: Final = 1 << 15  # products with zero that take less time than a matrix product begins


@dataclass(frozen=True)
class Product:
    """What becomes of an accumulator: an 8-bit result (`grid`), real numbers (`real`), or the accumulator itself.

    `rounded` real numbers end on a grid (see `islands`), `transposed` ones are read by a Transpose.
    `scale` is what a unit of the accumulator is worth, one number or one per output channel. `bias` is int32 for an
    8-bit result and float32 for real numbers; `bias_source` is its name in the integer graph.
    """

    scale: Array
    bias: Array | None = None
    grid: QuantParams | None = None
    lo: int = 0
    hi: int = 0
    real: bool = False
    rounded: bool = False
    transposed: bool = False
    bias_source: str = ""


def product_of(w: Writer, op: Conv | MatMul, fused: Dequantize | None) -> Product:
    """What becomes of an operator's accumulator, `fused` being the Dequantize that alone reads it, if there is one."""
    scale, out = np.asarray(op.acc_scale, np.float64), w.graph.params(op.output)
    if fused is not None:
        bias = w.graph.constants[fused.inputs[1]] if len(fused.inputs) > 1 else None
        return Product(
            np.asarray(out.scale, np.float32), bias, real=True, rounded=w.float_sums and ends_on_grid(w, fused),
            transposed=w.is_transposed(fused.output),
        )  # fmt: skip
    if out.dtype == "int32":
        return Product(scale)
    name = "".join(op.inputs[2:])  # one at most
    bias = w.graph.constants[name] if name else None
    return Product(scale, bias, out, op.lo, op.hi, bias_source=name)


def write(w: Writer, c: Convolution, product: Product, out: str) -> None:
    """The convolution [N, M, spatial...] as operators that end in the tensor `out`."""
    if c.weight.doubled:
        c = _repeated(w, c)
    if product.grid is not None:
        _quantized(w, widened(w, joined(w, c)), product, product.grid, out)
    elif w.float_sums and not w.standard and _is_better_in_float(c):
        _float_conv(w, c, product, out)
    else:
        _accumulated(w, c, product, out)


def _repeated(w: Writer, c: Convolution) -> Convolution:
    """The input's channels twice, group by group, for a weight in two halves."""
    if c.groups == 1:
        return replace(c, x=w.node("Concat", (c.x, c.x), axis=1))
    size = c.weight.values.shape[1] // 2
    twice = [group * size + i for group in range(c.groups) for _ in range(2) for i in range(size)]
    return replace(c, x=w.node("Gather", (c.x, w.ints(twice)), axis=1))


def _quantized(w: Writer, c: Convolution, product: Product, grid: QuantParams, out: str) -> None:
    """QLinearConv and its clamp."""
    scales = ort_weight_scales(product.scale, c.grid.scale[0])
    end = w.ending(stored(c.grid), stored(grid), product.lo, product.hi, out)
    inside = in_bytes(grid, stored(c.grid))
    weight = w.array(c.weight.values, f"{w.label}_weight", c.weight.source)
    inputs = [*w.on(c.x, c.grid), weight, weight_scales(w, scales), w.scalar(c.weight.zero, "int8")]
    inputs += [w.scale(inside), w.zero(inside), *bias_of(w, product)]
    w.node("QLinearConv", inputs, end.kernel, **_attributes(c))
    w.end(end)


def bias_of(w: Writer, product: Product) -> list[str]:
    """The bias of a kernel that rounds, as its last operand; nothing where there is none."""
    return [] if product.bias is None else [w.array(product.bias, f"{w.label}_bias", product.bias_source)]


def is_uniform(scales: Floats) -> bool:
    """Whether the scales of all channels are one."""
    return scales.size == 1 or bool((scales == scales[0]).all())


def weight_scales(w: Writer, scales: Floats) -> str:
    """Weight scales as a constant: a scalar where they are one."""
    if is_uniform(scales):
        return w.scalar(scales[0], "float32")
    return w.array(scales, f"{w.label}_weight_scale")


def _attributes(c: Convolution) -> dict[str, Any]:
    return {**moves_of(c), "kernel_shape": list(c.kernel), "group": c.groups}


# -- accumulators -----------------------------------------------------------------------------------------------------
def _accumulated(w: Writer, c: Convolution, product: Product, out: str) -> None:
    """The accumulator, or the real numbers that it stands for, in the fastest of the integer forms."""
    if not w.standard and _is_better_dense(w, c):
        c = together(c, c.groups)
    if not w.standard and _is_better_unrolled(c):
        _unrolled(w, c, product, out)
    else:
        acc = _conv_integer(w, c, "" if product.real else out)
        converted(w, acc, product, c.spatial, out)


def _unrolled(w: Writer, c: Convolution, product: Product, out: str) -> None:
    """The accumulator as one matrix product: windows [N, spatial..., kernel x C] times weight [kernel x C, M]."""
    rows = to_last(w, c.x, c.spatial)
    if not c.is_pointwise:
        rows = _windows(w, c, rows)
    filters = c.weight.values.shape[0]
    matrix = c.weight.values.transpose([*range(2, c.spatial + 2), 1, 0]).reshape(-1, filters)
    made = multiply(w, rows, c.grid, replace(c.weight, values=np.ascontiguousarray(matrix)), product, "")
    to_first(w, made, c.spatial, out)


def _windows(w: Writer, c: Convolution, x: str) -> str:
    """Unroll axis by axis, the last one first: what a kernel reads along it lies side by side in the channels."""
    rank = c.spatial
    if any(c.pads):
        widths = [0, *c.pads[:rank], 0, 0, *c.pads[rank:], 0]
        x = w.node("Pad", (x, w.ints(widths), w.zero(c.grid)))
    for axis in reversed(range(rank)):
        size, stride, dilation = c.kernel[axis], c.strides[axis], c.dilations[axis]
        if size == 1 and stride == 1:
            continue
        parts: list[str] = []
        for at in range(size):
            beyond = (size - 1 - at) * dilation
            inputs = (x, w.ints([at * dilation]), w.ints([-beyond or INT64_MAX]), w.ints([axis + 1]), w.ints([stride]))
            parts.append(w.node("Slice", inputs))
        x = w.node("Concat", parts, axis=rank + 1) if len(parts) > 1 else parts[0]
    return x


def multiply(w: Writer, a: str, grid: QuantParams, weight: Weight, product: Product, out: str) -> str:
    """The matrix product of integers `a` with a weight [..., K, N], as int32 or as real numbers."""
    b = w.array(weight.values, f"{w.label}_weight", weight.source)
    zero = w.scalar(weight.zero, "int8") if weight.zero else ""
    if product.real and not w.standard:
        unit = w.scalar(1.0, "float32")
        return _multiply_to_real(w, [a, b, unit, _real_scale(w, product), w.zero(grid), zero], product, out)
    inputs = [a, b, w.zero(grid), zero]
    acc = w.node("MatMulInteger", inputs if zero else inputs[:3], "" if product.real else out)
    return to_real(w, acc, product, out) if product.real else acc


def to_real(w: Writer, acc: str, product: Product, out: str) -> str:
    """The real numbers of accumulators [..., N]."""
    last = out if product.bias is None else ""
    made = w.node("Mul", (w.node("Cast", [acc], to=TensorProto.FLOAT), _real_scale(w, product)), last)
    return made if product.bias is None else _add_bias(w, made, product, out)


def _multiply_to_real(w: Writer, inputs: list[str], product: Product, out: str) -> str:
    """MatMulIntegerToFloat; its bias has one element per column."""
    columns = product.bias is not None and product.bias.size > 1
    if columns:
        inputs = [*inputs, w.array(np.asarray(product.bias, np.float32).reshape(-1), f"{w.label}_bias")]
    while not inputs[-1]:
        inputs.pop()
    apart = product.bias is not None and not columns
    made = w.node("MatMulIntegerToFloat", inputs, "" if apart else out, domain=MICROSOFT)
    return _add_bias(w, made, product, out) if apart else made


def _real_scale(w: Writer, product: Product) -> str:
    scale = np.asarray(product.scale, np.float32)
    return w.scalar(scale[0], "float32") if scale.size == 1 else w.array(scale, f"{w.label}_scale")


def _add_bias(w: Writer, made: str, product: Product, out: str) -> str:
    bias = np.asarray(product.bias, np.float32).reshape(-1)
    return w.node("Add", (made, w.array(bias, f"{w.label}_bias")), out)


def _is_better_unrolled(c: Convolution) -> bool:
    """Whether windows are unrolled in long runs: many channels that all meet, side by side."""
    return c.groups == 1 and c.weight.values.shape[1] >= _FEW_CHANNELS


def _is_better_dense(w: Writer, c: Convolution) -> bool:
    """Whether it is so small that one matrix product with zeros is faster than one for each group."""
    shape = w.graph.tensors[c.x].shape if c.x in w.graph.tensors else None
    sizes = [size for size in shape[2:] if isinstance(size, int)] if shape is not None else []
    if c.groups == 1 or len(sizes) < c.spatial:
        return False
    return c.weight.values.size * math.prod(sizes) // math.prod(c.strides) <= _PER_GROUP


def _is_better_in_float(c: Convolution) -> bool:
    """Whether unrolling would copy short runs only, and a float convolution of the integers is exact.

    It is, in whatever order it sums, if every partial sum fits the 24 bits of a float32.
    """
    if _is_better_unrolled(c):
        return False
    values = c.weight.values
    sums = np.abs(values.astype(np.int32) - c.weight.zero).sum(axis=tuple(range(1, values.ndim)))
    reach = max(abs(c.grid.qmin - c.grid.zero_point[0]), abs(c.grid.qmax - c.grid.zero_point[0]), 1)
    return int(sums.max(initial=0)) * reach < _EXACT_FLOAT


def _conv_integer(w: Writer, c: Convolution, out: str) -> str:
    """ConvInteger of uint8 and uint8, which has all kernels; int8 is moved there, exactly."""
    x, grid = c.x, c.grid
    if stored(grid) == "int8":
        grid = in_bytes(grid, "uint8")
        x = w.shift(x, "int8", "uint8")
    values = np.ascontiguousarray(c.weight.values).view(np.uint8) ^ np.uint8(128)  # + 128
    weight, zero = w.array(values, f"{w.label}_weight", c.weight.source), w.scalar(c.weight.zero + 128, "uint8")
    return w.node("ConvInteger", (x, weight, w.zero(grid), zero), out, **_attributes(c))


def _float_conv(w: Writer, c: Convolution, product: Product, out: str) -> None:
    """A float convolution: of integers, to read the accumulator, or of scaled weights, to read real numbers."""
    unit = QuantParams.per_tensor(1.0, c.grid.zero_point[0], stored(c.grid))
    centered = w.dequantize(c.x, unit, w.fresh(f"{w.label}_centered"), plain=product.rounded)
    values = c.weight.values
    if c.weight.zero:
        values = values.astype(np.int16) - np.int16(c.weight.zero)
    if not product.real:
        kernel = w.node("Cast", [w.array(values, f"{w.label}_weight", c.weight.source)], to=TensorProto.FLOAT)
        w.node("Cast", [w.node("Conv", (centered, kernel), **_attributes(c))], out, to=TensorProto.INT32)
        return
    scale = np.asarray(product.scale, np.float32).reshape(-1, *(1,) * (values.ndim - 1))
    inputs = [centered, w.array(values.astype(np.float32) * scale, f"{w.label}_weight", c.weight.source)]
    if product.bias is not None:
        bias = np.broadcast_to(np.asarray(product.bias, np.float32).reshape(-1), values.shape[:1])
        inputs.append(w.array(np.ascontiguousarray(bias), f"{w.label}_bias"))
    w.node("Conv", inputs, out, **_attributes(c))


def converted(w: Writer, acc: str, product: Product, spatial: int, out: str) -> None:
    """int32 accumulators [N, M, spatial...] to real numbers, if those are wanted."""
    if not product.real:
        return
    scale = np.asarray(product.scale, np.float32)
    last = out if product.bias is None else ""
    if scale.size == 1:
        real = w.real_sums(acc, _real_scale(w, product), last)
    elif product.transposed and last:
        shaped = scale.reshape(_per_channel(scale.size, spatial))
        real = w.real_sums(acc, w.array(shaped, f"{w.label}_scale"), last)
    else:
        real = w.node("DequantizeLinear", (acc, _real_scale(w, product)), last, axis=1)
    if product.bias is not None:
        bias = np.asarray(product.bias, np.float32)
        bias = bias.reshape(_per_channel(bias.size, spatial))
        w.node("Add", (real, w.array(bias, f"{w.label}_bias")), out)


def _per_channel(size: int, spatial: int) -> Sequence[int]:
    return (size, *(1,) * spatial) if size > 1 else ()

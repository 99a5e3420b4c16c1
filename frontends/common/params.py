"""Quantization parameters as exporters write them, read into QuantParams; what is wrong with them becomes a diagnostic.

Exporters write a per-tensor scale as a scalar, as [1], or as [1,1,1,1], with an axis that means nothing; a per-channel
one as [C] or [C,1,1,1], with an axis from either end. Zero points may be absent, or shorter than the scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import onnx

from qatc.compiler.graph import Constant, Dim, Node, QuantGraph, shape_of, value_of
from qatc.compiler.model.links import label_of
from qatc.compiler.quant import DTYPES, LARGEST, SMALLEST, Array, QuantParams, dtype_name, dtype_range
from qatc.frontends.common.operands import constant_input, refuse

_HINT_SCALE: Final = (
    "a scale must be positive, finite and at least 1.18e-38; zero means that the range was never observed;"
    " NNCF's symmetric compression of weights makes negative ones: use nncf.quantize, or compress asymmetrically"
)
_HINT_RANK: Final = "pin the inputs' shapes with -s NAME=1,3,224,224, from which ranks follow; or export with shapes"
_HINT_AXIS: Final = "the exporter states another axis than it quantized: set the node's axis, or export again"
_HINT_INFINITE: Final = (
    "masks of attention hold infinite numbers (-inf) or nearly so (torch.finfo.min): mask with one such as -1e4,"
    " or leave the mask and its sum unquantized"
)
_FORMATS: Final = {
    "float8_e4m3fn": "FP8 E4M3 (float8_e4m3fn)",
    "float8_e4m3fnuz": "FP8 E4M3 (float8_e4m3fnuz)",
    "float8_e5m2": "FP8 E5M2 (float8_e5m2)",
    "float8_e5m2fnuz": "FP8 E5M2 (float8_e5m2fnuz)",
    "float4_e2m1fn": "FP4 E2M1 (float4_e2m1fn)",
}
OF_ELEMENT: Final[dict[int, str]] = {  # TensorProto's number -> the integer type that it stands for
    kind: name.lower() for name, kind in onnx.TensorProto.DataType.items() if name.lower() in DTYPES
}
BYTES: Final = {kind: name for kind, name in OF_ELEMENT.items() if name in ("int8", "uint8")}
_SHOWN: Final = 3  # wrong values that a message lists
_EMPTY: Final = 2.0**-14  # the step of a weight that only holds zeros: any does, this one leaves room for a bias


def quantized_dtype(dtype: np.dtype[np.generic]) -> str | None:
    """The name of an integer type that can be quantized (int4 ... uint16, int32), None for all others."""
    name = dtype_name(dtype)
    return name if name in DTYPES else None


def integer_range(bits: float, signed: bool, narrow: bool = False) -> tuple[int, int]:
    """The smallest and largest integer of so many bits; QONNX has fractional ones, whose bounds are rounded.

    >>> integer_range(8, True, True), integer_range(4, False), integer_range(32, False)
    ((-127, 127), (0, 15), (0, 2147483647))
    """
    if signed:
        return round(-(2.0 ** (bits - 1)) + narrow), round(2.0 ** (bits - 1) - 1)
    return 0, min(round(2.0**bits - 1 - narrow), 2**31 - 1)  # no unsigned 32-bit type: int32 holds the lower half


def make_params(
    graph: QuantGraph,
    node: Node,
    scale: Array,
    zero_point: Array | None,
    dtype: str,
    *,
    axis: int | None = None,
    shape: Sequence[Dim] | None = None,
    qmin: int | None = None,
    qmax: int | None = None,
    tensor: str | None = None,
) -> QuantParams | None:
    """Check parameters and build QuantParams; None with every finding recorded where they are wrong.

    Args:
        graph: collects the diagnostics (QAT103, QAT104, QAT201, QAT202, QAT204, QAT009).
        node: the node that states the parameters, for the diagnostics.
        scale: one number in any shape, C numbers, or an array that broadcasts along one dimension of the tensor.
        zero_point: integers (or whole floats) in the form of `scale`, or one for all; None means zero.
        dtype: name of the integer type.
        axis: the channel axis, counted from either end; ignored where `scale` has one element.
        shape: of the quantized tensor, as far as it is known.
        qmin: lower end of the range, the type's own where None.
        qmax: upper end of the range.
        tensor: the quantized tensor's name, for the diagnostics.
    """
    found = _Reader(graph, node, tensor)
    scales = found.scales(scale)
    low, high = dtype_range(dtype)
    low, high = (low if qmin is None else qmin), (high if qmax is None else qmax)
    if scales is None or not found.range_fits(dtype, low, high):
        return None
    zeros = found.zeros(zero_point, len(scales), dtype)
    if zeros is None:
        return None
    channel: int | None = None
    if len(scales) > 1:
        channel = found.axis(scale.shape, len(scales), axis, shape)
        if channel is None:
            return None
    if 0.0 in scales:
        if channel is None or not found.empty(np.equal(scales, 0), np.asarray(zeros), channel):
            return None
        alive = [s for s in scales if s]
        usual = float(np.median(alive)) if alive else _EMPTY
        scales = [s or usual for s in scales]
    params = QuantParams(tuple(scales), tuple(zeros), dtype, channel, low, high)
    return params if found.finite(params) else None


def on_whole_zero(scale: float, zero: float, bounds: tuple[int, int]) -> tuple[int, float]:
    """The whole zero point within `bounds` nearest to a real one, and what real numbers on its grid lack.

    >>> on_whole_zero(0.5, 2.25, (0, 255)), on_whole_zero(0.5, -3.0, (0, 255))
    ((2, -0.125), (0, 1.5))
    """
    whole = int(min(max(np.rint(zero), bounds[0]), bounds[1]))
    return whole, scale * (whole - zero)


class _Reader:
    """Checks the parts of one node's parameters; every method returns None after recording what is wrong."""

    def __init__(self, graph: QuantGraph, node: Node, tensor: str | None) -> None:
        self.graph, self.found, self.node, self.tensor = graph, graph.diagnostics, node, tensor

    def _error(self, code: str, message: str, hint: str | None = None) -> None:
        self.found.error(code, message, node=label_of(self.node), tensor=self.tensor, hint=hint)

    def scales(self, scale: Array) -> list[float] | None:
        if scale.dtype.kind in "biuOSU" or not scale.size:
            self._error("QAT104", f"the scale is of type {scale.dtype} and shape {list(scale.shape)}")
            return None
        if scale.dtype != np.float32:
            with np.errstate(over="ignore"):
                scale = scale.astype(np.float32)
        values: list[float] = scale.reshape(-1).tolist()
        least = 0.0 if len(values) > 1 else SMALLEST  # a dead channel is no error
        bad = [v for v in values if not least <= v <= LARGEST]  # NaN among them
        if bad:
            shown = ", ".join(f"{v:.9g}" for v in bad[:_SHOWN])
            many = f" ({len(bad)} of {len(values)} channels)" if len(values) > 1 else ""
            self._error("QAT201", f"the scale is {shown}{many}", _HINT_INFINITE if math.isinf(bad[0]) else _HINT_SCALE)
            return None
        return [v if v >= SMALLEST else 0.0 for v in values]  # what float32 cannot hold with all its digits is none

    def empty(self, dead: Array, zeros: Array, axis: int) -> bool:
        """Channels of a constant whose scale is zero hold nothing but zeros: say so, and make it so."""
        reader = self._reader_of_constant()
        if reader is None and self.node.op == "DequantizeLinear":
            return True  # its QuantizeLinear says it
        many = f"{int(dead.sum())} of {dead.size} channels"
        if reader is None:
            self._error("QAT201", f"the scale of {many} is 0", _HINT_SCALE)
            return False
        value = np.asarray(value_of(reader.inputs[0]))
        if value.shape[axis : axis + 1] != dead.shape:  # not the shape that the file states behind the Clip
            self._error("QAT204", f"{dead.size} scales along axis {axis} of a constant of shape {_shown(value.shape)}")
            return False
        shape = [-1 if i == axis else 1 for i in range(value.ndim)]
        nothing = zeros if value.dtype.kind in "iu" else np.zeros_like(zeros)
        emptied = np.where(dead.reshape(shape), nothing.reshape(shape), value).astype(value.dtype)
        reader.inputs[0] = self.graph.constant(reader.inputs[0].name, emptied)
        self.found.note(
            "QAT201",
            f"the scale of {many} is 0: they hold zeros",
            node=label_of(self.node),
            tensor=self.tensor,
            hint="prune these channels, or keep their weights away from zero in training",
        )
        return True

    def finite(self, params: QuantParams) -> bool:
        """Whether the integers of a constant stand for numbers that float32 holds; those of others are not known."""
        ends = zip(params.scale, params.zero_point, strict=True)
        if all(scale * max(params.qmax - zero, zero - params.qmin) <= LARGEST for scale, zero in ends):
            return True
        reader = self._reader_of_constant()
        value = None if reader is None else value_of(reader.inputs[0])
        if value is None or (params.is_per_channel and value.ndim <= (params.axis or 0)):
            return True
        is_whole = value.dtype.kind in "iu"
        if not is_whole and np.isnan(value).any():
            return True  # which is told where the constant is quantized
        whole = value.astype(np.int64).clip(params.qmin, params.qmax) if is_whole else params.quantize(value)
        real = params.dequantize(whole)
        if np.isfinite(real).all():
            return True
        self._error(
            "QAT201", f"the integers of this constant are infinite: {max(params.scale):.9g} a step", _HINT_INFINITE
        )
        return False

    def _reader_of_constant(self) -> Node | None:
        """The node itself or the Clip above it, whichever reads a constant; None where neither does."""
        if isinstance(self.node.inputs[0], Constant):
            return self.node
        above = self.graph.producer(self.node.inputs[0])
        return above if above is not None and above.op == "Clip" and isinstance(above.inputs[0], Constant) else None

    def range_fits(self, dtype: str, qmin: int, qmax: int) -> bool:
        low, high = dtype_range(dtype)
        if low <= qmin <= qmax <= high:
            return True
        self._error("QAT104", f"the range {qmin}..{qmax} is empty or does not fit {dtype}")
        return False

    def zeros(self, zero_point: Array | None, count: int, dtype: str) -> list[int] | None:
        if zero_point is not None and zero_point.dtype.kind not in "iu":
            zero_point = zero_point.astype(np.float64)
        values: list[float] = [0] if zero_point is None else zero_point.reshape(-1).tolist()
        if len(values) not in (1, count):
            self._error("QAT204", f"{count} scales but {len(values)} zero points")
            return None
        low, high = dtype_range(dtype)
        wrong = next((v for v in values if not (low <= v <= high and v == int(v))), None)
        if wrong is not None:
            self._error("QAT202", f"the zero point {wrong:.9g} is no integer of {dtype} [{low}, {high}]")
            return None
        whole = [int(v) for v in values]
        return whole if len(whole) == count else whole * count

    def axis(self, stated: tuple[int, ...], count: int, axis: int | None, shape: Sequence[Dim] | None) -> int | None:
        """The channel axis from the front, checked against the tensor's shape."""
        if len(stated) > 1:
            return self._broadcast_axis(stated, shape)
        wanted = 1 if axis is None else axis
        if shape is None:
            if wanted >= 0:
                return wanted
            message = f"{count} scales along axis {wanted}, from the end of a tensor whose rank is not known"
            self._error("QAT009", message, _HINT_RANK)
            return None
        front = wanted + len(shape) if wanted < 0 else wanted
        if not 0 <= front < len(shape):
            self._error(
                "QAT204", f"{count} scales along axis {wanted} of a tensor of shape {_shown(shape)}", _HINT_AXIS
            )
            return None
        size = shape[front]
        if isinstance(size, int) and size != count:
            self._error(
                "QAT204",
                f"{count} scales along axis {wanted}, which has {size} elements: shape {_shown(shape)}",
                _HINT_AXIS,
            )
            return None
        return front

    def _broadcast_axis(self, stated: tuple[int, ...], shape: Sequence[Dim] | None) -> int | None:
        """The one dimension along which a scale such as [C,1,1,1] varies."""
        varying = [i for i, d in enumerate(stated) if d != 1]
        if len(varying) != 1 or (shape is not None and len(stated) > len(shape)):
            self._error(
                "QAT103",
                f"the scale has shape {list(stated)}: block-wise quantization",
                "quantize per tensor or per channel; blocks of a few weights have no integer form here",
            )
            return None
        if shape is None:
            return varying[0]
        front = varying[0] + len(shape) - len(stated)
        size = shape[front]
        if isinstance(size, int) and size != stated[varying[0]]:
            self._error("QAT204", f"a scale of shape {list(stated)} for a tensor of shape {_shown(shape)}")
            return None
        return front


def _shown(shape: Sequence[Dim]) -> str:
    return "[" + ", ".join("?" if d is None else str(d) for d in shape) + "]"


def linear_params(
    graph: QuantGraph,
    node: Node,
    stored: np.dtype[np.generic] | None = None,
    shape: Sequence[Dim] | None = None,
) -> QuantParams | None:
    """The parameters of a QuantizeLinear or DequantizeLinear (any opset, com.microsoft too); None where they are wrong.

    The integer type is that of the constant integers that a DequantizeLinear reads, the zero point's, that of the
    integers it reads otherwise (`stored`, where the caller knows it), or `output_dtype`. `shape` is that of the tensor,
    where the caller knows it and the graph does not.
    """
    x = node.inputs[0]
    scale = constant_input(graph, node, 1, "scale")
    has_zero = node.optional(2) is not None
    zero = constant_input(graph, node, 2, "zero point") if has_zero else None
    if scale is None or (has_zero and zero is None):
        return None
    kind = integer_type(node, zero, stored)
    dtype = quantized_dtype(kind)
    if dtype is None or node.attr("block_size", 0):
        message = f"{node.op} {'to' if node.op.startswith('Q') else 'of'} {_format_of(node, kind, scale)}"
        hint = "only affine integers per tensor or per channel can be compiled; quantize to int8 when training"
        refuse(graph, node, "QAT103", message, hint)
        return None
    known = shape_of(x) if shape is None else shape
    vector = known is not None and len(known) == 1  # has one axis, even where a bias is left with the default of 1
    axis = 0 if vector else int(node.attr("axis", 1))
    return make_params(graph, node, scale, zero, dtype, axis=axis, shape=known, tensor=x.name)


def _format_of(node: Node, kind: np.dtype[np.generic], scale: Array) -> str:
    """A number format that is no affine integer grid, in the words of its users."""
    name, block = str(kind.name), int(node.attr("block_size", 0) or 0)
    plain = _FORMATS.get(name, name)
    if scale.dtype.name == "float8_e8m0fnu":
        plain = f"microscaling {plain}"
    return f"{plain} in blocks of {block}" if block else plain


def integer_type(node: Node, zero: Array | None, stored: np.dtype[np.generic] | None = None) -> np.dtype[np.generic]:
    """The type of the integers that a QuantizeLinear writes or a DequantizeLinear reads, whose zero point is `zero`.

    `stored` is that of the integers where the caller knows it and the graph does not.
    """
    held = value_of(node.inputs[0]) if node.op == "DequantizeLinear" else None
    if held is not None and quantized_dtype(held.dtype) is not None:
        return held.dtype  # the zero point may be written in a wider type, but not be out of this one's range
    if zero is not None:
        return zero.dtype
    if stored is not None:
        return stored
    kind = node.attr("output_dtype", 0) if node.op == "QuantizeLinear" else node.inputs[0].dtype
    if not kind:
        return np.dtype(np.uint8)
    return onnx.helper.tensor_dtype_to_np_dtype(kind) if isinstance(kind, int) else np.dtype(kind)

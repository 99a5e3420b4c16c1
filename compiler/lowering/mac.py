"""Multiply-accumulate nodes: Conv, ConvTranspose, Gemm and MatMul become integer operators with int32 bias.

A weight of few bits makes a coarse accumulator: its unit s_x * s_w can be so large that rounding the bias onto it costs
whole output LSBs. Multiplying such integers by m (and dividing their scale by m) is exact and refines the unit m-fold.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from qatc.compiler.graph import Constant, Node, Tensor, shape_of
from qatc.compiler.integer import Conv, Dequantize, Float, MatMul, Shape, raw_accumulator
from qatc.compiler.lowering.operands import Operands, sixteen_bits
from qatc.compiler.lowering.refusals import (
    LARGEST_BIAS,
    axis_refusal,
    bias_refusal,
    channel_axis,
    channels_of,
    kernel_of,
    misshapen,
    refusal,
    result_rank,
    weight_params,
)
from qatc.compiler.lowering.state import State
from qatc.compiler.model.links import label_of
from qatc.compiler.passes.products import Vector, is_product, per_channel
from qatc.compiler.quant import LARGEST, SMALLEST, QuantParams, dtype_range
from qatc.compiler.windows import sized_window

_INT32: Final = dtype_range("int32")
_BIAS_LSB: Final = 2.0**-9  # a bias rounded more coarsely than this share of an output LSB asks for a finer unit
_COARSE: Final = 0.5  # and one more coarsely than this moves results by more than their own rounding does
_UNIT_ROUNDING: Final = 2.0**8  # what rounding the unit to float32 may add to a bias of 32 bits
_NOTHING: Final = 2.0**-9
_ALIVE: Final = SMALLEST * 2.0**32 / _NOTHING  # the unit of an accumulator of 32 bits beside which a smaller one is 0
_AMPLE: Final = 2.0**29  # a bias that is no larger leaves room for any sum of 8-bit products that fits at all


def operands(state: State, node: Node, alpha: float = 1.0) -> Operands | None:
    """The integer operands of a node, None where it must stay float. `alpha` scales the result."""
    if refusal(state, node):
        return None
    x, weight = node.inputs[0], node.inputs[1]
    x_params, w_params = state.params(x), weight_params(state, node)
    if x_params is None or w_params is None:
        return None
    if node.op == "Gemm":
        alpha *= float(node.attr("alpha", 1.0))
    unit: float | Vector = x_params.scale[0] * alpha
    if x_params.is_per_channel:
        unit = np.repeat(x_params.scale, (channels_of(node) or 0) // len(x_params.scale)) * alpha
    units = np.asarray(w_params.scale) * unit
    dead = units < SMALLEST
    is_spared = not dead.any() or (isinstance(weight, Constant) and not x_params.is_per_channel)
    if not (is_spared and np.median(units) >= (_ALIVE if dead.any() else 0.0) and units.max() <= LARGEST):
        return None  # nor where the factor is negative, or not a number
    name = _left(state, node)
    if not isinstance(weight, Constant):
        return Operands(node, name, weight, w_params, None, unit, 0, channels_of(node))
    values = state.graph.params[weight.name].moved(weight.values, w_params.dtype)
    if dead.any():
        values, w_params = _emptied(state, node, values, w_params, dead)
    return Operands(node, name, weight, w_params, values, unit, channel_axis(node, weight), channels_of(node))


def _emptied(
    state: State, node: Node, values: npt.NDArray[Any], params: QuantParams, dead: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[Any], QuantParams]:
    """A weight without what its `dead` channels hold: products that float32 does not hold with all their digits.

    Training leaves such weights where nothing behind a channel reads it; whatever the input, less than `_NOTHING` of a
    unit of the other channels comes of them.
    """
    shape = [-1 if i == params.axis else 1 for i in range(values.ndim)]
    scale = np.where(dead, np.median(params.scale), params.scale)
    state.graph.diagnostics.note(
        "QAT201",
        f"the scale of {int(dead.sum())} of {dead.size} channels times the input's is too small for float32: "
        "they hold zeros",
        node=label_of(node),
        tensor=node.inputs[1].name,
        hint="prune these channels, or keep their weights away from zero in training",
    )
    emptied = np.where(dead.reshape(shape), params.zero_array(values.ndim), values).astype(values.dtype)
    return emptied, replace(params, scale=tuple(scale.tolist()))


def _left(state: State, node: Node) -> str:
    """The integers of the first operand, as the product reads them."""
    x = node.inputs[0]
    name = state.int_name(x)
    return state.transposed(x, name, (1, 0)) if node.op == "Gemm" and node.attr("transA", 0) else name


def own_bias(state: State, node: Node) -> Vector | None:
    """The node's bias as one real number per channel; None where it has none (`refusal` knows the other cases)."""
    bias = None if node.op == "MatMul" else node.optional(2)
    if bias is None:
        return None
    beta = float(node.attr("beta", 1.0)) if node.op == "Gemm" else 1.0
    value = per_channel(state.graph.real(bias), -1, channels_of(node) or 0)
    return None if value is None else value * beta


def fused(state: State, node: Node, out: Tensor, bias: Vector | None, alpha: float, lo: int, hi: int) -> bool:
    """Lower `alpha * node + bias`, rounded onto the grid of `out`, to one operator; False where it must stay float."""
    params, found = state.usable(out), operands(state, node, alpha)
    if params is None or found is None:
        return False
    own = own_bias(state, node)
    total = sum_of(None if own is None else own * alpha, bias)
    if total.size and not (np.abs(total) <= LARGEST_BIAS).all():
        return False
    if found.values is None and total.size and (np.abs(total) > _AMPLE * found.acc_scale).any():
        return False  # the unit of a weight of run time stays what it is
    integers = tune(state, found, total, params.scale[0])
    inputs, result = [found.x, weight_name(state, found)], state.new_int(out)
    if integers is not None:
        inputs.append(state.build.constant(f"{out.name}_bias", integers))
        state.build.graph.real_biases[result] = total / found.acc_scale
    add(state, found, tuple(inputs), result, lo, hi)
    return True


def sum_of(*parts: Vector | None) -> Vector:
    """The sum of biases per channel, empty where there is none."""
    given = [p for p in parts if p is not None]
    return np.asarray(sum(given[1:], given[0])) if given else np.zeros(0)


def tune(state: State, found: Operands, bias: Vector, out_scale: float) -> npt.NDArray[np.int32] | None:
    """The int32 bias (None where there is none); the weight's integers and scales change where its unit is coarse."""
    if not bias.size:
        return None
    scale = np.broadcast_to(found.acc_scale, bias.shape)
    error = np.abs(np.rint(bias / scale) * scale - bias) / out_scale
    if error.max() > _BIAS_LSB and found.values is not None:
        _refine(found, out_scale, np.abs(bias / scale), error)
        scale = np.broadcast_to(found.acc_scale, bias.shape)
    if (np.abs(bias) > _AMPLE * scale).any():
        # the largest bias that leaves the accumulator inside 32 bits, whatever the input
        room = np.maximum(float(_INT32[1]) - _UNIT_ROUNDING - reach_of(found), 2.0**24)
        tight = np.abs(bias) > room * scale
        if tight.any():
            scale = _coarsen(state, found, np.where(tight, np.abs(bias) / room, scale), tight, out_scale)
    rounded = np.rint(bias / scale)
    _report_coarse(state, found.node, np.abs(rounded * scale - bias) / out_scale)
    return rounded.astype(np.int32)


def _report_coarse(state: State, node: Node, cost: Vector) -> None:
    """QAT303: what rounding the bias costs each channel, in output LSB, where that is more than half of one."""
    coarse = int((cost > _COARSE).sum())
    if not coarse:
        return
    state.graph.diagnostics.warning(
        "QAT303",
        f"the bias of {coarse} of {cost.size} channels is rounded to steps of input times weight, which are coarser"
        f" than the output's: that moves their results by up to {cost.max():.3g} output LSB",
        node=label_of(node),
        hint="train with weights quantized per channel, or with the bias rounded as integer hardware does",
    )


def _refine(found: Operands, out_scale: float, bias: Vector, error: Vector) -> None:
    """Make the accumulator's unit as fine as int8 weights allow, and 32 bits with the bias, which is in units.

    One factor for all, unless it leaves too large an `error`, in output LSB: then each channel has its own. The
    weight's zero point, if any, is subtracted.

    A channel without weight takes any scale (exporters write 1 there): one that holds its bias.
    """
    own, ndim = found.weight_params, found.integers.ndim
    centered = found.integers.astype(np.int32) - own.zero_array(ndim)
    alive = centered.any(axis=found.summed)
    most = reach_of(found) + np.where(bias <= _AMPLE, bias, 0)  # larger ones are made coarse
    peak = np.abs(centered).max(axis=found.summed, initial=1)
    gain = np.maximum(_gain(peak.max(initial=1), most.max(initial=1.0)), 1)
    axis = own.axis
    if not found.is_grouped and axis in (None, found.axis) and (error / gain > _COARSE)[alive].any():
        axis, gain = found.axis, np.maximum(_gain(peak, np.maximum(most, 1.0)), 1)
    if gain.max(initial=1) > 1:
        factor = gain.reshape([-1 if i == axis else 1 for i in range(ndim)])
        found.values = (centered * factor).astype(np.int8)
        scale = np.atleast_1d(np.asarray(own.scale) / gain)
        found.weight_params = QuantParams(tuple(scale.tolist()), (0,) * scale.size, "int8", axis)
    if found.weight_params.axis == found.axis:
        scale = np.asarray(found.weight_params.scale)
        finest = np.clip(max(out_scale * _BIAS_LSB, SMALLEST) / np.asarray(found.unit), SMALLEST, scale)
        scale = np.where(alive, scale, finest)
        found.weight_params = replace(found.weight_params, scale=tuple(scale.tolist()))


def _gain(peak: npt.NDArray[np.int32], most: Vector) -> npt.NDArray[np.int32]:
    """What integers up to `peak`, whose sums are up to `most`, may be multiplied by; 0 where `most` is too large."""
    return np.minimum(127 // peak, (_INT32[1] - _UNIT_ROUNDING) // most).astype(np.int32)


def reach_of(found: Operands) -> Vector:
    """How large the accumulators of each output channel may become, whatever the input; without a bias."""
    offset = np.abs(found.integers.astype(np.int64) - found.weight_params.zero_array(found.integers.ndim))
    reach: Vector = offset.sum(axis=found.summed, dtype=np.float64) * 255
    channels = found.channels or reach.size
    if reach.size != channels:  # the groups of a transposed convolution share their channels' weights
        reach = np.full(channels, reach.max(initial=0.0))
    return reach


def _rescaled(found: Operands, scale: Vector) -> QuantParams:
    """The weight's parameters with other scales, over the whole range of their type."""
    own = found.weight_params
    if scale.size == len(own.scale):
        zeros, axis = own.zero_point, own.axis
    else:  # one zero point for all
        zeros, axis = own.zero_point[:1] * scale.size, found.axis if scale.size > 1 else None
    return QuantParams(tuple(float(s) for s in scale), zeros, own.dtype, axis)


def _coarsen(state: State, found: Operands, unit: Vector, tight: npt.NDArray[np.bool_], out_scale: float) -> Vector:
    """Coarsen the unit of channels whose bias would not fit 32 bits; what that costs is said in output LSB."""
    values = found.integers
    if found.is_grouped:  # groups share one scale
        unit = np.full(1, unit.max())
        ratio = found.weight_params.scale_array(values.ndim).astype(np.float64) * found.unit / unit
    else:
        shape = [1 if i in found.summed else -1 for i in range(values.ndim)]
        ratio = (np.broadcast_to(found.acc_scale, unit.shape) / unit).reshape(shape)
    zero = found.weight_params.zero_array(values.ndim)
    exact = (values - zero) * ratio
    rounded = np.rint(exact)
    lost = np.abs(rounded - exact).sum(axis=found.summed) * unit * 255
    cost = float((lost[tight] if lost.size == tight.size else lost).max() / out_scale)
    state.graph.diagnostics.warning(
        "QAT303",
        f"the bias of {int(tight.sum())} of {tight.size} channels needs more than 32 bits on the grid of input times "
        f"weight; the grid was made coarser, which costs at most {cost:.3g} output LSB",
        node=label_of(found.node),
        hint="these channels have almost no weight: prune them, or raise the smallest weight scale in training",
    )
    found.values = (rounded + zero).astype(values.dtype)
    found.weight_params = _rescaled(found, unit / found.unit)
    return found.acc_scale


def weight_name(state: State, found: Operands) -> str:
    """The weight as a constant of the integer graph; nodes that share an unchanged weight share the constant."""
    transposed = found.node.op == "Gemm" and bool(found.node.attr("transB", 0))
    if found.values is None:
        name = state.int_name(found.weight)
        return state.transposed(found.weight, name, (1, 0)) if transposed else name
    if not isinstance(found.weight, Constant):  # the ones of a sum, which are no tensor's
        return state.build.constant(f"ones_{found.integers.size}", found.values, found.weight_params)
    key = (id(found.weight), transposed, found.weight_params)
    if key in state.weights:
        return state.weights[key]
    values, params = found.values, found.weight_params
    if transposed:
        values, params = np.ascontiguousarray(values.T), params.with_axis(1)
    name = state.weights[key] = state.build.constant(found.weight.name, values, params)
    return name


def add(
    state: State,
    found: Operands,
    inputs: tuple[str, ...],
    out: str,
    lo: int,
    hi: int,
    unit: Vector | None = None,
) -> None:
    """Append the operator that makes `out`; `unit` is what a unit of its accumulators counts as, if not what it is."""
    node = found.node
    label = label_of(node)
    acc = tuple((found.acc_scale if unit is None else unit).tolist())
    if node.op in ("Gemm", "MatMul"):
        state.build.add(MatMul, label, inputs, (out,), lo=lo, hi=hi, acc_scale=acc, source=label)
        return
    if len(acc) == 1:
        acc = acc * (found.channels or 1)
    window = sized_window(state.graph, node, kernel_of(found.weight))
    state.build.add(
        Conv, label, inputs, (out,), lo=lo, hi=hi, strides=window.strides, pads=window.pads,
        dilations=window.dilations, groups=found.groups, acc_scale=acc, transposed=node.op == "ConvTranspose",
        output_padding=window.extra, source=label,
    )  # fmt: skip


def raw(state: State, node: Node, out: Tensor, bias: Vector | None = None, alpha: float = 1.0) -> bool:
    """Lower `alpha * node + bias` that is read unrounded: int32 accumulators on their own grid, then real numbers."""
    if axis_refusal(state, node, out) is not None:
        return False
    found = operands(state, node, alpha)
    if found is None:
        return alpha == 1.0 and _in_two_parts(state, node, out, bias)
    own = own_bias(state, node)
    total = sum_of(None if own is None else own * alpha, bias)
    inputs = (_accumulated(state, found, out), *_bias_constant(state, total, out))
    state.build.add(Dequantize, f"Dequantize_{out.name}", inputs, (state.new_result(out),), source=label_of(node))
    return True


def _bias_constant(state: State, total: Vector, out: Tensor) -> tuple[str, ...]:
    """The bias of a raw result as a constant of real numbers; nothing where there is none."""
    if not (total.size and total.any()):
        return ()
    return (state.build.constant(f"{out.name}_bias", total.astype(np.float32)),)


def _accumulated(state: State, found: Operands, out: Tensor) -> str:
    """The int32 accumulators of a node, as a tensor on their own grid; its name."""
    shape: Shape | None = shape_of(out)
    scale = found.acc_scale
    is_conv = found.node.op in ("Conv", "ConvTranspose")
    if is_conv and scale.size == 1:
        scale = np.full(found.channels or 1, scale[0])
    params = raw_accumulator(tuple(float(s) for s in scale), 1 if is_conv else (result_rank(found.node, out) or 1) - 1)
    name = state.build.quantized(
        f"{out.name}_accumulator", params, shape, sample_shape=state.graph.sample_shapes.get(out.name)
    )
    add(state, found, (found.x, weight_name(state, found)), name, *_INT32)
    return name


# -- weights of more than eight bits ------------------------------------------------------------------------------


def _in_two_parts(state: State, node: Node, out: Tensor, bias: Vector | None) -> bool:
    """Two products of eight bits, x * H + x * L, where W has no eight-bit form with a scale per output channel.

    Weights of 16 bits are such, W = S * (256 * H + L) with L in 0..255 and their own scale S. So are weights quantized
    along their input channels: written with a scale per output channel they take 16 bits, which is off by at most
    2**-16 of the channel's largest weight.
    """
    parts = _parts(state, node)
    if not parts:
        return False
    total = sum_of(own_bias(state, node), bias)
    names: list[str] = []
    label = label_of(node)
    for index, found in enumerate(parts):
        added = _bias_constant(state, total, out) if index else ()
        inputs = (_accumulated(state, found, out), *added)
        result = state.build.plain(state.build.fresh(f"{out.name}_part"), "float32", shape_of(out))
        names.append(state.build.add(Dequantize, f"Dequantize_{out.name}", inputs, (result,), source=label))
    state.build.add(
        Float, f"{label}_sum", tuple(names), (state.new_result(out),), op_type="Add", attrs={},
        reason=_why_two(state, node), tensor=node.inputs[1].name, source=label,
    )  # fmt: skip
    return True


def _why_two(state: State, node: Node) -> str:
    """What keeps a weight from one product: its type, the axis of its scales, or zero points at both ends."""
    own = state.graph.quant(node.inputs[1])
    at_both_ends = own is not None and own.is_8bit and own.axis in (None, channel_axis(node, node.inputs[1]))
    cause = "its weight has zero points at both ends of 8 bits" if at_both_ends else "the weight takes 16 bits"
    return f"{cause}: two products of 8 bits are added"


def _parts(state: State, node: Node) -> list[Operands]:
    """The operands of the two products; none where the node is not of that kind."""
    if not is_product(node) or (bias_refusal(state, node) or misshapen(node)) is not None:
        return []
    x, weight = node.inputs[:2]
    data, own = state.usable(x), state.graph.quant(weight)
    real = state.graph.real(weight)
    alpha = float(node.attr("alpha", 1.0)) if node.op == "Gemm" else 1.0
    if data is None or own is None or real is None or isinstance(x, Constant) or not isinstance(weight, Constant):
        return []
    if real.ndim < 2 or not real.size or alpha <= 0:
        return []
    axis, unit = channel_axis(node, weight), data.scale[0] * alpha
    grouped = node.op == "ConvTranspose" and int(node.attr("group", 1)) != 1  # its groups share one scale
    whole, step = sixteen_bits(weight.values, real, own, None if grouped else axis)
    if not (step.min() * unit >= SMALLEST and step.max() * 256 * unit <= LARGEST):
        return []
    name = _left(state, node)
    found: list[Operands] = []
    for values, scale, dtype in ((whole >> 8, step * 256, "int8"), (whole & 255, step, "uint8")):
        params = QuantParams.per_channel(scale, axis, dtype=dtype)
        if len(scale) == 1:
            params = QuantParams.per_tensor(float(scale[0]), 0, dtype)
        found.append(Operands(node, name, weight, params, values.astype(dtype), unit, axis, channels_of(node)))
    return found

"""Functions of a quantized tensor that differ from channel to channel: depthwise 1x1 convolutions of its integers.

    BatchNormalization(x)       Conv(x, +-64 or 0, bias)
    PRelu(x, slope[C])          Add(Relu(x), Conv(Clip(x, max=0), +-64 or 0))        each on the result's grid

Of the two parts of a PRelu one always is zero, so that their sum is rounded once, as the PRelu is.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qatc.compiler.graph import Node, Tensor, rank_of, shape_of
from qatc.compiler.integer import Conv, Elementwise, Move, Rescale
from qatc.compiler.lowering.state import State
from qatc.compiler.model_io import label_of
from qatc.compiler.passes.products import per_channel
from qatc.compiler.quant import QuantParams

_PEAK = 64  # a power of two keeps a factor's own digits


def batch_norm(state: State, node: Node, out: Tensor, lo: int, hi: int) -> bool:
    """BatchNormalization of a quantized tensor: a depthwise 1x1 convolution whose weights are +64 or -64.

    The factor of a channel is the weight's scale times 64, so nothing is rounded but the bias, on a grid 64 times finer
    than the input's. (64 and not 127: a power of two keeps the factor's own digits.) Vectors [N, C] are one position.
    """
    if node.domain or node.op != "BatchNormalization":
        return False
    x = node.inputs[0]
    params, wanted, rank = state.usable(x), state.usable(out), rank_of(x)
    if params is None or wanted is None or rank is None or rank < 2:
        return False
    found = [state.graph.real(t) for t in node.inputs[1:5]]
    if any(v is None for v in found):
        return False
    gamma, beta, mean, var = (np.asarray(v, np.float64) for v in found)
    if any(v.shape != (gamma.size,) for v in (gamma, beta, mean, var)):
        return False
    with np.errstate(invalid="ignore", divide="ignore"):  # with damaged statistics it stays in float
        factor = gamma / np.sqrt(var + float(node.attr("epsilon", 1e-5)))
        offset = beta - mean * factor
    return _per_channel_affine(state, node, out, factor, offset, (lo, hi), rank)


def _per_channel_affine(
    state: State,
    node: Node,
    out: Tensor,
    factor: npt.NDArray[np.float64],
    offset: npt.NDArray[np.float64],
    bounds: tuple[int, int],
    rank: int,
) -> bool:
    x = node.inputs[0]
    if state.usable(x) is None or not np.isfinite(factor).all() or not np.isfinite(offset).all():
        return False
    vectors = rank == 2
    source, result = _with_position(state, x, out) if vectors else (state.int_name(x), state.new_int(out))
    _depthwise(state, node, out, (source, result), factor, offset, bounds, max(rank, 3))
    if vectors:
        _move_to(state, "Squeeze", result, state.new_int(out))
    return True


def _depthwise(
    state: State,
    node: Node,
    out: Tensor,
    ends: tuple[str, str],
    factor: npt.NDArray[np.float64],
    offset: npt.NDArray[np.float64] | None,
    bounds: tuple[int, int],
    rank: int,
) -> None:
    """The integers ends[1] of factor * x + offset per channel, from the integers ends[0] of x [N, C, spatial...]."""
    graph, name, (source, result) = state.build.graph, out.name, ends
    step = graph.params(source).scale[0]
    scale = np.maximum(np.abs(factor), float(np.abs(factor).max(initial=0)) * 2.0**-20) / _PEAK
    if offset is not None:
        scale = np.maximum(scale, np.abs(offset) / step / 2.0**30)
    scale = np.maximum(scale, 1e-30)
    weights = np.rint(factor / scale).astype(np.int8).reshape([-1] + [1] * (rank - 1))
    weight = QuantParams.per_channel(scale, 0)
    unit = np.asarray(weight.scale) * step
    inputs = [source, state.build.constant(f"{name}_weight", weights, weight)]
    if offset is not None:
        graph.real_biases[result] = offset / unit
        inputs.append(state.build.constant(f"{name}_bias", np.rint(offset / unit).astype(np.int32)))
    label, space = label_of(node), rank - 2
    state.build.add(
        Conv(
            state.build.fresh(label),
            tuple(inputs),
            (result,),
            lo=bounds[0],
            hi=bounds[1],
            strides=(1,) * space,
            pads=(0,) * 2 * space,
            dilations=(1,) * space,
            groups=factor.size,
            acc_scale=tuple(float(u) for u in unit),
            source=label,
        )
    )


def prelu(state: State, node: Node, out: Tensor, lo: int, hi: int) -> bool:
    """PRelu with a slope for each channel of [N, C, spatial...]."""
    if node.domain or node.op != "PRelu":
        return False
    x = node.inputs[0]
    have, want, rank, shape = state.usable(x), state.usable(out), rank_of(x), shape_of(x)
    value = state.graph.real(node.inputs[1])
    channels = shape[1] if shape is not None and len(shape) > 2 else None
    if have is None or want is None or value is None or rank is None or not isinstance(channels, int):
        return False
    slope = per_channel(value, 1 - rank, channels) if value.ndim <= rank else None
    if slope is None or not np.isfinite(slope).all() or not _holds_zero(have) or not _holds_zero(want):
        return False
    origin, zero = have.zero_point[0], want.zero_point[0]
    source, label = state.int_name(x), label_of(node)
    negative, positive, scaled = (
        state.build.quantised(f"{out.name}_{part}", params, shape)
        for part, params in (("negative", have), ("positive", want), ("scaled", want))
    )
    for made, low, high in ((negative, have.qmin, origin), (positive, zero, want.qmax)):
        state.build.add(Rescale(state.build.fresh(label), (source,), (made,), lo=low, hi=high, source=label))
    _depthwise(state, node, out, (negative, scaled), slope, None, (want.qmin, want.qmax), rank)
    parts, result = (positive, scaled), (state.new_int(out),)
    state.build.add(Elementwise(state.build.fresh(label), parts, result, lo=lo, hi=hi, op="Add", source=label))
    return True


def _holds_zero(params: QuantParams) -> bool:
    return params.qmin <= params.zero_point[0] <= params.qmax


def _with_position(state: State, x: Tensor, out: Tensor) -> tuple[str, str]:
    """Vectors [N, C] as [N, C, 1], and the name of a result [N, C, 1] that is on the grid of `out`."""
    made: list[str] = []
    for tensor, kind in ((x, "at_one_position"), (out, "of_one_position")):
        params, shape = state.params(tensor), shape_of(tensor)
        if params is None:
            raise ValueError(f"tensor {tensor.name} is not quantized")
        wide = None if shape is None else (*shape, 1)
        made.append(state.build.quantised(f"{tensor.name}_{kind}", params, wide))
    _move_to(state, "Unsqueeze", state.int_name(x), made[0])
    return made[0], made[1]


def _move_to(state: State, op: str, source: str, result: str) -> None:
    """`source` with a third dimension (Unsqueeze), or without it (Squeeze), as `result`."""
    axes = state.build.constant("position", np.asarray([2], np.int64))
    state.build.add(Move(state.build.fresh(op), (source, axes), (result,), op_type=op, attrs={}))

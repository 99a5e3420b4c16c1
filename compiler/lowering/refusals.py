"""Which multiply-accumulate nodes run in integers, and the axes and channels of those that do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from qatc.compiler.graph import Constant, Node, Tensor, rank_of, shape_of
from qatc.compiler.lowering.state import Reason, State
from qatc.compiler.passes.products import Vector, is_product, output_axis, per_channel
from qatc.compiler.quant import QuantParams

LARGEST_BIAS: Final = 1e30  # beyond it scales leave float32; a trained model has none such
_MOST_DIMENSIONS: Final = 5  # of a convolution's weight: three of them in space
_MATRICES: Final = frozenset({"Gemm", "MatMul"})


def refusal(state: State, node: Node) -> Reason | None:
    """Why a multiply-accumulate node cannot run in integers, None where it can."""
    if not is_product(node):
        return Reason(f"{node.op} is not a multiply-accumulate operator")
    for role, tensor in zip(("input", "weight"), node.inputs[:2], strict=False):
        params = state.params(tensor)
        joins = node.op in _MATRICES and not isinstance(tensor, Constant)  # of an attention both are computed
        what = "input" if joins else role
        if params is None:
            return Reason(f"its {what} is not quantized by the model", tensor.name)
        if isinstance(tensor, Constant) and not tensor.values.size:
            return Reason(f"its {what} holds no numbers", tensor.name)
        is_weight = role == "weight"
        if not (_fits_two_bytes(state, tensor) if is_weight and isinstance(tensor, Constant) else params.is_8bit):
            return Reason(f"its {what} has {params.dtype} values, which have no integer kernel", tensor.name)
        if params.is_per_channel and not isinstance(tensor, Constant) and not _stays_apart(node, params):
            return Reason(f"its {what} is quantized per channel", tensor.name)
    if isinstance(node.inputs[0], Constant) and isinstance(node.inputs[1], Constant):
        return Reason("both operands are constant")
    if node.op == "Gemm" and float(node.attr("alpha", 1.0)) <= 0:
        return Reason("its alpha is not positive")
    return _weight_refusal(state, node) or bias_refusal(state, node)


def axis_refusal(state: State, node: Node, out: Tensor) -> Reason | None:
    """Why a product has no raw result: nothing tells which axis its output channels, with scales of their own, are."""
    params = weight_params(state, node)
    if params is None or not params.is_per_channel or node.op != "MatMul" or result_rank(node, out) is not None:
        return None
    return Reason("how many dimensions its result has is not known", out.name)


def _stays_apart(node: Node, params: QuantParams) -> bool:
    """Whether each output channel reads one input channel alone, so that the input's scale per channel factors out.

    What pads the input must be one integer, so that zero points must be equal.
    """
    depthwise = node.op == "Conv" and params.axis == 1 and int(node.attr("group", 1)) == len(params.scale)
    return depthwise and len(set(params.zero_point)) == 1


def bias_refusal(state: State, node: Node) -> Reason | None:
    """Why the node's bias is none that accumulators start from, None where it has none or it is."""
    bias = None if node.op == "MatMul" else node.optional(2)
    if bias is None:
        return None
    value = state.graph.real(bias)
    if value is None:
        return Reason("its bias is computed at run time", bias.name)
    if not np.all(np.abs(value) <= LARGEST_BIAS):
        return Reason("its bias is not finite", bias.name)
    channels = channels_of(node)
    if channels is None:  # two activations: the integer product has no bias
        return Reason("it adds a bias to a product of two activations", bias.name) if value.any() else None
    fits = per_channel(value, -1, channels) is not None
    return None if fits else Reason("its bias is not one number per channel", bias.name)


def _fits_two_bytes(state: State, tensor: Constant) -> bool:
    """Whether two eight-bit numbers say every integer's distance from its zero point (not -255 and 255 both)."""
    params = state.graph.params[tensor.name]
    if params.is_8bit and not any(params.zero_point):
        return True
    spread = tensor.values.astype(np.int64) - params.zero_array(tensor.values.ndim)
    return bool(spread.size) and int(spread.max()) - int(spread.min()) <= 509 and int(np.abs(spread).max()) <= 255


def misshapen(node: Node) -> Reason | None:
    """A convolution whose attributes are not for a weight of this rank, or along more than three axes; a Gemm of other
    than matrices.
    """
    weight = node.inputs[1]
    rank = rank_of(weight)
    if node.op == "Gemm":
        ranks = [(t, rank_of(t)) for t in node.inputs[:2]]
        return next((Reason(f"it multiplies {r} dimensions", t.name) for t, r in ranks if r not in (None, 2)), None)
    if node.op not in ("Conv", "ConvTranspose") or rank is None:
        return None
    if rank < 3:
        return Reason(f"its weight has {rank} dimensions", weight.name)
    if rank > _MOST_DIMENSIONS:
        return Reason(
            f"its weight has {rank} dimensions: it moves along {rank - 2} axes, integer ones along three", weight.name
        )
    spatial = rank - 2
    lengths = dict.fromkeys(("kernel_shape", "strides", "dilations", "output_padding"), (spatial,))
    for name, fitting in (lengths | {"pads": (2 * spatial,), "output_shape": (spatial, rank)}).items():
        listed = node.attr(name)
        if isinstance(listed, (list, tuple)) and len(listed) not in fitting:  # pyright: ignore[reportUnknownArgumentType]
            return Reason(f"its {name} is not for a weight of {rank} dimensions", weight.name)
    kernel, stated = (shape_of(weight) or ())[2:], node.attr("kernel_shape")
    if stated and kernel and list(kernel) != list(stated):
        return Reason(f"its kernel_shape is {list(stated)}, but its weight's {list(kernel)}", weight.name)
    groups, shape = int(node.attr("group", 1)), shape_of(weight)
    channels = shape[0] if shape is not None else None
    if groups < 1 or (isinstance(channels, int) and channels % groups):
        return Reason(f"its weight is not one of {groups} groups", weight.name)
    return None


def _weight_refusal(state: State, node: Node) -> Reason | None:
    weight, x = node.inputs[1], node.inputs[0]
    wrong = misshapen(node)
    if wrong is not None:
        return wrong
    if node.op in ("Conv", "ConvTranspose") and not isinstance(weight, Constant):
        return _computed_refusal(state, node)
    if isinstance(x, Constant) and (params := state.params(x)) is not None and params.is_per_channel:
        return Reason("its first operand is a constant quantized per channel", x.name)
    params = weight_params(state, node)
    if params is None or not params.is_per_channel:
        return None
    axis, groups = channel_axis(node, weight), int(node.attr("group", 1))
    if node.op == "ConvTranspose" and groups > 1:
        if len(set(params.zero_point)) > 1:
            return Reason("its grouped transposed weight has a zero point per channel", weight.name)
        axis = 0 if params.axis == 0 and (shape_of(weight) or (None,))[0] == groups else axis
    if params.axis == axis:
        return None
    return Reason(f"its weight is quantized along axis {params.axis}, not its output channels", weight.name)


def _computed_refusal(state: State, node: Node) -> Reason | None:
    """Why a convolution with a weight of run time stays float: one that is transposed, or of unknown size."""
    weight, params = node.inputs[1], state.params(node.inputs[0])
    if node.op == "ConvTranspose":
        return Reason("a transposed convolution needs a constant weight", weight.name)
    if params is None or params.is_per_channel:
        return Reason("its input is quantized per channel", node.inputs[0].name)
    return None if kernel_of(weight) else Reason("the size of its weight is not known", weight.name)


def kernel_of(weight: Tensor) -> tuple[int, ...]:
    """The sizes of a convolution's window, () where they are not known."""
    sizes = (shape_of(weight) or ())[2:]
    return tuple(s for s in sizes if isinstance(s, int)) if all(isinstance(s, int) for s in sizes) else ()


def weight_params(state: State, node: Node) -> QuantParams | None:
    """The weight's parameters; scales of channels that are no output channels count as one where they are equal."""
    weight = node.inputs[1]
    params = state.params(weight)
    if params is None or not params.is_per_channel or params.axis == channel_axis(node, weight):
        return params
    if len(set(params.scale)) > 1 or len(set(params.zero_point)) > 1:
        return params
    return replace(params, scale=params.scale[:1], zero_point=params.zero_point[:1], axis=None)


def channel_axis(node: Node, weight: Tensor) -> int:
    """The output channels' axis of the weight; -1 for a vector, which has none."""
    axis = output_axis(node, rank_of(weight))
    return -1 if axis is None else axis


def channels_of(node: Node) -> int | None:
    """How many output channels a weight gives the result; None for vectors, and activations but in a convolution."""
    weight = node.inputs[1]
    if node.op == "Conv" and not isinstance(weight, Constant):
        channels = (shape_of(weight) or (None,))[0]
        return channels if isinstance(channels, int) else None
    if not isinstance(weight, Constant) or weight.values.ndim < 2:
        return None
    groups = int(node.attr("group", 1)) if node.op == "ConvTranspose" else 1
    return int(weight.values.shape[channel_axis(node, weight)]) * groups


def channel_vector(node: Node, value: npt.NDArray[Any]) -> Vector | None:
    """A constant that is added behind a node as one number per output channel, None where it is something else."""
    channels = channels_of(node)
    axis = 1 - (rank_of(node.inputs[1]) or 0) if node.op in ("Conv", "ConvTranspose") else -1
    return None if channels is None else per_channel(value, axis, channels)


def result_rank(node: Node, out: Tensor) -> int | None:
    """The rank of a MatMul's or Gemm's result, from its operands where inference stopped before it."""
    ranks = [2, 2] if node.op == "Gemm" else [rank_of(t) for t in node.inputs[:2]]
    known = [r for r in ranks if r is not None]
    return rank_of(out) or (max(known) if len(known) == len(ranks) and min(known) > 1 else None)

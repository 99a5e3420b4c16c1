"""The operands of a multiply-accumulate operator that runs in integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qatc.compiler.graph import Constant, Node, Tensor, rank_of
from qatc.compiler.lowering.state import State
from qatc.compiler.passes.products import Vector
from qatc.compiler.quant import Array, QuantParams


@dataclass
class Operands:
    """A multiply-accumulate node that can run in integers: operand names, and what one unit of the accumulator is."""

    node: Node
    x: str
    weight: Tensor
    weight_params: QuantParams
    values: npt.NDArray[Any] | None  # the weight's integers as `weight_params` stores them; None for an activation
    unit: float | Vector  # accumulator unit = unit * weight scale; one for each output channel where inputs have theirs
    axis: int  # output-channel axis of the weight
    channels: int | None  # None for a matrix product of two activations

    @property
    def integers(self) -> npt.NDArray[Any]:
        """The weight's integers; ValueError for an activation."""
        if self.values is None:
            raise ValueError(f"{self.weight.name} is computed at run time")
        return self.values

    @property
    def summed(self) -> tuple[int, ...]:
        """The weight's axes that are none of output channels."""
        return tuple(i for i in range(self.integers.ndim) if i != self.axis)

    @property
    def acc_scale(self) -> Vector:
        """The real value of one unit of the accumulator: one entry, or one per output channel."""
        scale = np.asarray(self.weight_params.scale)
        if self.is_grouped and scale.size > 1:  # of the channels of every group, or of the group's one input channel
            per_group = (self.channels or 0) // self.groups
            scale = np.tile(scale, self.groups) if self.weight_params.axis else np.repeat(scale, per_group)
        return scale * self.unit

    @property
    def groups(self) -> int:
        """The groups of a convolution, 1 where there is none."""
        return int(self.node.attr("group", 1)) if self.node.op in ("Conv", "ConvTranspose") else 1

    @property
    def is_grouped(self) -> bool:
        """Whether groups share what the weight says of its output channels."""
        return self.node.op == "ConvTranspose" and self.groups > 1


def sixteen_bits(
    values: Array, real: Array, own: QuantParams, axis: int | None
) -> tuple[npt.NDArray[np.int32], Vector]:
    """A weight as integers of 16 bits, and what one of them is: along `axis`, or one number where that is None.

    Its own integers and scales where it has them so, else the nearest ones, with the largest weights at 32767.

    Args:
        values: the weight's integers as `own` stores them.
        real: the same as real numbers.
        own: the weight's parameters.
        axis: its output channels.
    """
    if own.axis in (None, axis):
        whole = values.astype(np.int32) - own.zero_array(values.ndim)
        if np.iinfo(np.int16).min <= int(whole.min()) and int(whole.max()) <= np.iinfo(np.int16).max:
            return whole, np.asarray(own.scale)
    others = None if axis is None else tuple(i for i in range(real.ndim) if i != axis)
    peak = np.abs(real.astype(np.float64)).max(axis=others, keepdims=True)
    step = np.where(peak > 0, peak, 1.0) / np.iinfo(np.int16).max
    return np.rint(real / step).astype(np.int32), step.reshape(-1)


def constant_operand(state: State, node: Node) -> tuple[Tensor, npt.NDArray[np.float64]] | None:
    """The unrounded operand of a node that reads one, and its constant one as float64; None where it is otherwise.

    The constant must not give the result more dimensions, and nobody else may read the operand.
    """
    data = [t for t in node.inputs if not isinstance(t, Constant)]
    if len(node.inputs) != 2 or len(data) != 1 or data[0].name in state.graph.params:
        return None
    value = next(state.graph.real(t) for t in node.inputs if isinstance(t, Constant))
    rank = rank_of(data[0])
    if value is None or value.dtype.kind != "f" or value.ndim > (1 if rank is None else rank):
        return None
    return (data[0], value.astype(np.float64)) if state.graph.only_consumer(data[0]) is not None else None

"""Weights in the one form that is fast everywhere: int8 with zero point 0, or as near to it as their integers allow.

Where the processor adds neighboring products of unsigned by signed bytes in 16 bits (x86 without VNNI), sums may
saturate: weights whose products can get there are uint8 instead, which every kernel multiplies exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from qatc.compiler.integer import Conv, IntegerGraph, MatMul
from qatc.compiler.quant import Array, Integers, QuantParams, dtype_range

_INT16: Final = dtype_range("int16")
_TO_UNSIGNED: Final = 128


@dataclass(frozen=True)
class Weight:
    """A weight's integers and what they mean: q - zero, or, where `doubled`, the sum of two halves.

    A doubled weight has twice the extent along the axis that is summed over, its first half and its second half, to be
    used with the activation repeated along that axis: nine-bit differences in two eight-bit numbers, exactly.
    """

    values: Array
    zero: int = 0
    doubled: bool = False
    source: str = ""  # its name in the integer graph

    @property
    def dtype(self) -> str:
        """The numpy name of its type, int8 or uint8, which is its zero point's as well."""
        return self.values.dtype.name


def narrow(graph: IntegerGraph, name: str, summed: int) -> Weight:
    """A constant of `graph` as a weight in int8. `summed` is the axis that the product sums over.

    Subtracting the zero points beforehand is worth 20 to 30 per cent of a convolution's time. Where that needs nine
    bits there is one zero point for all of them if they span no more than eight, and else the weight is split in two.

    Raises:
        ValueError: where both -255 and 255 occur: no two eight-bit numbers with one zero point say that.
    """
    return replace(_narrow(graph.constants[name], graph.params(name), summed), source=name)


def _narrow(values: Integers, params: QuantParams, summed: int) -> Weight:
    if values.dtype == np.int8 and not any(params.zero_point):
        return Weight(values)
    differences = values.astype(np.int16) - params.zero_array(values.ndim).astype(np.int16)
    if differences.size == 0 or (differences.min() >= -128 and differences.max() <= 127):
        return Weight(differences.astype(np.int8))
    lowest, highest = int(differences.min()), int(differences.max())
    if highest - lowest <= 255:
        zero = min(max(-128 - lowest, -128), 127)
        return Weight((differences + zero).astype(np.int8), zero)
    zero = -1 if highest > 254 else 0
    if lowest < 2 * (-128 - zero):
        raise ValueError("weights are 255 steps from their zero points on both sides")
    half = differences >> 1
    halves = np.concatenate([half + zero, differences - half + zero], axis=summed)
    return Weight(halves.astype(np.int8), zero, doubled=True)


def unsigned(weight: Weight) -> Weight:
    """The same weight in uint8."""
    moved = (weight.values.astype(np.int16) + _TO_UNSIGNED).astype(np.uint8)
    return replace(weight, values=moved, zero=weight.zero + _TO_UNSIGNED)


def may_saturate(graph: IntegerGraph, op: Conv | MatMul, weight: Weight) -> bool:
    """Whether two products of uint8 inputs with these int8 weights can leave 16 bits, whichever two are added.

    Convolutions of each channel by itself have kernels that do not add in 16 bits; int8 inputs have others as well.
    """
    x = graph.params(op.inputs[0])
    if x.container != np.uint8 or (isinstance(op, Conv) and _is_depthwise(op, weight)):
        return False
    lowest, highest = int(weight.values.min(initial=0)), int(weight.values.max(initial=0))
    return 2 * x.qmax * lowest < _INT16[0] or 2 * x.qmax * highest > _INT16[1]


def _is_depthwise(op: Conv, weight: Weight) -> bool:
    return op.groups > 1 and not op.transposed and weight.values.shape[:2] == (op.groups, 1)

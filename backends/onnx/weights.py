"""Weights in the one form that is fast everywhere: int8 with zero point 0, or as near to it as their integers allow."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from qatc.compiler.integer import IntegerGraph
from qatc.compiler.quant import Array, Integers, QuantParams


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
    def is_plain(self) -> bool:
        """Whether its integers are what it means."""
        return not self.zero and not self.doubled


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
    if highest - lowest <= 255 and lowest >= -255:  # no zero point of int8 lies 256 above an integer of int8
        zero = min(max(-128 - lowest, -128), 127)
        return Weight((differences + zero).astype(np.int8), zero)
    zero = -1 if highest > 254 else 0
    if lowest < 2 * (-128 - zero):
        raise ValueError("weights are 255 steps from their zero points on both sides")
    half = differences >> 1
    halves = np.concatenate([half + zero, differences - half + zero], axis=summed)
    return Weight(halves.astype(np.int8), zero, doubled=True)

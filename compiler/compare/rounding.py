"""Rounding modes that no arithmetic profile stands for, as profiles: what a first port of a kernel tends to have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from qatc.compiler.arithmetic import Profile, exact
from qatc.compiler.arithmetic.base import Operand, Rounder, Target
from qatc.compiler.quant import Array, Integers, QuantParams


def _half_away(values: Array) -> Array:
    result: Array = np.copysign(np.floor(np.abs(values) + 0.5), values)
    return result


def _half_up(values: Array) -> Array:
    result: Array = np.floor(values + 0.5)
    return result


class Plain(Profile):
    """float64 arithmetic and one rounding function: exact but for values that lie on its very boundaries."""

    def __init__(self, name: str, summary: str, function: Callable[[Array], Array]) -> None:
        self.name = name
        self.summary = summary
        self.function = function

    def _rounder(self, scales: Array, target: Target, in_scale: float | None, divisor: int = 1) -> Rounder:
        del in_scale
        ratios = scales / (target.scale * divisor)

        def rounder(acc: Array, channels: slice) -> Array:
            values = self.function(acc.astype(np.float64) * ratios[channels].reshape(-1, 1))
            return np.clip(values, target.low, target.high)

        return rounder

    def _combine(self, op: str, operands: Sequence[Operand], target: Target) -> Array:
        a, b, *more = (o.centered() * np.asarray(o.scale) for o in operands)
        real = a * b if op == "Mul" else sum(more, a + b) if op == "Add" else a - b
        values = np.clip(self.function(real / target.scale), target.low, target.high)
        return values + target.zero

    def _softmax(self, rows: Integers, params: QuantParams, target: Target) -> Array:
        return self._rounded(exact.softmax_steps(rows, params.scale[0]) / target.scale, target)

    def _layer_norm(
        self, rows: Integers, params: QuantParams, gamma: Array, beta: Array, epsilon: float, target: Target,
        *, centered: bool,
    ) -> Array:  # fmt: skip
        real = gamma * exact.layer_norm_steps(rows, params.scale[0], epsilon, centered=centered) + beta
        return self._rounded(real / target.scale, target)

    def _rounded(self, values: Array, target: Target) -> Array:
        return np.clip(self.function(values), target.low, target.high).astype(np.int64)


PLAIN: Final = (
    Plain("half-even", "half to even", np.rint),
    Plain("half-away", "half away from zero", _half_away),
    Plain("half-up", "half toward positive infinity", _half_up),
    Plain("truncate", "toward zero, which is no rounding at all", np.trunc),
    Plain("floor", "toward negative infinity, a bare right shift", np.floor),
)

"""Roundings inside float islands: where float error decides which of two neighbors Floor, Ceil or Round makes.

Activations that are rounded down in arithmetic (PACT: Floor(x / s) * s) may stay so. What is rounded there is a float,
which the simulation computes by other operators: in another order, or with an offset of whole steps that was left out.
Where it is so close to a whole number (of Round: to a half) that float error reaches it, the other neighbor is as
right, and what is made of that, a whole step away. Both are computed here, by the island's own operators.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Set
from dataclasses import dataclass
from typing import Final

import numpy as np

from qatc.compiler.integer import Float, IntegerGraph, Move, Op
from qatc.compiler.quant import Array
from qatc.compiler.verify.boundary import sum_error

_ROUNDINGS: Final = {"Ceil": np.ceil, "Floor": np.floor, "Round": np.rint}
_OF_ONE: Final = frozenset({"Add", "Clip", "Div", "Identity", "Max", "Min", "Mul", "Neg", "Relu", "Sub"})
# What may follow a rounding: each element of its result is made of one of these, whole ones or real.
_BEHIND: Final = _OF_ONE | {
    "Cast", "Flatten", "Gather", "MaxPool", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"
}  # fmt: skip
_CODES: Final = 256  # steps that the simulation may add before it rounds, and take away again
_HALF: Final = 0.5  # of a step: what float error does not reach


@dataclass(frozen=True)
class Jumps:
    """The roundings of one sample.

    Attributes:
        graph: the integer graph.
        producers: what makes each tensor.
        values: what the operators read and make, constants included.
        shown: float tensors whose values are the simulation's own.
        execute: runs an operator on such values.
        error_of: how far the simulation may be from a float tensor at some flat indices.
        tolerance: the same of any float, relative to the largest magnitude.
    """

    graph: IntegerGraph
    producers: Mapping[str, Op]
    values: Mapping[str, Array]
    shown: Container[str]
    execute: Callable[[Op, Mapping[str, Array]], tuple[Array, ...]]
    error_of: Callable[[str, Array], Array]
    tolerance: float

    def other_sides(self, name: str) -> list[Array]:
        """What the float tensor `name` is where all that may be rounded down is, and up; nothing where none is."""
        behind: list[Op] = []
        place = name
        while not isinstance(op := self.producers.get(place), Float) or op.op_type not in _ROUNDINGS:
            before = "" if op is None else self._variable(op, _BEHIND)
            if op is None or not before:
                return []
            behind.append(op)
            place = before
        error, source = self._error(op), op.inputs[0]
        found: list[Array] = []
        for moved in (-error, error) if error.any() else ():
            values = {**self.values, source: (self.values[source] + moved).astype(self.values[source].dtype)}
            for each in (op, *reversed(behind)):
                values.update(zip(each.outputs, self.execute(each, values), strict=True))
            found.append(values[name])
        return found

    def _error(self, rounding: Float) -> Array:
        """How far each number that is rounded may be from the simulation's, where that decides; 0 elsewhere."""
        name = root = rounding.inputs[0]
        steps, gain, reach, count = self.values[name], 1.0, _largest(self.values[name]), 0
        while root not in self.shown and (op := self.producers.get(root)) is not None:
            before = self._variable(op, _OF_ONE)
            if not before or self.values[before].size != steps.size:
                break
            gain, root, count = gain * self._gain(op, before), before, count + 1
            reach = max(reach, _largest(self.values[root]) * gain)
        error = np.zeros(steps.size, np.float64)
        if name in self.shown or not np.isfinite(gain * reach):
            return error.reshape(steps.shape)
        own = (reach + _CODES) * sum_error(count)
        most = own + gain * self.tolerance * _largest(self.values[root])
        flat, rounded = steps.reshape(-1).astype(np.float64), _ROUNDINGS[rounding.op_type]
        near = np.flatnonzero(rounded(flat - most) != rounded(flat + most))
        error[near] = np.minimum(own + gain * self.error_of(root, near), most)
        error[error >= _HALF] = 0
        return error.reshape(steps.shape)

    def _variable(self, op: Op, kinds: Set[str]) -> str:
        """The one input of an operator of some kinds that is no constant, "" where it has others."""
        if not isinstance(op, Float | Move) or op.op_type not in kinds or (isinstance(op, Float) and op.domain):
            return ""
        variable = [name for name in op.inputs if name and name not in self.graph.constants]
        return variable[0] if len(variable) == 1 and self.values[variable[0]].dtype.kind == "f" else ""

    def _gain(self, op: Op, before: str) -> float:
        """By how much an operator makes differences of its input larger."""
        if not isinstance(op, Float) or op.op_type not in ("Mul", "Div"):
            return 1.0
        factor = np.abs(np.asarray(self.values[next(name for name in op.inputs if name != before)], np.float64))
        if op.op_type == "Mul":
            return _largest(factor)
        return 1.0 / float(factor.min()) if op.inputs[0] == before and factor.all() and factor.size else np.inf


def _largest(values: Array) -> float:
    return float(np.abs(values.astype(np.float64)).max(initial=0.0))

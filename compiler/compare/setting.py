"""An operator in the place where it ran: its inputs, how to run it again with something changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from qatc.compiler.arithmetic import PROFILES, Profile
from qatc.compiler.compare.forms import Guess
from qatc.compiler.compare.rounding import PLAIN
from qatc.compiler.diagnostics import CompileError
from qatc.compiler.integer import IntegerGraph, Op, Tensor
from qatc.compiler.quant import Array, QuantParams
from qatc.compiler.reference import OnnxEvaluator, execute_op

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Changes(TypedDict, total=False):
    """What may be changed about an operator: itself, how it rounds, and what some tensors hold and mean."""

    op: Op
    profile: Profile
    values: Mapping[str, Array]
    params: Mapping[str, QuantParams]


@dataclass(frozen=True)
class Setting:
    """An operator with what it read: `values` hold its inputs, constants included; `base` what it makes of them."""

    graph: IntegerGraph
    op: Op
    values: Mapping[str, Array]
    profile: Profile
    evaluate: OnnxEvaluator
    base: Array

    def rerun(self, **changed: Unpack[Changes]) -> Array | None:
        """The operator's result with something changed, int64 for integers; None where it then has no meaning."""
        graph = self.graph
        if "params" in changed:
            tensors = {n: _with_params(graph.tensors[n], p) for n, p in changed["params"].items()}
            graph = dataclasses.replace(graph, tensors={**graph.tensors, **tensors})
        op, profile = changed.get("op", self.op), changed.get("profile", self.profile)
        try:
            result = execute_op(graph, op, {**self.values, **changed.get("values", {})}, profile, self.evaluate)[0]
        except (ValueError, CompileError):  # the changed operator does not exist: then it is not the cause
            return None
        return result.astype(np.int64) if result.dtype.kind in "iu" else result

    def guess(self, kind: str, detail: str, **changed: Unpack[Changes]) -> Iterator[Guess]:
        """The guess that something about the operator is changed; none where it then has no meaning."""
        value = self.rerun(**changed)
        if value is not None:
            yield Guess(kind, detail, value)


def contained(value: Array, dtype: np.dtype[Any]) -> Array:
    """Numbers as operators can read them: integers saturated to their type, floats beyond it infinite."""
    if dtype.kind in "iu":
        info = np.iinfo(dtype.name)
        value = np.clip(value, info.min, info.max)
    with np.errstate(over="ignore"):
        return value.astype(dtype)


def _with_params(tensor: Tensor, params: QuantParams) -> Tensor:
    return dataclasses.replace(tensor, params=params, dtype=params.container.name)


def roundings(profile: Profile) -> Iterator[tuple[str, Profile]]:
    """Every other way to round, and how it is described: the profiles first."""
    for name, other in PROFILES.items():
        if name != profile.name:
            yield f"it rounds as the arithmetic profile {name} does ({other.summary}), not as {profile.name}", other
    for plain in PLAIN:
        yield f"it rounds {plain.summary}, not as the arithmetic profile {profile.name} does", plain


def operand_guesses(setting: Setting, name: str, params: QuantParams) -> Iterator[Guess]:
    """The zero point of an operand ignored, or the operand read with the other signedness."""
    if any(params.zero_point):
        ignored = dataclasses.replace(params, zero_point=(0,) * len(params.zero_point))
        yield from setting.guess(
            "zero-point", f"the zero point of the operand {name} is ignored", params={name: ignored}
        )
    if params.is_byte:
        other = "uint8" if params.is_signed else "int8"
        bits = setting.values[name].view(other)
        zero = int(np.asarray(params.zero_point[0]).astype(params.container).view(other))
        for use in dict.fromkeys((zero, params.zero_point[0])):
            if not np.iinfo(other).min <= use <= np.iinfo(other).max:
                continue
            read = QuantParams.per_tensor(params.scale[0], use, other)
            text = f"the bits of the operand {name} are read as {other}"
            yield from setting.guess("signedness", text, values={name: bits}, params={name: read})


def pad_values(dtype: np.dtype[Any], zero: int) -> list[int]:
    """Integers that padding may be filled with by mistake, where `zero` is right."""
    info = np.iinfo(dtype)
    return [
        v for v in dict.fromkeys((0, int(info.min), int(info.max), 128, 127)) if v != zero and info.min <= v <= info.max
    ]

"""Outputs end to end: how far the package's are from the simulation's, and whether the same class wins."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from qatc.compiler.diagnostics import fail
from qatc.compiler.integer import Float, IntegerGraph, Move
from qatc.compiler.quant import Array, QuantParams
from qatc.compiler.result import OutputCheck, Port
from qatc.compiler.verify.limits import Limits
from qatc.compiler.verify.tally import Tally

# Operators whose result tells which of some numbers are larger, or large enough: a last bit decides what follows.
_CHOOSING: Final = frozenset({"ArgMax", "ArgMin", "Compress", "NonMaxSuppression", "NonZero", "TopK", "Unique"})


@dataclass
class _Output:
    max_abs: float = 0.0
    max_rel: float = 0.0
    agreed: int = 0
    voted: int = 0
    broken: bool = False
    resized: bool = False

    @property
    def agreement(self) -> float | None:
        return self.agreed / self.voted if self.voted else None


@dataclass
class Outputs:
    """The running comparison of all outputs over all samples."""

    found: dict[str, _Output] = field(default_factory=dict[str, _Output])
    graph: IntegerGraph | None = None
    _choices: dict[str, str] | None = None

    def chosen_by(self, name: str) -> str:
        """The operator that chooses what the tensor `name` of the graph holds, "" where none does."""
        if self._choices is None:
            self._choices = {} if self.graph is None else _choices(self.graph)
        return self._choices.get(name, "")

    def add(self, name: str, found: Array, wanted: Array, params: QuantParams | None) -> None:
        """Count one output of one sample; integers are compared as what they stand for."""
        entry = self.found.setdefault(name, _Output())
        found, wanted = (
            params.dequantize(a) if params is not None and a.dtype.kind in "iu" else a for a in (found, wanted)
        )
        finite = np.isfinite(wanted) if wanted.dtype.kind == "f" else np.ones(wanted.shape, np.bool_)
        if found.shape != wanted.shape:
            entry.max_abs = entry.max_rel = math.inf
            entry.resized = True
            entry.broken |= found.ndim != wanted.ndim or not self.chosen_by(name)
            return
        if not np.isfinite(found[finite].astype(np.float64)).all():
            entry.max_abs = entry.max_rel = math.inf
            entry.broken = True
            return
        reference = wanted[finite].astype(np.float64)
        worst = float(np.abs(found[finite].astype(np.float64) - reference).max(initial=0.0))
        largest = float(np.abs(reference).max(initial=0.0))
        entry.max_abs = max(entry.max_abs, worst)
        entry.max_rel = max(entry.max_rel, worst / largest if largest else math.inf if worst else 0.0)
        if looks_like_scores(found):
            best = np.argmax(wanted, -1)[:, None]
            entry.voted += found.shape[0]
            # a tie at the top counts as agreement: integers tie more often than floats
            entry.agreed += int(np.count_nonzero(np.take_along_axis(found, best, -1)[:, 0] == found.max(-1)))

    def finish(self, limits: Limits, tensors: Mapping[str, Tally]) -> tuple[tuple[OutputCheck, ...], str | None, str]:
        """The outputs' checks, the first that breaks a limit, and how; `tensors` has the outputs' tallies in LSB."""
        checks: list[OutputCheck] = []
        bad: str | None = None
        why = ""
        for name, entry in self.found.items():
            chosen_by = self.chosen_by(name) if entry.max_abs else ""
            checks.append(OutputCheck(name, entry.max_abs, entry.max_rel, entry.agreement, chosen_by))
            tally = tensors.get(name)
            worst = max((lsb for lsb, count in tally.histogram.items() if count), default=0) if tally else 0
            broken = _broken(entry, worst, limits)
            if broken and bad is None:
                bad, why = name, broken
        return tuple(checks), bad, why


def _broken(entry: _Output, worst: int, limits: Limits) -> str:
    """How an output breaks a limit, in a sentence; nothing where it keeps them all. `worst` is in LSB."""
    if entry.broken:
        return "the package's output has another shape than the simulation's, or is not finite where that one is"
    if limits.output_lsb is not None and entry.resized:
        return (
            f"the output has more elements than the simulation's, or fewer, and output_lsb allows {limits.output_lsb:g}"
        )
    if limits.output_lsb is not None and worst > limits.output_lsb:
        return f"the output is off by {worst:,} LSB from the simulation's, and output_lsb allows {limits.output_lsb:g}"
    share = entry.agreement
    if limits.agreement is not None and share is not None and share < limits.agreement:
        found = f"{entry.agreed:,} of {entry.voted:,}"
        return f"the arg-max agrees with the simulation's in {found}, and agreement demands {limits.agreement:g}"
    return ""


def _choices(graph: IntegerGraph) -> dict[str, str]:
    """The tensors that an operator chose, or that were made of such -> that operator."""
    chosen: dict[str, str] = {}
    for op in graph.ops:
        kind = op.op_type if isinstance(op, Float | Move) else ""
        by = kind if kind in _CHOOSING else next((chosen[name] for name in op.inputs if name in chosen), "")
        if by:
            chosen.update(dict.fromkeys(op.outputs, by))
    return chosen


def looks_like_scores(output: Array) -> bool:
    """Whether an arg-max makes sense: floats [N, C] with at least two classes."""
    return output.ndim == 2 and output.shape[0] > 0 and output.shape[1] > 1 and output.dtype.kind == "f"


def deployed_inputs(graph: IntegerGraph, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The integer graph's inputs from the file's: quantized where the deployed graph reads integers (--io integer).

    Raises:
        CompileError: QAT008 where the sample has no value for an input.
    """
    missing = next((name for name in graph.inputs if name not in feeds), None)
    if missing is not None:
        raise fail("QAT008", "the sample has no value for the graph input", tensor=missing)
    ports = (Port(n, graph.tensors[n].dtype, graph.tensors[n].shape, graph.tensors[n].params) for n in graph.inputs)
    return {port.name: port.rounded(np.asarray(feeds[port.name])) for port in ports}

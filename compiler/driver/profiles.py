"""How far the arithmetic profiles are from exact rounding on a network: what another target would round differently.

Each operator that rounds is fed what the profile `exact` computes, so the figures are those of single operators: they
say how a profile rounds, not what becomes of it at the network's end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qatc.compiler.arithmetic import PROFILES, Profile
from qatc.compiler.diagnostics import CompileError
from qatc.compiler.integer import Clamped, Conv, IntegerGraph, Lookup, MatMul, Op, Pool, Quantize
from qatc.compiler.quant import Array, Integers
from qatc.compiler.reference import OnnxEvaluator, evaluate_onnx, execute_op
from qatc.compiler.reference.accumulate import accumulators, bias_of
from qatc.compiler.result import ProfileDifference


@dataclass
class _Tally:
    """What was counted of one profile."""

    elements: int = 0
    different: int = 0
    max_lsb: int = 0
    operators: int = 0
    worst: str = ""
    worst_share: float = 0.0
    reason: str = ""


def profile_differences(
    graph: IntegerGraph,
    feeds: Sequence[Mapping[str, Array]],
    names: Iterable[str] = PROFILES,
    *,
    evaluate: OnnxEvaluator = evaluate_onnx,
) -> tuple[ProfileDifference, ...]:
    """Compare every profile of `names` with `exact`, operator by operator.

    A profile that cannot express an operator (`pow2` and scales that are no powers of two) gets the reason alone.

    Args:
        graph: a verified graph.
        feeds: samples by input of the graph.
        names: the profiles; `exact` itself is left out.
        evaluate: runs Move and Float operators.

    Raises:
        CompileError: as `reference.execute`.
    """
    exact = PROFILES["exact"]
    tallies = {name: _Tally() for name in names if name != exact.name}
    for feed in feeds:
        values: dict[str, Array] = {**graph.constants, **feed}
        for op in graph.ops:
            if not _rounds(graph, op):
                values.update(zip(op.outputs, execute_op(graph, op, values, exact, evaluate), strict=True))
                continue
            runs = _Runs(graph, op, values, evaluate)
            values[op.output] = runs.under(exact)
            for name, tally in tallies.items():
                if not tally.reason:
                    _count(tally, runs, PROFILES[name], values[op.output])
    return tuple(_difference(name, tally) for name, tally in tallies.items())


def _rounds(graph: IntegerGraph, op: Op) -> bool:
    """Whether a profile has a say in what `op` computes."""
    if not isinstance(op, Clamped) or isinstance(op, (Lookup, Quantize)):
        return False
    return graph.params(op.output).dtype != "int32" and not (isinstance(op, Pool) and op.mode == "max")


class _Runs:
    """One operator under several profiles: its accumulators are computed once."""

    def __init__(self, graph: IntegerGraph, op: Op, values: Mapping[str, Array], evaluate: OnnxEvaluator) -> None:
        self.graph, self.op, self.values, self.evaluate = graph, op, values, evaluate
        self.acc: Integers | None = None
        if isinstance(op, (Conv, MatMul)):
            self.acc = accumulators(graph, op, values, bias_of(op, values))

    def under(self, profile: Profile) -> Integers:
        """The operator's result."""
        op = self.op
        if self.acc is None or not isinstance(op, (Conv, MatMul)):
            return execute_op(self.graph, op, self.values, profile, self.evaluate)[0]
        axis = 1 if isinstance(op, Conv) else self.acc.ndim - 1
        in_scale = self.graph.params(op.inputs[0]).scale[0]
        out = self.graph.params(op.output)
        return profile.requantize(self.acc, op.acc_scale, out, op.lo, op.hi, axis, in_scale=in_scale)


def _count(tally: _Tally, runs: _Runs, profile: Profile, exact: Integers) -> None:
    try:
        theirs = runs.under(profile)
    except CompileError as error:  # the profile has no form for this operator: that is the finding
        tally.reason = error.diagnostics[0].message
        return
    different = int(np.count_nonzero(theirs != exact))
    tally.elements += exact.size
    if not different:
        return
    tally.different += different
    tally.operators += 1
    tally.max_lsb = max(tally.max_lsb, int(np.abs(theirs.astype(np.int64) - exact).max()))
    share = different / exact.size
    if share > tally.worst_share:
        tally.worst, tally.worst_share = runs.op.output, share


def _difference(name: str, tally: _Tally) -> ProfileDifference:
    if tally.reason:
        tally = dataclasses.replace(_Tally(), reason=tally.reason)
    share = tally.different / tally.elements if tally.elements else 0.0
    return ProfileDifference(
        name, tally.elements, share, tally.max_lsb, tally.operators, tally.worst, tally.worst_share, tally.reason
    )

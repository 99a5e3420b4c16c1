"""The package as users run it, with ONNX Runtime's optimizations, against the same model without them.

Tensor by tensor the package is read unoptimized, since an optimized model has fewer tensors. What remains is to see
that the optimizations change nothing: not a bit of what is computed in integers, floats only in their last bits.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from qatc.compiler.integer import Clamped, Conv, Elementwise, Float, IntegerGraph, LayerNorm, MatMul, Op, Pool, Softmax
from qatc.compiler.quant import Array
from qatc.compiler.verify.deployed import BY_TABLE, INTEGER_AVERAGES, DeployedCheck
from qatc.compiler.verify.limits import Limits
from qatc.compiler.verify.tally import Tally

_INTEGER_SUMS: Final = INTEGER_AVERAGES | {"ConvInteger", "MatMulInteger", "QGemm", "QLinearMatMul"}
# Operators that make a whole step of the last bit of a float, and those that may hold such.
_JUMPS: Final = frozenset(
    {"ArgMax", "ArgMin", "Cast", "Ceil", "Equal", "Floor", "Greater", "GreaterOrEqual", "Hardmax", "If", "Less",
     "LessOrEqual", "Loop", "Mod", "NonMaxSuppression", "Round", "Scan", "Shrink", "Sign", "ThresholdedRelu", "TopK"}
)  # fmt: skip
_INTEGER_PAIRS: Final = frozenset({"QLinearAdd", "QLinearMul"})


class Drift(IntEnum):
    """How far optimizations may move a tensor."""

    NONE = 0  # integers all the way
    FLOATS = 1  # sums of floats in another order, other kernels of the same function
    STEPS = 2  # such floats, rounded or compared: whole steps, which add up


class OptimizedCheck:
    """Judges the outputs of the optimized model; what it finds is added to the package's tallies.

    Args:
        graph: the integer graph.
        package: the comparison of its package, tensor by tensor.
        limits: `float_tolerance` bounds outputs behind which nothing was rounded, relative to their largest magnitude.
    """

    def __init__(self, graph: IntegerGraph, package: DeployedCheck, limits: Limits) -> None:
        self.package, self.limits = package, limits
        self.drifts = dict.fromkeys(graph.inputs, Drift.NONE)
        for op in graph.ops:
            before = max((self.drifts.get(name, Drift.NONE) for name in op.inputs), default=Drift.NONE)
            self.drifts.update(dict.fromkeys(op.outputs, max(before, self._drift(op, before))))

    def _drift(self, op: Op, before: Drift) -> Drift:
        kernel = self.package.kernel(op.output)
        if isinstance(op, Conv | MatMul) and not kernel:  # an accumulator, scaled to floats in the same operator
            return Drift.FLOATS
        if isinstance(op, Clamped) and (before or not _in_integers(op, kernel)):
            return Drift.STEPS
        if isinstance(op, Float):
            return Drift.STEPS if before and op.op_type in _JUMPS else Drift.FLOATS
        return Drift.NONE

    def compare(self, name: str, plain: Array, optimized: Array) -> None:
        """Judge an output: its values without and with optimizations.

        Where floats were rounded nothing is demanded here: such an output is compared with the simulation's alone.
        """
        drift, tally = self.drifts[name], self.package.tallies.get(name)
        if tally is None or drift is Drift.STEPS:
            return
        judged = Tally(tally.tensor, tally.op, tally.kind)
        judged.floats(optimized, plain, self.limits.float_tolerance if drift is Drift.FLOATS else 0.0)
        for problem in judged.problems:
            tally.problem(f"ONNX Runtime's optimizations change it: {problem}")


def _in_integers(op: Clamped, kernel: str) -> bool:
    """Whether an operator that rounds is computed in integers, or from one element by the same table or formula."""
    match op:
        case Conv() | MatMul():
            return kernel in _INTEGER_SUMS
        case Elementwise():
            return kernel in _INTEGER_PAIRS
        case Pool(mode="average"):
            return kernel in INTEGER_AVERAGES
        case Softmax() | LayerNorm():
            return kernel in BY_TABLE
        case _:
            return True

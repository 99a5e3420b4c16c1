"""Package against reference: every tensor of the package's model, each operator fed the package's own inputs.

The reference computes what ONNX Runtime's integer kernels compute (profile `onnx`), so most operators must be equal bit
for bit. The exceptions are listed here and in `docs/verification.md`, with what was measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np

from qatc.compiler.arithmetic import Profile
from qatc.compiler.backend import Emission
from qatc.compiler.diagnostics import counted, fail
from qatc.compiler.integer import Clamped, Elementwise, Float, IntegerGraph, LayerNorm, Op, Pool, Softmax
from qatc.compiler.passes.products import PRODUCTS
from qatc.compiler.quant import Array
from qatc.compiler.reference import OnnxEvaluator, execute_op
from qatc.compiler.runtime.processor import flattened
from qatc.compiler.runtime.sessions import RunnableModel, errors, version
from qatc.compiler.verify.boundary import exact_at
from qatc.compiler.verify.tally import Tally, position

# Operators that ONNX Runtime computes in float32, in an order that depends on the machine, on the optimizations and on
# which of several kernels was emitted: one LSB is allowed, at a rounding boundary.
BY_TABLE: Final = frozenset({"QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax"})
# Averages over integer sums, with one float32 factor: equal bit for bit.
INTEGER_AVERAGES: Final = frozenset({"QLinearConv", "QLinearGlobalAveragePool"})
# What the emitter puts behind a kernel, with the input that holds its result.
_AFTER: Final = {"Clip": 0, "Flatten": 0, "Reshape": 0, "Transpose": 0, "Where": 2}
_STEPS: Final = 16
# Float islands run by the same kernels on the same inputs; vectors end differently in a smaller tensor, and products
# add up in another order where their weight is another kind of input.
_FLOAT_TOLERANCE: Final = 2.0**-20


def _in_float(op: Op, kernel: str) -> bool:
    if isinstance(op, Pool):
        return op.mode == "average" and kernel not in INTEGER_AVERAGES
    return isinstance(op, Elementwise | Softmax | LayerNorm)


class DeployedCheck:
    """The comparison over all samples."""

    def __init__(
        self,
        graph: IntegerGraph,
        profile: Profile,
        emitted: Emission,
        evaluate: OnnxEvaluator,
        folder: Path | None = None,
    ) -> None:
        """A comparison; the model's external data that `emitted` does not hold lie in `folder`."""
        self.graph, self.profile, self.evaluate = graph, profile, evaluate
        self.stepwise = RunnableModel(flattened(emitted.model), folder, weights=emitted.external)
        self.whole = RunnableModel(emitted.model, folder, weights=emitted.external, optimize=True)
        self.names = {
            name: emitted.names.get(name, name)
            for name in graph.made()
            if self.stepwise.has(emitted.names.get(name, name))
        }
        self.tallies: dict[str, Tally] = {}

    def feeds(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The package's inputs from the integer graph's."""
        return {self.names[name]: value for name, value in inputs.items() if name in self.names}

    def places(self, op: Op) -> list[str]:
        """The package's tensors that `step` wants for `op`."""
        return [self.names[o] for o in op.outputs if o in self.names]

    def read(self, feeds: Mapping[str, Array], names: list[str], *, optimize: bool = False) -> dict[str, Array]:
        """Tensors of the package (CompileError QAT401 where ONNX Runtime cannot run it)."""
        try:
            return (self.whole if optimize else self.stepwise).run(feeds, names)
        except errors() as error:
            raise fail("QAT401", f"ONNX Runtime {version()} cannot run the emitted model: {error}") from error

    def start(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """What readers get when a sample begins."""
        return {**self.graph.constants, **inputs}

    def step(self, op: Op, values: dict[str, Array], found: Mapping[str, Array]) -> None:
        """Run `op` on the package's own inputs, compare with what the package made of them."""
        results = execute_op(self.graph, op, values, self.profile, self.evaluate)
        for name, computed in zip(op.outputs, results, strict=True):
            if not name:
                continue
            values[name] = computed
            if name not in self.names:
                continue
            place = self.names[name]
            tally = self.tallies.setdefault(name, Tally(place, op.title, "package"))
            actual = found[place]
            if actual.dtype != computed.dtype or actual.shape != computed.shape:
                have, want = f"{actual.dtype} {list(actual.shape)}", f"{computed.dtype} {list(computed.shape)}"
                tally.problem(f"it is {have}, the reference has {want}")
                continue
            self._compare(op, name, tally, values, actual)
            values[name] = actual

    def _compare(self, op: Op, name: str, tally: Tally, values: Mapping[str, Array], actual: Array) -> None:
        params = self.graph.tensors[name].params
        if params is None:
            tally.floats(actual, values[name], self._tolerance(op, values, values[name], actual))
            return
        where = tally.integers(actual, values[name], params)
        if not where.size:
            return
        kernel = self.kernel(name)
        difference = np.abs(actual.reshape(-1)[where].astype(np.int64) - values[name].reshape(-1)[where])
        fine = np.zeros(where.size, np.bool_)
        if isinstance(op, Clamped) and (_in_float(op, kernel) or kernel in BY_TABLE):
            exact = exact_at(self.graph, op, values, where)
            fine = difference <= 1
            if exact is not None:
                fine &= exact.integers_may_give(actual.reshape(-1)[where], op.lo, op.hi)
        tally.excused += int(np.count_nonzero(fine))
        wrong = np.flatnonzero(~fine)
        if wrong.size:
            at = position(int(where[wrong[0]]), actual.shape)
            tally.problem(
                f"{counted(wrong.size, 'element', 'differ')} from the reference, by up to"
                f" {int(difference[wrong].max())} LSB, first at {at}{f' ({kernel})' if kernel else ''}"
            )

    def _tolerance(self, op: Op, values: Mapping[str, Array], computed: Array, actual: Array) -> float:
        """How far floats may be off, relative to the largest; sums by the size of their terms, which may cancel out."""
        largest = float(np.abs(computed).max(initial=0.0))
        is_sum = isinstance(op, Float) and op.op_type in PRODUCTS and 0 < largest < np.inf
        if not is_sum or np.allclose(actual, computed, 0.0, _FLOAT_TOLERANCE * largest, equal_nan=True):
            return _FLOAT_TOLERANCE
        sizes = {name: np.abs(values[name]) for name in op.inputs if name}
        (added,) = execute_op(self.graph, op, sizes, self.profile, self.evaluate)
        return _FLOAT_TOLERANCE * max(float(added.max()) / largest, 1.0)

    def kernel(self, name: str) -> str:
        """The package's operator that computes a tensor of the graph, behind those that only clamp, choose or reshape.

        Empty where the package does not have the tensor.
        """
        place = self.names.get(name, "")
        for _ in range(_STEPS):
            maker = self.stepwise.makers.get(place)
            if maker is None:
                return ""
            if maker.op_type not in _AFTER:
                return maker.op_type
            place = maker.input[_AFTER[maker.op_type]]
        return ""

    def finish(self) -> list[Tally]:
        """The tallies in execution order."""
        order = [o for op in self.graph.ops for o in op.outputs]
        return [self.tallies[o] for o in order if o in self.tallies]

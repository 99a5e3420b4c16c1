"""The three comparisons over all samples, in stages of bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from qatc.compiler.arithmetic import Profile, get_profile
from qatc.compiler.diagnostics import CompileError, Diagnostic, Severity, fail
from qatc.compiler.integer import Dequantize, IntegerGraph, Op
from qatc.compiler.quant import Array
from qatc.compiler.result import OutputCheck, TensorCheck, Verification
from qatc.compiler.runtime import OrtEvaluator
from qatc.compiler.simulation import Simulation
from qatc.compiler.verify.deployed import Emitted, PackageCheck, Replay
from qatc.compiler.verify.limits import Limits
from qatc.compiler.verify.local import LocalCheck, Sample
from qatc.compiler.verify.tally import Tally

_BUDGET: Final = 1 << 28  # bytes of float tensors read from the simulation at a time
_UNKNOWN: Final = 1 << 20  # elements assumed for a tensor of unknown shape


def verify(
    graph: IntegerGraph,
    profile: Profile,
    simulation: Simulation,
    emitted: Emitted,
    samples: Sequence[Mapping[str, Array]],
    limits: Limits | None = None,
    *,
    budget: int = _BUDGET,
) -> Verification:
    """Compare simulation, reference and package on `samples`; a breach makes the result not `passed`.

    Args:
        graph: what was emitted.
        profile: how the target rounds; what the reference executor computes with. The package's model runs in ONNX
            Runtime, so it is compared with the profile `onnx` whatever the target's is.
        simulation: the input file, or a graph with its Q/DQ written back.
        emitted: the package's model, and where the graph's tensors are in it.
        samples: one array per input of the simulation each, in its dtype.
        limits: what is demanded.
        budget: bytes of intermediate tensors held at a time.

    Raises:
        CompileError: QAT403 where the simulation cannot be run, QAT401 where the package cannot.
    """
    limits = limits or Limits()
    evaluate = OrtEvaluator()
    local = LocalCheck(graph, profile, simulation, limits, evaluate)
    package = PackageCheck(graph, get_profile("onnx"), emitted, evaluate)
    ends = _Ends(graph, local, package)
    runs = [_Run(feeds, graph, local, package) for feeds in samples]
    for stage in _stages(graph, local.located, budget):
        for run in runs:
            run.advance(stage, simulation, ends)
    for run in runs:
        ends.outputs(run, simulation)
    checks = [tuple(t.check() for t in tallies) for tallies in (package.finish(), local.finish(), ends.finish())]
    outputs = ends.finish_outputs(limits)
    bad = _first_bad(graph, package.tallies, local.tallies) or ends.bad
    return Verification(
        samples=len(samples),
        simulation=simulation.description,
        package=checks[0],
        local=checks[1],
        tensors=checks[2],
        outputs=outputs,
        passed=bad is None,
        first_bad=bad,
    )


def check(found: Verification) -> None:
    """Raise CompileError (exit code 3) where the verification failed: QAT401, QAT402, QAT404, first tensors first."""
    if found.passed:
        return
    diagnostics = [
        *_diagnostics("QAT401", found.package, "run `qatc verify` with another onnxruntime, and report this"),
        *_diagnostics("QAT402", found.local, "report this with the model; --tolerance and --no-verify are ways around"),
        *_diagnostics("QAT404", found.tensors, "loosen --tolerance, or look at the tensor in report.html"),
    ]
    if not diagnostics:
        name = found.first_bad or ""
        message = "the package's outputs are further from the simulation's than --tolerance allows"
        diagnostics = [Diagnostic("QAT404", message, Severity.ERROR, tensor=name or None)]
    raise CompileError(diagnostics, exit_code=3)


def _diagnostics(code: str, checks: Sequence[TensorCheck], hint: str) -> list[Diagnostic]:
    bad = [c for c in checks if not c.passed]
    shown = [Diagnostic(code, f"{c.op}: {c.message}", Severity.ERROR, tensor=c.tensor, hint=hint) for c in bad[:5]]
    if len(bad) > len(shown):
        more = f"{len(bad) - len(shown)} more tensors differ, all behind the first"
        shown.append(Diagnostic(code, more, Severity.ERROR, tensor=bad[len(shown)].tensor))
    return shown


def _first_bad(graph: IntegerGraph, *tallies: Mapping[str, Tally]) -> str | None:
    for op in graph.ops:
        for name in op.outputs:
            for each in tallies:
                if name in each and each[name].problems:
                    return each[name].tensor
    return None


# -- stages -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Stage:
    """Operators that are compared together, and the tensors that nobody reads after them."""

    ops: tuple[Op, ...]
    dead: tuple[str, ...]


def _stages(graph: IntegerGraph, located: Mapping[str, str], budget: int) -> Iterator[_Stage]:
    """The operators in order, cut where the simulation's tensors would exceed `budget`."""
    last = _last_uses(graph, located)
    ops: list[Op] = []
    used, done = 0, 0
    for index, op in enumerate(graph.ops):
        size = sum(_bytes(graph, o) for o in op.outputs if o in located)
        if ops and used + size > budget:
            yield _Stage(tuple(ops), tuple(n for n, i in last.items() if done <= i < index))
            ops, used, done = [], 0, index
        ops.append(op)
        used += size
    if ops:
        yield _Stage(tuple(ops), ())


def _last_uses(graph: IntegerGraph, located: Mapping[str, str]) -> dict[str, int]:
    """The operator that needs each tensor last; what is judged further down needs its operator's inputs until then."""
    last = {name: index for index, op in enumerate(graph.ops) for name in op.inputs}
    last.update(dict.fromkeys(graph.outputs, len(graph.ops)))
    for op in reversed(graph.ops):
        passed_on = [o for o in op.outputs if o and (o not in located or graph.tensors[o].params is None)]
        until = max((last.get(o, 0) for o in passed_on), default=0)
        for name in op.inputs:
            last[name] = max(last[name], until)
    return last


def _bytes(graph: IntegerGraph, name: str) -> int:
    tensor = graph.tensors[name]
    shape = tensor.sample_shape or tensor.shape
    if shape is None:
        return 4 * _UNKNOWN
    return 4 * math.prod(d if isinstance(d, int) else 1 for d in shape)


class _Run:
    """One sample on its way through the stages."""

    def __init__(
        self, feeds: Mapping[str, Array], graph: IntegerGraph, local: LocalCheck, package: PackageCheck
    ) -> None:
        self.feeds, self.local, self.package = feeds, local, package
        self.inputs = {name: _as_input(graph, name, feeds) for name in graph.inputs}
        self.deployed = package.feeds(self.inputs)
        self.sample: Sample = local.start(feeds, self.inputs)
        self.replay: Replay = package.start(self.inputs)

    def advance(self, stage: _Stage, simulation: Simulation, ends: _Ends) -> None:
        """Take the operators of `stage` through all comparisons."""
        wanted = [name for op in stage.ops for name in self.local.places(op)]
        simulated = simulation.run(self.feeds, wanted)
        found = self.package.read(self.deployed, [name for op in stage.ops for name in self.package.places(op)])
        for op in stage.ops:
            self.local.step(op, self.sample, simulated)
            self.package.step(op, self.replay, found)
            for name in op.outputs:
                ends.tensor(op, name, self.sample, found)
        for name in stage.dead:
            self.sample.values.pop(name, None)
            self.replay.values.pop(name, None)


def _as_input(graph: IntegerGraph, name: str, feeds: Mapping[str, Array]) -> Array:
    """The integer graph's input from the file's: quantized where the deployed graph reads integers (--io integer)."""
    if name not in feeds:
        raise fail("QAT008", "the sample has no value for the graph input", tensor=name)
    value, tensor = np.asarray(feeds[name]), graph.tensors[name]
    if value.dtype.kind == "f" and tensor.params is not None:
        return tensor.params.quantize(value)
    return value


# -- end to end ---------------------------------------------------------------------------------------------------


@dataclass
class _Output:
    max_abs: float = 0.0
    max_rel: float = 0.0
    agreed: int = 0
    voted: int = 0


@dataclass
class _Ends:
    """Package against simulation, each on its own: what a user gets."""

    graph: IntegerGraph
    local: LocalCheck
    package: PackageCheck
    tensors: dict[str, Tally] = field(default_factory=dict[str, Tally])
    found: dict[str, _Output] = field(default_factory=dict[str, _Output])
    bad: str | None = None

    def tensor(self, op: Op, name: str, sample: Sample, found: Mapping[str, Array]) -> None:
        """Count one tensor; `sample.values` has the simulation's integers under the tensor's name."""
        params = self.graph.tensors[name].params if name else None
        place = self.package.names.get(name)
        if params is None or place is None or name not in self.local.located:
            return
        expected = sample.values[name]
        tally = self.tensors.setdefault(name, Tally(self.local.located[name], op.kind, "end-to-end"))
        tally.integers(found[place], expected.astype(found[place].dtype, copy=False), params)

    def outputs(self, run: _Run, simulation: Simulation) -> None:
        """Compare the outputs of the package as users run it, optimized, with the simulation's."""
        names = {name: self.package.names[name] for name in self.graph.outputs if name in self.package.names}
        found = self.package.read(run.deployed, list(names.values()), optimize=True)
        expected = simulation.run(run.feeds, [n for n in self.graph.outputs if n in simulation.outputs])
        for name, wanted in expected.items():
            if name in names:
                self._output(name, found[names[name]], wanted)

    def _output(self, name: str, found: Array, wanted: Array) -> None:
        entry = self.found.setdefault(name, _Output())
        tensor = self.graph.tensors[name]
        if tensor.params is not None:
            found = tensor.params.dequantize(found)
            wanted = tensor.params.dequantize(wanted) if wanted.dtype.kind in "iu" else wanted
        if found.shape != wanted.shape or (
            found.dtype.kind == "f" and not np.isfinite(found[np.isfinite(wanted)]).all()
        ):
            entry.max_abs = entry.max_rel = math.inf
            self.bad = self.bad or name
            return
        if not found.size:
            return
        difference = np.abs(found.astype(np.float64) - wanted)
        largest = float(np.abs(wanted.astype(np.float64)).max())
        worst = float(difference.max())
        entry.max_abs = max(entry.max_abs, worst)
        entry.max_rel = max(
            entry.max_rel, worst / largest if largest else math.copysign(math.inf, worst) if worst else 0.0
        )
        if looks_like_scores(found):
            best = np.argmax(wanted, -1)[:, None]
            entry.voted += found.shape[0]
            # a tie at the top counts as agreement: integers tie more often than floats
            entry.agreed += int(np.count_nonzero(np.take_along_axis(found, best, -1)[:, 0] == found.max(-1)))

    def finish(self) -> list[Tally]:
        """The tallies in execution order."""
        return [self.tensors[o] for op in self.graph.ops for o in op.outputs if o in self.tensors]

    def finish_outputs(self, limits: Limits) -> tuple[OutputCheck, ...]:
        """The outputs' checks; sets `bad` to the first that breaks a limit."""
        makers = self.graph.producers()
        checks: list[OutputCheck] = []
        for name, entry in self.found.items():
            agreement = entry.agreed / entry.voted if entry.voted else None
            checks.append(OutputCheck(name, entry.max_abs, entry.max_rel, agreement))
            maker = makers.get(name)
            integers = maker.inputs[0] if isinstance(maker, Dequantize) else name
            tally = self.tensors.get(integers)
            worst = max((lsb for lsb, n in tally.histogram.items() if n), default=0) if tally else 0
            over = limits.output_lsb is not None and worst > limits.output_lsb
            if over or (limits.agreement is not None and agreement is not None and agreement < limits.agreement):
                self.bad = self.bad or name
        return tuple(checks)


def looks_like_scores(output: Array) -> bool:
    """Whether an arg-max makes sense: floats [N, C] with at least two classes."""
    return output.ndim == 2 and output.shape[1] > 1 and output.dtype.kind == "f"

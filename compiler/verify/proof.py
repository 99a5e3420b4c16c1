"""The three comparisons over all samples, in stages of bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from qatc.compiler.arithmetic import Profile, get_profile
from qatc.compiler.backend import Emission
from qatc.compiler.diagnostics import CompileError, Diagnostic, Severity, counted
from qatc.compiler.integer import Dequantize, IntegerGraph, Op
from qatc.compiler.quant import Array
from qatc.compiler.result import OutputCheck, TensorCheck, Verification
from qatc.compiler.runtime.sessions import OrtEvaluator
from qatc.compiler.simulation import Simulation
from qatc.compiler.verify.deployed import DeployedCheck
from qatc.compiler.verify.ends import Outputs, deployed_inputs
from qatc.compiler.verify.limits import Limits
from qatc.compiler.verify.local import LocalCheck, Sample
from qatc.compiler.verify.optimized import OptimizedCheck
from qatc.compiler.verify.tally import Tally

BUDGET: Final = 1 << 28  # bytes of float tensors read from the simulation at a time
_UNKNOWN: Final = 1 << 20  # elements assumed for a tensor of unknown shape


def verify(
    graph: IntegerGraph,
    profile: Profile,
    simulation: Simulation,
    emitted: Emission,
    samples: Sequence[Mapping[str, Array]],
    limits: Limits | None = None,
    *,
    budget: int = BUDGET,
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
    package = DeployedCheck(graph, get_profile("onnx"), emitted, evaluate)
    ends = _Ends(graph, local, package, OptimizedCheck(graph, package, limits))
    runs = [_Run(feeds, graph, local, package) for feeds in samples]
    for stage in stages(graph, local.located, budget):
        for run in runs:
            run.advance(stage, simulation, ends)
    for run in runs:
        ends.outputs(run, simulation)
    checks = [tuple(t.check() for t in tallies) for tallies in (package.finish(), local.finish(), ends.finish())]
    outputs, bad_output, why = ends.finish_outputs(limits)
    bad = _first_bad(graph, package.tallies, local.tallies) or bad_output
    return Verification(
        samples=len(samples),
        simulation=simulation.description,
        package=checks[0],
        local=checks[1],
        tensors=checks[2],
        outputs=outputs,
        passed=bad is None,
        first_bad=bad,
        why=why,
    )


class VerificationError(CompileError):
    """A verification failed; `verification` holds all that was compared."""

    def __init__(self, diagnostics: Sequence[Diagnostic], verification: Verification) -> None:
        super().__init__(diagnostics, exit_code=3)
        self.verification = verification


def check(found: Verification, stated: Mapping[str, float] | None = None) -> None:
    """Raise VerificationError where the verification failed: QAT401, QAT402, QAT404, first tensors first.

    Args:
        found: what was compared.
        stated: the limits that the user chose.
    """
    if found.passed:
        return
    way_out = (
        "the default limits may allow it: leave --tolerance out; what they do not allow is to be reported"
        if stated
        else "report this with the model; --tolerance and --no-verify are ways around"
    )
    diagnostics = [
        *_diagnostics("QAT401", found.package, "run `qatc verify` with another onnxruntime, and report this"),
        *_diagnostics("QAT402", found.local, way_out),
        *_diagnostics("QAT404", found.tensors, "loosen --tolerance, or look at the tensor in report.html"),
    ]
    if not diagnostics:
        name = found.first_bad or ""
        message = found.why or "the package's outputs are further from the simulation's than --tolerance allows"
        hint = "more samples of your own (--input) tell more than one; qatc compile without this limit shows the rest"
        diagnostics = [Diagnostic("QAT404", message, Severity.ERROR, tensor=name or None, hint=hint)]
    raise VerificationError(diagnostics, found)


def _diagnostics(code: str, checks: Sequence[TensorCheck], hint: str) -> list[Diagnostic]:
    bad = [c for c in checks if not c.passed]
    shown = [Diagnostic(code, f"{c.op}: {c.message}", Severity.ERROR, tensor=c.tensor, hint=hint) for c in bad[:5]]
    if len(bad) > len(shown):
        more = f"{counted(len(bad) - len(shown), 'more tensor', 'differ')}, all behind the first"
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
class Stage:
    """Operators that are compared together, and the tensors that nobody reads after them."""

    ops: tuple[Op, ...]
    dead: tuple[str, ...]


def stages(graph: IntegerGraph, located: Mapping[str, str], budget: int) -> Iterator[Stage]:
    """The operators in order, cut where the tensors of `located` (the graph's names) would exceed `budget` bytes."""
    last = _last_uses(graph, located)
    ops: list[Op] = []
    used, done = 0, 0
    for index, op in enumerate(graph.ops):
        size = sum(_bytes(graph, o) for o in op.outputs if o in located)
        if ops and used + size > budget:
            yield Stage(tuple(ops), tuple(n for n, i in last.items() if done <= i < index))
            ops, used, done = [], 0, index
        ops.append(op)
        used += size
    if ops:  # of the next sample, too, no more is held than of one
        yield Stage(tuple(ops), tuple(n for n, i in last.items() if i >= done))


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
        self, feeds: Mapping[str, Array], graph: IntegerGraph, local: LocalCheck, package: DeployedCheck
    ) -> None:
        self.feeds, self.local, self.package = feeds, local, package
        self.inputs = deployed_inputs(graph, feeds)
        self.deployed = package.feeds(self.inputs)
        self.sample: Sample = local.start(feeds, self.inputs)
        self.replay = package.start(self.inputs)
        self.plain = dict(self.inputs)  # outputs of the package unoptimized, inputs that are outputs among them

    def advance(self, stage: Stage, simulation: Simulation, ends: _Ends) -> None:
        """Take the operators of `stage` through all comparisons."""
        simulated = simulation.run(self.feeds, [name for op in stage.ops for name in self.local.places(op)])
        found = self.package.read(self.deployed, [name for op in stage.ops for name in self.package.places(op)])
        for op in stage.ops:
            self.local.step(op, self.sample, simulated)
            self.package.step(op, self.replay, found)
            for name in op.outputs:
                ends.tensor(op, name, self.sample, found)
                if name in ends.names:
                    self.plain[name] = found[ends.names[name]]
        for name in stage.dead:
            self.sample.values.pop(name, None)
            self.replay.pop(name, None)


# -- end to end ---------------------------------------------------------------------------------------------------


@dataclass
class _Ends:
    """Package against simulation, each on its own: what a user gets."""

    graph: IntegerGraph
    local: LocalCheck
    package: DeployedCheck
    optimized: OptimizedCheck
    tensors: dict[str, Tally] = field(default_factory=dict[str, Tally])
    found: Outputs = field(default_factory=Outputs)

    def __post_init__(self) -> None:
        self.names = {name: self.package.names[name] for name in self.graph.outputs if name in self.package.names}
        self.found.graph = self.graph

    def tensor(self, op: Op, name: str, sample: Sample, found: Mapping[str, Array]) -> None:
        """Count one tensor; `sample.values` has the simulation's integers under the tensor's name."""
        params = self.graph.tensors[name].params if name else None
        place = self.package.names.get(name)
        if params is None or place is None or name not in self.local.located:
            return
        expected = sample.values[name]
        if found[place].shape != expected.shape and self.found.chosen_by(name):
            return
        tally = self.tensors.setdefault(name, Tally(self.local.located[name], op.title, "end-to-end"))
        tally.integers(found[place], expected.astype(found[place].dtype, copy=False), params)

    def outputs(self, run: _Run, simulation: Simulation) -> None:
        """Compare the outputs of the package as users run it, optimized, with the unoptimized and the simulation's."""
        found = {place: run.plain[name] for name, place in self.names.items()}
        if self.package.whole.optimize:  # not where the model is too deep to be optimized
            found = self.package.read(run.deployed, list(self.names.values()), optimize=True)
            for name, place in self.names.items():
                self.optimized.compare(name, run.plain[name], found[place])
        expected = simulation.run(run.feeds, [n for n in self.graph.outputs if n in simulation.outputs])
        for name, wanted in expected.items():
            if name in self.names:
                self.found.add(name, found[self.names[name]], wanted, self.graph.tensors[name].params)

    def finish(self) -> list[Tally]:
        """The tallies in execution order."""
        return [self.tensors[o] for op in self.graph.ops for o in op.outputs if o in self.tensors]

    def finish_outputs(self, limits: Limits) -> tuple[tuple[OutputCheck, ...], str | None, str]:
        """The outputs' checks, the first that breaks a limit, and how it does."""
        makers = self.graph.producers()
        tallies: dict[str, Tally] = {}
        for name in self.found.found:
            maker = makers.get(name)
            tally = self.tensors.get(maker.inputs[0] if isinstance(maker, Dequantize) else name)
            if tally is not None:
                tallies[name] = tally
        return self.found.finish(limits, tallies)

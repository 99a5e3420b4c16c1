"""The road from a file to a package, top to bottom: load, normalize, strip, fold, lower, emit, verify, write."""

from __future__ import annotations

import dataclasses
import gc
import importlib
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from qatc.compiler.coverage import coverage, islands
from qatc.compiler.diagnostics import CompileError, Diagnostic, Severity, fail, printable
from qatc.compiler.frontend import Frontend, FrontendOptions, RangeOverride
from qatc.compiler.graph import QuantGraph, Variable, infer_new_shapes, infer_shapes, shape_of
from qatc.compiler.inspection import inspection, overflows, view
from qatc.compiler.integer import IntegerGraph
from qatc.compiler.lowering import LoweringOptions, lower
from qatc.compiler.model_io import Source, load
from qatc.compiler.package import check_destination
from qatc.compiler.passes.affine import fold_affine
from qatc.compiler.passes.missing import fill, missing_ranges
from qatc.compiler.passes.propagate import propagate
from qatc.compiler.passes.strip import strip
from qatc.compiler.ports import port_of, port_of_integer, tensor_records
from qatc.compiler.quant import QuantParams
from qatc.compiler.result import CompileResult, FilledRange, Inspection, Json, Verification
from qatc.compiler.storage import SPILL_AT
from qatc.compiler.target import read_toml

if TYPE_CHECKING:
    from qatc.compiler.backend import Backend, Emission, Stream
    from qatc.compiler.golden import Proof
    from qatc.compiler.registry import Registry
    from qatc.compiler.samples import Feeds
    from qatc.compiler.simulation import Simulation
    from qatc.compiler.target import Target

Progress = Callable[[str, float], None]
_MANY: Final = 500000  # objects
_STEPS: Final = ("read", "normalize", "fold", "calibrate", "lower", "emit", "verify", "write")


@dataclasses.dataclass(frozen=True)
class CompileOptions:
    """What a compile is told; names and meanings as the command line's (`contract.md`)."""

    qat: bool = False
    dialect: str = "auto"
    output: Path | None = None
    target: str = "onnx"
    options: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str])
    shapes: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict[str, Sequence[int]])
    inputs: Sequence[tuple[str, Path]] = ()
    samples: int = 1
    seed: int = 0
    calibrate: Path | None = None
    calibration_method: str = "minmax"
    io: str = "float"
    require_integer: bool = False
    tolerance: Mapping[str, float] = dataclasses.field(default_factory=dict[str, float])
    verify: bool = True
    quant_range: str | None = None
    ranges: Path | None = None
    arithmetic: str | None = None
    golden: bool = False
    golden_header: bool = False
    explain: bool = False


def compile_model(
    model: str | Path, *, progress: Progress | None = None, output: str | Path | None = None, **options: Any
) -> CompileResult:
    """Compile a QAT model to a deployment package.

    Args:
        model: the ONNX file.
        output: the package's folder; default `<stem>.qatc` in the working directory. An existing package is replaced
            whole or not at all.
        progress: called with a step's name and the share of the work that is done (0 to 1).
        options: the fields of `CompileOptions`, which are the options of `qatc compile`.

    Returns:
        What was found and written; `result.package` is the folder.

    Raises:
        CompileError: with every diagnostic; `exit_code` is 1 (the model cannot be compiled), 2 (usage) or 3
            (verification failed; an existing package is left as it was).

    >>> from qatc import compile_model
    >>> result = compile_model("samples/models/resnet8_qat.onnx", qat=True, output=f"{tmp}/resnet8.qatc")
    >>> result.dialect, result.coverage.share, result.islands
    ('pytorch', 1.0, ())
    """
    chosen = _options(options, output)
    with _seldom_collected():
        return _Compilation(Path(model), chosen, progress or _silent).run()


def inspect_model(model: str | Path, *, target: str = "onnx", **options: Any) -> Inspection:
    """What would run in integers and what not, and why, without writing or verifying anything.

    Takes the options of `compile_model`; raises the same errors.

    >>> from qatc import inspect_model
    >>> inspect_model("samples/models/resnet8_qat.onnx").coverage.share
    1.0
    """
    chosen = _options({"target": target, **options}, None)
    return _Compilation(Path(model), chosen, _silent).inspect()


@contextmanager
def _seldom_collected() -> Generator[None]:
    """Let Python look for garbage less often: a graph is a million objects that all stay, and looking is a quarter."""
    before = gc.get_threshold()
    if gc.isenabled() and 0 < before[0] < _MANY:
        gc.set_threshold(_MANY, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _silent(step: str, share: float) -> None:
    """Nobody watches."""


def _options(options: Mapping[str, Any], output: str | Path | None) -> CompileOptions:
    known = {f.name for f in dataclasses.fields(CompileOptions)}
    unknown = sorted(set(options) - known)
    if unknown:
        raise CompileError(
            [Diagnostic("QAT007", f"unknown option {unknown[0]}", hint=f"known are {', '.join(sorted(known))}")], 2
        )
    return CompileOptions(**options, output=None if output is None else Path(output))


def frontends() -> Registry[Frontend]:
    """The dialects: built in and installed (entry points `qatc.frontends`)."""
    return _registry("dialect", "qatc.frontends", "QAT102")


def backends() -> Registry[Backend]:
    """The backends: built in and installed (entry points `qatc.backends`)."""
    return _registry("backend", "qatc.backends", "QAT305")


def _registry(kind: str, group: str, code: str) -> Registry[Any]:
    from qatc.compiler.registry import Registry

    # by name, not by import: the compiler does not depend on what it drives
    return Registry(kind, group, importlib.import_module(group).BUILTIN, code)


class _Compilation:
    """One compile: its options, its clock, and what is known so far."""

    def __init__(self, path: Path, options: CompileOptions, progress: Progress) -> None:
        self.path, self.options, self.progress = path, options, progress
        self.timings: dict[str, float] = {}
        self.diagnostics: list[Diagnostic] = []
        self.filled: tuple[FilledRange, ...] = ()
        self.simulation: Simulation | None = None
        self.shapes = options.shapes  # of the inputs of a sample
        self.feeds: list[Feeds] = []

    @contextmanager
    def step(self, name: str) -> Generator[None]:
        """Time a step and tell who watches."""
        self.progress(name, _STEPS.index(name) / len(_STEPS))
        start = time.perf_counter()
        yield
        self.timings[name] = self.timings.get(name, 0.0) + time.perf_counter() - start

    # -- the road -------------------------------------------------------------------------------------------------
    def run(self) -> CompileResult:
        """Load, normalize, strip, fold, calibrate, lower, emit, verify, write."""
        output = self.options.output or Path(f"{self.path.stem}.qatc")
        check_destination(output)
        target, backend, options = self.chosen()
        graph, source, dialect, evidence = self.canonical()
        with self.step("fold"):
            self.strip(graph)
        self.prepare_proof(graph)
        self.fold(graph)
        with self.step("lower"):
            integer = self.lowered(graph, target)
        with self.step("emit"):
            emission = backend.emit(graph if backend.level == "float" else integer, options)
        from qatc.compiler.assemble import assemble  # package and report: only a real compile needs them

        if backend.level == "integer":
            verification = self.verify(integer, emission, target)
        else:
            verification = self.verify_written(integer, emission, target)
        result = self.result(graph, source, integer, emission, dialect, evidence, target, verification)
        with self.step("write"):
            proof = self.proof(integer, target)
            files = self.companions(backend, graph, proof, options)
            result = assemble(result, output, emission, self.feeds, source.external, proof, files)
        self.progress("done", 1.0)
        return dataclasses.replace(result, timings=dict(self.timings))

    def inspect(self) -> Inspection:
        """The road up to the integer graph."""
        target, _, _ = self.chosen()
        self.options = dataclasses.replace(self.options, qat=True)  # whoever inspects need not say what is in there
        graph, source, dialect, evidence = self.canonical()
        self.strip(graph)
        self.fold(graph)
        integer = self.lowered(graph, target)
        return inspection(self.path, source, graph, integer, dialect=dialect, evidence=evidence, target=target.name,
                          diagnostics=self.diagnostics)  # fmt: skip

    # -- its parts ------------------------------------------------------------------------------------------------
    def chosen(self) -> tuple[Target, Backend, dict[str, str]]:
        """The target, the backend that emits it and its options; what is misspelt is told before a file is read."""
        from qatc.compiler.target import load_target

        target = load_target(self.options.target)
        if self.options.arithmetic is not None:
            from qatc.compiler.arithmetic import get_profile

            target = dataclasses.replace(target, arithmetic=get_profile(self.options.arithmetic).name)
        backend = backends().get(target.backend)
        if self.options.dialect.lower() != "auto":
            frontends().get(self.options.dialect)
        parse_ranges(self.options.quant_range)
        return target, backend, backend.checked({**target.options, **self.options.options})

    def proof(self, integer: IntegerGraph, target: Target) -> Proof:
        """What the package holds for bring-up."""
        from qatc.compiler.arithmetic import get_profile
        from qatc.compiler.golden import Proof

        golden, header = self.options.golden, self.options.golden_header
        return Proof(integer, get_profile(target.arithmetic), golden, header, target.layout)

    def companions(
        self, backend: Backend, graph: QuantGraph, proof: Proof, options: Mapping[str, str]
    ) -> Callable[[Callable[[str], Stream], CompileResult], None] | None:
        """What writes the backend's own files beside the model, if it has any."""
        from qatc.compiler.backend import Finished

        write = backend.companions
        if write is None:
            return None
        feeds = self.feeds[0]
        return lambda open_file, result: write(
            open_file, Finished(graph, proof.graph, proof.profile, result, options, feeds)
        )

    def canonical(self) -> tuple[QuantGraph, Source, str, str]:
        """Read the file and bring its dialect to the canonical form."""
        with self.step("read"):
            graph, source = load(self.path)
            graph.storage.spill = source.size > SPILL_AT
            graph.explains = self.options.explain
            pin_shapes(graph, self.options.shapes)
        with self.step("normalize"):
            if self.options.ranges is not None:
                dialect, evidence, external = self.ranges_beside(graph, self.options.ranges)
            else:
                (dialect, evidence), external = self.recognise(graph, source), {}
            frontend = frontends().get(dialect)
            ranges = parse_ranges(self.options.quant_range)
            frontend.normalise(graph, FrontendOptions(ranges=ranges, external=external))
            self.collect(graph)
        return graph, source, dialect, evidence

    def recognise(self, graph: QuantGraph, source: Source) -> tuple[str, str]:
        """Which dialect the file speaks, and how that was seen."""
        registry = frontends()
        wanted = self.options.dialect.lower()
        if wanted != "auto":
            frontend = registry.get(wanted)
            evidence = frontend.recognise(graph, source.producer)
            if evidence is not None:
                return wanted, evidence
            others = self.recognised(graph, source)
            if others and self.options.qat:
                name, seen = others[0]
                note = f"nothing of the dialect {wanted} is in the file; it is read as {name}: {seen}"
                self.diagnostics.append(
                    Diagnostic("QAT105", note, Severity.NOTE, hint=f"use -m {name}, or leave -m out")
                )
                return name, seen
        others = self.recognised(graph, source)
        if not others:
            raise fail(
                "QAT101",
                f"{printable(self.path.name)} has no fake quantization that any dialect knows",
                hint="export the model that was trained with fake quantization, not one converted back to float; "
                "where ranges or encodings lie in a file of their own, give it with --ranges",
            )
        if not self.options.qat and wanted == "auto":
            message = "the model is quantization-aware trained; it is compiled as such"
            self.diagnostics.append(Diagnostic("QAT105", message, Severity.NOTE, hint="say so with -a"))
        return others[0]

    def recognised(self, graph: QuantGraph, source: Source) -> list[tuple[str, str]]:
        """Every dialect that sees something of its own, surest first."""
        registry = frontends()
        seen: list[tuple[int, str, str]] = []
        for name in registry.names():
            frontend = registry.get(name)
            evidence = frontend.recognise(graph, source.producer)
            if evidence is not None:
                seen.append((-frontend.confidence, name, evidence))
        return [(name, evidence) for _, name, evidence in sorted(seen)]

    def ranges_beside(self, graph: QuantGraph, path: Path) -> tuple[str, str, dict[str, QuantParams]]:
        """The dialect of a file of ranges or encodings beside the model, and what it says."""
        registry = frontends()
        wanted = self.options.dialect.lower()
        names = registry.names() if wanted == "auto" else [registry.get(wanted).name]
        refused: list[Diagnostic] = []
        for name in names:
            read = registry.get(name).read
            if read is None:
                continue
            try:
                external = read(path, graph)
            except CompileError as error:
                refused += error.diagnostics
                continue
            return name, f"{len(external)} tensors with parameters in {printable(path.name)}", external
        hint = "leave -m out, or use -m ranges or -m aimet"
        raise CompileError(
            refused or [Diagnostic("QAT102", f"the dialect {wanted} reads no file of ranges", hint=hint)]
        )

    def collect(self, graph: QuantGraph) -> None:
        """Take over the graph's findings; errors end the compile, all at once."""
        known = set(self.diagnostics)
        self.diagnostics += [d for d in graph.diagnostics if d not in known]
        graph.diagnostics.check()

    def strip(self, graph: QuantGraph) -> None:
        """Fake quantisation becomes parameters."""
        strip(graph)
        self.collect(graph)
        if not graph.params:
            raise fail("QAT101", f"{printable(self.path.name)} has no fake quantization left after normalization")
        infer_shapes(graph, self.shapes)

    def fold(self, graph: QuantGraph) -> None:
        """Parameters move where they are free, affine chains go into weights, missing ranges are filled or named."""
        with self.step("fold"):
            propagate(graph)
            fold_affine(graph)
            infer_new_shapes(graph, self.shapes)
            propagate(graph)
            self.collect(graph)
        missing = missing_ranges(graph)
        if self.options.calibrate is not None:
            with self.step("calibrate"):
                self.calibrate(graph, self.options.calibrate, [t.name for t in missing])
        elif missing:
            names = ", ".join(printable(t.name) for t in missing[:3]) + (", ..." if len(missing) > 3 else "")
            noun = "tensor" if len(missing) == 1 else "tensors"
            message = f"{len(missing)} {noun} without a range in the file ({names}): their readers stay float"
            hint = "--calibrate DATA.npy finds their ranges from representative inputs"
            self.diagnostics.append(Diagnostic("QAT208", message, Severity.NOTE, hint=hint))

    def calibrate(self, graph: QuantGraph, path: Path, names: Sequence[str]) -> None:
        """Find missing ranges from the user's data and fill them in."""
        from qatc.compiler.calibrate import calibrate, read_data
        from qatc.compiler.simulation import Simulation

        ports = [port_of(graph, t) for t in graph.inputs]
        data = read_data(path, ports, self.options.shapes)
        if not names:
            message = "the model has every range that it needs; the calibration data were not used"
            self.diagnostics.append(Diagnostic("QAT207", message, Severity.NOTE, hint="leave --calibrate out"))
            return
        method = self.options.calibration_method
        found = calibrate(Simulation.of_graph(graph), names, data, method)
        fill(graph, found)
        self.filled = tuple(FilledRange(name, params, method) for name, params in found.items())
        if self.options.verify:
            self.simulation = Simulation.of_graph(graph)

    def prepare_proof(self, graph: QuantGraph) -> None:
        """Sample inputs, and the simulation that the result is compared with (before anything is folded)."""
        from qatc.compiler import samples

        ports = [port_of(graph, t) for t in graph.inputs]
        shapes = [self.options.shapes] if self.options.inputs else [*samples.sizes_to_try(ports, self.options.shapes)]
        refused: list[Diagnostic] = []
        for self.shapes in shapes:
            self.feeds = self.sample_feeds(graph)
            if len(shapes) == 1 and not self.options.verify:
                return
            try:
                with self.step("verify"):
                    self.simulation = self.opened(graph)
                break
            except CompileError as error:
                refused += [d for d in error.diagnostics if d not in refused]
        else:
            if len(shapes) > 1:
                self.shapes = self.options.shapes
                self.sample_feeds(graph)  # says which dimensions to pin
            raise CompileError(refused)
        if len(shapes) > 1:
            infer_shapes(graph, self.shapes)
            sizes = "; ".join(f"{printable(n)} {list(s)}" for n, s in self.shapes.items())
            hint = "pin them with -s NAME=1,3,224,224 for samples of another size"
            note = f"the model leaves sizes of its inputs open; the samples have {sizes}"
            self.diagnostics.append(Diagnostic("QAT009", note, Severity.NOTE, hint=hint))

    def opened(self, graph: QuantGraph) -> Simulation:
        """What the result is compared with, proved to run on the first sample."""
        from qatc.compiler.simulation import Simulation, open_simulation

        if not self.restated(graph):
            return open_simulation(self.path, graph, self.feeds[0])
        found = Simulation.of_graph(graph)
        found.run(self.feeds[0], found.outputs)
        return found

    def restated(self, graph: QuantGraph) -> bool:
        """Whether the user or a dialect's policy added quantization that the file itself does not compute."""
        stated = self.options.ranges is not None or self.options.quant_range is not None
        return stated or any(d.code == "QAT206" and d.severity is Severity.WARNING for d in graph.diagnostics)

    def sample_feeds(self, graph: QuantGraph) -> list[Feeds]:
        """The user's sample inputs, or generated ones."""
        from qatc.compiler import samples

        ports = [port_of(graph, t) for t in graph.inputs]
        if self.options.inputs:
            return samples.load(ports, list(self.options.inputs), self.options.shapes)
        limits = samples.index_limits(graph)
        return samples.generate(ports, self.options.samples, self.options.seed, shapes=self.shapes, limits=limits)

    def lowered(self, graph: QuantGraph, target: Target) -> IntegerGraph:
        """The integer graph; islands are errors with --require-integer."""
        integer = lower(graph, LoweringOptions(activations=target.activations, io=self.options.io))
        integer.verify()
        self.collect(graph)
        self.diagnostics += overflows(integer)
        left = islands(integer)
        if left and self.options.require_integer:
            raise CompileError(
                Diagnostic("QAT306", f"{i.op_type} stays in float: {i.reason}", node=i.node, tensor=i.tensor or None)
                for i in left
            )
        return integer

    def verify(self, integer: IntegerGraph, emission: Emission, target: Target) -> Verification | None:
        """The three comparisons; a breach is exit 3 and writes nothing."""
        if not self.options.verify or self.simulation is None:
            return None
        from qatc.compiler.arithmetic import get_profile
        from qatc.compiler.verify import Limits, check, verify

        with self.step("verify"):
            profile = get_profile(target.arithmetic)
            limits = Limits(**self.options.tolerance)
            emitted = dataclasses.replace(emission, model=emission.complete(), external=())
            found = verify(integer, profile, self.simulation, emitted, self.feeds, limits)
        check(found)
        return found

    def verify_written(self, integer: IntegerGraph, emission: Emission, target: Target) -> Verification | None:
        """A model of floats and parameters: it is read again, and the graph is compared with the simulation."""
        if not self.options.verify or self.simulation is None:
            return None
        from qatc.compiler.arithmetic import get_profile
        from qatc.compiler.runtime import OrtEvaluator
        from qatc.compiler.verify.written import compare_outputs, compare_reread

        onnx_backend = backends().get("onnx")
        deployed = onnx_backend.emit(integer, onnx_backend.checked({}))
        found = self.verify(integer, deployed, target)
        if found is None:
            return None
        with self.step("verify"):
            again = self.reread(emission, target)
            profile = get_profile(target.arithmetic)
            checks = compare_reread(integer, again, profile, self.feeds, OrtEvaluator())
            outputs = compare_outputs(emission.complete(), self.simulation, self.feeds)
        bad = next((c.tensor for c in checks if not c.passed), None)
        found = dataclasses.replace(found, package=checks, outputs=outputs, passed=bad is None, first_bad=bad)
        from qatc.compiler.verify import check

        check(found)
        return found

    def reread(self, emission: Emission, target: Target) -> IntegerGraph:
        """The integer graph of the emitted file."""
        with TemporaryDirectory(prefix="qatc-") as scratch:
            path = Path(scratch) / "model.onnx"
            emission.write(lambda name: (Path(scratch) / name).open("wb"), path.name)
            options = CompileOptions(
                qat=True, io=self.options.io, shapes=self.options.shapes, target=self.options.target
            )
            again = _Compilation(path, options, _silent)
            graph = again.canonical()[0]
            again.strip(graph)
            again.fold(graph)
            return again.lowered(graph, target)

    def result(
        self, graph: QuantGraph, source: Source, integer: IntegerGraph, emission: Emission, dialect: str, evidence: str,
        target: Target, verification: Verification | None,
    ) -> CompileResult:  # fmt: skip
        """Everything that was found, before the package is written."""
        self.collect(graph)
        return CompileResult(
            package=None,
            source=self.path,
            source_bytes=source.size,
            package_bytes=0,
            dialect=dialect,
            evidence=evidence,
            target=target.name,
            profile=target.arithmetic,
            source_ops=source.ops,
            package_ops=dict(Counter(n.op_type for n in emission.model.graph.node).most_common()),
            inputs=tuple(port_of_integer(integer, n) for n in integer.inputs),
            outputs=tuple(port_of_integer(integer, n) for n in integer.outputs),
            coverage=coverage(integer),
            islands=islands(integer),
            filled=self.filled,
            tensors=tensor_records(integer, emission.names),
            diagnostics=tuple(self.diagnostics),
            verification=verification,
            explanation=tuple(dict.fromkeys(graph.explanation)),
            view=view(integer),
            options=self.recorded(),
        )

    def recorded(self) -> dict[str, Json]:
        """The options that shape the package: files by their bare names, nothing of this machine."""
        chosen = dataclasses.asdict(self.options)
        for name in ("output", "explain"):
            del chosen[name]
        chosen["shapes"] = {name: list(shape) for name, shape in sorted(self.options.shapes.items())}
        chosen["inputs"] = [[name, path.name] for name, path in self.options.inputs]
        for name in ("options", "tolerance"):
            chosen[name] = dict(sorted(chosen[name].items()))
        return {k: v.name if isinstance(v, Path) else v for k, v in chosen.items()}


def pin_shapes(graph: QuantGraph, shapes: Mapping[str, Sequence[int]]) -> None:
    """Give inputs the shapes that the user pins; the shapes of the outputs follow from them.

    Raises:
        CompileError: QAT007 with exit code 2 for unknown inputs and for shapes that contradict the model.
    """
    inputs = {t.name: t for t in graph.inputs}
    wrong: list[Diagnostic] = []
    for name, shape in shapes.items():
        tensor = inputs.get(name)
        if tensor is None:
            hint = f"its inputs are {', '.join(printable(n) for n in inputs)}"
            wrong.append(Diagnostic("QAT007", f"the model has no input {printable(name)}", hint=hint))
            continue
        have = shape_of(tensor)
        fits = have is None or (
            len(have) == len(shape) and all(not isinstance(h, int) or h == s for h, s in zip(have, shape, strict=True))
        )
        if not fits or any(s <= 0 for s in shape):
            message = f"the shape {list(shape)} does not fit the declared {list(have or ())}"
            hint = "fixed dimensions cannot be changed; pin the symbolic ones with positive numbers"
            wrong.append(Diagnostic("QAT007", message, tensor=name, hint=hint))
            continue
        tensor.shape = list(shape)
    if wrong:
        raise CompileError(wrong, 2)
    if shapes:
        for output in graph.outputs:
            if isinstance(output, Variable):
                output.shape = None


def parse_ranges(text: str | None) -> RangeOverride:
    """`act=0..127,weight=-127..127`, or a TOML file with `act`, `weight` and a table `[tensors]` of such ranges.

    Raises:
        CompileError: QAT007 with exit code 2 where it is written in another way.
    """
    if not text:
        return RangeOverride()
    stated: dict[str, Any]
    if text.endswith(".toml"):
        stated = read_toml(Path(text))
        tensors: dict[str, Any] = stated.pop("tensors", {})
        stated.update({f"tensors.{name}": span for name, span in tensors.items()})
    else:
        stated = {name.strip(): span for name, _, span in (part.partition("=") for part in text.split(","))}
    found: dict[str, tuple[int, int]] = {}
    for name, span in stated.items():
        low, dots, high = str(span).partition("..")
        if not dots or (name not in ("act", "weight") and not name.startswith("tensors.")):
            raise _unreadable(f"{name}={span}")
        try:
            found[name] = (int(low), int(high))
        except ValueError as error:
            raise _unreadable(f"{name}={span}") from error
    listed = {n.removeprefix("tensors."): r for n, r in found.items() if n.startswith("tensors.")}
    return RangeOverride(found.get("act"), found.get("weight"), listed)


def _unreadable(text: str) -> CompileError:
    hint = 'write --quant-range act=0..127,weight=-127..127, or in a TOML file act = "0..127" and a table [tensors]'
    return CompileError([Diagnostic("QAT007", f"cannot read the quantization range {printable(text)!r}", hint=hint)], 2)

"""The road from a file to a package, top to bottom: load, normalize, strip, fold, lower, emit, verify, write."""

from __future__ import annotations

import dataclasses
import gc
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from qatc.compiler.budget import limited
from qatc.compiler.coverage import coverage, islands
from qatc.compiler.diagnostics import (
    CompileError,
    Diagnostic,
    Diagnostics,
    Severity,
    counted,
    fail,
    few,
    misused,
    printable,
)
from qatc.compiler.driver.importing import as_onnx
from qatc.compiler.driver.keywords import model_path
from qatc.compiler.driver.options import CompileOptions, parse_ranges, pin_shapes
from qatc.compiler.driver.proving import Proving
from qatc.compiler.driver.recognize import Recognition, recognize
from qatc.compiler.frontend import FrontendOptions
from qatc.compiler.graph import QuantGraph
from qatc.compiler.inspection import inspection, overflows, view
from qatc.compiler.integer import IntegerGraph
from qatc.compiler.lowering import LoweringOptions, lower
from qatc.compiler.lowering.missing import fill, missing_ranges
from qatc.compiler.model_io import Source, load
from qatc.compiler.package import check_destination
from qatc.compiler.package.signing import sealer
from qatc.compiler.passes.affine import fold_affine
from qatc.compiler.passes.biases import part_biases
from qatc.compiler.passes.bodies import report_bodies
from qatc.compiler.passes.constant_operands import place_constants
from qatc.compiler.passes.dilations import dilate
from qatc.compiler.passes.factors import move_factors
from qatc.compiler.passes.known import report_malformed, report_unknown
from qatc.compiler.passes.lowered import refuse_products_of_integers
from qatc.compiler.passes.modernize import constants_from_nodes
from qatc.compiler.passes.needless import leave_out_moves
from qatc.compiler.passes.offsets import move_offsets
from qatc.compiler.passes.padding import absorb_padding
from qatc.compiler.passes.propagate import propagate
from qatc.compiler.passes.sizes import fold_sizes
from qatc.compiler.passes.strip import strip
from qatc.compiler.passes.training import report_training
from qatc.compiler.ports import integer_ports, port_of, ports_of_integer, tensor_records
from qatc.compiler.registry import backends, frontends
from qatc.compiler.result import CompileResult, FilledRange, Inspection, Progress, Verification
from qatc.compiler.shapes import infer_new_shapes, infer_shapes
from qatc.compiler.storage import SPILL_AT, scratch_folder

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from qatc.compiler.backend import Backend, Emission, Stream
    from qatc.compiler.driver.keywords import CompileKeywords
    from qatc.compiler.golden.tensors import Proof
    from qatc.compiler.simulation import Simulation
    from qatc.compiler.target import Target

_T = TypeVar("_T")
_MANY: Final = 4_000_000  # objects
_STEPS: Final = (
    "read", "normalize", "strip", "simulate", "fold", "calibrate", "lower", "emit", "verify", "write",
)  # fmt: skip


def compile_model(
    model: str | Path,
    *,
    progress: Progress | None = None,
    output: str | Path | None = None,
    **options: Unpack[CompileKeywords],
) -> CompileResult:
    """Compile a QAT model to a deployment package.

    Args:
        model: the ONNX file, or a file or folder of another format that an installed dialect converts.
        output: the package's folder; default `<stem>.qatc` in the working directory. An existing package is replaced
            whole or not at all.
        progress: called with a step's name and the share of the work that is done (0 to 1).
        options: those of `qatc compile`, by the same names (docs/python.md).

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
    chosen = CompileOptions.of_keywords(options, output)
    compilation = _Compilation(model_path(model), chosen, progress or _silent)
    with _seldom_collected(), limited(chosen.max_memory), compilation.scratch:
        return compilation.telling(compilation.run)


def inspect_model(model: str | Path, **options: Unpack[CompileKeywords]) -> Inspection:
    """What would run in integers and what not, and why, without writing or verifying anything.

    Takes the options of `compile_model`; raises the same errors.

    >>> from qatc import inspect_model
    >>> inspect_model("samples/models/resnet8_qat.onnx").coverage.share
    1.0
    """
    chosen = CompileOptions.of_keywords(options)
    compilation = _Compilation(model_path(model), chosen, _silent)
    with limited(chosen.max_memory), compilation.scratch:
        return compilation.telling(compilation.inspect)


def simulate_model(model: str | Path, **options: Unpack[CompileKeywords]) -> Simulation:
    """The simulation of a model as qatc understands it: normalized, with its Q/DQ written back.

    For files that ONNX Runtime does not run as they are. Takes the options of `compile_model`; raises the same errors.
    """
    from qatc.compiler.simulation import Simulation

    compilation = _Compilation(model_path(model), CompileOptions.of_keywords({**options, "qat": True}), _silent)
    with compilation.scratch:
        graph, _, _ = compilation.canonical()
        compilation.strip(graph)
        return Simulation.of_graph(graph)


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


class _Compilation:
    """One compile: its options, its clock, and what is known so far."""

    def __init__(self, path: Path, options: CompileOptions, progress: Progress) -> None:
        self.path, self.options, self.progress = path, options, progress
        self.timings: dict[str, float] = {}
        self.diagnostics: list[Diagnostic] = []
        self.filled: tuple[FilledRange, ...] = ()
        self.proving = Proving(options)
        self.operators = frozenset[str]()  # integer operators that are asked for
        self.scratch = ExitStack()  # a converted model lives as long as the compile

    @contextmanager
    def step(self, name: str) -> Generator[None]:
        """Time a step and tell who watches."""
        self.progress(name, _STEPS.index(name) / len(_STEPS))
        start = time.perf_counter()
        yield
        self.timings[name] = self.timings.get(name, 0.0) + time.perf_counter() - start

    def telling(self, road: Callable[[], _T]) -> _T:
        """Go down a road; where it ends early, the error holds the notes and warnings that were met before, too."""
        try:
            return road()
        except CompileError as error:
            error.after(d for d in self.diagnostics if d.severity is not Severity.ERROR)
            raise

    # -- the road -------------------------------------------------------------------------------------------------
    def run(self) -> CompileResult:
        """Load, normalize, strip, fold, calibrate, lower, emit, verify, write."""
        output = self.options.output or Path(f"{self.path.absolute().stem}.qatc")
        check_destination(output)
        seal = sealer(self.options.sign, self.options.certificate)
        target, backend, options = self.chosen()
        graph, source, seen = self.canonical()
        with self.step("strip"):
            self.strip(graph)
        with self.step("simulate"):
            chosen = self.proving.prepare(source.path, graph)
            self.diagnostics += [chosen] if chosen else []
        self.fold(graph)
        with self.step("lower"):
            integer = self.lowered(graph, target)
            graph.integer_ports |= integer_ports(integer)
        proof = self.proof(integer, target)
        with self.step("emit"):
            emission = backend.emit(graph if backend.level == "float" else integer, options)
        from qatc.compiler.driver.assemble import assemble  # package and report: only a real compile needs them

        with self.step("verify"):
            if backend.level == "integer":
                verification = self.proving.check_integers(integer, emission, target)
            else:
                verification = self.proving.check_floats(
                    integer, emission, target, lambda: self.reread(emission, target, integer)
                )
        result = self.result(graph, source, integer, emission, seen, target, verification)
        with self.step("write"):
            files = self.companions(backend, graph, proof, options)
            result = assemble(result, output, emission, self.proving.feeds, source.external, proof, files, seal)
        self.progress("done", 1.0)
        return dataclasses.replace(result, timings=dict(self.timings))

    def inspect(self) -> Inspection:
        """The road up to the integer graph."""
        target, _, _ = self.chosen()
        self.options = dataclasses.replace(self.options, qat=True, verify=False)  # whoever inspects need not say so
        graph, source, seen = self.canonical()
        self.strip(graph)
        self.fold(graph)
        integer = self.lowered(graph, target)
        return inspection(self.path, source, graph, integer, dialect=seen.dialect, evidence=seen.evidence,
                          target=target.name, diagnostics=self.diagnostics)  # fmt: skip

    # -- its parts ------------------------------------------------------------------------------------------------
    def chosen(self) -> tuple[Target, Backend, dict[str, str]]:
        """The target, the backend that emits it and its options; what is misspelt is told before a file is read."""
        from qatc.compiler.target import load_target, wanted_operators

        target = load_target(self.options.target)
        if self.options.arithmetic is not None:
            from qatc.compiler.arithmetic import get_profile

            target = dataclasses.replace(target, arithmetic=get_profile(self.options.arithmetic).name)
        backend = backends().get(target.backend)
        if self.options.dialect.lower() != "auto":
            frontends().get(self.options.dialect)
        parse_ranges(self.options.quant_range)
        options = backend.checked({**target.options, **self.options.options})
        self.operators = wanted_operators(target, options)
        return target, backend, options

    def proof(self, integer: IntegerGraph, target: Target) -> Proof:
        """What the package holds for bring-up."""
        from qatc.compiler.arithmetic import get_profile
        from qatc.compiler.golden.tensors import Proof, integer_tensors

        golden, header = self.options.golden, self.options.golden_header
        if (golden or header) and not integer_tensors(integer):
            message = "no tensor of this network is made of integers: there are no golden tensors"
            raise misused(message, f"leave {'--golden' if golden else '--golden-header'} out; qatc inspect says why")
        return Proof(integer, get_profile(target.arithmetic), golden, header, target.layout)

    def companions(
        self, backend: Backend, graph: QuantGraph, proof: Proof, options: Mapping[str, str]
    ) -> Callable[[Callable[[str], Stream], CompileResult], None] | None:
        """What writes the backend's own files beside the model, if it has any."""
        from qatc.compiler.backend import Finished

        write = backend.companions
        if write is None:
            return None
        feeds = self.proving.feeds[0]
        return lambda open_file, result: write(
            open_file, Finished(graph, proof.graph, proof.profile, result, options, feeds)
        )

    def canonical(self) -> tuple[QuantGraph, Source, Recognition]:
        """Read the file and bring its dialect to the canonical form."""
        with self.step("read"):
            model = self.scratch.enter_context(as_onnx(self.path))
            self.diagnostics += model.diagnostics
            graph, source = load(model.path)
            graph.storage.spill = source.size > SPILL_AT
            graph.explains = self.options.explain
            pin_shapes(graph, self.options.shapes)
            constants_from_nodes(graph)  # by the values of constants dialects are recognized
        with self.step("normalize"):
            seen = recognize(self.path, graph, source, self.options)
            self.diagnostics += [seen.note] if seen.note else []
            ranges = parse_ranges(self.options.quant_range)
            has_vendors = any(n.domain for n in graph.nodes)
            told = FrontendOptions(ranges, seen.external, source.producer)
            frontends().get(seen.dialect).normalize(graph, told)
            self.collect(graph)
            report_unknown(graph)
            if has_vendors:
                report_malformed(graph)
            report_bodies(graph)
            self.collect(graph)
        return graph, source, seen

    def collect(self, graph: QuantGraph) -> None:
        """Take over the graph's findings; errors end the compile, all at once."""
        known = set(self.diagnostics)
        self.diagnostics += [d for d in graph.diagnostics if d not in known]
        graph.diagnostics.check()

    def strip(self, graph: QuantGraph) -> None:
        """Fake quantization becomes parameters."""
        strip(graph)
        self.collect(graph)
        if not graph.params:
            refuse_products_of_integers(graph)
            raise fail("QAT101", f"{printable(self.path.name)} has no fake quantization left after normalization")
        infer_shapes(graph, self.proving.shapes)
        fold_sizes(graph)
        report_training(graph, verified=self.options.verify)
        self.collect(graph)

    def fold(self, graph: QuantGraph) -> None:
        """Parameters move where they are free, affine chains go into weights, missing ranges are filled or named."""
        with self.step("fold"):
            propagate(graph)
            dilate(graph)
            leave_out_moves(graph)
            absorb_padding(graph)
            part_biases(graph)
            place_constants(graph)
            move_factors(graph)
            fold_affine(graph)
            moved = move_offsets(graph)
            if moved:
                fold_affine(graph)
            infer_new_shapes(graph, self.proving.shapes)
            propagate(graph)
            if moved:
                leave_out_moves(graph)  # no offset is between them any more
            self.collect(graph)
        missing = missing_ranges(graph, self.operators)
        if self.options.calibrate is not None:
            with self.step("calibrate"):
                self.calibrate(graph, self.options.calibrate, [t.name for t in missing])
        elif missing:
            names = few([t.name for t in missing])
            whose = "its" if len(missing) == 1 else "their"
            message = (
                f"{counted(len(missing), 'tensor')} without a range in the file ({names}): {whose} readers stay float"
            )
            hint = "--calibrate DATA.npy finds their ranges from representative inputs"
            self.diagnostics.append(Diagnostic("QAT208", message, Severity.NOTE, hint=hint))

    def calibrate(self, graph: QuantGraph, path: Path, names: Sequence[str]) -> None:
        """Find missing ranges from the user's data and fill them in."""
        from qatc.compiler.calibration.calibrate import calibrate, read_data
        from qatc.compiler.simulation import Simulation

        ports = [port_of(graph, t) for t in graph.inputs]
        data = read_data(path, ports, self.options.shapes)
        if not names:
            message = "the model has every range that it needs; the calibration data were not used"
            self.diagnostics.append(Diagnostic("QAT207", message, Severity.NOTE, hint="leave --calibrate out"))
            return
        method = self.options.calibration_method
        findings = Diagnostics()
        found = calibrate(Simulation.of_graph(graph), names, data, method, findings=findings)
        self.diagnostics += findings
        fill(graph, found)
        self.filled = tuple(FilledRange(name, params, method) for name, params in found.items())
        self.proving.restart(graph)

    def lowered(self, graph: QuantGraph, target: Target) -> IntegerGraph:
        """The integer graph; islands are errors with --require-integer."""
        offered = frozenset(target.operators)
        options = LoweringOptions(
            target.activations, self.options.io, self.operators, offered, arithmetic=target.arithmetic
        )
        integer = lower(graph, options)
        self.collect(graph)
        integer.verify()
        self.diagnostics += overflows(integer)
        left = islands(integer)
        if left and self.options.require_integer:
            hint = "qatc inspect says what to change in training; leave --require-integer out to accept them"
            raise CompileError(
                Diagnostic(
                    "QAT306", f"{i.op_type} stays in float: {i.reason}", node=i.node, tensor=i.tensor or None, hint=hint
                )
                for i in left
            )
        return integer

    def reread(self, emission: Emission, target: Target, integer: IntegerGraph) -> IntegerGraph:
        """The integer graph of the emitted file; what its inputs hold, if less than their type, only `integer` says."""
        with scratch_folder() as scratch:
            path = scratch / "model.onnx"
            emission.write(lambda name: (scratch / name).open("wb"), path.name)
            options = CompileOptions(
                qat=True, io=self.options.io, shapes=self.options.shapes, target=self.options.target
            )
            again = _Compilation(path, options, _silent)
            graph = again.canonical()[0]
            again.strip(graph)
            for name in graph.params.keys() & graph.integer_ports.keys() & set(integer.inputs):
                params, read = integer.params(name), graph.params[name]
                if (params.dtype, params.scale, params.zero_point) == (read.dtype, read.scale, read.zero_point):
                    graph.params[name] = params
            again.fold(graph)
            return again.lowered(graph, target)

    def result(
        self, graph: QuantGraph, source: Source, integer: IntegerGraph, emission: Emission, seen: Recognition,
        target: Target, verification: Verification | None,
    ) -> CompileResult:  # fmt: skip
        """Everything that was found, before the package is written."""
        self.collect(graph)
        return CompileResult(
            package=None,
            source=self.path,
            source_bytes=source.size,
            package_bytes=0,
            dialect=seen.dialect,
            evidence=seen.evidence,
            target=target.name,
            profile=target.arithmetic,
            source_ops=source.ops,
            package_ops=dict(Counter(n.op_type for n in emission.model.graph.node).most_common()),
            inputs=ports_of_integer(integer, integer.inputs),
            outputs=ports_of_integer(integer, integer.outputs),
            coverage=coverage(integer),
            islands=islands(integer),
            filled=self.filled,
            tensors=tensor_records(integer, emission.names, graph.known),
            diagnostics=tuple(self.diagnostics),
            verification=verification,
            explanation=tuple(dict.fromkeys(graph.explanation)),
            view=view(integer),
            options=self.options.recorded(),
        )

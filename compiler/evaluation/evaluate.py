"""`evaluate_package`: from a package, data and names of metrics to scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from qatc.compiler.compare.package import OpenPackage, open_package
from qatc.compiler.damaged import looking
from qatc.compiler.diagnostics import CompileError, Diagnostics, fail, misused, printable
from qatc.compiler.driver.keywords import EVALUATE, check_options
from qatc.compiler.evaluation.catalog import Catalog
from qatc.compiler.evaluation.engine import Asked, Batch, Batches, Scoreboard, beyond, walk
from qatc.compiler.evaluation.runs import (
    FLOAT,
    PACKAGE,
    REFERENCE,
    SIMULATION,
    Contestant,
    by_model,
    by_package,
    by_reference,
)
from qatc.compiler.evaluation.source import find_source, open_source
from qatc.compiler.evaluation.values import TARGETS, Dataset, Loader, Ports
from qatc.compiler.package.stored import read_ports
from qatc.compiler.result import Evaluation, EvaluationRun, Progress, Score
from qatc.compiler.runtime.sessions import open_file, run_session, version
from qatc.compiler.simulation import Simulation

if TYPE_CHECKING:
    from collections.abc import Iterator

RUNS: Final = (FLOAT, SIMULATION, REFERENCE, PACKAGE)
_LISTS: Final = ("metrics", "runs", "plugins")
_OUTSIDE: Final = 0.05  # share of input elements beyond the grid of the input from which the preparation is doubted


@dataclass(frozen=True)
class EvaluateOptions:
    """What an evaluation is told; names and meanings as the command line's (docs/evaluation.md)."""

    metrics: Sequence[str]
    model: Path | None = None
    float_model: Path | None = None
    runs: Sequence[str] | None = None
    plugins: Sequence[Path] = ()
    dataset: str | None = None
    data_options: Mapping[str, str] = field(default_factory=dict[str, str])
    output: str | None = None
    batch: int | None = None
    limit: int | None = None
    require: Mapping[str, float] = field(default_factory=dict[str, float])
    max_loss: Mapping[str, float] = field(default_factory=dict[str, float])
    report: bool = False


def evaluate_package(
    package: str | Path,
    data: str | Path,
    metrics: Iterable[str],
    *,
    model: str | Path | None = None,
    float_model: str | Path | None = None,
    plugins: Iterable[str | Path] = (),
    progress: Progress | None = None,
    **options: Any,
) -> Evaluation:
    """Score a package on a data set, beside the simulation (the model that was compiled) and the reference.

    Args:
        package: the package's folder.
        data: an .npy or .npz file, a folder of either or of images, or whatever a plug-in reads.
        metrics: names of metrics; `NAME@RUN` compares with that run's outputs, `NAME@targets` with the data set's.
        model: the file that was compiled. Without it the simulation takes part where the file lies beside the package
            or in the working directory, unchanged.
        float_model: a model of the same inputs and outputs from before quantization-aware training, to compare with.
        plugins: Python files with metrics and loaders; they are run.
        progress: called with what is being done and the share of the work that is done (0 to 1).
        options: the other fields of `EvaluateOptions`: `runs`, which of "float", "simulation", "reference", "package"
            take part; `dataset`, a loader's name; `data_options`; `output`, which the labels belong to (default: the
            first); `batch` and `limit`, numbers of samples; `require`, metric -> the least (largest, where lower is
            better) score of the package; `max_loss`, metric -> how much worse than the simulation it may be; `report`,
            whether the package's report takes the result in.

    Returns:
        The scores. Breaches of `require` and `max_loss` are errors among its diagnostics (QAT408), not raised.

    Raises:
        CompileError: QAT502 for a package that is damaged, QAT008 for data that do not fit, QAT007 with exit code 2 for
            unknown metrics, wrong options and plug-ins that fail, QAT010 where a library is missing, QAT403 where a
            model cannot be run.

    >>> from qatc import compile_model, evaluate_package
    >>> source = "samples/models/resnet8_qat.onnx"
    >>> package = compile_model(source, qat=True, output=f"{tmp}/resnet8.qatc").package
    >>> found = evaluate_package(package, package / "samples/0/input_0.npy", ["agreement"], model=source)
    >>> [(score.metric, score.against, score.values["package"]) for score in found.scores]
    [('agreement', 'simulation', 1.0)]
    """
    chosen = _chosen({**options, "metrics": metrics, "model": model, "float_model": float_model, "plugins": plugins})
    evaluation = _Evaluation(Path(package), Path(data), chosen, progress or _silent)
    try:
        return evaluation.run()
    except CompileError:
        raise
    except (Exception, SystemExit) as error:
        theirs = evaluation.catalog.fault(error)
        if theirs is None:
            raise
        raise theirs from error


def _chosen(given: Mapping[str, Any]) -> EvaluateOptions:
    """The options of a call; CompileError QAT007 with exit code 2 for those that are wrong, or of no use."""
    kept: dict[str, Any] = {name: _listed(value) if name in _LISTS else value for name, value in given.items()}
    check_options(kept, EVALUATE)
    for name in ("model", "float_model"):
        kept[name] = None if kept[name] is None else Path(kept[name])
    kept["plugins"] = [Path(path) for path in kept["plugins"]]
    chosen = EvaluateOptions(**kept)
    for name in chosen.runs or ():
        if name not in RUNS:
            raise misused(f"there is no run {printable(name)}", f"known are {', '.join(RUNS)}")
    for run, option, file in ((FLOAT, "--float-model", chosen.float_model), (SIMULATION, "--model", chosen.model)):
        if file is not None and chosen.runs is not None and run not in chosen.runs:
            message = f"{option} is given, but the run {run} takes no part"
            raise misused(message, f"add {run} to --runs, or leave {option} out")
    return chosen


def _listed(values: object) -> object:
    """The values of an iterable in a list; anything else, texts included, as it is."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        return values
    return list(cast("Iterable[object]", values))


def _silent(step: str, share: float) -> None:
    """Nobody watches."""


class _Evaluation:
    """One evaluation: what it was told, and what is known so far."""

    def __init__(self, package: Path, data: Path, options: EvaluateOptions, progress: Progress) -> None:
        self.package, self.data, self.options, self.progress = package, data, options, progress
        self.catalog = Catalog(options.plugins)
        self.asked = [self._asked(name) for name in dict.fromkeys(options.metrics)]
        if not self.asked:
            raise misused("no metric is named", f"known are {', '.join(self.catalog.metrics.names())}")
        self.found = Diagnostics()
        self.absent: dict[str, str] = {}
        self.require, self.max_loss = self._limits(options.require), self._limits(options.max_loss)

    def run(self) -> Evaluation:
        """Open everything, walk over the data, judge."""
        self.progress("opening the package", 0.0)
        opened = open_package(self.package)
        if self.options.report:
            from qatc.compiler.evaluation.embed import check_package

            check_package(self.package)
        ports = self._labeled(_ports(opened))
        loader = self.catalog.loader(self.data, self.options.dataset)
        dataset = self._dataset(loader, ports)
        contestants = self._contestants(opened, ports)
        names = [contestant.name for contestant in contestants]
        self._check_bounds(names)
        board = Scoreboard(self.asked, names, ports, self.absent)
        total = min(len(dataset), self.options.limit or len(dataset))
        batches = Batches(ports.inputs, self.options.batch).of(islice(iter(dataset), total))
        counted = walk(self._watched(batches, ports), total, contestants, board, self.progress)
        if not counted:
            raise fail("QAT008", f"{printable(str(self.data))} has no samples", hint="give data with samples")
        scores = board.scores()
        self._judge(scores)
        runs = tuple(EvaluationRun(c.name, c.description, c.seconds) for c in contestants)
        result = Evaluation(
            self.package, self.data, loader.name, counted, runs, scores, tuple(self.absent.items()), tuple(self.found)
        )
        if self.options.report:
            from qatc.compiler.evaluation.embed import embed

            result = embed(result, opened.manifest)
        self.progress("done", 1.0)
        return result

    # -- what was asked -------------------------------------------------------------------------------------------
    def _asked(self, text: str) -> Asked:
        name, sign, against = text.partition("@")
        metric = self.catalog.metrics.get(name.strip())
        known = (TARGETS, *RUNS)
        if sign and not self._compares(name.strip()):
            can = [n for n in self.catalog.metrics.names() if self._compares(n)]
            message = f"{metric.name} compares with nothing that could be chosen by {printable(sign + against)}"
            raise misused(message, f"leave that out; those that do compare so are {', '.join(can)}")
        if sign and against not in known:
            raise misused(f"there is no {printable(against)!r} to compare with", f"after @ goes {', '.join(known)}")
        return Asked(metric, against or None)

    def _compares(self, name: str) -> bool:
        return getattr(self.catalog.metrics.get(name), "against", "") == "outputs"

    def _check_bounds(self, runs: Sequence[str]) -> None:
        """Refuse limits that would hold for nothing, since the package is not measured so."""
        judged = {each.metric.name for each in self.asked if each.against != PACKAGE and PACKAGE in runs}
        for name in (*self.require, *self.max_loss):
            if name not in judged:
                hint = f"add --metric {name}" if PACKAGE in runs else self.absent.get(PACKAGE, "add package to --runs")
                raise misused(f"a limit is given for {printable(name)}, which is not measured of the package", hint)

    def _labeled(self, ports: Ports) -> Ports:
        """The ports with the output that labels belong to."""
        names = [port.name for port in ports.outputs]
        wanted = self.options.output
        if wanted is not None and wanted not in names:
            raise misused(
                f"the package has no output {printable(wanted)}", f"it has {', '.join(map(printable, names))}"
            )
        return replace(ports, labeled=names[0] if wanted is None else wanted)

    def _limits(self, given: Mapping[str, float]) -> dict[str, float]:
        """Limits by the metrics' own names; as elsewhere, any letter case will do."""
        found: dict[str, float] = {}
        for name, value in given.items():
            own = self.catalog.metrics.get(name).name
            if own in found:
                raise misused(f"two limits are given for {own}", "give one")
            found[own] = value
        return found

    # -- opening --------------------------------------------------------------------------------------------------
    def _dataset(self, loader: Loader, ports: Ports) -> Dataset:
        unknown = [name for name in self.options.data_options if name not in loader.options]
        if unknown:
            known = "; ".join(f"{name}: {text}" for name, text in loader.options.items())
            message = f"the data set {loader.name} has no option {printable(unknown[0])}"
            raise misused(message, f"its options are {known}" if known else "it has none: leave --data-option out")
        with looking("QAT008", self.data, "check the path and its permissions"):
            return loader.open(self.data, ports, self.options.data_options)

    def _contestants(self, opened: OpenPackage, ports: Ports) -> list[Contestant]:
        """Whatever was asked for and can run; why something cannot goes to `absent`."""
        wanted = self.options.runs
        makers: dict[str, Callable[[], Contestant | None]] = {
            FLOAT: lambda: self._float(ports),
            SIMULATION: lambda: self._simulation(opened, ports),
            REFERENCE: lambda: self._reference(opened, ports),
            PACKAGE: lambda: self._package(opened, ports),
        }
        made = [make() for name, make in makers.items() if wanted is None or name in wanted]
        return [contestant for contestant in made if contestant is not None]

    def _float(self, ports: Ports) -> Contestant | None:
        path = self.options.float_model
        if path is None:
            if FLOAT in (self.options.runs or ()):
                raise misused("the run float needs a model", "name it with --float-model")
            return None
        simulation = Simulation.of_file(path)
        return Contestant(FLOAT, simulation.description, self._fitting(simulation, path, ports))

    def _simulation(self, opened: OpenPackage, ports: Ports) -> Contestant | None:
        place = find_source(opened, self.options.model, self.absent)
        if place is None:
            return None
        first = opened.samples[0] if opened.samples else None
        simulation, note = open_source(place, opened, first)
        if note:
            self.found.note("QAT409", note)
        return Contestant(SIMULATION, simulation.description, self._fitting(simulation, place, ports))

    def _fitting(self, simulation: Simulation, path: Path, ports: Ports) -> Callable[..., dict[str, Any]]:
        try:
            return by_model(simulation, ports.inputs, ports.outputs)
        except ValueError as error:
            message = f"{printable(path.name)} is not a model of this package's network: {printable(str(error))}"
            raise fail("QAT008", message, hint="name the model that was compiled") from error

    def _reference(self, opened: OpenPackage, ports: Ports) -> Contestant:
        run = by_reference(opened.graph, opened.profile, ports.inputs, ports.outputs)
        return Contestant(REFERENCE, f"exact integers, rounded as {opened.profile.name}", run)

    def _package(self, opened: OpenPackage, ports: Ports) -> Contestant | None:
        name: str | None = opened.manifest["model"]
        if name is None:
            self.absent[PACKAGE] = "it has no model that ONNX Runtime runs"
            return None
        files: Mapping[str, Mapping[str, int]] = opened.manifest["files"]
        size = sum(entry["size"] for path, entry in files.items() if path.startswith(name))
        session = open_file(opened.folder / name, nodes=len(opened.graph.ops), weights=size)
        what = f"{name} in ONNX Runtime {version()}"
        return Contestant(PACKAGE, what, by_package(partial(run_session, session), ports.inputs, ports.outputs))

    # -- judging --------------------------------------------------------------------------------------------------
    def _watched(self, batches: Iterator[Batch], ports: Ports) -> Iterator[Batch]:
        """Warn where the first batch does not look like what the model was trained on."""
        for number, batch in enumerate(batches):
            for port in ports.inputs if not number else ():
                share = beyond(port, batch.feed[port.name])
                if share > _OUTSIDE:
                    message = f"{share:.0%} of the first batch lies outside the range that the input was quantized for"
                    hint = "feed data prepared as in training: its scale, mean and order of channels"
                    self.found.warning("QAT008", message, tensor=port.name, hint=hint)
            yield batch

    def _judge(self, scores: Sequence[Score]) -> None:
        for score in scores:
            value = score.values.get(PACKAGE)
            if value is None:
                continue
            where = score.output or None
            bound = self.require.get(score.metric)
            if bound is not None and not (value >= bound if score.better == "higher" else value <= bound):
                side = "at least" if score.better == "higher" else "at most"
                message = f"{score.metric} of the package is {value:.6g}, required is {side} {bound:.6g}"
                self.found.error("QAT408", message, tensor=where, hint="compare with the simulation's score")
            limit = self.max_loss.get(score.metric)
            if limit is not None:
                self._judge_loss(score, limit)

    def _judge_loss(self, score: Score, limit: float) -> None:
        if SIMULATION not in score.values:
            why = self.absent.get(SIMULATION) or f"{score.metric} is compared with the {score.against}"
            hint = f"give the source with --model, or bound the score itself: --require {score.metric}=VALUE"
            self.found.error("QAT408", f"the simulation has no {score.metric} to lose against: {why}", hint=hint)
            return
        loss = score.loss(PACKAGE, SIMULATION)
        if not loss <= limit:
            message = f"the package's {score.metric} is {loss:.6g} worse than the simulation's, allowed is {limit:.6g}"
            hint = "report.html names the tensors with the largest error"
            self.found.error("QAT408", message, tensor=score.output or None, hint=hint)


def _ports(opened: OpenPackage) -> Ports:
    try:
        inputs, outputs = read_ports(opened.manifest, "inputs"), read_ports(opened.manifest, "outputs")
    except ValueError as error:
        message = f"the manifest's ports cannot be right: {printable(str(error))}"
        raise fail("QAT502", message, hint="compile the model again") from error
    every = [*opened.manifest["inputs"], *opened.manifest["outputs"]]
    return Ports(inputs, outputs, {entry["name"]: entry["layout"] for entry in every if entry["layout"]})

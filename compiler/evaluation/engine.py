"""The walk over the data: samples become batches, each contestant runs them, each metric counts what came out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

import numpy as np

from qatc.compiler.diagnostics import Diagnostics, fail, misused, printable
from qatc.compiler.evaluation.catalog import AnyMetric
from qatc.compiler.evaluation.runs import SIMULATION, Contestant, Outputs
from qatc.compiler.evaluation.values import LABELS, TARGETS, Item, Metric, Ports, Scorer, TaskScorer
from qatc.compiler.quant import Array
from qatc.compiler.result import Port, Score
from qatc.compiler.samples import as_port, check_fits, describe

_BATCH: Final = 16
_MOST: Final = 1 << 31  # more than any data set has
_BATCH_BYTES: Final = 1 << 22  # of inputs; activations take a multiple of it


# -- batches --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Batch:
    """Samples that are run together: what is fed, and the samples.

    `whole` says that the feed is one sample, without an axis that counts samples; `padding` is how many of the feed's
    last samples are there to fill a batch of fixed size.
    """

    feed: Mapping[str, Array]
    items: Sequence[Item]
    whole: bool = False
    padding: int = 0

    def outputs(self, found: Outputs) -> Outputs:
        """The outputs with their first axis counting this batch's samples."""
        if self.whole:
            return {name: value[None] for name, value in found.items()}
        size = len(self.items) + self.padding
        if size == 1:
            found = {name: value if value.ndim else value[None] for name, value in found.items()}
        odd = next((name for name, value in found.items() if value.ndim == 0 or value.shape[0] != size), None)
        if odd is not None:
            message = (
                f"the first axis of the output {list(found[odd].shape)} does not count the {size} samples of a batch"
            )
            raise fail("QAT008", message, tensor=odd, hint="evaluate scalars with --batch 1")
        return {name: value[: len(self.items)] for name, value in found.items()}


class Batches:
    """Cuts a data set into feeds that the model takes.

    Args:
        ports: the package's inputs.
        size: samples a batch, None for what fits easily.
    """

    def __init__(self, ports: Sequence[Port], size: int | None = None) -> None:
        self.ports, self._size = ports, None if size is None else min(size, _MOST)
        firsts = {p.shape[0] if p.shape else None for p in ports}
        first = firsts.pop() if len(firsts) == 1 else None
        self._fixed = first if isinstance(first, int) else None
        if size is not None and self._fixed not in (None, size):
            message = f"batches of {size} samples do not fit the model, whose batch is {self._fixed}"
            raise misused(message, "leave --batch out")

    def of(self, items: Iterator[Item]) -> Iterator[Batch]:
        """Batches of all samples; QAT008 for samples that do not fit, QAT007 for a size that they do not have."""
        first = next(items, None)
        if first is None:
            return
        whole = self._is_whole(first)
        if whole and self._size not in (None, 1):
            message = f"batches of {self._size} samples cannot be made: a sample has every axis of the model's inputs"
            raise misused(message, "leave --batch out: each is run by itself")
        size = 1 if whole else self._fixed or self._size or self._suitable(first)
        waiting = [first]
        while waiting:
            waiting += islice(items, size - len(waiting))
            yield self._whole(waiting[0]) if whole else self._stacked(waiting, size)
            waiting = list(islice(items, 1))

    def _is_whole(self, item: Item) -> bool:
        """Whether a sample brings every axis of the model's inputs itself."""
        return all(p.shape is None or self._value(item, p).ndim == len(p.shape) for p in self.ports)

    def _value(self, item: Item, port: Port) -> Array:
        given = item.inputs.get(port.name)
        if given is None:
            hint = f"the inputs are {', '.join(printable(p.name) for p in self.ports)}"
            raise fail("QAT008", "a sample of the data set has no such input", tensor=port.name, hint=hint)
        value: Array = np.asarray(given)
        if port.shape and value.ndim == len(port.shape) and value.shape[0] == 1 and self._fixed in (None, 1):
            return np.asarray(value[0])
        return value

    def _suitable(self, item: Item) -> int:
        largest = max(self._value(item, p).nbytes for p in self.ports)
        return max(1, min(_BATCH, _BATCH_BYTES // max(1, largest)))

    def _whole(self, item: Item) -> Batch:
        return Batch(self._checked({p.name: self._value(item, p) for p in self.ports}), [item], whole=True)

    def _stacked(self, items: Sequence[Item], size: int) -> Batch:
        padding = size - len(items) if self._fixed else 0
        feed: dict[str, Array] = {}
        for port in self.ports:
            values = [self._value(item, port) for item in items]
            hint = f"the input is {describe(port)}; --batch 1 takes samples of different sizes"
            feed[port.name] = _stacked("samples", [*values, *[values[-1]] * padding], port.name, hint)
        return Batch(self._checked(feed), items, padding=padding)

    def _checked(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        found = Diagnostics()
        fitting: dict[str, Array] = {}
        for port in self.ports:
            value = feed[port.name]
            as_fed = port if not _is_real(port, value) else Port(port.name, value.dtype.name, port.shape)
            if check_fits(as_fed, value, found, "a batch of the data set"):
                fitting[port.name] = as_port(as_fed, value)
        found.check()
        return fitting


def _stacked(what: str, values: Sequence[Array], tensor: str, hint: str) -> Array:
    """Arrays of equal shape along a first axis of their own."""
    odd = next((v for v in values if v.shape != values[0].shape), None)
    if odd is not None:
        message = f"{what} of one batch have the shapes {list(values[0].shape)} and {list(odd.shape)}"
        raise fail("QAT008", message, tensor=tensor, hint=hint)
    return np.stack(values)


def _is_real(port: Port, value: Array) -> bool:
    """Whether real numbers are given for an input of integers with a grid: they are rounded onto it."""
    return port.params is not None and np.dtype(port.dtype).kind in "iu" and value.dtype.kind == "f"


def beyond(port: Port, value: Array) -> float:
    """The share of elements more than half a step beyond the grid of an input, 0 where it has none."""
    if port.params is None or value.dtype.kind != "f" or port.params.is_per_channel or not value.size:
        return 0.0
    params = port.params
    low = (params.qmin - params.zero_point[0] - 0.5) * params.scale[0]
    high = (params.qmax - params.zero_point[0] + 0.5) * params.scale[0]
    return float(np.count_nonzero((value < low) | (value > high)) / value.size)


# -- scores ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Asked:
    """A metric as the command line asks for it: `against` is what follows the @, None where nothing does."""

    metric: AnyMetric
    against: str | None = None


@dataclass
class _Row:
    """One metric of one output while it counts."""

    metric: Metric
    output: str
    against: str
    scorers: dict[str, Scorer]

    def add(self, outputs: Mapping[str, Outputs], items: Sequence[Item]) -> None:
        wanted = self._wanted(outputs, items)
        for name, scorer in self.scorers.items():
            found = outputs[name][self.output]
            if self.against == TARGETS and _long_axes(wanted) == _long_axes(found):
                wanted = wanted.reshape(found.shape)  # axes of length one may be written or not
            try:
                scorer.add(found, wanted)
            except ValueError as error:
                where = f"{self.metric.name} of the output {printable(self.output)} against {self.against}"
                hint = "--output NAME chooses another output, METRIC@simulation another yardstick"
                raise fail("QAT008", f"{where}: {error}", tensor=self.output, hint=hint) from error

    def _wanted(self, outputs: Mapping[str, Outputs], items: Sequence[Item]) -> Array:
        if self.against == LABELS:
            labels = [item.label for item in items]
            if any(label is None for label in labels):
                raise fail("QAT008", "a sample has no label", hint=f"{self.metric.name} compares with labels")
            values = [np.asarray(label) for label in labels]
            return _stacked("labels", values, self.output, "give every sample a label of the same shape")
        if self.against == TARGETS:
            targets = [item.targets.get(self.output) for item in items]
            present = [np.asarray(target) for target in targets if target is not None]
            if len(present) != len(items):
                raise fail("QAT008", "a sample has no target for the output", tensor=self.output)
            return _stacked("targets", present, self.output, "give every sample a target of the output's shape")
        return outputs[self.against][self.output]

    def score(self) -> Score:
        values = {name: _score(self.metric.name, scorer.value()) for name, scorer in self.scorers.items()}
        return Score(self.metric.name, self.output, self.against, self.metric.better, self.metric.unit, values)


def _score(metric: str, value: Any) -> float:
    """What a scorer, which may be somebody else's, says; CompileError QAT007 where it is no number."""
    try:
        if not isinstance(value, str):
            return float(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise misused(f"the score of the metric {printable(metric)} is {printable(repr(value))}", "it has to be a number")


def _long_axes(value: Array) -> list[int]:
    return [size for size in value.shape if size != 1]


@dataclass
class _TaskRow:
    """A metric that takes all outputs, while it counts."""

    name: str
    better: str
    unit: str
    scorers: dict[str, TaskScorer]

    def add(self, outputs: Mapping[str, Outputs], items: Sequence[Item]) -> None:
        for name, scorer in self.scorers.items():
            try:
                scorer.add(outputs[name], items)
            except ValueError as error:
                raise fail("QAT008", f"{self.name}: {error}", hint="the data set does not fit the metric") from error

    def score(self) -> Score:
        values = {name: _score(self.name, scorer.value()) for name, scorer in self.scorers.items()}
        return Score(self.name, "", "", self.better, self.unit, values)


@dataclass
class Scoreboard:
    """All metrics of an evaluation.

    Attributes:
        asked: the metrics.
        runs: the names of the contestants.
        ports: the package's ports.
        absent: why runs do not take part, by name.
    """

    asked: Sequence[Asked]
    runs: Sequence[str]
    ports: Ports
    absent: Mapping[str, str]
    rows: list[_Row | _TaskRow] = field(default_factory=list["_Row | _TaskRow"])

    def begin(self, first: Item) -> None:
        """Set the rows up, as the first sample shows what the data set has.

        Raises:
            CompileError: QAT008 where a metric has nothing to compare with, all at once.
        """
        found = Diagnostics()
        for asked in self.asked:
            metric = asked.metric
            if isinstance(metric, Metric):
                self.rows += self._rows(metric, asked.against, first, found)
            else:
                scorers = {name: metric.start() for name in self.runs}
                self.rows.append(_TaskRow(metric.name, metric.better, metric.unit, scorers))
        found.check()

    def _rows(self, metric: Metric, against: str | None, first: Item, found: Diagnostics) -> Iterator[_Row]:
        if metric.against == LABELS:
            if first.label is None:
                hint = "add an array named labels to the data, or images in a folder a class"
                found.error("QAT008", f"{metric.name} needs labels, and the data set has none", hint=hint)
                return
            yield self._row(metric, self.ports.labeled, LABELS)
            return
        for port in self.ports.outputs:
            has_targets = port.name in first.targets
            yardstick = against or (TARGETS if has_targets else SIMULATION)
            if yardstick == TARGETS and not has_targets:
                if against is not None:
                    found.error("QAT008", f"{metric.name}@{against}: the data set has no targets", tensor=port.name)
                continue
            if yardstick != TARGETS and yardstick not in self.runs:
                why = self.absent.get(yardstick, "it was not asked for")
                add = "give the source with --model" if yardstick in self.absent else f"add {yardstick} to --runs"
                hint = f"{add}, or compare with another run: {metric.name}@{self.runs[0]}"
                message = f"{metric.name} compares with the run {yardstick}, which is absent: {why}"
                found.error("QAT008", message, hint=hint)
                return
            yield self._row(metric, port.name, yardstick)

    def _row(self, metric: Metric, output: str, against: str) -> _Row:
        return _Row(metric, output, against, {name: metric.start() for name in self.runs if name != against})

    def scores(self) -> tuple[Score, ...]:
        """What was counted."""
        return tuple(row.score() for row in self.rows)


def walk(
    batches: Iterator[Batch],
    total: int,
    contestants: Sequence[Contestant],
    board: Scoreboard,
    progress: Callable[[str, float], None],
) -> int:
    """Take every batch through every contestant; returns how many samples were counted."""
    done, tenth = 0, max(1, -(-total // 10))
    for batch in batches:
        if not done:
            board.begin(batch.items[0])
        outputs: dict[str, Outputs] = {}
        for number, contestant in enumerate(contestants):
            share = (done + len(batch.items) * number / len(contestants)) / max(1, total)
            progress(f"running {total:,} samples, {done // tenth * tenth:,} done", share)
            outputs[contestant.name] = batch.outputs(contestant(batch.feed))
        for row in board.rows:
            row.add(outputs, batch.items)
        done += len(batch.items)
    return done

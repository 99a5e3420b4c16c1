"""What an evaluation is made of: samples, the data sets that give them, and the metrics that count them. Plain values.

A plug-in is a Python file (or an installed package) that builds a `Loader` or a metric from these; see
docs/evaluation.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, Protocol

from qatc.compiler.quant import Array
from qatc.compiler.result import Port

LABELS: Final = "labels"
TARGETS: Final = "targets"

Unit = Literal["share", "dB", ""]
Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Item:
    """One sample.

    Attributes:
        inputs: the model's inputs by name, each without the batch axis (or with one of the model's own fixed size,
            where the whole feed is one sample).
        label: the class, or one class an element ([H, W] for segmentation); integers. None for unlabeled data.
        targets: what outputs should be, by the output's name, without the batch axis.
    """

    inputs: Mapping[str, Array]
    label: Array | int | None = None
    targets: Mapping[str, Array] = field(default_factory=dict[str, Array])


class Dataset(Protocol):
    """Samples that can be gone through, one at a time, so that no more than a batch need be in memory."""

    def __len__(self) -> int:
        """How many samples there are."""
        ...

    def __iter__(self) -> Iterator[Item]:
        """The samples from the first; CompileError QAT008 for data that are damaged or do not fit."""
        ...


@dataclass(frozen=True)
class Ports:
    """What data must fit: the package's inputs and outputs, the layout of each by name ("NCHW"), where known, and the
    output that labels belong to.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    layouts: Mapping[str, str] = field(default_factory=dict[str, str])
    labeled: str = ""


@dataclass(frozen=True)
class Loader:
    """A kind of data set.

    Attributes:
        name: how --dataset calls it, in lower case.
        summary: what it reads, in a line.
        accepts: whether `--data PATH` is one; asked in the order of names where --dataset is left out.
        open: makes the data set from the path, what it must fit and the options. Raises CompileError.
        options: the names of its options (--data-option) with what they mean.
    """

    name: str
    summary: str
    accepts: Callable[[Path], bool]
    open: Callable[[Path, Ports, Mapping[str, str]], Dataset]
    options: Mapping[str, str] = field(default_factory=dict[str, str])


class Scorer(Protocol):
    """Counts one output of one run over the whole data set."""

    def add(self, found: Array, wanted: Array) -> None:
        """Count a batch.

        Args:
            found: the output as real numbers, [samples, ...].
            wanted: labels, int64 [samples, ...]; or what the output is compared with, of the same shape as `found`.

        Raises:
            ValueError: where the two do not fit together, with the reason.
        """
        ...

    def value(self) -> float:
        """The score of what was counted; NaN where there was nothing to count."""
        ...


@dataclass(frozen=True)
class Metric:
    """A number that compares one output with labels or with an array like itself.

    Attributes:
        name: how --metric calls it, in lower case.
        summary: its formula, in a line.
        start: makes a fresh `Scorer`.
        against: "labels": classes; "outputs": the data set's targets or another run's output.
        better: which direction is good.
        unit: "share" for numbers of 0 to 1, "dB", or "".
    """

    name: str
    summary: str
    start: Callable[[], Scorer]
    against: Literal["labels", "outputs"]
    better: Better = "higher"
    unit: Unit = ""


class TaskScorer(Protocol):
    """Counts all outputs of one run over the whole data set."""

    def add(self, outputs: Mapping[str, Array], items: Sequence[Item]) -> None:
        """Count a batch: outputs by name as real numbers, [samples, ...], and the samples that they belong to."""
        ...

    def value(self) -> float:
        """The score of what was counted; NaN where there was nothing to count."""
        ...


@dataclass(frozen=True)
class TaskMetric:
    """A number made of all outputs and all that the data set says of a sample: what detectors need. See `Metric`."""

    name: str
    summary: str
    start: Callable[[], TaskScorer]
    better: Better = "higher"
    unit: Unit = ""

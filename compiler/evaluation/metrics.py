"""The metrics that are built in, each streaming: a few numbers are kept, whatever the size of the data set.

In the formulas y is what a run computed, t what it is compared with; sums go over all elements of the data set unless
something else is said. Sums are kept in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import numpy as np

from qatc.compiler.evaluation.values import Metric
from qatc.compiler.quant import Array
from qatc.compiler.verify.tally import decibels

_ROUNDED: Final = 1e-3  # what shares in float16 may miss one by
_VOID: Final = 255  # by convention no class, in images of labels


# -- classes ------------------------------------------------------------------------------------------------------
def class_axis(scores: tuple[int, ...], labels: tuple[int, ...]) -> int:
    """The axis of `scores` that counts classes: what is left when the axes of `labels` are taken away.

    Both shapes begin with the samples; the second axis is tried first, as ONNX has it, then the last.

    Raises:
        ValueError: where no axis fits.
    """
    for axis in dict.fromkeys((1, len(scores) - 1)):
        if 0 < axis < len(scores) and scores[:axis] + scores[axis + 1 :] == labels:
            return axis
    raise ValueError(f"labels {list(labels)} do not fit scores {list(scores)}: one axis less, that of the classes")


def _axis_of_shares(labels: Array) -> int:
    """The axis along which labels with a number for each class mostly add up to one: the second, or better the last."""

    def share(axis: int) -> float:
        sums: Array = np.abs(labels.sum(axis, dtype=np.float64) - 1)
        return int(np.count_nonzero(sums < _ROUNDED)) / max(1, sums.size)

    return 1 if share(1) >= share(labels.ndim - 1) else labels.ndim - 1


def aligned(scores: Array, labels: Array) -> tuple[Array, Array]:
    """Scores as [elements, classes] and labels as int64 [elements]; what is void in images of labels is left out.

    Axes of length one after the second that labels do not have ([N, C, 1, 1]) are dropped. Labels shaped as the scores
    are one-hot or scores themselves: their arg-max counts, along the axis on which they add up to one.

    Raises:
        ValueError: where the shapes do not fit, there is one class alone, or a label is no class.
    """
    if labels.shape == scores.shape and scores.ndim > 1:
        axis = _axis_of_shares(labels)
        scores, labels = np.moveaxis(scores, axis, 1), np.argmax(labels, axis)
    while scores.ndim > max(2, labels.ndim + 1) and scores.shape[-1] == 1:
        scores = scores[..., 0]
    while labels.ndim > max(1, scores.ndim - 1) and labels.shape[-1] == 1:
        labels = labels[..., 0]
    if labels.dtype.kind not in "iub":
        raise ValueError(f"labels are whole numbers, not {labels.dtype}")
    axis = class_axis(scores.shape, labels.shape)
    classes = scores.shape[axis]
    if classes < 2:
        raise ValueError("there is one class alone, so that it always wins")
    rows = np.moveaxis(scores, axis, -1).reshape(-1, classes)
    flat = labels.reshape(-1).astype(np.int64)
    if labels.ndim > 1:
        kept = (flat >= 0) & ~((flat == _VOID) & (classes <= _VOID))
        rows, flat = rows[kept], flat[kept]
    if flat.size and not 0 <= int(flat.min()) <= int(flat.max()) < classes:
        odd = int(flat.min()) if flat.min() < 0 else int(flat.max())
        raise ValueError(f"the label {odd} is none of the {classes} classes 0 to {classes - 1}")
    return rows, flat


@dataclass
class _Share:
    """A share of elements."""

    hits: int = 0
    total: int = 0

    def value(self) -> float:
        return self.hits / self.total if self.total else math.nan


@dataclass
class _Top(_Share):
    """Share of labels whose score is among the k largest of their element.

    Equal scores count in the order of their classes, as a stable sort has them: integers tie more often than floats.
    """

    k: int = 1

    def add(self, found: Array, wanted: Array) -> None:
        rows, labels = aligned(found, wanted)
        if rows.shape[1] < self.k:
            raise ValueError(f"there are {rows.shape[1]} classes, so that the {self.k} best are all of them")
        own = np.take_along_axis(rows, labels[:, None], 1)
        before = np.arange(rows.shape[1], dtype=np.int64) < labels[:, None]
        rank = np.count_nonzero((rows > own) | ((rows == own) & before), axis=1)
        self.hits += int(np.count_nonzero((rank < self.k) & ~np.isnan(own[:, 0])))
        self.total += labels.size


@dataclass
class _MeanIou:
    """Mean over classes of TP / (TP + FP + FN), from one confusion matrix of the whole data set.

    The predicted class is the arg-max. A class that neither is a label nor predicted anywhere does not count.
    """

    confusion: Array | None = None

    def add(self, found: Array, wanted: Array) -> None:
        rows, labels = aligned(found, wanted)
        classes = rows.shape[1]
        if self.confusion is None:
            self.confusion = np.zeros((classes, classes), np.int64)
        pairs = labels * classes + np.argmax(rows, 1)
        self.confusion += np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)

    def value(self) -> float:
        if self.confusion is None:
            return math.nan
        both = np.diag(self.confusion)
        union = self.confusion.sum(0) + self.confusion.sum(1) - both
        seen = union > 0
        return float((both[seen] / union[seen]).mean()) if seen.any() else math.nan


# -- signals ------------------------------------------------------------------------------------------------------
def _pair(found: Array, wanted: Array) -> tuple[Array, Array]:
    if found.shape != wanted.shape:
        raise ValueError(f"the output has the shape {list(found.shape)}, what it is compared with {list(wanted.shape)}")
    return found.astype(np.float64), wanted.astype(np.float64)


def _off(y: Array, t: Array) -> Array:
    """What y is off by: nothing where both are the same, infinite (masked scores) or not."""
    with np.errstate(invalid="ignore"):
        return np.where(y == t, 0.0, y - t)


@dataclass
class _Agreement(_Share):
    """Share of elements with the same arg-max over the classes: the second axis of [N, C, ...].

    A tie at the top agrees where one of its classes is at the top of the other, too.
    """

    def add(self, found: Array, wanted: Array) -> None:
        if found.ndim < 2 or found.shape[1] < 2:
            raise ValueError(f"an output {list(found.shape)} has no classes along its second axis")
        y, t = _pair(found, wanted)
        agree = ((y == y.max(1, keepdims=True)) & (t == t.max(1, keepdims=True))).any(1)
        self.hits += int(np.count_nonzero(agree))
        self.total += agree.size


@dataclass
class _Mean:
    """The mean of a function of the elements; `last` is applied to the mean."""

    each: Callable[[Array], Array]
    last: Callable[[float], float] = float
    total: float = 0.0
    count: int = 0

    def add(self, found: Array, wanted: Array) -> None:
        y, t = _pair(found, wanted)
        with np.errstate(over="ignore"):
            self.total += float(self.each(_off(y, t)).sum())
        self.count += y.size

    def value(self) -> float:
        return self.last(self.total / self.count) if self.count else math.nan


@dataclass
class _Largest:
    """max |y - t|."""

    largest: float | None = None

    def add(self, found: Array, wanted: Array) -> None:
        y, t = _pair(found, wanted)
        self.largest = float(np.maximum(self.largest or 0.0, np.abs(_off(y, t)).max(initial=0.0)))  # NaN stays

    def value(self) -> float:
        return math.nan if self.largest is None else self.largest


@dataclass
class _Cosine:
    """Mean over samples of sum(y t) / sqrt(sum(y^2) sum(t^2)); two vectors of zeros are equal: 1, one alone: 0."""

    total: float = 0.0
    count: int = 0

    def add(self, found: Array, wanted: Array) -> None:
        y, t = (part.reshape(part.shape[0], -1) for part in _pair(found, wanted))
        both_zero = ~y.any(1) & ~t.any(1)
        with np.errstate(all="ignore"):
            length = np.sqrt((y * y).sum(1)) * np.sqrt((t * t).sum(1))
            cosine = (y * t).sum(1) / length
        self.total += float(np.where(both_zero, 1.0, np.where(length == 0, 0.0, cosine)).sum())
        self.count += y.shape[0]

    def value(self) -> float:
        return self.total / self.count if self.count else math.nan


@dataclass
class _Sqnr:
    """10 log10(sum(t^2) / sum((y - t)^2)); infinite where nothing differs."""

    signal: float = 0.0
    noise: float = 0.0
    count: int = 0

    def add(self, found: Array, wanted: Array) -> None:
        y, t = _pair(found, wanted)
        with np.errstate(over="ignore"):
            self.signal += float((t * t).sum())
            self.noise += float((_off(y, t) ** 2).sum())
        self.count += y.size

    def value(self) -> float:
        return decibels(self.signal, self.noise) if self.count else math.nan


@dataclass
class _Elementwise:
    """The mean over samples of a function of an output and what it is compared with, see `mean_metric`."""

    function: Callable[[Array, Array], Array | float]
    total: float = 0.0
    count: int = field(default=0)

    def add(self, found: Array, wanted: Array) -> None:
        for y, t in zip(found, wanted, strict=True):
            result = self.function(y, t)
            try:
                self.total += float(np.asarray(result, np.float64).mean())
            except TypeError as error:
                raise ValueError(f"its function gives {type(result).__name__}, no number") from error
            self.count += 1

    def value(self) -> float:
        return self.total / self.count if self.count else math.nan


def mean_metric(
    name: str, summary: str, function: Callable[[Array, Array], Array | float], *, against_labels: bool = False,
    lower_is_better: bool = False,
) -> Metric:  # fmt: skip
    """A metric for plug-ins: the mean over samples of `function(output, wanted)`.

    Args:
        name: how --metric calls it.
        summary: its formula.
        function: takes an output of one sample without the batch axis, and its label or an array of its shape.
        against_labels: whether it takes labels.
        lower_is_better: which direction is good.
    """
    return Metric(
        name,
        summary,
        partial(_Elementwise, function),
        "labels" if against_labels else "outputs",
        "lower" if lower_is_better else "higher",
    )


def top(k: int) -> Metric:
    """The share of labels that are among the k best classes."""
    return Metric(
        f"top{k}",
        f"share of labels among the {k} largest scores" if k > 1 else "share of labels with the largest score",
        partial(_Top, k=k),
        "labels",
        unit="share",
    )


TOP1: Final = top(1)
TOP5: Final = top(5)
MIOU: Final = Metric("miou", "mean over classes of TP / (TP + FP + FN)", _MeanIou, "labels", unit="share")
AGREEMENT: Final = Metric("agreement", "share of equal arg-max over axis 1", _Agreement, "outputs", unit="share")
MSE: Final = Metric("mse", "mean of (y - t)^2", partial(_Mean, np.square), "outputs", "lower")
RMSE: Final = Metric("rmse", "root of the mean of (y - t)^2", partial(_Mean, np.square, math.sqrt), "outputs", "lower")
MAE: Final = Metric("mae", "mean of |y - t|", partial(_Mean, np.abs), "outputs", "lower")
LARGEST: Final = Metric("max-error", "largest |y - t|", _Largest, "outputs", "lower")
COSINE: Final = Metric("cosine", "mean over samples of sum(y t) / (|y| |t|)", _Cosine, "outputs")
SQNR: Final = Metric("sqnr", "10 log10(sum(t^2) / sum((y - t)^2))", _Sqnr, "outputs", unit="dB")

"""The metrics against plain calculations in Python: sums over lists, `fractions`, and nothing of numpy's."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import reduce
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qatc.compiler.evaluation.catalog import Catalog
from qatc.compiler.evaluation.metrics import class_axis, mean_metric, top
from qatc.compiler.evaluation.values import Metric

Scores = list[list[int]]


def measured(name: str, found: Any, wanted: Any, cuts: tuple[int, ...] = ()) -> float:
    """A metric fed in batches that end at `cuts`."""
    metric = Catalog().metrics.get(name)
    assert isinstance(metric, Metric)
    return counted(metric, np.asarray(found), np.asarray(wanted), cuts)


def counted(metric: Metric, found: np.ndarray, wanted: np.ndarray, cuts: tuple[int, ...] = ()) -> float:
    scorer = metric.start()
    for y, t in zip(np.split(found, cuts), np.split(wanted, cuts), strict=True):
        if len(y):
            scorer.add(y, t)
    return scorer.value()


# -- classes --------------------------------------------------------------------------------------------------------
def plain_top(scores: Scores, labels: list[int], k: int) -> Fraction:
    """Share of labels among the first k classes, ordered by score, then by class."""
    hits = 0
    for row, label in zip(scores, labels, strict=True):
        order = sorted(range(len(row)), key=lambda index: (-row[index], index))
        hits += label in order[:k]
    return Fraction(hits, len(labels))


def plain_miou(scores: Scores, labels: list[int], classes: int) -> Fraction:
    """Mean of |A and B| / |A or B| over classes, with sets of element numbers."""
    predicted = [max(range(classes), key=lambda index, row=row: (row[index], -index)) for row in scores]
    shares: list[Fraction] = []
    for each in range(classes):
        a = {i for i, p in enumerate(predicted) if p == each}
        b = {i for i, label in enumerate(labels) if label == each}
        if a | b:
            shares.append(Fraction(len(a & b), len(a | b)))
    return sum(shares, Fraction(0)) / len(shares)


@pytest.mark.parametrize("name", ["top1", "miou"])
@pytest.mark.parametrize("axis", [1, 3])
@pytest.mark.parametrize("void", [False, True])
def test_one_hot_labels_are_the_classes_wherever_their_axis_is(name: str, axis: int, void: bool) -> None:
    """Those of a network that is channels-last were taken for a class a row of the image."""
    dice = np.random.default_rng(0)
    scores, labels = dice.random((2, 8, 9, 4)), dice.integers(0, 4, (2, 8, 9))
    hot = np.eye(4, dtype=np.uint8)[labels]
    if void:
        hot[0, 0] = 0  # no class at all, which is taken for the first
        labels[0, 0] = 0
    scores, hot = np.moveaxis(scores, 3, axis), np.moveaxis(hot, 3, axis)
    assert measured(name, scores, hot, (1,)) == measured(name, scores, labels)


@st.composite
def classified(draw: st.DrawFn) -> tuple[Scores, list[int], tuple[int, ...]]:
    """Scores with many ties, labels, and where batches end."""
    count, classes = draw(st.integers(1, 12)), draw(st.integers(6, 9))
    scores = draw(st.lists(st.lists(st.integers(-2, 2), min_size=classes, max_size=classes), min_size=count,
                           max_size=count))  # fmt: skip
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=count, max_size=count))
    cuts = tuple(sorted(draw(st.lists(st.integers(1, count), max_size=3))))
    return scores, labels, cuts


@settings(max_examples=200)
@given(classified())
def test_classes_are_counted_as_by_hand(case: tuple[Scores, list[int], tuple[int, ...]]) -> None:
    scores, labels, cuts = case
    assert measured("top1", scores, labels, cuts) == float(plain_top(scores, labels, 1))
    assert measured("top5", scores, labels, cuts) == float(plain_top(scores, labels, 5))
    assert measured("miou", scores, labels, cuts) == pytest.approx(float(plain_miou(scores, labels, len(scores[0]))))


@given(classified())
def test_images_of_labels_count_elements(case: tuple[Scores, list[int], tuple[int, ...]]) -> None:
    """[1, C, 1, n] and [1, 1, n, C] are n elements each; what is void does not count."""
    scores, labels, _ = case
    rows = np.asarray(scores)
    first, last = rows.T[None, :, None, :], rows[None, None]
    image = np.asarray(labels)[None, None]
    for found in (first, last):
        if class_axis(found.shape, image.shape) == (1 if found is first else 3):
            assert measured("top1", found, image) == float(plain_top(scores, labels, 1))
            assert measured("miou", found, image) == pytest.approx(float(plain_miou(scores, labels, rows.shape[1])))
    more = np.concatenate([rows, rows[:2]])
    void = np.asarray([*labels, -1, 255][: len(more)])
    kept = len(labels)
    assert measured("top1", more.T[None, :, None], void[None, None]) == float(plain_top(scores, labels[:kept], 1))


def test_one_hot_labels_and_axes_of_length_one() -> None:
    scores = np.asarray([[1, 9, 2], [7, 1, 3]])
    assert measured("top1", scores, np.eye(3)[[1, 2]]) == 0.5
    assert measured("top1", scores[:, :, None, None], [1, 2]) == 0.5
    assert measured("top1", scores, [[1], [0]]) == 1.0


def test_a_tie_goes_to_the_lower_class() -> None:
    assert measured("top1", [[3, 3, 1]], [0]) == 1.0
    assert measured("top1", [[3, 3, 1]], [1]) == 0.0
    assert measured("agreement", [[3.0, 3.0, 1.0]], [[0.0, 9.0, 1.0]]) == 1.0  # the tie includes the other's best
    assert measured("agreement", [[0.0, 9.0, 1.0]], [[3.0, 3.0, 1.0]]) == 1.0  # whichever of the two it is in
    assert measured("agreement", [[0.0, 1.0, 9.0]], [[3.0, 3.0, 1.0]]) == 0.0


@pytest.mark.filterwarnings("error")
def test_infinite_numbers_are_off_by_nothing_where_both_are() -> None:
    y, t = [[-math.inf, 1.0, 3.0]], [[-math.inf, 2.0, 3.0]]  # masked scores
    assert measured("mse", y, t) == pytest.approx(1 / 3)
    assert measured("mae", y, t) == pytest.approx(1 / 3)
    assert measured("max-error", y, t) == 1.0
    assert measured("sqnr", y, t) == math.inf
    assert measured("mse", [[-math.inf]], [[0.0]]) == math.inf
    assert measured("mse", [[1e300]], [[0.0]]) == math.inf
    assert math.isnan(measured("cosine", y, t))
    assert math.isnan(measured("mae", [[math.nan]], [[math.nan]]))


def test_a_score_that_is_no_number_never_wins() -> None:
    assert measured("top1", [[math.nan, 1.0, 0.0]], [0]) == 0.0


@pytest.mark.parametrize(
    ("found", "wanted", "said"),
    [
        ([[1, 2]], [2], "the label 2 is none of the 2 classes 0 to 1"),
        ([[1, 2]], [-1], "the label -1 is none of the 2 classes"),
        ([[1, 2]], [0.5], "labels are whole numbers, not float64"),
        ([[1]], [0], "one class alone"),
        ([[1, 2, 3]], [[0, 1]], "do not fit scores"),
    ],
)
def test_labels_that_do_not_fit(found: Any, wanted: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        measured("top1", found, wanted)


def test_five_of_five_classes_say_nothing() -> None:
    with pytest.raises(ValueError, match="so that the 5 best are all of them"):
        measured("top5", [[1, 2, 3, 4]], [0])
    assert counted(top(3), np.asarray([[1, 2, 3, 4]]), np.asarray([1])) == 1.0


# -- signals --------------------------------------------------------------------------------------------------------
Rows = list[list[float]]
NUMBERS = st.integers(-50, 50).map(lambda value: value / 8)  # sums of their squares are exact in float64


@st.composite
def signals(draw: st.DrawFn) -> tuple[Rows, Rows, tuple[int, ...]]:
    count, width = draw(st.integers(1, 8)), draw(st.integers(2, 5))
    rows = st.lists(st.lists(NUMBERS, min_size=width, max_size=width), min_size=count, max_size=count)
    return draw(rows), draw(rows), tuple(sorted(draw(st.lists(st.integers(1, count), max_size=3))))


def flat(rows: Rows) -> list[Fraction]:
    return [Fraction(value) for row in rows for value in row]


@settings(max_examples=200)
@given(signals())
def test_signals_are_measured_as_by_hand(case: tuple[Rows, Rows, tuple[int, ...]]) -> None:
    y, t, cuts = case
    off = [a - b for a, b in zip(flat(y), flat(t), strict=True)]
    noise = reduce(lambda total, value: total + value * value, off, Fraction(0))
    signal = reduce(lambda total, value: total + value * value, flat(t), Fraction(0))
    mean = noise / len(off)
    assert measured("mse", y, t, cuts) == pytest.approx(float(mean), rel=1e-12)
    assert measured("rmse", y, t, cuts) == pytest.approx(math.sqrt(mean), rel=1e-12)
    assert measured("mae", y, t, cuts) == pytest.approx(float(sum(map(abs, off)) / len(off)), rel=1e-12)
    assert measured("max-error", y, t, cuts) == float(max(map(abs, off)))
    sqnr = math.inf if not noise else -math.inf if not signal else 10 * math.log10(signal / noise)
    assert measured("sqnr", y, t, cuts) == pytest.approx(sqnr)
    agree = [any(a == max(row) and b == max(best) for a, b in zip(row, best, strict=True))
             for row, best in zip(y, t, strict=True)]  # fmt: skip
    assert measured("agreement", y, t, cuts) == sum(agree) / len(agree)


@given(signals())
def test_cosine_is_the_mean_of_the_samples(case: tuple[Rows, Rows, tuple[int, ...]]) -> None:
    y, t, cuts = case
    each: list[float] = []
    for a, b in zip(y, t, strict=True):
        product = sum(Fraction(p) * Fraction(q) for p, q in zip(a, b, strict=True))
        squares = sum(Fraction(p) ** 2 for p in a) * sum(Fraction(q) ** 2 for q in b)
        each.append(float(product) / math.sqrt(squares) if squares else 1.0 if not any(a) and not any(b) else 0.0)
    assert measured("cosine", y, t, cuts) == pytest.approx(math.fsum(each) / len(each), abs=1e-12)


def test_nothing_counted_is_no_number() -> None:
    catalog = Catalog()
    for name in catalog.metrics.names():
        assert math.isnan(catalog.metrics.get(name).start().value()), name


def test_a_broken_output_shows() -> None:
    assert math.isnan(measured("mse", [[math.nan, 1.0]], [[0.0, 1.0]]))
    assert measured("max-error", [[math.inf, 1.0]], [[0.0, 1.0]]) == math.inf
    assert measured("sqnr", [[math.inf, 1.0]], [[0.0, 1.0]]) == -math.inf
    assert math.isnan(measured("max-error", [[math.nan], [1.0]], [[0.0], [0.0]], (1,)))


def test_shapes_that_differ() -> None:
    with pytest.raises(ValueError, match=r"has the shape \[1, 2\], what it is compared with \[1, 3\]"):
        measured("mse", [[1.0, 2.0]], [[1.0, 2.0, 3.0]])


def test_the_mean_of_a_function() -> None:
    metric = mean_metric("first", "y[0] - t", lambda y, t: y[0] - t, against_labels=True, lower_is_better=True)
    assert (metric.against, metric.better) == ("labels", "lower")
    assert counted(metric, np.asarray([[5.0, 1.0], [9.0, 1.0]]), np.asarray([1, 2]), (1,)) == 5.5

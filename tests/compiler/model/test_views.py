"""Views hold what the layout operators that they stand for make, and are written by the fewest of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qatc.compiler.model.views import Step, View

Arrays = np.ndarray


def apply(value: Arrays, steps: list[Step]) -> Arrays:
    for op, axes in steps:
        if op == "Transpose":
            value = value.transpose(axes)
        else:
            value = value.squeeze(axes) if op == "Squeeze" else np.expand_dims(value, axes)
    return value


@st.composite
def viewed(draw: st.DrawFn) -> tuple[Arrays, View, Arrays]:
    """A tensor of different elements, a view of it by random layout operators, and what those make of it."""
    shape = tuple(draw(st.lists(st.sampled_from([1, 1, 2, 3]), max_size=5)))
    source = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    view, made = View.same(source.ndim), source
    for op in draw(st.lists(st.sampled_from(["Transpose", "Squeeze", "Unsqueeze"]), max_size=5)):
        if op == "Transpose":
            order = tuple(draw(st.permutations(range(made.ndim))))
            step, made = View(made.ndim, order), made.transpose(order)
        else:
            larger = made.ndim if op == "Squeeze" else made.ndim + draw(st.integers(1, 2))
            ones = [i for i, size in enumerate(made.shape) if size == 1] if op == "Squeeze" else range(larger)
            many = st.integers(0, len(ones)) if op == "Squeeze" else st.just(larger - made.ndim)
            axes = sorted(draw(st.permutations(ones))[: draw(many)])
            squeezed = View(larger, tuple(axis for axis in range(larger) if axis not in axes))
            step = squeezed if op == "Squeeze" else squeezed.inverse()
            made = apply(made, [(op, tuple(axes))])
        view = view.then(step)
    return source, view, made


@given(viewed())
def test_a_view_holds_what_the_operators_make(case: tuple[Arrays, View, Arrays]) -> None:
    source, view, made = case
    np.testing.assert_array_equal(view.of(source), made, strict=True)
    np.testing.assert_array_equal(view.inverse().of(made), source, strict=True)
    assert view.shape(source.shape) == made.shape
    assert view.then(view.inverse()).steps(source.shape) == []


@given(viewed(), st.booleans())
def test_a_view_is_written_in_two_operators_at_most(case: tuple[Arrays, View, Arrays], known: bool) -> None:
    source, view, made = case
    steps = view.steps(source.shape if known else None)
    np.testing.assert_array_equal(apply(source, steps), made, strict=True)
    assert len(steps) <= 2
    if known:
        assert (not steps) == (source.shape == made.shape and bool((source == made).all()))
        assert len(steps) < 2 or source.ndim != made.ndim


@pytest.mark.parametrize(
    ("view", "shape", "steps"),
    [
        (View(4, (0, 3, 1, 2)), (1, 5, 6, 7), [("Transpose", (0, 3, 1, 2))]),
        (View(4, (0, 2, 3, 1)), (1, 5, 1, 1), [("Transpose", (0, 2, 3, 1))]),
        (View(4, (0, 1, 3, 2)), (2, 5, 1, 1), []),
        (View(3, (0, None, 1, 2)), None, [("Unsqueeze", (1,))]),
        (View(4, (0, 1, 3)), None, [("Squeeze", (2,))]),
        (View(4, (0, 3, 1)), None, [("Squeeze", (2,)), ("Transpose", (0, 2, 1))]),
        (View(3, (0, 2, None, 1)), None, [("Transpose", (0, 2, 1)), ("Unsqueeze", (2,))]),
        (View(3, (0, None, 2)), None, []),
        (View(4, (0, None, None, None, 3)), None, [("Unsqueeze", (3,))]),
        (View(0, (None, None)), (), [("Unsqueeze", (0, 1))]),
    ],
)
def test_how_a_view_is_written(view: View, shape: tuple[int, ...] | None, steps: list[Step]) -> None:
    assert view.steps(shape) == steps


def test_other_sizes_have_no_such_view() -> None:
    for value in (np.zeros((2, 3)), np.zeros((2, 3, 2))):
        with pytest.raises(ValueError, match=r"axes|squeeze"):
            View(3, (1, 0)).of(value)

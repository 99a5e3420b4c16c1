"""Lines through thresholds: the same counts at every multiple of the unit, and none where there is no line."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qatc.frontends.qonnx.steps import Steps, even_steps


def counts(thresholds: np.ndarray, x: np.ndarray) -> np.ndarray:
    """How many thresholds of each row every x reaches: [rows, x]."""
    return np.count_nonzero(x[None, :, None] >= thresholds[:, None, :], axis=2)


def rounded(found: Steps, x: np.ndarray, most: int) -> np.ndarray:
    """The same by rounding to the nearest, as a quantizer does."""
    return np.clip(np.rint((x - found.start[:, None]) / found.step[:, None] + 0.5), 0, most)


@given(
    st.lists(st.tuples(st.floats(-500, 500), st.floats(0.01, 40)), min_size=1, max_size=4),
    st.integers(1, 255),
    st.sampled_from([1.0, 0.125, 0.037]),
)
@settings(max_examples=60)
def test_rounded_up_thresholds_of_sums(lines: list[tuple[float, float]], n: int, unit: float) -> None:
    """What FINN makes of even thresholds for integer sums: rounded up, so that they are no longer even."""
    real = np.stack([start + step * np.arange(n, dtype=np.float64) for start, step in lines])
    thresholds = np.ceil(real) * unit
    found = even_steps(thresholds, unit)
    if found is None:  # a line exists, but nearer to a multiple than rounding in float32 is sure of
        assert (np.ceil(real) - real).min() < 1e-3 or (real - np.floor(real)).min() < 1e-3
        return
    x = np.arange(-3000, 3000).astype(np.float64)
    other = rounded(found, x * unit, n) != counts(np.ceil(real), x)
    reach = np.abs(real).max(axis=1, keepdims=True)
    near = np.abs(x[None, :, None] - real[:, None]).min(axis=2) < 1e-6 * reach  # as float32 may have moved it
    assert not (other & ~near).any()


@given(st.floats(-50, 50), st.floats(2**-8, 8), st.integers(2, 60))
@settings(max_examples=60)
def test_real_inputs(start: float, step: float, n: int) -> None:
    thresholds = (start + step * np.arange(n, dtype=np.float64))[None]
    found = even_steps(thresholds, None)
    assert found is not None
    x = start + step * np.linspace(-2, n + 2, 977)
    clear = np.abs(x[:, None] - thresholds).min(axis=1) > 3e-3 * step
    assert np.array_equal(rounded(found, x[clear], n), counts(thresholds, x[clear]))


def test_one_threshold_is_always_even() -> None:
    x = np.arange(-20, 20).astype(np.float64)
    for unit in (None, 1.0):
        found = even_steps(np.array([[3.0], [0.0], [-7.0]]), unit)
        assert found is not None
        got = rounded(found, x + (0 if unit else 0.25), 1)
        assert np.array_equal(got, counts(np.array([[3.0], [0.0], [-7.0]]), x + (0 if unit else 0.25)))


def test_a_row_without_inputs_between() -> None:
    """Batch norm with a factor of zero makes thresholds that all inputs reach, or none."""
    found = even_steps(np.array([[-np.inf, -np.inf, np.inf], [1.0, 2.0, 3.0]]), 1.0)
    assert found is not None
    assert (found.start[0], found.step[0]) == (2.0, np.inf)
    assert found.step[1] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("row", "unit"),
    [
        ([0.0, 1.0, 3.0], None),
        ([0.0, 1.0, 8.0], 1.0),
        ([1.0, 1.0, 1.0], None),
        ([0.0, 0.0, 9.0], 1.0),
        ([0.0, 1.0, np.inf], 1.0),
    ],
)
def test_uneven(row: list[float], unit: float | None) -> None:
    assert even_steps(np.array([row]), unit) is None


def test_steps_of_less_than_a_unit() -> None:
    """All thresholds between two sums: a single jump over several steps."""
    rows = np.array([[0.2, 0.3, 0.4], [1.0, 1.0, 1.0], [-0.5, -0.1, 0.3]])
    found = even_steps(rows, 1.0)
    assert found is not None
    x = np.arange(-9.0, 9.0)
    assert np.array_equal(rounded(found, x, 3), counts(rows, x))


@pytest.mark.parametrize("seed", range(6))
def test_thresholds_that_float32_moved_across_a_sum(seed: int) -> None:
    """Rounded to float32 before they are rounded up: a line misses some of them, by as little."""
    rng = np.random.default_rng(seed)
    real = np.asarray(
        rng.uniform(-9000, 9000, (16, 1)) + rng.uniform(20, 300, (16, 1)) * np.arange(255),
        np.float64,
    )
    real[:, 7] = np.rint(real[:, 7]) + 1e-5
    real = real[:, 7:8] + (real[:, 254:] - real[:, 7:8]) / 247 * (np.arange(255) - 7)
    single = real.astype(np.float32).astype(np.float64)
    found = even_steps(np.ceil(single), 1.0)
    assert found is not None
    x = np.arange(-20000.0, 90000.0, 7)
    clear = np.abs(x[None, :, None] - real[:1, None]).min(axis=(0, 2)) > 0.05
    got = rounded(Steps(found.start[:1], found.step[:1]), x[clear], 255)
    assert np.array_equal(got, counts(real[:1], x[clear]))


def test_one_step_in_a_thousand_is_even_for_real_inputs() -> None:
    row = np.arange(16.0)
    row[7] += 0.0005
    assert even_steps(row[None], None) is not None
    row[7] += 0.005
    assert even_steps(row[None], None) is None

"""Linear Resize: three forms, each of which is the reference's result bit for bit."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qatc.compiler.integer import Resize
from qatc.compiler.quant import QuantParams
from tests.backends.emitting import FORMS, Net, Result, grid, integers, same

pytestmark = pytest.mark.usefixtures("exact_runtime")
Line = tuple[int, int, int, int, int]  # axis, size, slope, offset, denominator


def resized(
    shape: tuple[int, ...],
    lines: list[Line],
    *,
    have: str = "uint8",
    want: str = "uint8",
    ratio: float = 1.0,
    bounds: tuple[int, int] | None = None,
    opset: int = 17,
    seed: int = 0,
) -> dict[str, Result]:
    dice = np.random.default_rng(seed)
    net, own = Net(opset), grid(dice, have)
    out = grid(dice, want, own.scale[0] * ratio) if ratio != 1 or have != want else own
    lo, hi = bounds or (out.qmin, out.qmax)
    axes, sizes, slopes, offsets, denominators = zip(*lines, strict=True)
    x = net.input(integers(dice, own, shape), own)
    made = net.add(
        Resize, [x], out, None, axes=axes, sizes=sizes, slopes=slopes, offsets=offsets, denominators=denominators,
        lo=lo, hi=hi,
    )  # fmt: skip
    return same(net, made)


def reduced(axis: int, size: int, *numbers: int) -> Line:
    slope, offset, denominator = (number // math.gcd(*numbers) for number in numbers)
    return (axis, size, slope, offset, denominator)


def half_pixel(axis: int, n: int, size: int) -> Line:
    return reduced(axis, size, 2 * n, n - size, 2 * size)


def aligned(axis: int, n: int, size: int) -> Line:
    return reduced(axis, size, n - 1, 0, size - 1)


@pytest.mark.parametrize("have", ["uint8", "int8"])
@pytest.mark.parametrize("want", ["uint8", "int8"])
@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.731, 40.0])
def test_powers_of_two_are_the_float_kernel_s(have: str, want: str, ratio: float) -> None:
    found = resized((2, 3, 5, 6), [half_pixel(2, 5, 10), half_pixel(3, 6, 24)], have=have, want=want, ratio=ratio)
    assert all(result.ops["Resize"] == 1 and not result.ops["Round"] for result in found.values())


def test_on_one_grid_no_version_may_take_bytes_for_numbers() -> None:
    assert resized((1, 2, 5, 6), [half_pixel(2, 5, 10)])["auto"].ops["Sum"] == 1
    assert not resized((1, 2, 5, 6), [half_pixel(2, 5, 10)], ratio=0.5)["auto"].ops["Sum"]


@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.731])
def test_small_denominators_are_rounded_behind_the_float_kernel(ratio: float) -> None:
    for lines in ([half_pixel(2, 5, 15), half_pixel(3, 6, 18)], [half_pixel(2, 5, 3)], [aligned(2, 5, 10)]):
        found = resized((2, 3, 5, 6), lines, ratio=ratio)
        assert all(result.ops["Resize"] == 1 == result.ops["Round"] for result in found.values())


@pytest.mark.parametrize(("size", "cast"), [(100, 0), (700, 1)])
def test_large_denominators_are_gathered(size: int, cast: int) -> None:
    """In int32 where float32 does not hold the sums."""
    found = resized((1, 2, 50, 40), [aligned(2, 50, size), aligned(3, 40, size - 1)], ratio=0.9)
    assert all(result.ops["Gather"] == 4 and not result.ops["Resize"] for result in found.values())
    assert found["auto"].ops["Cast"] == 2 * cast


@pytest.mark.parametrize(
    ("shape", "lines"),
    [
        ((5, 6), [half_pixel(0, 5, 10), half_pixel(1, 6, 3)]),
        ((2, 3, 7), [half_pixel(2, 7, 14)]),
        ((2, 3, 7), [aligned(2, 7, 12), half_pixel(1, 3, 6)]),
        ((1, 4, 5, 3), [half_pixel(1, 4, 8), half_pixel(2, 5, 10)]),
        ((2, 3, 4, 5), [half_pixel(1, 3, 6), half_pixel(3, 5, 10)]),
        ((1, 2, 3, 4, 5), [half_pixel(2, 3, 6), half_pixel(3, 4, 8), half_pixel(4, 5, 10)]),
        ((7,), [half_pixel(0, 7, 14)]),
        ((1, 1, 1, 6), [half_pixel(2, 1, 5), half_pixel(3, 6, 1)]),
        ((0, 2, 3, 4), [half_pixel(2, 3, 6)]),
    ],
    ids=str,
)
def test_other_axes(shape: tuple[int, ...], lines: list[Line]) -> None:
    resized(shape, lines, ratio=0.8)


@pytest.mark.parametrize("opset", [17, 21])
@pytest.mark.parametrize("dtype", ["uint16", "int16"])
def test_16_bits(dtype: str, opset: int) -> None:
    for lines in ([half_pixel(2, 5, 10), half_pixel(3, 6, 12)], [half_pixel(2, 5, 15)], [aligned(2, 5, 200)]):
        resized((2, 3, 5, 6), lines, have=dtype, want=dtype, ratio=0.3, opset=opset)


def test_bounds() -> None:
    resized((2, 3, 5, 6), [half_pixel(2, 5, 10)], bounds=(30, 200))
    resized((2, 3, 50, 6), [aligned(2, 50, 99), aligned(3, 6, 100)], bounds=(30, 200))


AXIS = st.tuples(st.integers(1, 9), st.integers(1, 12), st.integers(1, 12), st.integers(-12, 12), st.integers(1, 12))


@given(st.lists(AXIS, min_size=1, max_size=3), st.floats(0.01, 20), st.sampled_from(["uint8", "int8"]), st.booleans())
@settings(max_examples=60)
@example([(3, 6, 2, -1, 4), (4, 8, 1, 0, 2)], 1.0, "uint8", False)
def test_any_line(axes: list[tuple[int, int, int, int, int]], ratio: float, dtype: str, last: bool) -> None:
    """Whatever the slopes and offsets; the others' axes lie in front or behind."""
    sizes = tuple(n for n, *_ in axes)
    shape, first = ((*sizes, 2), 0) if last else ((2, *sizes), 1)
    lines = [(first + i, *rest) for i, (_, *rest) in enumerate(axes)]
    resized(shape, lines, have=dtype, ratio=ratio)  # type: ignore[arg-type]


@given(
    st.integers(1, 300), st.integers(1, 600), st.sampled_from([half_pixel, aligned]), st.sampled_from([1.0, 0.25, 0.83])
)
@settings(max_examples=40)
def test_long_axes(n: int, size: int, way: type, ratio: float) -> None:
    """Where the float kernel's errors are bounded, they are bounded by enough."""
    resized((1, 1, n, 3), [way(2, n, max(2, size))], ratio=ratio)


def test_the_grids_of_a_step_that_float32_just_holds() -> None:
    net, wide = Net(), QuantParams.per_tensor(2.0**90, 0)
    x = net.input(np.arange(12, dtype=np.uint8).reshape(1, 1, 3, 4), QuantParams.per_tensor(1.0, 3))
    made = net.add(Resize, [x], wide, None, axes=(2,), sizes=(6,), slopes=(2,), offsets=(-1,), denominators=(4,))
    assert same(net, made, FORMS)["auto"].expected.max() == 0

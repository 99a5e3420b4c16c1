"""Linear Resize: the places of its elements as fractions, and what has none."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qatc.compiler.arithmetic import PROFILES, get_profile
from qatc.compiler.integer import IntegerGraph, Rescale, Resize
from qatc.compiler.reference import execute
from tests.agreeing import lowered_net, reasons
from tests.compiler.conftest import run_one_op
from tests.graphs import GRIDS, expect

MODES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric")


def text(values: Sequence[float]) -> str:
    return ", ".join(f"{v:.9g}" for v in values)


def resized(
    shape: Sequence[int | str],
    *,
    scales: Sequence[float] = (),
    sizes: Sequence[int] = (),
    grids: str = "AA",
    opset: int = 19,
    **attrs: object,
) -> IntegerGraph:
    """A Resize between two grids, lowered."""
    words = [f'{k} = "{v}"' if isinstance(v, str) else f"{k} = {v}" for k, v in {"mode": "linear", **attrs}.items()]
    constant = f"int64[{len(sizes)}] k = {{{text(sizes)}}}" if sizes else f"float[{len(scales)}] k = {{{text(scales)}}}"
    call = f"Resize<{', '.join(words)}>(a, , {', k' if sizes else 'k'})"
    dims = ",".join(str(d) for d in shape)
    out = ",".join(f"o{i}" for i in range(len(shape)))
    body = f"a = {grids[0]}(x)\nr = {call}\ny = {grids[1]}(r)"
    return lowered_net(f"(float[{dims}] x) => (float[{out}] y)", body, constant, opset=opset)


def lines(graph: IntegerGraph) -> list[tuple[int, int, int, int, int]]:
    (op,) = [op for op in graph.ops if isinstance(op, Resize)]
    return list(zip(op.axes, op.sizes, op.slopes, op.offsets, op.denominators, strict=True))


def test_the_operator_as_text() -> None:
    expect(
        resized((1, 2, 3, 4), scales=(1, 1, 2, 3), grids="AB"),
        """
        input x<float32 1x2x3x4>
        x_quantized<uint8 scale 0.5 zero 128 1x2x3x4> = Quantize[hi=255 lo=0](x)
        y_quantized<uint8 scale 0.25 zero 0 1x2x6x12> = Resize[axes=(2, 3) denominators=(4, 3) hi=255 lo=0
            offsets=(-1, -1) sizes=(6, 12) slopes=(2, 1)](x_quantized)
        y<float32 1x2x6x12> = Dequantize(y_quantized)
        output y
        """,
    )


@pytest.mark.parametrize(
    ("mode", "wanted"),
    [
        ("half_pixel", (2, 10, 2, -1, 4)),
        ("pytorch_half_pixel", (2, 10, 2, -1, 4)),
        ("align_corners", (2, 10, 4, 0, 9)),
        ("asymmetric", (2, 10, 1, 0, 2)),
        ("half_pixel_symmetric", (2, 10, 2, -1, 4)),
    ],
)
def test_places_of_each_mode(mode: str, wanted: tuple[int, ...]) -> None:
    for given_as in ({"scales": (1, 1, 2, 1)}, {"sizes": (1, 2, 10, 3)}):
        assert lines(resized((1, 2, 5, 3), coordinate_transformation_mode=mode, **given_as)) == [wanted]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("n", "scale", "wanted"),
    [
        (5, 2.2, (2, 11, 5, -3, 11)),  # the float32 of 11/5
        (7, 2.2, (2, 15, 5, -3, 11)),  # 15.4 elements
        (9, 1 / 3, (2, 3, 3, 1, 1)),
        (8, 0.5, (2, 4, 4, 1, 2)),
        (3, 1.5, (2, 4, 4, -1, 6)),
    ],
)
def test_a_scale_is_the_float32_of_a_fraction(n: int, scale: float, wanted: tuple[int, ...]) -> None:
    assert lines(resized((1, 1, n, 1), scales=(1, 1, float(np.float32(scale)), 1))) == [wanted]


def test_a_scale_that_leaves_something_over_is_centered_in_symmetric_coordinates() -> None:
    mode = {"coordinate_transformation_mode": "half_pixel_symmetric"}
    found = lines(resized((1, 1, 7, 1), scales=(1, 1, float(np.float32(2.2)), 1), **mode))
    assert found == [(2, 15, 5, -2, 11)]  # 7/2 - 15/(2 * 2.2) + (i + 1/2) / 2.2 - 1/2


def test_one_scale_that_keeps_the_aspect_ratio() -> None:
    for policy, scale in (("not_larger", Fraction(3, 2)), ("not_smaller", Fraction(2))):
        graph = resized((1, 1, 4, 5), sizes=(6, 10), axes=[2, 3], keep_aspect_ratio_policy=policy)
        assert [Fraction(slope, d) for _, _, slope, _, d in lines(graph)] == [1 / scale] * 2
        assert [size for _, size, *_ in lines(graph)] == [round(n * scale + Fraction(1, 100)) for n in (4, 5)]


def test_axes_may_be_named_and_the_batch_unknown() -> None:
    graph = resized(("N", 2, 3, 4), sizes=(6, 4), axes=[-2, 3])
    assert [line[0] for line in lines(graph)] == [2]
    assert [line[0] for line in lines(resized(("N", 2, 3, "W"), scales=(1, 1, 2, 1)))] == [2]


def test_no_size_changes() -> None:
    graph = resized((1, 2, 3, 4), sizes=(1, 2, 3, 4), grids="AB", coordinate_transformation_mode="align_corners")
    assert [op.kind for op in graph.ops] == ["Quantize", "Rescale", "Dequantize"]
    assert isinstance(graph.ops[1], Rescale)


def test_a_clamp_behind_it_is_its_own() -> None:
    body = 'a = A(x)\nr = Resize<mode = "linear">(a, , k)\nv = Relu(r)\ny = A(v)'
    graph = lowered_net("(float[1,1,2,2] x) => (float[a,b,c,d] y)", body, "float[4] k = {1, 1, 2, 2}")
    (op,) = [op for op in graph.ops if isinstance(op, Resize)]
    assert (op.lo, op.hi) == (128, 255)


def test_16_bits() -> None:
    graph = resized((1, 1, 3, 3), scales=(1, 1, 2, 2), grids="WW", opset=21)
    assert lines(graph)[0] == (2, 6, 2, -1, 4)
    assert reasons(resized((1, 1, 300, 1), sizes=(1, 1, 999, 1), grids="WW", opset=21)) == []
    wide = resized((1, 1, 300, 300), sizes=(1, 1, 999, 998), grids="WW", opset=21)
    assert reasons(wide) == ["Resize: the weights of its scales and int16 values do not fit 32 bits together"]


@pytest.mark.parametrize(
    ("shape", "changes", "reason"),
    [
        ((1, 1, 6, 6), {"scales": (1, 1, 1.7183, 1)}, "its scale is no fraction that integer weights could express"),
        ((1, 1, 6, 6), {"scales": (1, 1, 2, 2), "antialias": 1}, "it is antialiased"),
        (
            (1, 1, 2048, 2048),
            {"sizes": (1, 1, 4096, 4096), "coordinate_transformation_mode": "align_corners"},
            "the weights of its scales and uint8 values do not fit 32 bits together",
        ),
        (
            (1, 1, 6, 6),
            {"scales": (1, 1, 2, 2), "coordinate_transformation_mode": "tf_crop_and_resize"},
            "its coordinates (tf_crop_and_resize) have no integer form",
        ),
        ((1, 1, "H", 6), {"scales": (1, 1, 2, 2)}, "its sizes are not known: --shape pins those of the input"),
        ((1, 1, "H", 6), {"sizes": (1, 1, 4, 4)}, "its sizes are not known: --shape pins those of the input"),
    ],
)  # fmt: skip
def test_what_stays_in_float(shape: tuple[int | str, ...], changes: dict[str, object], reason: str) -> None:
    assert reasons(resized(shape, **changes)) == [f"Resize: {reason}"]  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [0.0, -1.0, -2.5, 1e-30, 1e30, float(np.float32(2) ** -149)])
def test_scales_that_make_no_sense_stay_in_float(scale: float) -> None:
    graph = resized((1, 1, 4, 4), scales=(1, 1, scale, 2))
    assert [found.split(":")[0] for found in reasons(graph)] == ["Resize"]


# -- what it means ----------------------------------------------------------------------------------------------------
def exactly(x: np.ndarray, places: list[list[Fraction]]) -> list[Fraction]:
    """Interpolation in fractions: every element by itself, straight from the definition."""
    found: list[Fraction] = []
    for place in itertools.product(*places):
        total = Fraction(0)
        for corner in itertools.product((0, 1), repeat=x.ndim):
            weight, at = Fraction(1), []
            for p, upper, n in zip(place, corner, x.shape, strict=True):
                p = min(max(p, Fraction(0)), Fraction(n - 1))
                low = p.numerator // p.denominator
                weight *= p - low if upper else 1 - (p - low)
                at.append(min(low + upper, n - 1))
            total += weight * int(x[tuple(at)])
        found.append(total)
    return found


def place(mode: str, i: int, n: int, m: int, s: Fraction) -> Fraction:
    """ONNX's coordinate of element i of m, in an axis of n."""
    half = Fraction(1, 2)
    match mode:
        case "asymmetric":
            return i / s
        case "align_corners":
            return Fraction(i * (n - 1), m - 1) if m > 1 else Fraction(0)
        case "pytorch_half_pixel" if m == 1:
            return Fraction(0)
        case "half_pixel_symmetric":
            return Fraction(n, 2) * (1 - m / (s * n)) + (i + half) / s - half
        case _:
            return (i + half) / s - half


SIZES = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 9)), min_size=1, max_size=3)


@given(SIZES, st.sampled_from(MODES), st.sampled_from(["AA", "AB", "CD", "BA", "DC"]), st.integers(0, 99))
@settings(max_examples=60)
@example([(1, 1), (1, 7)], "half_pixel", "AA", 0)
@example([(1, 2), (5, 1)], "pytorch_half_pixel", "AB", 1)
@example([(2, 4), (3, 6), (4, 2)], "align_corners", "CD", 2)
def test_it_is_the_rounded_rational(sizes: list[tuple[int, int]], mode: str, grids: str, seed: int) -> None:
    """The profile `exact` is the exact value to the nearest; ONNX Runtime's floats are within one step of `onnx`."""
    before, after = [n for n, _ in sizes], [m for _, m in sizes]
    graph = resized((2, 1, *before), sizes=(2, 1, *after), grids=grids, coordinate_transformation_mode=mode)
    have, want = graph.params(graph.ops[0].output), graph.params(graph.ops[-1].inputs[0])
    x = np.random.default_rng(seed).uniform(-70, 70, (2, 1, *before)).astype(np.float32)
    feeds = {"x": x}
    found = execute(graph, feeds, get_profile("exact"))
    q = found[graph.ops[0].output].astype(np.int64) - have.zero_point[0]
    places = [[place(mode, i, n, m, Fraction(m, n)) for i in range(m)] for n, m in sizes]
    ratio = Fraction(have.scale[0]) / Fraction(want.scale[0])
    expected = [
        min(max(round(value * ratio) + want.zero_point[0], want.qmin), want.qmax)
        for part in q
        for value in exactly(part[0], places)
    ]
    assert found[graph.ops[-1].inputs[0]].reshape(-1).tolist() == expected
    scale, zero, dtype = GRIDS[grids[1]]
    attrs = {"mode": "linear", "coordinate_transformation_mode": mode}
    wanted = np.array((2, 1, *after), np.int64)
    (real,) = run_one_op("Resize", [have.dequantize(found[graph.ops[0].output]), None, None, wanted], [np.float32],
                         attrs, opset=19)  # fmt: skip
    (rounded,) = run_one_op("QuantizeLinear", [real, np.float32(scale), np.dtype(dtype).type(zero)], [dtype])
    steps = [execute(graph, feeds, profile)[graph.ops[-1].inputs[0]].astype(int) for profile in PROFILES.values()
             if profile.name != "pow2"]  # fmt: skip
    assert max(np.abs(q - steps[-1]).max() for q in steps) <= 1
    ours = execute(graph, feeds, get_profile("onnx"))["y"]
    theirs = (rounded.astype(np.float32) - zero) * np.float32(scale)
    assert np.abs(ours - theirs).max() <= scale * 1.001

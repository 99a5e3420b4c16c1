"""Softmax and layer normalization: exact against many digits, TFLite's form against CMSIS-NN's own results."""

from __future__ import annotations

from collections import Counter
from decimal import Context, Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qatc.compiler.arithmetic import PROFILES, exact
from qatc.compiler.diagnostics import CompileError
from qatc.compiler.quant import QuantParams

EXACT = PROFILES["exact"]
UNIT = QuantParams.per_tensor(1 / 256, -128, "int8")
scales = st.floats(1e-4, 2.0).map(lambda v: float(np.float32(v)))
rows = st.lists(st.integers(0, 255), min_size=1, max_size=12)


def grid(scale: float, zero: int = 128) -> QuantParams:
    return QuantParams.per_tensor(scale, zero, "uint8")


def rounded(real: Decimal, zero: int) -> int:
    """Half to even, then the zero point, within a byte."""
    return max(0, min(255, int(real.quantize(Decimal(1), rounding="ROUND_HALF_EVEN")) + zero))


# -- exact --------------------------------------------------------------------------------------------------------
@given(q=rows, scale=scales, step=scales, zero=st.integers(0, 255))
def test_shares_are_rounded_exactly(q: list[int], scale: float, step: float, zero: int) -> None:
    out = grid(step, zero)
    found = EXACT.softmax(np.array([q], np.uint8), grid(scale), out, 0, 255, 1)
    with localcontext(Context(prec=80)):
        powers = [(Decimal(scale) * (v - max(q))).exp() for v in q]
        wanted = [rounded(p / sum(powers) / Decimal(step), zero) for p in powers]
    assert found.tolist() == [wanted]


@given(q=rows, scale=scales, step=scales, seed=st.integers(0, 2**32 - 1))
def test_normalized_values_are_rounded_exactly(q: list[int], scale: float, step: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    gamma, beta = rng.normal(0, 2, (2, len(q))).astype(np.float32)
    epsilon = float(np.float32(rng.choice([1e-5, 1e-12, 0.5])))
    found = EXACT.layer_norm(np.array([q], np.uint8), grid(scale, 7), gamma, beta, epsilon, grid(step), 0, 255)
    with localcontext(Context(prec=80)):
        mean = Fraction(sum(q), len(q))
        variance = sum((Fraction(v) - mean) ** 2 for v in q) / len(q) * Fraction(scale) ** 2 + Fraction(epsilon)
        root = (Decimal(variance.numerator) / variance.denominator).sqrt()
        reals = [Fraction(float(g)) * (v - mean) * Fraction(scale) for v, g in zip(q, gamma, strict=True)]
        terms = zip(reals, beta, strict=True)
        values = [Decimal(r.numerator) / r.denominator / root + Decimal(float(b)) for r, b in terms]
        wanted = [rounded(v / Decimal(step), 128) for v in values]
    assert found.tolist() == [wanted]


@given(q=rows, scale=scales, step=scales, zero=st.integers(0, 255), seed=st.integers(0, 2**32 - 1))
def test_without_a_mean_they_are_rounded_exactly(q: list[int], scale: float, step: float, zero: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    gamma, beta = rng.normal(0, 2, (2, len(q))).astype(np.float32)
    epsilon = float(np.float32(rng.choice([1e-5, 1e-12, 0.5])))
    found = EXACT.layer_norm(
        np.array([q], np.uint8), grid(scale, zero), gamma, beta, epsilon, grid(step), 0, 255, centered=False
    )
    with localcontext(Context(prec=80)):
        square = Fraction(sum((v - zero) ** 2 for v in q), len(q)) * Fraction(scale) ** 2 + Fraction(epsilon)
        root = (Decimal(square.numerator) / square.denominator).sqrt()
        reals = [Fraction(float(g)) * (v - zero) * Fraction(scale) for v, g in zip(q, gamma, strict=True)]
        values = [
            Decimal(r.numerator) / r.denominator / root + Decimal(float(b)) for r, b in zip(reals, beta, strict=True)
        ]
        wanted = [rounded(v / Decimal(step), 128) for v in values]
    assert found.tolist() == [wanted]


@given(q=rows, scale=scales, steps=st.integers(0, 40), up=st.booleans(), seed=st.integers(0, 2**32 - 1))
def test_values_beside_a_boundary_are_rounded_exactly(
    q: list[int], scale: float, steps: int, up: bool, seed: int
) -> None:
    """Steps of the result so that one value lies on k + 1/2 but for the last digits of float64."""
    rng = np.random.default_rng(seed)
    gamma, beta = rng.uniform(0.5, 2, (2, len(q))).astype(np.float32)
    row, column, half, most = np.array([q], np.uint8), int(rng.integers(len(q))), Decimal(steps) + Decimal("0.5"), 10**9
    with localcontext(Context(prec=500)):  # the smallest share may be exp(-255 * scale) of the largest
        powers = [(Decimal(scale) * (v - max(q))).exp() for v in q]
        shares = [p / sum(powers) for p in powers]
        mean = Fraction(sum(q), len(q))
        variance = sum((Fraction(v) - mean) ** 2 for v in q) / len(q) * Fraction(scale) ** 2 + Fraction(1e-5)
        root = (Decimal(variance.numerator) / variance.denominator).sqrt()
        moved = [(Fraction(v) - mean) * Fraction(scale) for v in q]
        normal = [
            Decimal(float(g)) * Decimal(m.numerator) / m.denominator / root + Decimal(float(b))
            for m, g, b in zip(moved, gamma, beta, strict=True)
        ]
        for reals, function in (
            (shares, lambda out: exact.softmax(row, scale, out)),
            (normal, lambda out: exact.layer_norm(row, scale, gamma, beta, 1e-5, out)),
        ):
            step = float(abs(reals[column]) / half) or 1.0
            wanted = []
            for real in reals:
                floor = (real / Decimal(step)).to_integral_value("ROUND_FLOOR")
                rest = real / Decimal(step) - floor
                tie = int(floor) + (up or int(floor) % 2)
                wanted.append(tie if rest == Decimal("0.5") else int(floor) + (rest > Decimal("0.5")))
            found = function(exact.Steps(step, -most, most, up))
            assert found.tolist() == [[max(-most, min(most, w)) for w in wanted]]


@pytest.mark.parametrize("nearer", [1, 10**45, 10**70])
@pytest.mark.parametrize("side", [1, -1])
def test_more_digits_tell_on_which_side_a_share_lies(nearer: int, side: int) -> None:
    with localcontext(Context(prec=120)):
        share = 2 * Decimal("-0.25").exp() / (2 * Decimal("-0.25").exp() + 3) / 2
    boundary = Fraction(share) - Fraction(side, 10**20 * nearer)
    assert exact._share_side(1, Counter({1: 2, 0: 3}), Fraction(1, 4), boundary) == side


@pytest.mark.parametrize(("profile", "up"), [("exact", False), ("onnx", False), ("pow2", True), ("tosa", True)])
def test_a_tie_goes_where_the_profile_says(profile: str, up: bool) -> None:
    """Eight equal elements have shares of 1/8: half a step of 1/4."""
    equal = np.full((1, 8), 200, np.uint8)
    shares = PROFILES[profile].softmax(equal, grid(0.1), QuantParams.per_tensor(0.25, 0, "uint8"), 0, 255, 1)
    assert shares.tolist() == [[1 if up else 0] * 8]
    ones, halves = np.ones(8, np.float32), np.full(8, 0.125, np.float32)
    normal = PROFILES[profile].layer_norm(equal, grid(0.1), ones, halves, 1e-5, grid(0.25, 0), 0, 255)
    assert normal.tolist() == [[1 if up else 0] * 8]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_axis_and_the_clamp(axis: int) -> None:
    q = np.random.default_rng(0).integers(0, 256, (3, 4, 5)).astype(np.uint8)
    found = EXACT.softmax(q, grid(0.02), grid(1 / 256, 0), 5, 90, axis)
    powers = np.exp(0.02 * q.astype(np.float64))
    wanted = np.clip(np.rint(powers / powers.sum(axis, keepdims=True) * 256), 5, 90)
    np.testing.assert_array_equal(found, wanted)


def test_several_axes_are_normalized_together() -> None:
    q = np.random.default_rng(0).integers(0, 256, (3, 4, 5)).astype(np.uint8)
    gamma, beta = np.full((4, 5), 0.5, np.float32), np.full((4, 5), 0.25, np.float32)
    found = EXACT.layer_norm(q, grid(0.02), gamma, beta, 1e-5, grid(0.011), 0, 255)
    real = 0.02 * (q.astype(np.float64) - 128)
    mean, variance = real.mean((1, 2), keepdims=True), real.var((1, 2), keepdims=True)
    wanted = np.rint(((real - mean) / np.sqrt(variance + 1e-5) * 0.5 + 0.25) / 0.011) + 128
    np.testing.assert_array_equal(found, np.clip(wanted, 0, 255))


def test_a_factor_of_another_shape_is_refused() -> None:
    ones = np.ones(3, np.float32)
    with pytest.raises(ValueError, match="does not fit"):
        EXACT.layer_norm(np.zeros((2, 4), np.uint8), grid(1.0), ones, ones, 1e-5, grid(1.0), 0, 255)


def test_nothing_has_no_shares() -> None:
    assert EXACT.softmax(np.zeros((0, 4), np.int8), UNIT, UNIT, -128, 127, 1).shape == (0, 4)


# -- profiles -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["tflite", "tflite-single", "cmsis-nn"])
@pytest.mark.parametrize(
    ("mantissa", "shift", "q", "wanted"),
    [
        (1077952640, 19, [[101, 49, 6, -34, -75], [-79, -38, 120, -55, 115]],
         [[-57, -70, -79, -86, -92], [-94, -88, -54, -91, -56]]),
        (1077952576, 23, [[-80, -48, 16, 0, -96]], [[-128, -125, 56, -60, -128]]),
    ],
)  # fmt: skip
def test_the_8_bit_softmax_of_cmsis_nn(
    name: str, mantissa: int, shift: int, q: list[list[int]], wanted: list[list[int]]
) -> None:
    """Inputs and results of CMSIS-NN's own tests of arm_softmax_s8; input scale = mantissa * 2**(shift - 31 - 26)."""
    params = QuantParams.per_tensor(mantissa * 2.0 ** (shift - 57), 0, "int8")
    assert PROFILES[name].softmax(np.array(q, np.int8), params, UNIT, -128, 127, 1).tolist() == wanted


@settings(max_examples=25)
@given(scale=st.floats(1e-3, 1.5), seed=st.integers(0, 2**32 - 1))
def test_profiles_are_within_one_step_of_exact(scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    spread = float(rng.uniform(1, 80))
    q = np.clip(rng.normal(0, spread, (20, int(rng.integers(1, 300)))), -128, 127).astype(np.int8)
    params = QuantParams.per_tensor(scale, 5, "int8")
    exact = EXACT.softmax(q, params, UNIT, -128, 127, 1).astype(np.int64)
    for name, profile in PROFILES.items():
        assert np.abs(profile.softmax(q, params, UNIT, -128, 127, 1) - exact).max() <= 1, name


@given(seed=st.integers(0, 2**32 - 1))
def test_signedness_changes_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    q = rng.integers(-128, 128, (4, 9)).astype(np.int8)
    moved = (q.astype(np.int16) + 128).astype(np.uint8)
    for profile in PROFILES.values():
        signed = profile.softmax(q, QuantParams.per_tensor(0.04, 3, "int8"), UNIT, -128, 127, 1)
        other = profile.softmax(moved, grid(0.04, 131), grid(1 / 256, 0), 0, 255, 1)
        np.testing.assert_array_equal(signed.astype(np.int16) + 128, other)


def test_what_tflite_has_no_kernel_for_is_told() -> None:
    q = np.zeros((1, 4096), np.int8)
    with pytest.raises(CompileError, match="no form that writes on") as other_grid:
        PROFILES["tflite"].softmax(q[:, :9], UNIT, QuantParams.per_tensor(1 / 255, -128, "int8"), -128, 127, 1)
    with pytest.raises(CompileError, match="4096 elements overflows") as too_long:
        PROFILES["tflite"].softmax(q, UNIT, UNIT, -128, 127, 1)
    assert {e.value.diagnostics[0].code for e in (other_grid, too_long)} == {"QAT302"}

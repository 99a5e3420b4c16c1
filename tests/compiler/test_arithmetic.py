"""Arithmetic profiles against rational numbers, their specifications and each other."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qatc.compiler.arithmetic import (
    OPS,
    PROFILES,
    get_profile,
    ort_multipliers,
    ort_weight_scales,
    quantize_multiplier,
    round_ratio,
)
from qatc.compiler.arithmetic.base import BLOCK
from qatc.compiler.arithmetic.ort import fma
from qatc.compiler.diagnostics import CompileError
from qatc.compiler.quant import QuantParams, dtype_range

EXACT = PROFILES["exact"]
INT32 = st.integers(-(2**31), 2**31 - 1)
accumulators = hnp.arrays(np.int64, st.integers(1, 30), elements=st.one_of(INT32, st.integers(-5000, 5000)))
float32s = st.floats(2.0**-18, 8.0, width=32)
# Ratios that make ties likely, and ratios that do not.
ratios = st.one_of(
    st.integers(0, 14).map(lambda k: 2.0**-k),
    st.integers(1, 60).map(lambda k: 1.0 / k),
    st.floats(2.0**-16, 4.0),
)


@st.composite
def outputs(draw: st.DrawFn, dtypes: tuple[str, ...] = ("int8", "uint8", "int16", "uint16")):
    """(QuantParams, lo, hi) of a result."""
    dtype = draw(st.sampled_from(dtypes))
    lowest, highest = dtype_range(dtype)
    params = QuantParams.per_tensor(draw(float32s), draw(st.integers(lowest, highest)), dtype)
    lo = draw(st.one_of(st.just(lowest), st.integers(lowest, highest)))
    return params, lo, draw(st.one_of(st.just(highest), st.integers(lo, highest)))


@st.composite
def operands(draw: st.DrawFn, shape: tuple[int, ...], scale=float32s):
    """(integers, QuantParams) of an 8-bit tensor."""
    dtype = draw(st.sampled_from(("int8", "uint8")))
    params = QuantParams.per_tensor(draw(scale), draw(st.integers(*dtype_range(dtype))), dtype)
    return draw(hnp.arrays(dtype, shape)), params


def half_up(value: Fraction) -> int:
    return math.floor(value + Fraction(1, 2))


def clamped(real: Fraction, out: QuantParams, lo: int, hi: int, rounding=round) -> int:
    return min(max(rounding(real / Fraction(out.scale[0])) + out.zero_point[0], lo), hi)


def real(q: object, params: QuantParams) -> Fraction:
    return Fraction(params.scale[0]) * (int(q) - params.zero_point[0])


# -- exact and pow2 against rational numbers -----------------------------------------------------------------
@given(accumulators, ratios, outputs())
def test_exact_requantization_is_rational(acc, ratio, output):
    out, lo, hi = output
    scale = out.scale[0] * ratio
    expected = [clamped(int(a) * Fraction(scale), out, lo, hi) for a in acc]
    result = EXACT.requantize(acc, [scale], out, lo, hi, 0)
    assert result.dtype == out.container
    assert result.tolist() == expected


@given(accumulators, st.integers(-20, 4), outputs())
def test_pow2_requantization_is_rational_and_half_up(acc, shift, output):
    out, lo, hi = output
    scale = out.scale[0] * 2.0**shift
    expected = [clamped(int(a) * Fraction(scale), out, lo, hi, half_up) for a in acc]
    assert PROFILES["pow2"].requantize(acc, [scale], out, lo, hi, 0).tolist() == expected


@given(st.data(), st.lists(ratios, min_size=3, max_size=3), outputs())
def test_channels_have_their_own_scale_along_any_axis(data, some, output):
    out, lo, hi = output
    axis = data.draw(st.integers(0, 2))
    shape = [2, 4, 5]
    shape[axis] = 3
    acc = data.draw(hnp.arrays(np.int32, tuple(shape), elements=INT32))
    scale = [out.scale[0] * r for r in some]
    for profile in (PROFILES["exact"], PROFILES["onnx"], PROFILES["tflite"], PROFILES["tosa"]):
        result = np.moveaxis(profile.requantize(acc, scale, out, lo, hi, axis), axis, 0)
        for channel in range(3):
            alone = profile.requantize(np.take(acc, channel, axis), scale[channel : channel + 1], out, lo, hi, 0)
            np.testing.assert_array_equal(result[channel], alone)


@pytest.mark.parametrize("name", list(PROFILES))
@pytest.mark.parametrize("shape", [(0,), (), (2, 3, 0), (3, 40000), (70000, 2), (1, 2, 50000)])
def test_any_shape(name, shape):
    out = QuantParams.per_tensor(0.5, 3)
    acc = np.random.default_rng(0).integers(-(2**12), 2**12, shape).astype(np.int32)
    result = PROFILES[name].requantize(acc, [2.0**-5], out, 0, 255, 0)
    assert result.shape == acc.shape
    expected = np.clip(np.rint(acc * 2.0**-4) + 3, 0, 255)
    assert (np.abs(result.astype(np.float64) - expected) <= 1).all()


@pytest.mark.parametrize("name", PROFILES)
def test_channels_larger_than_a_block_keep_their_own_scale(name):
    acc = np.random.default_rng(2).integers(-5000, 5000, (2, 3, BLOCK // 2 + 7))
    scales, out = (0.25, 0.5, 0.125), QuantParams.per_tensor(8.0, 3, "int8")
    whole = PROFILES[name].requantize(acc, scales, out, -100, 127, 1)
    each = [PROFILES[name].requantize(acc[:, c], scales[c : c + 1], out, -100, 127, 0) for c in range(3)]
    np.testing.assert_array_equal(whole, np.stack(each, axis=1))


def test_every_tie_is_decided_by_the_rule():
    out = QuantParams.per_tensor(0.25, 7, "int16")
    acc = np.arange(-4001, 4002)
    ties = {name: PROFILES[name].requantize(acc, [0.125], out, -32768, 32767, 0) for name in PROFILES}
    values = [Fraction(int(a), 2) for a in acc]
    half_away = [math.floor(abs(v) + Fraction(1, 2)) * (1 if v > 0 else -1) for v in values]
    assert ties["exact"].tolist() == [round(v) + 7 for v in values]
    assert ties["onnx"].tolist() == ties["exact"].tolist()
    assert ties["pow2"].tolist() == [half_up(v) + 7 for v in values]
    assert ties["tosa"].tolist() == ties["pow2"].tolist()
    # x * 2**30 is halved by the doubling multiply (half up), so no tie is left for the shift.
    assert ties["tflite"].tolist() == ties["pow2"].tolist()
    quarter = PROFILES["tflite"].requantize(acc * 2, [0.0625], out, -32768, 32767, 0)
    assert quarter.tolist() == [v + 7 for v in half_away]


@given(st.integers(1, 40), st.integers(1, 12), st.integers(-30, 30))
def test_ties_of_ratios_that_float64_cannot_hold(denominator, numerator, start):
    # numerator / (2 * denominator): every second multiple of the denominator is a tie, the estimate is only near it.
    out = QuantParams.per_tensor(2 * denominator * 2.0**-10, 0, "int16")
    acc = np.arange(start, start + 40) * denominator
    expected = [round(Fraction(int(a) * numerator, 2 * denominator)) for a in acc]
    assert EXACT.requantize(acc, [numerator * 2.0**-10], out, -32768, 32767, 0).tolist() == expected


@given(st.integers(1, 2**31 - 1), st.integers(-30000, 30000))
def test_values_nearer_to_a_tie_than_float64_resolves(unit, tie):
    out = QuantParams.per_tensor(1.0, 0, "int16")
    scale = abs(tie + 0.5) / unit  # so unit * scale is a tie but for the rounding of this division
    acc = np.array([unit if tie >= 0 else -unit])
    expected = round(int(acc[0]) * Fraction(scale))
    assert EXACT.requantize(acc, [scale], out, -32768, 32767, 0).tolist() == [expected]


@given(
    st.one_of(
        hnp.arrays(np.int64, 20, elements=st.integers(-(2**61), 2**61)),
        st.lists(st.integers(-(2**90), 2**90), min_size=1, max_size=20).map(lambda v: np.array(v, object)),
    ),
    st.integers(1, 2**60),
)
def test_round_ratio_is_rational(numerator, denominator):
    assert round_ratio(numerator, denominator).tolist() == [round(Fraction(int(n), denominator)) for n in numerator]
    up = round_ratio(numerator, denominator, half_up=True)
    assert up.tolist() == [half_up(Fraction(int(n), denominator)) for n in numerator]


def test_accumulators_beyond_float64_are_exact():
    acc = np.array([2**60 + 1, 2**60 - 1, -(2**60) - 1])
    out = QuantParams.per_tensor(1.0, 0, "int32")
    result = EXACT.requantize(acc, [2.0**-61], out, -(2**31), 2**31 - 1, 0)
    assert result.tolist() == [1, 0, -1]


@given(st.data(), st.sampled_from(OPS), outputs(("int8", "uint8")))
def test_exact_elementwise_is_rational(data, op, output):
    out, lo, hi = output
    related = st.integers(1, 12).map(lambda k: float(np.float32(out.scale[0] * k / 4)))
    scale = data.draw(st.sampled_from([float32s, related]))
    a, a_params = data.draw(operands((3, 4), scale))
    b, b_params = data.draw(operands(data.draw(st.sampled_from([(3, 4), (4,), (3, 1), ()])), scale))
    function = {"Add": lambda x, y: x + y, "Sub": lambda x, y: x - y, "Mul": lambda x, y: x * y}[op]
    left, right = np.broadcast_arrays(a, b)
    pairs = zip(left.reshape(-1), right.reshape(-1), strict=True)
    expected = [clamped(function(real(p, a_params), real(q, b_params)), out, lo, hi) for p, q in pairs]
    result = EXACT.elementwise(op, [(a, a_params), (b, b_params)], out, lo, hi)
    assert result.reshape(-1).tolist() == expected


@given(st.data(), st.integers(3, 9), outputs(("int8", "uint8")))
def test_exact_sums_of_many_are_rational(data, count, output):
    out, lo, hi = output
    related = st.integers(1, 12).map(lambda k: float(np.float32(out.scale[0] * k / 4)))
    scale = data.draw(st.sampled_from([float32s, related]))
    sides = [data.draw(operands((6,), scale)) for _ in range(count)]
    expected = [clamped(sum(real(q[i], params) for q, params in sides), out, lo, hi) for i in range(6)]
    assert EXACT.elementwise("Add", sides, out, lo, hi).tolist() == expected


@given(st.data(), st.integers(3, 9), st.sampled_from(["onnx", "tflite", "tosa"]), outputs(("int8", "uint8")))
def test_sums_of_many_differ_by_one_lsb_at_most(data, count, name, output):
    out, lo, hi = output
    sides = [data.draw(operands((6,))) for _ in range(count)]
    assume(max(params.scale[0] for _, params in sides) < 2**10 * out.scale[0])
    theirs = PROFILES[name].elementwise("Add", sides, out, lo, hi).astype(np.int64)
    assert (np.abs(theirs - EXACT.elementwise("Add", sides, out, lo, hi)) <= 1).all()


@given(st.data(), outputs())
def test_exact_sum_with_a_raw_accumulator_is_rational(data, output):
    out, lo, hi = output
    acc = data.draw(hnp.arrays(np.int32, (2, 3, 2), elements=st.one_of(INT32, st.integers(-300, 300))))
    raw = QuantParams.per_tensor(data.draw(st.one_of(float32s, st.just(out.scale[0] / 2))), 0, "int32")
    b, b_params = data.draw(operands((2, 3, 2)))
    result = EXACT.elementwise("Add", [(acc, raw), (b, b_params)], out, lo, hi)
    for index in np.ndindex(acc.shape):
        total = Fraction(raw.scale[0]) * int(acc[index]) + real(b[index], b_params)
        assert result[index] == clamped(total, out, lo, hi)


@given(st.data(), outputs(("int8", "uint8")))
def test_exact_average_and_rescale_are_rational(data, output):
    out, lo, hi = output
    q, params = data.draw(operands((6,), st.one_of(float32s, st.just(out.scale[0]))))
    count = data.draw(hnp.arrays(np.int64, 6, elements=st.integers(1, 400)))
    total = (q.astype(np.int64) - params.zero_point[0]) * count // 2
    result = EXACT.average(total, count, params, out, lo, hi)
    means = [Fraction(params.scale[0]) * int(t) / int(n) for t, n in zip(total, count, strict=True)]
    assert result.tolist() == [clamped(mean, out, lo, hi) for mean in means]
    rescaled = EXACT.rescale(q, params, out, lo, hi)
    assert rescaled.tolist() == [clamped(real(v, params), out, lo, hi) for v in q]


# -- rule 8: one LSB, and only at a rounding boundary --------------------------------------------------------
@given(accumulators, ratios, outputs(("int8", "uint8")), st.sampled_from(["onnx", "tflite", "tosa"]))
def test_requantization_differs_by_one_lsb_at_boundaries_only(acc, ratio, output, name):
    out, lo, hi = output
    scale = out.scale[0] * ratio
    theirs = PROFILES[name].requantize(acc, [scale], out, lo, hi, 0).astype(np.int64)
    exact = EXACT.requantize(acc, [scale], out, lo, hi, 0).astype(np.int64)
    assert (np.abs(theirs - exact) <= 1).all()
    value = acc * (scale / out.scale[0])
    distance = np.abs(np.abs(value - np.rint(value)) - 0.5)
    # float32 carries three roundings; tflite rounds once more, half a unit of 2**-shift before the final shift.
    allowed = np.abs(value) * 2.0**-21 + (np.minimum(0.5, 2.0 * ratio) if name == "tflite" else 0.0)
    assert (distance[theirs != exact] <= allowed[theirs != exact]).all()


@given(st.data(), st.sampled_from(OPS), st.sampled_from(["onnx", "tflite", "tosa"]), outputs(("int8", "uint8")))
def test_elementwise_differs_by_one_lsb_at_most(data, op, name, output):
    out, lo, hi = output
    a, a_params = data.draw(operands((20,)))
    b, b_params = data.draw(operands((20,)))
    assume(max(a_params.scale[0], b_params.scale[0]) < 2**10 * out.scale[0])
    theirs = PROFILES[name].elementwise(op, [(a, a_params), (b, b_params)], out, lo, hi).astype(np.int64)
    exact = EXACT.elementwise(op, [(a, a_params), (b, b_params)], out, lo, hi).astype(np.int64)
    assert (np.abs(theirs - exact) <= 1).all()


@given(st.data(), st.sampled_from(sorted(PROFILES)), outputs(("int8", "uint8")))
def test_a_rescale_onto_the_same_grid_is_a_clamp(data, name, output):
    out, lo, hi = output
    q = data.draw(hnp.arrays(out.container, 300))
    np.testing.assert_array_equal(PROFILES[name].rescale(q, out, out, lo, hi), np.clip(q, lo, hi))


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_a_rescale_to_the_other_signedness_is_a_shift(name):
    q = np.arange(256, dtype=np.uint8)
    params = QuantParams.per_tensor(0.125, 17)
    other = params.as_dtype("int8")
    result = PROFILES[name].rescale(q, params, other, -128, 127)
    np.testing.assert_array_equal(result.astype(np.int64), q.astype(np.int64) - 128)


# -- the specifications of tflite and tosa, one number at a time ---------------------------------------------
def c_divide(a: int, b: int) -> int:
    """Integer division of C: toward zero."""
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def gemmlowp(x: int, multiplier: int, shift: int) -> int:
    """MultiplyByQuantizedMultiplier, as gemmlowp's fixedpoint.h and TensorFlow Lite's common.h write it."""
    left, right = max(shift, 0), max(-shift, 0)
    x = min(max(x << left, -(2**31)), 2**31 - 1)
    product = x * multiplier
    nudge = 1 << 30 if product >= 0 else 1 - (1 << 30)
    high = c_divide(product + nudge, 1 << 31)
    mask = (1 << right) - 1
    remainder, threshold = high & mask, (mask >> 1) + (1 if high < 0 else 0)
    return (high >> right) + (1 if remainder > threshold else 0)


def apply_scale_32(value: int, multiplier: int, shift: int) -> int:
    """The TOSA specification's apply_scale_32 with double_round false."""
    return (value * multiplier + (1 << (shift - 1))) >> shift


def reference_multiplier(factor: float) -> tuple[int, int]:
    fraction, shift = math.frexp(factor)
    fixed = math.floor(Fraction(fraction) * 2**31 + Fraction(1, 2))
    return (fixed // 2, shift + 1) if fixed == 2**31 else (fixed, shift)


@given(hnp.arrays(np.float64, 10, elements=st.floats(2.0**-40, 2.0**20)))
def test_multipliers_are_those_of_tensorflow_lite(factors):
    mantissa, shift = quantize_multiplier(factors)
    assert list(zip(mantissa.tolist(), shift.tolist(), strict=True)) == [reference_multiplier(f) for f in factors]


def test_a_mantissa_that_rounds_up_to_one_is_halved():
    mantissa, shift = quantize_multiplier(np.array([np.nextafter(1.0, 0)]))
    assert (mantissa[0], shift[0]) == (1 << 30, 1)


@given(accumulators, st.floats(2.0**-34, 2.0**3), outputs(("int8", "uint8", "int16")))
def test_tflite_requantization_is_gemmlowp(acc, ratio, output):
    out, lo, hi = output
    multiplier, shift = reference_multiplier(out.scale[0] * ratio / out.scale[0])
    if shift < -31:
        multiplier, shift = 0, 0  # TensorFlow Lite flushes such factors
    zero = out.zero_point[0]
    expected = [min(max(gemmlowp(int(a), multiplier, shift) + zero, lo), hi) for a in acc]
    assert PROFILES["tflite"].requantize(acc, [out.scale[0] * ratio], out, lo, hi, 0).tolist() == expected


@given(accumulators, st.floats(2.0**-30, 2.0**3), outputs(("int8", "uint8", "int16")))
def test_tosa_requantization_is_apply_scale_32(acc, ratio, output):
    out, lo, hi = output
    multiplier, shift = reference_multiplier(out.scale[0] * ratio / out.scale[0])
    zero = out.zero_point[0]
    expected = [min(max(apply_scale_32(int(a), multiplier, 31 - shift) + zero, lo), hi) for a in acc]
    assert PROFILES["tosa"].requantize(acc, [out.scale[0] * ratio], out, lo, hi, 0).tolist() == expected


def test_tosa_ends_at_a_shift_of_62():
    """A smaller factor loses bits of its mantissa instead, so that a large accumulator does not count twice."""
    out = QuantParams.per_tensor(1.0, 0, "int8")
    acc = np.asarray([2**31 - 1, -(2**31)], np.int64)
    for factor, expected in ((0.9 * 2.0**-32, [0, 0]), (0.9 * 2.0**-31, [1, -1])):
        assert PROFILES["tosa"].requantize(acc, [factor], out, -128, 127, 0).tolist() == expected


@given(st.data(), outputs(("int8", "uint8")))
def test_tflite_addition_is_its_reference_kernel(data, output):
    out, lo, hi = output
    (a, a_params), (b, b_params) = data.draw(operands((12,))), data.draw(operands((12,)))
    twice = 2.0 * max(a_params.scale[0], b_params.scale[0])
    factors = [a_params.scale[0] / twice, b_params.scale[0] / twice, twice / (2.0**20 * out.scale[0])]
    first, second, last = (reference_multiplier(f) for f in factors)
    assume(last[1] <= 0)
    result = PROFILES["tflite"].elementwise("Add", [(a, a_params), (b, b_params)], out, lo, hi)
    for p, q, r in zip(a, b, result, strict=True):
        left = gemmlowp((int(p) - a_params.zero_point[0]) << 20, *first)
        right = gemmlowp((int(q) - b_params.zero_point[0]) << 20, *second)
        assert r == min(max(gemmlowp(left + right, *last) + out.zero_point[0], lo), hi)


@given(hnp.arrays(np.int8, (12,)), st.integers(1, 100))
def test_tflite_average_on_one_grid_divides_integers(q, count):
    params = QuantParams.per_tensor(0.3, 5, "int8")
    sums = q.astype(np.int64) * count // 2
    expected = [c_divide(int(s) + (count // 2 if s > 0 else -(count // 2)), count) for s in sums]
    result = PROFILES["tflite"].average(sums - 5 * count, count, params, params, -128, 127)
    assert result.tolist() == np.clip(expected, -128, 127).tolist()


@given(hnp.arrays(np.int8, (12,)), st.integers(1, 5000))
def test_tosa_average_on_one_grid_takes_the_reciprocal(q, count):
    params = QuantParams.per_tensor(0.3, 5, "int8")
    sums = q.astype(np.int64) * count // 2
    k = 32 - (32 - (count - 1).bit_length())
    multiplier, shift = (((1 << 30) + 1) << k) // count, 30 + k
    expected = [apply_scale_32(int(s), multiplier, shift) + 5 for s in sums]
    result = PROFILES["tosa"].average(sums, count, params, params, -128, 127)
    assert result.tolist() == np.clip(expected, -128, 127).tolist()


# -- onnx: the float32 helpers -------------------------------------------------------------------------------
@given(*(hnp.arrays(np.float32, 20, elements=st.floats(-(2.0**60), 2.0**60, width=32)) for _ in range(3)))
def test_fma_rounds_once(a, b, c):
    assume(all(abs(float(x) * float(y)) > 1e-30 or x * y == 0 for x, y in zip(a, b, strict=True)))
    result = fma(a, b, c)
    for x, y, z, r in zip(a, b, c, result, strict=True):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        if abs(exact) < Fraction(2) ** -100:
            continue
        error = abs(Fraction(float(r)) - exact)
        for neighbor in (np.nextafter(r, np.float32(np.inf)), np.nextafter(r, np.float32(-np.inf))):
            assert error <= abs(Fraction(float(neighbor)) - exact)


def test_fma_where_rounding_twice_would_be_wrong():
    # (1 + 2**-12)**2 + 2**-80 lies just above the middle of two float32; float64 alone loses the 2**-80 and sees a tie.
    a = np.array([1 + 2.0**-12], np.float32)
    assert fma(a, a, np.float32(2.0**-80))[0] == np.float32(1 + 2.0**-11 + 2.0**-23)
    assert fma(a, a, np.float32(0))[0] == np.float32(1 + 2.0**-11)
    assert fma(a, a, np.float32(-(2.0**-80)))[0] == np.float32(1 + 2.0**-11)


@given(float32s, hnp.arrays(np.float32, 8, elements=float32s), float32s)
def test_weight_scales_come_back_exactly(x_scale, w_scale, y_scale):
    acc_scale = [float(np.float64(np.float32(x_scale)) * w) for w in w_scale]
    np.testing.assert_array_equal(ort_weight_scales(acc_scale, x_scale), w_scale)
    expected = np.float32(x_scale) * w_scale / np.float32(y_scale)
    np.testing.assert_array_equal(ort_multipliers(acc_scale, x_scale, y_scale), expected)


# -- misuse --------------------------------------------------------------------------------------------------
def test_an_unknown_profile_is_a_diagnostic_with_a_suggestion():
    with pytest.raises(CompileError, match=r"(?s)QAT007.*did you mean tflite\?") as raised:
        get_profile("TFLight")
    assert raised.value.diagnostics[0].code == "QAT007"
    assert get_profile("tosa") is PROFILES["tosa"]
    assert all(profile.name == name and profile.summary for name, profile in PROFILES.items())


def test_pow2_refuses_other_scales():
    out = QuantParams.per_tensor(0.5)
    with pytest.raises(CompileError, match="not a power of two"):
        PROFILES["pow2"].requantize(np.arange(4), [0.3], out, 0, 255, 0)
    q = np.zeros(3, np.uint8)
    with pytest.raises(CompileError, match="not a power of two"):
        PROFILES["pow2"].elementwise("Add", [(q, QuantParams.per_tensor(0.3)), (q, out)], out, 0, 255)


def test_shapes_and_bounds_are_checked():
    out = QuantParams.per_tensor(0.5)
    acc = np.zeros((2, 3), np.int32)
    with pytest.raises(ValueError, match="2 scales along axis 1"):
        EXACT.requantize(acc, [0.1, 0.2], out, 0, 255, 1)
    with pytest.raises(ValueError, match="clamp"):
        EXACT.requantize(acc, [0.1], out, 0, 256, 0)
    with pytest.raises(ValueError, match="one grid"):
        EXACT.requantize(acc, [0.1], QuantParams.per_channel([0.1], 0), 0, 1, 0)
    with pytest.raises(ValueError, match="reads one grid"):
        EXACT.elementwise(
            "Add", [(acc, out), (acc, QuantParams.per_channel([0.1, 0.2], 0, dtype="int32"))], out, 0, 255
        )
    with pytest.raises(ValueError, match="reads one grid"):
        EXACT.rescale(acc, QuantParams.per_channel([0.1, 0.2], 0, dtype="int32"), out, 0, 255)
    with pytest.raises(ValueError, match="unknown element-wise"):
        EXACT.elementwise("Pow", [(acc, out), (acc, out)], out, 0, 255)
    for profile in (EXACT, PROFILES["tflite"]):
        with pytest.raises(ValueError, match="average over no elements"):
            profile.average(acc, 0, out, out, 0, 255)
    raw = QuantParams.per_tensor(0.5, 0, "int32")
    with pytest.raises(CompileError, match="QAT302"):
        PROFILES["tflite"].elementwise("Add", [(acc, raw), (acc, raw)], out, 0, 255)
    with pytest.raises(CompileError, match="TOSA"):
        PROFILES["tosa"].requantize(acc, [2.0**31], out, 0, 255, 0)

"""Profiles `tflite-single`, `cmsis-nn`, `tosa-double`, and `pow2` for constants, one rational number at a time."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qatc.compiler.arithmetic import OPS, PROFILES, get_profile
from qatc.compiler.diagnostics import CompileError
from qatc.compiler.quant import QuantParams, dtype_range

LOWEST, HIGHEST = -(2**31), 2**31 - 1
INT32 = st.one_of(
    st.integers(LOWEST, HIGHEST), st.integers(-5000, 5000), st.sampled_from([LOWEST, LOWEST + 1, HIGHEST, -1, 0, 1])
)
accumulators = hnp.arrays(np.int64, st.integers(1, 20), elements=INT32)
# factors around one half and its neighbors make ties of every stage; random ones do not
factors = st.one_of(
    st.integers(-20, 3).map(lambda k: 2.0**k),
    st.tuples(st.integers(1, 255), st.integers(6, 24)).map(lambda t: t[0] * 2.0 ** -t[1]),
    st.floats(2.0**-30, 2.0**3),
)
tiny = st.floats(2.0**-45, 2.0**-28)


@st.composite
def outputs(draw: st.DrawFn):
    """(QuantParams with a power-of-two scale, lo, hi): the factor is then exactly what the test says."""
    dtype = draw(st.sampled_from(("int8", "uint8", "int16", "uint16")))
    lowest, highest = dtype_range(dtype)
    params = QuantParams.per_tensor(2.0 ** draw(st.integers(-6, 3)), draw(st.integers(lowest, highest)), dtype)
    lo = draw(st.one_of(st.just(lowest), st.integers(lowest, highest)))
    return params, lo, draw(st.one_of(st.just(highest), st.integers(lo, highest)))


def multiplier_of(factor: float) -> tuple[int, int]:
    """QuantizeMultiplier: factor = multiplier * 2**(shift - 31), the multiplier rounded half away from zero."""
    fraction, shift = math.frexp(factor)
    fixed = half_up(Fraction(fraction) * 2**31)
    return (fixed // 2, shift + 1) if fixed == 2**31 else (fixed, shift)


def half_up(value: Fraction) -> int:
    return math.floor(value + Fraction(1, 2))


def half_away(value: Fraction) -> int:
    return half_up(value) if value >= 0 else -half_up(-value)


def finished(values: list[int], output: tuple[QuantParams, int, int]) -> list[int]:
    out, lo, hi = output
    return [min(max(v + out.zero_point[0], lo), hi) for v in values]


def requantized(name: str, acc: np.ndarray, factor: float, output: tuple[QuantParams, int, int]) -> list[int]:
    out, lo, hi = output
    return PROFILES[name].requantize(acc, [out.scale[0] * factor], out, lo, hi, 0).tolist()


# -- tflite-single ----------------------------------------------------------------------------------------------------
@given(accumulators, st.one_of(factors, tiny), outputs())
def test_single_rounding_is_one_rational_rounding(acc, factor, output):
    multiplier, shift = multiplier_of(factor)
    if shift < -31:
        multiplier = 0  # TensorFlow Lite flushes such factors
    exact = [Fraction(int(a) * multiplier) * Fraction(2) ** (shift - 31) for a in acc]
    assert requantized("tflite-single", acc, factor, output) == finished([half_up(v) for v in exact], output)


@given(accumulators, factors, outputs())
def test_single_rounding_is_tosa_where_both_have_a_form(acc, factor, output):
    assert requantized("tflite-single", acc, factor, output) == requantized("tosa", acc, factor, output)


def test_single_and_double_rounding_differ_where_they_should():
    """0.4999...: the first rounding makes a tie of it, the second rounds that up."""
    out = QuantParams.per_tensor(1.0, 0, "int16")
    acc = np.arange(-4000, 4001)
    double = PROFILES["tflite"].requantize(acc, [0.3], out, -32768, 32767, 0).astype(int)
    single = PROFILES["tflite-single"].requantize(acc, [0.3], out, -32768, 32767, 0).astype(int)
    exact = PROFILES["exact"].requantize(acc, [0.3], out, -32768, 32767, 0).astype(int)
    ties = acc % 10 == 5
    np.testing.assert_array_equal(single[~ties], exact[~ties])
    assert (double != single).any()
    assert np.abs(double - single).max() == 1


# -- cmsis-nn ---------------------------------------------------------------------------------------------------------
def register(value: int) -> int:
    """An integer as an int32 register holds it."""
    return (value - LOWEST) % 2**32 + LOWEST


@given(accumulators, st.one_of(factors, st.floats(8.0, 2.0**20)), outputs())
def test_cmsis_is_two_rational_roundings_of_a_register(acc, factor, output):
    multiplier, shift = multiplier_of(factor)
    left, right = max(shift, 0), max(-shift, 0)
    highs = [half_up(Fraction(register(int(a) << left) * multiplier, 2**31)) for a in acc]
    expected = [half_away(Fraction(high, 2**right)) for high in highs]
    assert requantized("cmsis-nn", acc, factor, output) == finished(expected, output)


@given(accumulators, factors, outputs())
def test_cmsis_is_tflite_where_nothing_overflows(acc, factor, output):
    assume(np.abs(acc).max() * max(factor, 1) * 2 < 2**31)
    assert requantized("cmsis-nn", acc, factor, output) == requantized("tflite", acc, factor, output)


def test_cmsis_wraps_where_tflite_saturates():
    out = QuantParams.per_tensor(1.0, 0, "int16")
    acc = np.array([2**30])
    assert PROFILES["tflite"].requantize(acc, [4.0], out, -32768, 32767, 0).tolist() == [32767]
    assert PROFILES["cmsis-nn"].requantize(acc, [4.0], out, -32768, 32767, 0).tolist() == [0]
    odd = np.array([1])  # beyond 31 bits nothing is left, of an odd number either
    assert PROFILES["tflite"].requantize(odd, [2.0**40], out, -32768, 32767, 0).tolist() == [32767]
    assert PROFILES["cmsis-nn"].requantize(odd, [2.0**40], out, -32768, 32767, 0).tolist() == [0]


@given(st.data(), st.sampled_from(OPS))
def test_cmsis_elementwise_is_that_of_tflite(data, op):
    """arm_elementwise_add_s8 and _mul_s8 take the same steps: 20 bits of headroom, three multipliers."""
    shape = (16,)
    grids = [
        QuantParams.per_tensor(data.draw(st.floats(0.01, 4.0)), data.draw(st.integers(-128, 127)), "int8")
        for _ in range(3)
    ]
    a, b = (data.draw(hnp.arrays(np.int8, shape)) for _ in range(2))
    results = [
        PROFILES[name].elementwise(op, [(a, grids[0]), (b, grids[1])], grids[2], -128, 127)
        for name in ("cmsis-nn", "tflite")
    ]
    np.testing.assert_array_equal(*results)


# -- tosa-double ------------------------------------------------------------------------------------------------------
def apply_scale_32(value: int, multiplier: int, shift: int, *, double_round: bool) -> int:
    """The TOSA specification's apply_scale_32, in rational numbers."""
    rounding = Fraction(2) ** (shift - 1)
    if double_round and shift > 31:
        rounding += 2**30 if value >= 0 else -(2**30)
    return math.floor((value * multiplier + rounding) / Fraction(2) ** shift)


@given(accumulators, factors, outputs())
def test_double_rounding_is_apply_scale_32(acc, factor, output):
    multiplier, shift = multiplier_of(factor)
    right = 31 - shift
    assume(2 <= right <= 62)
    for name, double in (("tosa-double", True), ("tosa", False)):
        expected = [apply_scale_32(int(a), multiplier, right, double_round=double) for a in acc]
        assert requantized(name, acc, factor, output) == finished(expected, output)


@given(accumulators, st.one_of(st.floats(2.0**-28, 0.99), factors), outputs())
def test_double_rounding_of_tosa_is_that_of_tflite(acc, factor, output):
    """What TOSA subtracts for negative values is what gemmlowp's tie rule takes off: it was made to be the same."""
    assume(np.abs(acc).max() * max(factor, 1) * 2 < 2**31)
    assert requantized("tosa-double", acc, factor, output) == requantized("tflite", acc, factor, output)


# -- constants of pow2 ------------------------------------------------------------------------------------------------
finite = st.floats(-(2.0**20), 2.0**20)


@given(st.lists(finite, min_size=1, max_size=20), st.integers(-12, 4), st.sampled_from(("int8", "uint8", "int16")))
@example([0.49999999999999994, -0.49999999999999994, 0.5, -0.5, 1.5, -2.5], 0, "int8")
def test_constants_of_pow2_round_half_away(values, exponent, dtype):
    low, high = dtype_range(dtype)
    zero = (low + high + 1) // 2
    params = QuantParams.per_tensor(2.0**exponent, zero, dtype)
    expected = [min(max(half_away(Fraction(v) / Fraction(2) ** exponent) + zero, low), high) for v in values]
    result = PROFILES["pow2"].constant(np.array(values), params)
    assert result.dtype == params.container
    assert result.tolist() == expected


def test_constants_of_other_profiles_round_half_to_even():
    values = np.array([0.5, 1.5, -0.5, -1.5, 2.5], np.float32)
    params = QuantParams.per_tensor(1.0, 0, "int8")
    for name in set(PROFILES) - {"pow2"}:
        assert PROFILES[name].constant(values, params).tolist() == [0, 2, 0, -2, 2]
    assert PROFILES["pow2"].constant(values, params).tolist() == [1, 2, -1, -2, 3]


def test_constants_along_an_axis():
    params = QuantParams.per_channel([0.5, 2.0], 0, 0, "int8")
    values = np.array([[0.25, -0.25], [3.0, -3.0]])
    assert PROFILES["pow2"].constant(values, params).tolist() == [[1, -1], [2, -2]]


def test_pow2_refuses_constants_on_other_grids():
    with pytest.raises(CompileError, match="not a power of two"):
        PROFILES["pow2"].constant(np.zeros(2), QuantParams.per_tensor(0.3, 0, "int8"))


# -- all of them ------------------------------------------------------------------------------------------------------
@given(accumulators, st.floats(2.0**-16, 2.0), outputs(), st.sampled_from(["tflite-single", "cmsis-nn", "tosa-double"]))
def test_one_lsb_from_exact(acc, factor, output, name):
    assume(np.abs(acc).max() * max(factor, 1.0) * 2 < 2**31)
    theirs, exact = (np.array(requantized(n, acc, factor, output)) for n in (name, "exact"))
    value = acc * factor
    # the multiplier is off by 2**-32 relatively: beyond 2**15 that is more than a part of a step
    assert (np.abs(theirs - exact)[np.abs(value) < 2**20] <= 1).all()


def test_an_unknown_profile_is_a_usage_error():
    with pytest.raises(CompileError, match="tosa-double") as caught:
        get_profile("tosa-doubel")
    assert caught.value.exit_code == 2

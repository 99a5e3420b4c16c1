"""The mathematics of integers and real numbers as properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qatc.compiler.quant import DTYPES, QuantParams, dtype_range

BYTES = ("int8", "uint8")
NARROW = tuple(d for d in DTYPES if d != "int32")

scales = st.floats(2.0**-20, 2.0**10, width=32)
reals = hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(-1e6, 1e6, width=32))


@st.composite
def grids(draw: st.DrawFn, dtypes: tuple[str, ...] = NARROW) -> QuantParams:
    """Per-tensor parameters, narrow ranges included."""
    dtype = draw(st.sampled_from(dtypes))
    lowest, highest = dtype_range(dtype)
    qmin = draw(st.integers(lowest, highest))
    qmax = draw(st.integers(qmin, highest))
    return QuantParams.per_tensor(draw(scales), draw(st.integers(lowest, highest)), dtype, qmin, qmax)


# -- rule 1: the integers are those of QuantizeLinear --------------------------------------------------------
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16"])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_integers_are_those_of_onnx_runtime(run_op, dtype, axis):
    rng = np.random.default_rng(7)
    x = rng.normal(0, 3, (6, 5, 301)).astype(np.float32)
    lowest, highest = dtype_range(dtype)
    count = 1 if axis is None else x.shape[axis]
    scale = rng.uniform(1e-3, 0.1, count).astype(np.float32)
    scale[0] = 0.0625  # ties
    x[0] = np.round(x[0] * 32) / 32
    zero = rng.integers(lowest, highest + 1, count).astype(dtype)
    params = QuantParams(tuple(scale.tolist()), tuple(zero.tolist()), dtype, axis)
    if axis is None:
        scale, zero = scale[0], zero[0]
    attrs = {} if axis is None else {"axis": axis}
    (expected,) = run_op("QuantizeLinear", [x, scale, zero], [dtype], attrs)
    np.testing.assert_array_equal(params.quantize(x), expected)
    (back,) = run_op("DequantizeLinear", [expected, scale, zero], [np.float32], attrs)
    np.testing.assert_array_equal(params.dequantize(expected), back)


@pytest.mark.parametrize("dtype", ["int4", "uint4", "int8", "uint8", "int16", "uint16"])
def test_integers_are_those_of_the_onnx_specification(dtype):
    from onnx import TensorProto, helper
    from onnx.reference import ReferenceEvaluator

    rng = np.random.default_rng(8)
    x = np.concatenate([rng.normal(0, 3, 500), np.arange(-40, 40) / 8]).astype(np.float32)
    lowest, highest = dtype_range(dtype)
    zero = int(rng.integers(lowest, highest + 1))
    kind = getattr(TensorProto, dtype.upper())
    node = helper.make_node("QuantizeLinear", ["x", "s"], ["q"], output_dtype=kind)
    shifted = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"])
    evaluator = ReferenceEvaluator(node, opsets={"": 21})
    (expected,) = evaluator.run(None, {"x": x, "s": np.float32(0.25)})
    symmetric = QuantParams.per_tensor(0.25, 0, dtype)
    np.testing.assert_array_equal(symmetric.quantize(x), expected.astype(np.int32))
    if "4" not in dtype:
        evaluator = ReferenceEvaluator(shifted, opsets={"": 21})
        (expected,) = evaluator.run(None, {"x": x, "s": np.float32(0.25), "z": np.dtype(dtype).type(zero)})
        np.testing.assert_array_equal(QuantParams.per_tensor(0.25, zero, dtype).quantize(x), expected)


@given(grids(), reals)
def test_quantize_gives_the_nearest_number_of_the_grid(params, x):
    q = params.quantize(x).astype(np.int64)
    assert ((q >= params.qmin) & (q <= params.qmax)).all()
    exact = x.astype(np.float64) / params.scale[0] + params.zero_point[0]
    inside = (exact > params.qmin) & (exact < params.qmax)
    # Half a step, and the error of one float32 division.
    slack = np.abs(x / params.scale[0]) * 2.0**-23
    assert (np.abs(exact - q)[inside] <= 0.5 + slack[inside]).all()


@given(grids())
def test_every_integer_survives_the_round_trip(params):
    span = range(params.qmin, params.qmax + 1, max(1, (params.qmax - params.qmin) // 500))
    q = np.array(list(span), params.container)
    np.testing.assert_array_equal(params.quantize(params.dequantize(q)), q)


@given(grids(), reals)
def test_fake_quantization_is_idempotent(params, x):
    once = params.fake_quantize(x)
    np.testing.assert_array_equal(params.fake_quantize(once), once)


def test_large_tensors_are_quantized_in_parts_with_the_same_result():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(9, 1 << 19)).astype(np.float32)
    params = QuantParams.per_channel(rng.uniform(0.01, 0.02, 9), 0)
    expected = [params.channel(i).quantize(x[i]) for i in range(9)]
    np.testing.assert_array_equal(params.quantize(x), np.stack(expected))
    other = QuantParams.per_channel(rng.uniform(0.01, 0.02, 1 << 19), 1)
    np.testing.assert_array_equal(other.quantize(x)[3], other.quantize(x[3:4])[0])


# -- rule 2: every clamp folds exactly -----------------------------------------------------------------------
@given(grids(), reals, st.floats(-1e6, 1e6, width=32), st.floats(-1e6, 1e6, width=32))
def test_a_clamp_before_rounding_is_a_clamp_of_integers(params, x, a, b):
    low, high = np.float32(min(a, b)), np.float32(max(a, b))
    before = params.quantize(np.clip(x, low, high))
    after = np.clip(params.quantize(x), params.quantize(low), params.quantize(high))
    np.testing.assert_array_equal(before, after)


@given(grids(), st.floats(allow_nan=False, width=32) | st.integers(-1000, 1000).map(lambda halves: halves * 2.0**-6))
def test_one_number_is_rounded_as_an_array_is(params, value):
    assert params.quantize_number(value) == tuple(params.quantize(np.array([value], np.float32)).tolist())


def test_one_number_is_divided_in_float32():
    """Relu6 of MediaPipe's pose detection: 6 is 127.49999750638385 steps of the scale, which is 127.5 to float32."""
    assert QuantParams.per_tensor(6 / 127.5, -128, "int8").quantize_number(6.0) == (0,)


def test_one_number_is_rounded_on_the_scale_of_each_channel():
    params = QuantParams.per_channel([0.5, 0.25], 0, [0, 100], "uint8")
    assert params.quantize_number(1.25) == (2, 105)
    assert params.quantize_number(float("-inf")) == (0, 0)
    with pytest.raises(ValueError, match="NaN"):
        params.quantize_number(float("nan"))


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_scales_are_the_nearest_float32(values):
    with np.errstate(over="ignore"):
        nearest = np.asarray(values).astype(np.float32)
    fits = np.isfinite(nearest) & (nearest >= np.finfo(np.float32).tiny)
    if fits.all():
        assert QuantParams.per_channel(values, 0).scale == tuple(nearest.tolist())
    else:
        with pytest.raises(ValueError, match="scale must be positive, finite and normal"):
            QuantParams.per_channel(values, 0)


@given(grids(), reals)
def test_relu_is_a_clamp_at_the_zero_point(params, x):
    before = params.quantize(np.maximum(x, 0))
    after = np.maximum(params.quantize(x), params.quantize(np.float32(0)))
    np.testing.assert_array_equal(before, after)


# -- rule 6: a bias is rounded onto the accumulator's grid ---------------------------------------------------
@given(
    st.floats(2.0**-12, 1.0, width=32),
    hnp.arrays(np.float32, 5, elements=st.floats(2.0**-14, 2.0**-2, width=32)),
    hnp.arrays(np.float32, 5, elements=st.floats(-8, 8, width=32)),
)
def test_a_bias_on_the_accumulator_grid_is_off_by_half_a_unit(x_scale, w_scale, bias):
    grid = QuantParams.per_channel(np.float64(x_scale) * w_scale, 0, dtype="int32")
    q = grid.quantize(bias.astype(np.float64))
    units = np.asarray(grid.scale)
    inside = np.abs(bias) < units * (2**31 - 2)
    error = np.abs(q.astype(np.float64) * units - bias)
    assert (error[inside] <= 0.5 * units[inside] * (1 + 2.0**-20)).all()
    assert (np.abs(q.astype(np.int64)[~inside]) >= 2**31 - 1).all()  # saturated, never wrapped


# -- rule 7: int8 with zero point z is uint8 with z + 128 ----------------------------------------------------
@given(grids(BYTES), reals)
def test_the_other_signedness_means_the_same_numbers(params, x):
    other = params.as_dtype("uint8" if params.is_signed else "int8")
    shift = params.shift_to(other.dtype)
    q, shifted = params.quantize(x), other.quantize(x)
    np.testing.assert_array_equal(q.astype(np.int64) + shift, shifted)
    np.testing.assert_array_equal(params.dequantize(q), other.dequantize(shifted))
    assert other.as_dtype(params.dtype) == params


@given(grids(("int16",)))
def test_sixteen_bits_shift_too(params):
    other = params.as_dtype("uint16")
    assert other.zero_point[0] == params.zero_point[0] + 32768
    assert other.as_dtype("int16") == params


def test_a_shift_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="outside"):
        QuantParams.per_tensor(0.1, 3, "int16").as_dtype("uint8")


# -- illegal states cannot be built --------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((0.1,), (0,), "int9"), "unknown quantized type"),
        (((0.0,), (0,), "int8"), "scale"),
        (((-1.0,), (0,), "int8"), "scale"),
        (((float("nan"),), (0,), "int8"), "scale"),
        (((float("inf"),), (0,), "int8"), "scale"),
        (((1e-44,), (0,), "int8"), "scale"),
        (((), (), "int8"), "scale"),
        (((0.1,), (0, 0), "int8"), "zero points"),
        (((0.1,), (128,), "int8"), "outside int8"),
        (((0.1,), (0,), "int8", None, 3, 2), "empty"),
        (((0.1,), (0,), "int8", None, -129, 2), "outside"),
        (((0.1, 0.2), (0, 0), "int8"), "need an axis"),
        (((0.1, 0.2), (0, 0), "int8", -1), "from the front"),
    ],
)
def test_illegal_parameters_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        QuantParams(*arguments)


def test_channels_must_fit_the_tensor():
    params = QuantParams.per_channel([0.1, 0.2], 1)
    with pytest.raises(ValueError, match="2 channels along axis 1"):
        params.quantize(np.zeros((2, 3), np.float32))


def test_nan_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        QuantParams.per_tensor(0.1).quantize(np.array([np.nan], np.float32))


@given(st.lists(scales, min_size=2, max_size=6), st.integers(0, 3), st.data())
def test_take_reorders_channels(values, axis, data):
    params = QuantParams.per_channel(values, axis)
    order = data.draw(st.permutations(range(len(values))))
    taken = params.take(np.array(order))
    assert taken.scale == tuple(params.scale[i] for i in order)
    assert [params.channel(i).scale[0] for i in order] == list(taken.scale)


@settings(max_examples=20)
@given(grids())
def test_parameters_print_and_compare(params):
    assert str(params).startswith(params.dtype)
    assert params == params.with_range(params.qmin, params.qmax)
    assert params.same_grid(params.with_range(params.qmin, params.qmin))


@given(grids(BYTES), st.integers(-300, 300), st.sampled_from([0.0, 1e-9, -1e-9, 0.01, -0.01]))
def test_the_other_side_of_a_tie_is_the_other_neighbor(params: QuantParams, steps: int, beside: float) -> None:
    real = np.asarray([steps + 0.5 + beside, 0.25]) * params.scale[0]
    other = params.on_other_side(real)
    if abs(beside) > 1e-3 * max(1, 1 / params.scale[0]):
        assert other is None
    elif not beside:
        assert other is not None
        zero = params.zero_point[0]
        both = np.clip([steps + zero, steps + 1 + zero], params.qmin, params.qmax)
        mine = params.quantize(real.astype(np.float32))
        np.testing.assert_array_equal(sorted([other[0], mine[0]]), both)

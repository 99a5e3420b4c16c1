"""The mathematics of design section 4 as properties of what lowering makes: clamps (2), batch norm (3), biases (6)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qatc.compiler.arithmetic import PROFILES
from qatc.compiler.integer import Conv, MatMul
from qatc.compiler.quant import QuantParams
from qatc.compiler.reference import execute
from tests.agreeing import lowered
from tests.graphs import net

NUMBERS = st.floats(-50, 50, width=32)
SCALES = st.floats(2**-10, 0.5, width=32)


# -- rule 2 -----------------------------------------------------------------------------------------------------------
@given(SCALES, st.integers(0, 255), st.lists(NUMBERS, min_size=1), NUMBERS, NUMBERS)
def test_rounding_commutes_with_clamping(scale: float, zero: int, xs: list[float], a: float, b: float) -> None:
    """Q(clip(x, a, b)) = clamp(Q(x), Q(a), Q(b)): rounding is monotone, whatever the bounds."""
    grid, (low, high) = QuantParams.per_tensor(scale, zero, "uint8"), sorted((a, b))
    x = np.asarray(xs, np.float32)
    ends = grid.quantize(np.asarray([low, high], np.float32))
    np.testing.assert_array_equal(grid.quantize(x.clip(low, high)), grid.quantize(x).clip(*ends))


@given(SCALES, st.integers(0, 255), NUMBERS, NUMBERS)
@settings(max_examples=40)
def test_clamps_behind_a_product_become_its_bounds(scale: float, zero: int, a: float, b: float) -> None:
    low, high = sorted((a, b))
    graph = lowered(
        net(
            "(float[2,2] x) => (float[2,2] y)",
            """
            a = A(x)
            w = DequantizeLinear(wq, sD, zD)
            m = MatMul(a, w)
            c = Clip(m, l, h)
            q = QuantizeLinear(c, s, z)
            y = DequantizeLinear(q, s, z)
            """,
            f"int8[2,2] wq = {{1, 2, 3, 4}}, float l = {{{low!r}}}, float h = {{{high!r}}}, "
            f"float s = {{{scale!r}}}, uint8 z = {{{zero}}}",
        )
    )
    grid = QuantParams.per_tensor(scale, zero, "uint8")
    (product,) = [op for op in graph.ops if isinstance(op, MatMul)]
    assert (product.lo, product.hi) == tuple(grid.quantize(np.asarray([low, high], np.float64)))


# -- rules 3 and 6 ----------------------------------------------------------------------------------------------------
def network(rng: np.random.Generator, *, norm: bool) -> tuple[str, dict[str, np.ndarray]]:
    """Conv [-> BatchNormalization] with random values, and what it is made of."""
    made: dict[str, np.ndarray] = {
        "wq": rng.integers(-128, 128, (3, 2, 1, 1)).astype(np.int8),
        "ws": rng.uniform(0.0005, 0.01, 3).astype(np.float32),
        "b": rng.normal(0, 2, 3).astype(np.float32),
        "g": rng.choice([-1.0, 1.0], 3).astype(np.float32) * rng.uniform(0.1, 3, 3).astype(np.float32),
        "t": rng.normal(0, 1, 3).astype(np.float32),
        "m": rng.normal(0, 1, 3).astype(np.float32),
        "v": rng.uniform(0.1, 3, 3).astype(np.float32),
    }
    made["wq"][0] = 127  # so that the unit is as fine as int8 allows
    kinds = {"wq": "int8[3,2,1,1]"}
    constants = [
        f"{kinds.get(n, 'float[3]')} {n} = {{{','.join(map(repr, v.reshape(-1).tolist()))}}}" for n, v in made.items()
    ]
    body = "a = A(x)\nw = DequantizeLinear<axis = 0>(wq, ws, wz)\nc = Conv(a, w, b)\n"
    body += "n = BatchNormalization<epsilon = 0.0>(c, g, t, m, v)\ny = B(n)" if norm else "y = B(c)"
    return net(
        "(float[1,2,2,2] x) => (float[1,3,2,2] y)", body, ", ".join([*constants, "int8[3] wz = {0, 0, 0}"])
    ), made


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_a_folded_batch_norm_computes_what_it_did(seed: int) -> None:
    """In exact real arithmetic: the folded integers stand for the same function, up to the rounding of the bias."""
    rng = np.random.default_rng(seed)
    text, made = network(rng, norm=True)
    graph = lowered(text)
    x = rng.normal(0, 20, (1, 2, 2, 2)).astype(np.float32)
    result = execute(graph, {"x": x}, PROFILES["exact"])
    real = QuantParams.per_tensor(0.5, 128).fake_quantize(x).astype(np.float64)
    weight = made["wq"].astype(np.float64) * made["ws"].astype(np.float64).reshape(3, 1, 1, 1)
    raw = np.einsum("ncij,oc->noij", real, weight[:, :, 0, 0]) + made["b"].reshape(3, 1, 1)
    spread = {n: made[n].astype(np.float64).reshape(3, 1, 1) for n in "gtmv"}
    want = spread["g"] * (raw - spread["m"]) / np.sqrt(spread["v"]) + spread["t"]
    steps = want / 0.25
    exact = np.clip(np.rint(steps), 0, 255)
    off = np.abs(result["y"] / 0.25 - exact)
    (conv,) = [op for op in graph.ops if isinstance(op, Conv)]
    moved = np.asarray(conv.acc_scale).reshape(3, 1, 1) / 2 / 0.25  # by the rounding of the bias, in LSB
    doubtful = np.abs(steps - np.floor(steps) - 0.5) <= moved + 1e-4
    assert off.max() <= 1
    assert not off[~doubtful].any()


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_a_bias_is_rounded_onto_the_grid_of_its_accumulator(seed: int) -> None:
    text, made = network(np.random.default_rng(seed), norm=False)
    graph = lowered(text)
    (conv,) = [op for op in graph.ops if isinstance(op, Conv)]
    unit = np.asarray(conv.acc_scale)
    np.testing.assert_allclose(unit, 0.5 * made["ws"].astype(np.float64), rtol=1e-6)
    bias = graph.constants[conv.inputs[2]]
    assert bias.dtype == np.int32
    np.testing.assert_array_equal(bias, np.rint(made["b"] / unit))
    np.testing.assert_allclose(graph.real_biases[conv.output], made["b"] / unit, rtol=1e-9)


@pytest.mark.parametrize("zero", [15, 3])
def test_a_coarse_unit_is_refined_where_weights_have_a_zero_point(zero: int) -> None:
    """DoReFa's weights are counted from a zero point: it is subtracted, and what is left grows."""
    graph = lowered(
        net(
            "(float[1,2] x) => (float[1,1] y)",
            "a = A(x)\nw = DequantizeLinear(wq, s, z)\nm = MatMul(a, w)\nn = Add(m, b)\ny = B(n)",
            f"uint8[2,1] wq = {{30, 0}}, float s = {{0.5}}, uint8 z = {{{zero}}}, float[1] b = {{0.1}}",
        )
    )
    (product,) = [op for op in graph.ops if isinstance(op, MatMul)]
    gain = 127 // max(30 - zero, zero)
    assert graph.constants[product.inputs[1]].reshape(-1).tolist() == [(30 - zero) * gain, -zero * gain]
    assert product.acc_scale[0] == pytest.approx(0.25 / gain)
    assert graph.constants[product.inputs[2]].tolist() == [round(0.1 / (0.25 / gain))]


@pytest.mark.parametrize("largest", [1, 3, 7, 60])
def test_a_coarse_unit_is_refined_as_far_as_int8_allows(largest: int) -> None:
    """Weights of few bits make a coarse accumulator; their integers grow, so that the bias costs less of an LSB."""
    graph = lowered(
        net(
            "(float[1,2] x) => (float[1,1] y)",
            "a = A(x)\nw = DequantizeLinear(wq, s, z)\nm = MatMul(a, w)\nn = Add(m, b)\ny = B(n)",
            f"int8[2,1] wq = {{{largest}, 1}}, float s = {{0.5}}, int8 z = {{0}}, float[1] b = {{0.1}}",
        )
    )
    (product,) = [op for op in graph.ops if isinstance(op, MatMul)]
    gain = 127 // largest
    assert graph.constants[product.inputs[1]].reshape(-1).tolist() == [largest * gain, gain]
    assert product.acc_scale[0] == pytest.approx(0.25 / gain)
    assert graph.constants[product.inputs[2]].tolist() == [round(0.1 / (0.25 / gain))]

"""Weights on a grid give their integers back, exactly; weights on none are said to be on none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qatc.compiler.graph import Node, Variable
from qatc.compiler.quant import QuantParams
from qatc.frontends.common.grid import Grid, find_grid, quantize_after_training, recover_weights, weight_axis
from tests.graphs import canonical, net


def whole(grid: Grid) -> np.ndarray:
    """The integers without their zero point."""
    return grid.integers.astype(np.int64) - grid.params.zero_array(grid.integers.ndim)


def close(grid: Grid, weights: np.ndarray) -> bool:
    """Whether the grid's floats are the weights up to float32 rounding."""
    error = np.abs(grid.params.dequantize(grid.integers).astype(np.float64) - weights)
    return bool((error <= np.abs(weights).max() * 5e-7).all())


@st.composite
def trained(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    """(float weights, their integers, channel axis) as batch norm folding leaves them: a signed factor per channel."""
    seed, levels = draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from([1, 7, 15, 31, 63, 127]))
    channels, fan, axis = draw(st.integers(1, 12)), draw(st.integers(1, 40)), draw(st.integers(0, 1))
    random = np.random.default_rng(seed)
    integers = random.integers(-levels, levels + 1, (channels, fan))
    integers[:, 0] = levels * random.choice([-1, 1], channels)
    scale = random.uniform(1e-4, 2, channels).astype(np.float32)
    factor = (random.uniform(0.1, 4, channels) * random.choice([-1, 1], channels)).astype(np.float32)
    weights = (integers.astype(np.float32) * scale[:, None]) * factor[:, None]
    signed = integers * np.sign(factor).astype(np.int64)[:, None]
    return (weights, signed, 0) if axis == 0 else (weights.T.copy(), signed.T.copy(), 1)


@given(trained())
def test_integers_come_back(case: tuple[np.ndarray, np.ndarray, int]) -> None:
    weights, integers, axis = case
    grid = find_grid(weights, axis)
    assert grid is not None
    assert close(grid, weights)
    got = whole(grid)
    # a channel may have a common divisor, which no number betrays: then the integers are a whole multiple apart
    for channel in range(weights.shape[axis]):
        want, have = integers.take(channel, axis), got.take(channel, axis)
        top = max(np.abs(want).max(), 1), max(np.abs(have).max(), 1)
        np.testing.assert_array_equal(want * top[1], have * top[0])


@pytest.mark.parametrize("axis", [None, 0])
def test_integers_of_nine_bits_come_back(axis: int | None) -> None:
    """DoReFa's weights of eight bits, 2 * q / 255 - 1, have a zero point of 127.5."""
    integers = 2 * np.random.default_rng(0).integers(0, 256, (4, 40)) - 255
    integers[:, :2] = -255, 255
    grid = find_grid((integers / 255).astype(np.float32), axis)
    assert grid is not None
    np.testing.assert_array_equal(grid.integers, integers)
    assert grid.params == QuantParams.per_tensor(grid.params.scale[0], 0, "int16", -255, 255)
    assert grid.params.scale[0] == pytest.approx(1 / 255)


def test_a_few_weights_that_half_precision_holds_are_on_their_own_grid() -> None:
    """Steps of 1/256: nine bits, and not the 127 levels that two float16 roundings would allow for three numbers."""
    integers = np.asarray([[183, 231, 240], [82, -217, -169], [-72, 78, 11]])
    grid = find_grid((integers / 256).astype(np.float32), 0)
    assert grid is not None
    assert (grid.params.dtype, set(grid.params.scale)) == ("int16", {1 / 256})
    np.testing.assert_array_equal(grid.integers, integers)


@given(trained(), st.booleans())
def test_integers_come_back_from_half_precision(case: tuple[np.ndarray, np.ndarray, int], per_tensor: bool) -> None:
    """What an exporter folds in float16: the scale is rounded to it, and so is each weight."""
    weights, integers, axis = case
    channels = -1 if axis == 0 else 1
    peak = np.abs(weights).max(axis=1 - axis, keepdims=True)
    scale = np.maximum(peak / max(1, np.abs(integers).max()), 2.0**-12)
    scale = (scale.max() if per_tensor else scale.reshape(channels, 1) if axis == 0 else scale).astype(np.float16)
    half = (integers.astype(np.float16) * scale).astype(np.float16).astype(np.float32)
    grid = find_grid(half, axis)
    assert grid is not None
    error = np.abs(grid.params.dequantize(grid.integers) - half)
    assert (error <= np.abs(half) * 2.0**-9 + 1e-7).all()
    got = whole(grid)
    for channel in range(half.shape[axis]):
        want, have = integers.take(channel, axis), got.take(channel, axis)
        top = max(np.abs(want).max(), 1), max(np.abs(have).max(), 1)
        # few weights of half precision may lie on a coarser grid as well, very few on a finer one that fits float32
        if top[1] == top[0] or (top[1] > top[0] and want.size > 4):
            np.testing.assert_array_equal(want * top[1], have * top[0])


def test_a_grid_of_the_whole_tensor_that_8_bits_do_not_hold_hides_none_per_channel():
    """In half precision such a fine one fits these few weights by chance."""
    first = [
        -7,
        -4,
        -6,
        -3,
        -1,
        5,
        -1,
        -6,
        -2,
        2,
        5,
        3,
        7,
        -5,
        6,
        -7,
        1,
        -3,
        -4,
        2,
        -3,
        1,
        -4,
        -5,
        4,
        -1,
        3,
        3,
        7,
        -1,
        -4,
    ]
    second = [7, 7, 7, 6, 3, -2, -2, -7, -5, -3, -2, 1, 0, 3, 6, 6, 4, 7, -3, 6, 6, -4, 0, 1, 3, 3, -6, 0, -6, 7, -4]
    integers = np.array([first, second])
    weights = (integers.astype(np.float16) * np.float16([[3.553], [2.863]])).astype(np.float32)
    grid = find_grid(weights, 0)
    assert grid is not None
    np.testing.assert_array_equal(grid.integers, integers)


def test_sparse_channels_are_counted_like_the_others() -> None:
    random = np.random.default_rng(0)
    integers = random.integers(-127, 128, (8, 30))
    integers[:, 0] = 127
    integers[3] = 127 * (random.random(30) < 0.1)
    integers[3, 1] = -127
    weights = integers.astype(np.float32) * random.uniform(0.01, 1, (8, 1)).astype(np.float32)
    grid = find_grid(weights, 0)
    assert grid is not None
    np.testing.assert_array_equal(grid.integers, integers)
    assert (grid.params.qmin, grid.params.qmax) == (-127, 127)


def test_one_grid_for_the_tensor_is_preferred() -> None:
    integers = np.random.default_rng(0).integers(-7, 8, (5, 3, 3, 3))
    grid = find_grid(integers.astype(np.float32) * np.float32(0.3), 0)
    assert grid is not None
    assert str(grid.params) == "int8[-7,7] scale 0.300000012 zero 0"
    np.testing.assert_array_equal(grid.integers, integers)


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.95), st.booleans())
def test_asymmetric_weights_of_tf1(seed: int, share: float, folded: bool) -> None:
    random = np.random.default_rng(seed)
    q = random.integers(0, 256, (6, 50))
    q[:, 0], q[:, 1] = 0, 255
    zero = round(255 * share)
    scale, start = np.float32(0.004), np.float32(-zero) * np.float32(0.004)
    weights = q.astype(np.float32) * scale + start
    if folded:
        weights = weights * (random.uniform(0.3, 3, 6) * random.choice([-1, 1], 6)).astype(np.float32)[:, None]
    grid = find_grid(weights, 0)
    assert grid is not None
    assert grid.integers.dtype == np.int8
    assert close(grid, weights)
    np.testing.assert_array_equal(np.abs(whole(grid)), np.abs(q - zero))


def test_dead_channels_and_dead_tensors() -> None:
    weights = np.asarray([[0.5, -1.5, 1.0], [0, 0, 0], [0.1, 0.2, 0.3]], np.float32)
    grid = find_grid(weights, 0)
    assert grid is not None
    np.testing.assert_array_equal(grid.integers[1], 0)
    assert close(grid, weights)
    grid = find_grid(np.zeros((3, 3), np.float32), 0)
    assert grid is not None
    assert grid.params.scale == (1.0,)


@pytest.mark.parametrize("weights", [
    np.random.default_rng(0).normal(size=(16, 9)).astype(np.float32),
    np.asarray([[np.nan, 1.0]], np.float32),
    np.asarray([[np.inf, 1.0]], np.float32),
    np.zeros((0, 3), np.float32),
])  # fmt: skip
def test_true_floats_are_on_no_grid(weights: np.ndarray) -> None:
    assert find_grid(weights, 0) is None


def test_true_floats_of_half_precision_are_on_no_grid() -> None:
    weights = np.random.default_rng(5).normal(size=(16, 27)).astype(np.float16).astype(np.float32)
    assert find_grid(weights, 0) is None


def test_one_channel_off_the_grid_is_off_the_grid() -> None:
    random = np.random.default_rng(0)
    weights = random.integers(-127, 128, (64, 64)).astype(np.float32)
    weights[40] = random.normal(size=64)
    assert find_grid(weights, 0) is None


def test_millions_of_weights() -> None:
    random = np.random.default_rng(0)
    on_grid = random.integers(-127, 128, (1024, 2048)).astype(np.float32) * random.uniform(0.1, 1, (1024, 1)).astype(
        np.float32
    )
    floats = random.normal(size=(1024, 2048)).astype(np.float32)
    assert find_grid(on_grid, 0) is not None
    assert find_grid(floats, 0) is None
    assert find_grid(floats, None) is None


def test_quantizing_after_training_is_within_half_a_step() -> None:
    weights = np.random.default_rng(0).normal(size=(4, 3, 2)).astype(np.float32)
    for axis in (None, 0, 2):
        grid = quantize_after_training(weights, axis)
        error = np.abs(grid.params.dequantize(grid.integers) - weights)
        assert (error <= grid.params.scale_array(3) * 0.500001).all()
        assert (grid.params.qmin, grid.params.qmax) == (-127, 127)


def test_the_channels_of_a_depthwise_transposed_convolution_are_those_of_its_input() -> None:
    for groups, want in ((1, 1), (8, 0)):
        node = Node("ConvTranspose", "n", {"group": groups}, [Variable("a"), Variable("b")], [Variable("y")])
        assert weight_axis(node, 1, (8, 1, 3, 3)) == want


TEXT = """g (float[2,3] x) => (float[] y) <float s = {{0.5}}, float[3,2] w = {{{0}}}, float[2,2] v = {{1,2,3,4}}> {{
    q = QuantizeLinear(x, s) d = DequantizeLinear(q, s) r = Relu(d) a = MatMul(r, w) y = MatMul(a, v) }}"""


def test_weights_of_a_graph() -> None:
    graph = canonical(TEXT.format("0.5, 0.25, -1.0, 0.75, 0.5, -0.25"))
    recover_weights(graph, quantize_others=True)
    graph.verify(stripped=False)
    assert not list(graph.diagnostics)
    assert str(graph.params["w"]) == "int8[-4,4] scale 0.25 zero 0"
    np.testing.assert_array_equal(graph.real(graph.nodes[2].inputs[1]), [[0.5, 0.25], [-1, 0.75], [0.5, -0.25]])


@pytest.mark.parametrize("first", [0.5, 0.4142])
def test_rows_of_a_table_that_a_product_reads(first: float) -> None:
    """An embedding whose quantizer the exporter folded; one that was not quantized stays as it is, without a word."""
    table = f"{first}, -0.75, 1.5, 0.25, -1, 0, 0.5, 1"
    weight = "0.3, 1, 2, 3, 1.1, 0.2, 0.7, 5"
    text = f"""g (int64[2,1] x) => (float[] y) <float[2,4] t = {{{table}}}, float[4,2] v = {{{weight}}}> {{
        a = Gather<axis = 0>(t, x) b = Flatten(a) c = GatherND(t, x) d = MatMul(c, v) e = MatMul(b, v)
        y = Add(d, e) }}"""
    graph = canonical(text)
    recover_weights(graph, quantize_others=False)
    assert not list(graph.diagnostics)
    assert str(graph.params.get("t")) == ("int8[-6,6] scale 0.25 zero 0" if first == 0.5 else "None")


def test_true_floats_of_a_graph_are_quantized_or_kept_and_either_is_said() -> None:
    text = TEXT.format("0.5123, 0.25, -1.001, 0.75, 0.5, -0.2512")
    graph = canonical(text)
    recover_weights(graph, quantize_others=False)
    assert [(d.code, d.severity.value, d.tensor) for d in graph.diagnostics] == [("QAT206", "note", "w")]
    assert "w" not in graph.params
    graph = canonical(text)
    recover_weights(graph, quantize_others=True)
    assert [(d.code, d.severity.value, d.tensor) for d in graph.diagnostics] == [("QAT206", "warning", "w")]
    assert isinstance(graph.params["w"], QuantParams)
    assert graph.params["w"].axis == 1


def test_a_transposed_convolution_may_have_a_scale_for_each_channel_of_its_input() -> None:
    """PyTorch's quantizers of weights count along the first axis, which is that of filters elsewhere."""
    rng = np.random.default_rng(6)
    integers = rng.integers(-127, 128, (4, 3, 2, 2))
    integers[:, 0, 0, 0] = 127
    scale = rng.uniform(0.01, 0.02, (4, 1, 1, 1)).astype(np.float32)
    weights = (integers * scale).astype(np.float32)
    signature = "(float[1,4,8,8] x) => (float[N,C,H,W] y)"
    values = ", ".join(map(repr, weights.reshape(-1).tolist()))
    graph = canonical(net(signature, "a = A(x)\ny = ConvTranspose(a, w)", f"float[4,3,2,2] w = {{{values}}}"))
    recover_weights(graph, quantize_others=False)
    params = graph.params["w"]
    assert (params.axis, len(params.scale)) == (0, 4)
    np.testing.assert_allclose(params.scale, scale.reshape(-1), rtol=1e-6)
    assert not graph.diagnostics.items

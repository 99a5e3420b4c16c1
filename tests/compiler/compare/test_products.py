"""What a product looks like that is computed wrongly: scales, biases, accumulators, padding, each from its formula."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from qatc.compiler.compare.faults import guesses
from qatc.compiler.compare.products import product_guesses, raw_guesses
from qatc.compiler.compare.setting import Setting
from qatc.compiler.integer import Conv, MatMul, Quantize
from qatc.compiler.quant import QuantParams
from qatc.compiler.runtime.sessions import OrtEvaluator
from tests.compiler.reference.nets import EXACT, Net

OUT = QuantParams.per_tensor(0.5, 0, "int8")


def product(channels: int, rows: int = 256) -> Setting:
    """`y[rows,channels] = x @ 1`, all channels alike but for their scales."""
    net = Net()
    rng = np.random.default_rng(0)
    x = net.feed("x", rng.integers(-128, 128, (rows, 4)).astype(np.int8), QuantParams.per_tensor(0.5, 0, "int8"))
    scales = tuple(float(s) for s in np.float32(0.002 * 40 ** (rng.permutation(channels) / channels)))
    params = QuantParams(scales, (0,) * channels, "int8", 1, -128, 127)
    w = net.constant("w", np.ones((4, channels), np.int8), params)
    op = MatMul(
        name="product",
        inputs=(x, w),
        outputs=(net.out("y", OUT),),
        lo=-128,
        hi=127,
        acc_scale=tuple(0.5 * s for s in scales),
    )
    net.add(op)
    base = net.run(EXACT)["y"].astype(np.int64)
    return Setting(net.graph, op, {**net.feeds, **net.graph.constants}, EXACT, OrtEvaluator(), base)


def told(setting: Setting, found: np.ndarray) -> list[str]:
    """What the guesses say that explain all of `found`."""
    return [g.detail for g in product_guesses(setting, found, close=False) if np.array_equal(g.value, found)]


def rescaled(setting: Setting, order: np.ndarray) -> np.ndarray:
    """The product with the scale of channel `order[c]` in each channel c."""
    op = setting.op
    assert isinstance(op, MatMul)
    sums = setting.values["x"].astype(np.int64).sum(1, keepdims=True)
    return np.clip(np.rint(sums * (np.asarray(op.acc_scale)[order] / 0.5)), -128, 127).astype(np.int64)


@pytest.mark.parametrize("channels", [6, 600])
@pytest.mark.parametrize(
    ("order", "said"),
    [
        (lambda own: (own + 1) % own.size, "each channel uses the scale of the channel 1 further on"),
        (lambda own: np.full_like(own, 3), "all channels use the scale of channel 3"),
    ],
)
def test_scales_that_all_moved(channels: int, order: Callable[[np.ndarray], np.ndarray], said: str) -> None:
    """Whatever the number of channels: not all of many are looked at."""
    setting = product(channels)
    assert said in told(setting, rescaled(setting, order(np.arange(channels))))


def test_channels_that_a_shift_does_not_change_move_with_the_others() -> None:
    """A channel whose sums are all zero shows no scale; here its rows are not told apart from its neighbor's."""
    setting = product(6)
    op = setting.op
    assert isinstance(op, MatMul)
    alike = (*op.acc_scale[:4], op.acc_scale[3], op.acc_scale[5])
    changed = dataclasses.replace(op, acc_scale=alike)
    base = Setting(setting.graph, changed, setting.values, EXACT, setting.evaluate, setting.base)
    right = Setting(setting.graph, changed, setting.values, EXACT, setting.evaluate, rescaled(base, np.arange(6)))
    found = rescaled(right, (np.arange(6) + 1) % 6)
    assert "each channel uses the scale of the channel 1 further on" in told(right, found)


def test_where_nothing_differs_no_channel_has_another_scale() -> None:
    setting = product(6)
    assert not [g for g in product_guesses(setting, setting.base, close=False) if "channel" in g.detail]


def test_two_channels_that_changed_places() -> None:
    setting = product(6)
    said = told(setting, rescaled(setting, np.asarray([0, 2, 1, 3, 4, 5])))
    assert said == ["2 of 6 channels use the scale of another (channel 1 that of 2)"]


# -- biases and accumulators -----------------------------------------------------------------------------------------
def biased(bias: list[int], weight: int = 1, scale: float = 0.001, zero: int = 0) -> Setting:
    """`y[64,C] = x @ weight + bias` of one scale."""
    net = Net()
    rng = np.random.default_rng(1)
    x = net.feed("x", rng.integers(-128, 128, (64, 4)).astype(np.int8), QuantParams.per_tensor(1.0, 0, "int8"))
    w = net.constant("w", np.full((4, len(bias)), weight, np.int8), QuantParams.per_tensor(1.0, 0, "int8"))
    b = net.constant("b", np.asarray(bias, np.int32), QuantParams.per_tensor(1.0, 0, "int32"))
    y = net.out("y", QuantParams.per_tensor(1.0, zero, "int8"))
    op = MatMul(name="product", inputs=(x, w, b), outputs=(y,), lo=-128, hi=127, acc_scale=(scale,))
    net.add(op)
    base = net.run(EXACT)["y"].astype(np.int64)
    return Setting(net.graph, op, {**net.feeds, **net.graph.constants}, EXACT, OrtEvaluator(), base)


def finished(acc: np.ndarray, scale: float) -> np.ndarray:
    """Accumulators as results."""
    return np.clip(np.rint(acc * float(np.float32(scale))), -128, 127).astype(np.int64)


@pytest.mark.parametrize(
    ("factors", "said"),
    [
        ([0, 0, 0], "the bias is missing"),
        ([2, 2, 2], "the bias is added twice"),
        ([-1, -1, -1], "the bias is subtracted"),
        ([1, 0, 1], "the bias of 1 of 3 channels is missing"),
    ],
)
def test_biases(factors: list[int], said: str) -> None:
    bias = np.asarray([9000, -21000, 33000])
    setting = biased(bias.tolist())
    sums = setting.values["x"].astype(np.int64).sum(1, keepdims=True)
    right = finished(sums + bias, 0.001)
    np.testing.assert_array_equal(setting.base, right)
    assert said in told(setting, finished(sums + bias * np.asarray(factors), 0.001))


@pytest.mark.parametrize("shift", [1, -1])
def test_biases_of_neighbors(shift: int) -> None:
    bias = np.asarray([9000, -21000, 33000])
    setting = biased(bias.tolist())
    sums = setting.values["x"].astype(np.int64).sum(1, keepdims=True)
    said = told(setting, finished(sums + np.roll(bias, shift), 0.001))
    assert "each channel has the bias of its neighbor" in said


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("wraps", [False, True])
def test_accumulators_of_16_bits(before: bool, wraps: bool) -> None:
    """Sums of up to 4 * 128 * 100 go beyond them; the bias is added inside, or behind them in 32 bits."""
    bias = np.asarray([15000, -15000])
    setting = biased(bias.tolist(), weight=100)
    sums = 100 * setting.values["x"].astype(np.int64).sum(1, keepdims=True) + np.zeros_like(bias)
    acc = sums if before else sums + bias
    assert np.abs(acc).max() > 1 << 15
    narrow = acc.astype(np.int16).astype(np.int64) if wraps else np.clip(acc, -(1 << 15), (1 << 15) - 1)
    found = finished(narrow + bias if before else narrow, 0.001)
    way = "wraps around" if wraps else "saturates"
    assert f"the accumulator {way} at 16 bits" + (" before the bias is added" if before else "") in told(setting, found)


@pytest.mark.parametrize("zero", [0, 9])
@pytest.mark.parametrize("ratio", [0.5, 1.25, 2.0])
def test_a_scale_that_is_off(ratio: float, zero: int) -> None:
    setting = biased([0, 0], weight=100, scale=0.001, zero=zero)
    sums = 100 * setting.values["x"].astype(np.int64).sum(1, keepdims=True) + np.zeros(2, np.int64)
    found = np.clip(np.rint(sums * ratio * float(np.float32(0.001))) + zero, -128, 127).astype(np.int64)
    guesses = [g for g in product_guesses(setting, found, close=False) if g.detail.startswith("the scale is ")]
    assert len(guesses) == 1
    assert float(guesses[0].detail.split()[3]) == pytest.approx(ratio, rel=0.01)
    assert np.mean(guesses[0].value == found) > 0.9


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda acc: acc >> 1, "the accumulators are halved"),
        (lambda acc: np.clip(acc, -(1 << 15), (1 << 15) - 1), "the accumulator saturates at 16 bits"),
        (lambda acc: acc.astype(np.int16).astype(np.int64), "the accumulator wraps around at 16 bits"),
    ],
)
def test_accumulators_that_are_the_result(wrong: Callable[[np.ndarray], np.ndarray], said: str) -> None:
    net = Net()
    values = np.random.default_rng(3).integers(-128, 128, (64, 4)).astype(np.int8)
    x = net.feed("x", values, QuantParams.per_tensor(1.0, 0, "int8"))
    w = net.constant("w", np.full((4, 2), 100, np.int8), QuantParams.per_tensor(1.0, 0, "int8"))
    y = net.out("y", QuantParams.per_tensor(1.0, 0, "int32"))
    op = MatMul(name="raw", inputs=(x, w), outputs=(y,), lo=-(1 << 31), hi=(1 << 31) - 1, acc_scale=(1.0,))
    net.add(op)
    base = net.run(EXACT)["y"].astype(np.int64)
    np.testing.assert_array_equal(base, values.astype(np.int64) @ np.full((4, 2), 100))
    setting = Setting(net.graph, op, {**net.feeds, **net.graph.constants}, EXACT, OrtEvaluator(), base)
    found = wrong(base)
    assert said in [g.detail for g in raw_guesses(setting, found) if np.array_equal(g.value, found)]
    assert "the accumulators are halved" not in [g.detail for g in raw_guesses(setting, None)]


def test_rounding_is_looked_at_where_all_is_close() -> None:
    setting = biased([9000, -21000, 33000])
    sums = setting.values["x"].astype(np.int64).sum(1, keepdims=True) + np.asarray([9000, -21000, 33000])
    found = np.clip(np.floor(sums * float(np.float32(0.001))), -128, 127).astype(np.int64)
    near = [g for g in product_guesses(setting, found, close=True) if g.kind == "rounding"]
    assert [g.detail for g in near if np.array_equal(g.value, found)] == [
        "it rounds toward negative infinity, a bare right shift, not as the arithmetic profile exact does"
    ]
    assert not [g for g in product_guesses(setting, found, close=False) if g.kind == "rounding"]


# -- padding ---------------------------------------------------------------------------------------------------------
def convolution(pads: tuple[int, int], zero: int = 3) -> Setting:
    """A convolution along one axis of 6 with a kernel of 3, its zero point in the padding."""
    net = Net()
    rng = np.random.default_rng(2)
    x = net.feed("x", rng.integers(0, 256, (2, 1, 6)).astype(np.uint8), QuantParams.per_tensor(1.0, zero, "uint8"))
    w = net.constant("w", np.asarray([[[1, -2, 3]]], np.int8), QuantParams.per_tensor(1.0, 0, "int8"))
    y = net.out("y", QuantParams.per_tensor(8.0, 0, "int8"))
    op = Conv(
        name="conv", inputs=(x, w), outputs=(y,), lo=-128, hi=127, strides=(1,), pads=pads, dilations=(1,), groups=1,
        acc_scale=(1.0,),
    )  # fmt: skip
    net.add(op)
    base = net.run(EXACT)["y"].astype(np.int64)
    return Setting(net.graph, op, {**net.feeds, **net.graph.constants}, EXACT, OrtEvaluator(), base)


def slid(x: np.ndarray, zero: int) -> np.ndarray:
    """The convolution of what is padded already."""
    real = x.astype(np.int64) - zero
    sums = sum(weight * real[..., i : real.shape[-1] - 2 + i] for i, weight in enumerate((1, -2, 3)))
    return np.clip(np.rint(sums / 8), -128, 127).astype(np.int64)


@pytest.mark.parametrize("pads", [(1, 1), (2, 0), (0, 2)])
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"constant_values": 0}, "the padding holds the integer 0, not the zero point 3"),
        ({"constant_values": 255}, "the padding holds the integer 255, not the zero point 3"),
        ({"constant_values": 128}, "the padding holds the integer 128, not the zero point 3"),
        ({"mode": "edge"}, "the padding repeats the border"),
        ({"mode": "reflect"}, "the padding mirrors the inside"),
    ],
)
def test_padding_with_something_else(pads: tuple[int, int], how: dict[str, Any], said: str) -> None:
    setting = convolution(pads)
    x = setting.values["x"]
    np.testing.assert_array_equal(setting.base, slid(np.pad(x, [(0, 0), (0, 0), pads], constant_values=3), 3))
    assert said in told(setting, slid(np.pad(x, [(0, 0), (0, 0), pads], **how), 3))


def test_padding_on_the_other_side() -> None:
    setting = convolution((2, 0))
    found = slid(np.pad(setting.values["x"], [(0, 0), (0, 0), (0, 2)], constant_values=3), 3)
    assert "the padding is on the other side" in told(setting, found)


def test_a_window_without_padding_is_not_padded() -> None:
    setting = convolution((0, 0))
    assert not [g for g in product_guesses(setting, setting.base, close=False) if g.kind == "padding"]
    mirrored = [g for g in product_guesses(convolution((6, 0)), None, close=False) if "mirrors" in g.detail]
    assert not mirrored  # six places cannot mirror six


@pytest.mark.filterwarnings("error")
def test_nothing_is_guessed_of_how_no_number_is_rounded() -> None:
    net = Net()
    x = net.feed("x", np.array([np.nan, 0.7], np.float32))
    op = Quantize(name="rounded", inputs=(x,), outputs=(net.out("y", OUT),), lo=-128, hi=127)
    net.add(op)
    setting = Setting(net.graph, op, net.feeds, EXACT, OrtEvaluator(), np.array([0, 1]))
    assert "rounding" not in {g.kind for g in guesses(setting, None, close=True)}
    whole = dataclasses.replace(setting, values={"x": np.array([0.0, 0.7], np.float32)})
    assert "rounding" in {g.kind for g in guesses(whole, None, close=True)}

"""What a product that uses other scales looks like: which channel's scale each channel has."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from qatc.compiler.compare.products import product_guesses
from qatc.compiler.compare.setting import Setting
from qatc.compiler.integer import MatMul
from qatc.compiler.quant import QuantParams
from qatc.compiler.runtime import OrtEvaluator
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


def test_two_channels_that_changed_places() -> None:
    setting = product(6)
    said = told(setting, rescaled(setting, np.asarray([0, 2, 1, 3, 4, 5])))
    assert said == ["2 of 6 channels use the scale of another (channel 1 that of 2)"]

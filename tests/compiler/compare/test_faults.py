"""What an operator looks like that is computed wrongly: pooling, padding, tables, sums, each fault from its formula."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qatc.compiler.compare.faults import guesses
from qatc.compiler.compare.setting import Setting
from qatc.compiler.integer import Dequantize, Elementwise, LayerNorm, Lookup, Move, Op, Pool, Quantize, Softmax
from qatc.compiler.quant import QuantParams, dtype_range
from qatc.compiler.runtime.sessions import OrtEvaluator
from tests.compiler.reference.nets import EXACT, Net

IN = QuantParams.per_tensor(0.5, 3, "uint8")


def setting_of(net: Net, op: Op) -> Setting:
    net.add(op)
    base = net.run(EXACT)[op.outputs[0]]
    base = base.astype(np.int64) if base.dtype.kind in "iu" else base
    return Setting(net.graph, op, {**net.feeds, **net.graph.constants}, EXACT, OrtEvaluator(), base)


def told(setting: Setting, found: np.ndarray, *, close: bool = False) -> list[str]:
    """What the guesses say that explain all of `found`, which is not what is right."""
    assert not np.array_equal(found, setting.base)
    return [g.detail for g in guesses(setting, found, close=close) if np.array_equal(g.value, found)]


def image(low: int = 0, high: int = 256) -> np.ndarray:
    return np.random.default_rng(0).integers(low, high, (1, 2, 6, 6)).astype(np.uint8)


# -- pooling -----------------------------------------------------------------------------------------------------------
def pooled(mode: str, pads: tuple[int, ...], x: np.ndarray, *, count: bool = False) -> Setting:
    """Windows of 2 x 2, one after the other; the mean on a finer grid."""
    net = Net()
    out = IN if mode == "max" else QuantParams.per_tensor(0.25, 0, "int16")
    lo, hi = dtype_range(out.dtype)
    op = Pool(
        name="pool", inputs=(net.feed("x", x, IN),), outputs=(net.out("y", out),), lo=lo, hi=hi, mode=mode,
        kernel=(2, 2), strides=(2, 2), pads=pads, count_include_pad=count,
    )  # fmt: skip
    return setting_of(net, op)


def windows(x: np.ndarray, pads: tuple[int, ...], fill: float) -> np.ndarray:
    """[1, 2, 4, 4, 4]: the numbers of each window."""
    top, left, bottom, right = pads
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)
    n, c, rows, columns = padded.shape
    tiles = padded.reshape(n, c, rows // 2, 2, columns // 2, 2).transpose(0, 1, 2, 4, 3, 5)
    return tiles.reshape(n, c, rows // 2, columns // 2, 4)


ALL_SIDES = (1, 1, 1, 1)


@pytest.mark.parametrize("count", [False, True])
def test_padding_that_is_counted_in_a_mean_or_not(count: bool) -> None:
    setting = pooled("average", ALL_SIDES, image(), count=count)
    real = (image().astype(float) - 3) * 0.5
    wrong = windows(real, ALL_SIDES, 0).mean(-1) if not count else np.nanmean(windows(real, ALL_SIDES, np.nan), -1)
    said = "the padding is not counted in the mean" if count else "the padding is counted in the mean"
    assert said in told(setting, np.rint(wrong / 0.25).astype(np.int64))


@pytest.mark.parametrize(("mode", "fill"), [("max", 255), ("max", 128), ("average", 0), ("average", 255)])
def test_padding_that_holds_an_integer(mode: str, fill: int) -> None:
    setting = pooled(mode, ALL_SIDES, image(), count=True)
    tiles = windows(image().astype(np.int64), ALL_SIDES, fill)
    wrong = tiles.max(-1) if mode == "max" else np.rint((tiles.mean(-1) - 3) * 0.5 / 0.25).astype(np.int64)
    assert f"the padding holds the integer {fill}" in told(setting, wrong)


def test_padding_of_a_maximum_that_wins_with_the_zero_point() -> None:
    """All numbers lie below the zero point, so that padding with it shows."""
    x = image(0, 3)
    setting = pooled("max", ALL_SIDES, x)
    assert "the padding holds the integer 3" in told(setting, windows(x.astype(np.int64), ALL_SIDES, 3).max(-1))


def test_padding_on_the_other_side_of_a_pool() -> None:
    setting = pooled("max", ALL_SIDES, image())
    assert "the padding is on the other side" not in [g.detail for g in guesses(setting, None, close=False)]
    setting = pooled("max", (2, 0, 0, 2), image())
    wrong = windows(image().astype(np.int64), (0, 2, 2, 0), 0).max(-1)
    assert "the padding is on the other side" in told(setting, wrong)


# -- padding on its own ------------------------------------------------------------------------------------------------
def test_padding_that_is_not_what_pad_states() -> None:
    net = Net()
    x = net.feed("x", image(), IN)
    pads = net.constant("pads", np.asarray([0, 0, 1, 1, 0, 0, 1, 1], np.int64))
    value = net.constant("value", np.asarray(3, np.uint8), IN)
    setting = setting_of(net, Move("pad", (x, pads, value), (net.out("y", IN),), op_type="Pad", attrs={}))
    wrong = np.pad(image(), ((0, 0), (0, 0), (1, 1), (1, 1))).astype(np.int64)
    assert told(setting, wrong) == ["the padding holds the integer 0"]


# -- tables ------------------------------------------------------------------------------------------------------------
def table() -> tuple[Setting, np.ndarray, np.ndarray]:
    net = Net()
    x = np.arange(256, dtype=np.uint8).reshape(1, 256)
    values = np.random.default_rng(1).integers(0, 256, 256).astype(np.uint8)
    inputs = (net.feed("x", x, IN), net.constant("table", values))
    op = Lookup(name="f", inputs=inputs, outputs=(net.out("y", IN),), lo=0, hi=255, function="Sigmoid")
    return setting_of(net, op), x.astype(np.int64), values.astype(np.int64)


def test_a_table_that_is_indexed_as_if_signed() -> None:
    setting, x, values = table()
    assert "the table is indexed with the other signedness" in told(setting, values[(x + 128) % 256])


@pytest.mark.parametrize("sign", [1, -1])
def test_a_table_that_is_indexed_from_the_zero_point(sign: int) -> None:
    setting, x, values = table()
    assert "the zero point is applied to the index of the table" in told(setting, values[(x + sign * 3) % 256])


# -- sums and other operands -------------------------------------------------------------------------------------------
A, B, OUT = (QuantParams.per_tensor(s, z, "int8") for s, z in ((0.5, 5), (0.125, -7), (0.75, 9)))


def added() -> tuple[Setting, np.ndarray, np.ndarray]:
    net, rng = Net(), np.random.default_rng(2)
    a, b = (rng.integers(-128, 128, (4, 64)).astype(np.int8) for _ in range(2))
    inputs = (net.feed("a", a, A), net.feed("b", b, B))
    op = Elementwise(name="sum", inputs=inputs, outputs=(net.out("y", OUT),), lo=-128, hi=127, op="Add")
    return setting_of(net, op), a.astype(np.float64), b.astype(np.float64)


def sums(real: np.ndarray, rounding: Any = np.rint) -> np.ndarray:
    return np.clip(rounding(real / 0.75) + 9, -128, 127).astype(np.int64)


@pytest.mark.parametrize(
    ("real", "said"),
    [
        (lambda a, b: (a - 5) * 0.125 + (b + 7) * 0.5, "the scales of the operands are exchanged"),
        (lambda a, b: (a - 5) * 0.5 + (b + 7) * 0.5, "the operand b is taken with the scale of a"),
        (lambda a, b: (a - 5) * 0.75 + (b + 7) * 0.125, "the operand a is taken with the scale of y"),
        (lambda a, b: a * 0.5 + (b + 7) * 0.125, "the zero point of the operand a is ignored"),
    ],
)
def test_operands_that_are_read_on_another_grid(real: Any, said: str) -> None:
    setting, a, b = added()
    assert told(setting, sums(real(a, b))) == [said]


@pytest.mark.parametrize(("rounding", "said"), [(np.floor, "toward negative infinity"), (np.trunc, "toward zero")])
def test_sums_that_are_rounded_otherwise(rounding: Any, said: str) -> None:
    setting, a, b = added()
    found = sums((a - 5) * 0.5 + (b + 7) * 0.125, rounding)
    assert any(f"it rounds {said}" in text for text in told(setting, found, close=True))
    assert not any("it rounds" in text for text in told(setting, found))  # only small differences may be roundings


def test_a_clamp_that_is_left_out() -> None:
    setting, a, b = added()
    found = sums((a - 5) * 0.5 + (b + 7) * 0.125)
    op = Elementwise(name="sum", inputs=("a", "b"), outputs=("y",), lo=-20, hi=20, op="Add")
    base = np.clip(found, op.lo, op.hi)
    narrow = Setting(setting.graph, op, setting.values, EXACT, setting.evaluate, base)
    assert told(narrow, found)[0] == "the clamp to [-20, 20] is missing"  # nothing wraps around: none is beyond 8 bits


@pytest.mark.parametrize(("rounding", "said"), [(np.floor, "toward negative infinity"), (np.trunc, "toward zero")])
def test_quantization_that_rounds_otherwise(rounding: Any, said: str) -> None:
    net = Net()
    x = np.random.default_rng(3).normal(0, 20, (4, 64)).astype(np.float32)
    op = Quantize(name="q", inputs=(net.feed("x", x),), outputs=(net.out("y", OUT),), lo=-128, hi=127)
    setting = setting_of(net, op)
    found = np.clip(rounding(x / np.float32(0.75)) + 9, -128, 127).astype(np.int64)
    assert any(f"it rounds {said}" in text for text in told(setting, found, close=True))


def test_a_bias_that_dequantization_leaves_out() -> None:
    net = Net()
    x = net.feed("x", np.arange(-4, 4, dtype=np.int8).reshape(1, 8), A)
    bias = net.constant("b", np.asarray([1.5], np.float32))
    setting = setting_of(net, Dequantize("real", (x, bias), (net.out("y"),)))
    assert told(setting, (np.arange(-4, 4, dtype=np.float32).reshape(1, 8) - 5) * np.float32(0.5)) == [
        "the bias is missing"
    ]


# -- over an axis ------------------------------------------------------------------------------------------------------
def test_a_softmax_over_another_axis() -> None:
    net = Net()
    out = QuantParams.per_tensor(1 / 256, 0, "uint8")
    x = np.random.default_rng(4).integers(-20, 20, (5, 7)).astype(np.int8)
    op = Softmax(name="s", inputs=(net.feed("x", x, A),), outputs=(net.out("y", out),), lo=0, hi=255, axis=1)
    setting = setting_of(net, op)
    exps = np.exp(x * 0.5)
    found = np.clip(np.rint(exps / exps.sum(0) * 256), 0, 255).astype(np.int64)
    assert "the sum goes along axis 0, not along axis 1" in told(setting, found)


@pytest.mark.parametrize("missing", ["bias", "factor"])
def test_a_normalization_without_its_factor_or_bias(missing: str) -> None:
    net, rng = Net(), np.random.default_rng(5)
    x = rng.integers(-128, 128, (6, 16)).astype(np.int8)
    gamma, beta = rng.uniform(0.5, 2, 16).astype(np.float32), rng.normal(size=16).astype(np.float32)
    inputs = (net.feed("x", x, A), net.constant("gamma", gamma), net.constant("beta", beta))
    out = QuantParams.per_tensor(0.03125, 0, "int8")
    op = LayerNorm(name="n", inputs=inputs, outputs=(net.out("y", out),), lo=-128, hi=127, epsilon=1e-5)
    setting = setting_of(net, op)
    real = (x - 5.0) * 0.5
    normal = (real - real.mean(1, keepdims=True)) / np.sqrt(real.var(1, keepdims=True) + 1e-5)
    wrong = normal * gamma if missing == "bias" else normal + beta
    assert f"the {missing} is missing" in told(setting, np.clip(np.rint(wrong * 32), -128, 127).astype(np.int64))

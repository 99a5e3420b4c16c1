"""The first convolution: widened channels change where the time goes, and no integer."""

from __future__ import annotations

import numpy as np
import pytest

from qatc.compiler.integer import Conv, Move, Quantize
from tests.backends.emitting import Net, grid, integers, same
from tests.backends.test_onnx_products import known_shape

pytestmark = pytest.mark.usefixtures("exact_runtime")


def stem(channels: int, filters: int, *, last: bool = False, known: str = "all", quantized: bool = False,
         repeat: bool = False) -> tuple[Net, str]:  # fmt: skip
    """Input -> [Transpose] -> [Quantize] -> Conv 3x3, once or twice."""
    dice, net = np.random.default_rng(channels), Net()
    x_grid = grid(dice, "uint8")
    first = (2, channels, 7, 6)
    shape = (2, 7, 6, channels) if last else first
    known_first = known_shape(first, known)
    if quantized:
        x = net.input(integers(dice, x_grid, shape), x_grid, known_shape(shape, known))
    else:
        x = net.input(dice.normal(size=shape).astype(np.float32), None, known_shape(shape, known))
        x = net.add(Quantize, [x], x_grid, known_shape(shape, known))
    if last:
        x = net.add(Move, [x], x_grid, known_first, op_type="Transpose", attrs={"perm": [0, 3, 1, 2]})
    for _ in range(2 if repeat else 1):
        w_grid = x_grid.per_tensor(0.01, 0, "int8")
        weight = net.constant(dice.integers(-127, 128, (filters, channels, 3, 3)).astype(np.int8), w_grid)
        out = grid(dice, "uint8", 0.5)
        fields = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "groups": 1, "transposed": False}
        scale = x_grid.scale[0] * 0.01
        x = net.add(Conv, [x, weight], out, (2, filters, 7, 6), acc_scale=(scale,), output_padding=(), **fields)
        x_grid, channels = out, filters
    return net, x


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("known", ["all", "channels"])
@pytest.mark.parametrize("quantized", [False, True])
def test_channels_come_in_fours(channels: int, known: str, *, quantized: bool) -> None:
    results = same(*stem(channels, 16, known=known, quantized=quantized))
    assert results["auto"].ops["Pad"] == 1
    assert results["standard"].ops["Pad"] == 0  # any runtime's file stays plain


@pytest.mark.parametrize(("known", "widened"), [("all", 1), ("channels", 0)])
def test_channels_last_are_concatenated_where_sizes_are_known(known: str, widened: int) -> None:
    results = same(*stem(3, 16, last=True, known=known))
    assert results["auto"].ops["Concat"] == widened
    assert results["auto"].ops["Pad"] == 0


@pytest.mark.parametrize(("channels", "filters"), [(4, 16), (8, 16), (3, 15)])
def test_nothing_is_widened_without_need(channels: int, filters: int) -> None:
    ops = same(*stem(channels, filters))["auto"].ops
    assert ops["Pad"] + ops["Concat"] == 0


def test_only_the_networks_own_input_is_widened() -> None:
    ops = same(*stem(3, 17, repeat=True))["auto"].ops
    assert (ops["QLinearConv"], ops["Pad"]) == (2, 1)

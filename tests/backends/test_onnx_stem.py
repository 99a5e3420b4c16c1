"""The first convolution: widened channels change where the time goes, and no integer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qatc.compiler.integer import Conv, Dequantize, Move, Quantize
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


def strided(channels: int, kernel: int, stride: int, size: tuple[int, int], pads: tuple[int, ...],
            **options: Any) -> tuple[Net, str]:  # fmt: skip
    """Float image -> Quantize -> strided Conv."""
    dice, net = np.random.default_rng(kernel), Net()
    x_grid = grid(dice, options.get("x", "uint8"))
    shape = (2, channels, *size)
    x = net.input(dice.normal(0, 9, shape).astype(np.float32), None, known_shape(shape, options.get("known", "all")))
    x = net.add(Quantize, [x], x_grid, shape)
    weight = dice.integers(-127, 128, (options.get("filters", 16), channels, kernel, kernel)).astype(np.int8)
    fields = {"strides": (stride, options.get("other", stride)), "pads": pads, "groups": 1, "transposed": False}
    fields |= {"dilations": (options.get("dilation", 1),) * 2, "output_padding": ()}
    w = net.constant(weight, x_grid.per_tensor(0.01, 0, "int8"))
    return net, net.add(Conv, [x, w], grid(dice, "uint8", 0.5), None, acc_scale=(x_grid.scale[0] * 0.01,), **fields)


@given(
    channels=st.sampled_from([1, 2, 3]),
    kernel=st.integers(1, 9),
    stride=st.integers(2, 4),
    blocks=st.tuples(st.integers(2, 5), st.integers(2, 5)),
    pads=st.lists(st.integers(0, 5), min_size=4, max_size=4),
)
@settings(max_examples=60)
def test_strides_are_folded_into_channels(
    channels: int, kernel: int, stride: int, blocks: tuple[int, int], pads: list[int]
) -> None:
    """Block by block it is the same convolution, whatever is padded or left over."""
    size = (blocks[0] * stride, blocks[1] * stride)
    if all(size[axis] + pads[axis] + pads[axis + 2] >= kernel for axis in (0, 1)):
        same(*strided(channels, kernel, stride, size, tuple(pads)))


@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "pad"), [(3, 7, 2, 3), (3, 5, 2, 2), (1, 5, 2, 2), (3, 4, 4, 0)]
)
def test_large_strided_kernels_go_block_by_block(channels: int, kernel: int, stride: int, pad: int) -> None:
    results = same(*strided(channels, kernel, stride, (16, 24), (pad,) * 4))
    assert results["auto"].ops["SpaceToDepth"] == 1
    assert results["auto"].ops["QuantizeLinear"] == 1
    assert results["auto"].ops["Pad"] == 0
    assert results["standard"].ops["SpaceToDepth"] == 0


@pytest.mark.parametrize(
    ("kernel", "stride", "size", "options"),
    [
        (3, 2, (16, 24), {}),  # more products than it is worth
        (7, 1, (16, 24), {}),
        (7, 2, (16, 24), {"other": 1}),
        (7, 2, (15, 24), {}),
        (7, 2, (16, 24), {"known": "channels"}),
        (7, 2, (16, 24), {"dilation": 2}),
        (7, 2, (16, 24), {"filters": 8}),
        (7, 2, (16, 24), {"x": "int8"}),
    ],
)
def test_strides_stay_where_blocks_are_no_gain(
    kernel: int, stride: int, size: tuple[int, int], options: dict[str, Any]
) -> None:
    assert same(*strided(3, kernel, stride, size, (3,) * 4, **options))["auto"].ops["SpaceToDepth"] == 0


def test_integers_that_others_read_stay() -> None:
    net, out = strided(3, 7, 2, (16, 24), (3,) * 4)
    net.add(Dequantize, (net.graph.ops[0].output,))
    assert same(net, out)["auto"].ops["SpaceToDepth"] == 0

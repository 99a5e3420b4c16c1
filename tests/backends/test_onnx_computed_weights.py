"""Convolutions with a weight of run time: QLinearConv and ConvInteger of uint8 and uint8, exact on each processor."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qatc.compiler.integer import Conv, Dequantize
from qatc.compiler.quant import QuantParams
from tests.backends.emitting import FORMS, Net, grid, integers, same

pytestmark = pytest.mark.usefixtures("exact_runtime")
PLAIN = {"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1), "groups": 1}


@pytest.mark.parametrize("types", ["uint8 uint8 uint8", "uint8 int8 uint8", "int8 uint8 int8", "int8 int8 uint8"])
@pytest.mark.parametrize(
    ("shape", "kernel", "fields"),
    [
        ((2, 3, 6, 7), (5, 3, 3, 3), {}),
        ((1, 4, 7, 7), (4, 1, 3, 3), {"groups": 4, "pads": (1, 1, 1, 1)}),
        ((1, 4, 8, 8), (6, 2, 3, 2), {"groups": 2, "strides": (2, 1), "pads": (1, 0, 2, 1), "dilations": (1, 2)}),
        ((1, 2, 9), (1, 2, 4), {"strides": (2,), "pads": (1, 2), "dilations": (1,)}),
    ],
    ids=["plain", "depthwise", "grouped", "one axis"],
)
@given(seed=st.integers(0, 2**32 - 1), bias=st.booleans())
@settings(max_examples=6)
def test_a_weight_of_run_time(
    types: str, shape: tuple[int, ...], kernel: tuple[int, ...], fields: dict[str, object], seed: int, bias: bool
) -> None:
    dice = np.random.default_rng(seed)
    a, b, y = (grid(dice, dtype) for dtype in types.split())
    net = Net()
    names = [net.input(integers(dice, a, shape), a), net.input(integers(dice, b, kernel), b)]
    if bias:
        names.append(net.constant(dice.integers(-9999, 9999, kernel[0]).astype(np.int32)))
    unit = (a.scale[0] * b.scale[0],) * kernel[0]
    out = net.add(Conv, names, y, None, **{**PLAIN, **fields, "acc_scale": unit})
    results = same(net, out)
    assert all(result.ops["QLinearConv"] == 1 for result in results.values())


@pytest.mark.parametrize("real", [False, True])
def test_its_accumulator_is_read(real: bool) -> None:
    dice = np.random.default_rng(3)
    a, b = grid(dice), grid(dice, "int8")
    net = Net()
    names = [net.input(integers(dice, a, (1, 3, 5, 5)), a), net.input(integers(dice, b, (4, 3, 3, 3)), b)]
    unit = (a.scale[0] * b.scale[0],) * 4
    raw = QuantParams.per_channel(unit, 1, 0, "int32")
    out = net.add(Conv, names, raw, (1, 4, 3, 3), **PLAIN, acc_scale=unit)
    if real:
        bias = net.constant(dice.normal(0, 1, 4).astype(np.float32))
        out = net.add(Dequantize, (out, bias), None, (1, 4, 3, 3))
    results = same(net, out, FORMS)
    assert all(result.ops["ConvInteger"] == 1 for result in results.values())

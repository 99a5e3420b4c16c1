"""Float products between grids: ONNX Runtime's optimizer would round their weights; what is emitted does not let it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qatc.compiler.integer import Dequantize, Float, Move, Op, Quantize
from qatc.compiler.quant import Array, QuantParams
from tests.backends.emitting import Net, grid, integers, same

REASON: dict[str, Any] = {"reason": "its weight is not quantized"}
CASES: list[tuple[str, tuple[int, ...], tuple[int, ...], int]] = [
    ("Conv", (1, 4, 6, 6), (5, 4, 3, 3), 0),
    ("ConvTranspose", (1, 4, 6, 6), (4, 5, 3, 3), 1),
    ("Gemm", (3, 8), (8, 5), 1),
    ("MatMul", (3, 8), (8, 5), 1),
]


def weight(dice: np.random.Generator, shape: tuple[int, ...], axis: int) -> Array:
    """Channels of very different sizes: one scale of int8 loses most of them."""
    spread = [1] * len(shape)
    spread[axis] = -1
    sizes = np.geomspace(1e-3, 1, shape[axis]).reshape(spread)
    return (dice.normal(size=shape) * sizes).astype(np.float32)


def product(
    op_type: str, shape: tuple[int, ...], kernel: tuple[int, ...], axis: int, *, bias: bool, own: QuantParams
) -> tuple[Net, str]:
    """The real numbers of a product of `own` integers with float weights; MatMul has an Add for its bias."""
    dice = np.random.default_rng(1)
    net = Net(opset=21)
    real = net.add(Dequantize, [net.input(integers(dice, own, shape), own)], None, shape)
    inputs = [real, net.constant(weight(dice, kernel, axis))]
    offset = net.constant(weight(dice, (kernel[axis],), 0))
    if bias and op_type != "MatMul":
        inputs.append(offset)
    y = net.add(Float, inputs, op_type=op_type, attrs={}, **REASON)
    return net, net.add(Float, [y, offset], op_type="Add", attrs={}, **REASON) if op_type == "MatMul" and bias else y


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rounded", [True, False])
@pytest.mark.parametrize(("op_type", "shape", "kernel", "axis"), CASES, ids=lambda v: v if isinstance(v, str) else "")
def test_float_weights_stay_what_they_are(
    op_type: str,
    shape: tuple[int, ...],
    kernel: tuple[int, ...],
    axis: int,
    bias: bool,
    dtype: str,
    rounded: bool,
) -> None:
    own = grid(np.random.default_rng(2), dtype, 5e-5 if dtype == "uint16" else 0.01)
    net, y = product(op_type, shape, kernel, axis, bias=bias, own=own)
    ends: dict[str, Any] = {"within": 1e-5}
    if rounded:
        y = net.add(Float, [y], op_type="Relu", attrs={}, **REASON)
        y = net.add(Quantize, [y], QuantParams.per_tensor(own.scale[0], 3, dtype))
        ends = {"within": 1}  # a float product sums in any order
    for result in same(net, y, **ends).values():
        assert result.share < 0.05 or not rounded
        assert ("DequantizeLinear" in result.ops) != rounded


@pytest.mark.parametrize("op_type", ["Transpose", "Reshape", "MaxPool"])
def test_what_moves_in_between_does_not_hide_it(op_type: str) -> None:
    dice = np.random.default_rng(3)
    net, own, shape = Net(), grid(dice, "uint8", 0.01), (1, 4, 6, 6)
    real = net.add(Dequantize, [net.input(integers(dice, own, shape), own)], None, shape)
    attrs: dict[str, Any] = {"Transpose": {"perm": [0, 1, 3, 2]}, "MaxPool": {"kernel_shape": [2, 2]}}.get(op_type, {})
    sizes = [net.constant(np.asarray(shape))] if op_type == "Reshape" else []
    kind: type[Op] = Float if op_type == "MaxPool" else Move
    words: dict[str, Any] = REASON if op_type == "MaxPool" else {}
    moved = net.add(kind, [real, *sizes], op_type=op_type, attrs=attrs, **words)
    y = net.add(Float, [moved, net.constant(weight(dice, (5, 4, 3, 3), 0))], op_type="Conv", attrs={}, **REASON)
    out = net.add(Quantize, [y], QuantParams.per_tensor(0.02, 3, "uint8"))
    for result in same(net, out, within=1).values():
        assert result.share < 0.05


def test_a_weight_of_run_time_is_multiplied_in_floats() -> None:
    """Of two dequantized tensors ONNX Runtime makes an integer convolution, which rounds to other integers at ties."""
    dice = np.random.default_rng(5)
    net, own = Net(), QuantParams.per_tensor(0.0625, 128, "uint8")
    reals = [
        net.add(Dequantize, [net.input(integers(dice, own, shape), own)], None, shape)
        for shape in ((1, 4, 6, 6), (5, 4, 3, 3))
    ]
    y = net.add(Float, reals, op_type="Conv", attrs={}, **REASON)
    out = net.add(Quantize, [y], QuantParams.per_tensor(0.5, 3, "uint8"))
    for result in same(net, out).values():
        assert result.ops["Conv"] == 1
        assert "DequantizeLinear" not in result.ops


def test_what_is_never_rounded_is_one_operator() -> None:
    """Nothing behind the product ends on a grid, however far that goes."""
    net, y = product("Conv", *CASES[0][1:], bias=True, own=grid(np.random.default_rng(4)))
    for _ in range(3):
        y = net.add(Float, [y], op_type="Tanh", attrs={}, **REASON)
    assert same(net, y, within=1e-5)["auto"].ops["DequantizeLinear"] == 1

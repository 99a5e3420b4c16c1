"""Graphs that were read and cannot be run: each is told by what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from qatc.compiler.integer import (
    Conv,
    Dequantize,
    Elementwise,
    Float,
    IntegerGraph,
    Lookup,
    Move,
    Op,
    Pool,
    Tensor,
    integer_tensor,
)
from qatc.compiler.package.integer_check import check_read
from qatc.compiler.quant import QuantParams

_GRID = QuantParams.per_tensor(0.1, 0)
_CONV = Conv("conv", ("x", "w"), ("y",), lo=0, hi=255, strides=(1, 1), pads=(0,) * 4, dilations=(1, 1), groups=1,
             acc_scale=(0.01,))  # fmt: skip
_POOL = Pool("pool", ("x",), ("y",), lo=0, hi=255, mode="max", kernel=(2, 2))
_TABLE = Lookup("table", ("x", "t"), ("y",), lo=0, hi=255, function="Sigmoid")
_SUM = Elementwise("sum", ("x", "x", "x"), ("y",), lo=0, hi=255, op="Add")
_FLOAT = Float("float", ("x", ""), ("y",), op_type="Relu", attrs={}, reason="")


def _graph(op: Op, **tensors: Tensor) -> IntegerGraph:
    described = {
        "x": integer_tensor("x", _GRID, (1, 3, 4, 4)),
        "w": integer_tensor("w", _GRID, (8, 3, 1, 1)),
        "y": integer_tensor("y", _GRID),
        **tensors,
    }
    return IntegerGraph("net", ["x"], ["y"], [op], described, {"w": np.zeros((8, 3, 1, 1), np.uint8)}, 17)


@pytest.mark.parametrize(
    "op", [_CONV, _POOL, _TABLE, _FLOAT, _SUM, replace(_CONV, inputs=("x", "w", "")), replace(_FLOAT, inputs=())]
)
def test_what_can_be_run(op: Op) -> None:
    check_read(_graph(op))


@pytest.mark.parametrize(
    ("op", "why"),
    [
        (replace(_CONV, inputs=("x",)), r"conv cannot have the operands \['x'\]"),
        (replace(_CONV, inputs=("x", "")), "cannot have the operands"),
        (replace(_POOL, inputs=("x", "x")), "cannot have the operands"),
        (replace(_FLOAT, inputs=("", "")), "has no operand"),
        (Move("move", (), ("y",), op_type="Identity", attrs={}), "has no operand"),
        (replace(_SUM, inputs=("x",)), "cannot have the operands"),
        (replace(_SUM, inputs=("x", "x", "")), "which is not quantized"),
        (replace(_SUM, op="Mul"), "cannot have the operands"),
        (replace(_CONV, outputs=("y", "z")), "cannot have the results"),
        (replace(_POOL, outputs=("",)), "cannot have the results"),
        (replace(_CONV, inputs=("x", "t")), "reads t, which is not quantized"),
        (replace(_CONV, dilations=(1,)), "of different axes"),
        (replace(_CONV, pads=(0,) * 3), "of different axes"),
        (replace(_CONV, output_padding=(1,)), "of different axes"),
        (replace(_POOL, kernel=(2,)), "of different axes"),
    ],
)
def test_what_cannot(op: Op, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        check_read(_graph(op))


@pytest.mark.parametrize(
    ("tensor", "why"),
    [
        (lambda t: replace(t, params=None), "reads x, which is not quantized"),
        (lambda t: replace(t, dtype="float32"), "tensor x is float32 and has parameters of uint8"),
        (lambda _: integer_tensor("x", QuantParams.per_tensor(0.1, 0, "int16")), "not of 8 bits"),
    ],
)
def test_what_is_read_of_another_kind(tensor: Callable[[Tensor], Any], why: str) -> None:
    graph = _graph(_TABLE)
    graph.tensors["x"] = tensor(graph.tensors["x"])
    with pytest.raises(ValueError, match=why):
        check_read(graph)


def test_a_float_result_needs_no_grid() -> None:
    check_read(_graph(Dequantize("d", ("x",), ("y",)), y=Tensor("y", "float32", None)))

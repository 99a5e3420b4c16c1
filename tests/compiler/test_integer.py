"""IntegerGraph: what its checks find, what it tells, and how it is shown."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qatc.compiler.integer import (
    Dequantize,
    Float,
    IntegerGraph,
    Lookup,
    MatMul,
    Move,
    Quantize,
    Rescale,
    Tensor,
    integer_tensor,
    raw_accumulator,
)
from qatc.compiler.quant import QuantParams

GRID = QuantParams.per_tensor(0.5, 128)


def graph() -> IntegerGraph:
    """X -> Quantize -> MatMul(w) -> Dequantize -> y"""
    made = IntegerGraph("net", ["x"], ["y"], [], {}, {}, 17)
    weight = QuantParams.per_channel([0.25, 0.5], 1)
    made.constants["w"] = np.asarray([[1, -2]], np.int8)
    made.constants["b"] = np.asarray([3, 4], np.int32)
    for tensor in (
        Tensor("x", "float32", ("N", 1)),
        Tensor("y", "float32", ("N", 2)),
        integer_tensor("xq", GRID, ("N", 1)),
        integer_tensor("yq", GRID, ("N", 2)),
        integer_tensor("w", weight, (1, 2)),
        Tensor("b", "int32", (2,)),
    ):
        made.tensors[tensor.name] = tensor
    made.ops = [
        Quantize("q", ("x",), ("xq",), lo=0, hi=255),
        MatMul("m", ("xq", "w", "b"), ("yq",), lo=0, hi=200, acc_scale=(0.125, 0.25)),
        Dequantize("d", ("yq",), ("y",)),
    ]
    return made


def test_a_sound_graph() -> None:
    made = graph()
    made.verify()
    assert made.dump() == (
        "graph net opset 17\n"
        "input x<float32 Nx1>\n"
        "constant w<int8 scale 0.25..0.5 zero 0 axis 1 x2 1x2> {1,-2}\n"
        "constant b<int32 2> {3,4}\n"
        "xq<uint8 scale 0.5 zero 128 Nx1> = Quantize[hi=255 lo=0](x)\n"
        "yq<uint8 scale 0.5 zero 128 Nx2> = MatMul[acc_scale=0.125..0.25 hi=200 lo=0](xq, w, b)\n"
        "y<float32 Nx2> = Dequantize(yq)\n"
        "output y\n"
    )


def test_questions() -> None:
    made = graph()
    assert made.producers()["yq"] is made.ops[1]
    assert made.consumers() == {n: [made.ops[i]] for n, i in (("x", 0), ("xq", 1), ("w", 1), ("b", 1), ("yq", 2))}
    assert made.params("yq") == GRID
    with pytest.raises(KeyError, match="x is not quantized"):
        made.params("x")
    assert [op.kind for op in made.ops] == ["Quantize", "MatMul", "Dequantize"]
    assert made.ops[1].output == "yq"


def test_islands_are_floats_with_a_reason() -> None:
    made = graph()
    made.ops.append(Float("s", ("y",), ("z",), op_type="Softmax", attrs={}, reason="because"))
    made.ops.append(Float("t", ("z",), ("s",), op_type="Shape", attrs={}, reason=""))
    assert [op.name for op in made.islands()] == ["s"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: g.ops.reverse(), "reads yq before it is made"),
        (lambda g: g.ops.append(replace(g.ops[0], name="again")), "makes xq a second time"),
        (lambda g: g.tensors.pop("yq"), "makes yq, which is not described"),
        (lambda g: g.outputs.append("z"), "graph output z is never made"),
        (lambda g: g.ops.__setitem__(1, replace(g.ops[1], lo=-1)), "clamps to"),
        (lambda g: g.ops.__setitem__(1, replace(g.ops[1], hi=256)), "clamps to"),
        (lambda g: g.ops.__setitem__(1, replace(g.ops[1], lo=9, hi=8)), "clamps to"),
        (lambda g: g.constants.update(w=np.asarray([[1, 2]], np.int16)), "constant w holds int16, described as int8"),
        (lambda g: g.ops.append(Lookup("l", ("yq", "b"), ("z",), lo=0, hi=1, function="f")) or
            g.tensors.update(z=integer_tensor("z", GRID)), "needs a table of 256"),
    ],
)  # fmt: skip
def test_what_verify_finds(change, message: str) -> None:
    made = graph()
    change(made)
    with pytest.raises(ValueError, match=message):
        made.verify()


def test_dumps_leave_out_what_says_nothing_and_show_what_differs() -> None:
    made = graph()
    made.ops[1] = Rescale("r", ("xq",), ("yq",), lo=0, hi=255, source="node")
    made.ops.append(
        Move("m", ("yq",), ("z",), op_type="Custom", attrs={"b": b"text", "a": np.asarray([1, 2]), "c": [1, 2]})
    )
    made.tensors["z"] = integer_tensor("z", GRID)
    lines = made.dump().splitlines()
    assert "yq<uint8 scale 0.5 zero 128 Nx2> = Rescale[hi=255 lo=0](xq)" in lines
    assert "z<uint8 scale 0.5 zero 128 ?> = Move[a={1,2} b=text c=[1, 2] op_type=Custom](yq)" in lines


def test_the_grid_of_an_accumulator() -> None:
    assert raw_accumulator((0.5,), 1) == QuantParams.per_tensor(0.5, 0, "int32")
    assert raw_accumulator((0.5, 0.25), 1) == QuantParams.per_channel([0.5, 0.25], 1, 0, "int32")

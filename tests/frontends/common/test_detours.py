"""Integers of 16 bits that take another type, or stand amid a quantizer, while they are moved or clamped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from qatc import compile_model
from qatc.compiler.runtime.sessions import RunnableModel
from qatc.frontends.common.detours import shorten
from qatc.frontends.common.sinking import sink
from tests.graphs import loaded, net

SLICE = "int64[1] start = {1}, int64[1] end = {5}, int64[1] axis = {1}"
WEIGHT = "int8[4,4,1,1] wq = {1, -2, 3, 4, 5, -6, 7, 8, 9, 1, 2, -3, 4, 5, 6, 7}"
BODIES = {
    "a clamp": ("b = Relu(a)\ny = W(b)", ""),
    "a clamp behind movement": ("f = Flatten(a)\nb = Relu(f)\ny = W(b)", ""),
    "the largest": ("b = MaxPool<kernel_shape = [2, 2]>(a)\nc = AveragePool<kernel_shape = [2, 2]>(b)\ny = W(c)", ""),
    "several moves": (
        "b = MaxPool<kernel_shape = [2, 2]>(a)\nf = Flatten(b)\ng = Slice(f, start, end, axis)\n"
        "c = Sigmoid(g)\ny = W(c)",
        SLICE,
    ),
    "a product": ("w = DequantizeLinear(wq, sD, zD)\nc = Conv(a, w)\nd = W(c)\nr = Relu(d)\ny = W(r)", WEIGHT),
}


@pytest.mark.parametrize("opset", [17, 21])
@pytest.mark.parametrize("case", BODIES)
def test_packages_of_16_bits_are_read_back(case: str, opset: int, tmp_path: Path) -> None:
    """As many operators stay float as before, and the second package computes what the first one does."""
    body, constants = BODIES[case]
    text = net("(float[1,4,6,6] x) => (float[] y)", f"a = W(x)\n{body}", constants, opset=opset)
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    first = compile_model(tmp_path / "model.onnx", qat=True, output=tmp_path / "first")
    second = compile_model(tmp_path / "first" / "model.onnx", qat=True, output=tmp_path / "second")
    assert [i.op_type for i in second.islands] == [i.op_type for i in first.islands]
    x = {"x": np.random.default_rng(0).normal(0, 40, (1, 4, 6, 6)).astype(np.float32)}
    want, found = (RunnableModel(onnx.load(tmp_path / name / "model.onnx")).run(x)["y"] for name in ("first", "second"))
    np.testing.assert_array_equal(found, want)


HEAD = '<ir_version: 8, opset_import: ["" : 17]>\ng (float[2,4] x) => (float[] y)\n<'
TAKES = "i = Cast<to = 5>(x)\nw = Cast<to = {wide}>(i)\n{node}\nn = Cast<to = {narrow}>(m)\ny = Cast<to = 1>(n)"


def taken(node: str, constants: str = "", *, wide: int = 1, narrow: int = 5) -> int:
    given = f"{constants or 'float unused = {0}'}"
    return shorten(loaded(f"{HEAD}{given}>\n{{\n{TAKES.format(wide=wide, narrow=narrow, node=node)}\n}}"))


@pytest.mark.parametrize("wide", [1, 6, 7, 11])
def test_the_wider_type_is_left_out(wide: int) -> None:
    assert taken("m = Transpose(w)", wide=wide) == 1


@pytest.mark.parametrize(
    ("node", "constants"),
    [
        ("m = Clip(w, low, high)", "float low = {-7}, float high = {1e9}"),
        ("m = Clip(w, low)", "float low = {-7}"),
        ("m = Where(which, w, low)", "bool[1] which = {1}, float low = {-7}"),
        ("m = Pad(w, pads, low)", "int64[4] pads = {0, 1, 0, 1}, float low = {-7}"),
    ],
)
def test_operands_take_the_narrow_type(node: str, constants: str) -> None:
    assert taken(node, constants) == 1


@pytest.mark.parametrize(
    ("node", "constants", "narrow"),
    [
        ("m = Clip(w, low)", "float low = {0.5}", 5),  # no whole number
        ("m = Where(which, w, low)", "bool[1] which = {1}, float low = {1e6}", 5),  # beyond 16 bits
        ("m = Pad(w, pads, low)", "int64[4] pads = {0, 1, 0, 1}, float low = {0.5}", 5),
        ("m = Transpose(w)", "", 3),  # narrower than it was: a Cast of values
        ("m = Abs(w)", "", 5),
        ("m = Transpose(x)", "", 5),  # real numbers
    ],
)
def test_what_stays(node: str, constants: str, narrow: int) -> None:
    assert taken(node, constants, narrow=narrow) == 0


@pytest.mark.parametrize(
    ("move", "scale", "sinks"),
    [
        ("Flatten(i)", "Mul(f, s)", True),
        ("Flatten(i)", "Mul(f, minus)", True),
        ("ReduceMax<axes = [1]>(i)", "Mul(f, s)", True),
        ("ReduceMax<axes = [1]>(i)", "Mul(f, minus)", False),
        ("ReduceMax<axes = [1]>(i)", "Sub(s, f)", False),
        ("Flatten(i)", "Mul(f, deep)", False),
    ],
)
def test_movement_of_integers_goes_behind_their_arithmetic(move: str, scale: str, sinks: bool) -> None:
    constants = "float s = {0.5}, float minus = {-0.5}, float[1,1] deep = {0.5}, float low = {-9}, float high = {9}"
    body = "d = Div(x, s)\nr = Round(d)\nc = Clip(r, low, high)\ni = Cast<to = 5>(c)\n"
    body += f"m = {move}\nf = Cast<to = 1>(m)\ny = {scale}"
    graph = loaded(f"{HEAD}{constants}>\n{{\n{body}\n}}")
    sink(graph)
    ops = [n.op for n in graph.nodes]
    moved = next(op for op in ops if op in ("Flatten", "ReduceMax"))
    assert (ops.index(moved) == len(ops) - 1) == sinks

"""What a file is that no dialect knows: where products are of integers, that is said, and not that nothing is found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from qatc import CompileError, compile_model, inspect_model

CONSTANTS = (
    "int8[4,3] w = {1,2,3,4,5,6,7,8,9,10,11,12}, int32[3] b = {0,0,0}, float s = {0.1}, bool true = {1}, "
    "int64[2] shape = {2,4}"
)
ROUND = "r = Round(d)\nn = Cast<to = 3>(r)\nq = Cast<to = 6>(n)\nv = Cast<to = 6>(w)\n"
PRODUCT = "p = MatMul(q, v)\nf = Cast<to = 1>(p)\ny = Mul(f, s)"
CHOICE = """c = If(true) <
    then_branch = given () => (float g) { g = Identity(s) },
    else_branch = found () => (float e) { e = Identity(m) }
>
"""


def refused(body: str, folder: Path) -> list[tuple[str, str | None]]:
    head = '<ir_version: 10, opset_import: ["" : 17]>\nnet (float[2,4] x) => (float[2,3] y)'
    text = f"{head}\n<{CONSTANTS}>\n{{\n{body}\n}}"
    onnx.save(onnx.parser.parse_model(text), folder / "model.onnx")
    with pytest.raises(CompileError) as caught:
        compile_model(folder / "model.onnx", qat=True, output=folder / "out")
    return [(d.code, d.tensor) for d in caught.value.diagnostics]


@pytest.mark.parametrize(
    ("body", "found"),
    [
        pytest.param(f"d = Div(x, s)\n{ROUND}{PRODUCT}", ("QAT104", "q"), id="a constant scale"),
        pytest.param(
            "d = Mul(x, s)\nr = Round(d)\nq = Cast<to = 3>(r)\nt = Reshape(q, shape)\ni = Cast<to = 6>(t)\n"
            "v = Cast<to = 6>(w)\np = MatMul(i, v)\nf = Cast<to = 1>(p)\ny = Mul(f, s)",
            ("QAT104", "i"),
            id="behind movement",
        ),
        pytest.param(
            f"a = Abs(x)\nm = ReduceMax(a)\nd = Div(x, m)\n{ROUND}{PRODUCT}", ("QAT205", "m"), id="of its input"
        ),
        pytest.param(
            f"a = Abs(x)\nm = ReduceMax<keepdims = 0>(a)\n{CHOICE}d = Div(x, c)\n{ROUND}{PRODUCT}",
            ("QAT104", "q"),
            id="a constant condition chooses the constant one",
        ),
        pytest.param(
            "d = Relu(x)\nf = Cast<to = 1>(b)\ny = Tile(f, shape)", ("QAT101", None), id="nothing of the kind"
        ),
    ],
)
def test_products_of_integers_are_told(body: str, found: tuple[str, str | None], tmp_path: Path) -> None:
    assert refused(body, tmp_path) == [found]


@pytest.mark.parametrize(
    "maker",
    [
        pytest.param("", id="in the graph"),
        pytest.param("w = Constant<value = int8[4,3] {1,2,3,4,5,6,7,8,9,10,11,12}>()\n", id="in a node"),
    ],
)
def test_weights_are_seen_wherever_the_exporter_put_them(maker: str, tmp_path: Path) -> None:
    head = '<ir_version: 10, opset_import: ["" : 17]>\nnet (float[2,4] x) => (float[2,3] y)'
    constants = "float s = {0.1}" if maker else CONSTANTS
    text = f"{head}\n<{constants}>\n{{\n{maker}f = Cast<to = 1>(w)\nk = Mul(f, s)\ny = MatMul(x, k)\n}}"
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    assert compile_model(tmp_path / "model.onnx", output=tmp_path / "out").evidence.startswith(
        "1 Cast of integer weights"
    )


def test_a_float_model_is_told_by_what_it_holds(tmp_path: Path) -> None:
    """Whoever looks for the quantizers sees at once that there are none."""
    head = '<ir_version: 10, opset_import: ["" : 17]>\nnet (float[2] x) => (float[2] y)'
    text = f"{head} {{ c = Constant<value_float = 0.0>() a = Relu(x) b = Relu(a) y = Exp(b) }}"
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    for function in (compile_model, inspect_model):
        with pytest.raises(CompileError, match="that any dialect knows; its operators are 2 Relu, 1 Exp\n"):
            function(tmp_path / "model.onnx")
    np.save(tmp_path / "data.npy", np.ones((4, 2), np.float32))
    with pytest.raises(CompileError, match=r"help: --calibrate fills what .* does not quantize a float model: export"):
        compile_model(tmp_path / "model.onnx", calibrate=tmp_path / "data.npy")

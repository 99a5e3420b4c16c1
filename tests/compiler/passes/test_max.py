"""Max and Min of quantized tensors choose between integers: rounding is monotone, so that it commutes with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx.parser
import pytest

from qatc import compile_model
from qatc.compiler.lowering import LoweringOptions
from qatc.compiler.runtime.sessions import RunnableModel
from tests.agreeing import agrees, kinds
from tests.graphs import net

PAIR = "(float[2,8] x, float[2,8] u) => (float[2,8] y)"
THREE = "(float[2,8] x, float[2,8] u, float[2,8] v) => (float[2,8] y)"
ONE = "(float[2,8] x) => (float[2,8] y)"
HALVES = "(float[1,2,4,4] x) => (float[1,2,4,4] y)"
CONV = "a = A(x)\nk = D(f)\nv = Conv(a, k)\n"
WEIGHT = "float[4,2,1,1] f = {0.5, 1, -0.25, 1, 2, -1, 0.25, 0.5}"
VECTOR = "float[8] k = {0.3, 1, 2, 3, -5, 5, 6, 9.9}"


@pytest.mark.parametrize("op", ["Max", "Min"])
@pytest.mark.parametrize(
    ("signature", "body", "constants", "want"),
    [
        pytest.param(PAIR, "a = A(x)\nb = A(u)\nw = Max(a, b)\ny = A(w)", "", ["Max"], id="one grid"),
        pytest.param(PAIR, "a = A(x)\nb = A(u)\ny = Max(a, b)", "", ["Max"], id="one grid, not rounded again"),
        pytest.param(PAIR, "a = A(x)\nb = B(u)\nw = Max(a, b)\ny = A(w)", "", ["Rescale", "Max"], id="two"),
        pytest.param(
            PAIR, "a = A(x)\nb = B(u)\nw = Max(a, b)\ny = C(w)", "", ["Rescale", "Rescale", "Max"], id="three"
        ),
        pytest.param(
            THREE,
            "a = A(x)\nb = B(u)\nd = C(v)\nw = Max(a, b, d)\ny = D(w)",
            "",
            ["Rescale", "Rescale", "Rescale", "Max"],
            id="of three",
        ),
        pytest.param(
            THREE,
            "a = A(x)\nb = A(u)\nd = A(v)\nw = Max(a, b)\nz = Max(w, d)\ny = A(z)",
            "",
            ["Max", "Max"],
            id="one after the other",
        ),
        pytest.param(
            THREE,
            "a = A(x)\nb = B(u)\nd = C(v)\nw = Max(a, b)\nz = Max(w, d)\ny = D(z)",
            "",
            ["Rescale", "Rescale", "Max", "Rescale", "Max"],
            id="one after the other, on grids of their own",
        ),
        pytest.param(
            "(float[2,1] x, float[8] u) => (float[2,8] y)",
            "a = A(x)\nb = A(u)\nw = Max(a, b)\ny = A(w)",
            "",
            ["Max"],
            id="spread",
        ),
        pytest.param(
            PAIR,
            "a = A(x)\nb = B(u)\nw = Max(a, b)\nr = Relu(w)\ny = A(r)",
            "",
            ["Rescale", "Rescale", "Max"],
            id="clamped",
        ),
        pytest.param(ONE, "a = A(x)\nw = Max(a, k)\ny = A(w)", VECTOR, ["Max"], id="a constant off the grid"),
        pytest.param(ONE, "a = A(x)\nd = C(k)\nw = Max(a, d)\ny = A(w)", VECTOR, ["Max"], id="a constant on its own"),
        pytest.param(ONE, "a = A(x)\ny = Max(a, k)", VECTOR, ["(Max)"], id="a constant off the grid, not rounded"),
        pytest.param(
            HALVES,
            CONV + "l, r = Split<axis = 1>(v, two)\nw = Max(l, r)\ny = A(w)",
            f"{WEIGHT}, int64[2] two = {{2, 2}}",
            ["Conv", "Split", "Max"],
            id="halves of a product are rounded before (max feature map)",
        ),
        pytest.param(
            ONE, "a = A(x)\ns = Mul(a, k)\nw = Max(a, s)\ny = A(w)", "float k = {0.1}", ["Lookup"], id="leaky"
        ),
    ],
)
def test_the_larger_of_integers(op: str, signature: str, body: str, constants: str, want: list[str]) -> None:
    text, lists = net(signature, body.replace("Max(", f"{op}("), constants), [w.replace("Max", op) for w in want]
    assert kinds(agrees(text)) == lists


@pytest.mark.parametrize("activations", ["uint8", "keep"])
@pytest.mark.parametrize(("a", "b", "y"), ["CCC", "WWW", "WCA", "ACW"])
def test_every_width_is_compared(a: str, b: str, y: str, activations: str) -> None:
    text = net(PAIR, f"a = {a}(x)\nb = {b}(u)\nw = Max(a, b)\ny = {y}(w)", opset=21)
    assert "Max" in kinds(agrees(text, LoweringOptions(activations=activations)))


def test_a_network_of_maxima_is_compiled_and_its_package_read_back(tmp_path: Path) -> None:
    """Max feature maps (LightCNN): the larger half of the channels, in integers from end to end."""
    body = CONV + "l, r = Split<axis = 1>(v, two)\nw = Max(l, r)\nd = B(w)\ne = Conv(d, k)\ng = A(e)\nh = Min(g, a4)"
    body += "\ny = A(h)"
    constants = f"{WEIGHT}, int64[2] two = {{2, 2}}, float[4,1,1] a4 = {{1, 2, 3, 4}}"
    onnx.save(
        onnx.parser.parse_model(net(HALVES.replace("2,4,4] y", "4,4,4] y"), body, constants)), tmp_path / "m.onnx"
    )
    first = compile_model(tmp_path / "m.onnx", qat=True, output=tmp_path / "first")
    assert first.islands == ()
    assert first.verification is not None
    assert first.verification.passed
    again = compile_model(tmp_path / "first" / "model.onnx", qat=True, output=tmp_path / "again")
    assert again.islands == ()
    assert again.coverage == first.coverage
    x = np.random.default_rng(0).normal(0, 30, (1, 2, 4, 4)).astype(np.float32)
    results = [
        RunnableModel(onnx.load(tmp_path / p)).run({"x": x})["y"]
        for p in ("m.onnx", "first/model.onnx", "again/model.onnx")
    ]
    for found in results[1:]:
        np.testing.assert_array_equal(found, results[0])


def test_a_leaky_relu_of_a_product_stays_one_island() -> None:
    """Neither x nor x / 10 is rounded in front of Max: x is read unrounded, too."""
    body = CONV + "s = Mul(v, k1)\nw = Max(v, s)\ny = A(w)"
    found = kinds(agrees(net(HALVES.replace("2,4,4] y", "4,4,4] y"), body, f"{WEIGHT}, float k1 = {{0.1}}")))
    assert "Max" not in found

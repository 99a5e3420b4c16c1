"""Where between integers, as a package of qatc holds it: read back as a choice between real numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

from qatc import compile_model
from qatc.compiler.diagnostics import CompileError
from tests.graphs import canonical, net

PAIR = "(bool[2,8] c, float[2,8] x, float[2,8] u) => (float[2,8] y)"


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        ("a = A(x)\nb = A(u)\nw = Where(c, a, b)\ny = A(w)", ""),
        ("a = A(x)\nb = B(u)\nw = Where(c, a, b)\nr = Relu(w)\ny = A(r)", ""),
        ("a = C(x)\nb = C(u)\nv = Where(c, a, b)\nw = Where(c, k, v)\ny = C(w)", "float k = {-1000000000}"),
        ("a = W(x)\nb = W(u)\nw = Where(c, a, b)\ny = W(w)", ""),
        (
            "a = A(x)\nb = A(u)\nv = Where(c, k, b)\nw = Concat<axis = 0>(a, v)\ny = A(w)",
            "float[1,8] k = {0,1,2,3,4,5,6,7}",
        ),
    ],
    ids=["one grid", "two", "a mask behind a choice", "16 bits", "in a row"],
)
@pytest.mark.parametrize("activations", ["uint8", "keep"])
def test_a_package_with_a_choice_compiles_again(body: str, constants: str, activations: str, tmp_path: Path) -> None:
    signature = PAIR.replace("(float[2,8] y)", "(float[n,8] y)")
    onnx.save(onnx.parser.parse_model(net(signature, body, constants, opset=21)), tmp_path / "m.onnx")
    (tmp_path / "t.toml").write_text(f'name = "t"\nbackend = "onnx"\nactivations = "{activations}"\n')
    first = compile_model(tmp_path / "m.onnx", output=tmp_path / "p", target=str(tmp_path / "t.toml"))
    second = compile_model(tmp_path / "p" / "model.onnx", output=tmp_path / "q")
    assert "Where" in first.package_ops
    assert second.coverage.share == 1.0
    assert not second.islands
    rng = np.random.default_rng(0)
    feeds = {name: rng.normal(0, 40, (2, 8)).astype(np.float32) for name in ("x", "u")}
    feeds["c"] = rng.random((2, 8)) < 0.5
    results = []
    for path in (tmp_path / "m.onnx", tmp_path / "q" / "model.onnx"):
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        results.append(np.asarray(session.run(None, {i.name: feeds[i.name] for i in session.get_inputs()})[0]))
    np.testing.assert_array_equal(*results)


def test_a_choice_between_integers_and_a_constant() -> None:
    graph = canonical(
        net(
            "(bool[2] c, float[2] x) => (float[2] y)",
            "q = QuantizeLinear(x, sA, zA)\nw = Where(c, k, q)\nr = Clip(w, l, h)\ny = DequantizeLinear(r, sA, zA)",
            "uint8 k = {3}, uint8 l = {100}, uint8 h = {200}",
        )
    )
    lines = graph.dump().split("\n", 1)[1].strip().splitlines()
    assert lines == [
        "input c",
        "input x",
        "q_real = FakeQuant[params=uint8[100,200] scale 0.5 zero 128](x)",
        "y = Where(c, k<uint8[100,200] scale 0.5 zero 128>:uint8[]{100}, q_real)",
        "output y",
    ]


def test_a_choice_between_integers_and_a_constant_that_leaves_the_graph() -> None:
    graph = canonical(
        net(
            "(bool[2] c, float[2] x) => (uint8[2] y)",
            "q = QuantizeLinear(x, sA, zA)\ny = Where(c, k, q)",
            "uint8 k = {3}",
        )
    )
    assert graph.dump().split("\n", 1)[1].strip().splitlines() == [
        "input c",
        "input x",
        "q_real = FakeQuant[params=uint8 scale 0.5 zero 128](x)",
        "y = Where(c, k<uint8 scale 0.5 zero 128>:uint8[]{3}, q_real)",
        "output y",
    ]


@pytest.mark.parametrize(
    ("side", "message"),
    [("b", "different grids meet"), ("c2", "computes with the integers")],
)
def test_a_choice_between_unlike_integers_is_refused(side: str, message: str) -> None:
    text = net(
        "(bool[2] c, float[2] x, float[2] u, uint8[2] c2) => (float[2] y)",
        "a = QuantizeLinear(x, sA, zA)\nb = QuantizeLinear(u, sB, zB)\n"
        f"d = BitwiseNot(c2)\nw = Where(c, a, {side.replace('c2', 'd')})\ny = DequantizeLinear(w, sA, zA)",
        opset=18,
    )
    with pytest.raises(CompileError, match=message):
        canonical(text)

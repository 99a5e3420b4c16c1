"""Biases that integers cannot add: the product is of integers, the sum stands behind it, and all means the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx.parser
import pytest

from qatc import compile_model
from qatc.compiler.graph import shape_of
from qatc.compiler.passes.biases import part_biases
from tests.graphs import net, stripped
from tests.pipeline import simulate

TWO = "int8[3,2] wq = {1, -2, 30, 4, 55, -6}"
MATRIX = "(float[4,3] x, float[4,2] u) => (float[] y)"
WEIGHT = "w = DequantizeLinear(wq, sD, zD)\n"
KERNEL = "int8[2,3,1,1] wq = {1, -2, 30, 4, 55, -6}, float sD = {0.0625}, int8 zD = {0}"
APART = {
    "a sum that an optimizer joined": (MATRIX, f"a = A(x)\nc = C(u)\n{WEIGHT}g = Gemm(a, w, c)", TWO),
    "alpha and beta": (MATRIX, f"a = A(x)\nc = C(u)\n{WEIGHT}g = Gemm<alpha = 0.5, beta = 3.0>(a, w, c)", TWO),
    "of a row": (MATRIX, f"a = A(x)\nc = C(u)\nd = ReduceMax<axes = [0]>(c)\n{WEIGHT}g = Gemm(a, w, d)", TWO),
    "one number a row": (
        MATRIX, f"a = A(x)\n{WEIGHT}g = Gemm<beta = 2.0>(a, w, b)", f"{TWO}, float[4,1] b = {{1., -2., 3., 4.}}",
    ),
    "two activations": (
        MATRIX, "a = A(x)\nc = C(u)\ng = Gemm<transA = 1>(a, c, b)", "float[2] b = {1., -2.}",
    ),
    "a convolution": (
        "(float[1,3,2,2] x, float[2] u) => (float[] y)", f"a = A(x)\nb = C(u)\n{WEIGHT}g = Conv(a, w, b)", KERNEL,
    ),
}  # fmt: skip


def text_of(what: str) -> str:
    signature, body, constants = APART[what]
    if "sD" not in constants and "wq" in constants:
        constants += ", float sD = {0.0625}, int8 zD = {0}"
    return net(signature, f"{body}\ny = A(g)", constants)


@pytest.mark.parametrize("what", APART)
def test_products_with_such_biases_are_integers_and_mean_the_same(what: str, tmp_path: Path) -> None:
    """Verified against the file itself."""
    onnx.save(onnx.parser.parse_model(text_of(what)), tmp_path / "model.onnx")
    result = compile_model(tmp_path / "model.onnx", output=tmp_path / "package", qat=True)
    assert result.coverage.share == 1.0
    assert {island.op_type for island in result.islands} <= {"Add", "Mul", "Unsqueeze"}
    assert result.verification is not None
    assert result.verification.passed


@pytest.mark.parametrize("what", APART)
def test_the_graph_means_what_it_did(what: str) -> None:
    graph = stripped(text_of(what))
    dice = np.random.default_rng(0)
    feeds = {
        t.name: dice.normal(0, 9, [d for d in shape_of(t) or () if isinstance(d, int)]).astype(np.float32)
        for t in graph.inputs
    }
    want = simulate(graph, feeds)["y"]
    assert part_biases(graph) == 1
    graph.verify()
    np.testing.assert_array_equal(simulate(graph, feeds)["y"], want)


@pytest.mark.parametrize(
    ("signature", "body", "constants"),
    [
        pytest.param(MATRIX, f"a = A(x)\n{WEIGHT}g = Gemm(a, w, b)", f"{TWO}, float[2] b = {{1, 2}}", id="constant"),
        pytest.param(MATRIX, f"a = A(x)\n{WEIGHT}g = Gemm(a, w)", TWO, id="none"),
        pytest.param(MATRIX, f"{WEIGHT}g = Gemm(x, w, u)", TWO, id="the input is not quantized"),
        pytest.param(MATRIX, "a = A(x)\ng = Gemm(a, w, u)", "float[3,2] w = {1,2,3,4,5,6}", id="nor the weight"),
        pytest.param(
            MATRIX, "a = A(x)\nc = C(u)\ng = Gemm<transA = 1>(a, c, b)", "float[2] b = {0., 0.}", id="zeros",
        ),
    ],
)  # fmt: skip
def test_others_stay(signature: str, body: str, constants: str) -> None:
    if "wq" in constants:
        constants += ", float sD = {0.0625}, int8 zD = {0}"
    graph = stripped(net(signature, f"{body}\ny = A(g)", constants))
    before = graph.dump()
    assert part_biases(graph) == 0
    assert graph.dump() == before

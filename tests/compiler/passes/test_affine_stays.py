"""Affine chains that must stay, and what damaged numbers in them lead to."""

from __future__ import annotations

import pytest

from qatc.compiler.passes.affine import fold_affine
from tests.compiler.passes.test_affine import CONV, DENSE, NORM, WEIGHT, X2, X4, Y4, after_fold
from tests.graphs import net, stripped


@pytest.mark.parametrize(
    ("signature", "body", "constants", "axis"),
    [
        pytest.param(
            "(float[1,1,2,2] x) => (float[1,2,2,2] y, float[1,2,2,2] z)",
            "c = Conv(x, w)\nn = Mul(c, k)\ny = A(n)\nz = Relu(c)",
            f"{CONV}, float[2,1,1] k = {{2.0, 3.0}}",
            0,
            id="the raw result has another reader",
        ),
        pytest.param(
            "(float[1,1,2,2] x) => (float[1,2,2,2] c, float[1,2,2,2] y)",
            "c = Conv(x, w)\nn = Mul(c, k)\ny = A(n)",
            f"{CONV}, float[2,1,1] k = {{2.0, 3.0}}",
            0,
            id="the raw result is a graph output",
        ),
        pytest.param(
            X4,
            f"c = Conv(x, w)\nd = B(c)\nn = Mul(d, k)\n{Y4}",
            f"{CONV}, float[2,1,1] k = {{2.0, 3.0}}",
            0,
            id="the result is rounded before",
        ),
        pytest.param(
            X4,
            f"c = Conv(x, w)\nn = Mul(c, k)\n{Y4}",
            f"{CONV}, float[2] k = {{2.0, 3.0}}",
            0,
            id="varies along the width",
        ),
        pytest.param(
            X4,
            f"c = Conv(x, w)\nn = Div(k, c)\n{Y4}",
            f"{CONV}, float[2,1,1] k = {{2.0, 3.0}}",
            0,
            id="divides a constant",
        ),
        pytest.param(
            "(float[1,1,2,2] x, float[2] k) => (float[1,2,2,2] y)",
            f"c = Conv(x, w, k)\nn = BatchNormalization(c, g, b, m, v)\n{Y4}",
            f"{CONV}, {NORM}",
            0,
            id="the bias is computed at run time",
        ),
        pytest.param(
            X2,
            "c = Gemm(x, w, k)\nn = Mul(c, l)\ny = A(n)",
            f"{DENSE}, float[3,1] k = {{1.0, 2.0, 3.0}}, float[2] l = {{2.0, 3.0}}",
            1,
            id="the bias varies from row to row",
        ),
        pytest.param(
            "(float[3,2] x) => (float[3,2] y)",
            "c = MatMul(x, w)\nn = Mul(c, k)\ny = A(n)",
            "int8[2,2] wq = {1, 2, 3, 4}, float[2] ws = {0.5, 0.25}, int8[2] wz = {0, 0}, float[2] k = {2.0, -1.0}",
            0,
            id="scales along the other axis of the weight",
        ),
        pytest.param(
            X2,
            "c = MatMul(x, w)\nn = Mul(c, k)\ny = A(n)",
            f"{DENSE}, float[1,1,2] k = {{2.0, -1.0}}",
            1,
            id="a constant of more dimensions",
        ),
        pytest.param(
            "(float[1,2,1] x) => (float[1,2,2] y)",
            "c = MatMul(x, w)\nn = BatchNormalization(c, g, b, m, v)\ny = A(n)",
            f"{DENSE}, {NORM}",
            1,
            id="the channels of batch norm are the rows",
        ),
        pytest.param(
            "(float[1,1,2,2] x) => (float[2,4] y)",
            "c = Conv(x, w)\nr = Reshape(c, s)\nn = Mul(r, k)\ny = A(n)",
            f"{CONV}, int64[2] s = {{4, 2}}, float[2] k = {{2.0, 3.0}}",
            0,
            id="a reshape that tears the channels",
        ),
        pytest.param(
            "(float[1,2,2,2] x) => (float[1,2,2,2] y)",
            f"c = ConvTranspose<group = 2>(x, w)\nn = Mul(c, k)\n{Y4}",
            "int8[2,1,1,1] wq = {10, -20}, float ws = {0.5}, int8 wz = {0}, float[2,1,1] k = {2.0, 3.0}",
            0,
            id="groups of a transposed convolution",
        ),
    ],
)
def test_what_must_stay(signature: str, body: str, constants: str, axis: int) -> None:
    graph = stripped(net(signature, WEIGHT.format(axis=axis) + body, constants))
    before = graph.dump()
    fold_affine(graph)
    graph.verify()
    assert graph.dump() == before
    assert not graph.diagnostics.items


def test_a_float_weight_stays() -> None:
    graph = stripped(
        net(X4, f"c = Conv(x, w)\nn = Mul(c, k)\n{Y4}", "float[2,1,1,1] w = {0.1, 0.2}, float[2,1,1] k = {2.0, 3.0}")
    )
    before = graph.dump()
    fold_affine(graph)
    assert graph.dump() == before


@pytest.mark.parametrize(("results", "mode"), [("n, r, u", 1), ("n", 1), ("n, r, u", 0)])
def test_batch_norm_in_training_mode_stays(results: str, mode: int) -> None:
    text = net(
        f"(float[1,1,2,2] x) => (float[1,2,2,2] y{', float[2] r' if 'r' in results else ''})",
        WEIGHT.format(axis=0)
        + f"c = Conv(x, w)\n{results} = BatchNormalization<training_mode = {mode}>(c, g, b, m, v)\ny = A(n)",
        f"{CONV}, {NORM}",
    )
    graph = stripped(text)
    before = graph.dump()
    fold_affine(graph)
    assert graph.dump() == before


@pytest.mark.parametrize("var", ["-1.0", "nan"])
def test_damaged_statistics_are_an_error(var: str) -> None:
    graph = after_fold(
        X4,
        f"c = Conv(x, w)\nn = BatchNormalization(c, g, b, m, v)\n{Y4}",
        f"{CONV}, float[2] g = {{1.0, 1.0}}, float[2] b = {{0.0, 0.0}}, float[2] m = {{0.0, 0.0}}, "
        f"float[2] v = {{{var}, 1.0}}",
    )
    assert [d.code for d in graph.diagnostics.errors] == ["QAT210"]


def test_a_division_by_zero_stays_as_it_is() -> None:
    """The source computes infinities there, and so does what is made of it."""
    graph = after_fold(X4, f"c = Conv(x, w)\nn = Div(c, d)\n{Y4}", f"{CONV}, float[1,2,1,1] d = {{0.0, 2.0}}")
    assert [(d.code, d.severity.value) for d in graph.diagnostics] == [("QAT210", "warning")]
    assert "Div" in [n.op for n in graph.nodes]

"""Missing ranges: exactly the tensors that keep an operator from running in integers are listed, and filling works."""

from __future__ import annotations

import pytest

from qatc.compiler.lowering import lower
from qatc.compiler.lowering.missing import fill, missing_ranges
from qatc.compiler.passes.affine import fold_affine
from qatc.compiler.passes.propagate import propagate
from qatc.compiler.quant import QuantParams
from tests.graphs import net, stripped

W4 = "int8[2,2,1,1] wq = {10, -20, 30, 40}"
W2 = "int8[2,2] wq = {10, -20, 30, 40}"
D = "w = DequantizeLinear(wq, sD, zD)\n"
IMAGE = "(float[1,2,4,4] x) => (float[M] y)"


@pytest.mark.parametrize(
    ("signature", "body", "constants", "want"),
    [
        pytest.param(IMAGE, D + "c = Conv(x, w)\ny = A(c)", W4, ["x"], id="the graph input"),
        pytest.param(IMAGE, "a = A(x)\n" + D + "c = Conv(a, w)\ny = A(c)", W4, [], id="nothing"),
        pytest.param(
            IMAGE,
            "a = A(x)\n" + D + "c = Conv(a, w)\nd = Conv(c, w)\ny = A(d)",
            W4,
            ["c"],
            id="between two convolutions",
        ),
        pytest.param(
            IMAGE,
            "a = A(x)\n" + D + "c = Conv(a, w)\nr = Relu(c)\nd = Conv(r, w)\ny = A(d)",
            W4,
            ["r"],
            id="behind Relu: not in front",
        ),
        pytest.param(
            IMAGE,
            "a = A(x)\n" + D + "c = Conv(a, w)\ns = Add(c, a)\nr = Relu(s)\ny = A(r)",
            W4,
            ["c"],
            id="a residual sum needs both operands",
        ),
        pytest.param(
            IMAGE,
            "a = A(x)\n" + D + "c = Conv(a, w)\ns = Add(c, a)\nt = Add(s, a)\ny = A(t)",
            W4,
            ["c"],
            id="a sum of three needs what it adds up, not the partial sum",
        ),
        pytest.param(
            "(bool[2] c, float[2] x, float[2] u) => (float[2] y)",
            "a = A(x)\ns = Where(c, a, u)\nm = Mul(s, a)\ny = A(m)",
            "",
            ["s"],
            id="a choice; what it chooses from takes its range",
        ),
        pytest.param(
            "(float[1,2,4,4] x, float[1,2,4,4] u) => (float[M] y)",
            "a = A(x)\ns = Add(a, u)\nm = MaxPool<kernel_shape = [2, 2]>(s)\ny = A(m)",
            "",
            ["u"],
            id="through pooling back to the sum",
        ),
        pytest.param(
            IMAGE,
            "a = A(x)\np = GlobalAveragePool(a)\nf = Flatten(p)\n" + D + "g = Gemm(f, w)\ny = A(g)",
            W2,
            ["f"],
            id="pooling in front of the last layer",
        ),
        pytest.param(IMAGE, "r = ReduceSum(x, axes)\ny = A(r)", "int64[1] axes = {1}", ["x"], id="what is summed up"),
        pytest.param(
            IMAGE, "a = A(x)\n" + D + "c = Conv(a, w)\ny = Softmax(c)", W4, [], id="a raw result needs no range"
        ),
        pytest.param(
            IMAGE,
            "e = Exp(x)\nm = Mul(e, v)\ns = Add(m, v)\nr = Relu(s)\ny = A(r)",
            "float[1,2,1,1] v = {1.5, -2.0}",
            [],
            id="an affine of floats stays what it is",
        ),
        pytest.param(
            IMAGE, "c = Conv(x, w)\ny = Relu(c)", "float[2,2,1,1] w = {1.0, 2.0, 3.0, 4.0}", [], id="a float layer"
        ),
        pytest.param(
            IMAGE,
            "a = A(x)\nc = Conv(a, w)\ny = Relu(c)",
            "float[2,2,1,1] w = {1.0, 2.0, 3.0, 4.0}",
            [],
            id="a float weight",
        ),
        pytest.param(
            IMAGE, "a = A(x)\n" + D + "c = Conv(a, w)\ns = Sign(c)\ny = A(s)", W4, [], id="a sum whose sign is taken"
        ),
        pytest.param(
            "(float[3,2] x) => (float[3,2] y)",
            "a = A(x)\n" + D + "m = MatMul(a, w)\nb = Add(m, k)\nn = Sign(b)\nh = Add(n, half)\ns = Sign(h)\ny = A(s)",
            W2 + ", float[2] k = {1.0, 2.0}, float half = {0.5}",
            [],
            id="a sum with a bias whose sign is taken",
        ),
        pytest.param(
            IMAGE,
            "a = A(x)\n" + D + "c = Conv(a, w)\np = MaxPool<kernel_shape = [2, 2]>(c)\nh = Clip(p, low, high)\n"
            "s = Sign(h)\ny = A(s)",
            W4 + ", float low = {-1.0}, float high = {1.0}",
            [],
            id="a pooled and clamped sum whose sign is taken",
        ),
        pytest.param(
            IMAGE, "a = A(x)\nd = Add(a, x)\ns = Sign(d)\ny = A(s)", "", ["x", "d"], id="the sign of no product"
        ),
        pytest.param(
            IMAGE,
            "a = A(x)\ns = Sigmoid(x)\nm = Mul(a, s)\ny = A(m)",
            "",
            ["x", "s"],
            id="a gate and what it is made from",
        ),
        pytest.param(
            IMAGE,
            "s = Sigmoid(x)\nm = Mul(x, s)\ny = A(m)",
            "",
            ["x"],
            id="a table needs its root alone",
        ),
        pytest.param(
            "(float[3,2] x) => (float[3,2] y)",
            "a = A(x)\n" + D + "m = MatMul(a, w)\nb = Add(m, k)\ny = A(b)",
            W2 + ", float[2] k = {1.0, 2.0}",
            [],
            id="a bias fuses into its product",
        ),
        pytest.param(
            "(float[1,3,2] x, float[1,2,3] u) => (float[1,3,3] y)",
            "a = A(x)\nm = MatMul(a, u)\nh = Mul(m, k)\ny = A(h)",
            "float k = {0.5}",
            ["u"],
            id="one activation of an attention product",
        ),
        pytest.param(
            "(float[2,2] x, float[2,2] u) => (float[4,2] y)",
            "a = A(x)\nc = Concat<axis = 0>(a, u)\ny = B(c)",
            "",
            [],
            id="a part of a concatenation is rounded onto its grid",
        ),
        pytest.param(
            "(int64[2] i) => (float[2,2] y)",
            "g = Gather(t, i)\n" + D + "m = MatMul(g, w)\ny = A(m)",
            W2 + ", float[2,2] t = {1.0, 2.0, 3.0, 4.0}",
            ["g"],
            id="an embedding of float constants",
        ),
        pytest.param(
            "(float[2] x) => (float[2] y)",
            "a = A(x)\ns = Softmax(a)\nn = LayerNormalization<axis = 0>(s, k)\ny = A(n)",
            "float[2] k = {1.0, 2.0}",
            [],
            id="islands ask for nothing",
        ),
    ],
)
def test_which_tensors_lack_a_range(signature: str, body: str, constants: str, want: list[str]) -> None:
    graph = stripped(net(signature, body, constants))
    propagate(graph)
    fold_affine(graph)
    assert [t.name for t in missing_ranges(graph)] == want


def test_one_filled_range_asks_for_the_next() -> None:
    """Attention: values get a range for their own product, so the weights that multiply them need one too."""
    body = D + "p = MatMul(x, w)\nz = MatMul(p, w)\ns = Softmax(u)\nm = MatMul(s, p)\ny = A(m)"
    graph = stripped(net("(float[3,2] x, float[3,3] u) => (float[3,2] y, float[3,2] z)", body, W2))
    propagate(graph)
    assert [t.name for t in missing_ranges(graph)] == ["x", "p", "s"]


def test_parts_of_a_concatenation_take_over_its_range() -> None:
    body = D + "c = Conv(x, w)\nd = Conv(x, w)\ns = Sigmoid(d)\nm = Concat<axis = 1>(c, s)\ne = Conv(m, v)\ny = A(e)"
    graph = stripped(net(IMAGE, "v = DequantizeLinear(vq, sD, zD)\n" + body, W4 + ", int8[1,4,1,1] vq = {1, 2, 3, 4}"))
    propagate(graph)
    assert [t.name for t in missing_ranges(graph)] == ["x", "d", "m"]


def test_filled_ranges_make_everything_integer() -> None:
    text = net(
        IMAGE,
        D
        + """
        c = Conv(x, w)
        r = Relu(c)
        d = Conv(r, w)
        s = Add(d, r)
        m = MaxPool<kernel_shape = [2, 2]>(s)
        e = Conv(m, w)
        y = A(e)
        """,
        W4,
    )
    graph = stripped(text)
    propagate(graph)
    names = [t.name for t in missing_ranges(graph)]
    assert names == ["x", "r", "d", "m"]
    fill(graph, {name: QuantParams.per_tensor(0.5, 128) for name in names})
    graph.verify()
    assert not missing_ranges(graph)
    assert not [t for t in names if t in graph.origin]
    assert not list(lower(graph).islands())

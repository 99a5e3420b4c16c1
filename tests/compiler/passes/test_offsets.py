"""Constants added to quantized tensors: where they go, and that they mean the same there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qatc import compile_model
from qatc.compiler.graph import Node, QuantGraph
from qatc.compiler.passes import offsets
from qatc.compiler.passes.affine import fold_affine
from qatc.compiler.passes.offsets import move_offsets
from qatc.compiler.qdq import to_qdq
from qatc.compiler.runtime.sessions import RunnableModel
from qatc.compiler.shapes import infer_shapes
from tests.graphs import net, stripped

WEIGHT = "int8[2,2,3,3] wq = {" + ", ".join(str(v % 17 - 8) for v in range(0, 36 * 5, 5)) + "}, float k = {0.17}"
BODY = "a = A(x)\nw = DequantizeLinear(wq, sD, zD)\ns = Add(a, k)\n"


def moved(signature: str, body: str, constants: str) -> QuantGraph:
    graph = stripped(net(signature, body, constants))
    infer_shapes(graph)
    fold_affine(graph)
    move_offsets(graph)
    fold_affine(graph)
    graph.verify()
    return graph


def compiled(text: str, folder: Path) -> Any:
    (folder / "model.onnx").write_bytes(onnx.parser.parse_model(text).SerializeToString())
    result = compile_model(folder / "model.onnx", output=folder / "package", qat=True)
    assert result.verification is not None
    assert result.verification.passed
    return result


def convolution(attributes: str, sizes: str = "7,6") -> str:
    signature = f"(float[1,2,{sizes}] x) => (float[] y)"
    return net(signature, f"{BODY}t = C(w)\nc = Conv<{attributes}>(s, w)\ny = A(c)".replace("t = C(w)\n", ""), WEIGHT)


@pytest.mark.parametrize("op", ["Add(a, k)", "Add(k, a)", "Sub(a, k)"])
def test_without_padding_it_becomes_bias(op: str, tmp_path: Path) -> None:
    text = convolution("kernel_shape = [3, 3]").replace("Add(a, k)", op)
    result = compiled(text, tmp_path)
    assert (result.coverage.share, result.islands) == (1.0, ())


@given(
    pads=st.lists(st.integers(0, 2), min_size=4, max_size=4),
    strides=st.lists(st.integers(1, 2), min_size=2, max_size=2),
    dilations=st.lists(st.integers(1, 2), min_size=2, max_size=2),
)
@settings(max_examples=15, deadline=None)
def test_padding_holds_zeros_and_not_the_offset(
    tmp_path_factory: pytest.TempPathFactory, pads: list[int], strides: list[int], dilations: list[int]
) -> None:
    """Verified against the file itself: whatever the padding, all products are integers and the results are equal."""
    attributes = f"kernel_shape = [3, 3], pads = {pads}, strides = {strides}, dilations = {dilations}"
    result = compiled(convolution(attributes), tmp_path_factory.mktemp("padded"))
    assert result.coverage.share == 1.0


def test_a_border_is_stored_once() -> None:
    """Of 32 rows and columns only the border and one between differ: they are repeated by Gather."""
    graph = moved(
        "(float[1,2,32,32] x) => (float[1,2,32,32] y)",
        BODY + "c = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(s, w)\ny = A(c)",
        WEIGHT,
    )
    assert sorted(n.op for n in graph.nodes) == ["Add", "Conv", "Gather", "Gather"]
    assert max(t.values.size for n in graph.nodes for t in n.inputs if hasattr(t, "values")) == 36


def test_padding_of_unknown_size_keeps_it() -> None:
    graph = moved(
        "(float[1,2,H,W] x) => (float[1,2,H,W] y)",
        BODY + "c = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(s, w)\ny = A(c)",
        WEIGHT,
    )
    assert [n.op for n in graph.nodes] == ["Add", "Conv"]


@pytest.mark.parametrize(
    "product",
    [
        "g = Gemm<transB = 1>(f, w, b)",
        "g = Gemm<transB = 1, alpha = 0.5>(f, w)",
        "v = Transpose(w)\ng = MatMul(f, v)",
    ],
)
def test_behind_movement_averages_and_matrix_products(product: str, tmp_path: Path) -> None:
    body = f"""a = A(x)
        w = DequantizeLinear(wq, sD, zD)
        s = Add(a, k)
        m = MaxPool<kernel_shape = [2, 2]>(s)
        p = GlobalAveragePool(m)
        f0 = Flatten(p)
        n = MaxPool<kernel_shape = [5, 4]>(s)
        f = Flatten(n)
        {product}
        y = A(g)"""
    constants = "int8[3,8] wq = {" + ", ".join(str(v) for v in range(-12, 12)) + "}, float k = {-0.3}"
    signature = "(float[2,2,6,5] x) => (float[2,3] y)"
    text = net(signature, body.replace("f0 = Flatten(p)\n", ""), constants + ", float[3] b = {1.0, 2.0, 3.0}")
    result = compiled(text, tmp_path)
    assert (result.coverage.share, result.islands) == (1.0, ())


@pytest.mark.parametrize("clamp", ["Relu(c)", "Clip(c, low, high)"])
def test_a_constant_that_is_rounded_next_moves_before_a_clamp(clamp: str, tmp_path: Path) -> None:
    body = f"""a = A(x)
        w = DequantizeLinear(wq, sD, zD)
        c = Conv(a, w)
        r = {clamp}
        s = Sub(r, k)
        y = B(s)"""
    text = net("(float[1,2,6,6] x) => (float[] y)", body, WEIGHT + ", float low = {-1}, float high = {4}")
    result = compiled(text, tmp_path)
    assert (result.coverage.share, result.islands) == (1.0, ())


def test_other_constants_stay() -> None:
    body = "a = A(x)\nw = DequantizeLinear(wq, sD, zD)\ns = Add(a, {})\nc = Conv(s, w)\ny = A(c)"
    for operand, more in (("r", "float[2,1,1] r = {1.0, 2.0}"), ("x", "float r = {1}")):
        graph = moved("(float[1,2,6,6] x) => (float[1,2,4,4] y)", body.format(operand), f"{WEIGHT}, {more}")
        assert [n.op for n in graph.nodes if n.op in ("Add", "Conv")] == ["Add", "Conv"]


def test_a_long_way_is_walked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking back from each of n operators that an offset moves behind would take n * n / 2 looks."""
    looks: list[int] = []
    commutes = offsets._commutes

    def counted(node: Node) -> bool:
        looks[-1] += 1
        return commutes(node)

    monkeypatch.setattr(offsets, "_commutes", counted)
    for length in (50, 200):
        steps = "\n".join(f"t{i + 1} = Transpose<perm = [0, 2, 1]>(t{i})" for i in range(length))
        body = f"a = A(x)\nt0 = Add(a, k)\n{steps}\nu = Sigmoid(t{length})\ny = A(u)"
        graph = stripped(net("(float[1,2,2] x) => (float[1,2,2] y)", body, "float k = {0.17}"))
        infer_shapes(graph)
        looks.append(0)
        assert move_offsets(graph) == length
    assert looks[1] <= 4 * looks[0] + 8


RESIDUAL = "a1 = Add(a, c1)\nb = C(u)\nb1 = Add(b, c2)\n"
OFFSETS = "float c1 = {0.1718}, float c2 = {0.0551}, float c3 = {-0.0307}"


@pytest.mark.parametrize(
    ("body", "want"),
    [
        ("s = Add(a1, b1)\nt = Sub(s, c3)\ny = A(t)", ["Add", "Add"]),
        ("s = Add(b1, a1)\nt = Add(c3, s)\ny = A(t)", ["Add", "Add"]),
        ("s = Add(a1, b)\ny = A(s)", ["Add", "Add"]),
        ("s = Add(a1, b1)\nr = Relu(s)\nt = Sub(r, c3)\ny = A(t)", ["Add", "Add", "Clip"]),
        (
            "p = Transpose(a1)\no = Transpose(p)\ns = Add(o, b1)\nt = Sub(s, c3)\ny = A(t)",
            ["Transpose"] * 2 + ["Add"] * 2,
        ),
        ("s = Add(a1, b1)\nt = Sub(s, c3)\nv = A(t)\ny = Add(v, s)", ["Add", "Add", "Sub", "Add"]),
        ("s = Add(a1, c2)\nt = Sub(s, c3)\ny = A(t)", ["Add", "Add", "Sub"]),
    ],
    ids=["both", "constant first", "one, rounded at once", "clamped", "moved", "read twice", "of one tensor"],
)
def test_offsets_of_a_sum_become_one(body: str, want: list[str]) -> None:
    """What is left is one number behind the sum; a chain on one tensor is a table, and keeps the file's arithmetic."""
    text = net("(float[3,4] x, float[3,4] u) => (float[3,4] y)", "a = A(x)\n" + RESIDUAL + body, OFFSETS)
    assert [n.op for n in meaning_the_same(text).nodes] == want


def meaning_the_same(text: str) -> QuantGraph:
    """The graph with its offsets moved, asserting that it computes what the file computes."""
    graph = stripped(text)
    move_offsets(graph)
    graph.verify()
    rng = np.random.default_rng(0)
    feeds = {t.name: rng.normal(0, 20, t.shape).astype(np.float32) for t in graph.inputs}
    wanted = RunnableModel(onnx.parser.parse_model(text)).run(feeds)
    found = RunnableModel(to_qdq(graph, bias="float", portable=False).model).run(feeds)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-4)  # far below a step
    return graph


POOL = "y = AveragePool<kernel_shape = [3, 3], {}>(s)"


@pytest.mark.parametrize(
    ("body", "moves"),
    [
        ("c = ConvTranspose(s, w)\ny = A(c)", 0),
        ('c = Conv<auto_pad = "VALID">(s, w)\ny = A(c)', 1),
        ('c = Conv<auto_pad = "SAME_UPPER", strides = [2, 1]>(s, w)\ny = A(c)', 1),
        ('c = Conv<auto_pad = "SAME_LOWER">(s, w)\ny = A(c)', 1),
        (POOL.format("pads = [1, 1, 1, 1]"), 1),
        (POOL.format("pads = [1, 1, 1, 1], count_include_pad = 1"), 0),
        (POOL.format('auto_pad = "SAME_LOWER", count_include_pad = 1'), 0),
        ("p = GlobalAveragePool(s)\nf = Flatten(p)\ny = Gemm<alpha = 0.5>(f, e)", 3),
        ("f = Reshape(s, two)\ny = Gemm<transA = 1>(f, e)", 1),
        ("d = Sub(k, a)\ny = MaxPool<kernel_shape = [2, 2]>(d)", 0),
        ("d = Add(a, one)\ny = Transpose(d)", 0),  # the constant has more dimensions than the tensor
        ("n = Neg(x)\nb = A(n)\nd = Add(b, k)\nq = Add(d, k)\ny = A(q)", 0),  # a table, in the file's arithmetic
        ("c = Conv(a, w)\nr = Relu(c)\nd = Sub(r, k)\nq = B(d)\ny = Mul(q, r)", 0),  # the clamp has other readers
        ("c = Conv(a, w)\nr = Relu(c)\ny = Sub(r, k)", 0),  # nobody rounds it
    ],
)
def test_what_moves_means_the_same(body: str, moves: int) -> None:
    constants = (
        f"{WEIGHT}, int8[2,3] eq = {{1, 2, 3, -4, 5, 6}}, int64[2] two = {{2, -1}}, float[1,1,1,1,1] one = {{1}}"
    )
    lines = f"{BODY}e = DequantizeLinear(eq, sD, zD)\n{body}"
    text = net("(float[1,2,6,6] x) => (float[] y)", lines, constants)
    assert move_offsets(stripped(text)) == moves
    meaning_the_same(text)


def test_two_names_of_one_output_are_of_one_sum(tmp_path: Path) -> None:
    """Each had one of its own, and one once the written model was read again: -t qdq was refused."""
    text = net(
        "(float[2,3] x) => (float[2,3] y, float[2,3] h)", "a = A(x)\nh = Add(a, k)\ny = Identity(h)", "float k = {0.5}"
    )
    assert move_offsets(stripped(text)) == 0
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    compile_model(tmp_path / "model.onnx", target="qdq", output=tmp_path / "out")


def test_sizes_are_no_offsets() -> None:
    """Integers that are added to integers stay integers."""
    text = net(
        "(float[2,3] x) => (float[m,n] y)",
        "a = A(x)\ni = Shape(a)\nj = Add(i, i)\nk = Add(j, one)\nl = Add(k, one)\ne = Expand(zero, l)\ny = A(e)",
        "int64[1] one = {1}, float[1,1] zero = {3}",
    )
    assert move_offsets(stripped(text)) == 0

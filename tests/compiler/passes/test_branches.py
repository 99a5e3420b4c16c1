"""An If of a constant condition is the branch that it takes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from qatc.compiler.diagnostics import CompileError
from qatc.compiler.graph import QuantGraph
from qatc.frontends.common import qdq
from qatc.frontends.common.lift import lift
from tests.frontends.running import run
from tests.graphs import loaded, to_model

HEADER = '<ir_version: 8, opset_import: ["" : 17]>\n'


def prepared(body: str, signature: str = "(float[2,1,3] x) => (float[] y)") -> tuple[str, QuantGraph]:
    text = f"{HEADER}g {signature} <int64 one = {{1}}, int64 axis = {{1}}, float z = {{2.0}}> {{ {body} }}"
    graph = loaded(text)
    qdq.prepare(graph)
    graph.verify(stripped=False)
    return text, graph


def same(text: str, graph: QuantGraph, *inputs: np.ndarray) -> None:
    """Both compute the same."""
    for got, want in zip(run(to_model(graph), *inputs), run(onnx.parser.parse_model(text), *inputs), strict=True):
        np.testing.assert_array_equal(got, want)


LINKS = 8
SQUEEZE = (
    "s = Shape(x) d = Gather<axis=0>(s, axis) c = Equal(d, one)"
    " r = If(c) <then_branch = p () => (float[N,M] t) <int64[1] a = {1}> { t = Squeeze(x, a) },"
    " else_branch = q () => (float[N,M] t) { t = Identity(x) }>"
)


@pytest.mark.parametrize("size", [1, 4])
def test_a_condition_on_known_shapes(size: int) -> None:
    """What PyTorch writes for squeeze(); both branches call their results alike."""
    _, graph = prepared(f"{SQUEEZE} y = Relu(r)", f"(float[2,{size},3] x) => (float[] y)")
    assert [n.op for n in graph.nodes] == (["Squeeze", "Relu"] if size == 1 else ["Relu"])
    x = np.random.default_rng(0).normal(size=(2, size, 3)).astype(np.float32)
    want = np.maximum(x.squeeze(1) if size == 1 else x, 0)
    np.testing.assert_array_equal(run(to_model(graph), x)[0], want)


def test_a_branch_that_is_a_graph_output() -> None:
    text, graph = prepared(SQUEEZE.replace("r = If", "y = If"))
    same(text, graph, np.ones((2, 1, 3), np.float32))
    assert [t.name for t in graph.outputs] == ["y"]


def test_branches_in_branches_and_captured_names() -> None:
    text, graph = prepared(
        "c = Equal(one, axis) k = Abs(x) y = If(c) <then_branch = p () => (float[] t) { h = Mul(k, z) t = If(c)"
        " <then_branch = u () => (float[] v) { v = Add(h, k) }, else_branch = w () => (float[] v) { v = Neg(h) }> },"
        " else_branch = q () => (float[] t) { t = Identity(k) }>"
    )
    assert sorted(n.op for n in graph.nodes) == ["Abs", "Add", "Mul"]
    same(text, graph, np.full((2, 1, 3), -1, np.float32))


def test_quantizers_in_a_branch_are_read() -> None:
    text = (
        "c = Equal(one, axis) y = If(c) <then_branch = p () => (float[] t) <uint8 n = {128}>"
        " { q = QuantizeLinear(x, z, n) t = DequantizeLinear(q, z, n) },"
        " else_branch = q () => (float[] t) { t = Identity(x) }>"
    )
    source, graph = prepared(text)
    same(source, graph, np.linspace(-5, 5, 6, dtype=np.float32).reshape(2, 1, 3))
    lift(graph)
    assert [n.op for n in graph.nodes] == ["FakeQuant"]


def test_a_condition_that_is_computed_stays() -> None:
    computed = "e = ReduceMax<keepdims=0>(x) c = Greater(e, z)"
    _, graph = prepared(SQUEEZE.replace("c = Equal(d, one)", computed) + " y = Relu(r)")
    assert "If" in [n.op for n in graph.nodes]


@pytest.mark.parametrize("opset", [10, 11, 12, 13])
def test_a_branch_of_an_older_opset_is_brought_up_when_it_is_taken(opset: int) -> None:
    """Its squeeze() has axes as an attribute there, its Softmax spans all axes from the second on."""
    text = (
        f'<ir_version: 8, opset_import: ["" : {opset}]>\n'
        "g (float[2,1,3,2] x) => (float[] y) <int64 one = {1}, int64 axis = {1}> {"
        " r = Relu(x) s = Shape(r) d = Gather<axis=0>(s, axis) c = Equal(d, one)"
        " y = If(c) <then_branch = p () => (float[N,M,K] t) { u = Softmax<axis = 1>(r) t = Squeeze<axes = [1]>(u) },"
        " else_branch = q () => (float[N,M,K] t) { t = Identity(r) }> }"
    )
    if opset == 13:
        text = text.replace("Squeeze<axes = [1]>(u)", "Squeeze(u, a)").replace("{1}>", "{1}, int64[1] a = {1}>")
    graph = loaded(text)
    qdq.prepare(graph)
    graph.verify(stripped=False)
    assert "If" not in [n.op for n in graph.nodes]
    same(text, graph, np.random.default_rng(0).normal(size=(2, 1, 3, 2)).astype(np.float32))


def test_a_condition_on_sizes_that_the_file_does_not_state() -> None:
    _, graph = prepared(SQUEEZE.replace("Shape(x)", "Shape(h)").replace("s =", "h = Relu(x) s =") + " y = Relu(r)")
    assert [n.op for n in graph.nodes] == ["Squeeze", "Relu"]


@pytest.mark.parametrize(("size", "taken"), [(1, ["Relu", "Squeeze"]), (4, ["Relu"])])
def test_a_size_beside_an_open_batch_decides(size: int, taken: list[str]) -> None:
    """The shape as a whole is no constant, as its batch is open, but the one size that is asked for is."""
    _, graph = prepared(f"h = Relu(x) {SQUEEZE.replace('(x', '(h')}", f"(float[N,{size},3] x) => (float[] r)")
    assert [n.op for n in graph.nodes] == taken
    x = np.random.default_rng(0).normal(size=(2, size, 3)).astype(np.float32)
    (found,) = run(to_model(graph), x)
    np.testing.assert_array_equal(found, np.maximum(x, 0).reshape((2, 3) if size == 1 else x.shape))


def test_sizes_of_a_branch_decide_the_next() -> None:
    """PyTorch's LSTM asks at its end for the dimensions of what it chose at its start, and so does the next LSTM."""
    first = SQUEEZE.replace("Shape(x)", "Shape(h)").replace("s =", "h = Relu(x) s =")
    links = [
        f" a{i} = Abs({before}) s{i} = Shape(a{i}) n{i} = Size(s{i}) c{i} = Equal(n{i}, three)"
        f" r{i} = If(c{i}) <then_branch = p{i} () => (float[] t) {{ t = Squeeze(a{i}, first) }},"
        f" else_branch = q{i} () => (float[] t) {{ t = Neg(a{i}) }}>"
        for i, before in ((1, "r"), *((i, f"r{i - 1}") for i in range(2, LINKS + 1)))
    ]
    constants = "int64 three = {3}, int64[1] first = {0}"
    text = f"{HEADER}g (float[2,1,3] x) => (float[] y) <int64 one = {{1}}, int64 axis = {{1}}, {constants}> {{ "
    text += f"{first}{''.join(links)} y = Relu(r{LINKS}) }}"
    graph = loaded(text)
    qdq.prepare(graph)
    graph.verify(stripped=False)
    assert [n.op for n in graph.nodes] == ["Squeeze", *["Abs", "Neg"] * LINKS, "Relu"]
    same(text, graph, np.random.default_rng(0).normal(size=(2, 1, 3)).astype(np.float32))


@pytest.mark.parametrize(
    ("branch", "found"),
    [
        ("(float[] t, float[] u) { t = Relu(x) u = Neg(x) }", "the branch has 0 inputs and 2 outputs, not none and 1"),
        ("(float[] t) { t = Relu(u) u = Neg(x) }", "reads a tensor that nothing in its branch makes before"),
        ("(float[] t) { t = Relu(x) t = Neg(x) }", "this tensor is made a second time"),
    ],
)
def test_a_branch_that_is_none_is_told(branch: str, found: str) -> None:
    """Each ended in an exception, or as if nothing were wrong."""
    other = "else_branch = q () => (float[] t) { t = Abs(x) }"
    with pytest.raises(CompileError, match=f"QAT004.*{found}"):
        prepared(f"c = Equal(one, axis) y = If(c) <then_branch = p () => {branch}, {other}>")

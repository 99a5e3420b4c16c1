"""Layout operators that others make needless are left out, unless something is rounded in between."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from qatc import compile_model
from qatc.compiler.passes.needless import leave_out_moves
from qatc.compiler.passes.propagate import propagate
from tests.graphs import net, stripped
from tests.pipeline import simulate

NET = "(float[1,4,3,5] x) => (float[M] y)"
TURN, BACK = "Transpose<perm = [0, 2, 3, 1]>", "Transpose<perm = [0, 3, 1, 2]>"
SIZES = "int64[2] s = {1, 60}, int64[4] r = {1, 5, 4, 3}, int64[2] z = {0, -1}, int64[1] i = {0}, "
SIZES += "int64[2] h = {2, 30}, int64[2] k = {-2, 1}, int64[3] t = {0, 3, 10}"


@pytest.mark.parametrize(
    ("body", "left"),
    [
        (f"m = {TURN}(a) n = {BACK}(m)", []),
        (f"m = {TURN}(a) n = {TURN}(m)", ["Transpose"]),
        (f"m = {TURN}(x) n = {BACK}(m)", []),  # of real numbers
        (f"m = {TURN}(a) q = B(m) n = {BACK}(q)", ["Transpose", "Transpose"]),  # onto another grid
        (f"m = {TURN}(a) q = A(m) n = {BACK}(q)", []),  # onto the same one
        (f"m = {TURN}(a) p = Relu(m) o = {BACK}(p) n = A(o)", ["Relu"]),  # within a wider range
        (f"m = {TURN}(a) o = {BACK}(m) p = Sigmoid(m) l = {BACK}(p) n = Add(o, l)", []),
        (f"m = {TURN}(a) n = ReduceMean<axes = [1, -2], keepdims = 0>(m)", []),
        (f"m = {TURN}(a) n = ReduceMean<axes = [1, 2], keepdims = 1>(m)", ["Transpose"]),
        (f"m = {TURN}(x) n = ReduceMean<keepdims = 0>(m, k)", []),
        (f"m = {TURN}(a) n = ReduceMean<axes = [1], keepdims = 0>(m)", ["Transpose"]),  # channels last stay last
        ("m = Unsqueeze(a, i) n = ReduceMean<axes = [0], keepdims = 0>(m)", ["Unsqueeze"]),  # of single numbers
        (
            "m = ReduceMean<axes = [3], keepdims = 0>(a) p = Squeeze(m, i) n = ReduceMean<axes = [1], keepdims = 0>(p)",
            [],
        ),
        ("m = Reshape(a, s) n = Reshape(m, r)", ["Reshape"]),
        ("m = Flatten(a) n = Reshape(m, h)", ["Reshape"]),
        ("m = Squeeze(a, i) n = Reshape(m, r)", ["Reshape"]),
        ("l = Reshape(a, h) f = Flatten<axis = 2>(l) m = Reshape(f, s) n = Reshape(m, r)", ["Reshape"]),
        ("m = Unsqueeze(a, i) q = B(m) n = Reshape(q, r)", ["Unsqueeze", "Reshape"]),
        ("m = Reshape(a, h) n = Reshape(m, z)", ["Reshape"]),  # the second changes nothing
        ("m = Reshape(a, h) n = Reshape(m, t)", ["Reshape", "Reshape"]),  # copies a size of m
        (f"m = {TURN}(a) n = Reshape(m, s)", ["Transpose", "Reshape"]),
    ],
)
def test_what_is_left(body: str, left: list[str]) -> None:
    lines = re.sub(r"\) (?=\w+ = )", ")\n", body)
    graph = stripped(net(NET, f"a = A(x)\n{lines}\ny = Sigmoid(n)", SIZES, opset=18 if "(m, k)" in body else 17))
    propagate(graph)
    feeds = {"x": np.random.default_rng(0).normal(size=(1, 4, 3, 5)).astype(np.float32)}
    want = simulate(graph, feeds)
    leave_out_moves(graph)
    assert [n.op for n in graph.nodes if n.op not in ("Sigmoid", "ReduceMean", "Add")] == left
    assert len(graph.of("ReduceMean")) <= 1
    np.testing.assert_allclose(simulate(graph, feeds)["y"], want["y"], rtol=1e-6)


def test_what_an_offset_stood_between_is_left_out_as_well(tmp_path: Path) -> None:
    """-t qdq reads the written model again, where no offset is any more: it had one operator less, and was refused."""
    body = "a = A(x)\nm = ReduceMean<axes = [0, 1], keepdims = 1>(a)\nh = Add(m, c)\nf = Flatten(h)\ny = Relu(f)"
    signature = "(float[3,8] x) => (float[1,1] y, float[1,1] h, float[1,1] f)"
    onnx.save(onnx.parser.parse_model(net(signature, body, "float c = {0.5}")), tmp_path / "model.onnx")
    compile_model(tmp_path / "model.onnx", target="qdq", output=tmp_path / "out")
    written = onnx.load(tmp_path / "out" / "model.onnx")
    assert "Flatten" not in {node.op_type for node in written.graph.node}


def test_outputs_keep_their_transposes() -> None:
    graph = stripped(net(NET, f"a = A(x)\nm = {TURN}(a)\ny = {BACK}(m)", SIZES))
    propagate(graph)
    leave_out_moves(graph)
    assert [n.op for n in graph.nodes] == ["Transpose", "Transpose"]


def test_an_output_that_is_what_was_computed_is_that() -> None:
    graph = stripped(
        net("(float[1,4,3,5] x) => (float[1,4,3,5] y)", f"m = {TURN}(x)\nr = Relu(m)\nn = {BACK}(r)\ny = A(n)")
    )
    propagate(graph)
    feeds = {"x": np.random.default_rng(0).normal(size=(1, 4, 3, 5)).astype(np.float32)}
    want = simulate(graph, feeds)
    leave_out_moves(graph)
    graph.verify()
    assert [n.op for n in graph.nodes] == ["Relu"]
    assert [t.name for t in graph.outputs] == ["y"]
    np.testing.assert_array_equal(simulate(graph, feeds)["y"], want["y"])


def test_orders_that_do_not_fit_are_left_to_others() -> None:
    graph = stripped(net(NET, f"a = A(x)\nm = {TURN}(a)\nn = {BACK}(m)\ny = Sigmoid(n)", SIZES))
    propagate(graph)
    graph.of("Transpose")[0].attrs["perm"] = [0, 0, 1, 2]
    leave_out_moves(graph)
    assert [n.op for n in graph.nodes] == ["Transpose", "Transpose", "Sigmoid"]

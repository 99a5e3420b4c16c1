"""Half precision becomes float32; the interface keeps its types."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qatc import compile_model
from qatc.compiler.graph import FAKE_QUANT, Constant, QuantGraph
from qatc.compiler.passes.modernize import modernize
from tests.frontends.running import run
from tests.graphs import loaded
from tests.pipeline import canonical, read
from tests.runtimes import since


def widened(nodes: str, kind: str = "float16") -> QuantGraph:
    text = f"g ({kind}[2,3] x) => ({kind}[2,3] y) {{ c = Cast<to={10 if kind == 'float16' else 16}>(f) {nodes} }}"
    header = '<ir_version: 9, opset_import: ["" : 19]>'
    graph = loaded(f"{header}\n{text.replace('{ c', '<float f = {2.0}> { c')}")
    modernize(graph)
    graph.verify(stripped=False)
    return graph


def test_float16_inside_goes_and_stays_at_the_ends() -> None:
    graph = widened("a = Mul(x, c) b = Cast<to=1>(a) d = Relu(b) e = Cast<to=10>(d) y = Add(e, c)")
    assert [n.op for n in graph.nodes] == ["Cast", "Mul", "Relu", "Add", "Cast"]
    assert [t.dtype for t in (graph.inputs[0], graph.outputs[0])] == [TensorProto.FLOAT16, TensorProto.FLOAT16]
    assert [d.code for d in graph.diagnostics] == ["QAT108"]


def test_bfloat16_becomes_float32_at_the_ends_too() -> None:
    graph = widened("y = Mul(x, c)", "bfloat16")
    assert [n.op for n in graph.nodes] == ["Mul"]
    assert [t.dtype for t in (graph.inputs[0], graph.outputs[0])] == [TensorProto.FLOAT, TensorProto.FLOAT]


def test_an_output_that_is_read_on_is_cast_once() -> None:
    graph = loaded(
        '<ir_version: 9, opset_import: ["" : 19]>\ng (float16[2] x) => (float16[2] y, float16[2] z)'
        " { y = Relu(x) z = Neg(y) }"
    )
    modernize(graph)
    graph.verify(stripped=False)
    assert sorted(n.op for n in graph.nodes) == ["Cast", "Cast", "Cast", "Neg", "Relu"]


def test_single_precision_is_left_alone() -> None:
    graph = loaded('<ir_version: 9, opset_import: ["" : 19]>\ng (float[2] x) => (float[2] y) { y = Relu(x) }')
    before = graph.dump()
    modernize(graph)
    assert (graph.dump(), list(graph.diagnostics)) == (before, [])


def quantized_in_doubles() -> str:
    """A product of what arithmetic of double precision quantizes, and its bias."""
    weight = ", ".join(str(k / 8) for k in range(-6, 6))
    return (
        '<ir_version: 8, opset_import: ["" : 17]>\ng (double[2,3] x) => (double[2,4] y) <double s = {0.25}'
        f", double t = {{0.125}}, double l = {{-128}}, double u = {{127}}, double[3,4] w = {{{weight}}}"
        ", double[4] b = {0.3, 0.1, -2, 5}> { a = Div(x, s) c = Round(a) d = Clip(c, l, u) e = Mul(d, s)"
        " f = Div(w, t) g = Round(f) h = Clip(g, l, u) i = Mul(h, t) m = MatMul(e, i) n = Add(m, b)"
        " o = Div(n, s) p = Round(o) q = Clip(p, l, u) y = Mul(q, s) }"
    )


def test_double_precision_throughout_runs_in_integers(tmp_path: Path) -> None:
    """What `model.double()` exports: the grids are of float32, the interface keeps its type."""
    model = onnx.parser.parse_model(quantized_in_doubles())
    onnx.save(model, tmp_path / "model.onnx")
    result = compile_model(tmp_path / "model.onnx", qat=True, output=tmp_path / "out")
    assert result.coverage.float_ops == 0
    assert "QAT108" in {d.code for d in result.diagnostics}
    x = np.random.default_rng(3).normal(0, 2, (2, 3))
    got = run(tmp_path / "out" / "model.onnx", x)[0]
    assert got.dtype == np.float64
    np.testing.assert_array_equal(got, run(model, x)[0])


def test_doubles_beside_single_precision_stay() -> None:
    text = quantized_in_doubles().replace("y = Mul(q, s)", "r = Mul(q, s) y = Cast<to=1>(r)")
    graph = loaded(text.replace("double[2,4] y", "float[2,4] y"))
    modernize(graph)
    assert [d.code for d in graph.diagnostics] == []
    assert {t.values.dtype.name for t in graph.tensors() if isinstance(t, Constant)} == {"float64"}


@since(1, 24, "divides by scales of float16 in another way")
@pytest.mark.parametrize("opset", [19, 21])
def test_a_half_precision_export_runs_in_integers(opset: int, tmp_path: Path) -> None:
    """QuantizeLinear with scales of float16, as opset 19 has it."""
    half, rng = np.float16, np.random.default_rng(1)
    values = {
        "s": np.asarray(0.05, half),
        "z": np.asarray(128, np.uint8),
        "w": rng.normal(0, 0.3, (4, 3)).astype(half),
        "ws": np.full(4, 0.01, half),
        "wz": np.zeros(4, np.int8),
        "b": rng.normal(0, 0.3, 4).astype(half),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("QuantizeLinear", ["w", "ws", "wz"], ["wq"], axis=0),
        helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["wd"], axis=0),
        helper.make_node("Gemm", ["xd", "wd", "b"], ["g"], transB=1),
        helper.make_node("QuantizeLinear", ["g", "s", "z"], ["gq"]),
        helper.make_node("DequantizeLinear", ["gq", "s", "z"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "half",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["N", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["N", 4])],
        [numpy_helper.from_array(v, n) for n, v in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    found = compile_model(tmp_path / "model.onnx", qat=True, output=tmp_path / "out")
    assert (found.coverage.share, found.islands) == (1.0, ())
    x = rng.normal(0, 2, (8, 3)).astype(half)
    got, want = (run(m, x)[0] for m in (tmp_path / "out" / "model.onnx", tmp_path / "model.onnx"))
    assert got.dtype == want.dtype == half
    steps = np.rint((got.astype(np.float32) - want.astype(np.float32)) / 0.05)
    assert np.abs(steps).max() <= 1  # half precision may fall to the next step


def looped() -> onnx.ModelProto:
    """A rounded sum that twice takes x if x[0] > 0, a quarter if not, and a constant and the number of the round."""
    half = TensorProto.FLOAT16

    def port(name: str, kind: int = half, shape: tuple[int, ...] | None = (3,)) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    def constant(name: str, value: float) -> onnx.NodeProto:
        return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.float16([value]), name))

    then = helper.make_graph([helper.make_node("Add", ["sum", "x"], ["a"])], "then", [], [port("a")])
    other = helper.make_graph(
        [constant("none", 0.25), helper.make_node("Add", ["sum", "none"], ["b"])], "other", [], [port("b")]
    )
    body = helper.make_graph(
        [
            helper.make_node("Cast", ["i"], ["count"], to=half),
            helper.make_node("If", ["positive"], ["chosen"], then_branch=then, else_branch=other),
            helper.make_node("Sum", ["chosen", "step", "count"], ["next"]),
            helper.make_node("Identity", ["go"], ["go_on"]),
        ],
        "body",
        [port("i", TensorProto.INT64, ()), port("go", TensorProto.BOOL, ()), port("sum")],
        [port("go_on", TensorProto.BOOL, ()), port("next")],
        [numpy_helper.from_array(np.float16([1, 2, 4]), "step")],
    )
    nodes = [
        helper.make_node("Gather", ["x", "first"], ["x0"]),
        helper.make_node("Greater", ["x0", "nothing"], ["positive"]),
        helper.make_node("Loop", ["twice", "", "start"], ["looped"], body=body),
        helper.make_node("QuantizeLinear", ["looped", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    values = {
        "first": np.int64(0), "nothing": np.float16(0), "twice": np.int64(2), "start": np.zeros(3, np.float16),
        "s": np.float16(0.125), "z": np.uint8(100),
    }  # fmt: skip
    held = [numpy_helper.from_array(np.asarray(v), n) for n, v in values.items()]
    graph = helper.make_graph(nodes, "half", [port("x")], [port("y")], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


@pytest.mark.parametrize("sign", [-1, 1])
def test_bodies_are_widened_with_what_they_read(sign: int, tmp_path: Path) -> None:
    """A body of half precision in a graph of single precision does not load (EmbeddingBag is a Loop)."""
    onnx.save(looped(), tmp_path / "model.onnx")
    np.save(tmp_path / "x.npy", x := np.float16([0.5 * sign, 1, -3]))
    compile_model(tmp_path / "model.onnx", qat=True, output=tmp_path / "out", inputs={"x": tmp_path / "x.npy"})
    got, want = (run(m, x)[0] for m in (tmp_path / "out" / "model.onnx", tmp_path / "model.onnx"))
    assert got.dtype == np.float16
    np.testing.assert_array_equal(got, want)


def test_casts_that_do_nothing_in_a_body_are_gone() -> None:
    """ONNX Runtime takes them out of the body, but not out of what bodies inside it read."""
    model = looped()
    body = next(a.g for n in model.graph.node for a in n.attribute if a.name == "body")
    body.node[0].CopyFrom(helper.make_node("Cast", ["sum"], ["wide"], to=TensorProto.FLOAT))
    body.node.insert(1, helper.make_node("Cast", ["wide"], ["count"], to=TensorProto.FLOAT16))
    graph = read(model)
    modernize(graph)
    inner = next(n.attrs["body"] for n in graph.nodes if n.op == "Loop")
    assert [n.op_type for n in inner.node] == ["Identity", "Identity", "If", "Sum", "Identity"]


@pytest.mark.parametrize("axis", [None, 0])
def test_weights_are_rounded_in_the_precision_that_the_file_states(axis: int | None, tmp_path: Path) -> None:
    """Opset 23: quotients of half precision fall on ties that those of single precision miss."""
    half, rng = np.float16, np.random.default_rng(5)
    values = {
        "s": np.asarray(0.05, half), "z": np.asarray(128, np.uint8), "w": rng.normal(0, 0.3, (4, 64)).astype(half),
        "ws": np.asarray([0.01, 0.011, 0.012, 0.013] if axis is not None else 0.01, half),
        "wz": np.zeros(() if axis is None else 4, np.int8),
    }  # fmt: skip
    more = {} if axis is None else {"axis": axis}
    nodes = [
        helper.make_node("QuantizeLinear", ["w", "ws", "wz"], ["wq"], **more),
        helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["wd"], **more),
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("Gemm", ["xd", "wd"], ["y"], transB=1),
    ]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT16, [1, k]) for n, k in (("x", 64), ("y", 4))]
    held = [numpy_helper.from_array(v, n) for n, v in values.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "half", ports[:1], ports[1:], held), opset_imports=[helper.make_opsetid("", 23)]
    )
    (weight,) = [n for n in canonical(model).nodes if n.op == FAKE_QUANT and isinstance(n.inputs[0], Constant)]
    found = weight.attrs["params"].quantize(weight.inputs[0].values)  # type: ignore[union-attr]
    step = np.reshape(values["ws"], (-1, 1)) if axis is not None else values["ws"]
    quotient, exact = (values["w"] / step).astype(np.float32), values["w"].astype(np.float32) / step.astype(np.float32)
    want = np.clip(np.rint(quotient), -128, 127)
    assert (want != np.clip(np.rint(exact), -128, 127)).any()  # the case is there
    np.testing.assert_array_equal(found, want)

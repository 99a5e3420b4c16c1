"""The simulation: what runs as it is, what is written back, and where they agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

from qatc import compile_model
from qatc.compiler.diagnostics import CompileError
from qatc.compiler.runtime import processor
from qatc.compiler.runtime.sessions import RunnableModel
from qatc.compiler.simulation import Simulation, _reason, open_simulation  # pyright: ignore[reportPrivateUsage]
from tests.compiler.verify.cases import (
    RESNET,
    SHARED,
    UNET,
    corpus_case,
    verified,
)
from tests.graphs import net
from tests.pipeline import canonical, folded, passes
from tests.runtimes import since


def small_model(ir_version: int = 8) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Relu", ["m"], ["y"], "same"),
        helper.make_node("MatMul", ["x", "w"], ["m"], "same", domain="ai.onnx"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 64])],
        [numpy_helper.from_array(np.eye(64, dtype=np.float32) * 2, "w")],
        value_info=[helper.make_tensor_value_info("m", TensorProto.FLOAT, [7, 7])],  # stale
    )
    imports = [helper.make_opsetid("", 11), helper.make_opsetid("ai.onnx", 17), helper.make_opsetid("never.used", 3)]
    imports.append(helper.make_opsetid("ai.onnx.ml", 99))
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version)


@pytest.mark.parametrize("seed", range(3))
def test_decimal_scales_have_ties_that_floats_break_either_way(seed: int):
    """0.02 * 0.002 / 0.01 = 1 / 250: one sum in 250 lies half way, but for the last bits of three scales."""
    weight = np.random.default_rng(seed).integers(-127, 128, (8, 8, 1, 1)).astype(np.int8)
    body = """agraph (float[1,8,32,32] x) => (float[M] y) <float sx = {0.02}, float sw = {0.002}, float sy = {0.01},
        int8 z = {0}> {
        qx = QuantizeLinear(x, sx, z)  dx = DequantizeLinear(qx, sx, z)  dw = DequantizeLinear(w, sw, z)
        c = Conv(dx, dw)  qc = QuantizeLinear(c, sy, z)  y = DequantizeLinear(qc, sy, z) }"""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 13]> {body}')
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    x = np.random.default_rng(seed).uniform(-1, 1, (1, 8, 32, 32)).astype(np.float32)
    found = verified(model, {"x": x})
    assert found.passed, [c.message for c in found.local]
    (product,) = (c for c in found.local if c.op == "Conv")
    assert product.max_lsb == 1  # there are such sums, and the two do not agree on all of them


def test_files_that_onnx_runtime_refuses_for_their_form_run():
    x = np.full((3, 64), 1.5, np.float32)
    model = small_model(ir_version=14)
    before = model.SerializeToString(deterministic=True)
    found = Simulation(model, "odd").run({"x": x}, ["m", "y", "x"])
    assert (found["m"] == 3).all()
    assert found["m"].shape == (3, 64)
    assert found["x"] is not None
    assert model.SerializeToString(deterministic=True) == before


def test_external_data_stay_where_they_are(tmp_path: Path):
    onnx.save(small_model(), tmp_path / "model.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    before = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in tmp_path.iterdir()}
    found = Simulation.of_file(tmp_path / "model.onnx").run({"x": np.ones((1, 64), np.float32)}, ["m"])
    assert (found["m"] == 2).all()
    assert {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in tmp_path.iterdir()} == before


def test_what_onnx_runtime_cannot_run_is_simulated_from_the_graph(tmp_path: Path):
    model, feeds = corpus_case(RESNET)
    stripped = next(g for name, g in passes(model) if name == "strip")
    model.graph.node[-1].domain = "vendor"
    onnx.save(model, tmp_path / "model.onnx")
    simulation = open_simulation(tmp_path / "model.onnx", stripped, feeds)
    assert "normalized graph" in simulation.description
    assert "does not run: " in simulation.description
    assert "[ONNXRuntimeError]" not in simulation.description
    assert simulation.run(feeds, simulation.outputs)
    with pytest.raises(CompileError) as caught:
        Simulation.of_file(tmp_path / "model.onnx").run(feeds, ["output"])
    assert caught.value.diagnostics[0].code == "QAT403"


@since(1, 24, "takes the box of an image that there is not")
def test_generated_boxes_that_an_operator_refuses_are_asked_for(tmp_path: Path) -> None:
    """RoiAlign reads the image of a box from a column of random numbers: no newer ONNX Runtime would take them."""
    body = """a = A(x)
        column = Slice(boxes, zero, one, one)
        indices = Cast<to = 7>(column)
        image = Squeeze(indices, one)
        places = Slice(boxes, one, five, one)
        aligned = RoiAlign<output_height = 2, output_width = 2>(a, places, image)
        y = A(aligned)"""
    text = net(
        "(float[1,1,8,8] x, float[9,5] boxes) => (float[M,N,H,W] y)",
        body,
        "int64[1] zero = {0}, int64[1] one = {1}, int64[1] five = {5}",
    )
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    with pytest.raises(CompileError) as caught:
        compile_model(tmp_path / "model.onnx", output=tmp_path / "out", qat=True)
    for found in caught.value.diagnostics:
        assert found.code == "QAT403"
        assert "--input NAME=FILE.npy" in str(found.hint)
        assert "newer" not in str(found.hint)
    inputs = {name: tmp_path / f"{name}.npy" for name in ("x", "boxes")}
    np.save(inputs["x"], np.random.default_rng(0).normal(size=(1, 1, 8, 8)).astype(np.float32))
    np.save(inputs["boxes"], np.asarray([[0, 1, 1, 5, 5]] * 9, np.float32))
    result = compile_model(tmp_path / "model.onnx", output=tmp_path / "out", qat=True, inputs=inputs)
    assert result.verification is not None
    assert result.verification.passed


@pytest.mark.parametrize("exact", [True, False])
def test_a_file_whose_integer_products_saturate_is_no_reference(
    exact: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """On such a processor ONNX Runtime computes something else than the file says, without an error."""
    model, feeds = corpus_case(RESNET)
    stripped = next(g for name, g in passes(model) if name == "strip")
    operands = [np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.int8)]
    names = ["one", "other"]
    model.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for a, n in zip(operands, names, strict=True))
    model.graph.node.add(op_type="MatMulInteger", name="product", input=names, output=["sums"])
    onnx.save(model, tmp_path / "model.onnx")
    monkeypatch.setattr(processor, "is_exact", lambda: exact)
    simulation = open_simulation(tmp_path / "model.onnx", stripped, feeds)
    assert ("saturates" in simulation.description) == (not exact)
    assert simulation.run(feeds, simulation.outputs)


def test_an_unknown_tensor_is_an_error():
    with pytest.raises(CompileError) as caught:
        Simulation(small_model(), "small").run({"x": np.ones((1, 64), np.float32)}, ["nowhere"])
    assert caught.value.diagnostics[0].code == "QAT403"


def test_files_of_the_corpus_and_their_graphs_written_back_agree():
    for name in (RESNET, UNET, SHARED):
        model, feeds = corpus_case(name)
        stripped = next(g for step, g in passes(model) if step == "strip")
        direct, written = Simulation(model, "file"), Simulation.of_graph(stripped)
        for output in direct.outputs:
            np.testing.assert_array_equal(
                direct.run(feeds, [output])[output], written.run(feeds, [output])[output], strict=True
            )
        assert canonical(model).origin  # what ties both to the integer graph
        assert folded(model).params


@pytest.mark.parametrize(("kind", "ends"), [("INT8", (-128, 127)), ("UINT8", (0, 255))])
def test_a_cast_of_rounded_values_to_bytes_saturates(kind: str, ends: tuple[int, int], tmp_path: Path) -> None:
    """ONNX leaves it open, ONNX Runtime keeps the low byte: 128 became -128, where JAX has 127."""
    to = TensorProto.DataType.Value(kind)
    text = f"""<ir_version: 8, opset_import: ["" : 17]> g (float[4] x) => (float[4] y, float[4] z)
        {{ r = Round(x) c = Cast<to={to}>(r) y = Cast<to=1>(c) k = Cast<to=7>(r) z = Cast<to=1>(k) }}"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    found = Simulation.of_file(tmp_path / "model.onnx").run(
        {"x": np.asarray([-300, -1.4, 128, 999], np.float32)}, ["y", "z"]
    )
    np.testing.assert_array_equal(found["y"], np.clip([-300, -1, 128, 999], *ends))
    np.testing.assert_array_equal(found["z"], [-300, -1, 128, 999])  # other types are as they were


def test_a_cast_of_rounded_half_precision_is_left_to_the_graph(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float16[4] x) => (float16[4] y)
        { r = Round(x) c = Cast<to=3>(r) y = Cast<to=10>(c) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    with pytest.raises(CompileError, match="QAT403"):
        Simulation.of_file(tmp_path / "model.onnx").run({"x": np.zeros(4, np.float16)}, ["y"])


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("op", ["AveragePool", "MaxPool"])
def test_dilations_that_onnx_runtime_forgets_are_kept(op: str, mode: str, tmp_path: Path) -> None:
    """Padded by numbers the same pool is read as it is meant: 9 positions under strides of 2 make 5."""

    def text(padding: str) -> str:
        pool = f"{op}<kernel_shape = [3], dilations = [2], strides = [2], {padding}>"
        return net("(float[1,2,9] x) => (float[1,2,5] y)", f"a = A(x)\nb = {pool}(a)\ny = A(b)", opset=19)

    onnx.save(onnx.parser.parse_model(text(f'auto_pad = "{mode}"')), tmp_path / "model.onnx")
    result = compile_model(tmp_path / "model.onnx", qat=True, output=tmp_path / "out")
    assert result.verification is not None
    assert result.verification.passed
    assert "as if they had no dilations" in result.verification.simulation
    x = np.random.default_rng(0).normal(0, 40, (1, 2, 9)).astype(np.float32)
    want = RunnableModel(onnx.parser.parse_model(text("pads = [2, 2]"))).run({"x": x})["y"]
    found = RunnableModel(onnx.load(tmp_path / "out" / "model.onnx")).run({"x": x})["y"]
    assert np.abs(found - want).max() <= 0.5


def test_between_integers_a_resize_rounds_whatever_onnx_runtime_does(tmp_path: Path) -> None:
    """Its kernel for bytes cuts off, devices round, and so does qatc, as its note says: the file is no reference."""
    parameters = "float s = {0.5}, uint8 z = {128}, float[4] r = {1.0, 1.0, 2.0, 2.0}"
    body = """q = QuantizeLinear(x, s, z)
        g = com.microsoft.QLinearSigmoid(q, s, z, t, u)
        m = Resize<mode = "linear">(g, , r)
        y = DequantizeLinear(m, t, u)"""
    parameters += ", float t = {0.01}, uint8 u = {0}"
    text = f"agraph (float[1,1,4,4] x) => (float[1,1,8,8] y) <{parameters}> {{ {body} }}"
    header = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>'
    onnx.save(onnx.parser.parse_model(header + text), tmp_path / "model.onnx")
    result = compile_model(tmp_path / "model.onnx", output=tmp_path / "out")
    assert result.verification is not None
    assert result.verification.passed
    assert "cuts off" in result.verification.simulation


@pytest.mark.parametrize("operator", ["Squeeze(a, one)", "Transpose<perm = [0, 2, 1]>(one)"])
def test_shapes_that_do_not_fit_are_the_files_fault(operator: str, tmp_path: Path) -> None:
    """PyTorch's exporter wrote a Squeeze of sixteen channels (speechbrain), ONNX Runtime's quantizer a Transpose of a
    bias: no newer ONNX Runtime would run them.
    """
    body = f"""a = A(x)
        b = {operator}
        y = A(b)"""
    text = net("(float[1,16,8,8] x) => (float[1,8,8] y)", body, "int64[1] one = {1}")
    model = onnx.parser.parse_model(text)
    for i, node in enumerate(model.graph.node):
        node.name = f"node {i}"
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(CompileError) as caught:
        compile_model(tmp_path / "model.onnx", output=tmp_path / "out", qat=True)
    for found in caught.value.diagnostics:
        assert found.code == "QAT403"
        assert "do not fit each other" in str(found.hint)
        assert "newer" not in str(found.hint)
        assert ", does not run: " in found.message
    assert len(caught.value.diagnostics) == 1  # the graph without quantizers stops at the same


def test_a_damaged_rounding_or_cast_is_refused_where_the_file_is_run(tmp_path: Path) -> None:
    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3]) for name in "xy"]
    whole = helper.make_node("Relu", ["x"], ["y"])
    for damaged in (
        onnx.NodeProto(op_type="Round", input=["x"]),
        helper.make_node("Cast", [], ["bytes"], to=TensorProto.INT8),
    ):
        graph = helper.make_graph([whole, damaged], "damaged", sides[:1], sides[1:])
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]), tmp_path / "m.onnx")
        simulation = Simulation.of_file(tmp_path / "m.onnx")
        with pytest.raises(CompileError, match="QAT403"):
            simulation.run({"x": np.zeros((1, 3), np.float32)}, simulation.outputs)


def test_why_a_file_does_not_run_is_said_without_places_in_the_source_of_onnx_runtime() -> None:
    said = (
        "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running a node. Name:'a' Status Message: "
        "/onnxruntime_src/onnxruntime/core/framework/op_kernel.cc:87 virtual OrtValue* onnxruntime::OpKernelContext::"
        "OutputMLValue(int, const onnxruntime::TensorShape&) status.IsOK() was false. The shapes differ"
    )
    error = CompileError([])
    error.__cause__ = RuntimeError(said)
    assert _reason(error) == (
        "Non-zero status code returned while running a node. Name:'a' Status Message: status.IsOK() was false. "
        "The shapes differ"
    )

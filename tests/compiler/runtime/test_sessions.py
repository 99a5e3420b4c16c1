"""ONNX Runtime as qatc uses it: single operators, and models of which any tensor can be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qatc.compiler.diagnostics import CompileError
from qatc.compiler.quant import QuantParams
from qatc.compiler.runtime.sessions import OrtEvaluator, RunnableModel, tidy
from qatc.compiler.verify.ends import Outputs
from qatc.compiler.verify.limits import Limits
from qatc.compiler.verify.tally import Tally

X = np.array([[1.0, -2.0, 3.0]], np.float32)


def test_operators_with_attributes_absent_inputs_and_several_outputs():
    evaluate = OrtEvaluator()
    (clipped,) = evaluate("Clip", "", 17, [X, None, np.float32(2)], {}, 1)
    np.testing.assert_array_equal(clipped, [[1, -2, 2]])
    first, second = evaluate("Split", "", 13, [X, np.array([1, 2])], {"axis": 1}, 2)
    assert (first.shape, second.shape) == ((1, 1), (1, 2))
    (moved,) = evaluate("Transpose", "", 13, [X], {"perm": [1, 0]}, 1)
    assert moved.shape == (3, 1)
    (fast,) = evaluate("FastGelu", "com.microsoft", 1, [X], {}, 1)
    assert fast.shape == X.shape
    assert evaluate("Softmax", "", 13, [X], {"axis": -1}, 1)[0].sum() == pytest.approx(1)


def test_other_shapes_take_the_same_session():
    evaluate = OrtEvaluator()
    evaluate("Relu", "", 17, [X], {}, 1)
    evaluate("Relu", "", 17, [np.zeros((5, 9), np.float32)], {}, 1)
    assert len(evaluate._sessions) == 1
    evaluate("Relu", "", 17, [X.astype(np.float64)], {}, 1)
    assert len(evaluate._sessions) == 2


def test_weights_that_a_layer_holds_are_added_in_the_order_of_the_model():
    """ONNX Runtime packs those; with the same ones as inputs it is a millionth off after 30 steps."""
    random = np.random.default_rng(0)
    shapes = {"x": (30, 1, 128), "w": (1, 512, 128), "r": (1, 512, 128), "b": (1, 1024)}
    arrays = {n: (random.normal(size=s) * 0.3).astype(np.float32) for n, s in shapes.items()}
    node = helper.make_node("LSTM", [*arrays], ["y"], hidden_size=128)
    held = [numpy_helper.from_array(a, n) for n, a in arrays.items() if n != "x"]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in "xy"]
    graph = helper.make_graph([node], "net", ports[:1], ports[1:], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    evaluate, attrs = OrtEvaluator(), {"hidden_size": 128}
    for scale in (1, 2):
        x = arrays["x"] * np.float32(scale)
        want = RunnableModel(model).run({"x": x})["y"]
        operands = [x, *(a for n, a in arrays.items() if n != "x")]
        (found,) = evaluate("LSTM", "", 17, operands, attrs, 1, fixed=frozenset({1, 2, 3}))
        np.testing.assert_array_equal(found, want)
    assert len(evaluate._sessions) == 1
    operands[1] = -operands[1]
    (other,) = evaluate("LSTM", "", 17, operands, attrs, 1, fixed=frozenset({1, 2, 3}))
    assert not np.array_equal(other, found)


def test_sizes_that_are_computed_at_run_time():
    """Shape inference of Resize wants the number of sizes, although not the sizes."""
    image = np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)
    inputs = [image, None, None, np.array([1, 1, 3, 5])]
    (resized,) = OrtEvaluator()("Resize", "", 17, inputs, {"mode": "linear"}, 1)
    assert resized.shape == (1, 1, 3, 5)


def test_subgraphs_read_what_is_around_them():
    def branch(name: str, op: str) -> onnx.GraphProto:
        node = helper.make_node(op, ["outer", "outer"], [name])
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])

    attrs = {"then_branch": branch("a", "Add"), "else_branch": branch("b", "Mul"), "_captures": ["outer"]}
    (doubled,) = OrtEvaluator()("If", "", 17, [np.array(True), X], attrs, 1)
    np.testing.assert_array_equal(doubled, 2 * X)
    (squared,) = OrtEvaluator()("If", "", 17, [np.array(False), X], attrs, 1)
    np.testing.assert_array_equal(squared, X * X)


def test_what_onnx_runtime_does_not_know_is_said():
    with pytest.raises(CompileError) as caught:
        OrtEvaluator()("Nonsense", "vendor", 1, [X], {}, 1)
    assert caught.value.diagnostics[0].code == "QAT403"
    assert "vendor::Nonsense" in caught.value.diagnostics[0].message


def chain() -> onnx.ModelProto:
    weight = np.arange(64 * 64, dtype=np.float32).reshape(64, 64) / 4096
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Add", ["b", "small"], ["y"]),
    ]
    shape = ["N", 64]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.float32(2), "small")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("optimize", [False, True])
def test_large_constants_are_shared_not_copied(optimize):
    model = chain()
    declared, weights = tidy(model)
    assert list(weights) == ["w"]
    assert declared.ByteSize() < 2000
    feeds = {"x": np.ones((2, 64), np.float32)}
    found = RunnableModel(model, optimize=optimize).run(feeds, ["y", "w", "small", "x"])
    np.testing.assert_allclose(found["y"], feeds["x"] @ weights["w"] + 2, rtol=1e-5)
    np.testing.assert_array_equal(found["w"], weights["w"])
    assert found["small"] == 2


def outside(tensor: onnx.TensorProto, folder: Path) -> onnx.TensorProto:
    """The tensor with its data in a file of the folder."""
    data = numpy_helper.to_array(tensor).tobytes()
    (folder / f"{tensor.name}.bin").write_bytes(data)
    moved = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    moved.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": f"{tensor.name}.bin", "offset": "0", "length": str(len(data))}.items():
        moved.external_data.add(key=key, value=value)
    return moved


def test_external_data_of_constants_operators_and_bodies(tmp_path):
    """ONNX Runtime is given them: it has no folder of its own to look in."""
    one, two, half = (numpy_helper.from_array(np.full((2, 64), v, np.float32), f"c{v}") for v in (1, 2, 0.5))
    body = helper.make_graph(
        [helper.make_node("Add", ["y0", "c2"], ["t"])],
        "body",
        [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, [2, 64])],
        [outside(two, tmp_path)],
    )
    nodes = [
        helper.make_node("Constant", [], ["half"], value=outside(half, tmp_path)),
        helper.make_node("Add", ["x", "c1"], ["x1"]),
        helper.make_node("Mul", ["x1", "half"], ["y0"]),
        helper.make_node("If", ["yes"], ["y"], then_branch=body, else_branch=body),
    ]
    graph = helper.make_graph(
        nodes,
        "main",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 64])],
        [outside(one, tmp_path), numpy_helper.from_array(np.asarray(True), "yes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    feeds = {"x": np.full((2, 64), 3, np.float32)}
    found = RunnableModel(model, tmp_path).run(feeds, ["y", "c1"])
    np.testing.assert_array_equal(found["y"], np.full((2, 64), 4, np.float32))
    np.testing.assert_array_equal(found["c1"], numpy_helper.to_array(one))
    assert model.graph.initializer[0].data_location == onnx.TensorProto.EXTERNAL  # the model itself stays as it is
    (tmp_path / "c0.5.bin").write_bytes(b"short")
    with pytest.raises(CompileError) as caught:
        RunnableModel(model, tmp_path)
    assert [(d.code, d.tensor) for d in caught.value.diagnostics] == [("QAT003", "c0.5")]


def test_only_what_is_needed_runs():
    model = chain()
    model.graph.node.append(helper.make_node("Nonsense", ["y"], ["never"], domain="vendor"))
    runnable = RunnableModel(model)
    assert runnable.run({"x": np.ones((1, 64), np.float32)}, ["b"])["b"].shape == (1, 64)
    assert runnable.has("never")
    with pytest.raises(KeyError, match="nowhere"):
        runnable.run({"x": np.ones((1, 64), np.float32)}, ["nowhere"])


# -- outputs ---------------------------------------------------------------------------------------------------------
def outcome(
    found: np.ndarray, wanted: np.ndarray, limits: Limits | None = None
) -> tuple[float, float | None, str | None]:
    outputs = Outputs()
    outputs.add("y", found, wanted, None)
    ((check,), bad, why) = outputs.finish(limits or Limits(), {})
    assert bool(bad) == bool(why)
    return check.max_abs, check.argmax_agreement, bad


def test_constants_that_are_inputs_as_well():
    """Files before IR version 4 list them; a part of the model that does not read one runs without it."""
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 3]) for n in ("x", "a", "b")]
    nodes = [helper.make_node("Add", ["x", "a"], ["s"]), helper.make_node("Mul", ["s", "b"], ["p"])]
    constants = [numpy_helper.from_array(X, "a"), numpy_helper.from_array(2 * X, "b")]
    outputs = [helper.make_tensor_value_info("p", TensorProto.FLOAT, [1, 3])]
    graph = helper.make_graph(nodes, "old", ports, outputs, constants)
    model = RunnableModel(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 8)], ir_version=3))
    assert model.inputs == ("x",)
    np.testing.assert_array_equal(model.run({"x": X}, ["s"])["s"], 2 * X)
    np.testing.assert_array_equal(model.run({"x": X})["p"], 4 * X * X)


def test_outputs_that_are_not_finite_or_of_another_shape_fail():
    wanted = np.array([[1.0, 2.0], [3.0, 1.0]], np.float32)
    assert outcome(wanted + 0.5, wanted) == (0.5, 1.0, None)
    assert outcome(np.full_like(wanted, np.nan), wanted)[2] == "y"
    assert outcome(wanted[:1], wanted)[2] == "y"
    endless = np.where(wanted > 2, np.inf, wanted)
    assert outcome(endless, endless)[2] is None  # where the simulation is infinite as well, nothing is demanded
    assert outcome(endless, wanted)[2] == "y"


def test_a_tie_at_the_top_agrees():
    wanted = np.array([[1.0, 2.0, 0.0]], np.float32)
    assert outcome(np.array([[2.0, 2.0, 0.0]], np.float32), wanted)[1] == 1.0
    assert outcome(np.array([[2.0, 1.0, 0.0]], np.float32), wanted)[1] == 0.0
    assert outcome(np.array([[2.0, 1.0, 0.0]], np.float32), wanted, Limits(agreement=0.5))[2] == "y"
    assert outcome(np.float32([1, 2]), np.float32([1, 2]))[1] is None


def test_tallies_add_up_over_samples():
    grid = QuantParams.per_tensor(0.5, 10)
    tally = Tally("t", "Conv", "local")
    a = np.array([10, 20, 30, 40], np.uint8)
    assert tally.integers(a, a, grid).size == 0
    np.testing.assert_array_equal(tally.integers(a + np.uint8([0, 1, 0, 3]), a, grid), [1, 3])
    check = tally.check()
    assert check.histogram == {0: 6, 1: 1, 3: 1}
    assert (check.elements, check.max_lsb, check.passed) == (8, 3, True)
    assert check.sqnr_db == pytest.approx(10 * np.log10(2 * (10**2 + 20**2 + 30**2) / (1 + 9)))
    tally.integers(a[:2], a, grid)
    assert "shape" in tally.check().message


def test_floats_are_compared_relative_to_their_largest():
    tally = Tally("t", "Float", "local")
    tally.floats(X * np.float32(1 + 1e-6), X, 1e-5)
    assert tally.check().passed
    tally.floats(X + np.float32(1), X, 1e-5)
    assert not tally.check().passed
    nan = Tally("t", "Float", "local")
    nan.floats(np.array([np.nan, 1.0]), np.array([np.nan, 1.0]), 1e-5)
    assert nan.check().passed
    nan.floats(np.array([np.nan, 1.0]), np.array([1.0, 1.0]), 1e-5)
    assert not nan.check().passed


def test_an_infinity_where_none_should_be_fails_the_check():
    tally = Tally("t", "Float", "local")
    tally.floats(np.array([np.inf, 1.0]), np.array([1.0, 1.0]), 1e-5)
    assert (tally.check().passed, tally.check().sqnr_db) == (False, -np.inf)


def test_a_model_beyond_what_a_proto_holds_keeps_its_weights(monkeypatch: pytest.MonkeyPatch):
    """It is loaded from a file; the arrays that were taken out of it still come from memory."""
    weight = np.arange(8 * 256, dtype=np.float32).reshape(8, 256)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy"]
    graph = helper.make_graph([node], "g", ports[:1], ports[1:], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    monkeypatch.setattr("qatc.compiler.runtime.sessions._MAX_PROTO", 1)
    found = RunnableModel(model)
    assert "w" in found.weights
    np.testing.assert_array_equal(found.run({"x": np.eye(8, dtype=np.float32)})["y"], weight)


@pytest.mark.parametrize("op", ["QLinearLeakyRelu", "QLinearSigmoid"])
def test_a_table_without_the_zero_point_of_its_result_does_not_end_the_process(op: str) -> None:
    """Fuzzing's find, seed 428495: ONNX Runtime reads an input that is not there, optional as it is."""
    text = f"""<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]> g (uint8[4] x) => (uint8[4] y)
        <float s = {{0.5}}, uint8 z = {{0}}> {{ y = com.microsoft.{op}(x, s, z, s) }}"""
    model = onnx.parser.parse_model(text)
    x = np.arange(0, 12, 3, dtype=np.uint8)
    given = x * 0.5
    want = given if op == "QLinearLeakyRelu" else 1 / (1 + np.exp(-given))
    np.testing.assert_array_equal(RunnableModel(model).run({"x": x})["y"], np.rint(want / 0.5).astype(np.uint8))
    assert len(model.graph.node[0].input) == 4

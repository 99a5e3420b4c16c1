"""Softmax and LayerNormalization become integer operators where a target has them and they are asked for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qatc import CompileError, compare_package, compile_model, inspect_model, verify_package
from qatc.compiler.integer import IntegerGraph, LayerNorm, Softmax
from qatc.compiler.lowering import LoweringOptions, lower
from qatc.compiler.lowering.missing import missing_ranges
from qatc.compiler.reference import execute, execute_op
from qatc.compiler.shapes import infer_shapes
from qatc.compiler.target import Target, load_target, wanted_operators
from tests.compiler.package.test_integer_file import same, through_json
from tests.graphs import expect, net, stripped
from tests.runtimes import since

BOTH = frozenset({"Softmax", "LayerNorm"})
SHAPE = "(float[2,4] x) => (float[2,4] y)"
NORM = "float[4] g = {9.0, 5.0, 0.25, 2.0}, float[4] b = {0.0, 0.5, 1.0, 2.0}"


def lowered(body: str, constants: str = "", signature: str = SHAPE, opset: int = 17, **options: Any) -> IntegerGraph:
    graph = stripped(net(signature, body, constants, opset=opset))
    infer_shapes(graph)
    result = lower(graph, LoweringOptions(**options))
    graph.diagnostics.check()
    result.verify()
    return result


def test_a_softmax_on_request() -> None:
    expect(
        lowered("a = A(x)\ns = Softmax<axis = 0>(a)\ny = B(s)", operators=BOTH),
        """
        input x<float32 2x4>
        x_quantized<uint8 scale 0.5 zero 128 2x4> = Quantize[hi=255 lo=0](x)
        y_quantized<uint8 scale 0.25 zero 0 2x4> = Softmax[axis=0 hi=255 lo=0](x_quantized)
        y<float32 2x4> = Dequantize(y_quantized)
        output y
        """,
    )


def test_a_layer_norm_on_request_with_its_clamp() -> None:
    body = "a = A(x)\nn = LayerNormalization<epsilon = 0.25>(a, g, b)\nr = Relu(n)\ny = A(r)"
    expect(
        lowered(body, NORM, operators=BOTH),
        """
        input x<float32 2x4>
        constant g<float32 4> {9,5,0.25,2}
        constant b<float32 4> {0,0.5,1,2}
        x_quantized<uint8 scale 0.5 zero 128 2x4> = Quantize[hi=255 lo=0](x)
        y_quantized<uint8 scale 0.5 zero 128 2x4> = LayerNorm[epsilon=0.25 hi=255 lo=128](x_quantized, g, b)
        y<float32 2x4> = Dequantize(y_quantized)
        output y
        """,
    )


def test_an_rms_norm_on_request() -> None:
    body = "a = A(x)\nn = RMSNormalization<epsilon = 0.25>(a, g)\ny = A(n)"
    expect(
        lowered(body, NORM, operators=BOTH, opset=23),
        """
        input x<float32 2x4>
        constant g<float32 4> {9,5,0.25,2}
        x_quantized<uint8 scale 0.5 zero 128 2x4> = Quantize[hi=255 lo=0](x)
        y_quantized<uint8 scale 0.5 zero 128 2x4> = LayerNorm[epsilon=0.25 hi=255 lo=0 uncentered=True](x_quantized, g)
        y<float32 2x4> = Dequantize(y_quantized)
        output y
        """,
    )
    (island,) = lowered(body, NORM, offered=BOTH, opset=23).islands()
    assert island.reason == "its integer form was not asked for: -p layernorm=integer"


@pytest.mark.parametrize(
    ("body", "constants", "reason"),
    [
        ("s = Softmax(x)\ny = B(s)", "", "its input is not quantized by the model"),
        ("a = A(x)\ny = Softmax(a)", "", "its result is not quantized by the model"),
        ("a = A(x)\nn = LayerNormalization(a, k)\ny = B(n)", "float[1] k = {1.0}", "no exact integer form"),
        ("a = A(x)\nn = LayerNormalization<epsilon = 0.0>(a, g)\ny = B(n)", NORM, "no exact integer form"),
        ("a = A(x)\ns = LogSoftmax(a)\ny = B(s)", "", "no exact integer form"),
    ],
)
def test_what_does_not_fit_stays_an_island(body: str, constants: str, reason: str) -> None:
    (island,) = lowered(body, constants, operators=BOTH).islands()
    assert reason in island.reason


def test_what_the_target_has_is_said_where_nobody_asked() -> None:
    body = "a = A(x)\ns = Softmax(a)\nt = B(s)\nn = LayerNormalization(t, g)\ny = B(n)"
    found = [i.reason for i in lowered(body, NORM, offered=frozenset({"Softmax"})).islands()]
    assert found == [
        "its integer form was not asked for: -p softmax=integer",
        "the target has no integer form of it",
    ]


def test_ranges_are_not_asked_for_where_they_would_not_help() -> None:
    (island,) = lowered("n = LayerNormalization(x, g)\ny = B(n)", NORM).islands()
    assert island.reason == "the target has no integer form of it"


def test_ranges_around_a_wanted_softmax_are_missed() -> None:
    graph = stripped(net(SHAPE, "s = Softmax(x)\ny = B(s)"))
    assert [t.name for t in missing_ranges(graph)] == []
    assert [t.name for t in missing_ranges(graph, BOTH)] == ["x"]


# -- targets ------------------------------------------------------------------------------------------------------
def test_what_a_target_does_not_have_cannot_be_asked_for() -> None:
    onnx = load_target("onnx")
    assert wanted_operators(onnx, {"softmax": "integer", "layernorm": "float"}) == {"Softmax"}
    with pytest.raises(CompileError, match="the target onnx has no integer LayerNorm") as raised:
        wanted_operators(onnx, {"layernorm": "integer"})
    (found,) = raised.value.diagnostics
    assert (found.code, raised.value.exit_code) == ("QAT305", 2)
    assert found.hint == 'it has Softmax; a target description lists them: operators = ["LayerNorm"]'
    with pytest.raises(CompileError, match="no integer Softmax and no integer LayerNorm"):
        wanted_operators(Target("bare", "onnx"), {"softmax": "integer", "layernorm": "integer"})


@pytest.mark.parametrize("wrong", ['"Softmax"', '["Softmax", "Sort"]', "[1]"])
def test_a_wrong_list_of_operators_is_told(wrong: str, tmp_path: Path) -> None:
    path = tmp_path / "edge.toml"
    path.write_text(f'name = "edge"\nbackend = "onnx"\noperators = {wrong}\n')
    with pytest.raises(CompileError, match="operators"):
        load_target(str(path))


# -- the whole road -----------------------------------------------------------------------------------------------
ATTENTION = """
    a = A(x)
    n = LayerNormalization<epsilon = 4.0>(a, g, b)
    q = A(n)
    t = Transpose<perm = [1, 0]>(a)
    m = MatMul(q, t)
    c = A(m)
    s = Softmax(c)
    p = V(s)
    o = MatMul(p, q)
    y = A(o)
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "attention.onnx"
    unit = "float sV = {0.00390625}, int8 zV = {-128}"
    text = net("(float[6,4] x) => (float[6,4] y)", ATTENTION, f"{NORM}, {unit}")
    onnx.save(onnx.parser.parse_model(text), path)
    return path


@since(1, 24, "does not know these opsets")
@pytest.mark.parametrize("opset", [23, 24])
def test_the_whole_road_of_rms_normalization(opset: int, edge: str, tmp_path: Path) -> None:
    body = "a = A(x)\nn = RMSNormalization<epsilon = 0.25, axis = 0>(a, g)\ny = C(n)"
    text = net("(float[2,4] x) => (float[2,4] y)", body, "float[2,4] g = {1, 2, 3, 4, 0.5, 1, -1, 2}", opset=opset)
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    result = compile_model(
        tmp_path / "m.onnx", qat=True, target=edge, require_integer=True, samples=4, golden=True, output=tmp_path / "p"
    )
    assert "RMSNormalization" not in result.package_ops
    assert verify_package(tmp_path / "p").passed
    result = compile_model(tmp_path / "m.onnx", qat=True, output=tmp_path / "q")
    assert [i.op_type for i in result.islands] == ["RMSNormalization"]


@pytest.fixture
def edge(tmp_path: Path) -> str:
    path = tmp_path / "edge.toml"
    path.write_text(
        'name = "edge"\nbackend = "onnx"\noperators = ["Softmax", "LayerNorm"]\n'
        '[options]\nsoftmax = "integer"\nlayernorm = "integer"\n'
    )
    return str(path)


@pytest.mark.parametrize("arithmetic", ["onnx", "tflite", "tosa", "exact"])
@pytest.mark.parametrize("activations", ["uint8", "keep"])
def test_a_target_that_has_both_gets_both(
    model: Path, edge: str, arithmetic: str, activations: str, tmp_path: Path
) -> None:
    from qatc.compiler.compare.package import open_package

    with Path(edge).open("r+") as file:
        text = file.read()
        file.seek(0)
        file.write(f'activations = "{activations}"\n' + text)
    result = compile_model(
        model, qat=True, target=edge, arithmetic=arithmetic, golden=True, require_integer=True, samples=4,
        explain=True, output=tmp_path / "p", tolerance={"equal_share": 0.9},
    )  # fmt: skip
    assert result.islands == ()
    assert {op for op in ("Softmax", "LayerNorm") if any(op in line for line in result.explanation)} == BOTH
    opened = open_package(tmp_path / "p")
    assert {type(op) for op in opened.graph.ops} >= {Softmax, LayerNorm}
    same(opened.graph, through_json(opened.graph))
    assert verify_package(tmp_path / "p").passed


def test_the_target_onnx_has_a_softmax(model: Path, tmp_path: Path) -> None:
    result = compile_model(model, qat=True, options={"softmax": "integer"}, output=tmp_path / "p")
    assert [i.op_type for i in result.islands] == ["LayerNormalization"]
    assert result.package_ops["QLinearSoftmax"] == 1
    assert any("Softmax" in line and "may run in integers" in line for line in inspect_model(model).advice)


FAULTS: dict[str, tuple[type, dict[str, Any]]] = {
    "axis": (Softmax, {"axis": 0}),
    "bias": (LayerNorm, {"inputs": 2}),
    "epsilon": (LayerNorm, {"epsilon": 1e-30}),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_faults_of_a_device_are_named(kind: str, model: Path, edge: str, tmp_path: Path) -> None:
    from qatc.compiler.compare.package import open_package

    compile_model(model, qat=True, target=edge, output=tmp_path / "p", golden=True, tolerance={"equal_share": 0.9})
    opened = open_package(tmp_path / "p")
    values = execute(opened.graph, opened.samples[0], opened.profile)
    faulty, changes = FAULTS[kind]
    op = next(op for op in opened.graph.ops if isinstance(op, faulty))
    changed = {k: op.inputs[:v] if k == "inputs" else v for k, v in changes.items()}
    (wrong,) = execute_op(
        opened.graph, dataclasses.replace(op, **changed), {**opened.graph.constants, **values}, opened.profile
    )
    assert not np.array_equal(wrong, values[op.output])
    dump = tmp_path / "dump"
    dump.mkdir()
    for name in (op.inputs[0], op.output):
        np.save(dump / f"{name}.npy", wrong if name == op.output else values[name])
    (found,) = [t for t in compare_package(tmp_path / "p", dump).tensors if t.cause is not None]
    assert found.cause is not None
    assert found.cause.kind == kind


def test_what_a_profile_cannot_do_is_told_with_its_operator(edge: str, tmp_path: Path) -> None:
    text = net("(float[6,4] x) => (float[6,4] y)", "a = A(x)\ns = Softmax(a)\ny = B(s)")
    onnx.save(onnx.parser.parse_model(text.replace("s = Softmax", "[shares] s = Softmax")), tmp_path / "other.onnx")
    with pytest.raises(CompileError, match="no form that writes on") as raised:
        compile_model(tmp_path / "other.onnx", qat=True, target=edge, arithmetic="tflite", output=tmp_path / "p")
    (found,) = raised.value.diagnostics
    assert (found.code, found.node) == ("QAT302", "shares")

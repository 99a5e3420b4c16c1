"""Quantizers and unknown operators inside Loop, Scan and If are told."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.parser
import pytest

from qatc import CompileError, compile_model
from qatc.compiler.passes.bodies import report_bodies
from qatc.compiler.passes.known import report_unknown
from qatc.compiler.passes.modernize import modernize
from tests.graphs import loaded

CONSTANTS = (
    "float s = {0.05}, uint8 z = {128}, int8 i = {0}, int64 n = {3}, bool t = {1}, "
    "int8[4,4] w = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}"
)
CELL = "v = DequantizeLinear(w, s, i) m = MatMul(a, v) q = QuantizeLinear(m, s, z) r = DequantizeLinear(q, s, z)"
BODIES = {
    "If": f"y = If (c) <then_branch = a () => (float[1,4] r) {{ {CELL} }}, else_branch = b () => (float[1,4] e) "
    "{ e = Relu(a) }>",
    "Loop": f"y = Loop (n, t, a) <body = b (int64 k, bool ci, float[1,4] a) => (bool co, float[1,4] r) "
    f"{{ co = Identity(ci) {CELL} }}>",
    "Scan": f"f, y = Scan <num_scan_inputs = 1, body = b (float[4] st, float[4] a) => (float[4] so, float[4] r) "
    f"{{ {CELL} so = Identity(st) }}> (st0, a)",
}


def model(body: str, around: bool = True) -> str:
    shape = "5,4" if "Scan" in body else "1,4"
    first = "xq = QuantizeLinear(x, s, z) a = DequantizeLinear(xq, s, z)" if around else "a = Identity(x)"
    more = ", float[4] st0 = {0,0,0,0}" if "Scan" in body else ""
    given = f"float[{shape}] x" + (", bool c" if "If" in body else "")
    head = f'<ir_version: 8, opset_import: ["" : 17, "vendor" : 1]>\ng ({given}) => (float[{shape}] y)'
    return f"{head} <{CONSTANTS}{more}> {{ {first} {body} }}"


@pytest.mark.parametrize("op", list(BODIES))
def test_quantizers_in_a_body_are_told(op: str) -> None:
    graph = loaded(model(BODIES[op]))
    report_bodies(graph)
    (told,) = graph.diagnostics
    assert (told.code, told.severity.value) == ("QAT110", "warning")
    assert told.tensor == ("f" if op == "Scan" else "y")
    assert told.message.endswith("2 DequantizeLinear, 1 MatMul, 1 QuantizeLinear")
    assert f"this {op} " in told.message


def test_a_body_without_quantizers_is_not_worth_a_word() -> None:
    graph = loaded(model(BODIES["If"].replace(CELL, "r = Neg(a)")))
    report_bodies(graph)
    report_unknown(graph)
    assert not list(graph.diagnostics)


@pytest.mark.parametrize(
    ("opset", "inner", "old"),
    [
        (11, "r = Squeeze<axes = [0]>(a)", "Squeeze"),
        (12, "r = Softmax(a)", "Softmax"),
        (12, "r = Softmax<axis = -1>(a)", ""),
        (12, "r = Clip(a, s)", ""),  # as it is in opset 13
        (10, "r = Resize(a, f)", "Resize"),
        (9, "r = Upsample(a, f)", "Upsample"),
        (10, "u = Clip<min = 0.0>(a) r = Slice(u, n, n)", "Clip"),
        (17, "r = Clip(a, s)", ""),
    ],
)
def test_old_operators_in_a_body_are_reported(opset: int, inner: str, old: str) -> None:
    body = BODIES["Loop"].replace(CELL, inner)
    graph = loaded(
        model(body, around=False).replace('"" : 17', f'"" : {opset}').replace("float s", "float[2] f = {1,2}, float s")
    )
    modernize(graph)
    report_bodies(graph)
    assert [(d.code, old in d.message) for d in graph.diagnostics] == ([("QAT006", True)] if old else [])


@pytest.mark.parametrize("op", list(BODIES))
def test_a_model_that_quantizes_in_bodies_alone(op: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(onnx.parser.parse_model(model(BODIES[op], around=False)), path)
    with pytest.raises(CompileError) as raised:
        compile_model(path, output=tmp_path / "out")
    (told,) = raised.value.diagnostics
    assert told.code == "QAT101"
    assert f"in the bodies of {op}" in told.message


@pytest.mark.parametrize("op", list(BODIES))
def test_the_body_runs_as_it_is(op: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(onnx.parser.parse_model(model(BODIES[op])), path)
    result = compile_model(path, output=tmp_path / "out")
    assert "QAT110" in [d.code for d in result.diagnostics]
    assert result.verification is not None
    assert result.verification.passed


def test_an_unknown_operator_in_a_body() -> None:
    graph = loaded(model(BODIES["Loop"].replace("m = MatMul(a, v)", "m = vendor.Fancy(a, v)")))
    report_unknown(graph)
    (told,) = graph.diagnostics
    assert told.code == "QAT106"
    assert "vendor::Fancy in the body of this Loop" in told.message

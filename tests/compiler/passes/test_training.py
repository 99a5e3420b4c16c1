"""Operators that are random, or in training mode, are told before anything is compared."""

from __future__ import annotations

from pathlib import Path

import onnx.parser
import pytest

from qatc import compile_model, inspect_model
from qatc.compiler.diagnostics import CompileError
from qatc.compiler.graph import Node, Variable
from qatc.compiler.passes.modernize import modernize
from qatc.compiler.passes.training import report_training, trains
from tests.agreeing import lowered_net, reasons
from tests.graphs import loaded, net

DROPOUT = "d = Dropout(x, ratio, on)\ny = Relu(d)"
RANDOM = [
    ("r = RandomUniformLike(x)\ny = Add(x, r)", "", "RandomUniformLike is random"),
    ("r = RandomNormal<shape = [2]>()\ny = Add(x, r)", "", "RandomNormal is random"),
    ("r = Bernoulli(x)\ns = Bernoulli(r)\ny = Add(x, s)", "", "Bernoulli is random, here and at 1 more"),
    (DROPOUT, "float ratio = {0.5}, bool on = {1}", "Dropout in training mode is random"),
    ("d = Dropout(x, , on)\ny = Relu(d)", "bool on = {1}", "Dropout in training mode is random"),
]


def model(body: str, constants: str, opset: int = 15) -> str:
    return net("(float[2] x) => (float[2] y)", body, constants, opset=opset)


@pytest.mark.parametrize(("body", "constants", "message"), RANDOM)
def test_what_is_random_is_an_error_where_it_would_be_compared(body: str, constants: str, message: str) -> None:
    for verified, severity in ((True, "error"), (False, "warning")):
        graph = loaded(model(body, constants))
        modernize(graph)
        report_training(graph, verified=verified)
        (told,) = graph.diagnostics
        assert (told.code, told.severity.value, told.message) == ("QAT111", severity, message)
        assert told.node


@pytest.mark.parametrize("constants", ["float ratio = {0.0}, bool on = {1}", "float ratio = {0.5}, bool on = {0}"])
def test_dropout_that_drops_nothing_goes(constants: str) -> None:
    graph = loaded(model(DROPOUT, constants))
    modernize(graph)
    report_training(graph, verified=True)
    assert [node.op for node in graph.nodes] == ["Relu"]
    assert not list(graph.diagnostics)


def test_batch_norm_in_training_mode_is_a_warning_and_stays_float_with_the_reason() -> None:
    graph = lowered_net(
        "(float[1,2,2,2] x) => (float[1,2,2,2] y)",
        "a = A(x)\nn, m1, v1 = BatchNormalization<training_mode = 1>(a, g, b, m, v)\ny = A(n)",
        "float[2] g = {1.0, 1.0}, float[2] b = {0.0, 0.0}, float[2] m = {0.0, 0.0}, float[2] v = {1.0, 1.0}",
    )
    assert reasons(graph) == ["BatchNormalization: it is in training mode: the statistics are those of its input"]


def test_the_whole_compiler_refuses_it_by_name_and_inspects_it(tmp_path: Path) -> None:
    text = model("q = QuantizeLinear(x, s, z)\na = DequantizeLinear(q, s, z)\n" + DROPOUT.replace("(x,", "(a,"),
                 "float ratio = {0.5}, bool on = {1}, float s = {0.5}, uint8 z = {3}")  # fmt: skip
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx.parser.parse_model(text).SerializeToString())
    with pytest.raises(CompileError, match="QAT111"):
        compile_model(path, output=tmp_path / "out")
    assert "QAT111" in [d.code for d in inspect_model(path).diagnostics]
    result = compile_model(path, output=tmp_path / "out", verify=False)
    assert "QAT111" in [d.code for d in result.diagnostics]


@pytest.mark.parametrize("opset", [10, 13])
def test_five_outputs_mean_training_mode_before_opset_14(tmp_path: Path, opset: int) -> None:
    """By ONNX's definition and in ONNX Runtime: constants as its statistics are not what it normalizes with."""
    text = net(
        "(float[2,2,4,4] x) => (float[2,2,4,4] y)",
        "q = QuantizeLinear(x, s, z)\na = DequantizeLinear(q, s, z)\n"
        "n, m1, v1, m2, v2 = BatchNormalization(a, g, b, m, v)\ny = Relu(n)",
        "float s = {0.05}, uint8 z = {128}, float[2] g = {1.0, 2.0}, float[2] b = {0.0, 0.5}"
        ", float[2] m = {3.0, 0.0}, float[2] v = {9.0, 1.0}",
        opset=opset,
    )
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx.parser.parse_model(text).SerializeToString())
    result = compile_model(path, qat=True, output=tmp_path / "out")
    assert "QAT111" in [d.code for d in result.diagnostics]
    assert result.verification is not None
    assert result.verification.passed


def test_outputs_without_names_are_none() -> None:
    nodes = [Node("BatchNormalization", outputs=[Variable("y"), *map(Variable, names)]) for names in (["", ""], ["m"])]
    assert [trains(node) for node in nodes] == [False, True]

"""A conversion that changed the network is told; rounding is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qatc.compiler.diagnostics import Severity
from qatc.frontends.tf import convert
from qatc.frontends.tf.witness import NoWitnessError, compare

WEIGHT = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)


def converted(folder: Path, shape: Sequence[int | str], *, op: str = "MatMul", kind: int = TensorProto.FLOAT) -> Path:
    """A file with one product; `shape` is its input's."""
    x = helper.make_tensor_value_info("x", kind, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    nodes = [
        helper.make_node("Cast", ["x"], ["float"], to=TensorProto.FLOAT),
        helper.make_node(op, ["float", "w"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(WEIGHT, "w")])
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def exact(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [arrays[0].astype(np.float32) @ WEIGHT]


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.INT8, TensorProto.UINT8, TensorProto.INT32])
def test_equal_answers_and_rounding_are_silent(tmp_path: Path, kind: int) -> None:
    path = converted(tmp_path, ["unk__1", 6], kind=kind)
    assert compare(path, exact) == ()
    assert compare(path, lambda x: [exact(x)[0] * np.float32(1.05)]) == ()


def test_another_network_is_told(tmp_path: Path) -> None:
    path = converted(tmp_path, [4, 6])
    (found,) = compare(path, lambda x: [exact(x)[0][:, ::-1]])
    assert (found.code, found.severity, found.tensor) == ("QAT014", Severity.WARNING, "y")
    assert "root mean square" in found.message
    (found,) = compare(path, lambda x: [exact(x)[0].T])
    assert "has the shape [4, 3], in TensorFlow [3, 4]" in found.message


def test_what_rounding_may_explain_is_no_other_network(tmp_path: Path) -> None:
    """Deep networks of 8 bits make tenths of single steps, and a Sigmoid near 0 has no digits to compare."""
    path = converted(tmp_path, [4, 6])
    (found,) = compare(path, lambda x: [exact(x)[0] * np.float32(1.2)])
    assert (found.code, found.severity, found.tensor) == ("QAT014", Severity.WARNING, "y")
    assert "may be another network" in found.message
    (found,) = compare(path, lambda x: [exact(x)[0] * np.float32(3)])
    assert "made is another network" in found.message
    weights = onnx.load(path)
    weights.graph.initializer[0].CopyFrom(numpy_helper.from_array(WEIGHT * np.float32(1e-8), "w"))
    onnx.save(weights, path)
    assert compare(path, lambda x: [np.zeros((4, 3), np.float32)]) == ()


def test_a_model_that_tensorflow_cannot_run_is_told(tmp_path: Path) -> None:
    def asked(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        raise NoWitnessError("no kernel for TRANSPOSE_CONV")

    (found,) = compare(converted(tmp_path, [4, 6]), asked)
    assert (found.code, found.severity) == ("QAT014", Severity.NOTE)
    assert "no kernel for TRANSPOSE_CONV" in found.message


def test_a_model_that_tensorflow_stops_on_a_random_input_is_told(tmp_path: Path) -> None:
    """TFLite's integer DIV stops at a divisor that is 0; the file was refused, as if tf2onnx could not convert it."""

    def asked(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        raise RuntimeError("div.cc:242 data[i] != 0 was not true.Node number 25 (DIV) failed to invoke.")

    (found,) = compare(converted(tmp_path, [4, 6]), asked)
    assert (found.code, found.severity) == ("QAT014", Severity.NOTE)
    assert "on a random input: div.cc:242 data[i] != 0" in found.message


@pytest.mark.parametrize(
    ("shape", "op", "why"),
    [
        (["batch", "width"], "Neg", "leave more sizes open"),
        ([4, 6], "FakeQuantWithMinMaxVars", "ONNX Runtime cannot run"),
    ],
)
def test_what_cannot_be_compared_is_told(tmp_path: Path, shape: list[int | str], op: str, why: str) -> None:
    def asked(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        raise AssertionError

    (found,) = compare(converted(tmp_path, shape, op=op), asked)
    assert (found.code, found.severity) == ("QAT014", Severity.NOTE)
    assert why in found.message


class Signature:
    """A signature of a SavedModel, as TensorFlow loads it."""

    def __init__(self, answer: Callable[[np.ndarray], np.ndarray], *outputs: str) -> None:
        self.answer = answer
        self.structured_input_signature = ((), {"data": None})
        self.structured_outputs = dict.fromkeys(outputs)

    def __call__(self, *, data: np.ndarray) -> dict[str, np.ndarray]:
        return dict.fromkeys(self.structured_outputs, self.answer(data))


def saved(monkeypatch: pytest.MonkeyPatch, signatures: dict[str, Signature]) -> None:
    loaded = SimpleNamespace(signatures=signatures)
    fake = SimpleNamespace(saved_model=SimpleNamespace(load=lambda _: loaded), constant=lambda array: array)

    def needed(name: str) -> Any:
        return fake

    monkeypatch.setattr(convert, "needed", needed)


@pytest.mark.parametrize(("factor", "codes"), [(1, []), (1.5, ["QAT014"])])
def test_saved_models_are_asked_by_name(
    factor: float, codes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = converted(tmp_path, [4, 6])
    saved(monkeypatch, {"serving_default": Signature(lambda x: exact([x])[0] * np.float32(factor), "anything")})
    answer = convert.signed(tmp_path, path)
    assert answer is not None
    assert [d.code for d in compare(path, answer)] == codes


@pytest.mark.parametrize(
    "signatures",
    [{}, {"other": Signature(lambda x: x, "y")}, {"serving_default": Signature(lambda x: x, "y", "z")}],
)
def test_saved_models_with_other_names_are_not_compared(
    signatures: dict[str, Signature], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(monkeypatch, signatures)
    assert convert.signed(tmp_path, converted(tmp_path, [4, 6])) is None

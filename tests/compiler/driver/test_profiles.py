"""How far the profiles are from exact rounding on a network, as the report says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from qatc import compile_model
from qatc.compiler.arithmetic import PROFILES
from qatc.compiler.compare.package import open_package
from qatc.compiler.driver.profiles import profile_differences
from qatc.compiler.integer import Elementwise, IntegerGraph, Quantize, integer_tensor
from qatc.compiler.integer import Tensor as GraphTensor
from qatc.compiler.quant import QuantParams
from qatc.compiler.reference import execute, execute_op
from qatc.compiler.runtime.sessions import OrtEvaluator

CORPUS = Path(__file__).resolve().parents[2] / "corpus"


def graph(scale: float) -> IntegerGraph:
    """Quantize x, add it to itself onto a grid of another scale."""
    grid, out = QuantParams.per_tensor(0.25, 0), QuantParams.per_tensor(scale, 0)
    tensors = {
        "x": GraphTensor("x", "float32", (256,)),
        "q": integer_tensor("q", grid, (256,)),
        "y": integer_tensor("y", out, (256,)),
    }
    ops = [
        Quantize("quantize", ("x",), ("q",), lo=0, hi=255),
        Elementwise("add", ("q", "q"), ("y",), lo=0, hi=255, op="Add"),
    ]
    return IntegerGraph("sum", ["x"], ["y"], ops, tensors, {}, 17)


def test_differences_are_those_of_single_operators() -> None:
    feeds = [{"x": np.arange(256, dtype=np.float32) / 4}]
    found = {d.profile: d for d in profile_differences(graph(1.0), feeds)}
    assert set(found) == set(PROFILES) - {"exact"}
    # q / 2 has a tie at every odd q: half to even rounds half of them down, half up none
    assert found["onnx"].share == 0
    assert found["pow2"].share == 64 / 256
    assert (found["tosa"].share, found["tosa"].max_lsb, found["tosa"].worst) == (64 / 256, 1, "y")
    assert found["tosa"].elements == 256


def test_profiles_without_a_form_say_why() -> None:
    feeds = [{"x": np.zeros(256, np.float32)}]
    (found,) = profile_differences(graph(0.3), feeds, ["pow2"])
    assert "power of two" in found.reason
    assert (found.elements, found.share) == (0, 0.0)


def test_against_running_every_operator(tmp_path: Path) -> None:
    path = tmp_path / "p.qatc"
    compile_model(CORPUS / "fx-u8pc__unet" / "model.onnx", qat=True, output=path, verify=False)
    opened = open_package(path)
    exact = execute(opened.graph, opened.samples[0], PROFILES["exact"], evaluate=OrtEvaluator())
    values = {**opened.graph.constants, **exact}
    different = 0
    for op in opened.graph.ops:
        if opened.graph.tensors[op.output].params is not None and op.kind != "Quantize":
            mine = execute_op(opened.graph, op, values, PROFILES["tflite"], OrtEvaluator())[0]
            different += int(np.count_nonzero(mine != exact[op.output]))
    (found,) = profile_differences(opened.graph, opened.samples, ["tflite"], evaluate=OrtEvaluator())
    assert round(found.share * found.elements) == different > 0
    document = json.loads((path / "report.json").read_text())
    listed = next(p for p in document["profiles"] if p["profile"] == "tflite")
    assert listed["share"] == found.share
    assert listed["worst"] == found.worst

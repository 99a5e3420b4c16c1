"""What a compile is proved against: the file as it is, or what was restated of it, in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qatc import compile_model
from tests.graphs import net

WEIGHTS = "float[2,3] w = {0.1, -0.2, 0.3, 0.4, -0.5, 0.6}"
BODY = "a = A(x)\nv = D(w)\np = MatMul(a, v)\ny = A(p)"
UNROUNDED = BODY.replace("D(w)", "Identity(w)")
SINES = ", ".join(f"{np.sin(i * i):.7f}" for i in range(60))  # on no grid
WIDE = "(float[1,20] x) => (float[1,3] y)"
PLAIN = "(float[1,2] x) => (float[1,3] y)"


def simulated(folder: Path, body: str, signature: str = PLAIN, weights: str = WEIGHTS, **options: Any) -> str:
    model = onnx.parser.parse_model(net(signature, body, weights))
    model.producer_name = "tf2onnx" if options.get("dialect") == "tensorflow" else "pytorch"
    onnx.save(model, folder / "model.onnx")
    result = compile_model(folder / "model.onnx", qat=True, output=folder / "out", **options)
    assert result.verification is not None
    assert result.verification.passed
    return result.verification.simulation


def test_the_file_itself(tmp_path: Path) -> None:
    assert simulated(tmp_path, BODY).startswith("model.onnx in ONNX Runtime")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        pytest.param({"quant_range": "act=0..200"}, "with the ranges of --quant-range", id="stated"),
        pytest.param({"dialect": "tensorflow"}, "with the weights that qatc rounded", id="rounded"),
        pytest.param(
            {"dialect": "tensorflow", "quant_range": "act=0..200"},
            "with the weights that qatc rounded, with the ranges of --quant-range",
            id="both",
        ),
    ],
)
def test_what_is_restated_is_said(options: dict[str, Any], why: str, tmp_path: Path) -> None:
    given = (UNROUNDED, WIDE, f"float[20,3] w = {{{SINES}}}") if "dialect" in options else (BODY,)
    assert f"({why})" in simulated(tmp_path, *given, **options)


def test_ranges_that_change_nothing_restate_nothing(tmp_path: Path) -> None:
    """The file is compared with itself where each of its tensors has a range of its own."""
    body = "q = QuantizeLinear(x, sA, zA)\nc = Clip(q, low)\na = DequantizeLinear(c, sA, zA)\ny = Relu(a)"
    assert "--quant-range" not in simulated(tmp_path, body, PLAIN, "uint8 low = {3}", quant_range="weight=-5..5")


def test_what_calibration_filled_in_is_said(tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", np.random.default_rng(0).normal(0, 1, (8, 1, 2)).astype(np.float32))
    body = BODY.replace("y = A(p)", "q = Relu(p)\nr = MatMul(q, u)\ny = A(r)\n").replace(
        "v = D(w)", "v = D(w)\nu = D(t)"
    )
    weights = f"{WEIGHTS}, float[3,3] t = {{0.1, -0.2, 0.3, 0.4, -0.5, 0.6, 0.7, 0.8, 0.9}}"
    found = simulated(tmp_path, body, weights=weights, calibrate=tmp_path / "data.npy")
    assert "(with the ranges that --calibrate filled in)" in found

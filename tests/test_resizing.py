"""A U-Net whose decoder interpolates linearly runs in integers, on every target, and its package is read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from qatc import CompileError, compile_model
from qatc.compiler.arithmetic import get_profile
from qatc.compiler.compare.faults import guesses
from qatc.compiler.compare.package import open_package
from qatc.compiler.compare.setting import Setting
from qatc.compiler.integer import IntegerGraph, Resize
from qatc.compiler.quant import Array
from qatc.compiler.reference import evaluate_onnx, execute
from qatc.compiler.verify.package import verify_package
from tests.frontends.networks import Builder, model_of
from tests.tiny_package import codes, replace_file, text


class UNet(Builder):
    """Two levels down and up again; every tensor on a grid, those that are resized on the grid `step`."""

    def __init__(self, mode: str, step: float, factor: int = 2, size: int = 12) -> None:
        super().__init__()
        self.dice, self.count = np.random.default_rng(7), 0
        x = self.grid("input", 0.03, 128)
        a = self.conv(x, 3, 6)
        b = self.conv(a, 6, 8, factor)
        up = self.grid(self.resized(self.conv(b, 8, 8), mode, size), step)
        both = self.grid(self.add("Concat", [up, a], axis=1), 0.05)
        self.grid(self.conv(both, 14, 4), 0.05, 0, "output")
        self.factor = factor

    def add(self, op: str, inputs: list[str], out: str = "", **attrs: Any) -> str:
        self.count += 1
        return self.node(op, inputs, out or f"t{self.count}", **attrs)

    def value(self, value: Any, dtype: str) -> str:
        self.count += 1
        return self.constant(f"c{self.count}", value, dtype)

    def grid(self, x: str, scale: float, zero: int = 0, out: str = "") -> str:
        at = [self.value(scale, "float32"), self.value(zero, "uint8")]
        return self.add("DequantizeLinear", [self.add("QuantizeLinear", [x, *at]), *at], out)

    def conv(self, x: str, before: int, after: int, stride: int = 1) -> str:
        weight = self.value(self.dice.integers(-127, 128, (after, before, 3, 3)), "int8")
        step = self.value(np.full(after, 0.02 / np.sqrt(9 * before)), "float32")
        weight = self.add("DequantizeLinear", [weight, step, self.value(np.zeros(after), "int8")], axis=0)
        made = self.add("Conv", [x, weight], pads=[1] * 4, strides=[stride] * 2)
        return self.grid(self.add("Relu", [made]), 0.05)

    def resized(self, x: str, mode: str, size: int) -> str:
        sizes = self.value([1, 8, size, size], "int64")
        return self.add("Resize", [x, "", "", sizes], mode="linear", coordinate_transformation_mode=mode)


def written(folder: Path, net: UNet, size: int = 12) -> Path:
    model = model_of(net, [1, 3, size, size])
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def outputs(package: Path, x: Array) -> Array:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(package / "model.onnx", options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"input": x})[0])


@pytest.mark.parametrize("target", ["onnx", "qdq", "drpai"])
@pytest.mark.parametrize(
    ("mode", "step", "factor"),
    [("half_pixel", 0.047, 2), ("half_pixel", 0.05, 2), ("pytorch_half_pixel", 0.06, 3), ("align_corners", 0.047, 2),
     ("asymmetric", 0.047, 4)],
)  # fmt: skip
def test_a_unet_is_all_integers(mode: str, step: float, factor: int, target: str, tmp_path: Path) -> None:
    model = written(tmp_path, UNet(mode, step, factor))
    result = compile_model(model, qat=True, target=target, output=tmp_path / "out", require_integer=True)
    assert not result.islands
    assert result.coverage.share == 1
    found = result.verification
    assert found is not None
    assert found.passed
    assert all(check.max_lsb == 0 for check in found.package)


@pytest.mark.parametrize(
    ("mode", "step", "factor"),
    [("half_pixel", 0.047, 2), ("half_pixel", 0.05, 2), ("pytorch_half_pixel", 0.06, 3), ("asymmetric", 0.047, 4),
     ("align_corners", 0.047, 2)],
)  # fmt: skip
def test_its_package_is_read_back(mode: str, step: float, factor: int, tmp_path: Path) -> None:
    """As the same integers, whatever steps its Resize reads them on."""
    model = written(tmp_path, UNet(mode, step, factor))
    compile_model(model, qat=True, output=tmp_path / "first")
    again = compile_model(tmp_path / "first" / "model.onnx", qat=True, output=tmp_path / "second", require_integer=True)
    assert again.dialect == "qoperator"
    assert not again.islands
    x = np.random.default_rng(0).normal(0, 2, (1, 3, 12, 12)).astype(np.float32)
    np.testing.assert_array_equal(outputs(tmp_path / "second", x), outputs(tmp_path / "first", x))


@pytest.mark.parametrize("size", [40, 300])
def test_gathered_rows_are_read_back_as_real_numbers(size: int, tmp_path: Path) -> None:
    """Places that only a list says are no Resize any more; they stand for the same numbers."""
    model = written(tmp_path, UNet("align_corners", 0.05, 2, size), size)
    compile_model(model, qat=True, output=tmp_path / "first")
    again = compile_model(tmp_path / "first" / "model.onnx", qat=True, output=tmp_path / "second")
    assert {island.op_type for island in again.islands} <= {"Add", "Mul"}
    x = np.random.default_rng(0).normal(0, 2, (1, 3, size, size)).astype(np.float32)
    want, got = (outputs(tmp_path / name, x) for name in ("first", "second"))
    assert float((np.abs(got - want) > 1e-6).mean()) < 0.01
    assert float(np.abs(got - want).max(initial=0)) < 0.051


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"sizes": [10**7, 10**7]}, "QAT011", "an exact interpolation would take"),
        ({"sizes": [1 << 70, 12]}, "QAT502", "too large"),
        ({"denominators": [0, 4]}, "QAT502", "0 is less than the minimum of 1"),
        ({"denominators": [1 << 20, 1 << 20]}, "QAT502", "too large"),
        ({"offsets": [-(1 << 80), -1]}, "QAT502", "too large"),
        ({"axes": [2, 2]}, "QAT502", "each axis once"),
        ({"axes": [2, 9]}, "QAT502", "no axes"),
        ({"axes": [2]}, "QAT502", "does not say the same"),
    ],
    ids=str,
)
def test_an_integer_graph_that_would_harm(change: dict[str, Any], code: str, said: str, tmp_path: Path) -> None:
    """The hashes are right: whoever made the package meant it."""
    package = tmp_path / "out"
    compile_model(written(tmp_path, UNet("half_pixel", 0.047)), qat=True, output=package)
    document = json.loads((package / "integer.json").read_bytes())
    next(op for op in document["operators"] if op["kind"] == "Resize").update(change)
    replace_file(package, "integer.json", json.dumps(document).encode())
    found = verify_package(package)
    assert codes(found) == {code}
    assert said in text(found)


@pytest.mark.parametrize(
    ("sizes", "scales"),
    [
        ([1, 2, -3, 4], None), ([1, 2, 0, 4], None), ([1, 2, 3], None), ([1, 2, 1 << 62, 1 << 62], None),
        (None, [1, 1, np.nan, 2]), (None, [1, 1, np.inf, 2]), (None, [1, 1, -2, 2]), (None, [1, 1, 0, 2]),
        (None, [1, 1, 2]), (None, [1, 1, 1e9, 1e9]), (None, [1, 1, 3e38, 1]), (None, [2.5, 1, 1, 1]),
    ],
)  # fmt: skip
def test_a_file_that_makes_no_sense_is_refused(sizes: Any, scales: Any, tmp_path: Path) -> None:
    """What ONNX Runtime does not run, or what takes more memory than there is."""
    net = Builder()
    at = [net.constant("s", 0.1, "float32"), net.constant("z", 9, "uint8")]
    by = net.constant("by", *((scales, "float32") if sizes is None else (sizes, "int64")))
    x = net.node("DequantizeLinear", [net.node("QuantizeLinear", ["input", *at], "q"), *at], "x")
    r = net.node("Resize", [x, "", by] if sizes is None else [x, "", "", by], "r", mode="linear")
    net.node("DequantizeLinear", [net.node("QuantizeLinear", [r, *at], "p"), *at], "output")
    onnx.save(model_of(net, [1, 2, 4, 4]), tmp_path / "model.onnx")
    with pytest.raises(CompileError) as caught:
        compile_model(tmp_path / "model.onnx", qat=True, output=tmp_path / "out", max_memory="2GiB")
    assert {d.code for d in caught.value.diagnostics} <= {"QAT011", "QAT403"}


@pytest.mark.parametrize(("ours", "theirs"), [("half_pixel", "align_corners"), ("align_corners", "asymmetric"),
                                              ("asymmetric", "half_pixel")])  # fmt: skip
def test_a_device_with_other_coordinates_is_recognized(ours: str, theirs: str, tmp_path: Path) -> None:
    graphs: list[IntegerGraph] = []
    for mode in (ours, theirs):
        package = compile_model(written(tmp_path, UNet(mode, 0.047)), qat=True, output=tmp_path / mode).package
        assert package is not None
        graphs.append(open_package(package).graph)
    x = np.random.default_rng(0).normal(0, 2, (1, 3, 12, 12)).astype(np.float32)
    profile = get_profile("onnx")
    values, found = (execute(graph, {"input": x}, profile) for graph in graphs)
    (op,) = [op for op in graphs[0].ops if isinstance(op, Resize)]
    setting = Setting(graphs[0], op, {**graphs[0].constants, **values}, profile, evaluate_onnx, values[op.output])
    device = found[op.output]
    assert not np.array_equal(device, values[op.output])
    assert "coordinates" in {g.kind for g in guesses(setting, device, close=False) if np.array_equal(g.value, device)}

"""Padding in front of convolutions and of pooling becomes theirs, and every number stays what the file computes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from qatc import CompileError, compile_model
from qatc.compiler.runtime.sessions import RunnableModel
from tests.graphs import net

PLANE = "(float[1,2,6,6] x) => (float[1,?,?,?] y)"
WEIGHT = "float[4,2,3,3] f = {" + ", ".join(str((i * 7 % 11 - 5) / 16) for i in range(72)) + "}"
ALONG = "float[4,2,3] g = {" + ", ".join(str((i * 7 % 11 - 5) / 16) for i in range(24)) + "}"
NARROW = "int64[8] p = {0, 0, 1, 0, 0, 0, 2, 1}"
CONV = "k = D(f)\nv = Conv<strides = [2, 2]>(r, k)\ny = A(v)"
POOL = "v = MaxPool<kernel_shape = [3, 3], strides = [2, 2]>(r)\ny = B(v)"
PAD = "a = A(x)\nr = Pad(a, p)\n"
POSITIVE = "a = B(x)\nr = Pad(a, p)\n"


def operators(folder: Path, signature: str, body: str, constants: str, opset: int = 17) -> dict[str, int]:
    """What a compiled network consists of, whose outputs are those of the file, to the last bit."""
    model = onnx.parser.parse_model(net(signature, body, constants, opset=opset))
    onnx.save(model, folder / "model.onnx")
    result = compile_model(folder / "model.onnx", qat=True, output=folder / "out", samples=3)
    assert result.verification is not None
    assert result.verification.passed
    assert not result.islands
    for feeds, outputs in samples(folder / "out"):
        for name, wanted in RunnableModel(model).run(feeds).items():
            np.testing.assert_array_equal(outputs[name], wanted)
    return result.package_ops


def samples(package: Path) -> Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    for folder in sorted((package / "samples").iterdir()):
        found = {p.stem: np.load(p) for p in folder.glob("*.npy")}
        yield (
            {"x": found["input_0"]},
            {name: found[f"output_{i}"] for i, name in enumerate("yz") if f"output_{i}" in found},
        )


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        pytest.param(PAD + CONV, NARROW, id="alone"),
        pytest.param(PAD + CONV.replace("Conv<", "Conv<pads = [1, 1, 0, 2], "), NARROW, id="padded itself"),
        pytest.param(PAD + CONV.replace("Conv<", 'Conv<auto_pad = "SAME_LOWER", '), NARROW, id="same"),
        pytest.param(PAD + CONV.replace("Conv<", 'Conv<auto_pad = "VALID", '), NARROW, id="valid"),
        pytest.param(PAD + CONV.replace("Conv<", "Conv<dilations = [2, 2], "), NARROW, id="dilated"),
        pytest.param("a = A(x)\nc = Pad(a, p)\nr = Pad(c, p)\n" + CONV, NARROW, id="twice"),
        pytest.param("a = A(x)\nc = Pad(a, p)\nr = A(c)\n" + CONV, NARROW, id="rounded again"),
        pytest.param("c = Pad(x, p)\nr = A(c)\n" + CONV, NARROW, id="rounded behind it"),
        pytest.param(
            f"{PAD}k = D(f)\nv = Conv(r, k)\nc = A(v)\nu = Conv<group = 1>(r, k)\nd = A(u)\nw = Add(c, d)\ny = A(w)",
            NARROW,
            id="two",
        ),
        pytest.param(POSITIVE + POOL, NARROW, id="largest of what is not negative"),
        pytest.param(
            "b = Relu(x)\na = D(b)\nr = Pad(a, p)\n" + POOL.replace("B(v)", "D(v)"), NARROW, id="behind a Relu"
        ),
        pytest.param(POSITIVE + POOL.replace("MaxPool<", "MaxPool<pads = [1, 1, 0, 1], "), NARROW, id="padded pool"),
    ],
)
def test_it_is_the_windows_own(body: str, constants: str, tmp_path: Path) -> None:
    weight = f", {WEIGHT}" if "f)" in body else ""
    assert "Pad" not in operators(tmp_path, PLANE, body, constants + weight)


def test_named_axes(tmp_path: Path) -> None:
    body = "a = A(x)\nr = Pad(a, p, , axes)\n" + CONV
    constants = f"int64[4] p = {{1, 2, 0, 1}}, int64[2] axes = {{-1, 2}}, {WEIGHT}"
    assert "Pad" not in operators(tmp_path, PLANE, body, constants, opset=18)


@pytest.mark.parametrize("axes", ["int64 axes = {2}", "int64[2] axes = {2, -2}"])
def test_axes_that_are_no_list_or_name_one_twice_are_left_to_onnx_runtime(axes: str, tmp_path: Path) -> None:
    body = "a = A(x)\nr = Pad(a, p, , axes)\n" + CONV
    pads = "int64[2] p = {1, 2}" if "[2]" not in axes else "int64[4] p = {1, 2, 0, 1}"
    onnx.save(onnx.parser.parse_model(net(PLANE, body, f"{pads}, {axes}, {WEIGHT}", opset=18)), tmp_path / "model.onnx")
    with pytest.raises(CompileError, match=r"QAT40[13]"):
        compile_model(tmp_path / "model.onnx", qat=True, output=tmp_path / "out", verify=False)


@pytest.mark.parametrize(("code", "pads"), [(128, 0), (0, 1)])
def test_a_quantized_number_is_the_real_one(code: int, pads: int, tmp_path: Path) -> None:
    """Static quantization puts Q/DQ around what is filled in, too: 128 is zero there, and 0 is -64."""
    body = "a = A(x)\nn = DequantizeLinear(code, sA, zA)\nq = Pad(a, p, n)\nr = A(q)\n" + CONV
    constants = f"{NARROW}, {WEIGHT}, uint8 code = {{{code}}}"
    assert operators(tmp_path, PLANE, body, constants).get("Pad", 0) == pads


def test_one_dimension(tmp_path: Path) -> None:
    body = "a = A(x)\nr = Pad(a, p)\nk = D(g)\nv = Conv(r, k)\ny = A(v)"
    signature = "(float[1,2,6] x) => (float[1,4,?] y)"
    assert "Pad" not in operators(tmp_path, signature, body, f"int64[6] p = {{0, 0, 3, 0, 0, 1}}, {ALONG}")


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        pytest.param(PAD + CONV, "int64[8] p = {0, 0, 1, 1, 0, 0, -1, 0}", id="cut off"),
        pytest.param("a = A(x)\nr = Pad(a, p, two)\n" + CONV, f"{NARROW}, float two = {{2}}", id="another number"),
        pytest.param('a = A(x)\nr = Pad<mode = "reflect">(a, p)\n' + CONV, NARROW, id="mirrored"),
        pytest.param(
            PAD + CONV.replace("Conv<strides = [2, 2]>(r, k)", "Conv(r, k)\nw = Sigmoid(r)"), NARROW, id="read"
        ),
        pytest.param(PAD + POOL.replace("B(v)", "A(v)"), NARROW, id="largest of negative numbers"),
        pytest.param(POSITIVE + POOL.replace("[3, 3]", "[2, 2]"), NARROW, id="windows in the padding alone"),
        pytest.param(POSITIVE + POOL.replace("MaxPool<", "MaxPool<ceil_mode = 1, "), NARROW, id="rounded up"),
    ],
)
def test_it_stays(body: str, constants: str, tmp_path: Path) -> None:
    signature = PLANE
    if "Sigmoid" in body:
        signature, body = signature.replace(" y)", " y, float[1,2,9,7] z)"), body + "\nz = B(w)"
    weight = f", {WEIGHT}" if "f)" in body else ""
    assert operators(tmp_path, signature, body, constants + weight)["Pad"] == 1


def test_channels_stay(tmp_path: Path) -> None:
    body = "a = A(x)\nr = Pad(a, p)\n" + CONV
    signature = "(float[1,1,6,6] x) => (float[1,?,?,?] y)"
    assert operators(tmp_path, signature, body, f"int64[8] p = {{0, 0, 1, 1, 0, 1, 1, 1}}, {WEIGHT}")["Pad"] == 1

"""The backend qdq, the whole road: the file is read again, and ONNX Runtime runs it as users do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from qatc import compile_model, verify_package
from tests.graphs import net

CLAMPED = "a = W(x)\nr = Clip(a, low, high)\ny = W(r)"


def compiled(tmp_path: Path, body: str, constants: str = "", *, opset: int = 17, io: str = "float") -> Path:
    text = net("(float[2,8] x) => (float[2,8] y)", body, constants, opset=opset)
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    result = compile_model(tmp_path / "m.onnx", qat=True, target="qdq", io=io, output=tmp_path / "out")  # type: ignore[arg-type]
    assert result.verification is not None
    assert result.verification.passed
    assert result.package is not None
    assert verify_package(result.package).passed
    return result.package


@pytest.mark.parametrize(("grid", "dtype"), [("A", np.uint8), ("D", np.int8), ("W", np.int16)])
def test_integer_inputs_and_outputs(tmp_path: Path, grid: str, dtype: type[np.generic]) -> None:
    package = compiled(tmp_path, f"a = {grid}(x)\nr = Neg(a)\ny = {grid}(r)", opset=21, io="integer")
    graph = onnx.load(package / "model.onnx").graph
    kinds = [p.type.tensor_type.elem_type for p in (*graph.input, *graph.output)]
    assert kinds == [onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))] * 2
    assert [n.op_type for n in graph.node] == ["DequantizeLinear", "Neg", "QuantizeLinear"]
    assert np.load(package / "samples" / "0" / "input_0.npy").dtype == dtype
    assert np.load(package / "samples" / "0" / "output_0.npy").dtype == dtype


def test_an_integer_output_that_others_read(tmp_path: Path) -> None:
    weights = "float[8,8] w = {" + ",".join(str(i % 5 / 4 - 0.5) for i in range(64)) + "}"
    body = "a = D(x)\nb = D(w)\nm = MatMul(a, b)\ny = D(m)\nz = ArgMax(y)"
    text = net("(float[2,8] x) => (float[2,8] y, int64[1,8] z)", body, weights, opset=17)
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    result = compile_model(tmp_path / "m.onnx", qat=True, target="qdq", io="integer", output=tmp_path / "out")
    assert result.package is not None
    checked = verify_package(result.package)
    assert checked.passed, checked.diagnostics


READ_AGAIN = {
    # operators that read the same tensor stand in another order in the file
    "two readers": "a = A(x)\ns = Softmax(a)\ny = C(s)\nu = Sub(s, a)\nz = A(u)",
    # no file says that an input of integers holds fewer than its type does
    "narrow input": "q = QuantizeLinear(x, sD, zD)\nc = Clip(q, low, high)\na = DequantizeLinear(c, sD, zD)\n"
    "y = Where(mask, a, a)\nr = Relu(a)\nz = B(r)",
}


@pytest.mark.parametrize("name", READ_AGAIN)
def test_what_is_read_again_in_another_form_is_the_same(tmp_path: Path, name: str) -> None:
    """Both ended in QAT401."""
    constants = "int8 low = {-24}, int8 high = {40}, bool[2,8] mask = {" + ",".join("01" * 8) + "}"
    text = net("(float[2,8] x) => (float[2,8] y, float[2,8] z)", READ_AGAIN[name], constants)
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    result = compile_model(tmp_path / "m.onnx", qat=True, target="qdq", io="integer", output=tmp_path / "out")
    assert result.package is not None
    assert verify_package(result.package).passed


def test_a_choice_written_as_a_product_in_a_file_of_integer_operators(tmp_path: Path) -> None:
    """tf2onnx's tf.where behind ONNX Runtime's QOperator: read from Q/DQ it was one operator, and from the file six."""
    text = """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
        net (int32[4] x, int8[4,2] v) => (float[4,2] y)
        <float s = {0.5}, int8 z = {0}, int32 zero = {0}, int32 three = {3}, int8[4,2] t = {1,2,3,4,5,6,7,8}> {
        below = Less(x, zero) other = Not(below) c = Cast<to = 6>(below) d = Cast<to = 6>(other)
        moved = Add(x, three) a = Mul(c, moved) b = Mul(x, d) index = Add(a, b)
        q = Gather(t, index) r = com.microsoft.QLinearAdd(q, s, z, v, s, z, s, z) y = DequantizeLinear(r, s, z) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    result = compile_model(tmp_path / "m.onnx", qat=True, target="qdq", output=tmp_path / "out")
    assert result.verification is not None
    assert result.verification.passed


@pytest.mark.parametrize("function", ["Sigmoid(a)", 'Resize<mode = "linear">(a, , scales)'])
def test_functions_of_real_numbers_are_measured_without_products_too(tmp_path: Path, function: str) -> None:
    """Their last bits are the runtime's: where one lies on a rounding boundary, no integer is demanded."""
    text = net(
        f"(float[1,2,8] x) => (float[1,2,{16 if 'Resize' in function else 8}] y)",
        f"a = A(x)\nr = {function}\ny = B(r)",
        "float[3] scales = {1.0, 1.0, 2.0}",
    )
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    for target, judged in (("qdq", False), ("onnx", "Sigmoid" in function)):
        result = compile_model(tmp_path / "m.onnx", qat=True, target=target, output=tmp_path / target)
        assert result.package is not None
        found = verify_package(result.package)
        assert found.passed
        assert found.judged == judged


@pytest.mark.parametrize("opset", [17, 21])
@pytest.mark.parametrize("io", ["float", "integer"])
def test_ranges_of_sixteen_bits(tmp_path: Path, opset: int, io: str) -> None:
    """ONNX Runtime has no Clip of 16 bits."""
    package = compiled(tmp_path, CLAMPED, "float low = {-0.5}, float high = {1.0}", opset=opset, io=io)
    found = np.load(package / "samples" / "0" / "output_0.npy")
    assert found.dtype == (np.float32 if io == "float" else np.int16)
    if io == "float":
        assert found.min() >= -0.5
        assert found.max() <= 1.0

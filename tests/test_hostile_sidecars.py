"""Files beside the model that were made to harm: ranges, tables, target descriptions, arrays. Each ends in its code."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qatc import CompileError, compile_model
from tests.hostile_models import FLOAT, const, outside, sound


def plain(folder: Path) -> Path:
    """A float model: x [1,4] times the unit matrix."""
    ports = [helper.make_tensor_value_info(name, FLOAT, [1, 4]) for name in "xy"]
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", ports[:1], ports[1:], [weight])
    path = folder / "model.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())
    return path


def code_of(call: Callable[[], object]) -> set[str]:
    """The codes of the errors that a call ends in; what it says is printable."""
    with pytest.raises(CompileError) as caught:
        call()
    assert str(caught.value).replace("\n", "").isprintable()
    return {d.code for d in caught.value.diagnostics if d.severity.value == "error"}


# -- ranges -----------------------------------------------------------------------------------------------------------
DENORMAL = {"bitwidth": 8, "scale": 1e-320, "offset": 0, "min": 0, "max": 1e250}
RANGES = {
    "a line of spaces": "a" + " " * 1_000_000 + "b\n",
    "a line of colons": ":" * 1_000_000 + "\n",
    "a cache of colons": "TRT-1\n" + ":" * 1_000_000 + "\n",
    "a count that is a superscript": "#weight_scale\nw ² 1 2\n",
    "a count of 5,000 digits": "#weight_scale\nw " + "9" * 5000 + " 1 2\n",
    "no count": "#weight_scale\nw\n",
    "a count of none": "#weight_scale\nw 0 1 2\n",
    "lists nested 100,000 deep": "[" * 100_000,
    "objects nested 100,000 deep": '{"a":' * 100_000,
    "a number of 100,000 digits": '{"x": [0, ' + "9" * 100_000 + "]}",
    "NaN": '{"x": [0, NaN]}',
    "infinity": '{"x": [-1e999, 1e999]}',
    "a lone surrogate": json.dumps({"\ud800": [0, 1]}),
    "zeros": "\0" * 1000,
    "a step of zero": json.dumps({"ppl": {"x": {"step": 0, "bit": 8, "min": 1}}}),
    "a step that is denormal": json.dumps({"activation_encodings": {"x": [DENORMAL]}, "param_encodings": {}}),
    "a binary point of 10^299": json.dumps({"param": {"x": [[8, -1e299]]}}),
    "an axis of 10^30": json.dumps({"x": {"scale": [1, 2], "axis": -(10**30)}}),
    "a range of 10^200": json.dumps({"x": {"scale": 1, "qmin": -1e200, "qmax": 1e200}}),
}


@pytest.mark.parametrize("dialect", ["ranges", "aimet"])
@pytest.mark.parametrize("name", RANGES)
def test_ranges(tmp_path: Path, name: str, dialect: str) -> None:
    path = tmp_path / "ranges.json"
    path.write_text(RANGES[name], encoding="utf-8")
    model = plain(tmp_path)
    found = code_of(lambda: compile_model(model, dialect=dialect, ranges=path, verify=False, output=tmp_path / "o"))
    assert found <= {"QAT007", "QAT201", "QAT202", "QAT204"}


def beside(place: str) -> TensorProto:
    tensor = TensorProto(name="x_min", data_type=FLOAT, dims=[1])
    outside(tensor, place)
    return tensor


EXTREMES = {
    "in another file": beside("../secret.bin"),
    "in a file of the working directory": beside("secret.bin"),
    "without data": TensorProto(name="x_min", data_type=FLOAT, dims=[1]),
    "text": TensorProto(name="x_min", data_type=TensorProto.STRING, dims=[1], string_data=[b"a"]),
    "infinite": const("x_min", [-np.inf]),
    "NaN": const("x_min", [np.nan]),
}


@pytest.mark.parametrize("name", EXTREMES)
def test_ranges_in_a_model(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ends of a range as initializers (PPQ): they are read as all tensors of an untrusted model are."""
    (tmp_path / "secret.bin").write_bytes(bytes(4))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "model"
    folder.mkdir()
    model, path = onnx.load(plain(folder)), folder / "ranges.onnx"
    model.graph.initializer.extend([EXTREMES[name], const("x_max", [1.0])])
    path.write_bytes(model.SerializeToString())
    found = code_of(lambda: compile_model(folder / "model.onnx", dialect="ranges", ranges=path, output=tmp_path / "o"))
    assert found == {"QAT007"}


def test_a_name_that_is_nearly_one_takes_no_time(tmp_path: Path) -> None:
    """Names of thousands of characters are not searched for the nearest one, which takes the square of their length."""
    model = onnx.load(plain(tmp_path))
    long = "ab" * 20_000
    for node in model.graph.node:
        node.output[:] = [long]
    model.graph.output[0].name = long
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    path = tmp_path / "ranges.json"
    path.write_text(json.dumps({f"{long[:-1]}{i}": [0, 1] for i in range(50)}))
    assert code_of(lambda: compile_model(tmp_path / "model.onnx", dialect="ranges", ranges=path)) == {"QAT007"}


# -- TOML -------------------------------------------------------------------------------------------------------------
TOML = {
    "arrays nested 100,000 deep": "a=" + "[" * 100_000,
    "tables nested 50,000 deep": "a=" + "{a=" * 50_000,
    "a key of 100,000 parts": ".".join(["a"] * 100_000) + "=1",
    "a number of 10,000 digits": "act=" + "9" * 10_000,
    "a list for a table": "tensors=[1,2]\n",
    "a table for a name": "name={}\n",
    "a table for a range": "[tensors]\na={b='0..1'}\n",
    "zeros": "\0" * 100,
    "5 MiB": "#" * (5 << 20),
}


@pytest.mark.parametrize("option", ["target", "quant_range"])
@pytest.mark.parametrize("name", TOML)
def test_toml(tmp_path: Path, name: str, option: str) -> None:
    path = tmp_path / "given.toml"
    path.write_text(TOML[name])
    found = code_of(lambda: compile_model(plain(tmp_path), output=tmp_path / "o", **{option: str(path)}))
    assert found == {"QAT305" if option == "target" else "QAT007"}


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="has no endless file")
@pytest.mark.parametrize("option", ["target", "quant_range", "ranges"])
def test_an_endless_file(tmp_path: Path, option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read is bounded, not what the file system says of its size."""
    monkeypatch.setattr("qatc.frontends.common.records.LARGEST", 1 << 20)
    path = tmp_path / "endless.toml"
    path.symlink_to("/dev/zero")
    found = code_of(lambda: compile_model(plain(tmp_path), output=tmp_path / "o", **{option: str(path)}))
    assert found <= {"QAT305", "QAT007", "QAT005"}


# -- arrays -----------------------------------------------------------------------------------------------------------
def header(text: str, data: bytes = b"") -> Callable[[Path], object]:
    def write(path: Path) -> None:
        padded = text.encode() + b" " * (64 - (11 + len(text)) % 64) + b"\n"
        path.write_bytes(b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded + data)

    return write


def described(descr: str, shape: str, data: bytes = b"") -> Callable[[Path], object]:
    return header(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}", data)


def archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as held:
        held.writestr("a.npy", b"x")


ARRAYS: dict[str, Callable[[Path], object]] = {
    "an archive": archive,
    "empty": lambda path: path.touch(),
    "pickled": lambda path: np.save(path, np.array([object()], object), allow_pickle=True),
    "a pickle": lambda path: path.write_bytes(b"\x80\x04K\x01."),
    "a shape of 2^60": described("'<f4'", f"(1, {1 << 60})"),
    "a shape beyond 2^64": described("'<f4'", f"({1 << 40}, {1 << 40})"),
    "a negative shape": described("'<f4'", "(-1, 4)"),
    "a shape of seventy": described("'<f4'", f"({'1,' * 70})", bytes(4)),
    "a structure": described("[('a', '<f4')]", "(1, 4)", bytes(16)),
    "elements of no size": described("'|S0'", "(1, 4)"),
    "dates": described("'<M8[s]'", "(1, 4)", bytes(32)),
    "a header of brackets": header("(" * 5000),
}


@pytest.mark.parametrize("option", ["inputs", "calibrate"])
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays(tmp_path: Path, name: str, option: str) -> None:
    path, model = tmp_path / "array.npy", tmp_path / "model.onnx"
    ARRAYS[name](path)
    unranged = sound(nodes=[helper.make_node("MatMul", ["q2", "dw"], ["p"]), helper.make_node("Relu", ["p"], ["y"])])
    unranged.graph.output[0].name = "y"
    added = helper.make_node("Add", ["q2", "y"], ["sum"])  # a residual sum without a range
    again = helper.make_node("MatMul", ["sum", "dw"], ["last"])
    unranged.graph.node.extend([added, again])
    unranged.graph.output[0].name = "last"
    model.write_bytes(unranged.SerializeToString())
    given = {"inputs": [("x", path)]} if option == "inputs" else {"calibrate": path}
    assert code_of(lambda: compile_model(model, output=tmp_path / "o", **given)) <= {"QAT008", "QAT011"}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["array.npy", "model.onnx"]

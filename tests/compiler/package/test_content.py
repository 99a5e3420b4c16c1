"""What the package's files say: schemas, determinism, samples that numpy and ONNX read back."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, ValidationError
from onnx import numpy_helper

from qatc.compiler.diagnostics import CompileError, Diagnostic, Severity
from qatc.compiler.npy import npy_array
from qatc.compiler.package import (
    PackageWriter,
    Sample,
    SourceFile,
    Tolerance,
    check_script,
    dump_json,
    manifest,
    quantization_document,
    quantization_json,
    report_document,
    report_json,
    schema,
    source_file,
    tolerance_of,
    unsafe_path,
    write_samples,
)
from qatc.compiler.package.samples import npy_bytes
from qatc.compiler.quant import Array, QuantParams
from qatc.compiler.result import (
    CompileResult,
    Coverage,
    FilledRange,
    Island,
    Json,
    OutputCheck,
    Port,
    TensorCheck,
    TensorRecord,
    Verification,
)

ACTIVATION = QuantParams.per_tensor(0.1, 128, "uint8")
WEIGHT = QuantParams.per_channel([0.5, 0.25, 1e-30], 0)
INPUT = Port("x", "float32", ("batch", 3, None), None)
OUTPUT = Port("y", "uint8", None, ACTIVATION)
NAMES = ["plain", "", "tab\there", "nul\0", "</script><script>alert(1)</script>", "\ud800", "網路", "q" * 100_000]
TENSORS = [
    TensorRecord(None, name, role, params)
    for name, role, params in [
        ("x_q", "input", ACTIVATION),
        ("w", "weight", WEIGHT),
        *((n, "bias", WEIGHT) for n in NAMES),
    ]
]


def check(tensor: str = "t", **changes: Any) -> TensorCheck:
    return replace(TensorCheck(tensor, "op", "Conv", 10, {1: 1, 0: 9}), **changes)


RESULT = CompileResult(
    package=Path("/somewhere/out"),
    source=Path("/home/user/model.onnx"),
    source_bytes=1000,
    package_bytes=250,
    dialect="pytorch",
    evidence="QuantizeLinear",
    target="onnx",
    profile="onnx",
    source_ops={"Conv": 2, "Add": 1},
    package_ops={"QLinearConv": 2},
    inputs=(INPUT,),
    outputs=(OUTPUT,),
    coverage=Coverage(90, 10, 3, 1, 2),
    islands=tuple(Island(name, "Erf", "no integer form", 10) for name in NAMES),
    filled=(FilledRange("x", ACTIVATION, "minmax"),),
    tensors=tuple(TENSORS),
    diagnostics=(Diagnostic("QAT109", "stays float", Severity.NOTE, node="n"),),
    verification=Verification(
        samples=1,
        simulation="the input file",
        package=(check(),),
        local=(check(sqnr_db=40.5, excused=1), check(histogram={np.int64(0): np.int64(10)})),
        tensors=(check(elements=0, histogram={}, sqnr_db=float("nan")),),
        outputs=(OutputCheck("y", 0.0, float("inf"), None), OutputCheck("z", 0.1, 0.2, 1.0)),
        passed=True,
    ),
    explanation=("folded",),
    timings={"load": 0.1234567},
)


def a_manifest(**changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "version": "1.2.3",
        "source": SourceFile("model.onnx", 5, "0" * 64),
        "external": [SourceFile("b.bin", 5, "1" * 64), SourceFile("a.bin", 5, "2" * 64)],
        "dialect": "pytorch",
        "target": "onnx",
        "profile": "onnx",
        "options": {"samples": 2, "domain": "standard", "shapes": {"x": [1, 3]}},
        "inputs": [INPUT],
        "outputs": [OUTPUT],
        "samples": [{"inputs": ["samples/0/input_0.npy"], "outputs": ["samples/0/output_0.npy"]}],
        "tolerances": [Tolerance(1.0, 0.0)],
        "layouts": {"x": "NCL"},
    }
    document = manifest(**{**arguments, **changes})
    return {**document, "files": {"model.onnx": {"size": 3, "sha256": "a" * 64}}}


def validate(document: Json, name: str) -> None:
    Draft202012Validator(schema(name)).validate(json.loads(dump_json(document)))  # pyright: ignore[reportUnknownMemberType]


# -- schemas ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["manifest", "quantization", "report"])
def test_schemas_are_schemas(name: str) -> None:
    Draft202012Validator.check_schema(schema(name))
    assert schema(name)["$id"] == f"urn:qatc:schema:{name}:1"


def objects(part: Any) -> list[dict[str, Any]]:
    if isinstance(part, list):
        return [found for item in part for found in objects(item)]  # pyright: ignore[reportUnknownVariableType]
    if not isinstance(part, dict):
        return []
    own = [part] if part.get("type") == "object" and "properties" in part else []  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return own + [found for item in part.values() for found in objects(item)]  # pyright: ignore[reportUnknownVariableType]


@pytest.mark.parametrize("name", ["manifest", "quantization", "report"])
def test_schemas_leave_no_room(name: str) -> None:
    """Every object requires all of its properties and allows no others, so the tests below see every drift."""
    for found in objects(schema(name)):
        assert found["additionalProperties"] is False
        assert found["required"] == list(found["properties"])


def test_params_are_the_same_everywhere() -> None:
    params = schema("manifest")["$defs"]["params"]
    assert schema("report")["$defs"]["params"] == params
    tensor = schema("quantization")["$defs"]["tensor"]
    assert {k: v for k, v in tensor["properties"].items() if k in params["properties"]} == params["properties"]


def test_manifest_fits_its_schema() -> None:
    validate(a_manifest(), "manifest")
    validate(a_manifest(model=None, samples=(), tolerances=None, layouts=None, external=(), options={}), "manifest")


def test_quantization_fits_its_schema() -> None:
    validate(quantization_document(TENSORS), "quantization")
    validate(quantization_document([]), "quantization")


def test_report_fits_its_schema() -> None:
    validate(report_document(RESULT), "report")
    validate(report_document(replace(RESULT, verification=None, islands=(), filled=())), "report")


@pytest.mark.parametrize(
    "change",
    [
        {"files": {"../x": {"size": 1, "sha256": "a" * 64}}},
        {"files": {"x": {"size": -1, "sha256": "a" * 64}}},
        {"files": {"x": {"size": 1, "sha256": "A" * 64}}},
        {"model": "/etc/passwd"},
        {"samples": [{"inputs": ["a//b"], "outputs": []}]},
        {"format": "other"},
        {"schema_version": 2},
        {"surprise": 1},
    ],
)
def test_schema_refuses(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        validate({**a_manifest(), **change}, "manifest")


@given(st.text(alphabet="ab./\\:\0\n", max_size=8))
def test_schema_and_writer_agree_on_names(name: str) -> None:
    pattern = schema("manifest")["properties"]["files"]["propertyNames"]["pattern"]
    assert (re.search(pattern, name) is not None) == (unsafe_path(name) is None)


# -- bytes --------------------------------------------------------------------------------------------------------
def test_layout_of_json() -> None:
    document: dict[str, Json] = {"b": 1, "a": [1, 2.5, "x", None, True], "c": {}, "d": [], "e": [{"f": [1]}, []]}
    expected = """{
  "b": 1,
  "a": [1, 2.5, "x", null, true],
  "c": {},
  "d": [],
  "e": [
    {"f": [1]},
    []
  ]
}
"""
    assert dump_json(document) == expected.encode()


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES)
def test_json_reads_back(value: Json) -> None:
    assert json.loads(dump_json(value)) == value


@pytest.mark.parametrize("value", [math.nan, math.inf, [math.nan], {"a": -math.inf}])
def test_json_has_no_nan(value: Json) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        dump_json(value)


@given(st.floats(width=32, min_value=2.0**-126, allow_infinity=False, allow_nan=False))
def test_scales_read_back_exactly(scale: float) -> None:
    params = QuantParams.per_tensor(scale)
    found = json.loads(quantization_json([TensorRecord(None, "t", "activation", params)]))["tensors"][0]["scale"][0]
    assert np.float32(found) == np.float32(scale) == np.float32(params.scale[0])


def test_reports_hold_no_clock_and_no_path() -> None:
    text = report_json(RESULT).decode()
    assert "timings" not in text
    assert "/home/user" not in text
    assert "/somewhere" not in text
    assert report_json(RESULT) == report_json(replace(RESULT, timings={}, package=None))


def test_order_of_dictionaries_does_not_matter() -> None:
    other = replace(RESULT, source_ops={"Add": 1, "Conv": 2})
    assert report_json(other) == report_json(RESULT)
    assert dump_json(a_manifest(options={"b": 1, "a": 2})) == dump_json(a_manifest(options={"a": 2, "b": 1}))
    assert list(schema("manifest")["properties"]) == list(a_manifest())
    assert list(schema("report")["properties"]) == list(report_document(RESULT))


def test_source_file_is_hashed(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"abc")
    found = source_file(tmp_path / "m.onnx")
    assert found == SourceFile("m.onnx", 3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
    with pytest.raises(CompileError, match="QAT002"):
        source_file(tmp_path / "missing")


def test_check_script_is_python() -> None:
    compile(check_script(), "check.py", "exec")
    assert b"import qatc" not in check_script()


# -- samples ------------------------------------------------------------------------------------------------------
ARRAYS = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.asfortranarray(np.arange(6, dtype=np.int8).reshape(2, 3)),
    np.float32(2.5).reshape(()),
    np.zeros((0, 3), np.uint8),
    np.array([True, False]),
    np.arange(4, dtype=np.int64)[::-2],
    np.array([1.5, np.nan, np.inf], np.float16),
    np.array([1, 2], np.dtype(">f4")).astype(">f4"),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype}{list(a.shape)}")
def test_samples_read_back(tmp_path: Path, array: Array) -> None:
    little = array.dtype.newbyteorder("<")
    port = Port("name of it", array.dtype.name, array.shape)
    with PackageWriter(tmp_path / "out") as writer:
        entries = write_samples(writer, [Sample((array,), (array, array))] * 2, [port], [port, port])
        writer.finish({"format": "qatc-package", "samples": entries})
    assert entries[1] == {
        "inputs": ["samples/1/input_0.npy"],
        "outputs": ["samples/1/output_0.npy", "samples/1/output_1.npy"],
    }
    for index in "01":
        for stem in ("input_0", "output_0", "output_1"):
            folder = tmp_path / "out" / "samples" / index
            loaded = np.load(folder / f"{stem}.npy", allow_pickle=False)
            assert loaded.dtype == little
            assert loaded.flags.c_contiguous
            np.testing.assert_array_equal(loaded, array, strict=False)
            assert loaded.shape == array.shape
            assert (folder / f"{stem}.bin").read_bytes() == loaded.tobytes()
            proto = onnx.TensorProto()
            proto.ParseFromString((tmp_path / "out" / f"test_data_set_{index}" / f"{stem}.pb").read_bytes())
            assert proto.name == "name of it"
            np.testing.assert_array_equal(numpy_helper.to_array(proto), array)
            checked = npy_array((folder / f"{stem}.npy").read_bytes())
            np.testing.assert_array_equal(checked, array)
            assert (checked.shape, checked.dtype) == (array.shape, little)


def test_npy_bytes_are_fixed() -> None:
    """The same on every numpy, since packages are compared byte by byte."""
    header = b"\x93NUMPY\x01\x00v\x00{'descr': '<i2', 'fortran_order': False, 'shape': (2,), }"
    assert npy_bytes(np.array([1, 2], np.int16)) == header.ljust(127) + b"\n" + b"\x01\x00\x02\x00"


def test_samples_must_fit_the_ports(tmp_path: Path) -> None:
    port = Port("x", "float32", (1,))
    with PackageWriter(tmp_path / "out") as writer:
        with pytest.raises(ValueError, match="float64"):
            write_samples(writer, [Sample((np.zeros(1),), ())], [port], [])
        with pytest.raises(ValueError, match="2 arrays for 1 inputs"):
            write_samples(writer, [Sample((np.zeros(1, np.float32),) * 2, ())], [port], [])


def test_types_that_npy_lacks_are_a_diagnostic(tmp_path: Path) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    port = Port("x", "bfloat16", (1,))
    with PackageWriter(tmp_path / "out") as writer, pytest.raises(CompileError, match="QAT008"):
        write_samples(writer, [Sample((np.zeros(1, ml_dtypes.bfloat16),), ())], [port], [])


def test_arrays_that_protobuf_lacks_are_a_diagnostic(tmp_path: Path) -> None:
    large = np.broadcast_to(np.zeros((), np.float32), (1 << 29,))  # no memory
    port = Port("x", "float32", (1 << 29,))
    with PackageWriter(tmp_path / "out") as writer, pytest.raises(CompileError, match=r"QAT501.*2\.15 GB"):
        write_samples(writer, [Sample((large,), ())], [port], [])


def test_tolerance_follows_the_largest_value() -> None:
    assert tolerance_of([np.array([3, 200], np.uint8)]) == Tolerance(0.0, 0.0)
    assert tolerance_of([np.array([1.0, -4.0, np.inf, np.nan], np.float32)]) == Tolerance(4e-5, 1e-5)
    assert tolerance_of([np.zeros(0, np.float32)]) == Tolerance(0.0, 1e-5)

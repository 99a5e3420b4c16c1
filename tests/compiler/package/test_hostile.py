"""Packages made to harm who checks them: nothing outside is read, nothing is run, and what is printed is harmless."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from qatc.compiler.diagnostics import CompileError
from qatc.compiler.package.stored import read_samples
from qatc.compiler.verify.package import verify_package
from tests.tiny_package import build, codes, edit, replace_file, run_check, text, tiny_model


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return build(tmp_path / "out")


ENTRY = {"size": 0, "sha256": hashlib.sha256(b"").hexdigest()}


def hostile(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document.update(changes)


HOSTILE: list[Callable[[dict[str, Any]], None]] = [
    *(
        hostile(files={name: ENTRY})
        for name in ("../secret", "/dev/null", "a/../../secret", "a\\..\\x", "C:/x", "", "/")
    ),
    hostile(files={"model.onnx": {"size": "3", "sha256": "x"}}),
    hostile(files={"model.onnx": {"size": 10**200, "sha256": "0" * 64}}),
    hostile(files=[]),
    hostile(files=None),
    hostile(model="../secret"),
    hostile(model="samples/0/missing.npy"),
    hostile(model=["model.onnx"]),
    hostile(inputs=None),
    hostile(outputs=[]),
    hostile(samples=[{"inputs": ["../secret"], "outputs": []}]),
    hostile(samples=[{"inputs": [], "outputs": []}]),
    hostile(samples=[{}]),
    hostile(samples=[["x"]]),
    hostile(samples=[{"inputs": ["model.onnx"], "outputs": ["model.onnx", "model.onnx"]}]),
    hostile(samples=[{"inputs": ["check.py"] * 500, "outputs": []}]),
    hostile(format=["qatc-package"]),
    hostile(schema_version="1"),
]


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_a_hostile_manifest_is_refused(package: Path, number: int) -> None:
    (package.parent / "secret").write_bytes(b"")
    edit(package, HOSTILE[number])
    found = verify_package(package)
    assert not found.passed
    assert codes(found) <= {"QAT502", "QAT404"}
    assert found.samples == ()
    status, _, err = run_check(package)
    assert status == 1
    assert err.startswith("check failed: ")


def test_names_are_shown_harmlessly(package: Path) -> None:
    edit(package, hostile(files={"\x1b[2J../" + "x" * 10_000: ENTRY}))
    shown = text(verify_package(package))
    assert "\x1b" not in shown
    assert len(shown) < 2_000
    assert "\x1b" not in run_check(package)[2]


def test_a_model_that_reads_other_files_is_not_run(package: Path) -> None:
    (package.parent / "secret").write_bytes(b"\0" * 4)
    for place in ("initializer", "attribute"):
        model = tiny_model()
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../secret")
        if place == "attribute":
            inner = helper.make_graph([helper.make_node("Constant", [], ["c"], value=tensor)], "g", [], [])
            model.graph.node.append(helper.make_node("If", ["c"], ["d"], then_branch=inner, else_branch=inner))
            del model.graph.initializer[0]
        replace_file(package, "model.onnx", model.SerializeToString())
        for samples in (
            True,
            False,
        ):  # whoever compares or evaluates has none replayed, and reads the model all the same
            found = verify_package(package, samples=samples)
            assert codes(found) == {"QAT502"}
            assert "../secret, which is no part of the package" in text(found)


def test_a_model_in_a_folder_reads_from_there(package: Path) -> None:
    """Its data lie beside it: a listed file of that name elsewhere does not vouch for them."""
    model = tiny_model()
    scale = model.graph.initializer[0]
    scale.ClearField("raw_data")
    scale.data_location = TensorProto.EXTERNAL
    scale.external_data.add(key="location", value="w.bin")
    replace_file(package, "w.bin", b"\0" * 4)
    (package / "sub").mkdir()
    replace_file(package, "sub/model.onnx", model.SerializeToString())
    edit(package, hostile(model="sub/model.onnx"))
    assert "reads the file w.bin, which is no part of the package" in text(verify_package(package))


def test_the_log_of_the_runtime_does_not_show_names(package: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """ONNX Runtime's log shows them as they are, on the terminal."""
    model = tiny_model()
    name = "\x1b]0;owned\x07"
    scale = model.graph.initializer[0]
    scale.name, scale.raw_data = name, b"x"
    for node in model.graph.node:
        node.input[1] = name
    replace_file(package, "model.onnx", model.SerializeToString())
    found = verify_package(package)
    assert codes(found) == {"QAT502"}
    assert "\x1b" not in text(found)
    status, out, err = run_check(package)
    assert status == 1
    captured = capfd.readouterr()
    assert "\x1b" not in captured.out + captured.err + out + err


def test_the_runtime_prints_nothing(package: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Of a name that is no text it makes an error of Python's, after which it tries the same once more and says so."""
    model = tiny_model()
    model.graph.initializer[0].name, model.graph.initializer[0].raw_data = "nnnn", b"x"
    for node in model.graph.node:
        node.input[1] = "nnnn"
    replace_file(package, "model.onnx", model.SerializeToString().replace(b"nnnn", b"\xeb\xfe\xfd\xfc"))
    found = verify_package(package)
    assert codes(found) == {"QAT502"}
    assert "EP Error" not in run_check(package)[1]
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


@pytest.mark.parametrize("depth", [300, 700, 900, 950, 980, 5000])
@pytest.mark.parametrize("key", ["files", "schema_version", "inputs", "unknown"])
def test_a_manifest_of_brackets(package: Path, depth: int, key: str) -> None:
    document = json.loads((package / "manifest.json").read_text())
    document[key] = "@"
    nested = json.dumps(document).replace('"@"', "[" * depth + "]" * depth)
    (package / "manifest.json").write_text(nested)
    try:
        found = codes(verify_package(package))
    except CompileError as error:
        found = {d.code for d in error.diagnostics}
    assert found == {"QAT502"}


@pytest.mark.parametrize("data", [b"not a model", b"", b"\x08"])
def test_a_model_that_is_none(package: Path, data: bytes) -> None:
    replace_file(package, "model.onnx", data)
    assert codes(verify_package(package)) == {"QAT502"}
    status, _, err = run_check(package)
    assert status == 1
    assert "cannot load model.onnx" in err


def test_a_model_with_other_ports(package: Path) -> None:
    model = tiny_model()
    del model.graph.output[1]
    replace_file(package, "model.onnx", model.SerializeToString())
    found = verify_package(package)
    assert codes(found) == {"QAT502"}
    assert "has the outputs q, the manifest q, y" in text(found)
    assert run_check(package)[0] == 1


def test_a_sample_that_is_none(package: Path) -> None:
    replace_file(package, "samples/0/input_0.npy", b"\x93NUMPY\x01\x00\x05\x00{bad}")
    assert codes(verify_package(package)) == {"QAT502"}
    assert run_check(package)[0] == 1


def test_a_sample_of_another_type(package: Path) -> None:
    shutil.copy(package / "samples/0/output_0.npy", package / "samples/0/input_0.npy")
    replace_file(package, "samples/0/input_0.npy", (package / "samples/0/input_0.npy").read_bytes())
    found = verify_package(package)
    assert codes(found) == {"QAT502"}
    assert "sample 0 cannot be run" in text(found)
    assert run_check(package)[0] == 1


@pytest.mark.parametrize("name", ["quantization.json"])
def test_the_other_documents_are_checked_too(package: Path, name: str) -> None:
    replace_file(package, name, b'{"schema_version": 1}')
    assert "'tensors' is a required property" in text(verify_package(package))
    replace_file(package, name, b"{")
    assert f"{name} cannot be read" in text(verify_package(package))


def places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in a JSON document."""
    items: list[tuple[Any, Any]] = []
    if isinstance(document, dict):
        items = list(document.items())  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    elif isinstance(document, list):
        items = list(enumerate(document))  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    return [found for key, value in items for found in [(*path, key), *places(value, (*path, key))]]


VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=5)
NAMES = st.sampled_from(
    ["../secret", "/etc/passwd", "model.onnx", "samples/0/output_0.npy", "check.py", "samples", "."]
)
DOCUMENTS = st.recursive(VALUES | NAMES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    package = build(tmp_path_factory.mktemp("base") / "out")
    return package, (package / "manifest.json").read_text()


@given(st.data())
def test_any_manifest_ends_in_a_verdict(base: tuple[Path, str], data: st.DataObject) -> None:
    """Whatever stands wherever in the manifest: the answer is findings, or a CompileError, and nothing else."""
    package, original = base
    document = json.loads(original)
    for _ in range(data.draw(st.integers(1, 2))):
        *way, last = data.draw(st.sampled_from(places(document)))
        parent = document
        for key in way:
            parent = parent[key]
        parent[last] = data.draw(DOCUMENTS)
    (package / "manifest.json").write_text(json.dumps(document))
    try:
        found = {(d.code, d.severity.value) for d in verify_package(package).diagnostics}
    except CompileError as error:
        found = {(d.code, d.severity.value) for d in error.diagnostics}
    assert found <= {("QAT502", "error"), ("QAT502", "warning"), ("QAT404", "error")}


@pytest.mark.parametrize("number", [10**400, -(10**400)])
def test_numbers_that_no_float_holds_are_refused(package: Path, number: int) -> None:
    """A tolerance or a scale of them ended in OverflowError."""
    edit(package, lambda document: document["outputs"][0]["tolerance"].update(absolute=number))
    with pytest.raises(CompileError, match=r"a number of 40[12] digits"):
        verify_package(package)
    document = (package / "manifest.json").read_text()
    (package / "manifest.json").write_text(document.replace(str(number), "1e999"))
    with pytest.raises(CompileError, match="1e999"):
        verify_package(package)


def test_a_result_of_another_type_says_so(tmp_path: Path) -> None:
    def change(outputs: list[Any]) -> None:
        outputs[1] = outputs[1][:1]

    found = verify_package(build(tmp_path / "out", change=change))
    assert "the result is float32 [2, 4], the sample float32 [1, 4]" in text(found)


def test_the_root_is_no_package() -> None:
    with pytest.raises(CompileError, match=r"/ has no manifest\.json"):
        verify_package("/")


def test_a_file_that_is_many_samples_is_read_once(package: Path) -> None:
    """Each time took its size in memory."""
    manifest = json.loads((package / "manifest.json").read_text())
    manifest["samples"] *= 3
    first, second, again, *_ = read_samples(package, manifest)
    assert again["x"] is first["x"]
    assert second["x"] is not first["x"]

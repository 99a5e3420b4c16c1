"""Files of other formats: who converts them, what the package says of them, what is said where nobody does."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from qatc import CompileError, compile_model, inspect_model
from qatc.compiler.diagnostics import Diagnostic, Severity, fail
from qatc.compiler.driver import importing
from qatc.compiler.driver.compile import simulate_model
from qatc.compiler.driver.importing import Imported, as_onnx, importer_of
from qatc.compiler.frontend import Frontend, Importer
from qatc.compiler.package.content import source_file
from qatc.compiler.registry import frontends
from qatc.compiler.storage import scratch_folder
from qatc.frontends.pytorch import FRONTEND

MODEL = Path(__file__).resolve().parents[3] / "samples" / "models" / "resnet8_qat.onnx"
NOTE = Diagnostic("QAT012", "half of it was lost", Severity.WARNING)


def convert(source: Path, destination: Path) -> tuple[Diagnostic, ...]:
    """A format whose files hold an ONNX model upside down."""
    content = (source / "content").read_bytes() if source.is_dir() else source.read_bytes()
    if not content:
        raise fail("QAT012", "nothing in there")
    destination.write_bytes(content[::-1])
    return (NOTE,)


class Registry:
    """The dialects, and one more that reads files of its own."""

    def names(self) -> list[str]:
        return ["upside", *frontends().names()]

    def get(self, name: str) -> Frontend:
        if name != "upside":
            return frontends().get(name)
        importer = Importer((".flip",), convert, "a mirror", marker="content")
        return Frontend("upside", "", FRONTEND.recognize, FRONTEND.normalize, importer=importer)


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "frontends", Registry)


@pytest.fixture
def flipped(tmp_path: Path) -> Path:
    path = tmp_path / "net.FLIP"
    path.write_bytes(MODEL.read_bytes()[::-1])
    return path


def test_a_file_is_converted_compiled_and_named(flipped: Path, tmp_path: Path) -> None:
    result = compile_model(flipped, qat=True, output=tmp_path / "out")
    plain = compile_model(MODEL, qat=True, output=tmp_path / "plain")
    assert NOTE in result.diagnostics
    assert (tmp_path / "out/model.onnx").read_bytes() == (tmp_path / "plain/model.onnx").read_bytes()
    assert result.coverage == plain.coverage
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["source"]["file"] == "net.FLIP"
    assert manifest["source"]["sha256"] == hashlib.sha256(flipped.read_bytes()).hexdigest()
    assert inspect_model(flipped).coverage == plain.coverage


def test_the_package_is_named_after_the_file(flipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(flipped.parent)
    assert compile_model("net.FLIP", qat=True).package == Path("net.qatc")
    folder = flipped.parent / "model_dir"
    folder.mkdir()
    (folder / "content").write_bytes(flipped.read_bytes())
    monkeypatch.chdir(folder)
    assert compile_model(".", qat=True, output="../here.qatc").source == Path()
    with as_onnx(Path()) as found:
        assert found.path.name == "model_dir.onnx"
    assert not found.path.exists()


def test_a_converter_s_refusal_ends_the_compile(tmp_path: Path) -> None:
    (tmp_path / "net.flip").write_bytes(b"")
    with pytest.raises(CompileError, match=r"QAT012.*nothing in there"):
        compile_model(tmp_path / "net.flip", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_onnx_files_ask_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked() -> None:
        raise AssertionError

    monkeypatch.setattr(importing, "frontends", asked)
    shutil.copy(MODEL, tmp_path / "Model.ONNX")
    assert importer_of(tmp_path / "Model.ONNX") is None
    assert importer_of(tmp_path / "missing.flip") is None


def test_folders_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=r"QAT002.*is a folder(.|\n)*content or saved_model\.pb"):
        compile_model(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(CompileError, match=r"QAT002(.|\n)*qatc verify"):
        compile_model(tmp_path)


def test_the_hash_of_a_folder_can_be_checked_with_a_shell(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    for name, content in (("saved_model.pb", b"graph"), ("variables/a b", b"1"), ("variables/Z", b""), ("é", b"2")):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(content)
    (folder / "empty").mkdir()
    found = source_file(folder)
    command = "find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum"
    shell = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, check=True)
    assert (found.name, found.size, found.sha256) == ("saved", 7, shell.stdout.split()[0])


def test_the_simulation_of_a_converted_model_leaves_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its arrays stay mapped; the folder that the conversion wrote to is gone."""
    places: list[Path] = []

    @contextmanager
    def converted(path: Path) -> Generator[Imported]:
        with scratch_folder() as scratch:
            places.append(Path(shutil.copy(path, scratch / "model.onnx")))
            yield Imported(places[0])

    monkeypatch.setattr("qatc.compiler.driver.compile.as_onnx", converted)
    simulation = simulate_model(MODEL)
    assert not places[0].parent.exists()
    (scores,) = simulation.run({"input": np.zeros((1, 1, 16, 16), np.float32)}, simulation.outputs).values()
    assert scores.shape == (1, 10)

"""Equal input, equal bytes: over runs, hash seeds, numbers of threads, and the Pythons that are installed.

QATC_PYTHONS lists interpreters (separated by colons) that have qatc's dependencies; without it those called python3.X
on the path are tried. Each is compared where it has the same versions of what computes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODELS = [
    ROOT / "samples" / "models" / "resnet8_qat.onnx",
    ROOT / "tests" / "corpus" / "tfmot-op13__smallcnn" / "model.onnx",
]
COMPUTES = ("numpy", "onnx", "onnxruntime", "onnx-graphsurgeon", "jinja2")
VERSIONS = f"""
import json
from importlib.metadata import version
print(json.dumps([version(name) for name in {COMPUTES!r}]))
"""


def package(model: Path, out: Path, python: str = sys.executable, **environment: str) -> dict[str, str]:
    """The files of a package and their hashes, compiled by a process of its own."""
    command = [python, "-m", "qatc", "compile", "-a", str(model), "-o", str(out), "-q", "--samples", "2", "--golden"]
    given = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"} | environment
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=given, cwd=out.parent)
    assert done.returncode == 0, done.stderr
    return {
        file.relative_to(out).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(out.rglob("*"))
        if file.is_file()
    }


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("wanted")
    return {model: package(model, folder / str(index)) for index, model in enumerate(MODELS)}


@pytest.mark.parametrize("model", MODELS, ids=lambda path: path.parent.name)
@pytest.mark.parametrize(
    "environment",
    [{}, {"PYTHONHASHSEED": "1"}, {"PYTHONHASHSEED": "4294967295", "TZ": "Asia/Tokyo", "LANG": "C"}],
    ids=["again", "seed 1", "elsewhere"],
)  # fmt: skip
def test_runs_are_alike(
    tmp_path: Path, wanted: dict[Path, dict[str, str]], model: Path, environment: dict[str, str]
) -> None:
    assert package(model, tmp_path / "another name", **environment) == wanted[model]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads follow the processors on Linux alone")
@pytest.mark.parametrize("model", MODELS, ids=lambda path: path.parent.name)
def test_threads_do_not_matter(tmp_path: Path, wanted: dict[Path, dict[str, str]], model: Path) -> None:
    """However many threads BLAS is told to have, and however many processors there are."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one processor")
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    for count in ("1", "2"):
        assert package(model, tmp_path / count, **dict.fromkeys(threads, count)) == wanted[model]
    taskset = shutil.which("taskset")
    if taskset is None:
        pytest.skip("no taskset")
    script = tmp_path / "one"
    script.write_text(f'#!/bin/sh\nexec {taskset} -c {min(os.sched_getaffinity(0))} "{sys.executable}" "$@"\n')
    script.chmod(0o755)
    assert package(model, tmp_path / "bound", str(script)) == wanted[model]


def pythons() -> list[str]:
    """Other interpreters that can run qatc with the same libraries."""
    listed = os.environ.get("QATC_PYTHONS")
    found = listed.split(os.pathsep) if listed else [shutil.which(f"python3.{minor}") for minor in range(10, 15)]
    here = (sys.version_info.major, sys.version_info.minor)
    usable: list[str] = []
    for python in filter(None, found):
        asked = "import sys; print(sys.version_info[0], sys.version_info[1])"
        done = subprocess.run([python, "-c", asked], capture_output=True, text=True, check=False)
        if done.returncode == 0 and tuple(map(int, done.stdout.split())) != here:
            usable.append(python)
    return usable


@pytest.mark.parametrize("python", pythons() or ["none"])
def test_versions_of_python_do_not_matter(tmp_path: Path, wanted: dict[Path, dict[str, str]], python: str) -> None:
    if python == "none":
        pytest.skip("no other Python: name some in QATC_PYTHONS")
    versions = [
        subprocess.run([each, "-c", VERSIONS], capture_output=True, text=True, check=False).stdout
        for each in (sys.executable, python)
    ]
    if not versions[1]:
        pytest.skip(f"{python} has not what qatc needs")
    for index, model in enumerate(MODELS):
        found = package(model, tmp_path / str(index), python)
        differ = sorted(name for name in wanted[model] if found.get(name) != wanted[model][name])
        assert found.keys() == wanted[model].keys()
        if json.loads(versions[0]) == json.loads(versions[1]):
            assert not differ
        else:  # another ONNX Runtime may compute the recorded floats otherwise; what is made from the model stays
            assert not {"quantization.json", "integer.json", "check.py"} & set(differ)

"""What a user's site-packages gets: the package `qatc`, whole, and nothing else."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ["compiler", "frontends", "backends"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the sources: building leaves nothing behind in the checkout."""
    copy = tmp_path_factory.mktemp("source")
    litter = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in ["qatc", *SOURCES]:
        shutil.copytree(ROOT / folder, copy / folder, symlinks=True, ignore=litter)
    for file in ["cli.py", "pyproject.toml", "README.md", "LICENSE"]:
        shutil.copy(ROOT / file, copy / file)
    out = copy / "dist"
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_only_qatc_at_top_level(names: set[str]) -> None:
    top = {name.split("/")[0] for name in names}
    (info,) = [name for name in top if name.endswith(".dist-info")]
    assert top == {"qatc", info}


def test_every_source_file_is_inside(names: set[str]) -> None:
    sources = [file for folder in SOURCES for file in (ROOT / folder).rglob("*") if file.is_file()]
    wanted = {"qatc/" + f.relative_to(ROOT).as_posix() for f in sources if "__pycache__" not in f.parts}
    wanted |= {
        "qatc/__init__.py",
        "qatc/__main__.py",
        "qatc/cli.py",
        "qatc/py.typed",
        "qatc/compiler/__init__.py",
    }
    assert sorted(wanted - names) == []


def test_no_links_and_no_litter(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        links = [i.filename for i in archive.infolist() if (i.external_attr >> 16) & 0o170000 == 0o120000]
        assert links == []
        assert [n for n in archive.namelist() if n.endswith(".pyc") or "/tests/" in n] == []


def test_commands(wheel: Path, names: set[str]) -> None:
    (entry_points,) = [name for name in names if name.endswith(".dist-info/entry_points.txt")]
    parser = configparser.ConfigParser()
    with ZipFile(wheel) as archive:
        parser.read_string(archive.read(entry_points).decode())
    assert dict(parser["console_scripts"]) == {
        "qatc": "qatc.__main__:main",
        "compile": "qatc.__main__:compile_main",
    }


def test_imports_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    with ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    script = "import qatc, qatc.cli, qatc.compiler.driver.compile; print(qatc.__file__); print(qatc.__version__)"
    command = [sys.executable, "-c", script]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}
    )
    file, version = done.stdout.split()
    assert Path(file).is_relative_to(tmp_path)
    assert version in wheel.name


def test_checkout_without_symbolic_links(tmp_path: Path) -> None:
    """Git on Windows may write the links as text files: imports then go through the repository root."""
    (tmp_path / "qatc").mkdir()
    for file in (ROOT / "qatc").glob("*.py"):
        if not file.is_symlink():
            shutil.copy(file, tmp_path / "qatc")
    for name in [*SOURCES, "cli.py"]:
        (tmp_path / "qatc" / name).write_text(f"../{name}")
    shutil.copytree(ROOT / "compiler", tmp_path / "compiler")
    done = subprocess.run(
        [sys.executable, "-c", "import qatc.compiler.quant as q; print(q.__file__)"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
    )
    assert Path(done.stdout.strip()) == tmp_path / "compiler" / "quant.py"


def test_importing_qatc_is_cheap() -> None:
    """None of the libraries that take long to load, before a name is used."""
    script = "import sys, qatc; print(*sorted({n.split('.')[0] for n in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    heavy = {"numpy", "onnx", "onnxruntime", "onnx_graphsurgeon", "rich", "jinja2", "jsonschema", "click"}
    assert heavy & set(done.stdout.split()) == set()

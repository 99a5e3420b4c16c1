"""Hostile models end in coded errors, soon, in little memory, without a read outside their folder or any write."""

from __future__ import annotations

import os
import sys
import tempfile
import tracemalloc
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from qatc import CompileError, compile_model
from qatc.compiler.result import CompileResult
from qatc.compiler.runtime import sessions as runtime
from tests.hostile_models import NAMES, SECRET, Hostile, named, saved
from tests.hostile_protos import ALL as CASES

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the files need POSIX")

LARGEST = 512 << 20  # bytes that a hostile model may make the compiler take, as docs/security.md states
FORBIDDEN = ("/etc/passwd", "/dev/zero", "/proc/self/mem")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}


class Watch:
    """What Python opens and changes while `on`; an audit hook cannot be taken out again."""

    on = False
    read: list[str] = []  # noqa: RUF012
    changed: list[str] = []  # noqa: RUF012

    @classmethod
    def hook(cls, event: str, arguments: tuple[Any, ...]) -> None:
        if not cls.on or not arguments or not isinstance(arguments[0], (str, bytes, os.PathLike)):
            return
        path = os.path.abspath(os.fsdecode(arguments[0]))  # noqa: PTH100 - links are not to be followed
        if event == "open":
            flags = arguments[2]
            (cls.changed if isinstance(flags, int) and flags & _WRITING else cls.read).append(path)
        elif event in _CHANGES:
            cls.changed.append(path)


@pytest.fixture(scope="module", autouse=True)
def watch() -> None:
    sys.addaudithook(Watch.hook)


@contextmanager
def watched() -> Generator[None]:
    Watch.read, Watch.changed, Watch.on = [], [], True
    try:
        yield
    finally:
        Watch.on = False


def peak_memory() -> int | None:
    """The most memory that the process has had since `reset_peak`, None where the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        return None


def reset_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def compiled(path: Path, output: Path) -> CompileResult | CompileError:
    """What becomes of the file; its memory is measured."""
    exact = reset_peak()
    before = peak_memory() or 0
    tracemalloc.start()
    try:
        with watched():
            return compile_model(path, qat=True, output=output)
    except CompileError as error:
        return error
    finally:
        traced = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        peak = (peak_memory() or before) - before if exact else 0
        assert max(traced, peak) < LARGEST


@pytest.mark.parametrize("name", CASES)
def test_hostile_models_end_in_coded_errors(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "PATIENCE", 0.5)
    case: Hostile = CASES[name]
    folder, secret = tmp_path / "model", tmp_path / SECRET
    folder.mkdir()
    secret.write_bytes(bytes(64))
    os.utime(secret, (1, 10**9))  # the time of the last access is older than that of the last change: a read shows
    path = case.write(folder)
    result = compiled(path, tmp_path / "out")
    if isinstance(result, CompileError):
        assert {d.code for d in result.diagnostics if d.severity.value == "error"} <= case.codes
        assert result.exit_code == 1
        assert len(result.diagnostics) <= 45
        text = str(result)
        assert len(text) < 60_000
        assert text.replace("\n", "").isprintable()
        assert not (tmp_path / "out").exists()
    else:
        assert "compiles" in case.codes
    assert secret.stat().st_atime == 1
    assert not [p for p in Watch.read if p.startswith(FORBIDDEN) or Path(p).name == SECRET]
    allowed = (str(tmp_path / "out"), str(tmp_path / ".out."), tempfile.gettempdir())
    inside = [p for p in Watch.changed if not p.startswith(allowed) or p.startswith(str(folder))]
    assert not inside
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "out") == ["model", SECRET]


def test_the_watch_sees_a_read(tmp_path: Path) -> None:
    """Neither check above passes because it is blind."""
    secret = tmp_path / SECRET
    secret.write_bytes(b"x")
    os.utime(secret, (1, 10**9))
    with watched():
        secret.read_bytes()
    assert str(secret) in Watch.read
    if secret.stat().st_atime == 1:
        pytest.skip("this file system keeps no times of access")


def test_there_are_enough_of_them() -> None:
    assert len([c for c in CASES.values() if "compiles" not in c.codes]) >= 100


@pytest.mark.parametrize("label", NAMES)
def test_hostile_names_do_no_harm(tmp_path: Path, label: str) -> None:
    """A sound model whose names are hostile compiles, or says why not; what is written and shown is harmless."""
    folder = tmp_path / "model"
    folder.mkdir()
    name = NAMES[label]
    path = saved(lambda: named(name, broken=False))(folder)
    result = compiled(path, tmp_path / "out")
    if isinstance(result, CompileError):
        assert {d.code for d in result.diagnostics} <= {"QAT004", "QAT403"}
        assert str(result).replace("\n", "").isprintable()
        return
    for file in (tmp_path / "out").rglob("*"):
        assert file.name.isprintable()
        assert file.resolve().is_relative_to(tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<script>alert(1)" not in page
    assert "<img src=x" not in page
    assert page.count("</script>") == page.count("<script")
    assert "\x1b" not in page
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "out"]

"""Whatever stops the writer, wherever: the destination holds the old package or the new, and the next run tidies up.

Every call that the writer makes to the operating system is a place to stop. The tests below stop at the first, the
second, ... until a run gets through: by death of the process (fork and _exit), by an error of the system, by Ctrl-C.
"""

from __future__ import annotations

import errno
import hashlib
import os
import pathlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qatc.compiler.backend import Emission
from qatc.compiler.diagnostics import CompileError
from qatc.compiler.package import MANIFEST, PackageWriter, read_manifest, recover
from qatc.compiler.package import swap as swap_module
from qatc.compiler.package.read import SIGNATURE

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="dies in a forked child")

CALLS = ("open", "write", "fsync", "close", "rename", "mkdir", "unlink", "rmdir")
#: What Python tells of a change to the file system, and the call above that makes it.
CHANGES = {
    "open": "open", "os.rename": "rename", "os.mkdir": "mkdir", "os.remove": "unlink", "os.rmdir": "rmdir",
    **dict.fromkeys(("os.truncate", "os.link", "os.symlink", "os.chmod", "os.chown", "os.utime"), "none"),
}  # fmt: skip
KILLED, THROUGH, REFUSED, WRONG = 77, 0, 3, 4
Interrupt = Callable[[], None]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


FILES = {"model.onnx", "model.onnx.data", "samples/0/a.bin"}


def emission(content: str) -> Emission:
    """A model whose weights lie in a file of their own, as those of more than two gigabytes do."""
    names = ("v", "w")
    held = [onnx.TensorProto(name=name, data_type=onnx.TensorProto.UINT8, dims=[len(content)]) for name in names]
    for tensor in held:
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="")
    graph = onnx.helper.make_graph([], content, [], [], held)
    weights = np.frombuffer(content.encode(), np.uint8)
    return Emission(onnx.helper.make_model(graph), {}, tuple((name, weights) for name in names), data_file=True)


def build(destination: Path, content: str) -> None:
    """A signed package whose files all hold `content`."""
    with PackageWriter(destination) as writer:
        fill(writer, content)


def fill(writer: PackageWriter, content: str) -> None:
    emission(content).write(writer.open, "model.onnx")
    with writer.open("samples/0/a.bin") as stream:
        stream.write(content.encode())
        stream.write(b"!")
    writer.finish({"format": "qatc-package", "content": content}, lambda folder: sealed(folder, content))


def sealed(folder: Path, content: str) -> bytes:
    """A signature: over a folder that holds all the rest."""
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == {MANIFEST, *FILES}
    return f"signed: {content}".encode()


def content(folder: Path) -> str:
    """What a package holds, sure to be whole; fails where it is not."""
    manifest = read_manifest(folder)
    assert manifest is not None
    found: str = manifest["content"]
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert files == {MANIFEST, SIGNATURE, *FILES}
    assert set(manifest["files"]) == FILES
    for name, entry in manifest["files"].items():
        data = (folder / name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["size"], entry["sha256"])
        assert found.encode() in data
    assert (folder / SIGNATURE).read_text() == f"signed: {found}"
    return found


def stop_at(patch: pytest.MonkeyPatch, number: int, stop: Interrupt) -> list[str]:
    """Call `stop` instead of the `number`-th system call; returns the list of calls made so far, which grows."""
    made: list[str] = []

    def watched(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            made.append(name)
            if len(made) == number:
                stop()
            return real(*args, **kwargs)

        return call

    for name in CALLS:
        real = getattr(os, name)
        replacement = watched(name, real)
        patch.setattr(os, name, replacement)
        accessor = getattr(pathlib, "_NormalAccessor", None)  # Python 3.10: pathlib keeps its own references
        if getattr(accessor, name, None) is real:  # its `open` is that of io
            patch.setattr(accessor, name, staticmethod(replacement))
    patch.setattr(swap_module, "exchange", watched("exchange", swap_module.exchange))
    return made


class Told:
    """What Python tells of changes while `on`; an audit hook cannot be taken out again."""

    on = False
    changes: list[str] = []  # noqa: RUF012

    @classmethod
    def hook(cls, event: str, arguments: tuple[Any, ...]) -> None:
        if cls.on and event in CHANGES:
            cls.changes.append(CHANGES[event])


def test_no_call_is_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The places where the tests below stop are all there are: Python tells of no change that is none of them."""
    build(tmp_path / "out", "old")
    sys.addaudithook(Told.hook)
    made = stop_at(monkeypatch, 0, lambda: None)
    Told.on = True
    try:
        build(tmp_path / "out", "new")
    finally:
        Told.on = False
    opened_otherwise = 1  # the manifest of the old package, read with open()
    for call in ("rename", "mkdir", "unlink", "rmdir", "none"):
        assert Told.changes.count(call) == made.count(call), call
    assert Told.changes.count("open") <= made.count("open") + opened_otherwise * 4
    assert made.count("exchange") == 1
    assert made.count("write") >= 8
    assert made.count("fsync") >= 5 + 3  # files, and folders


def forked(child: Callable[[], None]) -> int:
    """Run `child` in a copy of this process; its exit status, 3 where it was refused with QAT503."""
    process = os.fork()
    if process == 0:
        try:
            child()
            os._exit(THROUGH)
        except CompileError as error:
            os._exit(REFUSED if {d.code for d in error.diagnostics} == {"QAT503"} else WRONG)
        except BaseException:
            os._exit(WRONG)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that dies takes nothing from the disk cache with it: waiting for the disk would prove nothing here."""

    def fsync(descriptor: int) -> None:
        os.fstat(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.fixture(params=["exchange", "two renames"])
def swapping(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both ways to replace a package; True where no moment without a package is allowed."""
    if request.param == "two renames":
        monkeypatch.setattr(swap_module, "exchange", never)
        return False
    return True


def never(first: Path, second: Path) -> bool:
    return False


@pytest.mark.parametrize("old", [True, False], ids=["replacing", "fresh"])
def test_killed_at_every_call(tmp_path: Path, swapping: bool, old: bool) -> None:
    seen: set[str] = set()
    for number in range(1, 200):
        place = tmp_path / str(number)
        out = place / "out"
        place.mkdir()
        if old:
            build(out, "old")

        def child(out: Path = out, number: int = number) -> None:
            with pytest.MonkeyPatch.context() as patch:
                stop_at(patch, number, lambda: os._exit(KILLED))
                build(out, "new")

        status = forked(child)
        if swapping and old:
            seen.add(content(out))
        else:
            recover(out)
            if old or out.exists():
                seen.add(content(out))
        build(out, "next")
        assert content(out) == "next"
        assert names(place) == ["out"]
        if status == THROUGH:
            break
        assert status == KILLED
    else:
        pytest.fail("no run ever got through")
    assert seen == {"old", "new"} if old else {"new"}
    assert number > 25


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EPERM], ids=["ENOSPC", "EIO", "EPERM"])
def test_the_system_refuses_every_call(tmp_path: Path, swapping: bool, code: int) -> None:
    def refuse() -> None:
        raise OSError(code, os.strerror(code))

    for number in range(1, 200):
        out = tmp_path / str(number) / "out"
        out.parent.mkdir()
        build(out, "old")
        refusal: CompileError | None = None
        with pytest.MonkeyPatch.context() as patch:
            made = stop_at(patch, number, refuse)
            try:
                build(out, "new")
            except CompileError as error:
                refusal = error
        if refusal:
            assert {d.code for d in refusal.diagnostics} == {"QAT501"}
            assert str(tmp_path) in refusal.diagnostics[0].message
            assert os.strerror(code) in refusal.diagnostics[0].message
            assert refusal.diagnostics[0].hint
        in_place = made[: number - 1].count("exchange" if swapping else "rename") == (1 if swapping else 2)
        assert content(out) == ("new" if in_place or not refusal else "old")
        if refusal:
            assert names(out.parent) == ["out"]
        build(out, "next")
        assert names(out.parent) == ["out"]
        if len(made) < number:
            break
    else:
        pytest.fail("no run ever got through")


def stopped(folder: Path, interrupt: Callable[[], None]) -> Iterator[Path]:
    """Packages that are replaced, each build interrupted one call later than the one before, until one gets through."""
    for number in range(1, 200):
        out = folder / str(number) / "out"
        out.parent.mkdir()
        build(out, "old")
        with pytest.MonkeyPatch.context() as patch:
            made = stop_at(patch, number, interrupt)
            try:
                build(out, "new")
            except KeyboardInterrupt:
                assert content(out) in ("old", "new")
            else:
                assert len(made) < number
                return
        assert len(made) >= number
        yield out
    pytest.fail("no run ever got through")


def test_interrupted_at_every_call(tmp_path: Path, swapping: bool) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    for out in stopped(tmp_path, interrupt):
        build(out, "next")
        assert content(out) == "next"
        assert names(out.parent) == ["out"]


@pytest.fixture
def heeded() -> Iterator[None]:
    """Ctrl-C as in a shell: a run in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeded")
def test_a_signal_at_any_call_leaves_nothing_behind(tmp_path: Path, swapping: bool) -> None:
    """Also while the run begins, and while it removes what it replaced: those steps are not cut in two."""
    for out in stopped(tmp_path, lambda: signal.raise_signal(signal.SIGINT)):
        assert names(out.parent) == ["out"]


def test_a_killed_process_leaves_no_lock_behind(tmp_path: Path) -> None:
    build(tmp_path / "out", "old")
    ready, tell = os.pipe()
    process = os.fork()
    if process == 0:
        with PackageWriter(tmp_path / "out") as writer:
            writer.write("model.onnx", b"half")
            os.write(tell, b"x")
            time.sleep(60)
        os._exit(WRONG)
    assert os.read(ready, 1) == b"x"
    os.close(ready)
    os.close(tell)
    with pytest.raises(CompileError) as error:
        build(tmp_path / "out", "mine")
    assert [d.code for d in error.value.diagnostics] == ["QAT503"]
    assert content(tmp_path / "out") == "old"
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    assert names(tmp_path) == [".out.lock", ".out.new", "out"]
    build(tmp_path / "out", "mine")
    assert content(tmp_path / "out") == "mine"
    assert names(tmp_path) == ["out"]


def test_a_second_writer_in_the_same_process_is_refused(tmp_path: Path) -> None:
    with PackageWriter(tmp_path / "out") as writer:
        with pytest.raises(CompileError, match="another compile") as error:
            build(tmp_path / "out", "second")
        assert [d.code for d in error.value.diagnostics] == ["QAT503"]
        build(tmp_path / "other", "neighbor")
        fill(writer, "first")
    assert content(tmp_path / "out") == "first"
    assert names(tmp_path) == ["other", "out"]


def test_many_writers_at_once(tmp_path: Path) -> None:
    """Three processes compile into one place over and over; it holds a whole package of one of them all the while."""
    out = tmp_path / "out"
    build(out, "start")
    children: list[int] = []
    for name in "abc":
        process = os.fork()
        if process == 0:
            won = 0
            until = time.monotonic() + 1.0
            while time.monotonic() < until:
                status = THROUGH
                try:
                    build(out, name)
                except CompileError as error:
                    status = REFUSED if {d.code for d in error.diagnostics} == {"QAT503"} else WRONG
                won += status == THROUGH
                if status == WRONG:
                    os._exit(WRONG)
            os._exit(THROUGH if won else REFUSED)
        children.append(process)
    missing = 0
    until = time.monotonic() + 0.9
    while time.monotonic() < until:
        missing += not (out / "model.onnx").exists()
    statuses = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in children]
    assert WRONG not in statuses
    assert THROUGH in statuses
    if swap_module.exchange(out, out):  # an exchange of a name with itself tells whether the system has it
        assert missing == 0
    assert content(out) in "abc"
    assert names(tmp_path) == ["out"]


def test_recover_restores_only_a_whole_package(tmp_path: Path) -> None:
    recover(tmp_path / "out")
    assert names(tmp_path) == []
    build(tmp_path / "out", "old")
    (tmp_path / "out").rename(tmp_path / ".out.old")
    recover(tmp_path / "out")
    assert content(tmp_path / "out") == "old"
    (tmp_path / "out").rename(tmp_path / ".out.old")
    (tmp_path / ".out.old" / MANIFEST).unlink()  # removal had begun
    recover(tmp_path / "out")
    assert names(tmp_path) == []


def test_a_package_that_was_being_removed_does_not_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path / "out", "old")
    with monkeypatch.context() as patch:
        patch.setattr(swap_module, "exchange", never)

        def stuck(path: Path) -> None:
            raise OSError(errno.EIO, "Input/output error")

        patch.setattr("shutil.rmtree", stuck)
        build(tmp_path / "out", "new")
    assert names(tmp_path) == [".out.old", "out"]
    (tmp_path / "out").rename(tmp_path / "taken away by the user")
    recover(tmp_path / "out")
    assert names(tmp_path) == ["taken away by the user"]

"""PackageWriter: what it writes, what it refuses, and that nothing is left over."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qatc.compiler.diagnostics import CompileError
from qatc.compiler.package import PackageWriter, WrittenPackage, check_destination, swap, unsafe_path
from qatc.compiler.result import Json
from qatc.compiler.verify.package import verify_package
from tests import tiny_package

MANIFEST: dict[str, Json] = {"format": "qatc-package", "schema_version": 1}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def build(destination: Path, content: bytes = b"model") -> WrittenPackage:
    with PackageWriter(destination) as writer:
        writer.write("model.onnx", content)
        writer.write("samples/0/input_0.bin", b"\x01\x02")
        return writer.finish(MANIFEST)


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def codes(error: pytest.ExceptionInfo[CompileError]) -> list[str]:
    return [d.code for d in error.value.diagnostics]


def test_a_package_lists_every_file_with_size_and_hash(tmp_path: Path) -> None:
    written = build(tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_bytes())
    assert manifest["format"] == "qatc-package"
    assert list(manifest["files"]) == ["model.onnx", "samples/0/input_0.bin"]
    for name, entry in manifest["files"].items():
        data = (tmp_path / "out" / name).read_bytes()
        assert entry == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert names(tmp_path) == ["out"]
    assert written.path == tmp_path / "out"
    assert written.size == sum(len(data) for data in tree(tmp_path / "out").values())
    assert written.diagnostics == ()


def test_large_files_stream_in_pieces(tmp_path: Path) -> None:
    array = np.arange(12, dtype=np.int32).reshape(3, 4)
    with PackageWriter(tmp_path / "out") as writer:
        with writer.open("weights.bin") as stream:
            assert stream.writable()
            assert stream.write(array.data) == 48
            assert stream.write(np.array(1.0, np.float32).data) == 4
            assert stream.write(np.empty((0, 3), np.int8).data) == 0
            assert stream.write(b"") == 0
            assert stream.tell() == 52
        assert [entry.size for entry in writer.files] == [52]
        assert (writer.folder / "weights.bin").stat().st_size == 52
        writer.finish(MANIFEST)
    assert (tmp_path / "out" / "weights.bin").read_bytes() == array.tobytes() + np.float32(1.0).tobytes()


def test_equal_content_gives_equal_bytes_in_any_order(tmp_path: Path) -> None:
    for name, order in (("a", "xy"), ("b", "yx")):
        with PackageWriter(tmp_path / name) as writer:
            for file in order:
                writer.write(file, file.encode())
            writer.finish(MANIFEST)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_an_existing_package_is_replaced_whole(tmp_path: Path) -> None:
    with PackageWriter(tmp_path / "out") as writer:
        writer.write("stale.bin", b"old")
        writer.finish(MANIFEST)
    build(tmp_path / "out", b"new")
    assert sorted(tree(tmp_path / "out")) == ["manifest.json", "model.onnx", "samples/0/input_0.bin"]
    assert names(tmp_path) == ["out"]


def test_without_exchange_the_old_package_steps_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qatc.compiler.package.swap.exchange", lambda first, second: False)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    build(tmp_path / "out", b"old")
    build(tmp_path / "out", b"new")
    assert (tmp_path / "out" / "model.onnx").read_bytes() == b"new"
    assert names(tmp_path) == ["out"]


def test_leaving_without_finish_changes_nothing(tmp_path: Path) -> None:
    build(tmp_path / "out", b"old")
    before = tree(tmp_path)
    with PackageWriter(tmp_path / "out") as writer:
        writer.write("model.onnx", b"new")

    def stop_midway() -> None:
        with PackageWriter(tmp_path / "out") as writer:
            writer.write("model.onnx", b"new")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop_midway()
    assert tree(tmp_path) == before


def test_missing_parents_are_made_and_taken_back(tmp_path: Path) -> None:
    with PackageWriter(tmp_path / "a" / "b" / "out") as writer:
        writer.write("model.onnx", b"")
    assert names(tmp_path) == []
    build(tmp_path / "a" / "b" / "out")
    assert names(tmp_path / "a" / "b") == ["out"]


def test_an_empty_folder_becomes_the_package(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    build(tmp_path / "out")
    assert names(tmp_path) == ["out"]


def test_a_link_stays_and_what_it_names_is_replaced(tmp_path: Path) -> None:
    build(tmp_path / "real", b"old")
    (tmp_path / "link").symlink_to("real")
    build(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "model.onnx").read_bytes() == b"new"
    assert names(tmp_path) == ["link", "real"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"thesis.tex": "years of work"}, "not a package of qatc"),
        ({"manifest.json": '{"manifest_version": 3, "name": "a browser extension"}'}, "not a package of qatc"),
        ({"manifest.json": '{"format": "qatc-pack'}, "not a package of qatc"),
        ({"manifest.json": "[" * 100_000}, "not a package of qatc"),
        ({"manifest.json": '{"format": "qatc-package", "files": {}}', "notes.txt": "mine"}, "notes.txt"),
        ({"manifest.json": '{"format": "qatc-package", "files": {}}', "dumps/a.npy": "mine"}, "dumps/a.npy"),
        ({"manifest.json": '{"format": "qatc-package", "files": 5}', "model.onnx": "mine"}, "model.onnx"),
        ({"manifest.json": '{"format": "qatc-package", "files": [[]]}', "model.onnx": "mine"}, "model.onnx"),
    ],
)
def test_what_is_not_ours_is_left_alone(tmp_path: Path, files: dict[str, str], expected: str) -> None:
    for name, text in files.items():
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text(text)
    before = tree(tmp_path)
    for attempt in (build, check_destination):
        with pytest.raises(CompileError, match=expected) as error:
            attempt(tmp_path / "out")
        assert codes(error) == ["QAT501"]
        assert tree(tmp_path) == before


def test_a_destination_can_be_checked_early(tmp_path: Path) -> None:
    check_destination(tmp_path / "missing" / "out")
    assert names(tmp_path) == []
    (tmp_path / "empty").mkdir()
    check_destination(tmp_path / "empty")
    build(tmp_path / "out")
    check_destination(tmp_path / "out")


def test_a_folder_that_cannot_be_written_is_told_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **options: object) -> None:
        assert options["dir"] == tmp_path
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(CompileError) as error:
        check_destination(tmp_path / "missing" / "out")
    (found,) = error.value.diagnostics
    assert (found.code, found.hint) == ("QAT501", "the file system is read-only: name another place with --output")


def test_desktop_litter_does_not_count_as_a_file_of_the_user(tmp_path: Path) -> None:
    build(tmp_path / "out", b"old")
    (tmp_path / "out" / ".DS_Store").write_bytes(b"")
    (tmp_path / "out" / "__pycache__").mkdir()
    (tmp_path / "out" / "__pycache__" / "check.pyc").write_bytes(b"")
    build(tmp_path / "out", b"new")
    assert (tmp_path / "out" / "model.onnx").read_bytes() == b"new"


def test_files_that_appear_during_the_run_are_not_lost(tmp_path: Path) -> None:
    build(tmp_path / "out", b"old")
    with PackageWriter(tmp_path / "out") as writer:
        writer.write("model.onnx", b"new")
        (tmp_path / "out" / "notes").write_text("mine")
        with pytest.raises(CompileError, match="notes"):
            writer.finish(MANIFEST)
    assert (tmp_path / "out" / "model.onnx").read_bytes() == b"old"
    assert names(tmp_path) == ["out"]


def test_a_file_at_the_destination_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(CompileError, match="not a folder") as error:
        build(tmp_path / "out")
    assert codes(error) == ["QAT501"]
    with pytest.raises(CompileError) as error:
        build(tmp_path / "out" / "below")
    assert codes(error) == ["QAT501"]
    assert tree(tmp_path) == {"out": b"a file"}


def test_the_working_directory_and_mount_points_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CompileError, match="working directory") as error:
        build(Path())
    assert "model.qatc" in (error.value.diagnostics[0].hint or "")
    outer = build(tmp_path / "outer").path
    monkeypatch.chdir(outer / "samples")
    for attempt in (build, check_destination):
        with pytest.raises(CompileError, match="the working directory is in it"):
            attempt(outer)
    for root in ("/", "/proc"):
        with pytest.raises(CompileError) as error:
            build(Path(root))
        assert codes(error) == ["QAT501"]


def test_a_name_that_is_too_long_is_a_diagnostic(tmp_path: Path) -> None:
    for length in (300, 250):  # the lock's name is longer
        for attempt in (build, check_destination):
            with pytest.raises(CompileError) as error:
                attempt(tmp_path / ("x" * length))
            assert codes(error) == ["QAT501"]
            assert "shorter" in (error.value.diagnostics[0].hint or "")
            assert names(tmp_path) == []


def test_a_folder_that_may_be_written_but_not_read_takes_a_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its names cannot be synced; what is in place is there all the same."""
    real = os.open

    def guarded(path: Any, *arguments: Any, **options: Any) -> int:
        if path == tmp_path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", guarded)
    build(tmp_path / "out", b"old")
    assert build(tmp_path / "out", b"new").diagnostics == ()
    assert (tmp_path / "out" / "model.onnx").read_bytes() == b"new"
    assert names(tmp_path) == ["out"]


@pytest.mark.skipif(os.name != "posix", reason="an open file cannot be removed there")
def test_a_lock_that_goes_while_it_is_taken_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its holder ended and removed it: a third run would make another, and two would write at once."""
    place = swap.place_of(tmp_path / "out")
    real, left = swap._lock, [2]

    def removed(descriptor: int) -> None:
        real(descriptor)
        if left[0]:
            left[0] -= 1
            place.lock.unlink()

    monkeypatch.setattr(swap, "_lock", removed)
    with swap.locked(place):
        assert place.lock.exists()
    assert left == [0]
    assert names(tmp_path) == []


def test_opening_a_package_that_is_there_locks_and_removes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packages are read from places that cannot be written, and while another run makes the next one."""
    build(tmp_path / "out")
    (tmp_path / ".out.new").mkdir()

    def refuse(place: swap.Place) -> None:
        raise AssertionError(place)

    monkeypatch.setattr(swap, "locked", refuse)
    swap.recover(tmp_path / "out")
    swap.recover(tmp_path / "nothing")
    assert names(tmp_path) == [".out.new", "out"]


@pytest.mark.skipif(os.name != "posix", reason="folders are not synced there")
@pytest.mark.parametrize(("code", "passes"), [(errno.EINVAL, True), (errno.EIO, False)])
def test_a_folder_that_is_not_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, passes: bool) -> None:
    """Some file systems cannot; a disk that fails is an error."""
    real = os.fsync

    def guarded(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", guarded)
    if passes:
        assert build(tmp_path / "out").diagnostics == ()
        return
    with pytest.raises(CompileError) as error:
        build(tmp_path / "out")
    assert codes(error) == ["QAT501"]
    assert names(tmp_path) == []


def test_folders_of_a_package_that_cannot_be_read_are_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies in them is not known, so nothing is replaced."""
    build(tmp_path / "out", b"old")
    (tmp_path / "out" / "mine").mkdir()
    real = os.scandir

    def guarded(path: str) -> Any:
        if Path(path).name == "mine":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return real(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(CompileError, match="Permission denied") as error:
        build(tmp_path / "out", b"new")
    assert codes(error) == ["QAT501"]
    assert (tmp_path / "out" / "model.onnx").read_bytes() == b"old"
    tiny = tiny_package.build(tmp_path / "tiny")
    (tiny / "mine").mkdir()
    with pytest.raises(CompileError, match="Permission denied") as error:
        verify_package(tiny)
    assert codes(error) == ["QAT502"]


UNSAFE = ["", "/etc/passwd", "../out", "a/../../b", "a//b", "./a", "a/", "a\\b", "C:/x", "c:x", "a\0b", "a\nb", "."]


@pytest.mark.parametrize("name", UNSAFE)
def test_names_that_leave_the_package_are_a_bug_of_ours(tmp_path: Path, name: str) -> None:
    assert unsafe_path(name)
    with PackageWriter(tmp_path / "out") as writer, pytest.raises(ValueError, match="cannot be a file"):
        writer.write(name, b"")
    assert names(tmp_path) == []


def test_names_are_used_once(tmp_path: Path) -> None:
    with PackageWriter(tmp_path / "out") as writer:
        writer.write("Model.onnx", b"")
        with pytest.raises(ValueError, match="twice"):
            writer.write("model.onnx", b"")  # one file on a file system that ignores case
        for name in ("manifest.json", "package.sig"):
            with pytest.raises(ValueError, match="by hand"):
                writer.write(name, b"")


def test_an_unfinished_file_never_becomes_part_of_a_package(tmp_path: Path) -> None:
    with PackageWriter(tmp_path / "out") as writer:
        stream = writer.open("model.onnx")
        stream.write(b"half")
        stream.__exit__(RuntimeError, RuntimeError("halfway"), None)
        with pytest.raises(ValueError, match="still open"):
            writer.finish(MANIFEST)
    assert names(tmp_path) == []


def test_finish_only_once(tmp_path: Path) -> None:
    with PackageWriter(tmp_path / "out") as writer:
        writer.finish(MANIFEST)
        with pytest.raises(ValueError, match="finished already"):
            writer.finish(MANIFEST)


def test_writing_to_a_closed_file_is_refused(tmp_path: Path) -> None:
    with PackageWriter(tmp_path / "out") as writer:
        stream = writer.open("a")
        stream.close()
        stream.close()
        with pytest.raises(ValueError, match="closed"):
            stream.write(b"")


def test_an_old_package_that_cannot_be_removed_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path / "out", b"old")

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", refuse)
        written = build(tmp_path / "out", b"new")
    assert [(d.code, d.severity.value) for d in written.diagnostics] == [("QAT501", "warning")]
    assert (tmp_path / "out" / "model.onnx").read_bytes() == b"new"
    assert names(tmp_path) == [".out.new", "out"]
    build(tmp_path / "out", b"newer")
    assert names(tmp_path) == ["out"]


def test_planted_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("keep")
    (tmp_path / ".out.new").symlink_to("precious")
    (tmp_path / ".out.old").symlink_to("precious")
    build(tmp_path / "out")
    assert tree(tmp_path / "precious") == {"file": b"keep"}
    (tmp_path / ".out.lock").symlink_to("precious/file")
    with pytest.raises(CompileError) as error:
        build(tmp_path / "out")
    assert codes(error) == ["QAT501"]
    assert tree(tmp_path / "precious") == {"file": b"keep"}


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="asks the kernel what a descriptor is")
def test_all_is_durable_before_the_swap_and_the_swap_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, exchange = os.fsync, swap.exchange

    def watched_fsync(descriptor: int) -> None:
        events.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()).replace(str(tmp_path), ""))
        fsync(descriptor)

    def watched_exchange(first: Path, second: Path) -> bool:
        events.append("swap")
        return exchange(first, second)

    build(tmp_path / "out")
    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(swap, "exchange", watched_exchange)
    build(tmp_path / "out")
    swapped = events.index("swap")
    new = "/.out.new"
    files = {f"{new}/{name}" for name in ("model.onnx", "samples/0/input_0.bin", "manifest.json")}
    folders = {new, f"{new}/samples", f"{new}/samples/0"}
    assert set(events[:swapped]) == files | folders
    assert events[swapped + 1 :] == [""]


def test_a_read_only_package_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores make packages read-only; to remove a file its folder has to be writable."""
    build(tmp_path / "out", b"old")
    (tmp_path / "out").chmod(0o555)
    remove, modes = shutil.rmtree, list[int]()

    def watched(path: Path) -> None:
        modes.append(path.stat().st_mode & 0o777)
        remove(path)

    monkeypatch.setattr("shutil.rmtree", watched)
    assert build(tmp_path / "out", b"new").diagnostics == ()
    assert modes == [0o700]
    assert names(tmp_path) == ["out"]

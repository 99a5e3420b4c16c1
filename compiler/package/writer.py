"""PackageWriter: files go to a hidden sibling, hashed as they are written; `finish` puts them in place in one step."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final

from qatc.compiler.damaged import reason
from qatc.compiler.diagnostics import Diagnostic, Severity, counted, fail, few, printable
from qatc.compiler.interruption import held
from qatc.compiler.package.encoding import dump_json
from qatc.compiler.package.read import MANIFEST, SIGNATURE, read_manifest, unlisted_files, unsafe_path
from qatc.compiler.package.swap import Place, locked, place_of, settle, swap, sync_directory, writing

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

    from qatc.compiler.result import Json

_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


@dataclass(frozen=True)
class FileEntry:
    """A file of the package: its path with forward slashes, its size in bytes and its sha256 in hexadecimal."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class WrittenPackage:
    """A package that is in place. `diagnostics` are warnings only, about what could not be tidied up."""

    path: Path
    files: tuple[FileEntry, ...]
    diagnostics: tuple[Diagnostic, ...] = ()

    @property
    def size(self) -> int:
        """The sum of all file sizes in bytes."""
        return sum(entry.size for entry in self.files)


class PackageFile(io.RawIOBase):
    """A file of the package while it is written. Unbuffered: each `write` reaches the disk cache and the hash.

    Accepts any contiguous buffer, so an array is written without a copy: `stream.write(array.data)`.
    Errors of the operating system are raised as CompileError QAT501.
    """

    def __init__(self, path: Path, shown: Path, done: Callable[[int, str], None]) -> None:
        self._path, self._shown, self._done = path, shown, done
        self._hash = hashlib.sha256()
        self._size = 0
        self._failed = False
        self._descriptor = -1
        with writing(shown):
            self._descriptor = os.open(path, _CREATE, 0o666)

    def writable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """How many bytes were written."""
        return self._size

    def write(self, data: ReadableBuffer, /) -> int:
        """Append the bytes of a buffer and return their number: all of them, always."""
        if self.closed:
            raise ValueError("write to a closed file of a package")
        view = memoryview(data).cast("B") if memoryview(data).nbytes else memoryview(b"")
        self._failed = True  # until the last byte is down
        with writing(self._shown):
            rest = view
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        self._hash.update(view)
        self._size += view.nbytes
        self._failed = False
        return view.nbytes

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        self._failed = self._failed or kind is not None
        self.close()

    def close(self) -> None:
        """Make the file durable and enter it in the package; after a failed `write` just let go of it."""
        if self.closed:
            return
        super().close()
        if self._descriptor < 0:
            return
        with writing(self._shown):
            try:
                if not self._failed:
                    os.fsync(self._descriptor)
            finally:
                os.close(self._descriptor)
        if not self._failed:
            self._done(self._size, self._hash.hexdigest())


class PackageWriter:
    """Writes one package; a context manager. Leaving it without `finish` leaves everything as it was.

    The destination may be new, an empty folder, or a package of qatc; that one is replaced whole. Anything else there
    is left alone, and so are files in a package that qatc did not put there.

    Raises:
        CompileError: QAT501 where the destination cannot or must not be written, QAT503 while another run writes it.
    """

    def __init__(self, destination: Path) -> None:
        self.destination = destination
        self._place = Place(destination)
        self._cleanup = contextlib.ExitStack()
        self._made: list[Path] = []  # folders made on the way to the destination
        self._files: dict[str, FileEntry] = {}
        self._names: set[str] = set()
        self._open: set[str] = set()
        self._finished = False

    def __enter__(self) -> PackageWriter:
        try:
            with held():
                self._begin()
        except BaseException:  # also what was held: nobody calls `__exit__` then
            self._cleanup.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with held(), writing(self.destination):
            self._cleanup.close()

    @property
    def folder(self) -> Path:
        """Where the files are until `finish`: to look at what was written, not to write into."""
        return self._place.new

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """The files written so far, in order of their paths."""
        return tuple(self._files[path] for path in sorted(self._files))

    def write(self, relative: str, data: ReadableBuffer) -> None:
        """Write a whole file. `relative` is its path in the package, with forward slashes."""
        with self.open(relative) as stream:
            stream.write(data)

    def open(self, relative: str) -> PackageFile:
        """Open a new file for writing in pieces; it belongs to the package once it is closed.

        Raises:
            ValueError: where `relative` is not a fit name for a file of a package, or is taken.
        """
        if relative in (MANIFEST, SIGNATURE):
            raise ValueError(f"{relative} is not written by hand")
        return self._create(relative)

    def finish(self, manifest: Mapping[str, Json], seal: Callable[[Path], bytes] | None = None) -> WrittenPackage:
        """Add all files with their sizes and hashes to `manifest`, write it, and put the package in place.

        `seal` makes the signature of the folder, which then holds everything else.

        Once this returns the package is durable. If it raises, the destination holds what it held before; only where
        the disk fails after the last step, and durability is in doubt, it holds the new package.
        """
        if self._finished or self._open:
            raise ValueError(f"the package is finished already, or {sorted(self._open)} are still open")
        listing: Json = {entry.path: {"size": entry.size, "sha256": entry.sha256} for entry in self.files}
        stream = self._create(MANIFEST)
        with stream:
            stream.write(dump_json({**manifest, "files": listing}))
        if seal is not None:
            signature = seal(self._place.new)
            with self._create(SIGNATURE) as stream:
                stream.write(signature)
        with writing(self.destination):
            for root, _, _ in os.walk(self._place.new, topdown=False):
                sync_directory(Path(root))
        with held():  # once the new package is there, the old one goes
            with writing(self.destination):
                _check(self._place.destination, self.destination)  # it may have changed since the run began
                swap(self._place)
                for folder in self._made:
                    sync_directory(folder.parent)
            self._finished = True
            return WrittenPackage(self.destination, self.files, self._tidy())

    # -- steps ----------------------------------------------------------------------------------------------------
    def _begin(self) -> None:
        with writing(self.destination), contextlib.ExitStack() as stack:
            self._place = place_of(self.destination)
            stack.callback(self._remove_made)
            self._make_parents()
            stack.enter_context(locked(self._place))
            settle(self._place)
            _check(self._place.destination, self.destination)
            stack.callback(self._discard)
            self._place.new.mkdir()
            self._cleanup = stack.pop_all()

    def _create(self, relative: str) -> PackageFile:
        reason = unsafe_path(relative)
        if reason:
            raise ValueError(f"{relative!r} cannot be a file of a package: {reason}")
        if relative.casefold() in self._names:
            raise ValueError(f"{relative!r} is written twice, or differs from another file in letter case alone")
        self._names.add(relative.casefold())
        path = self._place.new / relative
        with writing(self.destination / relative):
            for folder in reversed(path.relative_to(self._place.new).parents):
                with contextlib.suppress(FileExistsError):
                    (self._place.new / folder).mkdir()

        def done(size: int, sha256: str) -> None:
            self._open.discard(relative)
            self._files[relative] = FileEntry(relative, size, sha256)

        stream = PackageFile(path, self.destination / relative, done)
        self._open.add(relative)
        return stream

    def _make_parents(self) -> None:
        missing = self._place.destination.parent
        folders: list[Path] = []
        while not os.path.lexists(missing):
            folders.append(missing)
            missing = missing.parent
        for folder in reversed(folders):
            with contextlib.suppress(FileExistsError):  # another run may be making the same one
                folder.mkdir()
                self._made.append(folder)

    def _remove_made(self) -> None:
        for folder in reversed(self._made):
            with contextlib.suppress(OSError):  # not empty: the package is in it, or somebody else's file
                folder.rmdir()

    def _discard(self) -> None:
        """Undo an unfinished run. What cannot be removed now, the next run removes."""
        if not self._finished:
            with contextlib.suppress(OSError):
                settle(self._place)

    def _tidy(self) -> tuple[Diagnostic, ...]:
        try:
            settle(self._place)
        except OSError as error:
            where = printable(str(self._place.new))
            message = f"the replaced package could not be removed from {where}: {reason(error)}"
            return (Diagnostic("QAT501", message, Severity.WARNING, hint="the next compile tries again"),)
        return ()


def check_destination(destination: Path) -> None:
    """Refuse a destination that must not be replaced or cannot be written: what `PackageWriter` would refuse, early.

    Raises:
        CompileError: QAT501.
    """
    with writing(destination):
        place = place_of(destination)
        _check(place.destination, destination)
        with contextlib.suppress(FileNotFoundError):
            place.lock.lstat()  # names that hold the destination's may be too long where that is not
        parent = place.destination.parent
        while not os.path.lexists(parent):
            parent = parent.parent
        with tempfile.TemporaryFile(dir=parent):  # without a name, where the system can
            pass


def _check(path: Path, destination: Path) -> None:
    """Refuse to replace what is not a package of ours; `path` is where `destination` really lies."""
    shown = printable(str(destination))
    if not os.path.lexists(path):
        return
    if not path.is_dir():
        raise fail("QAT501", f"{shown} exists and is not a folder", hint="name another place with --output")
    if os.path.ismount(path) or Path.cwd().is_relative_to(path):
        raise fail(
            "QAT501",
            f"{shown} cannot be replaced: the working directory is in it, or it is a mount point",
            hint=f"name a folder inside it, such as --output {printable(str(destination / 'model.qatc'))}",
        )
    if not any(path.iterdir()):
        return
    manifest = read_manifest(path)
    if manifest is None:
        raise fail(
            "QAT501",
            f"{shown} exists, is not empty and is not a package of qatc, so it is left as it is",
            hint="name another place with --output, or remove it yourself",
        )
    strangers = unlisted_files(path, manifest)
    if strangers:
        number = counted(len(strangers), "file")
        names = few(strangers)
        raise fail(
            "QAT501",
            f"{shown} holds {number} that qatc did not write and replacing it would lose: {names}",
            hint="move them elsewhere, or name another place with --output",
        )

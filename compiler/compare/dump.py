"""What a device team hands in: a folder of npy or raw files, or an npz. Listed here; read only when a tensor matches.

Nothing in a dump is trusted: links are not followed, pickles not loaded, and no more memory is taken than the matching
tensor can need, whatever headers and archives promise.
"""

from __future__ import annotations

import os
import re
import stat
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, NoReturn

from qatc.compiler.damaged import ARCHIVE, reason
from qatc.compiler.diagnostics import (
    CompileError,
    Diagnostics,
    counted,
    few,
    misused,
    printable,
)

NPY: Final = ".npy"
RAW: Final = (".bin", ".raw", ".dat")
_ARCHIVE: Final = ".npz"
_OURS: Final = frozenset({"index.json", "golden.h"})  # what a copied folder of golden tensors has beside them
_MOST_ENTRIES: Final = 200_000
_MOST_FINDINGS: Final = 20
_SAMPLE: Final = re.compile(r"(?:sample|test_data_set|s)?[_-]?(\d{1,6})", re.IGNORECASE)


@dataclass(frozen=True)
class Entry:
    """One array of a dump.

    Attributes:
        where: how messages call it.
        path: its path in the dump with forward slashes, without the suffix.
        sample: the sample that a folder on the path names, if one does; `inner` is the path below that folder.
        is_raw: whether it is bare bytes and not npy.
        size: bytes, as far as the file system or the archive says.
        read: gives at most so many bytes; raises one of `damaged.ARCHIVE`.
    """

    where: str
    path: str
    sample: int | None
    inner: str
    is_raw: bool
    size: int
    read: Callable[[int], bytes]


def list_dump(path: Path, found: Diagnostics) -> list[Entry]:
    """Every array of a dump, sorted by path; what cannot be one goes to `found`.

    Raises:
        CompileError: QAT406 with exit code 2 where there is no dump at `path`, or it has too many files.
    """
    shown = printable(str(path))
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise _nothing(f"there is no dump at {shown}: {reason(error)}") from error
    if stat.S_ISDIR(mode):
        entries = list(_in_folder(path, found))
    elif stat.S_ISREG(mode) and path.suffix.lower() == _ARCHIVE:
        entries = list(_in_archive(path, path.name, None, found, _Archives()))
    else:
        raise _nothing(f"{shown} is neither a folder nor an npz file")
    return sorted(entries, key=lambda e: (e.path, e.is_raw))


def _nothing(message: str) -> CompileError:
    return misused(message, "give a folder of .npy or .bin files, or an .npz file", "QAT406")


def _unreadable(error: OSError) -> NoReturn:
    raise _nothing(f"cannot read {printable(str(error.filename))}: {reason(error)}") from error


# -- folders --------------------------------------------------------------------------------------------------------
def _files(folder: Path) -> Iterator[Path]:
    """What lies in a folder and those below it, in a fixed order: files, and links even to folders."""
    count = 0
    for root, folders, names in os.walk(folder, onerror=_unreadable):
        folders.sort()
        links = [name for name in folders if (Path(root) / name).is_symlink()]
        for name in sorted([*names, *links]):
            count += 1
            if count > _MOST_ENTRIES:
                raise _nothing(f"{printable(str(folder))} has more than {_MOST_ENTRIES:,} files")
            yield Path(root) / name


def _in_folder(folder: Path, found: Diagnostics) -> Iterator[Entry]:
    ignored, refused, archives = list[str](), 0, _Archives()
    for path in _files(folder):
        relative = path.relative_to(folder).as_posix()
        suffix = path.suffix.lower()
        if suffix not in (NPY, *RAW, _ARCHIVE):
            ignored += [] if path.name in _OURS else [relative]
            continue
        problem = _not_plain(path)
        if problem:
            refused += 1
            if refused <= _MOST_FINDINGS:
                found.error("QAT406", f"{printable(relative)} {problem}", hint="put the file itself into the dump")
            continue
        plain = relative[: -len(suffix)]
        if suffix == _ARCHIVE:
            yield from _in_archive(path, relative, _sample_of(f"{plain}/")[1], found, archives)
        else:
            inner, sample = _sample_of(plain)
            yield Entry(relative, plain, sample, inner, suffix != NPY, path.lstat().st_size, partial(_read_file, path))
    if refused > _MOST_FINDINGS:
        found.error(
            "QAT406", f"and {counted(refused - _MOST_FINDINGS, 'more file')} of the dump that cannot be read so"
        )
    if ignored:
        number = counted(len(ignored), "file")
        found.note("QAT407", f"left out of the dump: {number} neither npy, npz nor raw: {few(ignored)}")


def _not_plain(path: Path) -> str | None:
    try:
        mode = path.lstat().st_mode
    except OSError as error:
        return f"cannot be read: {reason(error)}"
    if stat.S_ISLNK(mode):
        return "is a symbolic link, which is not followed"
    return None if stat.S_ISREG(mode) else "is no plain file"


def _read_file(path: Path, limit: int) -> bytes:
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags), "rb") as stream:
        return stream.read(limit)


def _sample_of(path: str) -> tuple[str, int | None]:
    """A path below the last folder that names a sample, and that sample; the whole path and None without one."""
    parts = path.split("/")
    for index in range(len(parts) - 2, -1, -1):
        named = _SAMPLE.fullmatch(parts[index])
        if named:
            return "/".join(parts[index + 1 :]), int(named[1])
    return path, None


# -- archives -------------------------------------------------------------------------------------------------------
class _Archives:
    """Reads members of archives. The last one stays open: to open one takes time in proportion to its members."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._open: zipfile.ZipFile | None = None

    def read(self, path: Path, member: zipfile.ZipInfo, limit: int) -> bytes:
        """At most `limit` bytes of a member of the archive at `path`."""
        if self._open is None or path != self._path:
            if self._open is not None:
                self._open.close()
            self._path, self._open = path, zipfile.ZipFile(path)
        with self._open.open(member) as stream:
            return stream.read(limit)


def _in_archive(path: Path, where: str, sample: int | None, found: Diagnostics, archives: _Archives) -> Iterator[Entry]:
    """The members of an npz; `sample` is the one that its own path names."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except ARCHIVE as error:
        found.error("QAT406", f"{printable(where)} is no npz file: {reason(error)}", hint="write it with numpy.savez")
        return
    if len(members) > _MOST_ENTRIES:
        raise _nothing(f"{printable(where)} has more than {_MOST_ENTRIES:,} arrays")
    for member in members:
        if member.is_dir():
            continue
        name = member.filename.removesuffix(NPY)
        inner, own = _sample_of(name)
        yield Entry(
            f"{where}[{name}]",
            name,
            sample if own is None else own,
            inner,
            not member.filename.endswith(NPY),
            member.file_size,
            partial(archives.read, path, member),
        )

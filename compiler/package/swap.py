"""The step from the old package to the new one: at every instant the destination is one of them, whole.

A run works in hidden siblings of the destination `model.qatc`, so that everything stays on one file system:

    .model.qatc.lock   held (flock) by the run that is writing; the kernel releases it when the run dies
    .model.qatc.new    the package in the making
    .model.qatc.old    the old package, for the moment between two renames, where one exchange is not possible

Linux exchanges `new` and the destination in one step (renameat2); elsewhere the old package steps aside first. Whatever
a killed run leaves behind, `settle` brings in order: the next run calls it, and so does whoever opens the package.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import stat
import sys
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qatc.compiler.damaged import reason
from qatc.compiler.diagnostics import CompileError, fail, printable
from qatc.compiler.package.read import MANIFEST, read_manifest

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2
_BUSY: Final = {errno.EAGAIN, errno.EACCES, errno.EDEADLK}
_NO_LOCKS: Final = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
_NO_SYNC: Final = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EBADF}
_ELSEWHERE: Final = "name another place with --output"
_HINTS: Final = {
    errno.ENOSPC: "free some space, or name another place with --output",
    errno.EDQUOT: "your disk quota is used up: free some space, or name another place with --output",
    errno.EACCES: "check the permissions of the folder, or name another place with --output",
    errno.EPERM: "check the permissions of the folder, or name another place with --output",
    errno.EROFS: "the file system is read-only: name another place with --output",
    errno.EIO: "the disk reports an error: check the system log, or name another place with --output",
    errno.ENAMETOOLONG: "choose a shorter name with --output",
}


@dataclass(frozen=True)
class Place:
    """A destination and the hidden siblings that a run uses beside it."""

    destination: Path

    @property
    def new(self) -> Path:
        """The package in the making."""
        return self.destination.with_name(f".{self.destination.name}.new")

    @property
    def old(self) -> Path:
        """The old package while it steps aside."""
        return self.destination.with_name(f".{self.destination.name}.old")

    @property
    def lock(self) -> Path:
        """The lock file."""
        return self.destination.with_name(f".{self.destination.name}.lock")


def place_of(destination: Path) -> Place:
    """Where a destination really lies: a link there stays, and what it names is replaced."""
    path = Path(os.path.realpath(destination))
    if not path.name:
        raise fail("QAT501", f"{path} cannot be a package", hint="name a folder with --output")
    return Place(path)


@contextlib.contextmanager
def writing(path: Path) -> Generator[None, None, None]:
    """Turn an operating system's error into QAT501 about `path`."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> CompileError:
    """QAT501 for an operating system's error."""
    return fail(
        "QAT501", f"cannot write {printable(str(path))}: {reason(error)}", hint=_HINTS.get(error.errno or 0, _ELSEWHERE)
    )


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable, where the system can."""
    if sys.platform == "win32":
        return
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:  # a folder that may be written but not read
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:  # some network file systems sync files but not directories
            raise
    finally:
        os.close(descriptor)


def swap(place: Place) -> None:
    """Put `new` at the destination, replacing the package that is there; `settle` then removes what is left over.

    Raises:
        OSError: with the destination as it was, or as `settle` restores it.
    """
    if not os.path.lexists(place.destination):
        place.new.rename(place.destination)
    elif read_manifest(place.destination) is None:  # an empty folder: the writer checked
        if sys.platform == "win32":
            place.destination.rmdir()
        place.new.rename(place.destination)
    elif not exchange(place.new, place.destination):
        place.destination.rename(place.old)
        place.new.rename(place.destination)
    sync_directory(place.destination.parent)


def exchange(first: Path, second: Path) -> bool:
    """Swap two names in one step; False, with nothing changed, where the system or the file system cannot."""
    if sys.platform != "linux":
        return False
    try:
        call = ctypes.CDLL(None).renameat2
    except AttributeError:  # an older C library
        return False
    paths = (ctypes.c_char_p(os.fsencode(path)) for path in (first, second))
    origin = ctypes.c_int(_AT_FDCWD)
    result: int = call(origin, next(paths), origin, next(paths), ctypes.c_uint(_RENAME_EXCHANGE))
    return result == 0


def settle(place: Place) -> None:
    """Bring what an interrupted run left behind in order; the caller holds the lock.

    A package that stepped aside and was not replaced steps back; everything else beside the destination goes.

    Raises:
        OSError: where the file system refuses; calling again continues.
    """
    if os.path.lexists(place.old):
        if not os.path.lexists(place.destination) and read_manifest(place.old) is not None:
            place.old.rename(place.destination)
            sync_directory(place.destination.parent)
        else:
            _remove(place.old)
    if os.path.lexists(place.new):
        _remove(place.new)


def _remove(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        path.unlink()
        return
    for folder in (Path(name) for name, _, _ in os.walk(path)):
        if not folder.stat().st_mode & stat.S_IWUSR:  # of a package that was made read-only nothing could be removed
            folder.chmod(stat.S_IRWXU)
    with contextlib.suppress(FileNotFoundError):
        (path / MANIFEST).unlink()  # first, so that a half-removed package is never taken for a whole one
    shutil.rmtree(path)


def recover(destination: Path) -> None:
    """Restore a package that an interrupted run left aside; does nothing, and writes nothing, in any other case.

    Raises:
        CompileError: QAT503 while another run is writing there, QAT501 where the package cannot be moved back.
    """
    place = Place(Path(os.path.realpath(destination)))
    if os.path.lexists(place.destination) or not os.path.lexists(place.old):
        return
    with writing(destination), locked(place):
        settle(place)


@contextlib.contextmanager
def locked(place: Place) -> Generator[None, None, None]:
    """Hold the lock of a destination: one run at a time, also between threads. The lock file is gone afterwards.

    Raises:
        CompileError: QAT503 where another run holds it, QAT501 where the file system has no locks.
        OSError: where the lock file cannot be made.
    """
    descriptor = _acquire(place)
    try:
        yield
    finally:
        if sys.platform == "win32":  # an open file cannot be removed there
            os.close(descriptor)
        try:
            with contextlib.suppress(OSError):  # a lock file that stays is taken over by the next run
                place.lock.unlink()
        finally:
            if sys.platform != "win32":  # elsewhere removing comes first: nobody locks a file that is about to go
                os.close(descriptor)


def _acquire(place: Place) -> int:
    """Open and lock the lock file; the run that held it may remove it meanwhile, so look again until it is the same."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    while True:
        descriptor = os.open(place.lock, flags, 0o666)
        try:
            _lock(descriptor)
            if _is_same_file(descriptor, place.lock):
                return descriptor
        except OSError as error:
            os.close(descriptor)
            raise _lock_error(place, error) from error
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _lock(descriptor: int) -> None:
    if sys.platform == "win32":
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _lock_error(place: Place, error: OSError) -> CompileError:
    where = printable(str(place.destination))
    if error.errno in _BUSY:
        return fail(
            "QAT503",
            f"another compile is writing {where}",
            hint="wait for it to end, or name another place with --output; its package is left alone",
        )
    if error.errno in _NO_LOCKS:
        return fail(
            "QAT501",
            f"the file system of {where} has no file locks, so two compiles could not be kept apart",
            hint="write to a local disk with --output and copy the package afterwards",
        )
    return cannot_write(place.lock, error)

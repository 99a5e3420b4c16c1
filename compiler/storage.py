"""Temporary files: folders for libraries that want files, large arrays out of memory, pages given back once read.

The weights of a model can exceed the memory of the machine that compiles it. They are read from a memory map, rounded
in small blocks, and the integers are kept in a temporary file that has no name: the operating system writes it out and
drops its pages when they are needed elsewhere. `release` drops them at once, whichever file an array lies in.
"""

from __future__ import annotations

import contextlib
import errno
import math
import mmap
import os
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from qatc.compiler.damaged import reason
from qatc.compiler.diagnostics import CompileError, fail
from qatc.compiler.quant import Array

SPILL_AT: Final = 256 << 20  # bytes of constants above which what is computed from them goes to files
_LARGE: Final = 1 << 16  # smaller arrays stay in memory: there is little to gain
_SEGMENT: Final = 64 << 20
_ALIGNMENT: Final = 64


@contextlib.contextmanager
def scratch_folder() -> Generator[Path, None, None]:
    """A folder for temporary files that only this user can open, gone with the context.

    Raises:
        CompileError: QAT015 where the system has no place for it, or the disk is full.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix="qatc-")
    except OSError as error:
        raise _no_place(error) from error
    with folder as name:
        try:
            yield Path(name)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise _no_place(error) from error
            raise


def _no_place(error: OSError) -> CompileError:
    hint = "set TMPDIR to a folder that can be written and has space"
    return fail("QAT015", f"cannot write temporary files: {reason(error)}", hint=hint)


class Storage:
    """Makes arrays, in memory or (with `spill`) in temporary files that vanish with the last array in them."""

    def __init__(self, *, spill: bool = False) -> None:
        self.spill = spill
        self._segment: mmap.mmap | None = None
        self._used = 0

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """An array of undefined content; in memory where no temporary file can be made."""
        kind = np.dtype(dtype)
        size = math.prod(shape) * kind.itemsize
        if not self.spill or size < _LARGE:
            return np.empty(shape, kind)
        start = -(-self._used // _ALIGNMENT) * _ALIGNMENT
        if self._segment is None or start + size > len(self._segment):
            self._segment, start = _mapped(max(size, _SEGMENT)), 0
        if self._segment is None:
            return np.empty(shape, kind)
        self._used = start + size
        return np.frombuffer(self._segment, kind, math.prod(shape), start).reshape(shape)


def _mapped(size: int) -> mmap.mmap | None:
    """A temporary file of `size` bytes in memory; its space is reserved, since a full disk would kill the process."""
    try:
        with tempfile.TemporaryFile(prefix="qatc-") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
            return mmap.mmap(file.fileno(), size)
    except OSError:  # no space, no handles: memory it is
        return None


def release(array: npt.NDArray[Any]) -> None:
    """Give back the memory of a contiguous array that lies in a file; its content is read again when it is needed.

    Nothing happens to arrays in memory, and where the system has no such call.
    """
    if array.nbytes < mmap.PAGESIZE:
        return  # shares its pages with its neighbors
    mapping = _mapping_of(array)
    if mapping is None or not hasattr(mapping, "madvise") or not array.flags.c_contiguous:
        return
    base = np.frombuffer(mapping, np.uint8).ctypes.data
    begin = array.ctypes.data - base
    first = begin // mmap.PAGESIZE * mmap.PAGESIZE  # pages that are shared with a neighbor are read again
    mapping.madvise(mmap.MADV_DONTNEED, first, begin + array.nbytes - first)


def _mapping_of(array: npt.NDArray[Any]) -> mmap.mmap | None:
    """The shared memory map that an array is a view of, None for arrays in memory."""
    found: object = array
    while found is not None:
        if isinstance(found, mmap.mmap):
            return found
        if isinstance(found, memoryview):
            found = found.obj
        else:
            found = getattr(found, "_mmap", None) or getattr(found, "base", None)
    return None

"""npy files that nobody trusts: one reader for all of them, which takes no memory that the file does not have."""

from __future__ import annotations

import io
import math
import mmap
import stat
import warnings
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.lib import format as npy

from qatc.compiler.damaged import HEADER
from qatc.compiler.quant import Array

_MAGIC: Final = b"\x93NUMPY"
_LONGEST_HEADER: Final = 10_000
_NUMBERS: Final = "biufc"  # kinds of dtypes


def npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether the order is Fortran's, and type of the numbers of an npy stream, which then stands at the data.

    Raises:
        ValueError: where it is none, the header is wrong or longer than those of plain arrays, or it holds no numbers.
    """
    magic = stream.read(len(_MAGIC) + 2)
    if magic.startswith(b"PK"):
        raise ValueError("it is an archive of arrays, not one array")
    if not magic.startswith(_MAGIC) or magic[len(_MAGIC) :] not in (b"\1\0", b"\2\0", b"\3\0"):
        raise ValueError("it is no npy file")
    # version 3 differs from 2 in the names of fields alone
    read = npy.read_array_header_1_0 if magic[len(_MAGIC)] == 1 else npy.read_array_header_2_0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that Python 2 wrote it is no matter
        try:
            shape, fortran, dtype = read(stream, max_header_size=_LONGEST_HEADER)
        except ValueError:
            raise
        except (*HEADER, MemoryError) as error:  # numpy reads the header as Python source
            raise ValueError(f"its header is malformed: {error}") from error
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are never loaded")
    if dtype.kind not in _NUMBERS:
        raise ValueError(f"its elements are no numbers but {dtype}")
    if min(shape, default=0) < 0 or bool in map(type, shape):
        raise ValueError(f"the shape {list(shape)} is none")
    return shape, fortran, dtype


def npy_array(data: bytes | mmap.mmap) -> Array:
    """The array in the bytes of an npy file, as a view of them.

    Raises:
        ValueError: as `npy_header` does, and where the header does not fit the length of the data.
    """
    stream = io.BytesIO(data[: _LONGEST_HEADER + 12])
    shape, fortran, dtype = npy_header(stream)
    count, start = math.prod(shape), stream.tell()
    if count * dtype.itemsize != len(data) - start:
        raise ValueError(f"{dtype} {list(shape)} does not fit the {len(data) - start:,} bytes behind its header")
    values = np.frombuffer(data, dtype, count, start) if count else np.zeros(0, dtype)
    return values.reshape(shape, order="F" if fortran else "C")


def mapped_npy(path: Path) -> Array:
    """The array of an npy file, memory-mapped. ValueError as `npy_array`; OSError where it cannot be read."""
    if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
        raise ValueError("it is no regular file")
    with path.open("rb") as file:
        return npy_array(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

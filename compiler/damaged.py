"""What reading somebody else's files raises where they are damaged, hostile or out of reach: one list for every reader.

MemoryError is in neither: whether it means a header without end or a machine without memory, the reader has to know.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import tokenize
import zlib
from collections.abc import Generator
from pathlib import Path
from typing import Final
from zipfile import BadZipFile

from qatc.compiler.diagnostics import fail, printable


def _error_of(module: str, name: str) -> type[Exception]:
    """The error of a compression, or one that is listed anyway where this Python is without it."""
    try:
        found: type[Exception] = getattr(importlib.import_module(module), name)
    except ImportError:
        return BadZipFile
    return found


_LZMA, _ZSTD = _error_of("lzma", "LZMAError"), _error_of("compression.zstd", "ZstdError")
#: Of files and archives: they may be cut, encrypted, or compressed in a way that nobody knows.
ARCHIVE: Final = (OSError, ValueError, EOFError, RuntimeError, zlib.error, BadZipFile, _LZMA, _ZSTD)
#: Of npy headers, which numpy reads as Python source; SystemError is what 3.12 and 3.13 make of some null bytes in it.
HEADER: Final = (SyntaxError, TypeError, KeyError, OverflowError, RecursionError, SystemError, tokenize.TokenError)
#: Of pictures, as Pillow decodes them (and its own DecompressionBombError).
IMAGE: Final = (OSError, ValueError, SyntaxError)
#: The formats that Pillow is asked for, whatever a file is called: of the others some raise anything, or run programs.
PICTURES: Final = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


MOST_PIXELS: Final = 1 << 27  # of an image that is enlarged: a narrow one becomes very long


def check_enlarged(have: tuple[int, int], size: tuple[int, int]) -> None:
    """Refuse, with a ValueError, to give an image of `have` pixels (width, height) a size that takes all memory."""
    if math.prod(size) > MOST_PIXELS:
        raise ValueError(f"{have[0]} x {have[1]} pixels become {size[0]:,} x {size[1]:,}")


def reason(error: BaseException) -> str:
    """What an error says, printable: without the number and the path that the system adds."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return printable(str(error) or type(error).__name__)


@contextlib.contextmanager
def looking(code: str, path: Path, hint: str) -> Generator[None]:
    """Turn what the system says of a path that it does not let us look at into an error with `code`.

    It is asked for the path before anything else: where a folder on the way may not be entered or a name is too long,
    `Path.exists` and its like raise up to Python 3.13, and from 3.14 on say that there is nothing.
    """
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, ValueError):
            path.stat()
        yield
    except OSError as error:
        raise fail(code, f"cannot read {printable(str(path))}: {reason(error)}", hint=hint) from error

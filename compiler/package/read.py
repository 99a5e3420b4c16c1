"""Reading a package that somebody else may have written: nothing in it is trusted."""

from __future__ import annotations

import json
import math
import os
import stat
from collections import Counter
from pathlib import Path, PureWindowsPath
from typing import Any, Final, NoReturn

from qatc.compiler.diagnostics import printable

FORMAT: Final = "qatc-package"
MANIFEST: Final = "manifest.json"
SIGNATURE: Final = "package.sig"  # made after the manifest, so never listed in it
LARGEST_JSON: Final = 256 << 20
COMPILE_AGAIN: Final = "compile the model again with this version of qatc"  # a hint
_LONGEST_NUMBER: Final = 300  # digits that a float can take in

_LITTER: Final = {".DS_Store", "Thumbs.db", "desktop.ini"}  # what desktops leave behind


def unsafe_path(relative: str) -> str | None:
    """Why `relative` may not name a file of a package, or None where it may.

    Allowed are forward-slash paths below the folder that mean the same on every system.
    """
    parts = relative.split("/")
    if not relative or relative.startswith("/") or PureWindowsPath(relative).anchor:
        return "it is empty or absolute"
    if any(part in ("", ".", "..") for part in parts):
        return "it leaves the folder or is not in its shortest form"
    if "\\" in relative or ":" in relative or not relative.isprintable():
        return "it holds a backslash, a colon or a control character"
    return None


def regular_file(folder: Path, relative: str) -> Path:
    """The path of a file of the package, sure to be a regular file inside `folder`.

    Raises:
        ValueError: with the reason where the name is unsafe, or it or a folder on the way is a link or no plain file.
        OSError: where it does not exist or cannot be reached.
    """
    reason = unsafe_path(relative)
    if reason:
        raise ValueError(reason)
    path = folder
    for part in relative.split("/"):
        path = path / part
        if path.is_symlink():
            raise ValueError("it is reached through a symbolic link")
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is not a regular file")
    return path


def read_json(folder: Path, relative: str) -> Any:
    """Parse a JSON file of the package.

    Raises:
        ValueError: where it is not JSON, too large, too deep, states something twice, holds numbers that no float does,
            or is no regular file.
        OSError: where it cannot be read.
    """
    path = regular_file(folder, relative)
    size = path.stat().st_size
    if size > LARGEST_JSON:
        raise ValueError(f"it has {size:,} bytes, more than any package needs")
    try:
        return json.loads(
            path.read_bytes(), parse_constant=_no_json, parse_int=_whole, parse_float=_real, object_pairs_hook=_once
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _no_json(text: str) -> Any:
    raise ValueError(f"it holds {text}, which is no number of JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose readers, of which some take the first of equal keys and some the last, all see the same."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise ValueError(f"it states {printable(twice)} twice")
    return found


def _whole(text: str) -> int:
    if len(text) > _LONGEST_NUMBER:
        raise ValueError(f"it holds a number of {len(text)} digits")
    return int(text)


def _real(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"it holds {printable(text)}, which is more than any number that is computed with")
    return value


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a qatc package, or None where `folder` is not one (another tool's manifest.json, say)."""
    try:
        document = read_json(folder, MANIFEST)
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) and document.get("format") == FORMAT else None  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]


def unlisted_files(folder: Path, manifest: dict[str, Any]) -> list[str]:
    """What lies in the package but is no part of it, sorted; what desktops and Python leave behind does not count.

    Raises:
        OSError: where a folder in it cannot be read.
    """
    files: Any = manifest.get("files")
    listed: set[str] = {MANIFEST, SIGNATURE, *(files if isinstance(files, dict) else ())}
    found: list[str] = []
    for root, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if name != "__pycache__"]
        links = [name for name in folders if (Path(root) / name).is_symlink()]
        found += [
            (Path(root) / name).relative_to(folder).as_posix() for name in (*names, *links) if name not in _LITTER
        ]
    return sorted(set(found) - listed)


def _raise(error: OSError) -> NoReturn:
    raise error

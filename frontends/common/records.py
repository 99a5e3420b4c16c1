"""Parsed JSON that may hold anything, read with types: what does not fit is a QAT007 that names the tensor."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias, cast

from qatc.compiler.budget import active
from qatc.compiler.damaged import reason
from qatc.compiler.diagnostics import fail, printable

LARGEST: Final = 256 << 20  # bytes of a file of parameters
_PARSED: Final = 24  # bytes of Python objects that a byte of JSON becomes at most: "[]," is a list

Record: TypeAlias = Mapping[str, Any]


def parsed(path: Path) -> Any:
    """The JSON of a file, or its text (a string) where it is none.

    Raises:
        CompileError: QAT007 where the file cannot be read as text, QAT005 where it is too large.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise fail("QAT005", f"{path.name} is larger than {LARGEST >> 20} MiB")
        text = data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        hint = "check the path and its permissions"
        if isinstance(error, UnicodeDecodeError):
            hint = "name a file of ranges or encodings, which are text, with --ranges"
        raise fail("QAT007", f"cannot read {printable(str(path))}: {reason(error)}", hint=hint) from error
    active().ask(_PARSED * len(text), f"parsing {printable(path.name)}")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def record(value: Any) -> Record | None:
    """A JSON object, None for anything else."""
    return cast("Record", value) if isinstance(value, dict) else None


def listed(value: Any) -> Sequence[Any] | None:
    """A JSON array, None for anything else."""
    return cast("Sequence[Any]", value) if isinstance(value, list) else None


def items(section: Any) -> Iterator[tuple[str, Record]]:
    """The entries of an object of objects; QAT007 where it is something else."""
    held = record(section)
    if held is None:
        raise fail("QAT007", "a section of the ranges file is not a mapping", hint="the file is damaged")
    for name, item in held.items():
        entry = record(item)
        if entry is None:
            raise fail("QAT007", "an entry is not a mapping", tensor=name, hint="the file is damaged")
        yield name, entry


def numbers(item: Record, key: str, name: str, default: float | None = None) -> list[float]:
    """The number or (nested) numbers at `key`; QAT007 for tensor `name` where there is none and no default."""
    found = list(_flat(item.get(key, default)))
    if not found or not all(math.isfinite(v) for v in found):
        hint = "the file is damaged or of an unknown version"
        raise fail("QAT007", f"{key} is not a finite number", tensor=name, hint=hint)
    return found


def number(item: Record, key: str, name: str, default: float | None = None) -> float:
    """The first of `numbers`."""
    return numbers(item, key, name, default)[0]


def width(item: Record, key: str, name: str, default: float | None = None) -> int:
    """The number of bits at `key`, 2 to 32; QAT103 for other widths."""
    bits = number(item, key, name, default)
    if not 2 <= bits <= 32 or bits != int(bits):
        raise fail("QAT103", f"{bits:g} bits are no integer type of 2 to 32 bits", tensor=name)
    return int(bits)


def _flat(value: Any) -> Iterator[float]:
    """Numbers in any nesting, in order (iterative: the file decides how deep); anything else is NaN."""
    waiting = [value]
    while waiting:
        current = waiting.pop()
        inner = listed(current)
        if inner is not None:
            waiting.extend(reversed(inner))
        elif isinstance(current, (int, float)) and not isinstance(current, bool):
            yield float(current) if abs(current) < 1e300 else math.nan
        else:
            yield math.nan

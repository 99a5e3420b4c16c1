"""JSON as the package holds it: equal documents give equal bytes, on every Python and platform."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib.resources import files
from itertools import chain, repeat
from json.encoder import encode_basestring_ascii
from typing import Any, Final, cast

from qatc.compiler.result import Json

SCHEMA_VERSION: Final = 1

_SCALARS: Final = frozenset({str, int, float, bool, type(None)})


def dump_json(document: Json) -> bytes:
    """`document` as ASCII bytes: keys in the order given, two spaces a level, a newline at the end.

    An element of a list takes one line, and a list of plain values takes one together: an operator or a tensor is a
    line, and a thousand scales do not take a thousand.

    Raises:
        ValueError: for NaN and infinity, which JSON cannot hold.
        TypeError: for anything that is not JSON.
    """
    parts: list[str] = []
    _encode(document, "\n", parts)
    return ("".join(parts) + "\n").encode("ascii")


def _encode(value: Json, newline: str, parts: list[str]) -> None:
    """Append the text of `value`; `newline` starts a line at the current depth."""
    inner = newline + "  "
    if isinstance(value, Mapping) and value:
        for start, (key, item) in zip(_starts("{", inner), value.items()):  # noqa: B905 (as many as there are)
            parts.append(f"{start}{encode_basestring_ascii(key)}: ")
            _encode(item, inner, parts)
        parts.append(newline + "}")
    elif isinstance(value, (list, tuple)) and not _SCALARS.issuperset(map(type, value)):
        parts += [start + _line(item) for start, item in zip(_starts("[", inner), value)]  # noqa: B905
        parts.append(newline + "]")
    else:
        parts.append(_line(value))


def _starts(bracket: str, newline: str) -> Iterator[str]:
    return chain([bracket + newline], repeat("," + newline))


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(cast("Mapping[str, object]", value))
    raise TypeError(f"{type(value).__name__} is not JSON")


_line: Final = json.JSONEncoder(allow_nan=False, default=_plain).encode  # json.dumps would make an encoder each time


def schema(name: str) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of "manifest", "quantization" or "report"."""
    path = files("qatc.compiler") / "schemas" / f"{name}.schema.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found

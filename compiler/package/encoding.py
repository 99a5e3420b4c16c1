"""JSON as the package holds it: equal documents give equal bytes, on every Python and platform."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from json.encoder import encode_basestring_ascii
from typing import Any, Final

from qatc.compiler.result import Json

SCHEMA_VERSION: Final = 1

_ENCODER: Final = json.JSONEncoder(allow_nan=False)  # json.dumps would make one for every value
_SCALARS: Final = frozenset({str, int, float, bool, type(None)})


def dump_json(document: Json) -> bytes:
    """`document` as ASCII bytes: keys in the order given, two spaces a level, a newline at the end.

    A list of plain values takes one line, so that a thousand scales do not take a thousand.

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
    if type(value) in _SCALARS:  # by far the most, and many times faster to tell than the abstract kinds below
        parts.append(_scalar(value))
    elif isinstance(value, Mapping):
        _encode_object(value, newline, inner, parts)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        _encode_list(value, newline, inner, parts)
    else:
        parts.append(_scalar(value))


def _scalar(value: Any) -> str:
    """A text, number, truth value or null; the encoder itself costs several times as much for one of them."""
    if type(value) is str:
        return encode_basestring_ascii(value)
    if type(value) is int or (type(value) is float and math.isfinite(value)):
        return repr(value)
    return _ENCODER.encode(value)


def _encode_object(value: Mapping[str, Json], newline: str, inner: str, parts: list[str]) -> None:
    start = "{" + inner
    for key, item in value.items():
        parts.append(f"{start}{encode_basestring_ascii(key)}: ")
        _encode(item, inner, parts)
        start = "," + inner
    parts.append(newline + "}" if value else "{}")


def _encode_list(value: Sequence[Json], newline: str, inner: str, parts: list[str]) -> None:
    kinds = set(map(type, value))
    if kinds <= _SCALARS or not any(issubclass(kind, (Mapping, Sequence)) for kind in kinds - _SCALARS):
        parts.append(f"[{', '.join([_scalar(item) for item in value])}]")
        return
    start = "[" + inner
    for item in value:
        parts.append(start)
        _encode(item, inner, parts)
        start = "," + inner
    parts.append(newline + "]")


def schema(name: str) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of "manifest", "quantization" or "report"."""
    path = files("qatc.compiler") / "schemas" / f"{name}.schema.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found

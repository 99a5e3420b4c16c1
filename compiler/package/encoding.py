"""JSON as the package holds it: equal documents give equal bytes, on every Python and platform."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, Final

from qatc.compiler.result import Json

SCHEMA_VERSION: Final = 1


def dump_json(document: Json) -> bytes:
    """`document` as ASCII bytes: keys in the order given, two spaces a level, a newline at the end.

    A list of plain values takes one line, so that a thousand scales do not take a thousand.

    Raises:
        ValueError: for NaN and infinity, which JSON cannot hold.
        TypeError: for anything that is not JSON.
    """
    return (_encode(document, "\n") + "\n").encode("ascii")


def _encode(value: Json, newline: str) -> str:
    """`value` as text; `newline` starts a line at the current depth."""
    inner = newline + "  "
    if isinstance(value, Mapping):
        lines = [f"{json.dumps(key)}: {_encode(item, inner)}" for key, item in value.items()]
        return "{" + inner + ("," + inner).join(lines) + newline + "}" if lines else "{}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        if any(isinstance(item, Mapping) or _is_list(item) for item in value):
            return "[" + inner + ("," + inner).join(_encode(item, inner) for item in value) + newline + "]"
        return json.dumps(list(value), allow_nan=False)
    return json.dumps(value, allow_nan=False)


def _is_list(value: Json) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def schema(name: str) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of "manifest", "quantization" or "report"."""
    path = files("qatc.compiler") / "schemas" / f"{name}.schema.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found

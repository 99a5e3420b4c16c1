"""Findings as SARIF 2.1.0, which code-scanning services read: every code is a rule with its page as help.

The standard: https://docs.oasis-open.org/sarif/sarif/v2.1.0/os/sarif-v2.1.0-os.html. A model has no lines, so a finding
points at the file's first one, and at the node and the tensor as logical locations.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote

from qatc._version import __version__
from qatc.compiler.diagnostics import CODES, Diagnostic, Severity, escaped
from qatc.compiler.explain import explanation, pages
from qatc.compiler.result import Json

_SCHEMA: Final = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_LEVELS: Final = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.NOTE: "note"}


def sarif(path: Path, diagnostics: Sequence[Diagnostic], exit_code: int) -> bytes:
    """The findings about the file or folder `path` as a SARIF log (UTF-8 JSON)."""
    index = {code: number for number, code in enumerate(CODES)}
    driver: dict[str, Json] = {"name": "qatc", "version": __version__, "rules": [_rule(code) for code in CODES]}
    run: dict[str, Json] = {
        "tool": {"driver": driver},
        "invocations": [{"executionSuccessful": exit_code == 0, "exitCode": exit_code}],
        "columnKind": "unicodeCodePoints",
        "results": [_result(found, index[found.code], path) for found in diagnostics],
    }
    log: dict[str, Json] = {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(log, indent=1).encode("ascii") + b"\n"


def _rule(code: str) -> dict[str, Json]:
    page = explanation(code)
    return {
        "id": code,
        "shortDescription": {"text": CODES[code]},
        "fullDescription": {"text": " ".join(pages()[code]["meaning"].split())},
        "help": {"text": page, "markdown": page},
        "defaultConfiguration": {"level": "warning"},
    }


def _result(found: Diagnostic, index: int, path: Path) -> dict[str, Json]:
    message = escaped(f"{found.message}\n{found.hint}" if found.hint else found.message)
    places = [("node", found.node), ("tensor", found.tensor)]
    physical: dict[str, Json] = {"artifactLocation": {"uri": _uri(path)}, "region": {"startLine": 1}}
    logical: list[Json] = [
        {"name": escaped(name), "fullyQualifiedName": escaped(name), "kind": kind} for kind, name in places if name
    ]
    location: dict[str, Json] = {"physicalLocation": physical}
    if logical:
        location["logicalLocations"] = logical
        message = f"{message}\nat {', '.join(f'{kind} {escaped(name)}' for kind, name in places if name)}"
    identity = "\0".join((found.code, found.message, found.node or "", found.tensor or ""))
    digest = hashlib.sha256(identity.encode("utf-8", "backslashreplace")).hexdigest()
    return {
        "ruleId": found.code,
        "ruleIndex": index,
        "level": _LEVELS[found.severity],
        "message": {"text": message},
        "locations": [location],
        "partialFingerprints": {"primaryLocationLineHash": f"{digest[:16]}:1", "qatcFinding/v1": digest},
    }


def _uri(path: Path) -> str:
    """A relative path stays relative to where qatc ran, as code-scanning services want it."""
    if path.is_absolute():
        return path.as_uri()
    return quote(path.as_posix().encode("utf-8", "surrogateescape"))

"""`qatc explain CODE`: the page of a diagnostic code."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from difflib import get_close_matches
from importlib.resources import files
from typing import Final

from qatc.compiler.diagnostics import CODES, CompileError, misused, printable

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SECTIONS: Final = ("meaning", "cause", "example", "action")


@functools.cache
def pages() -> Mapping[str, Mapping[str, str]]:
    """What is said about every code: the four texts of `SECTIONS` each."""
    return tomllib.loads((files("qatc.compiler") / "explanations.toml").read_text(encoding="utf-8"))


def explanation(code: str) -> str:
    """The page of `code` as Markdown; the code may be written "QAT203", "qat203" or "203".

    Raises:
        CompileError: QAT007 with exit code 2, and the nearest codes, where there is no such code.
    """
    wanted = code.strip().upper()
    wanted = f"QAT{wanted}" if wanted.isdecimal() else wanted
    if wanted not in CODES:
        raise _unknown(code, wanted)
    texts = {name: pages()[wanted][name].strip() for name in SECTIONS}
    return (
        f"# {wanted}: {CODES[wanted]}\n\n{texts['meaning']}\n\n"
        f"## Usual cause\n\n{texts['cause']}\n\n"
        f"## Example\n\n```text\n{texts['example']}\n```\n\n"
        f"## What to do\n\n{texts['action']}\n"
    )


def _unknown(code: str, wanted: str) -> CompileError:
    close = get_close_matches(wanted, CODES, n=3)
    hint = "qatc explain, without a code, lists them all"
    if close:
        hint = f"did you mean {', '.join(close)}? {hint}"
    return misused(f"there is no diagnostic code {printable(code)!r}", hint)

"""docs/dialects.md is what the dialects say of themselves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from qatc.compiler.registry import Registry
from qatc.frontends import BUILTIN

ROOT = Path(__file__).resolve().parent.parent


def test_the_page_is_current() -> None:
    done = subprocess.run([sys.executable, str(ROOT / ".ci" / "dialects_page.py"), "--check"], check=False)
    assert done.returncode == 0, "run .ci/dialects_page.py"


def test_every_dialect_says_what_was_tried_and_what_it_cannot() -> None:
    found = Registry("dialect", "", BUILTIN, "QAT102")
    silent = [
        n for n in found.names() if not (found.get(n).description and found.get(n).exporters and found.get(n).limits)
    ]
    assert silent == []

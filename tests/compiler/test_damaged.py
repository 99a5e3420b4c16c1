"""What damaged files raise is on one list, and what the system says of a path is the same on every Python."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from qatc.compiler.damaged import ARCHIVE, looking
from qatc.compiler.diagnostics import CompileError

METHODS = [
    getattr(zipfile, name)
    for name in ("ZIP_DEFLATED", "ZIP_BZIP2", "ZIP_LZMA", "ZIP_ZSTANDARD")
    if hasattr(zipfile, name)
]


@pytest.mark.parametrize("method", METHODS)
def test_a_damaged_member_of_every_compression(tmp_path: Path, method: int) -> None:
    """LZMA's error is none of Python's usual ones."""
    path, name = tmp_path / "x.npz", "x.npy"
    try:
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr(name, np.random.default_rng(0).bytes(5000))
    except RuntimeError:
        pytest.skip("this Python lacks the compression")
    content = bytearray(path.read_bytes())
    for at in range(30 + len(name) + 9, len(content) - 200, 400):
        content[at : at + 100] = b"\xff" * 100
    path.write_bytes(content)
    with pytest.raises(ARCHIVE), zipfile.ZipFile(path) as archive:
        archive.read(name)


@pytest.mark.skipif(os.name != "posix", reason="names of 255 bytes")
def test_what_cannot_be_looked_at_is_not_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in Python 3.14, where `Path.exists` hides what the system says."""
    monkeypatch.setattr(Path, "exists", lambda _: False)
    path = tmp_path / ("n" * 300)
    with pytest.raises(CompileError, match=r"QAT002.*File name too long"), looking("QAT002", path, "hint"):
        path.exists()
    for absent in (tmp_path / "absent", Path("\0")):
        with looking("QAT002", absent, "hint"):
            assert not absent.exists()

"""What .ci/release makes: wheel, sdist, bill of materials and checksums that belong together."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qatc import __version__

ROOT = Path(__file__).resolve().parent.parent
CORE = {"click", "jinja2", "jsonschema", "numpy", "onnx", "onnx-graphsurgeon", "onnxruntime", "rich"}


def test_a_release(tmp_path: Path) -> None:
    pytest.importorskip("cyclonedx_py")
    pytest.importorskip("build")
    command = [str(ROOT / ".ci" / "release"), str(tmp_path), sys.executable]
    environment = os.environ | {"PYTHON": sys.executable, "SOURCE_DATE_EPOCH": "1700000000"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    bill = f"qatc-{__version__}.cdx.json"
    files = {f"qatc-{__version__}-py3-none-any.whl", f"qatc-{__version__}.tar.gz", bill}
    assert {p.name for p in tmp_path.iterdir()} == {*files, "SHA256SUMS"}
    sums = dict(line.split()[::-1] for line in (tmp_path / "SHA256SUMS").read_text().splitlines())
    assert sums == {name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in files}
    document = json.loads((tmp_path / bill).read_text())
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    made = document["metadata"]["component"]
    assert (made["name"], made["version"]) == ("qatc", __version__)
    assert made["hashes"][0]["content"] == sums[f"qatc-{__version__}-py3-none-any.whl"]
    held = {c["name"].lower().replace("_", "-"): c for c in document["components"]}
    assert held.keys() >= CORE
    assert all(held[name]["version"] for name in CORE)


def test_the_script_stops_at_the_first_error() -> None:
    text = (ROOT / ".ci" / "release").read_text()
    assert "set -euo pipefail" in text
    assert 'release = ["build' in (ROOT / "pyproject.toml").read_text()

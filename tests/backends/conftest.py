"""Every comparison with ONNX Runtime here is exact: emitted models are, on each x86 processor."""

from __future__ import annotations

import platform

import pytest
from hypothesis import settings

settings.register_profile("qatc-backends", deadline=None, print_blob=True)
settings.load_profile("qatc-backends")


@pytest.fixture(scope="session")
def exact_runtime() -> None:
    """Skip where ONNX Runtime is no witness of the profile `onnx`, which is that of x86."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip("the profile `onnx` is that of x86")

"""What an ONNX Runtime lacks that the tests ask it for: the last one for Python 3.10 is 1.23."""

from __future__ import annotations

import onnxruntime
import pytest

RUNTIME = tuple(int(n) for n in onnxruntime.__version__.split(".")[:2])


def since(major: int, minor: int, what: str) -> pytest.MarkDecorator:
    """Skips a test, or one of its parameters, with an older ONNX Runtime."""
    lacks = (major, minor) > RUNTIME
    return pytest.mark.skipif(lacks, reason=f"this ONNX Runtime {what}")

"""Backends: check what a target can do and emit its package; see `compiler/backend.py` for what a backend is."""

from typing import Final

# name -> where its `Backend` value is; imported when it is asked for
BUILTIN: Final[dict[str, str]] = {
    "onnx": "qatc.backends.onnx:BACKEND",
    "qdq": "qatc.backends.qdq:BACKEND",
    "drpai": "qatc.backends.drpai:BACKEND",
}

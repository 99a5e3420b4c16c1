"""Benchmarks: every figure of docs/performance.md, as a ratio to peers in the same run. `python -m benchmarks`."""

from qatc import __version__ as __version__  # before ONNX Runtime is loaded: it then reports nothing

"""Benchmarks: every figure of docs/performance.md, as a ratio to peers in the same run. `python -m benchmarks`."""

import qatc  # noqa: F401 - before ONNX Runtime is loaded, which it keeps from reporting what it loads

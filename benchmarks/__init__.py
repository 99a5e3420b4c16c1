"""Benchmarks: every figure of docs/performance.md, as a ratio to peers in the same run. `python -m benchmarks`."""

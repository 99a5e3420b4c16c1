"""The backend `onnx`: INT8 ONNX for ONNX Runtime on CPUs."""

from __future__ import annotations

from typing import Final

from qatc.backends.onnx.emit import emit
from qatc.compiler.backend import Backend, BackendOption

__all__ = ["BACKEND", "emit"]

_OPTIONS: Final = (
    BackendOption(
        "domain",
        "auto: com.microsoft operators where they are faster and mean the same; standard: ai.onnx operators only",
        ("auto", "standard"),
        "auto",
    ),
    BackendOption(
        "accumulators",
        "integer: accumulators that are read unrounded are integers; fast: float convolutions where those are faster",
        ("integer", "fast"),
        "integer",
    ),
    BackendOption(
        "data",
        "auto: weights in a file of their own only beyond two gigabytes; file: always",
        ("auto", "file"),
        "auto",
    ),
    BackendOption(
        "processors",
        "all: exact on each, with a second form of products that x86 without VNNI saturates; vnni: the fast form alone",
        ("all", "vnni"),
        "all",
    ),
)

BACKEND: Final = Backend(
    name="onnx",
    description="INT8 ONNX for ONNX Runtime on CPUs: QLinear operators, uint8 activations, int8 weights",
    level="integer",
    emit=emit,
    options={option.name: option for option in _OPTIONS},
)

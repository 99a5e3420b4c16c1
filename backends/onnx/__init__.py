"""The backend `onnx`: INT8 ONNX for ONNX Runtime on CPUs."""

from __future__ import annotations

from typing import Final

from qatc.backends.onnx.emit import emit
from qatc.compiler.backend import DATA_OPTION, Backend, BackendOption

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
        "tables",
        "integer: functions are tables, or kernels of bytes; fast: a SiLU is in float where its rounding is sure",
        ("integer", "fast"),
        "integer",
    ),
    BackendOption(
        "weights",
        "int8: fast, but wrong on x86 without VNNI where products saturate; uint8: exact everywhere, but slower; "
        "auto: both forms in one model, of which ONNX Runtime picks the right one when it loads it",
        ("auto", "int8", "uint8"),
        "auto",
    ),
    BackendOption(
        "softmax",
        "float: Softmax stays a float island; integer: an integer operator where its input and result are quantized",
        ("float", "integer"),
        "float",
    ),
    BackendOption(
        "layernorm",
        "likewise for LayerNormalization, on targets that have an integer form of it",
        ("float", "integer"),
        "float",
    ),
    DATA_OPTION,
)

BACKEND: Final = Backend(
    name="onnx",
    description="INT8 ONNX for ONNX Runtime on CPUs: QLinear operators, uint8 activations, int8 weights",
    level="integer",
    emit=emit,
    options={option.name: option for option in _OPTIONS},
)

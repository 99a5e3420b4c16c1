"""The backend `qdq`: clean QDQ ONNX for every runtime that compiles fake quantization itself.

ONNX Runtime, OpenVINO and TensorRT read it: scalar scales and zero points, int8 weights behind a DequantizeLinear, and
int32 biases where they cost nothing. TensorRT wants zero points of 0 (symmetric training) and float biases
(`-p bias=float`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, cast

from qatc.compiler.backend import DATA_OPTION, Backend, BackendOption, Emission
from qatc.compiler.graph import QuantGraph
from qatc.compiler.qdq import BiasForm, to_qdq

_OPTIONS: Final = (
    BackendOption(
        "bias",
        "int32: biases as integers of scale s_x * s_w where that moves no result by 0.01 LSB; float: as they are",
        ("int32", "float"),
        "int32",
    ),
    DATA_OPTION,
)


def emit(graph: QuantGraph, options: Mapping[str, str]) -> Emission:
    """The graph as a QDQ model; `names` maps its tensors to those that hold their values after rounding.

    Raises:
        CompileError: QAT302 for a tensor that QDQ cannot express.
    """
    written = to_qdq(graph, bias=cast(BiasForm, options["bias"]), data_file=options["data"] == "file")
    graph.explanation.extend(f"qdq: {note}" for note in written.notes)
    names = {t.name: written.rounded.get(t.name, t.name) for t in graph.tensors()}
    # the integer graph has ports as they are fed and read
    names.update({t.name: t.name for t in (*graph.inputs, *graph.outputs)})
    # the integer graph, which lists the quantized tensors for quantization.json, calls the integers of x "x_quantized"
    names.update({f"{name}_quantized": place for name, place in written.integers.items()})
    return Emission(written.model, names, written.external, written.data_file)


BACKEND: Final = Backend(
    name="qdq",
    description="clean QDQ ONNX for ONNX Runtime, OpenVINO and TensorRT",
    level="float",
    emit=emit,
    options={option.name: option for option in _OPTIONS},
)

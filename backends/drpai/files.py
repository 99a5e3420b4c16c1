"""The files beside the INT8 model: float and QDQ model, parameters, raw samples, pre-processing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from qatc.backends.drpai import models, vendor
from qatc.backends.drpai.frames import statistics
from qatc.compiler.backend import Finished, Stream
from qatc.compiler.diagnostics import fail
from qatc.compiler.package import dump_json
from qatc.compiler.package.content import params_document, quantization_document
from qatc.compiler.passes.later import bring_down
from qatc.compiler.quant import Array, QuantParams
from qatc.compiler.reference import execute
from qatc.compiler.result import Json, Port
from qatc.compiler.runtime.sessions import OrtEvaluator

_SEED: Final = 41264126  # of the vendor's own script: equal inputs give comparable results
_SUFFIX: Final = {"float32": "_fp32", "float16": "_fp16", "int64": "_int64", "int32": ""}

Write = Callable[[str], Stream]


def write_files(open_file: Write, finished: Finished) -> None:
    """Write everything, and run the vendor's tools where they were given. The graph is in opset 13 then.

    Raises:
        CompileError: QAT302 where the model has no input or no form in opset 13, QAT501 where a vendor's tool fails.
    """
    if not finished.result.inputs:
        hint = "give the model an input, or compile it for the target onnx"
        raise fail("QAT302", "a DRP-AI deployment has an input, which the model has not", hint=hint)
    graph = finished.graph
    bring_down(graph, models.OPSET)
    stripped = models.stripped(graph).SerializeToString(deterministic=True)
    _write(open_file, "drpai/stripped_fp32.onnx", stripped)
    qdq = models.quantized(graph).SerializeToString(deterministic=True)
    _write(open_file, "drpai/quantized_qdq.onnx", qdq)
    _write(open_file, "drpai/parameters.json", dump_json(parameters(finished)))
    _write(open_file, "drpai/preprocess.json", dump_json(preprocessing(finished)))
    _write_samples(open_file, finished)
    for name, content in vendor.run_tools(finished, stripped):
        _write(open_file, f"drpai/vendor/{name}", content)


def _write(open_file: Write, name: str, content: bytes) -> None:
    with open_file(name) as stream:
        stream.write(content)


# -- samples --------------------------------------------------------------------------------------------------------
def _write_samples(open_file: Write, finished: Finished) -> None:
    given = sample_inputs(finished)
    fed = {port.name: port.rounded(given[port.name]).astype(port.dtype, copy=False) for port in finished.result.inputs}
    values = execute(finished.integer, fed, finished.profile, evaluate=OrtEvaluator())
    for i, port in enumerate(finished.result.inputs):
        raw = np.ascontiguousarray(given[port.name]).tobytes()
        _write(open_file, f"input_{i}.bin", raw)
        _write(open_file, f"interpreter_out/input_{i}.bin", raw)
    kind = np.dtype(finished.options["cpu_data_type"])
    for i, port in enumerate(finished.result.outputs):
        result = real_values(port, values[port.name])
        result = result.astype(kind) if result.dtype.kind == "f" else result
        suffix = _SUFFIX.get(result.dtype.name, f"_{result.dtype.name}")
        _write(open_file, f"interpreter_out/ref_result_{i}{suffix}.bin", np.ascontiguousarray(result).tobytes())


def sample_inputs(finished: Finished) -> dict[str, Array]:
    """The user's first sample, or what the vendor's script draws: uniform in [-1, 1), batch 1, float32."""
    if finished.result.options.get("inputs"):
        return {port.name: real_values(port, np.asarray(finished.feeds[port.name])) for port in finished.result.inputs}
    draw = np.random.RandomState(_SEED)
    found: dict[str, Array] = {}
    for port in finished.result.inputs:
        sample = np.asarray(finished.feeds[port.name])
        quantized_port = port.params is not None
        if sample.dtype.kind == "f" or quantized_port:
            found[port.name] = draw.uniform(-1, 1, sample.shape).astype(np.float32)
        else:
            found[port.name] = sample  # indices and the like: random floats mean nothing there
    return found


def real_values(port: Port, value: Array) -> Array:
    """What the elements of an integer port stand for, float32; other values as they are."""
    integers = port.params is not None and value.dtype.name == port.params.container.name
    return port.params.dequantize(value) if integers and port.params is not None else value


# -- descriptions ---------------------------------------------------------------------------------------------------
def parameters(finished: Finished) -> Json:
    """Every quantized tensor: what quantization.json says, and the range of real values that the grid covers."""
    document = quantization_document(finished.result.tensors)
    ranges = {t.name: _range(t.params) for t in finished.result.tensors}
    entries = document["tensors"]
    listed = [{**entry, **ranges[str(entry["name"])]} for entry in entries if isinstance(entry, Mapping)] \
        if isinstance(entries, list) else []  # fmt: skip
    return {"schema_version": 1, "quantization_option": finished.options["quantization_option"], "tensors": listed}


def _range(params: QuantParams) -> dict[str, Json]:
    scale = np.asarray(params.scale, np.float32).astype(np.float64)
    zero = np.asarray(params.zero_point, np.float64)
    low, high = (params.qmin - zero) * scale, (params.qmax - zero) * scale
    return {"min": [float(v) for v in np.atleast_1d(low)], "max": [float(v) for v in np.atleast_1d(high)]}


def preprocessing(finished: Finished) -> Json:
    """How a camera image becomes the first input, in the terms of the vendor's PreRuntime; and the input's grid."""
    port = finished.result.inputs[0]
    shape = list(np.asarray(finished.feeds[port.name]).shape)
    is_image = len(shape) == 4 and shape[1] in (1, 3)
    channels = 3 if not is_image else shape[1]
    mean, std = statistics(channels)
    steps: list[Json] = [
        {"op": "resize", "mode": "bilinear", "shape": shape[2:]},
        {
            "op": "normalize",
            "cof_add": [-255 * m for m in mean],
            "cof_mul": [1 / (255 * s) for s in std],
            "formula": "(x + cof_add) * cof_mul",
        },
        {"op": "transpose", "from": "HWC", "to": "CHW"},
    ]
    return {
        "schema_version": 1,
        "note": "the steps of the vendor's image samples; replace mean and standard deviation by those of the training",
        "camera": {"shape": [1, 480, 640, 3], "format": "BGR", "format_code": 0x2001, "order": "HWC", "type": "uint8"},
        "steps": steps if is_image else [],
        "input": {
            "name": port.name,
            "shape": shape,
            "format": "RGB" if channels == 3 else "GRAY",
            "order": "CHW" if is_image else None,
            "type": "float32",
            "params": None if port.params is None else params_document(port.params),
        },
    }

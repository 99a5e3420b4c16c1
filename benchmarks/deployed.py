"""How fast the compiled model runs, beside what else can be made of the same network; one thread, batch 1."""

from __future__ import annotations

import contextlib
import importlib
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)

from benchmarks import models
from benchmarks.timing import in_turns, ratio
from qatc import CompileError, compile_model
from qatc.compiler.runtime.sessions import errors

Call = Callable[[], object]
Row = dict[str, Any]
_CONVOLUTIONS: Final = ("Conv", "ConvTranspose", "QLinearConv", "ConvInteger")
_FLOAT: Final = ("Conv", "ConvTranspose", "FusedConv", "MatMul", "Gemm", "FusedMatMul", "FusedGemm")
_INTEGER: Final = ("QLinearConv", "ConvInteger", "QLinearMatMul", "QGemm", "MatMulInteger", "MatMulIntegerToFloat")
_LEVELS: Final = ("ORT_ENABLE_ALL", "ORT_ENABLE_BASIC", "ORT_DISABLE_ALL")


def session(path: Path, level: str, save: Path | None = None) -> onnxruntime.InferenceSession:
    """One thread, ONNX Runtime's defaults but for the level."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    if save is not None:
        options.optimized_model_filepath = str(save)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def best(path: Path) -> tuple[onnxruntime.InferenceSession, str] | None:
    """The file at the highest level that loads, and which that is; None where none does."""
    for level in _LEVELS:
        with contextlib.suppress(Exception):  # whatever it refuses the file with
            return session(path, level), level
    return None


def _call(found: onnxruntime.InferenceSession, feeds: dict[str, Any]) -> Call:
    return lambda: found.run(None, feeds)


class _Data(CalibrationDataReader):
    def __init__(self, feeds: dict[str, Any]) -> None:
        self._left = iter([feeds])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._left, None)


def _openvino(path: Path, x: Any) -> Call | None:
    """OpenVINO on the same file, where it is installed."""
    try:
        openvino: Any = importlib.import_module("openvino")
    except ImportError:
        return None
    threads = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
    compiled: Any = openvino.Core().compile_model(str(path), "CPU", threads)
    return lambda: compiled([x])


def resnet50(folder: Path, style: models.Style, rounds: int) -> list[Row]:
    """ResNet-50: one row for each way to run it, with its speed as a multiple of the float model's."""
    plain, qat = models.resnet50(folder, style)
    x = models.image()
    feeds = {"input": x}
    package = folder / f"{style}.qatc"
    compile_model(qat, qat=True, output=package)
    calls: dict[str, Call] = {"float model": _call(session(plain, "ORT_ENABLE_ALL"), feeds)}
    original = best(qat)
    if original is not None:
        calls[f"QAT file, {original[1]}"] = _call(original[0], feeds)
    with contextlib.suppress(Exception):  # the file that it cannot load with optimizations, it cannot optimize
        session(qat, "ORT_ENABLE_EXTENDED", folder / "offline.onnx")
        calls["QAT file, optimized offline"] = _call(session(folder / "offline.onnx", "ORT_ENABLE_ALL"), feeds)
    static = folder / "static.onnx"
    quantize_static(plain, static, _Data(feeds), QuantFormat.QDQ, per_channel=True, weight_type=QuantType.QInt8)
    calls["float model, onnxruntime.quantization"] = _call(session(static, "ORT_ENABLE_ALL"), feeds)
    other = _openvino(qat, x)
    if other is not None:
        calls["QAT file, OpenVINO"] = other
    calls["qatc"] = _call(session(package / "model.onnx", "ORT_ENABLE_ALL"), feeds)
    taken = in_turns(calls, rounds)
    return [
        {"network": f"ResNet-50, {style}", "way": name, "ms": statistics.median(times) * 1e3,
         "times as fast as float": ratio(taken["float model"], times)}
        for name, times in taken.items()
    ]  # fmt: skip


def corpus(folder: Path, scratch: Path, seconds: float) -> Iterator[Row]:
    """Every case of a corpus that both load: the package's speed as a multiple of ONNX Runtime's on the original."""
    for case in sorted(path.parent for path in folder.glob("*/model.onnx")):
        inputs = [np.load(path) for path in _first_sample(case)]
        original = best(case / "model.onnx")
        if not inputs or original is None:
            continue
        with contextlib.suppress(CompileError, *errors()):  # what is refused, or does not run as it is, has no speed
            compile_model(case / "model.onnx", output=scratch / case.name, verify=False)
            ours = session(scratch / case.name / "model.onnx", "ORT_ENABLE_ALL")
            calls = {
                "original": _call(original[0], _feeds(original[0], inputs)),
                "qatc": _call(ours, _feeds(ours, inputs)),
            }
            taken = in_turns(calls, 11, seconds)
            yield {
                "case": case.name,
                "original": original[1],
                "times as fast": ratio(taken["original"], taken["qatc"]),
                "convolutional": _count(case / "model.onnx", *_CONVOLUTIONS) > 0,
                "runs as integers": _integer_share(case / "model.onnx", original[1], scratch),
                "us": statistics.median(taken["qatc"]) * 1e6,
            }


def _integer_share(path: Path, level: str, scratch: Path) -> float:
    """Share of the file's own convolutions and products that ONNX Runtime makes integer by itself."""
    session(path, level, scratch / "optimized.onnx")
    integer = _count(scratch / "optimized.onnx", *_INTEGER)
    return integer / max(1, integer + _count(scratch / "optimized.onnx", *_FLOAT))


def _count(path: Path, *operators: str) -> int:
    return sum(n.op_type in operators for n in onnx.ModelProto.FromString(path.read_bytes()).graph.node)


def _first_sample(case: Path) -> list[Path]:
    """The files of the first sample: input_0.npy, or input_0_<k>.npy where there are several inputs."""
    return sorted(case.glob("input_0.npy")) or sorted(case.glob("input_0_*.npy"))


def _feeds(found: onnxruntime.InferenceSession, arrays: list[Any]) -> dict[str, Any]:
    kinds = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64",
             "tensor(int32)": "int32", "tensor(uint8)": "uint8", "tensor(int8)": "int8"}  # fmt: skip
    return {p.name: a.astype(kinds.get(p.type, a.dtype)) for p, a in zip(found.get_inputs(), arrays, strict=False)}

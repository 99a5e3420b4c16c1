"""Keras files, SavedModels and TFLite files as the compiler's input: converted to ONNX in a process of their own.

    model.h5 | model.keras | saved_model/ | model.tflite  --tf2onnx-->  model.onnx  --> the ordinary road

TensorFlow is imported by that process alone (`frontends/tf/convert.py`): what it prints stays off the terminal, what it
crashes on ends as a diagnostic, and its memory is free again when the compile starts.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from qatc.compiler.diagnostics import CompileError, Diagnostic, Severity, fail
from qatc.compiler.frontend import Importer

_PACKAGES: Final = ("tensorflow", "tf2onnx")
_KERAS_PACKAGES: Final = ("tf_keras", "tensorflow_model_optimization")
_START: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from qatc.frontends.tf.convert import main; main(sys.argv[2:])"
)
_ENVIRONMENT: Final = {
    "TF_USE_LEGACY_KERAS": "1",  # tfmot knows Keras 2 alone
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "CUDA_VISIBLE_DEVICES": "-1",  # converting takes no accelerator
    "PYTHONHASHSEED": "0",  # tf2onnx walks over sets: equal input, equal bytes
    "PYTHONWARNINGS": "ignore",
}
_LAST_LINES: Final = 3


def convert(source: Path, destination: Path) -> tuple[Diagnostic, ...]:
    """Write the TensorFlow model `source` to `destination` as ONNX.

    Returns:
        Notes and warnings.

    Raises:
        CompileError: QAT010 where TensorFlow or tf2onnx is not installed, QAT012 where they cannot read the model,
            QAT013 where loading the model would run code.
    """
    _installed(source)
    result, log = destination.with_suffix(".json"), destination.with_suffix(".log")
    search = json.dumps([p for p in sys.path if p] or [str(Path.cwd())])
    command = [sys.executable, "-c", _START, search, *map(str, (source.absolute(), destination, result))]
    with log.open("wb") as stream:
        status = subprocess.run(
            command, env={**os.environ, **_ENVIRONMENT}, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
            check=False,
        ).returncode  # fmt: skip
    if status or not result.is_file():
        raise _crashed(source, status, log)
    rows: list[dict[str, Any]] = json.loads(result.read_text("utf-8"))
    found = [replace(Diagnostic(**row), severity=Severity(row["severity"])) for row in rows]
    if any(d.severity is Severity.ERROR for d in found):
        raise CompileError(found)
    return tuple(found)


def _installed(source: Path) -> None:
    wanted = _PACKAGES if source.is_dir() or source.suffix.lower() == ".tflite" else (*_PACKAGES, *_KERAS_PACKAGES)
    missing = [name for name in wanted if find_spec(name) is None]
    if missing:
        packages = " and ".join(filter(None, (", ".join(missing[:-1]), missing[-1])))
        verb = "is" if len(missing) == 1 else "are"
        message = f"reading {source.name} needs {packages}, which {verb} not installed"
        raise fail(
            "QAT010", message, hint="pip install 'qatc[tensorflow]', or convert it to ONNX with tf2onnx elsewhere"
        )


def _crashed(source: Path, status: int, log: Path) -> CompileError:
    lines = log.read_text("utf-8", "replace").strip().splitlines()
    said = " | ".join(lines[-_LAST_LINES:]) or "it said nothing"
    how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    hint = "is the file whole? tf2onnx on its command line shows more"
    return fail("QAT012", f"TensorFlow {how} while it read {source.name}: {said}", hint=hint)


IMPORTER: Final = Importer(
    suffixes=(".h5", ".hdf5", ".keras", ".tflite"), marker="saved_model.pb", convert=convert, through="tf2onnx"
)

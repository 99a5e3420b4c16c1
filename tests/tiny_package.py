"""A package of a tiny model for tests, and the two ways to check one."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qatc.compiler.package import (
    PackageWriter,
    Sample,
    SourceFile,
    check_script,
    manifest,
    quantization_json,
    tolerance_of,
    write_samples,
)
from qatc.compiler.quant import Array, QuantParams
from qatc.compiler.result import Port, TensorRecord
from qatc.compiler.verify.package import PackageCheck

PARAMS = QuantParams.per_tensor(0.5, 128)
INPUTS = [Port("x", "float32", ("n", 4))]
OUTPUTS = [Port("q", "uint8", ("n", 4), PARAMS), Port("y", "float32", ("n", 4), PARAMS)]
X = np.array([[-200.0, -0.25, 0.75, 3.2], [0.0, 1.0, np.inf, -np.inf]], np.float32)


def tiny_model() -> onnx.ModelProto:
    """Quantizes x to q, and dequantizes that to y."""
    scale, zero = (
        numpy_helper.from_array(np.array(0.5, np.float32), "s"),
        numpy_helper.from_array(np.array(128, np.uint8), "z"),
    )
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [
            helper.make_tensor_value_info("q", TensorProto.UINT8, ["n", 4]),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4]),
        ],
        [scale, zero],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def build(
    destination: Path,
    model: onnx.ModelProto | None = None,
    change: Callable[[list[Array]], None] | None = None,
    **changes: Any,
) -> Path:
    """A package of the tiny model; `change` alters the outputs that it records."""
    q = np.clip(np.rint(X / 0.5) + 128, 0, 255).astype(np.uint8)
    outputs = [q, PARAMS.dequantize(q)]
    if change:
        change(outputs)
    with PackageWriter(destination) as writer:
        writer.write("model.onnx", (model or tiny_model()).SerializeToString())
        writer.write("quantization.json", quantization_json([TensorRecord("x", "q", "input", PARAMS)]))
        writer.write("check.py", check_script())
        samples = [Sample((X,), tuple(outputs)), Sample((X[:1],), tuple(o[:1] for o in outputs))]
        arguments: dict[str, Any] = {
            "version": "0",
            "source": SourceFile("m.onnx", 1, "0" * 64),
            "dialect": "pytorch",
            "target": "onnx",
            "profile": "onnx",
            "options": {},
            "inputs": INPUTS,
            "outputs": OUTPUTS,
            "samples": write_samples(writer, samples, INPUTS, OUTPUTS),
            "tolerances": [tolerance_of([output]) for output in outputs],
        }
        writer.finish(manifest(**{**arguments, **changes}))
    return destination


def run_check(package: Path) -> tuple[int, str, str]:
    """Exit status, output and errors of check.py, which must not find qatc."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(package / "check.py")],
        cwd=package.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def edit(package: Path, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads((package / "manifest.json").read_bytes())
    change(document)
    (package / "manifest.json").write_text(json.dumps(document))


def replace_file(package: Path, name: str, data: bytes) -> None:
    """Change a file and the manifest with it, as somebody hostile would."""
    (package / name).write_bytes(data)
    entry = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    edit(package, lambda document: document["files"].update({name: entry}))


def codes(check: PackageCheck) -> set[str]:
    return {d.code for d in check.diagnostics}


def text(check: PackageCheck) -> str:
    return "\n".join(str(d) for d in check.diagnostics)

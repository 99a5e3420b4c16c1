"""Calls of the vendor's own tools, where the user has them: DRP-AI Quantizer, and the compile script of DRP-AI TVM.

They are asked for by folder. What is missing is an error before any work; what fails is one with the tool's last words.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from qatc.compiler.backend import Finished
from qatc.compiler.diagnostics import CompileError, Diagnostic, fail, printable
from qatc.compiler.storage import scratch_folder

_SCRIPT: Final = Path("tutorials") / "compile_onnx_model_quant.py"
_METHODS: Final = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy", "mse": "MSE"}
_EXCLUDED: Final = "exclude_operator"  # lists of what the vendor's quantizer leaves in float, beside it
_EXCLUDE: Final = "exclude_act_func_dir"
_PRODUCTS: Final = ("V2H", "V2N")


def check_tools(options: Mapping[str, str]) -> None:
    """See that every folder that is named exists, with what it must hold.

    Raises:
        CompileError: QAT007 with exit code 2, all of them at once.
    """
    wrong: list[Diagnostic] = []
    for name in ("quantizer_dir", "drp_compiler_dir", "toolchain_dir", "images"):
        path = options[name]
        if path and not Path(path).is_dir():
            message = f"{name}: there is no folder {printable(path)}"
            needed = "" if name == "images" else "leave it out: qatc needs none of the vendor's tools"
            wrong.append(Diagnostic("QAT007", message, hint=needed))
    if options["drp_compiler_dir"]:
        root = os.environ.get("TVM_ROOT", "")
        if not root or not (Path(root) / _SCRIPT).is_file():
            message = f"drp_compiler_dir: the vendor's {_SCRIPT.name} is not there"
            wrong.append(Diagnostic("QAT007", message, hint=f"set TVM_ROOT to the folder that holds {_SCRIPT}"))
        if os.environ.get("PRODUCT") not in _PRODUCTS:
            hint = f"set it to {' or '.join(_PRODUCTS)}"
            wrong.append(Diagnostic("QAT007", "drp_compiler_dir: PRODUCT is not set in the environment", hint=hint))
    if wrong:
        raise CompileError(wrong, 2)


def run_tools(finished: Finished, stripped: bytes) -> Iterator[tuple[str, bytes]]:
    """Run the tools that were given; (path, content) of every file that they leave."""
    options = finished.options
    if not (options["quantizer_dir"] or options["drp_compiler_dir"]):
        return
    with scratch_folder() as folder:
        model = folder / "stripped_fp32.onnx"
        model.write_bytes(stripped)
        out = folder / "out"
        out.mkdir()
        if options["quantizer_dir"]:
            method = str(finished.result.options.get("calibration_method", "minmax"))
            command = quantizer_command(model, out / "model_quantization.onnx", method, options)
            _run(command, Path(options["quantizer_dir"]))
        if options["drp_compiler_dir"]:
            script = Path(os.environ["TVM_ROOT"]) / _SCRIPT
            command = compile_command(script, finished.result.source.absolute(), out / "deploy", finished)
            _run(command, script.parent)
        for path in sorted(p for p in out.rglob("*") if p.is_file()):
            yield path.relative_to(out).as_posix(), path.read_bytes()


def quantizer_command(model: Path, output: Path, method: str, options: Mapping[str, str]) -> list[str]:
    """The call of DRP-AI Quantizer, as the vendor's script makes it."""
    command = [sys.executable, "-m", "drpai_quantizer.cli_interface", "--calibrate_method", _METHODS[method]]
    command += ["--input_model_path", str(model), "--output_model_path", str(output)]
    command += ["--tvm", *shlex.split(options["quantization_option"])]
    if (Path(options["quantizer_dir"]) / _EXCLUDED).is_dir() and _EXCLUDE not in command:
        place = command.index("--opts") + 1 if "--opts" in command else len(command)  # of several, the last one counts
        command[place:place] = [*(() if "--opts" in command else ("--opts",)), _EXCLUDE, f"./{_EXCLUDED}"]
    return command


def compile_command(script: Path, model: Path, output: Path, finished: Finished) -> list[str]:
    """The call of the vendor's compile script for the QAT model itself."""
    options = finished.options
    dialect = "tensorflow" if finished.result.dialect == "tensorflow" else "pytorch"
    shape = finished.feeds[finished.result.inputs[0].name].shape
    command = [sys.executable, str(script), str(model), "-o", str(output)]
    command += ["-s", ",".join(str(d) for d in shape), "-i", finished.result.inputs[0].name]
    folders = (("-d", "drp_compiler_dir"), ("-c", "quantizer_dir"), ("-t", "toolchain_dir"), ("--images", "images"))
    for flag, name in folders:  # absolute: the script runs in its own folder
        command += [flag, str(Path(options[name]).absolute())] if options[name] else []
    command += ["-p", options["quantization_option"]] if options["quantization_option"] else []
    return [*command, "-a", "-m", dialect]


def _run(command: Sequence[str], folder: Path) -> None:
    paths = [str(folder.absolute()), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p)}
    found = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if found.returncode:
        words = (found.stderr or found.stdout).strip().splitlines()
        last = printable(words[-1]) if words else "it said nothing"
        what = printable(" ".join(command[1:4]))
        raise fail("QAT501", f"the vendor's tool failed with {found.returncode}: {last}", hint=f"it was {what} ...")

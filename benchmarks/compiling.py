"""How fast the compiler is and what memory it takes, beside plain copies of the same data."""

from __future__ import annotations

import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks import models
from benchmarks.timing import in_process, in_turns, process, ratio
from qatc import compile_model

Row = dict[str, Any]


def start_up(rounds: int) -> list[Row]:
    """`qatc --help` and `import qatc` beside an empty Python."""
    python = sys.executable
    taken = in_turns(
        {
            "empty Python": lambda: process(python, "-c", "pass"),
            "import qatc": lambda: process(python, "-c", "import qatc"),
            "qatc --help": lambda: process(python, "-m", "qatc", "--help"),
        },
        rounds,
    )
    return [{"what": name, "seconds": statistics.median(times)} for name, times in taken.items()]


def _load_and_save(path: Path, folder: Path) -> None:
    onnx.save(onnx.load(path), folder / "copy.onnx")  # pyright: ignore[reportUnknownMemberType]


def against_copy(path: Path, folder: Path, rounds: int) -> list[Row]:
    """A compile beside `onnx.load` and `onnx.save` of the same file."""
    taken = in_turns(
        {
            "onnx.load + onnx.save": lambda: _load_and_save(path, folder),
            "compile, --no-verify": lambda: compile_model(path, qat=True, output=folder / "a.qatc", verify=False),
            "compile": lambda: compile_model(path, qat=True, output=folder / "b.qatc"),
        },
        rounds,
    )
    copy = taken["onnx.load + onnx.save"]
    return [
        {"model": path.stem, "what": name, "seconds": statistics.median(times), "times the copy": ratio(times, copy)}
        for name, times in taken.items()
    ]


def growth(folder: Path, sizes: list[int], rounds: int) -> list[Row]:
    """Chains of growing length, in order, shuffled, and verified; the exponent between the shortest and the longest."""
    rows: list[Row] = []
    for order, verify in (("in order", False), ("shuffled", False), ("in order", True)):
        paths = {blocks: models.chain(folder, blocks, shuffled=order == "shuffled") for blocks in sizes}
        runs = {str(b): lambda p=p, verify=verify: _compile(p, folder, verify) for b, p in paths.items()}
        taken = in_turns(runs, rounds)
        seconds = {b: min(taken[str(b)]) for b in sizes}
        low, high = sizes[0], sizes[-1]
        exponent = math.log(seconds[high] / seconds[low]) / math.log(high / low)
        rows += [
            {"nodes": 9 * b + 2, "order": order, "verified": verify, "seconds": s, "exponent": exponent}
            for b, s in seconds.items()
        ]
    return rows


def _compile(path: Path, folder: Path, verify: bool) -> None:
    compile_model(path, qat=True, output=folder / "growth.qatc", verify=verify)


def layers(folder: Path, count: int) -> Row:
    """A transformer of so many layers."""
    path = models.transformer(folder, count)
    start = time.perf_counter()
    result = compile_model(path, qat=True, output=folder / "transformer.qatc", verify=False)
    return {"layers": count, "nodes": sum(result.source_ops.values()), "seconds": time.perf_counter() - start,
            "integer share": result.coverage.share}  # fmt: skip


def compile_wide(path: str, folder: str) -> float:
    """Compile; seconds without the imports. For a process of its own."""
    compile_model("samples/models/resnet8_qat.onnx", qat=True, output=Path(folder) / "warm.qatc", verify=False)
    start = time.perf_counter()
    compile_model(path, qat=True, output=Path(folder) / "wide.qatc", verify=False)
    return time.perf_counter() - start


def quantize_wide(path: str, folder: str, count: int, width: int) -> float:
    """What any quantizer has to do: largest absolute value of each column, round, clip, write. Seconds."""
    start = time.perf_counter()
    data = np.memmap(f"{path}.data", np.float32, "r", shape=(count, width, width))
    with (Path(folder) / "plain.bin").open("wb") as out:
        for matrix in data:
            scale = np.maximum(np.abs(matrix).max(0) / 127, 1e-8)
            out.write(np.clip(np.rint(matrix / scale), -127, 127).astype(np.int8).data)
    return time.perf_counter() - start


def memory(folder: Path, count: int, width: int) -> list[Row]:
    """Weights beside the file, beyond what a ModelProto holds: time and peak memory of compile and plain copy."""
    path = models.wide(folder, count, width)
    plain = in_process("compiling", "quantize_wide", str(path), str(folder), count, width)
    ours = in_process("compiling", "compile_wide", str(path), str(folder))
    size = count * width * width * 4
    return [
        {"GB of weights": size / 1e9, "what": what, "seconds": run.answer, "peak MB": run.memory / 1e6,
         "times the copy": run.answer / plain.answer}
        for what, run in (("plain quantizing copy", plain), ("compile, --no-verify", ours))
    ]  # fmt: skip

"""Timing that other programs on the machine disturb little: candidates take turns in one run, medians of ratios."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


def in_turns(
    candidates: Mapping[str, Callable[[], object]], rounds: int, seconds: float = 0.0
) -> dict[str, list[float]]:
    """Run each candidate once a round, `rounds` times or for so many seconds; how long each took, in seconds."""
    for call in candidates.values():
        call()
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    end = time.perf_counter() + seconds
    while len(next(iter(taken.values()))) < rounds or time.perf_counter() < end:
        for name, call in candidates.items():
            start = time.perf_counter()
            call()
            taken[name].append(time.perf_counter() - start)
    return taken


def ratio(slow: list[float], fast: list[float]) -> float:
    """How many times as fast the second is: the median over the rounds."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


@dataclass(frozen=True)
class Run:
    """One process: wall-clock and CPU seconds, and the most memory it had, in bytes."""

    seconds: float
    cpu: float
    memory: int
    answer: Any = None


_ASKED = """
import json, sys
from benchmarks.{module} import {function}
print(json.dumps({function}(*json.loads(sys.argv[1]))))
"""


def process(*command: str) -> Run:
    """Run a command to its end. CalledProcessError where it fails."""
    with TemporaryDirectory() as folder, (Path(folder) / "out").open("w+b") as out:
        start = time.perf_counter()
        child = subprocess.Popen(command, stdout=out, cwd=Path(__file__).parent.parent)
        _, status, used = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)  # it is reaped: nothing is left to wait for
        out.seek(0)
        printed = out.read()
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, command, printed)
    unit = 1 if sys.platform == "darwin" else 1024
    return Run(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * unit, printed)


def in_process(module: str, function: str, *arguments: Any) -> Run:
    """Call a function of a module of benchmarks in a fresh process; `answer` is what it returns, by way of JSON."""
    run = process(sys.executable, "-c", _ASKED.format(module=module, function=function), json.dumps(arguments))
    return Run(run.seconds, run.cpu, run.memory, json.loads(run.answer))

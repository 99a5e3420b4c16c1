"""Timing that other programs on the machine disturb little: candidates take turns in one run, medians of ratios."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
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
    """One process: wall-clock seconds, what it returned, and the most memory it had, in bytes."""

    seconds: float
    answer: Any
    memory: int


_ASKED = """
import json, sys
from benchmarks.{module} import {function}
from benchmarks.timing import peak
answer = {function}(*json.loads(sys.argv[1]))
print(json.dumps([answer, peak()]))
"""


def peak() -> int:
    """The most memory that this process has had, in bytes.

    Linux counts what the parent had at the fork among a child's `ru_maxrss`; VmHWM is the program's own.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text("ascii").splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    import resource  # where there is none (Windows), nothing is measured

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def process(*command: str) -> str:
    """Run a command to its end; what it printed. CalledProcessError where it fails."""
    root = Path(__file__).parent.parent
    done = subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


def in_process(module: str, function: str, *arguments: Any) -> Run:
    """Call a function of a module of benchmarks in a fresh process; what it returns comes by way of JSON."""
    start = time.perf_counter()
    printed = process(sys.executable, "-c", _ASKED.format(module=module, function=function), json.dumps(arguments))
    seconds = time.perf_counter() - start
    answer, memory = json.loads(printed)
    return Run(seconds, answer, memory)

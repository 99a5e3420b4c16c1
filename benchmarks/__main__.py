"""Measure everything: `python -m benchmarks`; results.json and results.md are written, a part at a time."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import click

Row = dict[str, Any]
_PEERS: Final = ("qatc", "onnx", "onnxruntime", "numpy", "openvino")


@dataclass(frozen=True)
class Setup:
    """Where a part writes its models, whether it only shows that it works, and where the corpus lies."""

    scratch: Path
    quick: bool
    corpus: Path


def _deployed(setup: Setup) -> list[Row]:
    from benchmarks.deployed import resnet50

    return [row for style in ("torch", "symmetric") for row in resnet50(setup.scratch, style, 5 if setup.quick else 40)]


def _corpus(setup: Setup) -> list[Row]:
    from benchmarks.deployed import corpus as cases

    rows = list(cases(setup.corpus, setup.scratch, 0.05 if setup.quick else 0.5))
    for name, chosen in (("all", rows), ("convolutional", [r for r in rows if r["convolutional"]])):
        if chosen:
            mean = math.exp(statistics.fmean(math.log(r["times as fast"]) for r in chosen))
            rows.append({"case": f"geometric mean, {name} ({len(chosen)})", "times as fast": mean})
    return rows


def _start(setup: Setup) -> list[Row]:
    from benchmarks.compiling import start_up

    return start_up(3 if setup.quick else 15)


def _compile(setup: Setup) -> list[Row]:
    from benchmarks import models
    from benchmarks.compiling import against_copy

    return against_copy(models.resnet50(setup.scratch, "torch")[1], setup.scratch, 1 if setup.quick else 7)


def _growth(setup: Setup) -> list[Row]:
    from benchmarks.compiling import growth

    return growth(setup.scratch, [50, 200] if setup.quick else [500, 2000, 8000], 1 if setup.quick else 3)


def _layers(setup: Setup) -> list[Row]:
    from benchmarks.compiling import layers

    return [layers(setup.scratch, 4 if setup.quick else 100)]


def _memory(setup: Setup) -> list[Row]:
    from benchmarks.compiling import memory

    return memory(setup.scratch, 2 if setup.quick else 40, 256 if setup.quick else 4096)


_MEASURES: Final[dict[str, Callable[[Setup], list[Row]]]] = {
    "deployed": _deployed, "corpus": _corpus, "start": _start, "compile": _compile, "growth": _growth,
    "layers": _layers, "memory": _memory,
}  # fmt: skip


@click.command()
@click.option(
    "--only", type=click.Choice(list(_MEASURES)), multiple=True, help="Measure this part, repeatable; default all."
)
@click.option("--quick", is_flag=True, help="Small models and few rounds: whether it works, not how fast it is.")
@click.option(
    "--corpus",
    type=click.Path(path_type=Path),
    default=Path("../shared/corpus"),
    show_default=True,
    help="Folders of models, for the part of that name; left out where there is none.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("benchmarks"),
    show_default=True,
    help="Where results.json and results.md go; parts measured before stay in them.",
)
def main(only: Sequence[str], quick: bool, corpus: Path, out: Path) -> None:
    """Measure qatc and its peers, in ratios of one run."""
    from rich.console import Console

    console = Console()
    out.mkdir(parents=True, exist_ok=True)
    file = out / "results.json"
    results: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.exists() else {"parts": {}}
    for part in only or _MEASURES:
        if part == "corpus" and not corpus.is_dir():
            console.print(f"{part}: left out, there is no {corpus}")
            continue
        with TemporaryDirectory(prefix="qatc-bench-") as scratch, console.status(part):
            rows = _MEASURES[part](Setup(Path(scratch), quick, corpus))
        results["parts"][part] = rows
        results["machine"] = _machine()
        file.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
        (out / "results.md").write_text(table(results), "utf-8")
        console.print(f"{part}: {len(rows)} rows", highlight=False)
    console.print(f"written to {file} and {out / 'results.md'}", highlight=False, soft_wrap=True)


def _machine() -> dict[str, str]:
    found = {"processor": _processor(), "cores": str(os.cpu_count()), "Python": platform.python_version()}
    for peer in _PEERS:
        try:
            found[peer] = version(peer)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].partition(": ")[2] if names else platform.processor()


def table(results: dict[str, Any]) -> str:
    """The results as Markdown: one table a part, columns as the rows name them."""
    lines = ["# Benchmarks", "", "Written by `python -m benchmarks`. " + _sentence(results["machine"])]
    for part, rows in results["parts"].items():
        columns = list(dict.fromkeys(key for row in rows for key in row))
        lines += ["", f"## {part}", "", _line(columns), _line(["---"] * len(columns))]
        lines += [_line([_text(row.get(column, "")) for column in columns]) for row in rows]
    return "\n".join(lines) + "\n"


def _sentence(machine: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" if name != "processor" else value for name, value in machine.items()) + "."


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)


if __name__ == "__main__":
    main()

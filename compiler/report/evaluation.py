"""What `qatc evaluate` prints: each metric for every form of the network, side by side; as text, JSON and HTML."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qatc.compiler.diagnostics import counted, file_name, one_line, printable
from qatc.compiler.report import text
from qatc.compiler.report.facts import Column, Facts, listing
from qatc.compiler.report.junit import Case
from qatc.compiler.report.page import EVALUATION_BEGIN, EVALUATION_END, template
from qatc.compiler.result import Evaluation, Json, Score

if TYPE_CHECKING:
    from rich.console import Console


# -- text ----------------------------------------------------------------------------------------------------------
def evaluation(found: Evaluation, console: Console, *, verbose: bool = False) -> None:
    """Print an evaluation; its diagnostics are printed elsewhere. `verbose` adds how long each run took."""
    from rich.text import Text

    mark = Text("evaluated " if found.passed else "failed ", style="green" if found.passed else "bold red")
    console.print(mark + Text(one_line(str(found.package)), style="bold"), soft_wrap=True)
    facts = Facts(console, label=15)
    facts.row("data", f"{one_line(str(found.data))}: {counted(found.samples, 'sample')}, read as {found.loader}")
    for run in found.runs:
        time = f", {run.seconds:.3g} s" if verbose else ""
        facts.row(run.name, text.prose(run.description) + time)
    for name, reason in found.absent:
        facts.row(f"no {name}", text.prose(reason), style="yellow")
    if found.reported:
        facts.row("report", "report.html and report.json of the package hold this result")
    console.print()
    _table(found, console)


def _table(found: Evaluation, console: Console) -> None:
    several = len({score.output for score in found.scores if score.output}) > 1
    columns = [Column("metric"), *([Column("output")] if several else [])]
    columns += [Column(run.name, numeric=True) for run in found.runs]
    rows: list[list[str]] = []
    for score in found.scores:
        cells = [score.metric, *([printable(score.output)] if several else [])]
        rows.append([*cells, *(shown(score, run.name) for run in found.runs), _against(score)])
    listing(console, (*columns, Column("against")), rows)


def _against(score: Score) -> str:
    better = f"{score.better} is better"
    return f"{score.against} ({better})" if score.against else better


def shown(score: Score, run: str) -> str:
    """A score as people read it; nothing for the run that the others are compared with."""
    value = score.values.get(run)
    if value is None:
        return ""
    if not math.isfinite(value):
        return "?" if math.isnan(value) else "equal" if score.unit == "dB" and value > 0 else str(value)
    if score.unit == "share":
        return text.percent(value)
    return f"{value:.1f} dB" if score.unit == "dB" else f"{value:.6g}"


def evaluation_cases(found: Evaluation) -> list[Case]:
    """An evaluation as test cases: each metric with its scores. What breaks a limit fails as a diagnostic."""
    cases: list[Case] = []
    for score in found.scores:
        name = " ".join([score.metric, *([printable(score.output)] if score.output else [])])
        said = ", ".join(f"{run}: {shown(score, run)}" for run in score.values)
        cases.append(Case(f"{name} against {score.against}" if score.against else name, output=said))
    return cases


# -- JSON ----------------------------------------------------------------------------------------------------------
def evaluation_document(found: Evaluation) -> dict[str, Json]:
    """An evaluation as report.json holds it: no paths and no timings, so that equal evaluations are equal bytes."""
    return {
        "data": file_name(found.data),
        "loader": found.loader,
        "samples": found.samples,
        "runs": [{"name": run.name, "description": run.description} for run in found.runs],
        "absent": [{"name": name, "reason": reason} for name, reason in found.absent],
        "scores": [
            {
                "metric": score.metric,
                "output": score.output or None,
                "against": score.against or None,
                "better": score.better,
                "unit": score.unit or None,
                "values": {name: _number(value) for name, value in score.values.items()},
            }
            for score in found.scores
        ],
    }


def _number(value: float) -> Json:
    """JSON has no infinity and no NaN: they are texts."""
    if math.isfinite(value):
        return float(value)
    return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"


def evaluation_json(found: Evaluation) -> dict[str, Json]:
    """An evaluation as JSON data: where things are and how long they took, and all that report.json holds."""
    return {
        "package": str(found.package),
        "data": str(found.data),
        "passed": found.passed,
        "reported": found.reported,
        "seconds": {run.name: round(run.seconds, 6) for run in found.runs},
        "evaluation": evaluation_document(found),
    }


# -- HTML ----------------------------------------------------------------------------------------------------------
def with_evaluations(page: bytes, evaluations: Sequence[Mapping[str, Any]]) -> bytes:
    """report.html with a section that shows `evaluations` (as `evaluation_document` has them) in its place.

    Raises:
        ValueError: where the page has no place for it.
    """
    begin, end = EVALUATION_BEGIN.encode("ascii"), EVALUATION_END.encode("ascii")
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError("it has no place for evaluations")
    section = template("evaluation.html").render(evaluations=[_section(each) for each in evaluations])
    return b"".join((before, begin, b"\n", section.encode("utf-8", "backslashreplace"), b"\n", end, after))


def _section(document: Mapping[str, Any]) -> dict[str, Any]:
    names = [run["name"] for run in document["runs"]]
    rows: list[dict[str, Any]] = []
    for entry in document["scores"]:
        values = {name: float(value) for name, value in entry["values"].items()}
        score = Score(entry["metric"], entry["output"] or "", entry["against"] or "", entry["better"],
                      entry["unit"] or "", values)  # fmt: skip
        rows.append(
            {"metric": score.metric, "output": score.output, "against": _against(score),
             "cells": [shown(score, name) for name in names]}
        )  # fmt: skip
    return {**document, "rows": rows}

"""report.html: what report.json says, for people. One file that opens from disk: no network, no external script.

Everything that comes from the model goes through jinja2's autoescape and through `text.prose` (control characters are
shown, over-long names cut). Nothing here knows a clock or a path: equal compiles give equal bytes.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

from markupsafe import Markup

from qatc._version import __version__
from qatc.compiler.diagnostics import Severity, counted, escaped, file_name, printable
from qatc.compiler.report import plot, text
from qatc.compiler.report.drawing import STYLE, graph_drawing
from qatc.compiler.result import (
    CompileResult,
    Coverage,
    Island,
    Port,
    ProfileDifference,
    TensorCheck,
    TensorRecord,
    Verification,
)

if TYPE_CHECKING:
    from jinja2 import Template

#: Between these the report takes in what an evaluation found (`report/evaluation.py`); no text of a model has them.
EVALUATION_BEGIN: Final = "<!-- evaluation -->"
EVALUATION_END: Final = "<!-- end of evaluation -->"

_ROWS: Final = 3000  # of a table; report.json and quantization.json hold everything
_WORST: Final = 6  # tensors with a histogram


@dataclass(frozen=True)
class _Tile:
    """One number of the headline; `mood` is "good", "fair", "bad" or ""."""

    label: str
    value: str
    detail: str = ""
    mood: str = ""


def report_html(result: CompileResult) -> bytes:
    """The report of a compile as one self-contained HTML file (UTF-8).

    Args:
        result: the compile; its paths and timings are left out, since equal compiles give equal reports.
    """
    found = result.verification
    context: dict[str, Any] = {
        "result": result,
        "version": __version__,
        "tiles": _tiles(result),
        "facts": _facts(result),
        "islands": [
            _island_group(reason, members, result.coverage)
            for reason, members in text.islands_by_reason(result.islands)
        ],
        "filled": [(f.tensor, f.method, text.grid(f.params)) for f in result.filled],
        "diagnostics": sorted(result.diagnostics, key=lambda d: -list(Severity).index(d.severity)),
        "verification": found,
        "stages": [] if found is None else _stages(found),
        "profiles": [_profile_row(each) for each in result.profiles],
        "errors": [] if found is None else _error_rows(found),
        "error_count": 0 if found is None else len(found.tensors),
        "plots": [draw(found.tensors) for draw in (plot.lsb_plot, plot.sqnr_plot)] if found and found.tensors else [],
        "worst": [] if found is None else [(c, plot.histogram(c)) for c in _worst(found.tensors)],
        "parameters": [_parameter_row(record) for record in result.tensors[:_ROWS]],
        "explanation": result.explanation,
        "source": file_name(result.source),
        "command": Markup.escape(escaped(_command(result))),  # whole, however long: it is to be copied
        "graph": None if result.view is None else graph_drawing(result.view, file_name(result.source)),
        "graph_style": Markup(STYLE),
        "place_begin": Markup(EVALUATION_BEGIN),
        "place_end": Markup(EVALUATION_END),
    }
    return template("page.html").render(context).encode("utf-8", "backslashreplace")


@functools.cache
def template(name: str) -> Template:
    """A template of this folder; every string that it shows is escaped and made visible."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_shown
    )
    environment.filters["csp_hash"] = _csp_hash
    environment.filters["percent"] = text.percent
    return environment.from_string((files("qatc.compiler") / "report" / name).read_text(encoding="utf-8"))


def _command(result: CompileResult) -> str:
    """The command line that compiles the same again."""
    return shlex.join(["qatc", "compile", file_name(result.source), *text.option_flags(result.options)])


def _shown(value: Any) -> Any:
    """Every string of the model that reaches the page, made visible; what is `Markup` is already."""
    return text.prose(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _csp_hash(content: str) -> str:
    """The content-security-policy source that allows exactly this inline script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(str(content).encode("utf-8")).digest()).decode("ascii")


def _tiles(result: CompileResult) -> list[_Tile]:
    coverage, found = result.coverage, result.verification
    macs = coverage.integer_macs + coverage.float_macs
    computing = counted(coverage.integer_ops + coverage.float_ops, "computing operator")
    mood = "good" if coverage.share == 1 else "fair" if coverage.share >= 0.5 else "bad"
    share = _Tile("in integers", text.percent(coverage.share), f"of {text.scaled(macs)} multiply-accumulates", mood)
    if not macs:
        few = f"of {computing}; no multiply-accumulates"
        share = _Tile("in integers", f"{coverage.integer_ops:,}", few, "fair" if coverage.float_ops else "good")
    islands = _Tile(
        "float islands", f"{len(result.islands):,}", f"of {computing}", "fair" if result.islands else "good"
    )
    before = f"{text.scaled(result.source_bytes, 'B')} before, {text.times(result.source_bytes, result.package_bytes)}"
    size = _Tile("size", text.scaled(result.package_bytes, "B"), before)
    if found is None:
        proof = _Tile("verification", "off", "nothing was compared", "fair")
    elif found.passed:
        proof = _Tile("verification", "passed", counted(found.samples, "sample"), "good")
    else:
        proof = _Tile("verification", "failed", f"at {found.first_bad}" if found.first_bad else "", "bad")
    return [share, islands, size, proof]


def _facts(result: CompileResult) -> list[tuple[str, str]]:
    facts = [
        ("dialect", f"{result.dialect}: {result.evidence}" if result.evidence else result.dialect),
        ("target", result.target),
        ("arithmetic", result.profile),
    ]
    facts += [(f"input {printable(port.name)}", _port(port)) for port in result.inputs]
    facts += [(f"output {printable(port.name)}", _port(port)) for port in result.outputs]
    before, after = sum(result.source_ops.values()), sum(result.package_ops.values())
    facts.append((f"operators before: {before:,}", text.kinds(result.source_ops, 30)))
    facts.append((f"operators after: {after:,}", text.kinds(result.package_ops, 30)))
    return facts


def _port(port: Port) -> str:
    return f"{text.shape(port)}, {text.grid(port.params)}" if port.params else text.shape(port)


def _island_group(reason: str, members: Sequence[Island], coverage: Coverage) -> dict[str, Any]:
    total = coverage.integer_macs + coverage.float_macs
    macs = sum(island.macs for island in members)
    return {
        "reason": reason,
        "count": len(members),
        "kinds": ", ".join(sorted({island.op_type for island in members})),
        "share": text.percent(macs / total) if macs and total else "",
        "nodes": [(island.node, island.tensor) for island in members[:_ROWS]],
    }


def _stages(found: Verification) -> list[dict[str, Any]]:
    return [
        _stage(
            "package = reference", "the written model in ONNX Runtime against exact integer arithmetic", found.package
        ),
        _stage("reference = simulation", "operator by operator, each fed the simulation's own inputs", found.local),
        _stage("end to end", "whole networks, so that differences add up", found.tensors),
    ]


def _profile_row(found: ProfileDifference) -> dict[str, str]:
    """How an arithmetic profile rounds the first sample, against exact rounding."""
    row = {"name": found.profile, "share": "", "lsb": "", "worst": "", "reason": text.prose(found.reason)}
    if found.reason:
        return row
    row |= {"share": text.percent(found.share), "lsb": str(found.max_lsb)}
    if found.worst:
        row["worst"] = f"{text.percent(found.worst_share)} of {found.worst}"
    return row


def _stage(name: str, meaning: str, checks: Sequence[TensorCheck]) -> dict[str, Any]:
    equal = text.equal_share(checks)
    failed = [check for check in checks if not check.passed]
    return {
        "name": name,
        "meaning": meaning + text.floats(checks, ";"),
        "count": len(checks),
        "equal": "" if equal is None else text.percent(equal),
        "max_lsb": max((check.max_lsb for check in checks), default=0),
        "failed": len(failed),
        "first": f"{failed[0].tensor}: {failed[0].message}" if failed else "",
    }


def _error_rows(found: Verification) -> list[dict[str, Any]]:
    """End-to-end errors in execution order, each with its local check beside it; the worst where there are many."""
    local: Mapping[str, TensorCheck] = {check.tensor: check for check in found.local}
    kept = list(range(len(found.tensors)))
    if len(kept) > _ROWS:
        kept = sorted(sorted(kept, key=lambda i: found.tensors[i].sqnr_db)[:_ROWS])
    rows: list[dict[str, Any]] = []
    for index in kept:
        check = found.tensors[index]
        beside = local.get(check.tensor)
        rows.append(
            {
                "index": index + 1,
                "tensor": check.tensor,
                "operator": check.op,
                "elements": f"{check.elements:,}",
                "equal": text.percent(check.equal_share),
                "mean": f"{text.mean_lsb(check):.3g}",
                "max": f"{check.max_lsb:,}",
                "sqnr": text.decibels(check.sqnr_db),
                "local": "" if beside is None else f"{beside.max_lsb:,}",
                "failed": not check.passed or (beside is not None and not beside.passed),
            }
        )
    return rows


def _worst(checks: Sequence[TensorCheck]) -> list[TensorCheck]:
    differing = [check for check in checks if check.max_lsb and not math.isnan(check.sqnr_db)]
    return sorted(differing, key=lambda check: (check.sqnr_db, -check.max_lsb))[:_WORST]


def _parameter_row(record: TensorRecord) -> tuple[str, ...]:
    """The cells of a tensor: its names, role, type, scale, zero point, range and axis."""
    params = record.params
    scales = [text.number(scale) for scale in (min(params.scale), max(params.scale))]
    zeros = min(params.zero_point), max(params.zero_point)
    return (
        record.name,
        record.source or "",
        record.role,
        params.dtype,
        scales[0] if scales[0] == scales[1] else " to ".join(scales),
        str(zeros[0]) if zeros[0] == zeros[1] else f"{zeros[0]} to {zeros[1]}",
        f"[{params.qmin}, {params.qmax}]",
        "" if params.axis is None else f"{params.axis} ({len(params.scale):,})",
    )

"""What `--json` prints: one document a command, the same frame around success and failure.

The schema is `compiler/schemas/result.schema.json`. What report.json says is in here word for word; timings and paths,
which a package never holds, are added.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

from qatc._version import __version__
from qatc.compiler.diagnostics import Diagnostic, file_name
from qatc.compiler.package import port_document, report_document
from qatc.compiler.package.content import coverage_document, params_document
from qatc.compiler.result import CompileResult, Inspection, Json

SCHEMA_VERSION = 1


def result_json(result: CompileResult) -> dict[str, Json]:
    """A compile as JSON data: where the package is, what was asked for, how long it took, and all of report.json."""
    return {
        "package": None if result.package is None else str(result.package),
        "source": str(result.source),
        "options": dict(result.options),
        "timings": {step: round(float(seconds), 6) for step, seconds in result.timings.items()},
        "report": report_document(result),
    }


def inspection_json(found: Inspection) -> dict[str, Json]:
    """An inspection as JSON data."""
    return {
        "source": file_name(found.source),
        "size": found.source_bytes,
        "dialect": found.dialect,
        "evidence": found.evidence,
        "target": found.target,
        "inputs": [port_document(port) for port in found.inputs],
        "outputs": [port_document(port) for port in found.outputs],
        "coverage": coverage_document(found.coverage),
        "operators": [
            {
                "node": op.node,
                "op_type": op.op_type,
                "kind": op.kind,
                "reason": op.reason,
                "tensor": op.tensor or None,
                "macs": op.macs,
                "parameters": op.parameters,
                "activation_bytes": op.activation_bytes,
                "note": op.note,
                "weights": None if op.weights is None else asdict(op.weights),
                "sums": None if op.sums is None else asdict(op.sums),
            }
            for op in found.operators
        ],
        "peak_bytes": found.peak_bytes,
        "missing_ranges": [
            {"tensor": missing.tensor, "reason": missing.reason, "maker": missing.maker or None}
            for missing in found.missing
        ],
        "disagreeing": [
            {
                "tensor": apart.tensor,
                "op_type": apart.op_type,
                "reason": apart.reason,
                "grids": [params_document(params) for params in apart.grids],
            }
            for apart in found.disagreeing
        ],
        "advice": list(found.advice),
        "dump": found.dump,
    }


def envelope(
    command: str,
    *,
    exit_code: int = 0,
    diagnostics: Iterable[Diagnostic] = (),
    result: Mapping[str, Json] | Sequence[Json] | None = None,
) -> bytes:
    """The document that `--json` prints: one line of ASCII, since a deep network fills many megabytes.

    Args:
        command: the command that ran, "compile" for one.
        exit_code: what the process returns.
        diagnostics: all that was found, errors included.
        result: what the command found; None where it failed before it found anything.
    """
    document = {
        "schema_version": SCHEMA_VERSION,
        "tool": {"name": "qatc", "version": __version__},
        "command": command,
        "exit_code": exit_code,
        "diagnostics": [diagnostic.as_dict() for diagnostic in diagnostics],
        "result": result,
    }
    return json.dumps(document, allow_nan=False).encode("ascii") + b"\n"

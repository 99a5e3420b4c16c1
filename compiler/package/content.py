"""What the package's own files say: manifest.json, quantization.json, report.json and check.py.

Nothing here knows a clock, an absolute path or a machine: equal compiles give equal bytes.
"""

from __future__ import annotations

import hashlib
import math
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Final

from qatc.compiler.damaged import looking, reason
from qatc.compiler.diagnostics import fail, file_name
from qatc.compiler.package.encoding import SCHEMA_VERSION, dump_json
from qatc.compiler.package.read import FORMAT
from qatc.compiler.package.samples import Tolerance
from qatc.compiler.quant import QuantParams
from qatc.compiler.result import (
    CompileResult,
    Coverage,
    Island,
    Json,
    OutputCheck,
    Port,
    ProfileDifference,
    TensorCheck,
    TensorRecord,
    Verification,
)

_CHUNK: Final = 1 << 22


@dataclass(frozen=True)
class SourceFile:
    """A file that was compiled: its bare name, size in bytes and sha256 in hexadecimal."""

    name: str
    size: int
    sha256: str


def source_file(path: Path) -> SourceFile:
    """Hash a file of the source model, without holding it in memory; a folder is hashed as the list of its files.

    That list is what `find . -type f | LC_ALL=C sort | xargs sha256sum` prints in the folder; its size is the sum of
    the files' sizes.

    Raises:
        CompileError: QAT002 where it cannot be read.
    """
    with looking("QAT002", path, "check the path and its permissions"):
        if not path.is_dir():
            return _hashed(path)
    files = {f"./{p.relative_to(path).as_posix()}": _hashed(p) for p in path.rglob("*") if p.is_file()}
    lines = [f"{files[name].sha256}  {name}\n" for name in sorted(files, key=os.fsencode)]
    listing = hashlib.sha256(b"".join(map(os.fsencode, lines)))
    return SourceFile(file_name(path), sum(f.size for f in files.values()), listing.hexdigest())


def _hashed(path: Path) -> SourceFile:
    digest, size = hashlib.sha256(), 0
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            raise fail("QAT002", f"{path} is not a regular file", hint="give the path of a file")
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
    except OSError as error:
        raise fail("QAT002", f"cannot read {path}: {reason(error)}") from error
    return SourceFile(file_name(path), size, digest.hexdigest())


def check_script() -> bytes:
    """The bytes of check.py, the same in every package."""
    return (files("qatc.compiler") / "package" / "check.py.in").read_bytes()


def manifest(
    *,
    version: str,
    source: SourceFile,
    external: Sequence[SourceFile] = (),
    dialect: str,
    target: str,
    profile: str,
    options: Mapping[str, Json],
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    model: str | None = "model.onnx",
    samples: Sequence[Json] = (),
    tolerances: Sequence[Tolerance] | None = None,
    layouts: Mapping[str, str] | None = None,
) -> dict[str, Json]:
    """manifest.json without its list of files, which `PackageWriter.finish` adds.

    `version` is qatc's own; `external` the source's external data; `options` what the user chose, without absolute
    paths; `samples` what `write_samples` returned; `tolerances` one per output (default: exact); `layouts` the layout
    of a port by its name, such as "NCHW". `model` is the file to run with ONNX Runtime, None where a target has none.
    """
    layouts = layouts or {}
    allowed = tolerances or [Tolerance()] * len(outputs)
    out = [
        {**port_document(port, layouts.get(port.name)), "tolerance": {"absolute": t.absolute, "relative": t.relative}}
        for port, t in zip(outputs, allowed, strict=True)
    ]
    return {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "tool": {"name": "qatc", "version": version},
        "source": {**_file(source), "external_data": [_file(entry) for entry in sorted(external, key=_name)]},
        "dialect": dialect,
        "target": target,
        "arithmetic": profile,
        "options": {key: options[key] for key in sorted(options)},
        "model": model,
        "inputs": [port_document(port, layouts.get(port.name)) for port in inputs],
        "outputs": out,
        "samples": list(samples),
    }


def _name(entry: SourceFile) -> str:
    return entry.name


def _file(entry: SourceFile) -> dict[str, Json]:
    return {"file": entry.name, "size": entry.size, "sha256": entry.sha256}


def port_document(port: Port, layout: str | None = None) -> dict[str, Json]:
    """A graph input or output as JSON."""
    return {
        "name": port.name,
        "dtype": port.dtype,
        "shape": None if port.shape is None else list(port.shape),
        "layout": layout,
        "params": None if port.params is None else params_document(port.params),
    }


def params_document(params: QuantParams) -> dict[str, Json]:
    """QuantParams as JSON; the scales are float32 numbers, written so that they read back exactly."""
    return {
        "dtype": params.dtype,
        "axis": params.axis,
        "qmin": params.qmin,
        "qmax": params.qmax,
        "scale": list(params.scale),
        "zero_point": list(params.zero_point),
    }


def quantization_document(tensors: Sequence[TensorRecord]) -> dict[str, Json]:
    """quantization.json as data: every quantized tensor, in the order given."""
    return {"schema_version": SCHEMA_VERSION, "tensors": [record_document(record) for record in tensors]}


def record_document(record: TensorRecord) -> dict[str, Json]:
    """A quantized tensor as quantization.json has it."""
    return {"source": record.source, "name": record.name, "role": record.role, **params_document(record.params)}


def quantization_json(tensors: Sequence[TensorRecord]) -> bytes:
    """quantization.json as bytes."""
    return dump_json(quantization_document(tensors))


def report_document(result: CompileResult) -> dict[str, Json]:
    """report.json as data: what the compile did and what it could not do. No timings and no paths."""
    return {
        "schema_version": SCHEMA_VERSION,
        "source": file_name(result.source),
        "dialect": result.dialect,
        "evidence": result.evidence,
        "target": result.target,
        "arithmetic": result.profile,
        "size": {"source": result.source_bytes, "package": result.package_bytes},
        "operators": {"source": _counts(result.source_ops), "package": _counts(result.package_ops)},
        "coverage": coverage_document(result.coverage),
        "inputs": [port_document(port) for port in result.inputs],
        "outputs": [port_document(port) for port in result.outputs],
        "islands": [_island(island) for island in result.islands],
        "filled": [
            {"tensor": f.tensor, "method": f.method, "params": params_document(f.params)} for f in result.filled
        ],
        "diagnostics": [d.as_dict() for d in result.diagnostics],
        "verification": None if result.verification is None else _verification(result.verification),
        "profiles": [_profile(difference) for difference in result.profiles],
        "explanation": list(result.explanation),
        "evaluations": [],
    }


def coverage_document(coverage: Coverage) -> dict[str, Json]:
    """How much runs in integers, as JSON."""
    return {
        "integer_share": coverage.share,
        "integer_macs": coverage.integer_macs,
        "float_macs": coverage.float_macs,
        "integer_ops": coverage.integer_ops,
        "float_ops": coverage.float_ops,
        "moved_ops": coverage.moved_ops,
    }


def _island(island: Island) -> dict[str, Json]:
    """An island as JSON."""
    return {
        "node": island.node,
        "op_type": island.op_type,
        "reason": island.reason,
        "tensor": island.tensor or None,
        "macs": island.macs,
    }


def report_json(result: CompileResult) -> bytes:
    """report.json as bytes."""
    return dump_json(report_document(result))


def _counts(counts: Mapping[str, int]) -> dict[str, Json]:
    return {key: int(counts[key]) for key in sorted(counts)}


def _profile(found: ProfileDifference) -> dict[str, Json]:
    return {
        "profile": found.profile,
        "elements": found.elements,
        "share": found.share,
        "max_lsb": found.max_lsb,
        "operators": found.operators,
        "worst": found.worst or None,
        "worst_share": found.worst_share,
        "reason": found.reason or None,
    }


def _verification(found: Verification) -> dict[str, Json]:
    return {
        "passed": found.passed,
        "samples": found.samples,
        "simulation": found.simulation,
        "first_bad": found.first_bad,
        "package": [_tensor_check(check) for check in found.package],
        "local": [_tensor_check(check) for check in found.local],
        "tensors": [_tensor_check(check) for check in found.tensors],
        "outputs": [_output_check(check) for check in found.outputs],
    }


def _tensor_check(check: TensorCheck) -> dict[str, Json]:
    return {
        "tensor": check.tensor,
        "op": check.op,
        "kind": check.kind,
        "passed": bool(check.passed),
        "elements": int(check.elements),
        "equal_share": float(check.equal_share),
        "max_lsb": int(check.max_lsb),
        "excused": int(check.excused),
        "sqnr_db": _finite(check.sqnr_db),
        "histogram": {str(int(lsb)): int(check.histogram[lsb]) for lsb in sorted(check.histogram)},
        "message": check.message,
    }


def _output_check(check: OutputCheck) -> dict[str, Json]:
    agreement = check.argmax_agreement
    return {
        "name": check.name,
        "max_abs": _finite(check.max_abs),
        "max_rel": _finite(check.max_rel),
        "argmax_agreement": None if agreement is None else _finite(agreement),
        "chosen_by": check.chosen_by,
    }


def _finite(value: float) -> float | None:
    """A number as JSON can hold it: infinity (no difference at all, say) and NaN become null."""
    return float(value) if math.isfinite(value) else None

"""The result of an evaluation goes into the package's report: report.json, report.html and the manifest, in one step.

The package is written anew beside the old one and takes its place, as in a compile: at every instant it is whole.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Final

from qatc.compiler.diagnostics import fail, printable
from qatc.compiler.package import MANIFEST, PackageWriter, check_destination, dump_json
from qatc.compiler.package.read import SIGNATURE, read_json, regular_file
from qatc.compiler.report.evaluation import evaluation_document, with_evaluations
from qatc.compiler.result import Evaluation

_CHUNK: Final = 1 << 22
_JSON: Final = "report.json"
_HTML: Final = "report.html"
_AGAIN: Final = "compile the model again with this version of qatc"


def check_package(folder: Path) -> None:
    """Refuse a package whose report cannot take an evaluation in: before the data are run, which may take hours.

    Raises:
        CompileError: QAT501 for a package that is signed or cannot be written.
    """
    if (folder / SIGNATURE).exists():
        hint = f"remove {SIGNATURE}, evaluate, and sign the package again"
        message = f"{printable(str(folder))} is signed: the signature would not hold for a changed report"
        raise fail("QAT501", message, hint=hint)
    check_destination(folder)


def embed(found: Evaluation) -> Evaluation:
    """Write an evaluation into the report of its package, where it takes the place of an older one on the same data.

    Raises:
        CompileError: QAT501 for a package that is signed or cannot be written, QAT502 for one without a report, or
            that changed since it was opened.
    """
    folder = found.package
    shown = printable(str(folder))
    check_package(folder)
    try:
        manifest: dict[str, Any] = read_json(folder, MANIFEST)
        files: dict[str, dict[str, Any]] = manifest.pop("files")
        report, page = _report(folder, found)
    except (OSError, ValueError) as error:
        message = f"{shown} has no report that an evaluation could be added to: {printable(str(error))}"
        raise fail("QAT502", message, hint=_AGAIN) from error
    with PackageWriter(folder) as writer:
        for name in files:
            if name not in (_JSON, _HTML):
                _copy(folder, name, writer)
        changed = [e.path for e in writer.files if files[e.path] != {"size": e.size, "sha256": e.sha256}]
        if changed:
            raise fail("QAT502", f"{printable(changed[0])} changed while it was copied", hint="evaluate again")
        writer.write(_JSON, report)
        writer.write(_HTML, page)
        finished = writer.finish(manifest)
    told = (*found.diagnostics, *finished.diagnostics)
    return dataclasses.replace(found, diagnostics=told, reported=True)


def _report(folder: Path, found: Evaluation) -> tuple[bytes, bytes]:
    """The new report.json and report.html."""
    report: dict[str, Any] = read_json(folder, _JSON)
    new = evaluation_document(found)
    kept = [each for each in report["evaluations"] if each["data"] != new["data"]]
    report["evaluations"] = [*kept, new]
    return dump_json(report), with_evaluations(regular_file(folder, _HTML).read_bytes(), report["evaluations"])


def _copy(folder: Path, name: str, writer: PackageWriter) -> None:
    try:
        with regular_file(folder, name).open("rb") as source, writer.open(name) as stream:
            while chunk := source.read(_CHUNK):
                stream.write(chunk)
    except (OSError, ValueError) as error:
        raise fail("QAT502", f"cannot read {printable(name)}: {printable(str(error))}", hint="copy it again") from error

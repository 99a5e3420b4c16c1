"""The result of an evaluation goes into the package's report: report.json, report.html and the manifest, in one step.

The package is written anew beside the old one and takes its place, as in a compile: at every instant it is whole.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

from qatc.compiler.damaged import reason
from qatc.compiler.diagnostics import fail, printable
from qatc.compiler.package import PackageWriter, check_destination, dump_json
from qatc.compiler.package.read import COMPILE_AGAIN, SIGNATURE, read_manifest, regular_file
from qatc.compiler.report.evaluation import evaluation_document, with_evaluations
from qatc.compiler.result import Evaluation

_CHUNK: Final = 1 << 22
_JSON: Final = "report.json"
_HTML: Final = "report.html"


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


def embed(found: Evaluation, opened: Mapping[str, Any]) -> Evaluation:
    """Write an evaluation into the report of its package, where it takes the place of an older one on the same data.

    `opened` is the manifest of the package that was evaluated.

    Raises:
        CompileError: QAT501 for a package that is signed or cannot be written, QAT502 for one without a report, or
            that changed since it was opened.
    """
    folder = found.package
    check_package(folder)
    with PackageWriter(folder) as writer:  # nobody else writes it from here on
        manifest = read_manifest(folder)
        if manifest is None or _without_report(manifest) != _without_report(opened):
            hint = "evaluate again"
            raise fail("QAT502", f"{printable(str(folder))} is another package than the one that was opened", hint=hint)
        files: dict[str, dict[str, Any]] = manifest.pop("files")
        report, page = _report(folder, files, found)
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


def _without_report(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest without what evaluations change."""
    files = manifest.get("files")
    entries = cast("dict[str, Any]", files) if isinstance(files, dict) else {}
    return {**manifest, "files": {name: entry for name, entry in entries.items() if name not in (_JSON, _HTML)}}


def _report(folder: Path, files: Mapping[str, Mapping[str, Any]], found: Evaluation) -> tuple[bytes, bytes]:
    """The new report.json and report.html."""
    try:
        report, page = (_held(folder, name, files) for name in (_JSON, _HTML))
        document: dict[str, Any] = json.loads(report)
        new = evaluation_document(found)
        document["evaluations"] = [*(each for each in document["evaluations"] if each["data"] != new["data"]), new]
        return dump_json(document), with_evaluations(page, document["evaluations"])
    except (OSError, ValueError) as error:
        message = f"{printable(str(folder))} has no report that an evaluation could be added to: {reason(error)}"
        raise fail("QAT502", message, hint=COMPILE_AGAIN) from error


def _held(folder: Path, name: str, files: Mapping[str, Mapping[str, Any]]) -> bytes:
    """A file of the package, sure to be what the manifest lists."""
    data = regular_file(folder, name).read_bytes()
    if files.get(name, {}).get("sha256") != hashlib.sha256(data).hexdigest():
        raise ValueError(f"{name} is not what the manifest lists")
    return data


def _copy(folder: Path, name: str, writer: PackageWriter) -> None:
    try:
        with regular_file(folder, name).open("rb") as source, writer.open(name) as stream:
            while chunk := source.read(_CHUNK):
                stream.write(chunk)
    except (OSError, ValueError) as error:
        raise fail("QAT502", f"cannot read {printable(name)}: {reason(error)}", hint="copy it again") from error

"""Models that do not come as ONNX: the dialect that reads such a file converts it before anything else is done."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qatc.compiler.damaged import looking
from qatc.compiler.diagnostics import Diagnostic, fail, printable
from qatc.compiler.frontend import Importer
from qatc.compiler.registry import frontends
from qatc.compiler.storage import scratch_folder


@dataclass(frozen=True)
class Imported:
    """An ONNX file, and what its conversion had to say; the user's own file where nothing was converted."""

    path: Path
    diagnostics: tuple[Diagnostic, ...] = ()


@contextmanager
def as_onnx(path: Path) -> Generator[Imported]:
    """The model at `path` as an ONNX file, which is gone with the context where it was converted.

    Raises:
        CompileError: QAT002 for a folder that no dialect reads, and whatever the dialect's importer raises.
    """
    importer = importer_of(path)
    if importer is None:
        yield Imported(path)
        return
    with scratch_folder() as scratch:
        converted = scratch / f"{path.absolute().name}.onnx"
        yield Imported(converted, importer.convert(path, converted))


def importer_of(path: Path) -> Importer | None:
    """Who converts `path`; None where it is read as ONNX (or cannot be read at all, which reading it then says)."""
    if path.suffix.lower() == ".onnx":
        return None
    with looking("QAT002", path, "check the path and its permissions"):
        return _importer_of(path) if path.exists() else None


def _importer_of(path: Path) -> Importer | None:
    registry = frontends()
    importers = [i for name in registry.names() if (i := registry.get(name).importer) is not None]
    found = next((i for i in importers if i.reads(path)), None)
    if found is None and path.is_dir():
        markers = " or ".join(sorted(i.marker for i in importers if i.marker))
        if (path / "manifest.json").is_file():
            hint = "is it a package? `qatc verify` and `qatc compare` read those"
        else:
            hint = f"give a model file, or a folder with {markers}"
        raise fail("QAT002", f"{printable(str(path))} is a folder and no model", hint=hint)
    return found

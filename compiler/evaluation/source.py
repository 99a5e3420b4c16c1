"""The model that a package was made of: found by name and hash, opened as the simulation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from qatc.compiler.compare.package import OpenPackage
from qatc.compiler.damaged import looking
from qatc.compiler.diagnostics import CompileError, Diagnostic, fail, printable
from qatc.compiler.driver.importing import importer_of
from qatc.compiler.evaluation.runs import SIMULATION, as_read
from qatc.compiler.package import source_file
from qatc.compiler.quant import Array
from qatc.compiler.simulation import Simulation

_STATED: Final = {"calibrate": "calibration data", "ranges": "a file of ranges", "quant_range": "--quant-range"}


def find_source(opened: OpenPackage, given: Path | None, absent: dict[str, str]) -> Path | None:
    """The file that was compiled: `given`, or the one of that name and content beside the package or right here.

    Where there is none, `absent` gets the reason under the simulation's name.

    Raises:
        CompileError: QAT008 where the file that was given is not the one that was compiled, QAT002 where it is missing.
    """
    entry: Mapping[str, Any] = opened.manifest["source"]
    name, sha256 = str(entry["file"]), str(entry["sha256"])
    if given is not None:
        found = source_file(given)
        if found.sha256 != sha256:
            message = (
                f"{printable(str(given))} is not the file that was compiled: its sha256 differs from the manifest's"
            )
            hint = f"the package was made of {printable(name)}; compile again if the model changed"
            raise fail("QAT008", message, hint=hint)
        return given
    if name in ("", "..") or Path(name).name != name:  # a manifest that somebody hostile wrote
        absent[SIMULATION] = "the manifest names no file"
        return None
    for folder in dict.fromkeys((opened.folder.resolve().parent, Path.cwd())):
        path = folder / name
        with looking("QAT002", path, "name it with --model"):
            alike = _is_model(path) if path.is_dir() else path.is_file() and path.stat().st_size == entry["size"]
        if alike and source_file(path).sha256 == sha256:
            return path
    absent[SIMULATION] = f"{printable(name)}, which was compiled, is not beside the package; name it with --model"
    return None


def _is_model(folder: Path) -> bool:
    """Whether a folder is one that is compiled, such as a SavedModel: others may hold whatever the machine has."""
    try:
        return importer_of(folder) is not None
    except CompileError:
        return False


def open_source(path: Path, opened: OpenPackage, sample: Mapping[str, Array] | None) -> tuple[Simulation, str]:
    """The simulation of the source, and a note where it does not hold all of the package's quantization.

    ONNX Runtime runs the file itself where it can; else qatc normalizes it first, as a compile does.

    Raises:
        CompileError: QAT403 where neither runs.
    """
    options: Mapping[str, Any] = opened.manifest["options"]
    added = [text for key, text in _STATED.items() if options.get(key)]
    note = ""
    if added:
        note = (
            f"the package took ranges from {' and '.join(added)}, which {printable(path.name)} does not hold: the"
            " simulation leaves those tensors unrounded"
        )
    if path.suffix.lower() == ".onnx":
        try:
            simulation = Simulation.of_file(path)
            if sample is not None:
                simulation.run(_real(opened, sample, simulation), simulation.outputs)
        except CompileError as refused:
            return _normalized(path, options, refused), note
        return simulation, note
    return _normalized(path, options, None), note


def _real(opened: OpenPackage, sample: Mapping[str, Array], simulation: Simulation) -> dict[str, Array]:
    """A sample of the package as the source model reads it."""
    tensors = opened.graph.tensors
    pairs = zip(simulation.inputs, sample.items(), strict=False)
    return {there: as_read(simulation, there, tensors[name].params, value) for there, (name, value) in pairs}


def _normalized(path: Path, options: Mapping[str, Any], refused: CompileError | None) -> Simulation:
    from qatc.compiler.driver.compile import simulate_model

    dialect = str(options.get("dialect", "auto"))
    shapes: Mapping[str, Any] = options.get("shapes", {})
    try:
        return simulate_model(path, dialect=dialect, shapes=shapes)
    except CompileError as error:
        told: list[Diagnostic] = [*(refused.diagnostics if refused else ()), *error.diagnostics]
        raise CompileError(told) from error

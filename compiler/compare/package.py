"""Opening a package for comparison: everything is hashed and checked before any of it is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qatc.compiler.arithmetic import Profile, get_profile
from qatc.compiler.diagnostics import CompileError, Severity, fail, printable
from qatc.compiler.integer import IntegerGraph
from qatc.compiler.package.integer_file import INTEGER_JSON
from qatc.compiler.package.read import COMPILE_AGAIN, read_json
from qatc.compiler.package.stored import TROUBLE, read_graph, read_samples
from qatc.compiler.quant import Array
from qatc.compiler.verify.package import verify_package


@dataclass(frozen=True)
class OpenPackage:
    """What a comparison needs: the integer graph, its tensors' names in the package's model, how the target rounds and
    lays out feature maps, the samples (by input of the graph), what the package's model answered to them (by output),
    and the manifest.
    """

    folder: Path
    graph: IntegerGraph
    names: Mapping[str, str]
    profile: Profile
    layout: str
    samples: Sequence[Mapping[str, Array]]
    answers: Sequence[Mapping[str, Array]]
    manifest: Mapping[str, Any]


def open_package(path: str | Path) -> OpenPackage:
    """Open a package whose files all match its manifest.

    Raises:
        CompileError: QAT502 where it is none, is damaged, or holds no integer graph.
    """
    folder = Path(path)
    found = verify_package(folder, samples=False)
    errors = [d for d in found.diagnostics if d.severity is Severity.ERROR]
    if errors:
        raise CompileError(errors)
    try:
        manifest: dict[str, Any] = read_json(folder, "manifest.json")
        graph = read_graph(folder, manifest)
        if graph is None:
            raise fail("QAT502", f"{printable(str(folder))} has no {INTEGER_JSON}", hint=COMPILE_AGAIN)
        samples = list(read_samples(folder, manifest))
        answers = list(read_samples(folder, manifest, "outputs"))
    except TROUBLE as error:
        message = f"{printable(str(folder))} holds what cannot be right: {printable(str(error))}"
        raise fail("QAT502", message, hint=COMPILE_AGAIN) from error
    profile = get_profile(manifest["arithmetic"])
    return OpenPackage(folder, graph.graph, graph.names, profile, graph.layout, samples, answers, manifest)

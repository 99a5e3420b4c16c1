"""Frontend: a recognizer of one exporter's dialect plus the rules that bring it to the canonical form.

The canonical form after `normalize`: no QuantizeLinear, DequantizeLinear or vendor node is left; every fake
quantization of a tensor is one `FakeQuant` node (x) -> y whose attribute "params" is a QuantParams
(`compiler/graph.py`), and every constant that the exporter stored as integers is a constant with `graph.params`. Layout
operators between Q and DQ stand behind the FakeQuant, with its parameters' axis moved.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from qatc.compiler.diagnostics import Diagnostic
from qatc.compiler.graph import QuantGraph
from qatc.compiler.quant import QuantParams


@dataclass(frozen=True)
class RangeOverride:
    """Ranges that the exporter lost, stated by the user: (qmin, qmax) for activations, weights, or tensors by name."""

    activations: tuple[int, int] | None = None
    weights: tuple[int, int] | None = None
    tensors: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])


@dataclass(frozen=True)
class FrontendOptions:
    """What a normalizer may be told: stated ranges, external parameters of tensors (ranges, encodings) by name.

    `producer` is what the file says that wrote it ("pytorch 2.13.0").
    """

    ranges: RangeOverride = field(default_factory=RangeOverride)
    external: dict[str, QuantParams] = field(default_factory=dict[str, QuantParams])
    producer: str = ""


@dataclass(frozen=True)
class Importer:
    """How files of another format become ONNX models, before anything else is done with them.

    The names of such files end with one of `suffixes`, in any letter case; a folder is one model where it holds a file
    `marker`. `convert(source, destination)` writes the ONNX file, may leave others beside it, and returns notes and
    warnings; it raises CompileError. `through` names what converts, for reports.
    """

    suffixes: tuple[str, ...]
    convert: Callable[[Path, Path], tuple[Diagnostic, ...]]
    through: str
    marker: str = ""

    def reads(self, path: Path) -> bool:
        """Whether `path` is such a file or folder."""
        if path.is_dir():
            return bool(self.marker) and (path / self.marker).is_file()
        return path.name.lower().endswith(self.suffixes)


@dataclass(frozen=True)
class Frontend:
    """A dialect.

    `recognize` looks at a graph as loaded and returns what it saw ("26 QuantizeLinear, producer pytorch 2.13"), or None
    where the dialect has nothing there; `confidence` orders dialects that recognize the same file (higher wins).
    `normalize` rewrites the graph in place to the canonical form; what is wrong with the file goes to
    `graph.diagnostics`, all of it, and is raised by the caller. A dialect whose parameters lie in a file beside the
    model (`--ranges FILE`) has `read`: it returns `FrontendOptions.external` for a graph as loaded, and its `recognize`
    has nothing to see. One whose models come in files of another format as well has an `importer`. `plain` ones need
    nothing of their own in the file: standard Q/DQ are theirs where the user says so.
    """

    name: str
    description: str
    recognize: Callable[[QuantGraph, str], str | None]
    normalize: Callable[[QuantGraph, FrontendOptions], None]
    confidence: int = 0
    plain: bool = False
    exporters: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    read: Callable[[Path, QuantGraph], dict[str, QuantParams]] | None = None
    importer: Importer | None = None

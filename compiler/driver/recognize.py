"""Which dialect a file speaks, seen in its graph and never in its name; or which file beside it holds its ranges."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Final

from qatc.compiler.diagnostics import CompileError, Diagnostic, Severity, counted, fail, few, printable
from qatc.compiler.driver.options import CompileOptions
from qatc.compiler.graph import QuantGraph
from qatc.compiler.model_io import Source
from qatc.compiler.passes.bodies import quantized_bodies
from qatc.compiler.passes.known import unknown
from qatc.compiler.passes.lowered import refuse_products_of_integers
from qatc.compiler.quant import QuantParams
from qatc.compiler.registry import frontends

_EXPORT: Final = (
    "export the model that was trained with fake quantization, not one converted back to float; "
    "where ranges or encodings lie in a file of their own, give it with --ranges"
)
_GAPS: Final = "--calibrate fills what a trained quantization leaves out, and does not quantize a float model: "
_STANDARD: Final = (
    "if they are its fake quantization, export with QuantizeLinear and DequantizeLinear in their place, "
    "or add the dialect as a plug-in (entry point qatc.frontends)"
)
_WRITTEN_OUT: Final = "qatc explain QAT110 tells how to have a body written out, or compiled as a model of its own"
_SHOWN: Final = 4


@dataclasses.dataclass(frozen=True)
class Recognition:
    """A dialect, how it was seen, the parameters that lie beside the model, and what the user should know of it."""

    dialect: str
    evidence: str
    external: dict[str, QuantParams] = dataclasses.field(default_factory=dict[str, QuantParams])
    note: Diagnostic | None = None


def recognize(path: Path, graph: QuantGraph, source: Source, options: CompileOptions) -> Recognition:
    """The dialect of a graph as loaded.

    Raises:
        CompileError: QAT101 where no dialect sees anything of its own, QAT102 for an unknown one, and what is wrong
            with a file of ranges; QAT104 and QAT205 where the model multiplies integers in a way of its own.
    """
    if options.ranges is not None:
        return _beside(graph, options.ranges, options.dialect.lower())
    wanted = options.dialect.lower()
    if wanted != "auto":
        evidence = frontends().get(wanted).recognize(graph, source.producer)
        if evidence is not None:
            return Recognition(wanted, evidence)
    for name, evidence in _all(graph, source)[:1]:
        if wanted != "auto":
            if all(frontends().get(each).plain for each in (wanted, name)):
                return Recognition(wanted, evidence)
            message = f"nothing of the dialect {wanted} is in the file; it is read as {name}: {evidence}"
            return Recognition(name, evidence, note=_said(message, f"use -m {name}, or leave -m out"))
        said = _said("the model is quantization-aware trained; it is read as such", "say so with -a")
        return Recognition(name, evidence, note=None if options.qat else said)
    message = f"{printable(path.name)} has no fake quantization that any dialect knows"
    hint = _EXPORT if options.calibrate is None else _GAPS + _EXPORT
    others, inner = _unknown(graph), quantized_bodies(graph)
    refuse_products_of_integers(graph)
    if inner:
        ops = ", ".join(sorted({node.op for node, _ in inner}))
        message, hint = f"{message}, but in the bodies of {printable(ops)}, which are not compiled", _WRITTEN_OUT
    elif others:
        message, hint = f"{message}, but operators that ONNX does not define: {others}", _STANDARD
    elif counts := {op: number for op, number in source.ops.items() if op != "Constant"}:
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        message += f"; its operators are {few([f'{number:,} {op}' for op, number in ordered], _SHOWN)}"
    raise fail("QAT101", message, hint=hint)


def _unknown(graph: QuantGraph) -> str:
    """The first few operators that nobody defines, as "14 Quant (vendor.domain), 2 Pool"."""
    found = Counter(printable(f"{n.op} ({n.domain})" if n.domain else n.op) for n in unknown(graph))
    shown = [f"{count} {name}" for name, count in found.most_common(_SHOWN)]
    return ", ".join([*shown, "..."] if len(found) > _SHOWN else shown)


def _said(message: str, hint: str) -> Diagnostic:
    return Diagnostic("QAT105", message, Severity.NOTE, hint=hint)


def _all(graph: QuantGraph, source: Source) -> list[tuple[str, str]]:
    """Every dialect that sees something of its own, surest first."""
    registry = frontends()
    seen: list[tuple[int, str, str]] = []
    for name in registry.names():
        frontend = registry.get(name)
        evidence = frontend.recognize(graph, source.producer)
        if evidence is not None:
            seen.append((-frontend.confidence, name, evidence))
    return [(name, evidence) for _, name, evidence in sorted(seen)]


def _beside(graph: QuantGraph, path: Path, wanted: str) -> Recognition:
    """The dialect of a file of ranges or encodings beside the model, and what it says."""
    registry = frontends()
    names = registry.names() if wanted == "auto" else [registry.get(wanted).name]
    refused: list[tuple[int, tuple[Diagnostic, ...]]] = []
    for name in names:
        read = registry.get(name).read
        if read is None:
            continue
        try:
            external = read(path, graph)
        except CompileError as error:
            refused.append((registry.get(name).confidence, tuple(error.diagnostics)))
            continue
        return Recognition(
            name, f"{counted(len(external), 'tensor')} with parameters in {printable(path.name)}", external
        )
    hint = "leave -m out, or use -m ranges or -m aimet"
    if refused:  # what the reader of most formats says; the others say only that the file is none of theirs
        raise CompileError(max(refused, key=lambda item: item[0])[1])
    raise CompileError([Diagnostic("QAT102", f"the dialect {wanted} reads no file of ranges", hint=hint)])

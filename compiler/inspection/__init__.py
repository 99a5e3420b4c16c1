"""What a compile would do with a model, per operator, for `qatc inspect`."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from qatc.compiler.coverage import coverage, macs_of
from qatc.compiler.diagnostics import Diagnostic
from qatc.compiler.graph import QuantGraph
from qatc.compiler.inspection.advice import advice
from qatc.compiler.inspection.bounds import clamps, overflows, sum_bounds, weight_facts
from qatc.compiler.inspection.disagreement import disagreements
from qatc.compiler.inspection.memory import peak_bytes, tensor_bytes
from qatc.compiler.inspection.view import view
from qatc.compiler.integer import Conv, Dequantize, Float, IntegerGraph, Lookup, MatMul, Move, Op, Quantize
from qatc.compiler.lowering.missing import missing_ranges
from qatc.compiler.model_io import Source
from qatc.compiler.ports import port_of
from qatc.compiler.result import InspectedOp, Inspection, MissingRange

__all__ = ["inspection", "overflows", "view"]


def inspection(
    path: Path, source: Source, graph: QuantGraph, integer: IntegerGraph, *, dialect: str, evidence: str, target: str,
    diagnostics: Sequence[Diagnostic],
) -> Inspection:  # fmt: skip
    """The findings of a compile that stopped before emission."""
    found = Inspection(
        source=path,
        source_bytes=source.size,
        dialect=dialect,
        evidence=evidence,
        target=target,
        inputs=tuple(port_of(graph, t) for t in graph.inputs),
        outputs=tuple(port_of(graph, t) for t in graph.outputs),
        operators=tuple(_operators(integer)),
        coverage=coverage(integer),
        missing=tuple(_missing(graph)),
        disagreeing=disagreements(graph, integer),
        peak_bytes=peak_bytes(integer),
        diagnostics=tuple(diagnostics),
        dump=integer.dump(),
        view=view(integer),
    )
    return dataclasses.replace(found, advice=advice(found))


def _missing(graph: QuantGraph) -> Iterator[MissingRange]:
    for tensor in missing_ranges(graph):
        readers = ", ".join(dict.fromkeys(n.op for n in graph.consumers(tensor)))
        maker = graph.producer(tensor)
        yield MissingRange(tensor.name, f"{readers} could run in integers", "" if maker is None else maker.op)


def _operators(graph: IntegerGraph) -> Iterator[InspectedOp]:
    ranges = clamps(graph)
    products = Counter(op.source for op in graph.ops if isinstance(op, Conv | MatMul) and op.source)
    for op in graph.ops:
        found = InspectedOp(
            op.source or op.name,
            op.title,
            "integer",
            activation_bytes=sum(tensor_bytes(graph, name) for name in op.outputs if name),
        )
        if isinstance(op, Move | Quantize | Dequantize):
            yield dataclasses.replace(found, kind="moved")
            continue
        parameters = sum(graph.constants[n].size for n in op.inputs if n in graph.constants)
        found = dataclasses.replace(found, macs=macs_of(graph, op), parameters=parameters)
        if isinstance(op, Float):
            kind = "float" if op.reason else "moved"
            found = dataclasses.replace(found, kind=kind, reason=op.reason, tensor=op.tensor)
        else:
            found = dataclasses.replace(found, note=_note(graph, op))
        if isinstance(op, Conv | MatMul):
            facts = weight_facts(graph, op)
            if facts is not None and products[op.source] > 1:  # half a weight may be zero where the whole is not
                facts = dataclasses.replace(facts, weak=0, dead=0)
            found = dataclasses.replace(found, weights=facts, sums=sum_bounds(graph, op, ranges))
        yield found


def _note(graph: IntegerGraph, op: Op) -> str:
    if isinstance(op, Conv | MatMul):
        weight = graph.tensors[op.inputs[1]].params
        spread = "per channel" if weight is not None and weight.is_per_channel else "per tensor"
        raw = ", raw int32 result" if graph.tensors[op.output].dtype == "int32" else ""
        return f"{graph.tensors[op.inputs[0]].dtype} x {graph.tensors[op.inputs[1]].dtype}, {spread}{raw}"
    return op.function if isinstance(op, Lookup) else ""

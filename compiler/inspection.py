"""What a compile would do with a model, per operator, for `qatc inspect`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from qatc.compiler.coverage import coverage, macs_of
from qatc.compiler.diagnostics import Diagnostic
from qatc.compiler.graph import QuantGraph
from qatc.compiler.integer import Conv, Dequantize, Elementwise, Float, IntegerGraph, Lookup, MatMul, Move, Op, Quantize
from qatc.compiler.model_io import Source
from qatc.compiler.passes.missing import missing_ranges
from qatc.compiler.ports import port_of
from qatc.compiler.result import InspectedOp, Inspection, MissingRange


def inspection(
    path: Path, source: Source, graph: QuantGraph, integer: IntegerGraph, *, dialect: str, evidence: str, target: str,
    diagnostics: Sequence[Diagnostic],
) -> Inspection:  # fmt: skip
    """The findings of a compile that stopped before emission."""
    missing = tuple(
        MissingRange(t.name, f"{', '.join(dict.fromkeys(n.op for n in graph.consumers(t)))} could run in integers")
        for t in missing_ranges(graph)
    )
    return Inspection(
        source=path,
        source_bytes=source.size,
        dialect=dialect,
        evidence=evidence,
        target=target,
        inputs=tuple(port_of(graph, t) for t in graph.inputs),
        outputs=tuple(port_of(graph, t) for t in graph.outputs),
        operators=tuple(_operators(integer)),
        coverage=coverage(integer),
        missing=missing,
        diagnostics=tuple(diagnostics),
        dump=integer.dump(),
    )


def _operators(graph: IntegerGraph) -> Iterator[InspectedOp]:
    for op in graph.ops:
        parameters = sum(graph.constants[n].size for n in op.inputs if n in graph.constants)
        node, macs = op.source or op.name, macs_of(graph, op)
        if isinstance(op, Float):
            kind = "float" if op.reason else "moved"
            yield InspectedOp(node, op.op_type, kind, op.reason, macs, parameters, tensor=op.tensor)
        elif isinstance(op, Move | Quantize | Dequantize):
            yield InspectedOp(node, op.op_type if isinstance(op, Move) else op.kind, "moved", "", 0, 0)
        else:
            yield InspectedOp(node, op.kind, "integer", "", macs, parameters, _note(graph, op))


def _note(graph: IntegerGraph, op: Op) -> str:
    if isinstance(op, Conv | MatMul):
        weight = graph.tensors[op.inputs[1]].params
        spread = "per channel" if weight is not None and weight.is_per_channel else "per tensor"
        raw = ", raw int32 result" if graph.tensors[op.output].dtype == "int32" else ""
        return f"{graph.tensors[op.inputs[0]].dtype} x {graph.tensors[op.inputs[1]].dtype}, {spread}{raw}"
    if isinstance(op, Lookup):
        return op.function
    return op.op if isinstance(op, Elementwise) else ""

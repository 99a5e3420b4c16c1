"""Tensors that training put on several grids: rounded twice, or read both rounded and unrounded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from qatc.compiler.graph import REQUANTIZE, QuantGraph
from qatc.compiler.integer import CHOOSERS, Concat, IntegerGraph, Move, Op, Pool, Rescale
from qatc.compiler.quant import QuantParams
from qatc.compiler.result import Disagreement


def disagreements(graph: QuantGraph, integer: IntegerGraph) -> tuple[Disagreement, ...]:
    """What costs an extra rounding, or accumulators that must be kept, because observers were not shared."""
    return (*_unrounded(graph), *_rescaled(integer))


def _unrounded(graph: QuantGraph) -> Iterator[Disagreement]:
    for node in graph.nodes:
        if node.op != REQUANTIZE:
            continue
        x, own = node.inputs[0], graph.quant(node.outputs[0])
        if own is None or x.name in graph.params:
            continue  # two grids: the integer graph has a Rescale there
        readers = ", ".join(dict.fromkeys(n.op for n in graph.consumers(x) if n is not node)) or "the graph's output"
        yield Disagreement(x.name, readers, f"is rounded, but {readers} reads it unrounded", (own,))


def _rescaled(graph: IntegerGraph) -> Iterator[Disagreement]:
    makers = graph.producers()
    ports = {*graph.inputs, *graph.outputs}  # another type outside is no second rounding
    for op in graph.ops:
        if isinstance(op, Rescale) and not ports & {*op.inputs, *op.outputs}:
            grids = (graph.params(op.inputs[0]), graph.params(op.output))
            if not grids[0].same_grid(grids[1]):
                name, moved = _origin(graph, makers, op.inputs[0])
                after = f" after {moved}" if moved else ""
                yield Disagreement(name, "Rescale", f"is rounded onto a second grid{after}", grids)
        elif isinstance(op, Concat):
            own = graph.params(op.output)
            others = [graph.params(name) for name in op.inputs]
            apart = [params for params in others if not params.same_grid(own)]
            if apart:
                reason = f"joins {len(op.inputs)} tensors, of which {len(apart)} lie on other grids"
                yield Disagreement(op.source or op.name, "Concat", reason, (own, *_distinct(apart)))


def _distinct(params: list[QuantParams]) -> list[QuantParams]:
    return list(dict.fromkeys(params))


def _origin(graph: IntegerGraph, makers: Mapping[str, Op], name: str) -> tuple[str, str]:
    """The source file's name of a tensor, looked for above what only moves it, and what moved it last."""
    moved = ""
    while graph.tensors[name].source is None and isinstance(move := makers.get(name), Move | Pool):
        if (isinstance(move, Pool) and move.mode != "max") or (isinstance(move, Move) and move.op_type in CHOOSERS):
            break
        name, moved = move.inputs[0], moved or (move.op_type if isinstance(move, Move) else "MaxPool")
    return graph.tensors[name].source or name, moved

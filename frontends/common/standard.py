"""The road of files whose fake quantization is standard Q/DQ, or written as arithmetic: PyTorch's and TensorFlow's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from qatc.compiler.frontend import FrontendOptions
from qatc.compiler.graph import QuantGraph
from qatc.compiler.passes.modernize import modernize
from qatc.frontends.common import arithmetic, clamps, lookalikes
from qatc.frontends.common.grid import recover_weights
from qatc.frontends.common.integers import is_dq, is_q
from qatc.frontends.common.lift import lift
from qatc.frontends.common.qdq import apply_ranges, fold, settle
from qatc.frontends.common.signs import quantize_signs, reaches_product


def evidence(graph: QuantGraph) -> str:
    """What of standard Q/DQ and of quantizers in arithmetic is in a graph; "" where there is nothing."""
    counts: Counter[str] = Counter()
    for node in graph.nodes:
        if is_q(node) or is_dq(node):
            counts[node.op] += 1
        elif lookalikes.looks_like_quantizer(node):
            counts["fake quantization written as arithmetic"] += 1
        elif lookalikes.holds_weight(node):
            counts["Cast of integer weights"] += 1
        elif lookalikes.multiplies_whole_numbers(node):
            counts["product of whole weights"] += 1
        elif reaches_product(graph, node):
            counts[f"{node.op} that a product reads"] += 1
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items(), reverse=True))


def normalise(
    graph: QuantGraph,
    options: FrontendOptions,
    *,
    quantize_weights: bool,
    nodes: Callable[[QuantGraph], None] | None = None,
) -> None:
    """Modern operators, folded constants, quantizers in arithmetic, Q/DQ, weights on a grid, signs, stated ranges.

    `quantize_weights`: also those that lie on no grid. `nodes` turns a dialect's own nodes into FakeQuant, once
    constants are folded.
    """
    modernize(graph)
    clamps.rewrite(graph)  # before constants are folded: it shows which roundings head quantizers
    settle(graph, keep=lookalikes.heads_quantizer)
    if nodes is not None:
        nodes(graph)
    arithmetic.rewrite(graph)
    fold(graph)  # what looked like a quantizer and was none: a scale that is rounded itself, say
    arithmetic.rewrite(graph)
    lookalikes.report_others(graph)
    lift(graph)
    recover_weights(graph, quantize_others=quantize_weights)
    quantize_signs(graph)
    apply_ranges(graph, options)

"""Fake quantization in standard forms, which any file may hold: Q/DQ, arithmetic, weights on a grid, signs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection

from qatc.compiler.frontend import FrontendOptions
from qatc.compiler.graph import FAKE_QUANT, QuantGraph, Tensor, is_constant
from qatc.compiler.passes.modernize import drop_inert_casts, modernize
from qatc.compiler.passes.movement import is_movement
from qatc.compiler.passes.products import PRODUCTS
from qatc.frontends.common import arithmetic, clamps, lookalikes
from qatc.frontends.common.grid import recover_weights
from qatc.frontends.common.integers import is_dq, is_q
from qatc.frontends.common.lift import lift
from qatc.frontends.common.qdq import apply_ranges, fold, settle
from qatc.frontends.common.signs import quantize_signs, reaches_product
from qatc.frontends.common.vendor import grid_behind


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


def normalize(
    graph: QuantGraph,
    options: FrontendOptions,
    *,
    quantize_weights: bool,
    nodes: Callable[[QuantGraph], object] | None = None,
) -> None:
    """The road of files whose fake quantization is standard Q/DQ, or written as arithmetic: PyTorch's, TensorFlow's.

    Modern operators, folded constants, quantizers in arithmetic; then `finish`. `nodes` turns a dialect's own nodes
    into FakeQuant, once constants are folded.
    """
    modernize(graph)
    clamps.rewrite(graph)  # before constants are folded: it shows which roundings head quantizers
    settle(graph, keep=lookalikes.heads_quantizer)
    clamps.rewrite(graph)  # those between numbers that constants come to
    if nodes is not None:
        nodes(graph)
    changed = arithmetic.rewrite(graph)
    folded = fold(graph)  # what looked like a quantizer and was none: a scale that is rounded itself, say
    finish(graph, options, quantize_weights=quantize_weights, is_rewritten=not (changed or folded))


def finish(
    graph: QuantGraph,
    options: FrontendOptions,
    domains: Collection[str] = (),
    *,
    quantize_weights: bool | None = None,
    is_rewritten: bool = False,
) -> None:
    """What every dialect ends with: clamps and quantizers in arithmetic, Q/DQ, weights on a grid, signs, stated ranges.

    `quantize_weights`: also those that lie on no grid, with a warning. None: where no weight at all is quantized
    although their data are, which says that the exporter lost the weights' quantizers. `is_rewritten`: the arithmetic
    was looked through already, and nothing has changed since.
    """
    used = {n.domain for n in graph.nodes if n.domain}
    graph.domains = {name: version for name, version in graph.domains.items() if name in used or name not in domains}
    if drop_inert_casts(graph) or not is_rewritten:
        clamps.rewrite(graph)
        arithmetic.rewrite(graph)
    lookalikes.report_others(graph)
    lift(graph)
    if quantize_weights is None:
        operands = [t for n in graph.of(*PRODUCTS) for t in n.inputs[:2]]
        quantize_weights = not any(_is_quantized_weight(graph, t) for t in operands)
    recover_weights(graph, quantize_others=quantize_weights)
    quantize_signs(graph)
    apply_ranges(graph, options)


def _is_quantized_weight(graph: QuantGraph, tensor: Tensor) -> bool:
    """Whether a tensor lies on a grid, and is a constant or one that is only moved and rounded."""
    if grid_behind(graph, tensor) is None:
        return False
    while (maker := graph.producer(tensor)) is not None and (maker.op == FAKE_QUANT or is_movement(maker)):
        tensor = maker.inputs[0]
    return is_constant(tensor)

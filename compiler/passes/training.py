"""What a model computes that was exported in training mode: numbers that are random, or that depend on the batch."""

from __future__ import annotations

from typing import Final

import numpy as np

from qatc.compiler.graph import Node, QuantGraph, value_of
from qatc.compiler.model.links import is_op, label_of

_RANDOM: Final = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
_EVALUATION: Final = "call model.eval() before the model is traced, prepared or exported"
_SAMPLED: Final = f"{_EVALUATION}; where it samples on purpose, make the random numbers an input"


def trains(node: Node) -> bool:
    """Whether a BatchNormalization normalizes with the statistics of its input; before opset 14 its outputs say so."""
    if not is_op(node, "BatchNormalization"):
        return False
    return bool(node.attr("training_mode", 0)) or any(t.name for t in node.outputs[1:])


def drops(node: Node) -> bool | None:
    """Whether a Dropout sets elements to zero; None where that is decided at run time."""
    ratio, mode = _number(node, 1, 0.5), _number(node, 2, 0.0)
    if ratio == 0 or mode == 0:
        return False
    return None if ratio is None or mode is None else True


def _number(node: Node, index: int, default: float) -> float | None:
    """A scalar input, None where it is computed."""
    tensor = node.optional(index)
    if tensor is None:
        return default
    value = value_of(tensor)
    return None if value is None else float(np.max(value, initial=0))


def report_training(graph: QuantGraph, *, verified: bool) -> None:
    """Record QAT111 once for every operator that is random or depends on the batch.

    Random results are errors where the package is to be `verified`: nothing that it is compared with is the same twice.
    """
    found: dict[str, list[Node]] = {}
    for node in graph.of("BatchNormalization", "Dropout", *_RANDOM):
        if node.op in _RANDOM or trains(node) or (node.op == "Dropout" and drops(node)):
            found.setdefault(node.op, []).append(node)
    for op, nodes in found.items():
        message = {
            "BatchNormalization": "BatchNormalization in training mode normalizes with the statistics of its input",
            "Dropout": "Dropout in training mode is random",
        }.get(op, f"{op} is random")
        more = f", here and at {len(nodes) - 1} more" if len(nodes) > 1 else ""
        record = graph.diagnostics.error if verified and op != "BatchNormalization" else graph.diagnostics.warning
        hint = _SAMPLED if op in _RANDOM else _EVALUATION
        record("QAT111", message + more, node=label_of(nodes[0]), tensor=nodes[0].outputs[0].name, hint=hint)

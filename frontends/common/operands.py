"""The operands of a node that states a quantization: its numbers, or an error at the node that says what is wrong."""

from __future__ import annotations

import math
from typing import Final, Literal

import numpy as np

from qatc.compiler.diagnostics import printable
from qatc.compiler.graph import Node, QuantGraph, Tensor, value_of
from qatc.compiler.model.links import label_of
from qatc.compiler.quant import Array, number_of

_NO_NUMBERS: Final = "cOSU"  # NumPy's kinds of complex numbers, objects and text


def no_numbers(value: Array) -> str | None:
    """What a constant holds that no integer stands for, None where there is nothing: a Cast would make any of it."""
    if value.dtype.kind in _NO_NUMBERS:
        return f"is of type {value.dtype}"
    return "holds NaN" if value.dtype.kind == "f" and bool(np.isnan(value).any()) else None


def data_name(node: Node) -> str | None:
    """The name of the tensor that a node quantizes, None where the file has none."""
    return node.inputs[0].name or None if node.inputs else None


def refuse(graph: QuantGraph, node: Node, code: str, message: str, hint: str | None = None) -> Literal[False]:
    """Record an error at a node and the tensor that it quantizes; False, as of a rule that rewrites nothing."""
    graph.diagnostics.error(code, message, node=label_of(node), tensor=data_name(node), hint=hint)
    return False


def constant_input(graph: QuantGraph, node: Node, index: int, what: str) -> Array | None:
    """The constant value of an input, or None with a finding: QAT205 (computed at run time) or QAT104 (no numbers)."""
    tensor = node.optional(index)
    if tensor is None:
        refuse(graph, node, "QAT104", f"{node.op} has no {what}")
        return None
    value = value_of(tensor)
    if value is not None and value.dtype.kind in _NO_NUMBERS:
        refuse(graph, node, "QAT104", f"the {what} of this {node.op} {no_numbers(value)}")
        return None
    if value is None:
        hint = "export the model in evaluation mode with constant folding; dynamic quantization has no fixed grid"
        if graph.producer(tensor) is None:
            hint = "export the model with its parameters (export_params=True); dynamic quantization has no fixed grid"
        graph.diagnostics.error(
            "QAT205",
            f"the {what} of this {node.op} is computed at run time{_maker(graph, tensor)}",
            node=label_of(node),
            tensor=tensor.name,
            hint=hint,
        )
    return value


def _maker(graph: QuantGraph, tensor: Tensor) -> str:
    maker = graph.producer(tensor)
    return f" by {maker.op} {printable(label_of(maker))}" if maker is not None else " (a graph input)"


def number(graph: QuantGraph, node: Node, name: str, index: int) -> float | None:
    """A finite scalar written as attribute `name` or as input `index`; QAT104 where it is neither."""
    written = node.attr(name)
    given = value_of(node.optional(index))
    found = float(written) if isinstance(written, (int, float)) else number_of(given)
    if found is None or not math.isfinite(found):
        refuse(graph, node, "QAT104", f"{node.op} has no constant scalar {name}")
        return None
    return found

"""Integers that arithmetic rounds: a Cast makes them, a product of integers reads them, no node states their grid.

    x -> Abs -> ReduceMax -> Div(127, .) -> s     x -> Mul(s) -> Round -> Clip -> Cast(int8) -> MatMulInteger

Keras writes so what it quantizes (`model.quantize("int8")`). The scale is that of the data at hand then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from qatc.compiler.graph import Node, QuantGraph, Tensor
from qatc.compiler.model.links import label_of
from qatc.compiler.passes.movement import is_movement
from qatc.frontends.common.operands import data_name

STATIC: Final = "quantize statically, with calibration data"
_NEAR: Final = 200  # operators that are looked at for where a scale comes from
_REDUCTIONS: Final = frozenset({"ReduceMax", "ReduceMin", "GlobalMaxPool"})


def refuse_casts(graph: QuantGraph, node: Node, is_known: Callable[[Tensor], bool]) -> bool:
    """Record that a product reads integers which a Cast made, if it does; `is_known`: whose grid is stated.

    QAT205 where their scale depends on the data, QAT104 where it does not.
    """
    for tensor in node.inputs[:2]:
        maker = graph.producer(tensor)
        while maker is not None and is_movement(maker) and not is_known(tensor):
            tensor = maker.inputs[0]
            maker = graph.producer(tensor)
        if maker is None or maker.op != "Cast" or is_known(tensor):
            continue
        found = extreme_behind(graph, maker)
        code, how, hint = ("QAT104", "by arithmetic, and no node states their grid", "write it as QuantizeLinear")
        if found is not None:
            code, how, hint = ("QAT205", f"with a scale found at run time ({found.op} of the data)", STATIC)
        message = f"the integers of this {node.op} are rounded {how}"
        graph.diagnostics.error(code, message, node=label_of(node), tensor=data_name(maker), hint=hint)
        return True
    return False


def extreme_behind(graph: QuantGraph, node: Node) -> Node | None:
    """The nearest reduction to an extreme, this node or one that it depends on: so scales are found at run time."""
    waiting, seen = [node], {id(node)}
    for current in waiting:
        if current.op in _REDUCTIONS:
            return current
        for maker in (graph.producer(tensor) for tensor in current.inputs):
            if maker is not None and id(maker) not in seen and len(waiting) < _NEAR:
                seen.add(id(maker))
                waiting.append(maker)
    return None

"""Leaves: what a chain of element-wise operators is a function of.

x<P> -> Sigmoid -> s, x * s -> y        the leaf of y is x: y is a table of it, on as many grids as it is rounded onto
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

from qatc.compiler.graph import Node, QuantGraph, Tensor, value_of
from qatc.compiler.model.links import computed
from qatc.compiler.reference.functions import is_elementwise

LONGEST_CHAIN: Final = 64  # operators that are looked through for the one tensor they depend on


def leaves_of(graph: QuantGraph, operands: Iterable[Tensor]) -> list[Tensor]:
    """What the operands of an element-wise node are functions of, at most two tensors: of one, the node is a table."""
    leaves: dict[int, Tensor] = {}
    waiting, seen = deque(operands), set[int]()
    while waiting and len(leaves) < 2 and len(seen) < LONGEST_CHAIN:
        tensor = waiting.popleft()
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        maker = graph.producer(tensor)
        if tensor.name in graph.params or maker is None or not is_elementwise(maker) or has_vector(maker):
            leaves[id(tensor)] = tensor
        else:
            waiting.extend(computed(maker))
    return list(leaves.values())


def has_vector(node: Node) -> bool:
    """Whether a constant operand differs from element to element."""
    return any((v := value_of(t)) is not None and v.size > 1 for t in node.inputs)

"""Sums of tensors: one form of them, and what is added up where nobody rounds in between.

Sum(x, y, z)            Add(Add(x, y), z): the order that runtimes add in
Add(Add(x, y), z)       x, y and z are the addends, where the partial sum has no grid and no other reader
"""

from __future__ import annotations

from qatc.compiler.graph import Node, QuantGraph, Tensor
from qatc.compiler.model.links import is_op


def sum_of_pairs(graph: QuantGraph, node: Node) -> bool:
    """A Sum adds one operand after the other, as Adds do; that of one does nothing."""
    so_far, *terms = node.inputs
    for term in terms[:-1]:
        partial = graph.variable(f"{node.outputs[0].name}_partial")
        partial.dtype = node.outputs[0].dtype
        graph.insert("Add", [so_far, term], [partial])
        so_far = partial
    node.op, node.inputs = ("Add", [so_far, terms[-1]]) if terms else ("Identity", [so_far])
    return True


def addends(graph: QuantGraph, node: Node) -> list[Tensor]:
    """What an Add adds up, in order; of another node, what it reads."""
    if not is_op(node, "Add"):
        return list(node.inputs)
    found: list[Tensor] = []
    waiting = list(reversed(node.inputs))
    while waiting:
        tensor = waiting.pop()
        maker = graph.producer(tensor)
        if is_op(maker, "Add") and tensor.name not in graph.params and graph.only_consumer(tensor) is not None:
            waiting += reversed(maker.inputs)
        else:
            found.append(tensor)
    return found

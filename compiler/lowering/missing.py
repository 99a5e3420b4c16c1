"""Which tensors lack a range that the rest of the model needs to run in integers, and filling them.

    x -> Conv(W<int8>) -> y<P>       x is missing: the product cannot be integer
    a<P>, b -> Add -> Relu -> y<Q>   b is missing: the sum cannot be integer

Only tensors that block an integer operator are listed: not what feeds a float island, not what fuses into its reader.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping

from qatc.compiler.graph import Constant, Node, QuantGraph, Tensor, is_constant, value_of
from qatc.compiler.lowering.normalization import KINDS
from qatc.compiler.lowering.resizing import interpolates
from qatc.compiler.lowering.state import is_float
from qatc.compiler.lowering.unrolled import unrolled
from qatc.compiler.model.links import computed, is_op
from qatc.compiler.passes.leaves import LONGEST_CHAIN, has_vector, leaves_of
from qatc.compiler.passes.movement import SIGN_KEEPERS, is_movement, joined, joins
from qatc.compiler.passes.products import SUMS, is_product, is_sum
from qatc.compiler.passes.propagate import clamp_bounds, propagate
from qatc.compiler.passes.sums import addends
from qatc.compiler.quant import QuantParams
from qatc.compiler.reference.functions import SIGNS, is_elementwise

_INTEGER = frozenset({"Add", "Sub", "Mul", "Concat", "Where", "BatchNormalization", *SUMS}) - {"ReduceL1"}
_MASKED = -100.0  # Softmax makes nothing of it: exp(-100) added to one is one in float32


def missing_ranges(graph: QuantGraph, operators: Collection[str] = ()) -> list[Tensor]:
    """The float tensors without parameters that keep operators from running in integers, in topological order.

    Args:
        graph: a stripped and folded graph.
        operators: the integer operators that are wanted beside those that every target has ("Softmax", "LayerNorm").
    """
    integer = _INTEGER | {node for node, kind in KINDS.items() if kind in operators}
    found: dict[int, Tensor] = {}
    waiting: deque[Tensor] = deque()

    def need(tensor: Tensor) -> None:
        known = is_constant(tensor) or tensor.name in graph.params or id(tensor) in found
        if tensor.name and is_float(tensor) and not known:
            found[id(tensor)] = tensor
            waiting.append(tensor)

    def need_operands(node: Node) -> None:
        operands = node.inputs[:2] if is_product(node) else []
        plain = any(is_constant(t) and t.name not in graph.params for t in operands)  # then it stays float
        if not plain and any(t.name in graph.params or id(t) in found for t in operands):
            for tensor in operands:
                need(tensor)

    for node in graph.nodes:
        if is_product(node):
            need_operands(node)
        waiting += [t for t in node.outputs if t.name in graph.params]
    while waiting:
        made = waiting.popleft()
        if id(made) in found:  # a product that reads it becomes one of integers
            for reader in graph.consumers(made):
                need_operands(reader)
        needed, moved = _operands(graph, made, integer)
        waiting.extend(moved)
        for tensor in needed:
            need(tensor)
    order = {id(t): i for i, t in enumerate(graph.made())} if found else {}
    return sorted(found.values(), key=lambda t: order[id(t)])


def _operands(graph: QuantGraph, tensor: Tensor, integer: Collection[str]) -> tuple[list[Tensor], list[Tensor]]:
    """What must be quantized for `tensor` to be made by one integer operator, and what takes over its range.

    Rounding moves in front of movement and concatenation (propagate): what only they read needs no range of its own.
    """
    node = graph.producer(tensor)
    if node is not None and len(node.outputs) == 1 and _moves(node):
        data = _data(node)
        alone = [t for t in data if t.name not in graph.params and graph.only_consumer(t) is not None]
        return [t for t in data if t not in alone], alone
    while node is not None and clamp_bounds(graph, node) is not None and node.inputs[0].name not in graph.params:
        node = graph.producer(node.inputs[0])
    if node is None or (node.domain and node.op != "Requantize"):
        return [], []
    written_out = unrolled(graph, node) if "LayerNormalization" in integer else None
    if written_out is not None:
        return [written_out.x], []
    fused = _fused(graph, node)
    if fused is not None:
        return (_data(fused) if is_sum(fused) else []), []
    if node.op == "Mul" and any(is_op(graph.producer(t), "Floor", "Ceil") for t in node.inputs):
        return [], []  # rounded already, down or up: rounding before that is none of training's (`cuts.py`)
    if is_elementwise(node):
        return _leaves(graph, node), []
    if node.op == "Softmax" and _is_masked(graph, node.inputs[0]):
        return [], []
    is_integer = is_movement(node) or interpolates(node) or node.op in integer
    return (_data(node) if is_integer else []), []


def _moves(node: Node) -> bool:
    """Whether rounding moves in front of a node; a Max or Min may as well be of two functions of one tensor."""
    return is_movement(node) or (joins(node) and not is_op(node, "Max", "Min"))


def _fused(graph: QuantGraph, node: Node) -> Node | None:
    """The product or sum that an element-wise node fuses into, as a factor or what is added, alone or behind others."""
    maker: Node | None = node
    for _ in range(LONGEST_CHAIN):
        if not is_op(maker, "Add", "Mul", "Div"):
            break
        own = computed(maker)
        if len(own) != 1 or own[0].name in graph.params or _has_float_vector(graph, maker):
            return None
        maker = graph.producer(own[0])
    return maker if maker is not None and maker is not node and (is_product(maker) or is_sum(maker)) else None


def _is_masked(graph: QuantGraph, scores: Tensor) -> bool:
    """Whether a constant takes scores out of the running: a grid that holds it would hold little of the others."""
    node = graph.producer(scores)
    if not is_op(node, "Where", "Add"):
        return False
    masks = [graph.real(t) for t in node.inputs[-2:] if isinstance(t, Constant)]
    return any(m is not None and m.size > 0 and float(m.min()) < _MASKED for m in masks)


def _data(node: Node) -> list[Tensor]:
    """The operands of a node that are computed: all of them, or the first where the others say how."""
    parts = joined(node)
    data: list[Tensor] = [t for t in parts or node.inputs if not isinstance(t, Constant) and t.name]
    return data if parts or node.op in ("Add", "Sub", "Mul") else data[:1]


def _leaves(graph: QuantGraph, node: Node) -> list[Tensor]:
    """What an element-wise node is a function of: one tensor (then it is a table) or else its own operands.

    Nothing is needed where the other operand is a vector of float constants, which has no integer form whatever the
    range of the first.
    """
    if _has_float_vector(graph, node):
        return []
    own = [t for t in addends(graph, node) if t.name and not is_constant(t)]
    leaves = leaves_of(graph, own)
    if len(leaves) != 1 or has_vector(node):
        return [] if len(own) == 1 and _is_product(graph, own[0]) else own
    return [] if _is_signed_sum(graph, leaves[0]) else leaves


def _has_float_vector(graph: QuantGraph, node: Node) -> bool:
    """The same of one that is not quantized."""
    return any(t.name not in graph.params and (v := value_of(t)) is not None and v.size > 1 for t in node.inputs)


def _is_signed_sum(graph: QuantGraph, tensor: Tensor) -> bool:
    """Whether all that is read of a product, with its bias, is its sign: that is exact without any rounding.

    Clamps, transpositions and pooling for the largest may lie between (`signs.py`).
    """
    reader = graph.only_consumer(tensor)
    for _ in range(LONGEST_CHAIN):
        if reader is None or clamp_bounds(graph, reader) is None:
            break
        reader = graph.only_consumer(reader.outputs[0])
    if not is_op(reader, *SIGNS):
        return False
    for _ in range(LONGEST_CHAIN):
        if _is_product(graph, tensor):
            return True
        maker = graph.producer(tensor)
        if maker is None or tensor.name in graph.params or maker.domain:
            return False
        if maker.op not in ("Add", "Mul", "Div", *SIGN_KEEPERS) and clamp_bounds(graph, maker) is None:
            return False
        data = computed(maker)
        if len(data) != 1:
            return False
        tensor = data[0]
    return False


def _is_product(graph: QuantGraph, tensor: Tensor) -> bool:
    maker = graph.producer(tensor)
    return tensor.name not in graph.params and maker is not None and is_product(maker)


def fill(graph: QuantGraph, ranges: Mapping[str, QuantParams]) -> None:
    """Give tensors the parameters found from data, then spread them; `graph.origin` does not know these tensors."""
    graph.params.update(ranges)
    for name in ranges:
        graph.origin.pop(name, None)
    propagate(graph)

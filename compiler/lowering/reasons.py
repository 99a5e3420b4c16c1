"""Why a node stays in float, in words for the user: asked where nothing else of the lowering made integers of it."""

from __future__ import annotations

from typing import Final

import onnx

from qatc.compiler.graph import Constant, Node, Tensor, is_constant
from qatc.compiler.lowering import channels, cuts, operators, resizing
from qatc.compiler.lowering.normalization import unasked, unoffered
from qatc.compiler.lowering.reductions import is_long, is_noise, is_open
from qatc.compiler.lowering.refusals import axis_refusal, refusal
from qatc.compiler.lowering.state import Reason, State, is_float
from qatc.compiler.model.links import is_op
from qatc.compiler.passes.products import is_product
from qatc.compiler.passes.training import trains

_RECURRENT: Final = ("GRU", "LSTM", "RNN")  # whatever their operands are


def reason_of(state: State, node: Node) -> Reason:
    """The first reason that holds: of a product, else of what the node does, what it reads, and what it makes."""
    if is_product(node):
        unranked = axis_refusal(state, node, node.outputs[0])
        return refusal(state, node) or unranked or Reason("its result cannot be made in integers")
    found = _operation(state, node) or _operands(state, node) or _result(state, node)
    return found or Reason(f"{node.op} has no exact integer form")


def _operation(state: State, node: Node) -> Reason | None:
    if any(isinstance(value, onnx.GraphProto) for value in node.attrs.values()):
        return Reason(f"{node.op} runs graphs of its own")
    if trains(node):
        return Reason("it is in training mode: the statistics are those of its input")
    if unoffered(state, node):
        return Reason("the target has no integer form of it")
    if is_op(node, *_RECURRENT):
        return Reason(f"{node.op} has no exact integer form")
    if channels.is_coarse(state, node):
        return Reason("its result grows so much over its input that offsets between two steps of that count")
    if cuts.stays(state, node):
        return Reason("it rounds down or up, which no integer operator does exactly with these scales")
    return None


def _operands(state: State, node: Node) -> Reason | None:
    floats = _floats(node)
    unranged = [t.name for t in floats if t.name not in state.graph.params]
    if unranged:
        return Reason("its input is not quantized by the model", unranged[0])
    odd = resizing.stays(state, node)
    if odd is not None:
        return Reason(odd)
    wide = [p.dtype for t in floats if (p := state.params(t)) is not None and not p.is_8bit]
    if wide:
        return Reason(f"{wide[0]} tensors have no integer kernel")
    return _constant_at_fault(state, node)


def _constant_at_fault(state: State, node: Node) -> Reason | None:
    """What keeps a constant operand from being integers that a kernel for two operands, or a Concat, reads."""
    constants = [t for t in node.inputs if isinstance(t, Constant)]
    for tensor in constants if node.op in ("Add", "Sub", "Mul", "Div", "Concat") else ():
        params = state.params(tensor)
        if params is None and tensor.values.size > 1:
            return Reason("its constant operand is not quantized by the model", tensor.name)
        if params is not None and not params.is_8bit:
            return Reason(f"its constant operand has {params.dtype} values, which have no integer kernel", tensor.name)
    return None


def _result(state: State, node: Node) -> Reason | None:
    """What the result is, or how it is made; last, grids of several scales, which few operators read or make."""
    if not any(t.name in state.graph.params for t in node.outputs):
        return Reason("its result is not quantized by the model", node.outputs[0].name)
    if operators.is_far_apart(state, node, node.outputs[0]):
        return Reason("a step of an operand is more than its whole range: kernels would lose the result's steps")
    if is_noise(state, node):
        return Reason("its result's steps are finer than what float32 knows of the sum: they hold rounding errors")
    if is_long(state, node):
        return Reason("it adds up more elements than 32 bits hold")
    if is_open(node):
        message = "how many elements it adds up is not known: -s NAME=SIZES pins open dimensions"
        return Reason(message, node.inputs[0].name)
    option = unasked(state, node)
    if option is not None:
        return Reason(f"its integer form was not asked for: -p {option}")
    for what, tensors in (("input", _floats(node)), ("result", node.outputs)):
        spread = next((t.name for t in tensors if (p := state.params(t)) is not None and p.is_per_channel), None)
        if spread is not None:
            return Reason(f"its {what} is quantized per channel", spread)
    return None


def _floats(node: Node) -> list[Tensor]:
    """The inputs of real numbers that are computed."""
    return [t for t in node.inputs if t.name and not is_constant(t) and is_float(t)]

"""Lower a QuantGraph to an IntegerGraph: one walk in topological order.

At every quantized tensor the walk looks back over the clamps (and, behind a matrix product, the bias and a scalar
factor) to the operator that computes it, and makes one integer operator of them all. What has no integer form is made
in float and rounded: an island, with its reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from qatc.compiler.diagnostics import printable
from qatc.compiler.graph import REQUANTIZE, Constant, Node, QuantGraph, Tensor, is_constant, shape_of
from qatc.compiler.integer import Conv, Float, IntegerGraph, LayerNorm, Lookup, MatMul, Move, Rescale, Softmax
from qatc.compiler.lowering import channels, cuts, mac, operators, resizing
from qatc.compiler.lowering.builder import Builder
from qatc.compiler.lowering.forms import from_zero
from qatc.compiler.lowering.normalization import normalization
from qatc.compiler.lowering.operands import constant_operand
from qatc.compiler.lowering.reasons import reason_of
from qatc.compiler.lowering.reductions import Affine, reduced
from qatc.compiler.lowering.refusals import channel_vector
from qatc.compiler.lowering.signs import sign_of
from qatc.compiler.lowering.state import Function, LoweringOptions, State
from qatc.compiler.model.links import is_op, label_of
from qatc.compiler.passes.leaves import LONGEST_CHAIN
from qatc.compiler.passes.movement import SIGN_KEEPERS, is_movement
from qatc.compiler.passes.products import is_product, is_sum, per_channel
from qatc.compiler.passes.propagate import clamp_bounds
from qatc.compiler.quant import QuantParams

_CUTS: Final = frozenset({"Mul", "Floor", "Ceil"})  # what ends a rounding down or up
_FUSED: Final = frozenset({"Add", "Mul", "Div"})  # what a product takes in: its bias, and a factor


def lower(graph: QuantGraph, options: LoweringOptions | None = None) -> IntegerGraph:
    """The integer form of a stripped and folded graph (shapes inferred). Findings go to `graph.diagnostics`."""
    outputs = {t.name for t in graph.outputs}
    reserved = {t.name for t in graph.made()} | outputs  # constants keep their names
    build = Builder(graph.name or "graph", graph.opset, dict(graph.domains), reserved)
    options = options or LoweringOptions()
    state = State(graph, options, build, raw=_raw, why=reason_of)
    if options.activations == "uint8":
        state.begun = from_zero(graph)
        state.forms.update(state.begun)
    for tensor in graph.inputs:
        _input(state, tensor)
    for node in graph.nodes:
        _visit(state, node)
    for output in graph.outputs:
        _output(state, output)
    integer = build.finish()
    if graph.explains:
        _explain(graph, integer)
    return integer


def _explain(graph: QuantGraph, integer: IntegerGraph) -> None:
    """What became of the operators that are not simply themselves in integers."""
    for op in integer.ops:
        label = printable(op.source or op.name)
        if isinstance(op, Float) and op.reason:
            fault = f" ({printable(op.tensor)})" if op.tensor else ""
            graph.explain("lowering", f"{op.op_type} stays float at {label}: {op.reason}{fault}")
        elif isinstance(op, Lookup):
            graph.explain("lowering", f"a table of 256 entries at {label}: {op.function}")
        elif isinstance(op, Softmax | LayerNorm):
            graph.explain("lowering", f"{op.kind} in integers at {label}")
        elif isinstance(op, Conv | MatMul) and integer.tensors[op.output].dtype == "int32":
            graph.explain("lowering", f"a raw accumulator at {label}: its result is read before any rounding")


def _input(state: State, tensor: Tensor) -> None:
    """Declare a graph input: float followed by Quantize, or integers where the file or the user says so."""
    params, outside = state.params(tensor), state.port_params(tensor)
    state.build.graph.inputs.append(tensor.name)
    if params is None:
        state.new_float(tensor)
        return
    if outside is None:
        sample_shape = state.graph.sample_shapes.get(tensor.name)
        outer = state.build.plain(tensor.name, "float32", shape_of(tensor), None, sample_shape)
        state.unrounded[id(tensor)] = outer
        state.quantize_float(tensor, outer, params.qmin, params.qmax)
        return
    name = state.build.quantized(
        tensor.name, outside, shape_of(tensor), state.graph.origin.get(tensor.name), exact=True
    )
    if outside == params:
        state.ints[id(tensor)] = name
        return
    inner = state.new_int(tensor)
    state.build.add(Rescale, f"Rescale_{tensor.name}", (name,), (inner,), lo=params.qmin, hi=params.qmax)


def _output(state: State, tensor: Tensor) -> None:
    """Make a graph output under its own name: float, or integers where the file or the user says so."""
    graph, build = state.graph, state.build
    wanted = state.port_params(tensor)
    build.graph.outputs.append(tensor.name)
    if wanted is not None and wanted.is_per_channel:
        message = "the graph output holds integers with a scale for each channel, which no operator makes"
        graph.diagnostics.error("QAT302", message, tensor=tensor.name, hint="let the model end in floats")
        return
    if wanted is None:
        name = state.float_name(tensor)
        if name != tensor.name:  # that of a constant of equal value, or of what is not rounded
            build.plain(tensor.name, build.graph.tensors[name].dtype, shape_of(tensor))
            build.add(Move, f"Identity_{tensor.name}", (name,), (tensor.name,), op_type="Identity", attrs={})
        return
    inner = state.int_name(tensor)
    if inner == tensor.name:
        return
    name = build.quantized(tensor.name, wanted, shape_of(tensor), graph.origin.get(tensor.name), exact=True)
    build.add(Rescale, f"Rescale_{tensor.name}", (inner,), (name,), lo=wanted.qmin, hi=wanted.qmax)


def _visit(state: State, node: Node) -> None:
    quantized = [t for t in node.outputs if t.name and t.name in state.graph.params]
    function = operators.as_function(state, node)
    if not quantized:
        if function is not None:
            state.functions[id(node.outputs[0])] = function
        return
    if len(node.outputs) > 1:
        if not operators.movement(state, node):
            for tensor in quantized:  # it stays in float
                params = state.grid(tensor)
                state.quantize_float(tensor, state.unrounded_name(tensor), params.qmin, params.qmax)
        return
    out = quantized[0]
    params = state.grid(out)
    if function is not None and _function(state, function, out, params):
        return
    chain = _look_back(state, node, out, params)
    if not _lower(state, chain, out):
        state.quantize_float(out, state.unrounded_name(chain.tensor), chain.lo, chain.hi)
    elif chain.taken and chain.node is not None:
        ops = ", ".join(n.op for n in reversed(chain.taken))
        state.graph.explain("lowering", f"{ops} fused at {printable(label_of(chain.node))}")


def _function(state: State, function: Function, out: Tensor, params: QuantParams) -> bool:
    """Make a quantized function of a quantized tensor a table, that of a sum's sign the sum itself, saturated."""
    if function.at is None:
        return operators.table(state, function, out)
    found = _summed(state.graph, function.root, function.at)
    if found is None:
        return False
    root, node, moves = found
    chain = _Chain(root, node, [], params.qmin, params.qmax)
    _scalar_and_bias(state, chain)
    product = chain.node or node
    make = _moving(state, root, moves, out, params)
    if not sign_of(state, function, product, chain.bias, chain.alpha, out, make):
        return False
    text = f"{function.text} is the sign of a sum, in integers, at {printable(label_of(product))}"
    state.graph.explain("lowering", text)
    _move(state, moves, out, params)
    return True


def _moving(state: State, root: Tensor, moves: list[Node], out: Tensor, params: QuantParams) -> Callable[[], str]:
    """What describes the integers of `out` before these moves, which come back."""
    return lambda: _made(state, root, moves, out, params)


def _made(state: State, tensor: Tensor, moves: list[Node], out: Tensor, params: QuantParams) -> str:
    return state.build.quantized(f"{out.name}_moved", params, shape_of(tensor)) if moves else state.new_int(out)


def _move(state: State, moves: list[Node], out: Tensor, params: QuantParams) -> None:
    """Move what the last operator made, up to `out`."""
    while moves:
        move, source = moves.pop(), state.build.graph.ops[-1].output
        how = [state.float_name(t) for t in move.inputs[1:] if t.name]
        operators.emit_move(state, move, (source, *how), (_made(state, move.outputs[0], moves, out, params),), params)


def _summed(graph: QuantGraph, root: Tensor, at: float) -> tuple[Tensor, Node, list[Node]] | None:
    """What a comparison with `at` compares, in front of clamps around that number and of moves, which come back.

    The largest of signs is the sign of the largest. None where somebody else reads the numbers, too.
    """
    moves: list[Node] = []
    while (node := graph.producer(root)) is not None and graph.only_consumer(root) is not None:
        bounds = clamp_bounds(graph, node)
        if node.op in SIGN_KEEPERS and is_movement(node):
            moves.append(node)
        elif bounds is None:
            return root, node, moves
        elif not bounds[0] < at < bounds[1]:
            return None
        root = node.inputs[0]
        if root.name in graph.params:  # what is compared is rounded
            return None
    return None


@dataclass
class _Chain:
    """What a quantized tensor is made of: clamp(round(tensor)), and tensor = alpha * node(...) + bias."""

    tensor: Tensor  # the float value that is rounded
    node: Node | None  # the operator that computes it, up to alpha and bias
    taken: list[Node]  # the nodes between
    lo: int
    hi: int
    alpha: float = 1.0
    bias: npt.NDArray[np.float64] | None = None  # per output channel, of a sum one number


def _look_back(state: State, node: Node, out: Tensor, params: QuantParams) -> _Chain:
    """Follow clamps and requantization back from a quantized tensor, then bias and scalar factor of a product."""
    graph = state.graph
    lo, hi = params.qmin, params.qmax
    current: Node | None = node
    tensor = out
    taken: list[Node] = []
    while current is not None:
        bounds = clamp_bounds(graph, current)
        if bounds is None and current.op != REQUANTIZE:
            break
        x = current.inputs[0]
        if x.name in graph.params or is_constant(x):
            break
        if bounds is not None:
            ends = _in_integers(params, bounds)
            if ends is None:
                break
            low, high = ends
            lo, hi = min(max(low, lo), hi), min(max(high, lo), hi)  # this clamp comes before the ones seen so far
        tensor = x
        taken.append(current)
        current = graph.producer(x)
    chain = _Chain(tensor, current, taken, lo, hi)
    if current is not None and (tensor is out or graph.only_consumer(tensor) is not None):
        _scalar_and_bias(state, chain)
    elif current is not None and is_product(current):
        chain.node = None  # somebody else reads the raw result: it is made once, and rounded here
    return chain


def _in_integers(params: QuantParams, bounds: tuple[float, float]) -> tuple[int, int] | None:
    """The integers of a clamp's bounds; None where they are not the same in every channel."""
    low, high = map(set, map(params.quantize_number, bounds))
    return (low.pop(), high.pop()) if len(low) == len(high) == 1 else None


def _scalar_and_bias(state: State, chain: _Chain) -> None:
    """See `alpha * product + bias`, or a sum in the product's place, where the nodes between have no other reader."""
    node = chain.node
    alpha = 1.0
    added: list[npt.NDArray[Any]] = []
    taken: list[Node] = []
    while is_op(node, *_FUSED) and len(taken) < LONGEST_CHAIN:
        found = constant_operand(state, node)
        if found is None:
            return
        data, value = found
        if node.op == "Add":
            added.append(value * alpha)
        elif value.size != 1 or (node.op == "Div" and (node.inputs[0] is not data or not value.all())):
            return
        else:
            alpha *= float(value.reshape(-1)[0]) if node.op == "Mul" else 1.0 / float(value.reshape(-1)[0])
        taken.append(node)
        node = state.graph.producer(data)
    if node is None or not (is_product(node) or (is_sum(node) and alpha)):
        return
    vectors = [v for value in added if (v := _per_channel(node, value)) is not None]
    if len(vectors) == len(added):
        chain.node, chain.alpha, chain.bias = node, alpha, np.asarray(sum(vectors)) if vectors else None
        chain.taken += taken


def _per_channel(node: Node, value: npt.NDArray[np.float64]) -> npt.NDArray[np.float64] | None:
    """What is added behind a node as one number per output channel, a sum having one; None for something else."""
    return channel_vector(node, value) if is_product(node) else per_channel(value, -1, 1)


def _lower(state: State, chain: _Chain, out: Tensor) -> bool:
    node = chain.node
    if node is None:
        return False
    if is_product(node):
        return mac.fused(state, node, out, chain.bias, chain.alpha, chain.lo, chain.hi)
    bounds = (chain.lo, chain.hi)
    found = cuts.one_way(state, node, out) if node.op in _CUTS else None
    if found is not None:
        return _cut(state, chain, out, *found)
    if is_sum(node):
        bias = 0.0 if chain.bias is None else float(chain.bias[0])
        return reduced(state, node, out, Affine(chain.alpha, bias), *bounds)
    if node.outputs[0] is out and operators.movement(state, node):
        return True
    return (
        _clamp(state, node, out, *bounds)
        or operators.elementwise(state, node, out, *bounds)
        or operators.concat(state, node, out, *bounds)
        or operators.choice(state, node, out, *bounds)
        or channels.affine(state, node, out, *bounds)
        or channels.prelu(state, node, out, *bounds)
        or normalization(state, node, out, *bounds)
        or resizing.resize(state, node, out, *bounds)
    )


def _cut(state: State, chain: _Chain, out: Tensor, x: Tensor, way: cuts.Way) -> bool:
    """Round a sum, or the clamped one, down or up to the grid of `out`; False where that stays float."""
    params = state.grid(out)
    x, moves, lo, hi = cuts.root_of(state, x, way, params, (chain.lo, chain.hi))
    node = state.graph.producer(x)
    if node is None or state.graph.only_consumer(x) is None or x.name in state.graph.params:
        return False
    behind = _Chain(x, node, chain.taken, lo, hi)
    _scalar_and_bias(state, behind)
    node = behind.node or node
    chain.node = node  # for what is told of the fusion
    if is_product(node):
        make = _moving(state, x, moves, out, params)
        if not cuts.product(state, node, (params, lo, hi), behind.bias, behind.alpha, way, make):
            return False
        _move(state, moves, out, params)
        return True
    if moves:
        return False
    if is_sum(node):
        bias = 0.0 if behind.bias is None else float(behind.bias[0])
        return reduced(state, node, out, Affine(behind.alpha, bias, way), lo, hi)
    return cuts.added(state, node, out, way, lo, hi)


def _clamp(state: State, node: Node, out: Tensor, lo: int, hi: int) -> bool:
    """A Relu or Clip of a quantized tensor too wide for a table, rounded once more: a clamp of its integers."""
    ends = clamp_bounds(state.graph, node)
    params, have = state.params(out), state.params(node.inputs[0]) if ends is not None else None
    if ends is None or params is None or have is None or isinstance(node.inputs[0], Constant):
        return False
    found = None if params.is_per_channel or have.is_per_channel else _in_integers(params, ends)
    if found is None:
        return False
    low, high = (min(max(end, lo), hi) for end in found)
    label = label_of(node)
    source, made = state.int_name(node.inputs[0]), state.new_int(out)
    state.build.add(Rescale, label, (source,), (made,), lo=low, hi=high, source=label)
    return True


def _raw(state: State, node: Node) -> bool:
    """The float result of a pending node from an int32 accumulator: a product, also times a number and plus a bias."""
    if node.domain:
        return False
    if is_product(node):
        return mac.raw(state, node, node.outputs[0])
    if node.op not in _FUSED:
        return False
    chain = _Chain(node.outputs[0], node, [], 0, 0)
    _scalar_and_bias(state, chain)
    product = chain.node
    if product is None or not is_product(product) or any(id(n.inputs[0]) in state.floats for n in chain.taken):
        return False
    return mac.raw(state, product, node.outputs[0], chain.bias, chain.alpha)

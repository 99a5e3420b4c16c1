"""Move quantization to where it is free: through layout operators, MaxPool, Concat, Where and clamps.

    x<P> -> Transpose -> y               x<P> -> Transpose -> y<P>        forward: what is moved stays on its grid
    x -> Reshape -> y<P>                 x<P> -> Reshape -> y<P>          backward: round before moving, in 8 bits
    a, b -> Concat -> y<P>               a<P>, b<P> -> Concat -> y<P>     backward, where a and b are not rounded yet
    c ? a<P> : 0 -> y                    c ? a<P> : 0<P> -> y<P>          forward: zero is on every grid
    c ? a : -inf -> y<P>                 c ? a<P> : qmin -> y<P>          backward: Where chooses, it computes nothing
    a, b -> Max -> y<P>                  a<P>, b<P> -> Max -> y<P>        backward, where neither is rounded yet
    x<P> -> Relu -> y                    x<P> -> Relu -> y<P, qmin = z>   forward: zero is on every grid
    MaxPool -> x -> Relu -> y<P>         MaxPool -> x<P, qmin = z> -> Relu -> y<P>      backward: on to what is moved
    f(x<P>) -> Resize -> y<Q>            f(x<P>) -> Requantize -> q<Q> -> Resize -> y<Q>   a table for this reader
    W<P, axis 0> -> Transpose -> MatMul  W'<P, axis 1> -> MatMul          constants: the integers are moved

Backward only where every reader of the tensor moves it onto the same grid: a reader of the unrounded value forbids it,
but for functions of an 8-bit tensor, which are a table for each grid that they are read on.
"""

from __future__ import annotations

import numpy as np

from qatc.compiler.diagnostics import printable
from qatc.compiler.graph import REQUANTIZE, Constant, Node, QuantGraph, Tensor, Variable, shape_of, value_of
from qatc.compiler.model.links import computed, is_op, label_of
from qatc.compiler.passes.constants import compute_quantized
from qatc.compiler.passes.leaves import has_vector, leaves_of
from qatc.compiler.passes.modernize import element_type
from qatc.compiler.passes.movement import (
    LAYOUT,
    all_on_grid,
    is_movement,
    is_value_blind,
    joined,
    joins,
    move_constant,
    on_grid,
    order_of,
    params_through,
)
from qatc.compiler.quant import QuantParams, number_of
from qatc.compiler.reference.functions import is_elementwise


def propagate(graph: QuantGraph) -> None:
    """Spread parameters over everything that moves or clamps: constants, then forward, then backward, then forward."""
    move_constants(graph)
    compute_quantized(graph)
    forward(graph)
    backward(graph)
    forward(graph)
    _leave_out_repeated(graph)


def _leave_out_repeated(graph: QuantGraph) -> None:
    """Leave out what rounds a tensor onto the very grid that it is on by now."""
    repeated = [node for node in graph.nodes if node.op == REQUANTIZE and graph.quant(node.inputs[0]) is not None]
    for node in repeated:
        (x,), (y,) = node.inputs, node.outputs
        if graph.quant(x) == graph.quant(y) and not graph.is_output(y) and y.name not in graph.shifted:
            graph.explain("propagate", f"{printable(x.name)} is on the grid of {printable(y.name)} by now")
            if y.name in graph.origin and not isinstance(x, Constant):
                graph.origin.setdefault(x.name, graph.origin[y.name])
            graph.replace(y, x)
    if repeated:
        graph.clean()


def move_constants(graph: QuantGraph) -> None:
    """Apply layout operators to quantized constants; the channel axis moves with the integers."""
    moves = 0
    for node in graph.nodes:
        if node.op not in LAYOUT or node.domain:
            continue
        _at_once(graph, node)
        constant, out = node.inputs[0], node.outputs[0]
        if not isinstance(constant, Constant):
            continue
        params = graph.quant(constant)
        moved = move_constant(node, constant.values) if params is not None else None
        if params is None or moved is None:
            continue
        if isinstance(out, Variable):
            out.shape = list(moved.shape)
        carried = params_through(node, params)
        if carried is None:
            continue
        own = graph.quant(out)
        if own is not None and own != carried:  # the moved constant is rounded once more
            moved, carried = own.quantize(carried.dequantize(moved)), own
        graph.replace(out, graph.constant(out.name, moved, carried))
        moves += 1
    if moves:
        graph.clean()


def _at_once(graph: QuantGraph, node: Node) -> None:
    """Let a Reshape, or the like, read a constant that another one reshapes first, for want of channels in between."""
    between = node.inputs[0]
    first = graph.producer(between)
    if first is None or first.domain or node.op == "Transpose" or first.op not in LAYOUT or first.op == "Transpose":
        return
    constant = first.inputs[0]
    if not isinstance(constant, Constant) or constant.name not in graph.params or between.name in graph.params:
        return
    moved = move_constant(first, constant.values)
    made = None if moved is None else move_constant(node, moved)
    if made is None or not made.size:
        return
    node.op, node.attrs = "Reshape", {}
    node.inputs = [constant, graph.constant(f"{node.outputs[0].name}_sizes", np.asarray(made.shape, np.int64))]


def forward(graph: QuantGraph) -> None:
    """Give a moved or clamped tensor the parameters of what it was made from."""
    for node in graph.nodes:
        for out in node.outputs:
            if not out.name or out.name in graph.params:
                continue
            params = _carried(graph, node)
            if params is None:
                _explain(graph, node)
                continue
            graph.explain("propagate", f"parameters carried through {node.op} at {printable(label_of(node))}")
            graph.params[out.name] = params
            parts = set(map(id, joined(node)))
            for index, part in enumerate(node.inputs):
                if isinstance(part, Constant) and id(part) in parts:
                    _round_constant(graph, node, index, part)
            if out.name in graph.known:
                graph.origin.setdefault(out.name, out.name)


def _carried(graph: QuantGraph, node: Node) -> QuantParams | None:
    if node.domain or not node.inputs:
        return None
    parts = joined(node)
    if parts:
        return _carried_together(graph, parts)
    params = graph.quant(node.inputs[0])
    if params is None:
        return None
    if is_movement(node):
        return params_through(node, params)
    bounds = clamp_bounds(graph, node)
    return None if bounds is None else _clamped(params, *bounds)


def _carried_together(graph: QuantGraph, parts: list[Tensor]) -> QuantParams | None:
    """The grid that all the tensors lie on; a float constant does where its numbers are on the grid of the others."""
    found = [(t, graph.quant(t)) for t in parts]
    known = [p for _, p in found if p is not None]
    if not known or known[0].is_per_channel:
        return None
    if not all(p.same_grid(known[0]) and p.dtype == known[0].dtype for p in known):
        return None
    params = known[0].with_range(min(p.qmin for p in known), max(p.qmax for p in known))
    rest = [t for t, p in found if p is None]
    on_it = (isinstance(t, Constant) and t.values.dtype == np.float32 and all_on_grid(t.values, params) for t in rest)
    return params if all(on_it) else None


def _explain(graph: QuantGraph, node: Node) -> None:
    """Say why the parameters of a node's input end there, where they might have gone on."""
    if not graph.explains or node.domain:
        return
    parts = joined(node) or node.inputs[:1]
    if all(graph.quant(t) is None for t in parts):
        return
    if joins(node):
        why = "its inputs do not lie on one grid"
    elif is_movement(node):
        why = "it fills with a value off the grid" if node.op == "Pad" else "the channel axis does not stay whole"
    elif clamp_bounds(graph, node) is not None:
        why = "its bounds are off the grid"
    else:
        return
    graph.explain("propagate", f"parameters not carried through {node.op} at {printable(label_of(node))}: {why}")


def clamp_bounds(graph: QuantGraph, node: Node) -> tuple[float, float] | None:
    """(low, high) of a Relu or Clip with constant bounds, else None."""
    if node.domain:
        return None
    if node.op == "Relu":
        return 0.0, float("inf")
    if node.op != "Clip":
        return None
    bounds = [float("-inf"), float("inf")]
    for index, tensor in enumerate(node.inputs[1:3]):
        if not tensor.name:
            continue
        number = number_of(graph.real(tensor))
        if number is None:
            return None
        bounds[index] = number
    return (bounds[0], bounds[1]) if bounds[0] <= bounds[1] else None


def _clamped(params: QuantParams, low: float, high: float) -> QuantParams | None:
    """The grid narrowed to [low, high], where both ends are on it or beyond it."""
    if params.is_per_channel:
        return None
    scale, zero = params.scale[0], params.zero_point[0]
    qmin, qmax = params.qmin, params.qmax
    if low > scale * (qmin - zero):
        if not on_grid(low, params):
            return None
        qmin = round(low / scale) + zero
    if high < scale * (qmax - zero):
        if not on_grid(high, params):
            return None
        qmax = round(high / scale) + zero
    return params.with_range(qmin, qmax) if qmin <= qmax else None


def backward(graph: QuantGraph) -> None:
    """Round a tensor before it is moved, where all its readers move it onto one grid, or for each as a table."""
    before = len(graph.nodes)
    for node in reversed(graph.nodes):
        _before_clamp(graph, node)
        parts = node.inputs[:1] if is_movement(node) else joined(node)
        if node.op in ("Max", "Min") and not all(_is_rounded(graph, t) or _wanted(graph, t) is not None for t in parts):
            continue  # of two functions of one tensor (x and x / 10), which is a table of it
        data = set(map(id, parts))
        for index, tensor in enumerate(node.inputs):
            if id(tensor) not in data:
                continue
            if isinstance(tensor, Constant):
                _round_constant(graph, node, index, tensor)
                continue
            params = _wanted(graph, tensor)
            if params is not None:
                graph.explain("propagate", f"rounded before {node.op} at {printable(label_of(node))}")
                graph.params[tensor.name] = params
            elif tensor.name not in graph.params and any(t.name in graph.params for t in node.outputs):
                if _for_it_alone(graph, node, index, tensor):
                    continue
                why = f"{printable(tensor.name)} is read unrounded or on another grid, too"
                graph.explain("propagate", f"not rounded before {node.op} at {printable(label_of(node))}: {why}")
    if len(graph.nodes) > before:
        graph.sort()


def _for_it_alone(graph: QuantGraph, node: Node, index: int, tensor: Tensor) -> bool:
    """Round for this reader alone what others read unrounded, or on another grid.

    That is a function of an 8-bit tensor, which is a table; and an output, which leaves as it is: a Transpose of that
    in front of a quantizer ONNX Runtime (1.32) moves behind it, and the output comes out rounded.
    """
    maker, params = graph.producer(tensor), graph.quant(node.outputs[0])
    if maker is None or params is None or params.is_per_channel or len(node.outputs) > 1:
        return False
    if params_through(node, params) is None:
        return False
    if not (_is_table(graph, maker) or (graph.is_output(tensor) and is_op(node, *LAYOUT))):
        return False
    rounded = next((n.outputs[0] for n in graph.consumers(tensor) if _rounds_onto(graph, n, params)), None)
    if rounded is None:
        rounded = graph.variable(f"{tensor.name}_for_{label_of(node)}", element_type(tensor), shape_of(tensor))
        graph.insert(REQUANTIZE, [tensor], [rounded], hint=f"Requantize_{tensor.name}", domain="qatc")
        graph.params[rounded.name] = params
    node.inputs[index] = rounded
    graph.explain("propagate", f"rounded before {node.op} at {printable(label_of(node))}, for it alone")
    return True


def _is_table(graph: QuantGraph, maker: Node) -> bool:
    """Whether a node computes a function of an 8-bit tensor."""
    if not is_elementwise(maker) or has_vector(maker):
        return False
    leaves = leaves_of(graph, computed(maker))
    root = graph.quant(leaves[0]) if len(leaves) == 1 else None
    return root is not None and not root.is_per_channel and root.is_8bit


def _rounds_onto(graph: QuantGraph, node: Node, params: QuantParams) -> bool:
    return node.op == REQUANTIZE and graph.quant(node.outputs[0]) == params


def _is_rounded(graph: QuantGraph, tensor: Tensor) -> bool:
    return isinstance(tensor, Constant) or tensor.name in graph.params


def _before_clamp(graph: QuantGraph, node: Node) -> None:
    """Round what is clamped next already before, where it is only moved until then: a clamp of integers is the same."""
    bounds, params = clamp_bounds(graph, node), graph.quant(node.outputs[0]) if node.outputs else None
    if bounds is None or params is None or params.is_per_channel:
        return
    x = node.inputs[0]
    maker = graph.producer(x)
    while is_op(maker, "Relu", "Clip") and clamp_bounds(graph, maker) and _alone_reads(graph, maker):
        maker = graph.producer(maker.inputs[0])  # a Clip behind a Relu: that one is next
    moved = maker is not None and (is_movement(maker) or joins(maker))
    if not moved or not _alone_reads(graph, node):
        return
    (low,), (high,) = map(params.quantize_number, bounds)
    graph.explain("propagate", f"rounded before {node.op} at {printable(label_of(node))}")
    graph.params[x.name] = params.with_range(low, high)
    origin = graph.origin.get(node.outputs[0].name)
    if origin is not None:
        graph.origin[x.name] = origin


def _alone_reads(graph: QuantGraph, node: Node) -> bool:
    """Whether nothing else reads the node's input, and it is not rounded yet."""
    return node.inputs[0].name not in graph.params and graph.only_consumer(node.inputs[0]) is node


def _round_constant(graph: QuantGraph, node: Node, index: int, tensor: Constant) -> None:
    """A float constant that is only moved before it is rounded: this reader gets its integers."""
    params = graph.quant(node.outputs[0])
    ready = params is not None and not params.is_per_channel and len(node.outputs) == 1
    if params is None or not ready or tensor.name in graph.params or tensor.values.dtype != np.float32:
        return
    if params_through(node, params) is not None and not np.isnan(tensor.values).any():
        node.inputs[index] = graph.constant(f"{tensor.name}_{params.dtype}", params.quantize(tensor.values), params)


def _wanted(graph: QuantGraph, tensor: Tensor) -> QuantParams | None:
    """The parameters that all readers of an unrounded tensor move it onto, or None: per channel by Transpose alone."""
    if not tensor.name or tensor.name in graph.params or value_of(tensor) is not None or graph.is_output(tensor):
        return None
    found: QuantParams | None = None
    for reader in graph.consumers(tensor):
        if is_value_blind(reader):
            continue
        if not (is_movement(reader) or joins(reader)):
            return None
        for out in reader.outputs:
            params = _before(reader, graph.quant(out))
            if params is None or (found is not None and found != params) or params_through(reader, params) is None:
                return None
            found = params
    return found


def _before(node: Node, params: QuantParams | None) -> QuantParams | None:
    """Parameters of a movement's input, given those of its output; None where channels do not come from one axis."""
    if params is None or not params.is_per_channel:
        return params
    order, axis = order_of(node) if is_op(node, "Transpose") else None, params.axis or 0
    return params.with_axis(order[axis]) if order is not None and axis < len(order) else None

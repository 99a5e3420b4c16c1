"""Everything but multiply-accumulates: element-wise pairs, tables, pooling, concatenation, movement.

Each function tries to make the integers of `out` (a quantized tensor, clamped to [lo, hi]) from `node` and says whether
it could; `lower.py` falls back to float where none can.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from qatc.compiler.graph import Constant, Node, Tensor, rank_of, repeats_into, shape_of, value_of
from qatc.compiler.integer import CHOOSERS, Concat, Elementwise, Move, Pool, Quantize, Rescale
from qatc.compiler.lowering.signs import as_sign
from qatc.compiler.lowering.state import Function, State, permuted
from qatc.compiler.model.links import is_op, label_of
from qatc.compiler.passes.movement import MAXIMA, is_movement, joined, on_grid, pad_value
from qatc.compiler.passes.sums import addends, axes_of
from qatc.compiler.quant import Array, QuantParams, dtype_range
from qatc.compiler.reference.functions import Values, evaluate, is_elementwise, is_table
from qatc.compiler.windows import Window, sized_window, window

_FAR: Final = 256  # steps


def as_function(state: State, node: Node) -> Function | None:
    """The node's result as an element-wise function of one 8-bit tensor, or of a sign, if it is one."""
    if not is_elementwise(node) or len(node.outputs) != 1:
        return None
    entries = node.inputs[0] if is_table(node) else None
    scalars = [_scalar(state, node, t) for t in node.inputs]
    computed = [t for t, scalar in zip(node.inputs, scalars, strict=True) if t.name and scalar is None]
    roots = [_root(state, t) for t in computed if t is not entries]
    if not roots or roots[0] is None:
        return as_sign(state, node, scalars) if len(roots) == 1 else None
    (root, at) = roots[0]
    if any(r is None or r[0] is not root or r[1] != at for r in roots):
        return None
    pairs = list(zip(node.inputs, scalars, strict=True))
    longest = max((rank_of(t) or 0 for t, scalar in pairs if scalar is not None and t is not entries), default=0)
    rank = rank_of(root)
    if longest > (1 if rank is None else rank):
        return None  # more dimensions than the tensor's own would change the result's shape
    operands = [_entries(state, t) if t is entries else _operand(state, t, scalar, root) for t, scalar in pairs]
    return _computed(node, operands, root, at)


def _computed(node: Node, operands: list[_Operand], root: Tensor, at: float | None) -> Function | None:
    values = evaluate(node, [o.values for o in operands])
    if values is None:
        return None
    texts = [o.text for o in operands if o.text]
    text = texts[0] if node.op in ("Requantize", "Identity") else f"{node.op}({', '.join(texts)})"
    codes = 256 if at is None else 3
    text = text if len(text) < 200 else f"{node.op}(...)"
    doubtful = any(o.other is not None for o in operands)
    other = evaluate(node, [o.values if o.other is None else o.other for o in operands]) if doubtful else None
    return Function(root, np.broadcast_to(values, (codes,)), text, at, other)


class _Operand(NamedTuple):
    """An operand of an element-wise function: its values, None where it is left out, and how messages write it.

    `other` are the values where ties fell to the other side.
    """

    values: Values | None = None
    text: str = ""
    other: Values | None = None


def _operand(state: State, tensor: Tensor, scalar: float | None, root: Tensor) -> _Operand:
    if not tensor.name:
        return _Operand()
    if scalar is not None:
        return _Operand(np.asarray(scalar, np.float64), f"{scalar:.6g}")
    known = _function_of(state, tensor, root)
    return _Operand(known.values, known.text, known.other)


def _entries(state: State, tensor: Tensor) -> _Operand:
    """The constant that a node looks its results up in."""
    real = state.graph.real(tensor)
    return _Operand(None if real is None else real.astype(np.float64), tensor.name)


def _scalar(state: State, node: Node, tensor: Tensor) -> float | None:
    """The value of a constant operand that is the same everywhere and leaves the shape of the others' result alone."""
    value, params = value_of(tensor), state.graph.quant(tensor)
    if value is None or value.dtype.kind not in "fiu" or not value.size:
        return None
    if value.size > 1:
        other = next((shape_of(t) for t in node.inputs if not isinstance(t, Constant)), None)
        if params is not None and params.is_per_channel:
            return None
        if not repeats_into(value.shape, other) or not (value == value.reshape(-1)[0]).all():
            return None
    real = state.graph.real(tensor)
    return None if real is None else float(real.reshape(-1)[0])


def _root(state: State, tensor: Tensor) -> tuple[Tensor, float | None] | None:
    """The tensor that `tensor` is a function of (see `Function` for the number), None where there is none."""
    found = state.functions.get(id(tensor))
    if found is not None:
        return found.root, found.at
    return None if isinstance(tensor, Constant) or state.usable(tensor) is None else (tensor, None)


def _function_of(state: State, tensor: Tensor, root: Tensor) -> Function:
    """`tensor` as a function of its root; of a root itself it is its real numbers, worked out when they are wanted."""
    found = state.functions.get(id(tensor))
    if found is None:
        params = state.grid(root)
        lowest, highest = dtype_range(params.dtype)
        values = params.dequantize(np.arange(lowest, highest + 1)).astype(np.float64)
        found = state.functions[id(tensor)] = Function(tensor, values, "x")
    return found


def table(state: State, function: Function, out: Tensor) -> bool:
    """Remember the table of a quantized function; it is made when something reads it."""
    params = state.usable(out)
    if params is None:
        return False
    integers = params.quantize(function.values.astype(np.float32))  # in float32, as the model rounds
    state.tables[id(out)] = (function, integers)
    other = params.on_other_side(function.values)
    if function.other is not None:
        before = params.quantize(function.other.astype(np.float32))
        other = before if other is None else np.where(before == integers, other, before)
    real, away = params.dequantize(integers), None if other is None else params.dequantize(other).astype(np.float64)
    state.functions[id(out)] = Function(function.root, real.astype(np.float64), function.text, other=away)
    return True


def elementwise(state: State, node: Node, out: Tensor, lo: int, hi: int) -> bool:
    """Add, Sub or Mul of two quantized tensors (one may be a quantized constant), or a sum of more."""
    if not is_op(node, "Add", "Sub", "Mul") or state.usable(out) is None:
        return False
    operands = addends(state.graph, node)  # which are rounded once, together
    if any(state.usable(t) is None for t in operands) or all(isinstance(t, Constant) for t in operands):
        return False
    if is_far_apart(state, node, out):
        return False
    names = tuple(state.int_name(t) for t in operands)
    label = label_of(node)
    state.build.add(Elementwise, label, names, (state.new_int(out),), lo=lo, hi=hi, op=node.op, source=label)
    return True


def is_far_apart(state: State, node: Node, out: Tensor) -> bool:
    """Whether one step of an operand of a sum is more than the whole range of the result.

    Kernels add in float32, zero points with the rest: far from the result's steps they lose it.
    """
    wanted = state.usable(out)
    if not is_op(node, "Add", "Sub") or wanted is None:
        return False
    grids = (state.usable(t) for t in addends(state.graph, node))
    return any(p.scale[0] > _FAR * wanted.scale[0] for p in grids if p is not None)


def pool(state: State, node: Node, out: Tensor, lo: int, hi: int) -> bool:
    """AveragePool, GlobalAveragePool and ReduceMean over positions; a ReduceSum is taken for the mean that it makes."""
    if node.domain or not node.inputs or state.usable(node.inputs[0]) is None or state.usable(out) is None:
        return False
    match node.op:
        case "AveragePool":
            return _average(state, node, out, lo, hi)
        case "GlobalAveragePool":
            return _mean(state, node, out, lo, hi, tuple(range(rank_of(node.inputs[0]) or 2)), keepdims=True)
        case "ReduceMean" | "ReduceSum":
            order = _mean_order(node)
            return order is not None and _mean(state, node, out, lo, hi, order, keepdims=bool(node.attr("keepdims", 1)))
        case _:
            return False


def _average(state: State, node: Node, out: Tensor, lo: int, hi: int) -> bool:
    moving = window(node, tuple(node.attr("kernel_shape")))
    if moving is None:
        return False
    inputs, outputs = (state.int_name(node.inputs[0]),), (state.new_int(out),)
    _windowed(state, node, "average", moving, inputs, outputs, lo, hi)
    return True


def _windowed(
    state: State, node: Node, mode: str, moving: Window, inputs: tuple[str, ...], outputs: tuple[str, ...],
    lo: int, hi: int,
) -> None:  # fmt: skip
    """Pooling with a kernel that moves."""
    rounds_up, counts_all = (bool(node.attr(name, 0)) for name in ("ceil_mode", "count_include_pad"))
    label = label_of(node)
    state.build.add(
        Pool, label, inputs, outputs, lo=lo, hi=hi, mode=mode, kernel=moving.kernel, strides=moving.strides,
        pads=moving.pads, dilations=moving.dilations, ceil_mode=rounds_up, count_include_pad=counts_all, source=label,
    )  # fmt: skip


def _mean(state: State, node: Node, out: Tensor, lo: int, hi: int, order: tuple[int, ...], *, keepdims: bool) -> bool:
    """The mean over all dimensions but the first two of `order`, in which they are put first, and back behind it."""
    x, label = node.inputs[0], label_of(node)
    name = state.transposed(x, state.int_name(x), order)
    back = [order.index(i) for i in range(len(order))] if keepdims and order != tuple(range(len(order))) else None
    shape = permuted(shape_of(out), order)
    pooled = state.new_int(out) if back is None else state.build.quantized(f"{out.name}_pooled", state.grid(out), shape)
    state.build.add(Pool, label, (name,), (pooled,), lo=lo, hi=hi, mode="average", keepdims=keepdims, source=label)
    if back is not None:
        state.move("Transpose", (pooled,), state.new_int(out), perm=back)
    return True


def _mean_order(node: Node) -> tuple[int, ...] | None:
    """The dimensions of a ReduceMean's input with the two that stay in front; None where not two stay."""
    rank, axes = rank_of(node.inputs[0]), axes_of(node)
    if rank is None or not axes:
        return None
    averaged = sorted(set(axes))
    kept = [i for i in range(rank) if i not in averaged]
    return (*kept, *averaged) if len(kept) == 2 and len(kept) + len(averaged) == rank > 2 else None


def concat(state: State, node: Node, out: Tensor, lo: int, hi: int) -> bool:
    """Concat of quantized tensors; each is rescaled onto the grid of the result."""
    rank = rank_of(out) or max((rank_of(t) or 0 for t in node.inputs), default=0)
    if not is_op(node, "Concat") or any(state.usable(t) is None for t in (out, *node.inputs)):
        return False
    axis = int(node.attr("axis", 0))
    if axis < 0 and not rank:
        return False
    names, label = tuple(state.int_name(t) for t in node.inputs), label_of(node)
    place = axis + rank if axis < 0 else axis
    state.build.add(Concat, label, names, (state.new_int(out),), lo=lo, hi=hi, axis=place, source=label)
    return True


def choice(state: State, node: Node, out: Tensor, lo: int, hi: int) -> bool:
    """Where, Max or Min between constants, or tensors that are quantized: each goes onto the grid of the result.

    Of a Where one at least: the other may be rounded here. Rounding is monotone, so that the larger of two rounded
    numbers is the larger one, rounded.
    """
    params = state.params(out)
    if not is_op(node, *CHOOSERS) or params is None or params.is_per_channel:
        return False
    sides = joined(node)
    computed = [state.params(t) for t in sides if not isinstance(t, Constant)]
    known = any if node.op == "Where" else all
    if (computed and not known(computed)) or any(p is not None and p.is_per_channel for p in computed):
        return False
    reals = [state.graph.real(t) for t in sides]
    if any(real is not None and np.isnan(real).any() for real in reals):
        return False
    names = [_onto_grid(state, tensor, real, params, lo, hi) for tensor, real in zip(sides, reals, strict=True)]
    label = label_of(node)
    inputs = (state.float_name(node.inputs[0]), *names) if node.op == "Where" else tuple(names)
    state.build.add(Move, label, inputs, (state.new_int(out),), op_type=node.op, attrs={}, source=label)
    return True


def _onto_grid(state: State, tensor: Tensor, real: Array | None, params: QuantParams, lo: int, hi: int) -> str:
    """The integers of a tensor on the grid of an operator that reads it; `real` are the numbers of a constant one."""
    if real is not None:
        integers = np.clip(params.quantize(real), lo, hi)
        return state.build.constant(tensor.name, integers.astype(params.container, copy=False), params)
    own = state.params(tensor)
    if own is not None and own.same_grid(params) and own.dtype == params.dtype and lo <= own.qmin <= own.qmax <= hi:
        return state.int_name(tensor)
    name = state.build.quantized(f"{tensor.name}_on_grid", params, shape_of(tensor))
    if own is None:
        return state.build.add(Quantize, f"Quantize_{tensor.name}", (state.float_name(tensor),), (name,), lo=lo, hi=hi)
    return state.build.add(Rescale, f"Rescale_{tensor.name}", (state.int_name(tensor),), (name,), lo=lo, hi=hi)


def movement(state: State, node: Node) -> bool:
    """An operator that moves the elements of a quantized tensor; outputs that lie on other grids are rescaled."""
    x = node.inputs[0] if node.inputs else None
    if x is None or not is_movement(node):
        return False
    params = state.params(x)
    if isinstance(x, Constant) and params is not None:
        params = state.stored(state.graph.params[x.name])
    if params is None or params.is_per_channel:
        return False
    outs = [(t, state.params(t)) for t in node.outputs if t.name]
    if any(p is None or p.is_per_channel for _, p in outs):
        return False
    inputs = _move_inputs(state, node, params)
    if inputs is None:
        return False
    rescaled: list[tuple[str, Tensor, QuantParams]] = []
    names: list[str] = []
    for tensor in node.outputs:
        wanted = state.params(tensor) if tensor.name else None
        if wanted is None:
            names.append("")
        elif _moves_onto(state, node, params, wanted):
            names.append(state.new_int(tensor))
        else:
            between = state.build.quantized(f"{tensor.name}_moved", params, shape_of(tensor))
            names.append(between)
            rescaled.append((between, tensor, wanted))
    emit_move(state, node, inputs, tuple(names), params)
    for between, tensor, wanted in rescaled:
        result, label = (state.new_int(tensor),), label_of(node)
        state.build.add(
            Rescale, f"Rescale_{tensor.name}", (between,), result, lo=wanted.qmin, hi=wanted.qmax, source=label
        )
    return True


def _moves_onto(state: State, node: Node, params: QuantParams, wanted: QuantParams) -> bool:
    """Whether moved integers are those of the result as they are: the same grid, and no range that cuts some off."""
    if not wanted.same_grid(params) or wanted.dtype != params.dtype:
        return False
    if node.op in MAXIMA or (wanted.qmin <= params.qmin and params.qmax <= wanted.qmax):  # maxima clamp
        return True
    x = node.inputs[0]
    if not isinstance(x, Constant) or not x.values.size or node.op == "Pad":  # which adds another number
        return False
    moved = params.zero_point[0] - state.graph.params[x.name].zero_point[0]
    return wanted.qmin <= int(x.values.min()) + moved and int(x.values.max()) + moved <= wanted.qmax


def _move_inputs(state: State, node: Node, params: QuantParams) -> tuple[str, ...] | None:
    """The operand names of a movement: integers, then shapes and indices; a pad value as an integer of the grid."""
    place = 2 if node.op == "Pad" else None  # of the value that it fills with
    names = [state.int_name(node.inputs[0])]
    names += [state.float_name(t) if t.name else "" for i, t in enumerate(node.inputs[1:], 1) if i != place]
    if place is None:
        return tuple(names)
    if node.attr("mode", "constant") == "constant":
        value = pad_value(node)
        if value is None or not on_grid(value, params):
            return None
        names.insert(place, state.build.constant("pad_value", params.quantize(np.asarray(value, np.float32))))
    elif len(names) > place:  # the axes stay behind it
        names.insert(place, "")
    return tuple(names)


def emit_move(state: State, node: Node, inputs: tuple[str, ...], outputs: tuple[str, ...], params: QuantParams) -> None:
    """The node on the integers `inputs`, with the operands that say how it moves them."""
    label = label_of(node)
    if node.op not in MAXIMA:
        state.build.add(Move, label, inputs, outputs, op_type=node.op, attrs=dict(node.attrs), source=label)
        return
    lo, hi = params.qmin, params.qmax
    own = state.build.graph.tensors[outputs[0]].params
    if own is not None:
        lo, hi = max(lo, own.qmin), min(hi, own.qmax)
    if node.op == "GlobalMaxPool":
        state.build.add(Pool, label, inputs, outputs, lo=lo, hi=hi, mode="max", source=label)
        return
    moving = sized_window(state.graph, node, tuple(node.attr("kernel_shape")))
    _windowed(state, node, "max", moving, inputs, outputs, lo, hi)

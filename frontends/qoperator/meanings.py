"""Integers that are read on another grid than they were written on, since integer arithmetic is what is meant.

    q -> DQ(1, 0) -> Q(1, 128) -> r                      r = q + 128: the real numbers of q, on the zero point + 128
    q -> QLinearMul(1, 0, by -1) -> (1, 255) -> r        r = 255 - q: minus those; an Add of them is a Sub
    q -> DQ(d, z) -> Resize -> Q(t, y) -> r              see `interpolation.py`
    table, q -> Cast -> GatherElements -> r              a function of real numbers
    a, b -> Where -> r                                   a choice between real numbers

This is how qatc itself writes what ONNX Runtime has no operator for. A step of one stands for the integers themselves;
what they stand for in turn is known from what made them, or from what reads the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
import onnx

from qatc.compiler.graph import Constant, Node, Tensor, value_of
from qatc.compiler.model.links import is_op, maker_of
from qatc.compiler.passes.movement import is_movement
from qatc.compiler.quant import DTYPES, Array, dtype_name, dtype_range, number_of
from qatc.compiler.rewrite import NoMatch
from qatc.frontends.common.dequantization import dequantization
from qatc.frontends.common.integers import is_dq, is_q
from qatc.frontends.qoperator.interpolation import centered, interpolation
from qatc.frontends.qoperator.reader import Grid, Meaning, Reader, element_of

MEANINGS: Final[dict[str, Meaning]] = {}
MEANINGS["Sub"] = centered
_INDICES: Final = (onnx.TensorProto.INT32, onnx.TensorProto.INT64)
_FLOATS: Final = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)
_ONE_OPERAND: Final = (0,)
_PAIR: Final = (0, 3)
_OPERANDS: Final = {  # where operators of integers have operands that scale and zero point follow
    "QLinearConv": _PAIR,
    "QLinearMatMul": _PAIR,
    "QGemm": _PAIR,
    "QLinearAdd": _PAIR,
    "QLinearMul": _PAIR,
    "QLinearWhere": (1, 4),
    "QLinearSigmoid": _ONE_OPERAND,
    "QLinearLeakyRelu": _ONE_OPERAND,
    "QLinearSoftmax": _ONE_OPERAND,
    "QLinearReduceMean": _ONE_OPERAND,
    "QLinearAveragePool": _ONE_OPERAND,
    "QLinearGlobalAveragePool": _ONE_OPERAND,
    "DequantizeLinear": _ONE_OPERAND,
}
_ZERO_ALONE: Final = {"ConvInteger": 2, "MatMulInteger": 2, "MatMulIntegerToFloat": 4}  # where that of the left is
_FAR: Final = 1000  # tensors that are looked at for one that states a grid


def _means(*ops: str) -> Callable[[Meaning], Meaning]:
    def register(rule: Meaning) -> Meaning:
        for op in ops:
            MEANINGS[op] = rule
        return rule

    return register


# -- what integers stand for --------------------------------------------------------------------------------------


def declare_inputs(reader: Reader) -> None:
    """Graph inputs of bytes stand for what somebody reads in them, if not everybody reads bare integers."""
    for tensor in reader.graph.inputs:
        found = stated(reader, tensor) if dtype_name(element_of(tensor)) in ("int8", "uint8") else None
        if found is not None and not _is_unit(found):
            reader.grids[id(tensor)] = found


def stated(reader: Reader, integers: Tensor) -> Grid | None:
    """The grid on which somebody reads some integers, moved or clamped in between; None where nobody says.

    A step of one comes last: it may be no more than the way to the integers.
    """
    waiting, seen = [integers], set[int]()
    unit: Grid | None = None
    while waiting and len(seen) < _FAR:
        tensor = waiting.pop(0)
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        for node in reader.graph.consumers(tensor):
            found = next(_grids_at(reader, node, tensor), None)
            if found is not None and not _is_unit(found):
                return found
            unit = unit or found
            if not node.domain and (is_movement(node) or node.op in ("Clip", "Concat", "MaxPool", "Where")):
                waiting.extend(node.outputs)
    return unit


def _grids_at(reader: Reader, node: Node, tensor: Tensor) -> Iterator[Grid]:
    if node.op in _ZERO_ALONE and node.inputs[0] is tensor:
        index, one = _ZERO_ALONE[node.op], reader.graph.constant("one", np.asarray(1, np.float32))
        yield Grid(one, node.optional(index))
    places = range(2, len(node.inputs), 3) if node.op == "QLinearConcat" else _OPERANDS.get(node.op, ())
    for index in places:
        if index + 1 < len(node.inputs) and node.inputs[index] is tensor:
            yield reader.grid(node, index + 1)


def _is_unit(grid: Grid) -> bool:
    return number_of(value_of(grid.scale)) == 1


def _with_zero(reader: Reader, grid: Grid, zero: int, dtype: np.dtype[np.generic], name: str) -> Grid | None:
    """The grid with another zero point, None where the type does not hold it."""
    if dtype_name(dtype) not in DTYPES:
        return None
    low, high = dtype_range(dtype_name(dtype))
    if not low <= zero <= high:
        return None
    return Grid(grid.scale, reader.graph.constant(f"{name}_zero_point", np.asarray(zero, dtype)))


def _own(reader: Reader, q: Tensor, out: Tensor, zero_of: Callable[[int], int]) -> Grid | None:
    """The grid of integers: that of what made them; else (an input) that on which `out` is read, carried back."""
    have = reader.grids.get(id(q))
    if have is not None:
        return have
    read = stated(reader, out)
    known = None if read is None else read.numbers()
    return None if read is None or known is None else _with_zero(reader, read, zero_of(known[1]), element_of(q), q.name)


# -- integers that are shifted, mirrored or scaled ----------------------------------------------------------------


@_means("QuantizeLinear")
def requantization(reader: Reader, node: Node) -> bool:
    """A QuantizeLinear of integers that were only shifted, or interpolated."""
    return shift(reader, node) or interpolation(reader, node, stated)


def shift(reader: Reader, node: Node) -> bool:
    """A QuantizeLinear behind a DequantizeLinear (or a Cast) of the same step, on a grid that is not the integers'."""
    maker, out = reader.graph.producer(node.inputs[0]), node.outputs[0]
    if maker is None or not maker.inputs or node.optional(2) is None:
        return False
    q, target = maker.inputs[0], reader.grid(node, 1).numbers()
    if is_dq(maker):
        source = reader.grid(maker, 1).numbers()
    elif is_op(maker, "Cast") and maker.attr("to") in _FLOATS:
        source = (1.0, 0)
    else:
        return False
    if source is None or target is None or source[0] != target[0] or isinstance(q, Constant):
        return False
    step, zero = target[1] - source[1], value_of(node.inputs[2])
    have = _own(reader, q, out, lambda zero: zero - step)
    known = None if have is None else have.numbers()
    if have is None or known is None or zero is None or known == source:
        return False
    moved = _with_zero(reader, have, known[1] + step, zero.dtype, out.name)
    if moved is None or moved.zero is None:
        return False
    node.inputs = [reader.real(q, have), moved.scale, moved.zero]
    reader.grids[id(q)], reader.grids[id(out)] = have, moved
    return True


@_means("DequantizeLinear")
def other_step(reader: Reader, node: Node) -> bool:
    """A DequantizeLinear on a grid that is not the integers', if not for a QuantizeLinear to shift them."""
    readers = reader.graph.consumers(node.outputs[0])
    if len(node.inputs) < 2 or (readers and all(is_q(n) for n in readers)):
        return False
    real = reader.on_other_grid(node, node.inputs[0], reader.grid(node, 1))
    if real is None:
        return False
    reader.finish(node, real, None)
    return True


def mirror(reader: Reader, node: Node) -> bool:
    """A QLinearMul of integers by minus one, on a grid that is not theirs."""
    factor = number_of(value_of(node.inputs[3]))
    a, b, y = (reader.grid(node, index).numbers() for index in (1, 4, 6))
    if node.op != "QLinearMul" or factor is None or a is None or b is None or y is None:
        return False
    if b[0] * (factor - b[1]) * a[0] != -y[0]:
        return False
    q, out = node.inputs[0], node.outputs[0]
    total = a[1] + y[1]
    have = _own(reader, q, out, lambda zero: total - zero)
    known = None if have is None else have.numbers()
    if have is None or known is None or known == a:
        return False
    opposite = _with_zero(reader, have, total - known[1], element_of(q), out.name)
    if opposite is None:
        return False
    reader.finish(node, reader.insert("Neg", [reader.real(q, have)], f"{out.name}_real"), opposite)
    reader.grids[id(q)] = have
    reader.mirrored[id(out)] = (q, have)
    return True


def on_own_step(reader: Reader, x: Tensor, read: Grid) -> tuple[Grid, Tensor | None]:
    """The grid of integers, and by what to multiply a product of theirs if it reads them on another step (else None).

    This is how a product takes a factor in: that of attention, or the reciprocal of the step, for real accumulators.
    """
    have = reader.grids.get(id(x))
    stated_numbers, known = read.numbers(), None if have is None else have.numbers()
    if have is None or stated_numbers is None or known is None or stated_numbers[1] != known[1]:
        return read, None
    ratio = np.float32(stated_numbers[0] / known[0])
    return have, None if ratio == 1 else reader.graph.constant(f"{x.name}_factor", np.asarray(ratio))


@_means("Cast")
def as_floats(reader: Reader, node: Node) -> bool:
    """Integers cast to float (not for a QuantizeLinear): shifted and scaled to what they stand for, or as they are."""
    readers = reader.graph.consumers(node.outputs[0])
    have = reader.grids.get(id(node.inputs[0]))
    if node.attr("to") not in _FLOATS or have is None or (readers and all(is_q(n) for n in readers)):
        return False
    try:
        found = dequantization(reader.graph, node.outputs[0])
    except NoMatch:
        found = None
    end, scale, zero = (node.outputs[0], 1.0, 0) if found is None else found
    maker, name = reader.graph.producer(end), end.name
    if maker is None:
        return False
    read = Grid(
        reader.graph.constant(f"{name}_scale", np.asarray(scale, np.float32)),
        reader.graph.constant(f"{name}_zero_point", np.asarray(zero, np.int32)),
    )
    real = reader.on_other_grid(node, node.inputs[0], read) or reader.real(node.inputs[0], have)
    reader.finish(maker, real, None)
    return True


# -- tables and choices -------------------------------------------------------------------------------------------


def is_table(node: Node) -> bool:
    """Whether the node reads a constant list of bytes at places that were cast from integers."""
    if not is_op(node, "Gather", "GatherElements") or len(node.inputs) != 2:
        return False
    entries, index = value_of(node.inputs[0]), node.inputs[1]
    cast = maker_of(index)
    if entries is None or entries.ndim != 1 or dtype_name(entries.dtype) not in ("int8", "uint8"):
        return False
    return is_op(cast, "Cast") and cast.attr("to") in _INDICES


@_means("Gather", "GatherElements")
def table(reader: Reader, node: Node) -> bool:
    """A constant list of integers, read at places that are integers themselves: a function of what those stand for."""
    index = node.inputs[1]
    have = reader.grids.get(id(index))
    known = None if have is None else have.numbers()
    entries, cast = value_of(node.inputs[0]), reader.graph.producer(index)
    if not is_table(node) or entries is None or have is None or known is None or cast is None:
        return False
    name, out = node.outputs[0].name, _result(reader, node, entries)
    numbers = out.numbers()
    if numbers is None:
        return False
    x = reader.real(cast.inputs[0], have)
    place = reader.insert("Round", [reader.insert("Div", [x, have.scale], f"{name}_steps")], f"{name}_whole")
    zero = reader.graph.constant(f"{name}_origin", np.asarray(known[1], np.float32))
    place = reader.insert("Cast", [reader.insert("Add", [place, zero], f"{name}_place")], f"{name}_index", {"to": 7})
    real = ((entries.astype(np.float64) - numbers[1]) * numbers[0]).astype(np.float32)
    y = reader.insert("Gather", [reader.graph.constant(f"{name}_table", real), place], f"{name}_real", {"axis": 0})
    reader.finish(node, y, out)
    return True


def _result(reader: Reader, node: Node, entries: Array) -> Grid:
    """The grid of a result that the file does not state there: its readers', or the integers themselves."""
    found = stated(reader, node.outputs[0])
    if found is not None and found.numbers() is not None:
        return found
    name = node.outputs[0].name
    one = reader.graph.constant(f"{name}_unit", np.asarray(1, np.float32))
    return Grid(one, reader.graph.constant(f"{name}_zero", np.zeros((), entries.dtype)))


@_means("Where")
def choice(reader: Reader, node: Node) -> bool:
    """A Where between integers on one grid."""
    sides = node.inputs[1:3]
    known = [reader.grids.get(id(t)) for t in sides]
    have = next((g for g in known if g is not None), None)
    fits = all(isinstance(t, Constant) or (g is not None and have is not None and g.same(have))
               for t, g in zip(sides, known, strict=True))  # fmt: skip
    if have is None or not fits:
        return False
    y = reader.insert("Where", [node.inputs[0], *(reader.real(t, have) for t in sides)], f"{node.outputs[0].name}_real")
    reader.finish(node, y, have)
    return True

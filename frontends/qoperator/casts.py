"""Integers of a product that arithmetic makes: QuantizeLinear states their grid.

    x -> Mul(1/s) -> Round -> Add(z) -> Clip -> Cast(int8) -> q          x -> QuantizeLinear(s, z) -> q
    q -> Cast(int32) -> Add(128) -> Cast(uint8) -> r                     q -> DQ(1, 0) -> Q(1, 128) -> r

torchao's static quantization is such where its product, `_int_mm`, is translated to MatMulInteger. Whatever is not of
this kind stays as it is, and is refused where the product is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import onnx

from qatc.compiler.graph import Node, QuantGraph, Tensor, is_constant
from qatc.compiler.model.links import is_op
from qatc.compiler.passes.modernize import element_type
from qatc.compiler.quant import LARGEST, SMALLEST, dtype_range, number_of
from qatc.frontends.common.chains import LONGEST, Clamp, State, affine_of, backward, forward, start, variable_of
from qatc.frontends.common.integers import is_q, source_of
from qatc.frontends.common.params import BYTES
from qatc.frontends.common.rounded import extreme_behind

SUMS: Final = ("MatMulInteger", "ConvInteger")


class _Grid(NamedTuple):
    """The tensor that is rounded, and the grid that it is rounded to."""

    x: Tensor
    scale: np.float32
    zero: int
    range: tuple[int, int]


def state_grids(graph: QuantGraph, products: Sequence[Node]) -> None:
    """Write QuantizeLinear for what rounds the operands of products of integers."""
    changed = False
    for node in products:
        for tensor in node.inputs[:2]:
            makers = _makers(graph, tensor)
            if not makers or not (is_q(makers[-1]) or _rounded(graph, makers[-1])):
                continue
            changed = True
            for cast in makers[:-1]:
                _shifted(graph, cast)
    if changed:
        graph.sort()
        graph.clean()


def _makers(graph: QuantGraph, tensor: Tensor) -> list[Node]:
    """The Casts to bytes that some bytes went through, moved or clamped in between; last, what rounded them.

    None of these where a QuantizeLinear alone made them: it states their grid.
    """
    found: list[Node] = []
    below: Tensor | None = tensor
    while below is not None and len(found) < LONGEST:
        maker = source_of(graph, below)
        if maker is not None and is_q(maker) and found:
            return [*found, maker]
        if maker is None or not is_op(maker, "Cast") or int(maker.attr("to", 0)) not in BYTES:
            return []
        found.append(maker)
        shift = _shift(graph, maker)
        below = None if shift is None else shift[0]
    return found


def _shift(graph: QuantGraph, cast: Node) -> tuple[Tensor, int] | None:
    """Bytes that are moved by a whole number to others, none of them beyond the ends of these; and by how much."""
    add = graph.producer(cast.inputs[0])
    moved = variable_of(add)
    found = None if add is None or moved is None else affine_of(add, moved)
    wide = None if moved is None else graph.producer(moved)
    if found is None or wide is None or not is_op(wide, "Cast"):
        return None
    q, factor, by = wide.inputs[0], number_of(found[0]), number_of(found[1])
    source = BYTES.get(element_type(q) or 0)
    if factor != 1 or by is None or by != np.rint(by) or source is None:
        return None
    (low, high), (bottom, top) = dtype_range(source), dtype_range(BYTES[int(cast.attr("to"))])
    return (q, int(by)) if bottom <= low + by and high + by <= top else None


def _shifted(graph: QuantGraph, cast: Node) -> None:
    found = _shift(graph, cast)
    if found is None:
        return
    (q, by), name = found, cast.outputs[0].name
    one = graph.constant(f"{name}_one", np.asarray(1, np.float32))
    none = graph.constant(f"{name}_none", np.zeros((), BYTES[element_type(q) or 0]))
    real = graph.apply("DequantizeLinear", [q, one, none], f"{name}_real", onnx.TensorProto.FLOAT, name=f"{name}_real")
    _write(cast, real, one, graph.constant(f"{name}_moved_by", np.asarray(by, BYTES[int(cast.attr("to"))])))


def _rounded(graph: QuantGraph, cast: Node) -> bool:
    """A Cast to bytes behind a Round: QuantizeLinear, and a Clip where the range is not all that the type holds."""
    node = _round_before(graph, cast)
    found = None if node is None or extreme_behind(graph, cast) else _grid_of(graph, cast, node)
    if found is None:
        return False
    name, dtype = cast.outputs[0].name, BYTES[int(cast.attr("to"))]
    _write(
        cast,
        found.x,
        graph.constant(f"{name}_scale", np.asarray(found.scale)),
        graph.constant(f"{name}_zero_point", np.asarray(found.zero, dtype)),
    )
    if found.range != dtype_range(dtype):
        old = cast.outputs[0]
        q = graph.variable(f"{name}_unclamped", element_type(old) or int(cast.attr("to", 0)))
        cast.outputs[0] = q
        ends = [
            graph.constant(f"{name}_{which}", np.asarray(end, dtype))
            for which, end in zip(("low", "high"), found.range, strict=True)
        ]
        graph.insert("Clip", [q, *ends], [old], hint=f"{name}_clamp")
    return True


def _round_before(graph: QuantGraph, cast: Node) -> Node | None:
    """The Round whose result a Cast reads, through operators of one tensor."""
    node = graph.producer(cast.inputs[0])
    for _ in range(LONGEST):
        data = variable_of(node)
        if node is None or data is None or is_op(node, "Round"):
            break
        node = graph.producer(data)
    return node if is_op(node, "Round") else None


def _grid_of(graph: QuantGraph, cast: Node, node: Node) -> _Grid | None:
    """The grid that a Round in front of a Cast rounds to; None where the two are no quantizer."""
    behind = (start(node.outputs[0]), *forward(graph, node.outputs[0]))
    end = next((s for s in behind if s.tensor is cast.inputs[0]), None)
    states = list(backward(graph, node.inputs[0]))
    begin = next((s for s in states if s.multiplied), states[0])
    factor, before = number_of(begin.scale), number_of(begin.offset)
    after = None if end is None else number_of(end.offset)
    if is_constant(begin.tensor) or element_type(begin.tensor) not in (None, onnx.TensorProto.FLOAT):
        return None
    if end is None or not factor or factor < 0 or before is None or after is None or not np.all(end.scale == 1):
        return None
    found, (bottom, top) = _range(begin, end, after), dtype_range(BYTES[int(cast.attr("to"))])
    zero, scale = before + after, np.float32(1 / factor)
    if found is None or not (bottom <= found[0] and found[1] <= top):
        return None  # the Cast would wrap around, or saturate: that is up to who runs it
    if before != np.rint(before):
        return None  # what is rounded is not the number of steps
    if not bottom <= zero <= top or zero != int(zero) or not SMALLEST <= scale <= LARGEST / 256:
        return None
    return _Grid(begin.tensor, scale, int(zero), found)


def _range(begin: State, end: State, after: float) -> tuple[int, int] | None:
    """The ends of the integers; None where there are none, or a clamp of what is rounded stands between two of them."""
    low, high = -np.inf, np.inf
    clamps: list[tuple[Clamp, bool]] = [(c, False) for c in begin.clamps] + [(c, True) for c in end.clamps]
    for clamp, is_rounded in clamps:
        step, origin = number_of(clamp.scale), number_of(clamp.offset)
        if not step or step < 0 or origin is None:
            return None
        ends = [(e - origin) / step + after for e in (clamp.low, clamp.high)]
        if is_rounded and not all(np.isinf(e) or e == np.rint(e) for e in ends):
            return None
        low, high = max(low, float(np.rint(ends[0]))), min(high, float(np.rint(ends[1])))
    return (int(low), int(high)) if low <= high and np.isfinite([low, high]).all() else None


def _write(node: Node, x: Tensor, scale: Tensor, zero: Tensor) -> None:
    node.op, node.domain = "QuantizeLinear", None
    node.inputs = [x, scale, zero]
    node.attrs.clear()

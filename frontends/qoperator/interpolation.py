"""Sums of integers with weights, as a linear Resize in integers is written: read as what they are of real numbers.

    q<s, z> -> DQ(d, z) -> Resize -> [Round] -> Q(t, y) -> r             q -> DQ(s, z) -> Resize -> Q(t * s / d, y) -> r
    q<s, z> -> Cast -> Sub(z) -> Gather, Mul, Add -> Cast -> Q(t, y)     the same, with d = 1

What lies between is linear, so that a step that is not the integers' own takes the result's with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import onnx

from qatc.compiler.graph import Constant, Node, Tensor, value_of
from qatc.compiler.lowering.resizing import interpolates
from qatc.compiler.model.links import is_op, label_of
from qatc.compiler.passes.movement import is_movement
from qatc.compiler.quant import LARGEST, SMALLEST, number_of
from qatc.frontends.common.integers import is_dq
from qatc.frontends.qoperator.reader import Grid, Reader

_ALIKE: Final = 2.0**-21  # relative: two steps that float32 arithmetic made of one
_FINE: Final = 8  # units of a sum to a step of its result: to round it first is next to nothing
_FAR: Final = 1000  # tensors that are looked at for what made them


def centered(reader: Reader, node: Node) -> bool:
    """Integers cast to int32 less their zero point: what they stand for, in steps."""
    cast, zero = reader.graph.producer(node.inputs[0]), number_of(value_of(node.inputs[1]))
    if not is_op(cast, "Cast") or cast.attr("to") != onnx.TensorProto.INT32:
        return False
    have = reader.grids.get(id(cast.inputs[0]))
    known = None if have is None else have.numbers()
    if have is None or known is None or known[1] != zero:
        return False
    one = reader.graph.constant(f"{node.outputs[0].name}_step", np.asarray(1, np.float32))
    steps = reader.on_other_grid(node, cast.inputs[0], Grid(one, have.zero)) or reader.real(cast.inputs[0], have)
    reader.finish(node, steps, None)
    reader.accumulators.append(steps)
    return True


def interpolation(reader: Reader, node: Node, stated: Callable[[Reader, Tensor], Grid | None]) -> bool:
    """A QuantizeLinear of sums of integers that a DequantizeLinear read on a step that is not theirs.

    `stated` finds the grid on which somebody reads the result.
    """
    out, made = node.outputs[0], reader.grid(node, 1).numbers()
    found = _scaled(reader, node)
    if found is None or made is None:
        return False
    scaling, factor, between = found
    rounds = [each for each in between if each.op == "Round"]
    if rounds and made[0] < _FINE:
        return False
    wanted = None if (grid := stated(reader, out)) is None else grid.numbers()
    step = wanted[0] if wanted is not None and wanted[1] == made[1] else made[0] / factor
    left = factor * step / made[0]  # of the factor, in front of what is made in steps of `step`
    if not (SMALLEST <= step <= LARGEST and SMALLEST <= left <= LARGEST):
        return False
    if abs(left - 1) > _ALIKE:  # the weights add up to more than one
        scaling.inputs[-1] = reader.graph.constant(f"{out.name}_factor", np.asarray(left, np.float32))
    else:
        between.append(scaling)
    for each in between:
        reader.graph.bypass(each)
        reader.gone.append(each)
    for each in rounds:
        message = (
            f"a sum is rounded here already, which moves no result by more than {0.5 / made[0]:.2g} steps: left out"
        )
        reader.graph.diagnostics.note("QAT307", message, node=label_of(each), tensor=out.name)
    node.inputs[1] = reader.graph.constant(f"{out.name}_step", np.asarray(step, np.float32))
    reader.grids[id(out)] = reader.grid(node, 1)
    return True


def _linear_in(node: Node, computed: list[Tensor]) -> list[Tensor]:
    """The inputs of which a node makes a sum of multiples, as far as rounding goes; none where it makes another."""
    if is_op(node, "Sum", "Add") and len(computed) == len(node.inputs):
        return computed
    if is_op(node, "Mul") and len(computed) == 1:
        return computed
    return node.inputs[:1] if interpolates(node) or is_movement(node) or is_op(node, "Round", "Cast") else []


def _scaled(reader: Reader, node: Node) -> tuple[Node, float, list[Node]] | None:
    """The factor behind a DequantizeLinear that all is linear in which `node` reads, and what changes nothing.

    Those are Rounds, where a unit is a small part of a step, and sums of one.

    None where there are several, or where somebody else reads what lies between.
    """
    found, between, walked = list[tuple[Node, float]](), list[Node](), {id(node)}
    waiting, tensors = [node.inputs[0]], dict[int, Tensor]()
    while waiting and len(tensors) < _FAR:
        tensor = waiting.pop()
        maker = reader.graph.producer(tensor)
        if maker is None:
            return None
        if id(tensor) in tensors:
            continue
        tensors[id(tensor)] = tensor
        walked.add(id(maker))
        computed = [t for t in maker.inputs if not isinstance(t, Constant)]
        factor = number_of(value_of(maker.inputs[-1])) if is_op(maker, "Mul") and len(computed) == 1 else None
        before = reader.graph.producer(computed[0]) if computed else None
        if factor is not None and before is not None and is_dq(before):
            found.append((maker, factor))
            continue
        if is_op(maker, "Round") or (is_op(maker, "Sum") and len(maker.inputs) == 1):
            between.append(maker)
        data = _linear_in(maker, computed)
        if not data:
            return None
        waiting.extend(data)
    outside = any(id(n) not in walked for t in tensors.values() for n in reader.graph.consumers(t))
    if len(found) != 1 or waiting or outside or any(reader.graph.is_output(t) for t in tensors.values()):
        return None
    return (*found[0], between) if found[0][1] > 0 else None

"""A model written for other runtimes (QDQ): read again, it must lower to the same integer operators and results.

The meaning of a network survives that its Q/DQ are written back, which is checked on every such package: what a runtime
makes of the file is its own affair, but what the file says is what was compiled. Operators are compared in execution
order on the reference, each fed the original's inputs; a bias that was stored as int32 may move a result across a
rounding boundary, by one LSB.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import onnx

from qatc.compiler.arithmetic import Profile
from qatc.compiler.diagnostics import fail
from qatc.compiler.integer import Dequantize, IntegerGraph, Op
from qatc.compiler.quant import Array
from qatc.compiler.reference import OnnxEvaluator, execute, execute_op
from qatc.compiler.result import OutputCheck, TensorCheck
from qatc.compiler.runtime.processor import is_exact
from qatc.compiler.runtime.sessions import RunnableModel, errors, version
from qatc.compiler.simulation import Simulation
from qatc.compiler.verify.ends import Outputs, deployed_inputs
from qatc.compiler.verify.limits import Limits
from qatc.compiler.verify.tally import Tally

_EQUAL_SHARE: Final = 0.99  # to_qdq keeps the error of a stored bias below 0.01 LSB
_FLOAT_TOLERANCE: Final = 2.0**-18


def compare_reread(
    graph: IntegerGraph,
    again: IntegerGraph,
    profile: Profile,
    samples: Sequence[Mapping[str, Array]],
    evaluate: OnnxEvaluator,
) -> tuple[TensorCheck, ...]:
    """One check per result of `graph`, compared with that of `again`, which was read from the written model.

    Args:
        graph: what was written.
        again: the written model, read and lowered again.
        profile: how both round.
        samples: one array per input each.
        evaluate: runs Move and Float operators.
    """
    ours, theirs = _in_order(graph), _in_order(again)
    if [(op.kind, len(op.outputs)) for op in ours] != [(op.kind, len(op.outputs)) for op in theirs]:
        tally = Tally(graph.outputs[0], "graph", "package")
        tally.problem(f"the written model lowers to {len(theirs)} operators, not to the same {len(ours)}")
        return (tally.check(),)
    pairs, tallies = list(zip(ours, theirs, strict=True)), dict[str, Tally]()
    for feeds in samples:
        _compare(graph, again, pairs, profile, feeds, evaluate, tallies)
    return tuple(tally.check() for tally in tallies.values())


def _in_order(graph: IntegerGraph) -> list[Op]:
    """The operators in the order in which the outputs need them: that of a file is any that puts operands first."""
    makers = graph.producers()
    found: list[Op] = []
    seen: set[int] = set()
    left = [(makers[name], False) for name in reversed(graph.outputs) if name in makers]
    while left:
        op, operands_done = left.pop()
        if operands_done:
            found.append(op)
        elif id(op) not in seen:
            seen.add(id(op))
            left.append((op, True))
            left += [(makers[name], False) for name in reversed(op.inputs) if name in makers]
    return found


def _compare(
    graph: IntegerGraph,
    again: IntegerGraph,
    pairs: Sequence[tuple[Op, Op]],
    profile: Profile,
    feeds: Mapping[str, Array],
    evaluate: OnnxEvaluator,
    tallies: dict[str, Tally],
) -> None:
    expected = execute(graph, deployed_inputs(graph, feeds), profile, evaluate=evaluate)
    values: dict[str, Array] = {**again.constants}
    values.update({there: expected[here] for here, there in zip(graph.inputs, again.inputs, strict=True)})
    for op, other in pairs:
        results = execute_op(again, other, values, profile, evaluate)
        for name, twin, value in zip(op.outputs, other.outputs, results, strict=True):
            if not name:
                continue
            values[twin] = expected[name]
            tally = tallies.setdefault(name, Tally(name, op.title, "package"))
            params = graph.tensors[name].params
            if params is None:
                tally.floats(value, expected[name], _tolerance(graph, op, expected[name]))
            elif value.dtype != expected[name].dtype:
                tally.problem(f"it is {value.dtype}, not {expected[name].dtype}")
            else:
                where = tally.integers(value, expected[name], params)
                _judge(tally, value, expected[name], where)


def _tolerance(graph: IntegerGraph, op: Op, expected: Array) -> float:
    """What a float result may differ by, relative to its largest: a bias was stored on the accumulator's grid."""
    largest = float(np.abs(expected).max(initial=0.0)) if expected.dtype.kind == "f" else 0.0
    if not isinstance(op, Dequantize) or len(op.inputs) < 2 or not largest:
        return _FLOAT_TOLERANCE
    return _FLOAT_TOLERANCE + 0.5 * max(graph.params(op.inputs[0]).scale) / largest


def _judge(tally: Tally, value: Array, expected: Array, where: Array) -> None:
    if not where.size:
        return
    worst = int(np.abs(value.reshape(-1)[where].astype(np.int64) - expected.reshape(-1)[where]).max())
    if worst > 1 or where.size > max(1, (1 - _EQUAL_SHARE) * value.size):
        tally.problem(f"{where.size:,} of {value.size:,} elements differ, by up to {worst} LSB")
    else:
        tally.excused += int(where.size)


def compare_outputs(
    model: onnx.ModelProto, graph: IntegerGraph, simulation: Simulation, samples: Sequence[Mapping[str, Array]]
) -> tuple[OutputCheck, ...]:
    """The written model's outputs in ONNX Runtime, as real numbers, against the simulation's.

    The inputs and outputs of `graph` are the model's. It is optimized as users run it, but where the integer products
    that ONNX Runtime then makes saturate.
    """
    runnable = RunnableModel(model, optimize=is_exact())
    outputs = Outputs(graph=graph)
    for feeds in samples:
        expected = simulation.run(feeds, simulation.outputs)
        try:
            found = runnable.run(deployed_inputs(graph, feeds))
        except errors() as error:
            raise fail("QAT401", f"ONNX Runtime {version()} cannot run the written model: {error}") from error
        for name, wanted in expected.items():
            if name in found and wanted.dtype.kind == "f" and wanted.size:
                outputs.add(name, found[name], wanted, graph.tensors[name].params)
    checks, _, _ = outputs.finish(Limits(), {})
    return checks

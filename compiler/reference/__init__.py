"""The reference executor: runs an IntegerGraph in exact integer arithmetic with numpy alone.

It is the executable specification that packages and silicon are checked against. The meaning of each operator is the
docstring in `integer.py`; how results are rounded is the profile's (`arithmetic`); nothing else is left open.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import numpy as np

from qatc.compiler.arithmetic import Profile
from qatc.compiler.budget import active
from qatc.compiler.diagnostics import CompileError, fail
from qatc.compiler.integer import (
    CHOOSERS,
    Concat,
    Conv,
    Dequantize,
    Elementwise,
    Float,
    IntegerGraph,
    LayerNorm,
    Lookup,
    MatMul,
    Move,
    Op,
    Pool,
    Quantize,
    Rescale,
    Resize,
    Softmax,
)
from qatc.compiler.quant import Array, Integers, QuantParams
from qatc.compiler.reference.accumulate import accumulators, bias_of
from qatc.compiler.reference.evaluate import OnnxEvaluator, evaluate_onnx
from qatc.compiler.reference.pooling import pool
from qatc.compiler.reference.resize import resize_linear

_NOT_OF_BYTES: Final = {"DepthToSpace", "SpaceToDepth", *CHOOSERS}  # in ONNX Runtime 1.23
_WITHOUT_KERNELS: Final = ("int16", "uint16")  # some operators of ONNX Runtime do not move these
_MADE_NAN: Final = (
    "an operator before it makes them: 0 / 0 of numbers that round to zero, a logarithm or root below zero; "
    "give typical data with --input, or add an epsilon that is a step of the grid at least"
)

__all__ = ["OnnxEvaluator", "evaluate_onnx", "execute", "execute_op"]


def execute(
    graph: IntegerGraph,
    feeds: Mapping[str, Array],
    profile: Profile,
    *,
    evaluate: OnnxEvaluator = evaluate_onnx,
    forced: Mapping[str, Array] | None = None,
    instead: Mapping[str, Array] | None = None,
) -> dict[str, Array]:
    """Run `graph` and return every tensor by name: the inputs, and what each operator computed.

    Args:
        graph: a verified graph.
        feeds: one array per graph input, of the dtype that the graph's tensor states.
        profile: how results are rounded.
        evaluate: runs Move and Float operators.
        forced: tensors that consumers read instead of the computed ones. The result still holds what was computed, so
            that each operator can be compared on inputs that are not of its own making.
        instead: what the results of operators are that cannot be computed of `forced`, such as of NaN; without it, that
            is an error.

    Raises:
        CompileError: QAT008 for inputs that are missing, of another dtype, or hold NaN where they are quantized; QAT302
            for an operator that cannot be evaluated, QAT403 for operands that do not fit each other.
    """
    values: dict[str, Array] = {**graph.constants}
    results: dict[str, Array] = {}
    forced = forced or {}
    for name in graph.inputs:
        results[name] = _fed(graph, feeds, name)
        values[name] = forced.get(name, results[name])
    for op in graph.ops:
        try:
            made = execute_op(graph, op, values, profile, evaluate)
        except (CompileError, ValueError):
            if instead is None:
                raise
            made = tuple(instead.get(name, np.empty(0)) for name in op.outputs)
        for name, value in zip(op.outputs, made, strict=True):
            if name:
                results[name] = value
                values[name] = forced.get(name, value)
    return results


def execute_op(
    graph: IntegerGraph,
    op: Op,
    values: Mapping[str, Array],
    profile: Profile,
    evaluate: OnnxEvaluator = evaluate_onnx,
) -> tuple[Array, ...]:
    """The outputs of one operator, given all its inputs (constants included) in `values`. Errors as for `execute`."""
    try:
        if isinstance(op, (Move, Float)):
            return _evaluated(graph, op, values, evaluate)
        return (_computed(graph, op, values, profile),)
    except CompileError as error:  # at the operator, where a profile, which knows of none, says no place
        found = [d if d.node or d.tensor else replace(d, node=op.source or op.name) for d in error.diagnostics]
        raise CompileError(found, error.exit_code) from error


def _computed(graph: IntegerGraph, op: Op, values: Mapping[str, Array], profile: Profile) -> Array:
    """The result of an operator of integers."""
    x = values[op.inputs[0]]
    if isinstance(op, Dequantize):
        return _dequantize(graph.params(op.inputs[0]), x, values[op.inputs[1]] if len(op.inputs) > 1 else None)
    out = graph.params(op.output)
    match op:
        case Conv() | MatMul():
            return _product(graph, op, values, profile)
        case Lookup():
            return values[op.inputs[1]][x.astype(np.int16) - np.iinfo(x.dtype).min]
        case Quantize():
            return _quantize(graph, op, x)
        case Elementwise():
            operands = [_operand(graph, values, op, index) for index in range(len(op.inputs))]
            return profile.elementwise(op.op, operands, out, op.lo, op.hi)
        case Rescale():
            return profile.rescale(x, graph.params(op.inputs[0]), out, op.lo, op.hi)
        case Pool():
            return pool(op, x, graph.params(op.inputs[0]), out, profile)
        case Resize():
            return resize_linear(op, x, graph.params(op.inputs[0]), out, profile)
        case Softmax():
            return profile.softmax(x, graph.params(op.inputs[0]), out, op.lo, op.hi, op.axis)
        case LayerNorm():
            gamma, *rest = (values[name] for name in op.inputs[1:])
            beta = rest[0] if rest else np.zeros_like(gamma)
            have, centered = graph.params(op.inputs[0]), not op.uncentered
            return profile.layer_norm(x, have, gamma, beta, op.epsilon, out, op.lo, op.hi, centered=centered)
        case Concat():
            operands = [_operand(graph, values, op, index) for index in range(len(op.inputs))]
            parts = [profile.rescale(q, params, out, op.lo, op.hi) for q, params in operands]
            try:
                return np.concatenate(parts, axis=op.axis)
            except ValueError as error:  # ONNX Runtime joins what has no elements, whatever its shape
                raise fail("QAT403", f"{op.kind} cannot join its operands: {error}") from error
        case _:
            raise TypeError(f"no meaning is defined for {op.kind}")


def _operand(graph: IntegerGraph, values: Mapping[str, Array], op: Op, index: int) -> tuple[Integers, QuantParams]:
    name = op.inputs[index]
    return values[name], graph.params(name)


def _product(graph: IntegerGraph, op: Conv | MatMul, values: Mapping[str, Array], profile: Profile) -> Integers:
    a, b = values[op.inputs[0]], values[op.inputs[1]]
    active().ask(8 * (a.size + b.size), "an exact product", "compile with --no-verify", node=op.name)
    acc = accumulators(graph, op, values, bias_of(op, values))
    out = graph.params(op.output)
    if out.dtype == "int32":
        return acc
    axis = 1 if isinstance(op, Conv) else acc.ndim - 1
    return profile.requantize(acc, op.acc_scale, out, op.lo, op.hi, axis, in_scale=graph.params(op.inputs[0]).scale[0])


def _quantize(graph: IntegerGraph, op: Quantize, x: Array) -> Integers:
    count = int(np.isnan(x).sum())
    if count:
        fed = op.inputs[0] in graph.inputs
        found = f"{count:,} of {x.size:,} elements are NaN"
        raise fail(
            "QAT008",
            f"{found}, which cannot be quantized"
            if fed
            else f"{found} with this sample, and no integer is meant by that",
            tensor=graph.tensors[op.output].source or op.inputs[0],
            hint="check the input data" if fed else _MADE_NAN,
        )
    return graph.params(op.output).quantize(x).clip(op.lo, op.hi)


def _dequantize(params: QuantParams, q: Integers, bias: Array | None) -> Array:
    real = params.dequantize(q)
    if bias is None:
        return real
    if bias.size > 1 and params.axis is not None:
        bias = bias.reshape([-1 if axis == params.axis else 1 for axis in range(q.ndim)])
    real += bias
    return real


def _evaluated(
    graph: IntegerGraph, op: Move | Float, values: Mapping[str, Array], evaluate: OnnxEvaluator
) -> tuple[Array, ...]:
    domain = op.domain if isinstance(op, Float) else ""
    opset = graph.domains.get(domain, 1) if domain else graph.opset
    inputs = [values[name] if name else None for name in op.inputs]
    moved = [value for value in inputs if value is not None]
    if isinstance(op, Move) and (op.op_type in _NOT_OF_BYTES or moved[0].dtype.name in _WITHOUT_KERNELS):
        evaluate = evaluate_onnx
    fixed = frozenset(i for i, name in enumerate(op.inputs) if name in graph.constants)
    return tuple(evaluate(op.op_type, domain, opset, inputs, op.attrs, len(op.outputs), fixed=fixed))


def _fed(graph: IntegerGraph, feeds: Mapping[str, Array], name: str) -> Array:
    if name not in feeds:
        raise fail("QAT008", "the graph input has no value", tensor=name)
    value, tensor = np.asarray(feeds[name]), graph.tensors[name]
    if value.dtype.name != tensor.dtype:
        raise fail("QAT008", f"the graph input is {tensor.dtype}, its value {value.dtype.name}", tensor=name)
    return value

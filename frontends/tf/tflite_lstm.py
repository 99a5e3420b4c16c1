"""LSTM operators of TFLite files in a form that tf2onnx hands on as it is: `frontends/tf/lstm.py` reads what is left.

    x, W, R, -, b, -, state, cell, -    ->    x, W, R, b              real numbers, with weights of 8 bits or not
    x, W, R, -, b, -, state, cell, -    ->    x, W, R, b, grids       integers

tf2onnx leaves absent operands out, so that the others would move up, and looks in vain for what makes the states, which
are variables. Where the layer computes in integers, four constants lie on the grids of what a step makes, of the cell
state, of the state that the next step reads and of the result. The first is an intermediate tensor of the operator,
which the others but the cell state should equal.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from qatc.compiler.diagnostics import fail
from qatc.frontends.tf.load import codes_of, needed

LAYER: Final = "UNIDIRECTIONAL_SEQUENCE_LSTM"
_OPERANDS: Final = (20, 24)
_READ: Final = (*range(9), *range(12, 16))  # input, weights and biases
_STATES: Final = (18, 19)
_STATE, _CELL = _STATES
_OTHERS: Final = {
    "peepholes": range(9, 12),
    "a projection": range(16, 18),
    "layer normalization": range(20, 24),
}
_FLOAT32, _INT16, _INT8 = 0, 7, 9
_HIDDEN: Final = 4  # what a step makes: the last intermediate tensor; those before are for layer normalization


def plain_layers(content: Any) -> bool:
    """Rewrite the LSTM operators of a TFLite file; whether there is one.

    Raises:
        CompileError: QAT012 for those in a form that Keras has not.
    """
    schema: Any = needed("tensorflow.lite.python.schema_py_generated")
    wanted, tanh = getattr(schema.BuiltinOperator, LAYER), schema.ActivationFunctionType.TANH
    codes = codes_of(content)
    found = [(graph, op) for graph in content.subgraphs for op in graph.operators if codes[op.opcodeIndex] == wanted]
    for graph, op in found:
        operands = [int(i) for i in op.inputs]
        form = _other_form(graph, op, operands, tanh)
        if form is not None:
            hint = "give the Keras file or the SavedModel that it was made from, with the layer unrolled (unroll=True)"
            raise fail("QAT012", f"a {LAYER} has {form}, which qatc does not read", hint=hint)
        kept = [operands[i] for i in _READ]
        if graph.tensors[operands[0]].type == _INT8:
            grids = (op.intermediates[_HIDDEN], operands[_CELL], operands[_STATE], op.outputs[0])
            kept += [_on_grid(schema, content, graph, int(i)) for i in grids]
        op.inputs, op.intermediates = np.asarray(kept, np.int32), None
    return bool(found)


def _other_form(graph: Any, op: Any, operands: Sequence[int], tanh: int) -> str | None:
    """What an operator has that is read in none of the two forms, in words."""
    options, count = op.builtinOptions, len(graph.tensors)
    indices = (*operands, *op.outputs)
    if len(operands) not in _OPERANDS or len(op.outputs) != 1 or not all(-1 <= i < count for i in indices):
        return f"{len(operands)} operands and {len(op.outputs)} results"
    if operands[1] < 0 or operands[5] < 0:
        return "coupled gates"
    for what, places in _OTHERS.items():
        if any(i < len(operands) and operands[i] >= 0 for i in places):
            return what
    if min(operands[i] for i in (*_READ, *_STATES)) < 0 or op.outputs[0] < 0:
        return "absent weights or states"
    if options is None or options.fusedActivationFunction != tanh:
        return "another activation than tanh"
    if options.diagonalRecurrentTensors:
        return "recurrent weights in diagonals"
    between = [] if op.intermediates is None else [int(i) for i in op.intermediates]
    kinds = tuple(graph.tensors[operands[i]].type for i in (0, *_STATES))
    if kinds == (_INT8, _INT8, _INT16):
        whole = len(between) == _HIDDEN + 1 and all(0 <= i < count for i in between)
        return None if whole else f"{len(between)} intermediate tensors"
    return None if kinds[0] == _FLOAT32 else "inputs of another type than int8 or float32"


def _on_grid(schema: Any, content: Any, graph: Any, index: int) -> int:
    """The place of a new constant, one number, with the type and the grid of a tensor."""
    made, buffer = copy.copy(graph.tensors[index]), schema.BufferT()
    made.name += f"_grid_{len(graph.tensors)}".encode()
    made.shape, made.shapeSignature, made.isVariable = np.asarray([1], np.int32), None, False
    made.buffer = len(content.buffers)
    buffer.data = np.asarray([0], np.int8 if made.type == _INT8 else np.dtype("<i2")).view(np.uint8)
    content.buffers.append(buffer)
    graph.tensors.append(made)
    return len(graph.tensors) - 1

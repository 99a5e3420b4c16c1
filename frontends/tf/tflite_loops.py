"""Loops of TFLite files over real numbers, with integers inside alone: tf2onnx hands real numbers in.

    int8 -> [WHILE: int8 -> DEQUANTIZE -> ...]    ->    int8 -> [WHILE: float -> QUANTIZE -> int8 -> DEQUANTIZE -> ...]

tf2onnx (1.17) puts a DequantizeLinear in front of every operator that reads integers, WHILE among them, and a
QuantizeLinear behind it, but leaves its graphs as they are. Those that Keras' GRU and SimpleRNN become read integers
where the layer in front of them is quantized. A number that lies on a grid is the same one after rounding to that grid.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from qatc.frontends.tf.load import codes_of, needed


def real_loops(content: Any) -> bool:
    """Give the graphs of all loops inputs and results of real numbers; whether one had others."""
    schema: Any = needed("tensorflow.lite.python.schema_py_generated")
    kinds = schema.BuiltinOperator
    codes = codes_of(content)
    loops = [op for graph in content.subgraphs for op in graph.operators if codes[op.opcodeIndex] == kinds.WHILE]
    places = {i for op in loops for i in (op.builtinOptions.condSubgraphIndex, op.builtinOptions.bodySubgraphIndex)}
    found = [_with_real_ports(schema, content, content.subgraphs[i]) for i in sorted(places)]
    if not any(found):
        return False
    for kind in (kinds.QUANTIZE, kinds.DEQUANTIZE):
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = kind
        content.operatorCodes.append(code)
    return True


def _with_real_ports(schema: Any, content: Any, graph: Any) -> bool:
    quantize = len(content.operatorCodes)  # behind those that are there
    inputs, outputs = ([int(i) for i in ports] for ports in (graph.inputs, graph.outputs))
    reals = {i: _real(schema, graph, i) for i in inputs if _is_on_grid(graph.tensors[i])}
    first = [_operator(schema, quantize, real, i) for i, real in reals.items()]
    last: list[Any] = []
    for i in outputs:
        if i not in reals and _is_on_grid(graph.tensors[i]):
            reals[i] = _real(schema, graph, i)
            last.append(_operator(schema, quantize + 1, i, reals[i]))
    graph.inputs, graph.outputs = (np.asarray([reals.get(i, i) for i in p], np.int32) for p in (inputs, outputs))
    graph.operators = [*first, *graph.operators, *last]
    return bool(reals)


def _is_on_grid(tensor: Any) -> bool:
    """Whether tf2onnx takes what lies there for integers with a scale."""
    params = tensor.quantization
    return params is not None and params.scale is not None and params.zeroPoint is not None


def _real(schema: Any, graph: Any, index: int) -> int:
    """The place of a new tensor for the real numbers of one of integers."""
    made = copy.copy(graph.tensors[index])
    made.name += f"_real_{len(graph.tensors)}".encode()
    made.type, made.quantization = schema.TensorType.FLOAT32, None
    graph.tensors.append(made)
    return len(graph.tensors) - 1


def _operator(schema: Any, code: int, given: int, made: int) -> Any:
    op = schema.OperatorT()
    op.opcodeIndex = code
    op.inputs, op.outputs = np.asarray([given], np.int32), np.asarray([made], np.int32)
    return op

"""TFLite files in the form that tf2onnx reads: what newer writers put down in another way is written as before.

The form is that of TensorFlow's `compiler/mlir/lite/schema/schema.fbs`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np

from qatc.compiler.diagnostics import fail
from qatc.compiler.quant import Array
from qatc.frontends.tf import tflite_loops, tflite_lstm, tflite_states
from qatc.frontends.tf.load import codes_of, needed

_INT32: Final = 2
_INT8: Final = 9
_BYTES: Final = {3: np.uint8, _INT8: np.int8}
_INT4: Final = 17
_OTHER_TYPES: Final = {18: "bfloat16", 19: "int2", 20: "uint4"}
_FLOAT32: Final = 0
_FULLY_CONNECTED: Final = 9  # its operator code
_RESHAPE: Final = 22
_QUANTIZE: Final = 114
_BLOCKWISE: Final = 2  # of the ways in which a tensor may be quantized
_READ: Final = frozenset({"GELU", "RELU_0_TO_1", "RELU_N1_TO_1", tflite_lstm.LAYER})  # by `frontends/tensorflow.py`
_NEWER_CODE: Final = 127  # stands in an operator's older code, a byte, where its newer code alone tells


def readable_tflite(source: Path, destination: Path) -> Path:
    """`source`, or, where tf2onnx would not read that, `destination` with the same network.

    An operator has an older and a newer code, and TFLite takes the larger one. tf2onnx takes the older, which
    ai-edge-quantizer leaves at 0, which is Add. Tensors of int4, two to a byte, become tensors of int8 with the same
    integers. A fully connected operator that flattens its input gets a Reshape in front: where tf2onnx (1.17) puts one
    there itself, it loses the bias. Weights that a model quantizes or reshapes per channel as it runs are stored as the
    integers that come of it: tf2onnx would take the first channel's scale for all of them. An activation to -1..1 that
    an operator has fused becomes an operator behind it: tf2onnx knows no fused ones but Relu and Relu6. What an LSTM
    reads is listed without gaps and variables. Loops run over real numbers.

    Raises:
        CompileError: QAT012 for what is no TFLite file, for types of tensors that have no counterpart and for forms of
            an LSTM that Keras has not; QAT103 for weights in blocks.
    """
    known: Any = needed("tf2onnx.tflite_utils").TFLITE_TO_ONNX_DTYPE
    schema: Any = needed("tf2onnx.tflite.Model").Model
    data = source.read_bytes()
    if data[4:8] != tflite_states.MAGIC:
        hint = "give the file that tf.lite.TFLiteConverter.convert() made"
        raise fail("QAT012", f"{source.name} is not a TFLite file, or it is empty", hint=hint)
    model = schema.GetRootAsModel(data, 0)
    graphs = [model.Subgraphs(i) for i in range(model.SubgraphsLength())]
    tensors = [graph.Tensors(i) for graph in graphs for i in range(graph.TensorsLength())]
    kinds = {tensor.Type() for tensor in tensors}
    for kind in sorted(kinds - {*known, _INT4}):
        what = _OTHER_TYPES.get(kind, f"number {kind}")
        hint = "give the Keras file or the SavedModel that it was made from: weights of any width come back from those"
        raise fail(
            "QAT012", f"{source.name} has tensors of TFLite's type {what}, which tf2onnx does not read", hint=hint
        )
    _refuse_blocks(tensors)
    codes = [model.OperatorCodes(i) for i in range(model.OperatorCodesLength())]
    pairs = [(c.DeprecatedBuiltinCode(), c.BuiltinCode()) for c in codes]
    is_old = _INT4 not in kinds and all(older == _older(older, newer) for older, newer in pairs)
    files = needed("tensorflow.lite.tools.flatbuffer_utils")
    content = files.read_model_from_bytearray(bytearray(data))
    rewrites = (_flatten_inputs, _store_integers, _part_clamps, tflite_lstm.plain_layers, tflite_loops.real_loops)
    found = [rewrite(content) for rewrite in rewrites]
    if not any(found) and is_old:
        return source
    for code in content.operatorCodes:
        code.deprecatedBuiltinCode = _older(code.deprecatedBuiltinCode, code.builtinCode)
    _widen(content.buffers, (t for graph in content.subgraphs for t in graph.tensors if t.type == _INT4))
    destination.write_bytes(files.convert_object_to_bytearray(content))
    return destination


def unread_operators(source: Path) -> list[str]:
    """The operators of a TFLite file that tf2onnx has no rule for, by name; those that the dialect reads are none."""
    operators: Any = needed("tf2onnx.tflite.BuiltinOperator").BuiltinOperator
    needed("tf2onnx.tflite_handlers")  # whose import registers the rules
    rules: Any = needed("tf2onnx.handler").tf_op.get_opsets()
    model: Any = needed("tf2onnx.tflite.Model").Model.GetRootAsModel(source.read_bytes(), 0)
    codes = [model.OperatorCodes(i) for i in range(model.OperatorCodesLength())]
    graphs = [model.Subgraphs(i) for i in range(model.SubgraphsLength())]
    listed = {graph.Operators(i).OpcodeIndex() for graph in graphs for i in range(graph.OperatorsLength())}
    used = {max(codes[i].DeprecatedBuiltinCode(), codes[i].BuiltinCode()) for i in listed}
    known: set[str] = {name for versions in rules.values() for one in versions for name in one}
    numbers: dict[str, Any] = operators.__dict__
    names = {number: name for name, number in numbers.items() if isinstance(number, int)}
    found = (names.get(code, f"number {code}") for code in sorted(used))
    return [name for name in found if f"TFL_{name}" not in known and name not in _READ]


def _flatten_inputs(content: Any) -> bool:
    """Put a Reshape in front of every fully connected operator that flattens what it reads; whether there is one."""
    schema: Any = needed("tensorflow.lite.python.schema_py_generated")
    codes = codes_of(content)
    reshape = schema.OperatorCodeT()
    reshape.builtinCode = reshape.deprecatedBuiltinCode = schema.BuiltinOperator.RESHAPE
    found = False
    for graph in content.subgraphs:
        connected = [op for op in graph.operators if codes[op.opcodeIndex] == _FULLY_CONNECTED]
        before = {id(op): [_rows(schema, content, graph, op)] for op in connected if _flattens(graph, op)}
        graph.operators = [each for op in graph.operators for each in (*before.get(id(op), ()), op)]
        found = found or bool(before)
    if found:
        content.operatorCodes.append(reshape)
    return found


def _flattens(graph: Any, op: Any) -> bool:
    """Whether a fully connected operator with a bias reads a tensor of another rank as a matrix."""
    has_bias = len(op.inputs) > 2 and op.inputs[2] >= 0
    keeps = op.builtinOptions is not None and op.builtinOptions.keepNumDims
    return has_bias and not keeps and len(graph.tensors[op.inputs[0]].shape) != 2


def _rows(schema: Any, content: Any, graph: Any, op: Any) -> Any:
    """The Reshape to [-1, columns of the weight] of what `op` reads, and `op` reads its result."""
    columns = int(graph.tensors[op.inputs[1]].shape[1])
    rows, sizes, buffer = copy.copy(graph.tensors[op.inputs[0]]), schema.TensorT(), schema.BufferT()
    rows.name, rows.shapeSignature = rows.name + b"_rows", None
    rows.shape = np.asarray([math.prod(int(d) for d in rows.shape) // columns, columns], np.int32)
    sizes.name, sizes.type, sizes.shape = rows.name + b"_shape", _INT32, np.asarray([2], np.int32)
    sizes.buffer = len(content.buffers)
    buffer.data = np.asarray([-1, columns], "<i4").view(np.uint8)
    content.buffers.append(buffer)
    reshape = schema.OperatorT()
    reshape.opcodeIndex = len(content.operatorCodes)  # behind those that are there
    first = len(graph.tensors)
    graph.tensors += [rows, sizes]
    reshape.inputs = np.asarray([op.inputs[0], first + 1], np.int32)
    reshape.outputs = np.asarray([first], np.int32)
    op.inputs = np.asarray([first, *op.inputs[1:]], np.int32)
    return reshape


def _store_integers(content: Any) -> bool:
    """Do what operators do that quantize or reshape a constant per channel, and take them out; whether there is one."""
    codes = codes_of(content)
    made = {_QUANTIZE: _quantized, _RESHAPE: _reshaped}
    found = False
    for graph in content.subgraphs:
        kept: list[Any] = []
        for op in graph.operators:
            make = made.get(codes[op.opcodeIndex])
            integers = make(content, graph, op) if make is not None else None
            if integers is None:
                kept.append(op)
                continue
            buffer, found = copy.copy(content.buffers[0]), True
            buffer.data = integers.reshape(-1).view(np.uint8)
            graph.tensors[op.outputs[0]].buffer = len(content.buffers)
            content.buffers.append(buffer)
        graph.operators = kept
    return found


def _part_clamps(content: Any) -> bool:
    """Put what clamps to -1..1 behind every operator that has it fused; whether there is one.

    The operator's result has the grid of what it was, so that it is rounded once: clamping integers to the grid and
    then to -1..1 is clamping them to both.
    """
    schema: Any = needed("tensorflow.lite.python.schema_py_generated")
    fused = schema.ActivationFunctionType
    clamp = schema.OperatorCodeT()
    clamp.builtinCode = clamp.deprecatedBuiltinCode = schema.BuiltinOperator.RELU_N1_TO_1
    found = False
    for graph in content.subgraphs:
        operators: list[Any] = []
        for op in graph.operators:
            operators.append(op)
            if getattr(op.builtinOptions, "fusedActivationFunction", fused.NONE) != fused.RELU_N1_TO_1:
                continue
            op.builtinOptions.fusedActivationFunction, found = fused.NONE, True
            whole, behind = copy.copy(graph.tensors[op.outputs[0]]), schema.OperatorT()
            whole.name += b"_unclamped"
            behind.opcodeIndex = len(content.operatorCodes)  # behind those that are there
            behind.inputs, behind.outputs = np.asarray([len(graph.tensors)], np.int32), op.outputs
            op.outputs = behind.inputs
            graph.tensors.append(whole)
            operators.append(behind)
        graph.operators = operators
    if found:
        content.operatorCodes.append(clamp)
    return found


def _quantized(content: Any, graph: Any, op: Any) -> Array | None:
    """The integers that an operator makes of a constant, per channel; None for other operators."""
    given, made = graph.tensors[op.inputs[0]], graph.tensors[op.outputs[0]]
    data, params = content.buffers[given.buffer].data, made.quantization
    if given.type != _FLOAT32 or data is None or made.type not in _BYTES or params is None or params.scale is None:
        return None
    shape = tuple(int(d) for d in given.shape)
    values, axis = np.asarray(data, np.uint8).view("<f4"), int(params.quantizedDimension)
    scale, zero = np.asarray(params.scale, np.float32), np.asarray(params.zeroPoint, np.int64)
    if scale.size < 2 or values.size != math.prod(shape) or shape[axis : axis + 1] != scale.shape:
        return None
    row = [-1 if i == axis else 1 for i in range(len(shape))]
    steps = values.reshape(shape) / scale.reshape(row)
    ends = np.iinfo(_BYTES[made.type])
    rounded = np.sign(steps) * np.floor(np.abs(steps) + np.float32(0.5)) + np.resize(zero, scale.size).reshape(row)
    return np.asarray(np.clip(rounded, ends.min, ends.max).astype(ends.dtype))


def _reshaped(content: Any, graph: Any, op: Any) -> Array | None:
    """The integers of a constant with a scale per channel that an operator reshapes; None for others.

    Depthwise weights that were fake-quantized in Keras' order of axes are brought to TFLite's as the network runs.
    """
    given, made = graph.tensors[op.inputs[0]], graph.tensors[op.outputs[0]]
    data, before, params = content.buffers[given.buffer].data, given.quantization, made.quantization
    if data is None or made.type not in _BYTES or made.type != given.type or before is None or params is None:
        return None
    scales = [np.asarray([] if each.scale is None else each.scale, np.float32) for each in (before, params)]
    if scales[0].size < 2 or not np.array_equal(scales[0], scales[1]):
        return None
    integers = np.asarray(data, np.uint8).view(_BYTES[made.type])
    return integers if integers.size == math.prod(int(d) for d in made.shape) else None


def _refuse_blocks(tensors: Iterable[Any]) -> None:
    """Raise for weights with a scale for each block: tf2onnx takes their integers for the weights themselves."""
    for tensor in tensors:
        quantization = tensor.Quantization()
        if quantization is not None and quantization.DetailsType() == _BLOCKWISE:
            hint = "quantize per tensor or per channel; blocks of a few weights have no integer form here"
            raise fail("QAT103", "the weights are quantized in blocks", tensor=tensor.Name().decode(), hint=hint)


def _older(older: int, newer: int) -> int:
    """What tf2onnx wants in the older code of an operator with these two."""
    return min(max(older, newer), _NEWER_CODE)


def _widen(buffers: list[Any], tensors: Iterable[Any]) -> None:
    """Turn int4 tensors into int8 ones; several may share a buffer."""
    done: set[int] = set()
    for tensor in tensors:
        tensor.type = _INT8
        packed = buffers[tensor.buffer].data
        if packed is None or tensor.buffer in done:
            continue
        count = math.prod(int(d) for d in tensor.shape)
        buffers[tensor.buffer].data = unpacked(np.asarray(packed, np.uint8), count).view(np.uint8)
        done.add(tensor.buffer)


def unpacked(packed: Array, count: int) -> Array:
    """The first `count` 4-bit integers of bytes: int8, two from each byte, the lower half first.

    Raises:
        CompileError: QAT012 where there are fewer.
    """
    if 2 * packed.size < count:
        hint = "the file is damaged; write it again"
        raise fail("QAT012", f"a tensor of {count:,} int4 elements has {packed.size:,} bytes", hint=hint)
    both = np.stack([packed << 4, packed], axis=-1).view(np.int8)
    return np.asarray(both.reshape(-1)[:count] >> 4)

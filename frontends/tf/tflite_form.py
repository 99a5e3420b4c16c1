"""TFLite files in the form that tf2onnx reads: what newer writers put down in another way is written as before.

The form is that of TensorFlow's `compiler/mlir/lite/schema/schema.fbs`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np

from qatc.compiler.diagnostics import fail
from qatc.compiler.quant import Array
from qatc.frontends.tf.load import needed

_MAGIC: Final = b"TFL3"
_INT8: Final = 9
_INT4: Final = 17
_OTHER_TYPES: Final = {18: "bfloat16", 19: "int2", 20: "uint4"}
_BLOCKWISE: Final = 2  # of the ways in which a tensor may be quantized
_NEWER_CODE: Final = 127  # stands in an operator's older code, a byte, where its newer code alone tells


def readable_tflite(source: Path, destination: Path) -> Path:
    """`source`, or, where tf2onnx would not read that, `destination` with the same network.

    An operator has an older and a newer code, and TFLite takes the larger one. tf2onnx takes the older, which
    ai-edge-quantizer leaves at 0, which is Add. Tensors of int4, two to a byte, become tensors of int8 with the same
    integers.

    Raises:
        CompileError: QAT012 for what is no TFLite file, and for types of tensors that have no counterpart; QAT103 for
            weights in blocks.
    """
    known: Any = needed("tf2onnx.tflite_utils").TFLITE_TO_ONNX_DTYPE
    schema: Any = needed("tf2onnx.tflite.Model").Model
    data = source.read_bytes()
    if data[4:8] != _MAGIC:
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
    if _INT4 not in kinds and all(older == _older(older, newer) for older, newer in pairs):
        return source
    files = needed("tensorflow.lite.tools.flatbuffer_utils")
    content = files.read_model_from_bytearray(bytearray(data))
    for code in content.operatorCodes:
        code.deprecatedBuiltinCode = _older(code.deprecatedBuiltinCode, code.builtinCode)
    _widen(content.buffers, (t for graph in content.subgraphs for t in graph.tensors if t.type == _INT4))
    destination.write_bytes(files.convert_object_to_bytearray(content))
    return destination


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

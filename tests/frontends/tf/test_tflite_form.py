"""TFLite files of newer writers become what tf2onnx reads, with the same network."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qatc import CompileError
from qatc.frontends.tf.tflite_form import readable_tflite, unpacked, unread_operators

FILE = Path(__file__).parents[2] / "corpus" / "tfmot-op13__mobilenetv2" / "model.tflite"
INT8, INT4 = 9, 17
FULLY_CONNECTED = 9


def packed(values: np.ndarray) -> np.ndarray:
    """4-bit integers, the first one in the lower half of each byte."""
    flat = [int(v) & 15 for v in values.reshape(-1)]
    flat += [0] * (len(flat) % 2)
    return np.array([low | high << 4 for low, high in zip(flat[::2], flat[1::2], strict=True)], np.uint8)


@given(st.lists(st.integers(-8, 7), max_size=33))
def test_packed_integers_come_back(values: list[int]) -> None:
    given = np.array(values, np.int8)
    found = unpacked(packed(given), given.size)
    assert found.dtype == np.int8
    np.testing.assert_array_equal(found, given)


def test_too_few_bytes_are_an_error() -> None:
    with pytest.raises(CompileError, match=r"QAT012.*5 int4 elements has 2 bytes"):
        unpacked(np.zeros(2, np.uint8), 5)


# -- whole files ----------------------------------------------------------------------------------------------------
def rewritten(path: Path, change: Callable[[Any], None]) -> Path:
    """The file with `change` made to its content."""
    files: Any = pytest.importorskip("tensorflow.lite.tools.flatbuffer_utils")
    content = files.read_model_from_bytearray(bytearray(FILE.read_bytes()))
    change(content)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(files.convert_object_to_bytearray(content))
    return path


def narrowed(content: Any, *, pack: bool) -> None:
    """Weights of four bits: in bytes, or two to a byte."""
    for tensor in content.subgraphs[0].tensors:
        buffer = content.buffers[tensor.buffer]
        if tensor.type != INT8 or buffer.data is None:
            continue
        values = np.asarray(buffer.data, np.uint8).view(np.int8) >> 4
        buffer.data = packed(values) if pack else values.view(np.uint8)
        tensor.type = INT4 if pack else INT8


def newer_codes_alone(content: Any) -> None:
    for code in content.operatorCodes:
        code.builtinCode, code.deprecatedBuiltinCode = max(code.builtinCode, code.deprecatedBuiltinCode), 0


def older_codes_alone(content: Any) -> None:
    for code in content.operatorCodes:
        code.builtinCode = 0


def onnx_of(path: Path) -> onnx.GraphProto:
    pytest.importorskip("tf2onnx")
    from qatc.frontends.tf.importer import convert

    assert convert(path, path.with_suffix(".onnx")) == ()
    graph = onnx.ModelProto.FromString(path.with_suffix(".onnx").read_bytes()).graph
    graph.ClearField("doc_string")  # names the file
    return graph


def test_what_tf2onnx_reads_stays_as_it_is(tmp_path: Path) -> None:
    pytest.importorskip("tf2onnx.tflite_utils")
    for path in (FILE, rewritten(tmp_path / "older.tflite", older_codes_alone)):
        assert readable_tflite(path, tmp_path / "new.tflite") == path
    assert not (tmp_path / "new.tflite").exists()


def test_operators_are_known_by_either_code(tmp_path: Path) -> None:
    plain = rewritten(tmp_path / "plain" / "net.tflite", lambda _: None)
    newer = rewritten(tmp_path / "newer" / "net.tflite", newer_codes_alone)
    assert onnx_of(newer) == onnx_of(plain)


def test_four_bit_weights_are_those_in_bytes(tmp_path: Path) -> None:
    in_bytes = rewritten(tmp_path / "bytes" / "net.tflite", lambda c: narrowed(c, pack=False))
    two_to_a_byte = rewritten(tmp_path / "packed" / "net.tflite", lambda c: narrowed(c, pack=True))
    assert two_to_a_byte.stat().st_size < in_bytes.stat().st_size
    assert onnx_of(two_to_a_byte) == onnx_of(in_bytes)


def test_weights_in_blocks_are_refused(tmp_path: Path) -> None:
    """Their integers would pass for the weights themselves."""
    schema: Any = pytest.importorskip("tensorflow.lite.python.schema_py_generated")

    def in_blocks(content: Any) -> None:
        tensor = next(t for t in content.subgraphs[0].tensors if content.buffers[t.buffer].data is not None)
        tensor.name = b"kernel"
        tensor.quantization.scale = tensor.quantization.zeroPoint = None
        tensor.quantization.detailsType = schema.QuantizationDetails.BlockwiseQuantization
        tensor.quantization.details = schema.BlockwiseQuantizationT()
        tensor.quantization.details.blockSize = 32

    path = rewritten(tmp_path / "blocks.tflite", in_blocks)
    with pytest.raises(CompileError, match=r"QAT103.*in blocks(.|\n)*kernel(.|\n)*help:"):
        readable_tflite(path, tmp_path / "new.tflite")


def quantized_as_it_runs(content: Any) -> None:
    """The weights per channel are floats that an operator quantizes, a quarter of a step beside their integers."""
    schema: Any = pytest.importorskip("tensorflow.lite.python.schema_py_generated")
    graph, first = content.subgraphs[0], []
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.QUANTIZE
    for index, tensor in enumerate(list(graph.tensors)):
        stored, params = content.buffers[tensor.buffer].data, tensor.quantization
        if tensor.type != INT8 or stored is None or len(params.scale) < 2:
            continue
        row = [-1 if i == params.quantizedDimension else 1 for i in range(len(tensor.shape))]
        steps = np.asarray(stored, np.uint8).view(np.int8).reshape(tensor.shape).astype(np.float32)
        steps -= np.sign(steps) * np.float32(0.25)
        reals, buffer, op = schema.TensorT(), schema.BufferT(), schema.OperatorT()
        buffer.data = (steps * np.asarray(params.scale, np.float32).reshape(row)).reshape(-1).view(np.uint8)
        reals.name, reals.shape, reals.type, reals.buffer = (
            tensor.name + b"_real",
            tensor.shape,
            0,
            len(content.buffers),
        )
        op.inputs, op.outputs = np.asarray([len(graph.tensors)], np.int32), np.asarray([index], np.int32)
        op.opcodeIndex, tensor.buffer = len(content.operatorCodes), 0
        graph.tensors.append(reals)
        content.buffers.append(buffer)
        first.append(op)
    assert len(first) > 10
    content.operatorCodes.append(code)
    graph.operators = [*first, *graph.operators]


def test_weights_that_are_quantized_as_it_runs_keep_the_scales_of_all_channels(tmp_path: Path) -> None:
    """tf2onnx 1.17 takes the first channel's for all; `onnx_of` compares the file's answer with TensorFlow's."""
    plain = rewritten(tmp_path / "plain" / "net.tflite", lambda _: None)
    assert onnx_of(rewritten(tmp_path / "net.tflite", quantized_as_it_runs)) == onnx_of(plain)


def reshaped_as_it_runs(content: Any) -> None:
    """Depthwise weights are stored with a flat window, which an operator makes a square one again."""
    schema: Any = pytest.importorskip("tensorflow.lite.python.schema_py_generated")
    graph, first = content.subgraphs[0], []
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.RESHAPE
    for index, tensor in enumerate(list(graph.tensors)):
        if (
            tensor.type != INT8
            or content.buffers[tensor.buffer].data is None
            or tensor.quantization.quantizedDimension != 3
        ):
            continue
        flat, sizes, buffer, op = copy.copy(tensor), schema.TensorT(), schema.BufferT(), schema.OperatorT()
        flat.name, flat.shape = tensor.name + b"_flat", np.asarray([1, 1, 9, tensor.shape[3]], np.int32)
        sizes.name, sizes.type, sizes.shape = tensor.name + b"_sizes", 2, np.asarray([4], np.int32)
        sizes.buffer, buffer.data = len(content.buffers), np.asarray(tensor.shape, "<i4").view(np.uint8)
        content.buffers.append(buffer)
        op.inputs = np.asarray([len(graph.tensors), len(graph.tensors) + 1], np.int32)
        op.outputs, op.opcodeIndex, tensor.buffer = np.asarray([index], np.int32), len(content.operatorCodes), 0
        graph.tensors += [flat, sizes]
        first.append(op)
    assert len(first) > 3
    content.operatorCodes.append(code)
    graph.operators = [*first, *graph.operators]


def test_weights_that_are_reshaped_as_it_runs_keep_the_scales_of_all_channels(tmp_path: Path) -> None:
    """As those of a depthwise convolution that were fake-quantized in Keras' order of axes."""
    plain = rewritten(tmp_path / "plain" / "net.tflite", lambda _: None)
    assert onnx_of(rewritten(tmp_path / "net.tflite", reshaped_as_it_runs)) == onnx_of(plain)


def flattening(content: Any) -> None:
    """The mean in front of the last product keeps its dimensions, and its bias is far from zero."""
    graph = content.subgraphs[0]
    codes = [max(c.builtinCode, c.deprecatedBuiltinCode) for c in content.operatorCodes]
    connected = next(op for op in graph.operators if codes[op.opcodeIndex] == FULLY_CONNECTED)
    mean = next(op for op in graph.operators if op.outputs[0] == connected.inputs[0])
    mean.builtinOptions.keepDims = True
    graph.tensors[mean.outputs[0]].shape = np.asarray([1, 1, 1, 64], np.int32)
    graph.tensors[mean.outputs[0]].shapeSignature = None
    bias = graph.tensors[connected.inputs[2]]
    content.buffers[bias.buffer].data = np.arange(-4000, 6000, 1000, np.int32).view(np.uint8)


def test_a_fully_connected_operator_that_flattens_keeps_its_bias(tmp_path: Path) -> None:
    """tf2onnx 1.17 drops it; `onnx_of` compares the file's answer with TensorFlow's."""
    found = onnx_of(rewritten(tmp_path / "net.tflite", flattening))
    (product,) = (n for n in found.node if n.op_type == "MatMul")
    (reader,) = (n for n in found.node if product.output[0] in n.input)
    assert reader.op_type == "Add"


def test_a_fused_clamp_to_one_is_an_operator_behind(tmp_path: Path) -> None:
    """tf2onnx (1.17) refuses it; the integers are those that TensorFlow's kernels clamp."""
    schema: Any = pytest.importorskip("tensorflow.lite.python.schema_py_generated")
    lite: Any = pytest.importorskip("tensorflow").lite
    pytest.importorskip("tf2onnx")
    from qatc.frontends.tf.importer import convert

    fused, count = schema.ActivationFunctionType, 0

    def clamped(content: Any) -> None:
        nonlocal count
        for op in content.subgraphs[0].operators:
            if getattr(op.builtinOptions, "fusedActivationFunction", fused.NONE) == fused.RELU6:
                op.builtinOptions.fusedActivationFunction = fused.RELU_N1_TO_1
                count += 1

    path = rewritten(tmp_path / "clamped.tflite", clamped)
    assert count > 5
    convert(path, tmp_path / "net.onnx")
    nodes = onnx.ModelProto.FromString((tmp_path / "net.onnx").read_bytes()).graph.node
    assert sum(n.op_type == "TFL_RELU_N1_TO_1" for n in nodes) == count  # which the dialect reads

    def answer(file: Path) -> np.ndarray:
        network = lite.Interpreter(model_path=str(file))
        network.allocate_tensors()
        given = network.get_input_details()[0]
        network.set_tensor(given["index"], np.random.default_rng(0).normal(size=given["shape"]).astype(given["dtype"]))
        network.invoke()
        return np.asarray(network.get_tensor(network.get_output_details()[0]["index"]))

    parted = readable_tflite(path, tmp_path / "new.tflite")
    assert parted != path
    np.testing.assert_array_equal(answer(parted), answer(path))


def test_operators_that_tf2onnx_does_not_read_are_named(tmp_path: Path) -> None:
    pytest.importorskip("tf2onnx")
    schema: Any = pytest.importorskip("tensorflow.lite.python.schema_py_generated")

    def recurrent(content: Any) -> None:
        code = content.operatorCodes[content.subgraphs[0].operators[-1].opcodeIndex]
        code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.BIDIRECTIONAL_SEQUENCE_LSTM

    path = rewritten(tmp_path / "net.tflite", recurrent)
    assert unread_operators(path) == ["BIDIRECTIONAL_SEQUENCE_LSTM"]
    assert unread_operators(FILE) == []

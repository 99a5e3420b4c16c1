"""TensorFlow through tf2onnx: tfmot, QuantizeAndDequantize, FakeQuantWithMinMaxVars left as a node, TFLite.

    W (floats on a grid) -> Conv                         integers with their scale: `frontends/common/grid.py`
    x -> FakeQuantWithMinMaxVars[num_bits](min, max)     x -> FakeQuant, by TensorFlow's nudging
    x -> Q -> Transpose | Reshape | Squeeze -> DQ        x -> FakeQuant -> Transpose | ...: `frontends/common/lift.py`
    x -> Erfc | TFL_GELU | TFL_RELU_N1_TO_1 ...          1 - Erf(x), Gelu, Clip ...: what tf2onnx has no rule for

TensorFlow rounds half up from the nudged minimum and ONNX half to even: they differ on exact ties alone.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from qatc.compiler.frontend import Frontend, FrontendOptions
from qatc.compiler.graph import Node, QuantGraph, is_constant, shape_of, value_of
from qatc.compiler.passes.modernize import infer_if_possible
from qatc.compiler.quant import Array, QuantParams
from qatc.compiler.rewrite import Rules, sweep
from qatc.frontends.common import grid, standard
from qatc.frontends.common.operands import constant_input, refuse
from qatc.frontends.common.params import make_params
from qatc.frontends.common.qdq import to_fake_quant
from qatc.frontends.tf.gemms import sums_from_gemms
from qatc.frontends.tf.importer import IMPORTER
from qatc.frontends.tf.slopes import slopes_from_halves

_PRODUCER: Final = "tf2onnx"
_LONGEST: Final = 16  # bits
_PER_CHANNEL: Final = "FakeQuantWithMinMaxVarsPerChannel"
_FAKE_QUANTS: Final = ("FakeQuantWithMinMaxVars", _PER_CHANNEL, "FakeQuantWithMinMaxArgs")
_LEFT: Final = Rules("tf2onnx")
_NODES: Final = Rules("tensorflow")


def recognize(graph: QuantGraph, producer: str) -> str | None:
    """tf2onnx as the producer and quantization of any form, or nodes that only TensorFlow has."""
    nodes = sum(1 for n in graph.nodes if n.op in _FAKE_QUANTS and not n.domain)
    by_tf2onnx = producer.startswith(_PRODUCER)
    if not nodes and not by_tf2onnx:
        return None
    found = [f"{nodes} FakeQuantWithMinMaxVars"] if nodes else []
    seen = standard.evidence(graph)
    found += [seen] if seen else []
    if not found and grid.has_weight_on_grid(graph):
        found = ["weights on a quantization grid"]
    return f"{', '.join(found)}, producer {producer or 'unknown'}" if found else None


def normalize(graph: QuantGraph, options: FrontendOptions) -> None:
    """Bring the graph to the canonical form; findings go to `graph.diagnostics`."""
    sweep(graph, _LEFT, [n for n in graph.nodes if n.inputs and n.outputs])
    sums_from_gemms(graph)
    slopes_from_halves(graph)
    standard.normalize(graph, options, quantize_weights=True, nodes=_own_nodes)


# -- what tf2onnx leaves as it is ---------------------------------------------------------------------------------


@_LEFT.on("DequantizeLinear")
def narrow_bias(graph: QuantGraph, node: Node) -> bool:
    """TFLite with 16-bit activations stores biases in 64 bits: 32 of them, which ONNX knows, where their values fit."""
    limits = np.iinfo(np.int32)
    values = [value_of(tensor) for tensor in node.inputs]
    wide = {index: v for index, v in enumerate(values) if v is not None and v.dtype == np.int64}
    if not wide or any(v.size and (v.min() < limits.min or v.max() > limits.max) for v in wide.values()):
        return False
    for index, value in wide.items():
        node.inputs[index] = graph.constant(node.inputs[index].name, value.astype(np.int32))
    return True


@_LEFT.on("Erfc")
def complement_of_erf(graph: QuantGraph, node: Node) -> bool:
    """1 - Erf(x)."""
    y = node.outputs[0].name
    error = graph.apply("Erf", node.inputs[:1], f"{y}_erf", name=f"{node.name}_erf")
    node.op, node.inputs = "Sub", [graph.constant(f"{y}_one", np.asarray(1, np.float32)), error]
    return True


@_LEFT.on("TFL_GELU")
def gelu(graph: QuantGraph, node: Node) -> bool:
    """Gelu of ONNX."""
    form = "tanh" if node.attr("approximate", 0) else "none"
    node.op = "Gelu"
    node.attrs.clear()
    node.attrs["approximate"] = form
    return True


@_LEFT.on("PartitionedCall", "StatefulPartitionedCall")
def call_left_behind(graph: QuantGraph, node: Node) -> bool:
    """QAT106: what TensorFlow marked for XLA, as Keras does grouped convolutions, is called, and not in the file."""
    hint = "give qatc the Keras file or the SavedModel itself, or write the file with qatc.frontends.tf_qat.export"
    return refuse(graph, node, "QAT106", "tf2onnx left a function that TensorFlow compiles out of the file", hint)


@_LEFT.on("TFL_RELU_0_TO_1", "TFL_RELU_N1_TO_1")
def clip_at_one(graph: QuantGraph, node: Node) -> bool:
    """A Clip to 0..1 or -1..1."""
    low = 0.0 if node.op == "TFL_RELU_0_TO_1" else -1.0
    ends = [graph.constant(f"{node.outputs[0].name}_end", np.asarray(v, np.float32)) for v in (low, 1.0)]
    node.op, node.inputs = "Clip", [node.inputs[0], *ends]
    node.attrs.clear()
    return True


# -- TensorFlow's own nodes ---------------------------------------------------------------------------------------


def _own_nodes(graph: QuantGraph) -> None:
    """Fake quantization that is still a node; along the last axis of data, its rank has to be known (NNCF's)."""
    if any(n.op == _PER_CHANNEL and shape_of(n.inputs[0]) is None for n in graph.nodes):
        infer_if_possible(graph)
    sweep(graph, _NODES)


@_NODES.on(*_FAKE_QUANTS)
def fake_quant(graph: QuantGraph, node: Node) -> bool:
    """FakeQuantWithMinMaxArgs, -Vars and -VarsPerChannel become a FakeQuant."""
    bits, narrow = int(node.attr("num_bits", 8)), bool(node.attr("narrow_range", 0))
    if not 2 <= bits <= _LONGEST:
        return refuse(graph, node, "QAT103", f"{node.op} with {bits} bits")
    bottom: Array | None = np.asarray(node.attr("min", -6.0), np.float32)
    top: Array | None = np.asarray(node.attr("max", 6.0), np.float32)
    if node.op != "FakeQuantWithMinMaxArgs":
        bottom, top = constant_input(graph, node, 1, "minimum"), constant_input(graph, node, 2, "maximum")
    if bottom is None or top is None:
        return False
    if len({bottom.size, top.size} - {1}) > 1:
        message = f"its minima and maxima have the shapes {list(bottom.shape)} and {list(top.shape)}"
        return refuse(graph, node, "QAT104", message)
    low, high = int(narrow), (1 << bits) - 1
    x = node.inputs[0]
    scale, zero = nudged(bottom, top, low, high)
    axis = -1 if node.op == _PER_CHANNEL else None
    params = make_params(
        graph, node, scale, zero, "uint8" if bits <= 8 else "uint16",
        axis=axis, shape=shape_of(x), qmin=low, qmax=high, tensor=x.name,
    )  # fmt: skip
    if params is not None:
        to_fake_quant(graph, node, _signed(params, bits) if is_constant(x) else params)
    return params is not None


def nudged(minimum: Array, maximum: Array, low: int, high: int) -> tuple[Array, Array]:
    """Scale and zero point of TensorFlow's fake quantization: the range is moved so that 0 is on the grid.

    The formula and its float32 arithmetic are those of `tensorflow/core/kernels/fake_quant_ops_functor.h`.
    """
    minimum, maximum = minimum.astype(np.float32), maximum.astype(np.float32)
    with np.errstate(all="ignore"):
        scale = (maximum - minimum) / np.float32(high - low)
        from_minimum = np.float32(low) - minimum / scale
        rounded = np.floor(np.nan_to_num(from_minimum).astype(np.float64) + 0.5)
    return scale, np.clip(rounded, low, high).astype(np.int64)


def _signed(params: QuantParams, bits: int) -> QuantParams:
    """Weights as symmetric integers around zero, where that is what they are."""
    middle, dtype = 1 << (bits - 1), "int8" if bits <= 8 else "int16"
    if any(z != middle for z in params.zero_point) or params.qmin == 0:
        return params.as_dtype(dtype) if bits in (8, 16) else params
    span = params.qmax - middle
    return QuantParams(params.scale, (0,) * len(params.scale), dtype, params.axis, -span, span)


FRONTEND: Final = Frontend(
    name="tensorflow",
    description="tf2onnx exports of tfmot, QuantizeAndDequantize and TFLite models",
    recognize=recognize,
    normalize=normalize,
    plain=True,
    confidence=20,
    importer=IMPORTER,
    exporters=(
        "tf2onnx 1.16 and 1.17 of tfmot 0.8 (TensorFlow 2.15, 2.19 and 2.21, opset 11 to 18)",
        "tfmot 0.8 as collaborative optimization (PQAT, CQAT, PCQAT), its n-bit scheme, own QuantizeConfigs"
        " (tf2onnx 1.17 of Keras, SavedModel and frozen graph, opset 11 to 18; .tflite with and without optimizations)",
        "tf2onnx 1.8, 1.13 and 1.15 of tfmot 0.5 and 0.7 (TensorFlow 2.4, 2.8 and 2.12, opset 10 to 17)",
        "tf2onnx 1.8 of TensorFlow 1.15's tf.contrib.quantize (frozen, SavedModel; opset 9 to 13; 8 and 4 bits)",
        "tf2onnx 1.17 --tflite, with and without --dequantize (14 networks of keras.applications among them; 55 more,"
        " full integer per channel and per tensor, int16 activations, int8, uint8 and float interfaces)",
        "LSTM, stacked, bidirectional and backwards, GRU and SimpleRNN in .tflite files (Keras 2 of TensorFlow 2.21;"
        " full integer with a cell state of 16 bits, weights of 8 bits alone, and float between annotated layers)",
        "streaming .tflite files with variables, as inputs and outputs (microWakeWord's of pymicro-wakeword 2.5; int8)",
        "tf.quantization.quantize_and_dequantize (V2 to V4, per axis) and fake_quant_with_min_max (TensorFlow 2.21)",
        "hand-written LSQ and straight-through quantizers in JAX 0.4 (jax2tf, tf2onnx 1.17)",
        "Keras 3.15 (model.export to ONNX: quantizers of keras.ops, fake_quant_with_min_max_vars; 8 and 4 bits;"
        " model.quantize of weights alone, int8 and int4, with --calibrate)",
        "QKeras 0.9 (quantized_bits, quantized_relu, tanh, sigmoid, binary, ternary, through tf2onnx 1.13 and 1.17)",
        "HGQ 0.2 (fixed point that rounds half up and saturates, one width a tensor, through tf2onnx 1.17)",
        "HGQ2 0.2 (Keras 3.15; SAT and SAT_SYM, one width a tensor for activations; model.export and tf2onnx 1.17)",
        "larq 0.12 and 0.14 (signs, ternary and DoReFa, through tf2onnx 1.13 and 1.17)",
        "QKeras 1.2 for Keras 3 (model.export, tf2onnx 1.17)",
        "ai-edge-quantizer 0.10 and litert-quantizer 0.11 (.tflite; static int8 and int16, weights of 4 and 8 bits)",
        "onnx2tf 1.29 (.tflite; full integer, int16 activations)",
        "TFLite's calibrator (TensorFlow 2.21; MediaPipe 0.10's face, hand, iris, palm and pose networks; int8, 16x8)",
        "litert-torch 0.10 (.tflite; PT2E, static int8)",
        "NNCF 2.14 (TensorFlow 2.15; quantize and quantization-aware training, through tf2onnx 1.16)",
        "model-compression-toolkit 2.6 (TensorFlow 2.15; FAKELY_QUANT and MCTQ through tf2onnx 1.16, .keras, .tflite)",
        ".keras (of Keras 2.13 on), .h5, SavedModel and .tflite themselves, where the extra tensorflow is installed",
        "such files of TensorFlow 1.15 (SavedModel; uint8 .tflite of TOCO) and 2.4 (tfmot 0.5; .tflite)",
    ),
    limits=(
        "weights that tfmot left unquantized are rounded to int8 per channel, with a warning",
        ".tflite files with weights in blocks, or of 2 bits; in them, integer LSTM layers of more than 2,048 steps in"
        " all, and variables that a loop or branch uses; GRU, SimpleRNN and stateful layers are loops there, left"
        " float: unroll=True",
        "tf2onnx 1.8 --tflite loses the bias of a fully connected layer that reads an image, 1.17 the scales of weights"
        " that a float .tflite quantizes per channel as it runs: give the .tflite itself",
        "grouped convolutions of Keras in a file that tf2onnx wrote by itself, which leaves them out:"
        " give the Keras file",
        "QKeras: quantized_relu with a slope, quantized_relu_po2 and quantized_ulaw as activations; recurrent layers",
        "HGQ and HGQ2: activations whose elements have widths of their own, rounding down, and values that wrap around",
        "quantize_and_dequantize of other widths than 8 bits, which tf2onnx writes as 8 (told of a SavedModel: QAT014)",
        "TensorFlow rounds halves up, the Q/DQ that tf2onnx writes to even: with steps of powers of two (as of"
        " model-compression-toolkit) up to half of a sum's numbers are halves, and TensorFlow's answers steps away",
        "--dequantize and Concat, Softmax or Sigmoid outputs have no ranges: --calibrate finds them",
    ),
)

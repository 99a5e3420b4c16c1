"""PyTorch: FX and eager QAT, the dynamo exporter, PT2E, and whatever else writes standard Q/DQ or arithmetic.

The node forms are in `common/lift.py` (Q/DQ) and `common/arithmetic.py`. What is PyTorch's own is what its exporters
lose: `quantize_per_tensor` of the dynamo exporter ignores quant_min and quant_max, so that a model trained on 0..127
(the default of the fbgemm and x86 qconfigs) is written as one on 0..255. The call that a node was exported from is in
the node's metadata, with both numbers. Where that is gone, as behind most optimizers, the user can tell.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Final

import numpy as np

from qatc.compiler.diagnostics import counted
from qatc.compiler.frontend import Frontend, FrontendOptions, RangeOverride
from qatc.compiler.graph import Node, QuantGraph, Tensor, is_constant, value_of
from qatc.compiler.passes.modernize import element_type
from qatc.compiler.quant import Array, QuantParams, blocks, dtype_range
from qatc.frontends.common import standard
from qatc.frontends.common.integers import is_q, quantizers
from qatc.frontends.common.params import integer_type
from qatc.frontends.common.qdq import fake_quants

_FEW_STEPS: Final = 64  # weights of seven bits or fewer use no more
_ONE_SIDED: Final = 16  # zero points up to here are those of ReLU, SiLU and the like: they tell nothing
_CENTER_OF_7_BITS: Final = 80  # tensors around zero have zero points of 64 or so on 0..127, of 128 or so on 0..255
_ENOUGH: Final = 3
_FIRST_DYNAMO: Final = (2, 1)  # the first PyTorch with an exporter that loses ranges
# (de)quantize_per_tensor(x, scale, zero_point, quant_min, quant_max, dtype) as torch.fx prints it; per channel an axis
# is in front of quant_min, and tensors stand there by name.
_NUMBER: Final = r"%[^,]+|-?\d+(?:\.\d+)?(?:e-?\d+)?"
_CALL: Final = re.compile(
    r"%\S+ : \[num_users=\d+\] = call_function"
    r"\[target=torch\.ops\.quantized_decomposed\.(?P<way>quantize|dequantize)_per_(?:tensor|channel)\.\w+\]"
    rf"\(args = \(%[^,]+, (?P<scale>{_NUMBER}), (?P<zero>{_NUMBER}),(?: -?\d+,)?"
    r" (?P<low>-?\d{1,5}), (?P<high>-?\d{1,5}), torch\.(?P<dtype>u?int(?:8|16))\), kwargs = \{\}\)"
)
_SAME: Final = 1e-6  # relative: a scale of float32 in all its digits


def recognize(graph: QuantGraph, producer: str) -> str | None:
    """Standard Q/DQ of any exporter, or fake quantization written as arithmetic."""
    found = standard.evidence(graph)
    return f"{found}, producer {producer or 'unknown'}" if found else None


def normalize(graph: QuantGraph, options: FrontendOptions) -> None:
    """Bring the graph to the canonical form; findings go to `graph.diagnostics`."""
    converted = _is_converted(graph)
    restore = partial(_restore_ranges, options=options)
    standard.normalize(graph, options, quantize_weights=False, nodes=restore)
    if not graph.diagnostics.errors:
        _suggest_ranges(graph, options, converted=converted)


# -- ranges that the exporter lost --------------------------------------------------------------------------------


def _restore_ranges(graph: QuantGraph, options: FrontendOptions) -> None:
    """Clamp integers to the range of the call that a Q was exported from, unless the user states another.

    Weights that are stored as integers lie in the range that their DQ's call has, which is how many bits they have.
    """
    if not graph.calls:
        return
    restored: dict[str, tuple[int, int]] = {}
    for node in [n for n in quantizers(graph) if n.outputs]:
        found = _range_of_call(graph, node)
        if found is None:
            continue
        integers = node.outputs[0] if is_q(node) else node.inputs[0]
        if _is_stated(graph, node, options.ranges) if is_q(node) else not _holds(integers, found):
            continue
        clamped = graph.variable(f"{integers.name}_clamped", element_type(integers), integers.shape)
        if is_q(node):
            graph.replace(integers, clamped)
            restored[node.inputs[0].name] = found
        else:
            node.inputs[0] = clamped
        zero = np.asarray(_zero_point(node))
        ends = [graph.constant(f"{integers.name}_end", np.asarray(end, zero.dtype)) for end in found]
        graph.insert("Clip", [integers, *ends], [clamped])
    graph.sort()
    if restored:
        graph.restated.append("with the ranges of the exporter's metadata")
        ranges = ", ".join(f"{low}..{high}" for low, high in sorted(set(restored.values())))
        message = f"{counted(len(restored), 'tensor')} clamped to {ranges}, as the exporter's metadata says"
        hint = "the file's own nodes have no range; --quant-range states another one"
        graph.diagnostics.note("QAT112", message, tensor=next(iter(restored)), hint=hint)


def _holds(integers: Tensor, span: tuple[int, int]) -> bool:
    """Whether all elements of a constant lie in a range."""
    stored = value_of(integers)
    return stored is not None and stored.size > 0 and span[0] <= stored.min() and stored.max() <= span[1]


def _is_stated(graph: QuantGraph, node: Node, ranges: RangeOverride) -> bool:
    """Whether the user states a range for what a Q rounds: by kind, or by name as `apply_ranges` knows it."""
    x = node.inputs[0]
    names = (x.name, *(t.name for reader in graph.consumers(node.outputs[0]) for t in reader.outputs))
    general = ranges.weights if is_constant(x) else ranges.activations
    return general is not None or any(name in ranges.tensors for name in names)


def _range_of_call(graph: QuantGraph, node: Node) -> tuple[int, int] | None:
    """The range of the call that a Q or DQ was exported from, where it is narrower than the type.

    None where the call is not known, or none of this node: an optimizer may have given it the metadata of another one.
    """
    call = _CALL.fullmatch(graph.calls.get(node.outputs[0].name, ""))
    if call is None or len(node.inputs) < 2 or (call["way"] == "quantize") != is_q(node):
        return None
    scale, zero = value_of(node.inputs[1]), _zero_point(node)
    if scale is None or zero is None or zero.dtype.name != call["dtype"]:
        return None
    for said, value in ((call["scale"], scale), (call["zero"], zero)):
        if not said.startswith("%") and not np.allclose(value.astype(np.float64), float(said), rtol=_SAME, atol=0):
            return None
    low, high = int(call["low"]), int(call["high"])
    lowest, highest = dtype_range(call["dtype"])
    return (low, high) if lowest <= low < high <= highest and (low, high) != (lowest, highest) else None


def _zero_point(node: Node) -> Array | None:
    """The zero point of a Q or DQ: 0 where it is left out, None where it is not constant."""
    given = node.optional(2)
    return np.zeros((), integer_type(node, None)) if given is None else value_of(given)


def _is_converted(graph: QuantGraph) -> bool:
    """Whether the file is a model of integer operators (`convert_fx`): it names the type of the integers behind each Q.

    Such operators clamp at the ends of their type, whatever range was trained: the file lost none.
    """
    behind = [n.inputs[0] for n in graph.of("Cast") if (maker := graph.producer(n.inputs[0])) and is_q(maker)]
    return any({reader.op for reader in graph.consumers(root)} == {"Cast"} for root in behind)


def _suggest_ranges(graph: QuantGraph, options: FrontendOptions, *, converted: bool) -> None:
    """Notes (QAT107) where the file betrays that it was trained on a narrower range than it states."""
    weights: list[tuple[Node, QuantParams]] = []
    others: list[tuple[Node, QuantParams]] = []
    for node in fake_quants(graph):
        (weights if is_constant(node.inputs[0]) else others).append((node, node.attrs["params"]))
    if options.ranges.weights is None:
        _suggest_weights(graph, weights)
    if options.ranges.activations is None and not converted and not _is_before_dynamo(options.producer):
        _suggest_activations(graph, others)


def _is_before_dynamo(producer: str) -> bool:
    """Whether a PyTorch without the dynamo exporter wrote the file: what it states is what was trained.

    Up to 1.9, reduce_range narrows the scale alone and fake quantization clamps at 0..255 all the same; later ones
    write 0..127 as a Clip.
    """
    name, _, version = producer.partition(" ")
    match version.split(".")[:2]:
        case [major, minor] if name == "pytorch" and major.isdecimal() and minor.isdecimal():
            return (int(major), int(minor)) < _FIRST_DYNAMO
        case _:
            return False


def _suggest_weights(graph: QuantGraph, weights: list[tuple[Node, QuantParams]]) -> None:
    """Weights of fewer bits use few of the steps that their type has, all of them."""
    used: list[int] = []
    for node, params in weights:
        value = value_of(node.inputs[0])
        if params.dtype != "int8" or not params.is_full_range or any(params.zero_point) or value is None:
            return
        used.append(_steps(value, params))
        if used[-1] > _FEW_STEPS:
            return
    if not any(used):  # zeros alone tell nothing
        return
    end = 1 << (max(used) - 1).bit_length() if max(used) > 1 else 1
    graph.diagnostics.note(
        "QAT107",
        f"no weight uses more than {max(used)} of the 127 steps of int8: they may have been trained with fewer bits,"
        " and the exporter has lost the range",
        tensor=weights[0][0].outputs[0].name,
        hint=f"state the range they were trained with, for example --quant-range weight={-end}..{end - 1}",
    )


def _steps(weight: Array, params: QuantParams) -> int:
    """The most steps from zero that a weight takes on its grid; no more blocks are read than say that it is many."""
    most, scale = 0.0, params.scale_array(weight.ndim)
    for block in blocks(weight.shape) if weight.ndim else ():
        steps = np.rint(weight[block] / scale[params.part_of(block)])
        most = max(most, float(np.abs(steps).max(initial=0)))
        if not most <= _FEW_STEPS:  # infinite weights among them
            return _FEW_STEPS + 1
    return int(most)


def _suggest_activations(graph: QuantGraph, others: list[tuple[Node, QuantParams]]) -> None:
    """On 0..127 the zero points of tensors around zero are near 64, on 0..255 near 128."""
    if not all(p.dtype == "uint8" and p.is_full_range and not p.is_per_channel for _, p in others):
        return
    centered = [p.zero_point[0] for _, p in others if p.zero_point[0] > _ONE_SIDED]
    if len(centered) < _ENOUGH or len(set(centered)) < 2 or max(centered) > _CENTER_OF_7_BITS:
        return
    graph.diagnostics.note(
        "QAT107",
        f"no zero point is above {max(centered)}: the model may have been trained on 0..127 (reduce_range, the default"
        " of the fbgemm and x86 qconfigs), which the dynamo exporter does not write",
        tensor=next(n.outputs[0].name for n, p in others if p.zero_point[0] > _ONE_SIDED),
        hint="if so, state it: --quant-range act=0..127",
    )


FRONTEND: Final = Frontend(
    name="pytorch",
    description="standard QuantizeLinear/DequantizeLinear and fake quantization written as arithmetic",
    recognize=recognize,
    normalize=normalize,
    plain=True,
    confidence=10,
    exporters=(
        "torch.onnx.export of FX, eager and PT2E models (torch 2.13, 2.14, torchao 0.18; legacy and dynamo exporter)",
        "torchvision 0.29 (classification, segmentation, detection, video), timm 1.0 and transformers 5.24 (PT2E)",
        "ultralytics 8.4 (YOLOv3 to v10, 11, 12 and 26 with all heads, RT-DETR, YOLO-World and YOLOE: FX, eager, PT2E;"
        " its ONNX files, with NMS and open sizes too, quantized by itself, ONNX Runtime, NNCF), super-gradients 3.7",
        "pytorchcv 0.0.74, segmentation_models_pytorch 0.6 and MONAI 1.6 (FX), torchaudio 2.11, diffusers 0.42,"
        " asteroid 0.7, open_clip 3.3 and spandrel 0.4 (ONNX Runtime's quantize_static)",
        "tsai 1.0, pytorch-tcn 1.2, braindecode 1.8, speechbrain 1.1, effdet 0.4, torch-pruning 1.6, easyocr 1.7,"
        " python-doctr 1.1, kornia 0.9, facenet-pytorch 2.6, torchcrepe 0.0.24, openunmix 1.3, demucs-infer 4.4,"
        " encodec 0.1 and vocos 0.1 (FX; PT2E with the quantizers of x86 and XNNPACK)",
        "torch.ao.nn.quantizable LSTM and MultiheadAttention (eager QAT), _LearnableFakeQuantize (torch 2.13)",
        "torch 1.9, 1.12, 2.2 and 2.6: FX and eager QAT at opset 10 to 17, and converted models from 1.12 on",
        "Renesas DRP-AI recipe (torch 2.13)",
        "coremltools 9.0 LinearQuantizer (symmetric, affine; torch 2.13)",
        "hand-written LSQ, PACT and DoReFa (torch 2.13)",
        "hand-written LSQ+, TQT, EWGS, DuQ (PROFIT), QIL, StatsQ, APoT (uniform), BSQ, AdaRound, HAWQ, ZeroQ,"
        " micronet, learned zero points and logarithms of scales, casts to integers (torch 2.13, both exporters)",
        "PT2E with ExecuTorch 1.5's quantizers (XNNPACK, Arm TOSA, Cortex-M, Cadence, Qualcomm, Samsung; torchao 0.18)",
        "ONNX Runtime 1.31 and 1.32 quantize_static (QDQ; QNN configurations, 4 and 16 bits, overrides, contrib Q/DQ)",
        "ONNX Runtime 1.8, 1.10, 1.12, 1.14, 1.16 and 1.20 quantize_static (QDQ; opset 10 to 17, contrib, 16 bits)",
        "such files around onnxsim 0.8, onnxslim 0.1, onnxoptimizer 0.4, onnxscript 0.7, float16 conversion"
        " and ONNX Runtime 1.32's optimizer (basic, extended)",
        "torchao 0.18 quantize_ of weights alone (per channel; with --calibrate)",
        "neural-compressor 1.14 and 2.3 (ONNX Runtime's QDQ, SmoothQuant), 3.10 (PT2E)",
        "Optimum ONNX 0.1 ORTQuantizer (AVX2, AVX-512 VNNI, Arm64, PPC64LE and TensorRT presets)",
        "Olive 0.13 static quantization",
        "Brevitas 0.9 to 0.13 QCDQ",
        "NNCF 3.4 strip, and its quantization of ONNX models (presets, transformer, NPU, SmoothQuant, overflow fix)",
        "AIMET 2.42 (PyTorch and ONNX, Q/DQ in the graph)",
        "model-compression-toolkit 2.6 (FAKELY_QUANT)",
        "onnx-neural-compressor 1.0 (QDQ)",
        "nvidia-modelopt 0.47, its quantization of ONNX files (max, entropy)",
        "PaddlePaddle 2.6 quantization-aware training through Paddle2ONNX 1.2",
        "fms-model-optimizer 0.8.7 (PACT, SAWB, LSQ+, Qmax, min-max, BRECQ; 2, 4 and 8 bits)",
        "nni 3.0 (QAT, LSQ, LSQ+, DoReFa and BNN quantizers)",
        "DeepSpeed 0.17 compression (symmetric, asymmetric, groups of rows, ternary, binary)",
        "compressed-tensors 0.20 (W8A8 and W4A8, weights compressed before the export)",
        "llmcompressor 0.14 (QuantizationModifier, GPTQModifier; static W8A8, W4A8; legacy exporter)",
        "r3al-quant 0.1 (uniform quantization-aware training; 8 and 4 bits)",
        "quantization-rs 0.10 (static and of weights alone)",
        "qsparse 2.0 (AdaptiveQuantizer; legacy exporter)",
        "bitorch 0.4 (signs, steps, DoReFa)",
        "esp-ppq 1.3 (ONNX with Q/DQ for ESP-DL, TensorRT, OpenVINO, RKNN and NXP; 8 bits)",
        "PQuantML 0.1 (fixed point that saturates: RND, RND_CONV; legacy exporter)",
        "tico 0.3 (wrapq, legacy exporter)",
        "hand-written LSQ and straight-through quantizers in JAX 0.12 (jax2onnx 0.17)",
        "qwix 0.1 (OdmlQatProvider; 8 and 4 bits, through jax2onnx 0.17)",
        "AQT 0.9 (constant bounds, DequantMode.THIS_INPUT; 8 and 4 bits, through jax2onnx 0.17)",
        "pytorch-quantization 2.1 (use_fb_fake_quant; torch 1.12)",
        "PPQ 0.6 (ONNXRUNTIME and OPENVINO_INT8)",
        "XSlim 2.1 (SpacemiT; precision levels 0 and 2)",
        "transformers 5.24 I-BERT (quant_mode; legacy exporter)",
        "BladeDISC torch-quant 0.4 (DISC)",
        "fasterai 0.4 (PT2E through export_qdq, on torchao 0.18; export_onnx)",
        "elasticai.creator 0.67 (quantized_grads)",
        "in their documented form: pytorch-quantization 2 (its own Q/DQ), ai8x-training, TI edgeai-torchmodelopt"
        " (v2, fake quantization and converted, of powers of two, too; v3), TinyNeuralNetwork's fake quantization"
        " (roundings of PyTorch and of TFLite)",
    ),
    limits=(
        "the dynamo exporter drops quant_min and quant_max: they are read from the metadata of its nodes, or stated"
        " (--quant-range) where an optimizer has dropped those, too",
        "float8 and float4 Q/DQ, scales for blocks of weights, and scales found at run time are refused",
        "weights alone, where the exporter folded their scale into them, show no quantization (optimize=False helps)",
        "qwix: QtProvider and PtqProvider, AQT otherwise (products of bytes)",
        "compressed-tensors and llmcompressor round weight.data as they run, which exporters lose: the weights stay"
        " float, unless the rounded ones are stored before (`qatc explain QAT206`)",
        "edgeai-torchmodelopt v1 exports floats and clips alone, qsparse's other quantizers no range: --ranges",
        "PT2E quantizes weights that several layers share (effdet's heads) for the first of these alone",
        "negative scales of weights (NNCF compress_weights, INT8_SYM and INT4_SYM); PQuantML's values that wrap around",
        "roundings down or up stay float where a step is no whole number of units of the sum, or has no range (averages"
        " of ai8x-training, NEMO), and so do weights with an offset of part of a step; roundings toward zero"
        " (elasticai.creator's layers) show no quantization",
        "zero points of int32 (MMRazor's exporter to TensorRT, esp-ppq's 16 bits): their range is lost",
    ),
)

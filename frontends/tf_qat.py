"""Quantization-aware training in TensorFlow: tfmot's own, and an export that qatc reads without loss.

    model = prepare_qat(model)           # tfmot's quantize_model; layers can be left out
    ...                                  # train; the last epochs with training=False keep ranges and batch norm
    export(model, "model.onnx")

tfmot works on Keras 2, which is the package tf_keras. TensorFlow and the rest are loaded when a function is called
(extra `tensorflow`); nothing else in qatc imports this.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from qatc.compiler.diagnostics import CompileError, Diagnostic

_LEGACY: Final = "TF_USE_LEGACY_KERAS"
_MIN_OPSET: Final = 10  # QuantizeLinear


def prepare_qat(model: Any, exclude: Sequence[str] = ()) -> Any:
    """A copy of `model` with tfmot's fake quantizers: weights int8 per channel, activations uint8.

    Args:
        model: a built Sequential or functional Keras 2 model.
        exclude: names of layers that stay float.

    Raises:
        CompileError: QAT007 (exit code 2) for unknown layers and for those that tfmot cannot quantize; QAT010 without
            TensorFlow.
    """
    keras, quantize = _keras(), _tfmot().quantization.keras
    unknown = sorted(set(exclude) - {layer.name for layer in model.layers})
    if unknown:
        raise _usage(f"the model has no layer {unknown[0]!r}", "exclude names layers, see model.summary()")

    def annotated(layer: Any) -> Any:
        inert = isinstance(layer, keras.layers.InputLayer) or layer.name in exclude
        return layer if inert else quantize.quantize_annotate_layer(layer)

    try:
        if not exclude:
            return quantize.quantize_model(model)
        return quantize.quantize_apply(keras.models.clone_model(model, clone_function=annotated))
    except (RuntimeError, ValueError) as error:  # what tfmot raises for layers that it does not know
        raise _usage(f"tfmot cannot quantize the model: {error}", "leave the layer out with exclude") from error


def load(path: str | Path) -> Any:
    """A saved model (`.h5`, `.keras`, SavedModel) with tfmot's layers.

    Raises:
        CompileError: QAT010 without TensorFlow.
    """
    with _tfmot().quantization.keras.quantize_scope():
        return _keras().models.load_model(str(path), compile=False)


def export(model: Any, path: str | Path, *, opset: int = 13, input_name: str = "input") -> Path:
    """Write a fake-quantized model as FP32 ONNX with Q/DQ on activations, weights on their grids; the batch symbolic.

    Raises:
        CompileError: QAT007 where the opset is too old, QAT010 without TensorFlow and tf2onnx.
    """
    if opset < _MIN_OPSET:
        raise _usage(f"opset {opset} has no quantization", f"use opset {_MIN_OPSET} or later")
    tensorflow, converter = _needed("tensorflow"), _needed("tf2onnx")
    inputs = model.inputs
    signature = [
        tensorflow.TensorSpec((None, *tensor.shape[1:]), tensor.dtype, _numbered(input_name, i, len(inputs)))
        for i, tensor in enumerate(inputs)
    ]
    with _tfmot().quantization.keras.quantize_scope():
        converter.convert.from_keras(model, input_signature=signature, opset=opset, output_path=str(path))
    return Path(path)


def _numbered(name: str, index: int, count: int) -> str:
    return name if count == 1 else f"{name}_{index}"


def _keras() -> Any:
    os.environ.setdefault(_LEGACY, "1")
    return _needed("tf_keras")


def _tfmot() -> Any:
    _keras()
    return _needed("tensorflow_model_optimization")


def _needed(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        hint = "pip install 'qatc[tensorflow]'"
        raise CompileError([Diagnostic("QAT010", f"{name} is not installed: {error}", hint=hint)]) from error


def _usage(message: str, hint: str) -> CompileError:
    return CompileError([Diagnostic("QAT007", message, hint=hint)], 2)

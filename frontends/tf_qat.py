"""Quantization-aware training in TensorFlow: tfmot's own, and an export that qatc reads without loss.

    model = prepare_qat(model)           # tfmot's quantize_model; layers can be left out
    ...                                  # train; the last epochs with training=False keep ranges and batch norm
    export(model, "model.onnx")

tfmot works on Keras 2, which is the package tf_keras. TensorFlow and the rest are loaded when a function is called
(extra `tensorflow`); nothing else in qatc imports this.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from qatc.compiler.diagnostics import misused
from qatc.frontends.tf.convert import write_keras
from qatc.frontends.tf.load import first_words, load_keras, needed

_OPSETS: Final = (10, 18)  # QuantizeLinear came with the first; tf2onnx 1.17 ends at the second
_DEFAULT_OPSET: Final = 13
_SCHEME: Final = "tensorflow_model_optimization.python.core.quantization.keras.default_8bit.default_8bit_quantize_"
#: What tfmot has no rule for, but whose result can be given a range like that of Add.
_ELEMENTWISE: Final = frozenset({"Multiply", "Subtract", "Maximum", "Minimum"})
#: What tfmot rewrites or passes over before it asks its registry.
_REWRITTEN: Final = frozenset({"BatchNormalization", "InputLayer", "SeparableConv1D", "SeparableConv2D"})


def prepare_qat(model: Any, exclude: Sequence[str] = ()) -> Any:
    """A copy of `model` with tfmot's fake quantizers: weights int8 per channel, activations uint8.

    Multiply, Subtract, Maximum and Minimum, which tfmot does not know, get a range for their result as Add does.

    Args:
        model: a built Sequential or functional Keras 2 model.
        exclude: names of layers that stay float.

    Raises:
        CompileError: QAT007 (exit code 2) for unknown layers and for those that tfmot cannot quantize, all of them;
            QAT010 without TensorFlow.
    """
    keras, quantize = needed("tf_keras"), needed("tensorflow_model_optimization").quantization.keras
    if not isinstance(model, keras.Model):
        raise misused(f"{type(model).__name__} is no model of Keras 2", "build it with tf_keras: tfmot needs Keras 2")
    unknown = sorted(set(exclude) - {layer.name for layer in model.layers})
    if unknown:
        raise misused(f"the model has no layer {unknown[0]!r}", "exclude names layers, see model.summary()")
    _check_layers([layer for layer in model.layers if layer.name not in exclude])
    with_range = needed(f"{_SCHEME}configs").Default8BitOutputQuantizeConfig

    def annotated(layer: Any) -> Any:
        if isinstance(layer, keras.layers.InputLayer) or layer.name in exclude:
            return layer
        if type(layer).__name__ in _ELEMENTWISE:
            return quantize.quantize_annotate_layer(layer, with_range())
        return quantize.quantize_annotate_layer(layer)

    plain = not exclude and not any(type(layer).__name__ in _ELEMENTWISE for layer in model.layers)
    try:
        if plain:
            return quantize.quantize_model(model)
        with quantize.quantize_scope():
            return quantize.quantize_apply(keras.models.clone_model(model, clone_function=annotated))
    except (RuntimeError, ValueError) as error:  # what tfmot raises for structures that it does not know
        hint = "leave the layer out with exclude"
        raise misused(f"tfmot cannot quantize the model: {first_words(error)}", hint) from error


def load(path: str | Path) -> Any:
    """A saved model (`.h5`, `.keras`, SavedModel) with tfmot's layers; code in a file is refused.

    Raises:
        CompileError: QAT010 without TensorFlow; QAT012 where Keras cannot read the model; QAT013 where loading it would
            run code.
    """
    return load_keras(Path(path))


def export(
    model: Any, path: str | Path, *, opset: int = _DEFAULT_OPSET, input_names: Sequence[str] = ("input",)
) -> Path:
    """Write a fake-quantized model as FP32 ONNX with Q/DQ on activations, weights on their grids.

    Sizes that the model leaves open, such as the batch, stay symbolic; images stay channels last.

    Args:
        model: a built Keras 2 model.
        path: the file to write.
        opset: of the operators, 10 to 18.
        input_names: one name an input; the model's own names where their number differs.

    Raises:
        CompileError: QAT007 for an opset that does not do, QAT010 without TensorFlow and tf2onnx.
    """
    first, last = _OPSETS
    if not first <= opset <= last:
        raise misused(f"opset {opset} does not do for a quantized model", f"use opset {first} to {last}")
    names = list(input_names) if len(input_names) == len(model.inputs) else []
    write_keras(model, Path(path), opset=opset, names=names)
    return Path(path)


def _check_layers(layers: Sequence[Any]) -> None:
    """One error for all layers that tfmot has no rule for."""
    rules = needed(f"{_SCHEME}registry").Default8BitQuantizeRegistry()
    known = _ELEMENTWISE | _REWRITTEN
    bad = [layer for layer in layers if type(layer).__name__ not in known and not rules.supports(layer)]
    if not bad:
        return
    kinds = sorted({type(layer).__name__ for layer in bad})
    names = ", ".join(repr(layer.name) for layer in bad[:8]) + (", ..." if len(bad) > 8 else "")
    hint = f"replace them, or keep them in float: exclude=[{names}]"
    raise misused(f"tfmot has no quantizers for {', '.join(kinds)}", hint)

"""Saved Keras models with tfmot's layers, read back: TensorFlow is imported when a function is called.

tfmot works on Keras 2 (the package tf_keras). What Keras itself gets wrong with tfmot's layers is put right here:
reading `.keras` builds a QuantizeLayer twice, and lists the variables of a QuantizeWrapper otherwise than they were
saved.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from qatc.compiler.diagnostics import fail
from qatc.frontends.tf import keras_file

_LEGACY: Final = "TF_USE_LEGACY_KERAS"
_LONGEST: Final = 400  # characters of a message of TensorFlow's
_LAYERS: Final = "tensorflow_model_optimization.python.core.quantization.keras"


def needed(name: str) -> Any:
    """The module `name`, or QAT010 with the command that installs it."""
    os.environ.setdefault(_LEGACY, "1")
    try:
        return import_module(name)
    except ImportError as error:
        raise fail("QAT010", f"{name} is not installed: {error}", hint="pip install 'qatc[tensorflow]'") from error


def codes_of(content: Any) -> Any:
    """The kinds of a TFLite file's operators, a list of integers by their index: each is in one of two fields."""
    return [max(code.deprecatedBuiltinCode, code.builtinCode) for code in content.operatorCodes]


def load_keras(path: Path) -> Any:
    """A saved Keras model (`.h5`, `.keras`, or a SavedModel folder) with tfmot's layers; code in a file is refused.

    Raises:
        CompileError: QAT010 without TensorFlow; QAT012 where Keras cannot read the model; QAT013 as `keras_file.check`.
    """
    keras, tfmot = needed("tf_keras"), needed("tensorflow_model_optimization")
    if path.is_file():
        keras_file.check(path)
    with tfmot.quantization.keras.quantize_scope(), keras.utils.custom_object_scope(_mended()):
        try:
            return keras.models.load_model(str(path), compile=False)
        except Exception as error:  # Keras raises anything
            hint = (
                "qatc knows the layers of Keras and tfmot; save a network with others as a SavedModel "
                "(tf.saved_model.save)"
            )
            raise fail("QAT012", f"Keras cannot load {path.name}: {first_words(error)}", hint=hint) from error


def first_words(error: BaseException) -> str:
    """The start of a message: TensorFlow likes to append the whole model."""
    text = " ".join(str(error).split())
    if " " not in text:  # a KeyError says its key alone
        text = f"{type(error).__name__}: {text}"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


# -- tfmot's layers as `.keras` needs them --------------------------------------------------------------------------
def _mended() -> dict[str, Any]:
    layer: Any = needed(f"{_LAYERS}.quantize_layer").QuantizeLayer
    wrappers: Any = needed(f"{_LAYERS}.quantize_wrapper")

    def build(self: Any, shape: Any) -> None:
        if not self.built:
            layer.build(self, shape)
            self.built = True

    found = [_derived(layer, build=build)]
    found += [
        _derived(base, load_own_variables=_load_wrapper)
        for base in (wrappers.QuantizeWrapper, wrappers.QuantizeWrapperV2)
    ]
    return {one.__name__: one for one in found}


def _derived(base: Any, **methods: Any) -> Any:
    """A class with other methods that is saved under the name and module of `base`."""
    return type(base.__name__, (base,), {"__module__": base.__module__, **methods})


def _load_wrapper(self: Any, store: Any) -> None:
    """Give a wrapper its variables: weights first, once or twice each, then the step (int32), then the ranges.

    How often a weight is listed depends on whether the wrapped layer was built before the wrapper was.
    """
    saved = [np.asarray(store[str(i)]) for i in range(len(store.keys()))]
    step = next((i for i, values in enumerate(saved) if values.dtype.kind == "i"), len(saved))
    weights, ranges = saved[:step], saved[step:]
    mine = _once(self._non_trainable_weights)
    if len(mine) != len(ranges):
        raise ValueError(f"layer {self.name} has {len(mine)} ranges, the file {len(ranges)}")
    for variable, values in zip(mine, ranges, strict=True):
        variable.assign(values)
    for variable in _once(self._trainable_weights):
        fitting = [w for w in weights if w.shape == tuple(variable.shape)]
        if not fitting:
            raise ValueError(f"the file has no values for {variable.name} of the layer {self.name}")
        variable.assign(fitting[0])
        weights = [w for w in weights if not _same(w, fitting[0])]


def _once(variables: Iterable[Any]) -> list[Any]:
    return list({id(v): v for v in variables}.values())


def _same(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> bool:
    return a.shape == b.shape and np.array_equal(a, b, equal_nan=True)

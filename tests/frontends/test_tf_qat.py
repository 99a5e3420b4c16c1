"""Training with `qatc.frontends.tf_qat`: what is exported compiles to integers, and what tfmot cannot do is said."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ["TF_USE_LEGACY_KERAS"] = "1"

import numpy as np
import onnx
import onnxruntime
import pytest

pytest.importorskip("tensorflow", reason="TensorFlow is not installed (extra `tensorflow`)")
pytest.importorskip("tensorflow_model_optimization")
keras: Any = pytest.importorskip("tf_keras")

from qatc import CompileError, compile_model  # noqa: E402
from qatc.frontends.tf_qat import export, load, prepare_qat  # noqa: E402

layers: Any = keras.layers
SHAPE = (8, 8, 3)


def network() -> Any:
    """Conv+BN, a residual sum, squeeze and excite, concatenation, resizing, pooling, a dense head."""
    given = layers.Input(SHAPE)
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same", use_bias=False)(given)))
    y = layers.ReLU(6.0)(layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)))
    x = layers.ReLU()(layers.Add()([x, y]))
    gate = layers.Activation("sigmoid")(layers.Conv2D(8, 1)(layers.GlobalAveragePooling2D(keepdims=True)(x)))
    x = layers.Multiply(name="gated")([x, gate])
    x = layers.Concatenate()([x, layers.UpSampling2D()(layers.MaxPooling2D()(x))])
    return keras.Model(given, layers.Dense(5, name="score")(layers.GlobalAveragePooling2D()(x)))


def images(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, *SHAPE)).astype(np.float32)


def trained(model: Any) -> Any:
    keras.utils.set_random_seed(0)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(images(0, 32), np.random.default_rng(0).integers(0, 5, 32), verbose=0)
    return model


def answer(path: Path, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options)
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


@pytest.fixture(scope="module")
def model() -> Any:
    return trained(prepare_qat(network()))


def test_the_export_is_the_trained_network(model: Any, tmp_path: Path) -> None:
    path = export(model, tmp_path / "model.onnx")
    x = images(1, 4)
    np.testing.assert_allclose(answer(path, x), model(x, training=False).numpy(), rtol=0, atol=1e-4)
    proto = onnx.load(path)
    assert [i.name for i in proto.graph.input] == ["input"]
    assert proto.opset_import[0].version == 13


def test_it_compiles_to_integers_alone(model: Any, tmp_path: Path) -> None:
    path = export(model, tmp_path / "model.onnx", opset=17)
    result = compile_model(path, qat=True, dialect="tensorflow", io="integer", output=tmp_path / "out")
    assert result.coverage.share == 1
    assert {p.dtype for p in (*result.inputs, *result.outputs)} == {"uint8"}
    assert result.verification is not None
    assert result.verification.passed


@pytest.mark.parametrize("form", ["h5", "keras"])
def test_saved_and_loaded_it_is_the_same(model: Any, form: str, tmp_path: Path) -> None:
    model.save(tmp_path / f"net.{form}")
    x = images(1, 4)
    again = load(tmp_path / f"net.{form}")
    np.testing.assert_array_equal(again(x, training=False).numpy(), model(x, training=False).numpy())


def test_excluded_layers_stay_float(tmp_path: Path) -> None:
    path = export(trained(prepare_qat(network(), exclude=["score"])), tmp_path / "model.onnx")
    result = compile_model(path, qat=True, output=tmp_path / "out")
    assert "QAT206" in {d.code for d in result.diagnostics}  # its weights came as floats


def test_several_inputs_keep_their_names(tmp_path: Path) -> None:
    a, b = layers.Input((4,), name="a"), layers.Input((6,), name="b")
    two = keras.Model([a, b], layers.Dense(2)(layers.Concatenate()([a, b])))
    two.compile("sgd", "mse")
    proto = onnx.load(export(two, tmp_path / "named.onnx", input_names=["left", "right"]))
    assert [i.name for i in proto.graph.input] == ["left", "right"]
    proto = onnx.load(export(two, tmp_path / "own.onnx"))
    assert [i.name for i in proto.graph.input] == ["a", "b"]


# -- what is refused ------------------------------------------------------------------------------------------------
def refused(call: Any, *arguments: Any, **named: Any) -> str:
    with pytest.raises(CompileError) as raised:
        call(*arguments, **named)
    assert raised.value.exit_code == 2
    return str(raised.value)


def test_layers_without_quantizers_are_all_named() -> None:
    given = layers.Input((8, 4))
    x = layers.LayerNormalization(name="norm")(layers.Conv1D(4, 3, name="conv")(given))
    model = keras.Model(given, layers.Dense(2)(layers.Flatten()(x)))
    message = refused(prepare_qat, model)
    assert "no quantizers for Conv1D, LayerNormalization" in message
    assert "exclude=['conv', 'norm']" in message
    assert len(prepare_qat(model, exclude=["conv", "norm"]).layers) >= len(model.layers)


def test_structures_that_tfmot_refuses() -> None:
    alone = keras.Sequential([layers.Input((4,)), layers.BatchNormalization(name="alone")])
    assert "tfmot cannot quantize the model" in refused(prepare_qat, alone)
    inner = keras.Sequential([layers.Input((4,)), layers.Dense(2)], name="inner")
    outer = keras.Sequential([layers.Input((4,)), inner])
    assert "QAT007" in refused(prepare_qat, outer)


def test_wrong_options(model: Any, tmp_path: Path) -> None:
    assert "no layer 'nowhere'" in refused(prepare_qat, network(), exclude=["nowhere"])
    assert "is no model of Keras 2" in refused(prepare_qat, object())
    for opset in (9, 19):
        assert "use opset 10 to 18" in refused(export, model, tmp_path / "model.onnx", opset=opset)
    assert not (tmp_path / "model.onnx").exists()

"""Keras files, SavedModels and TFLite files go in directly; what they hold besides a network is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

os.environ["TF_USE_LEGACY_KERAS"] = "1"

import numpy as np
import onnxruntime
import pytest

tensorflow: Any = pytest.importorskip("tensorflow", reason="TensorFlow is not installed (extra `tensorflow`)")
tfmot: Any = pytest.importorskip("tensorflow_model_optimization")
keras: Any = pytest.importorskip("tf_keras")

from qatc import CompileError, compile_model, inspect_model  # noqa: E402
from qatc.compiler.arithmetic import get_profile  # noqa: E402
from qatc.compiler.package.stored import read_graph  # noqa: E402
from qatc.compiler.reference import execute  # noqa: E402
from qatc.compiler.runtime.sessions import OrtEvaluator  # noqa: E402
from qatc.frontends.tf.convert import convert  # noqa: E402
from qatc.frontends.tf.load import load_keras  # noqa: E402

CORPUS = Path(__file__).parents[2] / "corpus"
FORMS = ["net.h5", "net.keras", "net.hdf5", "saved", "net.tflite"]
BIT_EXACT = ["tfmot-op13__bn_negative_gamma", "tfmot-op13__mlp", "tfmot-op13__mobilenetv2", "tfmot-op13__smallcnn"]


def network() -> Any:
    """A residual block, a depthwise convolution, an activation of its own and a dense layer: trained for one epoch."""
    layers = keras.layers
    given = layers.Input((8, 8, 3), name="image")
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same", use_bias=False)(given)))
    y = layers.ReLU(6.0)(layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)))
    x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.Dense(5, name="score")(layers.Flatten()(layers.MaxPooling2D()(x)))
    keras.utils.set_random_seed(0)
    model = tfmot.quantization.keras.quantize_model(keras.Model(given, x))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    random = np.random.default_rng(0)
    model.fit(images(random, 64), random.integers(0, 5, 64), verbose=0)
    return model


def images(random: np.random.Generator, count: int) -> np.ndarray:
    return random.normal(size=(count, 8, 8, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one network in every form, and what it answers to two images."""
    folder, model = tmp_path_factory.mktemp("models"), network()
    for name in ("net.h5", "net.keras", "saved"):
        model.save(folder / name)
    (folder / "net.hdf5").write_bytes((folder / "net.h5").read_bytes())
    converter = tensorflow.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tensorflow.lite.Optimize.DEFAULT]
    (folder / "net.tflite").write_bytes(converter.convert())
    x = images(np.random.default_rng(1), 2)
    np.savez(folder / "answers.npz", x=x, y=model(x, training=False).numpy())
    return folder


def answer(package: Path, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(package / "model.onnx")
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


@pytest.mark.parametrize("form", FORMS)
def test_every_form_compiles_to_what_tensorflow_answers(saved: Path, form: str, tmp_path: Path) -> None:
    result = compile_model(saved / form, qat=True, dialect="tensorflow", output=tmp_path / "out", samples=2)
    assert result.dialect == "tensorflow"
    assert result.coverage.share == 1
    assert not result.islands
    assert result.source.name == form
    stored = np.load(saved / "answers.npz")
    # one sample at a time, since TFLite fixes the batch; a step of the output is about 0.01 of its range
    got = np.concatenate([answer(tmp_path / "out", x[None]) for x in stored["x"]])
    step = result.outputs[0].params.scale[0]  # type: ignore[union-attr]
    assert np.abs(got - stored["y"]).max() <= 2.01 * step


@pytest.mark.parametrize("form", ["net.keras", "saved"])
def test_grouped_convolutions_come_along(form: str, tmp_path: Path) -> None:
    """Keras compiles them as functions of their own (XLA), which tf2onnx leaves out of what it writes."""
    layers = keras.layers
    given = layers.Input((8, 8, 4))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same", groups=2, use_bias=False)(given)))
    x = layers.Conv2D(6, 1, groups=2)(x)
    model = tfmot.quantization.keras.quantize_model(keras.Model(given, x))
    random = np.random.default_rng(0)
    for _ in range(3):
        model(random.normal(size=(8, 8, 8, 4)).astype(np.float32), training=True)
    model.save(tmp_path / form)
    result = compile_model(tmp_path / form, qat=True, output=tmp_path / "out")
    assert result.coverage.share == 1
    assert not result.islands
    assert "QAT014" not in {d.code for d in result.diagnostics}
    x = random.normal(size=(1, 8, 8, 4)).astype(np.float32)
    step = result.outputs[0].params.scale[0]  # type: ignore[union-attr]
    assert np.abs(answer(tmp_path / "out", x) - model(x, training=False).numpy()).max() <= 1.01 * step


def test_names_and_layout_are_the_model_s_own(saved: Path) -> None:
    for form in ("net.h5", "net.keras", "saved"):
        found = inspect_model(saved / form)
        (given,), (wanted,) = found.inputs, found.outputs
        assert (given.name, list(given.shape)[1:]) == ("image", [8, 8, 3])
        assert wanted.name == "quant_score"


@pytest.mark.parametrize("form", ["net.keras", "saved", "net.tflite"])
def test_equal_files_give_equal_packages(saved: Path, form: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        compile_model(saved / form, qat=True, output=tmp_path / name)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(files) > 5
    assert [f for f in files if (tmp_path / "a" / f).read_bytes() != (tmp_path / "b" / f).read_bytes()] == []


def test_what_was_loaded_is_the_same_network_again(saved: Path, tmp_path: Path) -> None:
    stored = np.load(saved / "answers.npz")
    for form in ("net.h5", "net.keras"):
        model = load_keras(saved / form)
        np.testing.assert_array_equal(model(stored["x"], training=False).numpy(), stored["y"])
        model.save(tmp_path / "again.keras")
        again = load_keras(tmp_path / "again.keras")
        np.testing.assert_array_equal(again(stored["x"], training=False).numpy(), stored["y"])


@pytest.mark.parametrize("case", BIT_EXACT)
def test_tflite_files_answer_as_the_interpreter_does(case: str, tmp_path: Path) -> None:
    """With TFLite's own arithmetic the reference equals the TFLite interpreter's recorded answers, bit for bit."""
    compile_model(CORPUS / case / "model.tflite", qat=True, output=tmp_path / "out", arithmetic="tflite")
    stored = read_graph(tmp_path / "out", json.loads((tmp_path / "out" / "manifest.json").read_text()))
    assert stored is not None
    graph = stored.graph
    (given,), (wanted,) = graph.inputs, graph.outputs
    for index in range(4):
        x = np.load(CORPUS / case / f"input_{index}.npy")
        want = np.load(CORPUS / case / f"tflite_output_{index}.npy")
        got = execute(graph, {given: x}, get_profile("tflite"), evaluate=OrtEvaluator())[wanted]
        np.testing.assert_array_equal(got, want)


# -- several inputs and outputs -------------------------------------------------------------------------------------
def test_inputs_and_outputs_keep_their_order(tmp_path: Path) -> None:
    layers = keras.layers
    b, a = layers.Input((4,), name="b"), layers.Input((6,), name="a")
    joined = layers.Concatenate()([layers.Dense(3, activation="relu")(b), layers.Dense(3, activation="relu")(a)])
    outputs = [layers.Dense(2, name="z")(joined), layers.Dense(3, name="y")(joined)]
    model = tfmot.quantization.keras.quantize_model(keras.Model([b, a], outputs))
    model.compile("sgd", "mse")
    random = np.random.default_rng(0)
    model.fit([random.normal(size=(8, 4)), random.normal(size=(8, 6))], [np.zeros((8, 2)), np.zeros((8, 3))], verbose=0)
    model.save(tmp_path / "two.h5")
    found = inspect_model(tmp_path / "two.h5")
    assert [p.name for p in found.inputs] == ["b", "a"]
    assert [(p.name, list(p.shape)[1:]) for p in found.outputs] == [("quant_z", [2]), ("quant_y", [3])]


def test_a_tensor_that_a_tflite_file_returns_twice_has_two_names(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    kernel = tensorflow.constant(random.normal(size=(3, 3, 3, 4)).astype(np.float32))
    module = tensorflow.Module()

    @tensorflow.function(input_signature=[tensorflow.TensorSpec((1, 8, 8, 3), tensorflow.float32)])
    def both(x: Any) -> dict[str, Any]:
        y = tensorflow.nn.relu(tensorflow.nn.conv2d(x, kernel, 1, "SAME"))
        return {"first": y, "second": y}

    converter = tensorflow.lite.TFLiteConverter.from_concrete_functions([both.get_concrete_function()], module)
    converter.optimizations = [tensorflow.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([images(random, 1)] for _ in range(20))
    (tmp_path / "twice.tflite").write_bytes(converter.convert())
    compile_model(tmp_path / "twice.tflite", qat=True, output=tmp_path / "out")
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    assert len({port.name for port in session.get_outputs()}) == 2
    np.testing.assert_array_equal(*session.run(None, {session.get_inputs()[0].name: images(random, 1)}))


# -- what is refused ------------------------------------------------------------------------------------------------
def refused(path: Path) -> str:
    with pytest.raises(CompileError) as raised:
        compile_model(path, qat=True, output=path.parent / "out")
    assert not (path.parent / "out").exists()
    return str(raised.value)


@pytest.mark.parametrize("form", ["net.h5", "net.keras"])
def test_a_lambda_is_never_run(form: str, tmp_path: Path) -> None:
    trace = tmp_path / "ran"

    def touch(x: Any, place: str = str(trace)) -> Any:
        __import__("pathlib").Path(place).touch()
        return x

    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Lambda(touch), keras.layers.Dense(2)])
    model.save(tmp_path / form)
    trace.unlink(missing_ok=True)
    assert "QAT013" in refused(tmp_path / form)
    assert not trace.exists()


def test_an_operator_that_writes_files_is_refused(tmp_path: Path) -> None:
    class Writer(tensorflow.Module):  # type: ignore[misc]
        @tensorflow.function(input_signature=[tensorflow.TensorSpec((1, 4), tensorflow.float32)])
        def serve(self, x: Any) -> Any:
            tensorflow.io.write_file(str(tmp_path / "ran"), "text")
            return x * 2

    module = Writer()
    tensorflow.saved_model.save(module, str(tmp_path / "saved"), signatures=module.serve)
    assert "the operator WriteFile" in refused(tmp_path / "saved")
    assert not (tmp_path / "ran").exists()


def test_layers_of_one_s_own_are_named(tmp_path: Path) -> None:
    @keras.utils.register_keras_serializable("own")
    class Mine(keras.layers.Layer):  # type: ignore[misc]
        def call(self, x: Any) -> Any:
            return x

    keras.Sequential([keras.layers.Input((4,)), Mine(), keras.layers.Dense(2)]).save(tmp_path / "net.h5")
    message = refused(tmp_path / "net.h5")
    assert "QAT013" in message or "QAT012" in message
    assert "Mine" in message
    assert "SavedModel" in message


def test_weights_without_a_network(saved: Path, tmp_path: Path) -> None:
    load_keras(saved / "net.h5").save_weights(tmp_path / "net.h5")
    assert "holds weights alone" in refused(tmp_path / "net.h5")


@pytest.mark.parametrize("form", ["net.h5", "net.keras"])
def test_damaged_keras_files_are_diagnostics(saved: Path, form: str, tmp_path: Path) -> None:
    whole = (saved / form).read_bytes()
    for content in (b"", whole[: len(whole) // 3], whole[: len(whole) * 9 // 10], b"\0" * 4096):
        (tmp_path / form).write_bytes(content)
        with pytest.raises(CompileError, match=r"QAT012(.|\n)*help:"):
            convert(tmp_path / form, tmp_path / "out.onnx")


def test_damaged_tflite_files_are_diagnostics(saved: Path, tmp_path: Path) -> None:
    whole = (saved / "net.tflite").read_bytes()
    for content in (b"", whole[: len(whole) // 3], b"\0" * 4096):  # some of it ends TensorFlow with a signal
        (tmp_path / "net.tflite").write_bytes(content)
        message = refused(tmp_path / "net.tflite")
        assert "QAT012" in message
        assert "help:" in message


def test_a_damaged_saved_model_is_a_diagnostic(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").write_bytes((saved / "saved" / "saved_model.pb").read_bytes())
    assert "QAT012]: TensorFlow cannot load saved" in refused(tmp_path / "saved")  # without its variables
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"\xff" * 100)
    assert "QAT012]: TensorFlow cannot load saved" in refused(tmp_path / "saved")


def test_a_float_network_has_nothing_to_compile(tmp_path: Path) -> None:
    keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(2)]).save(tmp_path / "net.keras")
    assert "QAT101" in refused(tmp_path / "net.keras")


def test_nothing_of_tensorflow_reaches_the_streams(
    saved: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    compile_model(saved / "net.tflite", qat=True, output=tmp_path / "out")
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


@pytest.mark.parametrize("bits", [8, 4])
def test_what_tf2onnx_loses_of_a_saved_model_is_told(bits: int, tmp_path: Path) -> None:
    """tf2onnx writes quantize_and_dequantize of any width as one of 8 bits, and says nothing."""
    weight = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)

    class Network(tensorflow.Module):  # type: ignore[misc]
        @tensorflow.function(input_signature=[tensorflow.TensorSpec([None, 6], tensorflow.float32)])
        def serve(self, x: Any) -> Any:
            quantize = tensorflow.quantization.quantize_and_dequantize_v2
            data = quantize(x, -3.1, 3.1, num_bits=bits, range_given=True)
            return data @ quantize(tensorflow.constant(weight), -2.3, 2.3, num_bits=bits, range_given=True)

    network = Network()
    tensorflow.saved_model.save(network, str(tmp_path / "saved"), signatures=network.serve)
    found = convert(tmp_path / "saved", tmp_path / "model.onnx")
    assert [d.code for d in found] == ([] if bits == 8 else ["QAT014"])

"""LSTM layers inside .tflite files: what Keras' become, against TFLite's interpreter."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["TF_USE_LEGACY_KERAS"] = "1"

import numpy as np
import onnxruntime
import pytest

tensorflow: Any = pytest.importorskip("tensorflow", reason="TensorFlow is not installed (extra `tensorflow`)")
pytest.importorskip("tf2onnx")
tfmot: Any = pytest.importorskip("tensorflow_model_optimization")
keras: Any = pytest.importorskip("tf_keras")
files: Any = pytest.importorskip("tensorflow.lite.tools.flatbuffer_utils")

from qatc import CompileError, compile_model  # noqa: E402
from qatc.frontends.tf.tflite_form import readable_tflite  # noqa: E402

STEPS, INPUTS, UNITS = 12, 6, 8
INT8 = 9
LAYERS = keras.layers
NETWORKS: dict[str, Callable[[], list[Any]]] = {
    "one": lambda: [LAYERS.LSTM(UNITS)],
    "backwards": lambda: [LAYERS.LSTM(UNITS, return_sequences=True, go_backwards=True)],
    "two": lambda: [LAYERS.Conv1D(5, 3, activation="relu"), LAYERS.LSTM(UNITS, return_sequences=True), LAYERS.LSTM(5)],
    "both": lambda: [LAYERS.Bidirectional(LAYERS.LSTM(UNITS))],
}


def sequences(count: int, seed: int = 0) -> list[np.ndarray]:
    """Random walks, waves and constants, one after the other."""
    random = np.random.default_rng(seed)
    time, shape = np.arange(STEPS)[:, None], (STEPS, INPUTS)
    kinds: list[Callable[[], np.ndarray]] = [
        lambda: random.normal(size=shape).cumsum(0) * 0.4,
        lambda: np.sin(time * random.uniform(0.1, 1) + random.uniform(0, 6, INPUTS)),
        lambda: np.full(shape, random.normal()),
    ]
    return [kinds[i % 3]()[None].astype(np.float32) for i in range(count)]


def network(name: str) -> Any:
    model = keras.Sequential([LAYERS.Input((STEPS, INPUTS), batch_size=1), *NETWORKS[name](), LAYERS.Dense(4)])
    random = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(random.normal(size=weight.shape).astype(np.float32) * 0.4)
    return model


def converted(model: Any, path: Path, *, integers: bool) -> Path:
    converter = tensorflow.lite.TFLiteConverter.from_keras_model(model)
    if integers:
        converter.optimizations = [tensorflow.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([x] for x in sequences(40))
        converter.target_spec.supported_ops = [tensorflow.lite.OpsSet.TFLITE_BUILTINS_INT8]
    path.write_bytes(converter.convert())
    return path


def interpreted(path: Path, data: list[np.ndarray]) -> np.ndarray:
    kernels = tensorflow.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    lite = tensorflow.lite.Interpreter(model_path=str(path), experimental_op_resolver_type=kernels)
    lite.allocate_tensors()
    found = []
    for x in data:
        lite.reset_all_variables()
        lite.set_tensor(lite.get_input_details()[0]["index"], x)
        lite.invoke()
        found.append(lite.get_tensor(lite.get_output_details()[0]["index"]))
    return np.stack(found)


def answers(package: Path, data: list[np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(package / "model.onnx", providers=["CPUExecutionProvider"])
    return np.stack([session.run(None, {session.get_inputs()[0].name: x})[0] for x in data])


def agrees(path: Path, package: Path) -> None:
    result = compile_model(path, qat=True, output=package)
    assert result.coverage.share == 1  # every product; the functions between them, in 16 bits, are islands
    assert "QAT014" not in {d.code for d in result.diagnostics}  # compared with TensorFlow, and the same
    data = sequences(30, seed=1)
    step = result.outputs[0].params.scale[0]  # type: ignore[union-attr]
    off = np.rint(np.abs(answers(package, data) - interpreted(path, data)) / step)
    assert off.max() <= 2
    assert np.mean(off == 0) > 0.9


@pytest.mark.parametrize("name", ["one", "backwards", "two"])
def test_integers_are_those_of_the_interpreter(name: str, tmp_path: Path) -> None:
    agrees(converted(network(name), tmp_path / "net.tflite", integers=True), tmp_path / "out")


def test_bidirectional_layers_are_nearer_to_keras_than_tflite_is(tmp_path: Path) -> None:
    """TFLite's converter gives both results the grid of their concatenation; its kernel computes on others."""
    model = network("both")
    path = converted(model, tmp_path / "net.tflite", integers=True)
    result = compile_model(path, qat=True, output=tmp_path / "out")
    assert "reads the integers of this layer on another grid" in str(list(result.diagnostics))
    data = sequences(30, seed=1)
    want = np.stack([model(x, training=False).numpy() for x in data])
    mine, theirs = (np.abs(y - want).mean() for y in (answers(tmp_path / "out", data), interpreted(path, data)))
    assert 2 * mine < theirs


def on_own_grids(content: Any) -> None:
    """Let LSTMs and reversals make what they compute, on its own grid, and a QUANTIZE bring it to the other."""
    schema: Any = pytest.importorskip("tensorflow.lite.python.schema_py_generated")
    kinds, graph = schema.BuiltinOperator, content.subgraphs[0]
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in content.operatorCodes]
    quantize = schema.OperatorCodeT()
    quantize.builtinCode = quantize.deprecatedBuiltinCode = kinds.QUANTIZE
    quantize.version = 2
    operators: list[Any] = []
    for op in graph.operators:
        operators.append(op)
        if codes[op.opcodeIndex] == kinds.UNIDIRECTIONAL_SEQUENCE_LSTM:
            grid = graph.tensors[op.intermediates[4]].quantization
            graph.tensors[op.inputs[18]].quantization = grid
        elif codes[op.opcodeIndex] == kinds.REVERSE_V2:
            grid = graph.tensors[op.inputs[0]].quantization
        else:
            continue
        made, behind = copy.copy(graph.tensors[op.outputs[0]]), schema.OperatorT()
        made.name, made.quantization = made.name + b"_own", grid
        behind.opcodeIndex, behind.outputs = len(content.operatorCodes), op.outputs
        op.outputs = behind.inputs = np.asarray([len(graph.tensors)], np.int32)
        graph.tensors.append(made)
        operators.append(behind)
    graph.operators = operators
    content.operatorCodes.append(quantize)


def test_bidirectional_layers_on_their_own_grids_are_those_of_the_interpreter(tmp_path: Path) -> None:
    path = converted(network("both"), tmp_path / "net.tflite", integers=True)
    content = files.read_model_from_bytearray(bytearray(path.read_bytes()))
    on_own_grids(content)
    path.write_bytes(files.convert_object_to_bytearray(content))
    agrees(path, tmp_path / "out")


@pytest.mark.parametrize(
    ("layer", "island"),
    [
        (lambda: LAYERS.LSTM(UNITS), "LSTM"),
        (lambda: LAYERS.LSTM(UNITS, use_bias=False), "Loop"),
        (lambda: LAYERS.GRU(UNITS), "Loop"),
        (lambda: LAYERS.SimpleRNN(UNITS), "Loop"),  # its body rounds what it makes, too
    ],
)
def test_a_float_layer_in_a_quantized_network_is_an_island(
    layer: Callable[[], Any], island: str, tmp_path: Path
) -> None:
    """What is annotated around one is in integers: tfmot has no quantizer for the layer itself."""
    annotate = tfmot.quantization.keras.quantize_annotate_layer
    given = LAYERS.Input((STEPS, INPUTS, 1), batch_size=1)
    x = annotate(LAYERS.Conv2D(4, 3, padding="same", activation="relu"))(given)
    x = layer()(LAYERS.Reshape((STEPS, 4 * INPUTS))(x))
    model = tfmot.quantization.keras.quantize_apply(keras.Model(given, annotate(LAYERS.Dense(3))(x)))
    data = [x[..., None] for x in sequences(20)]
    for x in data:
        model(x, training=True)
    converter = tensorflow.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tensorflow.lite.Optimize.DEFAULT]
    path = tmp_path / "net.tflite"
    path.write_bytes(converter.convert())
    result = compile_model(path, qat=True, output=tmp_path / "out")
    assert island in str(result.islands)
    step = result.outputs[0].params.scale[0]  # type: ignore[union-attr]
    assert np.abs(answers(tmp_path / "out", data) - interpreted(path, data)).max() <= 1.01 * step
    notes = [d.message for d in result.diagnostics if d.code == "QAT014"]
    assert ["keeps the cell state within -10..10" in n for n in notes] == [True] * (island == "LSTM")


# -- what is refused ------------------------------------------------------------------------------------------------
def operator(content: Any) -> Any:
    return next(op for op in content.subgraphs[0].operators if len(op.inputs) == 24)


def given(*places: int) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        op = operator(content)
        op.inputs = np.asarray([op.inputs[1] if i in places else at for i, at in enumerate(op.inputs)], np.int32)

    return change


def absent(*places: int) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        op = operator(content)
        op.inputs = np.asarray([-1 if i in places else at for i, at in enumerate(op.inputs)], np.int32)

    return change


def another_activation(content: Any) -> None:
    operator(content).builtinOptions.fusedActivationFunction = 1


def diagonals(content: Any) -> None:
    operator(content).builtinOptions.diagonalRecurrentTensors = True


def no_options(content: Any) -> None:
    operator(content).builtinOptions = None


def no_intermediates(content: Any) -> None:
    operator(content).intermediates = None


def far_away(content: Any) -> None:
    operator(content).inputs[7] = 10_000


def wide_input(content: Any) -> None:
    content.subgraphs[0].tensors[operator(content).inputs[0]].type = 7


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(network("one"), tmp_path_factory.mktemp("one") / "net.tflite", integers=True)


@pytest.mark.parametrize(
    ("change", "form"),
    [
        (absent(1, 5), "coupled gates"),
        (given(10), "peepholes"),
        (given(16), "a projection"),
        (given(20, 21, 22, 23), "layer normalization"),
        (absent(12), "absent weights or states"),
        (absent(19), "absent weights or states"),
        (another_activation, "another activation than tanh"),
        (no_options, "another activation than tanh"),
        (diagonals, "recurrent weights in diagonals"),
        (no_intermediates, "0 intermediate tensors"),
        (far_away, "24 operands and 1 results"),
        (wide_input, "inputs of another type"),
    ],
)
def test_forms_that_keras_has_not_are_refused(
    one: Path, change: Callable[[Any], None], form: str, tmp_path: Path
) -> None:
    content = files.read_model_from_bytearray(bytearray(one.read_bytes()))
    change(content)
    (tmp_path / "net.tflite").write_bytes(files.convert_object_to_bytearray(content))
    with pytest.raises(CompileError, match=f"QAT012.*UNIDIRECTIONAL_SEQUENCE_LSTM has {form}(.|\n)*help:"):
        readable_tflite(tmp_path / "net.tflite", tmp_path / "new.tflite")


def test_states_of_any_size_take_no_memory(one: Path, tmp_path: Path) -> None:
    content = files.read_model_from_bytearray(bytearray(one.read_bytes()))
    for place in (18, 19):
        content.subgraphs[0].tensors[operator(content).inputs[place]].shape = np.asarray([2**30, 2**30], np.int32)
    (tmp_path / "net.tflite").write_bytes(files.convert_object_to_bytearray(content))
    new = readable_tflite(tmp_path / "net.tflite", tmp_path / "new.tflite")
    assert new.stat().st_size < 2 * one.stat().st_size

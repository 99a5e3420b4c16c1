"""Variables of .tflite files as inputs and outputs, call by call against TFLite's interpreter."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

os.environ["TF_USE_LEGACY_KERAS"] = "1"

import numpy as np
import onnxruntime
import pytest

tensorflow: Any = pytest.importorskip("tensorflow", reason="TensorFlow is not installed (extra `tensorflow`)")
pytest.importorskip("tf2onnx")

from qatc import CompileError, compile_model  # noqa: E402
from qatc.frontends.tf.tflite_states import states_as_ports  # noqa: E402

FRAMES, WIDTH, RESULTS = 4, 4, 3
CALLS = 60
#: What a network does with its variables, how many of them the package has, and what the note says of them.
KINDS = {
    "once": (1, r"feed 0 \(the integer -?\d+\), from then on Variable_1_next into Variable_1"),
    "twice": (2, r"feed 0 \(the zero point of each\), .* Variable_1_next into Variable_1(, .*)?"),
    "again": (1, r"feed 0 \(.*\), from then on Variable_1_next into Variable_1"),
    "late": (2, r"feed 0 \(.*\), from then on .*"),
    "returned": (1, r"feed 0 \(.*\), from then on strided_slice\w+ into Variable_1"),  # keeps its name
    "never written": (1, r"feed 0( \(.*\))?, from then on Variable_1_next into Variable_1"),
    "other start": (2, r"feed what the file stores for that \(CALL_ONCE\), from then on .*"),
}


class Stream(tensorflow.Module):  # type: ignore[misc]
    """Keeps the last frames, and what `kind` says beside."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.seen = tensorflow.Variable(tensorflow.zeros([1, FRAMES, WIDTH]))
        self.result = tensorflow.Variable(tensorflow.fill([1, 1, RESULTS], 0.5 if kind == "other start" else 0.0))
        random = np.random.default_rng(0)
        self.dense = random.normal(size=((FRAMES + 1) * WIDTH, RESULTS)).astype(np.float32) * 0.3
        self.last = random.normal(size=(2 * RESULTS, RESULTS)).astype(np.float32) * 0.3

    def __call__(self, frame: Any) -> Any:
        """One call with one new frame."""
        tf = tensorflow
        seen = tf.concat([self.seen.read_value(), frame], 1)
        if self.kind != "branch" or tf.reduce_sum(frame) > 0:
            self.seen.assign(seen[:, 1:])
        if self.kind == "again":  # reads what this call has written
            seen = tf.concat([self.seen.read_value(), frame], 1)
        found = tf.nn.relu(tf.matmul(tf.reshape(seen, [1, -1]), self.dense))
        if self.kind == "returned":
            return self.seen.read_value(), found
        if self.kind == "never written":
            return found + tf.reshape(self.result.read_value() + 1.0, [1, RESULTS])
        before = self.result.read_value()
        if self.kind == "late":  # what the network computes, as it is
            self.result.assign(found[:, None])
        if self.kind in ("twice", "other start"):
            both = tf.concat([before, found[:, None]], 1)
            self.result.assign(both[:, 1:])
            return tf.matmul(tf.reshape(both, [1, -1]), self.last)
        return tf.matmul(found, self.last[:RESULTS]) + tf.reshape(before, [1, RESULTS])


def frames(count: int, seed: int) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.normal(size=(1, 1, WIDTH)).astype(np.float32) for _ in range(count)]


def written(kind: str, path: Path) -> Path:
    stream = Stream(kind)
    signature = tensorflow.TensorSpec([1, 1, WIDTH], tensorflow.float32)
    function = tensorflow.function(lambda frame: stream(frame)).get_concrete_function(signature)
    converter = tensorflow.lite.TFLiteConverter.from_concrete_functions([function], stream)
    converter.experimental_enable_resource_variables = True
    converter.optimizations = [tensorflow.lite.Optimize.DEFAULT]
    converter._experimental_variable_quantization = True
    converter.target_spec.supported_ops = [tensorflow.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tensorflow.int8
    converter.representative_dataset = lambda: ([frame] for frame in frames(100, seed=0))
    path.write_bytes(converter.convert())
    return path


def interpreter(path: Path) -> Any:
    kernels = tensorflow.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    lite = tensorflow.lite.Interpreter(model_path=str(path), experimental_op_resolver_type=kernels)
    lite.allocate_tensors()
    return lite


@pytest.mark.parametrize("kind", KINDS)
def test_the_states_carried_on_give_what_the_interpreter_gives(kind: str, tmp_path: Path) -> None:
    path, out = written(kind, tmp_path / "stream.tflite"), tmp_path / "out"
    states, said = KINDS[kind]
    result = compile_model(path, qat=True, output=out)
    assert "QAT014" not in {d.code for d in result.diagnostics}  # compared with TensorFlow, and the same
    assert not result.islands
    (note,) = (d for d in result.diagnostics if d.code == "QAT016")
    assert note.message.startswith(f"the network keeps {states} variable")
    assert re.fullmatch(f"at the first call {said}", note.hint)
    lite, package = interpreter(path), onnxruntime.InferenceSession(out / "model.onnx")
    (port, *ports) = package.get_inputs()
    manifest = json.loads((out / "manifest.json").read_text("utf-8"))["inputs"][1:]
    kept = [np.full(p["shape"], p["params"]["zero_point"][0], np.int8) for p in manifest]
    assert [p.name for p in ports] == [p["name"] for p in manifest]
    assert len(kept) == states
    if kind == "other start":
        params = next(p["params"] for p in manifest if p["shape"] == [1, 1, RESULTS])
        i = next(i for i, p in enumerate(manifest) if p["shape"] == [1, 1, RESULTS])
        kept[i] += np.int8(round(0.5 / params["scale"][0]))
    (given,), results = lite.get_input_details(), lite.get_output_details()
    scale, zero = given["quantization"]
    for frame in frames(CALLS, seed=1):
        integers = np.clip(np.rint(frame / scale) + zero, -128, 127).astype(np.int8)
        lite.set_tensor(given["index"], integers)
        lite.invoke()
        found = package.run(None, {port.name: integers, **{p.name: k for p, k in zip(ports, kept, strict=True)}})
        found, kept = found[:-states], found[-states:]
        for want, got in zip((lite.get_tensor(r["index"]) for r in results), found, strict=True):
            assert np.abs(want.astype(int) - got.astype(int)).max() <= 1  # TFLite rounds otherwise on ties


def test_variables_of_a_branch_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="does not read CALL_ONCE, VAR_HANDLE, READ_VARIABLE, ASSIGN_VARIABLE"):
        compile_model(written("branch", tmp_path / "stream.tflite"), qat=True, output=tmp_path / "out")


def test_a_file_without_variables_is_left_alone(tmp_path: Path) -> None:
    network = tensorflow.function(lambda x: tensorflow.nn.relu(x))
    signature = tensorflow.TensorSpec([1, 4], tensorflow.float32)
    converter = tensorflow.lite.TFLiteConverter.from_concrete_functions([network.get_concrete_function(signature)])
    path = tmp_path / "plain.tflite"
    path.write_bytes(converter.convert())
    found, states = states_as_ports(path, tmp_path / "new.tflite")
    assert (found, states.count) == (path, 0)

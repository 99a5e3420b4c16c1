"""The models that fuzzing starts from are sound: each compiles, or is refused by the name of its format."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest

from qatc import CompileError, compile_model
from tests.vendor_models import vendor_models

MODELS = vendor_models()


@pytest.mark.parametrize("name", [name for name in MODELS if name != "tensorrt"])
def test_a_vendor_s_model_compiles_to_integers(tmp_path: Path, name: str) -> None:
    onnx.save(MODELS[name], tmp_path / "model.onnx")
    result = compile_model(tmp_path / "model.onnx", qat=True, output=tmp_path / "out")
    assert result.dialect == {"finn": "qonnx", "microsoft": "quark"}.get(name, name.split()[0])
    assert result.coverage.share in (1.0, None)


def test_another_format_is_refused(tmp_path: Path) -> None:
    onnx.save(MODELS["tensorrt"], tmp_path / "model.onnx")
    with pytest.raises(CompileError) as caught:
        compile_model(tmp_path / "model.onnx", qat=True, output=tmp_path / "out")
    assert {d.code for d in caught.value.diagnostics} == {"QAT103"}


def attribute_of(name: str, op: str, attribute: str, value: object) -> onnx.ModelProto:
    """One of the models with an attribute of an operator replaced, or with None taken away."""
    model = vendor_models()[name]
    node = next(n for n in model.graph.node if n.op_type == op)
    kept = [a for a in node.attribute if a.name != attribute]
    del node.attribute[:]
    node.attribute.extend(kept if value is None else [*kept, onnx.helper.make_attribute(attribute, value)])
    return model


def input_of(name: str, op: str, index: int, value: object) -> onnx.ModelProto:
    """One of the models with an input of an operator replaced by a constant, or nameless; all go for None."""
    model = vendor_models()[name]
    node = next(n for n in model.graph.node if n.op_type == op)
    if value is None:
        del node.input[:]
        return model
    if isinstance(value, str):
        node.input[index] = value
        return model
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), "replaced"))
    node.input[index] = "replaced"
    return model


def ends_of(low: np.ndarray, high: np.ndarray) -> onnx.ModelProto:
    """OpenVINO's model with other ends for its weight."""
    model = vendor_models()["openvino"]
    for name, value in (("wl", low), ("wh", high)):
        old = next(i for i in model.graph.initializer if i.name == name)
        old.CopyFrom(onnx.numpy_helper.from_array(np.asarray(value), name))
    return model


FINDS: dict[str, tuple[onnx.ModelProto, str]] = {
    "a window of no size": (attribute_of("qoperator", "QLinearAveragePool", "kernel_shape", None), "QAT004"),
    "a window of one number": (attribute_of("qoperator", "QLinearAveragePool", "kernel_shape", 3), "QAT004"),
    "a window of half": (attribute_of("qoperator", "QLinearAveragePool", "kernel_shape", 0.5), "QAT004"),
    "padding of text": (attribute_of("qoperator", "QLinearAveragePool", "pads", "all"), "QAT004"),
    "padding of one side": (attribute_of("qoperator", "QLinearAveragePool", "pads", [1, 1, 1]), "QAT004"),
    "bits of text": (attribute_of("horizon", "HzQuantize", "bits", "eight"), "QAT004"),
    "a quantizer of nothing": (input_of("mct", "ActivationSymmetricQuantizer", 0, None), "QAT004"),
    "a quantizer of what has no name": (input_of("qonnx", "Quant", 0, ""), "QAT004"),
    "thresholds without elements": (input_of("mct", "WeightsSymmetricQuantizer", 1, np.zeros(0, np.float32)), "QAT104"),
    "a Trunc of infinite bits": (input_of("qonnx trunc", "Trunc", 3, np.float32(np.inf)), "QAT104"),
    "a Trunc of NaN bits": (input_of("qonnx trunc", "Trunc", 3, np.float32(np.nan)), "QAT104"),
    "a Trunc of very many bits": (input_of("qonnx trunc", "Trunc", 3, np.float32(2000)), "QAT103"),
    "an axis of NaN": (input_of("mqbench", "FixedPerChannelAffine", 3, np.float32(np.nan)), "QAT104"),
    "a bound of infinity": (input_of("mqbench", "LearnablePerTensorAffine", 4, np.float32(np.inf)), "QAT104"),
    "a list as an axis": (attribute_of("microsoft", "DequantizeLinear", "axis", [0, 1]), "QAT004"),
    "an axis of infinity": (attribute_of("quark", "VitisDequantizeLinear", "axis", math.inf), "QAT004"),
    "a width of NaN": (attribute_of("quark", "FixNeuron", "bit_width", math.nan), "QAT004"),
    "a channel axis of NaN": (attribute_of("mct", "WeightsSymmetricQuantizer", "channel_axis", math.nan), "QAT004"),
    "ends of text": (input_of("openvino", "FakeQuantize", 1, np.asarray("low", object)), "QAT104"),
    "ends of complex numbers": (input_of("openvino", "FakeQuantize", 2, np.complex64(1 + 1j)), "QAT104"),
    "no ends": (ends_of(np.zeros(0, np.float32), np.zeros(0, np.float32)), "QAT104"),
    "ends of other channels": (ends_of(np.full((5, 1, 1, 1), -1, np.float32), np.float32(1)), "QAT104"),
    "ends of other channels, one dead": (ends_of(*np.float32([[-1, 0], [1, 0]]).reshape(2, 2, 1)), "QAT104"),
    "an infinite end": (ends_of(np.float32(-np.inf), np.float32(1)), "QAT201"),
    "an infinite zero point": (input_of("qonnx", "Quant", 2, np.float32(np.inf)), "QAT202"),
}


@pytest.mark.parametrize("name", FINDS)
def test_a_find_is_a_coded_error(tmp_path: Path, name: str) -> None:
    model, code = FINDS[name]
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(CompileError) as caught:
        compile_model(tmp_path / "model.onnx", qat=True, output=tmp_path / "out")
    assert {d.code for d in caught.value.diagnostics} == {code}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_slope_beyond_float32_is_a_table(tmp_path: Path) -> None:
    model = attribute_of("qoperator", "QLinearLeakyRelu", "alpha", 3e38)
    onnx.save(model, tmp_path / "model.onnx")
    result = compile_model(tmp_path / "model.onnx", qat=True, output=tmp_path / "out")
    assert result.coverage.share == 1.0


@pytest.mark.parametrize("scale", [3e38, 2e36])
def test_a_grid_on_which_float32_holds_no_numbers_is_told(tmp_path: Path, scale: float) -> None:
    model = attribute_of("qoperator", "QLinearLeakyRelu", "alpha", 0.1)
    node = next(n for n in model.graph.node if n.op_type == "QLinearLeakyRelu")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(scale, np.float32), "odd"))
    node.input[1] = node.input[3] = "odd"
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(CompileError) as caught:
        compile_model(tmp_path / "model.onnx", qat=True, output=tmp_path / "out")
    assert {d.code for d in caught.value.diagnostics} == {"QAT201"}
    assert "on a scale of" in str(caught.value)

"""What an inspection finds in models: memory, grids that disagree, advice; on small graphs and on real exports."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from qatc import inspect_model
from qatc.compiler.inspection.disagreement import disagreements
from qatc.compiler.inspection.memory import peak_bytes, tensor_bytes
from qatc.compiler.inspection.view import view
from qatc.compiler.integer import Elementwise, Float, IntegerGraph, Rescale, Tensor, integer_tensor
from qatc.compiler.lowering import lower
from qatc.compiler.passes.propagate import propagate
from qatc.compiler.quant import QuantParams
from qatc.compiler.result import Inspection
from tests.graphs import net, stripped

CORPUS = Path(__file__).resolve().parents[2] / "corpus"
GRID = QuantParams.per_tensor(0.5, 0, "uint8")


def inspected(case: str) -> Inspection:
    return inspect_model(CORPUS / case / "model.onnx")


def chain() -> IntegerGraph:
    """A chain x -> a -> b, and x + b: x lives to the end."""
    graph = IntegerGraph("net", ["x"], ["y"], [], {}, {}, 21)
    for name, size in (("x", 10), ("a", 100), ("b", 10), ("y", 10)):
        graph.tensors[name] = integer_tensor(name, GRID, ("batch", size))
    graph.ops = [
        Rescale("grow", ("x",), ("a",), lo=0, hi=255),
        Rescale("shrink", ("a",), ("b",), lo=0, hi=255),
        Elementwise("add", ("x", "b"), ("y",), lo=0, hi=255, op="Add", source="/add"),
    ]
    return graph


def test_an_operator_whose_first_result_has_no_name_is_drawn() -> None:
    """A GRU that gives its last state alone."""
    graph = chain()
    graph.tensors["h"] = Tensor("h", "float32", (1, 2, 3))
    graph.ops.append(Float("gru", ("x",), ("", "h"), op_type="GRU", attrs={}, reason="why"))
    graph.outputs.append("h")
    assert graph.ops[-1].output == "h"
    drawn = next(node for node in view(graph).nodes if node.kind == "fallback")
    assert drawn.detail == "why; float32 1x2x3"


# -- memory --------------------------------------------------------------------------------------------------------
def test_memory_is_freed_after_the_last_reader() -> None:
    assert peak_bytes(chain()) == 10 + 100 + 10
    graph = chain()
    graph.outputs = ["y", "a"]  # kept to the end
    assert peak_bytes(graph) == 10 + 100 + 10 + 10


def test_sizes_are_those_of_one_sample() -> None:
    graph = chain()
    graph.tensors["f"] = Tensor("f", "float32", ("batch", 3, None))
    graph.tensors["g"] = Tensor("g", "float32", ("n", 3), sample_shape=(2, 3))
    graph.tensors["h"] = Tensor("h", "float32")
    assert [tensor_bytes(graph, name) for name in "fgh"] == [12, 24, 0]


# -- grids that disagree -------------------------------------------------------------------------------------------
def test_a_tensor_rounded_twice_is_named_with_both_grids() -> None:
    graph = stripped(net("(float[4] x) => (float[4] y)", "a = A(x)\nr = Reshape(a, s)\ny = B(r)", "int64[1] s = {4}"))
    propagate(graph)
    (found,) = disagreements(graph, lower(graph))
    assert (found.tensor, found.op_type) == ("a", "Rescale")
    assert found.reason == "is rounded onto a second grid after Reshape"
    assert [p.scale for p in found.grids] == [(0.5,), (0.25,)]


def test_inputs_of_a_concat_on_grids_of_their_own_are_named() -> None:
    found = inspected("tfmot-op18__unet_near").disagreeing
    assert any(d.op_type == "Concat" and d.reason == "joins 2 tensors, of which 2 lie on other grids" for d in found)


def test_one_grid_for_all_is_no_finding() -> None:
    assert inspected("fx-fbgemm-nofold__resnet8").disagreeing == ()


# -- advice --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("drpai__resnet8", "Quantize input in training, too (PyTorch: a QuantStub in front of the network)."),
        ("drpai__resnet8", "--calibrate DATA.npy finds these ranges"),
        ("fx-u8pc__unet", "Quantize the weights of 1 ConvTranspose (/up2/ConvTranspose) in training, too."),
        ("fx-u8pc__vit", "No integer form, whatever training does: 5 LayerNormalization. Replace"),
        (
            "fx-u8pc__vit",
            "2 Softmax (/sm/Softmax, /sm_1/Softmax) may run in integers on this target: -p softmax=",
        ),
        ("eager-u8pc-convert__eager", "Let the inputs of Concat share one observer"),
        ("tfmot-op13__mlp", "Leave the last Softmax out of the exported graph"),
        ("tfmot-op13__mlp", "Train weights in [-64, 63] (reduce_range) if x86 processors without VNNI"),
    ],
)
def test_findings_become_advice(case: str, said: str) -> None:
    assert said in "\n".join(inspected(case).advice)


def test_what_only_floats_read_is_named(tmp_path: Path) -> None:
    """No integer operator would read it, so that calibration does not ask for its range: training would have to."""
    body = "a = A(x)\ns = Sigmoid(a)\nm = Mul(s, a)\nn = LayerNormalization(m, g)\ny = B(n)"
    text = net("(float[2,4] x) => (float[2,4] y)", body, "float[4] g = {1.0, 2.0, 3.0, 4.0}")
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    found = inspect_model(tmp_path / "m.onnx")
    assert found.missing == ()
    only = "Only floats read the results of 1 Sigmoid, 1 Mul (Sigmoid -> s, Mul -> m), so that --calibrate leaves them:"
    assert [line for line in found.advice if line.startswith(only)]
    assert "1 LayerNormalization" in "\n".join(found.advice)


ADVISED = {
    "weak channels": (
        "(float[1,4] x) => (float[1,3] y)",
        "a = A(x)\nw = DequantizeLinear(wq, sD, zD)\nm = MatMul(a, w)\ny = B(m)",
        "int8[4,3] wq = {127, 1, 3, -9, 2, 1, 50, -3, 2, 1, 1, 1}",
        "Quantize weights per channel: under one scale 2 of 3 channels use less than 5 of 8 bits, in MatMul -> m.",
    ),
    "dead channels": (
        "(float[1,4] x) => (float[1,3] y)",
        "a = A(x)\nw = DequantizeLinear(wq, sD, zD)\nm = MatMul(a, w)\ny = B(m)",
        "int8[4,3] wq = {127, 0, 0, -9, 0, 0, 50, 0, 0, 1, 0, 0}",
        "Prune 2 output channels whose weights are all zero, in MatMul -> m.",
    ),
    "two grids in a row": (
        "(float[4] x) => (float[4] y)",
        "a = A(x)\nr = Reshape(a, s)\ny = B(r)",
        "int64[1] s = {4}",
        "Round a once: two observers watch the same values.",
    ),
    "a reader of what is not rounded": (
        "(float[1,4] x) => (float[1,4] y, float[1,4] z)",
        "a = A(x)\nw = DequantizeLinear(wq, sD, zD)\nm = MatMul(a, w)\ny = B(m)\nz = Sigmoid(m)",
        "int8[4,4] wq = {127, 90, 93, 70, -99, 92, 91, -70, 50, -93, 92, 80, 91, 81, 71, 90}",
        "Let all readers of m see the rounded value, or none.",
    ),
    "grids that are joined": (
        "(float[4] x, float[4] u) => (float[8] y)",
        "a = A(x)\nb = B(u)\nc = Concat<axis = 0>(a, b)\ny = C(c)",
        "",
        "Let the inputs of Concat share one observer, so that nothing is rescaled: Concat -> c.",
    ),
}


@pytest.mark.parametrize("case", ADVISED)
def test_advice_of_small_graphs(case: str, tmp_path: Path) -> None:
    signature, body, constants, said = ADVISED[case]
    onnx.save(onnx.parser.parse_model(net(signature, body, constants)), tmp_path / "m.onnx")
    assert said in inspect_model(tmp_path / "m.onnx").advice


def test_sums_beyond_32_bits_are_advice_about_their_weights(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        net(
            "(float[1,140000] x) => (float[1,1] y)",
            "a = A(x)\nw = DequantizeLinear(wq, sD, zD)\nm = MatMul(a, w)\ny = B(m)",
        )
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.full((140000, 1), 127, np.int8), "wq"))
    onnx.save(model, tmp_path / "m.onnx")
    (said,) = [text for text in inspect_model(tmp_path / "m.onnx").advice if "32 bits" in text]
    assert said == "Take a bit off the weight range of MatMul -> m, or split it: its sums may leave 32 bits."


def test_sums_of_halves_are_advice_about_weights(tmp_path: Path) -> None:
    """The Add is qatc's own: no training could quantize its result."""
    body = "a = A(x)\nb = W(w)\nm = MatMul(a, b)\ny = B(m)"
    text = net("(float[2,2] x) => (float[2,2] y)", body, "float[2,2] w = {1000.0, -2000.5, 3.5, 16000.0}")
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    (line, *more) = inspect_model(tmp_path / "m.onnx").advice
    assert line.startswith("Quantize weights to 8 bits, per output channel: 1 Add (")
    assert not [each for each in more if "floats read" in each]


def test_halves_of_a_weight_are_no_channels_of_zeros(tmp_path: Path) -> None:
    """PyTorch's fused observers move the zero points of channels whose weights have one sign."""
    body = "a = A(x)\nw = DequantizeLinear<axis = 1>(wq, ws, wz)\nm = MatMul(a, w)\ny = B(m)"
    constants = "int8[2,2] wq = {127, -128, -54, -73}, float[2] ws = {0.5, 0.25}, int8[2] wz = {-128, 127}"
    text = net("(float[2,2] x) => (float[2,2] y)", body, constants)
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    found = inspect_model(tmp_path / "m.onnx").advice
    assert not [line for line in found if "Prune" in line]
    (line,) = [line for line in found if "zero points" in line]
    assert "fused observers" in line


@pytest.mark.parametrize("case", ["fx-fbgemm-nofold__resnet8", "fxqd-w4-dynamo__mlp"])
def test_what_is_well_trained_needs_no_advice(case: str) -> None:
    """Activations for fbgemm have seven bits; four-bit weights that qatc stretched are none of training's doing."""
    assert inspected(case).advice == ()


def test_inspection_counts_and_bounds_what_it_lists() -> None:
    found = inspected("fx-fbgemm-nofold__resnet8")
    convs = [op for op in found.operators if op.op_type in ("Conv", "MatMul")]
    assert all(op.sums is not None and op.weights is not None for op in convs)
    assert found.peak_bytes >= max(op.activation_bytes for op in found.operators)
    assert sum(op.macs for op in found.operators) == found.coverage.integer_macs + found.coverage.float_macs


# -- what is drawn -------------------------------------------------------------------------------------------------
def test_the_view_tells_islands_from_what_has_no_integer_form() -> None:
    graph = chain()
    graph.tensors["z"] = Tensor("z", "float32", (1,))
    graph.ops += [
        Float("norm", ("y",), ("n",), op_type="LayerNormalization", attrs={}, reason="no form", source="/norm"),
        Float("mul", ("n",), ("z",), op_type="Mul", attrs={}, reason="its input is not quantized", tensor="n"),
    ]
    graph.tensors["n"] = Tensor("n", "float32", (1,))
    graph.outputs = ["z"]
    found = view(graph)
    assert [node.kind for node in found.nodes] == [
        "input", "integer", "integer", "integer", "fallback", "island", "output",
    ]  # fmt: skip
    assert found.edges == ((0, 1), (1, 2), (0, 3), (2, 3), (3, 4), (4, 5), (5, 6))
    assert found.nodes[5].detail == "its input is not quantized (n); float32 1"


def test_edges_of_real_models_lead_forward() -> None:
    found = inspected("fx-u8pc__vit").view
    assert found is not None
    assert all(start < end < len(found.nodes) for start, end in found.edges)
    assert np.unique([end for _, end in found.edges]).size == len(found.nodes) - 1  # all but the input read something

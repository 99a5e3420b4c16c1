"""Shapes: ONNX's inference, through what the graph computes and without its weights."""

from __future__ import annotations

import onnx
import pytest

from qatc import CompileError
from qatc.compiler.graph import QuantGraph, shape_of
from qatc.compiler.shapes import infer_shapes
from tests.graphs import canonical, loaded, net, stripped


def graph_of(body: str, signature: str = "(float[2] x) => (float[2] y)", constants: str = "") -> QuantGraph:
    return loaded(net(signature, body, constants))


def test_shapes_are_inferred_through_computed_ones() -> None:
    graph = loaded(
        net(
            "(float[N,2,3] x) => (float[N,M] y)",
            "s = Shape(x)\nn = Gather(s, zero)\nd = Concat<axis = 0>(n, rest)\nr = Reshape(x, d)\ny = Relu(r)",
            "int64[1] zero = {0}, int64[1] rest = {-1}",
        )
    )
    infer_shapes(graph)
    assert graph.sample_shapes["r"] == (1, 6)
    infer_shapes(graph, {"x": (4, 2, 3)})
    assert graph.sample_shapes["r"] == (4, 6)


@pytest.mark.parametrize(
    ("body", "times"),
    [
        ("a = Neg(x)\ny = Reshape(a, flat)", 1),
        ("s = Shape(x)\ny = Reshape(x, s)", 2),
        ("y = If(c)<then_branch = g () => (float[3] b) {s = Shape(x)\nb = Reshape(x, s)},"
         " else_branch = h () => (float[3] d) {d = Neg(x)}>", 2),
    ],
)  # fmt: skip
def test_values_are_followed_only_where_sizes_are_computed(
    monkeypatch: pytest.MonkeyPatch, body: str, times: int
) -> None:
    graph = graph_of(body, "(float[3] x, bool c) => (float[K] y)", "int64[1] flat = {-1}")
    runs: list[bool] = []
    inferred = onnx.shape_inference.infer_shapes

    def watched(model: onnx.ModelProto, *, data_prop: bool = False) -> onnx.ModelProto:
        runs.append(data_prop)
        return inferred(model, data_prop=data_prop)

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", watched)
    infer_shapes(graph)
    assert runs == [False, True][:times]
    assert shape_of(graph.outputs[0]) == (3,)


def test_large_and_quantized_constants_are_not_handed_to_inference() -> None:
    graph = canonical(
        net(
            "(float[1,2] x) => (float[P,Q] y)",
            "w = DequantizeLinear(wq, sD, zD)\ny = MatMul(x, w)",
            "int8[2,3] wq = {1,2,3,4,5,6}",
        )
    )
    infer_shapes(graph)
    assert shape_of(graph.outputs[0]) == (1, 3)


@pytest.mark.parametrize("opset", [13, 14, 18])
def test_computed_shapes_are_seen_through_in_every_opset(opset: int) -> None:
    text = f"""<ir_version: 8, opset_import: ["" : {opset}]>
    g (float[N,12,16] x) => (float[] y) <int64 zero = {{0}}, int64[1] first = {{0}}, int64[2] rest = {{24, 8}}> {{
        s = Shape(x)
        n = Gather<axis=0>(s, zero)
        u = Unsqueeze(n, first)
        c = Concat<axis=0>(u, rest)
        y = Reshape(x, c)
    }}"""
    graph = loaded(text)
    infer_shapes(graph)
    assert graph.sample_shapes["y"] == (1, 24, 8)


@pytest.mark.parametrize(
    ("node", "size"),
    [
        ("MaxPool<kernel_shape = [6, 3]>(x)", -1), ("Conv<dilations = [1, 9]>(x, w)", -14),
        ("ConvTranspose<pads = [3, 3, 3, 3]>(x, w)", 0), ("ConvTranspose<pads = [0, 9, 0, 0]>(x, w)", -3),
    ],
)  # fmt: skip
def test_a_window_larger_than_its_input_is_told(node: str, size: int) -> None:
    graph = graph_of(
        f"y = {node}", "(float[N,1,4,4] x) => (float[N,C,H,W] y)", "float[1,1,3,3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9}"
    )
    with pytest.raises(CompileError, match=rf"QAT004.*a result of size {size}:") as caught:
        infer_shapes(graph)
    assert caught.value.diagnostics[0].tensor == "y"


def test_a_result_without_elements_is_a_size() -> None:
    graph = graph_of("y = MaxPool<kernel_shape = [5, 3]>(x)", "(float[N,1,4,4] x) => (float[N,C,H,W] y)")
    infer_shapes(graph)
    assert shape_of(graph.outputs[0]) == ("N", 1, 0, 2)


def test_exceptions_of_inference_are_told() -> None:
    """C++ reads a step from a tensor without elements."""
    constants = "int64[0] none = {}, float[4] w = {1, 1, 1, 1}"
    graph = graph_of("y = STFT(x, none, w)", "(float[1,8,1] x) => (float[N,M,F,2] y)", constants)
    with pytest.raises(CompileError, match="QAT004"):
        infer_shapes(graph)


def test_open_sizes_of_outputs_keep_the_names_that_the_file_has_for_them() -> None:
    """Inference calls what it cannot tell "unk__0", and quantization takes the declared tensor away."""
    graph = stripped(
        '<ir_version: 8, opset_import: ["": 17]> g (float[batch,1,2,2] x) => (float[batch,1,4,4] y)'
        " <float s = {0.1}, uint8 z = {0}, float[4] sizes = {1, 1, 2, 2}>"
        " { r = Resize(x, , sizes) q = QuantizeLinear(r, s, z) y = DequantizeLinear(q, s, z) }"
    )
    infer_shapes(graph)
    assert shape_of(graph.outputs[0]) == ("batch", 1, 4, 4)


@pytest.mark.parametrize("padding", ["SAME_UPPER", "NOTSET"])
@pytest.mark.parametrize("shape", ["1,4", "4", "1,1,4", "1,1,4,4,4"])
@pytest.mark.parametrize(
    ("node", "op"),
    [
        ("MaxPool<kernel_shape = [2, 2], auto_pad = P>(x)", "MaxPool"),
        ("Conv<auto_pad = P>(x, w)", "Conv"),
        ("ConvTranspose<auto_pad = P>(x, w)", "ConvTranspose"),
    ],
)
def test_a_window_over_a_tensor_of_another_rank_is_refused(node: str, op: str, shape: str, padding: str) -> None:
    """Inference passes it on, and lowering looked for sizes that there are not."""
    body = f"r = {node}\ny = Neg(r)".replace("= P", f'= "{padding}"')
    graph = graph_of(body, f"(float[{shape}] x) => (float[N] y)", "float[1,1,2,2] w = {1, 2, 3, 4}")
    with pytest.raises(
        CompileError, match=f"{op} has a window for 4 dimensions, its input has {len(shape.split(','))}"
    ):
        infer_shapes(graph)

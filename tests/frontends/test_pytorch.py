"""PyTorch's own: ranges that its dynamo exporter leaves out of the nodes, and writes into their metadata."""

from __future__ import annotations

import onnx
import pytest

from qatc.compiler.frontend import FrontendOptions, RangeOverride
from qatc.compiler.graph import FAKE_QUANT, QuantGraph
from qatc.frontends import pytorch
from tests.graphs import loaded, net

TENSOR = "quantize_per_tensor.default"
CHANNEL = "quantize_per_channel.default"


def call(target: str, operands: str) -> str:
    """A call as torch.fx prints it, which the exporter stores as metadata."""
    prefix = "%q : [num_users=1] = call_function[target=torch.ops.quantized_decomposed"
    return f"{prefix}.{target}](args = ({operands}), kwargs = {{}})"


PAIR = "q = QuantizeLinear(x, s, z)\ny = DequantizeLinear(q, s, z)"


def read(
    text: str, options: FrontendOptions | None = None, *, key: str = "pkg.torch.onnx.fx_node", nodes: str = PAIR
) -> QuantGraph:
    """A tensor on the grid of scale 0.25 and zero point 10, whose Q has `text` as metadata, in the canonical form."""
    model = onnx.parser.parse_model(net("(float[4] x) => (float[4] y)", nodes, "float s = {0.25}, uint8 z = {10}"))
    quantize = next(n for n in model.graph.node if n.op_type == "QuantizeLinear")
    quantize.metadata_props.add(key=key, value=text)
    graph = loaded(model)
    pytorch.normalize(graph, options or FrontendOptions())
    assert not graph.diagnostics.errors
    return graph


def spans(graph: QuantGraph) -> list[tuple[int, int]]:
    """The ranges of all fake quantization."""
    return [(n.attrs["params"].qmin, n.attrs["params"].qmax) for n in graph.nodes if n.op == FAKE_QUANT]


@pytest.mark.parametrize(
    ("target", "operands", "span"),
    [
        (TENSOR, "%x, 0.25, 10, 0, 127, torch.uint8", (0, 127)),
        (TENSOR, "%x, 2.5e-1, 10, 3, 200, torch.uint8", (3, 200)),
        ("quantize_per_tensor.tensor", "%x, %scale, %zero_point, 0, 127, torch.uint8", (0, 127)),
        (CHANNEL, "%x, %scales, %zeros, 0, 0, 15, torch.uint8", (0, 15)),
        (CHANNEL, "%x, %scales, %zeros, -1, 0, 15, torch.uint8", (0, 15)),
    ],
)
def test_the_range_of_the_call_is_restored_and_told(target: str, operands: str, span: tuple[int, int]) -> None:
    graph = read(call(target, operands))
    assert spans(graph) == [span]
    (note,) = graph.diagnostics
    assert (note.code, note.tensor) == ("QAT112", "x")
    assert note.message == f"1 tensor clamped to {span[0]}..{span[1]}, as the exporter's metadata says"


@pytest.mark.parametrize("maker", ["t = Constant<value_float = 0.25>()", "t = Identity(s)"])
def test_nodes_in_front_of_the_scale_hide_no_call(maker: str) -> None:
    """Exports that nothing optimized have them."""
    nodes = f"{maker}\nq = QuantizeLinear(x, t, z)\ny = DequantizeLinear(q, t, z)"
    assert spans(read(call(TENSOR, "%x, 0.25, 10, 0, 127, torch.uint8"), nodes=nodes)) == [(0, 127)]


def test_a_zero_point_of_0_may_be_left_out() -> None:
    """ONNX's default is 0 of uint8; an optimizer may have dropped what says the same."""
    nodes = "q = QuantizeLinear(x, s)\ny = DequantizeLinear(q, s)"
    graph = read(call(TENSOR, "%x, 0.25, 0, 0, 127, torch.uint8"), nodes=nodes)
    assert spans(graph) == [(0, 127)]
    assert [d.code for d in graph.diagnostics] == ["QAT112"]


@pytest.mark.parametrize(
    "text",
    [
        call(TENSOR, "%x, 0.25, 10, 0, 255, torch.uint8"),  # the whole type
        call(TENSOR, "%x, 0.5, 10, 0, 127, torch.uint8"),  # of another node: its scale,
        call(TENSOR, "%x, 0.25, 11, 0, 127, torch.uint8"),  # its zero point,
        call(TENSOR, "%x, 0.25, 10, 0, 127, torch.int8"),  # its type
        call(TENSOR, "%x, 0.25, 10, 127, 0, torch.uint8"),
        call(TENSOR, "%x, 0.25, 10, -1, 127, torch.uint8"),
        call(TENSOR, "%x, 0.25, 10, 0, 99999, torch.uint8"),
        call(TENSOR, "%x, 1e999, 10, 0, 127, torch.uint8"),
        call(TENSOR, "%x, nan, 10, 0, 127, torch.uint8"),
        call("dequantize_per_tensor.default", "%x, 0.25, 10, 0, 127, torch.uint8"),
        call(TENSOR, "%x, 0.25, 10, 0, 127, torch.uint8").replace("quantized_decomposed", "mine"),
        call(TENSOR, "%x, 0.25, 10, 0, 127, torch.uint8") + " and more",
        "%q : " * 50_000,
        "",
    ],
)
def test_what_is_no_call_of_this_node_changes_nothing(text: str) -> None:
    graph = read(text)
    assert spans(graph) == [(0, 255)]
    assert not list(graph.diagnostics)


@pytest.mark.parametrize(
    ("last", "span"),
    [(7, (-8, 7)), (8, (-128, 127))],  # beyond the range the metadata are those of another weight
)
def test_stored_weights_have_the_bits_that_their_call_has(last: int, span: tuple[int, int]) -> None:
    """A PT2E model's weights of four bits in eight: no number changes, so nothing is told."""
    model = onnx.parser.parse_model(
        net(
            "(float[1,2] x) => (float[1,2] y)",
            "a = A(x)\nw = DequantizeLinear<axis = 1>(k, s, z)\nm = MatMul(a, w)\ny = A(m)",
            f"int8[2,2] k = {{-8, 1, 2, {last}}}, float[2] s = {{0.25, 0.5}}, int8[2] z = {{0, 0}}",
        )
    )
    dequantize = next(n for n in model.graph.node if n.input[0] == "k")
    operands = "%b__frozen_param0, %b__scale_0, %b__zero_point_0, 1, -8, 7, torch.int8"
    text = call("dequantize_per_channel.default", operands)
    dequantize.metadata_props.add(key="pkg.torch.onnx.fx_node", value=text)
    graph = loaded(model)
    pytorch.normalize(graph, FrontendOptions())
    assert [d.code for d in graph.diagnostics if d.code in ("QAT107", "QAT112")] == []
    params = next(p for p in graph.params.values() if p.is_per_channel)
    assert (params.qmin, params.qmax) == span


def test_other_metadata_are_not_read() -> None:
    assert spans(read(call(TENSOR, "%x, 0.25, 10, 0, 127, torch.uint8"), key="comment")) == [(0, 255)]


@pytest.mark.parametrize("stated", [(0, 255), (0, 63)])
def test_the_user_knows_better(stated: tuple[int, int]) -> None:
    options = FrontendOptions(ranges=RangeOverride(activations=stated))
    graph = read(call(TENSOR, "%x, 0.25, 10, 0, 127, torch.uint8"), options)
    assert spans(graph) == [stated]
    assert not list(graph.diagnostics)


@pytest.mark.parametrize("name", ["x", "y"])
def test_so_does_who_names_the_tensor(name: str) -> None:
    options = FrontendOptions(ranges=RangeOverride(tensors={name: (1, 99)}))
    graph = read(call(TENSOR, "%x, 0.25, 10, 0, 127, torch.uint8"), options)
    assert spans(graph) == [(1, 99)]
    assert not list(graph.diagnostics)

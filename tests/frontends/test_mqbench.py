"""MQBench and sophgo: round trips over every node form, unwritten axes, unrounded zero points, sophgo's biases."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qatc.compiler.frontend import FrontendOptions
from qatc.compiler.graph import FAKE_QUANT
from qatc.compiler.quant import QuantParams
from qatc.frontends import mqbench, sophgo
from tests.frontends import networks as nets
from tests.frontends.networks import Builder, Layer, Network, Spell

FORMS = {
    False: ("LearnablePerTensorAffine", "FixedPerTensorAffine", "FakeQuantizeDSQPertensor", "FakeQuantizeTqtAffine"),
    True: ("FakeQuantizeLearnablePerchannelAffine", "FixedPerChannelAffine", "FakeQuantizeDSQPerchannel"),
}
AS_INPUTS = ("LearnablePerTensorAffine", "FixedPerTensorAffine", "FixedPerChannelAffine")


def speller(forms: st.DataObject, domain: str) -> Spell:
    """Writes any of the node forms, the zero point a little off the integer as training leaves it."""

    def spell(b: Builder, x: str, params: QuantParams, rank: int, name: str) -> str:
        form = forms.draw(st.sampled_from(FORMS[params.is_per_channel]))
        off = forms.draw(st.floats(-0.4, 0.4))
        count = len(params.scale)
        inputs = [
            x,
            b.constant(f"{name}.scale", np.float32(params.scale)),
            b.constant(f"{name}.zero", np.float32([z + off for z in params.zero_point])),
        ]
        attrs: dict[str, object] = {}
        if form == "FixedPerChannelAffine":
            inputs.append(b.constant(f"{name}.axis", np.int64(params.axis)))
        if form in AS_INPUTS:
            inputs.append(b.constant(f"{name}.low", np.int64(params.qmin)))
            inputs.append(b.constant(f"{name}.high", np.int64(params.qmax)))
        else:
            attrs = {"quant_min": params.qmin, "quant_max": params.qmax}
        if "DSQ" in form:
            attrs["alpha"] = 0.4
        if domain:
            b.opsets[domain] = 18
        assert count
        return b.node(form, inputs, name, domain, **attrs)

    return spell


@pytest.mark.parametrize("stated", [False, True])
@pytest.mark.parametrize("turns", [0, 1, 2, 3000])
def test_the_axis_of_a_square_matrix_is_that_of_its_product(turns: int, stated: bool) -> None:
    """Whether the file states the shapes on the way, or not."""
    b = Builder()
    operands = [b.constant(n, np.ones(s, np.float32)) for n, s in (("w", (32, 32)), ("s", 32), ("z", 32))]
    v = b.node("FakeQuantizeLearnablePerchannelAffine", operands, "v", quant_min=-128, quant_max=127)
    names = [v] + [b.node("Transpose", [v if i == 0 else f"t{i - 1}"], f"t{i}", perm=[1, 0]) for i in range(turns)]
    b.node("MatMul", ["input", names[-1]], "output")
    model = nets.model_of(b, [2, 32])
    if stated:
        infos = [nets.helper.make_tensor_value_info(name, nets.TensorProto.FLOAT, [32, 32]) for name in names]
        model.graph.value_info.extend(infos)
    graph = nets.graph_of(model)
    mqbench.FRONTEND.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    (node,) = (n for n in graph.nodes if n.op == FAKE_QUANT)
    assert node.attrs["params"].axis == 1 - turns % 2


@given(nets.networks(nets.narrow_grids()), st.data())
@settings(max_examples=25)
def test_mqbench_round_trip(network: Network, forms: st.DataObject) -> None:
    """The domain differs from one descendant to the next: the names of the nodes are what tells."""
    model = nets.write(network, speller(forms, forms.draw(st.sampled_from(["", "mqbench", "mqbench_custom"]))))
    assert mqbench.FRONTEND.recognize(nets.graph_of(model), "") is not None
    assert nets.fingerprint(nets.read(model, mqbench.FRONTEND)) == nets.fingerprint(nets.expected(network))


@given(nets.networks(nets.symmetric_grids()), st.data())
@settings(max_examples=25)
def test_sophgo_round_trip(network: Network, forms: st.DataObject) -> None:
    """The writer leaves the bias rounding out, as sophgo-mq does; the reader puts it back."""
    model = nets.write(network, speller(forms, mqbench.SOPHGO[0]))
    stated = nets.expected(_with_biases(network))
    assert nets.fingerprint(nets.read(model, sophgo.FRONTEND)) == nets.fingerprint(stated)


def _with_biases(network: Network) -> Network:
    """The grids s_x * s_w of the biases, where the operator's input lies on one grid."""
    current: QuantParams | None = network.input
    layers: list[Layer] = []
    for layer in network.layers:
        if layer.weight_params is not None and current is not None:
            steps = np.float32(current.scale[0]) * np.float32(layer.weight_params.scale)
            if layer.weight_params.is_per_channel:
                grid = QuantParams.per_channel(steps, 0, 0, "int32")
            else:
                grid = QuantParams.per_tensor(float(steps[0]), 0, "int32")
            layer = dataclasses.replace(layer, bias_params=grid)
        layers.append(layer)
        moves = layer.op in ("MaxPool", "Relu")
        current = layer.output if layer.output is not None else (current if moves else None)
    return dataclasses.replace(network, layers=tuple(layers))


def one(
    op: str, shape: list[int], operands: list[object], domain: str = "", **attrs: object
) -> list[str] | QuantParams:
    """The grid that a single node gets, or the codes of what is wrong with it."""
    b = Builder()
    if domain:
        b.opsets[domain] = 1
    names = [b.constant(f"p{i}", np.asarray(v)) for i, v in enumerate(operands)]
    b.node(op, ["input", *names], "output", domain, **attrs)
    graph = nets.graph_of(nets.model_of(b, shape))
    frontend = sophgo.FRONTEND if domain in mqbench.SOPHGO else mqbench.FRONTEND
    frontend.normalize(graph, FrontendOptions())
    found: list[QuantParams] = [n.attrs["params"] for n in graph.nodes if n.op == FAKE_QUANT]
    return [d.code for d in graph.diagnostics.errors] or found[0]


def test_zero_points_round_half_to_even_and_types_follow_the_range() -> None:
    s = np.float32([0.5])
    assert one("LearnablePerTensorAffine", [2], [s, np.float32([76.5]), np.int64(0), np.int64(255)]) == (
        QuantParams.per_tensor(0.5, 76, "uint8", 0, 255)
    )
    assert one("LearnablePerTensorAffine", [2], [s, np.float32([19659.996]), np.int64(0), np.int64(65535)]) == (
        QuantParams.per_tensor(0.5, 19660, "uint16", 0, 65535)
    )
    assert one("FakeQuantizeTqtAffine", [2], [s, np.float32([0])], quant_min=-8, quant_max=7) == (
        QuantParams.per_tensor(0.5, 0, "int8", -8, 7)
    )


def test_nodes_of_sophgo_are_not_mqbenchs_to_read() -> None:
    """sophgo-mq rounds biases that its nodes say nothing of: read as MQBench's, the numbers would be others."""
    b = Builder(opsets={"": 18, mqbench.SOPHGO[0]: 18})
    operands = [b.constant("s", np.float32([1])), b.constant("z", np.float32([0]))]
    b.node("FakeQuantizeTqtAffine", ["input", *operands], "output", mqbench.SOPHGO[0], quant_min=-8, quant_max=7)
    graph = nets.graph_of(nets.model_of(b, [1, 3]))
    assert mqbench.FRONTEND.recognize(graph, "") is None
    assert sophgo.FRONTEND.recognize(graph, "") is not None
    mqbench.FRONTEND.normalize(graph, FrontendOptions())
    assert [n.op for n in graph.nodes] == ["FakeQuantizeTqtAffine"]


def test_activations_per_channel_are_along_axis_1() -> None:
    got = one("FakeQuantizeLearnablePerchannelAffine", [1, 3, 4, 4], [np.float32([1, 2, 3]), np.zeros(3, np.float32)],
              quant_min=0, quant_max=255)  # fmt: skip
    assert isinstance(got, QuantParams)
    assert got.axis == 1


def test_an_axis_may_be_an_attribute() -> None:
    got = one("FixedPerChannelAffine", [3, 3, 3], [np.float32([1, 2, 3]), np.zeros(3, np.float32)],
              ch_axis=2, quant_min=0, quant_max=255)  # fmt: skip
    assert isinstance(got, QuantParams)
    assert got.axis == 2


def test_weight_axis_through_a_transpose_into_matmul() -> None:
    b = Builder()
    w = b.constant("w", np.ones((4, 4), np.float32))
    operands = [w, b.constant("s", np.float32([1, 2, 3, 4])), b.constant("z", np.float32([0]))]
    q = b.node("FakeQuantizeLearnablePerchannelAffine", operands, "wq", quant_min=-127, quant_max=127)
    b.node("MatMul", ["input", b.node("Transpose", [q], "wt", perm=[1, 0])], "output")
    graph = nets.graph_of(nets.model_of(b, [2, 4]))
    mqbench.FRONTEND.normalize(graph, FrontendOptions())
    assert [n.attrs["params"].axis for n in graph.nodes if n.op == FAKE_QUANT] == [0]


@pytest.mark.parametrize(
    ("op", "operands", "attrs", "codes"),
    [
        ("NNIEQuantize", [np.float32(2)], {}, ["QAT103"]),
        ("LearnablePerTensorAffine", [np.float32([0]), np.float32([0]), np.int64(0), np.int64(255)], {}, ["QAT201"]),
        ("LearnablePerTensorAffine", [np.float32([1]), np.float32([0])], {}, ["QAT104", "QAT104"]),
        ("FakeQuantizeDSQPertensor", [np.float32([1]), np.float32([0])], {"quant_min": 4, "quant_max": 2}, ["QAT202"]),
        ("FixedPerTensorAffine", [np.float32([1]), np.float32([0])], {"quant_min": 0.0, "quant_max": 2.5}, ["QAT103"]),
        ("FakeQuantizeLearnablePerchannelAffine", [np.ones(5, np.float32), np.zeros(5, np.float32)],
         {"quant_min": 0, "quant_max": 255}, ["QAT204"]),
    ],
)  # fmt: skip
def test_refused(op: str, operands: list[object], attrs: dict[str, object], codes: list[str]) -> None:
    assert one(op, [1, 3], operands, **attrs) == codes


@pytest.mark.parametrize("op", ["FPEmuOp_per_tensor", "FPEmuOp_per_channel"])
def test_sophgo_fp8_is_refused(op: str) -> None:
    assert one(
        op, [1, 3], [np.float32([1]), np.float32([0])], mqbench.SOPHGO[0], quant_min=-448.0, quant_max=448.0
    ) == ["QAT103"]


def test_recognized_by_names_and_domains() -> None:
    b = Builder()
    b.node("LearnablePerTensorAffine", ["input"], "output")
    plain = nets.graph_of(nets.model_of(b, [1]))
    assert mqbench.FRONTEND.recognize(plain, "") == "1 LearnablePerTensorAffine"
    assert sophgo.FRONTEND.recognize(plain, "") is None
    b = Builder(opsets={"": 18, mqbench.SOPHGO[0]: 18})
    b.node("LearnablePerTensorAffine", ["input"], "output", mqbench.SOPHGO[0])
    theirs = nets.graph_of(nets.model_of(b, [1]))
    assert sophgo.FRONTEND.recognize(theirs, "") == "1 LearnablePerTensorAffine (Sophgo_custom)"
    assert mqbench.FRONTEND.recognize(theirs, "") is None

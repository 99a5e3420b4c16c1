"""Nodes are what their operators ask for: numbers of inputs, sizes of windows."""

from __future__ import annotations

import pytest

from qatc import CompileError
from tests.graphs import loaded, net


def pool(op: str, attribute: str, size: int) -> str:
    stated = {"kernel_shape": [2, 2], attribute: [1, size, 1, 1] if attribute == "pads" else [1, size]}
    text = ", ".join(f"{name} = {sizes}" for name, sizes in stated.items())
    weight = ", w" if op.startswith("Conv") else ""
    constants = "float[1,1,2,2] w = {1, 2, 3, 4}" if weight else ""
    return net("(float[1,1,8,8] x) => (float[N,C,H,W] y)", f"y = {op}<{text}>(x{weight})", constants, opset=19)


@pytest.mark.parametrize("op", ["AveragePool", "MaxPool", "LpPool", "Conv", "ConvTranspose"])
@pytest.mark.parametrize(
    ("attribute", "size"),
    [
        ("kernel_shape", 0), ("kernel_shape", -1), ("strides", 0), ("strides", -3), ("dilations", 0), ("pads", -1),
        ("strides", 2**31), ("pads", 2**62),
    ],
)  # fmt: skip
def test_windows_of_no_size_are_told(op: str, attribute: str, size: int) -> None:
    """Found by a fuzzer: a kernel of -1 ended a compile without verification in an exception of numpy's."""
    with pytest.raises(CompileError, match=rf"QAT004.*the attribute {attribute} of {op} holds {size}"):
        loaded(pool(op, attribute, size))


@pytest.mark.parametrize(("attribute", "size"), [("output_padding", -1), ("output_shape", 0)])
def test_results_of_no_size_are_told(attribute: str, size: int) -> None:
    with pytest.raises(CompileError, match=rf"QAT004.*the attribute {attribute} of ConvTranspose holds {size}"):
        loaded(pool("ConvTranspose", attribute, size))


@pytest.mark.parametrize(("attribute", "size"), [("strides", 2**31 - 1), ("pads", 0), ("dilations", 2)])
def test_windows_of_a_size_are_read(attribute: str, size: int) -> None:
    assert loaded(pool("MaxPool", attribute, size)).nodes[0].attr(attribute)[1] == size


@pytest.mark.parametrize(
    ("lists", "named"),
    [
        ("kernel_shape = [2, 2], pads = [1, 1, 1]", "kernel_shape, pads"), ("kernel_shape = [2], strides = [1, 1]", ""),
        ("kernel_shape = [2, 2], dilations = [1, 1, 1], strides = [1, 1]", "dilations, kernel_shape, strides"),
        ("kernel_shape = [2, 2], pads = [1, 1]", "kernel_shape, pads"),
    ],
)  # fmt: skip
def test_lists_are_for_one_number_of_axes(lists: str, named: str) -> None:
    with pytest.raises(CompileError, match=rf"QAT004.*attributes {named}.* of MaxPool are not for the same number"):
        loaded(net("(float[1,1,8,8] x) => (float[N,C,H,W] y)", f"y = MaxPool<{lists}>(x)"))


@pytest.mark.parametrize("number", [2**31, -(2**31), 2**62])
def test_numbers_that_no_size_is_are_told(number: int) -> None:
    """ONNX Runtime's process ends of some: a RoiAlign with so many samples, an attention with so many heads."""
    with pytest.raises(CompileError, match=rf"QAT004.*the attribute axis of Softmax is {number}"):
        loaded(net("(float[2,2] x) => (float[2,2] y)", f"y = Softmax<axis = {number}>(x)"))


def test_a_shape_may_end_anywhere() -> None:
    graph = loaded(net("(float[2,3] x) => (int64[N] y)", f"y = Shape<end = {2**63 - 1}>(x)"))
    assert graph.nodes[0].attr("end") == 2**63 - 1


def test_a_pad_may_take_away() -> None:
    graph = loaded(net("(float[4] x) => (float[2] y)", "y = Pad<pads = [-1, -1]>(x)", opset=10))
    assert graph.nodes[0].attr("pads") == [-1, -1]


@pytest.mark.parametrize("op", ["AveragePool", "MaxPool", "Conv", "ConvTranspose"])
@pytest.mark.parametrize("mode", ["SAME", "same_upper", ""])
def test_a_padding_that_there_is_not_is_told(op: str, mode: str) -> None:
    """What is none of ONNX's was taken for one of the SAME ones."""
    text = pool(op, "strides", 1).replace("strides = [1, 1]", f'auto_pad = "{mode}"')
    with pytest.raises(CompileError, match=rf"QAT004.*the attribute auto_pad of {op} is '{mode}', none of NOTSET"):
        loaded(text)


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("groups", [0, -2])
def test_channels_lie_in_groups(op: str, groups: int) -> None:
    """ONNX Runtime's process ended of a division by none, up to version 1.22."""
    with pytest.raises(CompileError, match=rf"QAT004.*the attribute group of {op} is {groups}"):
        loaded(pool(op, "strides", 1).replace("strides = [1, 1]", f"group = {groups}"))


@pytest.mark.parametrize(
    ("call", "found"),
    [
        ("CastLike(x)", "CastLike takes at least 2 inputs, not 1"),
        ('LessOrEqual(x, "")', "LessOrEqual needs its input B"),
        ("LayerNormalization(x)", "LayerNormalization takes at least 2 inputs, not 1"),
        ("Attention(x, x)", "Attention takes at least 3 inputs, not 2"),
    ],
)
def test_operators_that_are_newer_than_the_file_have_their_inputs(call: str, found: str) -> None:
    """Some ended a compile in an exception: the opset's own operators alone were checked."""
    with pytest.raises(CompileError, match=f"QAT004.*{found}"):
        loaded(net("(float[2,2] x) => (float[2,2] y)", f"y = {call}", opset=11))


def test_an_operator_of_an_exporter_s_own_may_be_called_as_a_later_one() -> None:
    graph = loaded(net("(float[2] x) => (float[2] y)", "y, z, u = Swish<alpha = [1, 2], beta = 1>(x, x, x)", opset=11))
    assert len(graph.nodes[0].inputs) == 3


@pytest.mark.parametrize(
    ("call", "found"),
    [
        ("SkipLayerNormalization(x, x)", "SkipLayerNormalization takes 3 to 5 inputs, not 2"),
        ("FusedMatMul(x, x, x)", "FusedMatMul takes 2 inputs, not 3"),
        ('FusedConv(x, "")', "FusedConv needs its input number 1"),
        ("BiasGelu(x)", "BiasGelu takes 2 inputs, not 1"),
    ],
)
def test_operators_of_onnx_runtime_s_optimizer_have_their_inputs(call: str, found: str) -> None:
    """Taking them apart ended in an exception."""
    text = net("(float[2,2] x) => (float[2,2] y)", f"y = com.microsoft.{call}")
    with pytest.raises(CompileError, match=f"QAT004.*{found}"):
        loaded(text.replace('["" : 17]', '["" : 17, "com.microsoft" : 1]'))


def test_nodes_in_bodies_are_checked() -> None:
    """A branch that was taken ended in an exception; ONNX Runtime alone looked at the others."""
    body = "t = Dropout()"
    text = net(
        "(float[2] x, bool c) => (float[2] y)",
        f"y = If(c) <then_branch = one () => (float[2] t) {{ {body} }},"
        " else_branch = two () => (float[2] e) { e = Abs(x) }>",
    )
    with pytest.raises(CompileError, match=r"QAT004.*Dropout takes 1 to 3 inputs, not 0"):
        loaded(text)

"""Nodes are what their operators ask for: sizes of windows."""

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


def test_a_pad_may_take_away() -> None:
    graph = loaded(net("(float[4] x) => (float[2] y)", "y = Pad<pads = [-1, -1]>(x)", opset=10))
    assert graph.nodes[0].attr("pads") == [-1, -1]

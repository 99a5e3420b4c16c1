"""A convolution of an image for each step is a dilated one: the same numbers, by one operator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from qatc import compile_model
from qatc.compiler.passes.dilations import dilate
from qatc.compiler.passes.needless import leave_out_moves
from qatc.compiler.passes.propagate import propagate
from tests.graphs import stripped
from tests.pipeline import simulate


def divided(
    steps: tuple[int, ...],
    sizes: tuple[int, ...],
    *,
    batch: int | str = 1,
    channels: int = 3,
    conv: str = "group = 1",
    lost: tuple[int, ...] = (2, 2),
    behind: str = "",
    images_first: bool = False,
    back: tuple[int, ...] | None = None,
) -> str:
    """SpaceToBatch of a channels-last tensor, a convolution by 3, and BatchToSpace, as tf2onnx writes them.

    `sizes` are the spatial ones of the parts, of which the convolution loses some; `behind` is an operator on its
    result. `images_first` has the images in front of the steps in the batch, `back` are the steps put together.
    """
    rank, back = len(steps), back or steps
    opened = -1 if isinstance(batch, str) else batch
    whole = [m * d for m, d in zip(sizes, steps, strict=True)]
    left = [m - n for m, n in zip(sizes, lost, strict=False)]
    pairs = [n for m, d in zip(sizes, steps, strict=True) for n in (m, d)]
    inner, outer = [2 + 2 * i for i in range(rank)], [1 + 2 * i for i in range(rank)]
    lead = [0, *inner] if images_first else [*inner, 0]
    to_first, to_last = [0, rank + 1, *range(1, rank + 1)], [0, *range(2, rank + 2), 1]
    many = [*back] if not images_first else []
    parts = [*many, opened, *([*back] if images_first else []), *left, 4]
    at = 1 if images_first else 0
    images = 0 if images_first else rank
    joined = [n for i in range(rank) for n in (rank + 1 + i, at + i)]
    constants = [
        ("split", [opened, *pairs, channels]),
        ("flat", [-1, *sizes, channels]),
        ("parts", parts),
        ("out", [opened, *(m * d for m, d in zip(left, back, strict=True)), 4]),
    ]
    stated = ", ".join(f"int64[{len(v)}] {n} = {{{', '.join(map(str, v))}}}" for n, v in constants)
    results = ["N", *map(str, (m * d for m, d in zip(left, back, strict=True))), "4"]
    source = [batch, *whole, channels]
    return f"""<ir_version: 10, opset_import: ["" : 17]>
    net (float[{", ".join(map(str, source))}] x) => (float[{", ".join(results)}] y)
    <{stated}, float s = {{0.25}}, uint8 z = {{128}}, float sv = {{0.5}}, uint8 zv = {{0}}, float low = {{0}},
     float high = {{4}}>
    {{
        xq = QuantizeLinear(x, s, z)
        xd = DequantizeLinear(xq, s, z)
        a = Reshape(xd, split)
        b = Transpose<perm = {[*lead, *outer, 2 * rank + 1]}>(a)
        c = Reshape(b, flat)
        d = Transpose<perm = {to_first}>(c)
        e = Conv<{conv}>(d, w)
        {behind or "f = Relu(e)"}
        g = Transpose<perm = {to_last}>(f)
        h = Reshape(g, parts)
        i = Transpose<perm = {[images, *joined, 2 * rank + 1]}>(h)
        j = Reshape(i, out)
        jq = QuantizeLinear(j, sv, zv)
        y = DequantizeLinear(jq, sv, zv)
    }}"""


def model(text: str, rank: int, channels: int = 3) -> onnx.ModelProto:
    """The network with weights on a grid."""
    found = onnx.parser.parse_model(text)
    weight = np.random.default_rng(5).integers(-9, 10, (4, channels, *(3,) * rank)).astype(np.int8)
    found.graph.initializer.append(numpy_helper.from_array(weight, "wq"))
    found.graph.initializer.append(numpy_helper.from_array(np.float32(0.125), "ws"))
    found.graph.initializer.append(numpy_helper.from_array(np.int8(0), "wz"))
    found.graph.node.insert(0, helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["w"]))
    assert found.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
    return found


def dilated(text: str, rank: int, shape: tuple[int, ...]) -> tuple[list[str], list[int] | None]:
    """What is left of a network, which computes the same, and the convolution's dilations."""
    graph = stripped(model(text, rank, shape[-1]))
    propagate(graph)
    feeds = {"x": np.random.default_rng(0).normal(0, 4, shape).astype(np.float32)}
    want = simulate(graph, feeds)
    for rewrite in (dilate, leave_out_moves):
        rewrite(graph)
        graph.verify()
        np.testing.assert_array_equal(simulate(graph, feeds)["y"], want["y"], strict=True)
    (conv,) = graph.of("Conv")
    return [node.op for node in graph.nodes], conv.attrs.get("dilations")


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(3, 5)), min_size=1, max_size=2),
    st.sampled_from([1, 2, "N"]),
    st.booleans(),
    st.integers(1, 3),
)
def test_a_divided_convolution_is_a_dilated_one(
    axes: list[tuple[int, int]], batch: int | str, images_first: bool, channels: int
) -> None:
    steps, sizes = tuple(d for d, _ in axes), tuple(m for _, m in axes)
    text = divided(steps, sizes, batch=batch, channels=channels, images_first=images_first)
    shape = (2 if batch == "N" else int(batch), *(d * m for d, m in axes), channels)
    ops, dilations = dilated(text, len(axes), shape)
    if max(steps) > 1:
        assert dilations == list(steps)
        assert ops == ["Transpose", "Conv", "Relu", "Transpose"]


@pytest.mark.parametrize(
    ("conv", "lost", "behind", "dilations"),
    [
        ("dilations = [1, 2]", (2, 4), "f = Clip(e, low, high)", [1, 6]),
        ('auto_pad = "VALID"', (2, 2), "f = Sigmoid(e)", [1, 3]),
        ("pads = [1, 0, 1, 0]", (0, 2), "f = Relu(e)", [1, 3]),  # along the axis that is not divided
        ("pads = [0, 1, 0, 1]", (2, 0), "f = Relu(e)", None),  # each part is padded on its own
        ("strides = [2, 1]", (3, 2), "f = Relu(e)", [1, 3]),
        ("strides = [1, 2]", (2, 3), "f = Relu(e)", None),
        ("group = 1", (2, 2), "f0 = Relu(e)\nf1 = Mul(e, high)\nf = Add(f0, f1)", None),  # two read it
        ("group = 1", (2, 2), "f0 = Softmax<axis = 2>(e)\nf = Relu(f0)", None),  # over the positions of a part
    ],
)
def test_what_is_and_what_is_not(conv: str, lost: tuple[int, int], behind: str, dilations: list[int] | None) -> None:
    text = divided((1, 3), (5, 5), conv=conv, lost=lost, behind=behind)
    ops, found = dilated(text, 2, (1, 5, 15, 3))
    assert (found if ops.count("Reshape") == 0 else None) == dilations


def test_parts_put_together_otherwise_stay() -> None:
    """The steps of one axis may not come back as those of another."""
    text = divided((2, 3), (6, 6), back=(3, 2))
    ops, dilations = dilated(text, 2, (1, 12, 18, 3))
    assert "Reshape" in ops
    assert dilations is None


def test_the_package_has_the_dilated_convolution(tmp_path: Path) -> None:
    onnx.save(model(divided((1, 2), (5, 6), batch="N"), 2), tmp_path / "net.onnx")
    found = compile_model(tmp_path / "net.onnx", qat=True, output=tmp_path / "p", shapes={"x": (2, 5, 12, 3)})
    nodes = onnx.load(tmp_path / "p" / "model.onnx").graph.node
    (conv,) = [node for node in nodes if node.op_type == "QLinearConv"]
    assert next(list(a.ints) for a in conv.attribute if a.name == "dilations") == [1, 2]
    assert "Reshape" not in [node.op_type for node in nodes]
    assert found.verification is not None
    assert "y" in {check.tensor for check in found.verification.local}


@pytest.mark.parametrize(("mode", "back"), [("DCR", True), ("CRD", False)])
@pytest.mark.parametrize("batch", [1, 2, "N"])
def test_blocks_of_images_are_divided_too(mode: str, back: bool, batch: int | str) -> None:
    """tf2onnx writes equal steps as SpaceToDepth of the images of each channel; depth in the other order is another."""
    text = f"""<ir_version: 10, opset_import: ["" : 17]>
    net (float[{batch}, 10, 12, 4] x) => (float[N, 6, 8, 4] y)
    <float s = {{0.25}}, uint8 z = {{128}}, float sv = {{0.5}}, uint8 zv = {{0}}>
    {{
        xq = QuantizeLinear(x, s, z)
        xd = DequantizeLinear(xq, s, z)
        a = Transpose<perm = [3, 0, 1, 2]>(xd)
        b = SpaceToDepth<blocksize = 2>(a)
        c = Transpose<perm = [1, 0, 2, 3]>(b)
        e = Conv<group = 1>(c, w)
        f = Relu(e)
        g = Transpose<perm = [1, 0, 2, 3]>(f)
        h = DepthToSpace<blocksize = 2, mode = "{mode}">(g)
        j = Transpose<perm = [1, 2, 3, 0]>(h)
        jq = QuantizeLinear(j, sv, zv)
        y = DequantizeLinear(jq, sv, zv)
    }}"""
    shape = (2 if batch == "N" else int(batch), 10, 12, 4)
    _, dilations = dilated(text, 2, shape)
    assert dilations == ([2, 2] if back or batch == 1 else None)  # of one image, both orders are one

"""Groups of few filters are joined, with zeros between them: fewer matrix products, and no other integer."""

from __future__ import annotations

from dataclasses import replace

import pytest
from onnx import numpy_helper

from tests.backends.emitting import emitted, same
from tests.backends.test_onnx_products import Case, conv

pytestmark = pytest.mark.usefixtures("exact_runtime")

FEW = Case(channels=16, filters=16, groups=8)  # small: one group
MANY = Case(channels=128, filters=128, groups=32, kernel=1, pads=0, size=4)  # 4 filters each


def group_of(case: Case) -> int:
    """Check every option against the reference; the groups of the QLinearConv of one's own options."""
    net, out = conv(case)
    same(net, out)
    net.graph.outputs = [out]
    (node,) = [n for n in emitted(net.graph).model.graph.node if n.op_type == "QLinearConv"]
    return next(a.i for a in node.attribute if a.name == "group")


@pytest.mark.parametrize(
    ("case", "groups"),
    [
        (FEW, 1),
        (replace(FEW, spatial=1), 1),
        (replace(FEW, spatial=3, size=5), 1),
        (replace(FEW, stride=2, dilation=2), 1),
        (replace(FEW, channels=8, filters=16), 1),  # two filters for each channel
        (replace(FEW, weight="uint8", zeros="one"), 1),
        (replace(FEW, zeros="one"), 1),
        (replace(FEW, known="channels", bias=False, y="int8"), 1),
        (replace(FEW, transposed=True), 1),
        (MANY, 4),  # 32 filters at a time
        (replace(MANY, filters=64), 2),
        (
            replace(MANY, filters=96, groups=12, channels=96),
            3,
        ),  # 24 filters: four groups of 12 divide them, five do not
        (replace(MANY, filters=1280, channels=80, groups=40), 40),  # 32 filters each
    ],
    ids=str,
)
def test_groups_are_joined(case: Case, groups: int) -> None:
    assert group_of(case) == groups


@pytest.mark.parametrize(
    "case",
    [
        replace(FEW, x="int8"),  # its products are no faster together
        replace(FEW, groups=16),  # depthwise: a kernel of its own
        replace(MANY, groups=2),
    ],
    ids=str,
)
def test_groups_stay(case: Case) -> None:
    assert group_of(case) == case.groups


def test_zeros_are_the_weights_zero_point() -> None:
    net, out = conv(replace(FEW, zeros="one", bias=False))
    net.graph.outputs = [out]
    model = emitted(net.graph).model
    (node,) = [n for n in model.graph.node if n.op_type == "QLinearConv"]
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    weight, zero = values[node.input[3]], values[node.input[5]]
    assert weight.shape == (16, 16, 3, 3)
    assert (weight[:2, 2:] == zero).all()
    assert (weight[:2, :2] != zero).any()

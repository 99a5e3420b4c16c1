"""Weights far from their zero points: what two eight-bit numbers can say is integer, the rest an island."""

from __future__ import annotations

import pytest

from tests.compiler.lowering.test_lower import lowered, reasons

X2 = "(float[3,2] x) => (float[3,2] y)"
BODY = "a = A(x)\nw = DequantizeLinear<axis = 1>(wq, ws, wz)\nm = MatMul(a, w)\ny = B(m)"


@pytest.mark.parametrize(
    ("values", "zeros", "dtype", "integer"),
    [
        ("0, 255, 255, 0", "128, 128", "uint8", True),
        ("0, 255, 255, 3", "0, 255", "uint8", True),
        ("0, 255, 255, 0", "0, 255", "uint8", False),
        ("-128, 100, 7, -100", "127, 0", "int8", True),
        ("-255, 254, 7, -100", "0, 0", "int16", True),
        ("-256, 254, 7, -100", "0, 0", "int16", False),
    ],
)
def test_distances_from_the_zero_point(values: str, zeros: str, dtype: str, *, integer: bool) -> None:
    constants = f"{dtype}[2,2] wq = {{{values}}}, float[2] ws = {{0.5, 0.25}}, {dtype}[2] wz = {{{zeros}}}"
    graph = lowered(X2, BODY, constants, opset=21)
    said = [] if integer else ["MatMul: its weight has"]
    assert [r[: len("MatMul: its weight has")] for r in reasons(graph)] == said

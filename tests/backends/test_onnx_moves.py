"""Move: operators on stored integers, in types that ONNX Runtime has kernels for."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from qatc.compiler.integer import Move
from tests.backends.emitting import Net, emitted, grid, integers, same

pytestmark = pytest.mark.usefixtures("exact_runtime")


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16"])
@pytest.mark.parametrize("constant", [False, True])
def test_where_has_a_kernel_in_every_version(dtype: str, constant: bool) -> None:
    """ONNX Runtime before 1.32 chooses between uint8, int32 and floats alone."""
    dice = np.random.default_rng(1)
    params = grid(dice, dtype)
    net = Net(21)
    condition = net.input(dice.random((3, 4)) < 0.5)
    a = net.input(integers(dice, params, (3, 4)), params)
    other = integers(dice, params, (4,))
    b = net.constant(other, params) if constant else net.input(other, params)
    out = net.add(Move, (condition, a, b), params, (3, 4), op_type="Where", attrs={})
    same(net, out)
    model = emitted(net.graph, domain="auto").model
    typed = onnx.shape_inference.infer_shapes(model).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*typed.value_info, *typed.input, *typed.output)}
    types |= {i.name: i.data_type for i in typed.initializer}
    (where,) = [n for n in typed.node if n.op_type == "Where"]
    assert {types[name] for name in where.input[1:]} <= {onnx.TensorProto.UINT8, onnx.TensorProto.INT32}


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16"])
@pytest.mark.parametrize("op", ["Max", "Min"])
def test_the_larger_has_a_kernel_in_every_version(op: str, dtype: str) -> None:
    """ONNX Runtime 1.18 compares int32 and floats alone."""
    dice = np.random.default_rng(1)
    params = grid(dice, dtype)
    net = Net(21)
    operands = [net.input(integers(dice, params, shape), params) for shape in ((3, 4), (4,), (3, 1))]
    out = net.add(Move, tuple(operands), params, (3, 4), op_type=op, attrs={})
    same(net, out)
    typed = onnx.shape_inference.infer_shapes(emitted(net.graph, domain="auto").model).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*typed.value_info, *typed.input, *typed.output)}
    (larger,) = [n for n in typed.node if n.op_type == op]
    assert {types[name] for name in larger.input} == {onnx.TensorProto.INT32}

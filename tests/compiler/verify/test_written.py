"""The written model read again: whatever lowers to something else, or computes something else, is found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from qatc.compiler.arithmetic import get_profile
from qatc.compiler.integer import IntegerGraph, MatMul
from qatc.compiler.reference import evaluate_onnx
from qatc.compiler.result import TensorCheck
from qatc.compiler.verify.written import compare_reread
from tests.agreeing import lowered_net

WEIGHT = np.random.default_rng(1).integers(-100, 100, (8, 128))
FEEDS = [{"x": np.random.default_rng(seed).normal(0, 20, (32, 8)).astype(np.float32)} for seed in range(2)]


def dense(activations: str = "uint8", end: str = "y = A(n)") -> IntegerGraph:
    """The result A(x W + b) in integers, or the real numbers of its accumulators."""
    return lowered_net(
        "(float[32,8] x) => (float[32,128] y)",
        f"a = A(x)\nw = DequantizeLinear(wq, s, z)\nm = MatMul(a, w)\nn = Add(m, b)\n{end}",
        f"int8[8,128] wq = {{{', '.join(map(str, WEIGHT.ravel()))}}}, float s = {{0.01}}, int8 z = {{0}}, "
        f"float[128] b = {{{', '.join(str(i / 32) for i in range(128))}}}",
        activations=activations,
    )


def reread(graph: IntegerGraph, again: IntegerGraph) -> dict[str, TensorCheck]:
    checks = compare_reread(graph, again, get_profile("onnx"), FEEDS, evaluate_onnx)
    return {check.tensor: check for check in checks}


@pytest.mark.parametrize("end", ["y = A(n)", "y = Identity(n)"])
def test_the_same_is_the_same(end: str) -> None:
    checks = reread(dense(end=end), dense(end=end))
    assert all(check.passed and not check.excused and check.max_lsb == 0 for check in checks.values())
    assert {check.elements for check in checks.values()} == {2 * 32 * 8, 2 * 32 * 128}


def biased(steps: int, channels: int) -> Callable[[IntegerGraph], None]:
    """More accumulator steps in the bias of some channels; 100 are one step of the result."""

    def change(graph: IntegerGraph) -> None:
        graph.constants["y_bias"] = graph.constants["y_bias"] + np.int32(steps) * (np.arange(128) < channels)
        graph.constants["y_bias"] = graph.constants["y_bias"].astype(np.int32)

    return change


@pytest.mark.parametrize(
    ("change", "excused", "message"),
    [
        (biased(1, 1), True, ""),  # rounded on the accumulator's grid: a few elements, by one step
        (biased(30, 128), False, "elements differ, by up to 1 LSB"),  # a third of them
        (biased(200, 1), False, "elements differ, by up to 2 LSB"),  # of one channel alone
    ],
)
def test_a_stored_bias_moves_a_few_results_by_one_step(
    change: Callable[[IntegerGraph], None], excused: bool, message: str
) -> None:
    again = dense()
    change(again)
    check = reread(dense(), again)["y_quantized"]
    assert (check.passed, check.excused > 0) == (excused, excused)
    assert message in check.message


def test_other_operators_and_other_types_are_found() -> None:
    (check,) = reread(dense(), dense(end="r = Relu(n)\nt = Tanh(r)\ny = A(t)")).values()
    assert not check.passed
    assert "operators, not to the same" in check.message
    graph = dense()
    (product,) = (op for op in graph.ops if isinstance(op, MatMul))
    signed = dense()
    kept = signed.tensors["y_quantized"].params
    assert kept is not None
    signed.tensors["y_quantized"] = replace(signed.tensors["y_quantized"], dtype="int8", params=kept.as_dtype("int8"))
    signed.ops = [replace(op, lo=-128, hi=127) if op.name == product.name else op for op in signed.ops]  # type: ignore[call-arg]
    check = reread(graph, signed)["y_quantized"]
    assert "it is int8, not uint8" in check.message


@pytest.mark.parametrize(("share", "passed"), [(0.4, True), (2.0, False)])
def test_the_bias_of_real_numbers_may_be_off_by_half_a_step_of_the_accumulator(share: float, passed: bool) -> None:
    graph, again = dense(end="y = Identity(n)"), dense(end="y = Identity(n)")
    (bias,) = (name for name in again.constants if name.endswith("bias"))
    (product,) = (op for op in again.ops if isinstance(op, MatMul))
    again.constants[bias] = again.constants[bias] + np.float32(share * product.acc_scale[0])
    assert all(check.passed for check in reread(graph, again).values()) == passed

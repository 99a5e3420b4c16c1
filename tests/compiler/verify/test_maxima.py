"""What is rounded before pooling and judged behind it: the largest exact value of a window decides."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from qatc.backends.onnx import BACKEND
from qatc.compiler.arithmetic import get_profile
from qatc.compiler.integer import Conv, Elementwise, IntegerGraph, Pool
from qatc.compiler.reference import execute
from qatc.compiler.simulation import Simulation
from qatc.compiler.verify import verify
from qatc.compiler.verify.maxima import exact_maxima
from tests.pipeline import integer

WINDOWS = [
    {"kernel_shape": [2, 3], "strides": [2, 1], "pads": [1, 0, 0, 2]},
    {"kernel_shape": [3, 2], "dilations": [1, 2], "strides": [1, 2], "ceil_mode": 1},
    None,
]


def pooled(rng: np.random.Generator, op: str, window: dict[str, object] | None) -> onnx.ModelProto:
    """The largest of a convolution's (or a sum's) results, clamped and only then rounded."""
    make = helper.make_node
    values = {
        "sx": np.float32(rng.uniform(0.02, 0.1)), "zx": np.uint8(120), "sw": rng.uniform(0.001, 0.006, 4),
        "zw": np.zeros(4), "w": rng.integers(-60, 60, (4, 4, 3, 3)), "b": rng.normal(0, 1, 4),
        "sy": np.float32(rng.uniform(0.1, 0.3)),
        "zy": np.uint8(rng.integers(0, 40)), "high": np.float32(11.3), "su": np.float32(rng.uniform(0.02, 0.3)),
    }  # fmt: skip
    kinds = {"w": np.int8, "zw": np.int8, "zx": np.uint8, "zy": np.uint8}
    nodes = [make("QuantizeLinear", ["x", "sx", "zx"], ["q"]), make("DequantizeLinear", ["q", "sx", "zx"], ["a"])]
    if op == "Conv":
        nodes += [make("DequantizeLinear", ["w", "sw", "zw"], ["d"], axis=0), make("Conv", ["a", "d", "b"], ["t"])]
    else:
        nodes += [
            make("QuantizeLinear", ["u", "su", "zx"], ["v"]), make("DequantizeLinear", ["v", "su", "zx"], ["c"]),
            make("Add", ["a", "c"], ["t"]),
        ]  # fmt: skip
    nodes += [
        make("GlobalMaxPool", ["t"], ["p"]) if window is None else make("MaxPool", ["t"], ["p"], **window),
        make("Clip", ["p", "", "high"], ["r"]),
        make("QuantizeLinear", ["r", "sy", "zy"], ["k"]),
        make("DequantizeLinear", ["k", "sy", "zy"], ["y"]),
    ]
    shape = (1, 4, 7, 8)
    graph = helper.make_graph(
        nodes,
        "pooled",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in (("x",) if op == "Conv" else ("x", "u"))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(v, kinds.get(n, np.float32)), n) for n, v in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def sample(model: onnx.ModelProto, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {i.name: rng.normal(0, 4, (1, 4, 7, 8)).astype(np.float32) for i in model.graph.input}


def parts(graph: IntegerGraph) -> tuple[Pool, Conv | Elementwise]:
    (pool,) = [op for op in graph.ops if isinstance(op, Pool)]
    (maker,) = [op for op in graph.ops if pool.inputs[0] in op.outputs]
    assert isinstance(maker, Conv | Elementwise)
    return pool, maker


CASES = given(seed=st.integers(0, 2**32 - 1), op=st.sampled_from(["Conv", "Add"]), window=st.sampled_from(WINDOWS))


@settings(max_examples=40)
@CASES
def test_the_exact_value_is_what_is_rounded(seed: int, op: str, window: dict[str, object] | None) -> None:
    rng = np.random.default_rng(seed)
    model = pooled(rng, op, window)
    graph = integer(model)
    pool, maker = parts(graph)
    values = {**graph.constants, **execute(graph, sample(model, rng), get_profile("exact"))}
    exact = exact_maxima(graph, pool, maker, values, np.arange(values[pool.output].size))
    assert exact is not None
    found = np.clip(np.rint(exact.value + exact.moved), maker.lo, maker.hi)
    tied = np.abs(np.abs(exact.value + exact.moved - np.rint(exact.value + exact.moved)) - 0.5) < 1e-9
    assert ((found == values[pool.output].reshape(-1)) | tied).all()


@settings(max_examples=40)
@CASES
def test_it_is_judged_and_passes(seed: int, op: str, window: dict[str, object] | None) -> None:
    rng = np.random.default_rng(seed)
    model = pooled(rng, op, window)
    graph = integer(model)
    emission = BACKEND.emit(graph, BACKEND.checked({})).whole()
    found = verify(graph, get_profile("onnx"), Simulation(model, "the file"), emission, [sample(model, rng)])
    assert found.passed, [c for c in (*found.package, *found.local) if not c.passed]
    (pool,) = [c for c in found.local if c.op == ("MaxPool" if window else "GlobalMaxPool")]
    assert not pool.message


@pytest.mark.parametrize("window", WINDOWS[:2])
def test_a_fault_before_pooling_is_found_behind_it(window: dict[str, object]) -> None:
    rng = np.random.default_rng(3)
    model = pooled(rng, "Conv", window)
    graph = integer(model)
    _, maker = parts(graph)
    unit = 0.7 * graph.params(maker.output).scale[0] / max(maker.acc_scale)  # type: ignore[union-attr]
    graph.constants[maker.inputs[2]] = graph.constants[maker.inputs[2]] + np.int32(unit)
    emission = BACKEND.emit(graph, BACKEND.checked({})).whole()
    found = verify(graph, get_profile("onnx"), Simulation(model, "the file"), emission, [sample(model, rng)])
    assert [c.op for c in found.local if not c.passed] == ["MaxPool"]

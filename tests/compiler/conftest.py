"""Fixtures for tests against ONNX Runtime."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import settings
from onnx import TensorProto, helper, numpy_helper

# Times vary on shared machines; failures must reproduce from the printed example.
settings.register_profile("qatc", deadline=None, print_blob=True)
settings.load_profile("qatc")

RunOp = Callable[..., list[np.ndarray]]


def run_one_op(
    op_type: str,
    inputs: Sequence[Any],
    out_dtypes: Sequence[Any],
    attrs: Mapping[str, Any] | None = None,
    *,
    domain: str = "",
    fed: Sequence[int] = (0,),
    opset: int = 21,
) -> list[np.ndarray]:
    """Run one operator in ONNX Runtime, one thread, nothing optimized.

    `inputs` are arrays or None; those whose index is in `fed` are graph inputs, the others initializers.
    """
    names: list[str] = []
    initializers: list[TensorProto] = []
    graph_inputs = []
    feeds: dict[str, np.ndarray] = {}
    for index, value in enumerate(inputs):
        if value is None:
            names.append("")
            continue
        array, name = np.asarray(value), f"i{index}"
        names.append(name)
        if index in fed:
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            graph_inputs.append(helper.make_tensor_value_info(name, kind, array.shape))
            feeds[name] = array
        else:
            initializers.append(numpy_helper.from_array(array, name))
    outputs = [
        helper.make_tensor_value_info(f"o{i}", helper.np_dtype_to_tensor_dtype(np.dtype(d)), None)
        for i, d in enumerate(out_dtypes)
    ]
    node = helper.make_node(op_type, names, [o.name for o in outputs], domain=domain, **(attrs or {}))
    graph = helper.make_graph([node], "one", graph_inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


@pytest.fixture(scope="session")
def run_op() -> RunOp:
    """`run_one_op`: one operator in ONNX Runtime."""
    assert onnx.__version__  # the helper needs it; fail here and not in a fixture's user
    return run_one_op


@pytest.fixture(scope="session")
def exact_runtime() -> None:
    """Skip where ONNX Runtime is no witness of the profile `onnx`: not x86, or an x86 without VNNI."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip("the profile `onnx` is that of x86")
    x = np.full((1, 64), 255, np.uint8)
    w = np.full((64, 8), 127, np.int8)
    (y,) = run_one_op("MatMulInteger", [x, w, np.uint8(0), np.int8(0)], [np.int32])
    if (y != 255 * 127 * 64).any():
        pytest.skip("this CPU makes ONNX Runtime saturate 8-bit products")

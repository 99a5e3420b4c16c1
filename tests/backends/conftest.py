"""Every comparison with ONNX Runtime here is exact, which takes a CPU whose 8-bit products do not saturate."""

from __future__ import annotations

import platform

import numpy as np
import onnx
import pytest
from hypothesis import settings
from onnx import helper, numpy_helper

from tests.backends.emitting import run_model

settings.register_profile("qatc-backends", deadline=None, print_blob=True)
settings.load_profile("qatc-backends")


@pytest.fixture(scope="session")
def exact_runtime() -> None:
    """Skip where ONNX Runtime is no witness: not x86, or an x86 without VNNI."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip("the profile `onnx` is that of x86")
    x, w = np.full((1, 64), 255, np.uint8), np.full((64, 8), 127, np.int8)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "probe",
        [helper.make_tensor_value_info("x", onnx.TensorProto.UINT8, x.shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.INT32, (1, 8))],
        [numpy_helper.from_array(w, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    (y,) = run_model(model, {"x": x})
    if (y != 255 * 127 * 64).any():
        pytest.skip("this CPU makes ONNX Runtime saturate 8-bit products")

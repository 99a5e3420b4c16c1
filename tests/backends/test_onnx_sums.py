"""What ONNX Runtime's optimizer makes of accumulators that are read as real numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime

from qatc import compile_model
from tests.graphs import net


def test_sums_of_one_scale_survive_the_optimizer(tmp_path: Path) -> None:
    """Behind a DequantizeLinear of int32, ONNX Runtime would round what a Transpose or Reshape moves to uint8."""
    text = net(
        "(float[1,2,4,4] x) => (float[1,1,8,8] y)",
        "a = A(x)\nw = DequantizeLinear<axis = 0>(wq, s, z)\n"
        "y = ConvTranspose<strides = [2,2], pads = [1,1,1,1], output_padding = [1,1]>(a, w)",
        "int8[2,1,3,3] wq = {7, -9, 20, 31, -64, 100, 12, -127, 5, 99, 3, -77, 8, 15, -33, 61, 2, -1}, "
        "float[2] s = {0.5, 0.011}, int8[2] z = {0, 0}",
    )
    model = onnx.parser.parse_model(text)
    path = tmp_path / "model.onnx"
    onnx.save_model(model, str(path))
    package = tmp_path / "package"
    compile_model(path, output=package)
    x = np.random.default_rng(0).normal(0, 20, (1, 2, 4, 4)).astype(np.float32)
    plain = onnxruntime.SessionOptions()
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    (want,) = onnxruntime.InferenceSession(str(path), plain).run(None, {"x": x})
    (have,) = onnxruntime.InferenceSession(str(package / "model.onnx")).run(None, {"x": x})
    np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-4 * float(np.abs(want).max()))

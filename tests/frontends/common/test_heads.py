"""Weights whose scales vary along their last axes: the heads of an attention and their sizes, taken apart already."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qatc import CompileError, compile_model

SHAPE = (6, 2, 4)


def model(scale: tuple[int, ...], *, clamped: bool, einsum: bool) -> onnx.ModelProto:
    """A uint8 tensor times a weight [6, 2, 4] that is fake-quantized by arithmetic with scales of a shape."""
    rng = np.random.default_rng(0)
    steps = rng.uniform(0.01, 0.02, scale).astype(np.float32)
    values = {
        "w": rng.normal(0, 0.3, SHAPE).astype(np.float32), "s": steps, "low": np.float32(-127), "high": np.float32(127),
        "xs": np.float32(0.05), "xz": np.uint8(120), "ys": np.float32(0.1), "yz": np.uint8(128),
        "together": np.asarray([6, 8], np.int64),
    }  # fmt: skip
    make = helper.make_node
    product = [make("Einsum", ["xd", "wd"], ["m"], equation="btd,dhk->bthk")]
    if not einsum:
        product = [make("Reshape", ["wd", "together"], ["flat"]), make("MatMul", ["xd", "flat"], ["m"])]
    nodes = [
        make("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        make("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        make("Div", ["w", "s"], ["v"]),
        make("Round", ["v"], ["r"]),
        *([make("Clip", ["r", "low", "high"], ["c"])] if clamped else []),
        make("Mul", ["c" if clamped else "r", "s"], ["wd"]),
        *product,
        make("QuantizeLinear", ["m", "ys", "yz"], ["yq"]),
        make("DequantizeLinear", ["yq", "ys", "yz"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "heads",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 5, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(v), name) for name, v in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("einsum", [True, False])
@pytest.mark.parametrize("clamped", [True, False])
@pytest.mark.parametrize("scale", [(1, 2, 4), (2, 4)])
def test_the_product_is_of_integers_with_a_scale_for_each_channel(
    scale: tuple[int, ...], clamped: bool, einsum: bool, tmp_path: Path
) -> None:
    onnx.save(model(scale, clamped=clamped, einsum=einsum), tmp_path / "model.onnx")
    result = compile_model(tmp_path / "model.onnx", qat=True, output=tmp_path / "out")
    assert (result.coverage.share, result.islands) == (1.0, ())
    assert result.verification is not None
    assert result.verification.passed


@pytest.mark.parametrize("scale", [(6, 2, 1), (6, 1, 4), (6, 2, 4)])
def test_blocks_and_elements_are_refused(scale: tuple[int, ...], tmp_path: Path) -> None:
    onnx.save(model(scale, clamped=True, einsum=True), tmp_path / "model.onnx")
    with pytest.raises(CompileError, match="block-wise quantization"):
        compile_model(tmp_path / "model.onnx", qat=True, output=tmp_path / "out")

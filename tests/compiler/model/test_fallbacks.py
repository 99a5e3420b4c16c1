"""Operators of PyTorch itself are refused by name, with the way out that fits; whatever their attributes look like."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from qatc.compiler.diagnostics import CompileError
from qatc.compiler.model.fallbacks import refuse_fallbacks
from qatc.compiler.model_io import load


def model(nodes: list[onnx.NodeProto], *domains: str) -> onnx.ModelProto:
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in ("x", "y")]
    imports = [helper.make_opsetid("", 9), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(helper.make_graph(nodes, "g", ports[:1], ports[1:]), opset_imports=imports)


def aten(operator: str, source: str, target: str) -> onnx.NodeProto:
    return helper.make_node(
        "ATen", [source, "number"], [target], name=target, domain="org.pytorch.aten", operator=operator
    )


def number() -> onnx.NodeProto:
    """PyTorch writes the numbers that its operators take as constants that are no tensors."""
    return helper.make_node("Constant", [], ["number"], value=7)


def caffe2() -> onnx.ModelProto:
    """A converted model of PyTorch 1.9: its fills have no input, which the check of nodes would stumble over."""
    domain = "org.pytorch._caffe2"
    nodes = [
        helper.make_node("Int8GivenTensorFill", [], ["w"], domain=domain, Y_scale=0.1, Y_zero_point=0, shape=[4]),
        helper.make_node("Int8Quantize", ["x"], ["q"], domain=domain, Y_scale=0.1, Y_zero_point=128),
        helper.make_node("Int8Add", ["q", "w"], ["s"], domain=domain, Y_scale=0.1, Y_zero_point=128),
        helper.make_node("Int8Dequantize", ["s"], ["y"], domain=domain),
    ]
    return model(nodes, domain)


def refused(proto: onnx.ModelProto, folder: Path) -> CompileError:
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(CompileError) as caught:
        load(path)
    return caught.value


def test_caffe2s_operators_are_refused_as_a_converted_model(tmp_path: Path) -> None:
    (found,) = refused(caffe2(), tmp_path).diagnostics
    assert found.code == "QAT106"
    assert found.message.endswith(": 1 Int8GivenTensorFill, 1 Int8Quantize, 1 Int8Add, 1 Int8Dequantize")
    assert "from before convert" in (found.hint or "")


def test_a_fallback_is_named_by_what_it_calls(tmp_path: Path) -> None:
    nodes = [number(), aten("conv2d_relu", "x", "c"), aten("dequantize", "c", "y")]
    (found,) = refused(model(nodes, "org.pytorch.aten"), tmp_path).diagnostics
    assert (found.code, found.node) == ("QAT106", "c")
    assert found.message.endswith(": 1 conv2d_relu, 1 dequantize")
    assert "from before convert" in (found.hint or "")


def test_a_fallback_in_a_float_part_is_no_converted_model(tmp_path: Path) -> None:
    (found,) = refused(model([number(), aten("grid_sampler", "x", "y")], "org.pytorch.aten"), tmp_path).diagnostics
    assert found.message.endswith(": 1 grid_sampler")
    assert "newer opset_version" in (found.hint or "")


def test_a_domain_that_is_only_imported_is_no_reason() -> None:
    refuse_fallbacks(model([helper.make_node("Relu", ["x"], ["y"])], "org.pytorch.aten", "prim"))

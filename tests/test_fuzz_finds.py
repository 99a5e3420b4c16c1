"""What fuzzing found, one test a find: each of these once ended in a bare exception."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

from qatc import CompileError, compile_model
from tests.hostile_models import const, sound, tensor

CORPUS = Path(__file__).resolve().parent / "corpus"
KERAS = CORPUS / "tfmot-op13__smallcnn" / "model.onnx"


def codes(model: onnx.ModelProto, folder: Path, *, verify: bool = False) -> set[str]:
    """The codes of the errors that a compile ends in, none where it does not."""
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    try:
        compile_model(path, output=folder / "out", verify=verify)
    except CompileError as error:
        return {d.code for d in error.diagnostics if d.severity.value == "error"}
    return set()


def nan_weight() -> onnx.ModelProto:
    """A weight that TensorFlow quantizes on its own, and NaN in it."""
    model = onnx.load(KERAS)
    for each in model.graph.initializer:
        if len(each.dims) == 4 and each.data_type == TensorProto.FLOAT:
            each.CopyFrom(numpy_helper.from_array(np.full(tuple(each.dims), np.nan, np.float32), each.name))
    return model


def empty_weight() -> onnx.ModelProto:
    """A weight without filters that TensorFlow would quantize on its own."""
    model = onnx.load(KERAS)
    weight = next(each for each in model.graph.initializer if len(each.dims) == 4)
    weight.CopyFrom(numpy_helper.from_array(np.zeros((0, *weight.dims[1:]), np.float32), weight.name))
    return model


def damaged_metadata() -> onnx.ModelProto:
    """Metadata that are no text, where PyTorch's exporter writes down the call that a node was."""
    model = sound()
    next(n for n in model.graph.node if n.op_type == "QuantizeLinear").metadata_props.add(
        key="pkg.torch.onnx.fx_node", value="call"
    )
    return onnx.ModelProto.FromString(model.SerializeToString().replace(b"call", b"\xff\xfe\xfd\xfc"))


def nameless_operand() -> onnx.ModelProto:
    return sound(nodes=[helper.make_node("Concat", ["", "q2"], ["y"], axis=1)], result="y")


def sizes_that_do_not_fit() -> onnx.ModelProto:
    """The product of [1, 4] and [4, 4], reshaped to seven elements: only running it shows."""
    shape = const("d", [7], np.int64)
    return sound(nodes=[helper.make_node("Reshape", ["q2", "d"], ["y"])], result="y", extra=[shape])


def flat_kernel() -> onnx.ModelProto:
    """A convolution whose weight is a vector."""
    model = sound(weight_scale=np.asarray(0.05, np.float32), weight_zero=np.asarray(0, np.int8))
    tensor(model, "w").CopyFrom(const("w", [1, 2, 3, 4], np.int8))
    model.graph.node[3].op_type = "Conv"
    return model


def strides_of_another_rank() -> onnx.ModelProto:
    """A convolution of images with the strides of a signal."""
    model = sound(weight_scale=np.asarray(0.05, np.float32), weight_zero=np.asarray(0, np.int8))
    tensor(model, "w").CopyFrom(const("w", np.ones((2, 1, 2, 2)), np.int8))
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 4, 4]))
    model.graph.node[3].op_type = "Conv"
    model.graph.node[3].attribute.append(helper.make_attribute("strides", [1]))
    return model


def integer_output_per_channel() -> onnx.ModelProto:
    """A graph output that is the quantized weight of a float."""
    model = sound()
    tensor(model, "w").CopyFrom(const("w", np.arange(16).reshape(4, 4) / 100))
    node = helper.make_node("QuantizeLinear", ["w", "ws", "wz"], ["wq"], "weight quantizer", axis=1)
    model.graph.node.insert(2, node)
    model.graph.node[3].input[0] = "wq"
    model.graph.output.append(helper.make_tensor_value_info("wq", TensorProto.INT8, None))
    return model


def clipped_scalar() -> onnx.ModelProto:
    """A number between Clip and DequantizeLinear with a scale for each of four channels: the Clip hides its shape."""
    model = sound(axis=0)
    tensor(model, "w").CopyFrom(const("w", 3, np.int8))
    model.graph.initializer.extend([const("low", -127, np.int8), const("high", 127, np.int8)])
    model.graph.node[2].input[0] = "clipped"
    model.graph.node.insert(2, helper.make_node("Clip", ["w", "low", "high"], ["clipped"], "clip"))
    return model


def cast_to(kind: int) -> Callable[[], onnx.ModelProto]:
    """A zero point that is cast to a type that does not exist."""

    def make() -> onnx.ModelProto:
        model = sound(zero=np.int32(128))
        model.graph.node.insert(0, helper.make_node("Cast", ["z"], ["z8"], "cast", to=kind))
        for node in model.graph.node[1:]:
            node.input[:] = ["z8" if name == "z" else name for name in node.input]
        return model

    return make


def no_factors() -> onnx.ModelProto:
    """A quantizer in arithmetic whose factors are arrays without elements."""
    steps = [("Mul", "up"), ("Round", ""), ("Clip", ""), ("Mul", "down")]
    nodes: list[onnx.NodeProto] = []
    last = "q2"
    for number, (op, operand) in enumerate(steps):
        inputs = [last, "low", "high"] if op == "Clip" else [last, operand] if operand else [last]
        last = f"t{number}"
        nodes.append(helper.make_node(op, inputs, [last], last))
    none = [TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[0]) for name in ("up", "down")]
    return sound(nodes=nodes, result=last, extra=[*none, const("low", -128), const("high", 127)])


def no_channels() -> onnx.ModelProto:
    """A convolution with no output channels."""
    model = sound(weight_scale=np.asarray(0.05, np.float32), weight_zero=np.asarray(0, np.int8))
    tensor(model, "w").CopyFrom(const("w", np.ones((0, 1, 2, 2)), np.int8))
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 4, 4]))
    model.graph.node[3].op_type = "Conv"
    return model


def axis_of_two() -> onnx.ModelProto:
    """A list as the axis of a quantizer whose operator ONNX does not define."""
    model = sound()
    node = next(n for n in model.graph.node if n.op_type == "QuantizeLinear")
    node.domain = "com.microsoft"
    del node.attribute[:]
    node.attribute.append(helper.make_attribute("axis", [1, 2]))
    model.opset_import.add(domain="com.microsoft", version=1)
    return model


def groups_that_do_not_fit(count: int = 99, op: str = "Conv") -> onnx.ModelProto:
    """Convolutions in 99 groups: without verification, the samples are the first to run them."""
    model = onnx.load(KERAS)
    for node in model.graph.node:
        if node.op_type == "Conv":
            kept = [a for a in node.attribute if a.name != "group"]
            del node.attribute[:]
            node.attribute.extend([*kept, helper.make_attribute("group", count)])
            node.op_type = op
    return model


def quantized_text() -> onnx.ModelProto:
    """A QuantizeLinear of a text, in a file with integer operators."""
    return sound(
        nodes=[
            helper.make_node("Constant", [], ["text"], value_string="text"),
            helper.make_node("QuantizeLinear", ["text", "s", "z"], ["tq"]),
            helper.make_node("DequantizeLinear", ["tq", "s", "z"], ["t"]),
            helper.make_node("MatMulInteger", ["q1", "w"], ["sums"]),
            helper.make_node("Cast", ["sums"], ["reals"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["reals", "t"], ["y"]),
        ],
        result="y",
    )


def nan_on_a_huge_scale() -> onnx.ModelProto:
    """A constant of NaN on a grid whose integers may stand for infinity."""
    huge = [numpy_helper.from_array(np.float32(3e38), "huge"), const("none", np.full((4,), np.nan), np.float32)]
    nodes = [
        helper.make_node("QuantizeLinear", ["none", "huge", "z"], ["nq"]),
        helper.make_node("DequantizeLinear", ["nq", "huge", "z"], ["n"]),
        helper.make_node("Add", ["q2", "n"], ["y"]),
    ]
    return sound(nodes=nodes, result="y", extra=huge)


def another_batch_norm() -> onnx.ModelProto:
    """An operator of another domain that is called as one of ONNX's, and has other inputs."""
    text = """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]> g (float[1,2,4,4] x) => (float[1,2,4,4] y)
        <float s = {0.5}, uint8 z = {128}> {
        a = QuantizeLinear(x, s, z) b = DequantizeLinear(a, s, z) c = com.microsoft.BatchNormalization(b)
        d = QuantizeLinear(c, s, z) y = DequantizeLinear(d, s, z) }"""
    return onnx.parser.parse_model(text)


def nothing_behind_a_clip() -> onnx.ModelProto:
    """Integers of a weight without elements, clipped, and scales for channels, one of which is dead."""
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[1,2] x) => (float[N,M] y)
        <int8[0] w = {}, int8[2] low = {-8, -8}, int8 high = {7}, float[2] s = {0.0, 0.5}, int8[2] z = {0, 0}>
        { c = Clip(w, low, high) d = DequantizeLinear<axis = 0>(c, s, z) y = MatMul(x, d) }"""
    return onnx.parser.parse_model(text)


def scalar_cut_for_channels() -> onnx.ModelProto:
    """QONNX's Trunc of a constant without dimensions by the scales of two channels."""
    numbers = {"u": 0.125, "s": 0.0625, "z": 0.0, "b": 8.0, "four": 4.0, "sc": [0.0625, 0.03125], "zc": [0.0, 0.0]}
    domain = "qonnx.custom_op.general"
    nodes = [
        helper.make_node(
            "Quant", ["u", "s", "z", "b"], ["a"], domain=domain, signed=1, narrow=0, rounding_mode="ROUND"
        ),
        helper.make_node("Add", ["a", "a"], ["d"]),
        helper.make_node("Trunc", ["d", "sc", "zc", "b", "four"], ["y"], domain=domain, rounding_mode="FLOOR"),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", 1, [1, 2])], [helper.make_tensor_value_info("y", 1, [1, 2])],
        [const(name, np.asarray(value), np.float32) for name, value in numbers.items()],
    )  # fmt: skip
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(domain, 1)], ir_version=8
    )


FINDS: dict[str, tuple[Callable[[], onnx.ModelProto], set[str]]] = {
    "a weight of NaN, seeds 41, 66, 595": (nan_weight, {"QAT209"}),
    "a weight without elements, seeds 83265, 83380": (empty_weight, {"QAT004", "QAT401", "QAT403"}),
    "NaN on a huge scale, seed 779690": (nan_on_a_huge_scale, {"QAT104"}),
    "metadata that are no text, seed 79631": (damaged_metadata, {"compiles"}),
    "an operand without a name, seed 575": (nameless_operand, {"QAT004"}),
    "a model that does not run, seed 71": (sizes_that_do_not_fit, {"QAT004", "QAT401", "QAT403"}),
    "a vector as a kernel, seed 620": (flat_kernel, {"QAT004", "QAT401", "QAT403"}),
    "strides of another rank, seed 100049": (strides_of_another_rank, {"QAT004", "QAT401", "QAT403"}),
    "a scalar behind a Clip, seeds 3573, 6792, 9690": (clipped_scalar, {"QAT204"}),
    "a Cast to nothing, seed 6809": (cast_to(0), {"QAT205"}),
    "a Cast to a negative type, seed 9753": (cast_to(-5), {"QAT205"}),
    "factors without elements, seed 7136": (no_factors, {"QAT004", "QAT401", "QAT403"}),
    "groups that do not fit, seeds 68, 187": (groups_that_do_not_fit, {"QAT004", "QAT401", "QAT403"}),
    "no groups, seed 102699 from exports of many tools": (
        lambda: groups_that_do_not_fit(0, "ConvTranspose"),
        {"QAT004", "QAT401", "QAT403"},
    ),
    "transposed groups that do not fit": (
        lambda: groups_that_do_not_fit(99, "ConvTranspose"),
        {"QAT004", "QAT401", "QAT403"},
    ),
    "a scalar cut for two channels, seed 226095": (scalar_cut_for_channels, {"QAT204"}),
    "an operator called BatchNormalization, seed 757302": (another_batch_norm, {"QAT401"}),
    "an empty weight behind a Clip, seed 741519": (nothing_behind_a_clip, {"QAT204"}),
    "a list as an axis, seed 100044 from exports of many tools": (axis_of_two, {"QAT004"}),
    "a kernel without channels, seed 9590": (no_channels, {"compiles", "QAT401"}),
    "a text that is quantized, seed 20599 of old exports": (quantized_text, {"QAT302"}),
    "integers per channel as an output, seeds 629, 1263": (integer_output_per_channel, {"compiles", "QAT302"}),
}


@pytest.mark.parametrize("name", FINDS)
def test_a_find_is_a_coded_error(tmp_path: Path, name: str) -> None:
    make, allowed = FINDS[name]
    found = codes(make(), tmp_path)
    assert (found or {"compiles"}) <= allowed
    assert (tmp_path / "out").exists() == (not found)


def test_infinite_weights_in_blocks() -> None:
    """Seed 3271."""
    from qatc.compiler.quant import QuantParams
    from qatc.frontends import pytorch

    steps = pytorch._steps(np.asarray([[np.inf, 1.0]], np.float32), QuantParams.per_tensor(0.5, 0, "int8"))  # pyright: ignore[reportPrivateUsage]
    assert steps == pytorch._FEW_STEPS + 1  # pyright: ignore[reportPrivateUsage]

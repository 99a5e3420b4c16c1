"""Models that grow in one direction, as a stranger would make them: what is quadratic anywhere shows in one of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import helper

from tests.hostile_models import FLOAT, const, ints, sound

node = helper.make_node
SHAPES: dict[str, Callable[[int], onnx.ModelProto]] = {}


def shape(make: Callable[[int], onnx.ModelProto]) -> Callable[[int], onnx.ModelProto]:
    SHAPES[make.__name__] = make
    return make


def rounded(tensor: str, number: object, scale: str = "s") -> list[onnx.NodeProto]:
    """`tensor` on the grid of the activations, as r<number>."""
    return [
        node("QuantizeLinear", [tensor, scale, "z"], [f"rq{number}"]),
        node("DequantizeLinear", [f"rq{number}", scale, "z"], [f"r{number}"]),
    ]


@shape
def readers_of_one_tensor(count: int) -> onnx.ModelProto:
    return sound(nodes=[node("Neg", ["q2"], [f"t{i}"]) for i in range(count)], result="t1")


@shape
def graph_outputs(count: int) -> onnx.ModelProto:
    model = sound(nodes=[node("Relu", ["q2"], [f"t{i}"]) for i in range(count)], result="t0")
    model.graph.output.extend(helper.make_tensor_value_info(f"t{i}", FLOAT, None) for i in range(1, count))
    return model


@shape
def operands_of_one_node(count: int) -> onnx.ModelProto:
    branches = [node("Relu", ["q2"], [f"t{i}"]) for i in range(count)]
    return sound(nodes=[*branches, node("Sum", [f"t{i}" for i in range(count)], ["y"])], result="y")


@shape
def dequantizers_of_one_tensor(count: int) -> onnx.ModelProto:
    made = [node("DequantizeLinear", ["qm", "s", "z"], [f"dd{i}"]) for i in range(count)]
    return sound(nodes=[*made, *(node("Neg", [f"dd{i}"], [f"t{i}"]) for i in range(count))], result="t1")


@shape
def grids_of_one_tensor(count: int) -> onnx.ModelProto:
    nodes = [each for i in range(count) for each in (*rounded("m", i, f"s{i}"), node("Neg", [f"r{i}"], [f"n{i}"]))]
    return sound(nodes=nodes, result="n1", extra=[const(f"s{i}", 0.02 + i * 1e-6) for i in range(count)])


def chained(op: str, count: int, start: str, *operands: str, hint: str = "t") -> list[onnx.NodeProto]:
    names = [start, *(f"{hint}{i}" for i in range(count))]
    return [node(op, [names[i], *operands], [names[i + 1]], "same") for i in range(count)]


@shape
def clamps_in_a_row(count: int) -> onnx.ModelProto:
    return sound(nodes=chained("Relu", count, "q2"), result=f"t{count - 1}")


@shape
def names_that_are_tried(count: int) -> onnx.ModelProto:
    """The names that a search for an unused one would try."""
    return sound(nodes=chained("Relu", count, "q2", hint="q2_"), result=f"q2_{count - 1}")


@shape
def movements_in_a_row(count: int) -> onnx.ModelProto:
    extra = [ints("d", 1, 4)]
    return sound(nodes=chained("Reshape", count, "q2", "d"), result=f"t{count - 1}", extra=extra)


@shape
def factors_in_a_row(count: int) -> onnx.ModelProto:
    nodes = [*chained("Mul", count, "m", "k"), *rounded(f"t{count - 1}", 0)]
    return sound(nodes=nodes, result="r0", extra=[const("k", 1.0001)])


@shape
def factors_of_columns_in_a_row(count: int) -> onnx.ModelProto:
    nodes = [*chained("Mul", count, "q2", "k"), *rounded(f"t{count - 1}", 0)]
    return sound(nodes=nodes, result="r0", extra=[const("k", [1.0001, 0.9999, 1.0, 1.0])])


@shape
def factors_behind_a_curve(count: int) -> onnx.ModelProto:
    nodes = [node("Softmax", ["q2"], ["c"]), *chained("Mul", count, "c", "k"), *rounded(f"t{count - 1}", 0)]
    return sound(nodes=nodes, result="r0", extra=[const("k", 1.0001)])


@shape
def constants_in_a_row(count: int) -> onnx.ModelProto:
    nodes = [*chained("Add", count, "k", "k"), node("Add", ["q2", f"t{count - 1}"], ["y"])]
    return sound(nodes=nodes, result="y", extra=[const("k", [0.1] * 4)])


@shape
def roundings_in_a_row(count: int) -> onnx.ModelProto:
    nodes = [each for i in range(count) for each in rounded("q2" if i == 0 else f"r{i - 1}", i)]
    return sound(nodes=nodes, result=f"r{count - 1}")


@shape
def products_in_a_row(count: int) -> onnx.ModelProto:
    nodes: list[onnx.NodeProto] = []
    for i in range(count):
        nodes += [node("MatMul", ["q2" if i == 0 else f"r{i - 1}", "dw"], [f"p{i}"]), *rounded(f"p{i}", i)]
    return sound(nodes=nodes, result=f"r{count - 1}")


@shape
def sums_with_one_tensor(count: int) -> onnx.ModelProto:
    nodes: list[onnx.NodeProto] = []
    for i in range(count):
        nodes += [node("Add", ["q2" if i == 0 else f"r{i - 1}", "q2"], [f"p{i}"]), *rounded(f"p{i}", i)]
    return sound(nodes=nodes, result=f"r{count - 1}")


@shape
def branches(count: int) -> onnx.ModelProto:
    port = helper.make_tensor_value_info("t", FLOAT, None)
    inner = helper.make_graph([node("Identity", ["q2"], ["t"])], "inner", [], [port])
    nodes: list[onnx.NodeProto] = []
    for i in range(count):
        nodes.append(node("If", ["c"], [f"u{i}"], then_branch=inner, else_branch=inner))
        nodes.append(node("Add", ["q2" if i == 0 else f"v{i - 1}", f"u{i}"], [f"v{i}"]))
    return sound(nodes=nodes, result=f"v{count - 1}", extra=[const("c", True, np.bool_)])


@shape
def captures_of_one_branch(count: int) -> onnx.ModelProto:
    port = helper.make_tensor_value_info("t", FLOAT, None)
    inner = helper.make_graph([node("Sum", [f"r{i}" for i in range(count)], ["t"])], "inner", [], [port])
    read = [node("Relu", ["q2"], [f"r{i}"]) for i in range(count)]
    choice = node("If", ["c"], ["u"], then_branch=inner, else_branch=inner)
    return sound(nodes=[*read, choice], result="u", extra=[const("c", True, np.bool_)])

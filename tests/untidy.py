"""Neutral rewrites: what exporters, converters and people leave in a file, and what changes none of its numbers.

Each is a function of a model, which it changes in place, and of a random generator that says where.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import numpy as np
import onnx
from onnx import helper, numpy_helper

Rewrite = Callable[[onnx.ModelProto, np.random.Generator], None]


def set_nodes(model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto]) -> None:
    kept = [copy.deepcopy(node) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)


def makers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in model.graph.node for name in node.output}


def outputs(model: onnx.ModelProto) -> set[str]:
    return {port.name for port in model.graph.output}


def identities(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Identity nodes in front of operands, constants among them."""
    nodes: list[onnx.NodeProto] = []
    for place, node in enumerate(model.graph.node):
        for index, name in enumerate(node.input):
            if name and rng.random() < 0.3:
                node.input[index] = f"same_{place}_{index}"
                nodes.append(helper.make_node("Identity", [name], [node.input[index]]))
        nodes.append(node)
    set_nodes(model, nodes)


def inert(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Dropout at inference, and casts of float32 to float32."""
    floats = {
        v.name for v in onnx.shape_inference.infer_shapes(model).graph.value_info if v.type.tensor_type.elem_type == 1
    }
    nodes: list[onnx.NodeProto] = []
    for place, node in enumerate(model.graph.node):
        nodes.append(node)
        if rng.random() < 0.3 and node.output[0] in floats and len(node.output) == 1:
            result, node.output[0] = node.output[0], f"inert_{place}"
            kind = {"op_type": "Cast", "to": 1} if rng.random() < 0.5 else {"op_type": "Dropout"}
            nodes.append(helper.make_node(**kind, inputs=[node.output[0]], outputs=[result]))
    set_nodes(model, nodes)


def constants_in_nodes(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """No initializers: each is a Constant node."""
    made = [helper.make_node("Constant", [], [i.name], value=i) for i in model.graph.initializer]
    del model.graph.initializer[:]
    set_nodes(model, [*made, *model.graph.node])


def a_constant_for_each_reader(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """No two operands share an initializer, as where each quantizer has a scale of its own."""
    constants = {i.name: i for i in model.graph.initializer}
    for place, node in enumerate(model.graph.node):
        for index, name in enumerate(node.input):
            if name in constants:
                own = model.graph.initializer.add()
                own.CopyFrom(constants[name])
                own.name = node.input[index] = f"{name}_{place}_{index}"


def a_pair_for_each_reader(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Every reader of a rounded tensor has a DequantizeLinear of its own, or both nodes."""
    made, first, nodes = makers(model), set[str](), list[onnx.NodeProto]()
    for place, node in enumerate(model.graph.node):
        for index, name in enumerate(node.input):
            pair = [made.get(name)]
            if pair[0] is None or pair[0].op_type != "DequantizeLinear":
                continue
            if name not in first:
                first.add(name)
                continue
            before = made.get(pair[0].input[0])
            if before is not None and before.op_type == "QuantizeLinear" and rng.random() < 0.5:
                pair.insert(0, before)
            chain = [copy.deepcopy(n) for n in pair if n is not None]
            for step, one in enumerate(chain):
                one.output[0] = one.name = f"own_{place}_{index}_{step}"
                if step:
                    one.input[0] = chain[0].output[0]
            node.input[index] = chain[-1].output[0]
            nodes += chain
        nodes.append(node)
    set_nodes(model, nodes)


def rounded_twice(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """What is rounded is rounded onto the same grid again."""
    made, nodes = makers(model), list[onnx.NodeProto]()
    for node in model.graph.node:
        nodes.append(node)
        q = made.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if q is not None and q.op_type == "QuantizeLinear" and rng.random() < 0.5:
            again, back, result = copy.deepcopy(q), copy.deepcopy(node), node.output[0]
            node.output[0] = again.input[0] = f"{result}_once"
            again.output[0] = back.input[0] = again.name = f"{result}_again"
            back.name = f"{result}_back"
            nodes += [again, back]
    set_nodes(model, nodes)


def padded_before(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Convolutions whose padding is a node of its own."""
    nodes: list[onnx.NodeProto] = []
    for place, node in enumerate(model.graph.node):
        pads = next((a for a in node.attribute if a.name == "pads" and any(a.ints)), None)
        if node.op_type == "Conv" and pads is not None:
            rank = len(pads.ints) // 2
            widths = np.asarray([0, 0, *pads.ints[:rank], 0, 0, *pads.ints[rank:]], np.int64)
            model.graph.initializer.append(numpy_helper.from_array(widths, f"widths_{place}"))
            nodes.append(helper.make_node("Pad", [node.input[0], f"widths_{place}"], [f"padded_{place}"]))
            node.input[0] = f"padded_{place}"
            node.attribute.remove(pads)
        nodes.append(node)
    set_nodes(model, nodes)


def clamps_as_choices(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Relu as the larger of x and zero, Clip as the smaller of that and the upper end."""
    nodes: list[onnx.NodeProto] = []
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0), "nothing"))
    kinds = {i.name: i.data_type for i in model.graph.initializer}
    for place, node in enumerate(model.graph.node):
        if node.op_type == "Relu":
            nodes.append(helper.make_node("Max", [node.input[0], "nothing"], node.output))
        elif node.op_type == "Clip" and len(node.input) == 3 and all(kinds.get(n) == 1 for n in node.input[1:]):
            nodes.append(helper.make_node("Max", [node.input[1], node.input[0]], [f"larger_{place}"]))
            nodes.append(helper.make_node("Min", [f"larger_{place}", node.input[2]], node.output))
        else:
            nodes.append(node)
    set_nodes(model, nodes)


def products_taken_apart(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Gemm as MatMul and Add, its weight behind a Transpose."""
    nodes: list[onnx.NodeProto] = []
    for place, node in enumerate(model.graph.node):
        given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type != "Gemm" or given.get("transA") or given.get("alpha", 1) != 1 or given.get("beta", 1) != 1:
            nodes.append(node)
            continue
        x, weight, *bias = node.input
        if given.get("transB"):
            nodes.append(helper.make_node("Transpose", [weight], [f"turned_{place}"], perm=[1, 0]))
            weight = f"turned_{place}"
        product = f"product_{place}" if bias else node.output[0]
        nodes.append(helper.make_node("MatMul", [x, weight], [product]))
        if bias:
            nodes.append(helper.make_node("Add", [bias[0], product], node.output))
    set_nodes(model, nodes)


def other_order(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Another order in which each node follows what it reads."""
    waiting, ordered = list(model.graph.node), list[onnx.NodeProto]()
    missing = {name for node in waiting for name in node.output}
    while waiting:
        ready = [n for n in waiting if missing.isdisjoint(n.input)]
        node = ready[int(rng.integers(len(ready)))]
        waiting.remove(node)
        missing -= set(node.output)
        ordered.append(node)
    set_nodes(model, ordered)


def nameless(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Nodes without names, and tensors with other ones."""
    ports = {p.name for p in (*model.graph.input, *model.graph.output)}
    names: dict[str, str] = {}

    def renamed(name: str) -> str:
        return name if not name or name in ports else names.setdefault(name, f"t{len(names)}")

    for node in model.graph.node:
        node.name = ""
        node.input[:] = map(renamed, node.input)
        node.output[:] = map(renamed, node.output)
    for tensor in model.graph.initializer:
        tensor.name = renamed(tensor.name)
    del model.graph.value_info[:]


def a_function(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Neighbors in a function of the model's own."""
    nodes = list(model.graph.node)
    start = int(rng.integers(len(nodes)))
    body = nodes[start : start + int(rng.integers(2, 9))]
    made = {name for node in body for name in node.output}
    read = list(dict.fromkeys(n for node in body for n in node.input if n and n not in made))
    later = outputs(model) | {n for node in nodes[start + len(body) :] for n in node.input}
    results = [name for node in body for name in node.output if name in later]
    block = helper.make_function("own", "Block", read, results, [copy.deepcopy(n) for n in body], model.opset_import)
    model.functions.append(block)
    model.opset_import.append(helper.make_opsetid("own", 1))
    call = helper.make_node("Block", read, results, domain="own")
    set_nodes(model, [*nodes[:start], call, *nodes[start + len(body) :]])


def newer_opset(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """The same operators of a later opset."""
    (opset,) = (o.version for o in model.opset_import)
    model.CopyFrom(onnx.version_converter.convert_version(model, opset + int(rng.integers(1, 5))))


REWRITES: dict[str, Rewrite] = {
    rewrite.__name__: rewrite
    for rewrite in (
        identities,
        inert,
        constants_in_nodes,
        a_constant_for_each_reader,
        a_pair_for_each_reader,
        rounded_twice,
        padded_before,
        clamps_as_choices,
        products_taken_apart,
        other_order,
        nameless,
        a_function,
        newer_opset,
    )
}

"""Sequences of tensors that are split and taken apart at once, or that a Loop collects to be put together.

    SplitToSequence(x, [a, b]) -> {SequenceAt(0) -> y, SequenceAt(1) -> z}        Split(x, [a, b]) -> y, z

    SequenceEmpty -> Loop {SequenceInsert(s, row) -> s} -> ConcatFromSequence     Loop {Concat(s, row) -> s}

PyTorch's exporters write `chunk` and `split` in the first way, EmbeddingBag in the second. A sequence that is read in
another way stays, and is refused by its name.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx

from qatc.compiler.graph import Dim, Node, QuantGraph, Tensor, Variable, shape_of, value_of
from qatc.compiler.model.links import is_op
from qatc.compiler.model.protos import all_nodes, domain_of
from qatc.compiler.quant import number_of


def split_sequences(graph: QuantGraph) -> None:
    """Replace each SplitToSequence whose parts are read at constant places; the others stay as they are."""
    gone: list[Node] = []
    for node in graph.of("SplitToSequence"):
        if node.optional(1) is not None:
            gone += _taken_apart(graph, node)
    graph.remove(gone)
    if gone:
        graph.sort()


def _taken_apart(graph: QuantGraph, node: Node) -> list[Node]:
    sizes = _sizes(node)
    readers = list(dict.fromkeys(graph.consumers(node.outputs[0])))
    if sizes is None or graph.is_output(node.outputs[0]):
        return []
    places: list[int] = []
    for reader in readers:
        place = number_of(value_of(reader.inputs[1])) if is_op(reader, "SequenceAt") else None
        if place is None or not -len(sizes) <= place < len(sizes):
            return []
        places.append(int(place) % len(sizes))
    kind = node.inputs[0].dtype
    parts = [
        graph.variable(f"{node.outputs[0].name}_{i}", kind if isinstance(kind, int) else None)
        for i in range(len(sizes))
    ]
    for reader, place in zip(readers, places, strict=True):
        graph.replace(reader.outputs[0], parts[place])
    listed = graph.constant(f"{node.outputs[0].name}_sizes", np.asarray(sizes, np.int64))
    graph.insert("Split", [node.inputs[0], listed], list[Variable](parts), attrs={"axis": int(node.attr("axis", 0))})
    return [*readers, node]


def _sizes(node: Node) -> list[int] | None:
    """The sizes of the parts: as they are listed, or of one size but for the last; None where they are not known."""
    value, shape = value_of(node.inputs[1]), shape_of(node.inputs[0])
    axis = int(node.attr("axis", 0))
    if value is None or value.dtype.kind not in "iu" or value.ndim > 1:
        return None
    if value.ndim:
        return [int(v) for v in value]
    if shape is None or not -len(shape) <= axis < len(shape):
        return None
    size, step = shape[axis], int(value)
    if not isinstance(size, int) or step <= 0:
        return None
    return [min(step, size - at) for at in range(0, size, step)]


def collected_sequences(graph: QuantGraph) -> None:
    """Let Loops put together what they collect in a sequence, where the file says which sizes the whole has."""
    for whole in [n for n in graph.of("ConcatFromSequence") if not int(n.attr("new_axis", 0))]:
        loop, shape = graph.producer(whole.inputs[0]), _shape_behind(graph, whole.outputs[0])
        if is_op(loop, "Loop") and shape is not None and graph.only_consumer(whole.inputs[0]) is whole:
            _grow(graph, loop, whole, shape)


def _shape_behind(graph: QuantGraph, tensor: Tensor) -> tuple[Dim, ...] | None:
    """The shape of a tensor, as it is declared for it or for what it is cast to."""
    reader = graph.only_consumer(tensor)
    while shape_of(tensor) is None and is_op(reader, "Cast", "Identity"):
        tensor = reader.outputs[0]
        reader = graph.only_consumer(tensor)
    return shape_of(tensor)


def _grow(graph: QuantGraph, loop: Node, whole: Node, shape: tuple[Dim, ...]) -> None:
    place = next(i for i, t in enumerate(loop.outputs) if t is whole.inputs[0])
    axis = int(whole.attr("axis", 0)) % max(1, len(shape))
    dims: list[Dim] = [0 if i == axis else d for i, d in enumerate(shape)]
    sizes = [d for d in dims if isinstance(d, int)]
    start = graph.producer(loop.inputs[2 + place]) if 2 + place < len(loop.inputs) else None
    if not shape or len(sizes) != len(shape) or not is_op(start, "SequenceEmpty"):
        return
    kind = int(start.attr("dtype", onnx.TensorProto.FLOAT))
    body = _growing(loop.attrs["body"], place, axis, kind)
    if body is None:
        return
    loop.attrs["body"] = body
    nothing = np.zeros(sizes, onnx.helper.tensor_dtype_to_np_dtype(kind))
    loop.inputs[2 + place] = graph.constant(f"{loop.inputs[2 + place].name}_empty", nothing)
    result = whole.outputs[0]
    graph.remove([whole])
    loop.outputs[place] = result  # the file's own tensor of that name is a sequence
    graph.clean()


def _growing(old: onnx.GraphProto, place: int, axis: int, kind: int) -> onnx.GraphProto | None:
    """The body of a Loop whose state at `place`, a sequence with one tensor more each time, is a growing tensor."""
    body = onnx.GraphProto()
    body.CopyFrom(old)
    if place >= min(len(body.input) - 2, len(body.output) - 1):
        return None
    before, after = body.input[2 + place], body.output[1 + place]
    insert = next((n for n in body.node if n.op_type == "SequenceInsert" and after.name in n.output), None)
    if insert is None or domain_of(insert.domain) or insert.input[0] != before.name or any(insert.input[2:]):
        return None
    read = Counter(name for n in all_nodes(body.node) for name in n.input) + Counter(o.name for o in body.output)
    if read[before.name] != 1 or read[after.name] != 1:
        return None
    insert.op_type, insert.input[:] = "Concat", insert.input[:2]
    insert.attribute.append(onnx.helper.make_attribute("axis", axis))
    for info in (before, after):
        info.CopyFrom(onnx.helper.make_tensor_value_info(info.name, kind, None))
    kept = [v for v in body.value_info if v.name != after.name]
    del body.value_info[:]
    body.value_info.extend(kept)
    return body

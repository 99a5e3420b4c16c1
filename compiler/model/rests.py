"""The size that a Reshape leaves open, where open sizes of what it reads cancel.

    Reshape([n,8,4,4], [n,8,-1])          [n,8,16]
    Reshape([n,8,16], [-1,8,4,4])         [n,8,4,4]

ONNX's shape inference counts elements with numbers alone, so that one open batch opens every `flatten(2)`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import onnx

from qatc.compiler.model.protos import domain_of

_Sizes = tuple[int | str, ...]


def rests_of_reshapes(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """The results of Reshapes in a graph that inference has seen, with the sizes that it could not tell."""
    kinds = {v.name: v.type.tensor_type for v in (*graph.input, *graph.value_info, *graph.output)}
    shapes = {name: sizes for name, kind in kinds.items() if (sizes := _sizes(kind)) is not None}
    found: dict[str, int | str] = {}
    told: list[onnx.ValueInfoProto] = []
    declared = {v.name for v in graph.output}  # the file's own word
    for node in graph.node:
        ends = [*node.input[:1], *node.output]
        if node.op_type != "Reshape" or domain_of(node.domain) or not shapes.keys() >= {*ends} or len(ends) != 2:
            continue
        given, made = ([found.get(d, d) if isinstance(d, str) else d for d in shapes[name]] for name in ends)
        rest = _rest(given, made)
        if rest is None:
            continue
        open_size, size = rest
        found[open_size] = size
        dims = [size if d == open_size else d for d in made]
        if node.output[0] not in declared:
            told.append(onnx.helper.make_tensor_value_info(node.output[0], kinds[node.output[0]].elem_type, dims))
    return told


def _sizes(kind: onnx.TypeProto.Tensor) -> _Sizes | None:
    """The sizes of a tensor: numbers and names; None where one has neither."""
    dims = [d.dim_value if d.HasField("dim_value") else d.dim_param for d in kind.shape.dim]
    return tuple(dims) if kind.HasField("shape") and all(d != "" for d in dims) else None


def _rest(given: Sequence[int | str], made: Sequence[int | str]) -> tuple[str, int | str] | None:
    """The one open size of what is made that what is given does not have, and what it must be."""
    before, after = _names(given), _names(made)
    left, missing = before - after, after - before
    counts = [math.prod(d for d in sizes if isinstance(d, int)) for sizes in (given, made)]
    if missing.total() != 1 or left.total() > 1 or any(isinstance(d, int) and d < 1 for d in (*given, *made)):
        return None
    (name,) = missing
    if name in before:
        return None
    if left:
        return (name, next(iter(left))) if counts[0] == counts[1] else None
    return None if counts[0] % counts[1] else (name, counts[0] // counts[1])


def _names(sizes: Sequence[int | str]) -> Counter[str]:
    return Counter(d for d in sizes if isinstance(d, str))

"""A deep model cut into parts that are run one after the other.

ONNX Runtime's time for a session grows faster than the model (1.32, unoptimized Q/DQ: 9,000 nodes 0.3 s, 72,000 8 s,
with every tensor as an output 15 s). Without optimizations it runs node by node, so that the results are the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import onnx

from qatc.compiler.model.protos import all_bodies
from qatc.compiler.quant import Array

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_KINDS: Final = (*(f"{u}int{bits}" for u in ("", "u") for bits in (8, 16, 32, 64)), "float16", "bool", "string")
_HELD: Final = frozenset(f"tensor({kind})" for kind in (*_KINDS, "float", "double"))  # as ONNX Runtime calls types


@dataclass
class Part:
    """Some nodes of a model.

    Attributes:
        nodes: each after those that it reads.
        constants: which of the model's they need.
        sparse: which of its sparse ones.
        reads: the model's inputs and results of parts before that they need.
        makes: which of their results later parts, or the caller, need.
        session: what runs it, once it is open.
    """

    nodes: list[onnx.NodeProto]
    constants: list[onnx.TensorProto] = field(default_factory=list[onnx.TensorProto])
    sparse: list[onnx.SparseTensorProto] = field(default_factory=list[onnx.SparseTensorProto])
    reads: list[str] = field(default_factory=list[str])
    makes: list[str] = field(default_factory=list[str])
    session: InferenceSession | None = None

    def check_results(self) -> None:
        """TypeError where NumPy does not hold what the session makes: floats of 8 bits come as plain bytes."""
        odd = [port for port in self.session.get_outputs() if port.type not in _HELD] if self.session else []
        if odd:
            raise TypeError(f"{odd[0].name} is a {odd[0].type}")

    def model(self, whole: onnx.ModelProto, values: Mapping[str, Array]) -> onnx.ModelProto:
        """The part as a model of its own; `values` has what other parts made for it."""
        inputs, outputs = ({port.name: port for port in ports} for ports in (whole.graph.input, whole.graph.output))
        part = onnx.ModelProto(ir_version=whole.ir_version, opset_import=whole.opset_import)
        part.graph.name = whole.graph.name or "graph"
        part.graph.node.extend(self.nodes)
        part.graph.initializer.extend(self.constants)
        part.graph.sparse_initializer.extend(self.sparse)
        part.graph.input.extend(inputs.get(name) or _port(name, values[name]) for name in self.reads)
        part.graph.output.extend(outputs.get(name) or onnx.ValueInfoProto(name=name) for name in self.makes)
        return part


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy whose outputs are `names` and which has only the nodes, inputs, and constants that they need."""
    (part,) = cut(model.graph, names, len(model.graph.node))
    return part.model(model, {})


def cut(graph: onnx.GraphProto, wanted: Sequence[str], size: int) -> list[Part]:
    """Parts of at most `size` nodes that make the tensors `wanted`; nodes that none of them needs are left out."""
    nodes = _ordered(graph, wanted)
    parts = [Part(nodes[i : i + size]) for i in range(0, len(nodes), max(1, size))] or [Part([])]
    inputs = {port.name for port in graph.input}
    home = {name: index for index, part in enumerate(parts) for node in part.nodes for name in node.output if name}
    read = [dict.fromkeys(name for node in part.nodes for name in _reads(node)) for part in parts]
    makes: dict[str, None] = {}
    for index, part in enumerate(parts):
        for name in read[index]:
            if home.get(name, index) < index:
                makes[name] = None
                part.reads.append(name)
            elif name in inputs:
                part.reads.append(name)
    for name in dict.fromkeys([*makes, *wanted]):
        parts[home.get(name, -1)].makes.append(name)  # a constant may be wanted as well
    constants = {tensor.name: tensor for tensor in graph.initializer}
    sparse = {tensor.values.name: tensor for tensor in graph.sparse_initializer}
    for part, names in zip(parts, read, strict=True):
        names.update(dict.fromkeys(part.makes))
        part.constants = [constants[name] for name in names if name in constants]
        part.sparse = [sparse[name] for name in names if name in sparse]
    return parts


def _reads(node: onnx.NodeProto) -> Iterable[str]:
    """What the node or its subgraphs read (names of the subgraphs' own tensors among them do no harm)."""
    yield from node.input
    for graph in all_bodies([node]):
        yield from (o.name for o in graph.output)
        for inner in graph.node:
            yield from inner.input


def _ordered(graph: onnx.GraphProto, wanted: Iterable[str]) -> list[onnx.NodeProto]:
    """The nodes that `wanted` need, each after those that it reads."""
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    waiting = [makers[name] for name in wanted if name in makers][::-1]
    ordered: list[onnx.NodeProto] = []
    begun: set[int] = set()
    while waiting:
        index = waiting.pop()
        if index < 0:
            ordered.append(graph.node[~index])
        elif index not in begun:
            begun.add(index)
            waiting.append(~index)
            waiting += [makers[name] for name in _reads(graph.node[index]) if name in makers][::-1]
    return ordered


def _port(name: str, value: Array) -> onnx.ValueInfoProto:
    kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
    return onnx.helper.make_tensor_value_info(name, kind, [None] * value.ndim)

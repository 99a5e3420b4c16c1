"""Reading an untrusted ONNX file into a QuantGraph, and writing one back.

Nothing in the file is executed. Every size is checked before memory is taken, external data is memory-mapped and must
be a regular file of the model's own folder, and no step recurses on the input's depth.
"""

from __future__ import annotations

import stat
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, TensorProto

from qatc.compiler.budget import active
from qatc.compiler.damaged import reason
from qatc.compiler.diagnostics import CompileError, Diagnostics, fail
from qatc.compiler.graph import Constant, Dim, Node, QuantGraph, Tensor, Variable, is_constant, value_of
from qatc.compiler.model.fallbacks import refuse_fallbacks
from qatc.compiler.model.inlining import inline
from qatc.compiler.model.links import CAPTURES, captures_of, label_of
from qatc.compiler.model.node_check import NodeChecker, NodeRecord
from qatc.compiler.model.protos import all_bodies, body_depth, captured_names, damaged_text, opsets_of, tensors_of
from qatc.compiler.model.tensors import MAX_RANK, TensorError, TensorReader, shape_text
from qatc.compiler.quant import Array

_CHECKPOINT: Final = "load it in PyTorch and export the model: torch.onnx.export, or export of qatc.frontends.torch_qat"
_OTHER_FORMATS: Final = (  # where a file says what it is, how, what that is, what to do
    (0, b"PK\x03\x04", "a zip archive, as PyTorch's checkpoints are", _CHECKPOINT),
    (0, b"\x80\x02", "a Python pickle, as old checkpoints of PyTorch are", _CHECKPOINT),
    (0, b"\x89HDF\r\n", "an HDF5 file", "name it .h5, as Keras does; the extra tensorflow reads it"),
    (4, b"TFL3", "a TFLite file", "name it .tflite; the extra tensorflow reads it"),
    (0, b"\x1f\x8b", "compressed", "unpack it first"),
    (0, b"version https://git-lfs", "a pointer of Git LFS", "fetch the file itself: git lfs pull"),
    (0, b"<", "a web page or another text", "download the file itself"),
)
_STREAM: Final = "give the path of an .onnx file; standard input and pipes are not read"
_MAX_FILE: Final = 2**31 - 1  # what protobuf can parse
_MAX_FINDINGS: Final = 20  # of a broken file; more would tell nothing more
_OLDEST_OPSET: Final = 7
_PER_CHANNEL: Final = 13  # the opset in which QuantizeLinear and DequantizeLinear know channels
_NO_SCALE: Final = "it has no scale: tf2onnx --tflite leaves those per channel out before opset 13; export with that"
_QDQ: Final = frozenset({"QuantizeLinear", "DequantizeLinear"})
_CALL: Final = "pkg.torch.onnx.fx_node"  # metadata of PyTorch's dynamo exporter: the call that a node is made of
_INT: Final = frozenset({int})
_DEEPEST: Final = 10  # levels of subgraphs: each takes ONNX Runtime up to 1.23 twice the time
_NEWEST_OPSET: Final = 26


@dataclass(frozen=True)
class Source:
    """The file a graph came from."""

    path: Path
    size: int
    ops: Mapping[str, int]
    opsets: Mapping[str, int]
    producer: str
    external: tuple[Path, ...] = ()  # files with external data


def load(path: Path) -> tuple[QuantGraph, Source]:
    """Read an ONNX file.

    Raises:
        CompileError: QAT001 to QAT006 for whatever is wrong with the file, all that was found at once; QAT106 for
            operators of PyTorch itself.
    """
    model, size = read_proto(path)
    damaged = damaged_text(model)
    if damaged is not None:
        message = f"a name in the file is not UTF-8: {damaged!r:.100}"
        raise fail("QAT004", message, hint="the file is damaged; copy it again")
    if model.functions:
        model = inline(model)
    refuse_fallbacks(model)
    opsets = _opsets(model)
    reader = _Reader(model, path.parent, opsets)
    graph = reader.read()
    ops = Counter(f"{n.domain}::{n.op}" if n.domain else n.op for n in reader.records)
    version = model.producer_version.removesuffix(" None")  # tf2onnx, where it does not know its own revision
    producer = f"{model.producer_name} {version}".strip()
    external = tuple(sorted(path.parent / location for location in reader.values.maps))
    size += sum(data.size for data in reader.values.maps.values())
    return graph, Source(path, size, dict(ops.most_common()), opsets, producer, external)


def read_proto(path: Path) -> tuple[onnx.ModelProto, int]:
    """The parsed file and its size in bytes; external data is not read."""
    try:
        info = path.stat()
    except OSError as error:
        hint = _STREAM if str(path) == "-" else "check the path and its permissions"
        raise fail("QAT002", f"cannot read {path}: {reason(error)}", hint=hint) from error
    if not stat.S_ISREG(info.st_mode):
        raise fail("QAT002", f"{path} is not a regular file", hint=_STREAM)
    if info.st_size > _MAX_FILE:
        raise fail(
            "QAT001",
            f"{path} has {info.st_size:,} bytes; protobuf files end at 2 GiB",
            hint="save the model with external data: onnx.save(model, path, save_as_external_data=True)",
        )
    active().ask(2 * info.st_size, f"reading {path.name}", "save large weights as external data; those are mapped")
    model = onnx.ModelProto()
    content = b""
    try:
        with path.open("rb") as stream:  # no more than was asked for, should it have grown meanwhile
            content = stream.read(info.st_size)
        model.ParseFromString(content)
    except OSError as error:
        raise fail("QAT002", f"cannot read {path}: {reason(error)}", hint="check its permissions") from error
    except (DecodeError, ValueError) as error:
        raise _no_model(
            path,
            content,
            f"is not an ONNX file, or it is cut off ({info.st_size:,} bytes): {error}",
            "export it again; onnx.checker.check_model(path) tells whether a file is whole",
        ) from error
    if not model.HasField("graph") or not model.graph.node:
        raise _no_model(path, content, "holds no ONNX graph", "give the path of an exported .onnx file")
    return model, info.st_size


def _no_model(path: Path, content: bytes, message: str, hint: str) -> CompileError:
    for at, sign, what, remedy in _OTHER_FORMATS:
        if content.startswith(sign, at):
            message, hint = f"is {what}, not an ONNX file", remedy
    return fail("QAT001", f"{path} {message}", hint=hint)


def _opsets(model: onnx.ModelProto) -> dict[str, int]:
    found = opsets_of(model)
    found.setdefault("", 1)
    if not _OLDEST_OPSET <= found[""] <= _NEWEST_OPSET:
        raise fail(
            "QAT006",
            f"the model is written in opset {found['']}; qatc reads {_OLDEST_OPSET} to {_NEWEST_OPSET}",
            hint="export it again with opset_version=17, or convert it with onnx.version_converter",
        )
    return found


def _captures(record: NodeRecord) -> list[str]:
    return captured_names(record.proto) if record.has_bodies else []


def _stated(record: NodeRecord) -> list[str]:
    """A node's inputs without those that are left out at the end: a LayerNormalization whose bias is "" ends ONNX
    Runtime's process (1.32). The ones of operators with bodies count as states.
    """
    count = len(record.inputs)
    while count and not record.inputs[count - 1] and not record.has_bodies:
        count -= 1
    return record.inputs[:count]


class _Tensors(dict[str, Tensor]):
    """Tensors by name, made when they are asked for; each one that a node leaves out is another one."""

    def __missing__(self, name: str) -> Variable:
        tensor = Variable(name)
        if name:
            self[name] = tensor
        return tensor


class _Reader:
    """Builds the graph of one ModelProto; errors are collected and raised together."""

    def __init__(self, model: onnx.ModelProto, folder: Path, opsets: Mapping[str, int]) -> None:
        self.model, self.opsets = model, opsets
        self.found = Diagnostics(most=_MAX_FINDINGS)
        self.tensors = _Tensors()
        self.values = TensorReader(folder)
        self.checker = NodeChecker(opsets)
        self.records: list[NodeRecord] = []

    def read(self) -> QuantGraph:
        graph = self.model.graph
        for tensor in graph.initializer:
            self._initializer(tensor)
        self._check_repeated()
        if graph.sparse_initializer:
            self.found.error("QAT302", "sparse initializers are not supported", hint="export dense weights")
        constants = set(self.tensors)
        inputs = [self._input(i) for i in graph.input if i.name not in constants]
        for info in graph.value_info:
            if info.name not in self.tensors:
                self.tensors[info.name] = _typed(info)
        self.found.check()
        self.records = [NodeRecord.of(n) for n in graph.node]
        self._check_nodes(self.records)
        self._check_bodies()
        self.found.check()
        nodes = [self._node(n) for n in self._sorted(self.records, {i.name for i in inputs})]
        outputs = self._outputs()
        self.found.check()
        others = {n.domain: 1 for n in nodes if n.domain} | {d: v for d, v in self.opsets.items() if d}
        read = QuantGraph(nodes, inputs, outputs, name=graph.name, opset=self.opsets[""], domains=others)
        for note in graph.quantization_annotation:
            read.annotations[note.tensor_name] = {pair.key: pair.value for pair in note.quant_parameter_tensor_names}
        read.calls = self._calls()
        return read

    def _outputs(self) -> list[Tensor]:
        ports = self.model.graph.output
        given = {i.name for i in self.model.graph.input}
        outputs = [self._output(o, given) for o in ports]
        for name in (n for n, times in Counter(o.name for o in ports).items() if times > 1):
            hint = "give each a name of its own: an Identity behind the tensor makes another"
            self.found.error("QAT004", "two graph outputs have the same name", tensor=name, hint=hint)
        return outputs

    def _calls(self) -> dict[str, str]:
        """See `QuantGraph.calls`."""
        return {
            record.outputs[0]: str(pair.value)  # which is bytes where it is not UTF-8
            for record in self.records
            if record.op in _QDQ and record.outputs
            for pair in record.proto.metadata_props
            if pair.key == _CALL
        }

    def _initializer(self, proto: TensorProto) -> None:
        try:
            self.tensors[proto.name] = Constant(proto.name, self.values.array(proto))
        except TensorError as bad:
            self._refuse(bad, proto)

    def _refuse(self, bad: TensorError, proto: TensorProto | AttributeProto) -> None:
        self.found.error(bad.code, bad.message, tensor=proto.name or None, hint=bad.hint)

    def _check_repeated(self) -> None:
        """Initializers may come again (exporters do that), but not with other values."""
        first: dict[str, TensorProto] = {}
        for proto in self.model.graph.initializer if len(self.tensors) < len(self.model.graph.initializer) else ():
            if first.setdefault(proto.name, proto) != proto:
                self.found.error("QAT004", "two initializers of this name have different values", tensor=proto.name)

    def _check_nodes(self, records: Iterable[NodeRecord]) -> None:
        for record in records:
            for message in self.checker.findings(record):
                bare = record.op in _QDQ and len(record.inputs) < 2 and self.opsets[""] < _PER_CHANNEL
                hint = _NO_SCALE if bare else None
                self._broken(message, record, record.outputs[0] if record.outputs else "", hint)

    def _check_bodies(self) -> None:
        """The nodes in subgraphs are what they should be; the tensors, which ONNX Runtime reads by itself, hold what
        they say and nothing from outside.
        """
        holders = [record.proto for record in self.records if record.has_bodies]
        deep = body_depth(holders)
        if deep > _DEEPEST:
            hint = "export the model without conditions in conditions: trace it, or set what they depend on"
            self.found.error("QAT005", f"{deep} subgraphs lie in each other, more than {_DEEPEST}", hint=hint)
        for graph in all_bodies(holders):
            records = [NodeRecord.of(n) for n in graph.node]
            self._check_nodes(records)
            for record in records:
                record.proto.input[:] = _stated(record)
            held = [t for node in graph.node for a in node.attribute for t in tensors_of(a)]
            for proto in (*graph.initializer, *held):
                try:
                    self.values.inside(proto)
                except TensorError as bad:
                    self._refuse(bad, proto)
            if graph.sparse_initializer:
                self.found.error("QAT302", "sparse initializers are not supported", hint="export dense weights")

    def _input(self, info: onnx.ValueInfoProto) -> Variable:
        kind = info.type.tensor_type
        if not info.type.HasField("tensor_type") and info.type.WhichOneof("value"):
            self.found.error(
                "QAT302",
                f"{info.type.WhichOneof('value')} is not a tensor",
                tensor=info.name,
                hint="qatc compiles graphs of plain tensors",
            )
        if len(kind.shape.dim) > MAX_RANK:
            self.found.error("QAT005", f"the input has {len(kind.shape.dim):,} dimensions", tensor=info.name)
        if any(d.dim_value < -1 for d in kind.shape.dim):
            stated = shape_text([d.dim_value if d.HasField("dim_value") else d.dim_param for d in kind.shape.dim])
            self.found.error("QAT004", f"the shape {stated} has a negative dimension", tensor=info.name)
        if info.name in self.tensors:
            self.found.error("QAT004", "two graph inputs have the same name", tensor=info.name)
        self.tensors[info.name] = tensor = _typed(info)
        return tensor

    def _output(self, info: onnx.ValueInfoProto, given: set[str]) -> Tensor:
        tensor = self.tensors.get(info.name)
        if tensor is None or not (tensor.inputs or is_constant(tensor) or info.name in given):
            self.found.error("QAT004", "this graph output is never made", tensor=info.name)
            return Variable(info.name)
        if isinstance(tensor, Variable) and info.type.tensor_type.elem_type:
            tensor.dtype = info.type.tensor_type.elem_type
            if info.type.tensor_type.HasField("shape"):
                tensor.shape = list(dims_of(info.type.tensor_type))
        return tensor

    def _sorted(self, nodes: list[NodeRecord], inputs: set[str]) -> list[NodeRecord]:
        """The nodes in topological order; what is read but never made, made twice, or cyclic is an error."""
        taken = inputs | {name for name, tensor in self.tensors.items() if is_constant(tensor)}
        reads = [[n for n in node.inputs if n] + _captures(node) for node in nodes]
        if _is_in_order(nodes, reads, taken):
            return nodes
        maker: dict[str, int] = {}
        for index, node in enumerate(nodes):
            for name in node.outputs:
                if name and (name in maker or name in taken):
                    self._broken("this tensor is made a second time", node, name)
                maker[name] = index
        for node, names in zip(nodes, reads, strict=True):
            for name in names:
                if name not in maker and name not in taken:
                    self._broken("the node reads a tensor that nothing makes", node, name)
        self.found.check()
        return self._reordered(nodes, reads, maker)

    def _broken(self, message: str, node: NodeRecord, tensor: str, hint: str | None = None) -> None:
        self.found.error("QAT004", message, node=label_of(node.proto), tensor=tensor or None, hint=hint)

    def _reordered(self, nodes: list[NodeRecord], reads: list[list[str]], maker: Mapping[str, int]) -> list[NodeRecord]:
        readers: dict[int, list[int]] = {}
        waiting = [0] * len(nodes)
        for index, names in enumerate(reads):
            for source in {maker[n] for n in names if n in maker}:
                readers.setdefault(source, []).append(index)
                waiting[index] += 1
        ready = deque(i for i, count in enumerate(waiting) if not count)
        order: list[int] = []
        while ready:
            index = ready.popleft()
            order.append(index)
            for reader in readers.get(index, ()):
                waiting[reader] -= 1
                if not waiting[reader]:
                    ready.append(reader)
        if len(order) != len(nodes):
            stuck = next(i for i, count in enumerate(waiting) if count)
            raise fail(
                "QAT004",
                "the graph has a cycle",
                node=label_of(nodes[stuck].proto),
                hint="a model must be acyclic; export it again",
            )
        return [nodes[i] for i in order]

    def _node(self, record: NodeRecord) -> Node:
        tensors, captures = self.tensors, _captures(record)
        stated = record.inputs if record.inputs[-1:] != [""] else _stated(record)
        inputs = [tensors[name] for name in stated + captures]
        outputs = [tensors[name] for name in record.outputs]
        attrs = {a.name: self._attribute(a, record.proto) for a in record.attributes}
        if captures:
            attrs[CAPTURES] = captures
        return Node(record.op, record.proto.name, attrs, inputs, outputs, record.domain or None)

    def _attribute(self, proto: AttributeProto, node: onnx.NodeProto) -> Any:
        if proto.type == AttributeProto.TENSOR:
            try:
                return self.values.array(proto.t)
            except TensorError as bad:
                self._refuse(bad, proto)
                return None
        try:
            for tensor in tensors_of(proto):
                self.values.inside(tensor)
            return onnx.helper.get_attribute_value(proto)
        except TensorError as bad:
            self._refuse(bad, proto)
            return None
        except ValueError as error:  # a type that ONNX does not have, or a function's parameter outside a function
            self.found.error("QAT004", f"the attribute {proto.name} has no value: {error}", node=label_of(node))
            return None


def _is_in_order(nodes: Sequence[NodeRecord], reads: Sequence[Sequence[str]], given: set[str]) -> bool:
    """Whether everything is made once, and before it is read: so exporters write their nodes."""
    start = given | {""}  # which stands for what a node leaves out
    made = set(start)
    for node, names in zip(nodes, reads, strict=True):
        if not made.issuperset(names):
            return False
        made.update(node.outputs)
    return len(made) == len(start) + sum([len(node.outputs) - node.outputs.count("") for node in nodes])


def _typed(info: onnx.ValueInfoProto) -> Variable:
    """A tensor as the file declares it."""
    kind = info.type.tensor_type
    return Variable(info.name, kind.elem_type or None, list(dims_of(kind)) if kind.HasField("shape") else None)


def dims_of(kind: onnx.TypeProto.Tensor) -> tuple[Dim, ...]:
    """Dimensions of a declared type: integers, names, or None for nameless ones (some exporters write those as -1)."""
    return tuple([d.dim_value if d.dim_value > 0 else _odd_dim(d) for d in kind.shape.dim])


def _odd_dim(dim: onnx.TensorShapeProto.Dimension) -> Dim:
    """A dimension that is no positive number: zero, a name, or unknown."""
    if dim.HasField("dim_value"):
        return None if dim.dim_value else 0
    return dim.dim_param or None


# -- writing ------------------------------------------------------------------------------------------------------


def value_info(tensor: Tensor) -> onnx.ValueInfoProto:
    """The ValueInfoProto of a graph input or output."""
    value = value_of(tensor)
    if value is not None:
        return onnx.helper.make_tensor_value_info(
            tensor.name, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
        )
    kind = tensor.dtype if isinstance(tensor.dtype, int) else TensorProto.FLOAT
    return onnx.helper.make_tensor_value_info(tensor.name, kind, None if tensor.shape is None else list(tensor.shape))


def node_proto(node: Node) -> onnx.NodeProto:
    """The NodeProto of a node; names that its subgraphs capture are renamed with the tensors."""
    inputs = [t.name for t in node.inputs]
    captures = captures_of(node.attrs)
    outer = [inputs.pop() for _ in captures][::-1]
    proto = onnx.NodeProto(
        op_type=node.op, name=node.name, input=inputs, output=[t.name for t in node.outputs], domain=node.domain or ""
    )
    for key, value in sorted(node.attrs.items()):
        if not key.startswith("_") and value is not None:
            add_attribute(proto, key, value)
    renamed = {old: new for old, new in zip(captures, outer, strict=True) if old != new}
    if renamed:
        _rename_captures(proto, renamed)
    return proto


def add_attribute(node: onnx.NodeProto, key: str, value: Any) -> None:
    """Give a node an attribute; the common kinds without the helper's guessing, which costs more than all the rest."""
    add = node.attribute.add
    if isinstance(value, (bool, int)):
        add(name=key, type=AttributeProto.INT, i=value)
    elif isinstance(value, str):
        add(name=key, type=AttributeProto.STRING, s=value.encode())
    elif isinstance(value, (list, tuple)) and _INT.issuperset(map(type, cast("Sequence[object]", value))):
        add(name=key, type=AttributeProto.INTS, ints=cast("Sequence[int]", value))
    elif isinstance(value, np.ndarray):
        tensor = onnx.numpy_helper.from_array(np.asarray(cast("Array", value), order="C"))
        node.attribute.append(onnx.helper.make_attribute(key, tensor))
    else:
        node.attribute.append(onnx.helper.make_attribute(key, value.item() if isinstance(value, np.generic) else value))


def _rename_captures(node: onnx.NodeProto, renamed: Mapping[str, str]) -> None:
    for graph in all_bodies([node]):
        for inner in graph.node:
            inner.input[:] = [renamed.get(n, n) for n in inner.input]
        for output in graph.output:
            if output.name in renamed:
                graph.node.append(onnx.helper.make_node("Identity", [renamed[output.name]], [output.name]))

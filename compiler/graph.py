"""QuantGraph: a plain float ONNX graph plus {tensor name: QuantParams}.

onnx-graphsurgeon's Node, Variable and Constant are the links between producers and consumers
(`compiler/model/links.py`); loading, sorting and writing are ours (`compiler/model_io.py`), since graphsurgeon's
recurse on deep graphs and copy every weight.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import onnx

from qatc.compiler.diagnostics import Diagnostics
from qatc.compiler.model.links import Constant as Constant
from qatc.compiler.model.links import Dim as Dim
from qatc.compiler.model.links import Node as Node
from qatc.compiler.model.links import Tensor as Tensor
from qatc.compiler.model.links import Variable as Variable
from qatc.compiler.model.links import is_constant as is_constant
from qatc.compiler.model.links import label_of, relink, unlink
from qatc.compiler.model.links import rank_of as rank_of
from qatc.compiler.model.links import repeats_into as repeats_into
from qatc.compiler.model.links import shape_of as shape_of
from qatc.compiler.model.links import value_of as value_of
from qatc.compiler.model.names import Names
from qatc.compiler.model.protos import MICROSOFT
from qatc.compiler.model.views import View
from qatc.compiler.quant import Array, QuantParams, text_of
from qatc.compiler.storage import Storage

FAKE_QUANT = "FakeQuant"  # canonical node of the frontends: (x) -> y, attrs {"params": QuantParams}; gone after strip
REQUANTIZE = "Requantize"  # (x) -> y: y is x rounded onto y's own grid, where x is read in another way too
DOMAIN = "qatc"


class QuantGraph:
    """Nodes in topological order, their tensors, and what is known of the tensors' grids.

    Attributes:
        params: tensor name -> QuantParams. The producer computes in float, then the value is rounded onto this grid. A
            constant with params holds its integers (in `params.container`) as the value; floats are derived from them.
        origin: tensor name -> the tensor of the source file that holds the same values after rounding.
        shifted: tensor name -> a tensor of the source file, and by how much its values are larger after rounding: a
            grid without a whole zero point is one with, and an addition.
        turned: tensor name -> a tensor of the source file, and the view of it that has the same values after rounding.
        integer_ports: graph input or output name -> element type (TensorProto) that the source file reads or writes
            there in integers; once lowered, the deployed graph.
        declared: graph output name -> the shape that the source file states for it.
        annotations: tensor name -> what the file's quantization annotations say of it, by key.
        calls: name of what a Q or DQ makes -> the call that PyTorch's exporter made the node of, from its metadata.
        opset: the ai.onnx opset that the nodes are written in; `domains` the others. `body_opset` that of the file, in
            which the bodies of If, Loop and Scan stay.
        restated: in which ways the graph computes other numbers than the source file, in words; it is proved against
            itself then, not against the file.
        explains: whether `explain` keeps what it is told in `explanation` (the user asked with `--explain`).
    """

    def __init__(
        self,
        nodes: Iterable[Node],
        inputs: Sequence[Variable],
        outputs: Sequence[Tensor],
        *,
        name: str = "model",
        opset: int = 17,
        domains: Mapping[str, int] | None = None,
    ) -> None:
        self.name = name
        self.nodes: list[Node] = list(nodes)  # after `sort()` in topological order
        self.inputs = list(inputs)
        self._outputs = list(outputs)
        self._places = {id(tensor): place for place, tensor in enumerate(self._outputs)}
        self.opset = self.body_opset = opset
        self.domains: dict[str, int] = dict(domains or {})
        self.params: dict[str, QuantParams] = {}
        self.origin: dict[str, str] = {}
        self.shifted: dict[str, tuple[str, float]] = {}
        self.turned: dict[str, tuple[str, View]] = {}
        self.integer_ports: dict[str, int] = {}
        self.declared = {t.name: shape_of(t) for t in outputs}
        self.annotations: dict[str, dict[str, str]] = {}
        self.calls: dict[str, str] = {}
        self.restated: list[str] = []
        self.diagnostics = Diagnostics()
        self.storage = Storage()
        self.explains = False
        self.explanation: list[str] = []
        self.evidence: dict[str, Any] = {}
        self.sample_shapes: dict[str, tuple[int, ...]] = {}  # tensor name -> shape for one sample (see infer_shapes)
        self.source_ops = Counter([(n.op, n.domain or "") for n in self.nodes])  # of the file: dialects know theirs
        self.known = frozenset({t.name for t in self._appearances()})  # what the source file's viewer shows
        self._names = Names(self.known)

    # -- reading --------------------------------------------------------------------------------------------------
    @property
    def outputs(self) -> Sequence[Tensor]:
        """The graph's outputs; `replace` puts others in their place."""
        return self._outputs

    def of(self, *ops: str) -> list[Node]:
        """The nodes of these operators of ONNX's own, in order; the graph may change while they are gone through."""
        wanted = frozenset(ops)
        return [n for n in self.nodes if n.op in wanted and not n.domain]

    def producer(self, tensor: Tensor) -> Node | None:
        """The node that makes `tensor`, None for graph inputs and constants."""
        return tensor.inputs[0] if tensor.inputs else None  # type: ignore[return-value]  # `maker_of`, without a call

    def consumers(self, tensor: Tensor) -> list[Node]:
        """The nodes that read `tensor` (a node that reads it twice is listed twice)."""
        return list(tensor.outputs)  # type: ignore[arg-type]

    def is_output(self, tensor: Tensor) -> bool:
        """Whether `tensor` is a graph output."""
        return id(tensor) in self._places

    def only_consumer(self, tensor: Tensor) -> Node | None:
        """The one node that reads `tensor`, or None where several do, none does or it is a graph output."""
        readers = tensor.outputs
        return readers[0] if len(readers) == 1 and not self.is_output(tensor) else None  # type: ignore[return-value]

    def quant(self, tensor: Tensor) -> QuantParams | None:
        """The tensor's QuantParams, if it has any."""
        return self.params.get(tensor.name)

    def real(self, tensor: Tensor) -> Array | None:
        """The real value of a constant (float32 where it is quantized), None for others."""
        value = value_of(tensor)
        if value is None:
            return None
        params = self.params.get(tensor.name)
        return value if params is None else params.dequantize(value)

    def tensors(self) -> list[Tensor]:
        """Every tensor once: inputs, then by first appearance."""
        every = self._appearances()
        once = dict(zip(map(id, every), every, strict=True))
        return [tensor for tensor in once.values() if tensor.name]

    def made(self) -> list[Tensor]:
        """The graph's inputs and what its nodes make, in order; what a node leaves out has no name."""
        return [*self.inputs, *[tensor for node in self.nodes for tensor in node.outputs]]

    def constants(self) -> list[Constant]:
        """Every constant that is read or an output, once, by first appearance."""
        read = {id(t): t for node in self.nodes for t in node.inputs if isinstance(t, Constant)}
        read.update({id(t): t for t in self._outputs if isinstance(t, Constant)})
        return list(read.values())

    def _appearances(self) -> list[Tensor]:
        every: list[Tensor] = list(self.inputs)
        for node in self.nodes:
            every += node.inputs
            every += node.outputs
        return every + self._outputs

    def explain(self, step: str, text: str) -> None:
        """Keep a line of what a step did, or why it did not, where the user wants to know (`--explain`)."""
        if self.explains:
            self.explanation.append(f"{step}: {text}")

    # -- changing -------------------------------------------------------------------------------------------------
    def fresh(self, hint: str) -> str:
        """An unused tensor or node name that starts with `hint`."""
        return self._names.fresh(hint)

    def constant(self, hint: str, value: Array, params: QuantParams | None = None) -> Constant:
        """A new constant; with `params` the value is its integers."""
        tensor = Constant(self.fresh(hint), np.asarray(value))
        if params is not None:
            self.params[tensor.name] = params
        return tensor

    def variable(self, hint: str, dtype: int | None = None, shape: Sequence[Dim] | None = None) -> Variable:
        """A new tensor (dtype as TensorProto element type)."""
        return Variable(self.fresh(hint), dtype, None if shape is None else list(shape))

    def insert(
        self,
        op: str,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        *,
        hint: str = "",
        domain: str = "",
        attrs: Mapping[str, Any] | None = None,
    ) -> Node:
        """Append a new node; call `sort()` before the next pass that needs the order."""
        name = self.fresh(hint or op)
        node = Node(op, name, dict(attrs or {}), list(inputs), list(outputs), domain or None)
        self.nodes.append(node)
        return node

    def apply(
        self, op: str, inputs: Sequence[Tensor], hint: str, dtype: int | None = None,
        shape: Sequence[Dim] | None = None, *, name: str = "", attrs: Mapping[str, Any] | None = None,
    ) -> Variable:  # fmt: skip
        """The result of a new node (see `insert`): its name starts with `hint`, the node's with `name`."""
        result = self.variable(hint, dtype, shape)
        self.insert(op, inputs, [result], hint=name, attrs=attrs)
        return result

    def replace(self, old: Tensor, new: Tensor) -> None:
        """Let every consumer of `old`, and the graph's outputs, read `new`; an output keeps its name."""
        if old is new:
            return
        relink(old, new)
        if self.is_output(old):
            self._replace_output(old, new)

    def _replace_output(self, old: Tensor, new: Tensor) -> None:
        taken = isinstance(new, Constant) or self.is_output(new) or any(i is new for i in self.inputs)
        if taken:  # the name of an interface tensor cannot move onto another one
            self.detach_producer(old)
            self.insert("Identity", [new], [old], hint=f"{old.name}_copy")
            if new.name in self.params:
                self.params[old.name] = self.params[new.name]
            return
        maker, name = self.producer(new), old.name
        if maker is not None and not maker.name:
            maker.name = label_of(maker)  # by its result, as the file has it
        self.rename(old, self.fresh(f"{name}_raw"))
        self.rename(new, name)
        place = self._places[id(new)] = self._places.pop(id(old))
        self._outputs[place] = new

    def fix(self, tensor: Tensor, value: Array) -> None:
        """Let readers of a tensor read a constant of its name and grid; a graph output stays, and copies one."""
        if self.is_output(tensor):
            self.replace(tensor, self.constant(f"{tensor.name}_value", value, self.quant(tensor)))
        else:
            self.replace(tensor, Constant(tensor.name, value))

    def rename(self, tensor: Tensor, name: str) -> None:
        """Give a tensor another name; its parameters and origin go with it."""
        for table in (self.params, self.origin, self.shifted, self.turned):
            if tensor.name in table:
                table[name] = table.pop(tensor.name)  # type: ignore[assignment]
        tensor.name = name
        self._names.add(name)

    def detach_producer(self, tensor: Tensor) -> None:
        """Unlink `tensor` from the node that makes it (the node gets a dead output in its place)."""
        node = self.producer(tensor)
        if node is not None:
            index = next(i for i, t in enumerate(node.outputs) if t is tensor)
            node.outputs[index] = self.variable(f"{tensor.name}_dead")

    def remove(self, nodes: Iterable[Node]) -> None:
        """Take nodes out of the graph and unlink them; one linear sweep however many they are."""
        nodes = list(nodes)
        gone = {id(n) for n in nodes}
        if not gone:
            return
        unlink(nodes)
        self.nodes = [n for n in self.nodes if id(n) not in gone]

    def bypass(self, node: Node) -> None:
        """Let consumers of the node's first output read its first input instead; `remove()` the node afterwards."""
        self.replace(node.outputs[0], node.inputs[0])

    def clean(self) -> None:
        """Remove nodes whose results nobody reads, and what is said of tensors that are gone.

        The nodes must be in order: one that stands behind its reader would be taken for unread (see `insert`).
        """
        self.remove(self._dead())
        if not (self.params or self.origin):
            return
        names = {t.name for t in self._appearances()}
        for table in (self.params, self.origin, self.shifted, self.turned):
            for name in [n for n in table if n not in names]:
                del table[name]

    def _is_unread(self, node: Node) -> bool:
        return not any(tensor.outputs or self.is_output(tensor) for tensor in node.outputs)

    def _dead(self) -> list[Node]:
        """The nodes that nothing depends on: unread ones, and those that such alone read."""
        ends = [node for node in self.nodes if not (node.outputs and node.outputs[0].outputs)]
        if not any(map(self._is_unread, ends)):
            return []
        needed = {id(o) for o in self.outputs}
        dead: list[Node] = []
        for node in reversed(self.nodes):
            if needed.isdisjoint(map(id, node.outputs)):
                dead.append(node)
            else:
                needed.update(map(id, node.inputs))
        return dead

    def sort(self) -> None:
        """Order the nodes topologically (iterative, stable: a sorted graph stays as it is).

        Raises:
            ValueError: when the graph has a cycle.
        """
        order = {id(n): i for i, n in enumerate(self.nodes)}
        if self._is_sorted(order):
            return
        waiting = [sum(1 for t in n.inputs for p in t.inputs if id(p) in order) for n in self.nodes]
        ready = deque(i for i, count in enumerate(waiting) if not count)
        result: list[Node] = []
        while ready:
            node = self.nodes[ready.popleft()]
            result.append(node)
            for tensor in node.outputs:
                for reader in tensor.outputs:
                    index = order[id(reader)]
                    waiting[index] -= 1
                    if not waiting[index]:
                        ready.append(index)
        if len(result) != len(self.nodes):
            raise ValueError("the graph has a cycle")
        self.nodes = result

    def _is_sorted(self, order: Mapping[int, int]) -> bool:
        return all(order.get(id(p), -1) < i for i, n in enumerate(self.nodes) for t in n.inputs for p in t.inputs)

    # -- checking and showing -------------------------------------------------------------------------------------
    def verify(self, *, stripped: bool = True) -> None:
        """Check the invariants of the design; ValueError names the first breach (a bug of ours, never of the input)."""
        made: set[int] = {id(t) for t in self.inputs}
        names: dict[str, int] = {}
        for node in self.nodes:
            standard = node.domain in (None, "", MICROSOFT)
            if stripped and standard and node.op in ("QuantizeLinear", "DequantizeLinear", FAKE_QUANT):
                raise ValueError(f"{node.op} {node.name} is left after strip")
            for tensor in node.inputs:
                if tensor.name and not is_constant(tensor) and id(tensor) not in made:
                    raise ValueError(f"{node.op} {node.name} reads {tensor.name} before it is made")
            made.update(id(t) for t in node.outputs)
        for tensor in self.tensors():
            if names.setdefault(tensor.name, id(tensor)) != id(tensor):
                raise ValueError(f"two tensors are called {tensor.name}")
            self._verify_params(tensor)
        missing = [t.name for t in self.outputs if id(t) not in made and not is_constant(t)]
        if missing:
            raise ValueError(f"graph output {missing[0]} is never made")
        unknown = [n for n in self.params if n not in names]
        if unknown:
            raise ValueError(f"parameters for {unknown[0]}, which does not exist")

    def _verify_params(self, tensor: Tensor) -> None:
        params = self.params.get(tensor.name)
        value = value_of(tensor)
        if params is None or value is None:
            return
        if value.dtype != params.container:
            raise ValueError(f"constant {tensor.name} holds {value.dtype}, its parameters say {params.container}")
        params.check_shape(value.shape)
        if value.size and not params.qmin <= int(value.min()) <= int(value.max()) <= params.qmax:
            raise ValueError(f"constant {tensor.name} leaves [{params.qmin}, {params.qmax}]")

    def dump(self) -> str:
        """A stable text of the graph, one line a node, for before/after tests."""
        lines = [f"graph opset {self.opset}"]
        lines += [f"input {self._describe(t)}" for t in self.inputs]
        for node in self.nodes:
            attrs = " ".join(f"{k}={_show(v)}" for k, v in sorted(node.attrs.items()) if not k.startswith("_"))
            inputs = ", ".join(self._operand(t) for t in node.inputs)
            op = f"{node.domain}::{node.op}" if node.domain else node.op
            lines.append(
                f"{', '.join(self._describe(t) for t in node.outputs)} = {op}{f'[{attrs}]' if attrs else ''}({inputs})"
            )
        lines += [f"output {t.name}" for t in self.outputs]
        return "\n".join(lines) + "\n"

    def _describe(self, tensor: Tensor) -> str:
        params = self.params.get(tensor.name)
        return f"{tensor.name}<{params}>" if params else (tensor.name or "_")

    def _operand(self, tensor: Tensor) -> str:
        value = value_of(tensor)
        if value is None:
            return tensor.name or "_"
        if value.size == 1 and tensor.name not in self.params:
            return _show(value.reshape(-1)[0].item())
        return f"{self._describe(tensor)}:{value.dtype}{list(value.shape)}{text_of(value)}"


def _show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.9g}"
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(_show(v) for v in cast("Sequence[Any]", value)) + "]"
    if isinstance(value, np.ndarray):
        array = cast("Array", value)
        return f"{array.dtype}{list(array.shape)}"
    if isinstance(value, onnx.GraphProto):
        return f"graph({','.join(n.op_type for n in value.node)})"
    return str(value)


def elements(shape: Sequence[Dim] | None) -> int | None:
    """The number of elements of a fully known shape, else None."""
    if shape is None or any(not isinstance(d, int) for d in shape):
        return None
    return math.prod(d for d in shape if isinstance(d, int))

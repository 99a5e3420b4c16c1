"""Nodes and tensors as graphsurgeon links them, with what makes it quadratic or slow replaced.

Every node lists its tensors and every tensor its readers and its maker; graphsurgeon keeps both sides in step.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias, TypeGuard, cast

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.util.misc import SynchronizedList

from qatc.compiler.diagnostics import fail, printable
from qatc.compiler.quant import Array

Tensor: TypeAlias = "gs.Variable | gs.Constant"
Dim: TypeAlias = "int | str | None"


CAPTURES: Final = "_captures"  # names that a node's subgraphs read from outside; the tensors are its last inputs
_NUMBERS: Final = (int, float, np.number)
_SHOWN: Final = 60  # characters of a value that a message shows
# Lists' own methods change one side of a link alone; the caller sees to the other one.
_append = cast("Callable[[object, object], None]", list[Any].append)
_clear = cast("Callable[[object], None]", list[Any].clear)
_extend = cast("Callable[[object, Sequence[object]], None]", list[Any].extend)
_put = cast("Callable[[object, int | slice, object], None]", list[Any].__setitem__)


class Links(SynchronizedList):
    """The tensors of a node or the nodes of a tensor; a change here is made on the other side, in its list `side`."""

    def __init__(self, owner: object, side: str, initial: Sequence[Any] = ()) -> None:
        self.parent_obj, self.field_name = owner, side
        if initial:
            _extend(self, initial)
            for element in initial:
                _append(getattr(element, side), owner)


class Variable(gs.Variable):
    """A tensor whose value is known at run time alone; dtype as TensorProto element type."""

    __setattr__ = object.__setattr__  # graphsurgeon's own looks for lists at every assignment

    def __init__(self, name: str, dtype: int | None = None, shape: Sequence[Dim] | None = None) -> None:
        self.name, self.dtype, self.shape, self.type = name, dtype, shape, "tensor_type"
        self.inputs, self.outputs = Links(self, "outputs"), Links(self, "inputs")


class Constant(gs.Constant):
    """A tensor whose value is known."""

    __setattr__ = object.__setattr__

    def __init__(self, name: str, values: Array) -> None:
        self.name, self._values, self.data_location, self._export_dtype = name, values, None, None
        self.inputs, self.outputs = Links(self, "outputs"), Links(self, "inputs")


class Node(gs.Node):
    """An operator, compared by identity: graphsurgeon's deep comparison makes every list operation quadratic."""

    def __init__(
        self,
        op: str,
        name: str = "",
        attrs: dict[str, Any] | None = None,
        inputs: Sequence[Tensor] = (),
        outputs: Sequence[Tensor] = (),
        domain: str | None = None,
    ) -> None:
        plain = object.__setattr__  # graphsurgeon's own looks for lists at every assignment
        plain(self, "op", sys.intern(op))
        plain(self, "name", name)
        plain(self, "attrs", {} if attrs is None else attrs)
        plain(self, "domain", domain)
        plain(self, "inputs", Links(self, "outputs", inputs))
        plain(self, "outputs", Links(self, "inputs", outputs))

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def attr(self, name: str, default: Any = None) -> Any:
        """The attribute `name` as a Python value (strings decoded), or `default`.

        Raises:
            CompileError: QAT004, where there is a default and the value is of another kind. The loader knows the kinds
                of ONNX's own attributes alone.
        """
        value = self.attrs.get(name, default)
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if default is None or type(value) is type(default) is not list:  # nearly always
            return value
        if not _is_like(value, default):
            message = f"the attribute {name} of this {printable(self.op)} is {printable(repr(value)[:_SHOWN])}"
            raise fail("QAT004", f"{message}, where {_kind(default)} belongs", node=label_of(self))
        return value

    def optional(self, index: int) -> Tensor | None:
        """The optional input at `index`; None where it is left out: it has no name, or the list ends before it."""
        try:
            tensor = self.inputs[index]
        except IndexError:
            return None
        return tensor if tensor.name else None


def _is_like(value: object, default: object) -> bool:
    if isinstance(default, (list, tuple)):
        elements = cast("Sequence[object]", value) if isinstance(value, (list, tuple)) else (None,)
        return all(map(_is_finite, elements))
    if isinstance(default, int):
        return _is_finite(value)  # what reads it makes an int of it
    return isinstance(value, str if isinstance(default, str) else _NUMBERS)


def _is_finite(value: object) -> bool:
    return isinstance(value, _NUMBERS) and math.isfinite(cast("float", value))


def _kind(default: object) -> str:
    return "text" if isinstance(default, str) else "a list of numbers" if isinstance(default, list) else "a number"


def label_of(node: onnx.NodeProto | Node) -> str:
    """A node's name as a viewer shows it; nameless nodes by operator and first output."""
    if node.name:
        return node.name
    op = node.op_type if isinstance(node, onnx.NodeProto) else node.op
    outputs = list(node.output) if isinstance(node, onnx.NodeProto) else [t.name for t in node.outputs]
    return f"{op} -> {outputs[0] if outputs else '?'}"


def unlink(nodes: Iterable[Node]) -> None:
    """Take nodes off all their tensors, in time linear in those tensors' readers (one at a time it is quadratic)."""
    gone = {id(node): node for node in nodes}
    shared: dict[int, list[Any]] = {}
    for node in gone.values():
        for side in [tensor.outputs for tensor in node.inputs] + [tensor.inputs for tensor in node.outputs]:
            if len(side) == 1 and side[0] is node:  # nearly all of them
                _clear(side)
            elif side:
                shared[id(side)] = side
        _clear(node.inputs)
        _clear(node.outputs)
    for side in shared.values():
        _put(side, slice(None), [node for node in side if id(node) not in gone])


def relink(old: Tensor, new: Tensor) -> None:
    """Let every reader of `old` read `new`."""
    for node in dict.fromkeys(old.outputs):
        for index, tensor in enumerate(node.inputs):
            if tensor is old:
                _put(node.inputs, index, new)
                _append(new.outputs, node)
    _clear(old.outputs)


def maker_of(tensor: Tensor) -> Node | None:
    """The node that makes `tensor`, None for graph inputs and constants."""
    return cast("Node", tensor.inputs[0]) if tensor.inputs else None


def is_op(node: Node | None, *ops: str) -> TypeGuard[Node]:
    """Whether there is a node, and it is one of these operators of ONNX's own."""
    return node is not None and not node.domain and node.op in ops


def is_constant(tensor: Tensor) -> bool:
    """Whether the tensor's value is known."""
    return isinstance(tensor, gs.Constant)


def computed(node: Node) -> list[Tensor]:
    """The inputs of a node whose values are known at run time alone."""
    return [t for t in node.inputs if t.name and not isinstance(t, gs.Constant)]


def value_of(tensor: Tensor | None) -> Array | None:
    """The value of a constant tensor, None for others."""
    return tensor.values if isinstance(tensor, gs.Constant) else None


def shape_of(tensor: Tensor) -> tuple[Dim, ...] | None:
    """The shape (symbolic dimensions as strings, nameless ones None), or None where the rank is unknown."""
    stated = tensor.shape
    if stated is None:
        return None
    return tuple([d if type(d) is int else _dim(d) for d in stated])


def _dim(stated: int | str | np.integer[Any] | None) -> Dim:
    return (
        stated if isinstance(stated, str) and stated else int(stated) if isinstance(stated, (int, np.integer)) else None
    )


def repeats_into(part: Sequence[Dim] | None, whole: Sequence[Dim] | None) -> bool:
    """Whether what has the shape `part` surely only repeats itself to meet a tensor of the shape `whole`.

    Sizes of one name are one size.
    """
    if part is None or whole is None or len(part) > len(whole):
        return False
    return all(d == 1 or (d is not None and d == size) for d, size in zip(part[::-1], whole[::-1], strict=False))


def rank_of(tensor: Tensor) -> int | None:
    """The number of dimensions, None where unknown."""
    return None if tensor.shape is None else len(tensor.shape)


def captures_of(attrs: Mapping[str, Any]) -> list[str]:
    """The names that the subgraphs of a node with these attributes read from outside; its last inputs are these."""
    return cast("list[str]", attrs.get(CAPTURES, []))

"""Products that saturate on some processors, and their wide form: the same integers from products that never do.

The fast kernels multiply unsigned activations by signed weights. x86 without VNNI does so with an instruction that adds
two neighboring products in 16 bits: a0 * w0 + a1 * w1 saturates at -32768 and 32767. Which products are neighbors is
the kernel's affair, so a product is held to be safe only if no two of its terms can leave 16 bits together. Depthwise
convolutions have kernels of their own, which do not saturate.

In the wide form weights are unsigned: q + 128 with zero point z + 128, exactly the same real numbers. ONNX Runtime
makes those when it loads the model, so that the file holds every weight once. Activations that are signed become
unsigned in the same way, and results signed again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, numpy_helper

from qatc.compiler.integer import Clamped, IntegerGraph
from qatc.compiler.quant import Array
from qatc.compiler.storage import SPILL_AT, Storage, release

if TYPE_CHECKING:
    from qatc.backends.onnx.writer import Writer

_INT16: Final = (-32768, 32767)
_ANY: Final = np.asarray([-128, 127], np.int8)  # what an operand of run time may hold
_CHUNK: Final = 1 << 20  # weights looked at together
Range = tuple[int, int]


@dataclass(frozen=True)
class _Kernel:
    """Where a product's operands are among its inputs: left, right and their zero points, and the result's."""

    a: int
    b: int
    a_zero: int
    b_zero: int
    y_zero: int | None = None


_KERNELS: Final = {
    "QLinearConv": _Kernel(0, 3, 2, 5, 7),
    "QLinearMatMul": _Kernel(0, 3, 2, 5, 7),
    "QGemm": _Kernel(0, 3, 2, 5, 8),
    "MatMulIntegerToFloat": _Kernel(0, 1, 4, 5),
    "MatMulInteger": _Kernel(0, 1, 2, 3),
    "ConvInteger": _Kernel(0, 1, 2, 3),
}
# What only moves integers about, with the inputs that hold them.
_MOVES: Final = {
    "Concat": None, "Pad": (0, 2), "Slice": (0,), "Transpose": (0,), "Reshape": (0,), "Gather": (0,),
    "Squeeze": (0,), "Unsqueeze": (0,), "Flatten": (0,), "Identity": (0,), "MaxPool": (0,), "NhwcMaxPool": (0,),
    "SpaceToDepth": (0,),
}  # fmt: skip


def wide_form(
    w: Writer, nodes: Sequence[NodeProto], constants: Mapping[str, Array], *, stored: bool = False
) -> Wide | None:
    """The nodes in a form that is exact on every processor, None where they already are.

    With `stored` the form's constants are written by `w`; else ONNX Runtime makes them from those that are there.
    """
    marked = _saturating(w.graph, nodes, constants)
    if not marked:
        return None
    form = Wide(w, constants, stored=stored)
    for index, node in enumerate(nodes):
        if index in marked:
            form.product(node)
        else:
            form.nodes.append(node)
    return form


def signed_bytes(constants: Mapping[str, Array]) -> int:
    """How many bytes of int8 there are: what a wide form may have to hold once more."""
    return sum(value.nbytes for value in constants.values() if value.dtype == np.int8)


# -- which ------------------------------------------------------------------------------------------------------------
def _saturating(graph: IntegerGraph, nodes: Sequence[NodeProto], constants: Mapping[str, Array]) -> set[int]:
    """The places of the nodes whose neighboring products may leave 16 bits."""
    ranges = _ranges(graph)
    marked: set[int] = set()
    for index, node in enumerate(nodes):
        kernel = _KERNELS.get(node.op_type)
        if kernel is not None:
            if _may_saturate(node, kernel, ranges, constants):
                marked.add(index)
        elif node.op_type in _MOVES and node.output[0] not in ranges:
            moved = _moved_range(node, ranges, constants)
            if moved is not None:
                ranges[node.output[0]] = moved
    return marked


def _moved_range(node: NodeProto, ranges: Mapping[str, Range], constants: Mapping[str, Array]) -> Range | None:
    """The integers among those that a node moves; None where those of one operand are not known."""
    places = _MOVES[node.op_type]
    moved = [n for i, n in enumerate(node.input) if n and (places is None or i in places)]
    found = [r for n in moved if (r := _range(n, ranges, constants)) is not None]
    known = bool(found) and len(found) == len(moved)
    return (min(r[0] for r in found), max(r[1] for r in found)) if known else None


def _ranges(graph: IntegerGraph) -> dict[str, Range]:
    """The integers of every 8-bit tensor that an operator of the graph makes."""
    ranges: dict[str, Range] = {}
    for op in graph.ops:
        for name in op.outputs:
            params = graph.tensors[name].params if name else None
            if params is not None and params.container.itemsize == 1:
                ranges[name] = (op.lo, op.hi) if isinstance(op, Clamped) else (params.qmin, params.qmax)
    return ranges


def _range(name: str, ranges: Mapping[str, Range], constants: Mapping[str, Array]) -> Range | None:
    value = constants.get(name)
    if value is None or not value.size or value.dtype.kind not in "iu":
        return ranges.get(name)
    return int(value.min()), int(value.max())


def _may_saturate(
    node: NodeProto, kernel: _Kernel, ranges: Mapping[str, Range], constants: Mapping[str, Array]
) -> bool:
    zero = constants.get(node.input[kernel.b_zero]) if len(node.input) > kernel.b_zero else None
    weight = constants.get(node.input[kernel.b])
    kind = weight if weight is not None else zero
    if kind is not None and kind.dtype != np.int8:
        return False
    if weight is None and kind is None:
        return False
    if weight is not None and node.op_type == "QLinearConv" and _is_depthwise(node, weight):
        return False
    padding = constants[node.input[kernel.a_zero]]
    signed = padding.dtype == np.int8
    high = max(int(padding), ranges.get(node.input[kernel.a], (0, 127 if signed else 255))[1])
    largest = high + 128 if signed else high  # signed ones are made unsigned on the way in
    return any(
        2 * largest * int(part.max()) > _INT16[1] or 2 * largest * int(part.min()) < _INT16[0]
        for part in (_parts(weight) if weight is not None else [_ANY])
    )


def _is_depthwise(node: NodeProto, weight: Array) -> bool:
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    return groups > 1 and weight.shape[:2] == (groups, 1)


def _parts(weight: Array) -> list[Array]:
    """The weight in pieces: most that may saturate show it in the first."""
    if weight.size <= _CHUNK:
        return [weight] if weight.size else []
    rows = max(1, _CHUNK * len(weight) // weight.size)
    return [weight[start : start + rows] for start in range(0, len(weight), rows)]


# -- the other form ---------------------------------------------------------------------------------------------------
class Wide:
    """The wide form: its nodes and constants, and which tensor each signed one became."""

    def __init__(self, w: Writer, constants: Mapping[str, Array], *, stored: bool) -> None:
        self.w, self.constants, self.stored = w, constants, stored
        self.nodes: list[NodeProto] = []
        self.unsigned: dict[str, str] = {}  # signed tensor -> the same moved by 128
        self._initializers: list[TensorProto] = []
        self._constants: dict[str, str] = {}
        self._zeros: dict[str, str] = {}
        self._storage = Storage(spill=stored and signed_bytes(constants) > SPILL_AT)

    def body(self) -> GraphProto:
        """The form as a graph."""
        return GraphProto(node=self.nodes, initializer=self._initializers)

    def product(self, node: NodeProto) -> None:
        """Append `node` with unsigned operands."""
        kernel = _KERNELS[node.op_type]
        wide = NodeProto()
        wide.CopyFrom(node)
        self._move(wide, kernel.b, kernel.b_zero)
        a_zero = self.constants[node.input[kernel.a_zero]]
        if a_zero.dtype != np.int8:
            self.nodes.append(wide)
            return
        self._move(wide, kernel.a, kernel.a_zero)
        if kernel.y_zero is None:
            self.nodes.append(wide)
            return
        made = wide.output[0]
        wide.input[kernel.y_zero] = self._zero(node.input[kernel.y_zero])
        wide.output[0] = self.w.fresh(f"{made}_unsigned")
        self.nodes.append(wide)
        self._shifted(wide.output[0], "uint8", made)

    def _move(self, node: NodeProto, at: int, zero_at: int) -> None:
        node.input[at] = self._made_unsigned(node.input[at])
        node.input.extend([""] * (zero_at + 1 - len(node.input)))
        node.input[zero_at] = self._zero(node.input[zero_at])

    def _made_unsigned(self, name: str) -> str:
        """`name`, a signed tensor, moved by 128."""
        found = self.unsigned.get(name)
        if found is None and self.stored and name in self.constants:
            found = self.unsigned[name] = self.w.array(_moved(self.constants[name], self._storage), f"{name}_unsigned")
        elif found is None:
            found = self.unsigned[name] = self.w.fresh(f"{name}_unsigned")
            self._shifted(name, "int8", found)
        return found

    def _shifted(self, name: str, have: str, out: str) -> None:
        """8-bit integers moved to the other type: a Cast and a QuantizeLinear, exact in float."""
        unit = self._constant("unit", np.float32(1))
        real = self.w.fresh(f"{name}_real")
        cast = NodeProto(op_type="Cast", name=self.w.node_name(real), input=[name], output=[real])
        cast.attribute.add(name="to", type=2, i=TensorProto.FLOAT)
        self.nodes.append(cast)
        if have == "int8":
            zero = self._constant("zero_128", np.uint8(128))
        else:
            zero = self._constant("zero_minus_128", np.int8(-128))
        operands = [real, unit, zero]
        name = self.w.node_name(out)
        self.nodes.append(NodeProto(op_type="QuantizeLinear", name=name, input=operands, output=[out]))

    def _zero(self, name: str) -> str:
        """A signed zero point (none is 0) as an unsigned one."""
        if name not in self._zeros:
            signed = self.constants[name] if name else np.int8(0)
            self._zeros[name] = self._constant(f"{name or 'zero'}_unsigned", _moved(signed, self._storage))
        return self._zeros[name]

    def _constant(self, hint: str, value: Array | np.generic) -> str:
        if self.stored:
            return self.w.array(np.asarray(value), hint)
        found = self._constants.get(hint)
        if found is None:
            found = self._constants[hint] = self.w.fresh(hint)
            self._initializers.append(numpy_helper.from_array(np.asarray(value), found))
        return found


def _moved(signed: Array | np.generic, storage: Storage) -> Array:
    """int8 integers as uint8, moved by 128; they lie in memory in the order of the others."""
    source = np.asarray(signed).view(np.uint8)
    order = () if source.flags.c_contiguous else sorted(range(source.ndim), key=lambda axis: -source.strides[axis])
    source = source.transpose(order) if order else source
    moved = storage.empty(source.shape, np.uint8)
    np.bitwise_xor(source, np.uint8(128), out=moved)
    release(source)
    release(moved)
    return moved.transpose(np.argsort(order)) if order else moved

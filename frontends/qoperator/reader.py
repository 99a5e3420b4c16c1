"""The walk over a graph of integer operators: which integers mean what, and how real numbers take their place.

Every tensor of integers is known by the grid of what made it. A rule (`operators`, `meanings`) replaces one operator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx

from qatc.compiler.graph import Node, QuantGraph, Tensor, Variable, is_constant, rank_of, value_of
from qatc.compiler.model.links import is_op, label_of
from qatc.compiler.model.protos import MICROSOFT
from qatc.compiler.passes.movement import is_movement, is_value_blind
from qatc.compiler.quant import LARGEST, SMALLEST, Array, number_of
from qatc.frontends.common.integers import is_dq, is_q
from qatc.frontends.common.operands import constant_input, refuse
from qatc.frontends.common.rounded import STATIC, extreme_behind, refuse_casts

_FLOAT: Final = onnx.TensorProto.FLOAT
AT_RUN_TIME: Final = frozenset({"DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"})
IN_BLOCKS: Final = frozenset({"MatMulNBits", "MatMulBnb4", "GatherBlockQuantized", "QMoE"})
_ON_INTEGERS: Final = frozenset(
    {"Clip", "Relu", "Min", "Max", "Cast", "Concat", "Shape", "Size"}
)  # the core reads them
_ORDER: Final = frozenset({"ArgMax", "ArgMin"})  # all that they read of numbers is which is larger
_LEAST: Final = {  # inputs that an operator cannot do without; the others take five
    "QLinearConv": 8,
    "QLinearMatMul": 8,
    "QGemm": 6,
    "QLinearAdd": 7,
    "QLinearMul": 7,
    "QLinearWhere": 8,
    "QLinearSigmoid": 4,
    "QLinearLeakyRelu": 4,
    "QLinearReduceMean": 4,
    "MatMulIntegerToFloat": 4,
    "NhwcMaxPool": 1,
    "ConvInteger": 2,
    "MatMulInteger": 2,
}
_ON_ACCUMULATORS: Final = frozenset({"Add", "Sub", "Mul"})


Rule = Callable[["Reader", Node], None]
Meaning = Callable[["Reader", Node], bool]


def is_unreadable(op: str, domain: str) -> bool:
    """Whether an operator quantizes in a way that has no grid to read: it is refused by its name."""
    return op in AT_RUN_TIME or (domain == MICROSOFT and op in IN_BLOCKS)


@dataclass(frozen=True)
class Grid:
    """Scale and zero point as the file has them; `zero` is None where it is left out."""

    scale: Tensor
    zero: Tensor | None

    def numbers(self) -> tuple[float, int] | None:
        """Scale and zero point of one grid for the whole tensor, None where there are more, or none that make sense."""
        step, zero = number_of(value_of(self.scale)), zero_of(self)
        if step is None or zero is None or zero.size != 1 or zero.dtype.kind not in "iu":
            return None
        return (step, int(zero.reshape(-1)[0])) if 0 < step < np.inf else None

    def same(self, other: Grid) -> bool:
        """Whether both are constant and equal."""
        pairs = [(value_of(self.scale), value_of(other.scale)), (zero_of(self), zero_of(other))]
        return all(a is not None and b is not None and np.array_equal(a.reshape(-1), b.reshape(-1)) for a, b in pairs)


def zero_of(grid: Grid) -> Array | None:
    """The zero point of a grid as an array, None where it is not constant."""
    return np.zeros(1, np.uint8) if grid.zero is None else value_of(grid.zero)


@dataclass
class Reader:
    """Rewrites one graph; `grids` knows the tensors of integers by what made them.

    `rules` are for integer operators, by domain and name; `meanings` for standard ones that may read integers as such.
    """

    graph: QuantGraph
    rules: Mapping[tuple[str, str], Rule]
    meanings: Mapping[str, Meaning]
    grids: dict[int, Grid] = field(default_factory=dict[int, Grid])
    gone: list[Node] = field(default_factory=list[Node])
    accumulators: list[Tensor] = field(default_factory=list[Tensor])
    sources: dict[str, str] = field(default_factory=dict[str, str])  # real numbers -> the integers in the file
    mirrored: dict[int, tuple[Tensor, Grid]] = field(default_factory=dict[int, tuple[Tensor, Grid]])  # minus those
    ranks: dict[int, int] = field(default_factory=dict[int, int])  # of accumulators

    # -- building -------------------------------------------------------------------------------------------------
    def insert(self, op: str, inputs: Sequence[Tensor], hint: str, attrs: dict[str, Any] | None = None) -> Tensor:
        """A new float operator of ai.onnx; returns its output."""
        return self.graph.apply(op, inputs, hint, _FLOAT, name=f"{hint}_{op}", attrs=attrs)

    def integers(self, hint: str, like: Tensor) -> Tensor:
        """A new tensor of the same integers' type."""
        return self.graph.variable(hint, int(onnx.helper.np_dtype_to_tensor_dtype(element_of(like))))

    def real(self, x: Tensor, grid: Grid, axis: int = 0) -> Tensor:
        """The real numbers of integers."""
        inputs = [x, grid.scale] if grid.zero is None else [x, grid.scale, grid.zero]
        y = self.insert("DequantizeLinear", inputs, f"{x.name}_dequantized", {"axis": axis})
        self.sources[y.name] = x.name
        return y

    def operand(self, node: Node, index: int, axis: int = 0) -> Tensor:
        """The real numbers of the operand at `index`, whose scale and zero point follow it."""
        x, grid = node.inputs[index], self.grid(node, index + 1)
        return self.on_other_grid(node, x, grid) or self.real(x, grid, axis)

    def on_other_grid(self, node: Node, x: Tensor, grid: Grid) -> Tensor | None:
        """What integers stand for that are read on another grid than their own: an affine function of their numbers.

        None where the grid is their own, or none that makes sense, or (then an error is recorded) where float32 cannot
        hold the numbers.
        """
        have = self.grids.get(id(x))
        own, read = None if have is None else have.numbers(), grid.numbers()
        if have is None or own is None or read is None or own == read:
            return None
        ratio, offset = read[0] / own[0], read[0] * (own[1] - read[1])
        widest = max(own[0], read[0]) * 256.0 ** element_of(x).itemsize
        if widest > LARGEST or not SMALLEST <= ratio <= LARGEST:
            message = f"{node.op} reads what has a scale of {own[0]:.9g} on a scale of {read[0]:.9g}"
            hint = "float32 cannot hold the numbers: was the scale exported right?"
            refuse(self.graph, node, "QAT201", message, hint)
            return None
        y = self.real(x, have)
        if ratio != 1:
            factor = self.graph.constant(f"{x.name}_factor", np.asarray(ratio, np.float32))
            y = self.insert("Mul", [y, factor], f"{x.name}_scaled")
        if not offset:
            return y
        return self.insert(
            "Add", [y, self.graph.constant(f"{x.name}_offset", np.asarray(offset, np.float32))], f"{x.name}_moved"
        )

    def grid(self, node: Node, index: int) -> Grid:
        """The scale at input `index` and the zero point behind it."""
        return Grid(node.inputs[index], node.optional(index + 1))

    def zero_like(self, x: Tensor) -> Tensor:
        """A zero point of zero, in the type of some integers."""
        known = self.grids.get(id(x))
        zero = None if known is None or known.zero is None else value_of(known.zero)
        return self.graph.constant(f"{x.name}_zero", np.zeros((), element_of(x) if zero is None else zero.dtype))

    def finish(self, node: Node, y: Tensor, grid: Grid | None) -> None:
        """`y` takes the place of the node's output, rounded onto `grid` where there is one."""
        old = node.outputs[0]
        self.gone.append(node)
        node.outputs.clear()
        if grid is None:
            self.graph.replace(old, y)
            return
        known = next((t for t in node.inputs if id(t) in self.grids), old)  # of the result's type
        zero = grid.zero or self.zero_like(known)
        self.graph.insert("QuantizeLinear", [y, grid.scale, zero], [old], hint=f"{old.name}_quantize")
        self.grids[id(old)] = Grid(grid.scale, zero)

    def product(self, node: Node, first: int, second: int, factor: float = 1.0) -> Tensor | None:
        """The grid of an accumulator: the product of two scales."""
        a, b = constant_input(self.graph, node, first, "scale"), constant_input(self.graph, node, second, "scale")
        if a is None or b is None:
            return None
        if not (a.size and b.size) or (a.size != 1 and b.size not in (1, a.size)):
            message = f"scales of shapes {list(a.shape)} and {list(b.shape)} have no product"
            refuse(self.graph, node, "QAT204", message)
            return None
        with np.errstate(over="ignore"):  # an infinite scale is told where it is read
            scale = np.asarray(a.reshape(-1).astype(np.float32) * b.reshape(-1).astype(np.float32) * np.float32(factor))
        name = f"{node.outputs[0].name}_accumulator_scale"
        return self.graph.constant(name, scale if scale.size > 1 else scale.reshape(()))

    # -- the walk -------------------------------------------------------------------------------------------------
    def run(self) -> None:
        """Rewrite the nodes in order."""
        for node in list(self.graph.nodes):
            domain = node.domain or ""
            rule = self.rules.get((domain, node.op))
            if node.op in AT_RUN_TIME:
                refuse(self.graph, node, "QAT205", f"{node.op} finds its scale at run time", STATIC)
            elif domain == MICROSOFT and node.op in IN_BLOCKS:
                message = f"{node.op} holds {node.attr('bits', 4)}-bit weights in blocks, beside activations of floats"
                hint = "quantize weights per tensor or channel, and activations too"
                refuse(self.graph, node, "QAT103", message, hint)
            elif rule is not None and (len(node.inputs) < _LEAST.get(node.op, 5) or not node.outputs):
                message = f"{node.op} has {len(node.inputs)} inputs only"
                refuse(self.graph, node, "QAT104", message, "the file is damaged")
            elif rule is not None:
                rule(self, node)
            elif domain == MICROSOFT and not is_q(node) and not is_dq(node) and self.reads_integers(node):
                refuse(self.graph, node, "QAT302", f"{node.op} of {MICROSOFT} is not supported")
            else:
                self.follow(node)
        self.graph.remove(self.gone)
        if self.graph.diagnostics.errors:
            return  # what is left of the integers would only be blamed again
        self.carry_over()
        self.graph.sort()
        self.graph.clean()

    def reads_integers(self, node: Node) -> bool:
        """Whether an operand is known to hold integers."""
        return any(id(t) in self.grids for t in node.inputs)

    def follow(self, node: Node) -> None:
        """Standard operators: where integers come from, where they go, and where they are read as numbers."""
        rule = self.meanings.get(node.op) if not node.domain or is_q(node) or is_dq(node) else None
        if len(node.inputs) < 1 + is_q(node) or (rule is not None and rule(self, node)) or is_dq(node):
            return
        if is_q(node):
            self.requantize(node)
        elif is_movement(node) or node.op in _ON_INTEGERS:
            known = self.grids.get(id(node.inputs[0]))
            if known is not None and not is_value_blind(node):
                self.grids.update((id(y), known) for y in node.outputs)
        elif is_op(node, "Resize") and id(node.inputs[0]) in self.grids:
            self.interpolate(node, self.grids[id(node.inputs[0])])
        elif self.reads_integers(node) and not node.domain:
            self.read_as_real(node)

    def interpolate(self, node: Node, grid: Grid) -> None:
        """A Resize between integers: the same between the real numbers, back onto their grid."""
        x = self.real(node.inputs[0], grid)
        y = self.insert("Resize", [x, *node.inputs[1:]], f"{node.outputs[0].name}_real", dict(node.attrs))
        ways = "which runtimes round in different ways; here it is to the nearest"
        message = f"Resize interpolates between integers, {ways}"
        self.graph.diagnostics.note("QAT307", message, node=label_of(node), tensor=node.outputs[0].name)
        self.finish(node, y, grid)

    def requantize(self, node: Node) -> None:
        """QuantizeLinear of integers: nothing on their own grid, a rescaling on another."""
        x, grid = node.inputs[0], self.grid(node, 1)
        known = self.grids.get(id(x))
        if known is not None and known.same(grid):
            self.graph.replace(node.outputs[0], x)
            self.gone.append(node)
            return
        if known is not None:
            node.inputs[0] = self.real(x, known)
        self.grids[id(node.outputs[0])] = grid

    def read_as_real(self, node: Node) -> None:
        """A float operator on integers is ill-typed ONNX: it means the real numbers, whose order is the integers'."""
        for index, tensor in enumerate(list(node.inputs)):
            known = self.grids.get(id(tensor))
            if known is None:
                continue
            node.inputs[index] = self.real(tensor, known)
            if node.op in _ORDER:
                continue
            self.graph.diagnostics.warning(
                "QAT104",
                f"{node.op} reads integers as if they were numbers; the real numbers they stand for are taken",
                node=label_of(node),
                tensor=tensor.name,
                hint="the exporter left out a DequantizeLinear",
            )

    # -- accumulators ---------------------------------------------------------------------------------------------
    def carry_over(self) -> None:
        """Operators on int32 accumulators become operators on real numbers, up to their Cast to float."""
        self.accumulators = self.made_of(self.accumulators)
        sums = {id(t) for t in self.accumulators}
        for tensor in self.accumulators:
            if isinstance(tensor, Variable):
                tensor.dtype = _FLOAT
            for node in dict.fromkeys(self.graph.consumers(tensor)):
                self.read_accumulator(node, tensor, sums)

    def read_accumulator(self, node: Node, tensor: Tensor, sums: set[int]) -> None:
        """An operator that reads the accumulator `tensor`, one of `sums`, reads real numbers there."""
        if is_op(node, "Cast") and node.attr("to") == _FLOAT:
            self.graph.bypass(node)
        elif (is_dq(node) and self.scaled(node, tensor)) or is_movement(node):
            return
        elif is_op(node, *_ON_ACCUMULATORS) and self.numbers(node, sums):
            ranks = [self.ranks.get(id(t)) or rank_of(t) for t in node.inputs]
            known = [r for r in ranks if r is not None]
            if len(known) == len(ranks):  # where they broadcast, the largest
                self.ranks[id(node.outputs[0])] = max(known)
        elif node.op != "Shape":
            self.refuse_accumulator(node)

    def refuse_accumulator(self, node: Node) -> None:
        """Record that an operator computes with an accumulator: QAT205 where data decide its numbers, else QAT302."""
        found = extreme_behind(self.graph, node)
        if found is not None:
            message = f"what this {node.op} computes with has a scale found at run time ({found.op} of the data)"
            refuse(self.graph, node, "QAT205", message, STATIC)
        else:
            message = f"{node.op} computes with an int32 accumulator"
            refuse(self.graph, node, "QAT302", message, "cast it to float first")

    def scaled(self, node: Node, tensor: Tensor) -> bool:
        """A DequantizeLinear of an accumulator is a product with its scale."""
        scale = constant_input(self.graph, node, 1, "scale")
        given = node.optional(2)
        zero = np.zeros(1) if given is None else value_of(given)
        rank = self.ranks.get(id(tensor)) or rank_of(tensor)
        if scale is None or zero is None or zero.any() or (scale.size > 1 and rank is None):
            return False
        if scale.size > 1 and rank is not None:
            axis = int(node.attr("axis", 1)) % rank
            scale = scale.reshape([-1 if i == axis else 1 for i in range(rank)])
        node.op, node.domain = "Mul", None
        node.inputs = [tensor, self.graph.constant(f"{node.outputs[0].name}_scale", scale)]
        node.attrs.clear()
        return True

    def made_of(self, accumulators: Sequence[Tensor]) -> list[Tensor]:
        """Accumulators, and what operators on them, and movements of them, make."""
        found, seen = list(accumulators), {id(t) for t in accumulators}
        for tensor in found:
            readers = [n for n in self.graph.consumers(tensor) if is_movement(n) or is_op(n, *_ON_ACCUMULATORS)]
            made = {id(t): t for n in readers for t in n.outputs if id(t) not in seen}
            found += made.values()
            seen |= made.keys()
        return found

    def numbers(self, node: Node, sums: set[int]) -> bool:
        """Integer constants of an operator on accumulators as float32; False where another operand is not constant."""
        for index, tensor in enumerate(node.inputs):
            value = value_of(tensor)
            if value is not None and value.dtype.kind in "iu":
                node.inputs[index] = self.graph.constant(f"{tensor.name}_real", value.astype(np.float32))
        return all(id(t) in sums or is_constant(t) for t in node.inputs)

    def accumulate(self, node: Node, op: str, attrs: dict[str, Any]) -> None:
        """ConvInteger and MatMulInteger: (x - z_x) * (w - z_w) summed, as an int32 accumulator."""
        x, w = node.inputs[:2]
        if refuse_casts(self.graph, node, lambda t: id(t) in self.grids):
            return
        zeros = node.optional(2), node.optional(3)
        known = [self.grids.get(id(t)) for t in (x, w)]
        stated = [self.with_zero(t, g, z) for t, g, z in zip((x, w), known, zeros, strict=True)]
        axes = (1, 0 if op == "Conv" else -1)
        offset = self.offset_of(op, node, known[0], stated[0])
        if offset is not None and known[0] is not None:
            stated[0] = known[0]
        operands = [
            self.on_other_grid(node, t, g) or self.real(t, g, axis)
            for t, g, axis in zip((x, w), stated, axes, strict=True)
        ]
        y = self.insert(op, operands, f"{node.outputs[0].name}_sum", attrs)
        for grid in (g for g in known if g is not None):
            y = self.insert("Div", [y, grid.scale], f"{node.outputs[0].name}_integers")
        if offset is not None:
            y = self.insert("Add", [y, offset], f"{node.outputs[0].name}_moved")
        rank = rank_of(node.outputs[0]) or (rank_of(w) if op == "Conv" else None)
        if rank is not None:
            self.ranks[id(y)] = rank
        self.finish(node, y, None)
        self.accumulators.append(y)

    def offset_of(self, op: str, node: Node, own: Grid | None, read: Grid) -> Tensor | None:
        """What another zero point than the integers' own adds to a product with a constant matrix: whole numbers."""
        w, zero = value_of(node.inputs[1]), value_of(node.optional(3))
        have, want = None if own is None else own.numbers(), read.numbers()
        if op == "Conv" or have is None or want is None or have == want or w is None or w.ndim < 2:
            return None
        if zero is not None and zero.shape not in ((), (1,), w.shape[-1:]):
            return None
        total = w.sum(axis=-2, dtype=np.int64)
        if zero is not None:
            total -= zero.astype(np.int64) * w.shape[-2]
        total *= have[1] - want[1]
        return self.graph.constant(f"{node.outputs[0].name}_offset", total.astype(np.float32))

    def with_zero(self, x: Tensor, known: Grid | None, zero: Tensor | None) -> Grid:
        """The grid that integers are read on with a zero point: their own, with that one; steps of one without any."""
        if known is None:
            value = None if zero is None else value_of(zero)
            shape = () if value is None or value.size == 1 else (value.size,)
            return Grid(self.graph.constant("one", np.ones(shape, np.float32)), zero)
        return known if known.same(Grid(known.scale, zero)) else Grid(known.scale, zero or self.zero_like(x))


def element_of(tensor: Tensor) -> np.dtype[Any]:
    """The integer type of a tensor, uint8 where the file does not say."""
    kind: Any = tensor.dtype
    if isinstance(kind, int) and kind:
        return onnx.helper.tensor_dtype_to_np_dtype(kind)
    return np.dtype(np.uint8) if kind is None or kind == 0 else np.dtype(kind)

"""An LSTM layer written out step by step, with the quantizers of its cell wherever it rounds.

    i, f, o = Q(Sigmoid(sum))    g = Q(Tanh(sum))    f = Q(1) - i where coupled
    c = Q(Q(f * c) + Q(i * g))   h = Q(o * Q(Tanh(c)))

A dialect says how a gate's sum comes about, what each Q is, and which grids there are: `Layer` is the rest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from qatc.compiler.graph import FAKE_QUANT, Node, QuantGraph, Tensor, shape_of
from qatc.compiler.model.links import label_of
from qatc.compiler.quant import QuantParams
from qatc.compiler.shapes import infer_shapes
from qatc.frontends.common.operands import refuse
from qatc.frontends.common.vendor import container, grid_behind

MOST_STEPS: Final = 2048  # about 30 operators each
MOST_CELLS: Final = 64
GATES: Final = ("input", "forget", "cell", "output")

Sums = Callable[[int], Tensor]  # of a gate: what its sigmoid or tanh reads, rounded


class RefusedError(Exception):
    """A layer cannot be written out; the finding is recorded."""


def unroll(
    graph: QuantGraph, cells: list[Node], axis: Callable[[Node], int], layer: Callable[[Node, int], Layer]
) -> None:
    """Write layers out, `layer(node, steps)` each; what cannot be is left in place, with an error (QAT302).

    `axis` is that of time in a node's first input, [N, T, I] or [T, N, I].
    """
    steps = 0
    for node in cells[:MOST_CELLS]:
        try:
            count = _steps(graph, node, axis(node))
            steps += count
            if steps > MOST_STEPS:
                raise refused(graph, node, f"it has {count:,} steps; up to {MOST_STEPS:,} in all are written out")
            layer(node, count).write(axis(node))
        except RefusedError:
            return
    if len(cells) > MOST_CELLS:
        refused(graph, cells[MOST_CELLS], f"it is one of {len(cells):,}; up to {MOST_CELLS} are written out")
    if cells:
        graph.sort()
        graph.clean()


def refused(graph: QuantGraph, node: Node, message: str) -> RefusedError:
    """Record QAT302 at a layer."""
    hint = "export the model with a fixed and shorter sequence, and its state as an input and an output"
    refuse(graph, node, "QAT302", f"{node.op} cannot be unrolled: {message}", hint)
    return RefusedError()


def _steps(graph: QuantGraph, node: Node, axis: int) -> int:
    """How many steps the layer takes: the length of its input along `axis`."""
    x = node.inputs[0]
    if shape_of(x) is None:
        graph.sort()
        infer_shapes(graph)
    shape = shape_of(x)
    count = shape[axis] if shape is not None and len(shape) == 3 else None
    if not isinstance(count, int) or count < 1:
        found = "of unknown shape" if shape is None else f"of shape {list(shape)}"
        raise refused(graph, node, f"its input is {found}, so that its steps cannot be counted")
    return count


@dataclass
class Layer(ABC):
    """One layer while it is written out.

    Attributes:
        prefix: what names begin with.
        reverse: whether the last step in time comes first.
        coupled: whether the forget gate is what the input gate leaves.
    """

    graph: QuantGraph
    node: Node
    steps: int
    prefix: str = ""
    reverse: bool = False
    coupled: bool = False

    @abstractmethod
    def data(self) -> Tensor:
        """What each step takes a slice of, along time."""

    @abstractmethod
    def states(self) -> tuple[Tensor | None, Tensor | None]:
        """Hidden and cell state before the first step, None for zeros."""

    @abstractmethod
    def sums(self, x: Tensor, hidden: Tensor | None) -> Sums:
        """The sums of a step's gates, from its slice of the data and the hidden state (None: zeros)."""

    @abstractmethod
    def quant(self, name: str, x: Tensor) -> Tensor:
        """`x` through one of the cell's quantizers."""

    def write(self, axis: int) -> None:
        """Put the steps before the node, and let its readers read theirs."""
        times = range(self.steps)
        self.prefix = label_of(self.node)
        data, (hidden, cell) = self.data(), self.states()
        outputs: dict[int, Tensor] = {}
        for t in reversed(times) if self.reverse else times:
            self.prefix = f"{label_of(self.node)}/step_{t}"
            x = self.apply("Gather", [data, self._number(t)], axis=axis)
            hidden, cell = self._step(x, hidden, cell)
            outputs[t] = hidden
        self.prefix = label_of(self.node)
        last = [self._stacked([outputs[t] for t in times], axis), hidden, cell]
        for old, new in zip(self.node.outputs, last, strict=False):
            if new is not None:
                self.graph.replace(old, new)

    def _step(self, x: Tensor, hidden: Tensor | None, cell: Tensor | None) -> tuple[Tensor, Tensor]:
        sums = self.sums(x, hidden)
        entered = self._gate(0, "Sigmoid", sums)
        forget = self._others(entered) if self.coupled else None
        candidate = self._gate(2, "Tanh", sums)
        now = self.quant("cell_state", self.apply("Mul", [entered, candidate]))
        if cell is not None:
            forget = self._gate(1, "Sigmoid", sums) if forget is None else forget
            kept = self.quant("cell_state", self.apply("Mul", [forget, cell]))
            now = self.quant("cell_state", self.apply("Add", [kept, now]))
        seen = self.quant("hidden_state_tanh", self.apply("Tanh", [now]))
        output = self._gate(3, "Sigmoid", sums)
        return self.quant("output", self.apply("Mul", [output, seen])), now

    def _gate(self, gate: int, function: str, sums: Sums) -> Tensor:
        return self.quant(f"{GATES[gate]}_{function.lower()}", self.apply(function, [sums(gate)]))

    def _others(self, entered: Tensor) -> Tensor:
        """Q(1) - i, on the grid that it lies on: the same scale, integers counted from above."""
        found = grid_behind(self.graph, entered)
        if found is None or found.is_per_channel:
            raise refused(self.graph, self.node, "coupled gates need one scale for the input gate")
        scale, zero = float(found.scale[0]), int(found.zero_point[0])
        one = int(np.clip(np.rint(1 / scale) + zero, found.qmin, found.qmax))
        low, high = one - found.qmax, one - found.qmin
        dtype = container(low, high, [0])
        if dtype is None:
            raise refused(self.graph, self.node, f"no integer type holds 1 - i on the range {low}..{high}")
        whole = self.graph.constant(f"{entered.name}_one", np.asarray(scale * (one - zero), np.float32))
        params = QuantParams.per_tensor(scale, 0, dtype).with_range(low, high)
        return self.fake_quant(self.apply("Sub", [whole, entered]), f"{entered.name}_others", params)

    # -- operators ------------------------------------------------------------------------------------------------
    def apply(self, op: str, inputs: list[Tensor], **attrs: int) -> Tensor:
        """The result of a new node."""
        return self.graph.apply(op, inputs, f"{self.prefix}/{op}", 1, attrs=attrs)

    def fake_quant(self, x: Tensor, hint: str, params: QuantParams) -> Tensor:
        """`x` on a grid."""
        return self.graph.apply(FAKE_QUANT, [x], hint, 1, attrs={"params": params})

    def _number(self, value: int) -> Tensor:
        return self.graph.constant("step", np.asarray(value, np.int64))

    def _stacked(self, steps: list[Tensor], axis: int) -> Tensor:
        axes = self.graph.constant("step_axis", np.asarray([axis], np.int64))
        return self.apply("Concat", [self.apply("Unsqueeze", [s, axes]) for s in steps], axis=axis)

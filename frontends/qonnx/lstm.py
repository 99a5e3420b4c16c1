"""QuantLSTMCell of Brevitas, one node for all steps of a layer, written out step by step.

    i, f, o = Q(Sigmoid(Q(x W^T + h R^T + b)))    g = Q(Tanh(Q(x W^T + h R^T + b)))    f = Q(1) - i where coupled
    c = Q(Q(f * c) + Q(i * g))                    h = Q(o * Q(Tanh(c)))

with a quantizer of its own for each Q, as `_QuantLSTMCell.forward_iter` of Brevitas 0.13 computes it. Where input and
hidden state lie on one grid, and so do W and R (Brevitas shares both quantizers), the two products are one of the
concatenated operands: one integer sum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from qatc.compiler.graph import FAKE_QUANT, Constant, Node, QuantGraph, Tensor, shape_of, value_of
from qatc.compiler.model.links import label_of
from qatc.compiler.quant import QuantParams
from qatc.compiler.shapes import infer_shapes
from qatc.frontends.common.operands import refuse
from qatc.frontends.common.vendor import container, grid_behind

Quantize = Callable[[QuantGraph, Node], bool]  # what turns a Quant node into a FakeQuant

_MOST_STEPS: Final = 2048  # about 30 operators each
_MOST_CELLS: Final = 64
_GATES: Final = ("input", "forget", "cell", "output")
_OPERANDS: Final = 48
_WEIGHTS, _RECURRENT, _BIASES, _QUANTIZERS = 3, 7, 11, 15  # where the operands begin
_ORDER: Final = (
    "output",
    "cell_state",
    "input_acc",
    "forget_acc",
    "cell_acc",
    "output_acc",
    "input_sigmoid",
    "forget_sigmoid",
    "cell_tanh",
    "output_sigmoid",
    "hidden_state_tanh",
)


class _Refused(Exception):  # noqa: N818  # the finding is recorded
    pass


def unroll(graph: QuantGraph, domains: tuple[str, ...], quantize: Quantize) -> None:
    """Write every QuantLSTMCell of the graph out; what cannot be is left in place, with an error (QAT302)."""
    cells = [n for n in graph.nodes if n.op == "QuantLSTMCell" and n.domain in domains]
    steps = 0
    for node in cells[:_MOST_CELLS]:
        try:
            count = _steps(graph, node)
            steps += count
            if steps > _MOST_STEPS:
                raise _refused(graph, node, f"it has {count:,} steps; up to {_MOST_STEPS:,} in all are written out")
            _Layer(graph, node, quantize, count).write()
        except _Refused:
            return
    if len(cells) > _MOST_CELLS:
        _refused(graph, cells[_MOST_CELLS], f"it is one of {len(cells):,}; up to {_MOST_CELLS} are written out")
    if cells:
        graph.sort()
        graph.clean()


def _refused(graph: QuantGraph, node: Node, message: str) -> _Refused:
    hint = "export the model with a fixed and shorter sequence, and its state as an input and an output"
    refuse(graph, node, "QAT302", f"QuantLSTMCell cannot be unrolled: {message}", hint)
    return _Refused()


def _steps(graph: QuantGraph, node: Node) -> int:
    """How many steps the layer takes: the length of its input [N, T, I] or [T, N, I] along T."""
    if len(node.inputs) != _OPERANDS:
        raise _refused(graph, node, f"it has {len(node.inputs)} operands, not {_OPERANDS}")
    x = node.inputs[0]
    if shape_of(x) is None:
        graph.sort()
        infer_shapes(graph)
    shape = shape_of(x)
    count = shape[1 if node.attr("batch_first", 0) else 0] if shape is not None and len(shape) == 3 else None
    if not isinstance(count, int) or count < 1:
        found = "of unknown shape" if shape is None else f"of shape {list(shape)}"
        raise _refused(graph, node, f"its input is {found}, so that its steps cannot be counted")
    return count


@dataclass
class _Layer:
    graph: QuantGraph
    node: Node
    quantize: Quantize
    steps: int
    prefix: str = ""
    joined: dict[int, Tensor | None] = field(default_factory=dict[int, "Tensor | None"])

    def write(self) -> None:
        """Put the steps before the node, and let its readers read theirs."""
        graph, node = self.graph, self.node
        axis = 1 if node.attr("batch_first", 0) else 0
        times = range(self.steps)
        hidden, cell = self._state(1), self._state(2)
        outputs: dict[int, Tensor] = {}
        for t in reversed(times) if node.attr("reverse_input", 0) else times:
            self.prefix = f"{label_of(node)}/step_{t}"
            x = self._apply("Gather", [node.inputs[0], self._number(t)], axis=axis)
            hidden, cell = self._step(x, hidden, cell)
            outputs[t] = hidden
        self.prefix = label_of(node)
        last = [self._stacked([outputs[t] for t in times], axis), hidden, cell]
        for old, new in zip(node.outputs, last, strict=False):
            if new is not None:
                graph.replace(old, new)

    def _step(self, x: Tensor, hidden: Tensor | None, cell: Tensor | None) -> tuple[Tensor, Tensor]:
        joined = hidden is not None and self._alike(hidden)
        both = self._apply("Concat", [x, hidden], axis=1) if hidden is not None and joined else None
        entered = self._gate(0, "Sigmoid", x, hidden, both)
        forget = self._others(entered) if self.node.attr("cifg", 0) else None
        candidate = self._gate(2, "Tanh", x, hidden, both)
        now = self._quant("cell_state", self._apply("Mul", [entered, candidate]))
        if cell is not None:
            forget = self._gate(1, "Sigmoid", x, hidden, both) if forget is None else forget
            kept = self._quant("cell_state", self._apply("Mul", [forget, cell]))
            now = self._quant("cell_state", self._apply("Add", [kept, now]))
        seen = self._quant("hidden_state_tanh", self._apply("Tanh", [now]))
        output = self._gate(3, "Sigmoid", x, hidden, both)
        return self._quant("output", self._apply("Mul", [output, seen])), now

    def _gate(self, gate: int, function: str, x: Tensor, hidden: Tensor | None, both: Tensor | None) -> Tensor:
        """A gate of the input, the hidden state (None: zeros) and `both` in one tensor (None: on two grids)."""
        name = _GATES[gate]
        weight, recurrent, bias = (self.node.inputs[begin + gate] for begin in (_WEIGHTS, _RECURRENT, _BIASES))
        joined = self._joined(gate, weight, recurrent) if both is not None else None
        if both is not None and joined is not None:
            total = self._apply("Gemm", [both, joined, bias], transB=1)
        else:
            total = self._apply("Gemm", [x, weight, bias], transB=1)
            if hidden is not None:
                total = self._apply("Add", [total, self._apply("Gemm", [hidden, recurrent], transB=1)])
        total = self._quant(f"{name}_acc", total)
        return self._quant(f"{name}_{function.lower()}", self._apply(function, [total]))

    def _others(self, entered: Tensor) -> Tensor:
        """Q(1) - i, on the grid that it lies on: the same scale, integers counted from above."""
        found = grid_behind(self.graph, entered)
        if found is None or found.is_per_channel:
            raise _refused(self.graph, self.node, "coupled gates need one scale for the input gate")
        scale, zero = float(found.scale[0]), int(found.zero_point[0])
        one = int(np.clip(np.rint(1 / scale) + zero, found.qmin, found.qmax))
        low, high = one - found.qmax, one - found.qmin
        dtype = container(low, high, [0])
        if dtype is None:
            raise _refused(self.graph, self.node, f"no integer type holds 1 - i on the range {low}..{high}")
        whole = self.graph.constant(f"{entered.name}_one", np.asarray(scale * (one - zero), np.float32))
        params = QuantParams.per_tensor(scale, 0, dtype).with_range(low, high)
        return self._fake_quant(self._apply("Sub", [whole, entered]), f"{entered.name}_others", params)

    # -- operands -------------------------------------------------------------------------------------------------
    def _state(self, index: int) -> Tensor | None:
        """An initial state, None for zeros."""
        state = self.node.inputs[index]
        value = value_of(state)
        absent = not state.name if value is None else not value.any()
        return None if absent else state

    def _alike(self, hidden: Tensor) -> bool:
        """Whether input and hidden state are on one grid."""
        x, h = (grid_behind(self.graph, t) for t in (self.node.inputs[0], hidden))
        return x is not None and h is not None and not x.is_per_channel and x.same_grid(h)

    def _joined(self, gate: int, weight: Tensor, recurrent: Tensor) -> Tensor | None:
        """[W, R] of a gate on their common grid, None where they have none."""
        if gate not in self.joined:
            self.joined[gate] = self._join(weight, recurrent)
        return self.joined[gate]

    def _join(self, weight: Tensor, recurrent: Tensor) -> Tensor | None:
        makers = [self.graph.producer(t) for t in (weight, recurrent)]
        found = [m for m in makers if m is not None and m.op == FAKE_QUANT]
        values = [m.inputs[0].values for m in found if isinstance(m.inputs[0], Constant)]
        params: list[QuantParams] = [m.attrs["params"] for m in found]
        if len(values) != 2 or not params[0].same_grid(params[1]):
            return None
        if any(p.is_per_channel and p.axis != 0 for p in params) or any(v.ndim != 2 for v in values):
            return None
        if len(values[0]) != len(values[1]):
            raise _refused(self.graph, self.node, f"a gate's weights have {len(values[0])} and {len(values[1])} rows")
        both = self.graph.constant(f"{weight.name}_joined", np.concatenate(values, 1))
        return self._fake_quant(both, f"{weight.name}_both", params[0])

    # -- operators ------------------------------------------------------------------------------------------------
    def _apply(self, op: str, inputs: list[Tensor], **attrs: int) -> Tensor:
        return self.graph.apply(op, inputs, f"{self.prefix}/{op}", 1, attrs=attrs)

    def _fake_quant(self, x: Tensor, hint: str, params: QuantParams) -> Tensor:
        return self.graph.apply(FAKE_QUANT, [x], hint, 1, attrs={"params": params})

    def _quant(self, name: str, x: Tensor) -> Tensor:
        """`x` through one of the cell's quantizers, as a Quant node would."""
        at = _QUANTIZERS + 3 * _ORDER.index(name)
        node = self.node
        attrs = {
            "signed": node.attr(f"{name}_signed", 1),
            "narrow": node.attr(f"{name}_narrow", node.attr(f"{name}_narrow_range", 0)),  # Brevitas writes both
            "rounding_mode": node.attr(f"{name}_rounding_mode", "ROUND"),
        }
        hint = f"{self.prefix}/{name}_quant"
        y = self.graph.variable(hint, 1)
        made = self.graph.insert("Quant", [x, *node.inputs[at : at + 3]], [y], hint=hint, attrs=attrs)
        if not self.quantize(self.graph, made):
            raise _Refused
        return y

    def _number(self, value: int) -> Tensor:
        return self.graph.constant("step", np.asarray(value, np.int64))

    def _stacked(self, steps: list[Tensor], axis: int) -> Tensor:
        axes = self.graph.constant("step_axis", np.asarray([axis], np.int64))
        return self._apply("Concat", [self._apply("Unsqueeze", [s, axes]) for s in steps], axis=axis)

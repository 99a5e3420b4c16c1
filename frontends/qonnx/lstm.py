"""QuantLSTMCell of Brevitas, one node for all steps of a layer, written out step by step.

    i, f, o = Q(Sigmoid(Q(x W^T + h R^T + b)))    g = Q(Tanh(Q(x W^T + h R^T + b)))

and the rest as in `frontends/common/lstm.py`, with a quantizer of its own for each Q, as `_QuantLSTMCell.forward_iter`
of Brevitas 0.13 computes it. Where input and hidden state lie on one grid, and so do W and R (Brevitas shares both
quantizers), the two products are one of the concatenated operands: one integer sum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from qatc.compiler.graph import FAKE_QUANT, Constant, Node, QuantGraph, Tensor, value_of
from qatc.compiler.quant import QuantParams
from qatc.frontends.common import lstm
from qatc.frontends.common.lstm import GATES, RefusedError, Sums, refused
from qatc.frontends.common.vendor import grid_behind

Quantize = Callable[[QuantGraph, Node], bool]  # what turns a Quant node into a FakeQuant

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


def unroll(graph: QuantGraph, domains: tuple[str, ...], quantize: Quantize) -> None:
    """Write every QuantLSTMCell of the graph out; what cannot be is left in place, with an error (QAT302)."""
    cells = [n for n in graph.nodes if n.op == "QuantLSTMCell" and n.domain in domains]

    def axis(node: Node) -> int:
        if len(node.inputs) != _OPERANDS:
            raise refused(graph, node, f"it has {len(node.inputs)} operands, not {_OPERANDS}")
        return 1 if node.attr("batch_first", 0) else 0

    def layer(node: Node, steps: int) -> _Layer:
        reverse, coupled = bool(node.attr("reverse_input", 0)), bool(node.attr("cifg", 0))
        return _Layer(graph, node, steps, reverse=reverse, coupled=coupled, quantize=quantize)

    lstm.unroll(graph, cells, axis, layer)


@dataclass(kw_only=True)
class _Layer(lstm.Layer):
    quantize: Quantize
    joined: dict[int, Tensor | None] = field(default_factory=dict[int, "Tensor | None"])

    def data(self) -> Tensor:
        return self.node.inputs[0]

    def states(self) -> tuple[Tensor | None, Tensor | None]:
        return self._state(1), self._state(2)

    def sums(self, x: Tensor, hidden: Tensor | None) -> Sums:
        joined = hidden is not None and self._alike(hidden)
        both = self.apply("Concat", [x, hidden], axis=1) if hidden is not None and joined else None
        return lambda gate: self._sum(gate, x, hidden, both)

    def _sum(self, gate: int, x: Tensor, hidden: Tensor | None, both: Tensor | None) -> Tensor:
        """Of the input, the hidden state (None: zeros) and `both` in one tensor (None: on two grids)."""
        weight, recurrent, bias = (self.node.inputs[begin + gate] for begin in (_WEIGHTS, _RECURRENT, _BIASES))
        joined = self._joined(gate, weight, recurrent) if both is not None else None
        if both is not None and joined is not None:
            total = self.apply("Gemm", [both, joined, bias], transB=1)
        else:
            total = self.apply("Gemm", [x, weight, bias], transB=1)
            if hidden is not None:
                total = self.apply("Add", [total, self.apply("Gemm", [hidden, recurrent], transB=1)])
        return self.quant(f"{GATES[gate]}_acc", total)

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
            raise refused(self.graph, self.node, f"a gate's weights have {len(values[0])} and {len(values[1])} rows")
        both = self.graph.constant(f"{weight.name}_joined", np.concatenate(values, 1))
        return self.fake_quant(both, f"{weight.name}_both", params[0])

    def quant(self, name: str, x: Tensor) -> Tensor:
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
            raise RefusedError
        return y

"""Recurrent layers written out, step by step, so that each of their sums and products has its integers.

    GRU    r, z = sigmoid(Wx + Uh)    n = tanh(Wx + r * Uh)    h = n + z * (h - n)
    LSTM   i, f, o = sigmoid(Wx + Uh)    g = tanh(Wx + Uh)     c = f * c + i * g    h = o * tanh(c)
    RNN    h = tanh or relu(Wx + Uh)

The inputs' products of all steps are one matrix product. Every step rounds alike: what the same `Grid` is called on
shares one quantizer, so that a device can run one step in a loop.
"""

# pyright: reportMissingModuleSource=false
# PyTorch is optional: what of it is used is described in typings/torch

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qatc.frontends.torch_qat.attention import linear


class Grid(nn.Identity):
    """Hands on what it is given; all that it is called on shares one fake quantizer."""


class Recurrent(nn.Module):
    """`nn.RNN`, `nn.GRU` or `nn.LSTM` for batches of sequences of a length that is known.

    Args:
        source: the layer.
        steps: the length of the sequences.
        given_state: whether it is called with a first state; else that is zero.
    """

    def __init__(self, source: nn.Module, steps: int, given_state: bool) -> None:
        super().__init__()
        self.steps, self.batch_first, self.given_state = steps, source.batch_first, given_state
        self.layers, self.directions = source.num_layers, 2 if source.bidirectional else 1
        self.with_cell_state = isinstance(source, nn.LSTM)
        make = Lstm if isinstance(source, nn.LSTM) else Gru if isinstance(source, nn.GRU) else Rnn
        suffixes = [f"_l{n}{back}" for n in range(self.layers) for back in ("", "_reverse")[: self.directions]]
        self.cells = nn.ModuleList([make(source, suffix) for suffix in suffixes])
        self.dropout = nn.Dropout(source.dropout)
        self.register_buffer("zeros", torch.zeros([1, source.hidden_size]))

    def forward(self, x: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        """All outputs, and the last states [layers*directions,N,size] (for LSTMs the pair of them)."""
        if not self.batch_first:
            x = x.transpose(0, 1)
        first = hx if self.with_cell_state else (hx,)
        last: list[Sequence[Tensor]] = []
        for layer in range(self.layers):
            results: list[Tensor] = []
            for back in range(self.directions):
                index = layer * self.directions + back
                count = 2 if self.with_cell_state else 1
                given = [first[i][index] for i in range(count)] if self.given_state else [self.zeros] * count
                outputs, end = self._run(self.cells[index], x, given, back == 1)
                results.append(torch.stack(outputs, 1))
                last.append(end)
            x = results[0] if len(results) == 1 else torch.cat(results, 2)
            if layer + 1 < self.layers:
                x = self.dropout(x)
        states = tuple(torch.stack([end[i] for end in last], 0) for i in range(len(last[0])))
        return x if self.batch_first else x.transpose(0, 1), states if self.with_cell_state else states[0]

    def _run(
        self, cell: nn.Module, x: Tensor, state: Sequence[Tensor], backwards: bool
    ) -> tuple[list[Tensor], Sequence[Tensor]]:
        parts = cell.x(x)
        outputs: list[Tensor] = []
        state = [cell.state(state[0]), *(cell.cell(c) for c in state[1:])]
        hidden = cell.h(state[0]) if self.given_state else cell.from_zero()
        for step in reversed(range(self.steps)) if backwards else range(self.steps):
            state = cell(parts.select(1, step), hidden if not outputs else cell.h(state[0]), state)
            outputs.append(state[0])
        return outputs[::-1] if backwards else outputs, state


class Cell(nn.Module):
    """One step: `x` and `h` are its two linear layers, the grids are named for what they round."""

    def __init__(self, source: nn.Module, suffix: str) -> None:
        super().__init__()
        self.size: int = source.hidden_size
        for name, part in (("x", "ih"), ("h", "hh")):
            bias = getattr(source, f"bias_{part}{suffix}") if source.bias else None
            setattr(self, name, linear(getattr(source, f"weight_{part}{suffix}"), bias))
        for name in self.grids():
            setattr(self, name, Grid())

    def from_zero(self) -> Tensor:
        """What `h` makes of the state zero, [1,size]: a product of constants would only be in the way."""
        bias: Tensor | None = self.h.bias
        return torch.zeros([1, self.h.out_features]) if bias is None else bias.unsqueeze(0)

    @staticmethod
    def grids() -> Sequence[str]:
        """The names of what a step rounds."""
        return ("hidden", "total", "state")


class Rnn(Cell):
    """Elman's network."""

    def __init__(self, source: nn.Module, suffix: str) -> None:
        super().__init__(source, suffix)
        self.function: Callable[[Tensor], Tensor] = torch.tanh if source.nonlinearity == "tanh" else torch.relu

    def forward(self, x: Tensor, hidden: Tensor, state: Sequence[Tensor]) -> Sequence[Tensor]:
        """The next state."""
        return (self.state(self.function(self.total(x + self.hidden(hidden)))),)


class Gru(Cell):
    """Gated recurrent unit."""

    @staticmethod
    def grids() -> Sequence[str]:
        """The names of what a step rounds."""
        return ("hidden", "gates", "reset", "total", "new", "difference", "change", "state")

    def forward(self, x: Tensor, hidden: Tensor, state: Sequence[Tensor]) -> Sequence[Tensor]:
        """The next state."""
        (h,) = state
        both, hidden = 2 * self.size, self.hidden(hidden)
        gates = torch.sigmoid(self.gates(x.narrow(1, 0, both) + hidden.narrow(1, 0, both)))
        reset = self.reset(gates.narrow(1, 0, self.size) * hidden.narrow(1, both, self.size))
        new = self.new(torch.tanh(self.total(x.narrow(1, both, self.size) + reset)))
        change = self.change(gates.narrow(1, self.size, self.size) * self.difference(h - new))
        return (self.state(new + change),)


class Lstm(Cell):
    """Long short-term memory."""

    @staticmethod
    def grids() -> Sequence[str]:
        """The names of what a step rounds."""
        return ("hidden", "total", "new", "kept", "added", "cell", "squashed", "state")

    def forward(self, x: Tensor, hidden: Tensor, state: Sequence[Tensor]) -> Sequence[Tensor]:
        """The next state, and the next state of the cell."""
        _, c = state
        total = self.total(x + self.hidden(hidden))
        taken, forgotten, output = (torch.sigmoid(total.narrow(1, i * self.size, self.size)) for i in (0, 1, 3))
        new = self.new(torch.tanh(total.narrow(1, 2 * self.size, self.size)))
        cell = self.cell(self.kept(forgotten * c) + self.added(taken * new))
        return self.state(output * self.squashed(torch.tanh(cell))), cell

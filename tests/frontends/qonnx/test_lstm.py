"""QuantLSTMCell: unrolled against its definition, integer from end to end, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qatc.compiler.frontend import FrontendOptions
from qatc.compiler.graph import QuantGraph
from qatc.frontends.qonnx import DOMAINS, FRONTEND
from tests.frontends import networks as nets
from tests.frontends.networks import Builder
from tests.frontends.running import values

Floats = NDArray[np.float64]
GATES = ("input", "forget", "cell", "output")
QUANTIZERS = (
    "output",
    "cell_state",
    *(f"{g}_acc" for g in GATES),
    "input_sigmoid",
    "forget_sigmoid",
    "cell_tanh",
    "output_sigmoid",
    "hidden_state_tanh",
)


@dataclass(frozen=True)
class Grid:
    """Of powers of two, so that sums and products are exact in float32."""

    exponent: int
    zero: int = 0
    bits: int = 8
    signed: bool = True
    narrow: bool = False

    def __call__(self, x: Floats) -> Floats:
        low = -(2 ** (self.bits - 1)) + self.narrow if self.signed else 0
        high = 2 ** (self.bits - 1) - 1 if self.signed else 2**self.bits - 1 - self.narrow
        scale = 2.0**-self.exponent
        return (np.clip(np.rint(x / scale) + self.zero, low, high) - self.zero) * scale


@dataclass(frozen=True)
class Cell:
    """A layer: its quantizers by name, "x" for the input, "weight", "recurrent" and "bias" besides."""

    grids: dict[str, Grid]
    size: tuple[int, int, int, int]  # steps, batch, inputs, hidden
    batch_first: bool = False
    reverse: bool = False
    coupled: bool = False
    states: str = "absent"  # or "zeros", "given"
    seed: int = 0

    def values(self) -> dict[str, Floats]:
        rng = np.random.default_rng(self.seed)
        steps, batch, inputs, hidden = self.size
        found = {
            "x": rng.normal(0, 0.5, (batch, steps, inputs) if self.batch_first else (steps, batch, inputs)),
            "h": rng.normal(0, 0.5, (batch, hidden)),
            "c": rng.normal(0, 0.5, (batch, hidden)),
        }
        for gate in GATES:
            found[f"weight_{gate}"] = rng.normal(0, 0.5, (hidden, inputs))
            found[f"recurrent_{gate}"] = rng.normal(0, 0.5, (hidden, hidden))
            found[f"bias_{gate}"] = rng.normal(0, 0.5, hidden)
        return found

    def quantized(self) -> dict[str, Floats]:
        grids = {**self.grids, "h": self.grids["output"], "c": self.grids["cell_state"]}
        return {name: grids[name.partition("_")[0]](value) for name, value in self.values().items()}


def expected(cell: Cell, x: Floats | None = None) -> tuple[Floats, Floats, Floats]:
    """The definition: all outputs in the order of time, the last hidden and the last cell state; `x` for its own."""
    v, q = cell.quantized(), cell.grids
    v["x"] = v["x"] if x is None else x
    h, c = (v[n] if cell.states == "given" else np.zeros_like(v[n]) for n in "hc")
    xs = np.moveaxis(v["x"], 1, 0) if cell.batch_first else v["x"]
    outputs: list[Floats] = []

    def gate(name: str, x: Floats) -> Floats:
        total = x @ v[f"weight_{name}"].T + h @ v[f"recurrent_{name}"].T + v[f"bias_{name}"]
        total = q[f"{name}_acc"](total)
        return q["cell_tanh"](np.tanh(total)) if name == "cell" else q[f"{name}_sigmoid"](1 / (1 + np.exp(-total)))

    for x in xs[::-1] if cell.reverse else xs:
        entered, new, shown = gate("input", x), gate("cell", x), gate("output", x)
        kept = q["input_sigmoid"](np.ones_like(entered)) - entered if cell.coupled else gate("forget", x)
        state = q["cell_state"]
        c = state(state(kept * c) + state(entered * new))
        h = q["output"](shown * q["hidden_state_tanh"](np.tanh(c)))
        outputs.append(h)
    return np.stack(outputs[::-1] if cell.reverse else outputs, 1 if cell.batch_first else 0), h, c


def written(cell: Cell) -> Builder:
    b = Builder(opsets={"": 13, DOMAINS[0]: 2})

    def numbers(name: str, grid: Grid) -> list[str]:
        return [
            b.constant(f"{name}.scale", np.float32(2.0**-grid.exponent)),
            b.constant(f"{name}.zero", np.float32(grid.zero)),
            b.constant(f"{name}.bits", np.float32(grid.bits)),
        ]

    def quant(x: str, grid: Grid) -> str:
        attrs = {"signed": int(grid.signed), "narrow": int(grid.narrow), "rounding_mode": "ROUND"}
        return b.node("Quant", [x, *numbers(x, grid)], f"{x}_quant", DOMAINS[0], **attrs)

    values = cell.values()
    states = ["", ""]
    if cell.states == "zeros":
        states = [b.constant(n, np.zeros_like(values[n], np.float32)) for n in "hc"]
    elif cell.states == "given":
        grids = (cell.grids["output"], cell.grids["cell_state"])
        states = [quant(b.constant(n, values[n], np.float32), g) for n, g in zip("hc", grids, strict=True)]
    operands = [quant("input", cell.grids["x"]), *states]
    for kind in ("weight", "recurrent", "bias"):
        for gate in GATES:
            name = f"{kind}_{gate}"
            operands.append(quant(b.constant(name, values[name], np.float32), cell.grids[kind]))
    attrs: dict[str, Any] = {
        "batch_first": int(cell.batch_first),
        "reverse_input": int(cell.reverse),
        "cifg": int(cell.coupled),
    }
    for name in QUANTIZERS:
        grid = cell.grids[name]
        operands += numbers(name, grid)
        narrow = "narrow_range" if name == "output_sigmoid" else "narrow"  # as Brevitas spells them
        attrs |= {f"{name}_signed": int(grid.signed), f"{name}_{narrow}": int(grid.narrow)}
        attrs |= {f"{name}_rounding_mode": "ROUND"}
    b.nodes.append(
        nets.helper.make_node(
            "QuantLSTMCell", operands, ["all", "last_h", "last_c"], "lstm", domain=DOMAINS[0], **attrs
        )
    )
    return b


def outputs(cell: Cell) -> Builder:
    """The layer's three outputs in one tensor."""
    b = written(cell)
    axis = b.constant("axis", [1 if cell.batch_first else 0], np.int64)
    states = [b.node("Unsqueeze", [n, axis], f"{n}_row") for n in ("last_h", "last_c")]
    b.node("Concat", ["all", *states], "output", axis=1 if cell.batch_first else 0)
    return b


def read(b: Builder, shape: list[Any]) -> QuantGraph:
    graph = nets.graph_of(nets.model_of(b, shape))
    FRONTEND.normalize(graph, FrontendOptions())
    return graph


@st.composite
def cells(draw: st.DrawFn) -> Cell:
    def symmetric(low: int, high: int) -> Grid:
        bits = draw(st.integers(4, 8))
        return Grid(draw(st.integers(low, high)), 0, bits, narrow=draw(st.booleans()))

    grids = {name: symmetric(3, 6) for name in QUANTIZERS}
    for name in ("input_sigmoid", "forget_sigmoid", "output_sigmoid"):
        grids[name] = Grid(draw(st.integers(5, 8)), 0, 8, signed=False, narrow=draw(st.booleans()))
    if draw(st.booleans()):
        grids["output"] = Grid(draw(st.integers(5, 7)), draw(st.integers(60, 190)), 8, signed=False)
    grids["x"] = draw(st.sampled_from([grids["output"], Grid(5), Grid(6, 7)]))
    grids["weight"] = Grid(6, narrow=True)
    grids["recurrent"] = draw(st.sampled_from([grids["weight"], Grid(5, bits=6)]))
    grids["bias"] = Grid(grids["x"].exponent + grids["weight"].exponent, bits=24)
    size = tuple(draw(st.integers(1, n)) for n in (4, 2, 3, 3))
    choices = {n: draw(st.booleans()) for n in ("batch_first", "reverse", "coupled")}
    return Cell(
        grids,
        size,
        states=draw(st.sampled_from(["absent", "zeros", "given"])),
        seed=draw(st.integers(0, 99)),
        **choices,
    )


def check(cell: Cell) -> None:
    """Unrolled, a cell computes what its definition says."""
    x = cell.values()["x"].astype(np.float32)
    graph = read(outputs(cell), list(x.shape))
    graph.diagnostics.check()
    assert not any(node.domain for node in graph.nodes)
    found = values(graph, x)
    all_outputs, hidden, state = expected(cell)
    axis = 1 if cell.batch_first else 0
    want = np.concatenate([all_outputs, *(np.expand_dims(s, axis) for s in (hidden, state))], axis)
    np.testing.assert_array_equal(found, want)


@settings(max_examples=40)
@given(cells())
def test_unrolled_it_is_what_brevitas_computes(cell: Cell) -> None:
    check(cell)


ACCUMULATORS = {f"{gate}_acc": Grid(4) for gate in GATES}
SIGMOIDS = {f"{gate}_sigmoid": Grid(8, signed=False) for gate in ("input", "forget", "output")}
PLAIN = {
    "x": Grid(6),
    "output": Grid(6),
    "cell_state": Grid(5),
    "cell_tanh": Grid(7),
    "hidden_state_tanh": Grid(7),
    **ACCUMULATORS,
    **SIGMOIDS,
    "weight": Grid(6, narrow=True),
    "recurrent": Grid(6, narrow=True),
    "bias": Grid(12, bits=24),
}


@pytest.mark.parametrize("signed", [False, True])
def test_coupled_gates_reach_both_ends(signed: bool) -> None:
    """On steps of a half the input gate is often closed: then all is kept, and 1 - i is the last of its integers."""
    half = Grid(1, bits=3, signed=signed)
    cell = Cell({**PLAIN, "input_sigmoid": half}, (6, 2, 4, 4), coupled=True, states="given")
    check(cell)


def test_gates_of_one_grid_are_one_product_each() -> None:
    steps = 5
    graph = read(outputs(Cell(PLAIN, (steps, 2, 3, 4))), [steps, 2, 3])
    assert sum(n.op == "Gemm" for n in graph.nodes) == 4 * steps - 1  # nothing to forget in the first step
    merged = {n.inputs[1].name for n in graph.nodes if n.op == "Gemm" and n.inputs[1].name.endswith("_both")}
    assert len(merged) == 4  # one weight a gate, however many steps read it


def test_two_layers_follow_each_other() -> None:
    b = written(Cell(PLAIN, (3, 2, 4, 4)))
    second = written(Cell(PLAIN, (3, 2, 4, 4), seed=1))
    renamed = {"": "", "input": "all"}

    def name(old: str) -> str:
        return renamed.setdefault(old, f"second_{old}")

    for constant in second.constants:
        constant.name = name(constant.name)
        b.constants.append(constant)
    for node in second.nodes:
        node.input[:] = map(name, node.input)
        node.output[:] = (
            ["output", *map(name, node.output[1:])] if node.op_type == "QuantLSTMCell" else [*map(name, node.output)]
        )
        b.nodes.append(node)
    graph = read(b, [3, 2, 4])
    graph.diagnostics.check()
    assert sum(n.op == "Gemm" for n in graph.nodes) == 2 * (4 * 3 - 1)
    first = Cell(PLAIN, (3, 2, 4, 4))
    found = values(graph, first.values()["x"].astype(np.float32))
    np.testing.assert_array_equal(found, expected(Cell(PLAIN, (3, 2, 4, 4), seed=1), expected(first)[0])[0])


@pytest.mark.parametrize(
    ("shape", "found"),
    [(["T", 2, 3], "steps cannot be counted"), ([3000, 1, 3], "3,000 steps"), (None, "steps cannot be counted")],
)
def test_steps_that_cannot_be_written_out_are_refused(shape: list[Any] | None, found: str) -> None:
    graph = read(outputs(Cell(PLAIN, (3, 1, 3, 2))), shape)  # type: ignore[arg-type]
    errors = [d for d in graph.diagnostics if d.code == "QAT302"]
    assert len(errors) == 1
    assert found in errors[0].message
    assert errors[0].node == "lstm"


def test_a_cell_of_other_operands_is_refused() -> None:
    b = outputs(Cell(PLAIN, (3, 1, 3, 2)))
    node = next(n for n in b.nodes if n.op_type == "QuantLSTMCell")
    del node.input[40:]
    graph = read(b, [3, 1, 3])
    assert [d.message for d in graph.diagnostics if d.code == "QAT302"] == [
        "QuantLSTMCell cannot be unrolled: it has 40 operands, not 48"
    ]


def test_a_gate_whose_weights_do_not_fit_is_refused() -> None:
    """Found by fuzzing."""
    b = outputs(Cell(PLAIN, (3, 2, 3, 4)))
    constant = next(c for c in b.constants if c.name == f"recurrent_{GATES[0]}")
    constant.CopyFrom(nets.numpy_helper.from_array(np.zeros((5, 4), np.float32), constant.name))
    errors = [d.message for d in read(b, [3, 2, 3]).diagnostics if d.code == "QAT302"]
    assert errors == ["QuantLSTMCell cannot be unrolled: a gate's weights have 4 and 5 rows"]


def test_a_quantizer_that_is_refused_ends_the_cell_with_one_error() -> None:
    b = outputs(Cell({**PLAIN, "cell_state": Grid(5, bits=40)}, (4, 1, 3, 2)))
    graph = read(b, [4, 1, 3])
    assert len([d for d in graph.diagnostics if d.severity.name == "ERROR"]) == 1

"""TFLite's LSTM, as tf2onnx hands it on: written out against TFLite's definition, or ONNX's LSTM."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from qatc import CompileError
from qatc.compiler.diagnostics import Diagnostic, Severity
from qatc.frontends.tf.lstm import OPERATOR, write_out
from tests.frontends import networks as nets
from tests.frontends.networks import Builder
from tests.frontends.running import run

Floats = NDArray[np.float64]
GATES = ("input", "forget", "cell", "output")
DATA, WEIGHT, RECURRENT = 2.0**-5, 2.0**-5, 2.0**-5
HIDDEN = (2.0**-7, 3)


@dataclass(frozen=True)
class Layer:
    """A layer of TFLite: "int8", weights of 8 bits alone ("hybrid"), or "float"."""

    kind: str = "int8"
    size: tuple[int, int, int, int] = (7, 2, 5, 6)  # steps, batch, inputs, hidden
    time_major: bool = False
    clip: float = 10.0
    cell: float = 2.0**-12
    state: tuple[float, int] = HIDDEN  # the grid on which the next step reads
    result: tuple[float, int] = HIDDEN

    def shape(self) -> list[int]:
        steps, batch, inputs, _ = self.size
        return [steps, batch, inputs] if self.time_major else [batch, steps, inputs]

    def data(self) -> NDArray[np.float32]:
        return np.random.default_rng(1).normal(0, 1, self.shape()).astype(np.float32)

    def weights(self) -> list[NDArray[Any]]:
        """Integers: of the input, of the hidden state, biases; four each."""
        rng, (_, _, inputs, hidden) = np.random.default_rng(0), self.size
        found = [rng.integers(-127, 128, (hidden, inputs)).astype(np.int8) for _ in GATES]
        found += [rng.integers(-127, 128, (hidden, hidden)).astype(np.int8) for _ in GATES]
        return [*found, *(rng.integers(-4000, 4000, hidden).astype(np.int32) for _ in GATES)]


def scales() -> list[float]:
    """Of the weights: each gate has its own."""
    return [s * 2.0**-i for s in (WEIGHT, RECURRENT) for i in range(4)] + [DATA * WEIGHT * 2.0**-i for i in range(4)]


def expected(layer: Layer) -> Floats:
    """The definition: `LstmStepInteger8x8_16`, in real numbers before each rounding."""
    reals = [w * s for w, s in zip(layer.weights(), scales(), strict=True)]
    weights, recurrent, biases = reals[:4], reals[4:8], reals[8:]

    def grid(x: Floats, scale: float, zero: int = 0, bits: int = 16) -> Floats:
        if layer.kind != "int8":
            return x
        ends = 2 ** (bits - 1)
        return (np.clip(np.rint(x / scale) + zero, -ends, ends - 1) - zero) * scale

    steps, batch, _, hidden = layer.size
    x = grid(layer.data().astype(np.float64), DATA, bits=8)
    h, c = np.zeros((batch, hidden)), np.zeros((batch, hidden))
    outputs: list[Floats] = []
    for t in range(steps):
        step = x[t] if layer.time_major else x[:, t]
        sums = [grid(step @ w.T + b, 2.0**-12) for w, b in zip(weights, biases, strict=True)]
        sums = [grid(s + grid(h @ r.T, 2.0**-12), 2.0**-12) for s, r in zip(sums, recurrent, strict=True)]
        i, f, o = (grid(1 / (1 + np.exp(-sums[k])), 2.0**-15) for k in (0, 1, 3))
        c = grid(grid(f * c, layer.cell) + grid(i * grid(np.tanh(sums[2]), 2.0**-15), layer.cell), layer.cell)
        if layer.kind == "int8" and layer.clip > 0:
            c = np.clip(c, -layer.clip, layer.clip)
        h = grid(o * grid(np.tanh(c), 2.0**-15), *HIDDEN, bits=8)
        outputs.append(h)
    found = np.stack(outputs, 0 if layer.time_major else 1)
    return grid(found, *layer.result, bits=8)


def written(layer: Layer) -> Builder:
    b = Builder()

    def on_grid(name: str, integers: NDArray[Any], scale: float, zero: int = 0) -> str:
        holds = b.constant(name, integers)
        zeros = b.constant(f"{name}_zero", np.asarray(zero, integers.dtype))
        return b.node(
            "DequantizeLinear", [holds, b.constant(f"{name}_scale", np.float32(scale)), zeros], f"{name}_real"
        )

    def rounded(x: str, scale: float, zero: int, out: str) -> str:
        numbers = [b.constant(f"{out}_scale", np.float32(scale)), b.constant(f"{out}_zero", np.int8(zero))]
        return b.node("DequantizeLinear", [b.node("QuantizeLinear", [x, *numbers], f"{out}_q"), *numbers], out)

    whole = layer.kind == "int8"
    operands = [rounded("input", DATA, 0, "x") if whole else "input"]
    for index, (integers, scale) in enumerate(zip(layer.weights(), scales(), strict=True)):
        name = f"{('weight', 'recurrent', 'bias')[index // 4]}_{GATES[index % 4]}"
        if whole or (layer.kind == "hybrid" and index < 8):
            operands.append(on_grid(name, integers, scale))
        else:
            operands.append(b.constant(name, integers * scale, np.float32))
    if whole:
        grids = {"hidden": HIDDEN, "cell": (layer.cell, 0), "state": layer.state, "result": layer.result}
        for name, (scale, zero) in grids.items():
            kind = np.int16 if name == "cell" else np.int8
            operands.append(on_grid(name, np.zeros(1, kind), scale, zero))
    attrs: dict[str, Any] = {"time_major": int(layer.time_major), "cell_clip": layer.clip}
    made = nets.helper.make_node(OPERATOR, operands, ["y"], "layer", **attrs)
    b.nodes.append(made)
    if whole:
        rounded("y", *layer.result, "output")
    else:
        b.node("Identity", ["y"], "output")
    return b


def read(layer: Layer, b: Builder, folder: Path, shape: list[Any] | None = None) -> tuple[Diagnostic, ...]:
    model = nets.model_of(b, layer.shape() if shape is None else shape)
    model.producer_name = "tf2onnx"
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return write_out(folder / "model.onnx")


def nodes(folder: Path) -> list[onnx.NodeProto]:
    return list(onnx.load(folder / "model.onnx").graph.node)


@pytest.mark.parametrize(
    "layer",
    [
        Layer(),
        Layer(time_major=True),
        Layer(size=(1, 1, 3, 2)),
        Layer(size=(40, 1, 4, 4), cell=2.0**-11),
        Layer(clip=-1.0),
        Layer(size=(20, 3, 4, 4), clip=1.5),
        Layer(result=(2.0**-6, -2)),
    ],
    ids=str,
)
def test_integers_are_written_out_as_tflite_computes_them(layer: Layer, tmp_path: Path) -> None:
    found = read(layer, written(layer), tmp_path)
    assert [d.code for d in found] == (["QAT014"] if layer.result != HIDDEN else [])
    (got,) = run(tmp_path / "model.onnx", layer.data())
    want, step = expected(layer), layer.result[0]
    assert np.abs(got - want).max() <= step  # float32 sees a tie of 2^-15 where there is none
    assert np.mean(got == want) > 0.99
    assert np.ptp(want) > 20 * step
    ops = [n.op_type for n in nodes(tmp_path)]
    assert ops.count("Gemm") == 1  # of the inputs of all steps
    assert ops.count("MatMul") == layer.size[0] - 1  # in the first step there is no state
    assert onnx.load(tmp_path / "model.onnx").producer_name == "tf2onnx"


def test_the_cell_state_of_that_definition_is_clipped() -> None:
    layer = Layer(size=(20, 3, 4, 4), clip=1.5)
    assert np.abs(expected(layer) - expected(replace(layer, clip=10.0))).max() > 5 * HIDDEN[0]


def test_a_state_on_another_grid_is_told(tmp_path: Path) -> None:
    layer = Layer(state=(2.0**-7, 5))
    (found,) = read(layer, written(layer), tmp_path)
    assert (found.code, found.severity) == ("QAT014", Severity.WARNING)
    assert "on another grid than it computes them on" in found.message
    (got,) = run(tmp_path / "model.onnx", layer.data())
    assert np.mean(got == expected(layer)) > 0.99


@pytest.mark.parametrize("kind", ["float", "hybrid"])
@pytest.mark.parametrize("time_major", [False, True])
def test_real_numbers_are_an_lstm_of_onnx(kind: str, time_major: bool, tmp_path: Path) -> None:
    layer = Layer(kind, time_major=time_major)
    found = read(layer, written(layer), tmp_path)
    (got,) = run(tmp_path / "model.onnx", layer.data())
    np.testing.assert_allclose(got, expected(layer), atol=1e-5)
    ops = [n.op_type for n in nodes(tmp_path)]
    assert ops.count("LSTM") == 1
    assert ops.count("DequantizeLinear") == (2 if kind == "hybrid" else 0)  # a scale for each row of both weights
    assert [d.severity for d in found] == [Severity.NOTE] * (kind == "hybrid")


@pytest.mark.parametrize(("clip", "told"), [(0.0, False), (7.0, False), (6.5, True)])
def test_a_clip_that_onnx_has_not_is_told(clip: float, told: bool, tmp_path: Path) -> None:
    layer = Layer("float", clip=clip)  # of seven steps, which add 1 each at most
    found = read(layer, written(layer), tmp_path)
    assert [f"within -{clip:g}..{clip:g}" in d.message for d in found] == [True] * told


def test_another_file_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    b = Builder()
    b.node("Relu", ["input"], "output")
    content = nets.model_of(b, [2, 3]).SerializeToString()
    (tmp_path / "model.onnx").write_bytes(content)
    assert write_out(tmp_path / "model.onnx") == ()
    assert (tmp_path / "model.onnx").read_bytes() == content


# -- what is refused ------------------------------------------------------------------------------------------------
def damaged(name: str, value: NDArray[Any]) -> Builder:
    b = written(Layer())
    constant = next(c for c in b.constants if c.name == name)
    constant.CopyFrom(nets.numpy_helper.from_array(value, name))
    return b


def without(first: int, last: int) -> Builder:
    b = written(Layer())
    node = next(n for n in b.nodes if n.op_type == OPERATOR)
    del node.input[first:last]
    return b


def computed(index: int) -> Builder:
    b = written(Layer())
    node = next(n for n in b.nodes if n.op_type == OPERATOR)
    node.input[index] = b.node("Relu", [node.input[index]], "computed")
    return b


@pytest.mark.parametrize(
    ("builder", "shape", "message"),
    [
        (written(Layer()), [2, "T", 5], "QAT302.*steps cannot be counted"),
        (written(Layer()), [2, 0, 5], "QAT302.*steps cannot be counted"),
        (written(Layer()), [2, 2049, 5], "QAT302.*2,049 steps; up to 2,048"),
        (written(Layer()), [2, 7, 4], r"QAT302.*reads a tensor of shape \[2, 7, 4\], and 5 numbers a step"),
        (written(Layer(clip=0.5)), None, "QAT302.*kept within 0.5"),
        (written(Layer(clip=float("nan"))), None, "QAT302.*kept within nan"),
        (damaged("weight_input", np.zeros((0, 5), np.int8)), None, r"QAT302.*of shape \[0, 5\]"),
        (damaged("weight_input", np.zeros(6, np.int8)), None, r"QAT302.*of shape \[6\]"),
        (damaged("weight_output", np.zeros((5, 6), np.int8)), None, r"QAT302.*\[5, 6\], not \[6, 5\]"),
        (damaged("recurrent_cell", np.zeros((6, 5), np.int8)), None, r"QAT302.*\[6, 5\], not \[6, 6\]"),
        (damaged("bias_cell", np.zeros(1, np.int32)), None, r"QAT302.*\[1\], not \[6\]"),
        (damaged("cell_scale", np.zeros((), np.float32)), None, "QAT201"),
        (without(9, 17), None, "QAT302.*9 operands"),
        (computed(3), None, "QAT205.*computed at run time by Relu"),
    ],
)  # fmt: skip
def test_what_cannot_be_written_is_an_error(
    builder: Builder, shape: list[Any] | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(CompileError, match=message):
        read(Layer(), builder, tmp_path, shape)

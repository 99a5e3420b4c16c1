"""What elementwise operators compute in another layout is what they computed in theirs, with fewer layout operators."""

from __future__ import annotations

import math
from itertools import count
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qatc import compile_model
from qatc.compiler.graph import QuantGraph, shape_of
from qatc.compiler.passes.movement import LAYOUT
from qatc.compiler.passes.needless import leave_out_moves
from qatc.compiler.passes.propagate import propagate
from qatc.compiler.quant import QuantParams
from tests.graphs import net, stripped
from tests.pipeline import simulate

SIGNAL = "(float[1,8,6] x) => (float[M] y)"
CONSTANTS = (
    "int64[1] one = {1}, int64[1] two = {2}, int64[6] pads = {0, 2, 0, 0, 1, 0}, "
    "int64[8] wide = {0, 0, 1, 0, 0, 0, 0, 0}, "
    "float[6, 1] t = {1, 2, 3, 4, 5, 6}, float low = {0}, float high = {3}"
)
IN = OUT = "Transpose<perm = [0, 2, 1]>"


def turned(body: str, signature: str = SIGNAL) -> list[str]:
    """The operators that are left of a network, which still computes the same."""
    graph = stripped(net(signature, body, CONSTANTS))
    propagate(graph)
    feeds = {"x": np.random.default_rng(0).normal(size=(1, 8, 6)).astype(np.float32)}
    want = simulate(graph, feeds)
    leave_out_moves(graph)
    graph.verify()
    found = simulate(graph, feeds)
    for name, value in want.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, strict=True)
    return [node.op for node in graph.nodes]


@pytest.mark.parametrize(
    ("body", "left"),
    [
        (f"a = {IN}(x)\nb = Relu(a)\nd = {OUT}(b)\ny = Sigmoid(d)", ["Relu", "Sigmoid"]),
        (f"a = {IN}(x)\nb = Mul(a, t)\nd = {OUT}(b)\ny = Sigmoid(d)", ["Mul", "Sigmoid"]),
        (f"a = {IN}(x)\nb = Clip(a, low, high)\nd = {OUT}(b)\ny = Sigmoid(d)", ["Clip", "Sigmoid"]),
        (f"a = {IN}(x)\nb = Relu(a)\nd = {IN}(x)\ne = Add(b, d)\nf = {OUT}(e)\ny = Sigmoid(f)",
         ["Relu", "Add", "Sigmoid"]),
        (f"a = {IN}(x)\nb = Concat<axis = -1>(a, a)\nd = {OUT}(b)\ny = Sigmoid(d)", ["Concat", "Sigmoid"]),
        (f"a = {IN}(x)\nb = Pad(a, pads)\nd = {OUT}(b)\ny = Sigmoid(d)", ["Pad", "Sigmoid"]),
        ("a = Unsqueeze(x, two)\nb = Relu(a)\nd = Squeeze(b, two)\ny = Sigmoid(d)", ["Relu", "Sigmoid"]),
        # the axis of size 1 is padded: it cannot be left out, but brought in where it is wanted
        ("a = Unsqueeze(x, two)\nb = Pad(a, wide)\nd = Transpose<perm = [0, 2, 1, 3]>(b)\ny = Sigmoid(d)",
         ["Unsqueeze", "Pad", "Sigmoid"]),
        # what one side would gain, another one loses
        (f"a = {IN}(x)\nb = Relu(a)\nd = Sigmoid(b)\ny = Softmax(d)", ["Transpose", "Relu", "Sigmoid", "Softmax"]),
        # windows, over other axes of space
        ("u = Unsqueeze(x, one)\na = Transpose<perm = [0, 1, 3, 2]>(u)\n"
         "b = MaxPool<kernel_shape = [1, 2], strides = [1, 2], pads = [0, 1, 0, 0]>(a)\n"
         "d = Transpose<perm = [0, 1, 3, 2]>(b)\ny = Sigmoid(d)", ["Unsqueeze", "MaxPool", "Sigmoid"]),
        # windows have their channels in front
        (f"a = {IN}(x)\nb = MaxPool<kernel_shape = [2]>(a)\nd = {OUT}(b)\ny = Sigmoid(d)",
         ["Transpose", "MaxPool", "Transpose", "Sigmoid"]),
        # a mean over the axis that is left out as well
        ("a = Unsqueeze(x, one)\nb = Transpose<perm = [0, 2, 1, 3]>(a)\nd = Squeeze(b, two)\n"
         "y = ReduceMean<axes = [1], keepdims = 0>(d)", ["ReduceMean"]),
    ],
)  # fmt: skip
def test_what_is_left(body: str, left: list[str]) -> None:
    assert turned(body) == left


def test_what_others_read_keeps_its_layout() -> None:
    body = f"a = {IN}(x)\ny = Relu(a)\nd = {OUT}(y)\nz = Sigmoid(d)"
    assert turned(body, "(float[1,8,6] x) => (float[1,6,8] y, float[M] z)") == ["Relu", "Transpose", "Sigmoid"]


def test_grids_for_each_channel_keep_their_layout() -> None:
    graph = stripped(net(SIGNAL, f"a = {IN}(x)\nb = Relu(a)\nd = {OUT}(b)\ny = Sigmoid(d)", CONSTANTS))
    graph.params["b"] = QuantParams((0.5,) * 6, (0,) * 6, "uint8", 1)
    leave_out_moves(graph)
    assert [node.op for node in graph.nodes] == ["Transpose", "Relu", "Transpose", "Sigmoid"]


# -- any network ----------------------------------------------------------------------------------------------------
@st.composite
def networks(draw: st.DrawFn) -> str:
    """Layout operators, elementwise ones, pads, joins and grids in any order over a signal, with several outputs."""
    known: dict[str, tuple[int, ...]] = {"x": (1, 8, 6)}
    names, lines, constants = (f"v{i}" for i in count()), list[str](), list[str]()

    def constant(values: list[int]) -> str:
        name = f"k{len(constants)}"
        constants.append(f"int64[{len(values)}] {name} = {{{', '.join(map(str, values))}}}")
        return name

    for _ in range(draw(st.integers(3, 14))):
        x = draw(st.sampled_from([*known][-3:]))
        shape, y = known[x], next(names)
        kind = draw(
            st.sampled_from(
                ["Transpose", "Transpose", "Squeeze", "Unsqueeze", "Relu", "Add", "Add", "Pad", "Concat", "A"]
            )
        )
        alike = [name for name, other in known.items() if other == shape]
        ones = [axis for axis, size in enumerate(shape) if size == 1]
        if kind == "Transpose":
            order = draw(st.permutations(range(len(shape))))
            lines.append(f"{y} = Transpose<perm = {[*order]}>({x})")
            known[y] = tuple(shape[axis] for axis in order)
        elif kind == "Squeeze" and ones and len(shape) > 2:
            axis = draw(st.sampled_from(ones))
            lines.append(f"{y} = Squeeze({x}, {constant([axis])})")
            known[y] = shape[:axis] + shape[axis + 1 :]
        elif kind == "Unsqueeze" and len(shape) < 5:
            axis = draw(st.integers(0, len(shape)))
            lines.append(f"{y} = Unsqueeze({x}, {constant([axis])})")
            known[y] = (*shape[:axis], 1, *shape[axis:])
        elif kind == "Pad" and math.prod(shape) < 500:
            widths = draw(st.lists(st.sampled_from([0, 0, 0, 1]), min_size=2 * len(shape), max_size=2 * len(shape)))
            lines.append(f"{y} = Pad({x}, {constant(widths)})")
            known[y] = tuple(size + widths[i] + widths[i + len(shape)] for i, size in enumerate(shape))
        elif kind == "Concat" and math.prod(shape) < 500:
            axis = draw(st.integers(0, len(shape) - 1))
            lines.append(f"{y} = Concat<axis = {axis}>({x}, {draw(st.sampled_from(alike))})")
            known[y] = (*shape[:axis], 2 * shape[axis], *shape[axis + 1 :])
        else:
            other = draw(st.sampled_from(alike))
            lines.append(
                f"{y} = A({x})" if kind == "A" else f"{y} = Relu({x})" if kind != "Add" else f"{y} = Add({x}, {other})"
            )
            known[y] = shape
    made = [*known][1:]
    outputs = sorted({made[-1], draw(st.sampled_from(made))})
    lines += [f"out{i} = Sigmoid({name})" for i, name in enumerate(outputs)]
    results = ", ".join(f"float[{','.join(map(str, known[name]))}] out{i}" for i, name in enumerate(outputs))
    return net(f"(float[1,8,6] x) => ({results})", "\n".join(lines), ", ".join(constants))


def moves(graph: QuantGraph) -> int:
    return sum(node.op in LAYOUT for node in graph.nodes)


@given(networks())
def test_any_network_computes_the_same_with_no_more_moves(text: str) -> None:
    graph = stripped(text)
    propagate(graph)
    before, feeds = moves(graph), {"x": np.random.default_rng(1).normal(size=(1, 8, 6)).astype(np.float32)}
    want = simulate(graph, feeds)
    leave_out_moves(graph)
    graph.verify()
    assert moves(graph) <= before
    found = simulate(graph, feeds)
    for name, value in want.items():
        np.testing.assert_array_equal(found[name], value, strict=True)
    for tensor in graph.made():
        assert shape_of(tensor) is not None


# -- what TensorFlow writes -----------------------------------------------------------------------------------------
def test_a_residual_network_over_time_has_no_moves_between_its_convolutions(tmp_path: Path) -> None:
    """tf2onnx writes each Conv1D as Unsqueeze, Transpose, Conv, Squeeze; what is between them has the channels last."""
    into = "Transpose<perm = [0, 3, 1, 2]>"
    lines = ["wd = DequantizeLinear(w, sw, zw)", "a = C(x)", "u0 = Unsqueeze(a, one)", f"i0 = {into}(u0)"]
    for i in (0, 1, 2):
        lines += [
            f"f{i} = Conv<kernel_shape = [1, 3], pads = [0, 1, 0, 1]>(i{i}, wd)",
            f"g{i} = Squeeze(f{i}, two)",
            f"b{i} = Add(g{i}, t)",
            f"r{i} = Relu(b{i})",
            f"h{i} = A(r{i})",
            f"s{i} = Transpose<perm = [0, 2, 1]>(h{i})",
        ]
        if i:
            lines += [f"m{i} = Add(s{i}, {'s0' if i == 1 else 'q1'})", f"q{i} = A(m{i})"]
        lines += [f"u{i + 1} = Unsqueeze({f'q{i}' if i else 's0'}, one)", f"i{i + 1} = {into}(u{i + 1})"]
    lines += ["e = ReduceMean<axes = [1], keepdims = 0>(q2)", "y = A(e)"]
    weights = ", ".join(str(v % 7 - 3) for v in range(6 * 6 * 3))
    constants = f"{CONSTANTS}, int8[6, 6, 1, 3] w = {{{weights}}}, float sw = {{0.25}}, int8 zw = {{0}}"
    text = net("(float[1,8,6] x) => (float[1, 6] y)", "\n".join(lines), constants)
    onnx.save(onnx.parser.parse_model(text), tmp_path / "net.onnx")
    found = compile_model(tmp_path / "net.onnx", qat=True, output=tmp_path / "p", samples=3)
    written = [node.op_type for node in onnx.load(tmp_path / "p" / "model.onnx").graph.node]
    assert written.count("QLinearConv") == 3
    assert not {"Transpose", "Squeeze", "Unsqueeze", "Reshape"} & {*written[written.index("QLinearConv") :]}
    assert found.verification is not None
    judged = {tally.tensor for tally in found.verification.local}
    assert {"h0", "h1", "h2", "q1", "q2"} <= judged  # each is compared, though it has other axes in the file

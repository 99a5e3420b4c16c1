"""Constant folding: right values, nothing that is not ours to fold, no bombs, linear time."""

from __future__ import annotations

import tracemalloc

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx.reference import ReferenceEvaluator

from qatc.compiler.graph import Constant, Node, QuantGraph, Variable, value_of
from qatc.compiler.passes.constants import compute_quantized, fold_constants
from qatc.compiler.passes.evaluate import Refused, evaluate, size_of_result
from qatc.compiler.passes.modernize import modernize
from qatc.compiler.quant import QuantParams
from tests.graphs import loaded

OPSET = onnx.defs.onnx_opset_version()
F = np.random.default_rng(1).normal(size=(2, 3, 4)).astype(np.float32)
I = np.arange(-6, 6, dtype=np.int64).reshape(3, 4)  # noqa: E741
CASES: list[tuple[str, list[np.ndarray | None], dict[str, object]]] = [
    *((op, [F], {}) for op in ("Abs", "Neg", "Sign", "Floor", "Ceil", "Round", "Relu")),
    *((op, [F], {}) for op in ("Tanh", "Sigmoid", "Softplus", "Exp")),
    *((op, [np.abs(F) + 1], {}) for op in ("Sqrt", "Reciprocal", "Log")),
    *((op, [F, F[:1]], {}) for op in ("Add", "Sub", "Mul", "Div", "Less", "Greater", "Equal")),
    *((op, [F, F[:1]], {}) for op in ("LessOrEqual", "GreaterOrEqual")),
    ("Div", [I, np.asarray([4, -3, 5, 2])], {}),
    ("Pow", [np.abs(F), np.asarray(3.0, np.float32)], {}),
    ("Pow", [np.asarray(2, np.int64), np.asarray(10, np.int64)], {}),
    ("Not", [F > 0], {}),
    ("And", [F > 0, F < 1], {}),
    ("Or", [F > 1, F < 0], {}),
    ("Min", [F, F[:1], np.float32(0.1).reshape(())], {}),
    ("Max", [F], {}),
    ("Sum", [F, F, F], {}),
    ("Where", [F > 0, F, np.asarray(0, np.float32)], {}),
    ("Clip", [F, None, np.asarray(0.5, np.float32)], {}),
    ("Clip", [F, np.asarray(-0.5, np.float32)], {}),
    ("Clip", [F], {}),
    ("Cast", [F], {"to": onnx.TensorProto.INT32}),
    ("Cast", [I], {"to": onnx.TensorProto.FLOAT}),
    ("Cast", [F], {"to": onnx.TensorProto.BOOL}),
    ("Reshape", [F, np.asarray([0, -1])], {}),
    ("Reshape", [np.zeros((0, 3), np.float32), np.asarray([3, 0])], {"allowzero": 1}),
    ("Flatten", [F], {"axis": 2}),
    ("Flatten", [F], {"axis": -2}),
    ("Flatten", [F], {"axis": 0}),
    ("Squeeze", [F[:1]], {}),
    ("Squeeze", [F[:1], np.asarray([0])], {}),
    ("Unsqueeze", [F, np.asarray([0, -1])], {}),
    ("Transpose", [F], {}),
    ("Transpose", [F], {"perm": [1, 2, 0]}),
    ("Slice", [F, np.asarray([0, 1]), np.asarray([2, 100]), np.asarray([1, 2]), np.asarray([1, 2])], {}),
    ("Slice", [F, np.asarray([-1]), np.asarray([-100]), np.asarray([2]), np.asarray([-1])], {}),
    ("Slice", [F, np.asarray([3]), np.asarray([0]), np.asarray([2]), np.asarray([-2])], {}),
    ("Slice", [F, np.asarray([-100]), np.asarray([-1]), np.asarray([2])], {}),
    ("Slice", [F, np.asarray([5]), np.asarray([9]), np.asarray([1])], {}),
    ("Gather", [F, np.asarray([[0, -1]])], {"axis": 1}),
    ("Gather", [I, np.asarray(1)], {}),
    ("Concat", [F, F], {"axis": -1}),
    ("Expand", [F[:1], np.asarray([2, 2, 1, 1])], {}),
    ("Tile", [F, np.asarray([1, 2, 3])], {}),
    ("Range", [np.asarray(1, np.int64), np.asarray(10, np.int64), np.asarray(4, np.int64)], {}),
    ("Range", [np.asarray(5.0, np.float32), np.asarray(0.0, np.float32), np.asarray(-1.5, np.float32)], {}),
    ("ConstantOfShape", [np.asarray([2, 3])], {}),
    ("ConstantOfShape", [np.asarray([2])], {"value": np.asarray([7], np.int32)}),
    *((op, [F, np.asarray([1])], {"keepdims": 0}) for op in ("ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd")),
    ("ReduceMean", [F, np.asarray([0, 2])], {}),
    ("ReduceSum", [F], {}),
    ("MatMul", [F, F.transpose(0, 2, 1)], {}),
    ("Pad", [F, np.asarray([0, 1, 0, 0, 0, 2]), np.asarray(3, np.float32)], {}),
    ("Mod", [I, np.asarray(4)], {}),
]  # fmt: skip


def node_of(op: str, values: list[np.ndarray | None], attrs: dict[str, object], outputs: int = 1) -> Node:
    inputs = [Constant(f"i{i}", np.asarray(v)) if v is not None else Variable("") for i, v in enumerate(values)]
    return Node(op, op, attrs, inputs, [Variable(f"o{i}") for i in range(outputs)])


def proto_of(op: str, values: list[np.ndarray | None], attrs: dict[str, object]) -> onnx.NodeProto:
    tensors = {k: onnx.numpy_helper.from_array(v) if isinstance(v, np.ndarray) else v for k, v in attrs.items()}
    return onnx.helper.make_node(op, ["" if v is None else f"i{i}" for i, v in enumerate(values)], ["o0"], **tensors)


@pytest.mark.parametrize(("op", "values", "attrs"), CASES, ids=[f"{i}-{c[0]}" for i, c in enumerate(CASES)])
def test_values_are_onnx_s_own(op: str, values: list[np.ndarray | None], attrs: dict[str, object]) -> None:
    node = node_of(op, values, attrs)
    (got,) = evaluate(node, values, OPSET)
    feeds = {f"i{i}": v for i, v in enumerate(values) if v is not None}
    (want,) = ReferenceEvaluator(proto_of(op, values, attrs)).run(None, feeds)
    assert got.dtype == np.asarray(want).dtype
    assert got.shape == np.asarray(want).shape
    np.testing.assert_allclose(got, want, rtol=3e-7 if got.dtype.kind == "f" else 0)
    size = size_of_result(node, values, OPSET)
    assert size is None or size >= got.nbytes


def test_split_in_given_and_equal_parts() -> None:
    parts = evaluate(node_of("Split", [F, np.asarray([1, 3])], {"axis": 2}, 2), [F, np.asarray([1, 3])], OPSET)
    assert [p.shape for p in parts] == [(2, 3, 1), (2, 3, 3)]
    parts = evaluate(node_of("Split", [F], {"axis": -1}, 3), [F], OPSET)
    assert [p.shape[-1] for p in parts] == [2, 2, 0]


@given(hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=3), elements=st.floats(-60, 60, width=32)))
def test_exponentials_are_rounded_once(x: np.ndarray) -> None:
    (got,) = evaluate(node_of("Exp", [x], {}), [x], OPSET)
    np.testing.assert_array_equal(got, np.exp(x.astype(np.longdouble)).astype(np.float32))


BOMBS = [
    ("Expand", [np.zeros((1, 1), np.float32), np.asarray([1 << 20, 1 << 20])], {}),
    ("Expand", [np.zeros((1, 1), np.float32), np.ones(64, np.int64)], {}),  # more dimensions than numpy has in a loop
    ("Tile", [np.zeros(2, np.float32), np.asarray([1 << 40])], {}),
    ("ConstantOfShape", [np.asarray([1 << 30, 1 << 30])], {}),
    ("ConstantOfShape", [np.asarray([-1])], {}),
    ("Range", [np.asarray(0), np.asarray(1 << 40), np.asarray(1)], {}),
    ("Range", [np.asarray(0), np.asarray(1), np.asarray(0)], {}),
    ("Pad", [np.zeros(2, np.float32), np.asarray([0, 1 << 40])], {}),
    ("Add", [np.zeros((1 << 14, 1), np.float32), np.zeros((1, 1 << 14), np.float32)], {}),
    ("Gather", [np.zeros((1, 1 << 16), np.float32), np.zeros(1 << 12, np.int64)], {}),
    ("MatMul", [np.zeros((1 << 14, 1), np.float32), np.zeros((1, 1 << 14), np.float32)], {}),
    ("OneHot", [np.zeros(4, np.int64), np.asarray(1 << 40), np.asarray([0.0, 1.0])], {}),
    ("RandomNormal", [], {"shape": [2]}),
]  # fmt: skip


@pytest.mark.parametrize(("op", "values", "attrs"), BOMBS, ids=[f"{i}-{c[0]}" for i, c in enumerate(BOMBS)])
def test_bombs_stay(op: str, values: list[np.ndarray | None], attrs: dict[str, object]) -> None:
    node = node_of(op, values, attrs)
    graph = QuantGraph([node], [], list(node.outputs))
    graph.explains = True
    tracemalloc.start()
    try:
        assert fold_constants(graph) == 0
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()
    assert graph.nodes == [node]
    assert bool(graph.explanation) == bool(values)


def test_broken_operators_stay() -> None:
    node = node_of("Gather", [F, np.asarray([7])], {})
    graph = QuantGraph([node], [], list(node.outputs))
    graph.explains = True
    assert fold_constants(graph) == 0
    assert "out of bounds" in graph.explanation[0]


@pytest.mark.parametrize("shape", [(2, 3), (1, 1, 2), (3, 1)])
def test_a_product_of_constants_whose_bias_does_not_fit_stays(shape: tuple[int, ...]) -> None:
    graph = QuantGraph([], [], [])
    weight = graph.constant("w", np.ones((2, 2), np.int8), QuantParams.per_tensor(0.5, 0, "int8"))
    out = graph.variable("y", onnx.TensorProto.FLOAT, [2, 2])
    inputs = [graph.constant("a", np.ones((2, 2), np.float32)), weight, graph.constant("c", np.ones(shape, np.float32))]
    graph.insert("Gemm", inputs, [out])
    graph.outputs.append(out)
    compute_quantized(graph)
    assert [node.op for node in graph.nodes] == ["Gemm"]


def test_what_is_moved_and_made_of_a_product_of_constants_is_computed() -> None:
    """The position bias of Swin V2: a quantized layer over a table, picked apart, squashed, and added at run time."""
    graph = QuantGraph([], [], [])
    weight = graph.constant("w", np.asarray([[1, 2], [3, 4]], np.int8), QuantParams.per_tensor(0.5, 0, "int8"))
    shapes = {name: [4] for name in "xbcdy"} | {"a": [2, 2]}
    x, y, *made = (graph.variable(name, onnx.TensorProto.FLOAT, shapes[name]) for name in "xyabcd")
    graph.inputs.append(x)
    graph.outputs.append(y)
    graph.insert("MatMul", [graph.constant("t", np.eye(2, dtype=np.float32)), weight], [made[0]])
    graph.insert("Reshape", [made[0], graph.constant("s", np.asarray([4]))], [made[1]])
    graph.insert("Gather", [made[1], graph.constant("i", np.asarray([3, 2, 1, 0]))], [made[2]], attrs={"axis": 0})
    graph.insert("Mul", [made[2], graph.constant("k", np.asarray([16.0], np.float32))], [made[3]])
    graph.insert("Add", [x, made[3]], [y])
    compute_quantized(graph)
    (add,) = graph.nodes
    assert value_of(add.inputs[1]) == pytest.approx(np.asarray([32.0, 24.0, 16.0, 8.0]), abs=0)


def test_unknown_operators_are_refused() -> None:
    with pytest.raises(Refused):
        evaluate(node_of("LearnablePerTensorAffine", [F], {}), [F], OPSET)


def test_scales_in_subgraphs_fold_and_weights_stay_quantizers() -> None:
    graph = loaded(
        """g (float[2,3] x) => (float[] y)
        <float p = {-0.5}, float[3,4] w = {1,2,3,4,5,6,7,8,9,10,11,12}, float z = {128.2}> {
            a = Abs(p)  eps = Constant<value = float {1e-8}>()  s = Max(a, eps)
            r = Round(z)  zp = Cast<to=2>(r)
            q = QuantizeLinear(x, s, zp)  d = DequantizeLinear(q, s, zp)
            two = Constant<value = float {2.0}>()  w2 = Mul(w, two)
            wq = QuantizeLinear(w2, s)  wd = DequantizeLinear(wq, s)
            y = MatMul(d, wd)
        }"""
    )
    modernize(graph)
    fold_constants(graph)
    graph.verify(stripped=False)
    assert graph.dump().splitlines()[2:5] == [
        "q = QuantizeLinear(x, 0.5, 128)",
        "d = DequantizeLinear(q, 0.5, 128)",
        "wq = QuantizeLinear(w2:float32[3, 4]#" + graph.dump().split("w2:float32[3, 4]#")[1][:8] + ", 0.5)",
    ]


def test_shapes_that_are_known_fold_and_others_stay() -> None:
    graph = loaded(
        """g (float[2,3,4] x, float[N,3] v) => (float[] y, float[] w, int64[1] n) {
            s = Shape<start=1>(x)  c = Constant<value_ints=[2]>()  d = Concat<axis=0>(c, s)  y = Reshape(x, d)
            t = Shape(v)  w = Reshape(v, t)  n = Shape<start=1>(v)
        }"""
    )
    modernize(graph)
    fold_constants(graph)
    graph.verify(stripped=False)
    text = graph.dump()
    assert "Shape(x)" not in text
    assert "t = Shape(v)" in text
    assert "n = Identity(3)" in text


def test_nothing_to_fold_in_a_deep_graph() -> None:
    count = 72_000
    x = Variable("x", 1, [1])
    nodes, tensor = [], x
    for i in range(count):
        out = Variable(f"t{i}", 1, [1])
        nodes.append(Node("Relu", f"n{i}", {}, [tensor], [out]))
        tensor = out
    graph = QuantGraph(nodes, [x], [tensor])
    assert fold_constants(graph) == 0


def test_a_long_chain_of_constants_is_folded_without_recursion() -> None:
    tensor: Constant | Variable = Constant("c", np.zeros(4, np.float32))
    one = Constant("one", np.ones(1, np.float32))
    nodes = []
    for i in range(20_000):
        out = Variable(f"t{i}")
        nodes.append(Node("Neg", f"n{i}", {}, [tensor], [out]))
        tensor = out
    last = Variable("y")
    nodes.append(Node("Add", "add", {}, [tensor, one], [last]))
    graph = QuantGraph(nodes, [], [last])
    assert fold_constants(graph) == 20_001
    np.testing.assert_array_equal(graph.nodes[0].inputs[0].values, np.ones(4, np.float32))


STANDARDIZED = """<ir_version: 8, opset_import: ["" : {opset}]> g (float[1,2,4,4] x) => (float[] y)
    <float[2,2,1,1] w = {{0.5, 1.5, -1.0, 3.0}}, int64[3] rows = {{1, 2, -1}}, int64[4] back = {{2, 2, 1, 1}},
     float[2] gain = {{2.0, 0.5}}, float[2] none = {{0.0, 0.0}}> {{ {body} }}"""


@pytest.mark.parametrize(
    ("opset", "normalized"),
    [
        pytest.param(
            13,
            "m = ReduceMean<axes = [0, 2], keepdims = 0>(r) e = ReduceMean<axes = [0, 2]>(r) d = Sub(r, e)"
            " q = Mul(d, d)"
            " v = ReduceMean<axes = [0, 2], keepdims = 0>(q)"
            " n, rm, rv, sm, sv = BatchNormalization<epsilon = 0.25>(r, gain, none, m, v)",
            id="torch below opset 14: given statistics, five outputs",
        ),
        pytest.param(
            15,
            "n, rm, rv = BatchNormalization<epsilon = 0.25, training_mode = 1>(r, gain, none, none, none)",
            id="statistics of its own",
        ),
    ],
)
def test_standardized_weights_fold(opset: int, normalized: str) -> None:
    """Weight standardization (timm's StdConv2d): batch norm of a constant, channel by channel, before its quantizer."""
    body = f"r = Reshape(w, rows) {normalized} s = Reshape(n, back) y = Conv(x, s)"
    graph = loaded(STANDARDIZED.format(opset=opset, body=body))
    modernize(graph)
    fold_constants(graph)
    (conv,) = graph.nodes
    weight = conv.inputs[1]
    assert isinstance(weight, Constant)
    rows = np.asarray([[0.5, 1.5], [-1.0, 3.0]])
    want = (rows - rows.mean(1, keepdims=True)) / np.sqrt(rows.var(1, keepdims=True) + 0.25) * [[2.0], [0.5]]
    np.testing.assert_allclose(weight.values.reshape(2, 2), want, rtol=1e-6)

"""QuantGraph: its invariants are checked, and its changes keep names, parameters and links in order."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qatc.compiler.diagnostics import CompileError
from qatc.compiler.graph import Constant, Node, QuantGraph, Variable, elements, rank_of, shape_of
from qatc.compiler.quant import QuantParams
from tests.graphs import expect, loaded, net

GRID = QuantParams.per_tensor(0.5, 128)


def graph_of(body: str, signature: str = "(float[2] x) => (float[2] y)", constants: str = "") -> QuantGraph:
    return loaded(net(signature, body, constants))


# -- invariants -------------------------------------------------------------------------------------------------------
def test_a_sound_graph_passes() -> None:
    graph = graph_of("a = Neg(x)\ny = Add(a, w)", constants="float[2] w = {1.0, 2.0}")
    graph.params["a"] = GRID
    graph.verify()


@pytest.mark.parametrize("op", ["QuantizeLinear", "DequantizeLinear", "FakeQuant"])
def test_what_strip_must_remove(op: str) -> None:
    graph = graph_of("y = Neg(x)")
    graph.nodes[0].op = op
    with pytest.raises(ValueError, match="left after strip"):
        graph.verify()
    graph.verify(stripped=False)


def test_nodes_out_of_order() -> None:
    graph = graph_of("a = Neg(x)\ny = Abs(a)")
    graph.nodes = graph.nodes[::-1]
    with pytest.raises(ValueError, match="reads a before it is made"):
        graph.verify()
    graph.sort()
    graph.verify()


def test_two_tensors_of_one_name() -> None:
    graph = graph_of("a = Neg(x)\ny = Abs(a)")
    graph.nodes[0].outputs[0].name = "x"
    with pytest.raises(ValueError, match="two tensors are called x"):
        graph.verify()


def test_parameters_of_a_tensor_that_is_gone() -> None:
    graph = graph_of("y = Neg(x)")
    graph.params["ghost"] = GRID
    with pytest.raises(ValueError, match="parameters for ghost"):
        graph.verify()
    graph.clean()
    graph.verify()


def test_an_output_that_nothing_makes() -> None:
    graph = graph_of("y = Neg(x)")
    graph.outputs.append(Variable("z"))
    with pytest.raises(ValueError, match="graph output z is never made"):
        graph.verify()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (QuantParams.per_tensor(0.5, 0, "int8"), "holds uint8"),
        (QuantParams.per_channel([0.5, 1, 2], 0, 0, "uint8"), "do not fit the shape"),
        (QuantParams.per_tensor(0.5, 0, "uint8", 0, 100), "leaves"),
    ],
)
def test_constants_that_break_their_parameters(params: QuantParams, message: str) -> None:
    graph = graph_of("y = Neg(x)")
    graph.nodes[0].inputs.append(graph.constant("w", np.asarray([1, 200], np.uint8)))
    graph.params["w"] = params
    with pytest.raises(ValueError, match=message):
        graph.verify()


# -- changes ----------------------------------------------------------------------------------------------------------
def test_fresh_names_are_fresh() -> None:
    graph = graph_of("a = Neg(x)\ny = Abs(a)")
    assert [graph.fresh("a"), graph.fresh("a"), graph.fresh("b")] == ["a_1", "a_2", "b"]


def test_replace_in_every_reader() -> None:
    graph = graph_of("a = Neg(x)\nb = Add(a, a)\ny = Mul(a, b)")
    a = graph.nodes[0].outputs[0]
    graph.replace(a, graph.inputs[0])
    graph.clean()
    expect(
        graph,
        """
        input x
        b = Add(x, x)
        y = Mul(x, b)
        output y
        """,
    )


def test_replace_an_output_keeps_its_name() -> None:
    graph = graph_of("a = Neg(x)\ny = Abs(a)")
    graph.params["a"] = GRID
    graph.replace(graph.outputs[0], graph.nodes[0].outputs[0])
    graph.clean()
    expect(
        graph,
        """
        input x
        y<uint8 scale 0.5 zero 128> = Neg(x)
        output y
        """,
    )


def test_a_replaced_output_leaves_its_place_to_the_other() -> None:
    graph = graph_of("a = Neg(x)\ny = Abs(a)\nz = Exp(x)", "(float[2] x) => (float[2] y, float[2] z)")
    old, (a,) = graph.outputs[0], graph.nodes[0].outputs
    graph.replace(old, a)
    assert (graph.is_output(a), graph.is_output(old)) == (True, False)
    assert [t.name for t in graph.outputs] == ["y", "z"]


def test_replace_an_output_by_an_input_copies_it() -> None:
    graph = graph_of("y = Abs(x)")
    graph.params["x"] = GRID
    graph.replace(graph.outputs[0], graph.inputs[0])
    graph.sort()
    graph.clean()
    expect(
        graph,
        """
        input x<uint8 scale 0.5 zero 128>
        y<uint8 scale 0.5 zero 128> = Identity(x)
        output y
        """,
    )


def test_replace_an_output_by_another_one() -> None:
    graph = graph_of("y = Abs(x)\nz = Neg(x)", "(float[2] x) => (float[2] y, float[2] z)")
    graph.replace(graph.outputs[1], graph.outputs[0])
    graph.sort()
    graph.clean()
    expect(
        graph,
        """
        input x
        y = Abs(x)
        z = Identity(y)
        output y
        output z
        """,
    )


def test_replace_an_output_by_a_constant() -> None:
    graph = graph_of("y = Abs(x)")
    graph.replace(graph.outputs[0], graph.constant("k", np.float32([1, 2])))
    graph.sort()
    graph.clean()
    expect(
        graph,
        """
        input x
        y = Identity(k:float32[2]{1,2})
        output y
        """,
    )


def test_bypass_and_remove() -> None:
    graph = graph_of("a = Neg(x)\nb = Abs(a)\ny = Exp(b)")
    node = graph.nodes[1]
    graph.bypass(node)
    graph.remove([node])
    expect(
        graph,
        """
        input x
        a = Neg(x)
        y = Exp(a)
        output y
        """,
    )


def test_rename_takes_everything_along() -> None:
    graph = graph_of("a = Neg(x)\ny = Abs(a)")
    graph.params["a"], graph.origin["a"] = GRID, "source"
    graph.rename(graph.nodes[0].outputs[0], "b")
    assert (graph.params, graph.origin) == ({"b": GRID}, {"b": "source"})
    assert graph.fresh("b") == "b_1"


def test_clean_keeps_what_outputs_need() -> None:
    graph = graph_of("a = Neg(x)\nb = Exp(a)\nc = Abs(b)\ny = Abs(a)")
    graph.params.update({"b": GRID, "a": GRID})
    graph.clean()
    expect(
        graph,
        """
        input x
        a<uint8 scale 0.5 zero 128> = Neg(x)
        y = Abs(a)
        output y
        """,
    )


def test_clean_takes_nodes_without_results_and_what_leads_to_them() -> None:
    graph = graph_of("a = Neg(x)\nb = Abs(a)\ny = Exp(x)")
    graph.nodes[1].outputs.clear()
    graph.clean()
    assert [n.op for n in graph.nodes] == ["Exp"]


def test_cycles_are_reported() -> None:
    graph = graph_of("a = Neg(x)\ny = Abs(a)")
    graph.nodes[0].inputs[0] = graph.nodes[1].outputs[0]
    with pytest.raises(ValueError, match="cycle"):
        graph.sort()


@given(st.permutations(range(8)), st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_sort_orders_any_permutation(order: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    made = [Variable("x")]
    nodes = []
    for i in range(8):
        picked = [made[int(k)] for k in rng.integers(len(made), size=2)]
        made.append(Variable(f"t{i}"))
        nodes.append(Node("Add", f"n{i}", {}, picked, [made[-1]]))
    graph = QuantGraph([nodes[i] for i in order], made[:1], [*made[1:]])
    graph.sort()
    graph.verify()
    before = [n.name for n in graph.nodes]
    graph.sort()
    assert [n.name for n in graph.nodes] == before


def test_large_graphs_change_in_linear_time() -> None:
    count = 20_000
    made = [Variable(f"t{i}") for i in range(count + 1)]
    nodes = [Node("Neg", f"n{i}", {}, [made[i]], [made[i + 1]]) for i in range(count)]
    graph = QuantGraph(nodes, made[:1], made[-1:])
    start = time.process_time()
    for node in graph.nodes[1:-1:2]:
        graph.bypass(node)
    graph.remove(graph.nodes[1:-1:2])
    graph.sort()
    graph.clean()
    graph.verify()
    assert time.process_time() - start < 60


# -- reading ----------------------------------------------------------------------------------------------------------
def test_questions() -> None:
    graph = graph_of("a = Neg(x)\nb = Add(a, w)\ny = Add(b, b)", constants="float[2] w = {1.0, 2.0}")
    x, (a,), (b,) = graph.inputs[0], graph.nodes[0].outputs, graph.nodes[1].outputs
    assert graph.producer(x) is None
    assert graph.producer(a) is graph.nodes[0]
    assert graph.only_consumer(a) is graph.nodes[1]
    assert graph.only_consumer(b) is None  # read twice
    assert graph.only_consumer(graph.outputs[0]) is None
    assert graph.consumers(b) == [graph.nodes[2], graph.nodes[2]]
    w = graph.nodes[1].inputs[1]
    assert isinstance(w, Constant)
    np.testing.assert_array_equal(graph.real(w), np.float32([1, 2]))
    graph.params["w"] = GRID
    w.values = np.asarray([128, 130], np.uint8)
    np.testing.assert_array_equal(graph.real(w), np.float32([0, 1]))
    assert [t.name for t in graph.tensors()] == ["x", "a", "w", "b", "y"]


def test_what_nodes_make_and_read() -> None:
    graph = graph_of(
        "a = Neg(x)\nb = Add(a, w)\nc = Add(w, v)\ny = Add(b, c)",
        constants="float[2] w = {1.0, 2.0}, float[2] v = {3.0, 4.0}",
    )
    graph.nodes[2].domain = "vendor"
    assert [n.outputs[0].name for n in graph.of("Add", "Neg")] == ["a", "b", "y"]
    assert graph.of() == graph.of("Conv") == []
    assert graph.source_ops == {("Neg", ""): 1, ("Add", ""): 3}
    assert [t.name for t in graph.made()] == ["x", "a", "b", "c", "y"]
    assert [t.name for t in graph.constants()] == ["w", "v"]


def test_shapes_of_every_kind() -> None:
    graph = loaded(net("(float[N,2,?] x, float[M] u) => (float[A,B,C] y)", "y = Add(x, u)"))
    assert shape_of(graph.inputs[0]) == ("N", 2, None)
    assert rank_of(graph.inputs[0]) == 3
    assert (shape_of(Variable("v")), rank_of(Variable("v"))) == (None, None)
    assert (elements((2, 3)), elements(()), elements(("N", 3)), elements(None)) == (6, 1, None, None)


def test_removed_nodes_leave_no_links() -> None:
    graph = graph_of("a = Neg(x)\nb = Add(a, a)\nc = Mul(a, b)\nd = Abs(a)\ny = Add(d, d)")
    neg, add, product, keep, _ = graph.nodes
    a, b = neg.outputs[0], add.outputs[0]
    graph.remove([add, product])
    assert graph.consumers(a) == [keep]
    assert graph.producer(a) is neg
    assert [list(links) for links in (b.inputs, b.outputs, add.inputs, add.outputs, product.inputs)] == [[]] * 5
    graph.remove([neg])
    assert graph.producer(a) is None
    assert graph.consumers(a) == [keep]
    assert not graph.consumers(graph.inputs[0])


# -- dumps ------------------------------------------------------------------------------------------------------------
def test_dumps_are_stable_and_tell_constants_apart() -> None:
    text = net(
        "(float[2] x) => (float[2] y)",
        "a = Add(x, w)\nb = Mul(a, v)\ny = Clip(b, , h)",
        "float[2] w = {1.0, 2.0}, float[9] v = {1,2,3,4,5,6,7,8,9}, float h = {6.0}",
    )
    dump = loaded(text).dump()
    assert dump == loaded(text).dump()
    assert "y = Clip(b, _, 6)" in dump
    assert "a = Add(x, w:float32[2]{1,2})" in dump
    assert dump != loaded(text.replace("7,8,9}", "7,8,8}")).dump()


# -- attributes -------------------------------------------------------------------------------------------------------
def test_an_attribute_is_its_value_or_the_default() -> None:
    node = Node("Quant", "q", {"mode": b"ROUND", "bits": 4, "scale": 0.5, "pads": [1, 2]})
    assert [node.attr("mode", "FLOOR"), node.attr("bits", 8), node.attr("scale", 1)] == ["ROUND", 4, 0.5]
    assert [node.attr("pads", [0, 0]), node.attr("axis", 1), node.attr("none")] == [[1, 2], 1, None]


@pytest.mark.parametrize(
    ("value", "default", "belongs"),
    [
        ([1, 2], 1, "a number"),
        (b"4", 8, "a number"),
        (np.zeros(2), 0.0, "a number"),
        (3, "ROUND", "text"),
        (3, [0, 0], "a list of numbers"),
        ([b"a"], [0, 0], "a list of numbers"),
    ],
)
def test_an_attribute_of_another_kind_is_told(value: object, default: object, belongs: str) -> None:
    """Of vendors' operators nobody else knows the kinds."""
    with pytest.raises(CompileError) as caught:
        Node("Quant", "q", {"bits": value}, domain="vendor").attr("bits", default)
    (told,) = caught.value.diagnostics
    assert (told.code, told.node) == ("QAT004", "q")
    assert told.message.endswith(f"where {belongs} belongs")

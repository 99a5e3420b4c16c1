"""Parts of a deep model compute what the whole does."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from qatc.compiler.runtime import sessions
from qatc.compiler.runtime.parts import cut, with_outputs
from qatc.compiler.runtime.sessions import RunnableModel, open_file

_X = {"x": np.linspace(-2, 2, 6, dtype=np.float32)}
_LOOP = """<ir_version: 8, opset_import: ["": 17]> m (float[6] x, bool c) => (float[6] y) {
    a = Neg(x)
    b = Abs(a)
    d = If(c) <
        then_branch = t () => (e) { h = Add(a, b)  e = Mul(h, h) },
        else_branch = u () => (g) { g = Identity(a) }>
    f = Exp(b)
    y = Add(d, f)
}"""
_SEQUENCE = """<ir_version: 8, opset_import: ["": 17]> m (float[6] x) => (float[3] y) {
    n = Constant<value = int64 {3}>()
    s = SplitToSequence(x, n)
    i = Constant<value = int64 {1}>()
    a = SequenceAt(s, i)
    y = Neg(a)
}"""

_BYTES = """<ir_version: 10, opset_import: ["": 21]> m (float[6] x) => (float[6] y) {
    s = Constant<value = float {0.5}>()
    z = Constant<value = float {0}>()
    t = Cast<to = 17>(z)
    q = QuantizeLinear(x, s, t)
    y = Cast<to = 1>(q)
}"""


@st.composite
def graphs(draw: st.DrawFn) -> tuple[onnx.ModelProto, list[str]]:
    """Random sums of tensors and constants, their nodes in any order; and which tensors are wanted."""
    names, nodes = ["x", "c0", "c1"], list[onnx.NodeProto]()
    for index in range(draw(st.integers(1, 12))):
        read = draw(st.lists(st.sampled_from(names), min_size=1, max_size=3))
        nodes.append(helper.make_node("Sum", read, [f"t{index}"]))
        names.append(f"t{index}")
    constants = [numpy_helper.from_array(np.full(6, i + 1, np.float32), f"c{i}") for i in range(2)]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [6]) for n in ("x", names[-1]))
    graph = helper.make_graph(draw(st.permutations(nodes)), "sums", [x], [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model, draw(st.lists(st.sampled_from(names[1:]), min_size=1, unique=True))


@given(graphs(), st.integers(1, 5))
def test_parts_make_what_the_whole_makes(drawn: tuple[onnx.ModelProto, list[str]], size: int) -> None:
    model, wanted = drawn
    whole = RunnableModel(model)
    assert len(cut(whole.model.graph, wanted, sessions._PART)) == 1
    want = whole.run(_X, wanted)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sessions, "_PART", size)
        parted = RunnableModel(model)
    parts = cut(parted.model.graph, wanted, size)
    assert max(len(part.nodes) for part in parts) <= size
    assert {name for part in parts for name in part.makes} >= set(wanted)
    for _ in range(2):  # opened, and kept
        found = parted.run(_X, wanted)
        assert list(found) == wanted
        for name in wanted:
            np.testing.assert_array_equal(found[name], want[name])
    assert parted._size == size


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("chosen", [True, False])
def test_bodies_read_what_other_parts_made(monkeypatch: pytest.MonkeyPatch, size: int, chosen: bool) -> None:
    monkeypatch.setattr(sessions, "_PART", size)
    a, b = -_X["x"], np.abs(_X["x"])
    model = RunnableModel(onnx.parser.parse_model(_LOOP))
    found = model.run({**_X, "c": np.asarray(chosen)}, ["y", "b"])
    np.testing.assert_array_equal(found["b"], b)
    np.testing.assert_allclose(found["y"], ((a + b) ** 2 if chosen else a) + np.exp(b), rtol=1e-6)


def test_a_model_that_cannot_be_cut_runs_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_PART", 2)
    model = RunnableModel(onnx.parser.parse_model(_SEQUENCE))
    for _ in range(2):
        np.testing.assert_array_equal(model.run(_X)["y"], -_X["x"][3:])
    assert model._size > 2
    broken = onnx.parser.parse_model(_SEQUENCE.replace("Neg(a)", "vendor.Neg(a)").replace("17]", '17, "vendor": 1]'))
    with pytest.raises(sessions.errors(), match="vendor"):
        RunnableModel(broken).run(_X)


def test_floats_of_eight_bits_are_no_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime hands them out as uint8, which a part behind would take for numbers up to 255."""
    model = RunnableModel(onnx.parser.parse_model(_BYTES))
    want = model.run(_X)["y"]
    monkeypatch.setattr(sessions, "_PART", 1)
    np.testing.assert_array_equal(RunnableModel(model.model).run(_X)["y"], want)


def test_what_is_optimized_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof looks at what ONNX Runtime's optimizations make of the package."""
    monkeypatch.setattr(sessions, "_PART", 1)
    opened: list[int] = []
    real = sessions.open_session
    monkeypatch.setattr(
        sessions, "open_session", lambda model, **how: opened.append(len(model.graph.node)) or real(model, **how)
    )
    model = onnx.parser.parse_model(_LOOP)
    for optimize, sizes in ((True, [5]), (False, [1] * 5)):
        opened.clear()
        RunnableModel(model, optimize=optimize).run({**_X, "c": np.asarray(True)})
        assert opened == sizes


def test_sparse_constants_stay_with_their_readers() -> None:
    model = onnx.parser.parse_model(_LOOP)
    values = numpy_helper.from_array(np.asarray([5], np.float32), "s")
    places = numpy_helper.from_array(np.asarray([4], np.int64), "places")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [6]))
    model.graph.node.append(helper.make_node("Add", ["x", "s"], ["z"]))
    part = with_outputs(model, ["z"])
    assert ([n.op_type for n in part.graph.node], [i.name for i in part.graph.input]) == (["Add"], ["x"])
    np.testing.assert_array_equal(
        RunnableModel(part).run(_X)["z"], _X["x"] + np.asarray([0, 0, 0, 0, 5, 0], np.float32)
    )


def test_waiting_threads_leave_the_processor_to_others(tmp_path) -> None:
    model = onnx.parser.parse_model(_LOOP)
    onnx.save(model, tmp_path / "m.onnx")
    for session in (sessions.open_session(model), open_file(tmp_path / "m.onnx")):
        assert session.get_session_options().get_session_config_entry("session.intra_op.allow_spinning") == "0"

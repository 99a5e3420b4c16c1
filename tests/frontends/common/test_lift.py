"""Standard Q/DQ in all its forms becomes FakeQuant nodes and constants with parameters."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from qatc.compiler.diagnostics import CompileError
from qatc.compiler.frontend import FrontendOptions, RangeOverride
from qatc.compiler.graph import QuantGraph
from qatc.compiler.quant import QuantParams
from qatc.frontends.common import qdq
from tests.frontends.running import run, run_canonical
from tests.graphs import canonical, loaded, normalize
from tests.runtimes import since

SCALES = (
    "float s = {0.5}, float[1] s1 = {0.5}, uint8 z = {128}, int8 i = {0}, "
    "float[2] sc = {0.5, 0.25}, int8[2] ic = {0, 0}"
)


def body(nodes: str, *, x: str = "float[2,3] x", y: str = "float[] y", opset: int = 17, more: str = "") -> str:
    header = f'<ir_version: 8, opset_import: ["" : {opset}, "com.microsoft" : 1]>\n'
    return f"{header}g ({x}) => ({y}) <{SCALES}{more}> {{ {nodes} }}"


def lines(graph: QuantGraph) -> list[str]:
    """The dump without its first line and the interface."""
    return [line for line in graph.dump().splitlines()[1:] if not line.startswith(("input", "output"))]


def codes(text: str, options: FrontendOptions | None = None) -> list[str]:
    graph = loaded(text)
    normalize(graph, options)
    return [d.code for d in graph.diagnostics]


@pytest.mark.parametrize(
    ("nodes", "want"),
    [
        (
            "q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)",
            ["y = FakeQuant[params=uint8 scale 0.5 zero 128](x)"],
        ),
        (  # no zero point; scale of shape [1] with an axis that means nothing
            "q = QuantizeLinear<axis=7>(x, s1) y = DequantizeLinear<axis=-9>(q, s1)",
            ["y = FakeQuant[params=uint8 scale 0.5 zero 0](x)"],
        ),
        (  # the minimum is absent: 0..127
            "m = Constant<value = uint8 {127}>() q = QuantizeLinear(x, s, z) c = "
            'Clip(q, "", m) y = DequantizeLinear(c, s, z)',
            ["y = FakeQuant[params=uint8[0,127] scale 0.5 zero 128](x)"],
        ),
        pytest.param(  # two Clips, a Cast that changes nothing, Min and Max
            "a = Constant<value = int8 {-100}>() b = Constant<value = int8 {7}>() q = QuantizeLinear(x, s, i)"
            " c = Max(q, a) d = Min(c, b) e = Cast<to=6>(d) y = DequantizeLinear(e, s)",
            ["y = FakeQuant[params=int8[-100,7] scale 0.5 zero 0](x)"],
            marks=since(1, 24, "has no Max of int8"),
        ),
        (
            "q = QuantizeLinear(x, s, i) c = Relu(q) y = DequantizeLinear(c, s, i)",
            ["y = FakeQuant[params=int8[0,127] scale 0.5 zero 0](x)"],
        ),
        (
            "q = QuantizeLinear(x, s, z) t = Transpose(q) f = Flatten(t) y = DequantizeLinear(f, s, z)",
            [
                "q_real = FakeQuant[params=uint8 scale 0.5 zero 128](x)",
                "t_real = Transpose(q_real)",
                "y = Flatten(t_real)",
            ],
        ),
        (  # one Q, three DQs, one of them behind a Clip
            "m = Constant<value = uint8 {127}>() q = QuantizeLinear(x, s, z) c = "
            "Clip(q, z, m) a = DequantizeLinear(q, s, z)"
            " b = DequantizeLinear(q, s, z) d = DequantizeLinear(c, s, z) e = Add(a, b) y = Add(e, d)",
            [
                "a = FakeQuant[params=uint8 scale 0.5 zero 128](x)",
                "d = FakeQuant[params=uint8[127,127] scale 0.5 zero 128](x)",
                "e = Add(a, a)",
                "y = Add(e, d)",
            ],
        ),
        (  # per channel, the axis counted from the end
            "q = QuantizeLinear<axis=-2>(x, sc, ic) y = DequantizeLinear<axis=0>(q, sc, ic)",
            ["y = FakeQuant[params=int8 scale 0.25..0.5 zero 0 axis 0 x2](x)"],
        ),
        (
            "q = QuantizeLinear<axis=0>(x, sc, ic) t = Transpose(q) y = DequantizeLinear<axis=1>(t, sc, ic)",
            ["q_real = FakeQuant[params=int8 scale 0.25..0.5 zero 0 axis 0 x2](x)", "y = Transpose(q_real)"],
        ),
        (
            "q = com.microsoft.QuantizeLinear(x, s, z) y = com.microsoft.DequantizeLinear(q, s, z)",
            ["y = FakeQuant[params=uint8 scale 0.5 zero 128](x)"],
        ),
        (  # a shape is a shape
            "q = QuantizeLinear(x, s, z) n = Shape(q) d = DequantizeLinear(q, s, z) y = Expand(d, n)",
            ["n = Shape(x)", "d = FakeQuant[params=uint8 scale 0.5 zero 128](x)", "y = Expand(d, n)"],
        ),
        (
            "q = QuantizeLinear(x, s, z) a, b = Split<axis=1>(q, parts) y = DequantizeLinear(b, s, z)",
            ["q_real = FakeQuant[params=uint8 scale 0.5 zero 128](x)", "a_real, y = Split[axis=1](q_real"],
        ),
        (
            "q = QuantizeLinear(x, s, z) p = QuantizeLinear(x, s, z) c = "
            "Concat<axis=0>(q, p) y = DequantizeLinear(c, s, z)",
            ["q_real = Fake", "p_real = Fake", "y = Concat[axis=0](q_real, p_real)"],
        ),
        (  # integer zeros in the padding are -128 * 0.5
            "p = Constant<value_ints=[0,1,0,0]>() q = QuantizeLinear(x, s, z) c = "
            "Pad(q, p) y = DequantizeLinear(c, s, z)",
            ["q_real = FakeQuant[params=uint8 scale 0.5 zero 128](x)", "y = Pad(q_real, p:int64[4]{0,1,0,0}, -64)"],
        ),
        (  # what fills it may be quantized as anything else
            "p = Constant<value_ints=[0,1,0,0]>() f = Constant<value_float=3.3>() q = QuantizeLinear(x, s, z) "
            "g = QuantizeLinear(f, s1, z) c = Pad(q, p, g) y = DequantizeLinear(c, s, z)",
            ["q_real = FakeQuant[params=uint8 scale 0.5 zero 128](x)", "y = Pad(q_real, p:int64[4]{0,1,0,0}, 3.5)"],
        ),
    ],
)
def test_activations(nodes: str, want: list[str]) -> None:
    text = body(nodes, more=", int64[2] parts = {1, 2}")
    graph = canonical(text)
    got = lines(graph)
    assert len(got) == len(want)
    for have, start in zip(got, want, strict=True):
        assert have.startswith(start)
    x = np.linspace(-80, 80, 6, dtype=np.float32).reshape(2, 3)
    if "com.microsoft.Q" not in text:
        for before, after in zip(run(onnx.parser.parse_model(text), x), run_canonical(graph, x), strict=True):
            np.testing.assert_array_equal(after, before)
    dequantized = [d for d in ("y", "a", "d") if f"{d} = Dequ" in text or f"{d} = com.microsoft.Dequ" in text]
    assert [graph.origin[d] for d in dequantized] == dequantized


@pytest.mark.parametrize(
    ("constants", "nodes", "want"),
    [
        ("int8[2,2] w = {1,-2,3,4}", "y = DequantizeLinear(w, s)", "w<int8 scale 0.5 zero 0>"),
        ("int32[2] w = {70000, 1}", "y = DequantizeLinear<axis=0>(w, sc)", "w<int32 scale 0.25..0.5 zero 0 axis 0 x2>"),
        (
            "int8[2,2] w = {100,-2,3,-128}",
            "a = Constant<value=int8 {-7}>() b = Constant<value=int8 {7}>() c = "
            "Clip(w, a, b) y = DequantizeLinear(c, s)",
            "c<int8[-7,7] scale 0.5 zero 0>",
        ),
        (
            "int8[2,3] w = {1,-2,3,4,5,6}",
            "t = Transpose(w) y = DequantizeLinear<axis=1>(t, sc, ic)",
            "t<int8 scale 0.25..0.5 zero 0 axis 1 x2>",
        ),
        ("uint8[2] w = {1,255}", "y = DequantizeLinear(w, s1, z)", "w<uint8 scale 0.5 zero 128>"),
    ],
)
def test_constants(constants: str, nodes: str, want: str) -> None:
    text = body(nodes.replace("y =", "d =", 1) + " y = Mul(d, one)", more=f", {constants}, float one = {{1.0}}", x="")
    graph = canonical(text)
    assert want in graph.dump()
    assert graph.origin[graph.nodes[0].inputs[0].name] == "d"
    np.testing.assert_array_equal(run_canonical(graph)[0], run(onnx.parser.parse_model(text))[0])


def test_a_weight_with_four_bits() -> None:
    value = numpy_helper.from_array(np.asarray([[-8, 7], [1, 0]], np.int8), "w8")
    packed = helper.make_tensor("w", TensorProto.INT4, [2, 2], np.asarray([-8, 7, 1, 0], np.int8), raw=False)
    assert value.dims == packed.dims
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["d"]),
        helper.make_node("Mul", ["x", "d"], ["y"]),
    ]
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 2]) for n in "xy"]
    scale = numpy_helper.from_array(np.float32(0.5).reshape(()), "s")
    model = helper.make_model(
        helper.make_graph(nodes, "g", info[:1], info[1:], [packed, scale]),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    graph = reloaded(model)
    normalize(graph)
    graph.verify(stripped=False)
    assert str(graph.params["w"]) == "int4 scale 0.5 zero 0"
    np.testing.assert_array_equal(graph.real(graph.nodes[0].inputs[1]), [[-4, 3.5], [0.5, 0]])


def reloaded(model: onnx.ModelProto) -> QuantGraph:
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from qatc.compiler.model_io import load

    with TemporaryDirectory() as folder:
        onnx.save(model, Path(folder) / "m.onnx")
        return load(Path(folder) / "m.onnx")[0]


def test_shared_integers_under_two_scales_are_two_constants() -> None:
    text = body(
        "t = Constant<value=float {0.25}>() a = DequantizeLinear(w, s) b = "
        "DequantizeLinear(w, t) c = DequantizeLinear(w, s)"
        " d = Mul(a, b) y = Mul(d, c)",
        more=", int8[2] w = {4, -4}",
        x="",
    )
    graph = canonical(text)
    assert sorted(str(p) for p in graph.params.values()) == ["int8 scale 0.25 zero 0", "int8 scale 0.5 zero 0"]
    np.testing.assert_array_equal(run_canonical(graph)[0], run(onnx.parser.parse_model(text))[0])


def test_integer_graph_input_and_output() -> None:
    nodes = "t = Transpose(x) d = DequantizeLinear(t, s, z) n = Neg(d) r = QuantizeLinear(n, s, i) y = Transpose(r)"
    text = body(nodes, x="uint8[2,3] x", y="int8[2,3] y")
    graph = canonical(text)
    assert graph.integer_ports == {"x": TensorProto.UINT8, "y": TensorProto.INT8}
    x = np.asarray([[0, 1, 100], [128, 200, 255]], np.uint8)
    (want,) = run(onnx.parser.parse_model(text), x)
    real = QuantParams.per_tensor(0.5, 128, "uint8").dequantize(x)
    (got,) = run_canonical(graph, real)
    np.testing.assert_array_equal(got, want.astype(np.float32) * 0.5)


def test_an_output_that_is_read_as_well() -> None:
    nodes = "q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)"
    graph = canonical(body(nodes, y="float[] y, uint8[2,3] q"))
    assert [t.name for t in graph.outputs] == ["y", "q"]
    assert graph.integer_ports == {"q": TensorProto.UINT8}
    x = np.linspace(-3, 3, 6, dtype=np.float32).reshape(2, 3)
    first, second = run_canonical(graph, x)
    np.testing.assert_array_equal(first, second)


def test_an_axis_from_the_end_of_a_tensor_whose_rank_only_inference_knows() -> None:
    nodes = "n = Neg(x) q = QuantizeLinear<axis=-2>(n, sc, ic) y = DequantizeLinear<axis=-2>(q, sc, ic)"
    assert "axis 0 x2" in canonical(body(nodes)).dump()


@pytest.mark.parametrize("axis", ["", "<axis=1>"])
def test_a_vector_has_one_axis_whatever_the_file_says(axis: str) -> None:
    nodes = f"q = QuantizeLinear{axis}(x, sc, ic) y = DequantizeLinear{axis}(q, sc, ic)"
    assert "axis 0 x2" in canonical(body(nodes, x="float[2] x")).dump()


def test_a_deep_chain_of_movements_takes_no_stack() -> None:
    chain = " ".join(f"t{i + 1} = Transpose(t{i})" for i in range(3000))
    graph = canonical(body(f"t0 = QuantizeLinear(x, s, z) {chain} y = DequantizeLinear(t3000, s, z)"))
    assert len(graph.nodes) == 3001


@pytest.mark.parametrize("stored", ["int64[2] k = {1, 300}", "float[2] k = {1.5, 2.0}", 'string[2] k = {"a", "b"}'])
def test_a_constant_that_is_none_of_its_type_is_told(stored: str) -> None:
    """They were cut off and wrapped around; what fits its type is taken."""
    nodes = "d = DequantizeLinear(k, s, i) y = Add(x, d)"
    assert codes(body(nodes, x="float[2] x", more=f", {stored}")) == ["QAT104"]
    graph = canonical(body(nodes, x="float[2] x", more=", int64[2] k = {1, -128}"))
    assert "k<int8 scale 0.5 zero 0>:int8[2]{1,-128}" in graph.dump()


def test_channels_that_were_moved_are_read_where_they_are() -> None:
    nodes = "q = QuantizeLinear<axis=1>(x, sc, ic) t = Transpose<perm=[1,0]>(q) y = DequantizeLinear<axis=0>(t, sc, ic)"
    assert [n.op for n in canonical(body(nodes, x="float[2,2] x")).nodes] == ["FakeQuant", "Transpose"]
    graph = loaded(body(nodes.replace("<axis=0>", "<axis=1>"), x="float[2,2] x"))
    normalize(graph)
    (found,) = graph.diagnostics.errors
    assert (found.code, "axis 0 x2" in found.message, "axis 1 x2" in found.message) == ("QAT203", True, True)


def test_token_ids_are_left_alone() -> None:
    nodes = "r = Flatten(ids) e = Gather(table, r) q = QuantizeLinear(e, s, z) y = DequantizeLinear(q, s, z)"
    graph = canonical(body(nodes, x="int32[1,2] ids", more=", float[3,2] table = {1,2,3,4,5,6}"))
    assert graph.integer_ports == {}
    assert "Gather(table" in graph.dump()


@pytest.mark.parametrize(
    ("nodes", "more", "want"),
    [
        ("q = QuantizeLinear(x, b, z) y = DequantizeLinear(q, b, z)", ", float b = {0.0}", ["QAT201"]),
        ("q = QuantizeLinear(x, b, z) y = DequantizeLinear(q, b, z)", ", float b = {-1.0}", ["QAT201"]),
        ("q = QuantizeLinear(x, b, z) y = DequantizeLinear(q, b, z)", ", float b = {1e-40}", ["QAT201"]),
        ("q = QuantizeLinear(x, b) y = DequantizeLinear(q, b)", ", float[3,2] b = {1,1,1,1,1,1}", ["QAT103", "QAT103"]),
        ("q = QuantizeLinear<axis=1>(x, sc, ic) y = DequantizeLinear<axis=1>(q, sc, ic)", "", ["QAT204"]),
        ("q = QuantizeLinear<axis=5>(x, sc, ic) y = DequantizeLinear<axis=5>(q, sc, ic)", "", ["QAT204"]),
        (
            "q = QuantizeLinear<axis=0>(x, sc, b) y = DequantizeLinear<axis=0>(q, sc, b)",
            ", int8[3] b = {0,0,0}",
            ["QAT204"],
        ),
        ("q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, b, z)", ", float b = {0.25}", ["QAT203"]),
        ("q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s)", "", ["QAT203"]),
        ("m = ReduceMax<keepdims=0>(x) q = QuantizeLinear(x, m, z) y = DequantizeLinear(q, m, z)", "", ["QAT205"]),
        ("q = QuantizeLinear(x, s, z) c = Cast<to=3>(q) y = DequantizeLinear(c, s)", "", ["QAT104", "QAT203"]),
        ("q = QuantizeLinear(x, s, z) c = Cast<to=1>(q) y = Mul(c, s)", "", ["QAT104"]),
        ("q, t, u = DynamicQuantizeLinear(x) y = DequantizeLinear(q, t, u)", "", ["QAT205", "QAT205"]),
        ("q = QuantizeLinear(x, s, z) c = MatMulInteger(q, q) y = Cast<to=1>(c)", "", ["QAT104", "QAT104"]),
        (
            "a = QuantizeLinear(x, s, z) c = QuantizeLinear(x, b, z) d = Concat<axis=0>(a, c)"
            " y = DequantizeLinear(d, s, z)",
            ", float b = {0.25}",
            ["QAT203"],
        ),
        (
            "q = QuantizeLinear<axis=0>(x, sc, ic) p = Pad(q, b) y = DequantizeLinear<axis=0>(p, sc, ic)",
            ", int64[4] b = {0,0,0,1}",
            ["QAT302"],
        ),
        (
            "q = QuantizeLinear(x, s, z) c = Cast<to=6>(q) d = Clip(c, l, h) y = DequantizeLinear(d, s, b)",
            ", int32 l = {300}, int32 h = {400}, int32 b = {128}",
            ["QAT104"],
        ),
    ],
)
def test_what_is_wrong_is_reported(nodes: str, more: str, want: list[str]) -> None:
    found = codes(body(nodes, more=more))
    assert sorted(found) == sorted(want) or set(found) == set(want)


def test_the_first_channels_scale_for_all_is_known_as_tf2onnxs() -> None:
    graph = loaded(body("q = QuantizeLinear(w, b, z) y = DequantizeLinear<axis=1>(q, k, n)", more=(
        ", float[2,2] w = {1,2,3,4}, float b = {0.5}, float[2] k = {0.5, 0.25}, uint8[2] n = {128, 128}"
    )))  # fmt: skip
    normalize(graph)
    (found,) = graph.diagnostics.errors
    assert found.code == "QAT203"
    assert "give qatc the .tflite file itself" in (found.hint or "")


def test_all_findings_come_at_once_and_name_their_places() -> None:
    nodes = (
        "[first] q = QuantizeLinear(x, b, z) d = DequantizeLinear(q, b, z) m = ReduceMax<keepdims=0>(x)"
        " [second] r = QuantizeLinear(d, m, z) y = DequantizeLinear(r, m, z)"
    )
    graph = loaded(body(nodes.replace("[first] ", "").replace("[second] ", ""), more=", float b = {0.0}"))
    normalize(graph)
    with pytest.raises(CompileError) as caught:
        graph.diagnostics.check()
    assert {(d.code, d.tensor) for d in caught.value.diagnostics} == {("QAT201", "x"), ("QAT205", "m")}


def test_float8_names_the_format() -> None:
    text = body("q = QuantizeLinear(x, s, f) y = DequantizeLinear(q, s, f)", opset=19, more=", float8e4m3fn f = {0}")
    try:
        graph = loaded(text)
    except onnx.parser.ParseError:
        pytest.skip("this onnx cannot parse float8 constants")
    normalize(graph)
    assert {d.code for d in graph.diagnostics} == {"QAT103"}
    assert "float8_e4m3fn" in next(iter(graph.diagnostics)).message


def test_ranges_that_the_user_states() -> None:
    nodes = (
        "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) u = "
        "QuantizeLinear(w, s, i) v = DequantizeLinear(u, s, i)"
        " m = Mul(d, v) r = QuantizeLinear(m, s, z) y = DequantizeLinear(r, s, z)"
    )
    text = body(nodes, more=", float[2,3] w = {1,2,3,4,5,6}")
    graph = loaded(text)
    normalize(graph, FrontendOptions(ranges=RangeOverride((0, 127), (-7, 7), {"y": (3, 200)})))
    graph.diagnostics.check()
    spans = {n.outputs[0].name: (n.attrs["params"].qmin, n.attrs["params"].qmax) for n in qdq.fake_quants(graph)}
    assert spans == {"d": (0, 127), "v": (-7, 7), "y": (3, 200)}
    assert codes(text, FrontendOptions(ranges=RangeOverride(tensors={"nobody": (0, 1)}))) == ["QAT007"]
    assert codes(text, FrontendOptions(ranges=RangeOverride(activations=(-1, 7)))) == ["QAT007", "QAT007"]


STEPS = st.lists(
    st.sampled_from(
        ["clip", "transpose", "reshape", "slice", "unsqueeze", "cast", "maxpool", "split", "pad", "concat", "relu"]
    ),
    max_size=6,
)


@given(STEPS, st.sampled_from(["uint8", "int8"]), st.integers(0, 9), st.integers(0, 2**32 - 1))
def test_any_chain_between_q_and_dq_means_the_same(steps: list[str], dtype: str, zero: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    maker = ChainMaker(np.dtype(dtype), random)
    for step in steps:
        maker.add(step)
    model = maker.model(zero)
    graph = reloaded(model)
    normalize(graph)
    graph.diagnostics.check()
    graph.verify(stripped=False)
    x = random.normal(size=(1, 2, 4, 6), scale=30).astype(np.float32)
    for want, got in zip(run(model, x), run_canonical(graph, x), strict=True):
        np.testing.assert_array_equal(got, want)


class ChainMaker:
    """Writes operators on integers behind a QuantizeLinear, all of them shape-checked by numpy-like bookkeeping."""

    def __init__(self, dtype: np.dtype, random: np.random.Generator) -> None:
        self.dtype, self.random = dtype, random
        self.shape, self.last = [1, 2, 4, 6], "q"
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: object, dtype: object = np.int64) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def node(
        self, op: str, *others: str, outputs: int = 1, first: tuple[str, ...] | None = None, **attrs: object
    ) -> None:
        names = [f"t{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, [*(first or (self.last,)), *others], names, **attrs))
        self.last = names[-1]

    def add(self, step: str) -> None:
        rank = len(self.shape)
        match step:
            case "clip":
                low, high = sorted(self.random.integers(-100, 101, 2) + (100 if self.dtype == np.uint8 else 0))
                ends = [self.constant(low, self.dtype), self.constant(high, self.dtype)]
                self.node("Clip", *[e if self.random.random() < 0.7 else "" for e in ends])
            case "transpose":
                order = self.random.permutation(rank).tolist()
                self.shape = [self.shape[i] for i in order]
                self.node("Transpose", perm=order)
            case "reshape":
                self.shape = [1, self.shape[0] * self.shape[1], *self.shape[2:]] if rank > 3 else [1, *self.shape]
                self.node("Reshape", self.constant(self.shape))
            case "slice" if self.shape[-1] > 1:
                self.shape[-1] -= 1
                self.node("Slice", self.constant([1]), self.constant([100]), self.constant([-1]))
            case "unsqueeze" if rank < 6:
                self.shape = [*self.shape[:1], 1, *self.shape[1:]]
                self.node("Unsqueeze", self.constant([1]))
            case "cast":
                self.node("Cast", to=helper.np_dtype_to_tensor_dtype(self.dtype))
            case "maxpool" if rank == 4 and min(self.shape[2:]) > 1:
                self.shape = [*self.shape[:2], self.shape[2] - 1, self.shape[3] - 1]
                self.node("MaxPool", kernel_shape=[2, 2])
            case "split" if self.shape[-1] > 1:
                parts = [1, self.shape[-1] - 1]
                self.shape[-1] -= 1
                self.node("Split", self.constant(parts), outputs=2, axis=-1)
            case "pad":
                self.shape[-1] += 1
                pads = self.constant([0] * (2 * rank - 1) + [1])
                more = [self.constant(self.random.integers(0, 100), self.dtype)] if self.random.random() < 0.5 else []
                self.node("Pad", pads, *more)
            case "concat":
                self.shape[0] *= 2
                self.node("Concat", first=(self.last, self.last), axis=0)
            case "relu" if self.dtype == np.int8:
                self.node("Relu")
            case _:
                pass

    def model(self, zero: int) -> onnx.ModelProto:
        self.constants.append(numpy_helper.from_array(np.float32(0.5).reshape(()), "s"))
        self.constants.append(numpy_helper.from_array(np.asarray(zero, self.dtype), "z"))
        first = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"])
        ends = [
            helper.make_node("DequantizeLinear", [self.last, "s", "z"], ["y"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["r"]),
        ]
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 4, 6])
        outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("y", "r")]
        graph = helper.make_graph([first, *self.nodes, *ends], "chain", [x], outputs, self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    "nodes",
    [
        "q = QuantizeLinear<axis=0>(f, n, ic) y = DequantizeLinear<axis=0>(q, n, ic)",
        "q = QuantizeLinear<axis=0>(f, n, ic) y = DequantizeLinear<axis=0>(q, n2, ic2)",  # each has its own numbers
        "y = DequantizeLinear<axis=0>(k, n, ic)",
        "m = Constant<value = int8 {-100}>() c = Clip(k, m) y = DequantizeLinear<axis=0>(c, n, ic)",
    ],
)
def test_a_channel_of_a_weight_without_scale_holds_zeros(nodes: str) -> None:
    more = ", float[2] n = {0.0, 0.25}, float[2,3] f = {1,2,3,1,2,3}, int8[2,3] k = {4,8,12,4,8,12}"
    more += ", float[2] n2 = {0.0, 0.25}, int8[2] ic2 = {0, 0}"
    text = body(nodes.replace("y =", "w =") + " y = Add(x, w)", more=more)
    graph = loaded(text)
    normalize(graph)
    assert [(d.code, d.severity.value) for d in graph.diagnostics] == [("QAT201", "note")]
    x = np.zeros((2, 3), np.float32)
    np.testing.assert_array_equal(run_canonical(graph, x)[0], [[0, 0, 0], [1, 2, 3]])


def test_an_activation_has_no_channels_without_scale() -> None:
    nodes = "q = QuantizeLinear<axis=0>(x, n, ic) y = DequantizeLinear<axis=0>(q, n, ic)"
    assert codes(body(nodes, more=", float[2] n = {0.0, 0.25}")) == ["QAT201"]


@pytest.mark.parametrize("ids", ["int64", "int32"])
def test_rows_of_an_embedding_are_picked_as_integers(ids: str) -> None:
    nodes = "g = Gather(k, x) t = Transpose<perm=[1,0]>(g) y = DequantizeLinear(t, s, i)"
    text = body(nodes, x=f"{ids}[2] x", more=", int8[3,2] k = {1,2,3,4,5,6}")
    graph = loaded(text)
    normalize(graph)
    graph.diagnostics.check()
    assert not graph.integer_ports
    assert str(graph.params["k"]) == "int8 scale 0.5 zero 0"
    np.testing.assert_array_equal(run_canonical(graph, np.asarray([2, 0], ids))[0], [[2.5, 0.5], [3.0, 1.0]])


def test_a_clamped_scalar_keeps_its_type() -> None:
    """NumPy 1 makes an int64 of an int8 without dimensions where Python's integers clip it."""
    graph = canonical(body("w = Clip(c, l, h) d = DequantizeLinear(w, s, i) y = Mul(x, d)",
                           more=", int8 c = {-120}, int8 l = {-100}, int8 h = {100}"))  # fmt: skip
    (stored,) = (t for t in graph.tensors() if t.name in graph.params)
    assert stored.values.dtype == np.int8  # type: ignore[union-attr]
    assert stored.values.tolist() == -100  # type: ignore[union-attr]


@pytest.mark.parametrize("scale", ["2.6794e36", "1.3337e36"])
@pytest.mark.parametrize(
    "nodes",
    [
        "d = DequantizeLinear(k, n, i) y = Add(x, d)",
        "q = QuantizeLinear(f, n, i) d = DequantizeLinear(q, n, i) y = Add(x, d)",
    ],
)
def test_a_mask_that_float32_does_not_hold(nodes: str, scale: str) -> None:
    """The most negative float32 times a step that was rounded up is -inf, and zero times that is no number."""
    text = body(nodes, more=f", float n = {{{scale}}}, int8 k = {{-127}}, float f = {{-3.4028235e38}}")
    assert codes(text) == (["QAT201"] if float(scale) * 127 > 3.4028235e38 else [])


@pytest.mark.parametrize("sized", [False, True])
def test_parts_that_a_condition_of_known_size_chooses_are_gathered(sized: bool) -> None:
    """tf2onnx's symmetric Pad mirrors twice and drops the middle by a condition that is as long as the axis."""
    condition = "r = Relu(x) h = Shape(r) n = Slice(h, one, two) o = ConstantOfShape<value=tensor_of>(n)"
    condition += " c = ScatterElements<axis=0>(o, at, no)" if sized else " c = Identity(known)"
    more = (
        ", int64[1] one = {1}, int64[1] two = {2}, int64[1] at = {1}, bool[1] no = {0}, bool[3] known = {1, 0, 1}"
        ", bool[1] yes = {1}"
    )
    condition = condition.replace("o = ConstantOfShape<value=tensor_of>(n)", "o = Expand(yes, n)")
    text = body(
        f"{condition} q = QuantizeLinear(x, s, z) p = Compress<axis=1>(q, c) y = DequantizeLinear(p, s, z)", more=more
    )
    graph = loaded(text)
    normalize(graph, None)
    graph.diagnostics.check()
    assert "y = Gather[axis=1](q_real, " in graph.dump()
    x = np.asarray([[-1.3, 0.2, 7], [1.1, 3.6, 90]], np.float32)
    np.testing.assert_array_equal(run_canonical(graph, x)[0], run(onnx.parser.parse_model(text), x)[0])


def test_parts_that_the_data_choose_are_none() -> None:
    """Which parts there are is known at run time alone."""
    text = body(
        "m = ReduceMax<axes=[0], keepdims=0>(x) c = Greater(m, s) q = QuantizeLinear(x, s, z)"
        " p = Compress<axis=1>(q, c) y = DequantizeLinear(p, s, z)"
    )
    assert codes(text) == ["QAT104"]


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool", "double"])
def test_what_onnx_quantizes_is_float_or_int32(dtype: str) -> None:
    text = (
        f'<ir_version: 8, opset_import: ["" : 13]>\ng ({dtype}[2,3] x) => (float[2,3] y)'
        " <float s = {0.5}, uint8 z = {3}> { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"
    )
    graph = loaded(text)
    normalize(graph, None)
    (found,) = graph.diagnostics
    assert (found.code, found.tensor) == ("QAT104", "x")
    assert found.message == f"QuantizeLinear reads {dtype}, and ONNX has it of floats and int32 alone"


def test_integers_of_32_bits_have_lost_their_range() -> None:
    """MMRazor's exporter to TensorRT leaves zero points of int32, and no Clip: weights beyond int8 were not clamped."""
    text = (
        '<ir_version: 8, opset_import: ["" : 13]>\ng (float[2,3] x) => (float[2,3] y)'
        " <float s = {0.5}, int32 z = {0}> { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"
    )
    graph = loaded(text)
    normalize(graph, None)
    (found,) = graph.diagnostics
    assert (found.code, found.tensor, "its range is lost" in found.message) == ("QAT104", "x", True)


def test_biases_have_32_bits() -> None:
    """Aidge quantizes them in the graph."""
    text = (
        '<ir_version: 8, opset_import: ["" : 13]>\ng (float[2,3] x) => (float[2,3] y)'
        " <float s = {0.5}, int32 z = {0}, float[3] b = {0.2, 0.3, 1000}>"
        " { q = QuantizeLinear(b, s, z) d = DequantizeLinear(q, s, z) y = Add(x, d) }"
    )
    assert codes(text) == []


def test_int32_is_quantized_as_the_numbers_that_it_is() -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 13]>\ng (int32[2,3] x) => (float[2,3] y)'
        " <float s = {0.5}, uint8 z = {3}> { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"
    )
    graph = loaded(text)
    normalize(graph, None)
    graph.diagnostics.check()
    x = np.array([[-5, -1, 0], [1, 99, 500]], np.int32)
    wanted = np.array([[-1.5, -1, 0], [1, 99, 126]], np.float32)
    np.testing.assert_array_equal(run_canonical(graph, x)[0], wanted)

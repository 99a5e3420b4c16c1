"""What qatc writes is a model like any other: every form of operator in it is read back, and computes the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

from qatc import compile_model
from qatc.compiler.frontend import FrontendOptions
from qatc.compiler.graph import FAKE_QUANT, QuantGraph
from qatc.frontends.qoperator import FRONTEND
from tests.frontends.running import run, run_canonical
from tests.graphs import loaded
from tests.runtimes import since

CORPUS = Path(__file__).resolve().parent.parent / "corpus"
CONSTANTS = """float s = {0.5}, uint8 z = {120}, float t = {0.25}, uint8 k = {100}, float one = {1}, uint8 mid = {128},
    int8 nil = {0}, uint8 none = {0}, uint8 unit = {1}, uint8 all = {255}, int64[1] flat = {-1}"""


def text_of(body: str, more: str = "", shape: str = "1,2,6,6") -> str:
    return f"""<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
    g (float[{shape}] input) => (float[] y) <{CONSTANTS}{more}> {{ x = QuantizeLinear(input, s, z) {body} }}"""


def normalized(text: str) -> QuantGraph:
    graph = loaded(text)
    FRONTEND.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    graph.verify(stripped=False)
    return graph


def check(text: str, shape: tuple[int, ...] = (1, 2, 6, 6)) -> QuantGraph:
    """Normalize a model; it computes what ONNX Runtime computes with the file."""
    graph = normalized(text)
    x = np.random.default_rng(0).uniform(-70, 80, shape).astype(np.float32)
    want = run(onnx.parser.parse_model(text), x)[0]
    np.testing.assert_allclose(run_canonical(graph, x)[0], want, rtol=1e-5, atol=1e-4)
    return graph


WEIGHT = ", int8[3,2,1,1] w = {1, -2, 3, 4, -5, 6}, float u = {0.125}"
LAST = "l = Transpose<perm=[0,2,3,1]>(x)"
FIRST = "f = Transpose<perm=[0,3,1,2]>(q) y = DequantizeLinear(f, t, k)"


@pytest.mark.parametrize(
    ("body", "more"),
    [
        (f"{LAST} q = com.microsoft.QLinearConv<channels_last=1>(l, s, z, w, u, nil, t, k) {FIRST}", WEIGHT),
        (
            f"{LAST} q = com.microsoft.QLinearAveragePool<channels_last=1, kernel_shape=[2,2]>(l, s, z, t, k) {FIRST}",
            "",
        ),
        (f"{LAST} q = com.microsoft.QLinearGlobalAveragePool<channels_last=1>(l, s, z, t, k) {FIRST}", ""),
        (
            f"{LAST} m = com.microsoft.NhwcMaxPool<kernel_shape=[2,2], strides=[2,2]>(l)"
            " f = Transpose<perm=[0,3,1,2]>(m) y = DequantizeLinear(f, s, z)",
            "",
        ),
    ],
)
def test_channels_last(body: str, more: str) -> None:
    graph = check(text_of(body, more))
    assert not graph.domains.keys() & {"com.microsoft"}


@pytest.mark.parametrize(
    ("body", "more", "code"),
    [
        ("q = QLinearConv(x, pair, z, w, triple, nil, t, k, b) y = DequantizeLinear(q, t, k)",
         WEIGHT + ", float[2] pair = {1, 2}, float[3] triple = {1, 2, 3}, int32[3] b = {1, 2, 3}", "QAT204"),
        ("q = QLinearConv(x, s, z, w, empty, nil, t, k, b) y = DequantizeLinear(q, t, k)",
         WEIGHT + ", float[0] empty = {}, int32[3] b = {1, 2, 3}", "QAT204"),
        ("i = Cast<to=7>(x) m = com.microsoft.QLinearSigmoid(x, s, z, s, z) q = Reshape(m, i)"
         " y = DequantizeLinear(q, s, z)", "", "QAT104"),
        ("a = com.microsoft.QLinearSigmoid(x, s, z, t, k) y = DequantizeLinear(a, none_at_all, z)",
         ", float none_at_all = {0}", "QAT201"),
        ("m = com.microsoft.NhwcMaxPool(x) y = DequantizeLinear(m, s, z)", "", "QAT104"),
    ],
)  # fmt: skip
def test_damaged_operators_are_refused(body: str, more: str, code: str) -> None:
    graph = loaded(text_of(body, more))
    FRONTEND.normalize(graph, FrontendOptions())
    assert code in {d.code for d in graph.diagnostics.errors}


def test_channels_last_of_unknown_rank_is_refused() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
    g (float[] input) => (float[] y) <float s = {0.5}, uint8 z = {120}> {
        x = QuantizeLinear(input, s, z)
        q = com.microsoft.QLinearGlobalAveragePool<channels_last=1>(x, s, z, s, z)
        y = DequantizeLinear(q, s, z)
    }"""
    graph = loaded(text)
    FRONTEND.normalize(graph, FrontendOptions())
    (found,) = graph.diagnostics.errors
    assert found.code == "QAT302"
    assert found.hint is not None
    assert "--shape" in found.hint


@pytest.mark.parametrize(
    ("first", "zero"), [("r = DequantizeLinear(x, one, mid)", "nil"), ("r = Cast<to=1>(x)", "low")]
)
def test_integers_moved_to_the_other_type(first: str, zero: str) -> None:
    """The integers q - 128 are the same real numbers in int8: nothing is computed on a step of one."""
    graph = check(
        text_of(
            f"{first} i = QuantizeLinear(r, one, {zero}) m = MaxPool<kernel_shape=[2,2]>(i)"
            " q = com.microsoft.QLinearLeakyRelu<alpha=0.5>(m, s, eight, t, nil) y = DequantizeLinear(q, t, nil)",
            ", int8 eight = {-8}, int8 low = {-128}",
        )
    )
    grids = [str(n.attrs["params"]) for n in graph.nodes if n.op == FAKE_QUANT]
    assert grids == ["uint8 scale 0.5 zero 120", "int8 scale 0.5 zero -8", "int8 scale 0.25 zero 0"]


def test_a_graph_input_moved_to_the_other_type() -> None:
    """What the integers of an input stand for is said by whoever reads them, behind the move."""
    text = """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
    g (int8[1,2,6,6] x) => (float[] y) <float s = {0.5}, uint8 z = {120}, float one = {1}, uint8 mid = {128},
        int8 nil = {0}> {
        r = DequantizeLinear(x, one, nil)
        i = QuantizeLinear(r, one, mid)
        q = com.microsoft.QLinearSigmoid(i, s, z, s, z)
        y = DequantizeLinear(q, s, z)
    }"""
    graph = normalized(text)
    grids = [str(n.attrs["params"]) for n in graph.nodes if n.op == FAKE_QUANT]
    assert grids == ["int8 scale 0.5 zero -8", "uint8 scale 0.5 zero 120", "uint8 scale 0.5 zero 120"]


def test_a_graph_input_read_as_bare_integers_too() -> None:
    """A product of real numbers that begins with the input's integers is one of what they stand for."""
    text = """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
    g (uint8[2,4] x) => (float[] y, float[] r) <float s = {0.5}, uint8 z = {120}, float one = {1}, int8 nil = {0},
        int8[4,2] w = {1, -2, 3, 4, -5, 6, 7, -8}, float u = {0.125}> {
        y = com.microsoft.MatMulIntegerToFloat(x, w, one, u, z, nil)
        r = DequantizeLinear(x, s, z)
    }"""
    graph = normalized(text)
    grids = [str(n.attrs["params"]) for n in graph.nodes if n.op == FAKE_QUANT]
    assert grids == ["uint8 scale 0.5 zero 120"]
    x = np.asarray([[0, 100, 120, 255], [3, 77, 200, 121]], np.uint8)
    want = run(onnx.parser.parse_model(text), x)
    got = run_canonical(graph, (x.astype(np.float32) - 120) * np.float32(0.5))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_a_difference() -> None:
    """ONNX Runtime has no QLinearSub: the sum with the mirrored integers is one."""
    graph = check(
        text_of(
            "a = com.microsoft.QLinearSigmoid(x, s, z, t, k)"
            " m = com.microsoft.QLinearMul(a, one, none, none, one, unit, one, all)"
            " q = com.microsoft.QLinearAdd(x, s, z, m, t, opposite, s, z) y = DequantizeLinear(q, s, z)",
            ", uint8 opposite = {155}",
        )
    )
    assert [n.op for n in graph.nodes if n.op != FAKE_QUANT] == ["Sigmoid", "Sub"]


def test_a_branch_that_a_size_decides_behind_an_operator_of_onnx_runtime() -> None:
    """ONNX knows no size behind QLinearAdd: what it is decides the branch once that is an Add."""
    graph = check(
        text_of(
            "q = com.microsoft.QLinearAdd(x, s, z, x, s, z, t, k) d = DequantizeLinear(q, t, k) h = Shape(d)"
            " n = Size(h) c = Equal(n, four) y = If(c) <then_branch = p () => (float[] v) { v = Neg(d) },"
            " else_branch = o () => (float[] v) { v = Relu(d) }>",
            ", int64 four = {4}",
        )
    )
    assert [n.op for n in graph.nodes if n.op != FAKE_QUANT] == ["Add", "Neg"]


TABLE = ", uint8[256] table = {" + ", ".join(str((i * 7 + 3) % 256) for i in range(256)) + "}"
ROLLED = ", uint8[256] table = {" + ", ".join(str((i * 5 + 128) % 256) for i in range(256)) + "}"


@pytest.mark.parametrize(
    ("body", "more"),
    [
        ("i = Cast<to=6>(x) q = Gather(table, i) y = DequantizeLinear(q, t, k)", TABLE),
        (
            "v = Reshape(x, flat) i = Cast<to=6>(v) g = GatherElements(table, i) n = Shape(x) q = Reshape(g, n)"
            " y = DequantizeLinear(q, t, k)",
            TABLE,
        ),
        (  # a negative place counts from the end
            "c = com.microsoft.QLinearConcat<axis=1>(s, nil, b, s, nil) i = Cast<to=7>(c) q = Gather(table, i)"
            " y = DequantizeLinear(q, t, k)",
            ROLLED,
        ),
    ],
)
def test_a_table(body: str, more: str, tmp_path: Path) -> None:
    """A function of the integers is one of the real numbers, and a table again in the package."""
    text = text_of(f"b = QuantizeLinear(input, s, nil) {body}", more)
    check(text)
    (tmp_path / "model.onnx").write_bytes(onnx.parser.parse_model(text).SerializeToString())
    result = compile_model(tmp_path / "model.onnx", output=tmp_path / "package", qat=True)
    assert not result.islands
    x = np.random.default_rng(1).uniform(-70, 80, (1, 2, 6, 6)).astype(np.float32)
    session = onnxruntime.InferenceSession(tmp_path / "package" / "model.onnx", providers=["CPUExecutionProvider"])
    want = run(onnx.parser.parse_model(text), x)[0]
    np.testing.assert_array_equal(session.run(None, {"input": x})[0], want)


def test_a_choice_between_integers() -> None:
    check(
        text_of(
            "a = com.microsoft.QLinearSigmoid(x, s, z, t, k) b = com.microsoft.QLinearLeakyRelu(x, s, z, t, k)"
            " q = Where(which, a, b) y = DequantizeLinear(q, t, k)",
            ", bool[1,1,1,6] which = {1, 0, 1, 1, 0, 0}",
        )
    )


def test_sixths_are_ties(tmp_path: Path) -> None:
    """Every sixth mean of six integers is a tie, but for the sixth's own rounding to float32: no failure."""
    ones = ", ".join(["1"] * 12)
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    g (float[1,2,32,32] input) => (float[] y) <float s = {{0.0243453197}}, uint8 z = {{0}}, int8 nil = {{0}},
        int8[2,1,2,3] w = {{{ones}}}, float u = {{0.16666667}}> {{
        x = QuantizeLinear(input, s, z)
        q = QLinearConv<group=2>(x, s, z, w, u, nil, s, z)
        y = DequantizeLinear(q, s, z)
    }}"""
    (tmp_path / "model.onnx").write_bytes(onnx.parser.parse_model(text).SerializeToString())
    result = compile_model(tmp_path / "model.onnx", output=tmp_path / "package", qat=True)
    assert result.verification is not None
    assert result.verification.passed


def test_integers_read_on_another_step() -> None:
    """A factor that an operator takes in: half the numbers, four less."""
    check(text_of("q = com.microsoft.QLinearSigmoid(x, t, mid, t, k) y = DequantizeLinear(q, t, k)"))
    check(text_of("a = com.microsoft.QLinearSigmoid(x, s, z, t, k) y = DequantizeLinear(a, s, z)"))


@pytest.mark.parametrize("chain", ["d = Sub(f, origin) y = Mul(d, s)", "y = Mul(f, t)", "y = Sigmoid(f)"])
def test_integers_cast_to_float(chain: str) -> None:
    """Written-out dequantization, on the integers' own grid and on another one, and integers as numbers."""
    graph = check(text_of(f"m = MaxPool<kernel_shape=[2,2]>(x) f = Cast<to=1>(m) {chain}", ", float origin = {120}"))
    assert ("Mul" not in {n.op for n in graph.nodes}) == ("origin" in chain)


@since(1, 24, "has no ConvInteger of int8")
@pytest.mark.parametrize("scale", ["float a = {0.125}", "float[3] a = {0.125, 0.5, 0.25}"])
def test_accumulators_dequantized(scale: str) -> None:
    more = f", int8[3,2,1,1] w = {{1, -2, 3, 4, -5, 6}}, {scale}, float[3,1,1] b = {{1, 2, 3}}"
    check(text_of("c = ConvInteger(x, w, z) d = DequantizeLinear<axis=1>(c, a) y = Add(d, b)", more))


@since(1, 24, "has no ConvInteger of int8")
@pytest.mark.parametrize("pads", ["", "<pads = [1, 1, 1, 1]>"])
def test_accumulators_whose_zero_point_is_not_their_inputs(pads: str) -> None:
    check(text_of(f"c = ConvInteger{pads}(x, w) f = Cast<to=1>(c) y = Mul(f, s)", WEIGHT))


ROUND_TRIPS: list[tuple[str, dict[str, Any]]] = [
    ("fx-u8pc__unet", {}),
    ("fx-u8pc__vit", {}),
    ("pt2e-x86__vit", {"options": {"accumulators": "fast"}}),
    ("tfmot-op13__acts_mix", {}),
    ("tfmot-op13__smallcnn", {"options": {"weights": "uint8"}}),
    ("tfqdq-perchannel-op13__rescnn", {"io": "integer"}),
    ("eager-asymint8__eager", {"io": "integer"}),
    ("ort-qdq__shared", {"options": {"domain": "standard"}}),
]


@pytest.mark.parametrize(("case", "options"), ROUND_TRIPS)
def test_a_package_is_a_model_that_compiles(case: str, options: dict[str, Any], tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    before = compile_model(CORPUS / case / "model.onnx", output=first, **options)
    after = compile_model(first / "model.onnx", output=second, qat=True, **options)
    if "fast" not in str(options):  # these are floats, as asked for
        assert after.coverage.share >= before.coverage.share
    sessions = [
        onnxruntime.InferenceSession(path / "model.onnx", providers=["CPUExecutionProvider"])
        for path in (first, second)
    ]
    feeds = {p.name: np.load(first / "samples/0" / f"input_{i}.npy") for i, p in enumerate(sessions[0].get_inputs())}
    for want, got in zip(*(s.run(None, feeds) for s in sessions), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)

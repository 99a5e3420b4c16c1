"""QONNX: round trips, every rounding mode and width, one-bit and truncating quantizers, what is refused."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, assume, given, settings

from qatc import compile_model
from qatc.compiler.diagnostics import CompileError
from qatc.compiler.frontend import FrontendOptions
from qatc.compiler.graph import FAKE_QUANT, QuantGraph
from qatc.compiler.quant import QuantParams
from qatc.compiler.runtime.sessions import RunnableModel
from qatc.frontends.qonnx import DOMAINS, FRONTEND
from tests.frontends import networks as nets
from tests.frontends.networks import Builder, Network
from tests.frontends.running import values


def spell(b: Builder, x: str, params: QuantParams, rank: int, name: str) -> str:
    shape = [1] * rank
    if params.axis is not None:
        shape[params.axis] = len(params.scale)
    signed, narrow = params.is_signed, (params.qmin if params.is_signed else params.qmax + 1) % 2
    width = 32 if params.dtype == "int32" else int(params.qmax - params.qmin + 1 + narrow).bit_length() - 1
    inputs = [
        x,
        b.constant(f"{name}.scale", np.float32(params.scale).reshape(shape if params.is_per_channel else ())),
        b.constant(f"{name}.zero", np.float32(params.zero_point[0])),
        b.constant(f"{name}.bits", np.float32(width)),
    ]
    b.opsets[DOMAINS[0]] = 2
    return b.node("Quant", inputs, name, DOMAINS[0], signed=int(signed), narrow=int(narrow), rounding_mode="ROUND")


@given(nets.networks(nets.narrow_grids()))
@settings(max_examples=25)
def test_round_trip(network: Network) -> None:
    assert nets.fingerprint(nets.read(nets.write(network, spell), FRONTEND)) == nets.fingerprint(nets.expected(network))


def spell_apart(b: Builder, x: str, params: QuantParams, rank: int, name: str) -> str:
    """What qonnx's ExtractQuantScaleZeroPt makes of it; biases of 32 bits stay as they are."""
    if params.dtype == "int32":
        return spell(b, x, params, rank, name)
    shape = [-1 if i == (params.axis or 0) else 1 for i in range(rank)]
    scale = b.constant(f"{name}.step", np.float32(params.scale).reshape(shape if params.is_per_channel else ()))
    zero = b.constant(f"{name}.zp", np.float32(params.zero_point[0]))
    whole = b.node("Add", [b.node("Div", [x, scale], f"{name}.steps"), zero], f"{name}.moved")
    one = replace(params, scale=(1.0,), zero_point=(0,), axis=None)
    back = b.node("Sub", [spell(b, whole, one, rank, f"{name}.whole"), zero], f"{name}.back")
    return b.node("Mul", [back, scale], name)


@given(nets.networks(nets.narrow_grids()))
@settings(max_examples=25, suppress_health_check=[HealthCheck.filter_too_much])
def test_scales_and_zero_points_around_a_quantizer_are_its_own(network: Network) -> None:
    weights = [layer.weight_params for layer in network.layers if layer.weight_params is not None]
    assume(all(w.axis is None or len(set(w.scale)) > 1 for w in weights))  # one scale for all channels is read as one
    found = nets.fingerprint(nets.read(nets.write(network, spell_apart), FRONTEND))
    assert found == nets.fingerprint(nets.expected(network))


# -- one node, against the definition -----------------------------------------------------------------------------

ROUNDING = {
    "ROUND": np.rint,
    "CEIL": np.ceil,
    "FLOOR": np.floor,
    "UP": lambda x: np.sign(x) * np.ceil(np.abs(x)),
    "DOWN": np.trunc,
    "HALF_UP": lambda x: np.sign(x) * np.floor(np.abs(x) + 0.5),
    "HALF_DOWN": lambda x: np.sign(x) * np.ceil(np.abs(x) - 0.5),
}


def quant(x: np.ndarray, s: np.ndarray, z: float, bits: float, signed: int, narrow: int, mode: str) -> np.ndarray:
    """QONNX's own definition."""
    if bits == 1 and signed:
        return np.where(x / s + z >= 0, 1.0, -1.0) * s
    low = -(2 ** (bits - 1)) + narrow if signed else 0
    high = 2 ** (bits - 1) - 1 if signed else 2**bits - 1 - narrow
    return (ROUNDING[mode](np.clip(x / s + z, low, high)) - z) * s


def one(
    op: str, operands: list[object], domain: str = DOMAINS[0], constant: np.ndarray | None = None, **attrs: object
) -> QuantGraph:
    b = Builder(opsets={"": 13, domain: 1})
    names = [b.constant(f"p{i}", np.asarray(v)) for i, v in enumerate(operands)]
    x = "input" if constant is None else b.constant("c", constant)
    b.node(op, [x, *names], "q", domain, **attrs)
    b.node("Add", ["q", "input"] if constant is not None else ["q", b.constant("none", np.float32(0))], "output")
    graph = nets.graph_of(nets.model_of(b, [3, 4, 5]))
    FRONTEND.normalize(graph, FrontendOptions())
    return graph


MODES = [m for m in ROUNDING if not m.startswith("HALF")]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("bits", "signed", "narrow", "zero"),
    [(8, 1, 1, 0), (4, 0, 0, 0), (3, 1, 0, 0), (8, 0, 0, 117), (5, 0, 1, 9), (1, 0, 0, 0)],
)
def test_activation(mode: str, bits: int, signed: int, narrow: int, zero: int) -> None:
    x = np.random.default_rng(bits).normal(0, 0.4, (3, 4, 5)).astype(np.float32)
    s = np.float32(0.03)
    graph = one("Quant", [s, np.float32(zero), np.float32(bits)], signed=signed, narrow=narrow, rounding_mode=mode)
    graph.diagnostics.check()
    want = quant(x, s, zero, bits, signed, narrow, mode)
    assert np.allclose(values(graph, x), want, atol=1e-5)
    assert sum(n.op == FAKE_QUANT for n in graph.nodes) == 1


@pytest.mark.parametrize("mode", list(ROUNDING))
@pytest.mark.parametrize("domain", DOMAINS)
def test_constant_is_exact_in_every_mode(mode: str, domain: str) -> None:
    s = np.float32([0.25, 0.5, 0.125, 1.0]).reshape(1, 4, 1)
    w = (np.arange(60, dtype=np.float32).reshape(3, 4, 5) - 30) / 16  # many exact ties
    graph = one("Quant", [s, np.float32(0), np.float32(4)], domain, w, signed=1, narrow=0, rounding_mode=mode)
    graph.diagnostics.check()
    x = np.zeros((3, 4, 5), np.float32)
    assert np.array_equal(values(graph, x), quant(w, s, 0, 4, 1, 0, mode).astype(np.float32))


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("op", ["BipolarQuant", "Quant"])
def test_bipolar(op: str, constant: bool) -> None:
    s = np.float32(0.7)
    operands = [s] if op == "BipolarQuant" else [s, np.float32(0), np.float32(1)]
    x = np.random.default_rng(0).normal(0, 1, (3, 4, 5)).astype(np.float32)
    x[0, 0] = 0.0  # zero counts as positive
    attrs = {} if op == "BipolarQuant" else {"signed": 1, "narrow": 0, "rounding_mode": "ROUND"}
    graph = one(op, list(operands), DOMAINS[1], x if constant else None, **attrs)
    graph.diagnostics.check()
    got = values(graph, np.zeros_like(x) if constant else x)
    assert np.array_equal(got, np.where(x >= 0, s, -s))
    grids = [n.attrs["params"] for n in graph.nodes if n.op == FAKE_QUANT] + list(graph.params.values())
    assert [(p.qmin, p.qmax, p.dtype) for p in grids] == [(-1, 1, "int8")]


def test_one_zero_half_way() -> None:
    s, z = np.float32(0.5), np.float32(1.5)
    w = np.linspace(-1, 1, 60, dtype=np.float32).reshape(3, 4, 5)
    graph = one("Quant", [s, z, np.float32(2)], constant=w, signed=0, narrow=0, rounding_mode="ROUND")
    graph.diagnostics.check()
    assert np.allclose(values(graph, np.zeros_like(w)), quant(w, s, 1.5, 2, 0, 0, "ROUND"))


def test_a_zero_between_integers() -> None:
    """Activations are rounded on a grid with zero, and moved by what that lacks; weights are refused."""
    s, z = np.float32(0.5), np.float32(1.3)
    x = np.random.default_rng(3).normal(0, 2, (3, 4, 5)).astype(np.float32)
    attrs: dict[str, Any] = {"signed": 0, "narrow": 0, "rounding_mode": "ROUND"}
    graph = one("Quant", [s, z, np.float32(4)], **attrs)
    graph.diagnostics.check()
    assert [str(n.attrs["params"]) for n in graph.nodes if n.op == FAKE_QUANT] == ["uint8[0,15] scale 0.5 zero 1"]
    assert np.allclose(values(graph, x), quant(x, s, 1.3, 4, 0, 0, "ROUND"), atol=1e-6)
    others: tuple[dict[str, Any], ...] = ({"constant": x}, {"rounding_mode": "FLOOR"})
    for more in others:
        refused = one("Quant", [s, z, np.float32(4)], **{**attrs, **more})
        (found,) = refused.diagnostics.errors
        assert found.code == "QAT103"
        assert "sum of all inputs" in str(found.hint) if "constant" in more else "half to even" in str(found.hint)


@pytest.mark.parametrize(
    ("mode", "k"), list(itertools.product(["FLOOR", "CEIL", "ROUND", "HALF_UP", "DOWN", "UP"], [0, 2, 5]))
)
def test_trunc(mode: str, k: int) -> None:
    """On integers the cut is exact, ties among them; half to even may differ from ROUND on none."""
    s = np.float32(0.125)
    b = Builder(opsets={"": 13, DOMAINS[0]: 2})
    b.node("Relu", ["input"], "r")
    operands = [s, np.float32(0), np.float32(8 + k), s * np.float32(2**k), np.float32(8)]
    names = [b.constant(f"p{i}", np.asarray(v)) for i, v in enumerate(operands)]
    b.node("Trunc", ["r", *names], "output", DOMAINS[0], rounding_mode=mode, signed=0, narrow=0)
    graph = nets.graph_of(nets.model_of(b, [3, 4, 5]))
    FRONTEND.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    q = np.arange(60, dtype=np.float32).reshape(3, 4, 5) * 3
    want = np.clip(ROUNDING[mode](q / 2**k), 0, 255) * s * 2**k
    assert np.allclose(values(graph, q * s), want, atol=1e-6)


@pytest.mark.parametrize(
    ("mode", "signed", "narrow", "zero", "k", "factor"),
    [
        ("FLOOR", 1, 0, 0, 2, 1),
        ("CEIL", 1, 1, 0, 3, 1),
        ("ROUND", 1, 0, 16, 3, 1),
        ("FLOOR", 0, 0, 4, 2, 1),
        ("ROUND", 0, 1, 0, 0, 1),
        ("FLOOR", 1, 0, 0, 2, 1.25),  # not quite four times the steps: cut off first, then moved onto them
    ],
)
def test_trunc_is_its_definition(mode: str, signed: int, narrow: int, zero: int, k: int, factor: float) -> None:
    s = np.float32(0.125)
    q = np.arange(60, dtype=np.float32).reshape(3, 4, 5) * 3 - (90 if signed else 0)
    out = s * np.float32(2**k * factor)
    operands = [s, np.float32(zero), np.float32(8 + k), out, np.float32(5)]
    graph = one("Trunc", operands, rounding_mode=mode, signed=signed, narrow=narrow)
    graph.diagnostics.check()
    low, high = (-16 + narrow, 15) if signed else (0, 31 - narrow)
    want = (np.clip(ROUNDING[mode](q / 2**k), low, high) - zero / 2**k) * out
    assert np.allclose(values(graph, (q - zero) * s), want, atol=1e-6)


@pytest.mark.parametrize(
    ("op", "mode", "signed", "relu", "k"),
    [
        ("Trunc", "FLOOR", 1, False, 9),
        ("Trunc", "CEIL", 1, False, 4),
        ("Trunc", "DOWN", 0, True, 8),
        ("Quant", "FLOOR", 1, False, 7),
        ("Quant", "CEIL", 1, True, 7),
        ("Quant", "ROUND_TO_ZERO", 0, False, 7),
        ("Quant", "UP", 1, True, 8),
    ],
)
def test_products_are_cut_in_integers(tmp_path: Path, op: str, mode: str, signed: int, relu: bool, k: int) -> None:
    """Weights of 8 bits leave no room for half a unit in the bias; multiples of a step are what would show it."""
    rng = np.random.default_rng(k)
    b = Builder(opsets={"": 13, DOMAINS[0]: 2})

    def quantized(kind: str, x: str, operands: list[float], name: str, **attrs: object) -> str:
        names = [b.constant(f"{name}.{i}", np.float32(v)) for i, v in enumerate(operands)]
        return b.node(kind, [x, *names], name, DOMAINS[0], narrow=0, **attrs)

    w = rng.integers(-128, 128, (5, 40))
    w[0] = 2**k // 8  # multiples of a step
    x = quantized("Quant", "input", [0.25, 0, 8], "x", signed=1, rounding_mode="ROUND")
    weight = quantized(
        "Quant", b.constant("w", np.float32(w / 64)), [1 / 64, 0, 8], "q", signed=1, rounding_mode="ROUND"
    )
    t = b.node("MatMul", [x, weight], "t")
    t = b.node("Relu", [t], "r") if relu else t
    operands = [2**k / 256, 0, 8] if op == "Quant" else [1 / 256, 0, 8 + k, 2**k / 256, 8]
    quantized(op, t, operands, "output", signed=signed, rounding_mode=mode)
    onnx.save(nets.model_of(b, [50, 5]), tmp_path / "model.onnx")
    q = np.zeros((50, 5))
    q[:, 0] = np.arange(-25, 25)
    q[25:] += rng.integers(-20, 20, (25, 5))
    np.save(tmp_path / "x.npy", np.float32(q / 4))
    found = compile_model(
        tmp_path / "model.onnx", qat=True, output=tmp_path / "out", inputs={"input": str(tmp_path / "x.npy")}
    )
    assert not found.islands
    total = np.maximum(q @ w, 0) if relu else q @ w
    want = ROUNDING["DOWN" if mode == "ROUND_TO_ZERO" else mode](total / 2**k)
    want = want.clip(*((-128, 127) if signed else (0, 255))) * 2**k / 256
    got = RunnableModel(onnx.load(tmp_path / "out" / "model.onnx")).run({"input": np.float32(q / 4)})["output"]
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("ops", "unsigned"),
    [
        (["Relu"], True),
        (["Abs", "Mul 0.5"], True),
        (["Relu", "Div 2", "GlobalAveragePool"], True),
        (["Relu", "MaxPool", "Flatten"], True),
        (["Quant"], True),
        (["Relu", "Mul -1"], False),
        (["Relu", "Neg"], False),
        ([], False),
    ],
)
def test_the_first_trunc_keeps_the_scale_and_the_sign_of_what_it_reads(ops: list[str], unsigned: bool) -> None:
    """Cutting toward zero is a shift of what is never negative alone."""
    b, x = Builder(opsets={"": 13, DOMAINS[0]: 1}), "input"
    for i, (op, *factor) in enumerate(line.split() for line in ops):
        attrs: dict[str, Any] = {"MaxPool": {"kernel_shape": [1]}, "Quant": {"signed": 0}}.get(op, {})
        factor = ["0.5", "0", "6"] if op == "Quant" else factor
        operands = [b.constant(f"c{i}_{j}", np.float32(f)) for j, f in enumerate(factor)]
        x = b.node(op, [x, *operands], f"t{i}", DOMAINS[0] if op == "Quant" else "", **attrs)
    names = [b.constant(f"p{i}", np.float32(v)) for i, v in enumerate((0.5, 0, 6, 4))]
    b.node("Trunc", [x, *names], "output", DOMAINS[0], rounding_mode="DOWN")
    graph = nets.graph_of(nets.model_of(b, [1, 2, 30]))
    FRONTEND.normalize(graph, FrontendOptions())
    assert (not graph.diagnostics.errors) == unsigned
    if ops == ["Relu"]:
        codes = np.arange(-10, 50, dtype=np.float32).reshape(1, 2, 30)
        want = np.clip(codes, 0, None) // 4 * np.float32(0.5)
        assert np.array_equal(values(graph, codes * np.float32(0.5)), np.minimum(want, 7.5))


@pytest.mark.parametrize(
    ("op", "operands", "attrs", "code"),
    [
        ("Quant", [np.float32(1), np.float32(2), np.float32(1)], {"signed": 1}, "QAT103"),
        ("Trunc", [np.float32(v) for v in (1, 3, 8, 4, 6)], {"signed": 1}, "QAT103"),  # a zero point of 3 / 4
        ("Trunc", [np.float32(v) for v in (1, 4, 8, 4, 6)], {"signed": 1, "rounding_mode": "ROUND"}, "QAT103"),
        ("Trunc", [np.float32(v) for v in (1, 0, 8, 4, 33)], {"signed": 1}, "QAT103"),
        ("Trunc", [np.float32(v) for v in (1, 0, 8, 0.25, 8)], {"signed": 1}, "QAT103"),
        ("Trunc", [np.float32(v) for v in (1, 4, 8, 6)], {}, "QAT103"),  # the first version has no zero point
        ("Quant", [np.float32(0), np.float32(0), np.float32(8)], {}, "QAT201"),
        ("Quant", [np.float32(-1), np.float32(0), np.float32(8)], {}, "QAT201"),
        ("Quant", [np.float32(1), np.float32(0), np.float32(33)], {}, "QAT103"),
        ("Quant", [np.ones((3, 4, 1), np.float32), np.float32(0), np.float32(8)], {}, "QAT103"),
        ("Quant", [np.ones(7, np.float32), np.float32(0), np.float32(8)], {}, "QAT204"),
        ("Quant", [np.float32(1), np.float32(0), np.float32(8)], {"rounding_mode": "NEVER"}, "QAT104"),
        ("FloatQuant", [np.float32(1), np.float32(4), np.float32(3)], {}, "QAT103"),
        ("Im2Col", [], {}, "QAT302"),
    ],
)
def test_refused(op: str, operands: list[object], attrs: dict[str, object], code: str) -> None:
    graph = one(op, operands, **attrs)
    assert code in [d.code for d in graph.diagnostics.errors]
    with pytest.raises(CompileError):
        graph.diagnostics.check()


@pytest.mark.parametrize("mode", ["FLOOR", "ROUND_TO_ZERO"])
@pytest.mark.parametrize("zero", [0.0, 0.5])
def test_a_constant_without_numbers_has_no_integers(mode: str, zero: float) -> None:
    operands: list[object] = [np.float32(v) for v in (0.5, zero, 4)]
    weight = np.asarray([[[1.0], [np.nan], [2.0], [3.0]]], np.float32)
    graph = one("Quant", operands, constant=weight, rounding_mode=mode)
    assert [d.code for d in graph.diagnostics.errors] == ["QAT104"]


@pytest.mark.parametrize("mode", ["ROUND", "FLOOR"])
@pytest.mark.parametrize("zero", [0.0, 0.5])
@pytest.mark.parametrize("bits", [1, 4])
def test_a_scale_that_does_not_broadcast(mode: str, zero: float, bits: float) -> None:
    operands: list[object] = [np.ones(4, np.float32), np.float32(zero), np.float32(bits)]
    graph = one("Quant", operands, constant=np.ones((3, 4, 5), np.float32), rounding_mode=mode)
    assert [d.code for d in graph.diagnostics.errors] == ["QAT204"]


@pytest.mark.parametrize("op", ["BipolarQuant", "Quant"])
@pytest.mark.parametrize("wrong", [np.asarray(["a", "b"]), np.ones(2, np.complex64), np.float32([1, np.nan])])
def test_a_constant_that_is_no_numbers(op: str, wrong: np.ndarray) -> None:
    operands: list[object] = [np.float32(v) for v in (0.5, 0, 4)][: 3 if op == "Quant" else 1]
    graph = one(op, operands, constant=wrong)
    assert [d.code for d in graph.diagnostics.errors] == ["QAT104"]


@pytest.mark.parametrize("wrong", [np.asarray("a"), np.complex64(1j), np.zeros(0, np.float32)])
def test_widths_of_a_minifloat_that_are_no_numbers(wrong: np.ndarray) -> None:
    graph = one("FloatQuant", [np.float32(1), wrong, np.float32(3)])
    assert [d.code for d in graph.diagnostics.errors] == ["QAT103"]


def test_away_from_zero_around_a_zero_point_below_the_range() -> None:
    x = np.random.default_rng(0).normal(100, 40, (3, 4, 5)).astype(np.float32)
    graph = one("Quant", [np.float32(1), np.float32(-150), np.float32(8)], signed=1, rounding_mode="UP")
    graph.diagnostics.check()
    assert np.allclose(values(graph, x), quant(x, np.float32(1), -150, 8, 1, 0, "UP"), atol=1e-4)


def test_doubles_and_integer_zero_points() -> None:
    """QKeras writes the scale as a double, zero point and width as int64."""
    graph = one("Quant", [np.float64(0.125), np.int64(0), np.int64(6)], signed=1, narrow=1, rounding_mode="ROUND")
    graph.diagnostics.check()
    params = next(n.attrs["params"] for n in graph.nodes if n.op == FAKE_QUANT)
    assert params == QuantParams.per_tensor(0.125, 0, "int8", -31, 31)


def test_recognized_from_the_graph() -> None:
    b = Builder(opsets={"": 13, "onnx.brevitas": 1})
    b.node("BipolarQuant", ["input", b.constant("s", np.float32(1))], "output", "onnx.brevitas")
    graph = nets.graph_of(nets.model_of(b, [2]))
    assert FRONTEND.recognize(graph, "") == "1 BipolarQuant (onnx.brevitas)"
    assert "onnx.brevitas" not in _normalized(graph).domains
    other = Builder()
    other.node("Relu", ["input"], "output")
    plain = nets.graph_of(nets.model_of(other, [2]))
    assert FRONTEND.recognize(plain, "") is None


def _normalized(graph: QuantGraph) -> QuantGraph:
    FRONTEND.normalize(graph, FrontendOptions())
    return graph


def test_casts_behind_a_quantizer_do_nothing() -> None:
    """The type of what a Quant makes is in no file, for ONNX does not know the operator: it is that of its input."""
    b = Builder(opsets={"": 13, DOMAINS[0]: 1})
    operands = [b.constant(f"p{i}", np.float32(v)) for i, v in enumerate((0.5, 0, 8))]
    b.node("Quant", ["input", *operands], "q", DOMAINS[0], signed=1, narrow=0, rounding_mode="ROUND")
    b.node("Relu", [b.node("Cast", ["q"], "c", to=1)], "r")
    b.node("Quant", ["r", *operands], "output", DOMAINS[0], signed=1, narrow=0, rounding_mode="ROUND")
    graph = nets.graph_of(nets.model_of(b, [3, 4, 5]))
    FRONTEND.normalize(graph, FrontendOptions())
    assert [n.op for n in graph.nodes] == [FAKE_QUANT, "Relu", FAKE_QUANT]

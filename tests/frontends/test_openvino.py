"""OpenVINO: round trips, levels, ranges that need an affine, ranges that miss zero."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from qatc.compiler.frontend import FrontendOptions
from qatc.compiler.graph import FAKE_QUANT, QuantGraph
from qatc.compiler.quant import QuantParams
from qatc.frontends.openvino import DOMAINS, FRONTEND
from tests.frontends import networks as nets
from tests.frontends.networks import Builder, Network
from tests.frontends.qonnx.test_qonnx import values

DOMAIN = DOMAINS[0]


def spell(b: Builder, x: str, params: QuantParams, rank: int, name: str) -> str:
    shape = [1] * rank
    if params.axis is not None:
        shape[params.axis] = len(params.scale)
    steps, zeros = np.float64(params.scale), np.float64(params.zero_point)
    low = b.constant(f"{name}.low", np.float32(steps * (params.qmin - zeros)).reshape(shape))
    high = b.constant(f"{name}.high", np.float32(steps * (params.qmax - zeros)).reshape(shape))
    b.opsets[DOMAIN] = 1
    return b.node("FakeQuantize", [x, low, high, low, high], name, DOMAIN, levels=params.qmax - params.qmin + 1)


@given(nets.networks(nets.narrow_grids()))
@settings(max_examples=25)
def test_round_trip(network: Network) -> None:
    """Bounds are float32, so that a step may come back one unit in the last place off: all else is equal."""
    got, want = nets.read(nets.write(network, spell), FRONTEND), nets.expected(network)
    assert [n.op for n in got.nodes] == [n.op for n in want.nodes]
    ours, theirs = list(got.params.values()), list(want.params.values())
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert np.allclose(a.scale, b.scale, rtol=1e-6)
        assert (a.axis, a.qmax - a.qmin) == (b.axis, b.qmax - b.qmin)
        assert {a.zero_point[i] - a.qmin for i in range(len(a.scale))} == {
            b.zero_point[i] - b.qmin for i in range(len(b.scale))
        }


def definition(x: np.ndarray, low: float, high: float, out_low: float, out_high: float, levels: int) -> np.ndarray:
    """OpenVINO's own definition of FakeQuantize-1."""
    inside = np.rint((x - low) / (high - low) * (levels - 1)) / (levels - 1) * (out_high - out_low) + out_low
    return np.where(x <= min(low, high), out_low, np.where(x > max(low, high), out_high, inside))


def one(ends: tuple[float, ...], levels: int, constant: np.ndarray | None = None) -> QuantGraph:
    b = Builder(opsets={"": 13, DOMAIN: 1})
    names = [b.constant(f"p{i}", np.asarray(v, np.float32)) for i, v in enumerate(ends)]
    x = "input" if constant is None else b.constant("c", constant)
    b.node("FakeQuantize", [x, *names], "q", DOMAIN, levels=levels)
    b.node("Add", ["q", "input"] if constant is not None else ["q", b.constant("none", np.float32(0))], "output")
    graph = nets.graph_of(nets.model_of(b, [100]))
    FRONTEND.normalize(graph, FrontendOptions())
    return graph


@pytest.mark.parametrize(
    ("ends", "levels"),
    [
        ((-1.27, 1.27, -1.27, 1.27), 255),
        ((-1.28, 1.27, -1.28, 1.27), 256),
        ((0.0, 2.55, 0.0, 2.55), 256),
        ((-0.5, 2.05, -0.5, 2.05), 256),
        ((-0.7, 0.8, -0.7, 0.8), 16),
        ((-1.0, 1.0, -2.0, 2.0), 255),  # only the step differs
        ((0.3, 2.85, -1.28, 1.27), 256),  # an affine, onto a grid with zero
        ((-1.0, 1.0, -1.0, 1.0), 65535),
    ],
)
def test_definition(ends: tuple[float, ...], levels: int) -> None:
    x = np.linspace(-3, 3, 100, dtype=np.float32)
    graph = one(ends, levels)
    graph.diagnostics.check()
    step = (ends[3] - ends[2]) / (levels - 1)
    wrong = np.abs(values(graph, x) - definition(x, *ends, levels)) > 1e-4 * step + 1e-6
    near = np.abs((x - ends[0]) / (ends[1] - ends[0]) * (levels - 1) % 1 - 0.5) < 1e-2
    assert not np.any(wrong & ~near)
    assert sum(n.op == FAKE_QUANT for n in graph.nodes) == 1


def test_signed_where_symmetric() -> None:
    def grid(ends: tuple[float, ...], levels: int) -> QuantParams:
        return next(n.attrs["params"] for n in one(ends, levels).nodes if n.op == FAKE_QUANT)

    assert (grid((-1.27, 1.27) * 2, 255).qmin, grid((-1.28, 1.27) * 2, 256).qmin) == (-127, -128)
    assert grid((0.0, 2.54) * 2, 255).dtype == "uint8"


def test_binary_weights_are_signs() -> None:
    w = np.linspace(-1, 1, 100, dtype=np.float32)
    graph = one((0.0, 0.0 + 1e-3, -0.5, 0.5), 2, w)
    graph.diagnostics.check()
    assert {p.qmax - p.qmin for p in graph.params.values()} == {2}
    assert set(np.unique(values(graph, np.zeros(100, np.float32))).tolist()) == {-0.5, 0.5}


def test_dead_channels_of_a_constant() -> None:
    b = Builder(opsets={"": 13, DOMAIN: 1})
    w = np.float32([[0.1, -0.2], [0, 0]])
    ends = [b.constant(f"e{i}", np.float32([[sign * 0.2], [0]])) for i, sign in enumerate((-1, 1, -1, 1))]
    b.node("FakeQuantize", [b.constant("w", w), *ends], "q", DOMAIN, levels=255)
    b.node("MatMul", ["input", "q"], "output")
    graph = nets.graph_of(nets.model_of(b, [1, 2]))
    FRONTEND.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    fake = next(n for n in graph.nodes if n.op == FAKE_QUANT)
    assert np.allclose(fake.attrs["params"].fake_quantize(fake.inputs[0].values), w, atol=1e-3)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("ends", "levels", "code"),
    [
        ((-1.0, 1.005, -1.0, 1.005), 256, "QAT103"),  # zero lies between two levels
        ((1.0, -1.0, 1.0, -1.0), 256, "QAT104"),
        ((1.0, 1.0, 1.0, 1.0), 256, "QAT201"),
        ((-1.0, 1.0, -1.0, 1.0), 1, "QAT104"),
        ((-1.0, 1.0, -1.0, 1.0), 2, "QAT103"),
    ],
)
def test_refused(ends: tuple[float, ...], levels: int, code: str) -> None:
    assert [d.code for d in one(ends, levels).diagnostics.errors] == [code]


@pytest.mark.parametrize("shapes", [((2,), (3,)), ((2, 1), (1, 2))])
def test_ends_that_do_not_vary_together(shapes: tuple[tuple[int, ...], ...]) -> None:
    b = Builder(opsets={"": 13, DOMAIN: 1})
    ends = [b.constant(f"e{i}", np.full(shapes[i % 2], (-1, 1)[i % 2], np.float32)) for i in range(4)]
    b.node("FakeQuantize", ["input", *ends], "output", DOMAIN, levels=255)
    graph = nets.graph_of(nets.model_of(b, [2, 2]))
    FRONTEND.normalize(graph, FrontendOptions())
    (found,) = graph.diagnostics.errors
    assert (found.code, "do not fit each other" in found.message) == ("QAT104", True)


def test_what_of_nncf_misses_zero_is_told() -> None:
    """Its overflow_fix writes 256 levels where it has aligned zero with 128, for asymmetric weights."""
    (found,) = one((-1.0, 1.005, -1.0, 1.005), 256).diagnostics.errors
    assert "set overflow_fix to disable" in (found.hint or "")


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("low", [-0.4, -0.03, 0.3])  # in steps
def test_a_range_that_ends_beside_zero_is_moved_there(sign: int, low: float) -> None:
    """NNCF leaves such ranges where training moves the end of a range of numbers without a sign."""
    step = 0.01
    ends = sorted((sign * low * step, sign * (low + 255) * step))
    graph = one((*ends, *ends), 256)
    graph.diagnostics.check()
    assert [d.code for d in graph.diagnostics] == ["QAT307"]
    (params,) = (n.attrs["params"] for n in graph.nodes if n.op == FAKE_QUANT)
    assert (params.qmin, params.qmax, params.zero_point) == (0, 255, (0 if sign > 0 else 255,))
    assert params.scale[0] == pytest.approx(step)
    x = np.linspace(-3, 3, 100, dtype=np.float32)
    assert np.abs(values(graph, x) - params.fake_quantize(x)).max() == 0


@pytest.mark.parametrize(
    ("low", "zero"),
    [(-2.015625, 128), (-0.865234375, 77), (-0.8653, None), (-0.8701171875, None)],
)
def test_ranges_that_half_precision_took_off_zero(low: float, zero: int | None) -> None:
    """Float16 keeps eleven bits of what NNCF aligned: 0.0016 of 4 is a tenth of a step."""
    graph = one((low, 2.0, low, 2.0), 256)
    if zero is None:
        assert [d.code for d in graph.diagnostics.errors] == ["QAT103"]
        return
    graph.diagnostics.check()
    assert [d.code for d in graph.diagnostics] == ["QAT307"]
    (params,) = (n.attrs["params"] for n in graph.nodes if n.op == FAKE_QUANT)
    assert params.zero_point[0] - params.qmin == zero
    x = np.linspace(-3, 3, 100, dtype=np.float32)
    assert np.abs(values(graph, x) - params.fake_quantize(x)).max() == 0


def test_zero_outside_the_range_needs_a_wider_type() -> None:
    graph = one((1.0, 2.0, 1.0, 2.0), 256)
    graph.diagnostics.check()
    assert [str(n.attrs["params"]) for n in graph.nodes if n.op == FAKE_QUANT] == [
        "int16[0,255] scale 0.00392156886 zero -255"
    ]


def test_fp8_is_refused() -> None:
    b = Builder(opsets={"": 13, DOMAIN: 1})
    b.node("FakeConvert", ["input", b.constant("s", np.float32(1))], "output", DOMAIN)
    graph = nets.graph_of(nets.model_of(b, [2]))
    assert FRONTEND.recognize(graph, "") is not None
    FRONTEND.normalize(graph, FrontendOptions())
    assert [d.code for d in graph.diagnostics.errors] == ["QAT103"]

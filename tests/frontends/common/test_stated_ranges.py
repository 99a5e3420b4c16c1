"""--quant-range: what is applied, what has no effect, and what cannot be meant."""

from __future__ import annotations

import numpy as np
import pytest

from qatc.compiler.diagnostics import CompileError, Severity
from qatc.compiler.driver.options import parse_ranges
from qatc.compiler.frontend import FrontendOptions, RangeOverride
from qatc.compiler.graph import QuantGraph
from qatc.frontends import pytorch
from tests.frontends import networks as nets
from tests.frontends.networks import Builder


def normalized(ranges: RangeOverride, *, clip: bool = False, reach: int = 100) -> QuantGraph:
    """A convolution whose weights reach `reach` of 127 steps; `clip`: the file states a range for everything."""
    b = Builder()
    weights = np.linspace(-reach, reach, 18).reshape(2, 1, 3, 3)

    def quantized(x: str, name: str) -> str:
        grid = [b.constant(f"{name}.s", 1, "float32"), b.constant(f"{name}.z", 0, "int8")]
        q = b.node("QuantizeLinear", [x, *grid], f"{name}.q")
        if clip:
            q = b.node("Clip", [q, b.constant(f"{name}.low", -90, "int8")], f"{name}.c")
        return b.node("DequantizeLinear", [q, *grid], name)

    x, w = quantized("input", "data"), quantized(b.constant("weight", weights, "float32"), "rounded")
    quantized(b.node("Conv", [x, w], "sum"), "output")
    graph = nets.graph_of(nets.model_of(b, [1, 1, 5, 5]))
    pytorch.FRONTEND.normalize(graph, FrontendOptions(ranges=ranges))
    return graph


def grids(graph: QuantGraph) -> dict[str, str]:
    return {n.outputs[0].name: str(n.attrs["params"]).split(" ")[0] for n in graph.nodes if n.op == "FakeQuant"}


def test_general_and_named_ranges() -> None:
    graph = normalized(RangeOverride((0, 100), (-110, 110), {"data": (-5, 5)}))
    assert grids(graph) == {"data": "int8[-5,5]", "rounded": "int8[-110,110]", "output": "int8[0,100]"}
    assert [d for d in graph.diagnostics if d.code in ("QAT007", "QAT107")] == []


def test_a_range_that_changes_nothing_is_told() -> None:
    graph = normalized(RangeOverride((0, 100), (-110, 110)), clip=True)
    assert set(grids(graph).values()) == {"int8[-90,127]"}
    found = [d for d in graph.diagnostics if d.code == "QAT007"]
    assert [d.severity for d in found] == [Severity.WARNING] * 2
    assert "act=0..100 changes nothing" in found[0].message
    assert "weight=-110..110 changes nothing" in found[1].message


def test_a_misspelt_tensor_gets_a_suggestion() -> None:
    graph = normalized(RangeOverride(None, None, {"dat": (0, 5), "zzz": (0, 5)}))
    listed = "qatc inspect MODEL lists the quantized tensors"
    found = {d.tensor: d.hint for d in graph.diagnostics.errors}
    assert found == {"dat": f"did you mean data? {listed}", "zzz": listed}


def around_64(*, converted: bool = False) -> QuantGraph:
    """Zero points as trainings on 0..127 leave them; `converted`: with the Cast of a model of integer operators."""
    b = Builder()
    x = "input"
    for index, zero in enumerate((58, 64, 70)):
        grid = [b.constant(f"s{index}", 0.5, "float32"), b.constant(f"z{index}", zero, "uint8")]
        q = b.node("QuantizeLinear", [x, *grid], f"q{index}")
        if converted:
            q = b.node("Cast", [q], f"c{index}", to=2)
        x = b.node("DequantizeLinear", [q, *grid], "output" if index == 2 else f"x{index}")
    return nets.graph_of(nets.model_of(b, [1, 1, 5, 5]))


@pytest.mark.parametrize("converted", [False, True])
def test_only_a_file_that_may_have_lost_a_range_is_said_to(converted: bool) -> None:
    """Zero points near 64 betray 0..127, which the dynamo exporter drops; `convert_fx` has no range to drop."""
    graph = around_64(converted=converted)
    pytorch.FRONTEND.normalize(graph, FrontendOptions())
    assert [d.code for d in graph.diagnostics] == ([] if converted else ["QAT107"])


@pytest.mark.parametrize(("reach", "suggested"), [(127, 0), (60, 1), (0, 0)])
def test_weights_of_few_steps_may_have_lost_their_range(reach: int, suggested: int) -> None:
    """Zeros (a padding's value that ONNX Runtime quantized) say nothing of how many bits were trained."""
    graph = normalized(RangeOverride(None, None), reach=reach)
    assert len([d for d in graph.diagnostics if d.code == "QAT107"]) == suggested


@pytest.mark.parametrize(
    ("producer", "said"),
    [
        ("pytorch 1.9", False),
        ("pytorch 1.13.1", False),
        ("pytorch 2.0.1", False),
        ("pytorch 2.1.0", True),
        ("pytorch 2.13.0+cpu", True),
        ("pytorch", True),
        ("pytorch CI", True),
        ("onnx.quantize 0.1.0", True),
    ],
)
def test_a_pytorch_without_the_dynamo_exporter_has_lost_none(producer: str, said: bool) -> None:
    """PyTorch 1.9 trains fbgemm's reduce_range with zero points near 64 and clamps at 0..255: the file is right."""
    graph = around_64()
    pytorch.FRONTEND.normalize(graph, FrontendOptions(producer=producer))
    assert [d.code for d in graph.diagnostics] == (["QAT107"] if said else [])


@pytest.mark.parametrize(("reach", "warned"), [(100, True), (8, False)])
def test_weights_beyond_a_stated_range(reach: int, warned: bool) -> None:
    graph = normalized(RangeOverride(None, (-8, 7)), reach=reach)
    found = [d.message for d in graph.diagnostics if d.code == "QAT107" and d.severity is Severity.WARNING]
    wanted = ["the stated range -8..7 cuts off 89% of these weights, which reach -100..100"]
    assert found == (wanted if warned else [])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("act=127..0", "the smallest integer comes first"),
        ("act=0..127,act=0..255", "act has two ranges"),
        ("act=0..127,,weight=-8..7", "'='"),
        ("weights=-8..7", "weights=-8..7"),
        ("act=0.5..3", "act=0.5..3"),
    ],
)
def test_what_cannot_be_read(text: str, why: str) -> None:
    with pytest.raises(CompileError, match="cannot read the quantization range") as raised:
        parse_ranges(text)
    assert raised.value.exit_code == 2
    assert why in raised.value.diagnostics[0].message

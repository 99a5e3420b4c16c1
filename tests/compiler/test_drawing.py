"""The drawing of a graph: boxes keep apart, edges lead down, names are text, and deep networks are drawn coarser."""

from __future__ import annotations

import time
from itertools import combinations, pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qatc.compiler.report.drawing import KINDS, LIMIT, graph_drawing, graph_file
from qatc.compiler.report.layout import _apart, layout
from qatc.compiler.result import GraphView, ViewNode
from tests.fake_results import HOSTILE

SVG = "{http://www.w3.org/2000/svg}"


@st.composite
def graphs(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]]]:
    count = draw(st.integers(1, 25))
    pairs = [(a, b) for b in range(count) for a in range(b)]
    return count, draw(st.lists(st.sampled_from(pairs), unique=True, max_size=40)) if pairs else []


@given(graphs())
def test_boxes_keep_apart_and_edges_lead_down(graph: tuple[int, list[tuple[int, int]]]) -> None:
    count, edges = graph
    found = layout(count, edges)
    layers: dict[int, list[float]] = {}
    for x, layer in found.places:
        assert 0.5 - 1e-9 <= x <= found.width - 0.5 + 1e-9
        assert 0 <= layer < found.layers
        layers.setdefault(layer, []).append(x)
    assert all(right - left >= 1 - 1e-9 for xs in layers.values() for left, right in pairwise(sorted(xs)))
    for (start, end), route in zip(edges, found.routes, strict=True):
        assert (route[0], route[-1]) == (found.places[start], found.places[end])
        assert all(one[1] < other[1] for one, other in pairwise(route))


def test_a_chain_is_a_straight_line() -> None:
    found = layout(30, [(i, i + 1) for i in range(29)])
    assert {x for x, _ in found.places} == {0.5}
    assert [layer for _, layer in found.places] == list(range(30))


def test_a_box_lies_in_the_middle_of_what_it_reads_and_of_what_reads_it() -> None:
    joined = [x for x, _ in layout(3, [(0, 2), (1, 2)]).places]
    assert joined[2] == pytest.approx((joined[0] + joined[1]) / 2)
    parted = [x for x, _ in layout(3, [(0, 1), (0, 2)]).places]
    assert parted[0] == pytest.approx((parted[1] + parted[2]) / 2)


@pytest.mark.parametrize("edges", [[(0, 3), (1, 2)], [(0, 5), (1, 4), (2, 3)], [(0, 4), (1, 3), (0, 5)]])
def test_edges_that_need_not_cross_do_not(edges: list[tuple[int, int]]) -> None:
    x = [at for at, _ in layout(1 + max(max(edge) for edge in edges), edges).places]
    for one, other in combinations(edges, 2):
        assert (x[one[0]] - x[other[0]]) * (x[one[1]] - x[other[1]]) >= 0


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(0.01, 4), st.floats(0.1, 1)), min_size=1, max_size=12))
def test_positions_are_the_nearest_that_keep_apart(rows: list[tuple[float, float, float]]) -> None:
    """Optimality: what pulls to the right adds up from the left to no less than zero, and to zero at every gap."""
    wanted, weights, sizes = map(list, zip(*rows, strict=True))
    found = _apart(wanted, weights, sizes)
    pull = 0.0
    for index, (x, want, weight) in enumerate(zip(found, wanted, weights, strict=True)):
        pull += weight * (want - x)
        assert pull >= -1e-6
        if index + 1 == len(found):
            assert abs(pull) < 1e-6
        else:
            gap = found[index + 1] - x - (sizes[index] + sizes[index + 1]) / 2
            assert gap >= -1e-9
            assert gap < 1e-6 or abs(pull) < 1e-6


def test_what_reads_nothing_lies_just_above_its_first_reader() -> None:
    assert [layer for _, layer in layout(4, [(0, 1), (1, 3), (2, 3)]).places] == [0, 1, 1, 2]


def test_the_same_graph_is_drawn_the_same() -> None:
    edges = [(0, 1), (0, 2), (1, 3), (2, 3), (0, 3)]
    assert layout(4, edges) == layout(4, edges)


def of_kinds(*kinds: str) -> GraphView:
    nodes = tuple(ViewNode(f"/node{i}", "Conv", kind, "uint8 1x8") for i, kind in enumerate(kinds))
    return GraphView(nodes, tuple((i, i + 1) for i in range(len(nodes) - 1)))


def boxes(svg: bytes) -> list[tuple[str, str, str]]:
    """(class, title, name) of every box of a drawing."""
    found: list[tuple[str, str, str]] = []
    for group in ElementTree.fromstring(svg).iter(f"{SVG}g"):
        rect = group.find(f"{SVG}rect")
        op, name = group.findall(f"{SVG}text")
        assert rect is not None
        found.append((rect.get("class", ""), op.text or "", name.text or ""))
    return found


def test_every_kind_has_its_color_and_a_place_in_the_legend() -> None:
    svg = graph_file(of_kinds(*KINDS), "model.onnx")
    assert [kind for kind, _, _ in boxes(svg)] == list(KINDS)
    said = "".join(ElementTree.fromstring(svg).itertext())
    assert all(f"{words} (1)" in said for words in KINDS.values())
    assert all(f".graph .{kind}" in said and f"--{kind}:" in said for kind in KINDS if kind != "output")


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_text(name: str) -> None:
    nodes = (ViewNode(name, name, "integer", name), ViewNode("y", "output", "output", ""))
    drawn = graph_file(GraphView(nodes, ((0, 1),)), name)
    root = ElementTree.fromstring(drawn)
    elements = {"svg", "style", "rect", "text", "path", "g", "title"}
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= elements
    assert not [key for element in root.iter() for key in element.attrib if key.startswith("on")]
    assert len(drawn) < 8000


def test_a_deep_network_is_drawn_coarser_and_says_so() -> None:
    kinds = (["integer"] * 3000 + ["fallback"]) * 24
    started = time.process_time()
    svg = graph_file(of_kinds("input", *kinds, "output"), "deep.onnx")
    assert time.process_time() - started < 60
    drawn = boxes(svg)
    assert 200 < len(drawn) <= LIMIT
    assert [kind for kind, _, _ in drawn].count("fallback") == 24
    assert f"{len(drawn):,} boxes for 72,026 operators: neighbors share one".encode() in svg
    assert (drawn[0][0], drawn[-1][0]) == ("input", "output")
    assert any(title.endswith(" operators") and name.endswith("Conv") for _, title, name in drawn)


def test_a_network_of_nothing_but_changes_is_drawn_too() -> None:
    """Float and integers in turn: no run is longer than one, so boxes share what they can and show the gravest."""
    svg = graph_file(of_kinds(*(["integer", "island"] * 1000)), "zebra.onnx")
    assert len(boxes(svg)) <= LIMIT
    assert {kind for kind, _, _ in boxes(svg)} == {"island"}


def test_long_edges_do_not_cost_a_point_a_layer() -> None:
    """Everything reads the input: points in every layer would be quadratic."""
    count = LIMIT
    edges = [*((0, i) for i in range(1, count)), *((i, i + 1) for i in range(1, count - 1))]
    found = layout(count, edges)
    assert sum(map(len, found.routes)) < 60 * count


def test_inside_a_page_the_drawing_brings_no_style() -> None:
    assert "<style>" not in graph_drawing(of_kinds("integer"), "m.onnx")

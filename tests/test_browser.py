"""report.html and the drawings in a real browser: they render, search works, nothing on the console, names are text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from qatc import compile_model
from qatc.compiler.diagnostics import escaped
from qatc.compiler.report import report_html
from qatc.compiler.report.drawing import graph_file
from qatc.compiler.report.evaluation import evaluation_document, with_evaluations
from qatc.compiler.result import Evaluation, EvaluationRun, GraphView, Score, ViewNode
from tests import browser
from tests import fake_results as fake

CORPUS = Path(__file__).resolve().parent / "corpus"
BINARY = browser.find()

pytestmark = pytest.mark.skipif(BINARY is None, reason="no Chromium here (Debian: apt-get install chromium)")

VISIBLE = "[...document.querySelectorAll('#{} tbody tr')].filter(r => r.offsetParent !== null).length"


@pytest.fixture(scope="module")
def page() -> Iterator[browser.Page]:
    assert BINARY is not None
    with browser.chromium(BINARY) as found:
        yield found


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a real compile with islands and drawn graph."""
    output = tmp_path_factory.mktemp("report") / "unet.qatc"
    compile_model(CORPUS / "fx-u8pc__unet" / "model.onnx", qat=True, output=output, explain=True)
    return output / "report.html"


def test_it_renders_and_asks_for_nothing(page: browser.Page, report: Path) -> None:
    page.open(report)
    assert page.run("document.querySelector('h1').innerText") == "model.onnx"
    titles = page.run("[...document.querySelectorAll('h2')].map(h => h.innerText)")
    wanted = ["The graph", "Verification", "Errors over depth", "Quantization parameters", "How to reproduce"]
    assert [title for title in titles if title in wanted] == wanted
    assert page.run("document.querySelectorAll('svg.plot').length") == 2
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    assert page.requested == [report.as_uri()]
    assert page.noise == []


def test_its_styles_apply(page: browser.Page, report: Path) -> None:
    """The content-security policy lets exactly this page's own style and script in."""
    page.open(report)
    fill = "getComputedStyle(document.querySelector('.graph rect.{}')).fill"
    colors = [page.run(fill.format(kind)) for kind in ("integer", "island", "moved", "input")]
    assert len(set(colors)) == 4
    assert "rgb(0, 0, 0)" not in colors
    assert page.run("getComputedStyle(document.body).margin") == "0px"


def test_search_narrows_the_tables(page: browser.Page, report: Path) -> None:
    page.open(report)
    box, rows = "input[data-rows=parameters-table]", VISIBLE.format("parameters-table")
    said = "document.getElementById('parameters-table-said').innerText"
    total = page.run(rows)
    assert total > 10
    assert page.run(said) == str(total)
    page.type(box, "WEIGHT out")
    assert page.run(rows) == 1
    assert page.run(said) == f"1 of {total}"
    page.type(box, "no such tensor")
    assert page.run(rows) == 0
    page.type(box, "")
    assert page.run(rows) == total
    assert page.run(said) == str(total)
    assert page.noise == []


def test_both_searches_work_apart(page: browser.Page, report: Path) -> None:
    page.open(report)
    other = page.run(VISIBLE.format("errors-table"))
    page.type("input[data-rows=parameters-table]", "weight")
    assert page.run(VISIBLE.format("errors-table")) == other > 0


def test_hostile_names_show_as_text(page: browser.Page, tmp_path: Path) -> None:
    nodes = tuple(ViewNode(name, name, "integer", name) for name in fake.HOSTILE)
    view = GraphView(nodes, tuple((i, i + 1) for i in range(len(nodes) - 1)))
    path = tmp_path / "report.html"
    path.write_bytes(report_html(replace(fake.hostile_result(), view=view)))
    page.open(path)
    body = page.run("document.body.textContent")
    for name in fake.HOSTILE:
        if len(name) < 200:
            assert escaped(name).split("\n")[0] in body
    assert page.run("document.querySelectorAll('script').length") == 1
    assert page.run("document.querySelectorAll('img, iframe, object, embed, link[rel=stylesheet], a').length") == 0
    attributes = "[...document.querySelectorAll('*')].flatMap(e => [...e.attributes].map(a => a.name))"
    assert not [name for name in page.run(attributes) if name.lower().startswith("on")]
    page.type("input[data-rows=parameters-table]", "<script>")
    assert page.run(VISIBLE.format("parameters-table")) == 1
    assert page.requested == [path.as_uri()]
    assert page.noise == []


def test_it_takes_an_evaluation_in(page: browser.Page, report: Path, tmp_path: Path) -> None:
    runs = (EvaluationRun("simulation", "m.onnx"), EvaluationRun("package", fake.HOSTILE[0]))
    scores = (Score("top1", "y", "labels", "higher", "share", {"simulation": 0.75, "package": 0.5}),)
    scores += tuple(Score(name, name, "simulation", "lower", "", {"package": 1.5}) for name in fake.HOSTILE)
    found = Evaluation(tmp_path, Path(fake.HOSTILE[0]), "npz", 8, runs, scores, (("reference", fake.HOSTILE[1]),))
    path = tmp_path / "report.html"
    path.write_bytes(with_evaluations(report.read_bytes(), [evaluation_document(found)]))
    page.open(path)
    row = "[...document.querySelector('#evaluation ~ .scroll tbody tr').cells].map(c => c.innerText)"
    assert page.run(row) == ["top1", "y", "labels (higher is better)", "75.0%", "50.0%"]
    assert escaped(fake.HOSTILE[1]) in page.run("document.body.textContent")
    assert page.run("document.querySelectorAll('script').length") == 1
    assert page.run("document.querySelectorAll('img').length") == 0
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    assert page.noise == []


def test_profiles_are_compared(page: browser.Page, report: Path) -> None:
    page.open(report)
    names = page.run("[...document.querySelectorAll('#arithmetic ~ .scroll tbody')][0].innerText")
    for name in ("onnx", "tflite", "tosa", "cmsis-nn", "pow2"):
        assert name in names


def test_a_drawing_stands_alone(page: browser.Page, tmp_path: Path) -> None:
    nodes = (ViewNode("<b>&", "Conv", "integer"), ViewNode("y", "Softmax", "fallback", "no integer form"))
    path = tmp_path / "graph.svg"
    path.write_bytes(graph_file(GraphView(nodes, ((0, 1),)), "m.onnx"))
    page.open(path)
    assert page.run("document.documentElement.tagName") == "svg"
    names = page.run("[...document.querySelectorAll('g .name')].map(t => t.textContent)")
    assert names == ["<b>&", "y"]
    fills = page.run("[...document.querySelectorAll('g rect')].map(r => getComputedStyle(r).fill)")
    assert len(set(fills)) == 2
    assert "rgb(0, 0, 0)" not in fills
    assert page.noise == []

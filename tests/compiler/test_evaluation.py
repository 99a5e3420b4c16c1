"""`qatc evaluate` on real packages: the scores are those of plain runs; limits, plug-ins, reports and refusals."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx.parser
import onnxruntime
import pytest
from click.testing import CliRunner, Result
from onnx import helper

from qatc import CompileError, cli, compile_model, evaluate_package, verify_package
from qatc.compiler.compare.package import open_package
from qatc.compiler.evaluation.source import find_source
from qatc.compiler.package import schema, source_file
from qatc.compiler.report.evaluation import evaluation_document, with_evaluations
from qatc.compiler.report.page import EVALUATION_BEGIN, EVALUATION_END
from qatc.compiler.result import Evaluation, EvaluationRun, Score
from tests.fake_results import HOSTILE, validate
from tests.graphs import net
from tests.tiny_package import edit

CORPUS = Path(__file__).resolve().parent.parent / "corpus"
SOURCE = CORPUS / "drpai__resnet8" / "model.onnx"
X = np.load(CORPUS / "drpai__resnet8" / "eval_x.npy")[:60]
LABELS = np.load(CORPUS / "drpai__resnet8" / "eval_y.npy")[:60]


def compiled(folder: Path, name: str = "net", **options: Any) -> Path:
    """A package with its source beside it."""
    folder.mkdir(exist_ok=True)
    shutil.copy(SOURCE, folder / f"{name}.onnx")
    package = folder / f"{name}.qatc"
    compile_model(folder / f"{name}.onnx", qat=True, output=package, **options)
    return package


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("made"), calibrate=CORPUS / "drpai__resnet8" / "calibration.npy")


@pytest.fixture
def package(made: Path, tmp_path: Path) -> Path:
    """A copy of the package, its source beside it."""
    shutil.copytree(made.parent, tmp_path / "there")
    return tmp_path / "there" / made.name


@pytest.fixture
def data(tmp_path: Path) -> Path:
    np.savez(tmp_path / "d.npz", X, LABELS)
    return tmp_path / "d.npz"


def score(found: Evaluation, metric: str, against: str | None = None) -> Mapping[str, float]:
    (values,) = [s.values for s in found.scores if s.metric == metric and against in (None, s.against)]
    return values


def plain(model: Path, *, optimize: bool) -> np.ndarray:
    """What a model makes of the data, by ONNX Runtime alone."""
    options = onnxruntime.SessionOptions()
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: X})[0])


# -- scores ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("batch", [None, 7, 10**30])
def test_scores_are_those_of_plain_runs(package: Path, data: Path, batch: int | None) -> None:
    found = evaluate_package(package, data, ["top1", "mse", "sqnr@reference"], batch=batch)
    assert [run.name for run in found.runs] == ["simulation", "reference", "package"]
    assert (found.samples, found.loader, found.absent) == (60, "npz", ())
    simulated, deployed = plain(SOURCE, optimize=False), plain(package / "model.onnx", optimize=True)
    assert score(found, "top1")["simulation"] == np.mean(np.argmax(simulated, 1) == LABELS)
    assert score(found, "top1")["package"] == np.mean(np.argmax(deployed, 1) == LABELS)
    wanted = np.mean((deployed.astype(np.float64) - simulated) ** 2)
    assert score(found, "mse", "simulation")["package"] == pytest.approx(wanted, rel=1e-6)
    assert "simulation" not in score(found, "mse")
    assert "reference" not in score(found, "sqnr")
    assert score(found, "sqnr")["package"] > 40


def test_the_reference_is_what_the_package_computes(package: Path, data: Path) -> None:
    found = evaluate_package(package, data, ["max-error@package"], runs=["reference", "package"])
    assert score(found, "max-error") == {"reference": 0.0}
    assert [run.name for run in found.runs] == ["reference", "package"]


def test_integers_in_and_out_are_the_real_numbers_they_stand_for(tmp_path: Path, data: Path) -> None:
    calibration = CORPUS / "drpai__resnet8" / "calibration.npy"
    package = compiled(tmp_path / "int", io="integer", calibrate=calibration)
    found = evaluate_package(package, data, ["top1", "cosine"])
    assert score(found, "top1")["package"] > 0.9
    assert score(found, "cosine")["package"] > 0.99
    assert score(found, "cosine")["package"] == score(found, "cosine")["reference"]


def test_a_source_of_integers_reads_integers(package: Path, tmp_path: Path) -> None:
    """A package is compiled again: its source reads and writes bytes, whatever the data are."""
    calibration = CORPUS / "drpai__resnet8" / "calibration.npy"
    source = compiled(tmp_path / "first", "first", io="integer", calibrate=calibration) / "model.onnx"
    again = tmp_path / "again.qatc"
    compile_model(source, qat=True, output=again, io="integer")
    np.savez(tmp_path / "real.npz", X[:9], LABELS[:9])
    found = evaluate_package(again, tmp_path / "real.npz", ["top1", "max-error@simulation"], model=source)
    assert score(found, "max-error") == {"reference": 0.0, "package": 0.0}
    assert score(found, "top1")["simulation"] == score(found, "top1")["package"] > 0.5


def test_a_note_where_the_source_lacks_ranges(package: Path, data: Path) -> None:
    found = evaluate_package(package, data, ["top1"], limit=3)
    assert [d.code for d in found.diagnostics] == ["QAT409"]
    assert "calibration data" in found.diagnostics[0].message
    assert found.samples == 3


def test_a_float_model_takes_part(package: Path, data: Path) -> None:
    found = evaluate_package(package, data, ["top1", "mse@float"], float_model=SOURCE, limit=20)
    assert [run.name for run in found.runs] == ["float", "simulation", "reference", "package"]
    assert score(found, "mse")["simulation"] == 0.0


def test_data_of_another_scale_are_doubted(package: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "raw.npy", (X * 100).astype(np.float32))
    found = evaluate_package(package, tmp_path / "raw.npy", ["agreement"], limit=8)
    (warning,) = [d for d in found.diagnostics if d.code == "QAT008"]
    assert "lies outside the range that the input was quantized for" in warning.message
    assert found.passed


# -- the source -----------------------------------------------------------------------------------------------------
def test_without_its_source_the_simulation_is_absent(package: Path, data: Path) -> None:
    (package.parent / "net.onnx").unlink()
    found = evaluate_package(package, data, ["top1", "mse@reference"], limit=5)
    assert [run.name for run in found.runs] == ["reference", "package"]
    said = "net.onnx, which was compiled, is not beside the package; name it with --model"
    assert found.absent == (("simulation", said),)
    with pytest.raises(CompileError, match=r"the run simulation, which is absent: net\.onnx") as caught:
        evaluate_package(package, data, ["mse"])
    assert "mse@reference" in str(caught.value)
    found = evaluate_package(package, data, ["mse"], model=SOURCE, limit=5)
    assert "simulation" in {s.against for s in found.scores}


def test_a_source_that_is_a_folder_is_found(package: Path) -> None:
    saved = package.parent / "saved"
    saved.mkdir()
    (saved / "saved_model.pb").write_bytes(b"weights")
    source = source_file(saved)
    opened = open_package(package)
    entry = {"file": source.name, "size": source.size, "sha256": source.sha256, "external_data": []}
    opened = replace(opened, manifest={**opened.manifest, "source": entry})
    assert find_source(opened, None, {}) == saved.resolve()
    (saved / "saved_model.pb").write_bytes(b"others")
    absent: dict[str, str] = {}
    assert find_source(opened, None, absent) is None
    assert "is not beside the package" in absent["simulation"]


@pytest.mark.parametrize("name", ["", ".", "..", "there", "there/net.onnx"])
def test_a_hostile_source_is_not_looked_for(
    package: Path, data: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """With ".." the whole machine was hashed, from the folder above the working directory on."""
    monkeypatch.chdir(package.parent.parent)
    edit(package, lambda document: document["source"].update(file=name))
    hashed: list[Path] = []
    monkeypatch.setattr("qatc.compiler.evaluation.source.source_file", hashed.append)
    found = evaluate_package(package, data, ["mse@reference"], limit=1)
    assert [run for run, _ in found.absent] == ["simulation"]
    assert not hashed


@pytest.mark.parametrize("role", ["inputs", "outputs"])
@pytest.mark.parametrize(
    "change",
    [
        lambda ports: ports[0].update(name="other"),
        lambda ports: ports[0].update(dtype="float64"),
        lambda ports: ports.append(ports[0]),
        lambda ports: ports.clear(),
    ],
)
def test_ports_that_the_integer_graph_has_not(package: Path, data: Path, role: str, change: Any) -> None:
    """They ended in KeyError, where samples are not replayed before."""

    def hostile(document: dict[str, Any]) -> None:
        change(document[role])
        document["samples"] = []
        document["files"] = {n: file for n, file in document["files"].items() if not n.startswith("samples/")}

    edit(package, hostile)
    for run in ("simulation", "reference", "package"):
        with pytest.raises(CompileError, match=f"QAT502.*the {role} of integer.json"):
            evaluate_package(package, data, ["mse@reference"], runs=[run, "reference"])


def test_another_model_is_refused(package: Path, data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.onnx"
    shutil.copy(CORPUS / "eager-u8pc__eager" / "model.onnx", other)
    with pytest.raises(CompileError, match="is not the file that was compiled: its sha256 differs"):
        evaluate_package(package, data, ["top1"], model=other)
    shutil.copy(other, package.parent / "net.onnx")  # of the right name, but changed
    assert evaluate_package(package, data, ["top1"], limit=2).absent[0][0] == "simulation"
    sounds = CORPUS / "fx-u8pc-bnfold__kws1d" / "input_0.npy"
    with pytest.raises(CompileError, match=r"float32 \[8, 16, 16\]: the rank is 3, not 4"):
        evaluate_package(package, sounds, ["agreement@reference"])


def test_a_source_that_onnx_runtime_does_not_run(tmp_path: Path) -> None:
    """Nodes of a vendor: the simulation is the normalized graph."""
    model = onnx.load(SOURCE)
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            node.domain = "ai.onnx"
    model.graph.node.append(helper.make_node("Mystery", [model.graph.input[0].name], ["nobody_reads"], domain="vendor"))
    model.opset_import.append(helper.make_opsetid("vendor", 1))
    source = tmp_path / "vendor.onnx"
    onnx.save(model, source)
    package = tmp_path / "vendor.qatc"
    compile_model(source, qat=True, output=package)
    np.save(tmp_path / "d.npy", X[:4])
    found = evaluate_package(package, tmp_path / "d.npy", ["cosine"])
    assert found.runs[0].description.startswith("the normalized graph")
    assert score(found, "cosine")["package"] > 0.99


# -- usage ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("metrics", "options", "said"),
    [
        (["top2"], {}, "unknown metric 'top2'"),
        ([], {}, "no metric is named"),
        (["top1@simulation"], {}, "top1 compares with nothing that could be chosen by @simulation"),
        (["mse@moon"], {}, "there is no 'moon' to compare with"),
        (["mse@"], {}, "there is no '' to compare with"),
        (["top1"], {"require": {"top2": 0.1}}, "unknown metric 'top2'"),
        (["top1"], {"require": {"top1": 0.1, "TOP1": 0.2}}, "two limits are given for top1"),
        (["top1"], {"runs": ["device"]}, "there is no run device"),
        (["top1"], {"runs": ["float"]}, "the run float needs a model"),
        (["top1"], {"runs": ["package"], "model": SOURCE}, "--model is given, but the run simulation takes no part"),
        (["top1"], {"runs": ["package"], "float_model": SOURCE}, "--float-model is given, but the run float"),
        (["top1"], {"output": "logits"}, "the package has no output logits"),
        (["top1"], {"require": {"mse": 0.1}}, "a limit is given for mse, which is not measured"),
        (["top1"], {"require": {"top1": 0.1}, "runs": ["simulation"]}, "which is not measured of the package"),
        (["mse@package"], {"max_loss": {"mse": 0.1}}, "a limit is given for mse, which is not measured of the package"),
        (["top1"], {"data_options": {"mean": "1"}}, "the data set npz has no option mean"),
        (["top1"], {"limit": 0}, "the option limit is 0"),
        (["top1"], {"speed": 1}, "unknown option"),
    ],
)
def test_wrong_options(package: Path, data: Path, metrics: list[str], options: dict[str, Any], said: str) -> None:
    with pytest.raises(CompileError, match=said) as caught:
        evaluate_package(package, data, metrics, **options)
    assert caught.value.exit_code == 2
    assert all(d.code == "QAT007" and d.hint for d in caught.value.diagnostics)


def test_labels_and_targets_that_are_missing(package: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", X)
    with pytest.raises(CompileError) as caught:
        evaluate_package(package, tmp_path / "d.npy", ["top1", "mse@targets"])
    assert "top1 needs labels, and the data set has none" in str(caught.value)
    assert "the data set has no targets" in str(caught.value)


def test_what_is_compared_with_is_absent(package: Path, data: Path) -> None:
    for metric, runs, hint in (
        ("mse@float", None, "add float to --runs"),
        ("mse", ["reference", "package"], "add simulation to --runs"),
    ):
        with pytest.raises(CompileError) as caught:
            evaluate_package(package, data, [metric], runs=runs)
        assert hint in str(caught.value)


def test_data_that_the_network_does_not_take(tmp_path: Path) -> None:
    body = "a = A(x)\nb = D(w)\nc = Conv(a, b)\ny = A(c)"
    weight = f"float[1,1,3,3] w = {{{', '.join(['1'] * 9)}}}"
    model = onnx.parser.parse_model(net("(float[n,1,h,v] x) => (float[n,1,i,j] y)", body, weight))
    onnx.save(model, tmp_path / "m.onnx")
    package = tmp_path / "m.qatc"
    compile_model(tmp_path / "m.onnx", qat=True, output=package)
    np.savez(tmp_path / "d.npz", np.ones((2, 1, 2, 2), np.float32), np.zeros((2, 1, 1), np.int64))
    told = {"simulation": "QAT403", "reference": "QAT008", "package": "QAT008"}
    for run, code in told.items():
        with pytest.raises(CompileError) as caught:
            evaluate_package(package, tmp_path / "d.npz", ["top1"], runs=[run])
        (found,) = caught.value.diagnostics
        assert found.code == code
        assert "does not run" in found.message or "cannot run" in found.message
        assert (found.hint or "").startswith("feed samples of the sizes that the network was made for")


def test_a_damaged_package_is_not_scored(package: Path, data: Path) -> None:
    (package / "model.onnx").write_bytes(b"")
    with pytest.raises(CompileError, match="QAT502"):
        evaluate_package(package, data, ["top1"])


# -- limits ---------------------------------------------------------------------------------------------------------
def test_limits(package: Path, data: Path) -> None:
    kept = evaluate_package(package, data, ["top1", "mse"], require={"top1": 0.9, "mse": 1.0}, max_loss={"top1": 0.05})
    assert kept.passed
    broken = evaluate_package(package, data, ["top1", "mse"], require={"top1": 1.01, "mse": 1e-12}, limit=9)
    assert [d.code for d in broken.diagnostics if d.severity.value == "error"] == ["QAT408", "QAT408"]
    assert "required is at most 1e-12" in str(broken.diagnostics)
    assert not broken.passed
    assert not evaluate_package(package, data, ["TOP1"], require={"Top1": 1.01}, limit=9).passed  # any letter case
    assert not evaluate_package(package, data, ["top1"], max_loss={"TOP1": -1.0}, limit=9).passed
    absent = evaluate_package(package, data, ["mse"], max_loss={"mse": 1.0}, limit=9)
    assert "the simulation has no mse to lose against: mse is compared with the simulation" in str(absent.diagnostics)


@pytest.mark.parametrize(
    ("better", "package", "simulation", "loss"),
    [
        ("higher", 0.9, 0.95, 0.05),
        ("lower", 0.3, 0.1, 0.2),
        ("higher", 1.0, 0.5, -0.5),
        ("higher", np.inf, np.inf, 0.0),
    ],
)
def test_a_loss_is_what_the_package_is_worse(better: str, package: float, simulation: float, loss: float) -> None:
    found = Score("m", "y", "labels", better, "", {"package": package, "simulation": simulation})
    assert found.loss("package", "simulation") == pytest.approx(loss)
    assert np.isnan(found.loss("package", "float"))


# -- plug-ins -------------------------------------------------------------------------------------------------------
PLUGIN = """
import numpy as np
from qatc.compiler.evaluation import Item, Loader, TaskMetric, mean_metric

class Repeated:
    def __init__(self, ports, options):
        self.port, self.count = ports.inputs[0], int(options.get("count", "3"))
    def __len__(self):
        return self.count
    def __iter__(self):
        for index in range(self.count):
            yield Item({self.port.name: np.full((1, 16, 16), index / 10, np.float32)}, index % 10)

class Seen:
    def __init__(self):
        self.labels = []
    def add(self, outputs, items):
        assert {len(value) for value in outputs.values()} == {len(items)}
        self.labels += [item.label for item in items]
    def value(self):
        return float(sum(self.labels))

METRICS = [mean_metric("spread", "largest - smallest", lambda y, t: y.max() - y.min()),
           TaskMetric("labels-seen", "sum of the labels", Seen, better="lower")]
LOADER = Loader("constant", "the same value everywhere", lambda path: path.suffix == ".constant",
                lambda path, ports, options: Repeated(ports, options), {"count": "how many"})
"""


def test_a_file_brings_metrics_and_data(package: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN)
    (tmp_path / "any.constant").touch()
    found = evaluate_package(
        package, tmp_path / "any.constant", ["spread@reference", "labels-seen"], plugins=[tmp_path / "mine.py"],
        data_options={"count": "5"}, runs=["reference", "package"],
    )  # fmt: skip
    assert (found.samples, found.loader) == (5, "constant")
    assert score(found, "labels-seen") == {"reference": 10.0, "package": 10.0}
    assert score(found, "spread")["package"] > 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("METRICS = []", "has none of METRIC, METRICS, LOADER, LOADERS"),
        ("METRIC = 3", "brings a value of type int, which is neither a metric nor a loader"),
        ("1 / 0", "cannot be loaded: ZeroDivisionError: division by zero"),
        ("def", "cannot be loaded: SyntaxError"),
        ("raise SystemExit(0)", "cannot be loaded: SystemExit: 0"),
        (
            "from qatc.compiler.evaluation.metrics import MSE\nMETRIC = MSE",
            "qatc and .*mine.py both bring a metric",
        ),
    ],
)
def test_files_that_bring_nothing(package: Path, data: Path, tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "mine.py").write_text(content)
    with pytest.raises(CompileError, match=said) as caught:
        evaluate_package(package, data, ["top1"], plugins=[tmp_path / "mine.py"])
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("failure", ["raise SystemExit(0)", "1 / 0", "y['x']", "t.nothing"])
def test_a_plug_in_that_fails_is_no_bug_of_ours(package: Path, data: Path, tmp_path: Path, failure: str) -> None:
    text = f"from qatc.compiler.evaluation import mean_metric\ndef spread(y, t):\n    {failure}\n"
    (tmp_path / "mine.py").write_text(f"{text}METRIC = mean_metric('spread', 'it fails', spread)\n")
    with pytest.raises(CompileError, match=r"mine\.py failed: ") as caught:
        evaluate_package(
            package, data, ["spread@reference"], plugins=[tmp_path / "mine.py"], runs=["reference", "package"]
        )
    assert [(d.code, caught.value.exit_code) for d in caught.value.diagnostics] == [("QAT007", 2)]


@pytest.mark.parametrize("value", ["None", "'0.5'", "1j", "10**400", "[1]"])
def test_a_score_that_is_no_number(package: Path, data: Path, tmp_path: Path, value: str) -> None:
    """None passed every limit, the others were bugs of qatc."""
    text = f"""
from qatc.compiler.evaluation import Metric
class Odd:
    def add(self, found, wanted): pass
    def value(self): return {value}
METRIC = Metric("odd", "it fails", Odd, "outputs")
"""
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(CompileError, match="the score of the metric odd is") as caught:
        evaluate_package(
            package, data, ["odd@reference"], plugins=[tmp_path / "mine.py"], runs=["reference", "package"],
            require={"odd": 1.0},
        )  # fmt: skip
    assert [(d.code, caught.value.exit_code) for d in caught.value.diagnostics] == [("QAT007", 2)]


def test_a_function_that_gives_no_number(package: Path, data: Path, tmp_path: Path) -> None:
    text = "from qatc.compiler.evaluation import mean_metric\nMETRIC = mean_metric('odd', '', lambda y, t: {})\n"
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(CompileError, match=r"QAT008.*its function gives dict, no number"):
        evaluate_package(
            package, data, ["odd@reference"], plugins=[tmp_path / "mine.py"], runs=["reference", "package"]
        )


def test_installed_packages_bring_them_too(package: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point = SimpleNamespace(
        name="accuracy", value="qatc.compiler.evaluation.metrics:TOP1", dist=SimpleNamespace(name="p")
    )
    monkeypatch.setattr("qatc.compiler.registry.entry_points", lambda group: [point] if group == "qatc.metrics" else [])
    found = evaluate_package(package, data, ["Accuracy"], limit=5)
    assert found.scores[0].metric == "top1"


# -- the report -----------------------------------------------------------------------------------------------------
def test_the_report_takes_the_result_in(package: Path, data: Path, tmp_path: Path) -> None:
    before = {name: (package / name).read_bytes() for name in ("model.onnx", "quantization.json", "check.py")}
    found = evaluate_package(package, data, ["top1", "sqnr"], report=True)
    assert found.reported
    assert verify_package(package).diagnostics == ()
    assert {name: (package / name).read_bytes() for name in before} == before
    report = json.loads((package / "report.json").read_bytes())
    assert [each["data"] for each in report["evaluations"]] == ["d.npz"]
    assert report["evaluations"][0] == json.loads(json.dumps(evaluation_document(found)))
    page = (package / "report.html").read_text()
    assert page.count('<h2 id="evaluation">') == 1
    assert "98.3%" in page
    again = tmp_path / "e.npz"
    np.savez(again, X[:7], LABELS[:7])
    evaluate_package(package, again, ["top1"], report=True)
    evaluate_package(package, data, ["top1"], report=True, limit=4)
    report = json.loads((package / "report.json").read_bytes())
    assert [(each["data"], each["samples"]) for each in report["evaluations"]] == [("e.npz", 7), ("d.npz", 4)]
    assert (package / "report.html").read_text().count('<h2 id="evaluation">') == 1
    assert verify_package(package).passed


def test_a_package_that_is_replaced_meanwhile_does_not_take_it_in(package: Path, data: Path, tmp_path: Path) -> None:
    other = compiled(tmp_path / "other", io="integer", calibrate=CORPUS / "drpai__resnet8" / "calibration.npy")

    def swap(step: str, share: float) -> None:
        if step.startswith("running") and other.exists():
            shutil.rmtree(package)
            other.rename(package)

    with pytest.raises(CompileError, match="another package than the one that was opened") as caught:
        evaluate_package(package, data, ["top1"], runs=["reference"], limit=5, report=True, progress=swap)
    assert {d.code for d in caught.value.diagnostics} == {"QAT502"}
    assert verify_package(package).passed
    assert json.loads((package / "report.json").read_bytes())["evaluations"] == []


@pytest.mark.parametrize("name", ["report.json", "report.html", "model.onnx"])
def test_a_file_that_is_damaged_meanwhile_is_not_signed_off(package: Path, data: Path, name: str) -> None:
    manifest = (package / "manifest.json").read_bytes()

    def damage(step: str, share: float) -> None:
        if step.startswith("running"):
            content = (package / name).read_bytes()
            (package / name).write_bytes(content[:-1] + b"~")

    with pytest.raises(CompileError, match="QAT502"):
        evaluate_package(package, data, ["top1"], runs=["reference"], limit=5, report=True, progress=damage)
    assert (package / "manifest.json").read_bytes() == manifest


@pytest.mark.skipif(os.fsencode("\udcff") != b"\xff", reason="names are bytes here")
def test_data_have_a_name_wherever_they_lie(
    package: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No lone surrogates, which JSON of others does not hold, and no empty name."""
    (tmp_path / "set").mkdir()
    odd = data.rename(tmp_path / "set" / os.fsdecode(b"d\xff.npz"))
    monkeypatch.chdir(tmp_path / "set")
    for path in (odd, Path()):
        assert evaluate_package(package, path, ["top1"], limit=2, report=True).reported
    report = json.loads((package / "report.json").read_bytes())
    assert [each["data"] for each in report["evaluations"]] == ["d\\xff.npz", "set"]
    assert verify_package(package).passed


def test_equal_evaluations_are_equal_bytes(package: Path, data: Path) -> None:
    evaluate_package(package, data, ["top1"], report=True)
    first = {path.name: path.read_bytes() for path in package.glob("*.*")}
    evaluate_package(package, data, ["top1"], report=True)
    assert {path.name: path.read_bytes() for path in package.glob("*.*")} == first


def test_a_signed_package_is_left_alone(package: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And that is told before the data are run."""
    (package / "package.sig").write_bytes(b"signature")
    before = (package / "manifest.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("qatc.compiler.evaluation.evaluate.walk", lambda *_: pytest.fail("the data are run"))
        with pytest.raises(CompileError, match="is signed"):
            evaluate_package(package, data, ["top1"], report=True, limit=2)
    assert (package / "manifest.json").read_bytes() == before
    assert evaluate_package(package, data, ["top1"], limit=2).passed


def test_hostile_names_are_text() -> None:
    page = f"<main>{EVALUATION_BEGIN}{EVALUATION_END}</main>".encode()
    runs = (EvaluationRun("package", HOSTILE[0]),)
    scores = tuple(Score(name, name, name, "higher", "", {"package": 1.0}) for name in HOSTILE)
    found = Evaluation(Path("p"), Path("d"), HOSTILE[1], 1, runs, scores, (("simulation", HOSTILE[0]),))
    shown = with_evaluations(page, [{**evaluation_document(found), "data": HOSTILE[0]}]).decode()
    assert "<script" not in shown
    assert "<img" not in shown
    assert "&lt;script&gt;" in shown
    with pytest.raises(ValueError, match="no place"):
        with_evaluations(b"<main></main>", [])


# -- the command line -----------------------------------------------------------------------------------------------
def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.cli, [str(argument) for argument in arguments])


def test_the_command_prints_a_table(package: Path, data: Path) -> None:
    found = run("evaluate", package, "--data", data, "--metric", "top1,mse", "--metric", "sqnr", "-v")
    assert found.exit_code == 0, found.stderr
    header = next(line for line in found.stdout.splitlines() if line.lstrip().startswith("metric"))
    assert header.split() == ["metric", "simulation", "reference", "package", "against"]
    for text in ("60 samples, read as npz", "labels (higher is better)", "simulation (lower is better)", "98.3%"):
        assert text in found.stdout
    assert "QAT409" in found.stderr
    assert run("evaluate", package, "--data", data, "--metric", "top1", "-q").stdout == ""


def test_the_command_prints_json(package: Path, data: Path, tmp_path: Path) -> None:
    files = ("--junit", tmp_path / "j.xml", "--sarif", tmp_path / "s.sarif")
    found = run("evaluate", package, "--data", data, "--metric", "top1,sqnr@reference", "--json", *files)
    document = validate(found.stdout.encode())
    assert document["result"]["evaluation"]["scores"][0]["values"]["package"] > 0.9
    assert document["result"]["evaluation"]["scores"][1]["values"] == {
        "simulation": pytest.approx(document["result"]["evaluation"]["scores"][1]["values"]["simulation"]),
        "package": "inf",
    }
    names = [case.get("name") for case in ElementTree.parse(tmp_path / "j.xml").iter("testcase")]
    assert "top1 output against labels" in names
    assert json.loads((tmp_path / "s.sarif").read_bytes())["runs"][0]["results"][0]["ruleId"] == "QAT409"


def test_a_breach_is_exit_code_3(package: Path, data: Path) -> None:
    found = run("evaluate", package, "--data", data, "--metric", "top1", "--require", "top1=1", "--json")
    assert found.exit_code == 3
    document = validate(found.stdout.encode())
    assert document["result"]["passed"] is False
    assert document["result"]["evaluation"]["scores"]
    assert "QAT408" in {d["code"] for d in document["diagnostics"]}


@pytest.mark.parametrize(
    "rest",
    [["--metric", "top1,"], ["--metric", "top1", "--require", "top1=many"], ["--metric", "top1", "--batch", "0"]],
)
def test_usage_errors(package: Path, data: Path, rest: list[str]) -> None:
    assert run("evaluate", package, "--data", data, *rest).exit_code == 2


def test_the_schema_knows_what_a_score_may_be() -> None:
    found = Evaluation(Path("p"), Path("d"), "npz", 1, (), (Score("m", "", "", "lower", "", {"package": np.nan}),))
    document = {**evaluation_document(found)}
    assert document["scores"] == [
        {"metric": "m", "output": None, "against": None, "better": "lower", "unit": None, "values": {"package": "nan"}}
    ]
    assert "evaluations" in schema("report")["properties"]  # type: ignore[operator]
    assert replace(found, diagnostics=()).passed

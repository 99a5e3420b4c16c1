"""The Python API as its docstrings state it: every doctest of a public function runs, from the repository's root."""

from __future__ import annotations

import dataclasses
import doctest
import inspect
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import qatc
from qatc.compiler.driver.keywords import COMPILE, EVALUATE, CompileKeywords, check_options
from qatc.compiler.driver.options import CompileOptions
from qatc.compiler.evaluation.evaluate import EvaluateOptions

ROOT = Path(__file__).resolve().parent.parent
FUNCTIONS = ["compile_model", "inspect_model", "verify_package", "compare_package", "evaluate_package"]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_doctests(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    function = getattr(qatc, name)
    found = doctest.DocTestFinder(recurse=False).find(function, name, globs={"tmp": str(tmp_path)})
    examples = [test for test in found if test.examples]
    assert examples, f"{name} shows no example"
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    for test in examples:
        report: list[str] = []
        assert runner.run(test, out=report.append).failed == 0, "".join(report)


WRONG: dict[str, list[object]] = {
    "samples": [0, -1, "3", 2.5, True],
    "seed": [-1, 2**32, None],
    "io": ["int", None],
    "shapes": [{"input": "1,1,16,16"}, {"input": [1, "a"]}, {"input": [0]}, [("input", (1,))], {1: (1,)}],
    "tolerance": [{"foo": 1}, {"max_lsb": -1}, {"max_lsb": "x"}, {"agreement": float("nan")}, {"agreement": 99.9}, 1],
    "calibration_method": ["average", None],
    "inputs": ["x.npy", [("x",)], [("x", None)], {"x": 1}],
    "quant_range": [5],
    "dialect": [None],
    "target": [None],
    "options": [{"domain": 5}, ["domain=standard"]],
    **{name: [5, ["a"]] for name in ("sign", "certificate", "calibrate", "ranges", "arithmetic")},
    **{name: ["no", 1, None] for name in ("qat", "verify", "require_integer", "golden", "golden_header", "explain")},
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in WRONG for value in WRONG[name]])
def test_values_of_another_kind_are_usage_errors(name: str, value: object) -> None:
    """Before the model is even looked for, and for `inspect_model` as well."""
    for function in (qatc.compile_model, qatc.inspect_model):
        with pytest.raises(qatc.CompileError, match=f"the option {name} is ") as caught:
            function("missing.onnx", **{name: value})  # type: ignore[arg-type]
        assert caught.value.exit_code == 2
        assert "it has to be " in str(caught.value)


@pytest.mark.parametrize(
    "option",
    [{"metrics": "mse"}, {"metrics": [3]}, {"metrics": None}, {"batch": "3"}, {"batch": 0}, {"limit": 2.5},
     {"runs": "package"}, {"require": {"mse": "x"}}, {"require": ["mse"]}, {"max_loss": {"mse": float("nan")}},
     {"plugins": "x.py"}, {"data_options": {"mean": 1}}, {"report": 1}, {"model": 5}, {"output": 3}],
)  # fmt: skip
def test_options_of_an_evaluation_are_checked_before_any_work(option: dict[str, object]) -> None:
    (name,) = option
    with pytest.raises(qatc.CompileError, match=f"the option {name} is ") as caught:
        qatc.evaluate_package("missing", "missing.npz", **{"metrics": ["mse"], **option})  # type: ignore[arg-type]
    assert caught.value.exit_code == 2


def test_a_tolerance_below_zero_is_none() -> None:
    with pytest.raises(qatc.CompileError, match="the tolerance is -1") as caught:
        qatc.compare_package("missing", "missing", tolerance=-1)
    assert caught.value.exit_code == 2


def test_every_wrong_option_is_named_at_once() -> None:
    with pytest.raises(qatc.CompileError) as caught:
        qatc.compile_model("missing.onnx", samples=0, io="int", qat=True)  # type: ignore[arg-type]
    assert [d.message for d in caught.value.diagnostics] == ["the option samples is 0", "the option io is 'int'"]


def test_options_that_others_leave_without_effect_are_refused() -> None:
    options = {"inputs": {"x": "x.npy"}, "samples": 3, "calibration_method": "mse", "tolerance": {"max_lsb": 1}}
    with pytest.raises(qatc.CompileError) as caught:
        qatc.compile_model("missing.onnx", **options, verify=False)  # type: ignore[arg-type]
    assert caught.value.exit_code == 2
    assert [d.message.partition(" ")[0] for d in caught.value.diagnostics] == [
        "--samples",
        "--calibration-method",
        "--tolerance",
    ]
    with pytest.raises(qatc.CompileError, match="QAT002"):
        qatc.compile_model("missing.onnx", inputs={"x": "x.npy"}, calibration_method="minmax", tolerance={"max_lsb": 1})


def test_inputs_may_be_a_dictionary(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 1, 16, 16), np.float32))
    model, file = ROOT / "samples" / "models" / "resnet8_qat.onnx", tmp_path / "x.npy"
    for index, inputs in enumerate([{"input": file}, [("input", str(file))]]):
        result = qatc.compile_model(model, qat=True, inputs=inputs, output=tmp_path / str(index))
        assert result.options["inputs"] == [["input", "x.npy"]]
        assert not np.load(tmp_path / str(index) / "samples" / "0" / "input_0.npy").any()


def test_progress_never_goes_back(tmp_path: Path) -> None:
    steps: list[tuple[str, float]] = []
    model = ROOT / "samples" / "models" / "resnet8_qat.onnx"
    calibrate = tmp_path / "data.npy"
    np.save(calibrate, np.zeros((1, 1, 16, 16), np.float32))
    qatc.compile_model(
        model, qat=True, output=tmp_path / "out", calibrate=calibrate, progress=lambda *seen: steps.append(seen)
    )
    shares = [share for _, share in steps]
    assert shares == sorted(set(shares))
    assert steps[-1] == ("done", 1.0)


def test_the_types_of_the_options_are_those_of_the_options() -> None:
    """What type checkers and the page know are the fields that there are; the defaults themselves are legal."""
    fields = {f.name for f in dataclasses.fields(CompileOptions)} - {"output"}
    assert set(CompileKeywords.__annotations__) == fields
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    assert fields <= {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    default = CompileOptions()
    check_options({name: getattr(default, name) for name in fields}, COMPILE)
    assert set(COMPILE) == fields
    assert set(EVALUATE) == {f.name for f in dataclasses.fields(EvaluateOptions)}


def test_public_names_are_documented_and_typed() -> None:
    for name in qatc.__all__:
        assert getattr(qatc, name)
    for name in FUNCTIONS:
        signature = inspect.signature(getattr(qatc, name))
        assert signature.return_annotation is not inspect.Signature.empty
        assert inspect.getdoc(getattr(qatc, name))
    assert set(FUNCTIONS) < set(dir(qatc))


def test_importing_qatc_loads_nothing_heavy() -> None:
    code = "import sys, qatc; print(sorted({'onnx', 'numpy', 'onnxruntime', 'rich', 'click'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_compile_loads_nothing_that_it_does_not_use(tmp_path: Path) -> None:
    command = ["compile", "-a", "-q", "samples/models/resnet8_qat.onnx", "-o", str(tmp_path / "out")]
    code = f"import sys, qatc.cli; qatc.cli.cli({command!r}, standalone_mode=False)"
    unused = (
        "{'qatc.compiler.report.junit', 'qatc.compiler.report.sarif', 'qatc.backends.drpai', 'qatc.compiler.compare'}"
    )
    code += f"; print(sorted({unused} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'compile_all'"):
        _ = qatc.compile_all  # type: ignore[attr-defined]


def test_a_model_in_memory_is_asked_for_as_a_file() -> None:
    for function in (qatc.compile_model, qatc.inspect_model):
        with pytest.raises(
            qatc.CompileError, match=r"the model is a ModelProto, not a path\n  help: save it"
        ) as caught:
            function(onnx.ModelProto())  # type: ignore[arg-type]
        assert caught.value.exit_code == 2
    with pytest.raises(qatc.CompileError, match="the option output is 3"):
        qatc.compile_model("model.onnx", output=3)  # type: ignore[arg-type]


def test_unknown_options_are_named() -> None:
    with pytest.raises(qatc.CompileError, match=r"unknown option dialekt\n  help: did you mean dialect\?") as caught:
        qatc.compile_model("model.onnx", dialekt="pytorch")
    assert caught.value.exit_code == 2

"""The Python API as its docstrings state it: every doctest of a public function runs, from the repository's root."""

from __future__ import annotations

import doctest
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import qatc

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


def test_public_names_are_documented_and_typed() -> None:
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


def test_unknown_options_are_named() -> None:
    with pytest.raises(qatc.CompileError, match="unknown option dialekt") as caught:
        qatc.compile_model("model.onnx", dialekt="pytorch")
    assert caught.value.exit_code == 2

"""What CI services read: SARIF against what the standard requires, JUnit as XML; the action and the hooks run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator

from qatc import cli
from qatc.compiler.diagnostics import CODES, Diagnostic, Severity
from qatc.compiler.report.junit import Case, compile_cases, junit
from qatc.compiler.report.sarif import sarif
from qatc.compiler.result import Coverage
from tests import fake_results as fake
from tests import tiny_package
from tests.fake_results import HOSTILE

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "samples" / "models" / "resnet8_qat.onnx"
FINDINGS = [
    Diagnostic("QAT203", "two scales", node="/conv", tensor="w", hint="export again"),
    Diagnostic("QAT304", "the sum may overflow", Severity.WARNING, node="/fc"),
    Diagnostic("QAT105", "say -a", Severity.NOTE),
]

TEXT = {"type": "object", "required": ["text"], "properties": {"text": {"type": "string", "minLength": 1}}}
INDEX = {"type": "integer", "minimum": 0}
LOGICAL = {"type": "object", "properties": {"name": {"type": "string"}, "kind": {"type": "string"}}}
LOCATION = {
    "type": "object",
    "required": ["physicalLocation"],
    "properties": {
        "physicalLocation": {
            "type": "object",
            "required": ["artifactLocation", "region"],
            "properties": {
                "artifactLocation": {
                    "type": "object",
                    "required": ["uri"],
                    "properties": {
                        "uri": {"type": "string", "pattern": r"^([A-Za-z0-9._~/-]|%[0-9A-F]{2})+$|^file:///"}
                    },
                },
                "region": {"type": "object", "properties": {"startLine": {"type": "integer", "minimum": 1}}},
            },
        },
        "logicalLocations": {"type": "array", "items": LOGICAL, "uniqueItems": True},
    },
}
RULE = {
    "type": "object",
    "required": ["id", "shortDescription", "fullDescription", "help", "defaultConfiguration"],
    "properties": {
        "id": {"type": "string", "pattern": "^QAT[0-9]{3}$"},
        "shortDescription": TEXT,
        "fullDescription": TEXT,
        "help": {**TEXT, "required": ["text", "markdown"]},
        "defaultConfiguration": {"properties": {"level": {"enum": ["none", "note", "warning", "error"]}}},
    },
}
RESULT = {
    "type": "object",
    "required": ["ruleId", "ruleIndex", "level", "message", "locations", "partialFingerprints"],
    "properties": {
        "ruleId": {"type": "string"},
        "ruleIndex": INDEX,
        "level": {"enum": ["none", "note", "warning", "error"]},
        "message": TEXT,
        "locations": {"type": "array", "items": LOCATION, "minItems": 1, "maxItems": 10},
        "partialFingerprints": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}
#: What SARIF 2.1.0 demands of a log, and GitHub's code scanning beyond that.
LOG = {
    "type": "object",
    "required": ["$schema", "version", "runs"],
    "additionalProperties": False,
    "properties": {
        "$schema": {"type": "string", "format": "uri"},
        "version": {"const": "2.1.0"},
        "runs": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["tool", "results"],
                "properties": {
                    "tool": {
                        "type": "object",
                        "required": ["driver"],
                        "properties": {
                            "driver": {
                                "type": "object",
                                "required": ["name", "version", "rules"],
                                "properties": {"rules": {"type": "array", "items": RULE, "uniqueItems": True}},
                            }
                        },
                    },
                    "columnKind": {"enum": ["utf16CodeUnits", "unicodeCodePoints"]},
                    "invocations": {
                        "items": {"required": ["executionSuccessful"], "properties": {"exitCode": {"type": "integer"}}}
                    },
                    "results": {"type": "array", "items": RESULT},
                },
            },
        },
    },
}


def log(data: bytes) -> dict[str, Any]:
    """A SARIF log, validated; its one run."""
    document = json.loads(data)
    Draft202012Validator(LOG).validate(document)  # pyright: ignore[reportUnknownMemberType]
    (run,) = document["runs"]
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert all(rules[result["ruleIndex"]] == result["ruleId"] for result in run["results"])
    return run


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli.cli, arguments)


# -- SARIF ---------------------------------------------------------------------------------------------------------
def test_findings_as_sarif() -> None:
    found = log(sarif(Path("models/net.onnx"), FINDINGS, 1))
    assert [r["level"] for r in found["results"]] == ["error", "warning", "note"]
    assert found["invocations"] == [{"executionSuccessful": False, "exitCode": 1}]
    first = found["results"][0]
    assert first["message"]["text"] == "two scales\nexport again\nat node /conv, tensor w"
    assert [place["kind"] for place in first["locations"][0]["logicalLocations"]] == ["node", "tensor"]
    assert first["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "models/net.onnx"


def test_every_code_is_a_rule_with_help() -> None:
    rules = log(sarif(Path("net.onnx"), [], 0))["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == list(CODES)
    assert all("## What to do" in rule["help"]["markdown"] for rule in rules)


def test_fingerprints_tell_findings_apart_and_stay() -> None:
    def prints(*found: Diagnostic) -> list[str]:
        return [r["partialFingerprints"]["qatcFinding/v1"] for r in log(sarif(Path("n.onnx"), found, 1))["results"]]

    assert len(set(prints(*FINDINGS))) == len(FINDINGS)
    assert prints(*reversed(FINDINGS)) == prints(*FINDINGS)[::-1]
    assert prints(replace(FINDINGS[0], hint="another hint")) == prints(FINDINGS[0])


@pytest.mark.parametrize("name", [name for name in HOSTILE if len(name) < 200])
def test_hostile_names_in_ci_files(name: str) -> None:
    found = [Diagnostic("QAT302", name, node=name, tensor=name, hint=name)]
    path = Path(name.replace("\ud800", "").replace("\x00", ""))
    uri = log(sarif(path, found, 1))["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert unquote(uri) == path.as_posix()
    root = ElementTree.fromstring(junit(name, [], found, 1))
    assert "".join(root.itertext()).replace("\n", "").isprintable()


# -- JUnit ---------------------------------------------------------------------------------------------------------
def suite(data: bytes) -> ElementTree.Element:
    """The one suite of a report, whose counts are right."""
    root = ElementTree.fromstring(data)
    assert root.tag == "testsuites"
    (found,) = root
    cases = found.findall("testcase")
    for element in (root, found):
        assert element.get("tests") == str(len(cases))
        assert element.get("failures") == str(sum(case.find("failure") is not None for case in cases))
        assert element.get("errors") == str(sum(case.find("error") is not None for case in cases))
    assert all(case.get("name") and case.get("classname") and float(case.get("time", "x")) >= 0 for case in cases)
    return found


def test_a_compile_as_junit() -> None:
    result = fake.result(diagnostics=tuple(FINDINGS[1:]))
    found = suite(junit("net.onnx", compile_cases(result), result.diagnostics, 0))
    assert found.get("failures") == "0"
    assert [case.get("name") for case in found] == [
        "compile",
        "verification: package = reference",
        "verification: reference = simulation",
        "verification: end to end",
        "QAT304 /fc",
        "QAT105: -a or -m says something else than the file",
    ]


def test_a_network_without_products_claims_no_share_of_them() -> None:
    (case, *_) = compile_cases(fake.result(coverage=Coverage(0, 0, 0, 1, 0)))
    assert case.output == "no multiply-accumulates, 0 in float"


def test_failures_as_junit() -> None:
    bad = replace(fake.check(3, "/conv3", 7), passed=False, message="7 of 8192 elements differ by up to 2 LSB")
    result = fake.result(verification=fake.verification(package=(bad,), passed=False))
    found = suite(junit("net.onnx", compile_cases(result), [FINDINGS[0], Diagnostic("QAT901", "a bug")], 3))
    failed = {case.get("name"): case.findtext("failure") for case in found if case.find("failure") is not None}
    assert failed["verification: package = reference"] == "/conv3: 7 of 8192 elements differ by up to 2 LSB"
    assert "help: export again" in (failed["QAT203 /conv w"] or "")
    assert found.get("errors") == "1"


def test_an_exit_code_without_a_finding_fails() -> None:
    assert suite(junit("p", [Case("files")], [], 3)).get("failures") == "1"


# -- through the command line --------------------------------------------------------------------------------------
def test_compile_and_verify_write_both(tmp_path: Path) -> None:
    package, xml, scan = tmp_path / "p", tmp_path / "j.xml", tmp_path / "s.sarif"
    done = run("compile", str(MODEL), "-o", str(package), "--junit", str(xml), "--sarif", str(scan))
    assert done.exit_code == 0, done.stderr
    assert "compile" in [case.get("name") for case in suite(xml.read_bytes())]
    assert [r["ruleId"] for r in log(scan.read_bytes())["results"]] == ["QAT105"]
    assert "j.xml" not in "".join(path.read_text("latin-1") for path in package.iterdir() if path.is_file())

    assert run("verify", str(package), "--junit", str(xml), "--sarif", str(scan)).exit_code == 0
    assert [case.get("name") for case in suite(xml.read_bytes())] == [
        "files",
        "sample 0, output",
        "verification: package = reference",
    ]
    (package / "quantization.json").write_text("{}")
    assert run("verify", str(package), "--junit", str(xml), "--sarif", str(scan)).exit_code == 3
    assert suite(xml.read_bytes()).get("failures") != "0"
    (first, *_) = log(scan.read_bytes())["results"]
    assert first["locations"][0]["physicalLocation"]["artifactLocation"]["uri"].endswith("/p/manifest.json")


def test_failures_write_both(tmp_path: Path) -> None:
    xml, scan = tmp_path / "j.xml", tmp_path / "s.sarif"
    done = run("compile", "nowhere.onnx", "--junit", str(xml), "--sarif", str(scan), "--json")
    assert done.exit_code == 1
    assert suite(xml.read_bytes()).get("failures") == "1"
    assert log(scan.read_bytes())["invocations"][0] == {"executionSuccessful": False, "exitCode": 1}


def test_a_failed_verification_keeps_its_stages(tmp_path: Path) -> None:
    xml = tmp_path / "j.xml"
    line = ("compile", "-a", str(MODEL), "-o", str(tmp_path / "p"), "--tolerance", "equal_share=1", "--junit", str(xml))
    assert run(*line, "--tolerance", "max_lsb=0").exit_code == 3
    cases = {case.get("name"): case.findtext("failure") for case in suite(xml.read_bytes())}
    assert cases["verification: package = reference"] is None
    assert "exactly" in (cases["verification: reference = simulation"] or "")
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(("place", "given"), [("p", "."), ("p/samples", ".."), ("", "p")])
def test_a_package_has_its_name_from_inside_too(
    place: str, given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_package.build(tmp_path / "p")
    monkeypatch.chdir(tmp_path / place)
    assert run("verify", given, "--junit", str(tmp_path / "j.xml")).exit_code == 0
    assert suite((tmp_path / "j.xml").read_bytes()).get("name") == "p"


@pytest.mark.parametrize("option", ["--junit", "--sarif"])
def test_a_file_that_cannot_be_written_is_said_once(option: str, tmp_path: Path) -> None:
    (tmp_path / "no").touch()
    done = run("compile", str(MODEL), "-a", "-o", str(tmp_path / "p"), option, str(tmp_path / "no" / "file"))
    assert done.exit_code == 2
    assert done.stderr.count("error[QAT007]: cannot write ") == 1
    assert done.stdout.startswith("compiled ")
    assert run("compile", "nowhere.onnx", option, str(tmp_path / "no" / "file")).exit_code == 1


def test_what_was_found_is_told_where_a_file_cannot_be_written(tmp_path: Path) -> None:
    """It was lost, and so was that it had failed."""
    package = tiny_package.build(tmp_path / "p")
    arguments = ("verify", str(package), "--json", "--junit", str(package / "model.onnx" / "file"))
    done = run(*arguments)
    assert done.exit_code == 2
    answer = json.loads(done.stdout)
    assert (answer["exit_code"], answer["result"]["passed"]) == (2, True)
    assert [d["code"] for d in answer["diagnostics"]] == ["QAT007"]
    (package / "quantization.json").unlink()
    done = run(*arguments)
    assert done.exit_code == 3
    assert [d["code"] for d in json.loads(done.stdout)["diagnostics"]] == ["QAT502", "QAT007"]


def test_folders_of_files_are_made(tmp_path: Path) -> None:
    """As test runners do, also where the package, which makes folders on its way, is not written."""
    xml, scan = tmp_path / "a" / "b" / "j.xml", tmp_path / "c" / "s.sarif"
    assert run("compile", "nowhere.onnx", "--junit", str(xml), "--sarif", str(scan)).exit_code == 1
    assert len(suite(xml.read_bytes()))
    assert log(scan.read_bytes())["results"]


# -- the action and the hooks --------------------------------------------------------------------------------------
def scripts(text: str) -> list[str]:
    """The `run: |` blocks of a workflow file."""
    blocks = re.findall(r"^( *)run: \|\n((?:\1  .*\n|\n)+)", text, re.MULTILINE)
    return [re.sub(rf"^{indent}  ", "", block, flags=re.MULTILINE) for indent, block in blocks]


@pytest.fixture
def path_with_qatc(tmp_path: Path) -> dict[str, str]:
    script = tmp_path / "bin" / "qatc"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m qatc "$@"\n')
    script.chmod(0o755)
    return os.environ | {"PATH": f"{script.parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}


def test_the_actions_inputs_and_outputs_exist() -> None:
    text = (ROOT / "action.yml").read_text(encoding="utf-8")
    declared = re.findall(r"^  ([a-z-]+):$", text[text.index("\ninputs:") : text.index("\noutputs:")], re.MULTILINE)
    used = set(re.findall(r"\$\{\{ inputs\.([a-z-]+)", text))
    assert used == set(declared)
    written = set(re.findall(r'echo "([a-z-]+)=', text))
    assert set(re.findall(r"steps\.\w+\.outputs\.([a-z-]+)", text)) == written
    assert not any("${{" in script for script in scripts(text))  # no input ever becomes part of a script


@pytest.mark.parametrize(("options", "status"), [("--samples 2\n\n--golden\n", 0), ("--tolerance nonsense\n", 2)])
def test_the_actions_script_runs(options: str, status: int, tmp_path: Path, path_with_qatc: dict[str, str]) -> None:
    script = scripts((ROOT / "action.yml").read_text(encoding="utf-8"))[1]
    (tmp_path / "it's a model.onnx").symlink_to(MODEL)
    environment = path_with_qatc | {
        "RUNNER_TEMP": str(tmp_path),
        "GITHUB_OUTPUT": str(tmp_path / "output"),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary"),
        "QATC": str(tmp_path / "bin" / "qatc"),
        "MODEL": "it's a model.onnx",
        "DIALECT": "auto",
        "TARGET": "onnx",
        "PACKAGE": "",
        "OPTIONS": options,
    }
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    outputs = dict(line.split("=", 1) for line in (tmp_path / "output").read_text().splitlines())
    assert outputs["package"] == "it's a model.qatc"
    assert outputs["exit-code"] == str(status)
    assert ("compiled it's a model.onnx" in (tmp_path / "summary").read_text()) is (status == 0)
    if status == 0:
        assert (tmp_path / outputs["package"] / "golden").is_dir()
        suite(Path(outputs["junit"]).read_bytes())
        log(Path(outputs["sarif"]).read_bytes())


def test_the_hooks_run(tmp_path: Path, path_with_qatc: dict[str, str]) -> None:
    text = (ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8")
    hooks = dict(zip(re.findall(r"^- id: (\S+)$", text, re.M), re.findall(r"^  entry: (.+)$", text, re.M), strict=True))
    package = tmp_path / "p"
    assert run("compile", "-a", str(MODEL), "-o", str(package)).exit_code == 0

    def status(hook: str, *files: Path) -> int:
        command = ["bash", "-c", f'{hooks[hook]} "$@"', "pre-commit", *map(str, files)]
        return subprocess.run(command, env=path_with_qatc, capture_output=True, check=False).returncode

    assert status("qatc-inspect", MODEL) == 0
    assert status("qatc-inspect", tmp_path / "nowhere.onnx", MODEL) == 1
    assert status("qatc-verify", package / "manifest.json") == 0
    (package / "model.onnx").write_bytes(b"")
    assert status("qatc-verify", package / "manifest.json") == 1

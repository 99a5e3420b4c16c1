"""The command line: what is parsed reaches the driver, what is found the user, and failures have their exit codes."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result

from qatc import _version, cli
from qatc.compiler.command import arguments
from qatc.compiler.diagnostics import CODES, CompileError, Diagnostic, Severity, fail
from qatc.compiler.driver import compile as driver
from qatc.compiler.driver.options import CompileOptions
from qatc.compiler.result import CompileResult, Inspection
from tests import fake_results as fake
from tests.fake_results import validate

ROOT = Path(__file__).resolve().parent.parent
CORPUS = ROOT / "tests" / "corpus"
MODEL = ROOT / "samples" / "models" / "resnet8_qat.onnx"


def run(*arguments: str, command: click.Command = cli.cli) -> Result:
    """Run a command line in this process."""
    return CliRunner().invoke(command, arguments)


class Driver:
    """Stands in for the driver: remembers what it was asked, and answers or raises."""

    def __init__(self) -> None:
        self.answer: CompileResult | Inspection | BaseException = fake.result()
        self.asked: dict[str, Any] = {}

    def __call__(self, model: Path, **options: Any) -> Any:
        self.asked = {"model": model, **options}
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Driver:
    found = Driver()
    monkeypatch.setattr(driver, "compile_model", found)
    monkeypatch.setattr(driver, "inspect_model", found)
    return found


# -- parsing -------------------------------------------------------------------------------------------------------
def test_plain_compile_asks_for_the_defaults(compiler: Driver) -> None:
    assert run("compile", "model.onnx").exit_code == 0
    defaults = dataclasses.asdict(CompileOptions())
    asked = {key: value for key, value in compiler.asked.items() if key not in ("model", "progress")}
    assert {**asked, "inputs": tuple(asked["inputs"])} == defaults
    assert compiler.asked["model"] == Path("model.onnx")


def test_every_option_reaches_the_driver(compiler: Driver) -> None:
    line = (
        "-a -m PyTorch m.onnx -o out -t qdq -p domain=standard -p x=a=b -s data:0=1,3,8,8 -s b=2x4 --input data:0=d.npy"
        " --input data:0=e.npy --samples 3 --seed 7 --calibrate c.npz --calibration-method entropy --io integer"
        " --require-integer --tolerance max_lsb=2 --tolerance agreement=0.99 --no-verify"
        " --quant-range act=0..127 --ranges r.json --arithmetic tosa --golden --golden-header --explain"
        " --max-memory 2GiB --sign key.pem --certificate cert.pem"
    )
    found = run("compile", *line.split())
    assert found.exit_code == 0, found.stderr
    del compiler.asked["progress"]
    assert compiler.asked == {
        "model": Path("m.onnx"),
        "qat": True,
        "dialect": "PyTorch",
        "output": Path("out"),
        "target": "qdq",
        "options": {"domain": "standard", "x": "a=b"},
        "shapes": {"data:0": (1, 3, 8, 8), "b": (2, 4)},
        "inputs": [("data:0", Path("d.npy")), ("data:0", Path("e.npy"))],
        "samples": 3,
        "seed": 7,
        "calibrate": Path("c.npz"),
        "calibration_method": "entropy",
        "io": "integer",
        "require_integer": True,
        "tolerance": {"max_lsb": 2.0, "agreement": 0.99},
        "verify": False,
        "quant_range": "act=0..127",
        "ranges": Path("r.json"),
        "arithmetic": "tosa",
        "golden": True,
        "golden_header": True,
        "explain": True,
        "max_memory": 2 << 30,
        "sign": Path("key.pem"),
        "certificate": Path("cert.pem"),
    }


def test_options_are_those_of_the_driver(compiler: Driver) -> None:
    """The command line takes what the Python API takes, under the same names."""
    run("compile", "m.onnx")
    assert {*compiler.asked} - {"model", "progress"} == {field.name for field in dataclasses.fields(CompileOptions)}


def test_limits_are_those_of_the_verification() -> None:
    from qatc.compiler.verify import Limits

    assert list(arguments.TOLERANCES) == [field.name for field in dataclasses.fields(Limits)]


def test_calibration_methods_are_those_of_the_calibration() -> None:
    from qatc.compiler.calibration.histogram import METHODS

    assert sorted(arguments.METHODS) == sorted(METHODS)


def test_profiles_are_those_of_the_arithmetic() -> None:
    from qatc.compiler.arithmetic import PROFILES

    assert sorted(arguments.PROFILES) == sorted(PROFILES)


def test_the_short_command_is_the_same(compiler: Driver) -> None:
    assert run("-a", "-m", "pytorch", "model.onnx", command=cli.compile_command).exit_code == 0
    assert compiler.asked["qat"]
    assert compiler.asked["dialect"] == "pytorch"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("compile", "Missing argument 'MODEL'"),
        ("compile m.onnx --bogus", "--bogus"),
        ("compile m.onnx -p domain", "'domain' is not KEY=VALUE"),
        ("compile m.onnx -p domain=", "'domain=' is not KEY=VALUE"),
        ("compile m.onnx -p a=1 -p a=2", "'a' is given twice"),
        ("compile m.onnx -s x=1,-3", "dimensions are positive numbers"),
        ("compile m.onnx -s x=1,,3", "dimensions are positive numbers"),
        ("compile m.onnx -s 1,3", "is not NAME=1,3,224,224"),
        ("compile m.onnx --tolerance lsb=2", "known are max_lsb, equal_share"),
        ("compile m.onnx --tolerance max_lsb=nan", "a number of at least 0"),
        ("compile m.onnx --samples 0", "0 is not in the range"),
        ("compile m.onnx --io int8", "'int8' is not one of 'float', 'integer'"),
        ("compile m.onnx --calibration-method best", "is not one of 'minmax'"),
        ("inspect", "Missing argument 'MODEL'"),
        ("compil m.onnx", "Did you mean qatc compile?"),
        ("model.onnx -a", "Did you mean qatc compile model.onnx?"),
        ("frobnicate", "No such command 'frobnicate'"),
        ("-a -m pytorch m.onnx", "No such option '-a'. Did you mean qatc compile -a?"),
        ("--metric top1 m.qatc", "Did you mean qatc evaluate --metric?"),
        ("--bogus compile m.onnx", "No such option '--bogus'"),
        ("compile -a pytorch m.onnx", "(m.onnx). -a takes no value: write -a -m pytorch"),
        ("compile -a m.onnx n.onnx", "unexpected extra argument (n.onnx)\n"),
        ("compile m.onnx -t drpai -d", "-t drpai: -d needs a value"),
    ],
)
def test_usage_errors_exit_2(compiler: Driver, arguments: str, said: str) -> None:
    found = run(*arguments.split())
    assert found.exit_code == 2
    assert said in found.stderr
    assert found.stdout == ""
    assert compiler.asked == {}


def test_a_usage_error_is_json_where_json_is_wanted(compiler: Driver) -> None:
    found = run("compile", "m.onnx", "--samples", "many", "--json")
    assert (found.exit_code, found.stderr) == (2, "")
    document = validate(found.stdout_bytes)
    assert document["exit_code"] == 2
    assert [d["code"] for d in document["diagnostics"]] == ["QAT007"]


@pytest.mark.parametrize("arguments", ["frobnicate --json", "model.onnx -a --json", "--json"])
def test_without_a_command_a_usage_error_is_json_too(compiler: Driver, arguments: str) -> None:
    found = run(*arguments.split())
    assert (found.exit_code, found.stderr) == (2, "")
    document = validate(found.stdout_bytes)
    assert (document["command"], document["exit_code"], document["result"]) == ("qatc", 2, None)
    assert [d["code"] for d in document["diagnostics"]] == ["QAT007"]


# -- what comes back -----------------------------------------------------------------------------------------------
def test_a_compile_prints_its_summary(compiler: Driver) -> None:
    found = run("compile", "m.onnx")
    assert found.stdout.startswith("compiled resnet8_qat.onnx\n")
    assert found.stdout.endswith("  package      resnet8_qat.qatc\n")
    assert found.stderr == ""
    assert "\x1b" not in found.stdout


def test_quiet_prints_nothing_and_verbose_more(compiler: Driver) -> None:
    assert run("compile", "m.onnx", "-q").output == ""
    assert "verify 0.40 s" in run("compile", "m.onnx", "-v").stdout


def test_json_is_all_there_is_on_standard_output(compiler: Driver) -> None:
    found = run("compile", "m.onnx", "--json")
    document = validate(found.stdout_bytes)
    assert document["tool"] == {"name": "qatc", "version": _version.__version__}
    assert document["result"]["package"] == "resnet8_qat.qatc"
    assert found.stderr == ""


def test_diagnostics_go_to_standard_error_all_at_once(compiler: Driver) -> None:
    compiler.answer = CompileError(
        [
            Diagnostic("QAT203", "two scales", node="/conv", hint="export again"),
            Diagnostic("QAT302", "no such operator", node="/nms"),
        ]
    )
    found = run("compile", "m.onnx")
    assert (found.exit_code, found.stdout) == (1, "")
    assert "error[QAT203]: two scales\n  at    node /conv\n  help  export again\n" in found.stderr
    assert "error[QAT302]: no such operator\n  at    node /nms\n" in found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize("code", [1, 2, 3])
def test_the_exit_code_is_the_errors_own(compiler: Driver, code: int) -> None:
    compiler.answer = CompileError([Diagnostic("QAT401", "the package differs")], code)
    assert run("compile", "m.onnx").exit_code == code
    found = run("compile", "m.onnx", "--json")
    assert found.exit_code == code
    assert validate(found.stdout_bytes)["exit_code"] == code


def test_a_bug_of_ours_says_how_to_report_it(compiler: Driver) -> None:
    compiler.answer = ZeroDivisionError("scale \x1b[31m")
    found = run("compile", "m.onnx")
    assert (found.exit_code, found.stdout) == (70, "")
    assert "error[QAT901]: ZeroDivisionError: scale \\x1b[31m" in found.stderr
    assert "report it" in found.stderr
    assert _version.__version__ in found.stderr
    assert "Traceback" not in found.stderr
    assert "Traceback" in run("compile", "m.onnx", "-v").stderr
    assert validate(run("compile", "m.onnx", "--json").stdout_bytes)["diagnostics"][0]["code"] == "QAT901"


def test_running_out_of_memory_is_no_bug(compiler: Driver) -> None:
    compiler.answer = MemoryError()
    found = run("compile", "m.onnx")
    assert found.exit_code == 1
    assert "QAT011" in found.stderr


def test_an_interrupt_exits_130(compiler: Driver) -> None:
    compiler.answer = KeyboardInterrupt()
    found = run("compile", "m.onnx")
    assert (found.exit_code, found.stderr) == (130, "interrupted\n")


def test_hostile_names_do_not_reach_the_terminal_raw(compiler: Driver) -> None:
    compiler.answer = CompileError([Diagnostic("QAT203", f"at {n}", node=n, tensor=n, hint=n) for n in fake.HOSTILE])
    found = run("compile", "m.onnx")
    assert not [c for c in found.stderr if not c.isprintable() and c != "\n"]
    compiler.answer = fake.hostile_result()
    found = run("compile", "m.onnx", "-v")
    assert found.exit_code == 0, found.stderr
    assert not [c for c in found.stdout if not c.isprintable() and c != "\n"]


def test_inspect_shows_operators_and_its_dump(compiler: Driver) -> None:
    compiler.answer = fake.inspection()
    found = run("inspect", "m.onnx", "-t", "qdq")
    assert found.exit_code == 0
    assert compiler.asked["target"] == "qdq"
    assert "/layer1/Conv" in found.stdout
    assert run("inspect", "m.onnx", "--dump").stdout == "graph resnet8 opset 17\n"
    assert validate(run("inspect", "m.onnx", "--json").stdout_bytes)["result"]["dialect"] == "pytorch"


# -- the smaller commands ------------------------------------------------------------------------------------------
def test_version_and_help() -> None:
    assert run("--version").stdout == f"qatc {_version.__version__}\n"
    for line in (["--help"], ["-h"], ["compile", "--help"]):
        found = run(*line)
        assert found.exit_code == 0
        assert "quantization-aware" in found.stdout


def test_targets() -> None:
    found = run("targets")
    assert found.exit_code == 0, found.stderr
    assert "\n  onnx " in found.stdout
    listed = validate(run("targets", "--json").stdout_bytes)["result"]
    names = [target["name"] for target in listed]
    assert {target["name"]: target["operators"] for target in listed}["onnx"] == ["Softmax"]
    assert {"onnx", "qdq"} <= {*names}
    assert "-p " in run("targets", "-v").stdout


def test_dialects() -> None:
    found = run("dialects")
    assert found.exit_code == 0, found.stderr
    listed = validate(run("dialects", "--json").stdout_bytes)["result"]
    assert {"pytorch", "tensorflow"} <= {dialect["name"] for dialect in listed}
    assert all(f"\n  {dialect['name']} " in found.stdout for dialect in listed)
    whole = " ".join(CliRunner().invoke(cli.cli, ["dialects"], env={"COLUMNS": "10000"}).stdout.split())
    told = [text for dialect in listed for text in (*dialect["exporters"], *dialect["limits"])]
    assert [text for text in told if " ".join(text.split()) not in whole] == []


def test_explain_tells_about_every_code() -> None:
    listed = run("explain")
    assert listed.exit_code == 0
    assert all(f"  {code}  {title}\n" in listed.stdout for code, title in CODES.items())
    assert validate(run("explain", "--json").stdout_bytes)["result"]["codes"] == CODES
    found = run("explain", "qat203")
    assert found.exit_code == 0, found.stderr
    assert CODES["QAT203"] in found.stdout
    assert validate(run("explain", "203", "--json").stdout_bytes)["result"]["code"] == "QAT203"
    assert run("explain", "QAT999").exit_code == 2


@pytest.mark.parametrize(
    ("name", "said"), [(".", "has no manifest.json"), ("nix", "does not exist"), ("m.onnx", "is not a folder")]
)
def test_verify_without_a_package(name: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").touch()
    found = run("verify", str(tmp_path / name))
    assert found.exit_code == 1
    assert f"error[QAT502]: {tmp_path / name} {said}\n" in found.stderr


# -- in a process of its own ---------------------------------------------------------------------------------------
def process(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize("name", ["compile", "inspect"])
def test_help_groups_every_option_once(name: str) -> None:
    text = run(name, "--help").stdout
    options = [p for p in cli.cli.commands[name].params if isinstance(p, click.Option)]
    listed = re.findall(r"^  (?:-\w, )?(--[\w-]+)", text, re.MULTILINE)
    assert sorted(listed) == sorted([*(next(o for o in p.opts if o.startswith("--")) for p in options), "--help"])
    titles = re.findall(r"^(\w[\w ]*):$", text, re.MULTILINE)
    left_out = () if name == "compile" else ("Package", "Verification")
    assert titles == [title for title in [*arguments.SECTIONS, "Others"] if title not in left_out]
    others = text.partition("\nOthers:\n")[2]
    assert re.findall(r"--[\w-]+", others) == ["--max-memory", "--help"]


@pytest.mark.parametrize("name", ["compile", "inspect", "verify", "compare", "evaluate"])
def test_help_begins_with_examples_that_can_be_read(name: str) -> None:
    command = cli.cli.commands[name]
    examples = re.findall(rf"^  qatc {name} (.+)$", run(name, "--help").stdout, re.MULTILINE)
    assert len(examples) == 2
    for example in examples:
        assert command.make_context(name, example.split()).params


def test_commands_are_listed_in_the_order_of_their_use() -> None:
    listed = re.findall(r"^  (\w+)  ", run("--help").stdout.partition("Commands:")[2], re.MULTILINE)
    assert listed == ["compile", "inspect", "verify", "compare", "evaluate", "targets", "dialects", "explain"]
    assert "..." not in run("--help").stdout.partition("Commands:")[2]


@pytest.mark.parametrize("way", [["-m", "qatc"], ["cli.py"]])
def test_help_needs_nothing_heavy(way: list[str]) -> None:
    found = process(sys.executable, "-X", "importtime", *way, "--help")
    assert found.returncode == 0
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in found.stderr.splitlines()}
    assert not loaded & {"numpy", "onnx", "onnxruntime", "rich", "jinja2", "onnx_graphsurgeon"}


# -- end to end ----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """The repository's sample, compiled through the command line."""
    path = tmp_path_factory.mktemp("packages") / "resnet8.qatc"
    return path, run("compile", "-a", "-m", "PyTorch", str(MODEL), "-o", str(path))


def test_the_sample_compiles(package: tuple[Path, Result]) -> None:
    path, found = package
    assert found.exit_code == 0, found.stderr
    assert found.stdout.startswith("compiled resnet8_qat.onnx\n")
    assert "  integers     100% of " in found.stdout
    assert "package = reference: " in found.stdout
    assert f"  package      {path}\n" in found.stdout
    html = (path / "report.html").read_text(encoding="utf-8")
    assert "resnet8_qat.onnx" in html
    assert str(path.parent) not in html


def test_the_samples_package_verifies_until_it_is_damaged(package: tuple[Path, Result]) -> None:
    path, _ = package
    found = run("verify", str(path))
    assert found.exit_code == 0, found.stderr
    assert found.stdout.startswith(f"verified {path}\n")
    assert validate(run("verify", str(path), "--json").stdout_bytes)["result"]["passed"]
    assert re.search(
        r"\n  samples +1 sample .+\n +sample 0, output: 0 of 10 differ\n  reference ",
        run("verify", str(path), "-v").stdout,
    )
    original = (path / "quantization.json").read_bytes()
    (path / "quantization.json").write_bytes(original.replace(b"scale", b"scola", 1))
    damaged = run("verify", str(path))
    (path / "quantization.json").write_bytes(original)
    assert damaged.exit_code == 3
    assert "error[QAT502]: quantization.json: " in damaged.stderr
    assert re.search(r"files +1 of \d+ files is not what the manifest says", damaged.stdout)
    assert "match the manifest" not in damaged.stdout


def test_the_sample_as_json(tmp_path: Path) -> None:
    found = run("compile", "-a", str(MODEL), "-o", str(tmp_path / "p"), "--json")
    assert (found.exit_code, found.stderr) == (0, "")
    result = validate(found.stdout_bytes)["result"]
    assert result["report"]["coverage"]["integer_share"] == 1.0
    assert result["report"] == json.loads((tmp_path / "p" / "report.json").read_bytes())
    assert result["options"]["qat"] is True


def test_the_sample_inspected() -> None:
    found = run("inspect", str(MODEL))
    assert found.exit_code == 0, found.stderr
    assert "100% of " in found.stdout
    assert run("inspect", str(MODEL), "--dump").stdout.startswith("graph ")
    assert validate(run("inspect", str(MODEL), "--json").stdout_bytes)["result"]["coverage"]["float_macs"] == 0


def not_onnx(folder: Path) -> Path:
    path = folder / "hello.onnx"
    path.write_bytes(b"hello, world")
    return path


def truncated(folder: Path) -> Path:
    path = folder / "cut.onnx"
    path.write_bytes(MODEL.read_bytes()[:5000])
    return path


def missing(folder: Path) -> Path:
    return folder / "nowhere.onnx"


def plain_float(folder: Path, op: str = "Relu", domain: str = "") -> Path:
    import onnx
    from onnx import helper as h

    kind = onnx.TensorProto.FLOAT
    ports = [h.make_tensor_value_info(name, kind, [1, 4]) for name in "xy"]
    graph = h.make_graph([h.make_node(op, ["x"], ["y"], domain=domain)], "g", ports[:1], ports[1:])
    opsets = [h.make_opsetid("", 17), *([h.make_opsetid(domain, 1)] if domain else [])]
    path = folder / "float.onnx"
    onnx.save(h.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


@pytest.mark.parametrize(
    ("op", "domain", "named"),
    [("FancyQuant", "com.example", "1 FancyQuant (com.example)"), ("FancyQuant", "", "1 FancyQuant"), ("Relu", "", "")],
)
def test_operators_of_a_tool_never_met_are_named(op: str, domain: str, named: str, tmp_path: Path) -> None:
    """A fake quantization that no dialect knows: the file is not called a float model."""
    found = run("compile", "-a", "-m", "auto", str(plain_float(tmp_path, op, domain)), "-o", str(tmp_path / "out"))
    assert "error[QAT101]" in found.stderr
    assert ("ONNX does not define" in found.stderr) == bool(named)
    assert named in found.stderr
    assert ("converted back to float" in found.stderr) != bool(named)


@pytest.mark.parametrize(
    ("make", "code"), [(not_onnx, "QAT001"), (truncated, "QAT001"), (missing, "QAT002"), (plain_float, "QAT101")]
)
def test_bad_input_gets_its_code(make: Callable[[Path], Path], code: str, tmp_path: Path) -> None:
    path = make(tmp_path)
    before = sorted(tmp_path.iterdir())
    found = run("compile", "-a", str(path), "-o", str(tmp_path / "out"))
    assert found.exit_code == 1
    assert f"error[{code}]" in found.stderr
    assert "  help  " in found.stderr
    assert "Traceback" not in found.stderr
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "code", "meant"),
    [
        (["-m", "pytroch"], "QAT102", "pytorch"),
        (["-t", "onxn"], "QAT305", "onnx"),
        (["-t", "missing.toml"], "QAT305", "missing.toml"),
        (["-p", "domian=standard"], "QAT007", "domain"),
        (["--quant-range", "act=0-127"], "QAT007", "act=0..127"),
    ],
)
def test_unknown_names_exit_2_and_say_what_is_near(arguments: list[str], code: str, meant: str, tmp_path: Path) -> None:
    found = run("compile", str(MODEL), "-o", str(tmp_path / "out"), *arguments)
    assert found.exit_code == 2
    assert f"error[{code}]" in found.stderr
    assert meant in found.stderr
    assert not (tmp_path / "out").exists()
    assert run("compile", "nowhere.onnx", *arguments).stderr == found.stderr  # told before any file is read


@pytest.mark.skipif(os.name != "posix", reason="names of 255 bytes")
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("compile LONG -o OUT", "QAT002"),
        ("compile LONG.onnx -o OUT", "QAT002"),
        ("inspect LONG.h5", "QAT002"),
        ("compile MODEL -o LONG", "QAT501"),
        ("compile MODEL -o OUT --calibrate LONG", "QAT008"),
        ("compile MODEL -o OUT --input input=LONG", "QAT008"),
        ("compile MODEL -o OUT --ranges LONG", "QAT007"),
        ("compile MODEL -t LONG.toml", "QAT305"),
        ("verify LONG", "QAT502"),
        ("compare LONG MODEL", "QAT502"),
        ("compare PACKAGE LONG", "QAT406"),
        ("evaluate LONG --data MODEL --metric top1", "QAT502"),
        ("evaluate PACKAGE --data LONG --metric top1", "QAT008"),
        ("evaluate PACKAGE --data DATA --metric top1 --model LONG", "QAT002"),
        ("evaluate PACKAGE --data DATA --metric top1 --float-model LONG", "QAT002"),
        ("evaluate PACKAGE --data DATA --metric top1 --plugin LONG.py", "QAT007"),
    ],
)
def test_a_path_that_cannot_be_looked_at_is_no_bug(
    arguments: str, code: str, package: tuple[Path, Result], tmp_path: Path
) -> None:
    """As where a folder on the way may not be entered, which tests that run as root cannot show."""
    data = tmp_path / "d.npz"
    np.savez(data, input=np.zeros((2, 1, 8, 8), np.float32), labels=np.zeros(2, np.int64))
    words = {
        "LONG": "n" * 300,
        "MODEL": str(MODEL),
        "OUT": str(tmp_path / "o"),
        "PACKAGE": str(package[0]),
        "DATA": str(data),
    }
    line = [re.sub("|".join(words), lambda found: words[found[0]], word) for word in arguments.split()]
    found = run(*line)
    assert f"error[{code}]" in found.stderr
    assert "File name too long" in found.stderr or "there is no file nnn" in found.stderr
    assert found.exit_code in (1, 2)


@pytest.mark.parametrize(("option", "given"), [("--require", "nan"), ("--require", "much"), ("--max-loss", "nan")])
def test_limits_of_scores_are_numbers(option: str, given: str) -> None:
    found = run("evaluate", "p", "--data", "d", "--metric", "top1", option, f"top1={given}")
    assert found.exit_code == 2
    assert f"'top1={given}': a " in found.stderr


def test_a_file_of_ranges_that_is_not_there_is_asked_for(tmp_path: Path) -> None:
    found = run("compile", str(MODEL), "-o", str(tmp_path / "out"), "--ranges", "missing.json")
    told = "error[QAT007]: cannot read missing.json: No such file or directory\n  help  check the path"
    assert told in found.stderr
    assert found.exit_code == 2


def test_a_target_brings_options_of_its_backend(tmp_path: Path) -> None:
    target = tmp_path / "edge.toml"
    target.write_text('name = "edge"\nbackend = "onnx"\n[options]\ndomain = "standard"\n')
    for given, plain in (([], True), (["-p", "domain=auto"], False)):
        found = run("compile", str(MODEL), "-t", str(target), "-o", str(tmp_path / "out"), "--json", *given)
        assert found.exit_code == 0, found.stderr
        report = json.loads((tmp_path / "out" / "report.json").read_bytes())
        assert ("QGemm" not in report["operators"]["package"]) is plain
    target.write_text('name = "edge"\nbackend = "onnx"\n[options]\ndomian = "standard"\n')
    assert "did you mean domain?" in run("compile", str(MODEL), "-t", str(target)).stderr


def test_notes_are_in_the_summary(tmp_path: Path) -> None:
    """Without -a a QAT model compiles, with a note."""
    found = run("compile", str(MODEL), "-o", str(tmp_path / "out"))
    assert found.exit_code == 0, found.stderr
    assert "  note         QAT105: " in found.stdout


def test_an_inspection_does_not_ask_for_a() -> None:
    """That a model is quantized is what an inspection is there to find out."""
    assert "QAT105" not in run("inspect", str(MODEL)).output


def test_explain_says_what_fired_and_why_not(tmp_path: Path) -> None:
    model = ROOT / "tests" / "corpus" / "fx-u8pc__vit" / "model.onnx"
    found = run("compile", "-a", str(model), "-o", str(tmp_path / "out"), "--explain")
    said = " ".join(found.stdout.split())  # lines wrap
    assert "LayerNormalization stays float at " in said
    assert "Add fused at " in said
    assert json.loads((tmp_path / "out" / "report.json").read_bytes())["explanation"]


def test_a_compile_that_fails_tells_what_it_had_noted(tmp_path: Path) -> None:
    """The ranges that are missing are why operators stay float; the note that says so comes with the error."""
    model = CORPUS / "drpai__resnet8" / "model.onnx"
    found = run("compile", str(model), "-o", str(tmp_path / "out"), "--require-integer", "--json")
    assert found.exit_code == 1
    told = validate(found.stdout_bytes)["diagnostics"]
    assert [d["code"] for d in told[:3]] == ["QAT105", "QAT208", "QAT306"]
    assert "--calibrate" in told[1]["hint"]
    assert all("qatc inspect" in d["hint"] for d in told if d["code"] == "QAT306")


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("eager-u8pc__eager", ["--quant-range", "act=0..200"], "--quant-range"),
        ("drpai__resnet8", ["--calibrate", "calibration.npy"], "--calibrate"),
    ],
)
def test_another_simulation_than_the_file_says_why(name: str, options: list[str], why: str, tmp_path: Path) -> None:
    case = CORPUS / name
    given = [str(case / option) if option.endswith(".npy") else option for option in options]
    found = run("compile", str(case / "model.onnx"), "-o", str(tmp_path / "out"), *given)
    assert found.exit_code == 0, found.stderr
    assert re.search(rf"simulation: the normalized graph .*{why}", re.sub(r"\s+", " ", found.stdout))


def test_severities_have_an_order() -> None:
    """Sorting by severity relies on it: notes before warnings before errors."""
    assert list(Severity) == [Severity.NOTE, Severity.WARNING, Severity.ERROR]
    assert fail("QAT001", "x").exit_code == 1


# -- the documentation ---------------------------------------------------------------------------------------------
def test_the_reference_page_has_every_option() -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    for name, command in cli.cli.commands.items():
        assert name in page
        for parameter in command.params:
            for flag in (*parameter.opts, *parameter.secondary_opts) if isinstance(parameter, click.Option) else ():
                assert f"`{flag}" in page or flag in ("--verbose", "--quiet"), flag


def test_the_page_of_targets_has_every_key() -> None:
    from qatc.compiler.target import Target

    page = (ROOT / "docs" / "targets.md").read_text(encoding="utf-8")
    assert all(f"| `{field.name}` |" in page for field in dataclasses.fields(Target))

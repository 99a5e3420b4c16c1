"""What people and programs are shown: the summary, the inspection, diagnostics, report.html and JSON."""

from __future__ import annotations

import io
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from qatc.compiler.compare.result import Comparison, TensorComparison
from qatc.compiler.diagnostics import CODES, Diagnostic, Severity, counted
from qatc.compiler.explain import explanation
from qatc.compiler.quant import QuantParams
from qatc.compiler.report import envelope, inspection_json, report_html, result_json, text
from qatc.compiler.report.comparison import comparison
from qatc.compiler.report.facts import Column, listing
from qatc.compiler.report.inspection import inspection
from qatc.compiler.report.listings import page
from qatc.compiler.report.plot import sqnr_plot
from qatc.compiler.report.screen import Screen, console
from qatc.compiler.report.summary import summary
from qatc.compiler.result import CompileResult, Coverage, InspectedOp, Island, Json, OutputCheck, SumBounds, TensorCheck
from tests import fake_results as fake
from tests.fake_results import validate


def shown(print_it: Any, *args: Any, width: int = 80, color: bool = False, **options: Any) -> str:
    """What a function prints on a console of `width` columns."""
    stream = io.StringIO()
    colors = "standard" if color else None
    plain = Console(file=stream, width=width, markup=False, emoji=False, highlight=False, color_system=colors)
    print_it(*args, plain, **options)
    return stream.getvalue()


# -- the summary ---------------------------------------------------------------------------------------------------
SUMMARY = """\
compiled resnet8_qat.onnx
  dialect      pytorch (41 QuantizeLinear and DequantizeLinear, producer pytorch
               2.13)
  target       onnx (arithmetic onnx)
  operators    102 -> 15 (9 QLinearConv, 3 QLinearAdd, 1 DequantizeLinear, 1
               QGemm, 1 other)
  integers     100% of 12.5 M multiply-accumulates (14 operators, 0 in float)
  size         331 kB -> 92.4 kB (3.6 times smaller)
  verified     package = reference: 24 tensors, bit-exact
               reference = simulation: 24 operators, 99.99% equal, rest 1 LSB
               end to end: off by at most 0.0123 (0.41%), argmax agrees 100%
               1 sample; simulation: resnet8_qat.onnx in ONNX Runtime 1.31.0,
               unoptimized
  package      resnet8_qat.qatc
"""


def test_summary_of_a_good_compile_in_80_columns() -> None:
    assert shown(summary, fake.result()) == SUMMARY


@pytest.mark.parametrize("width", [20, 48, 80, 120, 160])
def test_summary_keeps_to_its_columns_and_leaves_no_trailing_blanks(width: int) -> None:
    lines = shown(summary, replace(fake.busy_result(), package=None), width=width).splitlines()
    assert all(line == line.rstrip() for line in lines)
    assert width < 48 or max(map(len, lines)) <= width


def test_a_list_of_islands_says_what_it_leaves_out() -> None:
    def shown_page(count: int) -> str:
        islands = [Island(f"/n{i}", "Erf", "no range") for i in range(count)]
        return report_html(replace(fake.result(), islands=tuple(islands))).decode()

    assert "and 2 more; report.json has all" in shown_page(3002)
    assert "report.json has all</li>" not in shown_page(3000)


@pytest.mark.parametrize(
    ("integers", "floats", "said"),
    [
        ({0: 10}, {0: 10}, "2 operators, bit-exact\n"),
        ({0: 10}, {0: 1}, "2 operators, bit-exact, floats within tolerance\n"),
        ({0: 9, 1: 1}, {0: 10}, "2 operators, 95.0% equal, rest 1 LSB\n"),
        ({0: 9, 1: 1}, {0: 0}, "2 operators, 90.0% equal, rest 1 LSB, floats within tolerance\n"),
    ],
)
def test_floats_that_are_not_equal_are_neither_bit_exact_nor_lsb(
    integers: dict[int, int], floats: dict[int, int], said: str
) -> None:
    checks = [TensorCheck(name, "Conv", "local", 10, counts) for name, counts in (("q", integers), ("f", floats))]
    found = replace(fake.verification(), local=tuple(checks))
    assert f"reference = simulation: {said}" in shown(summary, replace(fake.result(), verification=found), width=160)
    shown_page = report_html(replace(fake.result(), verification=found)).decode()
    assert ("floats within tolerance" in shown_page) == ("floats within tolerance" in said)


def test_summary_says_what_stays_in_float_and_why() -> None:
    said = shown(summary, fake.busy_result(), width=160)
    assert "1 MatMul (0.004% of the multiply-accumulates): its input has no range" in said
    assert "24 LayerNormalization: LayerNormalization has no integer form on this target" in said
    assert "/blocks.0/attn/Softmax, /blocks.1/attn/Softmax, /blocks.2/attn/Softmax and 9 more" in said
    assert "24 ranges from calibration data (entropy)" in said
    assert "/blocks.11/attn/Softmax" not in said
    assert "/blocks.11/attn/Softmax" in shown(summary, fake.busy_result(), width=160, verbose=True)


def test_islands_of_one_reason_are_told_together() -> None:
    islands = [Island(f"/conv{i}", "Conv", "its input is not quantized by the model", 10, f"x{i}") for i in range(9)]
    said = shown(summary, fake.result(islands=tuple(islands)), width=120)
    assert "9 Conv (0.001% of the multiply-accumulates): its input is not quantized by the model\n" in said
    assert "/conv0, /conv1, /conv2 and 6 more" in said
    page = Page(report_html(fake.result(islands=tuple(islands))))
    assert "/conv8 x8" in page.words


def test_summary_groups_notes_and_puts_warnings_first() -> None:
    said = shown(summary, fake.busy_result(), width=160)
    assert said.index("QAT304") < said.index("QAT107")
    assert said.count("QAT107") == 1
    assert "blocks.0.attn.qkv.weight, blocks.1.attn.qkv.weight, blocks.2.attn.qkv.weight and 9 more" in said
    assert "help: quantize the weights with 7 bits" in said


def test_each_advice_of_a_code_is_given() -> None:
    told = [Diagnostic("QAT208", what, Severity.NOTE, hint=hint) for what, hint in (("a", "x"), ("b", "x"), ("c", "y"))]
    said = shown(summary, fake.result(diagnostics=tuple(told)), width=160).split()
    assert " ".join(said).count("QAT208: a QAT208: b help: x QAT208: c help: y package") == 1


def test_summary_of_a_failed_verification_names_the_tensor() -> None:
    bad = replace(fake.check(3, "/conv3", 7), passed=False, message="7 of 8192 elements differ by up to 2 LSB")
    found = fake.verification(package=(bad,), passed=False, first_bad="/conv3")
    said = shown(summary, fake.result(verification=found))
    assert said.startswith("failed ")
    assert "FAILED at /conv3" in said
    assert "1 of 1 tensor fails, first /conv3: 7 of 8192" in said


def test_summary_without_verification_says_so() -> None:
    assert "verification was switched off" in shown(summary, fake.result(verification=None))


def test_summary_without_multiply_accumulates() -> None:
    assert "3 operators, 0 in float; no multiply-accumulates" in shown(
        summary, fake.result(coverage=Coverage(0, 0, 3, 0, 1))
    )


def test_the_page_without_multiply_accumulates() -> None:
    """All of none is no praise for a network in floats."""
    html = report_html(fake.result(coverage=Coverage(0, 0, 1, 2, 1))).decode()
    tile = html[html.index('<div class="tile">') : html.index("float islands")]
    assert '<b class="fair">1</b>' in tile
    assert "of 3 computing operators; no multiply-accumulates" in tile


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (3600, 1000, "3.6 times smaller"),
        (1000, 1200, "1.2 times larger"),
        (1000, 1040, "about the same"),
        (1040, 1000, "about the same"),
        (0, 5, ""),
    ],
)
def test_sizes_that_differ_by_less_than_is_shown_are_about_the_same(before: int, after: int, told: str) -> None:
    assert text.times(before, after) == told


def test_summary_has_timings_only_with_verbose() -> None:
    assert "0.40 s" not in shown(summary, fake.result())
    assert "verify 0.40 s, compile 0.11 s, load 0.02 s" in shown(summary, fake.result(), verbose=True)


def test_summary_explains_when_asked() -> None:
    said = shown(
        summary, fake.result(explanation=("fold_affine: /bn1 into /conv1", "not /bn2: its input is read twice"))
    )
    assert "explained    fold_affine: /bn1 into /conv1\n               not /bn2: its input is read twice" in said


def test_a_long_path_to_the_package_stays_in_one_piece() -> None:
    path = Path("/deploy") / ("x" * 100) / "model.qatc"
    assert f" {path}\n" in shown(summary, fake.result(package=path))


@pytest.mark.parametrize("verbose", [False, True])
def test_hostile_names_stay_text_on_the_terminal(verbose: bool) -> None:
    said = shown(summary, fake.hostile_result(), color=True, verbose=verbose)
    controls = re.sub(r"\x1b\[[0-9;]*m", "", said)  # rich's own colors
    assert not [c for c in controls if not c.isprintable() and c != "\n"]
    assert "\\x1b[31mred" in controls
    assert "[bold red]markup[/bold" in controls
    assert len(said) < 60_000


# -- the inspection ------------------------------------------------------------------------------------------------
def test_inspection_lists_what_computes_and_why_some_does_not() -> None:
    said = shown(inspection, fake.inspection())
    assert "  Conv      integers  2.36 M   9.22 k  16.4 kB  /layer1/Conv\n" in said
    assert "  Softmax   float                               /head/Softmax\n" in said
    assert "Softmax has no integer form" in said
    assert "and 1 operator that only moves data (-v lists them)" in said
    assert "no range     /layer8/Add_output_0: the exporter left it out" in said
    assert "100% of 84.9 M multiply-accumulates (9 operators, 2 in float)" in said


def test_inspection_tells_what_is_proven_of_sums_and_what_to_change() -> None:
    said = shown(inspection, fake.inspection(), width=120)
    assert "  activations  49.2 kB at once for one sample\n" in said
    assert "  sums         at most 21 bits, in /layer8/Conv\n" in said
    assert "4 of 8 operators may saturate 16 bits on x86 without VNNI; worst 72,000 of 32,767 in /layer8/Conv" in said
    assert (
        "  two grids    /pool is rounded onto a second grid\n                 uint8, scale 0.02, zero point 128\n"
        in said
    )
    assert "  advice       Quantize the results of 1 Add in training, too: /layer8/Add_output_0.\n" in said
    full = " ".join(shown(inspection, fake.inspection(), width=160, verbose=True).split())
    assert "8-bit weights, 1 of 16 channels zero, sums of 21 bits, pairs up to 72,000 in 3 of 16 channels" in full


def test_inspection_of_sums_that_overflow() -> None:
    deep = InspectedOp("/fc", "MatMul", "integer", sums=SumBounds(512, 2_415_919_104, 3))
    said = shown(inspection, fake.inspection(operators=(deep,)), width=120)
    assert "  sums         at most 33 bits, in /fc: 1 operator may overflow 32\n" in said


def test_inspection_in_full_and_in_short() -> None:
    assert "/input/QuantizeLinear" in shown(inspection, fake.inspection(), verbose=True)
    assert "/layer1/Conv  uint8 x int8, per channel, 8-bit weights" in shown(
        inspection, fake.inspection(), verbose=True, width=160
    )
    assert "/layer1/Conv" not in shown(inspection, fake.inspection(), quiet=True)


def test_inspection_of_a_deep_network_lists_the_floats() -> None:
    deep = tuple(InspectedOp(f"/conv{i}", "Conv", "integer", "", 9, 9) for i in range(500))
    found = fake.inspection(operators=(*deep, InspectedOp("/softmax", "Softmax", "float", "no integer form")))
    said = shown(inspection, found)
    assert "/conv7" not in said
    assert "/softmax" in said
    assert "and 500 more operators in integers (-v lists them)" in said


def test_inspection_says_what_a_short_list_leaves_out() -> None:
    base = fake.inspection()
    ports = tuple(replace(base.inputs[0], name=f"x{index}") for index in range(9))
    apart = replace(base.disagreeing[0], grids=tuple(QuantParams.per_tensor(0.5 + index) for index in range(4)))
    found = replace(base, inputs=ports, disagreeing=(apart,))
    said = shown(inspection, found, width=120)
    assert " x5 " in said
    assert " x6 " not in said
    assert "               and 3 more (-v lists them)\n" in said
    assert "                 and 2 more (-v lists them)\n" in said
    full = shown(inspection, found, width=120, verbose=True)
    assert " x8 " in full
    assert "scale 3.5" in full
    assert "lists them" not in full


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_page_is_wrapped_to_the_terminal(width: int) -> None:
    """Its source breaks at some width: broken again at another one, lines would be ragged."""
    for code in CODES:
        stream = io.StringIO()
        plain = Console(file=stream, width=width, force_terminal=True, color_system=None, markup=False, highlight=False)
        page(explanation(code), plain)
        said = stream.getvalue()
        source = re.sub("^#+ |^```.*$", "", explanation(code), flags=re.MULTILINE)
        assert said.split() == source.split()
        for part in said.strip("\n").split("\n\n"):  # full lines, as many words as fit; code stays as it is
            if part.startswith("  "):
                continue
            for line, following in pairwise(part.split("\n")):
                assert line == line.rstrip()
                assert following.startswith("- ") or len(line) + 1 + len(following.split()[0]) > width - 2, (code, line)
            long = [line for line in part.split("\n") if len(line) > width and " " in line.strip("- ")]
            assert not long, code


def test_inspection_json_fits_the_schema() -> None:
    found = fake.inspection()
    document = validate(envelope("inspect", diagnostics=found.diagnostics, result=inspection_json(found)))
    assert document["result"]["missing_ranges"][0]["tensor"] == "/layer8/Add_output_0"


# -- numbers and names ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("share", "said"),
    [
        (1.0, "100%"),
        (0.0, "0%"),
        (0.5, "50.0%"),
        (0.99996, "99.996%"),
        (1 - 1e-12, ">99.999999%"),
        (1e-12, "<0.000001%"),
        (0.0041, "0.41%"),
        (1.0041, "100.4%"),  # differences may be larger than what they are shares of
        (234.0, "23,400%"),
        (math.inf, "?"),
        (math.nan, "?"),
    ],
)
def test_percent_never_rounds_to_all_or_nothing(share: float, said: str) -> None:
    assert text.percent(share) == said


def test_numbers_agree_with_their_nouns() -> None:
    assert [counted(n, "file") for n in (0, 1, 2, 12345)] == ["0 files", "1 file", "2 files", "12,345 files"]
    assert [counted(n, "entry", "name", plural="entries") for n in (1, 2)] == ["1 entry names", "2 entries name"]


@given(st.floats(0, 1e6))
def test_percent_says_all_only_where_it_is_all(share: float) -> None:
    assert (text.percent(share) == "100%") == (share == 1)
    assert (text.percent(share) == "0%") == (share == 0)


@pytest.mark.parametrize(
    ("number", "said"),
    [(0, "0"), (999, "999"), (1000, "1.00 k"), (999_999, "1.00 M"), (12_501_632, "12.5 M"), (10**15, "1000 T")],
)
def test_scaled(number: int, said: str) -> None:
    assert text.scaled(number) == said


@given(st.integers(0, 10**16))
def test_scaled_keeps_three_digits(number: int) -> None:
    value, _, prefix = text.scaled(number).partition(" ")
    step = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}[prefix]
    assert float(value) * step == pytest.approx(number, rel=0.006)


def test_grid_in_words() -> None:
    assert text.grid(fake.GRID) == "uint8, scale 0.02, zero point 128"
    weights = QuantParams.per_channel([0.5, 0.25], 1, 0, "int8", -127, 127)
    assert text.grid(weights) == "int8 in [-127, 127], scale 0.25 to 0.5, zero point 0, 2 channels along axis 1"


def test_options_as_flags() -> None:
    options: dict[str, Any] = {
        "qat": True,
        "dialect": "auto",
        "target": "qdq",
        "shapes": {"x:0": [1, 3]},
        "options": {"domain": "standard"},
        "inputs": [["x:0", "a.npy"]],
        "verify": False,
        "samples": 1,
        "calibrate": None,
    }
    flags = ["-a", "-t", "qdq", "-p", "domain=standard", "-s", "x:0=1,3", "--input", "x:0=a.npy", "--no-verify"]
    assert text.option_flags(options) == flags


def test_listing_aligns_wide_characters() -> None:
    said = shown(
        lambda c: listing(c, (Column("名前"), Column("n", numeric=True), Column("last")), [["漢字漢字", "1", "x"]])
    )
    assert said == "  名前      n  last\n  漢字漢字  1  x\n"


# -- diagnostics on the terminal -----------------------------------------------------------------------------------
def printed(capsys: pytest.CaptureFixture[str], *found: Diagnostic, **how: bool) -> str:
    Screen(**how).diagnostics(found)
    out, err = capsys.readouterr()
    assert not out
    return err


def test_errors_come_last_with_place_and_next_step(capsys: pytest.CaptureFixture[str]) -> None:
    said = printed(
        capsys,
        Diagnostic("QAT203", "two scales, 0.1 and 0.2", node="/conv", tensor="w", hint="export again"),
        Diagnostic("QAT107", "a narrow range", Severity.NOTE),
    )
    assert said == (
        "note[QAT107]: a narrow range\n"
        "error[QAT203]: two scales, 0.1 and 0.2\n"
        "  at    node /conv, tensor w\n"
        "  help  export again\n"
        "qatc explain QAT203 tells more\n"
    )


def test_equal_findings_are_told_once_with_their_places(capsys: pytest.CaptureFixture[str]) -> None:
    many = [Diagnostic("QAT302", "NonMaxSuppression is not supported", node=f"/nms{i}") for i in range(9)]
    said = printed(capsys, *many, Diagnostic("QAT303", "a bias"))
    assert said.count("NonMaxSuppression") == 1
    assert "node /nms4\n" in said
    assert "node /nms5" not in said
    assert "and 4 more (-v lists them)" in said
    assert "qatc explain CODE tells more about QAT302 and QAT303" in said
    assert "node /nms8" in printed(capsys, *many, verbose=True)


def test_the_same_advice_is_given_once(capsys: pytest.CaptureFixture[str]) -> None:
    found = [Diagnostic("QAT402", f"element {i} differs", tensor=f"t{i}", hint="report this") for i in range(3)]
    said = printed(capsys, *found, Diagnostic("QAT403", "no run", hint="report this"))
    assert said.count("report this") == 2
    assert "element 2 differs\n  at    tensor t2\n  help  report this\n" in said


def test_quiet_shows_errors_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, Diagnostic("QAT107", "a note", Severity.NOTE), quiet=True) == ""


def test_hostile_diagnostics_stay_text(capsys: pytest.CaptureFixture[str]) -> None:
    found = [Diagnostic("QAT302", f"no {n}", node=n, tensor=n, hint=n) for n in fake.HOSTILE]
    said = printed(capsys, *found)
    assert not [c for c in said if not c.isprintable() and c != "\n"]
    assert "[bold red]markup[/bold red]" in said


def test_a_narrow_encoding_is_no_error() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    console(stream).print("größe 漢")
    stream.flush()
    stream.seek(0)
    assert stream.read() == "gr\\xf6\\xdfe \\u6f22\n"


# -- progress ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("columns", "piped", "terminal"),
    [("0", 160, 80), ("²", 160, 80), ("wide", 160, 80), ("-5", 160, 80), ("42", 42, 42)],
)
def test_lines_are_as_wide_as_columns_says_where_that_is_a_number(
    monkeypatch: pytest.MonkeyPatch, columns: str, piped: int, terminal: int
) -> None:
    """In no columns at all, as some terminals have at first, nothing was printed."""
    monkeypatch.setenv("COLUMNS", columns)
    stream = io.StringIO()
    assert console(stream).width == piped
    stream.isatty = lambda: True  # type: ignore[method-assign]
    assert console(stream).width == terminal


def test_progress_in_a_pipe_speaks_up_only_when_it_takes_long(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    screen = Screen(clock=lambda: now)
    with screen.progress() as report:
        assert report is not None
        report("read", 0.1)
        now = 3.0
        report("lower \x1b[2J", 0.5)
        report("lower \x1b[2J", 0.6)
        report("done", 1.0)
    assert capsys.readouterr() == ("", "[ 50%] lower \\x1b[2J\n")


@pytest.mark.parametrize("screen", [Screen(quiet=True), Screen(json=True)])
def test_progress_is_silent_where_nobody_looks(screen: Screen) -> None:
    with screen.progress() as report:
        assert report is None


def test_progress_on_a_terminal_is_a_bar_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    screen = Screen()
    screen.__dict__["err"] = Console(file=stream, force_terminal=True, width=80)
    with screen.progress() as report:
        assert report is not None
        report("calibrate [bold]", 0.4)
    assert "calibrate [bold]" in stream.getvalue()
    assert stream.getvalue().endswith("\x1b[2K")


# -- JSON ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "result", [fake.result(), fake.busy_result(), fake.hostile_result(), fake.result(verification=None)]
)
def test_result_json_fits_the_schema(result: CompileResult) -> None:
    document = validate(envelope("compile", diagnostics=result.diagnostics, result=result_json(result)))
    assert document["exit_code"] == 0
    assert document["result"]["report"]["coverage"]["integer_share"] == result.coverage.share
    assert document["result"]["timings"] == {"load": 0.02, "compile": 0.11, "verify": 0.4}


def test_failures_fit_the_schema() -> None:
    document = validate(envelope("verify", exit_code=3, diagnostics=[Diagnostic("QAT502", "damaged")]))
    assert document["result"] is None
    assert document["diagnostics"][0]["code"] == "QAT502"


# -- report.html ---------------------------------------------------------------------------------------------------
class Page(HTMLParser):
    """Tags, attributes and text of a page; what must be balanced is checked."""

    VOID = frozenset({"meta", "link", "br", "input", "rect", "circle", "line", "polyline"})

    def __init__(self, html: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(html.decode("utf-8"))
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] not in (["script"], ["style"]):
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def test_page_tells_the_whole_story() -> None:
    page = Page(report_html(fake.busy_result()))
    for part in (
        "vit_base.onnx",
        "99.996%",
        "611 QuantizeLinear",
        "/blocks.11/attn/Softmax",
        "LayerNormalization has no integer form on this target",
        "/blocks.23/Add_output_0 entropy uint8, scale 0.02, zero point 128",
        "the accumulator may reach 2,415,919,104",
        "package = reference",
        "conv1.weight_q conv1.weight weight int8 0.005 to 0.02 0 [-128, 127] 0 (3)",
        "qatc compile vit_base.onnx -a -m pytorch",
        "float32[batch,3,32,32]",
    ):
        assert part in page.words


def test_a_long_command_is_not_cut() -> None:
    """It is there to be copied."""
    inputs: list[Json] = [[f"images_{i}", f"camera <{i}>.npy"] for i in range(100)]
    page = Page(report_html(replace(fake.result(), options={"qat": True, "inputs": inputs})))
    assert " --input 'images_99=camera <99>.npy'" in page.words
    assert all(f"'images_{i}=camera <{i}>.npy'" in page.words for i in range(100))


def test_page_is_self_contained_and_inert() -> None:
    page = Page(report_html(fake.hostile_result()))
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 1
    assert not {"img", "iframe", "object", "embed", "form", "base"} & set(tags)
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "style", "action")]
        assert tag == "link" or "href" not in attributes
    policy = next(a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


def test_the_page_can_be_used_without_a_mouse_and_without_eyes() -> None:
    """What scrolls can be scrolled with keys, drawings and inputs have names, headings have no gaps, ids are unique."""
    for result in (fake.result(), fake.busy_result(), fake.hostile_result()):
        found = Page(report_html(result)).tags
        assert ("html", {"lang": "en"}) in found
        assert all(a.get("tabindex") == "0" for _, a in found if "scroll" in str(a.get("class", "")).split())
        assert all(a.get("aria-label") for tag, a in found if tag in ("svg", "input"))
        assert all(a.get("aria-live") for _, a in found if str(a.get("id", "")).endswith("-said"))
        levels = [int(tag[1]) for tag, _ in found if re.fullmatch("h[1-6]", tag)]
        assert levels[0] == 1
        assert all(lower <= upper + 1 for upper, lower in pairwise(levels))
        ids = [a["id"] for _, a in found if "id" in a]
        assert len(set(ids)) == len(ids)


def test_hostile_names_show_as_text_in_the_page() -> None:
    page = Page(report_html(fake.hostile_result()))
    for name in (
        "<script>alert(1)</script>",
        "\"><img src=x onerror='alert(2)'>",
        "{{ 7 * 7 }}{% raw %}",
        "\\x1b[31mred",
    ):
        assert page.words.count(name) >= 4
    assert "</pre></style></svg>&amp;" in page.words
    assert "\\u202eevil\\u2066" in page.words
    assert "\\ud800lone" in page.words


def test_page_is_the_same_for_the_same_compile() -> None:
    """Paths, timings and the name of the output folder are no part of a package."""
    elsewhere = fake.result(source=Path("/other/resnet8_qat.onnx"), package=Path("/tmp/x"), timings={"load": 9.0})
    assert report_html(elsewhere) == report_html(fake.result())
    assert b"0.11" not in report_html(fake.result())


def test_page_of_a_very_deep_network_stays_small() -> None:
    checks = tuple(fake.check(i, f"/deep/{i}", i % 50) for i in range(20_000))
    html = report_html(fake.result(verification=fake.verification(tensors=checks, local=checks)))
    assert len(html) < 3_000_000
    assert b"3000 of 20000; report.json has all" in html
    assert html.count(b"<circle") <= 430


def test_page_of_a_failed_and_of_no_verification() -> None:
    bad = replace(fake.check(3, "/conv3", 7), passed=False, message="too far off")
    failed = Page(
        report_html(fake.result(verification=fake.verification(local=(bad,), passed=False, first_bad="/conv3")))
    )
    assert "1 failed, first /conv3: too far off" in failed.words
    assert "Verification was switched off" in Page(report_html(fake.result(verification=None))).words


@pytest.mark.parametrize("sqnr", [math.inf, -math.inf, math.nan, -3.0, 200.0])
def test_page_survives_every_ratio(sqnr: float) -> None:
    odd = replace(fake.check(0, "odd", 3), sqnr_db=sqnr)
    outputs = (OutputCheck("y", math.inf, math.nan, None),)
    html = report_html(fake.result(verification=fake.verification(tensors=(odd,), outputs=outputs)))
    assert not re.search(rb'="(nan|-?inf)"', html)


def test_only_what_is_equal_is_drawn_as_equal() -> None:
    """Noise beside no signal at all, and what is not known, stay at the bottom."""
    ratios = [math.inf, -math.inf, math.nan, 30.0]
    drawing = sqnr_plot([replace(fake.check(i, f"t{i}", 3), sqnr_db=ratio) for i, ratio in enumerate(ratios)])
    circles = re.findall(r'<circle class="([a-z ]+)" cx="[\d.]+" cy="([\d.]+)"', drawing)
    assert [kind for kind, _ in circles] == ["dot equal", "dot", "dot", "dot"]
    top, *lower, middle = (float(y) for _, y in circles)
    assert lower[0] == lower[1] > middle > top


# -- comparisons ---------------------------------------------------------------------------------------------------
def test_a_long_comparison_without_differences_lists_nothing() -> None:
    same = TensorComparison(0, 0, "t", None, "", "Conv", 8, 1.0, 0, 0.0, math.inf, 1.0, True, "none")
    tensors = tuple(replace(same, index=index) for index in range(41))
    found = Comparison(Path("p.qatc"), Path("dump"), "onnx", 0, tensors, ())
    assert "\n  41 tensors (-v lists them)\n" in shown(comparison, found)
    one = replace(found, tensors=(*tensors, replace(same, passed=False, error="local", max_lsb=3)))
    assert "\n  41 more tensors (-v lists them)\n" in shown(comparison, one)


@pytest.mark.parametrize(
    ("check", "said"),
    [
        (OutputCheck("y", 398.0, 0.864, None, "TopK"), "by at most 398 (86.4%), what TopK chooses otherwise included"),
        (OutputCheck("y", math.inf, math.inf, None, "TopK"), "another number of elements, which TopK chooses"),
    ],
)
def test_outputs_that_an_operator_chooses(check: OutputCheck, said: str) -> None:
    found = fake.result(verification=fake.verification(outputs=(check,)))
    assert said in shown(summary, found, width=200)
    words = Page(report_html(found)).words
    assert "what TopK chooses" in words
    assert ("another number of elements" in words) == math.isinf(check.max_abs)

"""Every code has a page, every page a code, and the pages have the form that `qatc explain` promises."""

from __future__ import annotations

import re

import pytest

from qatc.cli import cli
from qatc.compiler.diagnostics import CODES, CompileError, Severity
from qatc.compiler.explain import SECTIONS, explanation, pages


def test_every_code_has_a_page_and_every_page_a_code() -> None:
    assert list(pages()) == list(CODES)


@pytest.mark.parametrize("code", CODES)
def test_pages_have_four_sections(code: str) -> None:
    texts = pages()[code]
    assert tuple(texts) == SECTIONS
    for text in texts.values():
        assert text.strip()
        assert text.isascii()
        assert max(map(len, text.splitlines())) <= 120
    severities = "|".join(severity.value for severity in Severity)
    assert re.match(rf"({severities})\[{code}\]: \S", texts["example"].strip())
    assert all(line.startswith(("- ", "  ")) for line in texts["action"].strip().splitlines())


@pytest.mark.parametrize("code", CODES)
def test_pages_name_only_what_exists(code: str) -> None:
    page = explanation(code)
    assert set(re.findall(r"QAT\d{3}", page)) <= set(CODES)
    parameters = [parameter for command in cli.commands.values() for parameter in command.params]
    known = {name for parameter in parameters for name in (*parameter.opts, *parameter.secondary_opts)}
    named = {option for text in re.findall(r"`([^`]+)`", page) for option in re.findall(r"(?<![\w-])--?[a-z-]+", text)}
    assert named - known <= {"-L"}  # of cp
    commands = set(re.findall(r"`qatc ([a-z]+)", page))
    assert commands <= set(cli.commands)


def test_a_page_reads_well() -> None:
    page = explanation("QAT203")
    assert page.startswith("# QAT203: one tensor has parameters that disagree\n\nTwo places of the model")
    headings = re.findall(r"^#+ .*", page, re.MULTILINE)
    assert headings == [page.splitlines()[0], "## Usual cause", "## Example", "## What to do"]
    assert page.endswith("\n")


@pytest.mark.parametrize("spelling", ["QAT203", "qat203", "203", " QAT203\n"])
def test_spellings(spelling: str) -> None:
    assert explanation(spelling) == explanation("QAT203")


@pytest.mark.parametrize(
    ("code", "hint"),
    [("QAT2O3", "did you mean QAT203"), ("QAT23", "did you mean QAT"), ("hello", "lists them all"), ("", "lists them")],
)
def test_unknown_codes_get_a_suggestion(code: str, hint: str) -> None:
    with pytest.raises(CompileError, match=hint) as error:
        explanation(code)
    assert [d.code for d in error.value.diagnostics] == ["QAT007"]
    assert error.value.exit_code == 2


def test_hostile_codes_are_shown_harmlessly() -> None:
    with pytest.raises(CompileError) as error:
        explanation("\x1b[2J" + "x" * 10_000)
    assert "\x1b" not in str(error.value)
    assert len(str(error.value)) < 500

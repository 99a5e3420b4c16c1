"""Target descriptions: what each key means where it is wrong, and what is built in."""

from __future__ import annotations

from pathlib import Path

import pytest

from qatc.compiler.diagnostics import CompileError
from qatc.compiler.target import OPTIONAL_OPERATORS, builtin_targets, load_target, read_toml, wanted_operators

HEAD = 'name = "edge"\nbackend = "onnx"\n'


def described(folder: Path, text: str) -> Path:
    """A description in a file."""
    path = folder / "edge.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ('backend = "onnx"', "does not say its name", 'add name = "..."'),
        ('name = ""\nbackend = "onnx"', "does not say its name", 'add name = "..."'),
        ('name = "edge"', "does not say its backend", 'add backend = "..."'),
        ('name = "edge"\nbackend = ""', "does not say its backend", 'add backend = "..."'),
        (HEAD + "nmae = 1", "has the unknown key 'nmae'", "known are name, backend, description, arithmetic,"),
        (HEAD + "arithmetic = 3", "arithmetic must be a string", "docs/targets.md"),
        (HEAD + 'operators = "Softmax"', "operators must be a list", "docs/targets.md"),
        (HEAD + 'operators = ["Conv"]', "operators lists 'Conv'", "one of Softmax, LayerNorm"),
        (HEAD + 'operators = [["Softmax"]]', "operators lists ['Softmax']", "one of Softmax, LayerNorm"),
        (HEAD + "options = []", "options must be a table", "docs/targets.md"),
        (HEAD + "[options]\nsoftmax = 3", "the option softmax must be a string", 'write softmax = "3" under [options]'),
        (HEAD + "[options]\nsoftmax = ['float']", "the option softmax must be a string", "under [options]"),
        (HEAD + 'layout = "NCHW"', "layout is 'NCHW'", "one of channels_first, channels_last"),
        (HEAD + 'activations = "int8"', "activations is 'int8'", "one of uint8, keep"),
        ("name = ", "is not TOML", "docs/targets.md"),
    ],
)
def test_a_wrong_description_says_what_is_wrong(tmp_path: Path, text: str, said: str, hint: str) -> None:
    path = described(tmp_path, text)
    with pytest.raises(CompileError) as caught:
        load_target(str(path))
    (found,) = caught.value.diagnostics
    assert (found.code, caught.value.exit_code) == ("QAT305", 2)
    assert found.message.startswith(str(path))
    assert said in found.message
    assert hint in (found.hint or "")


def test_a_description_is_what_it_says(tmp_path: Path) -> None:
    text = HEAD + 'arithmetic = "tflite"\nlayout = "channels_last"\noperators = ["Softmax"]\n'
    found = load_target(str(described(tmp_path, text + '[options]\nsoftmax = "integer"\n')))
    assert (found.name, found.backend, found.arithmetic, found.layout) == ("edge", "onnx", "tflite", "channels_last")
    assert (found.operators, dict(found.options), found.activations) == (("Softmax",), {"softmax": "integer"}, "uint8")
    assert wanted_operators(found, found.options) == {"Softmax"}
    assert wanted_operators(found, {"softmax": "float"}) == frozenset()


def test_files_from_windows_are_read(tmp_path: Path) -> None:
    """With the mark that its editors put in front, and its ends of lines."""
    data = b'\xef\xbb\xbfname = "edge"\r\nbackend = "onnx"\r\n'
    (tmp_path / "edge.toml").write_bytes(data)
    assert load_target(str(tmp_path / "edge.toml")).name == "edge"
    assert read_toml(tmp_path / "edge.toml") == {"name": "edge", "backend": "onnx"}


@pytest.mark.parametrize(
    ("operators", "has"), [("", "it has none of these"), ('operators = ["Softmax"]\n', "it has Softmax")]
)
def test_operators_that_a_target_does_not_have_are_refused(tmp_path: Path, operators: str, has: str) -> None:
    target = load_target(str(described(tmp_path, HEAD + operators)))
    with pytest.raises(CompileError, match=r"the target edge has no integer .*LayerNorm") as caught:
        wanted_operators(target, dict.fromkeys(OPTIONAL_OPERATORS, "integer"))
    (found,) = caught.value.diagnostics
    assert (found.hint or "").startswith(has)
    assert ("Softmax and no integer" in found.message) is not operators


def test_what_is_built_in_goes_by_its_name() -> None:
    targets = builtin_targets()
    assert list(targets) == ["drpai", "onnx", "qdq"]
    assert all(load_target(name) == target and target.name == name for name, target in targets.items())
    with pytest.raises(CompileError) as caught:
        load_target("ONNX")
    assert "did you mean onnx? known are drpai, onnx, qdq;" in (caught.value.diagnostics[0].hint or "")

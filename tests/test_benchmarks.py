"""The benchmarks run and write what they measured; how fast anything is, is not tested."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner

from benchmarks import models
from benchmarks.__main__ import main, table
from benchmarks.deployed import corpus
from benchmarks.timing import in_process, in_turns, ratio

CORPUS = Path(__file__).parent / "corpus"


def test_parts_are_measured_one_by_one(tmp_path: Path) -> None:
    for part in ("growth", "memory"):
        result = CliRunner().invoke(main, ["--quick", "--only", part, "--out", str(tmp_path)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
    parts = json.loads((tmp_path / "results.json").read_text("utf-8"))["parts"]
    assert [row["nodes"] for row in parts["growth"]] == [452, 1802] * 3
    copy, ours = parts["memory"]
    assert copy["times the copy"] == 1
    assert ours["seconds"] > 0
    assert ours["peak MB"] > 10
    page = (tmp_path / "results.md").read_text("utf-8")
    assert page.index("## growth") < page.index("## memory")


def test_a_corpus_is_measured_case_by_case(tmp_path: Path) -> None:
    (tmp_path / "cases").mkdir()
    (tmp_path / "cases" / "without a model").mkdir()
    case = next(path for path in sorted(CORPUS.iterdir()) if (path / "input_0.npy").exists())
    (tmp_path / "cases" / case.name).symlink_to(case)
    (row,) = corpus(tmp_path / "cases", tmp_path, 0.0)
    assert row["case"] == case.name
    assert row["times as fast"] > 0
    assert 0 <= row["runs as integers"] <= 1


def test_candidates_take_turns() -> None:
    calls: list[str] = []
    taken = in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert calls == ["a", "b"] * 4  # the first round warms up
    assert [len(times) for times in taken.values()] == [3, 3]


def test_a_ratio_is_the_median_of_ratios() -> None:
    assert ratio([2.0, 9.0, 4.0], [1.0, 1.0, 1.0]) == 4.0
    assert ratio([8.0, 1.0, 100.0], [2.0, 1.0, 100.0]) == 1.0


def test_a_process_tells_what_it_took(tmp_path: Path) -> None:
    (tmp_path / "w.onnx.data").write_bytes(bytes(4 * 8 * 8))
    run = in_process("compiling", "quantize_wide", str(tmp_path / "w.onnx"), str(tmp_path), 1, 8)
    assert run.answer > 0
    assert run.memory > 1e6
    assert (tmp_path / "plain.bin").read_bytes() == bytes(64)


@pytest.mark.parametrize("make", [
    lambda folder: models.chain(folder, 3), lambda folder: models.chain(folder, 3, shuffled=True),
    lambda folder: models.transformer(folder, 1, 16, 4), lambda folder: models.wide(folder, 2, 8),
], ids=["chain", "shuffled", "transformer", "wide"])  # fmt: skip
def test_models_are_the_same_every_time(make, tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    first, second = make(tmp_path), make(tmp_path / "again")
    assert first.read_bytes() == second.read_bytes()
    assert onnx.load(first, load_external_data=False).graph.node


def test_the_table_has_a_column_for_every_key() -> None:
    results = {"machine": {"processor": "abacus"}, "parts": {"x": [{"a": 1.23456}, {"a": 12345.6, "b": "c"}]}}
    assert table(results).endswith("| a | b |\n| --- | --- |\n| 1.23 |  |\n| 12346 | c |\n")

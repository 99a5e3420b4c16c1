"""The documentation's commands work: the ```bash and ```python blocks of the README and docs/ run as printed.

The blocks of a page run in order, in one scratch directory, against this checkout. A comment right above a
block says otherwise: `<!-- exit: 1 -->` for the status that it ends with, `<!-- skip: reason -->` to leave it
out. The two commands on the README's first screen make their own environment; .ci/run runs those.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pytest

from qatc import compile_model
from qatc.cli import cli
from qatc.compiler.verify import Limits

ROOT = Path(__file__).resolve().parent.parent
CORPUS = ROOT / "tests" / "corpus"
PAGES = sorted(page.relative_to(ROOT).as_posix() for page in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")])

#: File names that the pages use, and what stands in for them.
SUPPLIES = {
    "model.onnx": ROOT / "samples" / "models" / "resnet8_qat.onnx",
    "keras_model.onnx": CORPUS / "tfmot-op13__smallcnn" / "model.onnx",
    "drpai_model.onnx": CORPUS / "drpai__resnet8" / "model.onnx",
    "calibration.npy": CORPUS / "drpai__resnet8" / "calibration.npy",
    "samples": ROOT / "samples",
    "cli.py": ROOT / "cli.py",
}


def digits(folder: Path) -> None:
    """Labeled data for model.onnx, as arrays and as images."""
    source = CORPUS / "drpai__resnet8"
    values, labels = np.load(source / "eval_x.npy")[:96], np.load(source / "eval_y.npy")[:96]
    np.savez(folder / "digits.npz", values, labels)
    levels = np.clip(np.rint((values[:, 0] * 0.35 + 0.3) * 255), 0, 255).astype(np.uint8)
    for index, (image, label) in enumerate(zip(levels[:16], labels, strict=False)):
        place = folder / "images" / str(label)
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{index}.pgm").write_bytes(b"P5 %d %d 255\n" % image.shape[::-1] + image.tobytes())


FENCE = re.compile(
    r"(?:^<!-- (?P<key>skip|exit): (?P<value>[^\n]+) -->\n\n?)?"
    r"^```(?P<language>bash|python)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    line: int
    language: str
    code: str
    status: int


def blocks(page: str) -> list[Block]:
    """The blocks of a page that are to run."""
    text = (ROOT / page).read_text(encoding="utf-8")
    start = text.index("\n## ") if page == "README.md" else 0
    return [
        Block(
            line=text.count("\n", 0, found.start("code")) + 1,
            language=found["language"],
            code=found["code"],
            status=int(found["value"]) if found["key"] == "exit" else 0,
        )
        for found in FENCE.finditer(text, start)
        if found["key"] != "skip"
    ]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Put this checkout's commands on the path and the pages' files into the scratch directory."""
    commands = tmp_path / ".bin"
    commands.mkdir()
    bodies = {
        "qatc": "-m qatc",
        "compile": "-c 'from qatc.__main__ import compile_main; compile_main()'",
        "python": "",
        "python3": "",
    }
    for name, body in bodies.items():
        script = commands / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {body} "$@"\n')
        script.chmod(0o755)
    for name, source in SUPPLIES.items():
        (tmp_path / name).symlink_to(source)
    digits(tmp_path)
    return os.environ | {"PATH": f"{commands}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize("page", PAGES)
def test_commands_run_as_printed(page: str, tmp_path: Path, environment: dict[str, str]) -> None:
    for block in blocks(page):
        command = ["bash", "-euo", "pipefail", "-c"] if block.language == "bash" else [sys.executable, "-c"]
        done = subprocess.run(
            [*command, block.code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode != block.status:
            pytest.fail(
                f"{page}:{block.line}: exit status {done.returncode}, not {block.status}\n"
                f"{block.code}\n{done.stdout}{done.stderr}",
                pytrace=False,
            )


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md", "samples/README.md", "tests/corpus/README.md"])
def test_links_lead_somewhere(page: str) -> None:
    """Relative links point at files of the repository."""
    targets = re.findall(r"\]\(([^)#\s]+)", (ROOT / page).read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not ((ROOT / page).parent / target).exists()] == []


def test_the_index_leads_everywhere() -> None:
    """Every page of docs/ is linked from docs/index.md."""
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in ROOT.glob("docs/**/*.md")} - {"index.md"}
    linked = re.findall(r"\]\(([^)#\s]+)", (ROOT / "docs" / "index.md").read_text(encoding="utf-8"))
    assert pages - set(linked) == set()


def test_the_architecture_names_every_part() -> None:
    """Every folder of the compiler, and every module beside them; nothing that is gone."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    parts = list((ROOT / "compiler").iterdir())
    folders = {f"compiler/{part.name}" for part in parts if (part / "__init__.py").is_file()}
    assert set(re.findall(r"^\| `(compiler/\w+)` \|", page, re.MULTILINE)) == folders
    listed = page.partition("Single files beside the folders:")[2].partition(";")[0]
    modules = {part.stem for part in parts if part.suffix == ".py"} - {"__init__"}
    assert set(re.findall(r"`(\w+)`", listed)) == modules


@pytest.mark.parametrize("page", ["docs/cli.md", "docs/verification.md"])
def test_the_limits_of_the_verification_are_those_of_the_code(page: str) -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([\w.]+) \|", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
    stated = {name: None if value in ("any", "none") else float(value) for name, value in rows if hasattr(Limits, name)}
    assert stated == asdict(Limits())


def test_every_option_is_on_the_page_of_the_command_line() -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    options = {
        name for command in cli.commands.values() for p in command.params for name in [*p.opts, *p.secondary_opts]
    }
    missing = {name for name in options if name.startswith("--") and not re.search(rf"{name}\b", page)}
    assert not missing


@pytest.mark.parametrize("page", ["README.md", "docs/package.md"])
def test_the_files_of_a_package_are_listed(page: str, tmp_path: Path) -> None:
    compile_model(SUPPLIES["model.onnx"], output=tmp_path / "out", verify=False)
    written = {re.sub(r"\d+", "", made.name) for made in (tmp_path / "out").iterdir()}
    text = (ROOT / page).read_text(encoding="utf-8")
    assert {name for name in written if not re.search(rf"(^ {{6}}|[` ]){re.escape(name)}", text, re.MULTILINE)} == set()


def test_the_first_screen_holds_the_two_commands() -> None:
    """What .ci/run takes from the README is there to be taken."""
    done = [
        subprocess.run(
            [sys.executable, str(ROOT / ".ci" / "readme_commands.py"), number],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for number in "12"
    ]
    assert "qatc compile -a -m pytorch samples/models/" in done[0]
    assert "pytest" in done[1]

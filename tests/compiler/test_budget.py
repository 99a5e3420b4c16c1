"""The memory budget: what is asked, what the answer says, and that `--max-memory` is honored."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qatc import CompileError, compile_model
from qatc.compiler import budget
from qatc.compiler.budget import Budget, active, limited, parse_size, size_text
from qatc.compiler.driver.footprint import peak_activations
from qatc.compiler.runtime.sessions import memory_ran_out
from qatc.compiler.shapes import infer_shapes
from tests.hostile_models import saved, sound
from tests.pipeline import canonical

ROOT = Path(__file__).resolve().parent.parent.parent
MODEL = ROOT / "samples" / "models" / "resnet8_qat.onnx"


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GiB", 2 << 30), ("2G", 2 << 30), ("2GB", 2 * 10**9), ("800 mb", 800 * 10**6), ("1.5t", 3 << 39),
     ("100000000", 100_000_000), ("100000000b", 100_000_000)],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "lots", "-2GiB", "2XB", "GiB", "nan", "1e99", "2 GiB 3", "63MiB", "0"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match=r"a size is a number|less than qatc itself needs"):
        parse_size(text)


def test_sizes_for_people() -> None:
    assert [size_text(n) for n in (0, 999, 1000, 3 << 20, 4 << 40)] == [
        "0 bytes",
        "999 bytes",
        "0.977 KiB",
        "3 MiB",
        "4 TiB",
    ]


def test_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "in_use", lambda: 70 << 20)
    Budget(100 << 20).ask(30 << 20, "the samples")
    Budget(100 << 20).ask(budget._NEGLIGIBLE - 1, "nothing much")  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(CompileError) as caught:
        Budget(100 << 20, stated=True).ask(31 << 20, "the samples", "use fewer", tensor="x")
    (found,) = caught.value.diagnostics
    assert (found.code, found.tensor, found.hint) == ("QAT011", "x", "use fewer")
    assert found.message == "the samples would take 31 MiB; 70 MiB are in use, --max-memory allows 100 MiB"


def test_the_limit_is_that_of_the_compile() -> None:
    before = active().limit
    with limited("1GiB") as outer:
        assert active() == outer == Budget(1 << 30, stated=True)
        with limited(None):
            assert active().limit == before
        assert active() == outer
    assert active().limit == before


def test_memory_that_runs_out_anyway() -> None:
    with pytest.raises(CompileError, match="memory ran out") as caught, limited(None):
        np.ones(1 << 61, np.uint8)
    assert [d.code for d in caught.value.diagnostics] == ["QAT011"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_is_in_use_is_counted() -> None:
    before = budget.in_use()
    held = np.ones(64 << 20, np.uint8)
    assert budget.in_use() - before > 60 << 20
    assert held[-1] == 1
    assert 32 << 20 < before < budget.machine_memory() <= 1 << 44


@pytest.mark.parametrize("wrong", ["lots", "1MB", -1, 0, 5.5])
def test_a_limit_that_is_none_is_a_usage_error(tmp_path: Path, wrong: object) -> None:
    with pytest.raises(CompileError) as caught:
        compile_model(MODEL, qat=True, output=tmp_path / "out", max_memory=wrong)
    assert (caught.value.exit_code, caught.value.diagnostics[0].code) == (2, "QAT007")


@pytest.mark.parametrize("options", [{"samples": 10**5, "verify": False}, {"shapes": {"input": (1 << 20, 1, 16, 16)}}])
def test_a_compile_that_would_take_more(tmp_path: Path, options: dict[str, object]) -> None:
    limit = budget.in_use() + (2 << 20)
    with pytest.raises(CompileError) as caught:
        compile_model(MODEL, qat=True, output=tmp_path / "out", max_memory=max(limit, budget.SMALLEST), **options)
    (found,) = caught.value.diagnostics
    assert found.code == "QAT011"
    assert "--max-memory allows" in found.message
    assert found.hint
    assert not list(tmp_path.iterdir())


def test_the_package_does_not_depend_on_the_limit(tmp_path: Path) -> None:
    for name, limit in (("a", None), ("b", "8GiB")):
        compile_model(MODEL, qat=True, output=tmp_path / name, max_memory=limit)
    assert (tmp_path / "a" / "manifest.json").read_bytes() == (tmp_path / "b" / "manifest.json").read_bytes()


def test_the_peak_of_the_activations() -> None:
    """X and q1 (float32 [1, 4]) live at once, and so on: two tensors of 16 bytes at every moment."""
    graph = canonical(sound())
    infer_shapes(graph)
    peak, worst = peak_activations(graph)
    assert peak == 32
    assert worst is not None


RUN = """
import resource, subprocess, sys
done = subprocess.run([sys.executable, "-m", "qatc", "compile", "-a", sys.argv[1], "-o", sys.argv[2], *sys.argv[3:]],
                      capture_output=True, text=True)
print(done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)
print(done.stderr)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="measures as Linux does")
@pytest.mark.parametrize("limit", [200, 400])
def test_the_command_stays_below_its_limit(tmp_path: Path, limit: int) -> None:
    """A network whose simulation takes some 500 MiB is refused, and nowhere near that much was taken."""
    path = saved(lambda: sound(width=5000))(tmp_path)
    command = [sys.executable, "-c", RUN, str(path), str(tmp_path / "out"), "--max-memory", f"{limit}MiB"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    status, peak = map(int, done.stdout.splitlines()[0].split())
    assert status == 1
    assert "QAT011" in done.stdout
    assert peak < limit


@pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux has them")
def test_a_limit_beyond_all_memory_is_none() -> None:
    """It was an OverflowError in front of the command, and so a traceback."""
    code = "from qatc.compiler.budget import enforce, parse_size; print(enforce(parse_size('99999999999GiB')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def test_the_words_of_onnx_runtime() -> None:
    assert memory_ran_out(RuntimeError("... Exception during initialization: std::bad_alloc"))
    assert memory_ran_out(RuntimeError("AllocateRawInternal Failed to allocate memory for requested buffer of size 1"))
    assert not memory_ran_out(RuntimeError("Non-zero status code returned while running Add node"))

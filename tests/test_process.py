"""The command as a process among others: its streams, signals, the paths and the locale that it is given, its home."""

from __future__ import annotations

import errno
import json
import os
import shlex
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from qatc import cli
from qatc.compiler.interruption import held
from tests import tiny_package

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "samples" / "models" / "resnet8_qat.onnx"
QATC = [sys.executable, "-m", "qatc"]
QUIETLY = ("ORT_DISABLE_TELEMETRY", "CI", "ORT_RUNNING_UNIT_TESTS")  # each of which keeps ONNX Runtime quiet by itself

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX alone")


@pytest.fixture(autouse=True)
def heeded() -> Iterator[None]:
    """Ctrl-C as in a shell, here and in what is started: a run in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def process(
    command: Sequence[str | bytes | Path], env: dict[str, str] | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """A finished process in this checkout; standard streams that are not in `options` are captured as text."""
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": ROOT} | options
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | (env or {})
    return subprocess.run(command, check=False, text=True, errors="replace", timeout=120, env=environment, **streams)


# -- streams -------------------------------------------------------------------------------------------------------
@posix
@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["compile", "-h"], ["explain"], ["dialects", "--json"], ["inspect", str(MODEL)]],
)
def test_a_reader_that_has_gone_away_changes_no_exit_code(arguments: list[str], tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        found = process([*QATC, *arguments], stdout=writing)
        damaged = tiny_package.build(tmp_path / "p")
        (damaged / "model.onnx").write_bytes(b"")
        failed = process([*QATC, "verify", str(damaged)], stdout=writing)
        gone = process([*QATC, "compile", "nothing.onnx"], stderr=writing)
        misused = process([*QATC, "compile", "--json"], stdout=writing)
    finally:
        os.close(writing)
    assert (found.returncode, found.stderr) == (0, "")
    assert failed.returncode == 3
    assert gone.returncode == 1
    assert misused.returncode == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full is needed")
@pytest.mark.parametrize("arguments", [["explain"], ["dialects", "--json"], ["--help"], ["inspect", str(MODEL)]])
def test_a_full_disk_is_no_bug(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        found = process([*QATC, *arguments], stdout=full)
        unheard = process([*QATC, "compile", "nothing.onnx"], stderr=full)
    assert found.returncode == 1
    assert found.stderr.startswith("error[QAT015]: cannot write standard output: No space left on device\n")
    assert "Traceback" not in found.stderr
    assert unheard.returncode == 1


@posix
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_do_not_matter(closed: str) -> None:
    command = f"exec {sys.executable} -m qatc"
    assert process(["sh", "-c", f"{command} explain {closed}"]).returncode == 0
    assert process(["sh", "-c", f"{command} compile nothing.onnx {closed}"]).returncode == 1


# -- signals -------------------------------------------------------------------------------------------------------
def stopped(body: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """A command with this body, in a process of its own."""
    lines = ["import os, signal, sys, time, click", "from qatc.compiler.command import ending, process"]
    lines += ["@click.command(cls=ending.Command)", "def command():", *(f"    {line}" for line in body.splitlines())]
    return process([sys.executable, "-c", "\n".join([*lines, "process.run(command)"])], **options)


@posix
@pytest.mark.parametrize(("number", "status", "said"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")])
def test_signals_unwind_the_command(number: str, status: int, said: str) -> None:
    body = f"try:\n    os.kill(os.getpid(), signal.{number})\n    time.sleep(60)\nfinally:\n    print('tidy')"
    found = stopped(body)
    assert (found.returncode, found.stdout, found.stderr) == (status, "tidy\n", f"{said}\n")


@posix
@pytest.mark.parametrize("start", [QATC[1:], ["-c", "from qatc.__main__ import compile_main as main; main()"]])
def test_a_signal_ends_a_command_that_is_still_loading_without_a_word(start: list[str], tmp_path: Path) -> None:
    body = "import os, signal, sys, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(0.1)\nprint('goes on')\n"
    (tmp_path / "click.py").write_text(f"{body}sys.exit(5)\n")
    env = {"PYTHONPATH": os.pathsep.join(map(str, (tmp_path, ROOT)))}
    found = process([sys.executable, *start], env=env, cwd=tmp_path)
    assert (found.returncode, found.stdout, found.stderr) == (-signal.SIGINT, "", "")
    ignored = process(["sh", "-c", f"trap '' INT; exec {shlex.join([sys.executable, *start])}"], env=env, cwd=tmp_path)
    assert (ignored.returncode, ignored.stdout, ignored.stderr) == (5, "goes on\n", "")


@posix
def test_a_signal_waits_for_a_module_to_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "half.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(0.1)\n")
    found = stopped(f"sys.path.insert(0, {str(tmp_path)!r})\nimport half\nos.write(1, b'loaded\\n')\ntime.sleep(60)")
    assert (found.returncode, found.stdout, found.stderr) == (130, "loaded\n", "interrupted\n")


@posix
def test_what_does_not_look_up_is_ended() -> None:
    body = """
        process._GRACE = 0.1
        signaled = False
        while True:
            try:
                os.kill(os.getpid(), 0 if signaled else signal.SIGTERM)
                time.sleep(60)
            except KeyboardInterrupt:
                signaled = True
    """
    found = stopped(textwrap.dedent(body).strip())
    assert found.returncode == 143


@pytest.mark.parametrize(
    ("stated", "threads"),
    [({}, ["1", "1"]), ({"OPENBLAS_NUM_THREADS": "4"}, ["4", "1"]), ({"OMP_NUM_THREADS": "3"}, [None, None])],
)
def test_blas_has_one_thread_unless_the_user_says_how_many(
    stated: dict[str, str], threads: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"]
    for name in (*names, "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    body = f"""\
        import os, sys
        from qatc import __main__, cli
        early = "numpy" in sys.modules
        cli.main = lambda: print(early, [os.environ.get(name) for name in {names}])
        __main__.main()
        """
    found = process([sys.executable, "-c", textwrap.dedent(body)], stated)
    assert found.stdout == f"False {threads}\n", found.stderr


def test_another_thread_may_run_a_command() -> None:
    body = "import threading\nfrom qatc.cli import cli\nfrom qatc.compiler.command.process import run\n"
    body += (
        "import sys\nsys.argv = ['qatc', 'explain']\nt = threading.Thread(target=run, args=(cli,))\nt.start()\nt.join()"
    )
    found = process([sys.executable, "-c", body])
    assert (found.returncode, found.stderr) == (0, "")
    assert "QAT203" in found.stdout


def test_too_little_memory_to_say_so_is_said() -> None:
    found = stopped("def show(*_):\n    raise MemoryError\nending._screen = show\nraise MemoryError")
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr.startswith("error[QAT011]: memory ran out")
    assert "Traceback" not in found.stderr


@posix
def test_signals_that_are_ignored_stay_ignored() -> None:
    def ignore() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    found = stopped("os.kill(os.getpid(), signal.SIGTERM)\nprint('goes on')", preexec_fn=ignore)
    assert (found.returncode, found.stdout) == (0, "goes on\n")


def test_held_signals_arrive_afterwards() -> None:
    steps: list[int] = []

    def work() -> None:
        with held():
            for step in range(3):
                signal.raise_signal(signal.SIGINT)
                steps.append(step)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert steps == [0, 1, 2]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# -- paths, locale, home -------------------------------------------------------------------------------------------
@posix
def test_folders_need_not_be_utf_8(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe"))
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system has names in UTF-8 alone")
    (folder / "m.onnx").write_bytes(MODEL.read_bytes())
    made = process([*QATC, "compile", "m.onnx", "-a"], cwd=folder)
    assert made.returncode == 0, made.stderr
    assert "m.onnx in ONNX Runtime" in made.stdout  # not the graph written again, for want of the file
    assert process([*QATC, "verify", "m.qatc"], cwd=folder).returncode == 0
    checked = process([sys.executable, "m.qatc/check.py"], cwd=folder)
    assert checked.returncode == 0, checked.stderr


@posix
def test_a_working_directory_that_is_gone_is_no_bug(tmp_path: Path) -> None:
    command = f"cd {tmp_path} && mkdir gone && cd gone && rmdir ../gone && exec {sys.executable} -m qatc verify p"
    found = process(["sh", "-c", command])
    assert found.returncode == 1
    assert found.stderr.startswith("error[QAT002]: the working directory does not exist any more\n")


def test_a_model_that_may_not_be_read_has_a_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat = Path.stat

    def refuse(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        if path.name == "m.onnx":
            raise PermissionError(errno.EACCES, "Permission denied")
        return stat(path, follow_symlinks=follow_symlinks)

    (tmp_path / "m.onnx").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # pyright: ignore[reportUnknownLambdaType]
    monkeypatch.setattr(Path, "stat", refuse)
    found = CliRunner().invoke(cli.cli, ["compile", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "p"), "--json"])
    assert found.exit_code == 1
    assert json.loads(found.stdout)["diagnostics"][0]["code"] == "QAT002"


@posix
def test_the_locale_changes_no_byte(tmp_path: Path) -> None:
    (tmp_path / "mödel.onnx").write_bytes(MODEL.read_bytes())
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    made = ("here", "there")
    for name, env in zip(made, ({"PYTHONUTF8": "1"}, plain), strict=True):
        done = process([*QATC, "compile", os.fsencode("mödel.onnx"), "-o", name], cwd=tmp_path, env=env)
        assert done.returncode == 0, done.stderr
    here, there = ({p.relative_to(f): p.read_bytes() for p in f.rglob("*.*")} for f in map(tmp_path.joinpath, made))
    assert here == there


def test_a_line_break_in_a_file_name_breaks_no_line(tmp_path: Path) -> None:
    model = tmp_path / "a\nb.onnx"
    model.write_bytes(MODEL.read_bytes())
    made = process([*QATC, "compile", str(model), "-a", "-v"], cwd=tmp_path)
    assert made.returncode == 0
    assert not [line for line in made.stdout.splitlines() if line.strip().startswith("b.")]
    assert process([*QATC, "verify", "a\nb.qatc"], cwd=tmp_path).stdout.startswith("verified a\\nb.qatc\n")


def test_nothing_is_left_in_the_home_of_the_user(tmp_path: Path) -> None:
    """ONNX Runtime keeps an identifier of the machine there for its reports about models, unless it is told not to."""
    home = tmp_path / "home"
    home.mkdir()
    environment = {key: value for key, value in os.environ.items() if key not in QUIETLY}
    environment |= {"PYTHONPATH": str(ROOT), "HOME": str(home), "USERPROFILE": str(home)}
    environment = {key: value for key, value in environment.items() if not key.startswith("XDG_")}
    for command in ([*QATC, "compile", str(MODEL), "-a", "-o", "p"], [sys.executable, "p/check.py"]):
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert list(home.rglob("*")) == []

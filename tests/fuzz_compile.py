"""Fuzzing of the compiler with damaged real models: any end but a package or a coded error is a bug.

    python -m tests.fuzz_compile --seconds 30            as CI does
    python -m tests.fuzz_compile --seconds 3600 --seed 7 a long run; the seed of a find is printed
    python -m tests.fuzz_compile --atheris -- -max_total_time=3600 finds/    guided by branches (CI: 30 seconds)

The last one needs atheris: pip install '.[fuzz]'.

The damages are those of `tests/mutations.py` to the structure, and cut, moved and changed bytes. What ends badly is
written beside its traceback to the folder --finds (libFuzzer: crash-*); turn it into a regression test and fix it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import os
import pkgutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError

ROOT = Path(__file__).resolve().parent.parent
LARGEST = 200_000  # bytes of a model to start from


def seeds() -> list[bytes]:
    """The repository's own models, the smaller ones of the corpus, as far as it is there, and one of every vendor."""
    from tests.vendor_models import vendor_models

    paths = [*(ROOT / "samples" / "models").glob("*.onnx"), *(ROOT / "tests" / "corpus").glob("*/model.onnx")]
    found = [path.read_bytes() for path in sorted(paths) if path.stat().st_size <= LARGEST]
    if not found:
        raise SystemExit("there is no model to start from")
    return found + [model.SerializeToString() for model in vendor_models().values()]


def compiles(data: bytes, folder: Path, *, verify: bool) -> bool:
    """Whether `data` compiles. Raises whatever is neither that nor a coded error: that is a find."""
    from qatc import CompileError, compile_model

    path = folder / "model.onnx"
    path.write_bytes(data)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            compile_model(path, output=folder / "out", verify=verify, max_memory="4GiB")
    except CompileError as error:
        if any(d.code.startswith("QAT9") for d in error.diagnostics) or not str(error).strip():
            raise
        return False
    return True


def damaged(data: bytes, seed: int) -> bytes:
    """`data` with damage that `seed` decides, to its structure or to its bytes."""
    from tests.mutations import damage

    rng = np.random.default_rng(seed)
    if rng.integers(4):
        model = onnx.ModelProto()
        model.ParseFromString(data)
        for number in range(int(rng.integers(1, 4))):
            with contextlib.suppress(ValueError, TypeError, IndexError, AttributeError):  # it does not apply here
                damage(model, seed + number)
        return model.SerializeToString()
    content = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        at, size = int(rng.integers(len(content))), int(rng.integers(1, 9))
        match int(rng.integers(4)):
            case 0:
                content[at : at + size] = rng.bytes(size)
            case 1:
                del content[at : at + size]
            case 2:
                content[at:at] = rng.bytes(size)
            case _:
                other = int(rng.integers(len(content)))
                content[at : at + 64] = content[other : other + 64]
    return bytes(content)


def numbers(start: int) -> Iterator[int]:
    while True:
        yield start
        start += 1


def run(seconds: float, first: int, finds: Path, *, verify: bool) -> int:
    """Damage and compile until the time is over; returns the number of finds."""
    corpus, until = seeds(), time.monotonic() + seconds
    bad = taken = 0
    number = first
    for number in numbers(first):
        if time.monotonic() >= until:
            break
        data = damaged(corpus[number % len(corpus)], number)
        with tempfile.TemporaryDirectory(prefix="qatc-fuzz-") as scratch:
            try:
                taken += compiles(data, Path(scratch), verify=verify)
            except Exception:
                bad += 1
                finds.mkdir(parents=True, exist_ok=True)
                (finds / f"{number}.onnx").write_bytes(data)
                (finds / f"{number}.txt").write_text(traceback.format_exc())
                print(f"seed {number}: {traceback.format_exc().strip().splitlines()[-1]}", flush=True)
    print(f"{number - first} models from seed {first} on: {taken} compiled, {bad} ended badly")
    return bad


def guided(arguments: list[str], *, verify: bool) -> None:
    """Let libFuzzer choose by the branches that are taken, among the same damages and its own to the bytes."""
    import atheris

    with atheris.instrument_imports(include=["qatc"]):
        import qatc

        for module in pkgutil.walk_packages(qatc.__path__, "qatc."):
            with contextlib.suppress(ImportError):  # what needs a framework, which no model of ONNX does
                importlib.import_module(module.name)
    start = Path(tempfile.mkdtemp(prefix="qatc-seeds-"))
    for index, data in enumerate(seeds()):
        (start / str(index)).write_bytes(data)
    scratch = Path(tempfile.mkdtemp(prefix="qatc-fuzz-"))

    def one(data: bytes) -> None:
        compiles(data, scratch, verify=verify)

    def mutated(data: bytes, largest: int, seed: int) -> bytes:
        if data and seed % 4:
            with contextlib.suppress(DecodeError):  # bytes that are no model any more: only libFuzzer's own damages fit
                changed = damaged(data, seed)
                if len(changed) <= largest:
                    return changed
        return atheris.Mutate(data, largest)

    folders = [a for a in arguments if not a.startswith("-")]
    for folder in folders:
        Path(folder).mkdir(parents=True, exist_ok=True)
    atheris.Setup([sys.argv[0], *arguments, str(start)], one, custom_mutator=mutated)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0, help="of the first model")
    parser.add_argument("--finds", type=Path, default=Path("fuzz-finds"))
    parser.add_argument("--verify", action="store_true", help="compare the results, too; slower")
    parser.add_argument("--atheris", action="store_true", help="arguments after -- go to libFuzzer")
    parser.add_argument("rest", nargs="*")
    chosen = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if chosen.atheris and importlib.util.find_spec("atheris") is None:
        raise SystemExit("atheris is not installed here: pip install '.[fuzz]'")
    if chosen.atheris:
        guided(chosen.rest, verify=chosen.verify)
    elif run(chosen.seconds, chosen.seed, chosen.finds, verify=chosen.verify):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

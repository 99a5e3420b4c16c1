"""The steps of a compile grow with the model, not with its square: counted, not timed.

What is counted are calls of functions, Python's and others', by `sys.setprofile`: the same on every machine.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from benchmarks import models
from qatc import compile_model
from tests.wide_models import SHAPES

_SIZES = (40, 160, 640)
_CALLS = 600.0  # for a node
_MOST = 5.0  # what the second step up takes, in terms of the first: 4 is linear, 16 is quadratic


def calls(run: Callable[[], object]) -> int:
    """How many calls it makes."""
    count = 0

    def counted(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(counted)
    try:
        run()
    finally:
        sys.setprofile(None)
    return count


def growth(run: Callable[[int], object]) -> float:
    """By how much the calls of the second step up exceed those of the first; what is done once cancels out."""
    run(8)  # what is imported on the way
    first, second, third = (calls(lambda size=size: run(size)) for size in _SIZES)
    return (third - second) / (second - first)


@pytest.mark.parametrize("name", SHAPES)
def test_steps_grow_with_the_model(tmp_path: Path, name: str) -> None:
    def run(size: int) -> None:
        path = tmp_path / f"{size}.onnx"
        path.write_bytes(SHAPES[name](size).SerializeToString())
        compile_model(path, qat=True, verify=False, output=tmp_path / "out")

    assert growth(run) < _MOST


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 makes other calls")
def test_steps_for_a_node_of_a_chain(tmp_path: Path) -> None:
    """About 575 on Python 3.11: pure Python takes as long as it makes calls, so this is what the speed rests on."""

    def run(blocks: int) -> None:
        compile_model(models.chain(tmp_path, blocks), qat=True, verify=False, output=tmp_path / "out")

    run(8)
    few, many = (calls(lambda blocks=blocks: run(blocks)) for blocks in (40, 160))
    assert (many - few) / (9 * 120) < _CALLS


def test_the_count_sees_a_square() -> None:
    """Every element compared with every other, beside a thousand times as much that is linear."""

    def run(size: int) -> None:
        for number in range(size):
            for _ in range(1_000):
                abs(number)
            for other in range(size):
                max(number, other), min(number, other), pow(number, 1), divmod(other, 1)

    assert growth(run) > _MOST

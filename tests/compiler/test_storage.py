"""Large arrays outside memory."""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest

from qatc.compiler.diagnostics import CompileError
from qatc.compiler.quant import QuantParams, blocks
from qatc.compiler.storage import Storage, release, scratch_folder

SHAPES = [(7,), (300_000,), (3, 100_000), (1, 5, 70_000), (2, 3, 4, 30_000), (600, 500), (1, 1, 1)]


def test_memory_unless_asked() -> None:
    assert Storage().empty((1 << 20,), np.int8).base is None


def test_small_arrays_stay_in_memory() -> None:
    assert Storage(spill=True).empty((100,), np.int8).base is None


def test_spilled_arrays_keep_their_content() -> None:
    storage = Storage(spill=True)
    arrays = [storage.empty((n, 1000), np.int16) for n in (100, 40_000, 123, 64)]
    for index, array in enumerate(arrays):
        array[...] = index + 1
    for array in arrays:
        release(array)
    assert [int(a.min()) for a in arrays] == [int(a.max()) for a in arrays] == [1, 2, 3, 4]


def test_no_space_means_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    array = Storage(spill=True).empty((1 << 20,), np.int8)
    array[...] = 3
    assert array.base is None


def test_nothing_is_left_in_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    array = Storage(spill=True).empty((1 << 20,), np.int8)
    assert isinstance(array.base, np.ndarray | mmap.mmap | memoryview)
    assert list(tmp_path.iterdir()) == []


def test_a_scratch_folder_is_gone_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with scratch_folder() as folder:
        (folder / "file").write_bytes(b"x")
        assert folder.parent == tmp_path
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("full", [False, True])
def test_no_place_for_temporary_files_is_told(full: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path if full else tmp_path / "missing"))
    with pytest.raises(CompileError) as caught, scratch_folder():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    (found,) = caught.value.diagnostics
    why = "No space left on device" if full else "No such file or directory"
    assert (found.code, found.message) == ("QAT015", f"cannot write temporary files: {why}")
    assert list(tmp_path.iterdir()) == []


def test_release_of_other_arrays_does_nothing() -> None:
    array = np.arange(100_000)
    release(array)
    release(array[::2])
    release(array[:0])
    assert int(array[-1]) == 99_999


def test_release_of_a_memory_map(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(range(256)) * 4096)
    data = np.memmap(path, np.uint8, "r")
    part = data[1000:900_000].view(np.int8)
    before = part.copy()
    release(part)
    assert np.array_equal(part, before)


@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_cover_an_array_once(shape: tuple[int, ...]) -> None:
    seen = np.zeros(shape, np.int8)
    for block in blocks(shape, 50_000):
        assert seen[block].size <= max(50_000, shape[-1])
        seen[block] += 1
    assert seen.min() == seen.max() == 1


@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_do_not_change_what_is_rounded(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal(shape).astype(np.float32)
    for axis in range(len(shape)):
        params = QuantParams.per_channel(rng.uniform(0.01, 0.1, shape[axis]), axis)
        whole = np.clip(np.rint(values / params.scale_array(len(shape))), -128, 127).astype(np.int8)
        out = np.empty(shape, np.int8)
        assert params.quantize(values, out) is out
        assert np.array_equal(out, whole)

"""External data are opened part by part: nothing that is swapped meanwhile leads outside."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from qatc.compiler.model.tensors import TensorError, TensorReader, held_array, open_external

pytestmark = pytest.mark.skipif(os.open not in os.supports_dir_fd, reason="opens by path alone")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Data in model/sub/w.bin; what an attacker wants read is outside/w.bin."""
    inside, outside = tmp_path / "model" / "sub", tmp_path / "outside"
    inside.mkdir(parents=True)
    outside.mkdir()
    (inside / "w.bin").write_bytes(b"inside")
    (outside / "w.bin").write_bytes(b"secret")
    return tmp_path / "model"


@pytest.mark.parametrize("moment", ["w.bin", "sub"])
def test_a_folder_that_becomes_a_link_meanwhile(folder: Path, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is replaced by a link after it was looked at, or right before."""
    real = os.open

    def opening(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        if os.fspath(path) == moment and not (folder / "sub").is_symlink():
            (folder / "sub").rename(folder / "was")
            (folder / "sub").symlink_to("../outside")
        return real(path, flags, *rest, **named)

    monkeypatch.setattr(os, "open", opening)
    if moment == "sub":
        with pytest.raises(TensorError, match="symbolic link"):
            open_external(folder, "sub/w.bin")
    else:
        assert bytes(open_external(folder, "sub/w.bin")) == b"inside"


def test_no_descriptor_stays_open(folder: Path) -> None:
    first = os.dup(0)  # the lowest number that is free
    os.close(first)
    for location in ("sub/w.bin", "sub/none.bin", "sub", "none/w.bin"):
        with contextlib.suppress(TensorError):
            open_external(folder, location)
    last = os.dup(0)
    os.close(last)
    assert last == first


def test_a_file_is_mapped_once_however_it_is_spelled(folder: Path) -> None:
    reader = TensorReader(folder)
    for location in ("sub/w.bin", "./sub/w.bin", "sub/./w.bin", "sub//w.bin"):
        tensor = TensorProto(name="w", data_type=TensorProto.UINT8, dims=[6])
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
        assert bytes(reader.array(tensor)) == b"inside"
    assert list(reader.maps) == ["sub/w.bin"]


def test_a_tensor_that_must_hold_its_data() -> None:
    tensor = onnx.numpy_helper.from_array(np.arange(3, dtype=np.int16), "t")
    assert held_array(tensor).tolist() == [0, 1, 2]
    tensor.dims[0] = 1 << 40
    with pytest.raises(ValueError, match="bytes of data for the shape"):
        held_array(tensor)
    tensor.data_location = TensorProto.EXTERNAL
    with pytest.raises(ValueError, match="in another file"):
        held_array(tensor)


@pytest.mark.parametrize(("kind", "shared"), [("INT2", 4), ("UINT2", 4), ("INT4", 2), ("UINT4", 2)])
def test_elements_that_share_a_byte(kind: str, shared: int) -> None:
    if kind not in TensorProto.DataType.keys():  # noqa: SIM118 - an enumeration of protobuf, no dictionary
        pytest.skip("this onnx has no integers of 2 bits")
    tensor = TensorProto(data_type=TensorProto.DataType.Value(kind), dims=[4000], raw_data=b"\x11" * (4000 // shared))
    value = held_array(tensor)
    assert value.shape == (4000,)
    assert value[:4].astype(np.int64).tolist() == ([1, 0, 1, 0] if shared == 4 else [1, 1, 1, 1])
    with pytest.raises(ValueError, match=r"5,000 elements|do not fit"):
        held_array(TensorProto(data_type=tensor.data_type, dims=[5000], raw_data=tensor.raw_data))

"""The values of an untrusted file's tensors: views of its bytes, or memory maps of its external data.

Every size is checked before memory is taken; external data must be a regular file of the model's own folder.
"""

from __future__ import annotations

import functools
import math
import os
import stat
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto

from qatc.compiler.budget import active
from qatc.compiler.damaged import reason
from qatc.compiler.diagnostics import printable
from qatc.compiler.quant import Array

MAX_RANK: Final = 32  # what every numpy since 1.26 can hold
_BY_FOLDER: Final = os.open in os.supports_dir_fd  # not on Windows
_PACKED: Final = frozenset({"INT4", "UINT4", "FLOAT4E2M1", "INT2", "UINT2"})  # several elements share a byte
_MAX_DATA: Final = 1 << 40  # bytes of external data; a sparse file can claim any number


class TensorError(Exception):
    """One malformed tensor; the caller adds its name."""

    def __init__(self, code: str, message: str, hint: str | None = None) -> None:
        self.code, self.message, self.hint = code, message, hint
        super().__init__(message)


@functools.cache
def _element(kind: int) -> tuple[np.dtype[Any], np.dtype[Any], bool]:
    """An element type in memory, as it lies in a file, and whether several share a byte: onnx and numpy say it slowly.

    Raises:
        KeyError, TypeError, ValueError: for an unknown one.
    """
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    return dtype, dtype.newbyteorder("<") if dtype.isbuiltin else dtype, TensorProto.DataType.Name(kind) in _PACKED


class TensorReader:
    """Reads the tensors of one model; `folder` is where its external data are."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.maps: dict[str, np.memmap[Any, Any]] = {}
        self._mapped = 0  # bytes

    def inside(self, proto: TensorProto) -> None:
        """Check a tensor that ONNX Runtime will read by itself, in a subgraph, and bring its data in.

        What lies in a subgraph is written with its operator, so that data outside would be missed from the package.
        """
        value = self.array(proto)
        if proto.data_location != TensorProto.EXTERNAL:
            return
        active().ask(value.nbytes, "a tensor of a subgraph", tensor=proto.name or None)
        proto.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), proto.name))

    def array(self, proto: TensorProto) -> Array:
        """The value of a TensorProto: a view of its bytes where they are raw, a memory map where they are external."""
        dims = list(proto.dims)
        if len(dims) > MAX_RANK or min(dims, default=0) < 0:
            raise TensorError("QAT004", f"the dimensions {shape_text(dims)} are not a shape")
        count = math.prod(dims)
        if proto.data_type == TensorProto.STRING:
            if len(proto.string_data) != count:
                raise TensorError("QAT004", f"{len(proto.string_data):,} strings for the shape {dims}")
            return onnx.numpy_helper.to_array(proto)
        try:
            dtype, stored, packed = _element(proto.data_type)
        except (KeyError, ValueError, TypeError):
            raise TensorError("QAT004", f"unknown element type {proto.data_type}") from None
        if proto.data_location == TensorProto.EXTERNAL:
            return self._external(proto, dims, count, dtype, packed)
        if proto.HasField("raw_data"):
            raw = proto.raw_data
            if not packed and len(raw) != count * dtype.itemsize:
                raise TensorError("QAT004", f"{len(raw):,} bytes of data for the shape {dims} of {dtype}")
            if not packed:
                return np.frombuffer(raw, stored).reshape(dims)
        if count > 64 + 4 * proto.ByteSize():  # four packed elements a byte at most
            raise TensorError(
                "QAT004", f"the shape {dims} has {count:,} elements but the file holds {proto.ByteSize():,} bytes"
            )
        try:
            return onnx.numpy_helper.to_array(proto)
        except (ValueError, TypeError) as error:
            raise TensorError("QAT004", f"the data do not fit the shape {dims}: {error}") from error

    def _external(self, proto: TensorProto, dims: list[int], count: int, dtype: np.dtype[Any], packed: bool) -> Array:
        bits = 2 if "INT2" in TensorProto.DataType.Name(proto.data_type) else 4
        size = -(-count * bits // 8) if packed else count * dtype.itemsize
        location, offset, length = external_place(proto, size)
        if length != size:
            raise TensorError(
                "QAT003", f"the external data state {length:,} bytes, the shape {dims} of {dtype} needs {size:,}"
            )
        data = self._map(location)
        if offset + size > data.size:
            raise TensorError(
                "QAT003",
                f"bytes {offset:,} to {offset + size:,} are outside {printable(location)} ({data.size:,} bytes)",
                "the data file is cut off or belongs to another model; copy both files again",
            )
        part = data[offset : offset + size]
        if not packed:
            return part.view(dtype).reshape(dims) if count else np.zeros(dims, dtype)
        active().ask(size + count, f"unpacking a tensor of {printable(location)}", tensor=proto.name or None)
        whole = TensorProto(dims=dims, data_type=proto.data_type, raw_data=part.tobytes())
        return onnx.numpy_helper.to_array(whole)

    def _map(self, location: str) -> np.memmap[Any, Any]:
        """The data file at `location`, mapped once however it is spelled."""
        name = str(PurePosixPath(location))
        if name not in self.maps:
            data = open_external(self.folder, location)
            self._mapped += data.size
            if self._mapped > _MAX_DATA:
                message = f"the external data take more than {_MAX_DATA:,} bytes"
                raise TensorError("QAT005", message, "compile the network in parts")
            self.maps[name] = data
        return self.maps[name]


def held_array(proto: TensorProto) -> Array:
    """The value of a tensor that has its data in it. ValueError where it has not, or they do not fit."""
    if proto.data_location == TensorProto.EXTERNAL:
        raise ValueError(f"the tensor {printable(proto.name)} has its data in another file")
    try:
        return TensorReader(Path()).array(proto)
    except TensorError as bad:
        raise ValueError(bad.message) from bad


def external_place(proto: TensorProto, size: int) -> tuple[str, int, int]:
    """Where a tensor's external data are: file, offset, length (`size` where none is stated). Raises TensorError."""
    entries: dict[str, str] = {}
    for entry in proto.external_data:
        if entry.key in entries:
            raise TensorError("QAT003", f"the external data state their {printable(entry.key)} twice")
        entries[entry.key] = entry.value
    try:
        offset, length = (_number(entries.get(key, str(default))) for key, default in (("offset", 0), ("length", size)))
    except ValueError:
        raise TensorError(
            "QAT003", f"offset or length of the external data is no such number: {printable(str(entries))}"
        ) from None
    return entries.get("location", ""), offset, length


def put_outside(proto: TensorProto, location: str, offset: int, length: int) -> None:
    """Let a tensor's data be external: so many bytes of the file `location`, from `offset` on."""
    proto.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        proto.external_data.add(key=key, value=value)


def _number(text: str) -> int:
    """Digits and nothing else: int() takes more than other readers of the file do."""
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(text)
    return int(text)


def open_external(folder: Path, location: str) -> np.memmap[Any, Any]:
    """Memory-map a model's data file. Only a regular file with one name, inside the model's folder, is opened."""
    pure = PurePosixPath(location)
    unsafe = (
        not location
        or "\0" in location
        or pure.is_absolute()
        or PureWindowsPath(location).is_absolute()
        or ".." in pure.parts
        or not pure.parts
    )
    if unsafe or "\\" in location:
        raise TensorError(
            "QAT003",
            f"external data at {printable(location)!r} is outside the model's folder",
            "external data must lie beside the model, named by a relative path without '..'",
        )
    try:
        handle = _opened(folder, pure.parts)
    except (OSError, ValueError) as error:
        raise TensorError(
            "QAT003",
            f"external data file {printable(location)} cannot be read: {reason(error)}",
            "copy the data file that was exported with the model beside it",
        ) from error
    try:
        _check_regular(os.fstat(handle), location)
        with os.fdopen(handle, "rb", closefd=False) as file:
            return np.memmap(file, np.uint8, "r")
    except (OSError, ValueError, OverflowError) as error:
        raise TensorError(
            "QAT003", f"external data file {printable(location)} cannot be mapped: {reason(error)}"
        ) from error
    finally:
        os.close(handle)


def _opened(folder: Path, parts: Sequence[str]) -> int:
    """Open a file below `folder`, part by part: a link is not followed, nor one that is put there meanwhile.

    Raises:
        OSError: where it does not exist or cannot be opened.
        TensorError: QAT003 where a part is a link.
    """
    reading = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    if not _BY_FOLDER:
        for index in range(len(parts)):
            _check_no_link(folder.joinpath(*parts[: index + 1]), None, parts)
        return os.open(folder.joinpath(*parts), reading)
    where = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in parts:
            try:
                inner = os.open(part, reading, dir_fd=where)
            except OSError:
                _check_no_link(part, where, parts)
                raise
            os.close(where)
            where = inner
        found, where = where, -1
        return found
    finally:
        if where >= 0:
            os.close(where)


def _check_no_link(name: str | Path, folder: int | None, parts: Sequence[str]) -> None:
    if stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
        message = f"external data {printable('/'.join(parts))} goes through a symbolic link"
        raise TensorError("QAT003", message, "copy the file beside the model")


def _check_regular(info: os.stat_result, location: str) -> None:
    location = printable(location)
    if not stat.S_ISREG(info.st_mode):
        raise TensorError("QAT003", f"external data {location} is not a regular file")
    if info.st_nlink > 1:
        hint = "copy the file beside the model"
        raise TensorError("QAT003", f"external data {location} is a hard link with {info.st_nlink} names", hint)
    if not info.st_size:
        raise TensorError("QAT003", f"external data file {location} is empty")


def shape_text(dims: Sequence[int | str | None]) -> str:
    """A shape for a message."""
    return f"{list(dims)}" if len(dims) <= MAX_RANK else f"of {len(dims):,} numbers"

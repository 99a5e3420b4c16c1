"""Data sets in .npy and .npz files, and folders of them. The first axis counts samples; they are read one at a time.

An .npy file holds the samples of the only input. An .npz file, or a folder with an .npy file an array, holds by name:

    the inputs     under their names, or input_0, input_1, ...; for a single input also x, data, images, arr_0
    labels         labels, label, y or arr_1: classes
    targets        the outputs' names, or output_0, output_1, ...; targets for the first one

A folder of .npz files is their samples in the order of the files' names. Nothing is unpacked as a whole: members of an
archive are read as they stream, so that memory does not depend on the size of the data.
"""

from __future__ import annotations

import contextlib
import math
import re
import zipfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Final

import numpy as np

from qatc.compiler.damaged import ARCHIVE, reason
from qatc.compiler.diagnostics import CompileError, fail, few, file_name, printable
from qatc.compiler.evaluation.values import Dataset, Item, Loader, Ports
from qatc.compiler.npy import npy_header
from qatc.compiler.quant import Array
from qatc.compiler.result import Port

_DATA: Final = ("x", "inputs", "data", "images", "arr_0")
_LABELS: Final = ("labels", "label", "y", "arr_1")
_TARGETS: Final = ("targets", "target")
_NAMED: Final = 12  # arrays that a message names
_MOST: Final = 1 << 40  # samples
# a member is read a sample at a time: what is more than memory, or than can be counted, is a header without end
_TROUBLE: Final = (*ARCHIVE, MemoryError, OverflowError)


@dataclass(frozen=True)
class _Stored:
    """An array in a file: how to open a stream at its first byte, and what its header says."""

    where: str
    open: Callable[[], contextlib.AbstractContextManager[IO[bytes]]]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def samples(self, stream: IO[bytes]) -> Iterator[Array]:
        """Slices along the first axis, from a stream that stands behind the header."""
        shape = self.shape[1:]
        size = math.prod(shape) * self.dtype.itemsize
        for _ in range(self.shape[0]):
            yield np.frombuffer(_exactly(stream, size), self.dtype).reshape(shape)


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    while len(data) < size:
        more = stream.read(size - len(data))
        if not more:
            raise EOFError("it ends before its last sample does")
        data += more
    return data


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of an npy stream, which then stands at the data; ValueError for what cannot be read in order."""
    shape, fortran, dtype = npy_header(stream)
    if fortran and len(shape) > 1:
        raise ValueError("it lies in Fortran order; save numpy.ascontiguousarray(array)")
    if not shape:
        raise ValueError("it is a single number; the first axis counts samples")
    if shape[0] > _MOST or (shape[0] and not math.prod(shape[1:])):
        raise ValueError(f"{dtype} {list(shape)} are no samples")
    return shape, dtype


def _stored(path: Path) -> _Stored:
    try:
        with _file(path) as stream:
            return _Stored(file_name(path), partial(_file, path), *_header(stream))
    except _TROUBLE as error:
        raise _unreadable(file_name(path), error) from error


def _unreadable(where: str, error: BaseException) -> CompileError:
    message = f"cannot read {printable(where)}: {reason(error)}"
    return fail("QAT008", message, hint="save it with numpy.save or numpy.savez")


# -- which array is what --------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Shard:
    """Arrays that belong together: of equal length, by input, the labels if there are any, by output."""

    inputs: Mapping[str, _Stored]
    labels: _Stored | None
    targets: Mapping[str, _Stored]

    @property
    def count(self) -> int:
        return next(iter(self.inputs.values())).shape[0]

    def items(self) -> Iterator[Item]:
        """The samples, all arrays streaming side by side."""
        named = [("input", n, s) for n, s in self.inputs.items()] + [("target", n, s) for n, s in self.targets.items()]
        named += [("label", "", self.labels)] if self.labels is not None else []
        where = ""
        try:
            with ExitStack() as stack:
                walks: list[Iterator[Array]] = []
                for _, _, stored in named:
                    where = stored.where
                    stream = stack.enter_context(stored.open())
                    _header(stream)
                    walks.append(stored.samples(stream))
                for _ in range(self.count):
                    values: list[Array] = []
                    for (_, _, stored), walk in zip(named, walks, strict=True):
                        where = stored.where
                        values.append(next(walk))
                    yield _item(named, values)
        except _TROUBLE as error:
            raise _unreadable(where, error) from error


def _item(named: Sequence[tuple[str, str, _Stored]], values: Sequence[Array]) -> Item:
    inputs: dict[str, Array] = {}
    targets: dict[str, Array] = {}
    label: Array | None = None
    for (role, name, _), value in zip(named, values, strict=True):
        if role == "input":
            inputs[name] = value
        elif role == "target":
            targets[name] = value
        else:
            label = value
    return Item(inputs, label, targets)


def _assigned(where: str, arrays: Mapping[str, _Stored], ports: Ports) -> _Shard:
    """Sort arrays by their names; QAT008 for names that say nothing or the same, missing inputs and unequal lengths."""
    inputs: dict[str, _Stored] = {}
    targets: dict[str, _Stored] = {}
    labels: _Stored | None = None
    odd: list[str] = []
    for name, stored in arrays.items():
        port = _port(name, ports.inputs, "input", _DATA)
        if port is not None:
            inputs[port.name] = stored
        elif name in _LABELS:
            labels = stored
        elif (port := _port(name, ports.outputs, "output", _TARGETS)) is not None:
            targets[port.name] = stored
        else:
            odd.append(name)
    missing = [port.name for port in ports.inputs if port.name not in inputs]
    have = few(list(arrays), _NAMED) or "(none)"
    if len(inputs) + len(targets) + (labels is not None) + len(odd) < len(arrays):
        message = f"two of the arrays of {printable(where)} are the same input, output or labels: {have}"
        raise fail("QAT008", message, hint="leave one of them out")
    if missing or odd:
        want = ", ".join(printable(port.name) for port in ports.inputs)
        message = f"{printable(where)} holds the arrays {have}; the model's inputs are {want}"
        raise fail("QAT008", message, hint=f"name the arrays by the inputs, and {_LABELS[0]} for classes")
    every = [*inputs.values(), *targets.values(), *([labels] if labels is not None else [])]
    if len({stored.shape[0] for stored in every}) > 1:
        listed = ", ".join(f"{printable(name)}: {stored.shape[0]}" for name, stored in arrays.items())
        hint = "the first axis of every array counts samples"
        raise fail("QAT008", f"the arrays of {printable(where)} differ in length ({listed})", hint=hint)
    ordered = {port.name: inputs[port.name] for port in ports.inputs}
    _check_target(where, targets, labels, ports)
    return _Shard(ordered, labels, targets)


def _check_target(where: str, targets: dict[str, _Stored], labels: _Stored | None, ports: Ports) -> None:
    """Labels that are floats are targets of the output that labels belong to: what it should be, not a class."""
    if labels is not None and labels.dtype.kind == "f" and ports.labeled not in targets:
        targets[ports.labeled] = labels
    for name, stored in targets.items():
        if stored.dtype.kind not in "fiu":
            message = f"the targets {printable(name)} of {printable(where)} are {stored.dtype}, no real numbers"
            raise fail("QAT008", message, hint="save them as floats or integers")


def _port(name: str, ports: Sequence[Port], role: str, single: Sequence[str]) -> Port | None:
    for port in ports:
        if name in (port.name, re.sub(r"[^0-9A-Za-z_.-]", "_", port.name)):
            return port
    numbered = re.fullmatch(rf"{role}_(\d{{1,4}})", name)
    if numbered and int(numbered[1]) < len(ports):
        return ports[int(numbered[1])]
    return ports[0] if ports and name in single and (len(ports) == 1 or role == "output") else None


# -- files ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class ArrayData:
    """Shards one after the other."""

    shards: tuple[_Shard, ...]

    def __len__(self) -> int:
        return sum(shard.count for shard in self.shards)

    def __iter__(self) -> Iterator[Item]:
        for shard in self.shards:
            yield from shard.items()


def _open_npy(path: Path, ports: Ports, options: Mapping[str, str]) -> Dataset:
    del options
    _check_file(path)
    stored = _stored(path)
    if len(ports.inputs) != 1:
        names = ", ".join(printable(port.name) for port in ports.inputs)
        hint = "save an .npz with one array an input: numpy.savez(path, name=array, ...)"
        message = f"{printable(file_name(path))} holds one array, the model has the inputs {names}"
        raise fail("QAT008", message, hint=hint)
    return ArrayData((_Shard({ports.inputs[0].name: stored}, None, {}),))


def _archive(path: Path, ports: Ports) -> _Shard:
    where, arrays = file_name(path), dict[str, _Stored]()
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith(".npy"):
                    own = name.removesuffix(".npy")
                    where = f"{file_name(path)}[{own}]"
                    with archive.open(name) as stream:
                        arrays[own] = _Stored(where, partial(_member, path, name), *_header(stream))
    except _TROUBLE as error:
        raise _unreadable(where, error) from error
    return _assigned(file_name(path), arrays, ports)


def _file(path: Path) -> IO[bytes]:
    return path.open("rb")


@contextlib.contextmanager
def _member(path: Path, name: str) -> Generator[IO[bytes]]:
    with zipfile.ZipFile(path) as archive, archive.open(name) as stream:
        yield stream


def _open_npz(path: Path, ports: Ports, options: Mapping[str, str]) -> Dataset:
    del options
    _check_file(path)
    return ArrayData((_archive(path, ports),))


def _check_file(path: Path) -> None:
    """Refuse what is no file where the user said that it is one: a pipe would be waited for, a device never ends."""
    if path.exists() and not path.is_file():
        raise fail("QAT008", f"{printable(str(path))} is no regular file", hint="give an .npy or an .npz file")


def _open_folder(path: Path, ports: Ports, options: Mapping[str, str]) -> Dataset:
    del options
    archives, files = _with_suffix(path, ".npz"), _with_suffix(path, ".npy")
    if archives and files:
        message = (
            f"{printable(file_name(path))} holds both .npz files and .npy files, such as {printable(files[0].name)}"
        )
        raise fail("QAT008", message, hint="put all arrays into .npz files, or each into an .npy file")
    if archives:
        return ArrayData(tuple(_archive(archive, ports) for archive in archives))
    arrays = {file.stem: _stored(file) for file in files}
    return ArrayData((_assigned(file_name(path), arrays, ports),))


def _with_suffix(path: Path, suffix: str) -> list[Path]:
    return sorted(file for file in path.iterdir() if file.suffix.lower() == suffix and file.is_file())


def _is_file(suffix: str, path: Path) -> bool:
    return path.suffix.lower() == suffix and path.is_file()


def _is_folder(path: Path) -> bool:
    return path.is_dir() and bool(_with_suffix(path, ".npz") or _with_suffix(path, ".npy"))


NPY: Final = Loader("npy", "the samples of the only input in one array", partial(_is_file, ".npy"), _open_npy)
NPZ: Final = Loader("npz", "arrays by name: inputs, labels, targets", partial(_is_file, ".npz"), _open_npz)
ARRAYS: Final = Loader("arrays", "a folder of .npz files, or of an .npy file an array", _is_folder, _open_folder)

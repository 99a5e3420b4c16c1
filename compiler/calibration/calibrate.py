"""Calibration: the ranges that an exporter left out, from representative inputs.

The simulation runs over the data batch by batch; of each tensor only a histogram is kept. Zero is always part of a
range, so that padding and Relu stay exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from zipfile import ZipFile

import numpy as np

from qatc.compiler.budget import active
from qatc.compiler.calibration.histogram import METHODS, Histogram, Range, grid_of
from qatc.compiler.damaged import ARCHIVE, looking, reason
from qatc.compiler.diagnostics import CompileError, Diagnostics, counted, fail, few, misused, printable, suggested
from qatc.compiler.npy import npy_array
from qatc.compiler.quant import Array, QuantParams
from qatc.compiler.result import Port
from qatc.compiler.samples import Feeds, as_port, check_fits, describe, read_array
from qatc.compiler.simulation import Simulation

_BATCH: Final = 16  # samples run together at most
_BATCH_BYTES: Final = 1 << 22  # of inputs run together; activations take a multiple of it
_SUFFIXES: Final = (".npy", ".npz")


def calibrate(
    simulation: Simulation,
    tensors: Sequence[str],
    data: CalibrationData,
    method: str = "minmax",
    *,
    dtype: str = "uint8",
    symmetric: bool = False,
    findings: Diagnostics | None = None,
) -> dict[str, QuantParams]:
    """Per-tensor grids for `tensors`, found from what they hold while the model runs over `data`.

    Args:
        simulation: the model; `tensors` are names of its tensors.
        tensors: what to find ranges for.
        data: representative inputs (see `read_data`).
        method: "minmax", "percentile" (99.99 %), "entropy" or "mse".
        dtype: element type of the grids.
        symmetric: whether the zero point lies in the middle.
        findings: where it is told which tensors were nothing but zero.

    Raises:
        CompileError: QAT007 for an unknown method, QAT008 for data that do not fit or make a tensor infinite or NaN,
            QAT403 where the model cannot be run.
    """
    find = METHODS.get(method)
    if find is None:
        hint = suggested(method, METHODS, f"known are {', '.join(METHODS)}")
        raise misused(f"unknown calibration method {printable(method)}", hint)
    seen = {name: Histogram() for name in tensors}
    for feeds in data:
        for name, values in simulation.run(feeds, tensors).items():
            if not np.isfinite(values).all():
                raise fail(
                    "QAT008",
                    f"the calibration data make {name} infinite or NaN",
                    tensor=name,
                    hint="feed data preprocessed as in training",
                )
            seen[name].add(values)

    blank = [name for name, each in seen.items() if not each.limit]
    if blank and findings is not None:
        what, whose = counted(len(blank), "tensor"), "its" if len(blank) == 1 else "their"
        message = f"the calibration data leave {what} zero throughout ({few(blank)}): {whose} range is a guess"
        findings.warning("QAT207", message, hint="feed data prepared as in training, and more of them")

    def grid(span: Range) -> QuantParams:
        return grid_of(span, dtype, symmetric=symmetric)

    return {name: grid(find(each, grid)) for name, each in seen.items()}


# -- data ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CalibrationData:
    """Representative inputs in files, read a batch at a time; iterating yields what to feed, and can be repeated.

    Attributes:
        files: .npy and .npz files in the order they are read.
        ports: the model's inputs.
        shapes: input name -> pinned shape.
    """

    files: tuple[Path, ...]
    ports: tuple[Port, ...]
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict[str, Sequence[int]])

    def __iter__(self) -> Iterator[Feeds]:
        for path in self.files:
            found = Diagnostics()
            arrays = self._arrays(path, found)
            found.check()
            yield from self._batches(path, arrays)

    def _arrays(self, path: Path, found: Diagnostics) -> dict[str, Array]:
        """The arrays of one file by input name."""
        if path.suffix.lower() == ".npy":
            array = read_array(path, found)
            if len(self.ports) != 1:
                names = ", ".join(printable(p.name) for p in self.ports)
                found.error(
                    "QAT008",
                    f"{printable(str(path))} holds one array, the model has {len(self.ports)} inputs: {names}",
                    hint="save an .npz with one array per input: numpy.savez(path, name=array, ...)",
                )
            return {} if array is None else {self.ports[0].name: array}
        try:
            with ZipFile(path) as archive:
                held = [member for member in archive.infolist() if member.filename.endswith(".npy")]
                size = sum(member.file_size for member in held)  # what it says is what is unpacked at most
                hint = "give calibration data in several smaller files"
                active().ask(size, f"unpacking {printable(path.name)}", hint)
                members = {member.filename.removesuffix(".npy"): npy_array(archive.read(member)) for member in held}
        except ARCHIVE as error:
            message = f"cannot read {printable(str(path))}: {reason(error)}"
            found.error("QAT008", message, hint="save the arrays with numpy.savez")
            return {}
        return self._named(path, members, found)

    def _named(self, path: Path, members: dict[str, Array], found: Diagnostics) -> dict[str, Array]:
        names = [p.name for p in self.ports]
        positional = [f"arr_{i}" for i in range(len(names))]  # what numpy.savez calls unnamed arrays
        if sorted(members) == positional:
            return {name: members[key] for name, key in zip(names, positional, strict=True)}
        if set(members) != set(names):
            have, want = ", ".join(map(printable, members)), ", ".join(map(printable, names))
            found.error(
                "QAT008",
                f"{printable(str(path))} holds the arrays {have or '(none)'}; the model's inputs are {want}",
                hint="save one array per input under the input's name",
            )
            return {}
        return {name: members[name] for name in names}

    def _batches(self, path: Path, arrays: dict[str, Array]) -> Iterator[Feeds]:
        counts = {name: self._count(path, self._port(name), array) for name, array in arrays.items()}
        if len({count for count, _ in counts.values()}) != 1:
            listed = ", ".join(f"{printable(n)}: {c}" for n, (c, _) in counts.items())
            raise fail(
                "QAT008",
                f"the arrays of {printable(str(path))} have different numbers of batches ({listed})",
                hint="every input needs the same number of samples along its first axis",
            )
        total = next(iter(counts.values()))[0]
        step = min((size for _, size in counts.values() if size), default=1)
        for start in range(0, total, step):
            feeds: Feeds = {}
            found = Diagnostics()
            for name, array in arrays.items():
                port = self._port(name)
                batch = self._slice(port, array, start, min(step, total - start))
                if check_fits(port, batch, found, str(path), self.shapes):
                    feeds[name] = as_port(port, batch)
            found.check()
            yield feeds

    def _port(self, name: str) -> Port:
        return next(p for p in self.ports if p.name == name)

    def _dims(self, port: Port) -> Sequence[int | str | None]:
        dims = self.shapes.get(port.name) or port.shape
        if dims is None:
            raise fail(
                "QAT009",
                "the input has no declared shape",
                tensor=port.name,
                hint=f"pin it: -s {port.name}=1,3,224,224",
            )
        return dims

    def _count(self, path: Path, port: Port, array: Array) -> tuple[int, int]:
        """How many units the array holds, and how many are fed at once: samples where the batch is free, else feeds."""
        dims = self._dims(port)
        if abs(array.ndim - len(dims)) > 1:
            raise self._wrong(path, port, array, f"the rank is {array.ndim}, not {len(dims)}")
        if array.ndim < len(dims) or not array.ndim:
            return 1, 1
        if not array.shape[0]:
            raise self._wrong(path, port, array, "it has no samples")
        if array.ndim > len(dims):
            return array.shape[0], 1
        if isinstance(dims[0], int):
            if not dims[0] or array.shape[0] % dims[0]:
                raise self._wrong(path, port, array, f"the first axis is no multiple of the batch, {dims[0]}")
            return array.shape[0] // dims[0], 1
        size = max(1, array[:1].nbytes)
        return array.shape[0], max(1, min(_BATCH, _BATCH_BYTES // size))

    def _wrong(self, path: Path, port: Port, array: Array, why: str) -> CompileError:
        return fail(
            "QAT008",
            f"{printable(str(path))} holds {array.dtype} {list(array.shape)}: {why}",
            tensor=port.name,
            hint=f"the input is {describe(port)}; the first axis of the data counts samples",
        )

    def _slice(self, port: Port, array: Array, start: int, count: int) -> Array:
        dims = self._dims(port)
        if array.ndim < len(dims):
            return array[None]
        if array.ndim > len(dims):
            return np.asarray(array[start])
        if not dims:
            return array
        unit = dims[0] if isinstance(dims[0], int) else 1
        return array[start * unit : (start + count) * unit]


def read_data(path: Path, ports: Sequence[Port], shapes: Mapping[str, Sequence[int]] | None = None) -> CalibrationData:
    """The representative inputs at `path`.

    An .npy file holds samples of the only input along its first axis (or one more axis in front); an .npz file one such
    array per input, under the input's name; a folder any number of either, read in the order of their names.

    Raises:
        CompileError: QAT008 where there is no such file or nothing in the folder. What does not fit the model is QAT008
            too, raised while the data are read.
    """
    with looking("QAT008", path, "check the path and its permissions"):
        files = _files(path, "; ".join(f"{printable(p.name)}: {describe(p)}" for p in ports))
    return CalibrationData(files, tuple(ports), dict(shapes or {}))


def _files(path: Path, expected: str) -> tuple[Path, ...]:
    """The files with data at `path`; `expected` says what arrays of the inputs look like."""
    shown, hint = printable(str(path)), f"save arrays for the inputs {expected}"
    if path.is_dir():
        files = tuple(sorted(f for f in path.iterdir() if f.suffix.lower() in _SUFFIXES and f.is_file()))
        if not files:
            raise fail("QAT008", f"the folder {shown} has no .npy or .npz file", hint=hint)
        return files
    if not path.is_file():
        hint = f"give an .npy, an .npz or a folder of them; inputs: {expected}"
        raise fail("QAT008", f"{shown} {'is no regular file' if path.exists() else 'does not exist'}", hint=hint)
    if path.suffix.lower() not in _SUFFIXES:
        raise fail("QAT008", f"{shown} is neither an .npy nor an .npz file", hint=hint)
    return (path,)

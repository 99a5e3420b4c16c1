"""Sample inputs and outputs, three times over: npy for numpy, raw bytes for devices, protobuf for ONNX's runners."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.lib import format as npy
from onnx import numpy_helper

from qatc.compiler.diagnostics import fail
from qatc.compiler.package.writer import PackageWriter
from qatc.compiler.quant import Array
from qatc.compiler.result import Json, Port

_FLOAT_TOLERANCE: Final = 1e-5
_LARGEST: Final = (1 << 31) - (1 << 20)  # bytes of an array in a protobuf message, with its name


@dataclass(frozen=True)
class Sample:
    """One run of the model: an array per graph input and output, in the graph's order, of the ports' dtypes."""

    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]


@dataclass(frozen=True)
class Tolerance:
    """How far a replayed output may be off: |found - expected| <= absolute + relative * |expected|.

    For integer outputs the difference is in LSB; the default is none.
    """

    absolute: float = 0.0
    relative: float = 0.0


def tolerance_of(values: Sequence[Array]) -> Tolerance:
    """The default tolerance of an output with these sample values: nothing for integers, 1e-5 for floats.

    The absolute part is relative to the largest finite magnitude among the samples, since what cancels to almost zero
    carries the rounding errors of what it was computed from. One LSB of an 8-bit grid is several hundred times as much.
    """
    if not any(np.issubdtype(value.dtype, np.inexact) for value in values):
        return Tolerance()
    finite = [np.abs(value[np.isfinite(value)]) for value in map(np.asarray, values)]
    largest = max((float(part.max()) for part in finite if part.size), default=0.0)
    return Tolerance(_FLOAT_TOLERANCE * largest, _FLOAT_TOLERANCE)


def write_samples(
    writer: PackageWriter, samples: Sequence[Sample], inputs: Sequence[Port], outputs: Sequence[Port]
) -> list[Json]:
    """Write `samples/<i>/` and `test_data_set_<i>/` for every sample; returns what the manifest says about them.

    Raises:
        ValueError: where a sample does not have an array of the right dtype for each port.
        CompileError: QAT008 for an element type that npy cannot hold, QAT501 for an array that protobuf cannot.
    """
    entries: list[Json] = []
    for index, sample in enumerate(samples):
        entry: dict[str, Json] = {}
        for role, ports, arrays in (("input", inputs, sample.inputs), ("output", outputs, sample.outputs)):
            if len(ports) != len(arrays):
                raise ValueError(f"sample {index} has {len(arrays)} arrays for {len(ports)} {role}s")
            stems = [f"{role}_{number}" for number in range(len(ports))]
            for stem, port, array in zip(stems, ports, arrays, strict=True):
                _write_array(writer, index, stem, port, array)
            entry[f"{role}s"] = [f"samples/{index}/{stem}.npy" for stem in stems]
        entries.append(entry)
    return entries


def _write_array(writer: PackageWriter, index: int, stem: str, port: Port, array: Array) -> None:
    if array.dtype.name != port.dtype:
        raise ValueError(f"sample {index}: {port.name} is {port.dtype}, not {array.dtype}")
    if array.dtype.kind not in "biufc":
        raise fail(
            "QAT008",
            f"samples of type {array.dtype} cannot be saved as npy",
            tensor=port.name,
            hint="give the model inputs and outputs of a plain type, such as float32",
        )
    if array.nbytes > _LARGEST:
        message = f"a sample of {array.nbytes / 1e9:.3g} GB is more than ONNX test data hold"
        raise fail("QAT501", message, tensor=port.name, hint="--shape NAME=1,3,224,224 gives samples of smaller sizes")
    plain = np.asarray(array, order="C").astype(array.dtype.newbyteorder("<"), copy=False)
    writer.write(f"samples/{index}/{stem}.npy", npy_bytes(plain))
    writer.write(f"samples/{index}/{stem}.bin", memoryview(plain.tobytes()))
    proto = numpy_helper.from_array(plain, port.name)
    writer.write(f"test_data_set_{index}/{stem}.pb", proto.SerializeToString(deterministic=True))


def npy_bytes(array: Array) -> bytes:
    """An array as an npy file, version 1.0, C order."""
    stream = io.BytesIO()
    npy.write_array(stream, np.asarray(array, order="C"), version=(1, 0), allow_pickle=False)
    return stream.getvalue()

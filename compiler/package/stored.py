"""Reading what a package, whose hashes were checked, holds for computing: its integer graph, its ports, samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from qatc.compiler.diagnostics import printable
from qatc.compiler.model.tensors import TensorError, external_place, held_array
from qatc.compiler.npy import npy_array
from qatc.compiler.package.integer_file import (
    INTEGER_BIN,
    INTEGER_JSON,
    Initializers,
    StoredGraph,
    read_integer_graph,
    read_params,
)
from qatc.compiler.package.read import read_json, regular_file
from qatc.compiler.quant import Array
from qatc.compiler.result import Port

#: What reading raises where a package contradicts itself; the message says what is wrong.
TROUBLE: tuple[type[Exception], ...] = (OSError, ValueError, DecodeError)


def read_graph(folder: Path, manifest: Mapping[str, Any]) -> StoredGraph | None:
    """The integer graph of a package, None where it has none.

    Args:
        folder: the package.
        manifest: its manifest, valid under its schema, whose files match their hashes.

    Raises:
        Exception: one of `TROUBLE` where the files contradict themselves or each other.
    """
    if INTEGER_JSON not in manifest["files"]:
        return None
    stored = np.zeros(0, np.uint8)
    if INTEGER_BIN in manifest["files"]:
        stored = np.frombuffer(regular_file(folder, INTEGER_BIN).read_bytes(), np.uint8)
    found = read_integer_graph(read_json(folder, INTEGER_JSON), _initializers(folder, manifest), stored)
    for role, names in (("inputs", found.graph.inputs), ("outputs", found.graph.outputs)):
        have = [(name, found.graph.tensors[name].dtype) for name in names]
        want = [(port["name"], port["dtype"]) for port in manifest[role]]
        if have != want:
            raise ValueError(f"the {role} of {INTEGER_JSON} are {_listed(have)}, those of the manifest {_listed(want)}")
    if not found.graph.outputs:
        raise ValueError(f"the graph of {INTEGER_JSON} has no outputs")
    return found


def _listed(ports: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{name} ({dtype})" for name, dtype in ports) or "none"


def read_ports(manifest: Mapping[str, Any], role: str) -> tuple[Port, ...]:
    """The ports of a manifest; `role` is "inputs" or "outputs". ValueError for illegal parameters."""
    return tuple(
        Port(
            entry["name"],
            entry["dtype"],
            None if entry["shape"] is None else tuple(entry["shape"]),
            None if entry["params"] is None else read_params(entry["params"]),
        )
        for entry in manifest[role]
    )


def read_samples(folder: Path, manifest: Mapping[str, Any], role: str = "inputs") -> Iterator[dict[str, Array]]:
    """The arrays of each sample by port; OSError and ValueError where one cannot be read.

    A file that is named again, as a hostile manifest may a million times, is not read again.
    """

    @cache
    def read(name: str) -> Array:
        return npy_array(regular_file(folder, name).read_bytes())

    for sample in manifest["samples"]:
        yield {port["name"]: read(name) for port, name in zip(manifest[role], sample[role], strict=True)}


def check_forms(folder: Path, manifest: Mapping[str, Any]) -> None:
    """See that the raw bytes of a sample, and its ONNX test data, are the array of its npy file.

    Raises:
        Exception: one of `TROUBLE` where they are not, or one cannot be read.
    """
    for index, sample in enumerate(manifest["samples"]):
        for name in (*sample["inputs"], *sample["outputs"]):
            value = npy_array(regular_file(folder, name).read_bytes())
            plain = value.astype(value.dtype.newbyteorder("<"), copy=False).tobytes()
            stem = name.removesuffix(".npy")
            raw, proto = f"{stem}.bin", f"test_data_set_{index}/{stem.rpartition('/')[2]}.pb"
            if raw in manifest["files"] and regular_file(folder, raw).read_bytes() != plain:
                raise ValueError(f"{raw} holds other numbers than {name}")
            if proto in manifest["files"]:
                held = held_array(onnx.TensorProto.FromString(regular_file(folder, proto).read_bytes()))
                if (held.dtype, held.shape) != (value.dtype, value.shape) or held.tobytes() != value.tobytes():
                    raise ValueError(f"{proto} holds another array than {name}")


def _initializers(folder: Path, manifest: Mapping[str, Any]) -> Initializers:
    """The constants of the package's model, read when asked for."""
    if manifest["model"] is None:
        return {}
    model = onnx.ModelProto.FromString(regular_file(folder, manifest["model"]).read_bytes())
    found: dict[str, Callable[[], Array]] = {}
    for proto in model.graph.initializer:
        if proto.data_location == onnx.TensorProto.EXTERNAL:
            found[proto.name] = partial(_external, folder, manifest["model"], manifest["files"], proto)
        else:
            found[proto.name] = partial(held_array, proto)
    return found


def _external(folder: Path, model: str, files: Mapping[str, Any], proto: onnx.TensorProto) -> Array:
    """The value of a constant in a data file beside the model, memory-mapped."""
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(proto.data_type)
    except (KeyError, TypeError) as error:
        raise ValueError(f"unknown element type {proto.data_type}") from error
    shape = tuple(proto.dims)
    if min(shape, default=0) < 0:
        raise ValueError(f"the dimensions {list(shape)} are not a shape")
    size = math.prod(shape) * dtype.itemsize
    try:
        location, offset, length = external_place(proto, size)
    except TensorError as error:
        raise ValueError(error.message) from error
    name = "/".join([*model.split("/")[:-1], location])
    if name not in files:
        raise ValueError(f"the model reads {name}, which is no file of the package")
    path = regular_file(folder, name)
    if length != size or offset + size > path.stat().st_size:
        raise ValueError(f"the tensor {printable(proto.name)} is not where its data are said to be, in {name}")
    return np.memmap(path, dtype, "r", offset, shape) if size else np.zeros(shape, dtype)

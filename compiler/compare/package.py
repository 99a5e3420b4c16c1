"""Opening a package for comparison: everything is hashed and checked before any of it is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from qatc.compiler.arithmetic import Profile, get_profile
from qatc.compiler.diagnostics import CompileError, Severity, fail, printable
from qatc.compiler.integer import IntegerGraph
from qatc.compiler.integer_file import INTEGER_BIN, INTEGER_JSON, Initializers, read_integer_graph
from qatc.compiler.package.read import read_json, regular_file
from qatc.compiler.package.samples import read_npy
from qatc.compiler.quant import Array
from qatc.compiler.verify_package import verify_package

_AGAIN: Final = "compile the model again with this version of qatc"


@dataclass(frozen=True)
class OpenPackage:
    """What a comparison needs: the integer graph, its tensors' names in the package's model, how the target rounds and
    lays out feature maps, and the samples (by input of the graph).
    """

    folder: Path
    graph: IntegerGraph
    names: Mapping[str, str]
    profile: Profile
    layout: str
    samples: Sequence[Mapping[str, Array]]


def open_package(path: str | Path) -> OpenPackage:
    """Open a package whose files all match its manifest.

    Raises:
        CompileError: QAT502 where it is none, is damaged, or holds no integer graph.
    """
    folder = Path(path)
    found = verify_package(folder, samples=False)
    errors = [d for d in found.diagnostics if d.severity is Severity.ERROR]
    if errors:
        raise CompileError(errors)
    try:
        manifest: dict[str, Any] = read_json(folder, "manifest.json")
        if INTEGER_JSON not in manifest["files"]:
            raise fail("QAT502", f"{printable(str(folder))} has no {INTEGER_JSON}", hint=_AGAIN)
        document = read_json(folder, INTEGER_JSON)
        stored = np.zeros(0, np.uint8)
        if INTEGER_BIN in manifest["files"]:
            stored = np.frombuffer(regular_file(folder, INTEGER_BIN).read_bytes(), np.uint8)
        graph = read_integer_graph(document, _initializers(folder, manifest), stored)
        samples = [
            {
                port["name"]: read_npy(regular_file(folder, name).read_bytes())
                for port, name in zip(manifest["inputs"], sample["inputs"], strict=True)
            }
            for sample in manifest["samples"]
        ]
    except (OSError, ValueError, DecodeError) as error:
        message = f"{printable(str(folder))} holds what cannot be right: {printable(str(error))}"
        raise fail("QAT502", message, hint=_AGAIN) from error
    return OpenPackage(
        folder, graph.graph, graph.names, get_profile(manifest["arithmetic"]), graph.layout, samples
    )  # fmt: skip


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
            found[proto.name] = partial(onnx.numpy_helper.to_array, proto)
    return found


def _external(folder: Path, model: str, files: Mapping[str, Any], proto: onnx.TensorProto) -> Array:
    """The value of a constant in a data file beside the model, memory-mapped."""
    entries = {entry.key: entry.value for entry in proto.external_data}
    name = "/".join([*model.split("/")[:-1], entries.get("location", "")])
    if name not in files:
        raise ValueError(f"the model reads {name}, which is no file of the package")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(proto.data_type)
    shape = tuple(proto.dims)
    if min(shape, default=0) < 0:
        raise ValueError(f"the dimensions {list(shape)} are not a shape")
    if 0 in shape:
        return np.zeros(shape, dtype)
    offset = int(entries.get("offset", "0"))
    return np.memmap(regular_file(folder, name), dtype, "r", offset, shape)

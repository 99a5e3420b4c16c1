"""Golden tensors: what every step of the deployed network must compute on the samples, for whoever brings it up.

    golden/index.json            which file holds which tensor, its grid, its layout, its sha256
    golden/<sample>/<stem>.npy   the integers, as numpy reads them
    golden/<sample>/<stem>.bin   the same elements as raw bytes, little-endian, in the order of the layout
    golden/golden.h              all of them as C arrays, on request (`compiler/golden/header.py`)

The values are the reference executor's under the target's arithmetic profile. A stem is the tensor's place in execution
order and a readable rest of its name: unique and harmless on every file system, whatever the names in the model.
"""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import numpy as np

from qatc.compiler.arithmetic import Profile
from qatc.compiler.backend import Emission
from qatc.compiler.golden.header import HeaderTensor, header_chunks
from qatc.compiler.integer import (
    CHOOSERS,
    Concat,
    Conv,
    Dequantize,
    Elementwise,
    IntegerGraph,
    LayerNorm,
    Lookup,
    Move,
    Op,
    Pool,
    Quantize,
    Rescale,
    Resize,
    Softmax,
)
from qatc.compiler.layout import CHANNELS_FIRST
from qatc.compiler.model.tensors import held_array
from qatc.compiler.package import PackageWriter, dump_json
from qatc.compiler.package.content import params_document
from qatc.compiler.package.encoding import SCHEMA_VERSION
from qatc.compiler.package.integer_file import INTEGER_BIN, INTEGER_JSON, Initializers, integer_document
from qatc.compiler.package.samples import npy_bytes
from qatc.compiler.passes.movement import channels_to_end
from qatc.compiler.quant import Array, QuantParams
from qatc.compiler.reference import OnnxEvaluator, execute
from qatc.compiler.result import Json

FORMAT: Final = "qatc-golden"
INDEX: Final = "golden/index.json"
HEADER: Final = "golden/golden.h"
LAYOUTS: Final = ("channels_first", "channels_last")

_READABLE: Final = 40  # characters of a name that its stem keeps
# Movement that keeps what the axes mean.
_SAME_AXES: Final = frozenset({"Resize", "Pad", "Identity", "DepthToSpace", "SpaceToDepth", "Slice", *CHOOSERS})


@dataclass(frozen=True)
class Proof:
    """What a package holds for bring-up beside its samples.

    Attributes:
        graph: the integer graph, always written (integer.json).
        profile: how the target rounds.
        golden: whether the golden tensors are written.
        header: whether they are written as a C header, too.
        layout: "channels_first" or "channels_last": how the target holds feature maps.
    """

    graph: IntegerGraph
    profile: Profile
    golden: bool = False
    header: bool = False
    layout: str = "channels_first"


@dataclass(frozen=True)
class GoldenTensor:
    """A tensor of the golden index: `axes[i]` is the graph's axis that lies at place i in the files, `layout` names
    them where they have letters; `params` count their axis as the files do.
    """

    index: int
    name: str
    package: str | None
    source: str | None
    stem: str
    params: QuantParams
    axes: tuple[int, ...]
    layout: str | None


def write_proof(
    writer: PackageWriter,
    proof: Proof,
    emission: Emission,
    feeds: Sequence[Mapping[str, Array]],
    evaluate: OnnxEvaluator,
) -> None:
    """Write integer.json and, where asked for, the golden tensors of the samples.

    Args:
        writer: the package.
        proof: what to write.
        emission: the package's model, to name tensors as it does.
        feeds: the samples, by input of the integer graph, in the dtypes of its tensors.
        evaluate: what runs float islands and data movement.
    """
    names = package_names(proof.graph, emission)
    document, stored = integer_document(proof.graph, names, initializers_of(emission), proof.layout)
    writer.write(INTEGER_JSON, dump_json(document))
    if stored:
        position = 0
        with writer.open(INTEGER_BIN) as stream:
            for start, value in stored:
                stream.write(b"\0" * (start - position))
                stream.write(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
                position = start + value.nbytes
    if proof.golden or proof.header:
        _write_golden(writer, proof, names, feeds, evaluate)


def package_names(graph: IntegerGraph, emission: Emission) -> dict[str, str | None]:
    """Tensor of the graph -> its name in the package's model, None where the model does not have it."""
    model = emission.model.graph
    there = {name for node in model.node for name in node.output}
    there |= {port.name for port in model.input} | {tensor.name for tensor in model.initializer}
    found = {name: emission.names.get(name, name) for name in graph.tensors}
    return {name: place if place in there else None for name, place in found.items()}


def initializers_of(emission: Emission) -> Initializers:
    """The constants of an emitted model."""
    apart = dict(emission.external)
    found: dict[str, Callable[[], Array]] = {}
    for proto in emission.model.graph.initializer:
        if proto.name in apart:
            found[proto.name] = partial(apart.__getitem__, proto.name)
        else:
            found[proto.name] = partial(held_array, proto)
    return found


# -- which tensors, and how they lie --------------------------------------------------------------------------------
def integer_tensors(graph: IntegerGraph) -> list[tuple[str, QuantParams]]:
    """Every integer tensor that is computed or fed, in execution order, with its grid."""
    return [(name, params) for name in graph.made() if (params := graph.tensors[name].params) is not None]


def golden_tensors(
    graph: IntegerGraph, names: Mapping[str, str | None], ranks: Mapping[str, int], layout: str
) -> list[GoldenTensor]:
    """The `integer_tensors` as the golden index has them.

    Args:
        graph: the integer graph.
        names: tensor of the graph -> its name in the package's model.
        ranks: tensor of the graph -> its rank.
        layout: one of `LAYOUTS`.

    Raises:
        ValueError: where a tensor has no such axis as its parameters say (in a graph that was read).
    """
    maps = feature_maps(graph, ranks)
    chosen = integer_tensors(graph)
    width = max(4, len(str(len(chosen))))
    found: list[GoldenTensor] = []
    for index, (name, params) in enumerate(chosen):
        rank = ranks[name]
        axes, letters = _axes(rank, name in maps, layout)
        if params.axis is not None:
            if params.axis >= rank:
                raise ValueError(f"tensor {name} has parameters along axis {params.axis} and {rank} axes")
            params = replace(params, axis=axes.index(params.axis))
        stem = f"{index:0{width}d}{_readable(name)}"
        source = graph.tensors[name].source
        found.append(GoldenTensor(index, name, names.get(name), source, stem, params, axes, letters))
    return found


def _axes(rank: int, is_map: bool, layout: str) -> tuple[tuple[int, ...], str | None]:
    letters = CHANNELS_FIRST.get(rank) if is_map else None
    if letters is None:
        return tuple(range(rank)), None
    if layout == "channels_first":
        return tuple(range(rank)), letters
    axes = tuple(channels_to_end(rank))
    return axes, "".join(letters[axis] for axis in axes)


def _readable(name: str) -> str:
    """What of a name is harmless in a file name: lower-case letters and digits, the last words of a long one."""
    text = "_".join(re.findall(r"[a-z0-9]+", name[-4 * _READABLE :].lower()))
    if len(text) > _READABLE:  # not from the middle of a word, unless it is all one
        cut = text[-_READABLE - 1 :]
        text = cut.partition("_")[2] or cut[1:]
    return f"_{text}" if text else ""


def feature_maps(graph: IntegerGraph, ranks: Mapping[str, int]) -> set[str]:
    """The tensors whose axes are [N, C, spatial...]: what convolution and pooling touch, and what hangs together with
    it through operators that keep the axes.
    """
    seeds: set[str] = set()
    neighbors: dict[str, list[str]] = {}
    for op in graph.ops:
        if isinstance(op, (Conv, Pool)):
            seeds.update(name for name in (op.inputs[0], op.output) if ranks.get(name, 0) in CHANNELS_FIRST)
        elif _keeps_axes(op):
            group = [n for n in (*op.inputs, *op.outputs) if n and ranks.get(n) == ranks.get(op.output)]
            for name in group:
                neighbors.setdefault(name, []).extend(group)
    waiting = sorted(seeds)
    while waiting:
        for name in neighbors.get(waiting.pop(), ()):
            if name not in seeds:
                seeds.add(name)
                waiting.append(name)
    return seeds


def _keeps_axes(op: Op) -> bool:
    if isinstance(op, Move):
        return op.op_type in _SAME_AXES
    return isinstance(op, (Elementwise, Lookup, Rescale, Quantize, Dequantize, Concat, Resize, Softmax, LayerNorm))


# -- files ----------------------------------------------------------------------------------------------------------
def _write_golden(
    writer: PackageWriter,
    proof: Proof,
    names: Mapping[str, str | None],
    feeds: Sequence[Mapping[str, Array]],
    evaluate: OnnxEvaluator,
) -> None:
    tensors: list[GoldenTensor] = []
    files: dict[int, list[Json]] = {}

    def written() -> Iterator[HeaderTensor]:
        """Compute sample after sample, and write what the header does not hold: no more than one is in memory."""
        for sample, feed in enumerate(feeds):
            values = execute(proof.graph, feed, proof.profile, evaluate=evaluate)
            if not tensors:
                ranks = {name: value.ndim for name, value in values.items()}
                tensors.extend(golden_tensors(proof.graph, names, ranks, proof.layout))
            for tensor in tensors:
                value = as_stored(tensor, values[tensor.name])
                if proof.golden:
                    files.setdefault(tensor.index, []).append(_write_value(writer, sample, tensor, value))
                yield HeaderTensor(sample, tensor.stem, tensor.name, value, tensor.params)

    if proof.header:
        with writer.open(HEADER) as stream:
            for chunk in header_chunks(written()):
                stream.write(chunk.encode("ascii"))
    else:
        deque(written(), 0)
    if proof.golden:
        writer.write(INDEX, dump_json(_index_document(proof, tensors, files)))


def as_stored(tensor: GoldenTensor, value: Array) -> Array:
    """A tensor of the graph as its golden files hold it: axes in their order, C order, little-endian."""
    moved = np.asarray(np.transpose(value, tensor.axes), order="C")
    return moved.astype(moved.dtype.newbyteorder("<"), copy=False)


def _write_value(writer: PackageWriter, sample: int, tensor: GoldenTensor, value: Array) -> Json:
    base = f"golden/{sample}/{tensor.stem}"
    contents: tuple[tuple[str, bytes], ...] = (("npy", npy_bytes(value)), ("bin", value.tobytes()))
    document: dict[str, Json] = {"sample": sample, "shape": list(value.shape)}
    for kind, content in contents:
        writer.write(f"{base}.{kind}", content)
        document[kind] = {"file": f"{base}.{kind}", "sha256": hashlib.sha256(content).hexdigest()}
    return document


def _index_document(
    proof: Proof, tensors: Sequence[GoldenTensor], files: Mapping[int, Sequence[Json]]
) -> dict[str, Json]:
    return {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "arithmetic": proof.profile.name,
        "layout": proof.layout,
        "byte_order": "little",
        "tensors": list(_tensor_documents(tensors, files)),
    }


def _tensor_documents(
    tensors: Sequence[GoldenTensor], files: Mapping[int, Sequence[Json]]
) -> Iterator[dict[str, Json]]:
    for tensor in tensors:
        yield {
            "index": tensor.index,
            "stem": tensor.stem,
            "name": tensor.name,
            "package": tensor.package,
            "source": tensor.source,
            "dtype": tensor.params.container.name,
            "layout": tensor.layout,
            "axes": list(tensor.axes),
            "params": params_document(tensor.params),
            "files": list(files.get(tensor.index, ())),
        }

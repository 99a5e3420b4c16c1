"""The IntegerGraph as files of the package: `integer.json`, and `integer.bin` for constants that model.onnx lacks.

With them anybody can run the reference executor on a package: `qatc compare` needs nothing else. Constants that the
package's model holds bit for bit (nearly all weights) are named there and not stored again.
"""

from __future__ import annotations

import base64
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, cast

import numpy as np
import onnx

from qatc.compiler.integer import (
    Concat,
    Conv,
    Dequantize,
    Elementwise,
    Float,
    IntegerGraph,
    LayerNorm,
    Lookup,
    MatMul,
    Move,
    Op,
    Pool,
    Quantize,
    Rescale,
    Resize,
    Softmax,
    Tensor,
)
from qatc.compiler.model.tensors import held_array
from qatc.compiler.package.content import params_document
from qatc.compiler.package.encoding import SCHEMA_VERSION
from qatc.compiler.package.integer_check import check_read
from qatc.compiler.quant import Array, QuantParams, dtype_name
from qatc.compiler.result import Json
from qatc.compiler.storage import release

INTEGER_JSON: Final = "integer.json"
INTEGER_BIN: Final = "integer.bin"

_KINDS: Final[Mapping[str, type[Op]]] = {
    kind.__name__: kind
    for kind in (
        Concat, Conv, Dequantize, Elementwise, Float, LayerNorm, Lookup, MatMul, Move, Pool, Quantize, Rescale, Resize,
        Softmax,
    )
}  # fmt: skip
_FIELDS: Final = {name: tuple(f.name for f in dataclasses.fields(kind)) for name, kind in _KINDS.items()}
_ALIGNMENT: Final = 16
_PLAIN: Final = "biufc"  # numpy kinds whose bytes say everything

_SIGNED, _UNSIGNED = np.dtype(np.int8), np.dtype(np.uint8)
_PROBE: Final = 64  # elements that tell most pairs of constants apart
_SORTED: Final = 1 << 12  # elements of a constant that is told from others by all of them
#: The constants of the package's model by name; values are read when asked for.
Initializers = Mapping[str, Callable[[], Array]]


# -- writing ------------------------------------------------------------------------------------------------------
def integer_document(
    graph: IntegerGraph, names: Mapping[str, str | None], initializers: Initializers, layout: str
) -> tuple[dict[str, Json], list[tuple[int, Array]]]:
    """integer.json as data, and the arrays of integer.bin with their offsets (ascending).

    Args:
        graph: a verified graph.
        names: tensor of the graph -> its name in the package's model, None or absent where the model has it not.
        initializers: the constants of the package's model.
        layout: how the target holds feature maps, "channels_first" or "channels_last".
    """
    stored: list[tuple[int, Array]] = []
    document: dict[str, Json] = {
        "schema_version": SCHEMA_VERSION,
        "name": graph.name,
        "opset": graph.opset,
        "domains": dict(sorted(graph.domains.items())),
        "inputs": list(graph.inputs),
        "outputs": list(graph.outputs),
        "layout": layout,
        "tensors": [_tensor_document(tensor, names.get(name)) for name, tensor in graph.tensors.items()],
        "constants": list(_constants(graph, names, initializers, stored)),
        "operators": [_op_document(op) for op in graph.ops],
    }
    return document, stored


def _tensor_document(tensor: Tensor, package: str | None) -> dict[str, Json]:
    return {
        "name": tensor.name,
        "package": package,
        "source": tensor.source,
        "dtype": tensor.dtype,
        "shape": None if tensor.shape is None else list(tensor.shape),
        "params": None if tensor.params is None else params_document(tensor.params),
    }


def _constants(
    graph: IntegerGraph, names: Mapping[str, str | None], initializers: Initializers, stored: list[tuple[int, Array]]
) -> Iterator[dict[str, Json]]:
    end = 0
    shelf = _Shelf(initializers)
    for name, value in graph.constants.items():
        entry: dict[str, Json] = {"name": name, "dtype": dtype_name(value.dtype), "shape": list(value.shape)}
        if value.dtype.kind not in _PLAIN:
            proto = onnx.numpy_helper.from_array(value)
            yield {**entry, "tensor": base64.b64encode(proto.SerializeToString(deterministic=True)).decode("ascii")}
            continue
        found = shelf.find(value, names.get(name) or name)
        if found is not None:
            yield {**entry, "initializer": found[0], "transform": found[1]}
            continue
        start = -(-end // _ALIGNMENT) * _ALIGNMENT
        end = start + value.nbytes
        stored.append((start, value))
        yield {**entry, "offset": start}


class _Shelf:
    """The model's constants by what every transform keeps, to find those that hold the same elements."""

    def __init__(self, initializers: Initializers) -> None:
        self._values = {name: read() for name, read in initializers.items()}
        self._by_size: dict[tuple[int, int], list[str]] = {}
        self._by_content: dict[tuple[object, ...], list[str]] = {}
        for name, value in self._values.items():
            if value.dtype.kind in _PLAIN:
                self._by_size.setdefault((value.dtype.itemsize, value.size), []).append(name)

    def find(self, value: Array, likely: str) -> tuple[str, str] | None:
        """The name of an initializer and the transform that makes `value` of it; `likely` is tried first."""
        if likely in self._values:
            transform = self._transform(likely, value)
            release(self._values[likely])
            release(value)
            if transform is not None:
                return likely, transform
        for name in self._alike(value):
            transform = self._transform(name, value)
            if transform is not None:
                return name, transform
        return None

    def _transform(self, name: str, value: Array) -> str | None:
        for transform in TRANSFORMS:
            made = transformed(self._values[name], transform, value.dtype, value.shape)
            if made is not None and _same(made, value):
                return transform
        return None

    def _alike(self, value: Array) -> list[str]:
        """Initializers that may hold the elements of `value` in some order: seldom more than one."""
        size = (value.dtype.itemsize, value.size)
        for name in self._by_size.pop(size, ()):  # those of one size are looked at when one of that size is sought
            self._by_content.setdefault(_content(self._values[name]), []).append(name)
        return self._by_content.get(_content(value), [])


def _content(value: Array) -> tuple[object, ...]:
    """What no transform of a constant changes: its elements whatever their order and the highest bit's meaning."""
    elements = _bytes(value)
    width = value.dtype.itemsize
    if width in (2, 4, 8):
        elements = elements.view(f"u{width}")
    elif value.dtype == np.int8:
        elements = elements ^ np.uint8(0x80)
    text = np.sort(elements).tobytes() if elements.size <= _SORTED else int(elements.sum(dtype=np.uint64))
    return width, value.size, text


TRANSFORMS: Final = ("none", "transpose", "flip", "transpose_flip")


def transformed(value: Array, transform: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array | None:
    """A constant of the graph made from one of the model, or None where the transform does not apply.

    "transpose" exchanges the axes of a matrix, "flip" the highest bit of each byte (int8 with zero point z is uint8
    with z + 128); the elements are then taken in `shape`.
    """
    if transform.startswith("transpose"):
        if value.ndim != 2:
            return None
        value = value.T
    if transform.endswith("flip"):
        if (value.dtype, dtype) not in ((_SIGNED, _UNSIGNED), (_UNSIGNED, _SIGNED)):
            return None
        value = np.bitwise_xor(np.ascontiguousarray(value).view(np.uint8), np.uint8(0x80)).view(dtype)
    if value.dtype != dtype or value.size != math.prod(shape):
        return None
    return value if value.shape == shape else np.ascontiguousarray(value).reshape(shape)


def _same(found: Array, value: Array) -> bool:
    if found is value:
        return True
    if value.size > _PROBE and _bytes(found.flat[:_PROBE]).tobytes() != _bytes(value.flat[:_PROBE]).tobytes():
        return False
    return np.array_equal(_bytes(found), _bytes(value))


def _bytes(value: Array) -> Array:
    return np.ascontiguousarray(value).reshape(-1).view(np.uint8)


def _op_document(op: Op) -> dict[str, Json]:
    document: dict[str, Json] = {"kind": op.kind}
    for name in _FIELDS[op.kind]:
        value = getattr(op, name)
        if name == "attrs":
            document["attrs"] = {key: _attribute(key, item) for key, item in sorted(value.items()) if item is not None}
        else:
            several = isinstance(value, tuple)
            document[name] = [_plain(v) for v in cast("tuple[Any, ...]", value)] if several else _plain(value)
    return document


def _plain(value: Any) -> Any:
    is_numpy = bool(isinstance(value, np.generic))
    return value.item() if is_numpy else value


def _attribute(key: str, value: Any) -> Json:
    """Numbers, texts and lists of them as they are, anything else as an AttributeProto."""
    value = _plain(value)
    if isinstance(value, (bool, int, float, str)) and value == value and value not in (math.inf, -math.inf):
        return value
    if isinstance(value, (list, tuple)):
        items = [_plain(v) for v in cast("Sequence[Any]", value)]
        if all(isinstance(v, (int, str)) for v in items):
            return items
        value = items
    if isinstance(value, np.ndarray):
        value = onnx.numpy_helper.from_array(np.asarray(cast("Array", value), order="C"))
    proto = onnx.helper.make_attribute(key.lstrip("_") or key, value)
    return {"onnx": base64.b64encode(proto.SerializeToString(deterministic=True)).decode("ascii")}


# -- reading ------------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class StoredGraph:
    """What integer.json holds: the graph, its tensors' names in the package's model if they are in it, the layout."""

    graph: IntegerGraph
    names: Mapping[str, str]
    layout: str


def read_integer_graph(document: Any, initializers: Initializers, stored: Array) -> StoredGraph:
    """The graph of integer.json.

    Args:
        document: the parsed file, valid under its JSON Schema.
        initializers: the constants of the package's model.
        stored: the bytes of integer.bin, uint8 [any].

    Raises:
        ValueError: where the file contradicts itself, the model or integer.bin.
    """
    tensors = {entry["name"]: _tensor(entry) for entry in document["tensors"]}
    graph = IntegerGraph(
        name=document["name"],
        inputs=list(document["inputs"]),
        outputs=list(document["outputs"]),
        ops=[_op(entry) for entry in document["operators"]],
        tensors=tensors,
        constants={entry["name"]: _constant(entry, initializers, stored) for entry in document["constants"]},
        opset=document["opset"],
        domains=dict(document["domains"]),
    )
    unknown = [name for name in (*graph.inputs, *graph.outputs) if name not in tensors]
    if unknown:
        raise ValueError(f"the port {unknown[0]} is not described")
    check_read(graph)
    try:
        graph.verify()
    except KeyError as error:
        raise ValueError(f"a tensor is not described: {error.args[0]}") from error
    names = {e["name"]: e["package"] for e in document["tensors"] if e["package"] is not None}
    return StoredGraph(graph, names, document["layout"])


def _tensor(entry: Mapping[str, Any]) -> Tensor:
    shape, params = entry["shape"], entry["params"]
    return Tensor(
        entry["name"],
        entry["dtype"],
        None if shape is None else tuple(shape),
        None if params is None else read_params(params),
        entry["source"],
    )


def read_params(document: Mapping[str, Any]) -> QuantParams:
    """QuantParams from JSON (see `params_document`); ValueError for illegal ones."""
    return QuantParams(
        tuple(document["scale"]),
        tuple(document["zero_point"]),
        document["dtype"],
        document["axis"],
        document["qmin"],
        document["qmax"],
    )


def _constant(entry: Mapping[str, Any], initializers: Initializers, stored: Array) -> Array:
    name, shape = entry["name"], tuple(entry["shape"])
    if "tensor" in entry:
        return held_array(onnx.TensorProto.FromString(base64.b64decode(entry["tensor"], validate=True)))
    try:
        dtype = np.dtype(entry["dtype"])
    except TypeError as error:
        raise ValueError(f"constant {name} has the unknown element type {entry['dtype']}") from error
    if dtype.kind not in _PLAIN:
        raise ValueError(f"constant {name} cannot be of type {entry['dtype']}")
    if "initializer" in entry:
        read = initializers.get(entry["initializer"])
        made = None if read is None else transformed(read(), entry["transform"], dtype, shape)
        if made is None:
            raise ValueError(f"the model has no initializer {entry['initializer']} that is {dtype} {list(shape)}")
        return made
    size = math.prod(shape) * dtype.itemsize
    part = stored[entry["offset"] : entry["offset"] + size]
    if part.size != size:
        raise ValueError(f"{INTEGER_BIN} ends before constant {name} does")
    value = part.view(dtype.newbyteorder("<")).reshape(shape)
    native: Array = value.astype(dtype, copy=False)
    return native


def _op(entry: Mapping[str, Any]) -> Op:
    kind = _KINDS[entry["kind"]]
    given = {key: value for key, value in entry.items() if key != "kind"}
    if set(given) != set(_FIELDS[kind.__name__]):
        odd = sorted(set(given).symmetric_difference(_FIELDS[kind.__name__]))
        raise ValueError(f"operator {entry['name']} of kind {entry['kind']} has other fields than it should: {odd[0]}")
    values = {key: _tuple(value) for key, value in given.items()}
    if "attrs" in values:
        values["attrs"] = {key: _value(item) for key, item in values["attrs"].items()}
    return kind(**values)


def _tuple(value: Any) -> Any:
    return tuple(cast("Sequence[Any]", value)) if isinstance(value, list) else value


def _value(item: Any) -> Any:
    if not isinstance(item, Mapping):
        return item
    proto = onnx.AttributeProto.FromString(base64.b64decode(cast("Mapping[str, str]", item)["onnx"], validate=True))
    if proto.type == onnx.AttributeProto.TENSOR:
        return held_array(proto.t)
    return onnx.helper.get_attribute_value(proto)

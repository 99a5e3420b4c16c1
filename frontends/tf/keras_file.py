"""What a Keras file would run when it is loaded: its description is data, but some of its layers hold or name code.

Keras builds a model from a JSON description that names classes by module and class. A description can hold Python
byte code (`Lambda`), name any function of any module, or call TensorFlow's functions for files while the model is
built. So the description is checked before Keras sees it: it may name the layers, initializers, regularizers,
constraints and activations of Keras and tfmot, and TensorFlow's functions on tensors, and nothing else.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections import deque
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Final, cast

from qatc.compiler.damaged import ARCHIVE
from qatc.compiler.diagnostics import fail

_MODULES: Final = (
    "keras",
    "keras.layers",
    "keras.initializers",
    "keras.regularizers",
    "keras.constraints",
    "keras.activations",
    "tf_keras.src.engine.functional",
    "tf_keras.src.engine.sequential",
    "tf_keras.src.engine.training",
    "tf_keras.src.engine.input_layer",
)
_PACKAGES: Final = ("tensorflow_model_optimization.python.core.quantization.keras.", "tf_keras.src.layers.")
_SINCE_KERAS_2_13: Final = "keras.src."  # to 2.15, the last within TensorFlow; tf_keras reads it as its own modules
_FUNCTION_MODULES: Final = ("builtins", "keras.activations")  # where Keras says that its own activations are
_ACTIVATIONS: Final = re.compile(
    r"elu|exponential|gelu|hard_sigmoid|leaky_relu|linear|log_softmax|mish|relu|relu6|selu|sigmoid|silu|softmax|softplus"
    r"|softsign|swish|tanh"
)
_HOLD_CODE: Final = frozenset(
    {"Lambda", "__lambda__", "ClassMethod", "InstanceMethod", "ResidualWrapper", "DropoutWrapper", "DeviceWrapper"}
)
_TF_LAYERS: Final = frozenset({"TFOpLambda", "SlicingOpLambda"})
_TF_NAMESPACES: Final = ("__operators__.", "image.", "linalg.", "math.", "nn.", "quantization.")
_TF_FUNCTIONS: Final = re.compile(
    r"abs|add|broadcast_to|cast|clip_by_value|concat|convert_to_tensor|divide|einsum|exp|expand_dims|gather|identity"
    r"|matmul|maximum|minimum|multiply|one_hot|ones_like|pad|range|realdiv|reduce_(max|mean|min|sum)|repeat|reshape"
    r"|round|shape|sigmoid|slice|split|sqrt|square|squeeze|stack|strided_slice|subtract|tanh|tensordot|tile|transpose"
    r"|truediv|unstack|where|zeros_like"
)
_WEIGHTS: Final = "model.weights.h5"
_LARGEST: Final = {"metadata.json": 1 << 20, "config.json": 1 << 26, _WEIGHTS: 1 << 32}  # bytes of members, unpacked
_ZIP: Final = b"PK\x03\x04"
_HDF5: Final = b"\x89HDF\r\n\x1a\n"
_CUSTOM: Final = (
    "if you trust the model, load it in Python and save it as a SavedModel (model.export or tf.saved_model.save): "
    "that holds the graph instead of the code"
)


def check(path: Path) -> None:
    """Look into a `.keras` or `.h5` file for everything that loading it would run.

    Raises:
        CompileError: QAT012 where the file is no Keras model, QAT005 where it unpacks to more than is sensible, QAT013
            where its description holds or names code.
    """
    with path.open("rb") as stream:
        start = stream.read(len(_HDF5))
    if start.startswith(_ZIP):
        config = _zipped(path)
    elif start == _HDF5:
        config = _hdf5(path)
    else:
        hint = "give the file that model.save wrote"
        raise fail("QAT012", f"{path.name} is neither Keras's zip archive nor HDF5", hint=hint)
    found = sorted(set(findings(config)))
    if found:
        raise fail("QAT013", f"loading {path.name} would run code: {'; '.join(found[:5])}", hint=_CUSTOM)


# -- the two forms of file ------------------------------------------------------------------------------------------
def _zipped(path: Path) -> object:
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {m.filename: m.file_size for m in archive.infolist()}
            strange = sorted(sizes.keys() - _LARGEST.keys())
            if strange:  # weights as .npz are pickles, assets are files that a layer reads
                raise fail(
                    "QAT013", f"{path.name} holds {strange[0]}, which is no part of a plain network", hint=_CUSTOM
                )
            for name, limit in _LARGEST.items():
                if sizes.get(name, 0) > limit:
                    message = f"{name} in {path.name} unpacks to {sizes[name]:,} bytes, more than {limit:,}"
                    raise fail("QAT005", message)
            config, metadata = (_json(path, archive.read(n)) for n in ("config.json", "metadata.json"))
            if sizes.get(_WEIGHTS):  # what is empty Keras refuses
                h5py: Any = import_module("h5py")
                with archive.open(_WEIGHTS) as stream, h5py.File(stream, "r") as file:
                    _refuse_outside(path, h5py, file)
    except (*ARCHIVE, KeyError) as error:
        hint = "the file is damaged, or it was not written by model.save"
        raise fail("QAT012", f"{path.name} is not a whole Keras archive: {error}", hint=hint) from error
    version = str(_table(metadata).get("keras_version", "2"))
    if version.partition(".")[0] != "2":
        message = f"{path.name} was written by Keras {version}; tfmot and so quantization-aware training need Keras 2"
        raise fail("QAT012", message, hint="train with tf_keras, or save the network as a SavedModel with model.export")
    return {k: v for k, v in _table(config).items() if k != "compile_config"}  # losses and optimizers are not loaded


def _hdf5(path: Path) -> object:
    h5py: Any = import_module("h5py")
    try:
        with h5py.File(path, "r") as file:
            _refuse_outside(path, h5py, file)
            text = file.attrs.get("model_config")
    except (OSError, RuntimeError, ValueError) as error:
        raise fail("QAT012", f"{path.name} is not a whole HDF5 file: {error}", hint="copy or save it again") from error
    if text is None:
        hint = "save the whole model with model.save, not with model.save_weights"
        raise fail("QAT012", f"{path.name} holds weights alone, no network", hint=hint)
    return _json(path, text)


def _refuse_outside(path: Path, h5py: Any, file: Any) -> None:
    """Refuse a file that has its weights from others: whatever lies on the machine would end in the package."""
    outside = next(_outside(h5py, file), None)
    if outside is not None:
        raise fail("QAT013", f"{path.name} reads {outside}", hint="save the network with all data in one file")


def _outside(h5py: Any, file: Any) -> Iterator[str]:
    """Links and data sets whose content lies in other files."""
    waiting = deque([file])
    seen: set[Any] = set()
    while waiting:
        group = waiting.popleft()
        if group.id in seen:
            continue
        seen.add(group.id)
        for name in group:
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                yield f"{link.filename} through a link"
                continue
            inner = group.get(name)  # None where a link leads nowhere
            if isinstance(inner, h5py.Group):
                waiting.append(inner)
            elif isinstance(inner, h5py.Dataset):
                parts = [part[0] for part in inner.external or ()]
                parts += [source.file_name for source in inner.virtual_sources()] if inner.is_virtual else []
                yield from (f"{part} as the content of {name}" for part in parts if part != ".")


def _table(value: object) -> dict[str, object]:
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}


def _json(path: Path, text: str | bytes) -> object:
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise fail(
            "QAT012", f"the description in {path.name} is not JSON: {error}", hint="save the model again"
        ) from error


# -- the description ------------------------------------------------------------------------------------------------
def findings(config: object) -> Iterator[str]:
    """What in a model's description is code or leads to some; `config` is JSON of any depth."""
    waiting: deque[object] = deque([config])
    while waiting:
        value = waiting.popleft()
        if isinstance(value, list):
            waiting.extend(cast("list[object]", value))
        elif isinstance(value, dict):
            entry = cast("dict[str, object]", value)
            waiting.extend(entry.values())
            yield from _entry(entry)


def _entry(entry: Mapping[str, object]) -> Iterator[str]:
    for key, kind in entry.items():
        if key.endswith("_type") and kind == "lambda":
            yield "a Python function as byte code"
    name, module = entry.get("class_name"), entry.get("module")
    if not isinstance(name, str):
        return
    if name in _HOLD_CODE:
        yield f"a {name.strip('_')} layer"
    elif name in _TF_LAYERS:
        function = _table(entry.get("config")).get("function")
        if not _on_tensors(str(function)):
            yield f"TensorFlow's function {function}"
    if module is None:
        return
    what = entry.get("config") if name == "function" else name
    if name == "function":
        known = module in _FUNCTION_MODULES and bool(_ACTIVATIONS.fullmatch(str(what)))
    else:
        own = f"tf_{module}" if str(module).startswith(_SINCE_KERAS_2_13) else str(module)
        known = own in _MODULES or own.startswith(_PACKAGES)
    if not known:
        yield f"{module}.{what}, which belongs to neither Keras nor tfmot"


def _on_tensors(function: str) -> bool:
    """Whether one of TensorFlow's functions computes on tensors and does nothing else."""
    name = function.removeprefix("compat.v1.")
    return bool(_TF_FUNCTIONS.fullmatch(name)) or name.startswith(_TF_NAMESPACES)

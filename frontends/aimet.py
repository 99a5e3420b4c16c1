"""AIMET: a float ONNX model with an encodings file beside it (versions 0.4 to 0.6.1, 1.0.0, 2.0.0 and 2.1.0).

    0.6.1   {"activation_encodings": {"x": [{"bitwidth": 8, "scale": s, "offset": -128, "min": a, "max": b, ...}]}, ...}
    1.0.0   {"activation_encodings": [{"name": "x", "bw": 8, "scale": [s], "offset": [-128], ...}], ...}
    2.x.0   {"encodings": [{"name": "x", "output_dtype": "int8", "y_scale": s, "y_zero_point": z, "axis": 0}]}

Up to 1.0.0 `offset` is where the integers begin: real = scale * (u + offset) with u from zero. A symmetric encoding is
that of signed integers around zero. From 2.0.0 on they say what QuantizeLinear says. `float` encodings mean that a
tensor is not quantized.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from qatc.compiler.diagnostics import CompileError, fail
from qatc.compiler.frontend import Frontend
from qatc.compiler.graph import QuantGraph
from qatc.compiler.quant import DTYPES, QuantParams, dtype_range
from qatc.frontends.common import external
from qatc.frontends.common.external import Entry
from qatc.frontends.common.records import Record, listed, number, numbers, parsed, record, width

_FLOATS: Final = ("float16", "float32", "bfloat16", "float")
_SECTIONS: Final = ("activation_encodings", "param_encodings")
_BLOCKS: Final = {"PER_BLOCK": "blocks", "LPBQ": "low-power blocks (LPBQ)", "VECTOR": "vectors"}


def is_encodings(data: Any) -> bool:
    """Whether parsed JSON is an AIMET encodings file (SNPE and QNN write their ranges in the same form)."""
    items, sections = listed(data), record(data)
    if items is not None:
        return bool(items) and all("y_scale" in (record(e) or {}) for e in items)
    return sections is not None and any(s in sections for s in ("encodings", *_SECTIONS))


def entries(data: Any) -> Iterator[Entry]:
    """The entries of an encodings file of any version.

    Raises:
        CompileError: QAT007 for what is malformed, QAT103 for formats that are not affine integers.
    """
    for name, encodings in _by_name(data):
        integer = [e for e in encodings if str(e.get("dtype", "int")).lower() != "float"]
        if not integer:
            continue
        made = _as_quantize_linear(name, integer[0]) if "y_scale" in integer[0] else _with_offset(name, integer)
        if made is not None:
            yield made


def _by_name(data: Any) -> Iterator[tuple[str, list[Record]]]:
    """Names and their encodings: a mapping to one encoding a channel, or a list of encodings that hold their name."""
    held = record(data)
    sections = [data] if held is None else [held[s] for s in ("encodings", *_SECTIONS) if s in held]
    for section in sections:
        named = record(section)
        if named is not None:
            for name, value in named.items():
                yield name, [_mapping(name, e) for e in (listed(value) or [value])]
            continue
        items = listed(section)
        if items is None:
            raise fail("QAT007", "the encodings are neither a list nor a mapping")
        for item in items:
            encoding = _mapping("", item)
            stated = encoding.get("name")
            if not isinstance(stated, str):
                raise fail("QAT007", "an encoding has no name", hint="the encodings file is damaged")
            yield stated, [encoding]


def _mapping(name: str, item: Any) -> Record:
    found = record(item)
    if found is None:
        raise fail("QAT007", "an encoding is not a mapping", tensor=name or None, hint="the encodings file is damaged")
    return found


def _with_offset(name: str, encodings: list[Record]) -> Entry:
    """Versions up to 1.0.0: one item a channel, or one with lists."""
    first = encodings[0]
    kind = str(first.get("enc_type", "")).upper()
    if kind in _BLOCKS or "block_size" in first:
        raise _refused(name, _BLOCKS.get(kind, "blocks"))
    bits = width(first, "bitwidth" if "bitwidth" in first else "bw", name)
    if "scale" not in first:  # ranges alone, as SNPE writes them
        return _of_ranges(name, encodings, bits)
    scales = [s for item in encodings for s in numbers(item, "scale", name)]
    offsets = [round(o) for item in encodings for o in numbers(item, "offset", name)]
    steps = (1 << bits) - 1
    if "max" in first and scales[0] > 0:  # strictly symmetric grids leave one integer out
        steps = min(steps, round(number(first, "max", name) / scales[0]) - offsets[0])
    symmetric = str(first.get("is_symmetric", first.get("is_sym", False))).lower() == "true"
    if bits == 32 or (symmetric and len(set(offsets)) == 1):
        low = offsets[0]
        return Entry(name, tuple(scales), (0,), max(low, -(2**31)), min(low + steps, 2**31 - 1))
    return Entry(name, tuple(scales), tuple(-o for o in offsets), 0, steps)


def _of_ranges(name: str, encodings: list[Record], bits: int) -> Entry:
    """A grid, or one a channel, from ends alone."""
    ends = [(number(each, "min", name), number(each, "max", name)) for each in encodings]
    grids = [external.asymmetric(name, *pair, bits) for pair in ends]
    if len({(grid.qmin, grid.qmax) for grid in grids}) > 1:
        raise _refused(name, "channels of which some are symmetric")
    zeros = tuple(grid.zero_point[0] for grid in grids)
    return Entry(name, tuple(grid.scale[0] for grid in grids), zeros, grids[0].qmin, grids[0].qmax)


def _as_quantize_linear(name: str, encoding: Record) -> Entry | None:
    """Versions 2.0.0 and 2.1.0; None for a tensor that stays float."""
    dtype = str(encoding.get("output_dtype", "int8")).lower()
    if dtype in _FLOATS:
        return None
    if dtype not in DTYPES and dtype != "uint32":
        raise _refused(name, dtype)
    if encoding.get("block_size") or "per_block_int_scale" in encoding:
        raise _refused(name, "blocks")
    axis, scales = encoding.get("axis"), numbers(encoding, "y_scale", name)
    has_zero = encoding.get("y_zero_point") is not None
    zeros = [round(z) for z in numbers(encoding, "y_zero_point", name)] if has_zero else [0]
    low, high = (0, 2**31 - 1) if dtype == "uint32" else dtype_range(dtype)
    return Entry(name, tuple(scales), tuple(zeros), low, high, axis if isinstance(axis, int) else None)


def _refused(name: str, what: str) -> CompileError:
    return fail(
        "QAT103", f"the encoding is one of {what}", tensor=name, hint="quantize to integers per tensor or channel"
    )


def read(path: Path, graph: QuantGraph) -> dict[str, QuantParams]:
    """The parameters that an encodings file holds for tensors of `graph`; errors as `ranges.read` has them."""
    data = parsed(path)
    if not is_encodings(data):
        raise fail("QAT007", f"{path.name} is not an AIMET encodings file", hint="other files are read with -m ranges")
    return external.resolve(graph, external.collected(path, lambda: entries(data)), path)


FRONTEND = Frontend(
    name="aimet",
    description="a float model with an AIMET encodings file (--ranges FILE)",
    recognize=lambda graph, producer: None,  # the model is float: the file says it all (`ranges` reads it too)
    normalize=external.normalize,
    confidence=0,
    exporters=(
        "AIMET 2.42 (PyTorch and ONNX; encodings 0.6.1, 1.0.0, 2.0.0 and 2.1.0)",
        "in their documented form: encodings 0.4.0 and 0.5.0",
    ),
    limits=("block-wise, LPBQ and vector encodings",),
    read=read,
)

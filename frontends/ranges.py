"""Ranges: a float ONNX model with the ranges of its tensors in a file beside it (`--ranges FILE`).

What is read, recognized from its content:

    AIMET, SNPE, QNN        JSON      activation_encodings, param_encodings (see `aimet`)
    PPQ                     JSON      configs and values; quant_info (PPL CUDA); act_quant_info (TensorRT)
    MQBench                 JSON      tensorrt, ppl, vitis; text "tensor: largest magnitude" (PPL CUDA)
    sophgo-mq               JSON      sophgo_tpu
    Vitis AI                JSON      param, input and output with [bits, binary point]
    qdq-translator          JSON      int8_tensor_scales
    any                     JSON      {tensor: [min, max]}, or {tensor: {min, max} or {scale, zero_point, ...}}
    tpu-mlir, sophgo-mq     text      calibration tables "tensor threshold min max", with #weight_scale and #int4_th
    TensorRT                text      calibration caches "TRT-...": float32 scales in hexadecimal
    Tengine                 text      "tensor scale zero_point"
    PPQ (NXP)               ONNX      initializers <tensor>_min and <tensor>_max: give the model itself as FILE
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx

from qatc.compiler.diagnostics import fail, printable
from qatc.compiler.frontend import Frontend, FrontendOptions
from qatc.compiler.graph import QuantGraph
from qatc.compiler.model.tensors import TensorError, TensorReader
from qatc.compiler.model_io import read_proto
from qatc.compiler.quant import QuantParams
from qatc.frontends import aimet, sophgo
from qatc.frontends.common import external
from qatc.frontends.common.external import Entry
from qatc.frontends.common.records import Record, items, listed, number, numbers, parsed, record, width

_SOPHGO: Final = "sophgo biases"
_CACHE_LINE: Final = re.compile(r"^(.+): *(?:0x)?([0-9a-fA-F]{1,8})$")
_MAGNITUDE: Final = re.compile(r"[-+0-9.eE]+")
_NO_GRID: Final = ("FP32", "OVERLAPPED", "SLAVE", "DEQUANTIZED")  # states of PPQ


def read(path: Path, graph: QuantGraph) -> dict[str, QuantParams]:
    """The parameters that a file holds for tensors of `graph`, by their names in it (for `FrontendOptions.external`).

    Raises:
        CompileError: QAT007 where the file cannot be read or names no tensor of the model, QAT103 where its format is
            not affine integer quantization. Entries that name no tensor, or are illegal, go to `graph.diagnostics`.
    """
    params = external.resolve(graph, parse(path), path)
    graph.evidence[_SOPHGO] = _is_sophgo(path)
    return params


def _is_sophgo(path: Path) -> bool:
    """Whether sophgo-mq wrote the file: then biases are rounded, as it trains them."""
    if path.suffix.lower() == ".onnx":
        return False
    with path.open(encoding="utf-8-sig") as stream:
        start = stream.read(4096)
    return "work_mode:" in start or '"sophgo_tpu"' in start


def parse(path: Path) -> list[Entry]:
    """The entries of a ranges file of any known format; CompileError as for `read`."""
    if path.suffix.lower() == ".onnx":
        return external.collected(path, lambda: _extremes(path))
    if path.suffix.lower() == ".toml":
        hint = f"give it as --quant-range {printable(str(path))}"
        raise fail("QAT007", f"{printable(path.name)} is TOML, which states ranges of integers", hint=hint)
    data = parsed(path)
    found = external.collected(path, lambda: _text(data) if isinstance(data, str) else _json(data))
    if not found:
        raise fail("QAT007", f"{path.name} holds no ranges in a form that is known", hint=external.FORMATS)
    return found


# -- JSON ---------------------------------------------------------------------------------------------------------


def _json(data: Any) -> Iterable[Entry]:
    if aimet.is_encodings(data):
        return aimet.entries(data)
    held = record(data)
    if held is None:
        raise fail("QAT007", "the ranges are not a mapping from tensors", hint=external.FORMATS)
    for key, reader in _BY_KEY.items():
        section = record(held.get(key))
        if section is not None:
            return reader(section, held)
    return _generic(held)


def _ppq(configs: Record, data: Record) -> Iterator[Entry]:
    """PPQ's own form: operators, their variables, values by hash; what follows another has no grid of its own."""
    values = record(data.get("values")) or {}
    done: set[str] = set()
    for variables in configs.values():
        for name, config in items(variables):
            value = record(values.get(str(config.get("hash"))))
            if value is None or name in done or config.get("state") in _NO_GRID:
                continue
            done.add(name)
            yield _affine(name, value, config, "quant_min", "quant_max")


def _ppl_cuda(variables: Record, data: Record) -> Iterator[Entry]:
    for name, config in items(variables):
        if config.get("quant_flag", True):
            yield _affine(name, config, config, "q_min", "q_max")


def _affine(name: str, value: Record, config: Record, low: str, high: str) -> Entry:
    scales, zeros = numbers(value, "scale", name), [round(z) for z in numbers(value, "zero_point", name, 0.0)]
    bounds = [round(number(config, key, name)) for key in (low, high)]
    if len(set(zeros)) == 1:
        zeros = zeros[:1]
    return Entry(name, tuple(scales), tuple(zeros), bounds[0], bounds[1])


def _magnitudes(section: Record, data: Record) -> Iterator[Entry]:
    """{tensor: 127 * scale} of TensorRT, as PPQ writes it."""
    for name in section:
        yield external.symmetric(name, number(section, name, name))


def _mqbench_tensorrt(section: Record, data: Record) -> Iterator[Entry]:
    """Trained on -127..127: the magnitude is 127 steps."""
    ranges = record(section.get("blob_range")) or {}
    for name in ranges:
        largest = number(ranges, name, name)
        yield Entry(name, (largest / 127,), (0,), -127, 127)


def _mqbench_ppl(section: Record, data: Record) -> Iterator[Entry]:
    """The zero point is written cut off, the range is not: it tells the trained one."""
    for name, item in items(section):
        step, bits = numbers(item, "step", name), width(item, "bit", name, 8)
        low = 0 if item.get("type") in ("biased", "uint") else -(1 << (bits - 1))
        if item.get("min") is None or len(step) > 1:
            zeros = [round(z) for z in numbers(item, "zero_point", name, 0.0)]
        else:
            zeros = [round(low - m / s) for m, s in zip(numbers(item, "min", name), step, strict=False)]
        yield Entry(name, tuple(step), tuple(zeros), low, low + (1 << bits) - 1)


def _sophgo(section: Record, data: Record) -> Iterator[Entry]:
    """Activations as <name>_8 or <name>_4 with their trained range, weights with a step a channel."""
    for name, item in items(section):
        written = width(item, "bit", name, 8)
        bits = written + written % 2  # -127..127 is written as 7 bits: the logarithm of 255, cut off
        if isinstance(item.get("step"), list):
            half = 1 << (bits - 1)
            yield Entry(name, tuple(numbers(item, "step", name)), (0,), bits - written - half, half - 1)
            continue
        low, high = number(item, "min", name), number(item, "max", name)
        if low < high:
            yield external.asymmetric(name.removesuffix(f"_{written}"), low, high, bits)


def _mqbench_vitis(section: Record, data: Record) -> Iterator[Entry]:
    for name, item in items(section):
        yield Entry(name, tuple(numbers(item, "scale", name)))


def _vitis(section: Record, data: Record) -> Iterator[Entry]:
    """quant_info.json: [bits, binary point] a tensor, scales 2^-point."""
    done: set[str] = set()
    for key in ("param", "output", "input"):
        for name, pairs in (record(data.get(key)) or {}).items():
            first = next(iter(listed(pairs) or ()), None)
            if name in done or len(listed(first) or ()) < 2:
                continue
            done.add(name)
            stated = numbers({"point": first}, "point", name)
            if len(stated) < 2:
                raise fail("QAT007", "an entry has no bits and binary point", tensor=name, hint="the file is damaged")
            bits, point = stated[:2]
            half = 1 << (width({"bits": bits}, "bits", name) - 1)
            yield Entry(name, (2.0**-point,), (0,), -half, half - 1)


def _scales(section: Record, data: Record) -> Iterator[Entry]:
    for name in section:
        yield Entry(name, (number(section, name, name),))


def _nnie(section: Record, data: Record) -> Iterator[Entry]:
    raise fail("QAT103", "the ranges are of NNIE's logarithmic format", hint="train with an affine backend")


_Section = Callable[[Record, Record], Iterable[Entry]]
_BY_KEY: Final[dict[str, _Section]] = {
    "configs": _ppq,
    "quant_info": _ppl_cuda,
    "act_quant_info": _magnitudes,
    "tensorrt": _mqbench_tensorrt,
    "ppl": _mqbench_ppl,
    "sophgo_tpu": _sophgo,
    "vitis": _mqbench_vitis,
    "int8_tensor_scales": _scales,
    "nnie": _nnie,
    "param": _vitis,
}


def _generic(data: Record) -> Iterator[Entry]:
    """{tensor: [min, max]}, {tensor: {min, max}}, {tensor: {scale, zero_point, qmin, qmax, axis}}; else no range."""
    for name, value in data.items():
        item = record(value)
        if len(listed(value) or ()) == 2:
            ends = numbers({"range": value}, "range", name)
            if len(ends) != 2:
                raise fail("QAT007", f"a range has {len(ends)} ends", tensor=name, hint=external.FORMATS)
            yield external.asymmetric(name, ends[0], ends[1])
        elif item is not None and "scale" in item:
            yield _stated(name, item)
        elif item is not None:
            lowest = next((k for k in ("min", "tensor_min", "lowest") if k in item), "")
            highest = next((k for k in ("max", "tensor_max", "highest") if k in item), "")
            if lowest and highest:
                yield external.asymmetric(name, number(item, lowest, name), number(item, highest, name))


def _stated(name: str, item: Record) -> Entry:
    """{scale, zero_point, qmin, qmax, axis}; without a range, int8, or uint8 where a zero point needs it."""
    zeros = tuple(round(z) for z in numbers(item, "zero_point", name, 0.0))
    low, high = (0, 255) if max(zeros) > 127 else (-128, 127)
    low, high = round(number(item, "qmin", name, low)), round(number(item, "qmax", name, high))
    axis = item.get("axis")
    return Entry(name, tuple(numbers(item, "scale", name)), zeros, low, high, axis if isinstance(axis, int) else None)


# -- text ---------------------------------------------------------------------------------------------------------


def _text(text: str) -> Iterable[Entry]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if lines and lines[0].startswith("TRT-"):
        return _cache(lines[1:])
    if lines and all(map(_states_magnitude, lines)):
        return _largest(lines)
    return _table(lines)


def _cache(lines: list[str]) -> Iterator[Entry]:
    """name: the bits of a float32 scale, most significant first, leading zeros left out by some writers."""
    for line in lines:
        match = _CACHE_LINE.match(line)
        if match is None:
            raise fail(
                "QAT007",
                f"the calibration cache holds the line {line[:60]!r}",
                hint="expected <tensor>: <8 hexadecimal digits>",
            )
        scale = struct.unpack(">f", bytes.fromhex(match[2].rjust(8, "0")))[0]
        if scale > 0 and np.isfinite(scale):  # zero: the tensor was never seen
            yield Entry(match[1], (float(scale),))


def _states_magnitude(line: str) -> bool:
    name, _, value = line.rpartition(":")
    return bool(name.strip()) and _MAGNITUDE.fullmatch(value.strip()) is not None


def _largest(lines: list[str]) -> Iterator[Entry]:
    """tensor: largest magnitude. The trained zero point, if there was one, is lost; the grid is symmetric."""
    for line in lines:
        name, _, value = line.rpartition(":")
        largest = _number(value, name)
        if largest > 0:
            yield external.symmetric(name.strip(), largest)


def _number(word: str, name: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise fail("QAT007", f"{word!r} is not a number", tensor=name, hint="the table is damaged")
    return value


def _table(lines: list[str]) -> Iterator[Entry]:
    """Calibration tables of tpu-mlir (threshold, min, max) and Tengine's (scale, zero point).

    A table that training wrote holds the trained range in min and max; one from calibration holds what was observed,
    and the threshold is what counts.
    """
    trained = any("work_mode:" in line for line in lines if line.startswith("#"))
    block, done = "", set[str]()
    for line in lines:
        if line.startswith("#"):
            block = next((b for b in ("weight_scale", "int4_th", "asym_op", "int4_op") if line.startswith(f"#{b}")), "")
            continue
        words = line.split()
        entry = _weight_line(words) if block == "weight_scale" else None
        if entry is None and block in ("", "int4_th"):
            entry = _table_line(words, 4 if block == "int4_th" else 8, trained)
        if entry is not None and entry.name not in done:
            done.add(entry.name)
            yield entry


def _weight_line(words: list[str]) -> Entry | None:
    stated = words[1] if len(words) > 2 else ""
    count = int(stated) if stated.isascii() and stated.isdecimal() and len(stated) < 10 else len(words)
    if not 0 < count <= len(words) - 2:
        raise fail("QAT007", f"the weight scales of {words[0]} are cut off", hint="the table is damaged")
    return Entry(words[0], tuple(_number(w, words[0]) for w in words[2 : 2 + count]))


def _table_line(words: list[str], bits: int, trained: bool) -> Entry | None:
    if len(words) == 3:
        return Entry(words[0], (_number(words[1], words[0]),), (round(_number(words[2], words[0])),), 0, 255)
    if len(words) != 4:
        return None
    threshold, low, high = (_number(w, words[0]) for w in words[1:])
    if low == high:
        return None
    if trained:
        return external.asymmetric(words[0], low, high, bits)
    if low >= 0:
        return Entry(words[0], (threshold / ((1 << bits) - 1),), (0,), 0, (1 << bits) - 1)
    return external.symmetric(words[0], threshold, bits)


# -- ONNX ---------------------------------------------------------------------------------------------------------


def _extremes(path: Path) -> Iterator[Entry]:
    """Initializers <tensor>_min and <tensor>_max of PPQ's NXP exporter, which no node reads."""
    model, _ = read_proto(path)
    reader = TensorReader(path.parent)
    small = {t.name: t for t in model.graph.initializer if len(t.dims) == 0 or list(t.dims) == [1]}
    for name, tensor in small.items():
        base = name.removesuffix("_min")
        if base != name and f"{base}_max" in small:
            low, high = (_single(reader, t) for t in (tensor, small[f"{base}_max"]))
            if low < high:
                yield external.asymmetric(base, low, high)


def _single(reader: TensorReader, tensor: onnx.TensorProto) -> float:
    try:
        value = reader.array(tensor)
    except TensorError as bad:
        raise fail("QAT007", bad.message, tensor=tensor.name, hint=bad.hint) from bad
    if value.dtype.kind not in "fiu" or not np.isfinite(value).all():
        raise fail("QAT007", "the end of the range is no finite number", tensor=tensor.name)
    return float(value.reshape(-1)[0])


# -- the dialect --------------------------------------------------------------------------------------------------


def _normalize(graph: QuantGraph, options: FrontendOptions) -> None:
    external.normalize(graph, options)
    if graph.evidence.get(_SOPHGO):
        sophgo.round_biases(graph)


FRONTEND = Frontend(
    name="ranges",
    description="a float model with a file of ranges: JSON, text table or calibration cache (--ranges FILE)",
    recognize=lambda graph, producer: None,  # the model is float: only the file tells
    normalize=_normalize,
    confidence=1,
    exporters=(
        "PPQ 0.6 (PPL, TensorRT, RKNN and Tengine) and its main branch",
        "MQBench 0.0.7 (clip ranges)",
        "sophgo-mq and tpu-mlir (calibration table)",
        "TensorRT (calibration cache; Paddle2ONNX 1.2 writes one, too)",
        "in their documented form: SNPE, QNN, Vitis AI, Tengine",
    ),
    limits=("the ranges stand for what was trained as far as the file goes: magnitudes alone lose zero points",),
    read=read,
)

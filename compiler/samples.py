"""Sample inputs: the user's own files, or generated ones that spread over the input's quantized range.

Everything is deterministic: equal ports, count and seed give equal arrays on every machine.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from qatc.compiler.budget import active
from qatc.compiler.damaged import reason
from qatc.compiler.diagnostics import CompileError, Diagnostic, Diagnostics, fail, printable
from qatc.compiler.graph import QuantGraph, rank_of, value_of
from qatc.compiler.npy import mapped_npy
from qatc.compiler.quant import Array
from qatc.compiler.result import Port

Feeds = dict[str, Array]

_FLOATS: Final = frozenset({"float16", "float32", "float64"})
_SIZES: Final = (64, 32, 224, 128, 16, 8, 4, 1)
# Operators that pass an index on to the Gather that uses it.
_KEEP_INDICES: Final = frozenset({"Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape", "Flatten", "Transpose"})


def pinned_shape(port: Port, shapes: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
    """The concrete shape of a sample for `port`: pinned by `shapes` (option -s), else the port's own with batch 1.

    Raises:
        CompileError: QAT009 where a dimension other than the first is symbolic or the rank is unknown and nothing is
            pinned, QAT007 where what is pinned contradicts the model.
    """
    given = shapes.get(port.name)
    if given is not None:
        fits = port.shape is None or (
            len(given) == len(port.shape)
            and all(not isinstance(d, int) or d == g for d, g in zip(port.shape, given, strict=True))
        )
        if not fits or any(d <= 0 for d in given):
            raise fail(
                "QAT007",
                f"the shape {list(given)} does not fit input {printable(port.name)}, declared as {describe(port)}",
                hint="give every dimension as a positive number; fixed dimensions cannot be changed",
            )
        return tuple(given)
    option = f"-s {port.name}={','.join(_example(port))}"
    if port.shape is None:
        raise fail("QAT009", "the input has no declared shape", tensor=port.name, hint=f"pin it: {option}")
    open_ = _open_dimensions(port)
    if open_:
        axis, dim = next(iter(open_.items()))
        raise fail(
            "QAT009",
            f"dimension {axis}{f' ({printable(dim)})' if dim else ''} of the input is symbolic",
            tensor=port.name,
            hint=f"pin it: {option}",
        )
    return tuple(d if isinstance(d, int) else 1 for d in port.shape)


def sizes_to_try(ports: Sequence[Port], shapes: Mapping[str, Sequence[int]]) -> Iterator[Mapping[str, Sequence[int]]]:
    """Shapes to try for inputs whose sizes (beside the batch) the model leaves open; `shapes` alone where none does.

    A network does not say which sizes it takes: what it halves and what it adds must fit, and whoever knows whether
    they do is the network, run. The sizes are those that most networks take, common ones first.
    """
    wide = [p for p in ports if p.name not in shapes and p.shape is not None and _open_dimensions(p)]
    if not wide:
        yield shapes
        return
    for size in _SIZES:
        found = dict(shapes)
        for port in wide:
            open_ = _open_dimensions(port)
            found[port.name] = [
                d if isinstance(d, int) else size if i in open_ else 1 for i, d in enumerate(port.shape or ())
            ]
        yield found


def _open_dimensions(port: Port) -> dict[int, str | None]:
    """The symbolic dimensions of a port beside the first and its namesakes, with their names."""
    batch = port.shape[0] if port.shape and not isinstance(port.shape[0], int) else None
    found = {i: d for i, d in enumerate(port.shape or ()) if i and not isinstance(d, int)}
    return {i: d for i, d in found.items() if d is None or d != batch}


def _example(port: Port) -> list[str]:
    if port.shape is None:
        return ["1", "3", "224", "224"]
    return [str(d) if isinstance(d, int) else ("1" if i == 0 else "<number>") for i, d in enumerate(port.shape)]


def describe(port: Port) -> str:
    """A port's type and shape for messages: `float32 [N, 3, 224, 224]`."""
    if port.shape is None:
        return f"{port.dtype} of unknown shape"
    return f"{port.dtype} [{', '.join('?' if d is None else str(d) for d in port.shape)}]"


# -- generated samples --------------------------------------------------------------------------------------------


def generate(
    ports: Sequence[Port],
    count: int = 1,
    seed: int = 0,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    limits: Mapping[str, int] | None = None,
) -> list[Feeds]:
    """`count` random samples.

    A float input with QuantParams is uniform over the reals that its grid covers, one without is standard normal; a
    quantized integer input is uniform over its grid; other integers lie in [0, limit), 2 where no limit is known.

    Args:
        ports: the graph's inputs.
        count: how many samples.
        seed: what the numbers depend on, beside the input's name and the sample's index.
        shapes: input name -> pinned shape.
        limits: integer input name -> how many values are legal (see `index_limits`).

    Raises:
        CompileError: QAT009 for symbolic dimensions beside the batch that are not pinned, all inputs at once.
    """
    found = Diagnostics()
    concrete: dict[str, tuple[int, ...]] = {}
    for port in ports:
        found_here = _try_shape(port, shapes or {}, found)
        if found_here is not None:
            concrete[port.name] = found_here
    found.check()
    held = count * sum(math.prod(concrete[p.name]) * np.dtype(p.dtype).itemsize for p in ports)
    # drawing takes as much again, and the outputs are held beside them
    what = "generating the sample" if count == 1 else f"generating {count} samples"
    active().ask(2 * held, what, "use fewer (--samples), or pin smaller ones: -s NAME=1,3,224,224")
    return [
        {p.name: np.asarray(_random(p, concrete[p.name], (seed, index), (limits or {}).get(p.name, 2))) for p in ports}
        for index in range(count)
    ]


def _try_shape(port: Port, shapes: Mapping[str, Sequence[int]], found: Diagnostics) -> tuple[int, ...] | None:
    try:
        return pinned_shape(port, shapes)
    except CompileError as error:
        for diagnostic in error.diagnostics:
            found.add(diagnostic)
        return None


def _random(port: Port, shape: tuple[int, ...], seed: tuple[int, int], limit: int) -> Array:
    source = np.random.Generator(np.random.PCG64([*seed, zlib.crc32(port.name.encode("utf-8"))]))
    if port.dtype in _FLOATS:
        if port.params is None:
            return source.standard_normal(shape, np.float32).astype(port.dtype)
        rank = len(shape)
        scale, zero = port.params.scale_array(rank), port.params.zero_array(rank)
        low, high = (port.params.qmin - zero) * scale, (port.params.qmax - zero) * scale
        return (low + source.random(shape, np.float32) * (high - low)).astype(port.dtype)
    if port.dtype == "bool":
        return source.integers(0, 2, shape).astype(np.bool_)
    if port.params is not None:
        return source.integers(port.params.qmin, port.params.qmax + 1, shape).astype(port.dtype)
    return source.integers(0, max(1, limit), shape).astype(port.dtype)


def index_limits(graph: QuantGraph) -> dict[str, int]:
    """How many values are legal for each integer input that indexes a constant table (token ids of an embedding)."""
    found: dict[str, int] = {}
    for port in graph.inputs:
        waiting, seen = [port], {id(port)}
        while waiting:
            tensor = waiting.pop()
            for node in graph.consumers(tensor):
                if node.op in ("Gather", "GatherND") and node.inputs[1] is tensor:
                    rows = _rows(node.inputs[0], node.attr("axis", 0))
                    if rows:
                        found[port.name] = min(rows, found.get(port.name, rows))
                elif node.op in _KEEP_INDICES and node.inputs[0] is tensor and id(node.outputs[0]) not in seen:
                    seen.add(id(node.outputs[0]))
                    waiting.append(node.outputs[0])  # type: ignore[arg-type]
    return found


def _rows(table: Any, axis: int) -> int | None:
    value, rank = value_of(table), rank_of(table)
    return int(value.shape[axis]) if value is not None and rank and -rank <= axis < rank else None


# -- the user's own samples ---------------------------------------------------------------------------------------


def load(
    ports: Sequence[Port], files: Sequence[tuple[str, Path]], shapes: Mapping[str, Sequence[int]] | None = None
) -> list[Feeds]:
    """Samples from .npy files: the k-th file named for each input makes the k-th sample.

    Raises:
        CompileError: QAT007 with exit code 2 for inputs that the model does not have; QAT008 for missing ones,
            unreadable files, wrong dtypes or shapes, all at once.
    """
    found = Diagnostics()
    known = {p.name: p for p in ports}
    arrays: dict[str, list[Array]] = {name: [] for name in known}
    listed = ", ".join(printable(n) for n in known)
    strange = [
        Diagnostic("QAT007", f"the model has no input {printable(name)}", hint=f"its inputs are {listed}")
        for name in dict.fromkeys(name for name, _ in files)
        if name not in known
    ]
    if strange:
        raise CompileError(strange, 2)
    for name, path in files:
        array = read_array(path, found)
        if array is not None and check_fits(known[name], array, found, str(path), shapes or {}):
            arrays[name].append(as_port(known[name], array))
    counts = {name: len(each) for name, each in arrays.items()}
    if not found.errors and len(set(counts.values())) > 1:
        listed = ", ".join(f"{printable(n)}: {c}" for n, c in counts.items())
        found.error(
            "QAT008",
            f"every input needs the same number of files, found {listed}",
            hint="give --input NAME=FILE.npy once per input and sample",
        )
    found.check()
    return [{name: each[i] for name, each in arrays.items()} for i in range(next(iter(counts.values()), 0))]


def read_array(path: Path, found: Diagnostics) -> Array | None:
    """The array of a .npy file, memory-mapped; a QAT008 in `found` and None where it cannot be read."""
    try:
        return mapped_npy(path)
    except (OSError, ValueError) as error:
        message = f"cannot read {printable(str(path))}: {reason(error)}"
        found.error("QAT008", message, hint="save the array with numpy.save(path, array)")
        return None


def check_fits(
    port: Port, array: Array, found: Diagnostics, where: str, shapes: Mapping[str, Sequence[int]] | None = None
) -> bool:
    """Whether `array` can be fed to `port`; what is wrong goes to `found` as QAT008."""
    problem = next(_problems(port, array, (shapes or {}).get(port.name)), None)
    if problem is None:
        return True
    found.error(
        "QAT008",
        f"{printable(where)} holds {array.dtype} {list(array.shape)}: {problem}",
        tensor=port.name,
        hint=f"the input is {describe(port)}",
    )
    return False


def _problems(port: Port, array: Array, pinned: Sequence[int] | None) -> Iterator[str]:
    expected: Sequence[int | str | None] | None = pinned if pinned is not None else port.shape
    if expected is not None and array.ndim != len(expected):
        yield f"the rank is {array.ndim}, not {len(expected)}"
    elif expected is not None:
        for axis, (want, have) in enumerate(zip(expected, array.shape, strict=True)):
            if isinstance(want, int) and want != have:
                yield f"dimension {axis} is {have}, not {want}"
    if array.size == 0:
        yield "it is empty"
    target = np.dtype(port.dtype)
    if target.kind == "f":
        if array.dtype.kind != "f":
            yield f"the element type is not {port.dtype}"
        elif not np.isfinite(as_port(port, array)).all():
            yield f"it has elements that are NaN, infinite or beyond {port.dtype}"
    elif target.kind in "iu":
        if array.dtype.kind not in "iu":
            yield f"the element type is not {port.dtype}"
        elif array.size and not np.iinfo(target).min <= int(array.min()) <= int(array.max()) <= np.iinfo(target).max:
            yield f"it has values outside {port.dtype}"
    elif array.dtype != target:
        yield f"the element type is not {port.dtype}"


def as_port(port: Port, array: Array) -> Array:
    """`array` (checked by `check_fits`) as a contiguous array of the port's element type, in memory."""
    with np.errstate(over="ignore"):  # the check tells it
        return np.asarray(array, np.dtype(port.dtype), order="C")  # which, unlike ascontiguousarray, keeps a rank of 0

"""Numbers, names and lists as people read them; the same on the terminal and in report.html."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np

from qatc.compiler.diagnostics import counted, escaped, printable
from qatc.compiler.quant import QuantParams
from qatc.compiler.result import Island, Json, Port, TensorCheck

_STEPS: Final = (("", 1), ("k", 10**3), ("M", 10**6), ("G", 10**9), ("T", 10**12))
_LONGEST: Final = 600  # characters of a message
_NINES: Final = 6  # decimals tried before a share just below one is shown as "more than"


def scaled(number: float, unit: str = "") -> str:
    """`999`, `12.3 k`, `4.56 G`: three digits and a decimal prefix; `unit` follows the prefix."""
    for index, (prefix, step) in enumerate(_STEPS):
        value = number / step
        last = index == len(_STEPS) - 1
        digits = 0 if not index and float(number).is_integer() else 2 if value < 9.995 else 1 if value < 99.95 else 0
        if last or round(value, digits) < 1000:
            return f"{value:.{digits}f} {prefix}{unit}".rstrip()
    raise AssertionError("unreachable")  # pragma: no cover


def percent(share: float) -> str:
    """`share` as a percentage that never claims all or nothing where it is not: `100%` is exact, so is `0%`."""
    if share in (0.0, 1.0) or not math.isfinite(share):
        return f"{share:.0%}" if math.isfinite(share) else "?"
    if share > 1:  # a difference may be larger than what it is a share of
        return f"{share:,.0%}" if share >= 2 else f"{share:.1%}"
    for decimals in range(1 if 0.1 <= share < 0.999 else 2, _NINES + 1):
        text = f"{share * 100:.{decimals}f}"
        if 0 < float(text) < 100:
            return f"{text}%"
    return f">{100 - 10**-_NINES:.{_NINES}f}%" if share > 0.5 else f"<{10**-_NINES:.{_NINES}f}%"


def decibels(value: float) -> str:
    """A ratio in dB, `equal` where nothing differs at all."""
    return "equal" if value == math.inf else "?" if not math.isfinite(value) else f"{value:.1f} dB"


def times(before: int, after: int) -> str:
    """How sizes compare: `3.6 times smaller`, `1.2 times larger`, `about the same`."""
    if not before or not after:
        return ""
    ratio = f"{max(before, after) / min(before, after):.1f}"
    if ratio == "1.0":
        return "about the same"
    return f"{ratio} times {'smaller' if before > after else 'larger'}"


def prose(message: str) -> str:
    """A sentence that may quote a file: made safe for a terminal, and cut in the middle where a name is a book."""
    safe = escaped(message)
    half = _LONGEST // 2
    return safe if len(safe) <= _LONGEST else f"{safe[:half]} ... {safe[-half:]}"


def kinds(counts: Mapping[str, int], shown: int = 5) -> str:
    """Operator counts, the most frequent first: `9 QLinearConv, 3 QLinearAdd, 5 others`."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    parts = [f"{number:,} {printable(kind)}" for kind, number in ordered[:shown]]
    rest = sum(number for _, number in ordered[shown:])
    return ", ".join([*parts, counted(rest, "other")] if rest else parts)


def shape(port: Port) -> str:
    """A port's type as people write it: `float32[batch,3,224,224]`."""
    if port.shape is None:
        return f"{port.dtype}[...]"
    return f"{port.dtype}[{','.join('?' if d is None else printable(str(d)) for d in port.shape)}]"


def number(value: float) -> str:
    """A float32 number in the fewest digits that read back as it."""
    return str(np.float32(value))


def finite(value: float) -> float | None:
    """A number as JSON can hold it: infinity and NaN become null."""
    return float(value) if math.isfinite(value) else None


def grid(params: QuantParams) -> str:
    """Quantization parameters in a few words: `uint8, scale 0.02, zero point 128`."""
    scales, zeros = sorted(set(params.scale)), sorted(set(params.zero_point))
    scale = number(scales[0]) + (f" to {number(scales[-1])}" if len(scales) > 1 else "")
    zero = str(zeros[0]) + (f" to {zeros[-1]}" if len(zeros) > 1 else "")
    span = "" if params.is_full_range else f" in [{params.qmin}, {params.qmax}]"
    channels = "" if params.axis is None else f", {counted(len(params.scale), 'channel')} along axis {params.axis}"
    return f"{params.dtype}{span}, scale {scale}, zero point {zero}{channels}"


def islands_by_reason(islands: Iterable[Island]) -> list[tuple[str, list[Island]]]:
    """Islands grouped by their reason: the costliest group first, then the largest, then in the order of execution."""
    groups: dict[str, list[Island]] = {}
    for island in islands:
        groups.setdefault(island.reason, []).append(island)
    return sorted(groups.items(), key=lambda group: (-sum(i.macs for i in group[1]), -len(group[1])))


def equal_share(checks: Sequence[TensorCheck]) -> float | None:
    """Share of the elements that are equal, 0..1, floats within tolerance left out; None where nothing is counted."""
    counted_in_lsb = sum(check.elements - check.rounded for check in checks)
    return sum(check.histogram.get(0, 0) for check in checks) / counted_in_lsb if counted_in_lsb else None


def floats(checks: Sequence[TensorCheck], mark: str = ",") -> str:
    """What is added, behind `mark`, to what is said of integers where floats are not all equal bit for bit."""
    return f"{mark} floats within tolerance" if any(check.rounded for check in checks) else ""


def mean_lsb(check: TensorCheck) -> float:
    """The mean difference of a tensor's elements in LSB."""
    return sum(lsb * number for lsb, number in check.histogram.items()) / check.elements if check.elements else 0.0


def option_flags(options: Mapping[str, Json]) -> list[str]:
    """The command-line options that ask for `options` (names of `compile_model`'s parameters), in a fixed order."""
    flags: list[str] = []
    for key, flag in _FLAGS.items():
        value = options.get(key)
        if value is None or value is False or value == "" or value == _DEFAULTS.get(key):
            continue
        if value is True:
            flags.append(flag)
        else:
            flags += [part for argument in _arguments(value) for part in (flag, argument)]
    if options.get("verify") is False:
        flags.append("--no-verify")
    return flags


def _arguments(value: Json) -> list[str]:
    """What stands behind an option, each time that it is given."""
    if isinstance(value, Mapping):
        return [f"{name}={_sizes(item)}" for name, item in value.items()]
    items = _list(value)
    return [str(value)] if items is None else ["=".join(map(str, _list(item) or [item])) for item in items]


def _sizes(value: Json) -> str:
    """A shape as `-s` takes it; other values as they are."""
    dims = _list(value)
    return str(value) if dims is None else ",".join("?" if d is None else str(d) for d in dims)


def _list(value: Json) -> Sequence[Json] | None:
    return value if isinstance(value, Sequence) and not isinstance(value, str) else None


_FLAGS: Final = {
    "qat": "-a",
    "dialect": "-m",
    "target": "-t",
    "options": "-p",
    "shapes": "-s",
    "inputs": "--input",
    "samples": "--samples",
    "seed": "--seed",
    "calibrate": "--calibrate",
    "calibration_method": "--calibration-method",
    "quant_range": "--quant-range",
    "ranges": "--ranges",
    "io": "--io",
    "require_integer": "--require-integer",
    "tolerance": "--tolerance",
    "arithmetic": "--arithmetic",
    "golden": "--golden",
    "golden_header": "--golden-header",
    "explain": "--explain",
}
_DEFAULTS: Final[Mapping[str, Json]] = {
    "dialect": "auto",
    "target": "onnx",
    "samples": 1,
    "seed": 0,
    "calibration_method": "minmax",
    "io": "float",
}

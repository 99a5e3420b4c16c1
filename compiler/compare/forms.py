"""Fingerprints of a tensor that is right in another form: signedness, shifts, byte order, layout, order of channels.

Each hypothesis says what the dump would hold if it were true; what matches the dump best is the cause. They know
nothing of how the tensor is computed (`faults.py` does).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, permutations
from typing import Final

import numpy as np

from qatc.compiler.compare.interpret import Place
from qatc.compiler.layout import CHANNELS_FIRST
from qatc.compiler.quant import Array, QuantParams, dtype_range

_MOST_RANK: Final = 5
_BLOCKS: Final = (2, 4, 8, 16, 32, 64)
_PROBES: Final = 4096  # elements that tell most wrong layouts apart
_MOST_SHIFTS: Final = 2
_LEAST: Final = 16  # elements that differ where the end of a tensor is taken for unwritten


@dataclass(frozen=True)
class Guess:
    """A hypothesis: `kind` and `detail` as in `Cause`, and the tensor that the dump would hold, in the graph's axes."""

    kind: str
    detail: str
    value: Array


@dataclass(frozen=True)
class Score:
    """How well a guess does: the share of equal elements, and how much of the differences it explains (those that it
    would make where there are none count against it; 1 is all, 0 or less nothing).
    """

    equal: float
    explained: float


def score(guess: Array, base: Array, found: Array) -> Score:
    """Compare a guess with what was found, where `base` is what should have been."""
    before, after = int(np.count_nonzero(base != found)), int(np.count_nonzero(guess != found))
    return Score(1 - after / found.size if found.size else 1.0, 1 - after / before if before else 0.0)


# -- numbers --------------------------------------------------------------------------------------------------------
def number_forms(base: Array, found: Array, params: QuantParams) -> Iterator[Guess]:
    """Guesses about each number by itself: another signedness, a shift, a narrower range.

    Args:
        base: what should have been, int64.
        found: the dump, int64, same shape.
        params: the grid.
    """
    low, high = dtype_range(params.dtype if not params.is_8bit else params.container.name)
    span = high - low + 1
    half, other = span // 2, "unsigned" if params.is_signed else "signed"
    step = half if params.is_signed else -half
    if found.size and (found.min() < low or found.max() > high):
        yield Guess("signedness", f"the same bits are read as {other} integers", _other_bits(base, low, high))
        yield Guess("signedness", f"the values are {other}: each is {step:+d}", base + step)
        narrow_low, narrow_high = (0, span - 1) if params.is_signed else (-half, half - 1)
        yield Guess(
            "saturation", f"the values are saturated to {other} integers", np.clip(base, narrow_low, narrow_high)
        )
    yield Guess("signedness", f"the highest bit is flipped: the values are {other}", _flipped(base, low, span, half))
    for shift in _shifts(base, found):
        text = f"every value is {shift:+d}: the zero point {params.zero_point[0]} was not used as it should"
        yield Guess("zero-point", text, np.clip(base + shift, low, high))
        yield Guess("zero-point", f"{text}, and wraps around", (base + shift - low) % span + low)
        yield Guess("zero-point", text, base + shift)


def _other_bits(base: Array, low: int, high: int) -> Array:
    span = high - low + 1
    return np.where(base < 0, base + span, base) if low < 0 else np.where(base > high // 2, base - span, base)


def _flipped(base: Array, low: int, span: int, half: int) -> Array:
    flipped: Array = (base - low + half) % span + low
    return flipped


def _shifts(base: Array, found: Array) -> list[int]:
    """The most frequent differences that are not zero."""
    difference = (found - base).reshape(-1)
    values, counts = np.unique(difference[difference != 0], return_counts=True)
    order = np.argsort(-counts, kind="stable")[:_MOST_SHIFTS]
    return [int(v) for v in values[order]]


def hidden_forms(base: Array, params: QuantParams | None, place: Place) -> Iterator[Guess]:
    """The commonest wrong forms of a tensor that was not dumped: what reads it would read wrong values.

    Args:
        base: what it should be, in the graph's axes, int64 for integers.
        params: its grid, if it has one.
        place: how files hold the tensor.
    """
    if params is None:
        return
    if params.is_8bit:
        low, high = dtype_range(params.container.name)
        span = high - low + 1
        flipped = _flipped(base, low, span, span // 2)
        yield Guess("signedness", "the highest bit of its values is flipped", flipped)
    last, first = (0, *range(2, base.ndim), 1), (0, base.ndim - 1, *range(1, base.ndim - 1))
    for order in (last, first) if base.ndim > 2 else ():
        moved = np.ascontiguousarray(base.transpose(order)).reshape(base.shape)
        yield Guess("layout", f"its axes are in the order {list(order)}", moved)
    for text, flat in _byte_orders(base, place):
        yield Guess("byte-order", text, flat.reshape(base.shape))


# -- memory ---------------------------------------------------------------------------------------------------------
def unwritten(base: Array, stored: Array, place: Place) -> Iterator[Guess]:
    """The tensor with what the dump has one number of, everywhere or up to its end. Arguments as of `place_forms`."""
    if stored.size < 2 or base.size != stored.size or base.dtype.kind not in "iu":
        return
    want, flat = place.stored(base), stored.reshape(-1)
    value = want.reshape(-1).copy()
    others = np.flatnonzero(flat != flat[-1])
    start = int(others[-1]) + 1 if others.size else 0
    right = np.count_nonzero(value[start:] == flat[-1])
    value[start:] = flat[-1]
    if not start:
        text = f"every element is {flat[-1]}: nothing was written, or it was dumped too early"
    elif flat.size - start - right >= _LEAST:
        text = f"from element {start:,} of {flat.size:,} on every one is {flat[-1]}: the end was not written"
    else:
        return
    yield Guess("memory", text, _laid(value, want, stored, place))


def _laid(flat: Array, want: Array, stored: Array, place: Place) -> Array:
    """Elements in the dump's order: in the graph's axes where the shape is that of the files, else as they are."""
    return place.restored(flat.reshape(want.shape)) if stored.shape == want.shape else flat.reshape(stored.shape)


# -- places ---------------------------------------------------------------------------------------------------------
def place_forms(base: Array, stored: Array, place: Place) -> Iterator[Guess]:
    """Guesses about where each number lies: byte order, another layout, another order of channels.

    Args:
        base: what should have been, in the graph's axes.
        stored: the dump in its own shape.
        place: how files hold the tensor.

    The guesses' values are in the graph's axes where the dump's shape is the files' own, else flat in the dump's order.
    """
    want = place.stored(base)

    def back(flat: Array) -> Array:
        return _laid(flat, want, stored, place)

    for text, flat in chain(_byte_orders(want, place), _words(want, place)):
        yield Guess("byte-order", text, back(flat))
    for text, flat in _layouts(want, stored, place):
        yield Guess("layout", text, back(flat))
    if stored.shape == want.shape:
        yield from _channel_orders(base, place.restored(stored))


def _words(want: Array, place: Place) -> Iterator[tuple[str, Array]]:
    for kind in (np.int16, np.int32):
        bits = 8 * np.dtype(kind).itemsize
        if place.params is not None and place.dtype.itemsize * 8 < bits:
            text = f"each element is a {bits}-bit word, whose bytes are in the other order"
            yield text, want.reshape(-1).astype(kind).byteswap().astype(np.int64)


def _byte_orders(want: Array, place: Place) -> Iterator[tuple[str, Array]]:
    plain = want.astype(place.dtype, copy=False).reshape(-1)
    element = plain.dtype if place.params is None else np.dtype(np.int64)
    if plain.dtype.itemsize > 1:
        text = f"the bytes of each {8 * plain.dtype.itemsize}-bit element are in the other order"
        yield text, plain.byteswap().astype(element)
    for word in (2, 4, 8):
        if word <= plain.dtype.itemsize or plain.nbytes % word:
            continue
        swapped = plain.view(np.uint8).reshape(-1, word)[:, ::-1].reshape(-1)
        text = f"the bytes of each {8 * word}-bit word are in the other order"
        yield text, np.ascontiguousarray(swapped).view(plain.dtype).astype(element)


def _layouts(want: Array, stored: Array, place: Place) -> Iterator[tuple[str, Array]]:
    """Transpositions and channel blocks of `want` that may be what `stored` holds."""
    flat = stored.reshape(-1)
    plain = CHANNELS_FIRST.get(want.ndim)
    letters = "".join(plain[axis] for axis in place.axes) if plain else ""
    if want.ndim <= _MOST_RANK:
        for order in permutations(range(want.ndim)):
            moved = want.transpose(order)
            if order == tuple(range(want.ndim)) or not _plausible(moved, flat):
                continue
            named = f" ({''.join(letters[i] for i in order)} where {letters} should be)" if letters else ""
            yield f"the axes are in the order {list(order)}{named}", np.ascontiguousarray(moved).reshape(-1)
    for axis in (1, want.ndim - 1) if want.ndim >= 3 else ():
        for block in _BLOCKS:
            if want.shape[axis] % block or (want.shape[axis] == block and axis == want.ndim - 1):
                continue
            parts = want.reshape(*want.shape[:axis], -1, block, *want.shape[axis + 1 :])
            moved = np.moveaxis(parts, axis + 1, -1) if axis == 1 else np.moveaxis(parts, axis, 1)
            if _plausible(moved, flat):
                yield f"the channels lie in blocks of {block}", np.ascontiguousarray(moved).reshape(-1)


def _plausible(moved: Array, flat: Array) -> bool:
    """Whether the first elements agree more often than chance lets them, so that the rest is worth a look."""
    count = min(_PROBES, flat.size)
    same: Array = moved.flat[:count] == flat[:count]
    return bool(same.mean() > 0.25) if count else False


def _channel_orders(base: Array, found: Array) -> Iterator[Guess]:
    """Channels (of any axis but the first) that changed places, found by their content."""
    for axis in range(1, base.ndim):
        count = base.shape[axis]
        if count < 2:
            continue
        kind = np.dtype(np.int64) if base.dtype.kind in "iu" else base.dtype
        with np.errstate(invalid="ignore", over="ignore"):
            want, have = (
                [row.tobytes() for row in np.moveaxis(each, axis, 0).reshape(count, -1).astype(kind)]
                for each in (base, found)
            )
        places: dict[bytes, int] = {}
        for index, content in enumerate(want):
            places.setdefault(content, index)
        order = [i if have[i] == want[i] else places.get(have[i], i) for i in range(count)]
        moved = sum(1 for i, at in enumerate(order) if i != at)
        if moved < 2 or len(places) < 2:
            continue
        yield Guess("channel-order" if axis == 1 else "layout", _order_text(order, axis), np.take(base, order, axis))


def _order_text(order: list[int], axis: int) -> str:
    name = "channels" if axis == 1 else f"entries of axis {axis}"
    if order == list(range(len(order)))[::-1]:
        return f"the {name} run backwards"
    moved = [i for i, at in enumerate(order) if i != at]
    few = ", ".join(f"{i} holds {order[i]}" for i in moved[:4]) + (", ..." if len(moved) > 4 else "")
    return f"{len(moved)} of {len(order)} {name} are permuted: {few}"

"""Fingerprints of a convolution or matrix product that is computed wrongly."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from qatc.compiler.arithmetic import Profile
from qatc.compiler.compare.forms import Guess
from qatc.compiler.compare.saturation import saturated
from qatc.compiler.compare.setting import Setting, operand_guesses, pad_values, roundings
from qatc.compiler.diagnostics import CompileError
from qatc.compiler.integer import Conv, MatMul
from qatc.compiler.quant import Array, QuantParams
from qatc.compiler.reference.accumulate import accumulators, bias_of

_SAMPLED: Final = 256  # elements of a channel that its scale is looked for with
_MOST_CHANNELS: Final = 512  # channels whose scale is looked for
_INT16: Final = (-(1 << 15), (1 << 15) - 1)


@dataclass(frozen=True)
class _Product:
    """A product operator and its accumulators (int64) on the inputs that it had."""

    setting: Setting
    op: Conv | MatMul
    acc: Array
    bias: Array | None

    @property
    def out(self) -> QuantParams:
        return self.setting.graph.params(self.op.output)

    @property
    def axis(self) -> int:
        return 1 if isinstance(self.op, Conv) else self.acc.ndim - 1

    def finish(
        self, acc: Array, *, scales: Array | None = None, profile: Profile | None = None, out: QuantParams | None = None
    ) -> Array:
        """Accumulators as results of the operator, int64."""
        out_ = out or self.out
        lo, hi = (self.op.lo, self.op.hi) if out is None else (out.qmin, out.qmax)
        in_scale = self.setting.graph.params(self.op.inputs[0]).scale[0] if scales is None else None
        used = self.op.acc_scale if scales is None else scales
        result = (profile or self.setting.profile).requantize(acc, used, out_, lo, hi, self.axis, in_scale=in_scale)
        return result.astype(np.int64)

    def channels(self, values: Array) -> Array:
        """`values` [C] shaped to broadcast along the accumulators' channels."""
        return values.reshape([-1 if i == self.axis else 1 for i in range(self.acc.ndim)])

    def by_channel(self, array: Array) -> Array:
        """[C, elements of a channel]."""
        return np.moveaxis(array, self.axis, 0).reshape(array.shape[self.axis], -1)


def _product(setting: Setting, op: Conv | MatMul) -> _Product:
    bias = bias_of(op, setting.values)
    return _Product(setting, op, accumulators(setting.graph, op, setting.values, bias).astype(np.int64), bias)


def product_guesses(setting: Setting, found: Array | None, *, close: bool) -> Iterator[Guess]:
    """Guesses about a product whose accumulators are rounded (`guesses` in `faults.py` says what the arguments are)."""
    op = setting.op
    if not isinstance(op, (Conv, MatMul)):
        return
    product = _product(setting, op)
    if close:
        yield from _rounded(product)
    yield from _biases(product, found)
    yield from _paddings(setting, op)
    if found is not None:
        yield from _scales(product, found)
    yield from _operands(setting, op)
    out = product.out
    wide_out = QuantParams.per_tensor(out.scale[0], out.zero_point[0], "int32")
    wide = product.finish(product.acc, out=wide_out)
    yield from saturated(wide, setting.base, out, op.lo, op.hi, found)
    yield from _narrow_accumulators(product)


def raw_guesses(setting: Setting, found: Array | None) -> Iterator[Guess]:
    """Guesses about a product whose accumulators are the result."""
    op = setting.op
    if not isinstance(op, (Conv, MatMul)):
        return
    yield from _paddings(setting, op)
    yield from _operands(setting, op)
    for text, acc in _narrow(setting.base):
        yield Guess("saturation", text, acc)
    if found is not None:
        halved = setting.base >> 1
        yield Guess("scale", "the accumulators are halved", halved)


# -- rounding and accumulators ----------------------------------------------------------------------------------------
def _rounded(product: _Product) -> Iterator[Guess]:
    for text, profile in roundings(product.setting.profile):
        try:
            value = product.finish(product.acc, profile=profile)
        except CompileError:  # pow2 has no form for these scales: then it is not what was used
            continue
        yield Guess("rounding", text, value)


def _narrow(acc: Array) -> Iterator[tuple[str, Array]]:
    low, high = _INT16
    if acc.size and (acc.min() < low or acc.max() > high):
        yield "the accumulator saturates at 16 bits", np.clip(acc, low, high)
        yield "the accumulator wraps around at 16 bits", (acc - low) % (1 << 16) + low


def _narrow_accumulators(product: _Product) -> Iterator[Guess]:
    bare = product.acc if product.bias is None else product.acc - product.channels(product.bias.astype(np.int64))
    for text, acc in _narrow(product.acc):
        yield Guess("saturation", text, product.finish(acc))
    if product.bias is not None:
        for text, acc in _narrow(bare):
            total = acc + product.channels(product.bias.astype(np.int64))
            yield Guess("saturation", f"{text} before the bias is added", product.finish(total))


# -- bias and scale ---------------------------------------------------------------------------------------------------
def _biases(product: _Product, found: Array | None) -> Iterator[Guess]:
    if product.bias is None:
        return
    bias = product.channels(product.bias.reshape(-1).astype(np.int64))
    without = product.finish(product.acc - bias)
    yield Guess("bias", "the bias is missing", without)
    if found is not None:
        mixed, count = _mixed(product, without, found)
        if count:
            yield Guess("bias", f"the bias of {count} of {mixed.shape[product.axis]} channels is missing", mixed)
    yield Guess("bias", "the bias is added twice", product.finish(product.acc + bias))
    if product.bias.size > 1:
        for shift in (1, -1):
            moved = product.finish(product.acc - bias + np.roll(bias, shift, product.axis))
            yield Guess("bias", "each channel has the bias of its neighbor", moved)
    yield Guess("bias", "the bias is subtracted", product.finish(product.acc - 2 * bias))


def _mixed(product: _Product, other: Array, found: Array) -> tuple[Array, int]:
    """The base, but `other` in the channels where that is nearer to what was found; and how many those are."""
    base = product.setting.base
    right = product.by_channel(base == found).mean(axis=1)
    better = product.by_channel(other == found).mean(axis=1) > right
    return np.where(product.channels(better), other, base), int(np.count_nonzero(better))


def _scales(product: _Product, found: Array) -> Iterator[Guess]:
    """Each channel with the scale of another one, or all with a scale that is not theirs."""
    scales = np.asarray(product.op.acc_scale, np.float64)
    count = scales.size
    for order in _scale_orders(product, found, scales) if count > 1 else ():
        moved = int(np.count_nonzero(order != np.arange(count)))
        if moved:
            yield Guess("scale", _scale_text(order, moved), product.finish(product.acc, scales=scales[order]))
    fitted = _fitted(product, found, scales)
    if fitted is not None:
        ratio, value = fitted
        yield Guess("scale", f"the scale is {ratio:.6g} times what it should be", value)


def _scale_text(order: Array, moved: int) -> str:
    count = order.size
    used = np.unique(order)
    if used.size == 1:
        return f"all channels use the scale of channel {int(used[0])}"
    steps = np.unique((order - np.arange(count)) % count)
    if steps.size == 1:
        return f"each channel uses the scale of the channel {int(steps[0])} further on"
    first = int(np.flatnonzero(order != np.arange(count))[0])
    return f"{moved} of {count} channels use the scale of another (channel {first} that of {int(order[first])})"


def _scale_orders(product: _Product, found: Array, scales: Array) -> Iterator[Array]:
    """For each channel, whose scale it may have: one for all, one as far on for all, or the best for each.

    The best is its own unless another one explains more.
    """
    out, op = product.out, product.op
    have, want, acc = (product.by_channel(a) for a in (found, product.setting.base, product.acc))
    own = np.arange(scales.size)
    order = own.copy()
    wrong = np.flatnonzero((have != want).any(axis=1))[:_MOST_CHANNELS]
    for channel in wrong.tolist():
        some = np.flatnonzero(have[channel] != want[channel])[:_SAMPLED]
        guess = np.rint(acc[channel, some][:, None] * (scales / out.scale[0])) + out.zero_point[0]
        right = np.count_nonzero(np.clip(guess, op.lo, op.hi) == have[channel, some][:, None], axis=0)
        best = int(np.argmax(right))
        if right[best] > right[channel]:
            order[channel] = best
    if wrong.size > 1:  # the others may not differ by chance, or be more than are looked at
        yield np.full_like(own, np.bincount(order[wrong]).argmax())
        yield (own + np.bincount((order - own)[wrong] % own.size).argmax()) % own.size
    yield order


def _fitted(product: _Product, found: Array, scales: Array) -> tuple[float, Array] | None:
    """A factor on all scales that explains what was found: fitted where nothing saturates."""
    out, op = product.out, product.op
    unit = product.channels(np.broadcast_to(scales / out.scale[0], (product.acc.shape[product.axis],)))
    real = product.acc * unit
    inside = (found > op.lo) & (found < op.hi) & (np.abs(real) > 1)
    if np.count_nonzero(inside) < 8:
        return None
    have = (found - out.zero_point[0]).astype(np.float64)
    ratio = float(np.median(have[inside] / real[inside]))
    if not 0 < ratio < float("inf") or abs(ratio - 1) < 1e-4:
        return None
    weight = real[inside]
    refined = float(np.vdot(have[inside], weight) / np.vdot(weight, weight))
    best = refined if abs(refined / ratio - 1) < 0.05 else ratio
    return best, product.finish(product.acc, scales=scales * best)


# -- operands ---------------------------------------------------------------------------------------------------------
def _operands(setting: Setting, op: Conv | MatMul) -> Iterator[Guess]:
    for name in op.inputs[:2]:
        yield from operand_guesses(setting, name, setting.graph.params(name))


def _paddings(setting: Setting, op: Conv | MatMul) -> Iterator[Guess]:
    if not isinstance(op, Conv) or op.transposed or not any(op.pads):
        return
    name = op.inputs[0]
    x, zero = setting.values[name], setting.graph.params(name).zero_point[0]
    rank = x.ndim - 2
    before, after = op.pads[:rank], op.pads[rank:]
    bare = dataclasses.replace(op, pads=(0,) * (2 * rank))
    widths = [(0, 0), (0, 0), *zip(before, after, strict=True)]

    def padded(how: Array, text: str) -> Iterator[Guess]:
        return setting.guess("padding", text, op=bare, values={name: how})

    for value in pad_values(x.dtype, zero):
        text = f"the padding holds the integer {value}, not the zero point {zero}"
        yield from padded(np.pad(x, widths, constant_values=value), text)
    yield from padded(np.pad(x, widths, mode="edge"), "the padding repeats the border")
    if all(w < n for pair, n in zip(widths, x.shape, strict=True) for w in pair):
        yield from padded(np.pad(x, widths, mode="reflect"), "the padding mirrors the inside")
    if before != after:
        turned = dataclasses.replace(op, pads=after + before)
        yield from setting.guess("padding", "the padding is on the other side", op=turned)

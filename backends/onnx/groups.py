"""Grouped convolutions: several groups become one, with zeros where they do not meet.

    Conv [M, C/groups, k...], groups = 32     [M, 8 * C/groups, k...], groups = 4: each row's weights at its own group

ONNX Runtime copies windows out and multiplies matrices group by group, 32 filters at a time: with fewer it takes as
long (measured, docs/performance.md). Of signed activations it does not, and depthwise convolutions have a kernel of
their own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from qatc.backends.onnx.convolution import Convolution
from qatc.backends.onnx.writer import Writer, stored

_FILTERS: Final = 32  # that one matrix product takes at once
_SMALL: Final = 64  # so many channels and filters are fastest as one group


def joined(w: Writer, c: Convolution) -> Convolution:
    """The convolution with as few groups as is fastest for QLinearConv; the result is the same bit for bit."""
    filters, channels = c.weight.values.shape[0], c.weight.values.shape[1] * c.groups
    each = filters // c.groups
    depthwise = each == 1 and channels == c.groups
    if w.standard or c.groups == 1 or depthwise or stored(c.grid) != "uint8":
        return c
    if max(filters, channels) <= _SMALL:
        return together(c, c.groups)
    most = max(_FILTERS // each, 1)
    return together(c, max(n for n in range(1, most + 1) if c.groups % n == 0))


def together(c: Convolution, count: int) -> Convolution:
    """The convolution with each `count` groups as one."""
    if count == 1:
        return c
    values = c.weight.values
    filters, per_group = values.shape[0] // c.groups, values.shape[1]
    spread = np.full((values.shape[0], per_group * count, *values.shape[2:]), c.weight.zero, values.dtype)
    for group in range(c.groups):
        rows, first = slice(group * filters, (group + 1) * filters), group % count * per_group
        spread[rows, first : first + per_group] = values[rows]
    return replace(c, weight=replace(c.weight, values=spread), groups=c.groups // count)

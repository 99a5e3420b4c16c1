"""Views: tensors that hold the elements of another, with its axes in another order, or more or fewer of size 1.

    Transpose[0, 2, 1]     View(3, (0, 2, 1))
    Unsqueeze[1]           View(3, (0, None, 1, 2))     None: an axis of size 1 that the source does not have
    Squeeze[2]             View(4, (0, 1, 3))           axes that are left out are of size 1

A view of a view is a view, and any can be written in two operators.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qatc.compiler.model.links import Dim
from qatc.compiler.quant import Array

Shape = tuple[Dim, ...] | None
Step = tuple[str, tuple[int, ...]]  # a layout operator, and its order or axes


@dataclass(frozen=True)
class View:
    """A tensor of `len(axes)` dimensions that holds the elements of one of `rank` dimensions."""

    rank: int
    axes: tuple[int | None, ...]

    @staticmethod
    def same(rank: int) -> View:
        """The tensor itself."""
        return View(rank, tuple(range(rank)))

    def then(self, after: View) -> View:
        """The view `after` of this view, as one of the source."""
        return View(self.rank, tuple(None if axis is None else self.axes[axis] for axis in after.axes))

    def inverse(self) -> View:
        """The source, as a view of this view."""
        places = {axis: place for place, axis in enumerate(self.axes)}
        return View(len(self.axes), tuple(places.get(axis) for axis in range(self.rank)))

    def left(self) -> list[int]:
        """The source's axes that the view leaves out."""
        return sorted(set(range(self.rank)).difference(self.axes))

    def shape(self, source: Shape) -> Shape:
        """The shape of the view of a tensor of the shape `source`."""
        return None if source is None else tuple(1 if axis is None else source[axis] for axis in self.axes)

    def of(self, value: Array) -> Array:
        """The view of an array.

        Raises:
            ValueError: where it has another rank, or more than one element along an axis that is left out.
        """
        used = [axis for axis in self.axes if axis is not None]
        turned = value.transpose([*used, *self.left()]).squeeze(tuple(range(len(used), self.rank)))
        return np.expand_dims(turned, tuple(place for place, axis in enumerate(self.axes) if axis is None))

    def steps(self, source: Shape) -> list[Step]:
        """The fewest operators that make the view of a tensor of that shape: none, where it is the tensor itself."""
        sizes = [*(source or [None] * self.rank)]
        wanted = [None if axis is None or sizes[axis] == 1 else axis for axis in self.axes]
        moved = [axis for axis in wanted if axis is not None]
        kept = set(moved)
        have = [axis if axis in kept else None for axis in range(self.rank)]
        if moved == sorted(moved):
            dropped, added = _differences(have, wanted)
            if not dropped or not added or len(have) != len(wanted):
                return _step("Squeeze", dropped) + _step("Unsqueeze", added)
        ones = [axis for axis in range(self.rank) if axis not in kept]
        slots = [place for place, axis in enumerate(wanted) if axis is None]
        for place, axis in zip(slots, ones, strict=False):
            wanted[place] = axis
        turned = [axis for axis in wanted if axis is not None]
        places = {axis: place for place, axis in enumerate(sorted(turned))}
        order = tuple(places[axis] for axis in turned)
        left, new = ones[len(slots) :], slots[len(ones) :]
        return [*_step("Squeeze", left), ("Transpose", order), *_step("Unsqueeze", new)]


def _step(op: str, axes: list[int]) -> list[Step]:
    return [(op, tuple(axes))] if axes else []


def _differences(have: list[int | None], wanted: list[int | None]) -> tuple[list[int], list[int]]:
    """Which axes of size 1 (None) one list has more than the other: to drop, and to add; all others are in order."""
    dropped, added = list[int](), list[int]()
    place = 0
    for axis, kept in enumerate(have):
        while kept is not None and wanted[place] is None:
            added.append(place)
            place += 1
        if kept is not None or (place < len(wanted) and wanted[place] is None):
            place += 1
        else:
            dropped.append(axis)
    return dropped, [*added, *range(place, len(wanted))]

"""Where the boxes of a layered drawing go: plain numbers in and out, in time linear in what is drawn.

Boxes come in execution order, edges lead from lower to higher indices. A box lies one layer below the lowest box that
it reads; an edge that skips layers passes through points of its own in them. In each layer the order follows the mean
position of the neighbors above and below (barycenters, a few sweeps), and positions are the nearest to those means that
keep their distance: isotonic regression, which the pool-adjacent-violators algorithm solves exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

_ORDER_SWEEPS: Final = 6
_PLACE_SWEEPS: Final = 8
_LONGEST: Final = 40  # layers that an edge is led through; a longer one is drawn straight, behind the boxes
_SLOT: Final = 0.12  # width of an edge's point in a layer, in boxes


@dataclass(frozen=True)
class Layout:
    """`places` are (x, layer) of the boxes' centers, x in box widths from 0; `routes` the points of each edge."""

    places: tuple[tuple[float, int], ...]
    routes: tuple[tuple[tuple[float, int], ...], ...]
    width: float
    layers: int


def layout(count: int, edges: Sequence[tuple[int, int]]) -> Layout:
    """Place `count` boxes, connected by `edges` (from a lower to a higher index)."""
    rank = _ranks(count, edges)
    size = [1.0] * count
    chains: list[list[int]] = []
    for start, end in edges:
        chain = [start]
        if rank[end] - rank[start] <= _LONGEST:
            for layer in range(rank[start] + 1, rank[end]):
                chain.append(len(rank))
                rank.append(layer)
                size.append(_SLOT)
        chains.append([*chain, end])
    above: list[list[int]] = [[] for _ in rank]
    below: list[list[int]] = [[] for _ in rank]
    for chain in chains:
        for one, other in pairwise(chain):
            if rank[other] == rank[one] + 1:
                below[one].append(other)
                above[other].append(one)
    layers: list[list[int]] = [[] for _ in range(max(rank, default=-1) + 1)]
    for node, layer in enumerate(rank):
        layers[layer].append(node)
    _order(layers, above, below)
    x = _place(layers, above, below, size)
    left = min((x[n] - size[n] / 2 for n in range(len(rank))), default=0.0)
    points = [(x[n] - left, rank[n]) for n in range(len(rank))]
    width = max((points[n][0] + size[n] / 2 for n in range(len(rank))), default=0.0)
    routes = tuple(tuple(points[n] for n in chain) for chain in chains)
    return Layout(tuple(points[:count]), routes, width, len(layers))


def _ranks(count: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """The layer of each box: below all that it reads; what reads nothing lies just above its first reader."""
    rank, fed = [0] * count, [False] * count
    incoming: list[list[int]] = [[] for _ in range(count)]
    for start, end in edges:
        incoming[end].append(start)
    for end in range(count):
        for start in incoming[end]:
            rank[end] = max(rank[end], rank[start] + 1)
            fed[end] = True
    first: dict[int, int] = {}
    for start, end in edges:
        first[start] = min(first.get(start, rank[end]), rank[end])
    for node, reader in first.items():
        if not fed[node]:
            rank[node] = reader - 1
    return rank


def _order(layers: list[list[int]], above: list[list[int]], below: list[list[int]]) -> None:
    """Order the layers in place by the mean position of what their nodes are connected with."""
    position = [0.0] * sum(map(len, layers))
    for nodes in layers:
        _spread(nodes, position)
    for sweep in range(_ORDER_SWEEPS):
        near = above if sweep % 2 == 0 else below
        for nodes in layers if sweep % 2 == 0 else reversed(layers):
            key = {n: _mean([position[m] for m in near[n]], position[n]) for n in nodes}
            nodes.sort(key=key.__getitem__)
            _spread(nodes, position)


def _spread(nodes: Sequence[int], position: list[float]) -> None:
    """Write the positions of a layer's nodes, from -1/2 to 1/2, so that layers of different size compare."""
    for index, node in enumerate(nodes):
        position[node] = (index + 0.5) / len(nodes) - 0.5


def _mean(values: Sequence[float], default: float) -> float:
    return sum(values) / len(values) if values else default


def _place(layers: list[list[int]], above: list[list[int]], below: list[list[int]], size: list[float]) -> list[float]:
    """The x of every node's center: as near to the mean of its neighbors as the order and the distances allow."""
    x = [0.0] * len(size)
    for nodes in layers:
        at = 0.0
        for node in nodes:
            x[node], at = at + size[node] / 2, at + size[node]
        for node in nodes:
            x[node] -= at / 2
    for sweep in range(_PLACE_SWEEPS):
        near = above if sweep % 2 == 0 else below
        for nodes in layers if sweep % 2 == 0 else reversed(layers):
            wanted = [_mean([x[m] for m in near[n]], x[n]) for n in nodes]
            weights = [len(near[n]) + (2.0 if size[n] < 1 else 0.01) for n in nodes]
            for node, value in zip(nodes, _apart(wanted, weights, [size[n] for n in nodes]), strict=True):
                x[node] = value
    return x


def _apart(wanted: Sequence[float], weights: Sequence[float], size: Sequence[float]) -> list[float]:
    """The positions nearest to `wanted` (weighted squares) in which neighbors keep half of both their sizes apart."""
    offset = [0.0]
    for one, other in pairwise(size):
        offset.append(offset[-1] + (one + other) / 2)
    blocks: list[tuple[float, float, int]] = []  # (mean, weight, members), means rising
    for value, weight, shift in zip(wanted, weights, offset, strict=False):
        mean, total, members = value - shift, weight, 1
        while blocks and blocks[-1][0] > mean:
            other_mean, other_total, count = blocks.pop()
            mean = (mean * total + other_mean * other_total) / (total + other_total)
            total, members = total + other_total, members + count
        blocks.append((mean, total, members))
    flat = [mean for mean, _, members in blocks for _ in range(members)]
    return [mean + shift for mean, shift in zip(flat, offset, strict=True)]

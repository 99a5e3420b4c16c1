"""Which tensor of the package an array of the dump is: by any of its names, by its number, by its golden file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final
from urllib.parse import unquote

from qatc.compiler.golden.tensors import GoldenTensor
from qatc.compiler.integer import IntegerGraph

_NUMBER: Final = re.compile(r"(?:tensor|t)?[_-]?(\d{1,9})", re.IGNORECASE)


class Names:
    """Every name under which a dump may hold a tensor.

    In the order in which they are tried: the exact names (package, integer graph, source), the stem of golden files,
    the port (`input_0`, `output_0`), the number in execution order, and last the names with everything but letters and
    digits taken as an underscore, as tools write them into file names.
    """

    def __init__(self, graph: IntegerGraph, names: Mapping[str, str], golden: Mapping[str, GoldenTensor]) -> None:
        self.graph = graph
        made = graph.made()
        exact: dict[str, list[str]] = {}
        sources: dict[str, list[str]] = {}
        for name in made:
            for known in {names.get(name, name), name}:
                exact.setdefault(known, []).append(name)
            source = graph.tensors[name].source
            if source is not None:
                sources.setdefault(source, []).append(name)
        stems = {tensor.stem: [tensor.name] for tensor in golden.values()}
        ports = {f"input_{i}": [name] for i, name in enumerate(graph.inputs)}
        ports |= {f"output_{i}": [name] for i, name in enumerate(graph.outputs) if name in graph.tensors}
        self._exact = (exact, sources, stems, ports)
        self._numbers = {tensor.index: tensor.name for tensor in golden.values()}
        self._plain = tuple(_plainly(table) for table in (exact, sources))

    def find(self, path: str, inner: str) -> tuple[str, ...]:
        """The tensors that an array at `path` may be, by the first rule that knows it; none where none does.

        `inner` is the path below the folder that names the sample.
        """
        for key in _keys(path, inner):
            for table in self._exact:
                if key in table:
                    return self._match(table[key])
        stem = inner.rsplit("/", 1)[-1]
        number = _NUMBER.fullmatch(stem)
        if number and int(number[1]) in self._numbers:
            return (self._numbers[int(number[1])],)
        for key in _keys(path, inner):
            for table in self._plain:
                found = table.get(plain(key))
                if found:
                    return self._match(found)
        return ()

    def _match(self, candidates: list[str]) -> tuple[str, ...]:
        """One tensor where the rest is the same in another form: integers before floats."""
        integers = [name for name in candidates if self.graph.tensors[name].params is not None]
        return tuple(dict.fromkeys(integers or candidates))


def _keys(path: str, inner: str) -> Iterator[str]:
    stem = inner.rsplit("/", 1)[-1]
    for key in dict.fromkeys((path, inner, stem)):
        yield key
        yield f"/{key}"
        if "%" in key:
            yield unquote(key)


def plain(name: str) -> str:
    """A name as it survives any tool that makes file names: lower-case letters and digits, all else one underscore."""
    return re.sub(r"[^0-9a-z]+", "_", name.lower()).strip("_")


def _plainly(table: Mapping[str, list[str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, tensors in table.items():
        if plain(name):
            found.setdefault(plain(name), []).extend(tensors)
    return found

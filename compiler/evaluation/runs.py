"""The contestants: the float model, the simulation, the reference and the package, each from inputs to real outputs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from qatc.compiler.arithmetic import Profile
from qatc.compiler.diagnostics import CompileError, fail
from qatc.compiler.integer import IntegerGraph
from qatc.compiler.quant import Array, QuantParams
from qatc.compiler.reference import execute_op
from qatc.compiler.result import Port
from qatc.compiler.runtime.sessions import OrtEvaluator, errors
from qatc.compiler.simulation import Simulation

FLOAT: Final = "float"
SIMULATION: Final = "simulation"
REFERENCE: Final = "reference"
PACKAGE: Final = "package"

_SIZES: Final = "feed samples of the sizes that the network was made for"
Outputs = dict[str, Array]


@dataclass
class Contestant:
    """A run of the data set through one form of the network.

    Attributes:
        name: one of the constants above.
        description: what runs, in a line.
        run: the package's inputs, in the dtypes of its ports -> the outputs by the package's names, as real numbers.
        seconds: how long it took so far.
    """

    name: str
    description: str
    run: Callable[[Mapping[str, Array]], Outputs]
    seconds: float = field(default=0.0)

    def __call__(self, feed: Mapping[str, Array]) -> Outputs:
        """Run a batch on the clock."""
        start = time.perf_counter()
        try:
            return self.run(feed)
        finally:
            self.seconds += time.perf_counter() - start


def real(port: Port, value: Array) -> Array:
    """An output as real numbers: integers of a quantized port are what they stand for."""
    if port.params is not None and value.dtype.kind in "iu":
        return port.params.dequantize(value)
    return value


def by_model(simulation: Simulation, inputs: tuple[Port, ...], outputs: tuple[Port, ...]) -> Callable[..., Outputs]:
    """A float model whose inputs and outputs are those of the package, by name, else by their order."""
    feeds = _matched([p.name for p in inputs], simulation.inputs)
    wanted = _matched([p.name for p in outputs], simulation.outputs)

    def run(feed: Mapping[str, Array]) -> Outputs:
        given = {feeds[p.name]: as_read(simulation, feeds[p.name], p.params, feed[p.name]) for p in inputs}
        try:
            found = simulation.run(given, list(wanted.values()))
        except CompileError as error:
            hint = f"{_SIZES}; a newer onnxruntime may know the operator"
            raise CompileError(replace(d, hint=hint) for d in error.diagnostics) from error
        return {p.name: real(p, np.asarray(found[wanted[p.name]])) for p in outputs}

    return run


def as_read(simulation: Simulation, name: str, params: QuantParams | None, value: Array) -> Array:
    """A value for the model's input `name`, which may be integers where the package reads reals, or the other way."""
    if params is None or simulation.reads_integers(name) == (value.dtype.kind in "iu"):
        return value
    return params.dequantize(value) if value.dtype.kind in "iu" else params.quantize(value)


def _matched(names: list[str], there: tuple[str, ...]) -> dict[str, str]:
    """Each name's counterpart in another model of the same network: its namesake, or whatever has its place."""
    if len(names) != len(there):
        raise ValueError(f"it has {len(there)} ({', '.join(there)}) where the package has {len(names)}")
    if set(names) == set(there):
        return {name: name for name in names}
    return dict(zip(names, there, strict=True))


def by_reference(
    graph: IntegerGraph, profile: Profile, inputs: tuple[Port, ...], outputs: tuple[Port, ...]
) -> Callable[..., Outputs]:
    """The reference executor; a tensor is forgotten once nobody reads it any more."""
    evaluate = OrtEvaluator()
    last = {name: index for index, op in enumerate(graph.ops) for name in op.inputs}
    kept = {*graph.outputs, *graph.constants}
    dead: list[list[str]] = [[] for _ in graph.ops]
    for name, index in last.items():
        if name and name not in kept:
            dead[index].append(name)

    def run(feed: Mapping[str, Array]) -> Outputs:
        values: dict[str, Array] = {**graph.constants, **{p.name: p.rounded(feed[p.name]) for p in inputs}}
        for op, gone in zip(graph.ops, dead, strict=True):
            try:
                results = execute_op(graph, op, values, profile, evaluate)
            except ValueError as error:  # sizes that the network does not take
                raise fail("QAT008", f"the reference cannot run a batch: {error}", hint=_SIZES) from error
            values.update((name, value) for name, value in zip(op.outputs, results, strict=True) if name)
            for name in gone:
                values.pop(name, None)
        return {p.name: real(p, values[p.name]) for p in outputs}

    return run


def by_package(
    session: Callable[[list[str], dict[str, Array]], list[Array]], inputs: tuple[Port, ...], outputs: tuple[Port, ...]
) -> Callable[..., Outputs]:
    """The package's model; `session` is what runs it."""

    def run(feed: Mapping[str, Array]) -> Outputs:
        given = {p.name: p.rounded(feed[p.name]) for p in inputs}
        try:
            found = session([p.name for p in outputs], given)
        except errors() as error:
            raise fail("QAT008", f"the package's model cannot run a batch: {error}", hint=_SIZES) from error
        return {p.name: real(p, np.asarray(value)) for p, value in zip(outputs, found, strict=True)}

    return run

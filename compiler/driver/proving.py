"""The other side of a compile: sample inputs, the simulation of the source, and what the result is held to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from qatc.compiler.arithmetic import get_profile
from qatc.compiler.diagnostics import CompileError, Diagnostic, Severity, printable
from qatc.compiler.driver.footprint import ask_to_run
from qatc.compiler.driver.options import CompileOptions
from qatc.compiler.graph import QuantGraph
from qatc.compiler.integer import IntegerGraph
from qatc.compiler.ports import port_of
from qatc.compiler.registry import backends
from qatc.compiler.result import Verification
from qatc.compiler.shapes import infer_shapes

if TYPE_CHECKING:
    from qatc.compiler.backend import Emission
    from qatc.compiler.samples import Feeds
    from qatc.compiler.simulation import Simulation
    from qatc.compiler.target import Target


class Proving:
    """What a compile is proved with; `prepare` comes before anything is folded, the checks at the end.

    Attributes:
        feeds: the sample inputs, one dictionary of arrays a sample.
        shapes: of the inputs of a sample, where the model leaves them open.
        simulation: what the result is compared with; None with `verify` off.
    """

    def __init__(self, options: CompileOptions) -> None:
        self.options = options
        self.shapes = options.shapes
        self.feeds: list[Feeds] = []
        self.simulation: Simulation | None = None

    # -- before ---------------------------------------------------------------------------------------------------
    def prepare(self, path: Path, graph: QuantGraph) -> Diagnostic | None:
        """Make sample inputs and open the simulation; returns which sizes were chosen where the model leaves some open.

        Args:
            path: the ONNX file.
            graph: the same model, normalized and stripped, before anything is folded.

        Raises:
            CompileError: where the source does not run on the samples, or sizes have to be pinned first.
        """
        from qatc.compiler import samples

        ports = [port_of(graph, t) for t in graph.inputs]
        shapes = [self.options.shapes] if self.options.inputs else [*samples.sizes_to_try(ports, self.options.shapes)]
        refused: list[Diagnostic] = []
        for self.shapes in shapes:
            self.feeds = self._sample_feeds(graph)
            ask_to_run(graph, simulated=self.options.verify)
            if len(shapes) == 1 and not self.options.verify:
                return None
            try:
                self.simulation = self._opened(path, graph)
                break
            except CompileError as error:
                refused += [d for d in error.diagnostics if d not in refused]
        else:
            if len(shapes) > 1:
                self.shapes = self.options.shapes
                self._sample_feeds(graph)  # says which dimensions to pin
            raise CompileError(refused)
        if len(shapes) == 1:
            return None
        infer_shapes(graph, self.shapes)
        sizes = "; ".join(f"{printable(n)} {list(s)}" for n, s in self.shapes.items())
        hint = "pin them with -s NAME=1,3,224,224 for samples of another size"
        note = f"the model leaves sizes of its inputs open; the samples have {sizes}"
        return Diagnostic("QAT009", note, Severity.NOTE, hint=hint)

    def restart(self, graph: QuantGraph) -> None:
        """Hold the result to `graph` from here on: calibration gave it ranges that the source does not compute."""
        graph.restated.append("with the ranges that --calibrate filled in")
        if self.options.verify:
            self.simulation = self._restated(graph)

    def _opened(self, path: Path, graph: QuantGraph) -> Simulation:
        """What the result is compared with, proved to run on the first sample."""
        from qatc.compiler.simulation import open_simulation

        if not graph.restated:
            return open_simulation(path, graph, self.feeds[0])
        found = self._restated(graph)
        found.run(self.feeds[0], found.outputs)
        return found

    def _restated(self, graph: QuantGraph) -> Simulation:
        """What the graph itself computes."""
        from qatc.compiler.simulation import Simulation

        return Simulation.of_graph(graph, ", ".join(dict.fromkeys(graph.restated)))

    def _sample_feeds(self, graph: QuantGraph) -> list[Feeds]:
        """The user's sample inputs, or generated ones."""
        from qatc.compiler import samples

        ports = [port_of(graph, t) for t in graph.inputs]
        if self.options.inputs:
            return samples.load(ports, list(self.options.inputs), self.options.shapes)
        limits = samples.index_limits(graph)
        return samples.generate(ports, self.options.samples, self.options.seed, shapes=self.shapes, limits=limits)

    # -- after ----------------------------------------------------------------------------------------------------
    def check_integers(self, integer: IntegerGraph, emission: Emission, target: Target) -> Verification | None:
        """Compare simulation, reference and an emitted integer model. CompileError (exit code 3) where they differ."""
        if self.simulation is None or not self.options.verify:
            return None
        from qatc.compiler.verify import Limits, check, verify

        limits = Limits(**self.options.tolerance)
        profile = get_profile(target.arithmetic)
        found = verify(integer, profile, self.simulation, emission.whole(), self.feeds, limits)
        check(found, self.options.tolerance)
        return found

    def check_floats(
        self, integer: IntegerGraph, emission: Emission, target: Target, reread: Callable[[], IntegerGraph]
    ) -> Verification | None:
        """Compare an emitted model of floats and parameters, which is read again, and the integers that it stands for.

        Args:
            integer: the integer graph of the source.
            emission: the model of floats and parameters.
            target: what it is for.
            reread: makes the integer graph of the emitted file.

        Raises:
            CompileError: with exit code 3 where they differ.
        """
        backend = backends().get("onnx")
        found = self.check_integers(integer, backend.emit(integer, backend.checked({})), target)
        if found is None or self.simulation is None:
            return None
        from qatc.compiler.runtime.sessions import OrtEvaluator
        from qatc.compiler.verify import check
        from qatc.compiler.verify.written import compare_outputs, compare_reread

        checks = compare_reread(integer, reread(), get_profile(target.arithmetic), self.feeds, OrtEvaluator())
        outputs = compare_outputs(emission.complete(), integer, self.simulation, self.feeds)
        bad = next((c.tensor for c in checks if not c.passed), None)
        found = dataclasses.replace(found, package=checks, outputs=outputs, passed=bad is None, first_bad=bad)
        check(found)
        return found

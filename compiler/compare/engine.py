"""`qatc compare`: a device's tensors against what the package computes, the first that differs, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from qatc.compiler.compare.cause import Evidence, Segment, find_cause, form_of
from qatc.compiler.compare.dump import Entry, list_dump
from qatc.compiler.compare.interpret import Dumped, NotATensorError, Place, interpret
from qatc.compiler.compare.match import Names
from qatc.compiler.compare.measure import Measure, measure
from qatc.compiler.compare.package import OpenPackage, open_package
from qatc.compiler.compare.result import Cause, Comparison, MissingTensor, TensorComparison
from qatc.compiler.compare.setting import contained
from qatc.compiler.diagnostics import (
    CompileError,
    Diagnostic,
    Diagnostics,
    counted,
    fail,
    few,
    misused,
    printable,
)
from qatc.compiler.golden.tensors import GoldenTensor, golden_tensors
from qatc.compiler.integer import Dequantize, Float, Op
from qatc.compiler.quant import Array
from qatc.compiler.reference import OnnxEvaluator, execute
from qatc.compiler.runtime.sessions import OrtEvaluator
from qatc.compiler.verify.boundary import Exact, exact_at

_MOST_CAUSES: Final = 12  # tensors with an error of their own whose cause is looked for, in a sample
_NAMES: Final = 3
_NOTHING_EQUAL: Final = Measure(0.0, None, None, float("-inf"), 0.0, within=False)
_RECORDED: Final = "equal to the recorded sample; the reference differs from it behind operators that stay in float"


def compare_package(package: str | Path, dump: str | Path, *, tolerance: int = 0, sample: int = 0) -> Comparison:
    """Compare what a device computed with what the package computes, tensor by tensor.

    The expected values are the reference executor's on the package's own samples, under its arithmetic profile; the
    golden tensors hold the same. Behind operators that stay in float, a result may as well be the recorded sample's.

    Args:
        package: the folder that `qatc compile` wrote.
        dump: a folder of .npy or raw .bin files (in any subfolders), or an .npz: any subset of the tensors, of any of
            the samples (in folders named by their numbers, such as `0/`). Arrays are matched by the tensor's name in
            the package or in the compiled file, by the stem or the number of its golden files.
        tolerance: how many LSB an element may be off.
        sample: the sample that arrays belong to which no folder assigns to one.

    Returns:
        What was found; `result.passed` tells whether nothing differs, `result.first` is the first tensor that does.

    Raises:
        CompileError: QAT502 where the package is none or damaged, QAT406 (exit code 2) where there is no dump, QAT407
            (exit code 3) where nothing in it is a tensor of the package.

    >>> from qatc import compare_package, compile_model
    >>> result = compile_model("samples/models/resnet8_qat.onnx", qat=True, output=f"{tmp}/a.qatc", golden=True)
    >>> found = compare_package(result.package, result.package / "golden")
    >>> found.passed, found.first, found.missing
    (True, None, ())
    """
    if tolerance < 0:
        raise misused(f"the tolerance is {tolerance}", "give a number of LSB, at least 0")
    opened = open_package(Path(package))
    found = Diagnostics()
    entries = list_dump(Path(dump), found)
    if not 0 <= sample < len(opened.samples):
        message = f"the package has {counted(len(opened.samples), 'sample')}, no sample {sample}"
        raise misused(message, "samples are counted from 0")
    by_sample: dict[int, list[Entry]] = {}
    for entry in entries:
        by_sample.setdefault(sample if entry.sample is None else entry.sample, []).append(entry)
    _check_samples(by_sample, len(opened.samples), found)
    evaluate = OrtEvaluator()
    compared: list[TensorComparison] = []
    missing: list[MissingTensor] = []
    for index in sorted(s for s in by_sample if s < len(opened.samples)):
        run = _Run(opened, index, evaluate, found, tolerance)
        run.read(by_sample[index])
        compared += run.compare()
        missing += run.missing()
    if not compared:
        hint = "files are matched by a tensor's name, its number, or the stem of its golden file; see docs/bring-up.md"
        message = f"nothing in {printable(str(dump))} is a tensor of {printable(str(package))}"
        raise CompileError([*found, Diagnostic("QAT407", message, hint=hint)], 3)
    return Comparison(
        Path(package), Path(dump), opened.profile.name, tolerance, tuple(compared), tuple(missing), tuple(found)
    )


def _check_samples(by_sample: Mapping[int, Sequence[Entry]], count: int, found: Diagnostics) -> None:
    for index in sorted(by_sample):
        if index >= count:
            arrays = counted(len(by_sample[index]), "array")
            message = f"the dump has {arrays} of sample {index}, the package {counted(count, 'sample')}"
            found.error("QAT407", message, hint="samples are counted from 0; compile with --samples for more")
    absent = [str(i) for i in range(count) if i not in by_sample]
    if absent and by_sample:
        found.note("QAT407", f"the dump has nothing of sample {few(absent, 10)}")


@dataclass(frozen=True)
class _Found:
    """A tensor of the dump: where it was, what it holds, or why it cannot be read; its likely form if that differs."""

    entry: Entry
    dumped: Dumped | None
    problem: NotATensorError | None = None
    form: Cause | None = None
    repaired: Array | None = None


@dataclass(frozen=True)
class _Local:
    """What each operator computes of the dump's own tensors, and what its readers read: the dump's, where it has it;
    constants, too.
    """

    computed: Mapping[str, Array]
    read: Mapping[str, Array]


class _Run:
    """One sample: its expected values, and what the dump has of it."""

    def __init__(
        self, opened: OpenPackage, sample: int, evaluate: OnnxEvaluator, findings: Diagnostics, tolerance: int
    ) -> None:
        self.opened, self.graph, self.sample = opened, opened.graph, sample
        self.evaluate, self.findings, self.tolerance = evaluate, findings, tolerance
        self.feeds = opened.samples[sample]
        self.expected, self.golden = self._expected()
        self.makers: dict[str, Op] = self.graph.producers()
        self.found: dict[str, _Found] = {}
        self.order = [*self.graph.inputs, *(o for op in self.graph.ops for o in op.outputs if o)]

    def _expected(self) -> tuple[dict[str, Array], dict[str, GoldenTensor]]:
        """Every tensor of the sample, as the reference executor computes it, and how files hold the integers."""
        try:
            values = execute(self.graph, self.feeds, self.opened.profile, evaluate=self.evaluate)
            ranks = {name: value.ndim for name, value in values.items()}
            tensors = golden_tensors(self.graph, self.opened.names, ranks, self.opened.layout)
            return values, {tensor.name: tensor for tensor in tensors}
        except ValueError as error:  # the hashes are right, the graph is not
            message = (
                f"the integer graph of {printable(str(self.opened.folder))} cannot be run: {printable(str(error))}"
            )
            raise fail("QAT502", message, hint="compile the model again") from error

    # -- reading the dump -----------------------------------------------------------------------------------------
    def read(self, entries: Sequence[Entry]) -> None:
        """Assign the entries to tensors and read them."""
        names = Names(self.graph, self.opened.names, self.golden)
        strangers: list[str] = []
        for entry in entries:
            candidates = names.find(entry.path, entry.inner)
            if not candidates:
                strangers.append(entry.where)
                continue
            name = self._chosen(entry, candidates)
            if name is None:
                listed = ", ".join(printable(self.shown(n)) for n in candidates[:3])
                self.findings.error(
                    "QAT407",
                    f"{printable(entry.where)} may be any of {len(candidates)} tensors: {listed}",
                    hint="name the file by the tensor's number or by the stem of its golden file",
                )
            elif name in self.found:
                first = self.found[name].entry
                if first.path != entry.path:
                    message = f"{printable(entry.where)} is not read: {printable(first.where)} is the same tensor"
                    self.findings.warning("QAT407", message, tensor=self.shown(name))
            else:
                name, held = self._read_either(entry, name)
                self.found[name] = held
        if strangers:
            some = few(strangers, 5)
            message = f"left out of the dump: {counted(len(strangers), 'array')}, no tensor of the package: {some}"
            self.findings.warning("QAT407", message, hint="golden/index.json and integer.json list the names")

    def _chosen(self, entry: Entry, candidates: Sequence[str]) -> str | None:
        """The one tensor of several that an entry is: by its size where they come from one tensor of the source."""
        if len(candidates) == 1:
            return candidates[0]
        fitting = [n for n in candidates if n not in self.found and self._fits(entry, n)]
        sources = {self.graph.tensors[n].source for n in candidates}
        if len(fitting) == 1 or (fitting and len(sources) == 1 and None not in sources):
            return fitting[0]
        return None

    def _fits(self, entry: Entry, name: str) -> bool:
        value = self.expected[name]
        return not entry.is_raw or entry.size in (value.nbytes, value.size * 2, value.size * 4)

    def place(self, name: str) -> Place:
        """How files hold a tensor."""
        return Place.of(self.golden.get(name), self.expected[name], self.graph.tensors[name].params)

    def _read_either(self, entry: Entry, name: str) -> tuple[str, _Found]:
        """An entry as the tensor that it names, or as the integers that the tensor is dequantized from."""
        held = self._read(entry, name)
        maker = self.makers.get(name)
        if held.problem is not None and isinstance(maker, Dequantize) and maker.inputs[0] not in self.found:
            other = self._read(entry, maker.inputs[0])
            if other.problem is None:
                return maker.inputs[0], other
        if held.problem is not None and not held.problem.is_shape:
            message = f"{printable(entry.where)}: {printable(str(held.problem))}"
            self.findings.error("QAT406", message, tensor=self.shown(name))
        return name, held

    def _read(self, entry: Entry, name: str) -> _Found:
        expected, place = self.expected[name], self.place(name)
        try:
            dumped = interpret(entry, place, expected)
        except NotATensorError as error:
            return _Found(entry, None, error)
        if place.params is not None and not self._measure(name, dumped.value, expected).within:
            evidence = Evidence(dumped, expected.astype(np.int64), place)
            form = form_of(evidence)
            if form is not None:
                return _Found(entry, dumped, None, form[0], expected)
        return _Found(entry, dumped)

    # -- comparing ------------------------------------------------------------------------------------------------
    def compare(self) -> list[TensorComparison]:
        """Every tensor of the dump in execution order."""
        as_is = self._locally(repaired=False) if self._differs() else _Local({}, {})
        repaired = self._locally(repaired=True) if any(f.repaired is not None for f in self.found.values()) else as_is
        results: list[TensorComparison] = []
        causes = 0
        for name in self.order:
            if name not in self.found:
                continue
            result = self._compare(name, as_is, repaired, look=causes < _MOST_CAUSES)
            causes += result.error == "local"
            if self.tolerance and result.error == "accumulated" and self.graph.tensors[name].dtype.startswith("float"):
                result = replace(result, passed=all(r.passed for r in results))  # right, of what is within
            results.append(result)
        return results

    def _differs(self) -> bool:
        """Whether anything that could be read differs, so that it is worth the effort to ask where it comes from."""
        return any(
            f.dumped is not None and not self._measure(name, f.dumped.value, self.expected[name]).within
            for name, f in self.found.items()
        )

    def _locally(self, *, repaired: bool) -> _Local:
        """What each operator makes of the dump's own tensors, where the dump has them."""
        forced: dict[str, Array] = {}
        for name, found in self.found.items():
            value = found.dumped.value if found.dumped is not None else None
            if repaired and found.repaired is not None:
                value = found.repaired
            if value is not None and value.shape == self.expected[name].shape and not self._is_size(name):
                forced[name] = contained(value, self.expected[name].dtype)
        computed = execute(
            self.graph, self.feeds, self.opened.profile, evaluate=self.evaluate, forced=forced,
            instead={**self.expected, **forced},  # of NaN nothing can be made: then it is what is there
        )  # fmt: skip
        read = {name: forced.get(name, value) for name, value in computed.items()}
        return _Local(computed, {**self.graph.constants, **read})

    def _is_size(self, name: str) -> bool:
        """Whether a tensor may say how large others are, as a list of integers: no dump has a say in memory."""
        value = self.expected[name]
        return self.graph.tensors[name].params is None and value.dtype.kind in "iu" and value.ndim < 2

    def _measure(self, name: str, value: Array, expected: Array) -> Measure:
        if value.shape != expected.shape:
            return _NOTHING_EQUAL
        maker = self.makers.get(name)
        real = self.graph.tensors[maker.inputs[0]].params if isinstance(maker, Dequantize) else None
        return measure(value, expected, self.graph.tensors[name].params, self.tolerance, real)

    def _compare(self, name: str, as_is: _Local, repaired: _Local, *, look: bool) -> TensorComparison:
        found, expected = self.found[name], self.expected[name]
        if found.dumped is None:
            message = printable(str(found.problem))
            shape = Cause("shape", message, 1.0) if found.problem is not None and found.problem.is_shape else None
            return self._result(name, found, _NOTHING_EQUAL, "local", 0.0, shape, message)
        whole = self._measure(name, found.dumped.value, expected)
        if whole.within:
            return self._result(name, found, whole, "none", 1.0, None, found.dumped.message)
        if self._is_recorded(name, found.dumped.value):
            exact = self._measure(name, expected, expected)
            return self._result(name, found, exact, "none", 1.0, None, _RECORDED)
        local = max(
            (self._measure(name, found.dumped.value, values.computed[name]) for values in (as_is, repaired)),
            key=lambda m: (m.within, m.equal_share),
        )
        if local.within:
            return self._result(name, found, whole, "accumulated", local.equal_share, None, found.dumped.message)
        cause: Cause | None = found.form
        message = found.dumped.message
        if look and (cause is None or cause.explained < 1):
            likely, message = self._cause(name, found.dumped, repaired, message)
            return self._result(name, found, whole, "local", local.equal_share, likely, message)
        return self._result(name, found, whole, "local", local.equal_share, cause, message)

    def _is_recorded(self, name: str, value: Array) -> bool:
        """Whether a result is what the package's model answered, and floats are why the reference answers otherwise."""
        recorded = self.opened.answers[self.sample].get(name)
        if recorded is None or recorded.shape != value.shape or not np.array_equal(recorded, value):
            return False
        return any(isinstance(op, Float) and self._is_real(op) for op in self.graph.ops)

    def _cause(self, name: str, dumped: Dumped, local: _Local, message: str) -> tuple[Cause, str]:
        base = local.computed[name]
        base = base.astype(np.int64) if base.dtype.kind in "iu" else base
        evidence = Evidence(dumped, base, self.place(name))
        ops = self._segment(name)
        segment = Segment(self.graph, name, ops, local.read, self.opened.profile, self.evaluate)
        cause = find_cause(evidence, segment)
        told = [message]
        if len(ops) > 1:
            told.append(f"{len(ops)} operators lie between it and the tensors of the dump before it")
        floats = [op.source or op.name for op in ops if isinstance(op, Float) and self._is_real(op)]
        if floats and cause is None:
            names = few(floats, _NAMES)
            island = f"what is computed in floats on the way ({names}) may differ between machines in its last bits"
            told.append(f"{island}, and so by an LSB what is rounded behind it: dump that to tell")
        unknown = Cause("unknown", _where(evidence, segment) + self._fed(name, ops, evidence), 0.0)
        return cause or unknown, "; ".join(filter(None, told))

    def _fed(self, name: str, ops: Sequence[Op], evidence: Evidence) -> str:
        """A question, where most differs of an input, or of what is made of one that the dump does not have."""
        value, base = evidence.dumped.value, evidence.base
        read = [name, *(n for op in ops for n in op.inputs if n not in self.found)]
        source = next((n for n in read if n in self.feeds), None)
        if source is None or value.shape != base.shape or 2 * np.count_nonzero(value != base) <= base.size:
            return ""
        file = self.opened.manifest["samples"][self.sample]["inputs"][list(self.graph.inputs).index(source)]
        return f"; was the device fed with {file}?"

    def _is_real(self, op: Op) -> bool:
        """Whether an operator's result is real numbers: sizes and indices are exact."""
        return any(name and self.graph.tensors[name].dtype.startswith("float") for name in op.outputs)

    def _segment(self, name: str) -> list[Op]:
        """The operators that make a tensor of what the dump has, in execution order."""
        wanted, waiting = set[int](), [name]
        while waiting:
            tensor = waiting.pop()
            op = self.makers.get(tensor)
            if op is None or id(op) in wanted or (tensor != name and tensor in self.found):
                continue
            wanted.add(id(op))
            waiting.extend(n for n in op.inputs if n)
        return [op for op in self.graph.ops if id(op) in wanted]

    # -- results --------------------------------------------------------------------------------------------------
    def shown(self, name: str) -> str:
        """A tensor's name in the package's model, or in integer.json where that does not have it."""
        return self.opened.names.get(name, name)

    def _result(
        self, name: str, found: _Found, whole: Measure, error: str, local: float, cause: Cause | None, message: str
    ) -> TensorComparison:
        op = self.makers.get(name)
        golden = self.golden.get(name)
        return TensorComparison(
            sample=self.sample,
            index=None if golden is None else golden.index,
            tensor=self.shown(name),
            source=self.graph.tensors[name].source,
            op="Input" if op is None else op.title,
            node="" if op is None else op.source,
            file=found.entry.where,
            elements=int(self.expected[name].size),
            equal_share=whole.equal_share,
            max_lsb=whole.max_lsb,
            mean_lsb=whole.mean_lsb,
            sqnr_db=whole.sqnr_db,
            cosine=whole.cosine,
            passed=whole.within,
            error=error,
            local_equal_share=local,
            cause=cause,
            message=message,
        )

    def missing(self) -> list[MissingTensor]:
        """The integer tensors, and results of float islands, that the dump does not have of a sample that it has."""
        if not self.found:
            return []
        outputs = {n for n in self.graph.outputs if not isinstance(self.makers.get(n), Dequantize)}
        wanted = [n for n in self.order if (n in self.golden or n in outputs) and n not in self.found]
        return [
            MissingTensor(
                self.sample,
                self.golden[n].index if n in self.golden else None,
                self.shown(n),
                self.graph.tensors[n].source,
            )
            for n in wanted
        ]


def _exact(segment: Segment, base: Array, place: int) -> str:
    """The last operator's result at a flat index before it is rounded and clamped, in steps of its grid: how near to
    the boundary between two integers it was. Nothing where that is not to be had.
    """
    params = segment.graph.tensors[segment.name].params
    if not segment.ops or segment.ops[-1].output != segment.name or params is None or params.is_per_channel:
        return ""
    found = exact_at(segment.graph, segment.ops[-1], {**segment.values, segment.name: base}, np.array([place]))
    if not isinstance(found, Exact):
        return ""
    exact = float(found.value[0])
    return f"exactly {exact:.6f}" + (", before its clamp" if abs(exact - int(base.flat[place])) > 1 else "")


def _where(evidence: Evidence, segment: Segment) -> str:
    """What can be said of differences that nothing explains: how many, where, what is there, in which direction."""
    value, base = evidence.dumped.value, evidence.base
    if value.shape != base.shape:
        return f"its shape is {list(value.shape)}, not {list(base.shape)}, and no order of the axes explains it"
    differs = value != base
    count = int(np.count_nonzero(differs))
    first = int(np.argmax(differs))
    at = [int(i) for i in np.unravel_index(first, base.shape)] if base.ndim else []
    exact = _exact(segment, base, first) if base.dtype.kind in "iu" else ""
    text = f"{count:,} of {base.size:,} elements differ, the first at {at}: {value.flat[first]}, not {base.flat[first]}"
    text += f" ({exact})" if exact else ""
    if base.ndim > 1 and base.shape[1] > 1:
        channels = np.flatnonzero(differs.any(axis=tuple(i for i in range(base.ndim) if i != 1)))
        if channels.size < base.shape[1]:
            some = ", ".join(str(c) for c in channels[:8].tolist()) + (", ..." if channels.size > 8 else "")
            text += f", all at index {some} of axis 1"
    if base.dtype.kind in "iu" and count:
        difference = value[differs] - base[differs]
        if (difference > 0).all() or (difference < 0).all():
            text += ", all in one direction"
    return text

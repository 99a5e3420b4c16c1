"""A package on disk against the reference: the first of the three comparisons, made again wherever it was copied to.

The model's operators are compared one by one, each fed the model's own tensors. A model of floats and parameters (QDQ)
has no integer operators to compare with: what the reference makes of the samples is measured against their outputs
then, end to end, and not judged, since both round in their own way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

import onnx

from qatc.compiler.arithmetic import Profile, get_profile
from qatc.compiler.backend import Emission
from qatc.compiler.integer import Conv, IntegerGraph, Lookup, MatMul, Resize
from qatc.compiler.package.content import port_document, record_document
from qatc.compiler.package.integer_file import StoredGraph
from qatc.compiler.ports import ports_of_integer, tensor_records
from qatc.compiler.quant import Array
from qatc.compiler.reference import execute
from qatc.compiler.result import TensorCheck
from qatc.compiler.runtime.processor import flattened
from qatc.compiler.runtime.sessions import OrtEvaluator
from qatc.compiler.verify.deployed import DeployedCheck
from qatc.compiler.verify.proof import BUDGET, stages
from qatc.compiler.verify.tally import Tally

Progress = Callable[[str, int, int], None]
_ANY: Final = 1e300


@dataclass(frozen=True)
class ReferenceCheck:
    """What the reference says of a package: a check a tensor; `judged` where its operators were compared one by one."""

    tensors: tuple[TensorCheck, ...]
    judged: bool

    @property
    def passed(self) -> bool:
        """Whether every tensor is what the reference computes, or differs only where it may."""
        return all(check.passed for check in self.tensors)


def check_packaged(
    graph: IntegerGraph,
    names: Mapping[str, str],
    model: Path,
    profile: Profile,
    samples: Sequence[tuple[Mapping[str, Array], Mapping[str, Array]]],
    progress: Progress | None = None,
) -> ReferenceCheck:
    """Compare a package's model with the reference executor on its samples.

    Args:
        graph: the integer graph of the package.
        names: its tensors' names in the model.
        model: the model's file; external data are looked up beside it.
        profile: how the target rounds.
        samples: inputs and outputs of each sample, by port.
        progress: called with what is done, how much of it and of how much.

    Raises:
        CompileError: QAT401 where ONNX Runtime cannot run the model, QAT302 where the reference cannot.
    """
    proto = onnx.ModelProto.FromString(model.read_bytes())
    if _in_floats(graph, names, proto):
        return ReferenceCheck(tuple(_ends(graph, profile, samples, progress)), judged=False)
    check = DeployedCheck(graph, get_profile("onnx"), Emission(proto, names), OrtEvaluator(), model.parent)
    runs = [(check.feeds(inputs), check.start(inputs)) for inputs, _ in samples]
    parts = list(stages(graph, check.names, BUDGET))
    for number, part in enumerate(parts):
        for feeds, values in runs:
            found = check.read(feeds, [name for op in part.ops for name in check.places(op)])
            for index, op in enumerate(part.ops):
                if progress:
                    share = (number + index / len(part.ops)) / len(parts)
                    progress("comparing with the reference", int(share * 1000), 1000)
                check.step(op, values, found)
            for name in part.dead:
                values.pop(name, None)
    return ReferenceCheck(tuple(tally.check() for tally in check.finish()), judged=True)


def check_stated(stored: StoredGraph, manifest: Mapping[str, Any], records: Any) -> None:
    """See that a package says the same of its tensors everywhere.

    Args:
        stored: the integer graph.
        manifest: the manifest, valid under its schema.
        records: quantization.json, likewise.

    Raises:
        ValueError: names the first tensor that is left out, or has another grid or shape than in the integer graph.
    """
    graph = stored.graph
    made = [record_document(record) for record in tensor_records(graph, stored.names, ())]
    told = [{**record, "source": None} for record in records["tensors"]]  # only the source knows its names
    wrong = next((there or here for here, there in zip_longest(made, told) if here != there), None)
    if wrong is not None:
        raise ValueError(f"quantization.json and integer.json disagree about {wrong['name']}")
    for role, names in (("inputs", graph.inputs), ("outputs", graph.outputs)):
        for port, entry in zip(ports_of_integer(graph, names), manifest[role], strict=True):
            stated = port_document(port)
            if (entry["shape"], entry["params"]) != (stated["shape"], stated["params"]):
                raise ValueError(f"the manifest and integer.json disagree about the grid or shape of {port.name}")


def check_golden(manifest: Mapping[str, Any], index: Any) -> None:
    """See that the golden index is that of the golden files. ValueError names the first that is another one.

    What they hold is not computed again: behind floats, another machine may rightly compute other integers.
    """
    for tensor in index["tensors"]:
        for sample in tensor["files"]:
            for form in (sample["npy"], sample["bin"]):
                listed = manifest["files"].get(form["file"])
                if listed is None or listed["sha256"] != form["sha256"]:
                    raise ValueError(f"golden/index.json and the manifest disagree about {form['file']}")


def _in_floats(graph: IntegerGraph, names: Mapping[str, str], model: onnx.ModelProto) -> bool:
    """Whether the model computes in floats what the graph computes in integers; where nothing tells, it does not.

    Products tell, and where there are none, what else must be equal bit for bit: tables, and Resize, whose integers
    ONNX Runtime may compute so as well.
    """
    makers = {name: node for node in flattened(model).graph.node for name in node.output if name}
    products = [op.output for op in graph.ops if isinstance(op, (Conv, MatMul))]
    told = products or [op.output for op in graph.ops if isinstance(op, (Lookup, Resize))]
    kinds: list[str] = []
    for name in told:
        if graph.tensors[name].params is not None:
            maker = makers.get(names.get(name, name))
            while maker is not None and maker.op_type == "Clip":
                maker = makers.get(maker.input[0])
            kinds.append("" if maker is None else maker.op_type)
    return bool(kinds) and all(kind in ("QuantizeLinear", "") for kind in kinds)


def _ends(
    graph: IntegerGraph,
    profile: Profile,
    samples: Sequence[tuple[Mapping[str, Array], Mapping[str, Array]]],
    progress: Progress | None,
) -> Iterator[TensorCheck]:
    """The reference's outputs against those of the samples, in LSB of their grids where they have one."""
    makers = graph.producers()
    evaluate = OrtEvaluator()
    tallies: dict[str, Tally] = {}
    for number, (inputs, outputs) in enumerate(samples):
        if progress:
            progress("running the reference", number, len(samples))
        values = execute(graph, inputs, profile, evaluate=evaluate)
        for name, wanted in outputs.items():
            tally = tallies.setdefault(name, Tally(name, "output", "package"))
            value = values[name]
            if value.shape != wanted.shape or value.dtype != wanted.dtype:
                have, want = f"{value.dtype} {list(value.shape)}", f"{wanted.dtype} {list(wanted.shape)}"
                tally.problem(f"the sample has {want}, the reference {have}")
                continue
            maker = makers.get(name)
            source = maker.inputs[0] if maker is not None and maker.kind == "Dequantize" else name
            params = graph.tensors[source].params
            if params is None:
                tally.floats(value, wanted, _ANY)  # NaN and infinities must be the same
            else:
                theirs, ours = (v if v.dtype.kind in "iu" else params.quantize(v) for v in (wanted, value))
                tally.integers(theirs, ours, params)
    yield from (tally.check() for tally in tallies.values())

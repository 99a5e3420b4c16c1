"""What to change in training, derived from what an inspection found: a line each, the costliest first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from qatc.compiler.diagnostics import counted, few, printable
from qatc.compiler.result import InspectedOp, Inspection
from qatc.compiler.target import OPTIONAL_OPERATORS

_JOINED: Final = ", "
_SAFE_BITS: Final = 7  # two products of such weights and an unsigned byte fit 16 bits
_FEW: Final = 0.05  # share of weak channels that is not worth a word
_HEADS: Final = frozenset({"Softmax", "LogSoftmax", "Sigmoid"})  # last operators that keep the order of the classes
#: What the reason of an island says -> what helps; the operators are filled in.
_ACTIONS: Final = {
    "weight is not quantized": "Quantize the weights of {} in training, too.",
    "constant operand is not quantized": "Quantize the constants that {} read in training, too.",
    "not its output channels": "Quantize the weights of {} along their output channels, or per tensor.",
    "weight is quantized per channel": "Quantize the weights of {} per tensor.",
    "grows so much": "Give what {} read a range of its own, such as a pooled tensor that shares its input's.",
    "no integer kernel": "Quantize what {} read to 8 bits: wider integers run in float.",
    **{f"-p {o}=integer": f"{{}} may run in integers on this target: -p {o}=integer." for o in OPTIONAL_OPERATORS},
    "computed at run time": "Make the bias of {} a constant.",
    "the weight takes 16 bits": "Quantize weights to 8 bits, per output channel: {} joins two products for one.",
    "zero points at both ends": "Keep the zero points of weights at 0: {} joins two products for one (PyTorch's fused"
    " observers move those of channels whose weights have one sign).",
}
_UNRANGED: Final = ("its input is not quantized", "its result is not quantized")  # reasons of what lacks a range


def advice(found: Inspection) -> tuple[str, ...]:
    """The advice for a model; empty where nothing is to be gained."""
    return (*_missing(found), *_floats(found), *_disagreeing(found), *_weights(found.operators), *_sums(found))


def _missing(found: Inspection) -> Iterator[str]:
    outside = [missing.tensor for missing in found.missing if not missing.maker]
    makers = Counter(missing.maker for missing in found.missing if missing.maker)
    if outside:
        yield f"Quantize {_named(outside)} in training, too (PyTorch: a QuantStub in front of the network)."
    if makers:
        names = _named([missing.tensor for missing in found.missing if missing.maker])
        yield f"Quantize the results of {_kinds(makers)} in training, too: {names}."
    if found.missing:
        yield "Or without training again: --calibrate DATA.npy finds these ranges from representative inputs."


def _floats(found: Inspection) -> Iterator[str]:
    floats = [op for op in found.operators if op.kind == "float"]
    last = next((op for op in reversed(found.operators) if op.kind != "moved"), None)
    if last is not None and last.kind == "float" and last.op_type in _HEADS:
        floats.remove(last)
        yield f"Leave the last {last.op_type} out of the exported graph, where the application can do it or do without."
    for reason, action in _ACTIONS.items():
        affected = [op for op in floats if reason in op.reason]
        if affected:
            kinds, nodes = _kinds(Counter(op.op_type for op in affected)), _named([op.node for op in affected])
            yield action.format(f"{kinds} ({nodes})")
    unread = [op for op in floats if any(reason in op.reason for reason in _UNRANGED)]
    if unread and not found.missing:  # no integer operator would read them
        kinds, nodes = _kinds(Counter(op.op_type for op in unread)), _named([op.node for op in unread])
        yield (
            f"Only floats read the results of {kinds} ({nodes}), so that --calibrate leaves them: quantize them in "
            "training, if they are to be integers."
        )
    explained = (*_ACTIONS, "tensors")
    formless = Counter(op.op_type for op in floats if not op.tensor and not any(why in op.reason for why in explained))
    if formless:
        yield f"No integer form, whatever training does: {_kinds(formless)}. Replace them, or accept the conversions."


def _disagreeing(found: Inspection) -> Iterator[str]:
    joins = [d.tensor for d in found.disagreeing if d.op_type == "Concat"]
    twice = [d.tensor for d in found.disagreeing if d.op_type == "Rescale"]
    raw = [d.tensor for d in found.disagreeing if d.op_type not in ("Concat", "Rescale")]
    if joins:
        yield f"Let the inputs of Concat share one observer, so that nothing is rescaled: {_named(joins)}."
    if twice:
        yield f"Round {_named(twice)} once: two observers watch the same values."
    if raw:
        yield f"Let all readers of {_named(raw)} see the rounded value, or none."


def _weights(operators: Sequence[InspectedOp]) -> Iterator[str]:
    weak = [
        (op.node, op.weights)
        for op in operators
        if op.weights is not None and op.weights.weak > _FEW * op.weights.channels
    ]
    if weak:
        number, channels = sum(facts.weak for _, facts in weak), sum(facts.channels for _, facts in weak)
        share = f"{number:,} of {channels:,} channels {'uses' if number == 1 else 'use'} less than 5 of 8 bits"
        yield f"Quantize weights per channel: under one scale {share}, in {_named([node for node, _ in weak])}."
    dead = [(op.node, op.weights.dead) for op in operators if op.weights is not None and op.weights.dead]
    if dead:
        number = sum(count for _, count in dead)
        said = counted(number, "output channel")
        yield f"Prune {said} whose weights are all zero, in {_named([node for node, _ in dead])}."


def _sums(found: Inspection) -> Iterator[str]:
    over = [op.node for op in found.operators if op.sums is not None and op.sums.overflowing]
    if over:
        yield f"Take a bit off the weight range of {_named(over)}, or split it: its sums may leave 32 bits."
    wide = [op for op in found.operators if op.weights is not None and op.weights.bits > _SAFE_BITS]
    pairs = [op for op in wide if op.sums is not None and op.sums.saturating]
    if pairs:
        yield (
            "Train weights in [-64, 63] (reduce_range) if x86 processors without VNNI are a target: in "
            f"{counted(len(pairs), 'operator')} pairs of products may saturate 16 bits there, and run in a slower form."
            " Others need nothing."
        )


def _kinds(counts: Counter[str]) -> str:
    return _JOINED.join(f"{number:,} {printable(kind)}" for kind, number in counts.most_common(5))


def _named(names: Sequence[str]) -> str:
    return few(list(dict.fromkeys(names)))

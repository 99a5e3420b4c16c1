"""`qatc compare`: planted faults are found where they are, dumps in any form are read, hostile ones are refused."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import pytest
from click.testing import CliRunner

from qatc import CompileError, compare_package, compile_model
from qatc.cli import cli
from qatc.compiler.compare.dump import Entry
from qatc.compiler.compare.forms import (
    _channel_orders,  # pyright: ignore[reportPrivateUsage]
    place_forms,
)
from qatc.compiler.compare.interpret import NotATensorError, Place, interpret
from qatc.compiler.compare.package import OpenPackage, open_package
from qatc.compiler.golden.tensors import GoldenTensor, golden_tensors
from qatc.compiler.integer import Dequantize, Op
from qatc.compiler.package.samples import npy_bytes
from qatc.compiler.quant import QuantParams
from qatc.compiler.reference import execute
from qatc.compiler.verify.boundary import Exact, exact_at
from tests.compiler.planted import EVALUATE, PLANTERS
from tests.graphs import net
from tests.tiny_package import replace_file

CORPUS = Path(__file__).resolve().parent.parent / "corpus"
MODELS = ("fx-u8pc__unet", "fx-fbgemm-nofold__resnet8", "tfmot-op13__smallcnn", "fx-u8pc-bnfold__kws1d")
DRAWS = 1  # of each fault, in each model


@dataclass(frozen=True)
class Device:
    """A package and what a device that computes it rightly would dump of its first sample."""

    package: Path
    opened: OpenPackage
    values: Mapping[str, np.ndarray]
    golden: tuple[GoldenTensor, ...]

    def shown(self, name: str) -> str:
        return self.opened.names.get(name, name)

    def dump(self, folder: Path, changed: Mapping[str, np.ndarray] | None = None, *, raw: bool = False) -> Path:
        """Write all integer tensors, some of them changed."""
        folder.mkdir(exist_ok=True)
        for tensor in self.golden:
            value = {**self.values, **(changed or {})}[tensor.name]
            if raw:
                value.tofile(folder / f"{tensor.stem}.bin")
            else:
                np.save(folder / f"{tensor.stem}.npy", value)
        return folder


def device(package: Path) -> Device:
    opened = open_package(package)
    values = execute(opened.graph, opened.samples[0], opened.profile, evaluate=EVALUATE)
    ranks = {name: value.ndim for name, value in values.items()}
    return Device(package, opened, values, tuple(golden_tensors(opened.graph, opened.names, ranks, opened.layout)))


@pytest.fixture(scope="module")
def devices(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Device]:
    folder = tmp_path_factory.mktemp("packages")
    made: dict[str, Device] = {}
    for name in MODELS:
        package = folder / f"{name}.qatc"
        compile_model(CORPUS / name / "model.onnx", qat=True, output=package, verify=False, samples=2, golden=True)
        made[name] = device(package)
    return made


@pytest.fixture
def unet(devices: dict[str, Device]) -> Device:
    return devices["fx-u8pc__unet"]


# -- planted faults -------------------------------------------------------------------------------------------------
def faulty(on: Device, planter, rng: np.random.Generator) -> Iterator[tuple[Op, np.ndarray]]:
    """Operators in random order, with the tensor that the fault makes of theirs."""
    values = {**on.opened.graph.constants, **on.values}
    ops = [op for op in on.opened.graph.ops if on.opened.graph.tensors[op.output].params is not None]
    for index in rng.permutation(len(ops)).tolist():
        wrong = planter(on.opened, ops[index], values, rng)
        if wrong is not None and not np.array_equal(wrong, on.values[ops[index].output]):
            yield ops[index], wrong


def spread(on: Device, op: Op, wrong: np.ndarray) -> dict[str, np.ndarray]:
    """All tensors where the fault is the device's: whatever comes later is computed from it."""
    run = execute(
        on.opened.graph, on.opened.samples[0], on.opened.profile, evaluate=EVALUATE, forced={op.output: wrong}
    )
    return {**run, op.output: wrong}


def test_floats_on_the_way_are_named(tmp_path: Path) -> None:
    """Where floats lie between what was dumped and what differs, they may be why: the message says which."""
    source = CORPUS / "drpai__resnet8" / "model.onnx"
    package = compile_model(source, qat=True, output=tmp_path / "p", verify=False).package
    assert package is not None
    opened = open_package(package)
    dump = tmp_path / "dump"
    dump.mkdir()
    name = opened.graph.outputs[0]
    values = execute(opened.graph, opened.samples[0], opened.profile, evaluate=EVALUATE)
    noise = np.random.default_rng(0).normal(0, 0.2, values[name].shape).astype(np.float32)
    np.save(dump / f"{name}.npy", values[name] + noise)
    found = compare_package(package, dump)
    assert found.first is not None
    assert "computed in floats on the way" in found.first.message
    assert "dump that to tell" in found.first.message


@pytest.mark.parametrize("odd", [np.nan, np.inf, -1e30, 1e300])
def test_numbers_that_no_network_computes_are_told_quietly(unet: Device, tmp_path: Path, odd: float) -> None:
    value = np.load(unet.package / "samples" / "0" / "output_0.npy").astype(np.float64)
    value[0, 0, 0, :2] = odd
    np.save(tmp_path / "output_0.npy", value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = compare_package(unet.package, tmp_path).first
    assert first is not None
    assert first.cause is not None
    assert (first.cause.kind, first.equal_share) == ("unknown", 1 - 2 / value.size)


@pytest.mark.parametrize(("name", "odd"), [("e_unrounded", np.nan), ("s", 2**40)])
def test_what_nothing_can_be_computed_of_is_the_fault_of_its_own_tensor(tmp_path: Path, name: str, odd: float) -> None:
    """NaN cannot be quantized, and sizes may take any memory: both ended the comparison."""
    body = """
        q = A(x)
        e = CumSum(q, axis)
        r = B(e)
        s = Shape(r)
        t = Expand(r, s)
        y = B(t)
    """
    text = net("(float[n, 3] x) => (float[n, 3] y)", body, "int64 axis = {1}")
    onnx.save(onnx.parser.parse_model(text), tmp_path / "net.onnx")
    package = compile_model(tmp_path / "net.onnx", qat=True, output=tmp_path / "p", verify=False).package
    assert package is not None
    opened = open_package(package)
    values = execute(opened.graph, opened.samples[0], opened.profile, evaluate=EVALUATE)
    wrong = np.full_like(values[name], odd)
    np.savez(tmp_path / "dump.npz", **{**values, name: wrong})
    found = compare_package(package, tmp_path / "dump.npz")
    assert [t.tensor for t in found.tensors if not t.passed] == [name]
    assert found.first is not None
    assert found.first.error == "local"


def test_what_follows_from_other_indices_is_no_error_of_its_own(tmp_path: Path) -> None:
    body = """
        q = A(w)
        e = Gather(q, x)
        y = A(e)
    """
    text = net("(int64[1, 4] x) => (float[1, 4, 3] y)", body, "float[5, 3] w = {0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0,"
               " 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0}")  # fmt: skip
    onnx.save(onnx.parser.parse_model(text), tmp_path / "net.onnx")
    package = compile_model(tmp_path / "net.onnx", qat=True, output=tmp_path / "p", verify=False).package
    assert package is not None
    opened = open_package(package)
    ids = 4 - opened.samples[0]["x"]
    np.savez(tmp_path / "dump.npz", **execute(opened.graph, {"x": ids}, opened.profile, evaluate=EVALUATE))
    found = compare_package(package, tmp_path / "dump.npz")
    assert [t.error for t in found.tensors] == ["local", *["accumulated"] * (len(found.tensors) - 1)]


def test_channels_of_floats_are_told_apart_behind_the_point() -> None:
    """All of them were 0 as integers, and no order of theirs was found."""
    base = np.array([[0.125, 0.25, 0.5]], np.float32)
    (guess,) = _channel_orders(base, base[:, ::-1].astype(np.float64))
    assert (guess.kind, guess.detail) == ("channel-order", "the channels run backwards")


def test_planted_faults_are_found(devices: dict[str, Device], tmp_path: Path) -> None:
    """The right tensor every time, the right cause in at least nine of ten."""
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    missed: list[str] = []
    for seed, (name, on) in enumerate(devices.items()):
        for planter, kind in PLANTERS.items():
            rng = np.random.default_rng(seed)
            for draw, (op, wrong) in zip(range(DRAWS), faulty(on, planter, rng), strict=False):
                goes_on = wrong.dtype == on.values[op.output].dtype and total.total() % 2 == 0
                folder = tmp_path / f"{name}-{planter.__name__}-{draw}"
                on.dump(folder, spread(on, op, wrong) if goes_on else {op.output: wrong})
                found = compare_package(on.package, folder)
                first = found.first
                assert first is not None
                assert first.tensor == on.shown(op.output), (planter.__name__, name)
                assert first.error == "local"
                total[kind] += 1
                if first.cause is not None and first.cause.kind == kind:
                    right[kind] += 1
                else:
                    missed.append(f"{planter.__name__} in {name}, {op.kind} {op.output}: {first.cause}")
    assert set(total) == set(PLANTERS.values())
    assert right.total() >= 0.9 * total.total(), missed
    assert min(right[kind] / total[kind] for kind in total) >= 0.75, missed


def test_errors_of_their_own_are_told_from_inherited_ones(unet: Device, tmp_path: Path) -> None:
    """One wrong operator: all that follow are wrong, none of them by itself."""
    op = next(op for op in unet.opened.graph.ops if op.kind == "Conv")
    wrong = np.clip(unet.values[op.output].astype(int) + 3, 0, 255).astype(np.uint8)
    unet.dump(tmp_path / "dump", spread(unet, op, wrong))
    found = compare_package(unet.package, tmp_path / "dump")
    bad = [t for t in found.tensors if not t.passed]
    assert len(bad) > 3
    assert [t.error for t in bad] == ["local", *["accumulated"] * (len(bad) - 1)]
    assert all(t.cause is None for t in bad[1:])


def test_golden_inputs_show_each_operator_alone(unet: Device, tmp_path: Path) -> None:
    """A device that is fed golden inputs, layer by layer: two wrong operators, both their own fault."""
    ops = [op for op in unet.opened.graph.ops if op.kind == "Conv"]
    changed = {op.output: unet.values[op.output] ^ np.uint8(1) for op in (ops[0], ops[2])}
    found = compare_package(unet.package, unet.dump(tmp_path / "dump", changed))
    assert [t.tensor for t in found.tensors if not t.passed] == [unet.shown(n) for n in changed]
    assert {t.error for t in found.tensors if not t.passed} == {"local"}


def test_a_fault_between_dumped_tensors_is_placed(unet: Device, tmp_path: Path) -> None:
    """The tensor that is wrong was not dumped; a later one shows it, and the operator is named."""
    graph = unet.opened.graph
    readers = graph.consumers()
    op = next(
        op
        for op in graph.ops
        if op.kind == "Conv" and len(op.inputs) > 2 and readers[op.output][0].output in {g.name for g in unet.golden}
    )
    planter = next(p for p, kind in PLANTERS.items() if kind == "bias")
    values = {**graph.constants, **unet.values}
    wrong = planter(unet.opened, op, values, np.random.default_rng(0))
    dump = unet.dump(tmp_path / "dump", spread(unet, op, wrong))
    stem = next(g.stem for g in unet.golden if g.name == op.output)
    (dump / f"{stem}.npy").unlink()
    found = compare_package(unet.package, dump)
    assert found.first is not None
    assert found.first.cause is not None
    assert (found.first.cause.kind, found.first.cause.operator) == ("bias", op.source)
    assert unet.shown(op.output) in {m.tensor for m in found.missing}


def test_memory_that_was_not_written_is_told(unet: Device, tmp_path: Path) -> None:
    name = unet.golden[3].name
    right = unet.values[name]
    half = right.size // 2
    tail = f"from element {half:,} of {right.size:,} on every one is 171: "
    for start, number, text in ((0, 0, "every element is 0: "), (0, 255, "every element is 255: "), (half, 171, tail)):
        wrong = right.copy()
        wrong.reshape(-1)[start:] = number
        first = compare_package(unet.package, unet.dump(tmp_path / "dump", {name: wrong})).first
        assert first is not None
        assert first.cause is not None
        assert (first.tensor, first.cause.kind, first.cause.explained) == (unet.shown(name), "memory", 1.0)
        assert first.cause.detail.startswith(text)


def test_memory_that_another_tensor_was_written_to_is_told(unet: Device, tmp_path: Path) -> None:
    shapes = [unet.values[g.name].shape for g in unet.golden]
    one, other = next((i, j) for j in range(len(shapes)) for i in range(1, j) if shapes[i] == shapes[j])
    taken, holds = unet.golden[one].name, unet.golden[other].name
    found = compare_package(unet.package, unet.dump(tmp_path / "dump", {taken: unet.values[holds]}))
    assert [t.tensor for t in found.tensors if not t.passed] == [unet.shown(taken)]
    assert found.first is not None
    assert found.first.cause is not None
    assert found.first.cause.kind == "memory"
    assert found.first.cause.detail.startswith(f"it holds the tensor {holds}: ")


def test_an_operator_that_did_nothing_is_told(devices: dict[str, Device], tmp_path: Path) -> None:
    on = devices["fx-fbgemm-nofold__resnet8"]
    ops = [op for op in on.opened.graph.ops if op.inputs[0] in on.values]
    pairs = ((op, on.values[op.inputs[0]], on.values[op.output]) for op in ops)
    op, x = next((op, x) for op, x, y in pairs if x.shape == y.shape and op.kind == "Conv")
    first = compare_package(on.package, on.dump(tmp_path / "dump", {op.output: x})).first
    assert first is not None
    assert first.cause is not None
    assert (first.tensor, first.cause.kind) == (on.shown(op.output), "memory")
    assert first.cause.detail == f"it holds the tensor {op.inputs[0]}: nothing was done to it"


def test_padding_of_raw_files_is_told(unet: Device, tmp_path: Path) -> None:
    name = next(g.name for g in unet.golden if unet.values[g.name].shape[1] % 8 == 4)
    channels = unet.values[name].shape[1]
    padded = np.pad(unet.values[name], ((0, 0), (0, 4), (0, 0), (0, 0)))
    first = compare_package(unet.package, unet.dump(tmp_path / "dump", {name: padded}, raw=True)).first
    assert first is not None
    assert first.cause is not None
    assert first.cause.kind == "shape"
    assert f"is it padded to {channels + 4} along axis 1" in first.cause.detail
    width = unet.values[name].shape[3]
    doubled = np.pad(unet.values[name], ((0, 0), (0, 0), (0, 0), (0, width)), constant_values=7)
    first = compare_package(unet.package, unet.dump(tmp_path / "dump", {name: doubled}, raw=True)).first
    assert first is not None
    assert first.cause is not None
    assert first.cause.kind == "shape"  # and no words of 16 bits
    unwritten = np.zeros(unet.values[name].shape, np.int16)
    first = compare_package(unet.package, unet.dump(tmp_path / "dump", {name: unwritten}, raw=True)).first
    assert first is not None
    assert first.cause is not None
    assert first.cause.kind == "memory"


def test_three_bytes_are_no_word() -> None:
    entry = Entry("three", "three", None, "three", True, 9, lambda limit: bytes(9)[:limit])
    place = Place((0,), QuantParams.per_tensor(0.5, 0, "int16"), np.dtype(np.int16))
    with pytest.raises(NotATensorError, match="9 bytes, not 6"):
        interpret(entry, place, np.zeros(3, np.int16))


def test_other_axes_than_those_of_a_channels_last_target_are_told() -> None:
    value = np.random.default_rng(0).integers(0, 255, (1, 4, 3, 5))
    place = Place((0, 2, 3, 1), QuantParams.per_tensor(0.5), np.dtype(np.uint8))
    told = [g.detail for g in place_forms(value, value.reshape(1, 3, 5, 4), place)]
    assert "the axes are in the order [0, 3, 1, 2] (NCHW where NHWC should be)" in told


def test_an_input_that_was_not_dumped_is_asked_for_where_most_differs(unet: Device, tmp_path: Path) -> None:
    graph, feeds = unet.opened.graph, unet.opened.samples[1]
    others = execute(graph, feeds, unet.opened.profile, evaluate=EVALUATE)
    dump = unet.dump(tmp_path / "dump", {g.name: others[g.name] for g in unet.golden})
    (dump / f"{unet.golden[0].stem}.npy").unlink()
    first = compare_package(unet.package, dump).first
    assert first is not None
    assert first.cause is not None
    assert first.cause.kind == "unknown"
    assert first.cause.detail.endswith("; was the device fed with samples/0/input_0.npy?")
    assert compare_package(unet.package, dump, sample=1).passed


def test_noise_has_no_cause(unet: Device, tmp_path: Path) -> None:
    name = next(op.output for op in unet.opened.graph.ops if op.kind == "Conv")
    noise = np.random.default_rng(0).integers(0, 256, unet.values[name].shape).astype(np.uint8)
    found = compare_package(unet.package, unet.dump(tmp_path / "dump", {name: noise}))
    assert found.first is not None
    assert found.first.cause is not None
    assert found.first.cause.kind == "unknown"


def test_one_code_is_told_with_what_it_should_be(unet: Device, tmp_path: Path) -> None:
    """How near the exact result was to the boundary between two integers says whether rounding can be the reason."""
    op = next(op for op in unet.opened.graph.ops if op.kind == "Conv")
    wrong = unet.values[op.output].copy()
    place = int(np.flatnonzero((wrong > op.lo) & (wrong < op.hi))[3])
    wrong.flat[place] += 1
    first = compare_package(unet.package, unet.dump(tmp_path / "dump", {op.output: wrong})).first
    assert first is not None
    assert first.cause is not None
    right = int(unet.values[op.output].flat[place])
    told = re.search(r"1 of .* elements differ, .*: (\d+), not (\d+) \(exactly ([\d.]+)\)", first.cause.detail)
    assert told is not None, first.cause.detail
    assert (int(told[1]), int(told[2])) == (right + 1, right)
    assert abs(float(told[3]) - right) <= 0.501  # the bias is rounded


def test_an_exact_result_beyond_the_clamp_says_so(unet: Device, tmp_path: Path) -> None:
    op = next(op for op in unet.opened.graph.ops if op.kind == "Conv")
    wrong = unet.values[op.output].copy()
    base, values = unet.values[op.output], {**unet.opened.graph.constants, **unet.values}
    low = np.flatnonzero(base == op.lo)
    exact = exact_at(unet.opened.graph, op, values, low)
    assert isinstance(exact, Exact)
    place = int(low[int(np.argmin(exact.value))])
    wrong.flat[place] += 1
    first = compare_package(unet.package, unet.dump(tmp_path / "dump", {op.output: wrong})).first
    assert first is not None
    assert first.cause is not None
    assert re.search(rf"{op.lo + 1}, not {op.lo} \(exactly -?[\d.]+, before its clamp\)", first.cause.detail)


# -- what a device team can produce -----------------------------------------------------------------------------------
@pytest.mark.parametrize("io", ["float", "integer"])
def test_inputs_that_differ(tmp_path: Path, io: str) -> None:
    """Nothing makes an input: its form may still be the cause, and noise has none."""
    source = CORPUS / "fx-u8pc__unet" / "model.onnx"
    package = compile_model(source, qat=True, output=tmp_path / "p", verify=False, io=io).package  # type: ignore[arg-type]
    assert package is not None
    opened = open_package(package)
    ((name, value),) = opened.samples[0].items()
    dumps = {
        "layout": np.ascontiguousarray(value.swapaxes(2, 3)).reshape(value.shape),
        "unknown": np.random.default_rng(0).permutation(value.reshape(-1)).reshape(value.shape),
    }
    for kind, held in dumps.items():
        folder = tmp_path / kind
        folder.mkdir()
        np.save(folder / "input_0.npy", held)
        first = compare_package(package, folder).first
        assert first is not None
        assert (first.tensor, first.op, first.error) == (opened.names.get(name, name), "Input", "local")
        assert first.cause is not None
        assert first.cause.kind == kind


def test_a_right_dump_is_equal(devices: dict[str, Device], tmp_path: Path) -> None:
    for name, on in devices.items():
        for raw in (False, True):
            found = compare_package(on.package, on.dump(tmp_path / f"{name}{raw}", raw=raw))
            assert found.passed, found.first
            assert all(m.index is None for m in found.missing)  # results of float islands
            assert all(t.equal_share == 1 and t.max_lsb == 0 and t.cosine == pytest.approx(1) for t in found.tensors)


def test_golden_folder_and_samples_are_dumps(devices: dict[str, Device]) -> None:
    on = devices["fx-fbgemm-nofold__resnet8"]
    golden = compare_package(on.package, on.package / "golden")
    assert golden.passed
    assert {t.sample for t in golden.tensors} == {0, 1}
    samples = compare_package(on.package, on.package / "samples")
    assert samples.passed
    assert {t.tensor for t in samples.tensors} == {"input", "output"}
    assert samples.missing  # said, never skipped silently


def test_a_recorded_answer_is_right_where_floats_tell_it_from_the_reference(unet: Device, tmp_path: Path) -> None:
    """The transposed convolution stays float; in an optimized model its last bits, and so a rounding, are others."""
    (output,) = unet.opened.graph.outputs
    recorded = unet.opened.answers[0][output]
    found = compare_package(unet.package, unet.package / "samples")
    assert found.passed
    said = {t.sample for t in found.tensors if "equal to the recorded sample" in t.message}
    assert (0 in said) == (not np.array_equal(recorded, unet.values[output]))
    other = recorded.copy()
    other.flat[0] += 1
    np.save(tmp_path / f"{output}.npy", other)
    assert not compare_package(unet.package, tmp_path).passed


def named(on: Device, form: str) -> dict[str, np.ndarray]:
    """A dump under names of some form."""
    names: dict[str, np.ndarray] = {}
    for tensor in on.golden:
        key = {
            "package": tensor.package,
            "source": tensor.source,
            "plain": tensor.name.strip("/").replace("/", "_").replace(".", "_").upper(),
            "number": str(tensor.index),
            "tensor number": f"tensor_{tensor.index}",
            "stem": tensor.stem,
        }[form]
        if key is not None:
            names.setdefault(key, on.values[tensor.name])
    return names


@pytest.mark.parametrize("form", ["package", "source", "plain", "number", "tensor number", "stem"])
def test_names(unet: Device, tmp_path: Path, form: str) -> None:
    arrays = named(unet, form)
    path = tmp_path / "dump.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in arrays.items():
            stream = io.BytesIO()
            np.save(stream, value)
            archive.writestr(f"{name}.npy", stream.getvalue())
    found = compare_package(unet.package, path)
    assert found.passed, (found.first, found.diagnostics)
    assert len(found.tensors) == len(arrays)


def test_nested_folders_are_names(unet: Device, tmp_path: Path) -> None:
    for name, value in named(unet, "package").items():
        path = tmp_path / "dump" / f"{name.strip('/')}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, value)
    found = compare_package(unet.package, tmp_path / "dump")
    assert found.passed, (found.first, found.diagnostics)
    assert not found.missing


@pytest.mark.parametrize("dtype", ["int32", "float32", "int64", ">i2"])
def test_element_types(unet: Device, tmp_path: Path, dtype: str) -> None:
    changed = {g.name: unet.values[g.name].astype(dtype) for g in unet.golden}
    assert compare_package(unet.package, unet.dump(tmp_path / "dump", changed)).passed


def test_words_and_real_values(unet: Device, tmp_path: Path) -> None:
    for bits in (16, 32):
        words = {g.name: unet.values[g.name].astype(f"<i{bits // 8}") for g in unet.golden}
        assert compare_package(unet.package, unet.dump(tmp_path / "words", words, raw=True)).passed
        turned = {name: value.byteswap() for name, value in words.items()}
        first = compare_package(unet.package, unet.dump(tmp_path / "turned", turned, raw=True)).first
        assert first is not None
        assert first.cause is not None
        assert first.cause.kind == "byte-order"
        assert f"{bits}-bit word" in first.cause.detail
    real = {g.name: g.params.dequantize(unet.values[g.name]) for g in unet.golden}
    assert compare_package(unet.package, unet.dump(tmp_path / "real", real)).passed
    bytes_ = {n: v for n, v in real.items() if unet.values[n].dtype.itemsize == 1}
    assert compare_package(unet.package, unet.dump(tmp_path / "raw", bytes_, raw=True)).passed
    halves = {n: v.astype("<f2") for n, v in bytes_.items()}
    found = compare_package(unet.package, unet.dump(tmp_path / "raw", halves, raw=True))
    assert found.passed
    assert "16-bit float" in found.tensors[0].message


@pytest.mark.parametrize("zero", [0, 100])
@pytest.mark.parametrize("scale", [2.0, 0.5, 2.0**-5, 0.1, 0.0062])
def test_floats_are_integers_or_real_values(scale: float, zero: int) -> None:
    """Also where real values are whole numbers, or whole numbers lie on the grid; and where elements are wrong."""
    params = QuantParams.per_tensor(scale, zero, "uint8")
    expected = np.random.default_rng(0).integers(0, 256, (2, 3, 8), np.uint8)
    wrong = expected.astype(np.int64)
    wrong[0, 0, :4] = [255, 0, 128, 1]
    for held in (expected.astype(np.int64), wrong):
        for dumped in (held.astype(np.float32), params.dequantize(held)):
            data = npy_bytes(dumped)
            entry = Entry("t.npy", "t", 0, "t", False, len(data), lambda _, data=data: data)
            found = interpret(entry, Place.of(None, expected, params), expected)
            np.testing.assert_array_equal(found.value, held)


def test_shapes(unet: Device, tmp_path: Path) -> None:
    squeezed = {g.name: unet.values[g.name][0] for g in unet.golden}
    assert compare_package(unet.package, unet.dump(tmp_path / "squeezed", squeezed)).passed
    flat = {g.name: unet.values[g.name].reshape(-1) for g in unet.golden}
    assert compare_package(unet.package, unet.dump(tmp_path / "flat", flat)).passed
    last = {g.name: np.moveaxis(unet.values[g.name], 1, -1) for g in unet.golden if unet.values[g.name].ndim == 4}
    found = compare_package(unet.package, unet.dump(tmp_path / "last", last))
    assert found.first is not None
    assert found.first.cause is not None
    assert found.first.cause.kind == "layout"
    wrong = {unet.golden[2].name: unet.values[unet.golden[2].name][:, :1]}
    found = compare_package(unet.package, unet.dump(tmp_path / "wrong", wrong))
    assert found.first is not None
    assert found.first.cause is not None
    assert found.first.cause.kind == "shape"


def test_tolerance(unet: Device, tmp_path: Path) -> None:
    name = unet.golden[3].name
    off = np.clip(unet.values[name].astype(int) + 2, 0, 255).astype(np.uint8)
    dump = unet.dump(tmp_path / "dump", {name: off})
    assert not compare_package(unet.package, dump, tolerance=1).passed
    found = compare_package(unet.package, dump, tolerance=2)
    assert found.passed
    assert next(t for t in found.tensors if t.tensor == unet.shown(name)).max_lsb == 2


def test_the_tolerance_holds_for_floats_that_were_integers(unet: Device, tmp_path: Path) -> None:
    """An output that the device dequantizes is off by whole steps of its grid, however few tensors are dumped."""
    name = unet.opened.graph.outputs[0]
    maker = unet.opened.graph.producers()[name]
    assert isinstance(maker, Dequantize)
    params = unet.opened.graph.tensors[maker.inputs[0]].params
    assert params is not None
    np.savez(tmp_path / "board.npz", output_0=unet.values[name] + np.float32(2 * params.scale[0]))
    strict, loose = (compare_package(unet.package, tmp_path / "board.npz", tolerance=lsb) for lsb in (1, 2))
    assert not strict.passed
    assert loose.passed
    assert [(t.max_lsb, t.mean_lsb) for t in loose.tensors] == [(2, pytest.approx(2, rel=1e-4))]
    assert strict.verdict is not None
    assert "by up to 2 LSB" in strict.verdict.message
    shown = CliRunner().invoke(cli, ["compare", str(unet.package), str(tmp_path / "board.npz"), "--tolerance", "2"])
    assert shown.stdout.startswith("passed ")


def test_floats_that_follow_from_what_is_within_the_tolerance_are_right(tmp_path: Path) -> None:
    """Behind a Softmax nothing counts in LSB: it is right of integers that are within."""
    package = compile_model(
        CORPUS / "tfmot-op13__smallcnn" / "model.onnx", qat=True, output=tmp_path / "p", verify=False
    ).package
    assert package is not None
    on = device(package)
    name = on.opened.graph.outputs[0]
    assert on.opened.graph.producers()[name].kind == "Float"
    logits = next(op for op in reversed(on.opened.graph.ops) if op.kind == "MatMul")
    wrong = on.values[logits.output].copy()
    wrong.flat[:] = np.where(wrong > 0, wrong - 1, wrong + 1)
    dump = on.dump(tmp_path / "dump", everything := spread(on, logits, wrong))
    np.save(dump / "output_0.npy", everything[name])
    assert [compare_package(package, dump, tolerance=lsb).passed for lsb in (0, 1)] == [False, True]
    np.save(dump / "output_0.npy", everything[name] + np.float32(0.1))
    assert not compare_package(package, dump, tolerance=1).passed


def test_another_input_than_the_samples_is_asked_for(unet: Device, tmp_path: Path) -> None:
    """The dump is right, but of the other sample: what differs first is no more than the input, rounded."""
    found = compare_package(unet.package, unet.dump(tmp_path / "dump"), sample=1)
    assert found.first is not None
    assert found.first.op == "Quantize"
    assert found.first.cause is not None
    assert found.first.cause.detail.endswith("; was the device fed with samples/1/input_0.npy?")
    feed = unet.opened.graph.inputs[0]
    np.savez(tmp_path / "input.npz", input_0=unet.opened.samples[0][feed])
    first = compare_package(unet.package, tmp_path / "input.npz", sample=1).first
    assert first is not None
    assert first.cause is not None
    assert first.cause.detail.endswith("; was the device fed with samples/1/input_0.npy?")


def test_what_was_left_out_of_a_dump_without_tensors_is_told(unet: Device, tmp_path: Path) -> None:
    (tmp_path / "0000_input.txt").write_text("1 2 3")
    with pytest.raises(CompileError) as caught:
        compare_package(unet.package, tmp_path)
    assert "left out of the dump: 1 file neither npy, npz nor raw: 0000_input.txt" in str(caught.value)


def test_samples_in_folders(unet: Device, tmp_path: Path) -> None:
    second = execute(unet.opened.graph, unet.opened.samples[1], unet.opened.profile, evaluate=EVALUATE)
    tensor = unet.golden[1]
    for folder, value in (("sample_0", unet.values[tensor.name]), ("1", second[tensor.name])):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / f"{tensor.stem}.npy", value)
    found = compare_package(unet.package, tmp_path)
    assert found.passed
    assert [t.sample for t in found.tensors] == [0, 1]
    np.save(tmp_path / f"{tensor.stem}.npy", second[tensor.name])
    only = compare_package(unet.package, tmp_path, sample=1)
    assert only.passed
    (tmp_path / "7").mkdir()
    np.save(tmp_path / "7" / f"{tensor.stem}.npy", unet.values[tensor.name])
    assert "sample 7" in str(compare_package(unet.package, tmp_path, sample=1).diagnostics[-2:])
    with pytest.raises(CompileError, match="no sample 9") as caught:
        compare_package(unet.package, tmp_path, sample=9)
    assert caught.value.exit_code == 2


# -- hostile dumps ----------------------------------------------------------------------------------------------------
def npy(header: str) -> bytes:
    """An npy file of a hand-written header and no data."""
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


HOSTILE = {
    "huge": npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000000,), }"),
    "overflow": npy("{'descr': '|u1', 'fortran_order': False, 'shape': (4294967296, 4294967296, 4294967296), }"),
    "negative": npy("{'descr': '|u1', 'fortran_order': False, 'shape': (-1,), }"),
    "objects": npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"),
    "code": npy("__import__('os').system('touch owned')"),
    "nested": npy("{'descr': " + "[" * 90 + "}"),
    "empty": b"",
    "not npy": b"hello",
    "cut": npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1, 12, 16, 16), }") + b"\0" * 100,
    "boolean": npy("{'descr': '|u1', 'fortran_order': False, 'shape': (True,), }") + b"\0",
    "text": npy("{'descr': '<U4', 'fortran_order': False, 'shape': (0,), }"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_arrays(unet: Device, tmp_path: Path, kind: str) -> None:
    dump = unet.dump(tmp_path / "dump")
    stem = unet.golden[1].stem
    (dump / f"{stem}.npy").write_bytes(HOSTILE[kind])
    found = compare_package(unet.package, dump)
    assert not found.passed
    assert [d.code for d in found.diagnostics if d.severity.value == "error"] == ["QAT406"]
    assert not (Path.cwd() / "owned").exists()


@pytest.mark.parametrize("value", [-(2**63), 2**63 - 1, 2**63, 2**64 - 1])
def test_integers_farther_away_than_64_bits_hold_are_not_near(unet: Device, tmp_path: Path, value: int) -> None:
    """A difference of -2^63 has no magnitude in int64: it passed as none."""
    name = unet.golden[1].name
    off = unet.values[name].astype(np.int64 if value < 2**63 else np.uint64)
    off.flat[3] = value
    first = compare_package(unet.package, unet.dump(tmp_path / "dump", {name: off}), tolerance=2**31 - 1).first
    assert first is not None
    assert first.tensor == unet.shown(name)
    assert first.max_lsb is not None
    assert first.max_lsb > 2**61
    assert first.elements * (1 - first.equal_share) == pytest.approx(1)


@pytest.mark.filterwarnings("error")
def test_half_precision_is_as_good(unet: Device, tmp_path: Path) -> None:
    halves = {g.name: unet.values[g.name].astype(np.float16) for g in unet.golden if g.params.is_8bit}
    assert compare_package(unet.package, unet.dump(tmp_path / "dump", halves)).passed


def test_what_is_no_tensor_has_no_cause(unet: Device, tmp_path: Path) -> None:
    name = unet.golden[1].name
    dump = unet.dump(tmp_path / "dump", {name: np.full(unet.values[name].shape, np.nan)})
    found = compare_package(unet.package, dump)
    assert found.first is not None
    assert (found.first.cause, found.first.message) == (None, "it holds NaN or infinity where there should be integers")
    assert found.verdict is not None
    assert found.verdict.hint is None


def test_few_of_many_elements_are_counted(unet: Device, tmp_path: Path) -> None:
    name = unet.golden[1].name
    off = unet.values[name].copy()
    off.flat[3] ^= 1
    verdict = compare_package(unet.package, unet.dump(tmp_path / "dump", {name: off})).verdict
    assert verdict is not None
    assert verdict.message.startswith(f"1 of {off.size:,} elements differ, by up to 1 LSB; it is the ")


def test_text_is_not_compared() -> None:
    expected = np.array(["a", "b"], object)
    for is_raw, data in ((True, bytes(16)), (False, npy_bytes(np.zeros(2)))):
        entry = Entry("t", "t", 0, "t", is_raw, len(data), lambda _, data=data: data)
        with pytest.raises(NotATensorError, match="holds text"):
            interpret(entry, Place.of(None, expected, None), expected)


def test_pickles_are_not_loaded(unet: Device, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "owned"),)

    dump = unet.dump(tmp_path / "dump")
    np.save(dump / f"{unet.golden[1].stem}.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    found = compare_package(unet.package, dump)
    assert "Python objects, which are never loaded" in str(found.diagnostics)
    assert not (tmp_path / "owned").exists()


def test_links_and_pipes_are_not_followed(unet: Device, tmp_path: Path) -> None:
    dump = unet.dump(tmp_path / "dump")
    stems = [g.stem for g in unet.golden]
    secret = tmp_path / "secret.npy"
    np.save(secret, unet.values[unet.golden[1].name])
    for stem in stems[1:3]:
        (dump / f"{stem}.npy").unlink()
    (dump / f"{stems[1]}.npy").symlink_to(secret)
    os.mkfifo(dump / f"{stems[2]}.npy")
    (dump / "loop").symlink_to(dump)
    found = compare_package(unet.package, dump)
    assert not found.passed
    said = str([str(d) for d in found.diagnostics])
    assert "symbolic link" in said
    assert "no plain file" in said


def test_folders_that_cannot_be_read_are_told(unet: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dump = unet.dump(tmp_path / "dump")
    (dump / "closed").mkdir()
    real = os.scandir

    def guarded(path: str) -> Any:
        if Path(path).name == "closed":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return real(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(CompileError, match=r"cannot read .*closed: Permission denied") as error:
        compare_package(unet.package, dump)
    assert [d.code for d in error.value.diagnostics] == ["QAT406"]


def test_hostile_archives(unet: Device, tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{unet.golden[1].stem}.npy", b"\0" * (1 << 26))
        archive.writestr(f"{unet.golden[2].stem}.npy", npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1,)}"))
        archive.writestr("../../escape.npy", b"x")
    found = compare_package(unet.package, path)
    assert not found.passed
    assert f"{1 << 26:,} bytes" in str([str(d) for d in found.diagnostics])
    broken = tmp_path / "broken.npz"
    broken.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CompileError, match="no npz file"):
        compare_package(unet.package, broken)


def test_what_is_not_there(unet: Device, tmp_path: Path) -> None:
    for dump in (tmp_path / "nothing", unet.package / "manifest.json"):
        with pytest.raises(CompileError, match="QAT406") as caught:
            compare_package(unet.package, dump)
        assert caught.value.exit_code == 2
    (tmp_path / "strange").mkdir()
    np.save(tmp_path / "strange" / "nobody.npy", np.zeros(3))
    with pytest.raises(CompileError, match="QAT407") as caught:
        compare_package(unet.package, tmp_path / "strange")
    assert caught.value.exit_code == 3
    np.save(tmp_path / "strange" / f"{unet.golden[0].stem}.npy", unet.values[unet.golden[0].name])
    found = compare_package(unet.package, tmp_path / "strange")
    assert found.passed
    assert "nobody" in str(found.diagnostics)
    with pytest.raises(CompileError, match="QAT502"):
        compare_package(tmp_path, unet.package / "golden")


def test_damaged_packages(unet: Device, tmp_path: Path) -> None:
    copy = tmp_path / "copy.qatc"
    shutil.copytree(unet.package, copy)
    document = json.loads((copy / "integer.json").read_text())
    document["operators"][0]["lo"] = 1
    (copy / "integer.json").write_text(json.dumps(document))
    with pytest.raises(CompileError, match=r"integer\.json"):
        compare_package(copy, unet.package / "golden")


def test_parameters_along_an_axis_that_is_not_there(tmp_path: Path) -> None:
    """Movement does not look at the axis, files are written along it: it was a ValueError."""
    body = """
        a = A(x)
        y = Transpose<perm = [1, 0]>(a)
    """
    onnx.save(onnx.parser.parse_model(net("(float[2, 3] x) => (float[3, 2] y)", body)), tmp_path / "net.onnx")
    package = compile_model(tmp_path / "net.onnx", qat=True, output=tmp_path / "p", golden=True, io="integer").package
    assert package is not None
    assert compare_package(package, package / "golden").passed
    document = json.loads((package / "integer.json").read_text())
    (made,) = [op["outputs"][0] for op in document["operators"] if op.get("op_type") == "Transpose"]
    params = next(tensor["params"] for tensor in document["tensors"] if tensor["name"] == made)
    params["axis"] = 7
    replace_file(package, "integer.json", json.dumps(document).encode())
    with pytest.raises(CompileError, match=r"QAT502.*along axis 7 and 2 axes"):
        compare_package(package, package / "golden")


def test_an_archive_is_opened_once(unet: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To open an archive takes time in proportion to its arrays: thousands of tensors took minutes."""
    np.savez(tmp_path / "d.npz", **{tensor.stem: unet.values[tensor.name] for tensor in unet.golden})
    archives: list[Any] = []
    real = zipfile.ZipFile
    monkeypatch.setattr(zipfile, "ZipFile", lambda path: archives.append(path) or real(path))
    assert compare_package(unet.package, tmp_path / "d.npz").passed
    assert len(archives) == 2  # to list what it holds, and to read


# -- the command ------------------------------------------------------------------------------------------------------
def test_command(unet: Device, tmp_path: Path) -> None:
    name = next(op.output for op in unet.opened.graph.ops if op.kind == "Conv")
    shifted = np.clip(unet.values[name].astype(int) + 5, 0, 255).astype(np.uint8)
    dump = unet.dump(tmp_path / "dump", {name: shifted})
    (dump / f"{unet.golden[-1].stem}.npy").unlink()
    found = CliRunner().invoke(cli, ["compare", str(unet.package), str(dump)])
    assert found.exit_code == 3
    told = (
        "differs",
        unet.shown(name),
        "a zero-point shift",
        "every value is +5",
        "not dumped",
        "1 with an error of its own",
    )
    for text in told:
        assert text in found.stdout
    golden = CliRunner().invoke(cli, ["compare", str(unet.package), str(unet.package / "golden"), "--json"])
    assert golden.exit_code == 0
    assert json.loads(golden.stdout)["result"]["passed"] is True
    failed = json.loads(CliRunner().invoke(cli, ["compare", str(unet.package), str(dump), "--json"]).stdout)
    assert failed["result"]["first"] == unet.shown(name)
    assert failed["diagnostics"][-1]["code"] == "QAT405"

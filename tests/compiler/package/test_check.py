"""A package is checked twice over, by its own check.py and by verify_package: good and damaged ones, other results."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import runpy
import shutil
import unittest
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from onnx.backend.base import Backend, BackendRep
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner

from qatc import compile_model
from qatc.compiler.compare.package import open_package
from qatc.compiler.diagnostics import CompileError, Severity
from qatc.compiler.package import Tolerance, check_script
from qatc.compiler.package.samples import npy_bytes
from qatc.compiler.package.stored import read_graph
from qatc.compiler.quant import Array
from qatc.compiler.runtime import processor
from qatc.compiler.runtime.processor import flattened
from qatc.compiler.verify.package import compare, verify_package
from tests.tiny_package import build, codes, edit, replace_file, run_check, text


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("good") / "out")


@pytest.fixture
def package(good: Path, tmp_path: Path) -> Path:
    """A package of one's own to damage."""
    return Path(shutil.copytree(good, tmp_path / "out"))


# -- good packages ------------------------------------------------------------------------------------------------
def test_a_good_package_passes(good: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    found = verify_package(good, progress=lambda what, done, total: seen.append((what, done, total)))
    assert found.passed
    assert found.diagnostics == ()
    assert found.files == len([p for p in good.rglob("*") if p.is_file()]) - 1
    assert [(c.sample, c.output, c.elements, c.different) for c in found.samples] == [
        (0, "q", 8, 0),
        (0, "y", 8, 0),
        (1, "q", 4, 0),
        (1, "y", 4, 0),
    ]
    hashed = [(done, total) for what, done, total in seen if what == "hashing"]
    assert hashed[-1] == (found.size, found.size)
    assert [done for what, done, _ in seen if what != "hashing"] == [0, 1]
    assert verify_package(str(good), samples=False).samples == ()


def test_check_script_says_what_it_did(good: Path) -> None:
    status, out, err = run_check(good)
    assert (status, err) == (0, "")
    assert "files: 21 of 21 have the sha256" in out
    assert "model: model.onnx, onnxruntime" in out
    assert "sample 0: pass 'q' (uint8 2x4): equal" in out
    assert "sample 1: pass 'y' (float32 1x4): equal" in out
    assert out.endswith("ok: 2 of 2 samples match\n")


def test_a_moved_package_passes(package: Path, tmp_path: Path) -> None:
    moved = package.rename(tmp_path / "elsewhere")
    assert verify_package(moved).passed
    assert run_check(moved)[0] == 0


def test_a_target_without_a_model_is_checked_by_its_hashes(tmp_path: Path) -> None:
    package = build(tmp_path / "out", model=None)
    edit(package, lambda document: document.update(model=None))
    found = verify_package(package)
    assert found.passed
    assert found.samples == ()
    assert "none that onnxruntime can run" in run_check(package)[1]


def test_a_package_without_samples(tmp_path: Path) -> None:
    package = build(tmp_path / "out", samples=[])
    shutil.rmtree(package / "samples")
    edit(package, lambda m: m.update(files={k: v for k, v in m["files"].items() if not k.startswith("samples/")}))
    assert verify_package(package).passed
    assert "no samples" in run_check(package)[1]


# -- results that differ ------------------------------------------------------------------------------------------
def off_by_one(outputs: list[Array]) -> None:
    outputs[0][1, 1] += 1


def off_a_little(outputs: list[Array]) -> None:
    outputs[1][0, 0] *= np.float32(1 + 3e-6)


def off_by_one_lsb_in_float(outputs: list[Array]) -> None:
    outputs[1][0, 2] += np.float32(0.5)


def not_a_number(outputs: list[Array]) -> None:
    outputs[1][0, 2] = np.nan


def infinite(outputs: list[Array]) -> None:
    outputs[1][1, 2] = np.inf


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (off_by_one, "1 of 8 elements differ, by 1 at most"),
        (off_by_one_lsb_in_float, "1 of 8 elements differ, by 0.5 at most"),
        (not_a_number, "1 of 8 elements differ, by inf at most"),
        (infinite, "1 of 8 elements differ, by inf at most"),
    ],
)
def test_a_difference_is_found(tmp_path: Path, change: Callable[[list[Array]], None], expected: str) -> None:
    package = build(tmp_path / "out", change=change)
    found = verify_package(package)
    assert not found.passed
    assert codes(found) == {"QAT404"}
    assert expected in text(found)
    status, out, err = run_check(package)
    assert status == 1
    assert f"FAIL {found.diagnostics[0].tensor!r}" in out
    assert expected in out
    assert "samples differ" in err


def test_check_script_knows_saturating_processors() -> None:
    """The same model tells qatc and check.py, which has to do without onnx."""
    namespace: dict[str, Any] = {"__file__": "check.py"}
    exec(compile(check_script(), "check.py", "exec"), namespace)
    probe = onnx.load_from_string(zlib.decompress(base64.b64decode(namespace["PROBE"])))
    assert probe == processor.probe()
    assert namespace["saturates"]() is not processor.is_exact()


_LARGE_SUMS = """<ir_version: 8, opset_import: ["" : 17]>
large (float[1,16] x) => (float[1,16] y)
<float s = {0.1}, uint8 z = {128}, int8 wz = {0}, float large = {100.0}, float[16,16] w = {WEIGHT}> {
  xq = QuantizeLinear(x, s, z)
  xd = DequantizeLinear(xq, s, z)
  wq = QuantizeLinear(w, s, wz)
  wd = DequantizeLinear(wq, s, wz)
  p = MatMul(xd, wd)
  q = QuantizeLinear(p, large, z)
  y = DequantizeLinear(q, large, z)
}"""


@pytest.mark.skipif(processor.is_exact(), reason="no product saturates on this processor")
def test_what_saturates_only_when_it_is_optimized_passes(tmp_path: Path) -> None:
    package, model = tmp_path / "out", tmp_path / "m.onnx"
    onnx.save(onnx.parser.parse_model(_LARGE_SUMS.replace("WEIGHT", ", ".join(["12.7"] * 256))), model)
    compile_model(model, qat=True, target="qdq", output=package)
    found = verify_package(package)
    assert found.passed
    assert [(d.code, d.severity) for d in found.diagnostics] == [("QAT404", Severity.WARNING)]
    assert all(check.passed for check in found.samples)
    status, out, err = run_check(package)
    assert (status, err) == (0, "")
    assert "FAIL" in out
    assert "note: this processor saturates" in out
    assert out.endswith("ok: 1 of 1 samples match without optimizations\n")


def test_a_float_within_its_tolerance_passes(tmp_path: Path) -> None:
    package = build(tmp_path / "out", change=off_a_little)
    found = verify_package(package)
    assert found.passed
    assert [c.different for c in found.samples] == [0, 1, 0, 1]
    status, out, _ = run_check(package)
    assert status == 0
    assert "1 of 8 elements differ, by " in out
    strict = build(tmp_path / "strict", change=off_a_little, tolerances=None)
    assert codes(verify_package(strict)) == {"QAT404"}
    assert run_check(strict)[0] == 1


def test_samples_are_replayed_as_they_were_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On one thread: on several, a sum in floats ends elsewhere, and an integer made of it may be another one."""
    package, threads, real = build(tmp_path / "out"), list[int](), onnxruntime.InferenceSession

    def session(model: Any, options: Any, **others: Any) -> Any:
        threads.append(options.intra_op_num_threads)
        return real(model, options, **others)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    assert verify_package(package).passed
    monkeypatch.chdir(tmp_path)
    with contextlib.suppress(SystemExit):
        runpy.run_path(str(package / "check.py"), run_name="__main__")
    assert threads == [1, 1]


def test_integers_may_be_given_a_tolerance_in_lsb(tmp_path: Path) -> None:
    package = build(tmp_path / "out", change=off_by_one, tolerances=[Tolerance(1.0), Tolerance()])
    assert verify_package(package).passed
    assert run_check(package)[0] == 0


def test_another_shape_or_type_is_a_difference() -> None:
    a = np.zeros((2, 2), np.int8)
    for b in (np.zeros(4, np.int8), np.zeros((2, 2), np.uint8)):
        found = compare(0, "y", a, b, Tolerance(1e9, 1e9))
        assert not found.passed
        assert found.different == 4


def test_equal_infinities_and_nans_are_equal() -> None:
    values = np.array([np.inf, -np.inf, np.nan, 1.0], np.float32)
    assert compare(0, "y", values, values.copy(), Tolerance()).passed
    assert not compare(0, "y", values, -values, Tolerance(1e9, 1e9)).passed
    big = np.array([2**63 - 1, -(2**63)], np.int64)
    assert compare(0, "y", big, big[::-1], Tolerance()).largest == float(2**64 - 1)


# -- damage -------------------------------------------------------------------------------------------------------
def cut_off(package: Path) -> None:
    data = (package / "model.onnx").read_bytes()
    (package / "model.onnx").write_bytes(data[:-1])


def flip_a_bit(package: Path) -> None:
    data = bytearray((package / "model.onnx").read_bytes())
    data[40] ^= 1
    (package / "model.onnx").write_bytes(data)


def lose_a_file(package: Path) -> None:
    (package / "samples" / "0" / "input_0.bin").unlink()


def folder_for_a_file(package: Path) -> None:
    lose_a_file(package)
    (package / "samples" / "0" / "input_0.bin").mkdir()


def pipe_for_a_file(package: Path) -> None:
    lose_a_file(package)
    os.mkfifo(package / "samples" / "0" / "input_0.bin")


def link_for_a_file(package: Path) -> None:
    (package / "model.onnx").rename(package.parent / "model.onnx")
    (package / "model.onnx").symlink_to(package.parent / "model.onnx")


def link_for_a_folder(package: Path) -> None:
    (package / "samples").rename(package.parent / "samples")
    (package / "samples").symlink_to(package.parent / "samples")


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (cut_off, "bytes, the manifest says"),
        (flip_a_bit, "sha256"),
        (lose_a_file, "is missing"),
        (folder_for_a_file, "not a regular file"),
        (pipe_for_a_file, "not a regular file"),
        (link_for_a_file, "link"),
        (link_for_a_folder, "link"),
    ],
)
def test_damage_is_found_and_the_model_not_run(package: Path, damage: Callable[[Path], None], expected: str) -> None:
    damage(package)
    found = verify_package(package)
    assert codes(found) == {"QAT502"}
    assert expected in text(found)
    assert found.samples == ()
    status, out, err = run_check(package)
    assert status == 1
    assert "model:" not in out
    assert any(word in err for word in (expected, "is missing"))


def test_what_git_did_to_files_is_said(package: Path) -> None:
    report, model = package / "check.py", package / "model.onnx"
    report.write_bytes(report.read_bytes().replace(b"\n", b"\r\n"))
    model.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    found = text(verify_package(package))
    assert "check.py: it has " in found
    assert "its lines end as on Windows" in found
    assert "git lfs pull" in found


def test_all_damage_is_found_at_once(package: Path) -> None:
    lose_a_file(package)
    flip_a_bit(package)
    assert len([d for d in verify_package(package).diagnostics if d.code == "QAT502"]) == 2
    assert run_check(package)[2].count("\n") == 2


def test_a_file_too_many_is_a_warning(package: Path) -> None:
    (package / "extra.bin").write_bytes(b"")
    found = verify_package(package)
    assert found.passed
    assert "extra.bin lies in the package" in text(found)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"format": "other"}', b"[" * 200_000, b"\xff\xfe", b"9" * 9999])
def test_a_manifest_that_is_none(package: Path, data: bytes) -> None:
    (package / "manifest.json").write_bytes(data)
    try:
        found = codes(verify_package(package))
    except CompileError as error:
        found = {d.code for d in error.diagnostics}
    assert found == {"QAT502"}
    assert run_check(package)[0] == 1


def test_what_is_stated_twice_is_not_believed(package: Path) -> None:
    """Who reads the first of two equal keys has other samples than who reads the last."""
    path = package / "manifest.json"
    path.write_text(path.read_text().rstrip().removesuffix("}") + ', "samples": []}')
    with pytest.raises(CompileError, match="it states samples twice"):
        verify_package(package)


def test_a_key_is_found_twice_among_very_many(package: Path) -> None:
    """In steps that grow with their number alone: their pairs would be twenty thousand million."""
    keys = ", ".join(f'"{number}": 0' for number in range(200_000))
    (package / "manifest.json").write_text(f'{{{keys}, "199999": 0}}')
    with pytest.raises(CompileError, match="it states 199999 twice"):
        verify_package(package)


def test_a_sample_that_the_manifest_forgot_is_missed(package: Path) -> None:
    edit(package, lambda manifest: manifest.update(samples=manifest["samples"][:1]))
    found = verify_package(package)
    assert codes(found) == {"QAT502"}
    assert "samples/1/input_0.npy, but none of its samples names it" in text(found)


def test_a_pipe_or_link_for_a_manifest(package: Path) -> None:
    path = package / "manifest.json"
    path.rename(package.parent / "elsewhere")
    for make in (os.mkfifo, lambda p: p.symlink_to(package.parent / "elsewhere")):
        make(path)
        with pytest.raises(CompileError, match="QAT502"):
            verify_package(package)
        assert "not a regular file" in run_check(package)[2]
        path.unlink()


def test_no_package_at_all(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(CompileError, match="QAT502"):
            verify_package(path)
    (tmp_path / "check.py").write_bytes(check_script())
    assert "copy the whole package" in run_check(tmp_path)[2]


def test_a_newer_package_is_not_judged(package: Path) -> None:
    edit(package, lambda document: document.update(schema_version=2, surprise=1))
    assert "newer qatc" in text(verify_package(package))
    assert "schema version 2" in run_check(package)[2]


def test_an_interrupted_swap_is_undone_first(package: Path) -> None:
    package.rename(package.with_name(".out.old"))
    assert verify_package(package).passed
    assert [p.name for p in package.parent.iterdir()] == ["out"]


# -- ONNX's own runner --------------------------------------------------------------------------------------------
class OnnxRuntimeBackend(Backend):
    """The least that ONNX's backend test runner needs."""

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> BackendRep:
        import onnxruntime

        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

        class Prepared(BackendRep):
            def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
                names = [port.name for port in session.get_inputs()]
                return tuple(session.run(None, dict(zip(names, inputs, strict=True))))

        return Prepared()

    @classmethod
    def supports_device(cls, device: str) -> bool:
        return device == "CPU"


@pytest.mark.parametrize("change", [None, off_by_one])
def test_onnx_finds_and_runs_the_test_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[list[Array]], None] | None
) -> None:
    build(tmp_path / "real" / "test_tiny", change=change)

    def ours_alone(kind: str) -> list[Any]:
        return load_model_tests(str(tmp_path), kind) if kind == "real" else []

    monkeypatch.setattr("onnx.backend.test.runner.load_model_tests", ours_alone)
    result = unittest.TestResult()
    Runner(OnnxRuntimeBackend, __name__).test_suite.run(result)
    assert len(result.skipped) == 1  # for CUDA
    assert result.testsRun in (1, 2)  # Python 3.12.1 does not count it
    assert len(result.failures) == (1 if change else 0)
    assert not result.errors


# -- the reference ------------------------------------------------------------------------------------------------
CORPUS = Path(__file__).resolve().parents[2] / "corpus"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    destination = tmp_path_factory.mktemp("compiled") / "out"
    compile_model(CORPUS / "tfmot-op13__smallcnn" / "model.onnx", qat=True, output=destination, samples=2)
    return destination


def test_every_tensor_is_compared_with_the_reference(compiled: Path) -> None:
    seen: list[str] = []
    found = verify_package(compiled, progress=lambda what, done, total: seen.append(what))
    assert found.passed
    assert found.judged
    graph = open_package(compiled).graph
    assert len(found.tensors) == len([o for op in graph.ops for o in op.outputs])
    assert all(check.histogram == {0: check.elements} for check in found.tensors)
    assert "comparing with the reference" in seen
    assert verify_package(compiled, reference=False).tensors == ()


def record(package: Path, sample: int, name: str, output: Array) -> None:
    """Write another output of a sample in all its forms, and the hashes with it."""
    replace_file(package, f"samples/{sample}/output_0.npy", npy_bytes(output))
    replace_file(package, f"samples/{sample}/output_0.bin", output.tobytes())
    replace_file(
        package, f"test_data_set_{sample}/output_0.pb", onnx.numpy_helper.from_array(output, name).SerializeToString()
    )


def test_a_model_that_rounds_otherwise_is_found(compiled: Path, tmp_path: Path) -> None:
    """A scale in model.onnx is changed and the samples with it, so that only the reference sees it."""
    package = Path(shutil.copytree(compiled, tmp_path / "out"))
    model = onnx.load(package / "model.onnx")
    node = next(n for n in flattened(model).graph.node if n.op_type == "QLinearConv")
    scale = next(i for i in model.graph.initializer if i.name == node.input[4])
    array = onnx.numpy_helper.to_array(scale)
    scale.CopyFrom(onnx.numpy_helper.from_array((array * np.float32(1.001)).astype(np.float32), scale.name))
    replace_file(package, "model.onnx", model.SerializeToString())
    session = onnxruntime.InferenceSession(package / "model.onnx", providers=["CPUExecutionProvider"])
    for sample in ("0", "1"):
        feed = {session.get_inputs()[0].name: np.load(package / "samples" / sample / "input_0.npy")}
        record(package, int(sample), session.get_outputs()[0].name, np.asarray(session.run(None, feed)[0]))
    assert run_check(package)[0] == 0
    found = verify_package(package)
    assert codes(found) == {"QAT401"}
    (wrong,) = [check for check in found.tensors if not check.passed]
    assert wrong.tensor == node.output[0].removesuffix("_quantized") or node.output[0].startswith(wrong.tensor)
    assert verify_package(package, reference=False).passed


def test_a_model_of_floats_is_measured(tmp_path: Path) -> None:
    source = CORPUS / "tfmot-op13__smallcnn" / "model.onnx"
    package = compile_model(source, qat=True, target="qdq", output=tmp_path / "out").package
    assert package is not None
    found = verify_package(package)
    assert found.passed
    assert not found.judged
    assert [check.op for check in found.tensors] == ["output"]
    assert found.tensors[0].max_lsb <= 2


def test_an_integer_graph_that_contradicts_the_model(compiled: Path, tmp_path: Path) -> None:
    package = Path(shutil.copytree(compiled, tmp_path / "out"))
    document = json.loads((package / "integer.json").read_bytes())
    document["constants"] = document["constants"][1:]
    replace_file(package, "integer.json", json.dumps(document).encode())
    found = verify_package(package)
    assert codes(found) == {"QAT502"}
    assert "the package contradicts itself" in text(found)


def _double(params: dict[str, Any]) -> None:
    params["scale"] = [2 * s for s in params["scale"]]


@pytest.mark.parametrize("change", [_double, lambda p: p.update(qmax=10**6), lambda p: p.update(zero_point=[7, 7])])
def test_grids_that_the_integer_graph_does_not_have(
    compiled: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    """Somebody edits what a device team reads, and the hashes with it: the model still gives the samples' outputs."""
    records = Path(shutil.copytree(compiled, tmp_path / "records"))
    document = json.loads((records / "quantization.json").read_bytes())
    change(document["tensors"][3])
    replace_file(records, "quantization.json", json.dumps(document).encode())
    ports = Path(shutil.copytree(compiled, tmp_path / "ports"))
    edit(ports, lambda manifest: change(manifest["inputs"][0]["params"]))
    shapes = Path(shutil.copytree(compiled, tmp_path / "shapes"))
    edit(shapes, lambda manifest: manifest["outputs"][0].update(shape=[1, 7]))
    for package, said in (
        (shapes, "the manifest and integer.json disagree"),
        (records, "quantization.json and integer.json disagree"),
        (ports, "the manifest and int"),
    ):
        found = verify_package(package)
        assert codes(found) == {"QAT502"}
        assert said in text(found)


RECORDS: dict[str, Callable[[list[dict[str, Any]]], object]] = {
    "one is left out": lambda tensors: tensors.pop(3),
    "the last is left out": lambda tensors: tensors.pop(),
    "one is added": lambda tensors: tensors.append({**tensors[-1], "name": "another"}),
    "one is there twice": lambda tensors: tensors.append(tensors[-1]),
    "a weight is an activation": lambda tensors: next(t for t in tensors if t["role"] == "weight").update(
        role="activation"
    ),
    "two have changed names": lambda tensors: tensors[0].update(name=tensors[1]["name"]),
}


@pytest.mark.parametrize("how", RECORDS)
def test_records_that_are_not_those_of_the_integer_graph(compiled: Path, tmp_path: Path, how: str) -> None:
    package = Path(shutil.copytree(compiled, tmp_path / "out"))
    document = json.loads((package / "quantization.json").read_bytes())
    RECORDS[how](document["tensors"])
    replace_file(package, "quantization.json", json.dumps(document).encode())
    found = verify_package(package)
    assert codes(found) == {"QAT502"}
    assert "quantization.json and integer.json disagree" in text(found)


def test_golden_tensors_that_their_index_does_not_know(tmp_path: Path) -> None:
    source = CORPUS / "tfmot-op13__smallcnn" / "model.onnx"
    package = compile_model(source, qat=True, golden=True, output=tmp_path / "out").package
    assert package is not None
    assert verify_package(package).passed
    tensor = next((package / "golden" / "0").glob("0003_*.bin"))
    replace_file(package, f"golden/0/{tensor.name}", tensor.read_bytes()[::-1])
    found = verify_package(package)
    assert codes(found) == {"QAT502"}
    assert f"golden/index.json and the manifest disagree about golden/0/{tensor.name}" in text(found)


@pytest.mark.parametrize("stem", ["input_0", "output_0"])
@pytest.mark.parametrize("form", ["samples/1/{}.bin", "test_data_set_1/{}.pb"])
def test_forms_of_a_sample_that_differ(compiled: Path, tmp_path: Path, form: str, stem: str) -> None:
    """Devices read the raw bytes, which no replay touches."""
    package, name = Path(shutil.copytree(compiled, tmp_path / "out")), form.format(stem)
    content = bytearray((package / name).read_bytes())
    content[-1] ^= 1
    replace_file(package, name, bytes(content))
    for data in (bytes(content), b"x", bytes(content)[:-4]):
        replace_file(package, name, data)
        found = verify_package(package)
        assert codes(found) == {"QAT502"}
        assert "the package contradicts itself" in text(found)
        assert not found.tensors


@pytest.mark.parametrize(
    ("kind", "change", "code", "said"),
    [
        ("Conv", {"strides": [0, 0]}, "QAT502", "0 is less than the minimum of 1"),
        ("Conv", {"dilations": [1, 1 << 62]}, "QAT502", "greater than the maximum"),
        ("Conv", {"dilations": [1]}, "QAT502", "strides, dilations and pads of different axes"),
        ("Conv", {"strides": [2.0, 2.0]}, "QAT502", "2.0 is not of type 'integer'"),
        ("Conv", {"inputs": [""]}, "QAT502", "cannot have the operands"),
        ("Conv", {"acc_scale": [1e300]}, "QAT502", "greater than the maximum"),
        ("Conv", {"acc_scale": [float("nan")]}, "QAT502", "it holds NaN"),
        ("Conv", {"pads": [10**5] * 4}, "QAT011", "an exact convolution would take"),
        ("Pool", {"kernel": [0, 0]}, "QAT502", "0 is less than the minimum of 1"),
        ("Pool", {"kernel": [9, 9], "pads": [10**6] * 4}, "QAT011", "padding a pooling would take"),
    ],
)
def test_sizes_of_an_integer_graph_that_would_harm(
    compiled: Path, tmp_path: Path, kind: str, change: dict[str, Any], code: str, said: str
) -> None:
    """The hashes are right: whoever made the package meant it."""
    package = Path(shutil.copytree(compiled, tmp_path / "out"))
    document = json.loads((package / "integer.json").read_bytes())
    next(op for op in document["operators"] if op["kind"] == kind).update(change)
    replace_file(package, "integer.json", json.dumps(document).encode())
    found = verify_package(package)
    assert codes(found) == {code}
    assert said in text(found)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ""),
        ({"offset": "-4096"}, "no such number"),
        ({"offset": str(1 << 70)}, "not where its data are said to be"),
        ({"offset": "9" * 5000}, "no such number"),
        ({"offset": "1"}, "not where its data are said to be"),
        ({"length": "1"}, "not where its data are said to be"),
        ({"location": "other.bin"}, "which is no file of the package"),
        ({"again": "w.bin"}, "twice"),
    ],
)
def test_constants_in_a_file_of_their_own(compiled: Path, tmp_path: Path, change: dict[str, str], said: str) -> None:
    """What ONNX Runtime would refuse as well; `compare` and `evaluate` read without asking it first."""
    package = Path(shutil.copytree(compiled, tmp_path / "out"))
    model = onnx.load(package / "model.onnx")
    stored = {c.get("initializer") for c in json.loads((package / "integer.json").read_bytes())["constants"]}
    tensor = next(t for t in model.graph.initializer if t.name in stored and len(t.dims) == 4)
    data = onnx.numpy_helper.to_array(tensor).tobytes()
    tensor.CopyFrom(onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims))
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": "w.bin", "offset": "0", "length": str(len(data)), **change}.items():
        tensor.external_data.add(key="location" if key == "again" else key, value=value)
    replace_file(package, "w.bin", data)
    replace_file(package, "model.onnx", model.SerializeToString())
    manifest = json.loads((package / "manifest.json").read_bytes())
    if said:
        with pytest.raises(ValueError, match=said):
            read_graph(package, manifest)
        assert codes(verify_package(package)) == {"QAT502"}
    else:
        assert verify_package(package).passed

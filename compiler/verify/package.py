"""`qatc verify PACKAGE`: is a package, wherever it was copied to, still the one that was written, and does it work?

Nothing in the package is trusted. The manifest's names stay inside the folder, every file is hashed before anything
reads it, and the model is only run once all hashes agree. The hashes find damage; against somebody who changes the
manifest as well, only a signature helps.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from qatc.compiler.damaged import looking, reason
from qatc.compiler.diagnostics import (
    CompileError,
    Diagnostic,
    Diagnostics,
    counted,
    fail,
    has_errors,
    printable,
)
from qatc.compiler.golden.tensors import INDEX
from qatc.compiler.model.protos import all_bodies, all_nodes, tensors_of
from qatc.compiler.npy import npy_array
from qatc.compiler.package import MANIFEST, Tolerance, recover, schema
from qatc.compiler.package.read import COMPILE_AGAIN, LARGEST_JSON, read_json, regular_file, unlisted_files
from qatc.compiler.package.signing import check_signature
from qatc.compiler.package.stored import TROUBLE, check_forms
from qatc.compiler.quant import Array
from qatc.compiler.result import Json, TensorCheck
from qatc.compiler.runtime.processor import is_exact
from qatc.compiler.runtime.sessions import ForRuntime, file_options, run_session
from qatc.compiler.verify.packaged import Progress

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

    from qatc.compiler.verify.packaged import ReferenceCheck

_CHUNK: Final = 1 << 22
_LARGEST_TEXT: Final = 16 << 20  # of a file whose line ends are counted
_MOST_FINDINGS: Final = 20  # of one kind: a damaged disk damages many files
_COPY_AGAIN: Final = "copy the package again, or compile it again"
_RECORDS: Final = "quantization.json"
_SCHEMAS: Final = {
    _RECORDS: "quantization",
    "report.json": "report",
    "integer.json": "integer",
    INDEX: "golden",
}

#: Called with what is being done, how much of it is done and how much there is (bytes, then samples).


@dataclass(frozen=True)
class SampleCheck:
    """One output of one sample, replayed: how many elements differ, by how much at most, whether that is allowed.

    `message` says what else is wrong: that the result has another type or shape.
    """

    sample: int
    output: str
    elements: int
    different: int
    largest: float
    passed: bool
    message: str = ""


@dataclass(frozen=True)
class PackageCheck:
    """What `verify_package` found. `samples` is empty where they were not replayed.

    `files` counts the files that the manifest lists, `damaged` those of them that are not what it says, `size` is the
    sum of the others in bytes.

    `tensors` has a check for each tensor that was compared with the reference executor; it is empty where that was not
    asked for or the package holds no integer graph. `judged` is False where the outputs alone were compared, since the
    model computes in floats.
    """

    path: Path
    files: int
    size: int
    samples: tuple[SampleCheck, ...]
    diagnostics: tuple[Diagnostic, ...]
    tensors: tuple[TensorCheck, ...] = ()
    judged: bool = True
    damaged: int = 0

    @property
    def passed(self) -> bool:
        """Whether there is no error."""
        return not has_errors(self.diagnostics)


def verify_package(
    path: str | Path,
    *,
    samples: bool = True,
    reference: bool = True,
    key: str | Path | None = None,
    identity: str | None = None,
    roots: str | Path | None = None,
    progress: Progress | None = None,
) -> PackageCheck:
    """Check a package: manifest and JSON files against their schemas, all hashes, and the samples.

    The samples go through ONNX Runtime, whose outputs must be those of the package, and through the reference executor,
    with which every tensor is compared, operator by operator.

    Findings are collected, not raised: QAT502 for whatever is damaged, QAT404 for a sample whose outputs differ, QAT401
    for a tensor that the reference computes otherwise, QAT010 where onnxruntime is missing.

    Args:
        path: the package's folder.
        samples: False does not run the model.
        reference: False leaves the reference executor out, which takes seconds for every 10^9 multiply-accumulates.
        key: the public key, a PEM file, of whoever must have signed the package; or
        identity: the name in the certificate of whoever must have signed it,
        roots: and a PEM file of the certificates that such a certificate is to be issued under.
        progress: called with what is being done, how much of it is done and how much there is.

    Raises:
        CompileError: QAT502 where there is no package at all, QAT503 where it is being written right now, QAT504 with
            exit code 3 where the signature does not hold, QAT007 with exit code 2 where it cannot be checked so.

    >>> from qatc import compile_model, verify_package
    >>> result = compile_model("samples/models/resnet8_qat.onnx", qat=True, output=f"{tmp}/resnet8.qatc")
    >>> verify_package(result.package).passed
    True
    """
    folder = Path(path)
    recover(folder)
    manifest = _read_manifest(folder)
    if key is not None or identity is not None or roots is not None:
        public, trusted = (None if file is None else Path(file) for file in (key, roots))
        check_signature(folder, public, identity=identity, roots=trusted)
    found = Diagnostics()
    _check_schema(manifest, "manifest", MANIFEST, found)
    if found.errors:
        return PackageCheck(folder, 0, 0, (), tuple(found))
    size, damaged = _check_files(folder, manifest["files"], found, progress)
    with looking("QAT502", folder, "check the permissions of the folders in it"):
        strangers = unlisted_files(folder, manifest)
    for name in strangers[:_MOST_FINDINGS]:
        found.warning("QAT502", f"{printable(name)} lies in the package but is no part of it")
    _check_documents(folder, manifest["files"], found)
    _check_references(manifest, found)
    if manifest["model"] is not None and not found.errors:
        _check_external_data(folder, manifest["model"], manifest["files"], found)
    checks: list[SampleCheck] = []
    if samples and manifest["model"] is not None and not found.errors:
        checks = _replay(folder, manifest, found, progress)
    if samples and not found.errors:
        _check_forms(folder, manifest, found)
    referred: ReferenceCheck | None = None
    if checks and reference and not found.errors:
        referred = _refer(folder, manifest, found, progress)
    tensors, judged = (referred.tensors, referred.judged) if referred is not None else ((), True)
    files = len(manifest["files"])
    return PackageCheck(folder, files, size, tuple(checks), tuple(found), tensors, judged, damaged)


# -- the manifest -------------------------------------------------------------------------------------------------
def _read_manifest(folder: Path) -> Any:
    shown = printable(str(folder))
    hint = "give the folder that qatc compile wrote"
    try:
        return read_json(folder, MANIFEST)
    except NotADirectoryError as error:
        raise fail("QAT502", f"{shown} is not a folder", hint=hint) from error
    except FileNotFoundError as error:
        if not folder.exists():
            raise fail("QAT502", f"{shown} does not exist", hint=hint) from error
        raise fail("QAT502", f"{shown} has no {MANIFEST}", hint=f"{hint}; {_COPY_AGAIN}") from error
    except (OSError, ValueError) as error:
        raise fail("QAT502", f"{shown}: {MANIFEST} cannot be read: {reason(error)}", hint=_COPY_AGAIN) from error


def _parse(folder: Path, name: str, found: Diagnostics) -> Any:
    try:
        return read_json(folder, name)
    except (OSError, ValueError) as error:
        found.error("QAT502", f"{name} cannot be read: {reason(error)}", hint=_COPY_AGAIN)
        return None


def _check_documents(folder: Path, files: Container[str], found: Diagnostics) -> None:
    """The package's other JSON files against their schemas, up to the first that is damaged."""
    for name, schema_name in _SCHEMAS.items():
        if name in files and not found.errors:
            document = _parse(folder, name, found)
            if not found.errors:
                _check_schema(document, schema_name, name, found)


def _check_schema(document: Json, schema_name: str, name: str, found: Diagnostics) -> None:
    if not isinstance(document, Mapping):
        found.error("QAT502", f"{name} does not hold a JSON object", hint=_COPY_AGAIN)
        return
    version = document.get("schema_version")
    if isinstance(version, int) and version > 1:
        found.error(
            "QAT502", f"{name} has schema version {version}", hint="verify it with a newer qatc; this one knows 1"
        )
        return
    try:
        for error in itertools.islice(_validator(schema_name).iter_errors(document), _MOST_FINDINGS):
            where = "".join(f"[{part!r}]" for part in error.absolute_path)
            found.error("QAT502", f"{name}{printable(where)}: {printable(error.message)}", hint=_COPY_AGAIN)
    except RecursionError:
        found.error("QAT502", f"{name} is nested too deeply", hint=_COPY_AGAIN)


@functools.cache
def _validator(schema_name: str) -> Any:
    from jsonschema import Draft202012Validator, validators

    made: Any = validators  # whose types are partly unknown
    integers: Any = Draft202012Validator.TYPE_CHECKER.redefine("integer", _is_integer)
    return made.extend(Draft202012Validator, type_checker=integers)(schema(schema_name))


def _is_integer(_: object, value: object) -> bool:
    """Whether a number is written as an integer: for JSON Schema 2.0 and 1e30 are such, too, and no index."""
    return isinstance(value, int) and not isinstance(value, bool)


def _check_references(manifest: Mapping[str, Any], found: Diagnostics) -> None:
    """The manifest's own names agree: model and samples are listed files, one per port, and no sample is left out."""
    files = manifest["files"]
    names = [manifest["model"]] if manifest["model"] is not None else []
    for index, sample in enumerate(manifest["samples"]):
        for role in ("inputs", "outputs"):
            names += sample[role]
            if len(sample[role]) != len(manifest[role]):
                message = f"sample {index} has {len(sample[role])} {role}, the model {len(manifest[role])}"
                found.error("QAT502", message, hint=_COPY_AGAIN)
    for name in dict.fromkeys(names):
        if name not in files:
            found.error("QAT502", f"the manifest names {printable(name)} but does not list it", hint=_COPY_AGAIN)
    named = set(names)
    left = [name for name in files if name.startswith("samples/") and name.endswith(".npy") and name not in named]
    if left:
        message = f"the manifest lists {printable(left[0])}, but none of its samples names it"
        found.error("QAT502", message, hint=_COPY_AGAIN)


# -- hashes -------------------------------------------------------------------------------------------------------
def _check_files(
    folder: Path, files: Mapping[str, Mapping[str, Any]], found: Diagnostics, progress: Progress | None
) -> tuple[int, int]:
    """Hash every listed file; returns the bytes of those that are whole, and how many are not."""
    total, done, wrong = sum(entry["size"] for entry in files.values()), 0, 0
    for name, entry in files.items():
        problem = _file_problem(folder, name, entry)
        if problem:
            wrong += 1
            if wrong <= _MOST_FINDINGS:
                found.error("QAT502", f"{printable(name)}: {problem}", hint=_COPY_AGAIN)
        else:
            done += entry["size"]
        if progress:
            progress("hashing", done, total)
    if wrong > _MOST_FINDINGS:
        found.error("QAT502", f"and {counted(wrong - _MOST_FINDINGS, 'more damaged file')}", hint=_COPY_AGAIN)
    return done, wrong


def _file_problem(folder: Path, name: str, entry: Mapping[str, Any]) -> str | None:
    """What is wrong with a listed file, or None; a file of the wrong size is not hashed."""
    try:
        path = regular_file(folder, name)
        size = path.stat().st_size
        if size != entry["size"]:
            return (
                f"it has {size:,} bytes, the manifest says {entry['size']:,}{_done_by_git(path, size - entry['size'])}"
            )
        digest = hashlib.sha256()
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    except FileNotFoundError:
        return "it is missing"
    except (OSError, ValueError) as error:
        return reason(error)
    return None if digest.hexdigest() == entry["sha256"] else "its sha256 is not that of the manifest"


def _done_by_git(path: Path, larger: int) -> str:
    """Why a file's size is another, in words, where a git checkout is why."""
    with path.open("rb") as stream:
        start = stream.read(_LARGEST_TEXT)
    if start.startswith(b"version https://git-lfs"):
        return ": it is a pointer of Git LFS; git lfs pull fetches the file"
    if larger > 0 and start.count(b"\r\n") == larger:
        return ": its lines end as on Windows; `**/*.qatc/** -text` in .gitattributes makes git leave them"
    return ""


# -- samples ------------------------------------------------------------------------------------------------------
def _check_forms(folder: Path, manifest: Mapping[str, Any], found: Diagnostics) -> None:
    try:
        check_forms(folder, manifest)
    except TROUBLE as error:
        found.error("QAT502", f"the package contradicts itself: {reason(error)}", hint=_COPY_AGAIN)


def _replay(
    folder: Path, manifest: Mapping[str, Any], found: Diagnostics, progress: Progress | None
) -> list[SampleCheck]:
    checks: list[SampleCheck] = []
    try:
        for each in _results(folder, manifest, progress, optimize=True):
            checks += each  # an error further on takes none of them away
        if not all(check.passed for check in checks) and not is_exact():
            plain = [check for each in _results(folder, manifest, progress, optimize=False) for check in each]
            if all(check.passed for check in plain):
                message = (
                    "this processor saturates 8-bit products (x86 without VNNI), and ONNX Runtime's optimizations make"
                    " such of Q/DQ: the samples match only without them"
                )
                hint = "switch them off where ONNX Runtime is to run the model on such a processor, or take -t onnx"
                found.warning("QAT404", message, hint=hint)
                return plain
    except CompileError as error:
        for diagnostic in error.diagnostics:
            found.add(diagnostic)
    for check in checks:
        if not check.passed:
            differ = f"{check.different:,} of {check.elements:,} elements differ, by {check.largest:.6g} at most"
            message = f"sample {check.sample}: {check.message or differ}"
            hint = "this machine computes otherwise: compare the onnxruntime version and the processor"
            found.error("QAT404", message, tensor=check.output, hint=hint)
    return checks


def _results(
    folder: Path, manifest: Mapping[str, Any], progress: Progress | None, *, optimize: bool
) -> Iterator[list[SampleCheck]]:
    """Every sample through ONNX Runtime, with its default optimizations or with none."""
    session = _open_model(folder, manifest, optimize=optimize)
    for index, sample in enumerate(manifest["samples"]):
        if progress:
            progress("replaying samples", index, len(manifest["samples"]))
        yield _replay_sample(folder, manifest, index, sample, session)


def _open_model(folder: Path, manifest: Mapping[str, Any], *, optimize: bool) -> InferenceSession:
    name: str = manifest["model"]
    try:
        import onnxruntime
    except ImportError as error:
        raise fail(
            "QAT010", "onnxruntime is missing", hint="pip install onnxruntime, or leave the samples out"
        ) from error
    options = file_options(optimize=optimize)
    try:  # once: what is printed before another try shows names as they are
        session = onnxruntime.InferenceSession(
            ForRuntime(folder / name), options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
    except Exception as error:  # onnxruntime has no public base class for its errors
        message = f"onnxruntime {onnxruntime.__version__} cannot load {name}: {printable(str(error))}"
        raise fail("QAT502", message, hint="try the onnxruntime version that the package was made for") from error
    for role, ports in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
        have, want = [port.name for port in ports], [port["name"] for port in manifest[role]]
        if have != want:
            message = f"{name} has the {role} {printable(', '.join(have))}, the manifest {printable(', '.join(want))}"
            raise fail("QAT502", message, hint=_COPY_AGAIN)
    return session


def _check_external_data(folder: Path, name: str, files: Mapping[str, Any], found: Diagnostics) -> None:
    """Whatever the model reads beside itself must be a listed, and so a hashed, file."""
    path = folder / name
    if path.stat().st_size >= 1 << 31:
        found.error("QAT502", f"{name} is larger than protobuf allows", hint=_COPY_AGAIN)
        return
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except (DecodeError, ValueError) as error:
        found.error("QAT502", f"{name} is not an ONNX model: {reason(error)}", hint=_COPY_AGAIN)
        return
    folders = name.split("/")[:-1]
    stranger = next((each for each in _locations(model) if "/".join([*folders, each]) not in files), None)
    if stranger is not None:
        message = f"{name} reads the file {printable(stranger)}, which is no part of the package"
        found.error("QAT502", message, hint="do not run this model")


def _locations(model: onnx.ModelProto) -> Iterator[str]:
    """The external files of a model."""
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    tensors = [t for node in all_nodes(nodes) for a in node.attribute for t in tensors_of(a)]
    for graph in (model.graph, *all_bodies(nodes)):
        tensors += graph.initializer
        tensors += [part for s in graph.sparse_initializer for part in (s.values, s.indices)]
    for tensor in tensors:
        yield from (entry.value for entry in tensor.external_data if entry.key == "location")


def _replay_sample(
    folder: Path,
    manifest: Mapping[str, Any],
    index: int,
    sample: Mapping[str, Sequence[str]],
    session: InferenceSession,
) -> list[SampleCheck]:
    feeds = {port["name"]: _load(folder, name) for port, name in zip(manifest["inputs"], sample["inputs"], strict=True)}
    try:
        results = run_session(session, [port["name"] for port in manifest["outputs"]], feeds)
    except CompileError:
        raise
    except Exception as error:  # onnxruntime has no public base class for its errors
        raise fail("QAT502", f"sample {index} cannot be run: {printable(str(error))}", hint=_COPY_AGAIN) from error
    checks: list[SampleCheck] = []
    for port, name, result in zip(manifest["outputs"], sample["outputs"], results, strict=True):
        tolerance = Tolerance(port["tolerance"]["absolute"], port["tolerance"]["relative"])
        checks.append(compare(index, port["name"], _load(folder, name), np.asarray(result), tolerance))
    return checks


def _refer(
    folder: Path, manifest: Mapping[str, Any], found: Diagnostics, progress: Progress | None
) -> ReferenceCheck | None:
    """The samples through the reference executor; None for a package without an integer graph."""
    from qatc.compiler.arithmetic import get_profile
    from qatc.compiler.package.stored import read_graph, read_samples
    from qatc.compiler.verify.packaged import check_golden, check_packaged, check_stated

    try:
        stored = read_graph(folder, manifest)
        if stored is None:
            return None
        if _RECORDS in manifest["files"]:
            check_stated(stored, manifest, read_json(folder, _RECORDS))
        if INDEX in manifest["files"]:
            check_golden(manifest, read_json(folder, INDEX))
        every = (read_samples(folder, manifest, role) for role in ("inputs", "outputs"))
        samples = list(zip(*every, strict=True))
        profile = get_profile(manifest["arithmetic"])
        checked = check_packaged(stored.graph, stored.names, folder / manifest["model"], profile, samples, progress)
    except TROUBLE as error:
        found.error("QAT502", f"the package contradicts itself: {reason(error)}", hint=COMPILE_AGAIN)
        return None
    except CompileError as error:
        for diagnostic in error.diagnostics:
            found.add(diagnostic)
        return None
    bad = [check for check in checked.tensors if not check.passed]
    for check in bad[:_MOST_FINDINGS]:
        hint = "this machine computes otherwise: compare the onnxruntime version and the processor"
        found.error("QAT401", f"{check.op}: {printable(check.message)}", tensor=check.tensor, hint=hint)
    return checked


def _load(folder: Path, name: str) -> Array:
    try:
        path = regular_file(folder, name)
        if path.stat().st_size > LARGEST_JSON << 4:
            raise ValueError("it is larger than 4 GiB")
        return npy_array(path.read_bytes())
    except (OSError, ValueError) as error:
        raise fail("QAT502", f"{printable(name)}: {reason(error)}", hint=_COPY_AGAIN) from error


def compare(sample: int, output: str, expected: Array, found: Array, tolerance: Tolerance) -> SampleCheck:
    """Compare one output with what the package says, as check.py does: NaN equals NaN, infinity only itself."""
    if expected.shape != found.shape or expected.dtype != found.dtype:
        have, want = f"{found.dtype} {list(found.shape)}", f"{expected.dtype} {list(expected.shape)}"
        said = f"the result is {have}, the sample {want}"
        return SampleCheck(sample, output, int(expected.size), int(expected.size), float("inf"), False, said)
    differs = (expected != found) & ~((expected != expected) & (found != found))
    if not differs.any():
        return SampleCheck(sample, output, int(expected.size), 0, 0.0, True)
    wide: type[Any] = np.float64 if expected.dtype.kind == "f" else object  # whole numbers of any size
    want, have = expected[differs].astype(wide), found[differs].astype(wide)
    with np.errstate(invalid="ignore"):
        off = np.abs(have - want)
        allowed = tolerance.absolute + tolerance.relative * np.abs(want)
        passed = bool(np.all((off <= allowed) & (off < float("inf"))))
    largest = float("inf") if (off != off).any() else float(max(off))
    return SampleCheck(sample, output, int(expected.size), int(differs.sum()), largest, passed)

"""Put a package together: the emitted model, its parameters, proven samples, reports; last the manifest."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from qatc._version import __version__
from qatc.compiler.diagnostics import fail
from qatc.compiler.driver.profiles import profile_differences
from qatc.compiler.golden.tensors import Proof, write_proof
from qatc.compiler.layout import layouts
from qatc.compiler.package import (
    PackageWriter,
    Sample,
    check_script,
    manifest,
    quantization_json,
    report_json,
    source_file,
    tolerance_of,
    write_samples,
)
from qatc.compiler.quant import Array
from qatc.compiler.report import report_html
from qatc.compiler.result import CompileResult, ProfileDifference
from qatc.compiler.runtime.processor import is_exact
from qatc.compiler.runtime.sessions import OrtEvaluator, errors, open_file, run_session, version

if TYPE_CHECKING:
    from qatc.compiler.backend import Emission, Stream
    from qatc.compiler.reference import OnnxEvaluator

MODEL = "model.onnx"
_MEASURED: Final = 200_000_000  # multiply-accumulates up to which the profiles are compared without being asked
_MEASURED_OPS: Final = 256  # and operators


def assemble(
    result: CompileResult,
    destination: Path,
    emission: Emission,
    feeds: Sequence[Mapping[str, Array]],
    external: Sequence[Path],
    proof: Proof,
    companions: Callable[[Callable[[str], Stream], CompileResult], None] | None = None,
    seal: Callable[[Path], bytes] | None = None,
) -> CompileResult:
    """Write the package of a finished compile and return the result with its place and size.

    The outputs of the samples are what ONNX Runtime makes of the package's own model, with its default optimizations
    where those are exact on this processor.
    `seal` signs it (`compiler/package/signing.py`). Source files are hashed, and the samples run, beside the writing:
    both leave Python to other threads.

    Raises:
        CompileError: QAT5xx where it cannot be written; the destination is then as it was.
    """
    with ThreadPoolExecutor(2) as beside, PackageWriter(destination) as writer:
        hashed = [beside.submit(source_file, path) for path in (result.source, *external)]
        emission.write(writer.open, MODEL)
        size = sum(f.size for f in writer.files if f.path.startswith(MODEL))
        sampled = beside.submit(run_samples, writer.folder / MODEL, emission, size, feeds, result)
        writer.write("quantization.json", quantization_json(result.tensors))
        if proof.golden or proof.header or not _is_large(proof, result):
            sampled.result()  # the reference runs next, and takes no model that is inconsistent: this tells it
        given = [{p.name: p.rounded(np.asarray(feed[p.name])) for p in result.inputs} for feed in feeds]
        evaluate = OrtEvaluator()
        written = dataclasses.replace(
            result, package=destination, package_bytes=size, profiles=differences(proof, result, given, evaluate)
        )
        writer.write("report.json", report_json(written))
        writer.write("report.html", report_html(written))
        writer.write("check.py", check_script())
        write_proof(writer, proof, emission, given, evaluate)
        if companions is not None:
            companions(writer.open, written)
        samples = sampled.result()
        entries = write_samples(writer, samples, result.inputs, result.outputs)
        finished = writer.finish(
            manifest(
                version=__version__,
                source=hashed[0].result(),
                external=[each.result() for each in hashed[1:]],
                dialect=result.dialect,
                target=result.target,
                profile=result.profile,
                options=result.options,
                inputs=result.inputs,
                outputs=result.outputs,
                samples=entries,
                layouts=layouts(proof.graph),
                tolerances=[tolerance_of([s.outputs[i] for s in samples]) for i in range(len(result.outputs))],
            ),
            seal,
        )
    return dataclasses.replace(written, diagnostics=(*written.diagnostics, *finished.diagnostics))


def differences(
    proof: Proof, result: CompileResult, feeds: Sequence[Mapping[str, Array]], evaluate: OnnxEvaluator
) -> tuple[ProfileDifference, ...]:
    """How each arithmetic profile rounds the first sample; of a large network only together with its golden tensors."""
    if _is_large(proof, result) and not proof.golden:
        return ()
    return profile_differences(proof.graph, feeds[:1], evaluate=evaluate)


def _is_large(proof: Proof, result: CompileResult) -> bool:
    return result.coverage.integer_macs > _MEASURED or len(proof.graph.ops) > _MEASURED_OPS


def run_samples(
    model: Path, emission: Emission, weights: int, feeds: Sequence[Mapping[str, Array]], result: CompileResult
) -> list[Sample]:
    """Each sample through the package's model, a file with `weights` bytes.

    Raises:
        CompileError: QAT401 where ONNX Runtime does not load it, QAT403 where it does not run: nor would the source.
    """
    exact = emission.wide is not None or is_exact()  # what is read as Q/DQ would saturate once it is optimized
    session = open_file(model, nodes=len(emission.model.graph.node), weights=weights, optimize=exact)
    outputs = [p.name for p in result.outputs]
    samples: list[Sample] = []
    for feed in feeds:
        given = {p.name: p.rounded(np.asarray(feed[p.name])) for p in result.inputs}
        try:
            results = run_session(session, outputs, given)
        except errors() as error:
            message = f"ONNX Runtime {version()} cannot run the emitted model on a sample: {error}"
            hint = "the model itself is inconsistent, where it does not run either: compile it without --no-verify"
            raise fail("QAT403", message, hint=hint) from error
        samples.append(Sample(tuple(given.values()), tuple(np.asarray(r) for r in results)))
    return samples

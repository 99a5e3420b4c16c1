"""The package on disk: what goes into its files, and how a folder of them appears whole or not at all.

    with PackageWriter(Path("model.qatc")) as writer:
        with writer.open("model.onnx") as stream: ...
        writer.write("quantization.json", quantization_json(tensors))
        entries = write_samples(writer, samples, inputs, outputs)
        written = writer.finish(manifest(..., samples=entries))

`docs/package.md` describes the result for its readers; the JSON Schemas are in `compiler/schemas/`.
"""

from __future__ import annotations

from qatc.compiler.package.content import (
    SourceFile,
    check_script,
    manifest,
    port_document,
    quantization_document,
    quantization_json,
    report_document,
    report_json,
    source_file,
)
from qatc.compiler.package.encoding import dump_json, schema
from qatc.compiler.package.read import FORMAT, MANIFEST, read_manifest, unsafe_path
from qatc.compiler.package.samples import Sample, Tolerance, tolerance_of, write_samples
from qatc.compiler.package.swap import recover
from qatc.compiler.package.writer import FileEntry, PackageFile, PackageWriter, WrittenPackage, check_destination

__all__ = [
    "FORMAT",
    "MANIFEST",
    "FileEntry",
    "PackageFile",
    "PackageWriter",
    "Sample",
    "SourceFile",
    "Tolerance",
    "WrittenPackage",
    "check_destination",
    "check_script",
    "dump_json",
    "manifest",
    "port_document",
    "quantization_document",
    "quantization_json",
    "read_manifest",
    "recover",
    "report_document",
    "report_json",
    "schema",
    "source_file",
    "tolerance_of",
    "unsafe_path",
    "write_samples",
]

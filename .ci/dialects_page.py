"""Write docs/dialects.md from the registry of dialects: the table of `qatc dialects`, for reading.

dialects_page.py            write the page
dialects_page.py --check    exit 1 if it is not what the registry says
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "dialects.md"
HEAD = """\
# Dialects

<!-- Written by .ci/dialects_page.py from the dialects themselves: change frontends/, then run it. -->

Every exporter writes fake quantization its own way. `-m auto`, the default, recognizes which one a file speaks from its
nodes, and says how it knew; `-m NAME` states it. `qatc dialects` prints this table for the installed version, with the
dialects that other packages bring.

| dialect | recognizes | exporters and versions tried | known limits |
|---|---|---|---|
"""
TAIL = """
What is not an affine integer grid (FP8, MXFP, BF16, block floating point, logarithms), or has no fake quantization at
all, is refused with a code that `qatc explain` explains. What an exporter left without any range is found with
`--calibrate`.

## Ranges that an exporter lost

PyTorch's dynamo exporter and PT2E write no ranges, but the calls that nodes were exported from, as metadata: ranges are
read from there, and told (QAT112). One that is lost altogether, or another one, is stated with `--quant-range`: for all
activations and weights, `--quant-range act=0..127,weight=-127..127`, or tensor by tensor with a file,
`--quant-range ranges.toml`:

```toml
act = "0..127"          # activations that the file states no range for
weight = "-127..127"    # weights likewise

[tensors]
"/layer4/conv2/Conv_output_0" = "0..255"
```

## Ranges in a file of their own

Where a float model comes with its ranges in another file, or an exporter left some out that you know, `--ranges FILE`
reads them. The simplest form is JSON, with the tensors' names as a model viewer shows them:

```bash
cat > ranges.json <<'JSON'
{
  "input": [-1, 1],
  "/layers/layers.0/r2/Relu_output_0": {"scale": 0.02, "zero_point": 0, "qmin": 0, "qmax": 255}
}
JSON
qatc compile -a drpai_model.onnx --ranges ranges.json -o ranges
```

A pair is the smallest and the largest real number (zero is always among them), on 8 bits; `scale` may be a list, one
for each channel along `axis`. What the tools of vendors write is recognized from its content:

| from | form |
|---|---|
| AIMET, SNPE, QNN | JSON: `activation_encodings` and `param_encodings`, or `encodings` |
| PPQ | JSON: `configs` and `values`, `quant_info`, `act_quant_info`; ONNX with `<tensor>_min` and `<tensor>_max` |
| MQBench | JSON: `tensorrt`, `ppl`, `vitis`; text: `tensor: largest magnitude` |
| sophgo-mq, tpu-mlir | JSON: `sophgo_tpu`; calibration tables: `tensor threshold min max` |
| Vitis AI | JSON: `param`, `input` and `output`, with bits and binary point |
| qdq-translator | JSON: `int8_tensor_scales` |
| TensorRT | calibration caches: `TRT-...`, then `tensor: scale in hexadecimal` |
| Tengine | text: `tensor scale zero_point` |
"""


def row(cells: list[list[str]]) -> str:
    """One line of the table; the parts of a cell stand below each other."""
    return "| " + " | ".join("<br>".join(part.replace("|", "\\|") for part in cell) for cell in cells) + " |\n"


def page() -> str:
    """The page as it should be."""
    sys.path.insert(0, str(ROOT))
    from qatc.compiler.frontend import Frontend
    from qatc.compiler.registry import Registry
    from qatc.frontends import BUILTIN

    found: Registry[Frontend] = Registry("dialect", "", BUILTIN, "QAT102")  # qatc's own alone
    lines: list[str] = []
    for name in found.names():
        one = found.get(name)
        lines.append(row([[f"`{name}`"], [one.description], list(one.exporters), list(one.limits)]))
    return HEAD + "".join(lines) + TAIL


if __name__ == "__main__":
    if "--check" in sys.argv[1:]:
        sys.exit(0 if PAGE.exists() and PAGE.read_text(encoding="utf-8") == page() else 1)
    PAGE.write_text(page(), encoding="utf-8", newline="\n")

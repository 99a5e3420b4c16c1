"""The command line of DRP-AI TVM, in terms of qatc's: both spellings, the guide's and the tool's, which disagree.

| the guide | the tool | here |
|---|---|---|
| `-a pytorch` | `-a -m pytorch` | `-a -m pytorch` |
| `-q DIR` | `-c DIR`, `--quantization_tool DIR` | `-p quantizer_dir=DIR` |
| | `-q`, `--fp16` | nothing: what is not integer stays float32 |
| `-d DIR` | `-d DIR`, `--drp_compiler_dir DIR` | `-p drp_compiler_dir=DIR` |
| | `-t DIR`, `--toolchain_dir DIR` | `-p toolchain_dir=DIR` |
| `-v 091` | `-v 100`, `--drp_compiler_version` | nothing, as in the tool |
| `-p "az True"` | `-p ...`, `--quantization_option` | `-p quantization_option=...` and the calibration method |
| `-s 1,3,224,224` | `-s ...`, `--input_shape`; `-i NAME` | `-s NAME=1,3,224,224` |
| | `--images DIR` | `--calibrate FRAMES.npy`, and `-p images=DIR` for the vendor's script |
| | `-n N`, `--num_frame N` | `--samples N` |
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from qatc.backends.drpai.frames import first_input, frames_file, has_arrays

_METHODS: Final = ("minmax", "percentile", "entropy", "mse")
_DIALECTS: Final = ("pytorch", "tensorflow")
_DEPRECATED: Final = "it is deprecated in the tool, too"
# Options that become another one: what stands before their value, and what that does ("": it is qatc's own).
_TOOLCHAIN: Final = (("-p", "toolchain_dir="), "the cross toolchain for the vendor's compile script")
_QUANTIZER: Final = (("-p", "quantizer_dir="), "DRP-AI Quantizer runs on the float model")
_COMPILER: Final = (("-p", "drp_compiler_dir="), "the vendor's compile script runs with this DRP-AI Translator")
_FRAMES: Final = (("--samples", ""), "so many random samples are verified; ranges are never found from random ones")
_KIND: Final = (("-p", "cpu_data_type="), "the element type of interpreter_out/ref_result_<i>")
_PASSED: Final[dict[str, tuple[tuple[str, str], str]]] = {
    "-c": _QUANTIZER, "--quantization_tool": _QUANTIZER, "-d": _COMPILER, "--drp_compiler_dir": _COMPILER,
    "--toolchain_dir": _TOOLCHAIN, "-n": _FRAMES, "--num_frame": _FRAMES, "-f": _KIND, "--cpu_data_type": _KIND,
    "--output_dir": (("-o", ""), ""),
}  # fmt: skip
_IGNORED: Final = {
    "--level": "qatc has no such levels",
    "-r": "qatc keeps no calibration record",
    "--record_dir": "qatc keeps no calibration record",
    "--drp_compiler_version": _DEPRECATED,
}
_IGNORED_FLAGS: Final = {
    "--mera1": "there is one front end",
    "--mera2": "there is one front end",
    "-u": "the INT8 model runs on the CPU as it is",
    "--cpu_only_mode": "the INT8 model runs on the CPU as it is",
    "--fp16": "what is not integer stays float32",
}


class ArgumentError(ValueError):
    """The arguments cannot be understood; the text says why."""


def translate(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The same request for qatc, and what each of the vendor's options did, one line each.

    Raises:
        ArgumentError: for a value that is missing or wrong, and where images cannot be read.
    """
    return _Translation(list(arguments)).run()


@dataclass
class _Translation:
    rest: list[str]
    out: list[str] = field(default_factory=list[str])
    said: list[str] = field(default_factory=list[str])
    images: str = ""
    shape: str = ""
    name: str = ""

    def run(self) -> tuple[list[str], list[str]]:
        readers: dict[str, Callable[[str], None]] = {
            "-a": self.qat, "--qat": self.qat, "-q": self.quantizer_or_half, "-t": self.target, "-v": self.version,
            "-p": self.option, "--quantization_option": self.option, "-s": self.pinned, "--input_shape": self.pinned,
            "-i": self.input_name, "--input_name": self.input_name, "--images": self.image_folder,
        }  # fmt: skip
        while self.rest:
            flag = self.rest.pop(0)
            flag, sign, value = flag.partition("=") if flag.startswith("--") else (flag, "", "")
            if sign:
                self.rest.insert(0, value)
            if flag in readers:
                readers[flag](flag)
            elif flag in _PASSED:
                self.passed(flag, *_PASSED[flag])
            elif flag in _IGNORED:
                self.ignored(flag)
            elif flag in _IGNORED_FLAGS:
                self.tell(flag, f"no effect: {_IGNORED_FLAGS[flag]}")
            else:
                self.out.append(f"{flag}{sign}{self.rest.pop(0) if sign else ''}")
        self.finish()
        return self.out, self.said

    def finish(self) -> None:
        """What needs the model: the name of its first input, and images of its size."""
        if not (self.shape or self.images):
            return
        model = next((a for a in self.out if a.lower().endswith(".onnx")), None)
        if model is None:
            raise ArgumentError("no .onnx file is given, whose first input -s and --images are for")
        found = first_input(Path(model))
        if found is None:
            return
        name, shape = found
        pinned = [int(d) for d in self.shape.split(",")] if self.shape else shape
        if self.shape:
            name = self.name or name
            self.out += ["-s", f"{name}={self.shape}"]
            self.tell(f"-s {self.shape}", f'pins the shape of the input "{name}"')
        if self.images:
            where = self.images
            self.out += ["-p", f"images={where}"]
            if not has_arrays(Path(where)):
                where, count = frames_file(Path(where), pinned)
                self.tell(f"--images {self.images}", f"{count} images, for ranges that the model leaves out")
            self.out += ["--calibrate", where]

    # -- single options -------------------------------------------------------------------------------------------
    def tell(self, option: str, effect: str) -> None:
        self.said.append(f"{option}: {effect}")

    def value(self, flag: str) -> str:
        if not self.rest:
            raise ArgumentError(f"{flag} needs a value")
        return self.rest.pop(0)

    def next_is_value(self) -> bool:
        return bool(self.rest) and not self.rest[0].startswith("-") and not self.rest[0].lower().endswith(".onnx")

    def qat(self, flag: str) -> None:
        self.out.append("-a")
        if self.rest and self.rest[0].lower() in _DIALECTS:
            dialect = self.rest.pop(0)
            self.out += ["-m", dialect]
            self.tell(f"{flag} {dialect}", f"the guide's spelling of -a -m {dialect}")

    def quantizer_or_half(self, flag: str) -> None:
        if self.next_is_value():
            self.passed(flag, *_QUANTIZER)
        else:
            self.tell(flag, f"the tool's --fp16; no effect: {_IGNORED_FLAGS['--fp16']} (--quiet is qatc's)")

    def passed(self, flag: str, to: tuple[str, str], effect: str) -> None:
        value = self.value(flag)
        self.out += [to[0], f"{to[1]}{value}"]
        if effect:
            self.tell(f"{flag} {value}", effect)

    def ignored(self, flag: str) -> None:
        self.tell(f"{flag} {self.value(flag)}", f"no effect: {_IGNORED[flag]}")

    def target(self, flag: str) -> None:
        if self.rest[:1] == ["drpai"]:
            self.out += ["-t", self.rest.pop(0)]
        else:
            self.passed(flag, *_TOOLCHAIN)

    def version(self, flag: str) -> None:
        if self.rest and self.rest[0].isdecimal():
            self.tell(f"{flag} {self.rest.pop(0)}", f"no effect: {_DEPRECATED}")
        else:
            self.out.append(flag)  # qatc's own: more output

    def option(self, flag: str) -> None:
        text = self.value(flag)
        key, sign, _ = text.partition("=")
        if flag == "-p" and sign and key.isidentifier():
            self.out += ["-p", text]  # qatc's own KEY=VALUE
            return
        self.out += ["-p", f"quantization_option={text}"]
        self.tell(f'{flag} "{text}"', "kept for the vendor's quantizer; zero points are those that were trained")
        words = shlex.split(text)
        if "--calibrate_method" in words[:-1]:
            method = words[words.index("--calibrate_method") + 1].lower()
            if method not in _METHODS:
                raise ArgumentError(f"--calibrate_method {method}: one of {', '.join(_METHODS)}")
            self.out += ["--calibration-method", method]
            self.tell(f"--calibrate_method {method}", "ranges that the model leaves out are found so")

    def pinned(self, flag: str) -> None:
        text = self.value(flag)
        if "=" in text:
            self.out += ["-s", text]
            return
        if not all(part.strip().isdecimal() for part in text.split(",")):
            raise ArgumentError(f"{flag} {text}: a shape is written 1,3,224,224")
        self.shape = ",".join(part.strip() for part in text.split(","))

    def input_name(self, flag: str) -> None:
        self.name = self.value(flag)

    def image_folder(self, flag: str) -> None:
        self.images = self.value(flag)

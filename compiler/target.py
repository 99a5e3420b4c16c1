"""Target: what a piece of hardware or a runtime wants, as data (TOML), and which backend writes for it."""

from __future__ import annotations

import dataclasses
import difflib
import sys
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from qatc.compiler.diagnostics import CompileError, Diagnostic

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_BUILTIN: Final = "qatc.backends"  # its folder targets/ holds one TOML file per built-in target
_CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "activations": ("uint8", "keep"),
    "layout": ("channels_first", "channels_last"),
}


@dataclasses.dataclass(frozen=True)
class Target:
    """A target description.

    Attributes:
        name: what `-t` calls it.
        backend: the backend that writes its package.
        description: one line for `qatc targets`.
        arithmetic: the profile of the reference (`compiler/arithmetic`).
        activations: "uint8" (int8 activations are shifted, exact) or "keep".
        layout: how it holds feature maps, "channels_first" or "channels_last"; golden tensors are written so.
        options: defaults for the backend's options.
        recipe: how a model for it is trained (`frontends/torch_qat`), where the user does not say.
    """

    name: str
    backend: str
    description: str = ""
    arithmetic: str = "onnx"
    activations: str = "uint8"
    layout: str = "channels_first"
    options: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str])
    recipe: str = "default"


def builtin_targets() -> dict[str, Target]:
    """The targets that come with qatc, by name."""
    folder = files(_BUILTIN) / "targets"
    found = [e for e in folder.iterdir() if e.name.endswith(".toml")]
    return {(t := _parse(e.read_text("utf-8"), e.name)).name: t for e in sorted(found, key=lambda e: e.name)}


def load_target(name: str) -> Target:
    """A built-in target by name, or the description in a TOML file.

    Raises:
        CompileError: QAT305 with exit code 2 for unknown names and wrong descriptions.
    """
    if name.lower().endswith(".toml"):
        path = Path(name)
        try:
            return _parse(path.read_text("utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise _wrong(
                f"cannot read the target description {name}: {error}", "give the path of a TOML file"
            ) from error
    known = builtin_targets()
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name.lower(), known, 1)
    meant = f"did you mean {close[0]}? " if close else ""
    raise _wrong(
        f"unknown target {name!r}", f"{meant}known are {', '.join(known)}; a description is a file that ends in .toml"
    )


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file that the user names on the command line (QAT007 with exit code 2 where it is none)."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CompileError(
            [Diagnostic("QAT007", f"cannot read {path}: {error}", hint="give a TOML file")], 2
        ) from error


def _parse(text: str, where: str) -> Target:
    try:
        data: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _wrong(f"{where} is not TOML: {error}", "see docs/targets.md for the keys") from error
    known = [f.name for f in dataclasses.fields(Target)]
    unknown = [k for k in data if k not in known]
    if unknown:
        raise _wrong(f"{where} has the unknown key {unknown[0]!r}", f"known are {', '.join(known)}")
    for key in ("name", "backend"):
        if key not in data:
            raise _wrong(f"{where} does not say its {key}", f'add {key} = "..."')
    for key, value in data.items():
        is_table = key == "options"
        if not isinstance(value, dict if is_table else str):
            raise _wrong(f"{where}: {key} must be {'a table' if is_table else 'a string'}", "see docs/targets.md")
        if key in _CHOICES and value not in _CHOICES[key]:
            raise _wrong(f"{where}: {key} is {value!r}", f"one of {', '.join(_CHOICES[key])}")
    return Target(**data)


def _wrong(message: str, hint: str) -> CompileError:
    return CompileError([Diagnostic("QAT305", message, hint=hint)], 2)

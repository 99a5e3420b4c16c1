"""Target: what a piece of hardware or a runtime wants, as data (TOML), and which backend writes for it."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from qatc.compiler.damaged import reason
from qatc.compiler.diagnostics import CompileError, misused, suggested

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_BUILTIN: Final = "qatc.backends"  # its folder targets/ holds one TOML file per built-in target
_LARGEST: Final = 4 << 20  # bytes of a description
_MOST_DOTS: Final = 64  # on one line: the parser's time is the square of a key's parts
_CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "activations": ("uint8", "keep"),
    "layout": ("channels_first", "channels_last"),
}


#: Backend option -> the integer operator that `integer` asks for, which only some targets have.
OPTIONAL_OPERATORS: Final[Mapping[str, str]] = {"softmax": "Softmax", "layernorm": "LayerNorm"}
_TYPES: Final[Mapping[str, tuple[type, str]]] = {"options": (dict, "a table"), "operators": (list, "a list")}


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
        operators: the integer operators it has beside those that every target has: "Softmax", "LayerNorm".
        options: defaults for the backend's options.
        recipe: how a model for it is trained (`frontends/torch_qat`), where the user does not say.
    """

    name: str
    backend: str
    description: str = ""
    arithmetic: str = "onnx"
    activations: str = "uint8"
    layout: str = "channels_first"
    operators: tuple[str, ...] = ()
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
            text = _text_of(path)
        except (OSError, ValueError) as error:
            raise _wrong(
                f"cannot read the target description {name}: {reason(error)}", "give the path of a TOML file"
            ) from error
        return _parse(text, str(path))
    known = builtin_targets()
    if name in known:
        return known[name]
    hint = f"known are {', '.join(known)}; a description is a file that ends in .toml"
    raise _wrong(f"unknown target {name!r}", suggested(name.lower(), known, hint))


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file that the user names on the command line (QAT007 with exit code 2 where it is none)."""
    try:
        return _loads(_text_of(path))
    except (OSError, ValueError) as error:
        raise misused(f"cannot read {path}: {reason(error)}", "give a TOML file") from error


def _text_of(path: Path) -> str:
    with path.open("rb") as stream:
        data = stream.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise ValueError(f"it has more than {_LARGEST >> 20} MiB")
    return data.decode("utf-8-sig")  # editors of Windows write the mark


def _loads(text: str) -> dict[str, Any]:
    """TOML that may be anything. ValueError where it is none, or what the parser takes for ever over."""
    if any(line.count(".") > _MOST_DOTS for line in text.splitlines()):
        raise ValueError(f"a line has more than {_MOST_DOTS} dots")
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _parse(text: str, where: str) -> Target:
    try:
        data = _loads(text)
    except ValueError as error:
        raise _wrong(f"{where} is not TOML: {error}", "see docs/targets.md for the keys") from error
    known = [f.name for f in dataclasses.fields(Target)]
    unknown = [k for k in data if k not in known]
    if unknown:
        raise _wrong(f"{where} has the unknown key {unknown[0]!r}", f"known are {', '.join(known)}")
    for key in ("name", "backend"):
        if not data.get(key):
            raise _wrong(f"{where} does not say its {key}", f'add {key} = "..."')
    for key, value in data.items():
        kind, text = _TYPES.get(key, (str, "a string"))
        if not isinstance(value, kind):
            raise _wrong(f"{where}: {key} must be {text}", "see docs/targets.md")
        if key in _CHOICES and value not in _CHOICES[key]:
            raise _wrong(f"{where}: {key} is {value!r}", f"one of {', '.join(_CHOICES[key])}")
    for name, value in data.get("options", {}).items():
        if not isinstance(value, str):
            raise _wrong(f"{where}: the option {name} must be a string", f'write {name} = "{value}" under [options]')
    for name in data.get("operators", ()):
        if name not in OPTIONAL_OPERATORS.values():
            raise _wrong(f"{where}: operators lists {name!r}", f"one of {', '.join(OPTIONAL_OPERATORS.values())}")
    data["operators"] = tuple(data.get("operators", ()))
    return Target(**data)


def wanted_operators(target: Target, options: Mapping[str, str]) -> frozenset[str]:
    """The integer operators that the (checked) backend options ask for beside those that every target has.

    Raises:
        CompileError: QAT305 with exit code 2 for those that the target does not have.
    """
    wanted = [kind for option, kind in OPTIONAL_OPERATORS.items() if options.get(option) == "integer"]
    missing = [kind for kind in wanted if kind not in target.operators]
    if missing:
        has = f"it has {', '.join(target.operators)}" if target.operators else "it has none of these"
        hint = f'{has}; a target description lists them: operators = ["{missing[0]}"]'
        raise _wrong(f"the target {target.name} has no integer {' and no integer '.join(missing)}", hint)
    return frozenset(wanted)


def _wrong(message: str, hint: str) -> CompileError:
    return misused(message, hint, "QAT305")

"""Options of the command line: how their text becomes a value, and the groups of them that several commands share."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from qatc.compiler.diagnostics import CompileError, printable

if TYPE_CHECKING:
    from qatc.compiler.backend import Translate

# Copies of what lies behind slow imports; tests/test_cli.py holds them against the originals.
TOLERANCES: Final = ("max_lsb", "equal_share", "float_tolerance", "output_lsb", "agreement")
PROFILES: Final = ("onnx", "tflite", "tflite-single", "cmsis-nn", "tosa", "tosa-double", "pow2", "exact")
METHODS: Final = ("minmax", "percentile", "entropy", "mse")

# How --help groups the options of `compile` and `inspect`, by their parameters; those of other commands are few.
SECTIONS: Final = {
    "Model": ("qat", "dialect", "shapes", "quant_range", "ranges", "calibrate", "calibration_method"),
    "Target": ("target", "options", "io", "require_integer", "arithmetic"),
    "Package": ("output", "golden", "golden_header", "sign", "certificate"),
    "Verification": ("inputs", "samples", "seed", "verify", "tolerance"),
    "What is shown": ("dump", "svg", "explain", "junit", "sarif", "verbose", "quiet", "json"),
}

OWN_PROCESS: Final = "own process"  # the context's object where the command is all that this process runs
FILE: Final = click.Path(readable=False, path_type=Path)  # whoever opens it says what is wrong, with a code

_F = TypeVar("_F", bound="Callable[..., Any]")


# -- from text to a value ------------------------------------------------------------------------------------------
def repeated(
    *names: str,
    form: str,
    help: str,
    convert: Callable[[str], object],
    known: Sequence[str] = (),
    last: bool = False,
    repeat: bool = False,
) -> Callable[[_F], _F]:
    """A repeatable option NAME=VALUE: a dictionary, or with `repeat` all pairs, where a name may come again.

    `convert` raises ValueError with what is wrong; `known` are the names that there are, where not all will do. The
    name ends at the first `=`, or with `last` at the last one, where names may hold it but values cannot.
    """

    def read(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> Any:
        found: list[tuple[str, object]] = []
        for value in values:
            key, sign, content = value.rpartition("=") if last else value.partition("=")
            if not sign or not key or not content:
                raise click.BadParameter(f"{printable(value)!r} is not {form}", ctx, param)
            if not repeat and key in dict(found):
                raise click.BadParameter(f"{printable(key)!r} is given twice", ctx, param)
            if known and key not in known:
                raise click.BadParameter(f"{printable(key)!r} is unknown; known are {', '.join(known)}", ctx, param)
            try:
                found.append((key, convert(content)))
            except ValueError as error:
                raise click.BadParameter(f"{printable(value)!r}: {error}", ctx, param) from error
        return found if repeat else dict(found)

    return click.option(*names, metavar=form, multiple=True, callback=read, help=help)


def dims(content: str) -> tuple[int, ...]:
    """A shape, such as 1,3,224,224 or 1x3x224x224. ValueError for anything else."""
    parts = content.strip("[]()").replace("x", ",").split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ValueError("dimensions are positive numbers separated by commas, such as 1,3,224,224")
    return tuple(int(part) for part in parts)


def limit(content: str) -> float:
    """A finite number of at least 0. ValueError for anything else."""
    try:
        value = float(content)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ValueError("a limit is a number of at least 0")
    return value


def score(content: str) -> float:
    """Any number. ValueError for anything else."""
    try:
        value = float(content)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise ValueError("a score is a number")
    return value


def listed(ctx: click.Context, param: click.Parameter, value: str | Sequence[str] | None) -> list[str] | None:
    """A callback: names with commas between them; None where the option was left out."""
    if value is None:
        return None
    given = [value] if isinstance(value, str) else value
    names = [name.strip() for each in given for name in each.split(",")]
    if not all(names):
        raise click.BadParameter("names are separated by commas, with none of them empty", ctx, param)
    return names


def _memory(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Bytes; where the whole process is ours, the kernel holds us to them."""
    if value is None:
        return None
    from qatc.compiler.budget import enforce, parse_size

    try:
        size = parse_size(value)
    except ValueError as error:
        raise click.BadParameter(f"{printable(value)!r}: {error}", ctx, param) from error
    if ctx.find_root().obj == OWN_PROCESS:
        enforce(size)
    return size


# -- a vendor's command line ---------------------------------------------------------------------------------------
def in_our_words(args: list[str]) -> tuple[list[str], list[str]]:
    """The arguments of a compile, translated where the backend that -t names knows its vendor's own; what was done.

    Raises:
        click.UsageError: where they cannot be translated.
    """
    apart = [value for flag, value in pairwise(args) if flag in ("-t", "--target")]
    joined = [arg.removeprefix("--target=") for arg in args if arg.startswith("--target=")]
    short = [arg.removeprefix("-t") for arg in args if arg.startswith("-t")]
    given = {*apart, *joined, *short}
    if not given:
        return args, []
    from qatc.compiler.registry import backends

    try:
        for backend in map(backends().get, sorted(given.intersection(backends().names()))):
            if backend.translate is not None:
                return _translated(args, backend.name, backend.translate)
    except CompileError as error:
        told = [f"{d.code} {': '.join(filter(None, (d.message, d.hint)))}" for d in error.diagnostics]
        raise click.UsageError("\n".join(told)) from error
    return args, []


def _translated(args: list[str], name: str, translate: Translate) -> tuple[list[str], list[str]]:
    try:
        translated, said = translate(args)
    except (OSError, ValueError) as error:  # of a folder of images that cannot be read, too
        raise click.UsageError(f"-t {name}: {printable(str(error))}") from error
    return translated, [f"{name}: {printable(line)}" for line in said]


# -- groups --------------------------------------------------------------------------------------------------------
def _options(*decorators: Callable[[_F], _F]) -> Callable[[_F], _F]:
    def decorate(function: _F) -> _F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


_output = _options(
    click.option("-v", "--verbose", is_flag=True, help="Show more: full lists, timings, tracebacks."),
    click.option("-q", "--quiet", is_flag=True, help="Show errors only."),
    click.option("--json", is_flag=True, help="Print a machine-readable result on standard output, nothing else."),
)
_ci = _options(
    click.option("--junit", type=FILE, metavar="FILE", help="Write what was found as JUnit XML, too."),
    click.option("--sarif", type=FILE, metavar="FILE", help="Write what was found as SARIF 2.1.0, too."),
)


def output_options(function: Callable[..., None]) -> Callable[..., None]:
    """-v, -q and --json; the function gets the `screen` that obeys them."""

    @functools.wraps(function)
    def command(*, json: bool, quiet: bool, verbose: bool, **chosen: Any) -> None:
        from qatc.compiler.report.screen import Screen

        function(screen=Screen(json, quiet, verbose), **chosen)

    return _output(command)


def ci_options(function: Callable[..., None]) -> Callable[..., None]:
    """--junit and --sarif, which `ending` finds in the context, however the command ends."""

    @functools.wraps(function)
    def command(*, junit: Path | None, sarif: Path | None, **chosen: Any) -> None:
        function(**chosen)

    return _ci(command)


model_options = _options(
    click.option("-a", "--qat", is_flag=True, help="The model is quantization-aware trained; an error if not."),
    click.option("-m", "--qat-type", "dialect", metavar="NAME", default="auto", show_default=True,
                 help="Dialect of the exporter, see `qatc dialects`."),
    click.option("-t", "--target", metavar="NAME|FILE.toml", default="onnx", show_default=True,
                 help="What to compile for, see `qatc targets`."),
    repeated("-p", "--option", "options", form="KEY=VALUE", convert=str,
             help="Backend option, repeatable, see `qatc targets -v`."),
    repeated("-s", "--shape", "shapes", form="NAME=1,3,224,224", convert=dims, last=True,
             help="Pin the shape of an input, repeatable."),
    click.option("--calibrate", type=FILE, metavar="FILE.npy|FILE.npz|DIR",
                 help="Representative inputs, to find ranges that the exporter left out."),
    click.option("--calibration-method", type=click.Choice(METHODS), default="minmax", show_default=True,
                 help="How a range follows from them."),
    click.option("--quant-range", metavar="act=0..127,weight=-127..127", help="Ranges that the exporter lost."),
    click.option("--ranges", type=FILE, metavar="FILE", help="Ranges or encodings of tensors, in their own file."),
    click.option("--io", type=click.Choice(("float", "integer")), default="float", show_default=True,
                 help="What the deployed graph reads and writes."),
    click.option("--require-integer", is_flag=True, help="Make any operator that stays in float an error."),
    click.option("--max-memory", metavar="SIZE", callback=_memory, help="Take no more memory, such as 2GiB or 800MB."),
)  # fmt: skip
proof_options = _options(
    repeated("--input", "inputs", form="NAME=FILE.npy", convert=Path, repeat=True,
             help="A sample input of your own, repeatable."),
    click.option("--samples", type=click.IntRange(1, 1000), metavar="N", default=1, show_default=True,
                 help="How many samples to generate."),
    click.option("--seed", type=click.IntRange(0, 2**32 - 1), metavar="S", default=0, show_default=True,
                 help="Seed of the generated samples."),
    repeated("--tolerance", form="NAME=VALUE", convert=limit, known=TOLERANCES,
             help=f"A limit of the verification, repeatable: {', '.join(TOLERANCES)}."),
    click.option("--verify/--no-verify", default=True, show_default=True,
                 help="Compare simulation, reference and package before anything is written."),
    click.option("--arithmetic", type=click.Choice(PROFILES),
                 help="How the reference rounds, instead of as the target does."),
    click.option("--golden", is_flag=True, help="Write every intermediate tensor of the samples, too."),
    click.option("--golden-header", is_flag=True, help="Write them as a C header, too."),
    click.option("--explain", is_flag=True, help="Say which rule fired where, and why others did not."),
)  # fmt: skip

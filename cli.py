"""The command line: parse, call, render, exit code. The work is in `qatc.compiler`, how it looks in `compiler/report`.

Only click is imported here, so that `qatc --help` answers at once; a command imports what it needs when it runs.
"""

from __future__ import annotations

import atexit
import gc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from qatc._version import __version__
from qatc.compiler.diagnostics import CODES, CompileError, Diagnostic, printable

if TYPE_CHECKING:
    from qatc.compiler.report.junit import Case
    from qatc.compiler.report.screen import Screen

_FAILED: Final = 3
_INTERRUPTED: Final = 130
_BUG: Final = 70
_OWN_PROCESS: Final = "own process"  # the context's object where the command is all that this process runs
_TOLERANCES: Final = ("max_lsb", "equal_share", "float_tolerance", "output_lsb", "agreement")
_PROFILES: Final = ("onnx", "tflite", "tflite-single", "cmsis-nn", "tosa", "tosa-double", "pow2", "exact")
_METHODS: Final = ("minmax", "percentile", "entropy", "mse")

_F = TypeVar("_F", bound="Callable[..., Any]")


# -- commands that end well whatever happens -----------------------------------------------------------------------
class Command(click.Command):
    """A command whose failures are diagnostics: rendered for people, or as JSON with --json; never a bare traceback."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Parse the arguments; with --json a usage error is a JSON document too."""
        wants_json = "--json" in args
        try:
            if self.name == "compile":
                args = _in_our_words(args)
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            if not wants_json:
                raise
            command = info_name or self.name or ""
            _write_failure(command, [Diagnostic("QAT007", error.format_message())], error.exit_code)
            raise click.exceptions.Exit(error.exit_code) from error

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; turn whatever it raises into diagnostics and an exit code."""
        found: Sequence[Diagnostic]
        cases: Sequence[Case] = ()
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except CompileError as error:
            found, status, cases = error.diagnostics, error.exit_code, _stages(error)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            raise click.exceptions.Exit(_INTERRUPTED) from None
        except MemoryError:
            found, status = [Diagnostic("QAT011", "memory ran out", hint="use a machine with more memory")], 1
        except Exception as error:  # a bug of ours, whatever it is: say so, and how to report it
            found, status = [_internal(error, verbose=bool(ctx.params.get("verbose")))], _BUG
        found = [*found, *_write_for_ci(ctx, found, status, cases)]
        if ctx.params.get("json"):
            _write_failure(ctx.command.name or "", found, status)
        else:
            _screen(ctx.params).diagnostics(found)
        raise click.exceptions.Exit(status)


def _in_our_words(args: list[str]) -> list[str]:
    """With -t drpai: the vendor's options, in both of their spellings, as ours; says what each does."""
    if not any("drpai" in argument for argument in args):
        return args
    from qatc.backends.drpai.arguments import ArgumentError, is_meant, translate

    if not is_meant(args):
        return args
    try:
        translated, said = translate(args)
    except ArgumentError as error:
        raise click.UsageError(f"-t drpai: {error}") from error
    except CompileError as error:
        raise click.UsageError("\n".join(f"{d.code} {d.message}: {d.hint}" for d in error.diagnostics)) from error
    if "--quiet" not in args:
        for line in said:
            click.echo(f"drpai: {printable(line)}", err=True)
    return translated


class Group(click.Group):
    """The commands of qatc; an unknown one gets a suggestion."""

    command_class = Command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the first argument names."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from difflib import get_close_matches

            close = get_close_matches(args[0].lower(), self.commands, 1)
            if args[0].lower().endswith((".onnx", ".keras", ".h5", ".tflite")):
                close = [f"compile {printable(args[0])}"]
            if not close:
                raise
            raise click.UsageError(
                f"No such command {printable(args[0])!r}. Did you mean qatc {close[0]}?", ctx
            ) from error


def _screen(params: Mapping[str, Any]) -> Screen:
    from qatc.compiler.report.screen import Screen

    return Screen(bool(params.get("json")), bool(params.get("quiet")), bool(params.get("verbose")))


def _write_failure(command: str, found: Sequence[Diagnostic], status: int) -> None:
    from qatc.compiler.report import envelope

    _screen({"json": True}).write_json(envelope(command, exit_code=status, diagnostics=found))


def _write_for_ci(
    ctx: click.Context, found: Sequence[Diagnostic], status: int, cases: Sequence[Case] = ()
) -> list[Diagnostic]:
    """Write the files that --junit and --sarif ask for; why one could not be written comes back."""
    package: Path | None = ctx.params.get("package")
    subject: Path = package or ctx.params.get("model") or Path()
    wrong: list[Diagnostic] = []
    for option in ("junit", "sarif"):
        file: Path | None = ctx.params.get(option)
        if file is None:
            continue
        from qatc.compiler.report.junit import junit
        from qatc.compiler.report.sarif import sarif

        place = subject / "manifest.json" if package else subject  # SARIF wants a file
        data = junit(subject.name, cases, found, status) if option == "junit" else sarif(place, found, status)
        try:
            _screen(ctx.params).write_file(file, data)
        except CompileError as error:
            wrong += [d for d in error.diagnostics if d not in found]
    return wrong


def _stages(error: CompileError) -> Sequence[Case]:
    """What a verification that failed had compared."""
    from qatc.compiler.report.junit import verification_cases
    from qatc.compiler.verify import VerificationError

    return verification_cases(error.verification) if isinstance(error, VerificationError) else ()


def _finish_for_ci(found: Sequence[Diagnostic], status: int, cases: Sequence[Case]) -> None:
    """The same for a command that found what it was asked for."""
    wrong = _write_for_ci(click.get_current_context(), found, status, cases)
    if wrong:
        raise CompileError(wrong, 2)


def _internal(error: Exception, *, verbose: bool) -> Diagnostic:
    import traceback

    where = "".join(traceback.format_exception(error)) if verbose else ""
    name = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    asked = "report it with the command, its output with -v and, if you can, the model"
    return Diagnostic("QAT901", f"{name}\n{where}".rstrip(), hint=f"this is a bug in qatc {__version__}: {asked}")


# -- what options look like ----------------------------------------------------------------------------------------
def _pairs(
    form: str, convert: Callable[[str], object], *, last: bool = False, repeat: bool = False
) -> Callable[..., Any]:
    """A callback for repeatable NAME=VALUE options: a dictionary, or all pairs where a name may come again.

    `convert` raises ValueError with what is wrong. The name ends at the first `=`, or at the last one where names may
    hold it but values cannot.
    """

    def callback(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> Any:
        found: list[tuple[str, object]] = []
        for value in values:
            key, sign, content = value.rpartition("=") if last else value.partition("=")
            if not sign or not key or not content:
                raise click.BadParameter(f"{printable(value)!r} is not {form}", ctx, param)
            if not repeat and key in dict(found):
                raise click.BadParameter(f"{printable(key)!r} is given twice", ctx, param)
            try:
                found.append((key, convert(content)))
            except ValueError as error:
                raise click.BadParameter(f"{printable(value)!r}: {error}", ctx, param) from error
        return found if repeat else dict(found)

    return callback


def _repeated(*names: str, form: str, help: str, **how: Any) -> Callable[[_F], _F]:
    return click.option(*names, metavar=form, multiple=True, callback=_pairs(form, **how), help=help)


def _dims(content: str) -> tuple[int, ...]:
    parts = content.strip("[]()").replace("x", ",").split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ValueError("dimensions are positive numbers separated by commas, such as 1,3,224,224")
    return tuple(int(part) for part in parts)


def _limit(content: str) -> float:
    try:
        value = float(content)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ValueError("a limit is a number of at least 0")
    return value


def _number(content: str) -> float:
    try:
        return float(content)
    except ValueError:
        raise ValueError("a score is a number") from None


def _listed(ctx: click.Context, param: click.Parameter, value: str | Sequence[str] | None) -> list[str] | None:
    """Names with commas between them; None where the option was left out."""
    if value is None:
        return None
    given = [value] if isinstance(value, str) else value
    names = [name.strip() for each in given for name in each.split(",")]
    if not all(names):
        raise click.BadParameter("names are separated by commas, with none of them empty", ctx, param)
    return names


def _counted(progress: Callable[[str, float], None] | None) -> Callable[[str, int, int], None] | None:
    """What wants a share, told how much of how much."""
    if progress is None:
        return None
    return lambda what, done, total: progress(what, done / max(1, total))


def _limits(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> dict[str, float]:
    found: dict[str, float] = _pairs("NAME=VALUE", _limit)(ctx, param, values)
    for key in found:
        if key not in _TOLERANCES:
            raise click.BadParameter(
                f"unknown limit {printable(key)!r}; known are {', '.join(_TOLERANCES)}", ctx, param
            )
    return found


def _memory(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Bytes; where the whole process is ours, the kernel holds us to them."""
    if value is None:
        return None
    from qatc.compiler.budget import enforce, parse_size

    try:
        size = parse_size(value)
    except ValueError as error:
        raise click.BadParameter(f"{printable(value)!r}: {error}", ctx, param) from error
    if ctx.find_root().obj == _OWN_PROCESS:
        enforce(size)
    return size


_FILE: Final = click.Path(path_type=Path)


def _options(*decorators: Callable[[_F], _F]) -> Callable[[_F], _F]:
    def decorate(function: _F) -> _F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


_output_options = _options(
    click.option("-v", "--verbose", is_flag=True, help="Show more: full lists, timings, tracebacks."),
    click.option("-q", "--quiet", is_flag=True, help="Show errors only."),
    click.option("--json", is_flag=True, help="Print a machine-readable result on standard output, nothing else."),
)
_ci_options = _options(
    click.option("--junit", type=_FILE, metavar="FILE", help="Write what was found as JUnit XML, too."),
    click.option("--sarif", type=_FILE, metavar="FILE", help="Write what was found as SARIF 2.1.0, too."),
)
_model_options = _options(
    click.option("-a", "--qat", is_flag=True, help="The model is quantization-aware trained; an error if not."),
    click.option("-m", "--qat-type", "dialect", metavar="NAME", default="auto", show_default=True,
                 help="Dialect of the exporter, see `qatc dialects`."),
    click.option("-t", "--target", metavar="NAME|FILE.toml", default="onnx", show_default=True,
                 help="What to compile for, see `qatc targets`."),
    _repeated("-p", "--option", "options", form="KEY=VALUE", convert=str, help="Backend option, repeatable."),
    _repeated("-s", "--shape", "shapes", form="NAME=1,3,224,224", convert=_dims, last=True,
              help="Pin the shape of an input, repeatable."),
    click.option("--calibrate", type=_FILE, metavar="FILE.npy|FILE.npz|DIR",
                 help="Representative inputs, to find ranges that the exporter left out."),
    click.option("--calibration-method", type=click.Choice(_METHODS), default="minmax", show_default=True,
                 help="How a range follows from them."),
    click.option("--quant-range", metavar="act=0..127,weight=-127..127", help="Ranges that the exporter lost."),
    click.option("--ranges", type=_FILE, metavar="FILE", help="Ranges or encodings of tensors, in their own file."),
    click.option("--io", type=click.Choice(("float", "integer")), default="float", show_default=True,
                 help="What the deployed graph reads and writes."),
    click.option("--require-integer", is_flag=True, help="Make any operator that stays in float an error."),
    click.option("--max-memory", metavar="SIZE", callback=_memory, help="Take no more memory, such as 2GiB or 800MB."),
)  # fmt: skip
_proof_options = _options(
    _repeated("--input", "inputs", form="NAME=FILE.npy", convert=Path, repeat=True,
              help="A sample input of your own, repeatable."),
    click.option("--samples", type=click.IntRange(1, 1000), metavar="N", default=1, show_default=True,
                 help="How many samples to generate."),
    click.option("--seed", type=click.IntRange(0, 2**32 - 1), metavar="S", default=0, show_default=True,
                 help="Seed of the generated samples."),
    click.option("--tolerance", metavar="NAME=VALUE", multiple=True, callback=_limits,
                 help=f"A limit of the verification, repeatable: {', '.join(_TOLERANCES)}."),
    click.option("--verify/--no-verify", default=True, show_default="on",
                 help="Compare simulation, reference and package before anything is written."),
    click.option("--arithmetic", type=click.Choice(_PROFILES),
                 help="How the reference rounds, instead of as the target does."),
    click.option("--golden", is_flag=True, help="Write every intermediate tensor of the samples, too."),
    click.option("--golden-header", is_flag=True, help="Write them as a C header, too."),
    click.option("--explain", is_flag=True, help="Say which rule fired where, and why others did not."),
)  # fmt: skip


# -- the commands --------------------------------------------------------------------------------------------------
@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, "-V", "--version", prog_name="qatc", message="%(prog)s %(version)s")
def cli() -> None:
    """Compile quantization-aware-trained ONNX models into verified INT8 packages.

    Exit codes: 0 done, 1 the model cannot be compiled, 2 usage, 3 verification failed, 70 a bug of qatc.
    """


@cli.command("compile")
@click.argument("model", type=_FILE)
@click.option("-o", "--output", type=_FILE, metavar="DIR", help="The package.  [default: <stem>.qatc]")
@click.option("--sign", type=_FILE, metavar="KEY.pem", help="Sign the package with a private key.")
@_model_options
@_proof_options
@_ci_options
@_output_options
def compile_command(
    model: Path, junit: Path | None, sarif: Path | None, json: bool, quiet: bool, verbose: bool, **chosen: Any
) -> None:
    """Compile MODEL, an ONNX file (or one of TensorFlow's), and write the package."""
    from qatc.compiler.driver import compile_model
    from qatc.compiler.report import envelope, result_json, summary

    if click.get_current_context().find_root().obj == _OWN_PROCESS:  # its end frees everything; looking is a tenth
        gc.disable()
        atexit.register(gc.freeze)
    screen = _screen({"json": json, "quiet": quiet, "verbose": verbose})
    with screen.progress() as progress:
        result = compile_model(model, progress=progress, **chosen)
    if junit or sarif:
        from qatc.compiler.report.junit import compile_cases

        _finish_for_ci(result.diagnostics, 0, compile_cases(result))
    if json:
        screen.write_json(envelope("compile", diagnostics=result.diagnostics, result=result_json(result)))
    elif not quiet:
        summary(result, screen.out, verbose=verbose)


@cli.command("inspect")
@click.argument("model", type=_FILE)
@_model_options
@click.option("--dump", is_flag=True, help="Print the integer graph as text, one line an operator, and nothing else.")
@click.option("--svg", type=_FILE, metavar="FILE", help="Draw the graph: integers, islands and why, into a file.")
@_output_options
def inspect_command(
    model: Path, dump: bool, svg: Path | None, json: bool, quiet: bool, verbose: bool, **chosen: Any
) -> None:
    """Show what of MODEL would run in integers, what not, and why.

    No package is written. Takes the options of compile that shape the graph.
    """
    from qatc.compiler.driver import inspect_model
    from qatc.compiler.report import envelope, inspection_json
    from qatc.compiler.report.inspection import inspection

    screen = _screen({"json": json, "quiet": quiet, "verbose": verbose})
    found = inspect_model(model, **chosen)
    if svg is not None and found.view is not None:
        from qatc.compiler.report.drawing import graph_file

        screen.write_file(svg, graph_file(found.view, found.source.name))
    if json:
        screen.write_json(envelope("inspect", diagnostics=found.diagnostics, result=inspection_json(found)))
    elif dump:
        screen.line(found.dump.rstrip("\n"))
    else:
        inspection(found, screen.out, verbose=verbose, quiet=quiet)
        if svg is not None and not quiet:
            screen.line(f"  drawing      {svg}")


@cli.command("verify")
@click.argument("package", type=_FILE)
@click.option(
    "--reference/--no-reference",
    default=True,
    show_default="on",
    help="Compare every tensor with the reference executor, too.",
)
@click.option("--key", type=_FILE, metavar="PUB.pem", help="Check that the owner of this public key signed it.")
@_ci_options
@_output_options
def verify_command(
    package: Path,
    key: Path | None,
    reference: bool,
    junit: Path | None,
    sarif: Path | None,
    json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Check PACKAGE again, wherever it was copied to.

    Its files against their schemas and hashes, its samples through ONNX Runtime and through the reference.
    """
    from qatc.compiler.report import envelope
    from qatc.compiler.report.listings import package_check, package_check_json
    from qatc.compiler.verify_package import verify_package

    screen = _screen({"json": json, "quiet": quiet, "verbose": verbose})
    with screen.progress() as progress:
        found = verify_package(package, reference=reference, key=key, progress=_counted(progress))
    status = 0 if found.passed else _FAILED
    if junit or sarif:
        from qatc.compiler.report.junit import package_cases

        _finish_for_ci(found.diagnostics, status, package_cases(found))
    if json:
        result = package_check_json(found)
        screen.write_json(envelope("verify", exit_code=status, diagnostics=found.diagnostics, result=result))
    else:
        screen.diagnostics(found.diagnostics)
        if not quiet:
            package_check(found, screen.out, verbose=verbose)
    click.get_current_context().exit(status)


@cli.command("compare")
@click.argument("package", type=_FILE)
@click.argument("dump", type=_FILE)
@click.option("--tolerance", type=click.IntRange(0, 2**31 - 1), metavar="LSB", default=0, show_default=True,
              help="How many LSB an element may be off.")  # fmt: skip
@click.option("--sample", type=click.IntRange(0), metavar="N", default=0, show_default=True,
              help="The sample of arrays that are in no folder named by one.")  # fmt: skip
@_output_options
def compare_command(
    package: Path, dump: Path, tolerance: int, sample: int, json: bool, quiet: bool, verbose: bool
) -> None:
    """Compare what a device computed with PACKAGE: the first tensor that differs, and the likely cause.

    DUMP is a folder of .npy or raw .bin files, or an .npz, of any of the tensors of any of the samples.
    """
    from qatc.compiler.compare import compare_package
    from qatc.compiler.report import envelope
    from qatc.compiler.report.comparison import comparison, comparison_json

    screen = _screen({"json": json, "quiet": quiet, "verbose": verbose})
    found = compare_package(package, dump, tolerance=tolerance, sample=sample)
    status = 0 if found.passed else _FAILED
    diagnostics = [*found.diagnostics, *([found.verdict] if found.verdict else [])]
    if json:
        result = comparison_json(found)
        screen.write_json(envelope("compare", exit_code=status, diagnostics=diagnostics, result=result))
    else:
        screen.diagnostics(diagnostics if quiet else found.diagnostics)
        if not quiet:
            comparison(found, screen.out, verbose=verbose)
    click.get_current_context().exit(status)


@cli.command("evaluate")
@click.argument("package", type=_FILE)
@click.option(
    "--data",
    type=_FILE,
    required=True,
    metavar="FILE.npz|DIR",
    help="Samples: an .npy or .npz file, a folder of arrays or images.",
)
@click.option(
    "--metric",
    "metrics",
    metavar="NAME,...",
    multiple=True,
    required=True,
    callback=_listed,
    help="What to measure, such as top1,top5,mse,cosine,miou; NAME@RUN compares with another run.",
)
@click.option(
    "--model",
    type=_FILE,
    metavar="FILE",
    help="The model that was compiled, for the simulation.  [default: where it lies beside the package]",
)
@click.option("--float-model", type=_FILE, metavar="FILE", help="The model before quantization, to score as well.")
@click.option(
    "--runs",
    metavar="NAME,...",
    callback=_listed,
    help="Which of float, simulation, reference and package take part.  [default: all there are]",
)
@click.option(
    "--plugin",
    "plugins",
    type=_FILE,
    metavar="FILE.py",
    multiple=True,
    help="Python file with metrics or data sets of your own, repeatable. It is run.",
)
@click.option("--dataset", metavar="NAME", help="What reads the data.  [default: what recognizes it]")
@_repeated("--data-option", "data_options", form="KEY=VALUE", convert=str, help="Option of the data set, repeatable.")
@click.option("--output", metavar="NAME", help="The output that labels belong to.  [default: the first]")
@click.option("--batch", type=click.IntRange(1), metavar="N", help="Samples run together.  [default: what fits]")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Stop after so many samples.")
@_repeated("--require", form="METRIC=VALUE", convert=_number, help="Worst score that the package may have, repeatable.")
@_repeated(
    "--max-loss",
    form="METRIC=VALUE",
    convert=_limit,
    help="How much worse than the simulation it may score, repeatable.",
)
@click.option("--report", is_flag=True, help="Write the result into the package's report, too.")
@_ci_options
@_output_options
def evaluate_command(
    package: Path,
    data: Path,
    metrics: Sequence[str],
    junit: Path | None,
    sarif: Path | None,
    json: bool,
    quiet: bool,
    verbose: bool,
    **chosen: Any,
) -> None:
    """Score PACKAGE on data, beside the simulation (the model that was compiled) and the reference.

    Metrics compare with labels of the data, with targets, or with the simulation.
    """
    from qatc.compiler.evaluation import evaluate_package
    from qatc.compiler.report import envelope
    from qatc.compiler.report.evaluation import evaluation, evaluation_cases, evaluation_json

    screen = _screen({"json": json, "quiet": quiet, "verbose": verbose})
    with screen.progress() as progress:
        found = evaluate_package(package, data, metrics, progress=progress, **chosen)
    status = 0 if found.passed else _FAILED
    if junit or sarif:
        _finish_for_ci(found.diagnostics, status, evaluation_cases(found))
    if json:
        screen.write_json(
            envelope("evaluate", exit_code=status, diagnostics=found.diagnostics, result=evaluation_json(found))
        )
    else:
        screen.diagnostics(found.diagnostics)
        if not quiet:
            evaluation(found, screen.out, verbose=verbose)
    click.get_current_context().exit(status)


@cli.command("targets")
@_output_options
def targets_command(json: bool, quiet: bool, verbose: bool) -> None:
    """List what can be compiled for."""
    from qatc.compiler.registry import backends
    from qatc.compiler.report import envelope
    from qatc.compiler.report.listings import targets, targets_json
    from qatc.compiler.target import builtin_targets

    screen = _screen({"json": json, "quiet": quiet, "verbose": verbose})
    found = [(target, backends().get(target.backend)) for target in builtin_targets().values()]
    if json:
        screen.write_json(envelope("targets", result=targets_json(found)))
    else:
        targets(found, screen.out, verbose=verbose)


@cli.command("dialects")
@_output_options
def dialects_command(json: bool, quiet: bool, verbose: bool) -> None:
    """List the exporters' dialects that can be read."""
    from qatc.compiler.registry import frontends
    from qatc.compiler.report import envelope
    from qatc.compiler.report.listings import dialects, dialects_json

    screen = _screen({"json": json, "quiet": quiet, "verbose": verbose})
    registry = frontends()
    found = [(registry.get(name), registry.owner(name)) for name in registry.names()]
    if json:
        screen.write_json(envelope("dialects", result=dialects_json(found)))
    else:
        dialects(found, screen.out, verbose=verbose)


@cli.command("explain")
@click.argument("code", required=False)
@_output_options
def explain_command(code: str | None, json: bool, quiet: bool, verbose: bool) -> None:
    """Explain a diagnostic CODE, such as QAT203.

    Without one, list them all.
    """
    from qatc.compiler.report import envelope
    from qatc.compiler.report.listings import codes, page

    screen = _screen({"json": json, "quiet": quiet, "verbose": verbose})
    if code is None:
        if json:
            screen.write_json(envelope("explain", result={"codes": dict(CODES)}))
        else:
            codes(CODES, screen.out)
        return
    from qatc.compiler.explain import explanation

    text = explanation(code)
    if json:
        screen.write_json(envelope("explain", result={"code": text[2:].partition(":")[0], "text": text}))
    else:
        page(text, screen.out)


def main() -> None:
    """Run `qatc`."""
    cli(obj=_OWN_PROCESS)


def compile_main() -> None:
    """Run `compile`, the short name of `qatc compile`."""
    compile_command(obj=_OWN_PROCESS)


if __name__ == "__main__":
    main()

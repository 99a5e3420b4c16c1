"""How a command ends: with its answer, or with diagnostics and an exit code; never with a bare traceback.

Either way it is told to people, or as JSON with --json, and to CI services in the files of --junit and --sarif.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from qatc._version import __version__
from qatc.compiler.command.arguments import SECTIONS, in_our_words
from qatc.compiler.command.process import OutputError, interrupted, printing
from qatc.compiler.diagnostics import CompileError, Diagnostic, file_name, printable

if TYPE_CHECKING:
    from qatc.compiler.report.junit import Case
    from qatc.compiler.report.screen import Screen
    from qatc.compiler.result import Json

MISUSED: Final = 2
FAILED: Final = 3
BUG: Final = 70


def answer(
    screen: Screen,
    found: Sequence[Diagnostic] = (),
    *,
    passed: bool = True,
    cases: Callable[[], Sequence[Case]] | None = None,
    result: Callable[[], Mapping[str, Json] | Sequence[Json]],
    show: Callable[[], None],
    told: Sequence[Diagnostic] = (),
    listing: bool = False,
) -> None:
    """Tell what the running command found; where that is no pass, end it with exit code 3.

    A file of --junit or --sarif that cannot be written is told beside it, and takes the place of exit code 0.

    Args:
        screen: where it is shown.
        found: the diagnostics, for the machines.
        passed: whether all was as it should be.
        cases: what --junit lists beside them; None for a command without that option.
        result: what --json prints of it.
        show: prints it for people.
        told: the diagnostics that `show` does not print.
        listing: whether what `show` prints is what was asked for, so that --quiet keeps it.
    """
    ctx = click.get_current_context()
    status = 0 if passed else FAILED
    wrong = [] if cases is None else _write_for_ci(ctx, found, status, cases)
    if wrong:
        found, told, status = [*found, *wrong], [*told, *wrong], status or MISUSED
    if screen.json:
        from qatc.compiler.report import envelope

        document = envelope(ctx.command.name or "", exit_code=status, diagnostics=found, result=result())
        with printing():
            screen.write_json(document)
    else:
        screen.diagnostics(told)
        if listing or not screen.quiet:
            with printing():
                show()
    if status:
        ctx.exit(status)


class _Answering(click.Command):
    """A command whose --help ends with 0, too, where its reader has gone away: click would end it with 1."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Parse the arguments, which is where click prints what --help and --version ask for."""
        wants_json = "--json" in args
        try:
            with printing():
                return super().make_context(info_name, self.understood(args), parent, **extra)
        except click.UsageError as error:
            raise _as_wanted(error, self, json=wants_json) from None
        raise click.exceptions.Exit(0)

    def understood(self, args: list[str]) -> list[str]:
        """The arguments in the words of this command's options."""
        return args


class Command(_Answering):
    """A command whose failures are diagnostics: rendered for people, or as JSON with --json; never a bare traceback."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options that --help lists: under headings where there are many."""
        options = [p for p in self.get_params(ctx) if isinstance(p, click.Option)]
        rows = {p.name: row for p in options if (row := p.get_help_record(ctx)) is not None}
        if "qat" not in rows:
            super().format_options(ctx, formatter)
            return
        for title, names in SECTIONS.items():
            if found := [rows.pop(name) for name in names if name in rows]:
                with formatter.section(title):
                    formatter.write_dl(found)
        with formatter.section("Others"):
            formatter.write_dl(list(rows.values()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; turn whatever it raises into diagnostics and an exit code."""
        found: Sequence[Diagnostic]
        cases: Sequence[Case] = ()
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, OutputError):
            raise
        except CompileError as error:
            found, status, cases = error.diagnostics, error.exit_code, _stages(error)
        except KeyboardInterrupt as error:
            raise click.exceptions.Exit(interrupted(error)) from None
        except MemoryError:
            found, status = [Diagnostic("QAT011", "memory ran out", hint="use a machine with more memory")], 1
        except (Exception, SystemExit) as error:  # a bug of ours, whatever it is: say so, and how to report it
            found, status = [_internal(error, verbose=bool(ctx.params.get("verbose")))], BUG
            if isinstance(error, FileNotFoundError) and _is_nowhere():
                message = "the working directory does not exist any more"
                found, status = [Diagnostic("QAT002", message, hint="change to a folder that does")], 1
        found = [*found, *_write_for_ci(ctx, found, status, lambda: cases)]
        if ctx.params.get("json"):
            _write_failure(ctx.command.name or "", found, status)
        else:
            _screen(ctx.params).diagnostics(found)
        raise click.exceptions.Exit(status)


class CompileCommand(Command):
    """A command that also takes the command line of the target's vendor."""

    def understood(self, args: list[str]) -> list[str]:
        """A vendor's options as ours; says on standard error what became of each."""
        translated, said = in_our_words(args)
        if "--quiet" not in args:
            for line in said:
                click.echo(line, err=True)
        return translated

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments; a dialect behind -a, as the guide of DRP-AI TVM has it, gets a suggestion."""
        behind = [value for flag, value in pairwise(args) if flag in ("-a", "--qat")]
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            from qatc.compiler.registry import frontends

            named = [value for value in behind if value.lower() in frontends().names()]
            if not named:
                raise
            raise click.UsageError(
                f"{error.format_message()}. -a takes no value: write -a -m {named[0]}", ctx
            ) from None


class Group(_Answering, click.Group):
    """The commands of qatc, in the order of their use; an unknown one gets a suggestion."""

    command_class = Command

    def list_commands(self, ctx: click.Context) -> list[str]:
        """As they are defined."""
        return list(self.commands)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse what stands before the command; an option of a command in its place gets a suggestion."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            flag = error.option_name
            for name, command in self.commands.items():
                if any(flag in parameter.opts for parameter in command.params):
                    raise click.UsageError(f"No such option {flag!r}. Did you mean qatc {name} {flag}?", ctx) from None
            raise

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
            told = f"No such command {printable(args[0])!r}. Did you mean qatc {close[0]}?" if close else error.message
            raise _as_wanted(click.UsageError(told, ctx), self, json="--json" in args) from None


def _as_wanted(error: click.UsageError, command: click.Command, *, json: bool) -> Exception:
    """A usage error as it is to be raised: with --json it is written as a document first, and the end is left."""
    if not json:
        return error
    _write_failure(command.name or "", [Diagnostic("QAT007", error.format_message())], error.exit_code)
    return click.exceptions.Exit(error.exit_code)


def _screen(params: Mapping[str, Any]) -> Screen:
    from qatc.compiler.report.screen import Screen

    return Screen(bool(params.get("json")), bool(params.get("quiet")), bool(params.get("verbose")))


def _write_failure(command: str, found: Sequence[Diagnostic], status: int) -> None:
    from qatc.compiler.report import envelope

    with printing():
        _screen({"json": True}).write_json(envelope(command, exit_code=status, diagnostics=found))


def _write_for_ci(
    ctx: click.Context, found: Sequence[Diagnostic], status: int, cases: Callable[[], Sequence[Case]]
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
        data = junit(file_name(subject), cases(), found, status) if option == "junit" else sarif(place, found, status)
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


def _is_nowhere() -> bool:
    try:
        Path.cwd()
    except FileNotFoundError:
        return True
    return False


def _internal(error: BaseException, *, verbose: bool) -> Diagnostic:
    import traceback

    where = "".join(traceback.format_exception(error)) if verbose else ""
    name = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    asked = "report it with the command, its output with -v and, if you can, the model"
    return Diagnostic("QAT901", f"{name}\n{where}".rstrip(), hint=f"this is a bug in qatc {__version__}: {asked}")

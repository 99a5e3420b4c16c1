"""The command line: parse, call, render, exit code. The work is in `qatc.compiler`, how it looks in `compiler/report`.

How options look and how commands end is in `compiler/command`. Only click is imported here, so that `qatc --help`
answers at once; a command imports what it needs when it runs.
"""

from __future__ import annotations

import atexit
import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from qatc._version import __version__
from qatc.compiler.command import arguments
from qatc.compiler.command.arguments import (
    FILE,
    OWN_PROCESS,
    ci_options,
    model_options,
    output_options,
    proof_options,
    repeated,
)
from qatc.compiler.command.ending import CompileCommand, Group, answer
from qatc.compiler.command.process import run
from qatc.compiler.diagnostics import CODES

if TYPE_CHECKING:
    from qatc.compiler.report.junit import Case
    from qatc.compiler.report.screen import Screen


@click.group("qatc", cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, "-V", "--version", prog_name="qatc", message="%(prog)s %(version)s")
def cli() -> None:
    """Compile quantization-aware-trained ONNX models into verified INT8 packages.

    Exit codes: 0 done, 1 the model cannot be compiled, 2 usage, 3 verification failed, 70 a bug of qatc.
    """


@cli.command("compile", cls=CompileCommand, short_help="Compile MODEL and write the package.")
@click.argument("model", type=FILE)
@click.option("-o", "--output", type=FILE, metavar="DIR", help="The package.  [default: <stem>.qatc]")
@click.option("--sign", type=FILE, metavar="KEY.pem", help="Sign the package with a private key.")
@click.option("--certificate", type=FILE, metavar="CERT.pem", help="Say in the signature whose key it is.")
@model_options
@proof_options
@ci_options
@output_options
def compile_command(model: Path, screen: Screen, **chosen: Any) -> None:
    """Compile MODEL, an ONNX file (or one of TensorFlow's), and write the package.

    \b
    qatc compile -a -m pytorch model.onnx
    qatc compile -a model.onnx -o out --calibrate samples.npy --require-integer
    """
    from qatc.compiler.driver.compile import compile_model
    from qatc.compiler.report import result_json

    if click.get_current_context().find_root().obj == OWN_PROCESS:  # its end frees everything; looking is a tenth
        gc.disable()
        atexit.register(gc.freeze)
    with screen.progress() as progress:
        result = compile_model(model, progress=progress, **chosen)

    def cases() -> list[Case]:
        from qatc.compiler.report.junit import compile_cases

        return compile_cases(result)

    def show() -> None:
        from qatc.compiler.report.summary import summary

        summary(result, screen.out, verbose=screen.verbose)

    answer(
        screen,
        result.diagnostics,
        cases=cases,
        result=lambda: result_json(result),
        show=show,
    )


@cli.command("inspect", short_help="Show what would run in integers, and why not.")
@click.argument("model", type=FILE)
@model_options
@click.option("--dump", is_flag=True, help="Print the integer graph as text, one line an operator, and nothing else.")
@click.option("--svg", type=FILE, metavar="FILE", help="Draw the graph: integers, islands and why, into a file.")
@output_options
def inspect_command(model: Path, dump: bool, svg: Path | None, screen: Screen, **chosen: Any) -> None:
    """Show what of MODEL would run in integers, what not, and why.

    No package is written. Takes the options of compile that shape the graph.

    \b
    qatc inspect model.onnx
    qatc inspect model.onnx --calibrate samples.npy --svg graph.svg
    """
    from qatc.compiler.driver.compile import inspect_model
    from qatc.compiler.report import inspection_json
    from qatc.compiler.report.inspection import inspection

    found = inspect_model(model, **chosen)
    if svg is not None and found.view is not None:
        from qatc.compiler.report.drawing import graph_file

        screen.write_file(svg, graph_file(found.view, found.source.name))

    def show() -> None:
        if dump:
            screen.line(found.dump.rstrip("\n"))
            return
        inspection(found, screen.out, verbose=screen.verbose, quiet=screen.quiet)
        if svg is not None and not screen.quiet:
            screen.line(f"  drawing      {svg}")

    answer(screen, found.diagnostics, result=lambda: inspection_json(found), show=show, listing=True)


@cli.command("verify", short_help="Check PACKAGE again, wherever it is now.")
@click.argument("package", type=FILE)
@click.option(
    "--reference/--no-reference",
    default=True,
    show_default=True,
    help="Compare every tensor with the reference executor, too.",
)
@click.option("--key", type=FILE, metavar="PUB.pem", help="Check that the owner of this public key signed it.")
@click.option("--identity", metavar="NAME", help="Check that the holder of a certificate with this name signed it.")
@click.option("--roots", type=FILE, metavar="ROOTS.pem", help="Certificates that such a certificate is issued under.")
@ci_options
@output_options
def verify_command(package: Path, screen: Screen, **chosen: Any) -> None:
    """Check PACKAGE again, wherever it was copied to.

    Its files against their schemas and hashes, its samples through ONNX Runtime and through the reference.

    \b
    qatc verify model.qatc
    qatc verify model.qatc --junit verify.xml
    """
    from qatc.compiler.report.junit import package_cases
    from qatc.compiler.report.listings import package_check, package_check_json
    from qatc.compiler.verify.package import verify_package

    with screen.progress() as progress:
        found = verify_package(package, progress=_counted(progress), **chosen)
    answer(
        screen,
        found.diagnostics,
        passed=found.passed,
        cases=lambda: package_cases(found),
        result=lambda: package_check_json(found),
        show=lambda: package_check(found, screen.out, verbose=screen.verbose),
        told=found.diagnostics,
    )


@cli.command("compare", short_help="Find where a device differs from PACKAGE.")
@click.argument("package", type=FILE)
@click.argument("dump", type=FILE)
@click.option("--tolerance", type=click.IntRange(0, 2**31 - 1), metavar="LSB", default=0, show_default=True,
              help="How many LSB an element may be off.")  # fmt: skip
@click.option("--sample", type=click.IntRange(0), metavar="N", default=0, show_default=True,
              help="The sample of arrays that are in no folder named by one.")  # fmt: skip
@output_options
def compare_command(package: Path, dump: Path, tolerance: int, sample: int, screen: Screen) -> None:
    """Compare what a device computed with PACKAGE: the first tensor that differs, and the likely cause.

    DUMP is a folder of .npy or raw .bin files, or an .npz, of any of the tensors of any of the samples.

    \b
    qatc compare model.qatc dump/
    qatc compare model.qatc board.npz --tolerance 1
    """
    from qatc.compiler.compare import compare_package
    from qatc.compiler.report.comparison import comparison, comparison_json

    found = compare_package(package, dump, tolerance=tolerance, sample=sample)
    everything = [*found.diagnostics, *([found.verdict] if found.verdict else [])]
    answer(
        screen,
        everything,
        passed=found.passed,
        result=lambda: comparison_json(found),
        show=lambda: comparison(found, screen.out, verbose=screen.verbose),
        told=everything if screen.quiet else found.diagnostics,
    )


@cli.command("evaluate", short_help="Score PACKAGE on data, beside the model.")
@click.argument("package", type=FILE)
@click.option(
    "--data",
    type=FILE,
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
    callback=arguments.listed,
    help="What to measure, such as top1,top5,mse,cosine,miou; NAME@RUN compares with another run.",
)
@click.option(
    "--model",
    type=FILE,
    metavar="FILE",
    help="The model that was compiled, for the simulation.  [default: where it lies beside the package]",
)
@click.option("--float-model", type=FILE, metavar="FILE", help="The model before quantization, to score as well.")
@click.option(
    "--runs",
    metavar="NAME,...",
    callback=arguments.listed,
    help="Which of float, simulation, reference and package take part.  [default: all there are]",
)
@click.option(
    "--plugin",
    "plugins",
    type=FILE,
    metavar="FILE.py",
    multiple=True,
    help="Python file with metrics or data sets of your own, repeatable. It is run.",
)
@click.option("--dataset", metavar="NAME", help="What reads the data.  [default: what recognizes it]")
@repeated("--data-option", "data_options", form="KEY=VALUE", convert=str, help="Option of the data set, repeatable.")
@click.option("--output", metavar="NAME", help="The output that labels belong to.  [default: the first]")
@click.option("--batch", type=click.IntRange(1), metavar="N", help="Samples run together.  [default: what fits]")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Stop after so many samples.")
@repeated(
    "--require", form="METRIC=VALUE", convert=arguments.score, help="Worst score that the package may have, repeatable."
)
@repeated(
    "--max-loss",
    form="METRIC=VALUE",
    convert=arguments.limit,
    help="How much worse than the simulation it may score, repeatable.",
)
@click.option("--report", is_flag=True, help="Write the result into the package's report, too.")
@ci_options
@output_options
def evaluate_command(package: Path, data: Path, metrics: Sequence[str], screen: Screen, **chosen: Any) -> None:
    """Score PACKAGE on data, beside the simulation (the model that was compiled) and the reference.

    Metrics compare with labels of the data, with targets, or with the simulation.

    \b
    qatc evaluate model.qatc --data digits.npz --metric top1,sqnr
    qatc evaluate model.qatc --data images/ --metric top1 --require top1=0.9
    """
    from qatc.compiler.evaluation import evaluate_package
    from qatc.compiler.report.evaluation import evaluation, evaluation_cases, evaluation_json

    with screen.progress() as progress:
        found = evaluate_package(package, data, metrics, progress=progress, **chosen)
    answer(
        screen,
        found.diagnostics,
        passed=found.passed,
        cases=lambda: evaluation_cases(found),
        result=lambda: evaluation_json(found),
        show=lambda: evaluation(found, screen.out, verbose=screen.verbose),
        told=found.diagnostics,
    )


@cli.command("targets")
@output_options
def targets_command(screen: Screen) -> None:
    """List what can be compiled for."""
    from qatc.compiler.registry import backends
    from qatc.compiler.report.listings import targets, targets_json
    from qatc.compiler.target import builtin_targets

    found = [(target, backends().get(target.backend)) for target in builtin_targets().values()]
    answer(
        screen,
        result=lambda: targets_json(found),
        show=lambda: targets(found, screen.out, verbose=screen.verbose),
        listing=True,
    )


@cli.command("dialects")
@output_options
def dialects_command(screen: Screen) -> None:
    """List the exporters' dialects that can be read."""
    from qatc.compiler.registry import frontends
    from qatc.compiler.report.listings import dialects, dialects_json

    registry = frontends()
    found = [(registry.get(name), registry.owner(name)) for name in registry.names()]
    answer(
        screen,
        result=lambda: dialects_json(found),
        show=lambda: dialects(found, screen.out, verbose=screen.verbose),
        listing=True,
    )


@cli.command("explain")
@click.argument("code", required=False)
@output_options
def explain_command(code: str | None, screen: Screen) -> None:
    """Explain a diagnostic CODE, such as QAT203.

    Without one, list them all.
    """
    from qatc.compiler.report.listings import codes, page

    if code is None:
        answer(screen, result=lambda: {"codes": dict(CODES)}, show=lambda: codes(CODES, screen.out), listing=True)
        return
    from qatc.compiler.explain import explanation

    text = explanation(code)
    answer(
        screen,
        result=lambda: {"code": text[2:].partition(":")[0], "text": text},
        show=lambda: page(text, screen.out),
        listing=True,
    )


def _counted(progress: Callable[[str, float], None] | None) -> Callable[[str, int, int], None] | None:
    """What wants a share, told how much of how much."""
    if progress is None:
        return None
    return lambda what, done, total: progress(what, done / max(1, total))


def main() -> NoReturn:
    """Run `qatc`."""
    run(cli)


def compile_main() -> NoReturn:
    """Run `compile`, the short name of `qatc compile`."""
    run(compile_command)


if __name__ == "__main__":
    main()

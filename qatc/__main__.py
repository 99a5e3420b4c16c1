"""Where `qatc`, `compile` and `python -m qatc` start."""

import os
import signal


def main() -> None:
    """Run `qatc`."""
    _begin()
    from qatc import cli

    cli.main()


def compile_main() -> None:
    """Run `compile`, the short name of `qatc compile`."""
    _begin()
    from qatc import cli

    cli.compile_main()


def _begin() -> None:
    """What is set in a process of its own, before anything is loaded.

    Ctrl-C ends a process that is still loading: it has nothing to tidy up. Where it is ignored, it stays so. BLAS
    computes on one thread, as ONNX Runtime does, unless the user has said how many: its threads wait for each other
    longer than most of these products take, above all where a container has fewer processors than its machine.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        for library in ("OPENBLAS", "MKL"):
            os.environ.setdefault(f"{library}_NUM_THREADS", "1")
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    main()

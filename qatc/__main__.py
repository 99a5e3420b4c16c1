"""Where `qatc`, `compile` and `python -m qatc` start."""

import signal


def main() -> None:
    """Run `qatc`."""
    _end_at_once()
    from qatc import cli

    cli.main()


def compile_main() -> None:
    """Run `compile`, the short name of `qatc compile`."""
    _end_at_once()
    from qatc import cli

    cli.compile_main()


def _end_at_once() -> None:
    """Let Ctrl-C end a process that is still loading: it has nothing to tidy up. Where it is ignored, it stays so."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    main()

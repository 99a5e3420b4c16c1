"""`python -m qatc` is the same as `qatc`."""

from qatc.cli import main

if __name__ == "__main__":
    main()

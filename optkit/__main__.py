"""Runs the command line as ``python -m optkit``."""

from optkit.cli import main

if __name__ == "__main__":
    main()

"""The documentation is true: examples run, public names are described."""

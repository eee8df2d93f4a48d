"""The measurements in ``benchmarks/`` run, and compute what they say."""

"""Measurements behind the numbers that optkit states; run one by ``python -m benchmarks.NAME``."""

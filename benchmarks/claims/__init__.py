"""Small experiments that ask whether a paper's headline holds at a scale that fits two cores.

``python -m benchmarks.claims`` runs all of them and ``python -m benchmarks.claims muon`` one; each
takes at most ten minutes, has fixed seeds (at least three) and stores its table under
``benchmarks/results/claims``. Where a headline does not hold here, the table says so.
"""

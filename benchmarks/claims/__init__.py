"""Small experiments that ask whether a paper's headline holds at a scale that fits two cores.

``python -m benchmarks.claims`` runs all of them and ``python -m benchmarks.claims muon`` one; each
takes at most ten minutes, has fixed seeds (at least three) and stores its table under
``benchmarks/results/claims``. Where a headline does not hold here, the table says so.
"""

import os

# Read when LAPACK is loaded, so before JAX is imported: on matrices of these sizes its threads do
# little but wait for each other, above all on a busy machine.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

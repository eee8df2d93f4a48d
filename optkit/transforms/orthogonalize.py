"""The matrix direction: replace each matrix by its orthogonal factor."""

from collections.abc import Sequence
from typing import Any, Literal

from optkit import linalg
from optkit.catalogue import register
from optkit.linalg.implementation import Choice
from optkit.transforms.base import Transformation, stateless
from optkit.transforms.matrix_map import MatrixMap, factor_options, orthogonal_function
from optkit.transforms.sketching import Key, Sketching, randomized, sketch_numbers
from optkit.tree import Dims, RuleLike
from optkit.tree.costs import Sharding, as_sharding

Method = linalg.Method | Literal["randomized"]


@register(
    kind="part",
    family="direction",
    paper=("Muon: An optimizer for hidden layers in neural networks", None, 2024),
    state_bytes={"*": 0},
    tags=("muon", "newton-schulz"),
    chain="u = U V^T of u = U S V^T",
    matrices_only=True,
)
def orthogonalize(
    method: Method = "auto",
    *,
    coefficients: str | linalg.CoefficientSet | Sequence[Sequence[float]] = "jordan",
    steps: int | None = None,
    eps: float | None = None,
    eps_mode: Literal["add", "clamp"] = "add",
    margin: float | None = None,
    precondition: Literal["frobenius", "spectral", "schatten", "aol"] = "frobenius",
    resets: Sequence[int] | None = None,
    adaptive: bool = False,
    rank: int | float | None = None,
    oversampling: int | None = None,
    power_iterations: int | None = None,
    sketch: linalg.SketchKind = "gaussian",
    side: linalg.Side = "auto",
    qr_method: linalg.QrMethod = "qr",
    key: Key | None = None,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
    dtype: Any | None = None,
    precision: Any | None = None,
    group_bytes: int | None = None,
    sharding: Sharding = "auto",
    implementation: Choice = "xla",
) -> Transformation:
    """Replaces every matrix by (an approximation of) its orthogonal factor ``U V^T``.

    1. each leaf is read as a batch of matrices (``dims``), short side first;
    2. leaves of one shape are stacked, up to ``group_bytes``, and on a mesh of several devices
       moved to whole matrices on single devices, or as ``sharding`` says;
    3. ``X <- X / (margin * norm(X) + eps)``, then per step ``G = X X^T``,
       ``X <- a X + (b G + c G^2) X`` (or the Gram form of the same polynomial);
    4. everything goes back to where it was. Zero matrices stay zero.

    With ``"randomized"``, step 3 is done on ``l = rank + oversampling`` directions only: ``Q`` is
    an orthonormal basis of ``(X X^T)^h X Omega``, ``h = power_iterations``, for a random ``Omega``
    of ``l`` columns, and the factor is ``Q NS(Q^T X)``. ``optkit.linalg.randomized_factor`` has the
    details and the FLOPs. The random numbers depend on ``key``, step and the leaf's path only, so
    that grouping and sharding do not change the run. To feed sketches instead, call
    ``update(..., sketch=tree)`` with Omega ``(*batch, fan_in, l)``, or indices ``(*batch, l)`` of
    columns, for each leaf (``fan_out`` in place of ``fan_in`` with ``side="rows"``).

    Args:
      method: "ns", "gram_ns", "svd", "qdwh", or a function of ``(..., m, n)`` arrays of your own;
        "auto" takes the form that is faster for shape and dtype; "randomized" see above.
      coefficients: a name in ``optkit.linalg.COEFFICIENTS`` or rows (a, b, c).
      steps: number of steps; None for the usual number of the set.
      eps: guards the division, in units of the update; None (or 0) divides safely at any scale.
      eps_mode: "add" to the norm, or "clamp" the norm from below.
      margin: factor on the norm; None for the set's own.
      precondition: what X is divided by; "aol" rescales rows and changes the singular vectors.
      resets: steps at which the Gram form recomputes its Gram matrix.
      adaptive: multiply by ``<U V^T, X>``, which approximates the nuclear norm (optax's
        ``adaptive``, PolarGrad).
      rank: for "randomized", as what follows: number of directions, or as a float in (0, 1] their
        share of the short side; None for 0.25.
      oversampling: directions beyond it, clipped to the matrix; None for 10.
      power_iterations: how often ``X X^T`` is applied to the sketch; None for 1.
      sketch: "gaussian", or "kaczmarz" for columns drawn by their squared length, without
        replacement.
      side: with X as (fan_out, fan_in), "columns" mixes columns, so that the basis has fan_out
        rows; "rows" the other way round; "auto" puts it on the longer axis (a square one:
        columns).
      qr_method: how the basis is found: "qr" (Householder), or by products, for accelerators:
        "cqr", "rcqr"; see ``optkit.linalg.orthonormalize``.
      key: seed or PRNG key; None for 0.
      dims: ``optax.contrib.MuonDimensionNumbers`` (or ``optkit.MatrixDims``, which also splits
        fused kernels into heads or query, key and value) for all leaves, a tree of them, or a
        function from params to such a tree; None for Flax's kernel layout by role.
      roles: your own ``(pattern, role)`` or ``(pattern, role, dims)`` rules.
      dtype: dtype of the iteration; None for float32 (float64 for float64 updates).
      precision: matmul precision of jax.
      group_bytes: bytes of one stack; None for the platform's measured default.
      sharding: how the work is spread over a mesh: "layer" (whole matrices on single devices),
        "gram" (one sum of Gram matrices), "replicate", "auto" for the cheapest, or an
        ``optkit.tree.MatrixSharding``, which also names mesh axes and tells partitions.
      implementation: "xla"; "pallas", the kernels of TPUs and GPUs for "ns", "gram_ns" and "auto",
        see ``optkit.kernels.newton_schulz.iterate``; "auto", on TPUs the kernel where it serves and
        wins by the compiler's estimates, else as "xla": it refuses nothing, and like "pallas" has
        whole matrices on each device; "interpret", the TPU's kernel anywhere, slow.
        Recipes without this option take it by their ``method``: ``functools.partial(
        optkit.linalg.orthogonal_factor, implementation="pallas", compute_dtype=jnp.bfloat16)``.

    Returns:
      A stateless ``optax.GradientTransformationExtraArgs`` (0 bytes) for trees of matrices; keeps
      dtypes. The state of "randomized" is a key and a counter.

    Raises:
      ValueError: a leaf is no matrix, or an option is unknown or impossible; with "randomized" at
        init if a rank is larger than a matrix (names the leaf).

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tx = optkit.orthogonalize("svd")
      >>> u, _ = tx.update({"w": jnp.diag(jnp.array([3.0, -2.0]))}, tx.init(None))
      >>> u["w"].round(3).tolist()
      [[1.0, 0.0], [0.0, -1.0]]

    Reference:
      Jordan et al., Muon, 2024 (blog); Amsel et al., The Polar Express, arXiv 2505.16932; Lau et
      al., PolarGrad, arXiv 2505.21799; Choudhury et al., arXiv 2605.06884 ("randomized").
    """
    options = factor_options(
        coefficients=coefficients,
        steps=steps,
        eps=eps,
        dtype=dtype,
        eps_mode=eps_mode,
        margin=margin,
        precondition=precondition,
        resets=None if resets is None else tuple(resets),
        precision=precision,
    )
    matrices = MatrixMap(dims, roles, adaptive, group_bytes, as_sharding(sharding))
    if method == "randomized":
        if implementation not in ("xla", "auto"):
            raise ValueError(f"method='randomized' has no kernel for {implementation=}: give 'xla'")
        numbers = sketch_numbers(rank, oversampling, power_iterations)
        sketching = Sketching(*numbers, sketch, side, qr_method, options)
        return randomized(matrices, sketching, 0 if key is None else key)
    for name, value in (
        ("rank", rank),
        ("oversampling", oversampling),
        ("power_iterations", power_iterations),
        ("key", key),
    ):
        if value is not None:
            raise ValueError(f"{name}={value!r} is for method='randomized', not for {method!r}")
    factor = orthogonal_function(method, {**options, "implementation": implementation})
    return stateless(lambda updates, _: matrices.replace(factor, updates, matrices.layout(updates)))

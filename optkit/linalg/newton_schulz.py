"""Newton-Schulz iteration: the approximate polar factor of a matrix by matrix products alone."""

from collections.abc import Iterable
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from optkit.linalg.coefficients import Coefficients, Row, as_coefficient_set
from optkit.linalg.implementation import Choice
from optkit.linalg.normalise import EpsMode, Precondition, check_options, normalise
from optkit.linalg.norms import check_matrix, fused_product
from optkit.linalg.symmetric import blocked_standard_steps, check_blocks


def newton_schulz(
    x: jax.Array,
    coefficients: Coefficients = "jordan",
    steps: int | None = None,
    *,
    eps: float = 0.0,
    eps_mode: EpsMode = "add",
    margin: float | None = None,
    precondition: Precondition = "frobenius",
    precision: jax.lax.PrecisionLike = None,
    compute_dtype: DTypeLike | None = None,
    blocks: int = 1,
    implementation: Choice = "xla",
) -> jax.Array:
    """Approximate polar factor U p(S) V^T of X = U S V^T, p an odd polynomial near 1 on (0, 1].

    X <- X / (margin ||X|| + eps); for each row (a, b, c): G = X X^T, X <- a X + (b G + c G^2) X.
    The short side is made the row side first, and the transpose undone at the end. Singular
    vectors are kept (but see "aol"), null directions stay null, and zero goes to zero, also with
    eps = 0. Inputs may be of any scale from 1e-30 to 1e+30.

    Args:
      x: (..., m, n) floating point; leading axes are a batch of independent matrices.
      coefficients: name in `COEFFICIENTS`, a `CoefficientSet`, or rows (a, b, c).
      steps: number of steps, 0 or more; None takes the set's own.
      eps: added to the norm, in the units of x.
      eps_mode: "add" divides by margin * norm + eps, "clamp" by max(margin * norm, eps).
      margin: factor on the norm; None takes the set's own.
      precondition: what to divide by: "frobenius", "spectral" (largest singular value, by an SVD),
        "schatten" (||X X^T||_F^(1/2), tighter than Frobenius at no cost), or "aol" (each row
        by the absolute row sum of the Gram matrix; needed by the aol_* sets).
      precision: precision of the matrix products, as in `jax.numpy.matmul`.
      compute_dtype: dtype of the iteration; None keeps that of x. Norms are taken in float32 at
        least, before the cast. The result has the dtype of x in any case.
      blocks: number of column panels in which the symmetric products are taken, dropping what lies
        above the diagonal; 1 takes them whole. See `symmetric_product`.
      implementation: "xla"; "pallas", the kernel of the platform, see
        `optkit.kernels.newton_schulz.iterate`; "auto", on a TPU the kernel for matrices that its
        vector memory holds, else as "xla"; "interpret", the TPU's kernel on any device, slow.

    Returns:
      The factor, of the shape and dtype of x.

    Raises:
      ValueError: bad shape, unknown option, too many steps for the set, or an aol_* set without
        its preconditioning.
      TypeError: not a real floating-point dtype.
      NotImplementedError: no kernel for the platform that the program is lowered for.

    Example:
      >>> y = newton_schulz(jnp.diag(jnp.array([3.0, 0.0])), "classic_cubic")
      >>> [round(float(v), 3) for v in jnp.diag(y)]
      [1.0, 0.0]

    Reference: Bernstein and Newhouse, arXiv 2409.20325; Jordan et al., Muon (2024).
    """
    x = jnp.asarray(x)
    check_matrix(x, "newton_schulz")
    chosen = as_coefficient_set(coefficients)
    rows = chosen.expand(steps)
    check_options(eps_mode, precondition, chosen.requires)
    check_blocks(blocks, implementation)
    if x.size == 0:
        return x
    tall = x.shape[-2] > x.shape[-1]
    wide = x.mT if tall else x
    divide = partial(
        normalise,
        eps=eps,
        eps_mode=eps_mode,
        margin=chosen.margin if margin is None else margin,
        precondition=precondition,
        compute_dtype=compute_dtype,
        precision=precision,
    )
    if implementation != "xla":
        y = kernel_steps(wide, rows, divide, implementation).astype(x.dtype)
        return y.mT if tall else y
    y, gram = divide(wide)
    if blocks == 1:
        y = standard_steps(y, rows, gram=gram, precision=precision)
    else:
        y = blocked_standard_steps(y, rows, blocks=blocks, precision=precision)
    y = y.astype(x.dtype)
    return y.mT if tall else y


def kernel_steps(
    x: jax.Array,
    rows: tuple[Row, ...],
    divide: partial[tuple[jax.Array, jax.Array | None]],
    implementation: Choice,
    resets: Iterable[int] | None = None,
) -> jax.Array:
    """Runs the iteration by a kernel, which also divides where that is by the Frobenius norm.

    Args:
      x: (..., m, n), m <= n.
      rows: one (a, b, c) a step.
      divide: `normalise` with its options.
      implementation: "auto", "pallas" or "interpret".
      resets: of the Gram form; None takes the standard form.

    Returns:
      (..., m, n) in the dtype of the iteration.
    """
    # Kernels are built on this package, and only those who ask for one need them.
    from optkit.kernels.newton_schulz import iterate

    options = dict(divide.keywords)
    precision = options["precision"]
    if options.pop("precondition") != "frobenius":
        y = divide(x)[0]
        return iterate(
            y, rows, resets=resets, eps=None, precision=precision, implementation=implementation
        )
    return iterate(x, rows, resets=resets, implementation=implementation, **options)


def standard_steps(
    x: jax.Array,
    rows: tuple[Row, ...],
    *,
    gram: jax.Array | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> jax.Array:
    """Runs X <- a X + (b G + c G^2) X, G = X X^T, on a normalised wide matrix.

    Args:
      x: (..., m, n), m <= n, singular values at most about 1.
      rows: one (a, b, c) a step.
      gram: X X^T of the first step where it is known already, (..., m, m).
      precision: of the products.

    Returns:
      (..., m, n).
    """
    for a, b, c in rows:
        gram = fused_product(x, x.mT, precision=precision) if gram is None else gram
        inner = polynomial(gram, b, c, precision=precision)
        x = fused_product(inner, x, addend=x, beta=a, precision=precision)
        gram = None
    return x


def polynomial(
    gram: jax.Array, b: float, c: float, *, precision: jax.lax.PrecisionLike = None
) -> jax.Array:
    """The polynomial b G + c G^2 of a symmetric G.

    Args:
      gram: (..., m, m).
      b: linear coefficient.
      c: quadratic coefficient; 0 saves the product.
      precision: of the product.

    Returns:
      (..., m, m).
    """
    if not c:
        return b * gram
    return fused_product(gram, gram, alpha=c, addend=gram, beta=b, precision=precision)

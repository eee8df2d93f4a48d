"""Inverse p-th roots of symmetric positive matrices, by eigenvalues or by products alone."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from optkit.linalg.norms import check_matrix
from optkit.linalg.one_by_one import one_by_one

RootMethod = Literal["auto", "eigh", "coupled_newton", "newton_schulz", "higher_order"]

# The growth of an error that google-research/precondition still takes for progress; coupled
# iterations may get worse once before they converge.
GROWTH = 1.2
# Errors above these fail, or are tried again with ten times the ridge (the same code's constants).
FAILED, RETRY, TRIES = 0.1, 0.05, 6
ITERATIONS = 100
# Smaller largest eigenvalues count as that in a relative ridge (google-research/precondition).
LEAST = 1e-25
_HIGHER_ORDER = 3


class InverseRoot(NamedTuple):
    """What ``inverse_root`` returns.

    Attributes:
      root: (..., n, n), the root.
      error: (...), ``max |X^p A - I|`` as the iteration knows it; 0 for "eigh".
      failed: (...), whether the root is not finite, or its error above 0.1.
    """

    root: jax.Array
    error: jax.Array
    failed: jax.Array


def inverse_root(
    a: jax.Array,
    p: float,
    *,
    method: RootMethod = "auto",
    eps: float | jax.Array = 0.0,
    ridge: float | jax.Array = 0.0,
    shift: bool = True,
    tolerance: float | None = None,
    growth: float | None = None,
    tries: int = 1,
    precision: lax.PrecisionLike = "highest",
) -> InverseRoot:
    """Returns ``(A + e I)**(-1/p)`` with ``e = eps + ridge*lambda_max(A)``.

    * "eigh": from eigenvalues; with ``shift`` negative ones, which rounding makes, move all up so
      that the least is ``e``. For CPUs.
    * "coupled_newton": ``M = z A', X = z**(1/p) I`` with ``z = (p+1)/(2 norm(A'))``, then
      ``T = ((p+1) I - M)/p``, ``X <- X T``, ``M <- T^p M`` until ``max |M - I| <= tolerance``, or
      the error, below 0.1, falls no more (the root before that is the result).
    * "higher_order": the same with ``z = 1/trace``, one such step, and then the first four terms of
      ``(I - (I - M))**(-1/p)`` for T.
    * "newton_schulz": ``log2(p)`` square roots by ``T = (3 I - Z Y)/2, Y <- Y T, Z <- T Z``.
    * "auto": "eigh" on CPUs, "coupled_newton" elsewhere (for p no integer, "eigh").

    All but "eigh" are products only. A batch is one loop, in which each matrix stops by itself.

    Args:
      a: (..., n, n), symmetric, no eigenvalue below 0 but for rounding; leading axes are a batch.
      p: which root, above 0; an integer but for "eigh", a power of 2 for "newton_schulz".
      method: see above.
      eps: added to all eigenvalues.
      ridge: the same relative to the largest one, which is an estimate of ``largest_eigenvalue``
        but with "eigh".
      shift: see "eigh"; without it eigenvalues below e are taken for e.
      tolerance: of iterations; None for 1e-6, or half a rounding a row if that is more.
      growth: stop "coupled_newton" where the error is so many times the last one, whatever it is
        (google-research's 1.2, which gives up many matrices of low rank at the first step).
      tries: how often "coupled_newton" may try in all, each time with ten times the ridge, while
        the error is above 0.05.
      precision: of the products.

    Returns:
      Root, error and whether it failed, in the dtype of ``a`` (16-bit inputs in float32).

    Raises:
      ValueError: not square, p not above 0 or not one of the method, or unknown method.
      TypeError: not a real floating-point dtype.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> a = jnp.array([[16.0, 0.0], [0.0, 81.0]])
      >>> optkit.linalg.inverse_root(a, 4, method="coupled_newton").root.round(3).tolist()
      [[0.5, 0.0], [0.0, 0.333...]]

    Reference:
      Guo and Higham, A Schur-Newton method for the matrix pth root and its inverse, 2006; Anil et
      al., arXiv 2002.09018; Shi et al., arXiv 2309.06497 ("eigh" with shift, higher order).
    """
    check_matrix(a, "inverse_root")
    if a.shape[-1] != a.shape[-2]:
        raise ValueError(f"a of shape {a.shape} must be square in its last two axes")
    if not p > 0:
        raise ValueError(f"p={p!r} must be above 0")
    if method not in get_args(RootMethod):
        raise ValueError(f"method={method!r} is not one of {', '.join(get_args(RootMethod))}")
    a = a.astype(jnp.promote_types(a.dtype, jnp.float32))
    if not a.size:
        zeros = jnp.zeros(a.shape[:-2], a.dtype)
        return InverseRoot(a, zeros, zeros > 0)
    if tolerance is None:
        tolerance = max(1e-6, 0.5 * a.shape[-1] * float(jnp.finfo(a.dtype).eps))
    whole = float(p).is_integer()
    if method == "auto" and not whole:
        method = "eigh"
    powers = method == "newton_schulz"
    if method != "eigh" and (not whole or (powers and (p < 2 or not math.log2(p).is_integer()))):
        raise ValueError(
            f"p={p!r} needs method='eigh': {method!r} is for integers, newton_schulz for 2, 4, 8"
        )
    relative = not (isinstance(ridge, int | float) and ridge == 0)
    eps, ridge = jnp.asarray(eps, a.dtype), jnp.asarray(ridge, a.dtype)
    how = _How(p, method, relative, shift, tolerance, growth, tries, precision)
    return _root(a, eps, ridge, how)


class _How(NamedTuple):
    """What decides the program of a root."""

    p: float
    method: RootMethod
    relative: bool
    shift: bool
    tolerance: float
    growth: float | None
    tries: int
    precision: lax.PrecisionLike

    def product(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """Of matrices."""
        return jnp.matmul(x, y, precision=self.precision)


# Compiled by itself, so that calls outside of a program compile once for all.
@partial(jax.jit, static_argnums=3)
def _root(a: jax.Array, eps: jax.Array, ridge: jax.Array, how: _How) -> InverseRoot:
    by_values = partial(_by_eigenvalues, eps=eps, ridge=ridge, how=how)
    by_products = partial(_coupled, eps=eps, ridge=ridge, how=how)
    if how.method == "auto":
        return lax.platform_dependent(a, cpu=by_values, default=by_products)
    if how.method == "eigh":
        return by_values(a)
    return _newton_schulz(a, eps, ridge, how) if how.method == "newton_schulz" else by_products(a)


def largest_eigenvalue(
    a: jax.Array,
    *,
    iterations: int = ITERATIONS,
    tolerance: float = 1e-6,
    precision: lax.PrecisionLike = "highest",
) -> jax.Array:
    """Returns an estimate from below of the largest eigenvalue, by power iteration.

    ``v <- A v/norm(v)`` from a fixed vector until ``v^T A v`` changes by less than the tolerance,
    relative to itself.

    Args:
      a: (..., n, n), symmetric, no eigenvalue below 0; leading axes are a batch.
      iterations: most of them.
      tolerance: see above.
      precision: of the products.

    Returns:
      (...).

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> round(float(optkit.linalg.largest_eigenvalue(jnp.diag(jnp.array([1.0, 3.0])))), 4)
      3.0

    Reference:
      Anil et al., arXiv 2002.09018, whose tolerance is absolute.
    """
    n = a.shape[-1]
    scale = _scale(a)
    a = a / scale[..., None, None]
    start = np.random.RandomState(1729).uniform(-1.0, 1.0, (n, 1))  # as the reference starts
    v = jnp.broadcast_to(jnp.asarray(start, a.dtype), (*a.shape[:-1], 1)) + 0.0 * a[..., :1]

    def unit(v: jax.Array) -> jax.Array:
        norm = jnp.sqrt(jnp.sum(jnp.square(v), axis=(-2, -1), keepdims=True))
        return v / jnp.where(norm > 0, norm, 1.0)

    def body(carry: Any) -> Any:
        i, v, value, runs = carry
        v = unit(v)
        moved = jnp.matmul(a, v, precision=precision)
        new = jnp.sum(v * moved, axis=(-2, -1))
        keep = runs[..., None, None]
        changes = jnp.abs(new - value) > tolerance * jnp.abs(new)
        return i + 1, jnp.where(keep, moved, v), jnp.where(runs, new, value), runs & changes

    zero = a[..., 0, 0] * 0.0
    first = (jnp.zeros((), jnp.int32), v, zero, jnp.isfinite(zero))
    return lax.while_loop(lambda c: (c[0] < iterations) & jnp.any(c[3]), body, first)[2] * scale


def _scale(a: jax.Array) -> jax.Array:
    """The largest entry, 1 if that is 0: what is divided by it has squares that float32 holds."""
    most = jnp.max(jnp.abs(a), axis=(-2, -1))
    return jnp.where(most > 0, most, 1.0)


def _eye(a: jax.Array) -> jax.Array:
    return jnp.broadcast_to(jnp.eye(a.shape[-1], dtype=a.dtype), a.shape)


def _finish(root: jax.Array, error: jax.Array) -> InverseRoot:
    fine = jnp.all(jnp.isfinite(root), axis=(-2, -1)) & (error <= FAILED)
    return InverseRoot(root, error, ~fine)


def _by_eigenvalues(a: jax.Array, eps: jax.Array, ridge: jax.Array, how: _How) -> InverseRoot:
    values, vectors = one_by_one(partial(jnp.linalg.eigh, symmetrize_input=False), a)
    least = values[..., :1]
    # Eigenvalues of A + e I, without the rounding of the sum.
    e = eps + ridge * jnp.maximum(values[..., -1:], 0.0)
    if how.shift:
        values = jnp.where(least < 0, values - least, values) + e
    else:
        values = jnp.maximum(values, 0.0) + e
    powers = values ** (-1.0 / how.p)
    root = jnp.matmul(vectors * powers[..., None, :], vectors.mT, precision="highest")
    return _finish(root, jnp.zeros_like(least[..., 0]))


def _damped(a: jax.Array, eps: jax.Array, ridge: jax.Array) -> jax.Array:
    return a + (eps + ridge)[..., None, None] * _eye(a)


def _ridge_of(a: jax.Array, ridge: jax.Array, how: _How) -> jax.Array:
    """The relative ridge of each matrix."""
    if not how.relative:
        return jnp.zeros_like(a[..., 0, 0])
    return ridge * jnp.maximum(largest_eigenvalue(a), LEAST)


def _power(x: jax.Array, p: int, product: Callable[[jax.Array, jax.Array], jax.Array]) -> jax.Array:
    """x^p by squaring."""
    out: jax.Array | None = None
    while p:
        if p % 2:
            out = x if out is None else product(out, x)
        p //= 2
        x = product(x, x) if p else x
    assert out is not None
    return out


def _terms(p: int, order: int) -> list[float]:
    """Coefficients b_i of (1-x)^(-1/p)."""
    out = [1.0]
    for i in range(1, order + 1):
        out.append(out[-1] * (1 + (i - 1) * p) / (i * p))
    return out


def _coupled(a: jax.Array, eps: jax.Array, ridge: jax.Array, how: _How) -> InverseRoot:
    base, run = _ridge_of(a, ridge, how), partial(_iterate, how=how)
    if how.tries == 1:
        return _finish(*run(_damped(a, eps, base)))
    eye = _eye(a)

    def attempt(carry: Any) -> Any:
        i, root, error = carry
        done = error <= RETRY
        # Those that are done are given a matrix that takes no step.
        more = _damped(a, eps * 10.0**i, base * 10.0**i)
        new, new_error = run(jnp.where(done[..., None, None], eye, more))
        root = jnp.where(done[..., None, None], root, new)
        return i + 1.0, root, jnp.where(done, error, new_error)

    def unfinished(carry: Any) -> jax.Array:
        return (carry[0] < how.tries) & jnp.any(~(carry[2] <= RETRY))

    first = (jnp.zeros((), a.dtype), a, jnp.full_like(base, jnp.inf))
    _, root, error = lax.while_loop(unfinished, attempt, first)
    return _finish(root, error)


def _iterate(a: jax.Array, how: _How) -> tuple[jax.Array, jax.Array]:
    """The coupled iteration on one batch: roots and errors."""
    p, product = int(how.p), how.product
    order = _HIGHER_ORDER if how.method == "higher_order" else 1
    eye = _eye(a)
    most = _scale(a)
    small = a / most[..., None, None]
    if order == 1:
        z = (p + 1) / (2 * jnp.sqrt(jnp.sum(jnp.square(small), axis=(-2, -1))))
    else:
        z = 1.0 / jnp.trace(small, axis1=-2, axis2=-1)
    m = small * z[..., None, None]
    # Two roots, since 1/most of a tiny matrix may leave float32 before its root does.
    x = (z ** (1 / p) * most ** (-1 / p))[..., None, None] * eye
    terms = _terms(p, order)

    def factor(m: jax.Array, first: jax.Array) -> jax.Array:
        newton = ((p + 1) * eye - m) / p
        if order == 1:
            return newton
        rest = eye - m
        out = terms[-1] * eye
        for b in reversed(terms[:-1]):
            out = b * eye + product(rest, out)
        return jnp.where(first, newton, out)

    def error_of(m: jax.Array) -> jax.Array:
        return jnp.max(jnp.abs(m - eye), axis=(-2, -1))

    def body(carry: Any) -> Any:
        i, m, x, error, runs = carry
        t = factor(m, i == 0)
        m_new, x_new = product(_power(t, p, product), m), product(x, t)
        new = error_of(m_new)
        # (A comparison with NaN is False: what breaks down has grown.)
        if how.growth is None:
            fine = (new < error) | (jnp.isfinite(new) & (error > FAILED))
        else:
            fine = new < error * how.growth
        take = runs & fine
        keep = take[..., None, None]
        go_on = take & (new > how.tolerance)
        m, x = jnp.where(keep, m_new, m), jnp.where(keep, x_new, x)
        return i + 1, m, x, jnp.where(runs, new, error), go_on

    def unfinished(carry: Any) -> jax.Array:
        return (carry[0] < ITERATIONS) & jnp.any(carry[4])

    error = error_of(m)
    runs = error > how.tolerance
    first = (jnp.zeros((), jnp.int32), m, x, error, runs)
    _, m, x, error, _ = lax.while_loop(unfinished, body, first)
    # The error of the root that is returned.
    return x, error_of(m)


def _newton_schulz(a: jax.Array, eps: jax.Array, ridge: jax.Array, how: _How) -> InverseRoot:
    p, product, eye, tolerance = int(how.p), how.product, _eye(a), how.tolerance
    a = _damped(a, eps, _ridge_of(a, ridge, how))

    def square_roots(a: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """A^(1/2), A^(-1/2) and the error."""
        most = _scale(a)
        small = a / most[..., None, None]
        norm = jnp.sqrt(jnp.sum(jnp.square(small), axis=(-2, -1)))
        scale = jnp.sqrt(most * norm)[..., None, None]
        y, z = small / norm[..., None, None], eye + 0.0 * small

        def body(carry: Any) -> Any:
            i, y, z, error, runs = carry
            zy = product(z, y)
            new = jnp.max(jnp.abs(zy - eye), axis=(-2, -1))
            better = runs & (new < error * GROWTH)
            t = 1.5 * eye - 0.5 * zy
            keep = (better & (new > tolerance))[..., None, None]
            error = jnp.where(better, new, error)
            return (
                i + 1,
                jnp.where(keep, product(y, t), y),
                jnp.where(keep, product(t, z), z),
                error,
                better & (new > tolerance),
            )

        runs = jnp.isfinite(norm)
        error = jnp.where(runs, 1.0, jnp.inf).astype(a.dtype)
        first = (jnp.zeros((), jnp.int32), y, z, error, runs)
        done = lax.while_loop(lambda c: (c[0] < ITERATIONS) & jnp.any(c[4]), body, first)
        return done[1] * scale, done[2] / scale, done[3]

    error = jnp.zeros_like(a[..., 0, 0])
    root = a
    for _ in range(round(math.log2(p))):
        forward, root, own = square_roots(a)
        error = jnp.maximum(error, own)
        a = forward
    return _finish(0.5 * (root + root.mT), error)

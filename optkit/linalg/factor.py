"""One entry point for the orthogonal factor, and the choice between its forms."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from optkit.linalg.coefficients import Coefficients, Row, as_coefficient_set
from optkit.linalg.gram import gram_factor_flops, gram_newton_schulz
from optkit.linalg.implementation import Choice
from optkit.linalg.newton_schulz import newton_schulz
from optkit.linalg.normalise import EpsMode, Precondition
from optkit.linalg.norms import check_matrix
from optkit.linalg.polar import PolarMethod, polar
from optkit.linalg.resets import check_resets, default_resets, segments

MethodName = Literal["auto", "ns", "gram_ns", "svd", "qdwh"]
Method = MethodName | Callable[[jax.Array], jax.Array]

# The Gram form has more, smaller products: measured on CPU it wins once it saves a tenth of the
# FLOPs, and never on matrices so small that the call overhead rules.
_GRAM_FLOP_RATIO = 0.9
_GRAM_MIN_ROWS = 64

# Panels of the symmetric products on CPU: 16 to 22% less processor time at 512 rows, and no gain in
# wall time at 256.
_CPU_BLOCKS = 3
_CPU_MIN_ROWS = 512


def standard_flops(m: int, n: int, rows: Sequence[Row]) -> int:
    """FLOPs of the standard form: 4 m^2 n + 2 m^3 a step, without 2 m^3 where c = 0.

    Example:
      >>> standard_flops(1024, 4096, [(1.0, 1.0, 1.0)] * 5) // 10**8
      966
    """
    m, n = min(m, n), max(m, n)
    return sum(4 * m * m * n + (2 * m**3 if c else 0) for _, _, c in rows)


def gram_flops(m: int, n: int, rows: Sequence[Row], resets: Iterable[int] = ()) -> int:
    """FLOPs of the Gram form with dense products.

    Example:
      >>> gram_flops(1024, 4096, [(1.0, 1.0, 1.0)] * 5, (2,)) // 10**8
      644
    """
    m, n = min(m, n), max(m, n)
    parts = segments(tuple(rows), check_resets(resets))
    return sum(4 * m * m * n + gram_factor_flops(m, part) for part in parts)


def factor_flops(
    m: int,
    n: int,
    method: MethodName,
    rows: tuple[Row, ...],
    dtype: DTypeLike,
    resets: Sequence[int] | None = None,
) -> int:
    """FLOPs of the form of the iteration that a method takes for one matrix.

    Args:
      m: rows of the matrix.
      n: columns.
      method: "auto", "ns" or "gram_ns".
      rows: one (a, b, c) a step.
      dtype: of the iteration.
      resets: resets of the Gram form; None takes the default ones.

    Returns:
      The number.

    Example:
      >>> jordan = as_coefficient_set("jordan").expand(5)
      >>> factor_flops(1024, 4096, "auto", jordan, jnp.bfloat16) // 10**8
      751
    """
    chosen = default_resets(rows, dtype) if resets is None else tuple(resets)
    form = choose_form(m, n, rows, dtype, resets) if method == "auto" else method
    if form == "ns" or m == n or chosen is None:
        return standard_flops(m, n, rows)
    return gram_flops(m, n, rows, chosen)


def orthogonal_factor(
    x: jax.Array,
    method: Method = "auto",
    coefficients: Coefficients = "jordan",
    steps: int | None = None,
    *,
    resets: Sequence[int] | None = None,
    eps: float = 0.0,
    eps_mode: EpsMode = "add",
    margin: float | None = None,
    precondition: Precondition = "frobenius",
    precision: jax.lax.PrecisionLike = None,
    compute_dtype: DTypeLike | None = None,
    blocks: int | None = None,
    implementation: Choice = "xla",
) -> jax.Array:
    """Orthogonal factor of each matrix by the named method.

    Args:
      x: (..., m, n) floating point; leading axes are a batch.
      method: "ns" (`newton_schulz`), "gram_ns" (`gram_newton_schulz`), "auto" (the cheaper one of
        the two for this shape, dtype and set), "svd" or "qdwh" (`polar`, which takes none of
        the other options), or a function, which is called with x.
      coefficients: as in `newton_schulz`.
      steps: as in `newton_schulz`.
      resets: as in `gram_newton_schulz`; ignored where the standard form is taken.
      eps: as in `newton_schulz`.
      eps_mode: as in `newton_schulz`.
      margin: as in `newton_schulz`.
      precondition: as in `newton_schulz`.
      precision: as in `newton_schulz`.
      compute_dtype: as in `newton_schulz`.
      blocks: as in `newton_schulz`; None takes three panels where "auto" meets a single matrix with
        a short side of at least 512 in float32 on CPU, and whole products elsewhere.
      implementation: as in `newton_schulz`; the iterations alone have kernels.

    Returns:
      The factor, of the shape and dtype of x.

    Raises:
      ValueError: unknown method, one that has no kernel where one is asked for, or what the method
        itself raises.
      TypeError: not a real floating-point dtype.

    Example:
      >>> orthogonal_factor(2 * jnp.eye(2), "svd").tolist()
      [[1.0, 0.0], [0.0, 1.0]]
    """
    own = get_args(PolarMethod)
    if implementation == "auto" and (callable(method) or method in own):
        implementation = "xla"
    if implementation != "xla" and (callable(method) or method in own):
        raise ValueError(
            f"method={method!r} has no kernel for implementation={implementation!r}: give "
            "method='ns', 'gram_ns' or 'auto', or implementation='xla'"
        )
    if callable(method):
        return method(x)
    if method not in get_args(MethodName):
        raise ValueError(
            f"method must be one of {get_args(MethodName)} or a function, got {method!r}"
        )
    x = jnp.asarray(x)
    check_matrix(x, "orthogonal_factor")
    if method in own:
        return polar(x, "svd" if method == "svd" else "qdwh")
    auto = method == "auto"
    rows = as_coefficient_set(coefficients).expand(steps)
    dtype = x.dtype if compute_dtype is None else compute_dtype
    if auto:
        method = choose_form(x.shape[-2], x.shape[-1], rows, dtype, resets)
    form = partial(
        newton_schulz if method == "ns" else partial(gram_newton_schulz, resets=resets),
        coefficients=coefficients,
        steps=steps,
        eps=eps,
        eps_mode=eps_mode,
        margin=margin,
        precondition=precondition,
        precision=precision,
        compute_dtype=compute_dtype,
        implementation=implementation,
    )
    plain = blocks is None and implementation in ("xla", "auto")
    if plain and auto and _panels_pay(x.shape, rows, dtype):
        # Decided when the program is lowered: the same trace may be compiled for another platform.
        return lax.platform_dependent(
            x, cpu=partial(form, blocks=_CPU_BLOCKS, implementation="xla"), default=form
        )
    return form(x, blocks=1 if blocks is None else blocks)


def _panels_pay(shape: tuple[int, ...], rows: tuple[Row, ...], dtype: DTypeLike) -> bool:
    # A batch is left whole: its axis may be sharded, and batched panels are strided copies.
    dense = all(c for _, _, c in rows)
    wide = jnp.finfo(dtype).bits >= 32
    return len(shape) == 2 and min(shape) >= _CPU_MIN_ROWS and dense and wide


def choose_form(
    m: int,
    n: int,
    rows: tuple[Row, ...],
    dtype: DTypeLike,
    resets: Sequence[int] | None = None,
) -> Literal["ns", "gram_ns"]:
    """Returns which of the two forms of the iteration is cheaper.

    Args:
      m: rows of the matrix.
      n: columns.
      rows: one (a, b, c) a step.
      dtype: of the iteration; it decides the resets, and so the cost, of the Gram form.
      resets: resets of the Gram form; None takes the default ones.

    Returns:
      "ns" or "gram_ns".

    Example:
      >>> jordan = as_coefficient_set("jordan").expand(5)
      >>> choose_form(512, 512, jordan, jnp.float32), choose_form(512, 2048, jordan, jnp.float32)
      ('ns', 'gram_ns')
    """
    if min(m, n) < _GRAM_MIN_ROWS or m == n:
        return "ns"
    chosen = default_resets(rows, dtype) if resets is None else tuple(resets)
    if chosen is None:
        return "ns"
    cheaper = gram_flops(m, n, rows, chosen) <= _GRAM_FLOP_RATIO * standard_flops(m, n, rows)
    return "gram_ns" if cheaper else "ns"

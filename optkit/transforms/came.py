"""CAME's direction: Adafactor's, averaged, and divided by how much it wavers."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optkit.catalogue import StateBytes, register
from optkit.transforms.base import Transformation, map_leaves
from optkit.transforms.factored import (
    Factors,
    clip_rms,
    factored_moments,
    mean_of,
    roots,
    squares,
)
from optkit.transforms.hyperparams import ScalarOrSchedule, check_number, recorded, value_at
from optkit.transforms.precision import in_float32
from optkit.tree import Dims, PyTree, RuleLike, upcast, zeros_like_params

CAME_BYTES = StateBytes(
    8,
    lambda rows, columns: 8 * (rows + columns) - 4 * rows * columns,
    "8 (rows + columns) - 4 per parameter of a matrix",
)


class ScaleByConfidenceState(NamedTuple):
    """State of the second half of ``scale_by_came``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    mu: PyTree  # like params, average of the clipped directions
    rows: PyTree  # float32 (*batch, fan_out) at leaves of rank 2 and more, of squared distances
    columns: PyTree  # float32 (*batch, fan_in) there
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


@register(
    kind="part",
    family="memory",
    paper=("CAME: Confidence-guided Adaptive Memory Efficient Optimization", "2307.02047", 2023),
    state_bytes={"*": CAME_BYTES},
    tags=("adafactor", "factored", "confidence"),
    chain="u = g / sqrt(r c), clipped; m; u = m / sqrt(of the means of (u - m)^2)",
)
def scale_by_came(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    b3: ScalarOrSchedule = 0.9999,
    eps: ScalarOrSchedule = 1e-30,
    eps2: ScalarOrSchedule = 1e-16,
    *,
    clip_threshold: ScalarOrSchedule = 1.0,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
    state_dtype: Any | None = None,
) -> Transformation:
    """Averages Adafactor's direction and divides it by how far new ones are from the average.

    For leaves of rank 2 and more, read as matrices of fan_out rows; all averages begin at 0 and
    are not corrected:

    1. ``r <- b2*r + (1-b2)*mean over columns of (g**2 + eps)``; ``c`` likewise over rows;
    2. ``u = g / sqrt(r c^T / mean(r))``; ``u <- u / max(1, rms(u)/clip_threshold)``;
    3. ``m <- b1*m + (1-b1)*u``;
    4. ``R <- b3*R + (1-b3)*mean over columns of ((u - m)**2 + eps2)``; ``C`` likewise;
    5. ``u = m / sqrt(R C^T / mean(R))``.

    Leaves of lower rank have a second moment of their own, and ``u = m`` in the end.

    Args:
      b1: decay rate of m.
      b2: decay rate of r and c.
      b3: decay rate of R and C.
      eps: added to squares.
      eps2: added to squared distances.
      clip_threshold: root mean square that a direction may have.
      dims: which axes are input and output; other axes of a leaf are a batch of matrices. The
        reference takes the last two.
      roles: your own ``(pattern, role)`` rules.
      state_dtype: dtype of m and of second moments of vectors; float32 for 16 bits if None.

    Returns:
      An ``optax.GradientTransformationExtraArgs``; keeps dtypes. State bytes: 4 per parameter and 8
      per row and per column of a matrix; 8 per parameter of other leaves.

    Raises:
      ValueError: an option out of range.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tx = optkit.scale_by_came()
      >>> g = {"w": jnp.array([[1.0, -2.0], [2.0, -4.0]])}
      >>> u, state = tx.update(g, tx.init(g))
      >>> jnp.sign(u["w"]).tolist()
      [[1.0, -1.0], [1.0, -1.0]]

    Reference:
      Luo et al., CAME, arXiv 2307.02047. Entries beyond 1e15 count as that, since their squares
      would overflow.
    """
    check_number("b2", b2, low=0.0, high=1.0, open_high=True)
    moments = factored_moments(
        lambda count: 1.0 - value_at(b2, count),
        {"b2": b2, "eps": eps},
        dims=dims,
        roles=roles,
        state_dtype=state_dtype,
    )
    confidence = _scale_by_confidence(b1, b3, eps2, dims, roles, state_dtype)
    return in_float32(optax.chain(moments, clip_rms(clip_threshold), confidence))


def _scale_by_confidence(
    b1: ScalarOrSchedule,
    b3: ScalarOrSchedule,
    eps2: ScalarOrSchedule,
    dims: Dims,
    roles: Sequence[RuleLike],
    state_dtype: Any,
) -> Transformation:
    """Steps 3 to 5 of ``scale_by_came``."""
    for name, rate in {"b1": b1, "b3": b3}.items():
        check_number(name, rate, low=0.0, high=1.0, open_high=True)
    check_number("eps2", eps2, low=0.0)
    numbers = {"b1": b1, "b3": b3, "eps2": eps2}

    def init_fn(params: PyTree) -> ScaleByConfidenceState:
        count = jnp.zeros((), jnp.int32)
        rows, columns, _ = Factors(params, dims, roles).zeros(state_dtype)
        mu = zeros_like_params(params, state_dtype)
        return ScaleByConfidenceState(count, mu, rows, columns, recorded(count, False, **numbers))

    def update_fn(
        updates: PyTree,
        state: ScaleByConfidenceState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ScaleByConfidenceState]:
        del params, extra_args
        keep, slow, e = (value_at(v, state.count) for v in numbers.values())
        factors = Factors(updates, dims, roles)
        mu = map_leaves(lambda u, m: keep * upcast(m) + (1.0 - keep) * u, updates, state.mu)
        far = factors.split(map_leaves(lambda u, m: squares(u - m) + e, updates, mu))
        rows, columns = (
            [
                slow * old + (1.0 - slow) * mean_of(q, axis)
                for old, q in zip(factors.layout.unpack(tree), far, strict=True)
            ]
            for tree, axis in ((state.rows, -1), (state.columns, -2))
        )
        triples = zip(factors.split(mu), rows, columns, strict=True)
        out = factors.join([m * roots(r, c) for m, r, c in triples], factors.vectors_of(mu))
        out = map_leaves(lambda u, g: u.astype(g.dtype), out, updates)
        new = ScaleByConfidenceState(
            state.count + 1,
            map_leaves(lambda m, old: m.astype(old.dtype), mu, state.mu),
            factors.pack(rows),
            factors.pack(columns),
            recorded(state.count, False, **numbers),
        )
        return out, new

    return Transformation(init_fn, update_fn)

"""Scion: every leaf steps to the edge of a norm's ball of its own."""

from collections.abc import Sequence
from typing import Any

import jax
import optax

from optkit import linalg
from optkit.catalogue import register
from optkit.transforms import Transformation, decay_weights, descend, momentum
from optkit.transforms.balls import BallRule, ball_rules
from optkit.transforms.hyperparams import ScalarOrSchedule, check_number, check_static_number
from optkit.transforms.lmo import LmoOptions, lmo_by_rules
from optkit.transforms.orthogonalize import Method
from optkit.transforms.step import Decay, Mask
from optkit.tree import Dims, PyTree, RuleLike
from optkit.tree.costs import Sharding
from optkit.tree.selection import check_selects


@register(
    kind="recipe",
    family="matrix",
    paper=("Training Deep Learning Models with Norm-Constrained LMOs", "2502.07529", 2025),
    state_bytes={"*": 4},
    tags=("scion", "norm", "newton-schulz", "sign", "frank-wolfe"),
    chain="momentum > lmo of each role's norm > pull to the origin > learning rate",
)
def scion(
    learning_rate: ScalarOrSchedule = 2**-12,
    *,
    b1: ScalarOrSchedule = 0.9,
    nesterov: bool = False,
    constrained: bool = True,
    coefficients: str | linalg.CoefficientSet | Sequence[Sequence[float]] = "jordan",
    steps: int | None = None,
    eps: float | None = None,
    method: Method = "auto",
    scale: float | jax.Array = 50.0,
    head_scale: float | jax.Array = 3000.0,
    embedding_scale: float | jax.Array = 1.0,
    bias_scale: float | jax.Array | None = None,
    norms: Sequence[BallRule] = (),
    weight_decay: ScalarOrSchedule = 0.0,
    decay: Decay = "decoupled",
    mask: Mask = None,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
    state_dtype: Any | None = None,
    dtype: Any | None = None,
    group_bytes: int | None = None,
    sharding: Sharding = "auto",
) -> Transformation:
    """One momentum and a norm for each kind of leaf: half of Adam's state, bounded weights.

    With ``lmo`` the point of the ball ``norm(x) <= scale`` that lies furthest along its argument:

    1. ``d <- b1*d + (1-b1)*g``;
    2. ``W <- (1 - lr)*W - lr*lmo(d)``; not ``constrained``: ``W <- W - lr*lmo(d)``.

    A constrained step is a mean of ``W`` and a point of the ball: weights that start in the ball
    stay there for ever, as far as ``method`` is exact (Newton-Schulz overshoots by up to 20%).

    Hidden matrices take the spectral norm, convolutions spectral_conv, heads sign, embeddings
    col_norm, and vectors bias_rms; ``optkit.lmo`` has the formulas. ``optkit.scion_init`` draws
    weights on the edges of the same balls. The reference's ScionLight saves the gradient's buffer,
    which JAX does not keep.

    No matrix work but that of ``optkit.orthogonalize`` on the hidden matrices: 5 steps of
    ``4*m**2*n + 2*m**3`` FLOPs for an m x n matrix, m the shorter side, or the Gram form of
    ``optkit.muon``. Choose it where learning rates have to hold over widths, or weights have to
    stay bounded in a long run. That the best rate transfers over widths is the paper's claim; no
    table of ``python -m benchmarks.claims`` has Scion.

    Args:
      learning_rate: step of all leaves, a number or a schedule; in [0, 1] if constrained.
      b1: decay rate of the momentum; one minus the reference's ``momentum``.
      nesterov: look one step ahead; the reference does not.
      constrained: pull the weights towards the origin, which bounds them.
      coefficients: Newton-Schulz coefficients, see ``optkit.orthogonalize``.
      steps: Newton-Schulz steps; None for the set's own number.
      eps: added to each norm (the reference: 1e-8, and 1e-7 in Newton-Schulz); None divides safely.
      method: how to orthogonalize, see ``optkit.orthogonalize``.
      scale: radius of hidden matrices and convolutions; the paper's GPT: 50.
      head_scale: radius of heads; the paper's GPT: 3000.
      embedding_scale: radius of embeddings.
      bias_scale: radius of vectors; None for ``scale``.
      norms: your own ``(selector, ball)`` rules, tried first: selectors as in ``optkit.route``,
        balls as ``optkit.NormBall``, its name, or ``(name, scale)``.
      weight_decay: coefficient of a decay beside the pull.
      decay: kind of that decay, see ``optkit.decay_weights``.
      mask: leaves that it acts on.
      dims: which axes are input and output, see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.
      state_dtype: dtype of the momentum; float32 for 16-bit parameters if None.
      dtype: dtype of the iteration; None for float32. The reference iterates in bfloat16.
      group_bytes: bytes of one stack of matrices.
      sharding: how their work is spread over a mesh, see ``optkit.orthogonalize``.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 4 per parameter of any role.

    Raises:
      ValueError: an option out of range or an unknown norm; at init a rule of ``norms`` that names
        no leaf, or a leaf that is no matrix under a norm of matrices.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"dense": {"kernel": 3 * jnp.eye(2), "bias": jnp.array([3.0])}}
      >>> tx = optkit.scion(0.5, scale=2.0, method="svd")
      >>> u, _ = tx.update(params, tx.init(params), params)
      >>> u["dense"]["kernel"][0, 0].item(), u["dense"]["bias"].tolist()
      (-2.5, [-2.5])

    Reference:
      Pethick et al., Training Deep Learning Models with Norm-Constrained LMOs, arXiv 2502.07529.
      Decay beside the pull, Nesterov and roles are ours; the reference takes a norm for each group.
    """
    check_static_number("eps", eps)
    check_number("eps", 0.0 if eps is None else eps, low=0.0)
    rules = ball_rules(
        norms,
        scale=scale,
        head_scale=head_scale,
        embedding_scale=embedding_scale,
        bias_scale=bias_scale,
    )
    options = LmoOptions(
        method, coefficients, steps, eps, dims, roles, dtype, group_bytes, sharding
    )
    links = [
        momentum(b1, nesterov=nesterov, state_dtype=state_dtype),
        lmo_by_rules(rules, options),
    ]
    if constrained:
        links.append(decay_weights(1.0))
    tx = descend(
        optax.chain(*links),
        learning_rate,
        weight_decay=weight_decay,
        decay=decay,
        mask=mask,
        roles=roles,
    )

    def init_fn(params: PyTree) -> PyTree:
        for selector, _ in norms:
            check_selects("norms", selector, params, roles)
        return tx.init(params)

    return Transformation(init_fn, tx.update)

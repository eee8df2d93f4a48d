"""Lion and its family of convex functions."""

from collections.abc import Sequence
from typing import Any

import optax

from optkit.catalogue import register
from optkit.transforms import (
    Transformation,
    blend_momentum,
    descend,
    scale_by_kappa,
    split_matrices,
)
from optkit.transforms.hyperparams import ScalarOrSchedule
from optkit.transforms.kappa import Kappa
from optkit.transforms.step import Decay, Mask
from optkit.tree import Dims, RuleLike


@register(
    kind="recipe",
    family="sign",
    paper=("Symbolic Discovery of Optimization Algorithms", "2302.06675", 2023),
    state_bytes={"*": 4},
    tags=("sign", "lion"),
    chain="blend_momentum > sign > decay > learning rate",
)
def lion(
    learning_rate: ScalarOrSchedule = 1e-4,
    *,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.99,
    weight_decay: ScalarOrSchedule = 0.0,
    decay: Decay = "decoupled",
    mask: Mask = None,
    state_dtype: Any | None = None,
) -> Transformation:
    """The sign of a blend of momentum and gradient: one buffer, steps of one size.

    1. ``u = sign(b1*m + (1-b1)*g)`` with the old ``m``;
    2. ``p <- (1 - lr*weight_decay)*p - lr*u``;
    3. ``m <- b2*m + (1-b2)*g``.

    Args:
      learning_rate: 3 to 10 times smaller than AdamW's.
      b1: weight of the old momentum in the update.
      b2: decay rate of the momentum.
      weight_decay: 3 to 10 times larger than AdamW's; optax.lion's default is 1e-3, ours 0.
      decay: kind of decay, see ``optkit.decay_weights``.
      mask: leaves that decay.
      state_dtype: dtype of ``m``; bfloat16 is usual.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 4 per float32 parameter.

    Raises:
      ValueError: an option out of range.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"w": jnp.zeros(3)}
      >>> tx = optkit.lion(0.5)
      >>> tx.update({"w": jnp.array([9.0, -0.1, 0.0])}, tx.init(params), params)[0]["w"].tolist()
      [-0.5, 0.5, -0.0]

    Reference:
      Chen et al., Symbolic Discovery of Optimization Algorithms, arXiv 2302.06675.
    """
    direction = optax.chain(blend_momentum(b1, b2, state_dtype=state_dtype), scale_by_kappa("l1"))
    return descend(direction, learning_rate, weight_decay=weight_decay, decay=decay, mask=mask)


@register(
    kind="recipe",
    family="sign",
    paper=(
        "Lion Secretly Solves Constrained Optimization: As Lyapunov Predicts",
        "2310.05898",
        2023,
    ),
    state_bytes={"*": 4},
    tags=("sign", "lion"),
    chain="blend_momentum > scale_by_kappa(kind) > decay > learning rate",
)
def lion_k(
    learning_rate: ScalarOrSchedule = 1e-4,
    *,
    kind: Kappa = "l1",
    e: float | None = None,
    p: float | None = None,
    k: float | None = None,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.99,
    weight_decay: ScalarOrSchedule = 0.0,
    decay: Decay = "decoupled",
    mask: Mask = None,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
    state_dtype: Any | None = None,
) -> Transformation:
    """Lion with the gradient of a convex K in place of the sign.

    1. ``u = grad K(b1*m + (1-b1)*g)``; 2. ``p <- (1 - lr*lam)*p - lr*u``;
    3. ``m <- b2*m + (1-b2)*g``.

    With decay ``lam`` and ``lr*lam <= 1`` the parameters stay in (or move geometrically towards)
    the domain of the dual of K, scaled by ``1/lam``; the Lyapunov argument needs ``b2 > b1``.

    Args:
      learning_rate: a number or a schedule.
      kind: which K, see ``optkit.scale_by_kappa``. "spectral" orthogonalizes hidden matrices and
        takes the sign elsewhere: Muon with Lion's momentum. "identity" is SGD with Nesterov-like
        momentum: with ``b1 = b2**2`` it is ``optax.sgd((1-b2)*lr, b2, nesterov=True)``, with
        ``b1 = b2`` its heavy ball.
      e: threshold of shrink and huber (default 1e-3).
      p: exponent of lp (default 2).
      k: entries kept by topk (default a tenth).
      b1: weight of the old momentum in the update.
      b2: decay rate of the momentum.
      weight_decay: ``lam`` above.
      decay: kind of decay.
      mask: leaves that decay.
      dims: matrix axes for "spectral".
      roles: your own role rules for "spectral".
      state_dtype: dtype of ``m``.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 4 per float32 parameter.

    Raises:
      ValueError: an option out of range.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"w": jnp.zeros(2)}
      >>> tx = optkit.lion_k(1.0, kind="lp", p=2.0)
      >>> tx.update({"w": jnp.array([3.0, 4.0])}, tx.init(params), params)[0]["w"].round(3).tolist()
      [-0.6..., -0.8...]

    Reference:
      Chen et al., Lion Secretly Solves Constrained Optimization, arXiv 2310.05898.
    """
    given = {name: value for name, value in {"e": e, "p": p, "k": k}.items() if value is not None}
    fitting = {"shrink": {"e"}, "huber": {"e"}, "lp": {"p"}, "topk": {"k"}}.get(kind, set())
    if set(given) - fitting:
        raise ValueError(
            f"kind={kind!r} has no {', '.join(sorted(set(given) - fitting))}; leave it out"
        )
    if kind == "spectral":
        kappa = split_matrices(
            scale_by_kappa(kind, dims=dims, roles=roles),
            scale_by_kappa("l1"),
            names=("spectral", "sign"),
            dims=dims,
            roles=roles,
        )
    else:
        kappa = scale_by_kappa(kind, **given)
    direction = optax.chain(blend_momentum(b1, b2, state_dtype=state_dtype), kappa)
    return descend(direction, learning_rate, weight_decay=weight_decay, decay=decay, mask=mask)

"""Wrappers that hold the update against the raw gradient: cautious masks and Grams."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from optkit._calls import recipe_of
from optkit.catalogue import register
from optkit.transforms.base import (
    Transformation,
    check_transformation,
    map_leaves,
    map_updates,
    update_inner,
)
from optkit.transforms.hyperparams import check_choice, check_number
from optkit.tree import PyTree, upcast


def _check_direction(name: str, inner: Any) -> Transformation:
    """Returns a transformation, or raises if it is known to point against the gradient."""
    inner = check_transformation("inner", inner)
    recipe = recipe_of(inner)
    if recipe is not None:
        raise ValueError(
            f"{name} takes a direction, which points along the gradient, and optkit.{recipe}() is "
            "a whole optimizer, whose updates point against it: put learning rate and decay "
            f"outside, as optkit.descend(optkit.{name}(optax.scale_by_adam()), 1e-3) does, or "
            f"turn its updates round: optkit.descend(optkit.{name}(optax.chain(optkit.{recipe}"
            "(1.0), optax.scale(-1.0))), learning_rate)"
        )
    return inner


@register(
    kind="wrapper",
    family="sign",
    paper=("Cautious Optimizers: Improving Training with One Line of Code", "2411.16085", 2024),
    state_bytes={"*": 0},
    tags=("cautious", "mask"),
    chain="u * 1[u g > 0] * rescale",
)
def cautious(
    inner: optax.GradientTransformation,
    *,
    rescale: Literal["mean", "count"] | None = "mean",
    floor: float = 1e-3,
    xi: float = 1.0,
    compare: str | None = None,
) -> Transformation:
    """Drops the entries of the inner update whose sign disagrees with the gradient.

    1. ``u <- inner(g)``; 2. ``k = 1[u*g > 0]`` per leaf;
    3. ``"mean"``: ``k <- k / max(mean(k), floor)``; ``"count"``: ``k <- k*size/(sum(k) + xi)``;
    4. ``u <- u*k``.

    The wrapped transformation must point along the gradient: a direction, before the learning rate
    flips its sign; weight decay and learning rate stand outside. Around a whole optimizer such as
    ``optax.adamw`` every entry would disagree and nothing would train, and around one that mixes
    entries, such as SOAP, those remain that lead uphill: a recipe of optkit is refused. What optax
    built looks like a direction before it is run and is taken as one: write
    ``optkit.cautious(optax.scale_by_adam())``, never ``optkit.cautious(optax.adamw(1e-3))``.
    Cautious SOAP is ``descend(cautious(in_rotated_basis(optax.scale_by_adam())), 3e-3)``.

    Evidence: ``python -m benchmarks.claims cautious`` has it around Adam, see
    ``optkit.cautious_adamw``; other inner transformations are not compared there.

    Args:
      inner: any transformation.
      rescale: how the kept entries are scaled up. The paper's and C-Lion's form is "count", that of
        C-AdamW and C-Muon "mean"; None scales nothing.
      floor: least mean of "mean".
      xi: added count of "count".
      compare: name of a field of the inner state to compare with the gradient in place of the
        update, for example "momentum": C-Muon masks a Nesterov look-ahead by the plain momentum.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with the inner state (no bytes of its own).

    Raises:
      ValueError: unknown rescale, negative floor or xi, or a whole optimizer of optkit; KeyError if
        the state has no such field.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> tx = optkit.cautious(optax.trace(0.9))
      >>> state = tx.init({"w": jnp.zeros(2)})
      >>> _, state = tx.update({"w": jnp.array([1.0, 1.0])}, state)
      >>> u, _ = tx.update({"w": jnp.array([1.0, -0.5])}, state)
      >>> [round(float(x), 2) for x in u["w"]]
      [3.8, 0.0]

    Reference:
      Liang et al., Cautious Optimizers, arXiv 2411.16085.
    """
    if rescale is not None:
        check_choice("rescale", rescale, ("mean", "count"))
    check_number("floor", floor, low=0.0)
    check_number("xi", xi, low=0.0)
    inner = _check_direction("cautious", inner)

    def mask(u: jax.Array, g: jax.Array, other: jax.Array) -> jax.Array:
        # Signs, not the product: 1e-30 times 1e-30 is 0 in float32.
        agree = (jnp.sign(upcast(other)) * jnp.sign(upcast(g)) > 0).astype(jnp.float32)
        if rescale == "mean":
            agree = agree / jnp.maximum(jnp.mean(agree), floor) if agree.size else agree
        elif rescale == "count":
            agree = agree * (agree.size / (jnp.sum(agree) + xi))
        return (upcast(u) * agree).astype(u.dtype)

    def update_fn(
        updates: PyTree, state: PyTree, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, PyTree]:
        out, state = update_inner(inner, updates, state, params, extra_args)
        other = out if compare is None else optax.tree.get(state, compare)
        if other is None:
            raise KeyError(f"compare={compare!r}: the inner state has no field of that name")
        return map_leaves(mask, out, updates, other), state

    return Transformation(inner.init, update_fn)


@register(
    kind="wrapper",
    family="sign",
    paper=("Grams: Gradient Descent with Adaptive Momentum Scaling", "2412.17107", 2024),
    state_bytes={"*": 0},
    tags=("sign", "grams"),
    chain="sign(g) |u|",
)
def sign_from_grad(inner: optax.GradientTransformation) -> Transformation:
    """Takes the size of the inner update and the sign of the gradient.

    1. ``u <- inner(g)``; 2. ``u <- sign(g)*|u|``.

    The result points along the gradient whatever the inner update does: learning rate and weight
    decay stand outside, as in
    ``optkit.descend(optkit.sign_from_grad(optax.scale_by_adam()), learning_rate)``.
    Around a whole optimizer the steps would climb the loss. A recipe of optkit is refused; what
    optax built, such as ``optax.adamw(1e-3)``, looks like a direction before it is run and is taken
    as one.

    Evidence: ``python -m benchmarks.claims cautious`` has it around Adam, see ``optkit.grams``.

    Args:
      inner: any transformation that points along the gradient.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with the inner state (no bytes of its own).

    Raises:
      ValueError: a whole optimizer of optkit, which would be led uphill.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> tx = optkit.sign_from_grad(optax.scale(-2.0))
      >>> tx.update({"w": jnp.array([1.0, -3.0])}, tx.init({"w": jnp.zeros(2)}))[0]["w"].tolist()
      [2.0, -6.0]

    Reference:
      Cao et al., Grams, arXiv 2412.17107.
    """
    inner = _check_direction("sign_from_grad", inner)

    def update_fn(
        updates: PyTree, state: PyTree, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, PyTree]:
        out, state = update_inner(inner, updates, state, params, extra_args)
        return map_updates(lambda u, g: jnp.sign(g) * jnp.abs(u), out, updates), state

    return Transformation(inner.init, update_fn)

"""Updates multiplied leaf by leaf: the learning-rate factors of a law, around any optimizer."""

from collections.abc import Mapping
from typing import Any

import jax
import optax

from optkit.catalogue import register
from optkit.transfer.laws import Laws, tell
from optkit.transforms.base import Transformation, check_transformation, map_updates, update_inner
from optkit.transforms.hyperparams import Scalar, check_number
from optkit.tree import PyTree, Selector, leaves_with_paths, selects
from optkit.tree.selection import check_selects


@register(
    kind="wrapper",
    family="step",
    state_bytes={"*": 0},
    tags=("learning rate", "transfer", "mup"),
    chain="inner > times a number for each leaf",
    example={"factors": (("**", 0.5),)},
)
def scale_leaves(
    inner: optax.GradientTransformation,
    factors: Laws | Mapping[str, Scalar] | tuple[tuple[Selector, Scalar], ...],
) -> Transformation:
    """Multiplies what leaves an optimizer by a number for each leaf: a learning rate of its own.

    1. ``u, s <- inner(g)``;
    2. ``u <- f*u``, ``f`` the leaf's factor.

    Weight decay inside is multiplied with the rest: ``W <- W - f*lr*(d + wd*W)``. So laws that
    change the coefficient itself, or Adam's epsilon by more than a note, are ``laws.route(...)``'s
    business.

    Args:
      inner: any optimizer.
      factors: ``optkit.transfer`` laws, of which the factors on the learning rate are taken; or
        ``{selector: number}``, or pairs of both; a selector is a role, a glob or a function of
        (path, leaf), the first that names a leaf counts, and leaves without one have 1.

    Returns:
      An ``optax.GradientTransformationExtraArgs``; no state beside the inner one's.
      ``optkit.plan`` shows the factors.

    Raises:
      ValueError: laws with factors on the decay; a negative number; at init a selector that names
        no leaf, or laws of another model.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> params = {"down": jnp.zeros(1), "up": jnp.zeros(1)}
      >>> tx = optkit.scale_leaves(optax.sgd(1.0), {"up": 0.25})
      >>> u, _ = tx.update({"down": jnp.ones(1), "up": jnp.ones(1)}, tx.init(params), params)
      >>> float(u["down"][0]), float(u["up"][0])
      (-1.0, -0.25)
    """
    inner = check_transformation("inner", inner, swapped_with=factors)
    laws = factors if isinstance(factors, Laws) else None
    pairs: tuple[tuple[Selector, Scalar], ...] = ()
    if not isinstance(factors, Laws):
        given: Any = factors.items() if isinstance(factors, Mapping) else factors
        if not isinstance(factors, Mapping | list | tuple):
            raise TypeError(
                f"factors={factors!r} must be laws of optkit.transfer, or map selectors to "
                'numbers, such as {"up": 0.25}; for one factor on all leaves there is optax.scale'
            )
        pairs = tuple(given)
        for pattern, number in pairs:
            check_number(f"the factor of {pattern!r}", number, low=0.0)
    else:
        lost = [path for path, law in factors.items() if law.weight_decay != 1.0]
        if lost:
            raise ValueError(
                f"the laws change the weight decay of {lost[0]!r} and {len(lost) - 1} more, which "
                "an optimizer around which nothing is known of its decay cannot do: build it by "
                "laws.route(lambda f: optkit.adamw(lr * f.learning_rate, weight_decay=wd * "
                "f.weight_decay))"
            )

    def factor(path: str, leaf: Any) -> Scalar:
        if laws is not None:
            return laws[path].learning_rate
        return next((number for chosen, number in pairs if selects(chosen, path, leaf)), 1.0)

    def init_fn(params: PyTree) -> PyTree:
        if laws is not None:
            laws.check(params)
        for pattern, _ in pairs:
            check_selects("factors", pattern, params)
        tell(params, lambda path, leaf: _said(factor(path, leaf)))
        return inner.init(params)

    def update_fn(
        updates: PyTree, state: PyTree, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, PyTree]:
        out, state = update_inner(inner, updates, state, params, extra_args)
        done = [_times(factor(path, u), u) for path, u in leaves_with_paths(out)]
        return jax.tree.unflatten(jax.tree.structure(out), done), state

    return Transformation(init_fn, update_fn)


def _times(number: Scalar, u: jax.Array) -> jax.Array:
    if _is_one(number):
        return u
    scaled: jax.Array = map_updates(lambda x: number * x, u)
    return scaled


def _is_one(number: Scalar) -> bool:
    return not isinstance(number, jax.Array) and number == 1.0


def _said(number: Scalar) -> str:
    return "x1" if _is_one(number) else f"lr x{number:.3g}"

"""IST: layers sampled by importance, and how importance is learnt from their losses."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optkit._calls import cached_factory
from optkit.masks.policy import (
    Active,
    Keep,
    Look,
    Policy,
    Rest,
    check_keep,
    count_of,
    scope,
)
from optkit.transforms.hyperparams import Scalar
from optkit.transforms.noise import Key, check_seed, fresh_key
from optkit.transforms.partial_update import only
from optkit.tree import LayerOrder, PyTree, RuleLike, Selector, layer_order

__all__ = ["IstState", "ist", "ist_scores", "ist_sets"]


class IstState(NamedTuple):
    """What the policy ``ist`` keeps."""

    key: jax.Array  # PRNG key
    importance: jax.Array  # (layers,) float32


def _draw(key: jax.Array, logits: jax.Array, count: int) -> jax.Array:
    """Which layers are drawn, without replacement, with weights ``exp(logits)``."""
    # The largest of logits with Gumbel noise are such a draw.
    noisy = logits + jax.random.gumbel(key, logits.shape)
    return jnp.argsort(jnp.argsort(-noisy)) < count


@cached_factory
def ist(
    share: Keep = 0.25,
    *,
    where: Selector = "**",
    order: Sequence[Selector] | None = None,
    rest: Rest = "train",
    key: Key = None,
    roles: Sequence[RuleLike] = (),
) -> Policy:
    """Trains some layers at each step, sampled by an importance that losses teach.

    1. ``update(..., importance=I)`` replaces the importances; they begin with 0, which samples
       layers uniformly (RST) as long as nothing else is given;
    2. layers are drawn without replacement with the weights ``sigmoid(-I)``.

    What a large ``I`` stands for: suppressing the layer did no harm, so that it trains less often.
    ``optkit.masks.ist_sets`` draws the layers to suppress, ``ist_scores`` learns from the losses:

      >>> import jax, jax.numpy as jnp, optkit
      >>> importance = jnp.zeros(4)
      >>> sets = optkit.masks.ist_sets(jax.random.key(0), importance)  # (3, 4) bool
      >>> losses = jnp.array([1.0, 2.0, 3.0])  # with the layers of each set scaled by 1/4
      >>> importance = optkit.masks.ist_scores(importance, sets, losses)

    Args:
      share: layers that train: a share in (0, 1], or a number.
      where: leaves that belong to layers, such as ``"**/lora_*"``.
      order: selectors, one a layer, see ``optkit.layer_order``; None reads layers off the names.
      rest: what becomes of other leaves, "train" or "freeze".
      key: seed or PRNG key; None for 0.
      roles: your own ``(pattern, role)`` rules.

    Returns:
      A policy for ``optkit.update_mask``, in the paper with ``state="hold"``; it keeps an
      ``IstState``.

    Raises:
      ValueError: a share out of range; at init more layers than there are, names that do not tell
        the layers, or at update importances of another number.

    Example:
      >>> import optax
      >>> params = {f"dense_{i}": {"kernel": jnp.ones((2, 2))} for i in range(4)}
      >>> tx = optkit.update_mask(optax.sgd(1.0), optkit.masks.ist(2))
      >>> u, _ = tx.update(params, tx.init(params), params)
      >>> sum(float(x.sum()) for x in jax.tree.leaves(u))
      -8.0

    Reference:
      Layer-wise Importance Matters, arXiv 2410.11772.
    """
    check_keep("share", share)
    check_seed(key)
    area = scope(where, rest, roles)

    def layers_of(params: PyTree) -> LayerOrder:
        return layer_order(only(params, area.masked(params)), order, roles=roles)

    def size(layers: LayerOrder) -> int:
        names = ", ".join(map(repr, layers.names))
        return count_of("share", share, layers.count, names, "layers") if layers.count else 0

    def active(params: PyTree) -> PyTree:
        return area.active(params, lambda path, leaf: Active((1,) * np.ndim(leaf), None))

    def init(params: PyTree) -> IstState:
        layers = layers_of(params)
        size(layers)
        return IstState(fresh_key(key), jnp.zeros(layers.count, jnp.float32))

    def mask(state: IstState, look: Look) -> tuple[PyTree, IstState]:
        layers = layers_of(look.params)
        scores = state.importance
        if look.extra.get("importance") is not None:
            scores = jnp.asarray(look.extra["importance"], jnp.float32)
            if scores.shape != (layers.count,):
                raise ValueError(
                    f"importance has shape {scores.shape} for {layers.count} layers: "
                    f"{', '.join(map(repr, layers.names))}; give one number a layer"
                )
        drawn = _draw(
            jax.random.fold_in(state.key, look.step), jax.nn.log_sigmoid(-scores), size(layers)
        )
        numbers = iter(layers.layer_of.values())
        pairs = zip(jax.tree.leaves(look.params), area.masked(look.params), strict=True)
        out: list[Any] = [
            drawn[next(numbers) - 1].reshape((1,) * np.ndim(leaf)) if on else None
            for leaf, on in pairs
        ]
        tree = jax.tree.unflatten(jax.tree.structure(look.params), out)
        return tree, IstState(state.key, scores)

    return Policy("ist", active, mask, init, due=True, extra=("importance",))


def ist_sets(
    key: jax.Array, importance: jax.Array, share: float = 0.5, count: int = 3
) -> jax.Array:
    """Draws sets of layers whose loss is to be measured while they are suppressed.

    Args:
      key: PRNG key.
      importance: (layers,), of the policy ``ist``.
      share: layers of a set.
      count: number of sets.

    Returns:
      (count, layers) bool: layers drawn without replacement, with the weights ``sigmoid(I)``. Sets
      are drawn independently, and may be equal; the paper's are distinct.
    """
    size = max(1, round(share * importance.size))
    logits = jax.nn.log_sigmoid(jnp.asarray(importance, jnp.float32))
    return jax.vmap(lambda own: _draw(own, logits, size))(jax.random.split(key, count))


def ist_scores(
    importance: jax.Array, sets: jax.Array, losses: jax.Array, rate: Scalar = 10.0
) -> jax.Array:
    """Learns importances from the losses that suppressing sets of layers gave.

    ``r_k = exp(-loss_k)`` minus the mean of them; for each layer of set ``k`` then
    ``I <- I + rate*r_k*s*(1-s)`` with ``s = sigmoid(I)`` as it was before.

    Args:
      importance: (layers,).
      sets: (count, layers) bool.
      losses: (count,), with the layers of each set suppressed (in the paper scaled by 1/4).
      rate: size of the step.

    Returns:
      New importances, (layers,) float32; unchanged where all losses are equal.
    """
    scores = jnp.asarray(importance, jnp.float32)
    gain = jnp.exp(-jnp.asarray(losses, jnp.float32))
    reward = gain - jnp.mean(gain)
    s = jax.nn.sigmoid(scores)
    return scores + rate * jnp.sum(jnp.where(sets, reward[:, None], 0.0), axis=0) * s * (1.0 - s)

"""Laws of composition over the catalogue: cautious masks, MARS without gamma, idle priors, decay.

Each method runs as the compiled step that its other tests share; what is composed with it here is
a handful of operations on small leaves.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optkit
from optkit import masks
from tests.conformance.methods import ON_SPHERES, RATE, Method, step
from tests.conformance.trees import SMALL, assert_close, assert_same, copy, filled

STEPS = 3  # a gradient that is delayed by two comes out at the third
DECAY = 0.25
# All of the catalogue can be wrapped. Of these the mask leaves nothing: the first points against
# the gradient by its nature, and the second drops all of the AdamW that it is put around here.
NOTHING_LEFT = ("scale_by_learning_rate", "cautious")
# It gives the sign of the gradient to whatever it is put around.
ALONG = ("sign_from_grad",)


def direction(method: Method) -> optax.GradientTransformationExtraArgs:
    """A method as it is compiled for its other tests; whole optimizers are turned round."""
    sign = 1.0 if method.entry.kind == "part" or method.entry.name in ALONG else -1.0

    def update(grads: Any, state: Any, params: Any = None, **_: Any) -> tuple[Any, Any]:
        state, _, updates = step(method.tx, *copy((state, params)), grads)
        return jax.tree.map(lambda u: sign * u, updates), state

    return optax.GradientTransformationExtraArgs(method.tx.init, update)


def follow(method: Method, tx: Any) -> list[Any]:
    """The updates of some steps at the same parameters."""
    params = method.params()
    state, out = tx.init(params), []
    for time in range(STEPS):
        updates, state = tx.update(method.grads(time), state, params)
        out.append(updates)
    return out


@pytest.fixture(scope="module")
def alone(method: Method) -> list[Any]:
    return follow(method, direction(method))


def test_cautious_never_opposes_the_gradient(method: Method, alone: list[Any]) -> None:
    masked = follow(method, optkit.cautious(direction(method)))
    kept = 0
    for time, (got, plain) in enumerate(zip(masked, alone, strict=True)):
        leaves = map(jax.tree.leaves, (got, plain, method.grads(time)))
        for out, u, g in zip(*leaves, strict=True):
            out, u, g = map(np.asarray, (out, u, g))
            assert np.all(out * g >= 0)
            agree = np.sign(u) * np.sign(g) > 0
            scaled = u * agree / max(agree.mean(), 1e-3)
            np.testing.assert_allclose(out, scaled, rtol=1e-6)
            kept += agree.sum()
    assert (kept > 0) != (method.entry.name in NOTHING_LEFT)


DIRECTIONS = {
    "momentum": optkit.momentum,
    "adam": optkit.scale_by_adam,
    "lion": lambda: optax.chain(optkit.blend_momentum(), optkit.scale_by_kappa("l1")),
    # A norm of the whole tree sees the trained leaves only, either way.
    "global": lambda: optkit.clip_by_global_norm(0.1),
}
IDLE = {
    "variance_reduce": lambda: optkit.variance_reduce(gamma=0.0),
    "elastic_prior": lambda: optkit.elastic_prior(0.0),
    "online_elastic_prior": lambda: optkit.online_elastic_prior(0.0),
}


@pytest.mark.sweep
@pytest.mark.parametrize("name", IDLE)
def test_what_has_no_strength_leaves_its_base(name: str, method: Method, alone: list[Any]) -> None:
    assert_same(follow(method, optax.chain(IDLE[name](), direction(method))), alone)


# By their nature not the plain decay of the law: masked by signs, of entries that train only, and
# undone by the sphere. LoQT freezes one factor of each adapter, so that here it is given none.
# And the trust ratio of onebit_lamb scales it.
OTHER_DECAY = ("cwd_adamw", "cwd_lion", "id3", "loqt", "onebit_lamb", *ON_SPHERES)


# What serves the leaves that are no matrices decays by numbers of its own, whatever the mask.
REST = optax.sgd(RATE)


def _first(recipe: Method, **options: Any) -> Any:
    """The first update, with no other decay than the one that is asked for."""
    given = {"weight_decay": 0.0, "decay": "decoupled", "other": REST, **options}
    tx = recipe.build(**{k: v for k, v in given.items() if k in recipe.hyperparameters})
    if tx is recipe.tx:
        return recipe.eager[0][0]
    params = recipe.params()
    return tx.update(recipe.grads(0), tx.init(params), params)[0]


def test_masked_decoupled_decay_adds_its_share_and_nothing_else(recipe: Method) -> None:
    """``p - lr*u - lr*wd*p`` on the leaves of the mask, the undecayed update on all others."""
    if recipe.entry.name in OTHER_DECAY:
        return
    plain = _first(recipe)
    decayed = _first(recipe, weight_decay=DECAY, mask="up/kernel")
    share = jax.tree.map(np.zeros_like, plain)
    share["up"]["kernel"] = RATE * DECAY * np.asarray(recipe.params()["up"]["kernel"])
    assert_close(decayed, jax.tree.map(jnp.subtract, plain, share))


@pytest.mark.parametrize("base", DIRECTIONS)
def test_freezing_takes_the_decay_along(base: str) -> None:
    """Frozen around the decay is frozen inside of it, if the decay's mask leaves out the same."""
    params, direction = filled(SMALL, 0), DIRECTIONS[base]()
    frozen = ("embedding", "up/bias")
    trained = ("down", "norm", "up/kernel")
    around = optkit.freeze(frozen, optkit.descend(direction, RATE, weight_decay=DECAY))
    inside = optkit.descend(
        optkit.freeze(frozen, direction), RATE, weight_decay=DECAY, mask=trained
    )
    bare = optkit.descend(optkit.freeze(frozen, direction), RATE, weight_decay=DECAY)
    got, want, shrunk = (
        tx.update(filled(SMALL, 1), tx.init(params), params)[0] for tx in (around, inside, bare)
    )
    assert_same(got, want)
    assert not np.any(got["embed"]["embedding"]) and not np.any(got["up"]["bias"])
    # Decay outside of the freeze, and not masked, shrinks what is frozen.
    np.testing.assert_allclose(shrunk["up"]["bias"], -RATE * DECAY * params["up"]["bias"], 1e-6)


@pytest.mark.parametrize("state", ["hold", "zero", "drop"])
@pytest.mark.parametrize("base", ["momentum", "adam", "lion"])
def test_masked_entries_take_the_decay_along(base: str, state: str) -> None:
    """Decay inside of an update mask acts where the mask trains; outside of it, everywhere."""
    params, grads, direction = filled(SMALL, 0), filled(SMALL, 1), DIRECTIONS[base]()
    mask = jax.tree.map(lambda x: np.asarray(x) > 0, filled(SMALL, 2))
    policy = masks.fixed(mask)
    whole = optkit.descend(direction, RATE, weight_decay=DECAY)
    inside = masks.update_mask(whole, policy, state=state)
    masked = masks.update_mask(direction, policy, state=state)
    outside = optkit.descend(masked, RATE, weight_decay=DECAY)
    plain, got, shrunk = (
        tx.update(grads, tx.init(params), params)[0] for tx in (whole, inside, outside)
    )
    assert_close(got, jax.tree.map(lambda on, u: np.where(on, u, np.float32(0)), mask, plain))
    share = jax.tree.map(lambda on, p: np.where(on, np.float32(0), -RATE * DECAY * p), mask, params)
    assert_close(shrunk, jax.tree.map(np.add, got, share))


# Recipe without its strength, and what it is then.
IDLE_RECIPES = {
    "mars_adamw": (
        lambda: optkit.mars_adamw(RATE, gamma=0.0, clip=None, optimize_1d=True, weight_decay=DECAY),
        lambda: optkit.adamw(RATE, b1=0.95, b2=0.99, eps=1e-8, weight_decay=DECAY),
    ),
    "mars_lion": (
        lambda: optkit.mars_lion(RATE, gamma=0.0, clip=None, optimize_1d=True, weight_decay=DECAY),
        lambda: optkit.signum(RATE, b1=0.95, weight_decay=DECAY),
    ),
    "ewc_online": (lambda: optkit.ewc_online(RATE, strength=0.0), lambda: optax.sgd(RATE)),
}


@pytest.mark.parametrize("name", IDLE_RECIPES)
def test_a_recipe_without_its_strength_is_its_base(name: str) -> None:
    params, updates = filled(SMALL, 0), []
    for build in IDLE_RECIPES[name]:
        tx = build()
        state, out = tx.init(params), []
        for time in range(STEPS):
            update, state = tx.update(filled(SMALL, 1 + time), state, params)
            out.append(update)
        updates.append(out)
    assert_close(*updates)

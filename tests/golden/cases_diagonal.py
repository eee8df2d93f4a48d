"""Cases of diagonal curvature: Sophia in both dialects, OASIS."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optkit
from optkit.transforms.oasis import ScaleByOasisState
from optkit.transforms.sophia import ScaleBySophiaState
from tests.golden.replay import Comparison, Golden, case, difference

_SOPHIA = 1e-5  # the given one
_SHORT = 1e-3


def state_of(state: Any, kind: type) -> Any:
    """The first part of a state that is of a class."""
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, kind))
    return next(node for node in nodes if isinstance(node, kind))


def relative(got: Any, want: np.ndarray) -> float:
    """A difference in units of the largest entry, for quantities far from 1."""
    return difference(got, want) / max(1.0, float(np.max(np.abs(want), initial=0.0)))


def _run(
    golden: Golden, tx: optax.GradientTransformation, curvatures: list[Any]
) -> Iterator[tuple[int, Any, Any]]:
    """Yields (step, parameters, what Sophia holds); ``curvatures`` are offered one a step."""
    params: Any = jax.tree.map(jnp.asarray, golden.tree("p0"))

    @jax.jit
    def step(grads: Any, curvature: Any, state: Any, params: Any) -> Any:
        updates, state = tx.update(grads, state, params, curvature=curvature)
        return state, optax.apply_updates(params, updates)

    state, nothing = tx.init(params), jax.tree.map(jnp.zeros_like, params)
    for t in range(golden.steps):
        grads = jax.tree.map(jnp.asarray, golden.tree(f"g/{t}"))
        state, params = step(grads, curvatures[t] or nothing, state, params)
        yield t, params, state_of(state, ScaleBySophiaState)


@case("sophia_g")
def sophia_g(golden: Golden) -> Iterator[Comparison]:
    """The file's estimate after a step is ours at the beginning of the next one."""
    hyper = golden.hyper
    size, (b1, b2) = hyper["bs"], hyper["betas"]
    tx = optkit.sophia_g(
        hyper["lr"],
        b1=b1,
        b2=b2,
        rho=hyper["rho"],
        every=hyper.get("hessian_interval", hyper.get("interval", hyper.get("k", 10))),
        weight_decay=hyper["weight_decay"],
    )
    last = [golden.tree(f"ghat/{t - 1}") for t in range(golden.steps)]
    offered = [jax.tree.map(lambda g: size * np.float32(g) ** 2, ghat) for ghat in last]
    for t, params, held in _run(golden, tx, offered):
        for name, want in golden.tree(f"p/{t}").items():
            yield Comparison(difference(params[name], want), _SOPHIA)
        for name, want in golden.tree(f"m/{t}").items():
            yield Comparison(difference(held.momentum[name], want), _SOPHIA)
        for name, want in golden.tree(f"h/{t - 1}").items():
            yield Comparison(relative(held.curvature[name], size * want), _SOPHIA)


@case("sophia_h")
def sophia_h(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    tx = optkit.sophia_h(
        hyper["learning_rate"],
        b1=hyper["b1"],
        b2=hyper["b2"],
        gamma=hyper["gamma"],
        eps=hyper["eps"],
        clip=hyper["clip_threshold"],
        every=hyper["update_interval"],
        weight_decay=hyper["weight_decay"],
    )
    offered = [golden.tree(f"hdiag/{t}") for t in range(golden.steps)]
    for t, params, held in _run(golden, tx, offered):
        for name, want in golden.tree(f"p/{t}").items():
            yield Comparison(difference(params[name], want), _SOPHIA)
        for name, want in golden.tree(f"h/{t}").items():
            yield Comparison(relative(held.curvature[name], want), _SOPHIA)


def _oasis_of(hyper: dict[str, Any]) -> optax.GradientTransformation:
    adaptive = hyper.get("adaptive", True)
    # A step that is fixed is the first one.
    fixed = 1.0 if adaptive else hyper["eta0"]
    return optkit.oasis(
        hyper.get("lr", 1.0) * fixed,
        b1=hyper.get("beta1", 0.0),
        b2=hyper["beta2"],
        alpha=hyper["alpha"],
        first_step=hyper["eta0"],
        adaptive=adaptive,
        weight_decay=hyper.get("weight_decay", 0.0) / fixed,
    )


@case("oasis")
def oasis(golden: Golden) -> Iterator[Comparison]:
    """Parameters, the diagonal, and the step sizes relatively.

    A file's second gradients belong to the path that float64 took. Beside the shortest steps the
    rounding of float32 parameters is not small, so that those are replayed in float64.
    """
    double = golden.hyper["eta0"] < _SHORT
    with jax.enable_x64(double):
        yield from _oasis(golden, jnp.float64 if double else jnp.float32)


def _oasis(golden: Golden, dtype: Any) -> Iterator[Comparison]:
    tx = _oasis_of(golden.hyper)

    @jax.jit
    def step(grads: Any, prev_grad: Any, curvature: Any, state: Any, params: Any) -> Any:
        extra = {"prev_grad": prev_grad, "curvature": curvature}
        updates, state = tx.update(grads, state, params, **extra)
        return state, optax.apply_updates(params, updates)

    def given(prefix: str) -> Any:
        return jax.tree.map(lambda x: jnp.asarray(x, dtype), golden.tree(prefix))

    params: Any = given("p0")
    state = tx.init(params)
    for t in range(golden.steps):
        grads = given(f"g/{t}")
        before = given(f"gprev/{t}") or grads
        state, params = step(grads, before, given(f"h/{t}"), state, params)
        for name, want in golden.tree(f"p/{t}").items():
            yield Comparison(relative(params[name], want), 2e-5)
        held = state_of(state, ScaleByOasisState)
        for name, want in golden.tree(f"D/{t}").items():
            yield Comparison(relative(held.curvature[name], want), 2e-5)
        if "eta" in golden.arrays and golden.hyper.get("adaptive", True):
            eta = float(golden.arrays["eta"][t])
            yield Comparison(abs(float(held.step_size) - eta) / eta, 1e-4)

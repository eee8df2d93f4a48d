"""Cases of the strategies for truncations, and of guided evolution strategies."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optkit
from tests.golden.cases_evolution import cut, neighbours, solver
from tests.golden.replay import TOLERANCE, Comparison, Golden, case, difference


def flat(tree: Any) -> np.ndarray:
    """Leaves ``(K, *shape)`` in the order of the sorted names, as rows."""
    rows = [np.asarray(tree[name]) for name in sorted(tree)]
    return np.concatenate([x.reshape(x.shape[0], -1) for x in rows], axis=1)


def neighbours_of(members: np.ndarray) -> np.ndarray:
    """Members of halves (all +, all -) in the order of pairs."""
    halves = members.reshape(2, -1, *members.shape[1:])
    return np.stack(list(halves), axis=1).reshape(members.shape)


@case("pes", "nres", "truncated_es")
def unrolled(golden: Golden) -> Iterator[Comparison]:
    hyper, method = golden.hyper, golden.meta["method"]
    es = getattr(optkit, method)(
        hyper["population"],
        sigma=hyper["std"],
        horizon=hyper["T"],
        truncation=hyper["K"],
        maximize=False,
    )
    tx = optax.chain(es, solver(hyper))
    params: Any = jax.tree.map(jnp.asarray, golden.tree("p0"))
    state, step, pairs = tx.init(params), jax.jit(tx.update), hyper["population"] // 2
    for t in range(golden.steps):
        noise = cut(golden.arrays[f"pert/{t}"][:pairs] / hyper["std"], params)
        if method == "pes":
            held = flat(es.state(state).es_sum) + hyper["std"] * flat(noise)
            yield Comparison(difference(held, golden.arrays[f"buf/{t}"][:pairs]), TOLERANCE)
        fitness = neighbours(golden.arrays[f"f/{t}"])
        updates, state = step(fitness, state, params, noise=noise)
        params = optax.apply_updates(params, updates)
        for name, want in golden.tree(f"p/{t}").items():
            yield Comparison(difference(params[name], want), TOLERANCE)
        inner = np.full(pairs, golden.arrays[f"inner/{t}"])
        yield Comparison(difference(es.state(state).es_inner, inner), 0.5)


@case("guided_es")
def guided_es(golden: Golden) -> Iterator[Comparison]:
    hyper, params = golden.hyper, jax.tree.map(jnp.asarray, golden.tree("p0"))
    es = optkit.guided_es(
        hyper["population"],
        sigma=hyper["std"],
        subspace=hyper["subspace_dims"],
        alpha=hyper["alpha"],
        beta=hyper["beta"],
        divide_by_pairs=False,
        maximize=False,
    )
    tx = optax.chain(es, solver(hyper))
    state, step, guide = tx.init(params), jax.jit(tx.update), jax.jit(es.guide)
    for t in range(golden.steps):
        state = guide(state, golden.tree(f"g/{t}"))
        held = flat(es.state(state).es_surrogates).T
        yield Comparison(difference(held, golden.arrays[f"grad_subspace/{t}"]), TOLERANCE)
        # Rows of +, then of -, in the file.
        members = {
            name: neighbours_of(golden.arrays[f"x/{t}/{name}"]) for name in golden.tree("p0")
        }
        fitness = neighbours(golden.arrays[f"f/{t}"])
        updates, state = step(fitness, state, params, members=members)
        params = optax.apply_updates(params, updates)
        for name, want in golden.tree(f"p/{t}").items():
            yield Comparison(difference(params[name], want), TOLERANCE)

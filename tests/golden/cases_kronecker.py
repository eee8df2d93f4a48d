"""Cases of SOAP and of PSGD with Kronecker factors."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optkit
from tests.golden.replay import Comparison, Golden, case, difference

PSGD_TOLERANCE = 1e-5
SOAP_TOLERANCE = 2e-5


def _probability(given: Any) -> Any:
    """A number, the reference's course, or that course with other numbers."""
    if not isinstance(given, dict):
        return given
    names = {"max_prob": "most", "min_prob": "least", "decay": "decay", "flat_start": "flat"}
    return optkit.psgd_update_probability(**{names[key]: x for key, x in given.items()})


@case("psgd_kron")
def psgd_kron(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    tx = optkit.psgd_kron(
        hyper.get("learning_rate", 1e-3),
        b1=hyper.get("b1", 0.9),
        weight_decay=hyper.get("weight_decay", 0.0),
        preconditioner_lr=hyper.get("preconditioner_lr", 0.1),
        update_probability=_probability(hyper.get("preconditioner_update_probability")),
        init_scale=hyper.get("preconditioner_init_scale", 1.0),
        max_size_triangular=hyper.get("max_size_triangular", 8192),
        min_ndim_triangular=hyper.get("min_ndim_triangular", 2),
        memory_save_mode=hyper.get("memory_save_mode"),
        momentum_into_precond_update=hyper.get("momentum_into_precond_update", True),
        axes="all",
    )

    @jax.jit
    def step(grads: Any, state: Any, params: Any, probes: Any, balance: Any) -> Any:
        updates, state = tx.update(grads, state, params, probes=probes, balance=balance)
        return state, optax.apply_updates(params, updates)

    params = jax.tree.map(jnp.asarray, golden.tree("p0"))
    state = tx.init(params)
    for t in range(golden.steps):
        # Where the factors rest nothing is drawn.
        probes = golden.tree(f"v/{t}") or jax.tree.map(np.zeros_like, golden.tree("p0"))
        coin = golden.arrays.get(f"balance/{t}", np.array(False))
        state, params = step(golden.tree(f"g/{t}"), state, params, probes, coin)
        yield Comparison(_worst(params, golden.tree(f"p/{t}")), PSGD_TOLERANCE)
        trees = (state[0].entries, *state[0].kronecker)
        got = {
            f"{leaf}/{max(0, axis - 1)}": q
            for axis, tree in enumerate(trees)
            for leaf, q in tree.items()
            if q is not None
        }
        yield Comparison(_worst(got, golden.tree(f"Q/{t}")), PSGD_TOLERANCE)


def _worst(got: Any, expected: dict[str, np.ndarray]) -> float:
    """Largest error, relative to a leaf's largest entry where that is above 1."""
    errors = (
        difference(got[key], value) / max(1.0, float(np.max(np.abs(value), initial=0.0)))
        for key, value in expected.items()
    )
    return max(errors, default=0.0)


@case("soap")
def soap(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    b1, b2 = hyper.get("betas", (0.95, 0.95))
    beta = hyper.get("shampoo_beta", -1)
    tx = optkit.soap(
        hyper.get("lr", 3e-3),
        b1=b1,
        b2=b2,
        eps=hyper.get("eps", 1e-8),
        shampoo_beta=None if beta < 0 else beta,
        weight_decay=hyper.get("weight_decay", 0.01),
        refresh_every=hyper.get("precondition_frequency", 10),
        max_precond_dim=hyper.get("max_precond_dim", 10000),
        merge_small_dims=hyper.get("merge_dims", False),
        precondition_1d=hyper.get("precondition_1d", False),
        normalize_grads=hyper.get("normalize_grads", False),
        correct_bias=hyper.get("correct_bias", True),
        axes="all",
    )

    @jax.jit
    def step(grads: Any, state: Any, params: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return state, optax.apply_updates(params, updates)

    params = jax.tree.map(jnp.asarray, golden.tree("p0"))
    state = tx.init(params)
    for t in range(golden.steps):
        state, params = step(golden.tree(f"g/{t}"), state, params)
        yield Comparison(_worst(params, golden.tree(f"p/{t}")), SOAP_TOLERANCE)
        if t == 0:
            state = (_with_recorded_null_spaces(state[0], golden), *state[1:])
        held = state[0]
        if not hyper.get("merge_dims", False):
            yield Comparison(_worst(held.inner.nu, golden.tree(f"vsq/{t}")), SOAP_TOLERANCE)
        for name, expected in golden.tree(f"Q/{t}").items():
            leaf, axis = name.rsplit("/", 1)
            got = held.kronecker.bases[int(axis)][leaf]
            # Signs of columns are arbitrary.
            signs = np.sign(np.sum(np.asarray(got) * expected, axis=0))
            yield Comparison(difference(got * signs[None], expected), SOAP_TOLERANCE)


def _with_recorded_null_spaces(held: Any, golden: Golden) -> Any:
    """Takes the first bases of statistics that lack rank from the file: LAPACKs differ there."""
    bases = [dict(tree) for tree in held.kronecker.bases]
    for name, basis in golden.tree("Q/0").items():
        leaf, axis = name.rsplit("/", 1)
        rank = golden.arrays[f"p0/{leaf}"].size // basis.shape[0]
        if rank < basis.shape[0] and bases[int(axis)].get(leaf) is not None:
            bases[int(axis)][leaf] = jnp.asarray(basis)
    return held._replace(kronecker=held.kronecker._replace(bases=tuple(bases)))

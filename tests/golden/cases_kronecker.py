"""Cases of SOAP and of PSGD with Kronecker factors."""

import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optkit
from optkit.transforms.rotated_basis import RotatedBasisState
from optkit.tree import merge_dims
from tests.golden.replay import Comparison, Golden, case, difference

PSGD_TOLERANCE = 1e-5
SOAP_TOLERANCE = 2e-5


def _probability(given: Any) -> Any:
    """A number, the reference's course, or that course with other numbers.

    The latter by name, or as ``precond_update_prob_schedule(max_prob=0.9, ...)``.
    """
    if isinstance(given, str):
        found = re.findall(r"(\w+)\s*=\s*([-+.\de]+)", given)
        given = {key: float(value) for key, value in found}
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
        if f"update_counter/{t}" in golden.arrays:
            since = golden.arrays[f"update_counter/{t}"]
            yield Comparison(difference(state[0].since, since), PSGD_TOLERANCE)


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
        state = jax.tree.map(
            lambda x, t=t: _with_recorded_null_spaces(x, golden, t) if _is_held(x) else x,
            state,
            is_leaf=_is_held,
        )
        (held,) = filter(_is_held, jax.tree.leaves(state, is_leaf=_is_held))
        yield Comparison(_worst(held.inner.nu, golden.tree(f"vsq/{t}")), SOAP_TOLERANCE)
        for name, expected in golden.tree(f"Q/{t}").items():
            leaf, axis = name.rsplit("/", 1)
            got = held.kronecker.bases[int(axis)][leaf]
            # Signs of columns are arbitrary.
            signs = np.sign(np.sum(np.asarray(got) * expected, axis=0))
            yield Comparison(difference(got * signs[None], expected), SOAP_TOLERANCE)


def _is_held(x: Any) -> bool:
    return isinstance(x, RotatedBasisState)


def _with_recorded_null_spaces(held: Any, golden: Golden, t: int) -> Any:
    """Takes new bases of statistics that lack rank from the file: LAPACKs differ there.

    With them go the moments: the first in the new coordinates, the second in the file's order.
    """
    if t % golden.hyper.get("precondition_frequency", 10):
        return held
    bases = [dict(tree) for tree in held.kronecker.bases]
    mu, nu = dict(held.inner.mu), dict(held.inner.nu)
    for name, basis in golden.tree(f"Q/{t}").items():
        leaf, axis = name.rsplit("/", 1)
        own, size = bases[int(axis)].get(leaf), basis.shape[0]
        # What is orthogonal to all other columns is one direction only, whoever takes it.
        if own is None or (t + 1) * (mu[leaf].size // size) >= size - (t > 0):
            continue
        bases[int(axis)][leaf] = jnp.asarray(basis)
        shape = _soap_shape(mu[leaf].shape, golden.hyper)
        moved = np.moveaxis(np.asarray(mu[leaf]).reshape(shape), int(axis), 0)
        moved = np.tensordot(basis.T @ np.asarray(own), moved, 1)
        mu[leaf] = jnp.asarray(np.moveaxis(moved, 0, int(axis)).reshape(mu[leaf].shape))
        nu[leaf] = jnp.asarray(golden.arrays[f"vsq/{t}/{leaf}"])
    inner = held.inner._replace(mu=mu, nu=nu)
    kronecker = held.kronecker._replace(bases=tuple(bases))
    return held._replace(kronecker=kronecker, inner=inner)


def _soap_shape(shape: tuple[int, ...], hyper: dict[str, Any]) -> tuple[int, ...]:
    """The axes that have factors."""
    if len(shape) < 2 or not hyper.get("merge_dims", False):
        return shape
    return merge_dims(shape, hyper.get("max_precond_dim", 10000), order="first")

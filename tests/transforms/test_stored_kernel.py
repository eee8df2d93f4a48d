"""quantize_state with the kernel: which leaves it takes, and that the numbers are the same."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optkit

SHAPES = {"w": (24, 512), "conv": (3, 3, 17, 32), "b": (7,)}
INNERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "adamw": lambda: optkit.adamw(1e-2),
    "a schedule": lambda: optkit.adamw(optax.linear_schedule(1e-2, 0.0, 5)),
    "optax.adamw": lambda: optax.adamw(1e-2, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
    "lion": lambda: optkit.lion(1e-3),
    # The norm of all gradients is computed first, and is a number to the kernel.
    "clipped momentum": lambda: optax.chain(
        optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9, nesterov=True)
    ),
}


def arrays(seed: int, dtype: Any = jnp.float32) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    return {k: jnp.asarray(rng.standard_normal(s), dtype) for k, s in SHAPES.items()}


def trained(tx: optax.GradientTransformation, dtype: Any = jnp.float32) -> Any:
    @jax.jit
    def step(grads: Any, state: Any, params: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return state, optax.apply_updates(params, updates)

    params = arrays(0, dtype)
    state = tx.init(params)
    for seed in (1, 2):
        state, params = step(arrays(seed, dtype), state, params)
    return params


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("name", "codec", "dtype"),
    [
        *((name, "dynamic8", jnp.float32) for name in INNERS),
        ("adamw", "dynamic4", jnp.float32),
        ("adamw", "dynamic8", jnp.bfloat16),
        ("lion", "linear8", jnp.bfloat16),
    ],
)
@pytest.mark.slow
def test_training_is_the_same(name: str, codec: str, dtype: Any) -> None:
    found, wanted = (
        trained(
            optkit.quantize_state(INNERS[name](), codec, min_size=100, implementation=by), dtype
        )
        for by in ("interpret", "xla")
    )
    for path, x in wanted.items():
        a, b = (np.asarray(y, np.float32) for y in (found[path], x))
        # One unit in the last place of the parameter, where a sum is rounded in another order.
        atol = float(jnp.finfo(dtype).eps) * 4
        np.testing.assert_allclose(a, b, rtol=0, atol=atol * np.abs(b).max(), err_msg=path)


def test_the_kernel_takes_the_leaves() -> None:
    tx = optkit.quantize_state(optkit.adamw(1e-2), min_size=100, implementation="interpret")
    params = jax.eval_shape(lambda: arrays(0))
    program = str(jax.make_jaxpr(tx.update)(params, jax.eval_shape(tx.init, params), params))
    assert program.count("pallas_call") == 2, "w and conv, and not b"


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda **o: optkit.quantize_state(optkit.muon(1e-2), **o), "leaf 'conv'.*entry by entry"),
        (
            lambda **o: optkit.quantize_state(optkit.cautious(optax.scale_by_adam()), **o),
            "leaf 'conv'.*entry by entry",
        ),
        (lambda **o: optkit.quantize_state(optkit.adamw(1e-2), "fp8", **o), "e4m3fn"),
    ],
    ids=("compares rows", "counts entries", "no table"),
)
def test_what_the_kernel_cannot_take_is_refused_by_name(
    make: Callable[..., optax.GradientTransformation], text: str
) -> None:
    params = jax.eval_shape(lambda: arrays(0))
    tx = make(min_size=100, implementation="interpret")
    with pytest.raises(ValueError, match=text):
        jax.eval_shape(tx.update, params, jax.eval_shape(tx.init, params), params)
    free = make(min_size=100)
    jax.eval_shape(free.update, params, jax.eval_shape(free.init, params), params)


def test_an_unknown_implementation_is_refused() -> None:
    with pytest.raises(ValueError, match="did you mean 'pallas'"):
        optkit.quantize_state(optkit.adamw(1e-2), implementation="palas")  # type: ignore[arg-type]


def test_members_of_a_population_get_their_own() -> None:
    members = {"w": jnp.stack([arrays(seed)["conv"] for seed in (0, 1)])}
    found = []
    for by in ("interpret", "xla"):
        tx = optkit.quantize_state(optkit.lion(1e-3), min_size=100, implementation=by)
        state = jax.vmap(tx.init)(members)
        updates, state = jax.jit(jax.vmap(tx.update))(members, state, members)
        found.append((updates, state.inner))
    jax.tree.map(np.testing.assert_array_equal, *found)

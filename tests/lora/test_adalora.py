"""AdaLoRA: what is left within the budget, which, and when; and the penalty."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optkit
from optkit.lora import adalora_budget, orthogonality_penalty
from optkit.transforms.recording import recording

STEPS, INTERVAL, WARM, LAST = 12, 3, 2, 3
SHAPES = {
    "one": {"lora_a": (4, 3), "lora_e": (3,), "lora_b": (3, 5)},
    "two": {"lora_a": (2, 4, 3), "lora_e": (2, 3, 1), "lora_b": (2, 3, 4)},
    "other": (3,),
}
OPTIONS = {
    "target_rank": 1, "total_steps": STEPS, "init_warmup": WARM, "final_warmup": LAST,
    "interval": INTERVAL,
}  # fmt: skip
TX = optkit.adalora(optax.sgd(0.1), **OPTIONS)
STEP = jax.jit(TX.update)


def draw(rng):
    is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
    return jax.tree.map(
        lambda shape: rng.standard_normal(shape).astype(np.float32), SHAPES, is_leaf=is_shape
    )


def values(params):
    return np.concatenate([params[k]["lora_e"].reshape(-1) for k in ("one", "two")])


@given(st.integers(1, 40), st.integers(0, 10), st.integers(0, 10), st.integers(1, 30), st.data())
def test_the_budget_falls_from_all_to_the_target_and_never_rises(middle, init, final, whole, data):
    target = data.draw(st.integers(0, whole))
    total = middle + init + final
    options = {"total_steps": total, "init_warmup": init, "final_warmup": final}
    found = [
        adalora_budget(step, whole=whole, target=target, **options) for step in range(total + 2)
    ]
    assert found[: init + 1] == [whole] * (init + 1)
    assert found[total - final :] == [target] * (final + 2)
    assert found == sorted(found, reverse=True)
    from optkit.lora.budget import Plan

    plan = Plan(total, init, final, 1)
    traced = [int(plan.budget(whole, target, np.asarray(step))) for step in (0, init, total // 2)]
    assert traced == [found[step] for step in (0, init, total // 2)]


@given(st.integers(0, 2**32 - 1))
def test_values_that_are_left_fit_the_budget_whenever_they_are_masked(seed):
    rng = np.random.default_rng(seed)
    params = draw(rng)
    state, held = TX.init(params), []
    for step in range(1, STEPS + 1):
        grads = draw(rng)
        updates, state = STEP(grads, state, params)
        plain = jax.tree.map(lambda g: -np.float32(0.1) * g, grads)
        params = optax.apply_updates(params, updates)
        budget = adalora_budget(
            step, whole=9, target=3, total_steps=STEPS, init_warmup=WARM, final_warmup=LAST
        )
        left = values(params) != 0
        is_masked = step > STEPS - LAST or (step > WARM and step % INTERVAL == 0)
        if is_masked:
            assert left.sum() <= budget
        else:
            np.testing.assert_array_equal(values(updates), values(plain))
        if step >= STEPS - LAST:
            held.append(left)
        for name in ("lora_a", "lora_b"):
            np.testing.assert_array_equal(updates["one"][name], plain["one"][name])
        np.testing.assert_array_equal(updates["other"], plain["other"])
    assert all(np.array_equal(held[1], later) for later in held[2:])  # a fixed choice at the end


def test_the_least_important_fall_first_and_values_may_come_back():
    """Two triplets of which one has ten times the gradients and weights."""
    params = {"lora_a": jnp.ones((3, 2)), "lora_b": jnp.ones((2, 3)), "lora_e": jnp.ones(2)}
    tx = optkit.adalora(optax.sgd(0.01), target_rank=1, total_steps=9, interval=2)
    state = tx.init(params)
    big = jnp.array([0.1, 1.0])
    grads = {
        "lora_a": jnp.broadcast_to(big[None], (3, 2)),
        "lora_b": jnp.broadcast_to(big[:, None], (2, 3)),
        "lora_e": big,
    }
    seen = []
    for _ in range(6):
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        seen.append((np.asarray(params["lora_e"]) != 0).tolist())
    # The budget of 2 falls to 1 at once: at steps 2, 4, 6 the small one is masked.
    assert seen == [[True, True], [False, True]] * 3


def test_masked_values_of_16_bits_are_0_exactly():
    params = {
        "lora_a": jnp.ones((3, 2), jnp.bfloat16),
        "lora_b": jnp.ones((2, 3), jnp.bfloat16),
        "lora_e": jnp.array([0.3, 1.7], jnp.bfloat16),
    }
    tx = optkit.adalora(optax.adam(0.1), target_rank=1, total_steps=3, final_warmup=1)
    state = tx.init(params)
    for _ in range(3):
        updates, state = tx.update(params, state, params)
        params = optax.apply_updates(params, updates)
    assert (np.asarray(params["lora_e"]) == 0).tolist() == [True, False]


def test_penalty_is_the_mean_of_norms_and_has_a_gradient_where_it_is_0():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((4, 2)), rng.standard_normal((2, 5))
    params = {"x": {"lora_a": jnp.asarray(a, jnp.float32), "lora_b": jnp.asarray(b, jnp.float32)}}
    norms = [np.linalg.norm(x - np.eye(2)) for x in (a.T @ a, b @ b.T)]
    np.testing.assert_allclose(orthogonality_penalty(params, 0.3), 0.3 * np.mean(norms), rtol=1e-5)
    flat = {"lora_a": jnp.eye(4, 2), "lora_b": jnp.eye(2, 5)}
    value, grads = jax.value_and_grad(orthogonality_penalty)(flat)
    assert value == 0 and not any(np.any(g) for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("name", ["lora_pro", "altlora", "altlora_plus", "lora_plus", "loqt"])
def test_an_inner_that_freezes_singular_values_is_refused(name):
    params = {"lora_a": jnp.ones((3, 2)), "lora_b": jnp.ones((2, 3)), "lora_e": jnp.zeros(2)}
    tx = optkit.adalora(getattr(optkit, name)(0.1), 1, 10)
    with pytest.raises(ValueError, match=r"freezes the singular values 'lora_e'.*adamw"):
        tx.init(params)


def test_the_look_at_what_an_inner_freezes_is_none_of_a_plan_s_business():
    params = {"lora_a": jnp.ones((3, 2)), "lora_b": jnp.ones((2, 3)), "lora_e": jnp.zeros(2)}
    params |= {"kernel": jnp.ones((3, 3))}
    tx = optkit.adalora(optkit.freeze("kernel", optax.sgd(0.1)), 1, 10)
    with recording() as found:
        tx.init(params)
    assert len(found.routes) == 1


def test_plans_that_leave_no_room_are_refused():
    with pytest.raises(ValueError, match=r"init_warmup=5 and final_warmup=5 leave no step"):
        optkit.adalora(optax.sgd(0.1), 1, 10, init_warmup=5, final_warmup=5)
    with pytest.raises(ValueError, match=r"final_warmup=1 leave no step of total_steps=2 in which"):
        optkit.adalora(optax.sgd(0.1), 1, 2, final_warmup=1)  # nothing would be known of any value
    tx = optkit.adalora(optax.sgd(0.1), 4, 10)
    with pytest.raises(ValueError, match=r"target_rank=4 is above the rank 3 .* 'one/lora_a'"):
        tx.init(draw(np.random.default_rng(0)))

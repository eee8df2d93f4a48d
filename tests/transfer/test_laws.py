"""Tables of factors: read off shapes, multiplied, and applied to each leaf's own step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optkit
from optkit import transfer


def shapes(width: int, inputs: int = 3) -> dict:
    """A small model of any width, as shapes."""
    leaf = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)  # noqa: E731
    return {
        "embed": {"embedding": leaf(5, width)},
        "input": {"kernel": leaf(inputs, width), "bias": leaf(width)},
        "up": {"kernel": leaf(width, 4 * width)},
        "query": {"kernel": leaf(width, 2, width // 2)},
        "norm": {"scale": leaf(width)},
        "head": {"kernel": leaf(width, 7), "bias": leaf(7)},
    }


def test_kinds_are_read_off_shapes() -> None:
    laws = transfer.mup(shapes(8), shapes(32))
    kinds = {path: law.kind for path, law in laws.items()}
    assert kinds == {
        "embed/embedding": "input",
        "input/kernel": "input",
        "input/bias": "vector",
        "up/kernel": "hidden",
        "query/kernel": "hidden",
        "norm/scale": "vector",
        "head/kernel": "output",
        "head/bias": "fixed",
    }
    assert any("attention" in note for note in laws.notes)


def test_the_base_itself_has_factors_of_one_and_says_so() -> None:
    laws = transfer.mup(shapes(8), shapes(8), wider=shapes(16))
    factors = {(x.learning_rate, x.init, x.eps, x.forward) for x in laws.values()}
    assert factors == {(1.0, 1.0, 1.0, 1.0)}
    assert "base and params have the same shapes" in str(laws)
    assert "same shapes" not in str(transfer.mup(shapes(8), shapes(32)))


@given(st.sampled_from([2, 4, 6]), st.sampled_from([2, 4, 8, 12]))
def test_factors_of_mup(base: int, width: int) -> None:
    """The table of 2203.03466 for Adam, in either form of the output layer."""
    m = width / base
    by_rate = transfer.mup(shapes(base), shapes(width), wider=shapes(16))
    by_forward = transfer.mup(shapes(base), shapes(width), wider=shapes(16), output="multiplier")
    for path in by_rate:
        rate, forward = by_rate[path], by_forward[path]
        want = {"hidden": (1 / m, m**-0.5, 1.0), "output": (1 / m, 1 / m, 1.0)}
        got = (rate.learning_rate, rate.init, rate.forward)
        assert got == pytest.approx(want.get(rate.kind, (1.0, 1.0, 1.0)))
        # Both forms of the output layer give the same function, step by step.
        assert rate.init * rate.forward == pytest.approx(forward.init * forward.forward)
        assert rate.learning_rate * rate.forward == pytest.approx(
            forward.learning_rate * forward.forward
        )
        # Adam's epsilon against a gradient that the forward multiplier shrinks.
        assert rate.eps / rate.forward == pytest.approx(forward.eps / forward.forward)


@given(st.floats(0.1, 10.0))
def test_decay_keeps_the_top_singular_value(growth: float) -> None:
    """sigma ~ sqrt(lr/wd) m^0.75 with muP's rate and this decay: m cancels."""
    width = max(1, round(8 * growth)) * 2
    m = width / 16
    laws = transfer.mup(
        shapes(16), shapes(width), wider=shapes(6)
    ) * transfer.weight_decay_transfer(shapes(16), shapes(width), wider=shapes(6))
    law = laws["up/kernel"]
    assert np.sqrt(law.learning_rate / law.weight_decay) * m**0.75 == pytest.approx(1.0)
    assert laws["embed/embedding"].weight_decay == laws["norm/scale"].weight_decay == 0.0
    assert laws["head/kernel"].weight_decay == 1.0


def test_what_cannot_be_read_is_refused_by_name() -> None:
    small, large = shapes(8), shapes(16)
    with pytest.raises(ValueError, match="'new' is in params and not in base"):
        transfer.mup(small, {**large, "new": large["norm"]["scale"]})
    with pytest.raises(ValueError, match=r"'head/kernel'.*its role is head, yet its outputs grow"):
        transfer.mup(*({"head": {"kernel": jnp.ones((7, w))}} for w in (2, 4)))
    with pytest.raises(ValueError, match=r"'experts/up'.*axis 0 is read as a stack"):
        transfer.mup(
            {"experts": {"up": jnp.ones((2, 3, 3))}}, {"experts": {"up": jnp.ones((4, 3, 3))}}
        )
    with pytest.raises(ValueError, match=r"'norm/scale'.*2 of its axes grow"):
        transfer.mup({"norm": {"scale": jnp.ones((2, 3))}}, {"norm": {"scale": jnp.ones((4, 6))}})
    with pytest.raises(TypeError, match="params must be a tree of arrays or shapes"):
        transfer.mup(small, lambda x: x)
    with pytest.raises(ValueError, match="another rank"):
        transfer.mup({"w": jnp.ones(2)}, {"w": jnp.ones((2, 2))})
    with pytest.raises(ValueError, match="SGD"):
        transfer.mup(small, large, optimizer="sgd")
    with pytest.raises(ValueError, match="give wider="):
        transfer.weight_decay_transfer(small, small)
    with pytest.raises(ValueError, match="kinds are"):
        transfer.mup(small, large, rules=[("up", "matrix")])


def test_rules_overrule_shapes() -> None:
    base, wide = {"head": {"kernel": jnp.ones((7, 2))}}, {"head": {"kernel": jnp.ones((7, 4))}}
    law = transfer.mup(base, wide, rules=[("head", "output")])["head/kernel"]
    assert (law.kind, law.width, law.learning_rate) == ("output", 2.0, 0.5)


def test_laws_multiply_and_refuse_other_models() -> None:
    one = transfer.mup(shapes(8), shapes(16))
    two = transfer.depth_mup(shapes(16), depth=4, base_depth=1, branches=("up", "query"))
    both = one * two
    assert both["up/kernel"].learning_rate == 0.25 and both["head/kernel"].learning_rate == 0.5
    assert both["up/kernel"].kind == "hidden" and len(both.notes) == 2
    with pytest.raises(ValueError, match="'embed/embedding' is"):
        one * transfer.mup(shapes(8), shapes(32))
    assert "lr" in str(both) and "branch" in str(both)


def test_route_steps_each_leaf_as_its_factors_say() -> None:
    """By hand: W - lr f_lr (sign + wd f_wd W), with Adam's first step the sign."""
    laws = transfer.mup(shapes(8), shapes(16)) * transfer.weight_decay_transfer(
        shapes(8), shapes(16)
    )
    params = jax.tree.map(lambda s: jnp.full(s.shape, 2.0), shapes(16))
    tx = laws.route(
        lambda f: optkit.adamw(0.1 * f.learning_rate, weight_decay=0.5 * f.weight_decay, eps=0.0)
    )
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    for path, u in optkit.tree.leaves_with_paths(updates):
        law = laws[path]
        want = -0.1 * law.learning_rate * (1.0 + 0.5 * law.weight_decay * 2.0)
        np.testing.assert_allclose(u, want, rtol=1e-5)
    rows = {row.path: row for row in optkit.plan(tx, params).rows}
    assert rows["up/kernel"].factors.startswith("lr x0.5 decay x1.41")
    with pytest.raises(ValueError, match="laws are of another model: leaf 'embed/embedding'"):
        tx.init(shapes(32))


def test_scale_leaves_is_a_learning_rate_of_its_own() -> None:
    laws = transfer.mup(shapes(8), shapes(16))
    params = jax.tree.map(lambda s: jnp.ones(s.shape), shapes(16))
    grads = jax.tree.map(lambda p: 0.3 * p, params)
    tx, plain = optkit.scale_leaves(optax.adam(0.1), laws), optax.adam(0.1)
    got, _ = tx.update(grads, tx.init(params), params)
    want, _ = plain.update(grads, plain.init(params), params)
    for (path, g), (_, w) in zip(
        optkit.tree.leaves_with_paths(got), optkit.tree.leaves_with_paths(want), strict=True
    ):
        np.testing.assert_allclose(g, laws[path].learning_rate * w, rtol=1e-6)
    assert {row.factors for row in optkit.plan(tx, params).rows} == {"x1", "lr x0.5"}


def test_scale_leaves_refuses_what_it_cannot_do() -> None:
    laws = transfer.weight_decay_transfer(shapes(8), shapes(16))
    with pytest.raises(ValueError, match=r"change the weight decay of .*laws.route"):
        optkit.scale_leaves(optax.adam(0.1), laws)
    with pytest.raises(ValueError, match="below 0"):
        optkit.scale_leaves(optax.adam(0.1), {"up": -1.0})
    with pytest.raises(TypeError, match=r"factors=2\.0 must be laws"):
        optkit.scale_leaves(optax.adam(0.1), 2.0)
    with pytest.raises(TypeError, match="build must be a function from a leaf's factors"):
        transfer.mup(shapes(8), shapes(16)).route(optkit.adamw(0.1))
    with pytest.raises(ValueError, match="names no leaf"):
        optkit.scale_leaves(optax.adam(0.1), {"upp": 1.0}).init({"up": jnp.ones(2)})


def test_lora_plus_as_laws_is_the_recipe() -> None:
    params = {"lora_a": jnp.ones((4, 2)), "lora_b": jnp.full((2, 3), 0.5)}
    grads = jax.tree.map(lambda p: 0.1 * p, params)
    laws = transfer.lora_plus(params, ratio=8.0)
    one = laws.route(lambda f: optkit.adamw(0.1 * f.learning_rate, weight_decay=0.0))
    other = optkit.lora_plus(0.1, ratio=8.0)
    for got, want in zip(
        jax.tree.leaves(one.update(grads, one.init(params), params)[0]),
        jax.tree.leaves(other.update(grads, other.init(params), params)[0]),
        strict=True,
    ):
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_scale_vectors() -> None:
    gain = {"scale": jnp.ones(2)}
    params = {
        "blocks": [{"attention_norm": gain, "attn": {"q_norm": gain, "key_norm": gain}}],
        "post_mlp_norm": gain,
        "final_norm": gain,
        "up": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
        "wte": {"embedding": jnp.ones((3, 2))},
        "lm_head": {"kernel": jnp.ones((2, 3))},
    }
    decayed = {p for p, law in transfer.scale_vector_decay(params).items() if law.weight_decay}
    assert decayed == {
        "blocks/0/attention_norm/scale",
        "final_norm/scale",
        "up/kernel",
        "lm_head/kernel",
    }
    ruled = transfer.scale_vector_labels(params, rules=[("final_norm", "output_gain")])
    assert ruled["final_norm/scale"] == "output_gain"
    with pytest.raises(ValueError, match="labels are"):
        transfer.scale_vector_labels(params, rules=[("up", "gain")])


def test_match_init_gives_the_deviations_of_the_table() -> None:
    rng = np.random.default_rng(0)
    # Built so that the root mean square is exact: entries +-s.
    sign = lambda s, *shape: jnp.asarray(s * rng.choice([-1.0, 1.0], shape), jnp.float32)  # noqa: E731
    base = {"in": sign(0.5, 3, 4), "up": sign(0.5, 4, 4), "out": sign(0.5, 4, 2), "b": sign(1.0, 4)}
    wide = {
        "in": sign(0.5, 3, 16),
        "up": sign(0.25, 16, 16),
        "out": sign(0.25, 16, 2),
        "b": sign(3.0, 16),
    }
    laws = transfer.mup(base, wide)
    got = transfer.match_init(wide, base, laws)
    sizes = {path: float(jnp.sqrt(jnp.mean(x**2))) for path, x in got.items()}
    assert sizes == pytest.approx({"in": 0.5, "up": 0.25, "out": 0.125, "b": 3.0})


def test_top_singular_ratios_of_built_matrices() -> None:
    eye = lambda n, s: {"up": s * jnp.eye(n), "b": jnp.ones(n)}  # noqa: E731
    found = transfer.top_singular_ratios({2: eye(2, 2.0), 4: eye(4, 5.0)})
    assert found == {"up": {2: 1.0, 4: 2.5}}
    with pytest.raises(ValueError, match="at least two"):
        transfer.top_singular_ratios({2: eye(2, 2.0)})
    with pytest.raises(ValueError, match="differs from the first in 'down'"):
        transfer.top_singular_ratios({2: eye(2, 1.0), 4: {"down": jnp.eye(4)}})

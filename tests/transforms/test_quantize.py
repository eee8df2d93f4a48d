"""quantize_state: what is stored, that the inner one does not notice, what is refused."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optkit
from optkit.codecs import Codec, Fp8Codec, TableCodec
from optkit.transforms import quantize_state

SHAPES = {"up/kernel": (6, 64), "down/kernel": (32, 12), "norm/scale": (6,)}
SMALL_BLOCK = TableCodec(block=32)


def tree(seed: int, scale: float = 1.0, shapes: dict = SHAPES, dtype: Any = jnp.float32) -> dict:
    rng = np.random.default_rng(seed)
    out: dict = {}
    for path, shape in shapes.items():
        parent, name = path.split("/")
        out.setdefault(parent, {})[name] = jnp.asarray(rng.standard_normal(shape) * scale, dtype)
    return out


@functools.partial(jax.jit, static_argnums=0)
def step(tx: Any, grads: Any, state: Any, params: Any) -> tuple:
    updates, state = tx.update(grads, state, params)
    return updates, state, optax.apply_updates(params, updates)


def run(tx: Any, steps: int = 3) -> tuple[Any, Any]:
    params = tree(0)
    state = tx.init(params)
    for time in range(steps):
        _, state, params = step(tx, tree(1 + time, 0.1), state, params)
    return params, state


INNERS = {
    "optax adamw": optax.adamw(1e-2),
    "optkit adamw": optkit.adamw(1e-2),
    "lion": optkit.lion(1e-2),
    "muon": optkit.muon(1e-2),
    "coupled": optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.scale_by_adam(),
        optax.clip_by_global_norm(0.1),
        optax.scale(-0.1),
    ),
    "noise": optax.chain(optax.trace(0.9), optax.add_noise(0.1, 0.5, 3), optax.scale(-0.1)),
    "injected": optax.inject_hyperparams(optax.adam)(learning_rate=optax.constant_schedule(0.1)),
}


@pytest.mark.sweep
@pytest.mark.parametrize("name", INNERS)
def test_stored_in_full_it_is_the_inner_transformation(name: str) -> None:
    inner = INNERS[name]
    want, wanted = run(inner)
    got, state = run(quantize_state(inner, "float32", min_size=0))
    # The compiler fuses other loops: a rounding in the last bit.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6, rtol=2e-6), got, want)
    stored = [x for x in jax.tree_util.tree_leaves_with_path(state) if "@float32" in str(x[0])]
    assert stored, "nothing went through a codec"
    assert len(jax.tree.leaves(state)) == len(jax.tree.leaves(wanted))


def decoded(codec: Codec, stored: dict, like: dict) -> dict:
    return jax.tree.map(
        lambda x, node: codec.decode(
            {name.split("@")[0]: part for name, part in node.items()}, x.shape
        ),
        like,
        stored,
    )


ADAM = optax.adam(0.1)
STORED_ADAM = quantize_state(ADAM, SMALL_BLOCK, min_size=0)
UNSIGNED = SMALL_BLOCK.for_sign(False)
SEEDS = st.integers(0, 2**16)


@jax.jit
def in_full(grads: dict, state: Any, params: dict) -> tuple:
    """The update of moments that are decoded first, and what storing the new ones makes of them."""
    mu = decoded(SMALL_BLOCK, state.inner[0].mu, params)
    nu = decoded(UNSIGNED, state.inner[0].nu, params)
    full = (state.inner[0]._replace(mu=mu, nu=nu), *state.inner[1:])
    updates, new = ADAM.update(grads, full, params)
    rounded = jax.tree.map(SMALL_BLOCK.round_trip, new[0].mu)
    return updates, rounded, jax.tree.map(UNSIGNED.round_trip, new[0].nu)


read = jax.jit(
    lambda state, like: (
        decoded(SMALL_BLOCK, state.inner[0].mu, like),
        decoded(UNSIGNED, state.inner[0].nu, like),
    )
)


@given(SEEDS, st.sampled_from([1e-3, 0.1, 10.0]))
def test_updates_use_the_new_moments_before_they_are_rounded(seed: int, scale: float) -> None:
    params = tree(seed)
    state = STORED_ADAM.init(params)
    for time in range(3):
        grads = tree(seed + 1 + time, scale)
        want, *moments = in_full(grads, state, params)
        got, state, _ = step(STORED_ADAM, grads, state, params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), got, want)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
            read(state, params),
            tuple(moments),
        )


TRACE = quantize_state(optax.trace(1.0), SMALL_BLOCK, min_size=0)


@given(SEEDS, st.integers(-20, 20))
def test_what_rests_is_stored_but_once_and_scales_are_stored_apart(
    seed: int, exponent: int
) -> None:
    """A trace without gradients is coded as it was, and 2**n times it in the same codes."""
    grads = tree(seed)
    for leaf in ("up/kernel", "down/kernel", "norm/scale"):
        parent, name = leaf.split("/")
        x = np.array(grads[parent][name])
        flat = x.reshape(-1, 32) if x.size % 32 == 0 else x.reshape(1, -1)
        flat[:, 0] = 1.5 * np.abs(x).max()  # the extreme of each block is positive
        grads[parent][name] = jnp.asarray(flat.reshape(x.shape))
    zeros = jax.tree.map(jnp.zeros_like, grads)
    _, first, _ = step(TRACE, grads, TRACE.init(grads), grads)
    state = first
    for _ in range(3):
        _, state, _ = step(TRACE, zeros, state, grads)
    jax.tree.map(np.testing.assert_array_equal, state.inner, first.inner)
    scaled = jax.tree.map(lambda g: g * 2.0**exponent, grads)
    _, other, _ = step(TRACE, scaled, TRACE.init(grads), grads)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(other.inner), jax.tree.leaves(first.inner), strict=True
    ):
        factor = 2.0**exponent if "scale@" in str(path[-1]) else 1
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b) * factor)


ENTRIES = np.sort(SMALL_BLOCK.entries)
GAP = max(np.max(np.diff(ENTRIES)) / 2, 1 + ENTRIES[0])  # the table has no -1


@given(SEEDS, st.sampled_from([1e-12, 1e-3, 1.0, 1e12]))
def test_a_stored_moment_is_off_by_half_a_gap_of_its_block(seed: int, scale: float) -> None:
    grads = tree(seed, scale)
    updates, state, _ = step(TRACE, grads, TRACE.init(grads), grads)
    jax.tree.map(np.testing.assert_array_equal, updates, grads)
    for g, m in zip(
        jax.tree.leaves(grads),
        jax.tree.leaves(decoded(SMALL_BLOCK, state.inner.trace, grads)),
        strict=True,
    ):
        blocks = (-1, 32) if g.shape[-1] % 32 == 0 or g.size % 32 == 0 else (1, -1)
        g, m = np.float64(g).reshape(blocks), np.float64(m).reshape(blocks)
        largest = np.abs(g).max(axis=1, keepdims=True)
        assert np.all(np.abs(m - g) <= (GAP + 2e-7) * largest)  # and two roundings
        assert np.all(m * g >= 0)


def test_without_jit_it_computes_the_same() -> None:
    tx, params, grads = STORED_ADAM, tree(0), tree(1)
    state = tx.init(params)
    want, held, _ = step(tx, grads, state, params)
    got, new = tx.update(grads, state, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, want)
    assert jax.tree.structure(new) == jax.tree.structure(held)


def test_signs_follow_from_names() -> None:
    state = quantize_state(optax.amsgrad(0.1), min_size=0).init(tree(0))
    for field, sign in (("mu", "signed"), ("nu", "unsigned"), ("nu_max", "unsigned")):
        names = getattr(state.inner[0], field)["up"]["kernel"]
        assert [*names] == [f"codes@dynamic8_{sign}_256_auto", f"scale@dynamic8_{sign}_256_auto"]


def test_small_leaves_and_kept_ones_stay() -> None:
    params = {"a": jnp.ones((64, 64)), "b": jnp.ones((63, 65)), "c": jnp.ones((64, 65))}
    tx = quantize_state(optax.sgd(0.1, momentum=0.9), keep="c")
    rows = {row.path: row.state_bytes for row in optkit.plan(tx, params).rows}
    assert rows == {"a": 4096 + 4 * 16, "b": 4 * 63 * 65, "c": 4 * 64 * 65}


def odd(name: str) -> optax.GradientTransformation:
    """A transformation whose state has a field of any name, with negative entries."""
    return optax.GradientTransformation(
        lambda params: {name: jax.tree.map(lambda p: -jnp.ones_like(p), params)},
        lambda updates, state, params=None: (updates, state),
    )


def test_a_moment_of_an_unknown_name_needs_a_rule() -> None:
    params = tree(0)
    with pytest.raises(ValueError, match=r"state 'wisdom' of leaf .*rules=\[\('wisdom', \"signed"):
        quantize_state(odd("wisdom"), min_size=0).init(params)
    assert quantize_state(odd("wisdom")).init(params)  # small leaves need none
    for kind, codec in (("signed", "_signed_"), ("unsigned", "_unsigned_"), ("keep", None)):
        tx = quantize_state(odd("wisdom"), rules=[("wis*", kind)], min_size=0)
        held = tx.init(params).inner["wisdom"]["up"]["kernel"]
        assert (codec is None) == isinstance(held, jax.Array)
        assert codec is None or codec in next(iter(held))
    nested = quantize_state(odd("mu"), rules=[("*/mu", "keep")], min_size=0)
    with pytest.raises(ValueError, match=r"'\*/mu' names no state"):  # no slash in "mu"
        nested.init(params)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"codec": "int3"}, ValueError, "codec='int3' is none of dynamic8"),
        ({"codec": 8}, TypeError, "must be a name"),
        ({"codec": {"signed": 8}}, TypeError, "must be a codec of optkit.codecs"),
        (
            {"codec": {"unsigned": TableCodec()}},
            ValueError,
            r"dynamic8_signed_256_auto is for the other sign.*give codec.for_sign\(False\)",
        ),
        ({"codec": {"signed": TableCodec(signed=False)}}, ValueError, "cut off negative"),
        ({"rules": [("mu", "positive")]}, ValueError, "a moment is 'signed'"),
        ({"min_size": -1}, ValueError, "min_size=-1"),
    ],
)
def test_wrong_options_are_answered(options: dict, error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        quantize_state(optax.adam(0.1), **options)


def test_a_rule_cannot_take_the_sign_of_a_known_moment() -> None:
    tx = quantize_state(optax.adam(0.1), rules=[("mu", "unsigned")], min_size=0)
    with pytest.raises(ValueError, match="'mu' has both signs"):
        tx.init(tree(0))


def test_codecs_of_both_signs_may_be_given_by_name() -> None:
    tx = quantize_state(optax.adam(0.1), {"signed": "dynamic4", "unsigned": "fp8"}, min_size=0)
    signed, unsigned = TableCodec(bits=4, exponent_bits=3, block=128), Fp8Codec()
    state = jax.eval_shape(tx.init, {"w": jnp.zeros((4, 256))}).inner[0]
    assert {*state.mu["w"]} == {f"codes@{signed.name}", f"scale@{signed.name}"}
    assert all(unsigned.name in name for name in state.nu["w"])


def test_a_codec_for_one_sign_refuses_moments_of_the_other() -> None:
    tx = quantize_state(optax.adam(0.1), {"signed": TableCodec()}, min_size=0)
    with pytest.raises(ValueError, match=r"'.*nu' of leaf .* is unsigned, .*'nu', 'keep'"):
        tx.init(tree(0))


# ---- checkpoints


def test_a_checkpoint_of_one_codec_is_not_read_as_another(tmp_path: Any) -> None:
    params = tree(0)
    ours, other = (quantize_state(optax.adam(0.1), c, min_size=0) for c in ("dynamic8", "fp8"))
    _, state, _ = step(ours, tree(1), ours.init(params), params)
    with pytest.raises(ValueError, match=r"was stored by codec 'dynamic8_signed_256_auto'.*e4m3fn"):
        other.update(tree(1), state, params)
    with pytest.raises(ValueError, match=r"(?s)codes@e4m3fn_256_auto: missing.*build the optim"):
        optkit.restore_state(other.init(params), optkit.export_state(state))
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "one", state)
        checkpointer.wait_until_finished()
        with pytest.raises(ValueError):  # orbax's own words
            checkpointer.restore(tmp_path / "one", other.init(params))
        restored = checkpointer.restore(tmp_path / "one", ours.init(params))
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    again = optkit.restore_state(ours.init(params), optkit.export_state(state))
    jax.tree.map(np.testing.assert_array_equal, again, state)


def test_gradients_of_another_tree_are_reported() -> None:
    tx = quantize_state(optax.adam(0.1), min_size=0)
    state = tx.init(tree(0))
    with pytest.raises(ValueError, match=r"mu/down/kernel.* belongs to no leaf of the updates"):
        tx.update({"norm": tree(0)["norm"]}, state)


# ---- wherever it runs


@pytest.mark.parametrize("codec", ["dynamic8", "dynamic4", "fp8", "bf16"])
def test_scan_and_vmap(codec: str) -> None:
    tx, params = quantize_state(optax.adam(0.1), codec, min_size=0), tree(0)
    target = jax.tree.map(lambda p: 0 * p, params)

    def train(scale: jax.Array) -> jax.Array:
        start = jax.tree.map(lambda p: p * scale, params)

        def body(carry: tuple, _: None) -> tuple:
            p, s = carry
            u, s = tx.update(jax.tree.map(jnp.subtract, p, target), s, p)
            return (optax.apply_updates(p, u), s), None

        (p, _), _ = jax.lax.scan(body, (start, tx.init(start)), length=30)
        return optax.tree.norm(p) / optax.tree.norm(start)

    left = jax.jit(jax.vmap(train))(jnp.array([1.0, 0.5]))
    assert (left < (0.6 if codec == "dynamic4" else 0.25)).all()  # no 0 among its second moments


def test_16_bit_parameters_keep_float32_arithmetic_and_their_dtype() -> None:
    params, grads = tree(0, dtype=jnp.bfloat16), tree(1, dtype=jnp.bfloat16)
    for inner in (optkit.adamw(0.1), optax.adamw(0.1)):
        tx = quantize_state(inner, min_size=0)
        updates, state, _ = step(tx, grads, tx.init(params), params)
        alone, _ = inner.update(grads, inner.init(params), params)
        assert jax.tree.map(lambda u: u.dtype, updates) == jax.tree.map(lambda u: u.dtype, alone)
        _, again, _ = step(tx, grads, state, params)
        for new, old in zip(*map(jax.tree.leaves, (again, state)), strict=True):
            assert new.dtype == old.dtype


def test_a_gradient_that_is_no_number_shows() -> None:
    tx, params = quantize_state(optax.adam(0.1), SMALL_BLOCK, min_size=0), tree(0)
    grads = tree(1)
    grads["up"]["kernel"] = grads["up"]["kernel"].at[2, 40].set(jnp.nan)
    _, state, _ = step(tx, grads, tx.init(params), params)
    updates, _, _ = step(tx, tree(2), state, params)
    bad = ~np.isfinite(updates["up"]["kernel"])
    want = np.zeros((6, 64), bool)
    want[2, 32:] = True  # its block
    np.testing.assert_array_equal(bad, want)


def test_random_rounding_has_its_key_in_the_state() -> None:
    codec = TableCodec(block=32, rounding="stochastic")
    params, grads = tree(0), tree(1)
    states = []
    for key in (0, 0, 1):
        tx = quantize_state(optax.trace(0.9), codec, min_size=0, key=key)
        states.append(step(tx, grads, tx.init(params), params)[1])
    codes = [s.inner.trace["up"]["kernel"]["codes@dynamic8_signed_32_auto"] for s in states]
    np.testing.assert_array_equal(codes[0], codes[1])
    assert (codes[0] != codes[2]).any()
    assert int(states[0].count) == 1
    # By chance alone two leaves of one shape must not be rounded alike.
    pair = {"a": params["up"]["kernel"], "b": params["up"]["kernel"]}
    tx = quantize_state(optax.trace(0.9), codec, min_size=0)
    _, state, _ = step(tx, pair, tx.init(pair), pair)
    a, b = (state.inner.trace[k]["codes@dynamic8_signed_32_auto"] for k in "ab")
    assert (a != b).any()
    assert quantize_state(optax.trace(0.9), min_size=0).init(params).key is None


@pytest.mark.parametrize("make", [lambda: optax.adam(1e-3), lambda: optkit.muon(1e-3)])
def test_nnx_optimizers_hold_stored_states(make):
    from flax import nnx

    model = nnx.Linear(64, 64, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optkit.quantize_state(make()), wrt=nnx.Param)
    grads = nnx.grad(lambda model: jnp.sum(jnp.square(model(jnp.ones((1, 64))))))(model)
    before = np.array(model.kernel[...])
    for _ in range(2):
        optimizer.update(model, grads)
    assert np.any(before != model.kernel[...])


def test_a_state_of_the_bare_optimizer_is_refused():
    params = {"w": jnp.ones((64, 64))}
    with pytest.raises(ValueError, match=r"not that of quantize_state: give what tx\.init"):
        optkit.quantize_state(optax.adam(1e-3)).update(params, optax.adam(1e-3).init(params))


def test_what_names_nothing_is_refused():
    params = {"w": jnp.ones((64, 64))}
    with pytest.raises(ValueError, match=r"'nuu' names no state.*'mu', 'nu'"):
        optkit.quantize_state(optax.adam(1e-3), rules=[("nuu", "keep")]).init(params)
    with pytest.raises(ValueError, match="keep='embeding' names no leaf"):
        optkit.quantize_state(optax.adam(1e-3), keep="embeding").init(params)
    with pytest.raises(ValueError, match="must be a list of pairs"):
        optkit.quantize_state(optax.adam(1e-3), rules=("nu", "keep"))

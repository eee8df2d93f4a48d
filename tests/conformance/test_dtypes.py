"""Updates keep their dtype; statistics are float32 unless asked otherwise."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from optkit.tree import match_state
from tests.conformance.methods import COMPENSATED, Method
from tests.conformance.trees import PAIR, assert_finite

F32, BF16, F16 = jnp.float32, jnp.bfloat16, jnp.float16
PAIRS = [(F32, F32), (BF16, BF16), (F16, F16), (F32, BF16), (BF16, F32), (F32, F16)]
PART = {"embed/embedding": (5, 4), "up/kernel": (4, 6), "up/bias": (6,)}


def _float_dtypes(tree: Any) -> set:
    return {x.dtype for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)}


def _statistics(state: Any, params: Any) -> set:
    """Dtypes of the floating state that belongs to a parameter."""
    return _float_dtypes([m.leaf for m in match_state(state, params) if m.param is not None])


def _accumulators(state: Any, params: Any) -> set:
    """Those of one number a parameter; numbers of rows or matrices cost next to nothing and may
    stay in float32, where slow averages do not stall."""
    matches = [m for m in match_state(state, params) if m.param is not None]
    return _float_dtypes([m.leaf for m in matches if m.leaf.shape == m.param.shape])


def _traced(tx: Any, method: Method, pairs: Sequence[tuple] = PAIRS) -> tuple:
    """(params, grads, state, updates, state after) of a tree with a part for each pair."""
    part = method.params(PART)
    params, grads = (
        {
            str(number): jax.tree.map(
                lambda x, dtype=dtypes[of]: jax.ShapeDtypeStruct(x.shape, dtype), part
            )
            for number, dtypes in enumerate(pairs)
        }
        for of in (0, 1)
    )
    state = jax.eval_shape(tx.init, params)
    return params, grads, state, *jax.eval_shape(tx.update, grads, state, params)


@pytest.mark.sweep
def test_updates_keep_their_dtype(method: Method) -> None:
    params, grads, state, updates, after = _traced(method.tx, method)
    for u, p, g in zip(*map(jax.tree.leaves, (updates, params, grads)), strict=True):
        assert u.dtype == (F32 if method.is_float32 and p.dtype != F32 else g.dtype)
    assert [x.dtype for x in jax.tree.leaves(state)] == [x.dtype for x in jax.tree.leaves(after)]
    own = {p.dtype for p in jax.tree.leaves(params)} if method.entry.name in COMPENSATED else set()
    assert _statistics(state, params) <= {jnp.dtype(F32), *own}
    assert _statistics(after, params) <= {jnp.dtype(F32), *own}


@pytest.mark.sweep
def test_state_dtype_is_honoured(method: Method) -> None:
    names = {"state_dtype", "dtype"} if method.entry.kind == "wrapper" else {"state_dtype"}
    asked = names & set(method.hyperparameters)
    if not asked:
        assert not any("dtype" in name for name in method.hyperparameters if name != "dtype")
        return
    if method.entry.kind == "wrapper":
        tx, base = method.build(**dict.fromkeys(asked, BF16)), {jnp.dtype(F32)}
    else:
        tx, base = method.build(**dict.fromkeys(asked, BF16)), set()
    params, _, state, _, after = _traced(tx, method, [(F32, F32), (BF16, BF16)])
    # Moments of an adapter may have the shape of the matrix that it adapts.
    # And all that MKOR keeps by itself are factors.
    by_shape = not (method.takes_adapters or method.entry.name == "mkor")
    found = _accumulators if by_shape else _statistics
    assert found(state, params) == found(after, params) == {jnp.dtype(BF16)} | base
    assert _statistics(state, params) <= {jnp.dtype(BF16), jnp.dtype(F32)}


@pytest.mark.sweep
@pytest.mark.parametrize("dtype", [BF16, F16], ids=lambda x: jnp.dtype(x).name)
def test_two_steps_in_16_bits_are_finite(method: Method, dtype: Any) -> None:
    params = method.params(PAIR, dtype=dtype)
    state = method.tx.init(params)
    for time in range(2):
        grads = method.grads(time, PAIR, dtype=dtype)
        updates, state = method.update(method.tx, grads, state, params)
        assert_finite(updates)
    assert_finite([x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)])


@pytest.mark.sweep
@pytest.mark.parametrize("dtype", [BF16, F16], ids=lambda x: jnp.dtype(x).name)
def test_16_bit_gradients_cost_their_own_rounding_only(method: Method, dtype: Any) -> None:
    """The same numbers in float32 give the same updates up to the last rounding."""
    params, grads = method.params(), method.grads(0, dtype=dtype)
    low, _ = method.update(method.tx, grads, method.tx.init(params), params)
    full = jax.tree.map(lambda g: g.astype(F32), grads)
    high, _ = method.update(method.tx, full, method.tx.init(params), params)
    for a, b in zip(jax.tree.leaves(low), jax.tree.leaves(high), strict=True):
        error = jnp.abs(a.astype(F32) - b)
        unit = jnp.finfo(dtype)
        assert jnp.all(error <= float(unit.eps) * jnp.abs(b) + float(unit.tiny))

"""The dtype policy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optkit.tree import accumulator_dtype, compute_dtype, upcast, zeros_like_params

LOW = [jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn, jnp.float8_e5m2]


@pytest.mark.parametrize("dtype", [*LOW, jnp.float32])
def test_small_floats_are_computed_and_kept_in_float32(dtype):
    x = jnp.ones(2, dtype)
    assert compute_dtype(x) == compute_dtype(dtype) == accumulator_dtype(x) == jnp.float32
    assert compute_dtype(x, jnp.ones(1, jnp.bfloat16)) == jnp.float32
    assert upcast(x).dtype == jnp.float32 and upcast(x).tolist() == [1.0, 1.0]
    assert zeros_like_params({"w": x})["w"].dtype == jnp.float32
    assert zeros_like_params({"w": x}, jnp.bfloat16)["w"].dtype == jnp.bfloat16


def test_float64_is_never_narrowed():
    with jax.enable_x64(True):
        assert compute_dtype(np.float64) == np.float64
        assert compute_dtype(jnp.float8_e5m2, np.dtype("float64")) == np.float64
        assert upcast(jnp.ones(1, jnp.float64)).dtype == np.float64


def test_state_of_two_leaves_or_calls_never_shares_a_buffer():
    params = {"a": jnp.zeros(3), "b": jnp.zeros(3)}
    trees = [zeros_like_params(params) for _ in range(2)]
    pointers = [x.unsafe_buffer_pointer() for tree in trees for x in tree.values()]
    pointers += [x.unsafe_buffer_pointer() for x in params.values()]
    assert len(set(pointers)) == len(pointers)

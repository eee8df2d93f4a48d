"""Each rule of the interpreter, whichever axes the factors have, beside the parameter in full."""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optkit.evolution import MaterializedWarning, Perturbed, apply_perturbed, discover_axes

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.standard_normal((3, 4)), jnp.float32)
IMAGE = jnp.asarray(RNG.standard_normal((2, 6, 5, 3)), jnp.float32)
IDS = jnp.array([[0, 2], [1, 9]])
NHWC = ("NHWC", "HWIO", "NHWC")
Sides = tuple[tuple[int, ...], tuple[int, ...]]


def perturbed(shape: tuple[int, ...], left: tuple[int, ...], right: tuple[int, ...]) -> Perturbed:
    rng = np.random.default_rng(1)

    def draw(without: tuple[int, ...], *more: int) -> Any:
        sizes = [size for axis, size in enumerate(shape) if axis not in without]
        return jnp.asarray(rng.standard_normal([*sizes, *more]), jnp.float32)

    return Perturbed(draw(()), draw(right, 2), draw(left, 2), jnp.float32(0.3), left, right)


def conv(x: Any, w: Any, **options: Any) -> Any:
    return jax.lax.conv_general_dilated(
        x, w, **{"window_strides": (1, 1), "padding": "SAME", **options}
    )


def walk(x: Any, w: Any) -> Any:
    """Layers of a stack in a loop that counts."""
    return jax.lax.fori_loop(0, 3, lambda i, c: jnp.tanh(c @ w[i]), x)


def until(x: Any, w: Any) -> Any:
    """A loop that hands the matrix on, and looks at it to stop."""
    more = lambda c: jnp.sum(c[0] @ c[1]) + c[2] < 40  # noqa: E731
    return jax.lax.while_loop(more, lambda c: (c[0] @ c[1] * 0.1, c[1], c[2] + 9.0), (x, w, 0.0))[0]


def branch(x: Any, w: Any) -> Any:
    """A branch that returns the matrix as it is, beside one of its products."""
    y, same = jax.lax.cond(x[0, 0] > 0, lambda: (x @ w, w), lambda: (x @ w.T, w))
    return y @ same


@jax.custom_vjp
def own_rule(x: Any, w: Any) -> Any:
    return x @ w


own_rule.defvjp(lambda x, w: (x @ w, (x, w)), lambda res, g: (g @ res[1].T, res[0].T @ g))

# What is done with a parameter, its shape, and the sides that the function asks for.
RULES: dict[str, tuple[Callable[[Any], Any], tuple[int, ...], Sides]] = {
    "both ways": (lambda w: jnp.tanh(X @ w) @ w.T, (4, 5), ((1,), (0,))),
    "on the left": (lambda w: w @ X.T, (5, 4), ((0,), (1,))),
    "stack of experts": (
        lambda w: jnp.einsum("ebi,eio->ebo", jnp.stack([X, X]), w),
        (2, 4, 5),
        ((2,), (1,)),
    ),
    "experts of the same": (lambda w: jnp.einsum("bi,eio->beo", X, w), (2, 4, 5), ((2,), (1,))),
    "experts summed": (lambda w: jnp.einsum("bi,eio->bo", X, w), (2, 4, 5), ((2,), (1,))),
    "heads": (lambda w: jnp.einsum("bi,ihk->bhk", X, w), (4, 2, 3), ((1, 2), (0,))),
    "heads summed": (
        lambda w: jnp.einsum("bhk,hko->bo", X.reshape(3, 2, 2), w),
        (2, 2, 5),
        ((2,), (0, 1)),
    ),
    "rows of a table": (lambda w: w[IDS % 6] @ X.T, (6, 4), ((1,), (0,))),
    "rows, some out of bounds": (
        lambda w: jnp.take(w, IDS, axis=0, mode="fill", fill_value=5.0),
        (6, 4),
        ((1,), (0,)),
    ),
    "a table for each": (
        lambda w: w[jnp.array([0, 1, 1]), jnp.array([2, 0, 3])],
        (2, 4, 5),
        ((2,), (0, 1)),
    ),
    "experts by choice": (
        lambda w: jnp.einsum("bi,bio->bo", X, w[jnp.array([0, 1, 1])]),
        (2, 4, 5),
        ((2,), (1,)),
    ),
    "scanned": (
        lambda w: jax.lax.scan(lambda c, w: (c @ w, c.sum()), X, w),
        (2, 4, 4),
        ((2,), (1,)),
    ),
    "counted": (lambda w: walk(X, w), (3, 4, 4), ((2,), (1,))),
    "until": (lambda w: until(X, w), (4, 4), ((1,), (0,))),
    "branch": (lambda w: branch(X, w), (4, 4), ((1,), (0,))),
    "scaled": (lambda w: X @ (2 * -w / X[0, 0]), (4, 4), ((1,), (0,))),
    "cut and turned": (
        lambda w: X @ jnp.split(w, 2, axis=1)[1].reshape(4, 1, 2)[:, 0, ::-1],
        (4, 4),
        ((1,), (0,)),
    ),
    "split into heads": (
        lambda w: jnp.einsum("bi,ihk->bhk", X, w.reshape(4, 2, 3)),
        (4, 6),
        ((1,), (0,)),
    ),
    "padded": (
        lambda w: X @ jnp.pad(w, ((0, 0), (1, 2)), constant_values=3.0),
        (4, 2),
        ((1,), (0,)),
    ),
    "broadcast": (
        lambda w: jnp.einsum("nbi,nio->nbo", IMAGE[0, :, :, :], jnp.broadcast_to(w, (6, 3, 4))),
        (3, 4),
        ((1,), (0,)),
    ),
    "barred": (lambda w: X @ jax.lax.optimization_barrier((w, X))[0], (4, 2), ((1,), (0,))),
    "rule of its own": (lambda w: own_rule(X, w), (4, 2), ((1,), (0,))),
    "remat": (lambda w: jax.checkpoint(lambda w: jnp.sin(X @ w))(w), (4, 2), ((1,), (0,))),
    "strided conv": (
        lambda w: conv(IMAGE, w, window_strides=(2, 1), dimension_numbers=NHWC),
        (3, 3, 3, 5),
        ((3,), (0, 1, 2)),
    ),
    "dilated conv": (
        lambda w: conv(IMAGE.transpose(0, 3, 1, 2), w, padding="VALID", rhs_dilation=(1, 2)),
        (5, 3, 3, 2),
        ((0,), (1, 2, 3)),
    ),
}  # fmt: skip


@pytest.mark.sweep
@pytest.mark.parametrize("name", RULES)
def test_equals_the_parameter_in_full(name: str) -> None:
    fn, shape, (left, right) = RULES[name]
    sides = [(left, right), (right, left)]
    if "conv" not in name:
        sides.append(((), ()))  # no axis of its own for either: all that a product needs
        sides.append((tuple(sorted((*left, *right)))[:1], ()))
    ws = [perturbed(shape, *side) for side in sides]
    with warnings.catch_warnings():
        warnings.simplefilter("error", MaterializedWarning)
        both = jax.jit(lambda ws: [(fn(w.materialize()), apply_perturbed(fn, w)) for w in ws])(ws)
    for want, got in both:
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.nanmax(np.abs(b)))


@pytest.mark.parametrize("name", RULES)
def test_sides_are_found(name: str) -> None:
    fn, shape, (left, right) = RULES[name]
    found = discover_axes(fn, jax.ShapeDtypeStruct(shape, jnp.float32))
    ((found_left, found_right),) = found.values()
    assert {found_left, found_right} == {left, right}


@pytest.mark.parametrize(
    ("name", "fn"),
    [
        ("reduce_max", lambda w: X @ w / jnp.max(w)),
        ("conv_general_dilated", lambda w: conv(
            IMAGE[..., :2], w.reshape(2, 2, 1, 4), feature_group_count=2, dimension_numbers=NHWC
        )),
        ("dot_general", lambda w: X @ (w @ w)),
        ("output", lambda w: w),
        ("scan", lambda w: jax.lax.scan(lambda c, _: (c * 0.5 + w, None), w, None, length=2)[0]),
    ],
)  # fmt: skip
def test_what_no_rule_carries_is_made_in_full_and_told(name: str, fn: Any) -> None:
    w = perturbed((4, 4), (1,), (0,))
    with pytest.warns(MaterializedWarning, match=f"'' by {name}"):
        got = apply_perturbed(fn, w)
    np.testing.assert_allclose(got, fn(w.materialize()), rtol=1e-5, atol=1e-5)


def test_a_gain_that_differs_by_member_leaves_the_shared_matrix_alone() -> None:
    w = perturbed((4, 4), (1,), (0,))
    many = jax.make_jaxpr(jax.vmap(lambda gain: apply_perturbed(lambda w: X @ (w * gain), w)))(X[0])
    assert (4, 4, 4) not in [v.aval.shape for eqn in many.eqns for v in eqn.outvars]

"""Sharded over 8 devices: same numbers, states that stay sharded, few collectives."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optkit
from tests.conformance.methods import RATE, Method
from tests.conformance.methods import method as method_named
from tests.conformance.trees import assert_close, copy, filled, nested

AXES = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
# Row-, column- and stack-sharded leaves and a replicated vector.
LEAVES = {
    "rows/kernel": ((8, 3), P("x", None)),
    "more/kernel": ((8, 3), P("x", None)),
    "columns/kernel": ((3, 8), P(None, "x")),
    "layers/kernel": ((8, 2, 3), P("x", None, None)),
    "rows/bias": ((8,), P("x")),
    "norm/scale": ((3,), P()),
}
# Large enough that a state of 1 KiB is no small statistic.
LARGE = {
    "up/kernel": ((64, 128), P("x", None)),
    "down/kernel": ((128, 64), P("x", None)),
    "columns/kernel": ((64, 128), P(None, "x")),
    "layers/kernel": ((8, 64, 32), P("x", None, None)),
    "up/bias": ((1024,), P("x")),
    "norm/scale": ((64,), P()),
}
LEAVES_4X2 = {
    "both/kernel": ((8, 4), P("x", "y")),
    "rows/kernel": ((8, 4), P(("x", "y"), None)),
    "layers/kernel": ((4, 2, 4), P("x", None, "y")),
    "up/bias": ((8,), P(("x", "y"))),
}
LEAVES_2X2X2 = {
    "all/kernel": ((4, 8), P("x", ("y", "z"))),
    "rows/kernel": ((8, 4), P(("z", "x"), "y")),
    "layers/kernel": ((2, 4, 6), P("y", "x", "z")),
    "odd/kernel": ((10, 5), P("y", None)),
    "uneven/kernel": ((7, 3), P()),
    "up/bias": ((8,), P(("x", "z"))),
}


@functools.cache
def mesh_of(kind: str, shape: tuple[int, ...] = (8,)) -> jax.sharding.Mesh:
    names = ("x", "y", "z")[: len(shape)]
    return jax.make_mesh(shape, names, axis_types=(AXES[kind],) * len(shape))


def place(tree: Any, specs: dict[str, P], mesh: jax.sharding.Mesh) -> Any:
    return optkit.tree.map_with_path(
        lambda path, x: jax.device_put(x, NamedSharding(mesh, specs[path])), tree
    )


def well_conditioned(x: jax.Array) -> jax.Array:
    """Singular values from 1 to 1/2: polynomials multiply a rounding of small ones."""
    if x.ndim < 2:
        return x
    u, values, v = np.linalg.svd(np.float64(x), full_matrices=False)
    return jnp.float32((u * np.linspace(1.0, 0.5, values.shape[-1])) @ v)


class Sharded:
    """Compiled step of a method on placed leaves."""

    def __init__(
        self,
        method: Method,
        leaves: dict,
        kind: str,
        shape: tuple[int, ...] = (8,),
        *,
        pinned: bool = False,
    ) -> None:
        given = method.shapes({path: size for path, (size, _) in leaves.items()})
        self.method, self.tx, self.mesh = method, method.tx, mesh_of(kind, shape)
        self.specs = {path: spec for path, (_, spec) in leaves.items()}
        first = jax.tree.map(well_conditioned, filled(given, 1))
        second = jax.tree.map(lambda x, y: x + 0.1 * y, first, filled(given, 2))
        self.plain = [filled(given, 0), first, second]
        self.placed = [place(tree, self.specs, self.mesh) for tree in self.plain]
        # Auto: the compiler would else choose how updates leave, and the state unless it is pinned.
        after = optkit.state_sharding(self.tx, self.placed[0]) if pinned else None
        out = None if kind == "explicit" else (self._shardings(self.placed[0]), after)
        self.step = jax.jit(self.tx.update, out_shardings=out)

    @staticmethod
    def _shardings(tree: Any) -> Any:
        return jax.tree.map(lambda x: x.sharding, tree)

    @functools.cached_property
    def traced(self) -> tuple:
        """Types of the fresh state, and of the updates and the state after a step."""
        with jax.set_mesh(self.mesh):
            state = jax.eval_shape(self.tx.init, self.placed[0])
            after = jax.eval_shape(self.tx.update, self.placed[1], state, self.placed[0])
        return state, *after

    @functools.cached_property
    def state(self) -> Any:
        with jax.set_mesh(self.mesh):
            return self.tx.init(self.placed[0])

    @functools.cached_property
    def compiled(self) -> Any:
        with jax.set_mesh(self.mesh):
            return self.step.lower(self.placed[1], self.state, self.placed[0]).compile()

    def run(self) -> tuple[list, list]:
        """Updates and states of two steps."""
        updates, states = [], [self.state]
        with jax.set_mesh(self.mesh):
            for grads in self.placed[1:]:
                out, state = self.compiled(grads, states[-1], self.placed[0])
                updates.append(out)
                states.append(state)
        return updates, states

    def unsharded(self) -> list:
        updates, state = [], self.tx.init(self.plain[0])
        for grads in self.plain[1:]:
            out, state = self.method.update(self.tx, grads, state, self.plain[0])
            updates.append(out)
        return updates


@functools.lru_cache(maxsize=2)
def sharded(name: str, kind: str) -> Sharded:
    return Sharded(method_named(name), LEAVES, kind)


def check_equal(case: Sharded) -> None:
    check_close(case, case.run()[0], case.unsharded())


def check_close(case: Sharded, updates: list, wanted: list) -> None:
    """Compares updates of several devices with those of one."""
    # An arc's update is a difference of weights, and has their rounding: it is RATE of them.
    units = 64.0 / RATE if case.method.is_on_spheres else 64.0
    for got, want in zip(updates, wanted, strict=True):
        # A sum over 8 devices adds in another order.
        assert_close(copy(jax.device_get(got)), jax.device_get(want), units=units)


def _check_placed(case: Sharded, states: list) -> None:
    wanted = optkit.state_sharding(states[0], case.placed[0])
    for state in states:
        jax.tree.map(_assert_placed, state, wanted)


def check_stable(case: Sharded) -> None:
    _check_placed(case, case.run()[1])


def _assert_placed(x: jax.Array, want: NamedSharding) -> None:
    if x.ndim and x.size > 1:
        concrete = NamedSharding(want.mesh, x.sharding.spec)  # what was traced has no devices
        assert concrete.is_equivalent_to(want, x.ndim), (x.sharding, want)


@pytest.mark.sweep
def test_sharded_equals_unsharded(method: Method) -> None:
    check_equal(sharded(method.entry.name, "auto"))


@pytest.mark.sweep
def test_state_stays_sharded_like_its_parameters(method: Method) -> None:
    check_stable(sharded(method.entry.name, "auto"))


def _is_whole(match: optkit.tree.StateLeaf, method: Method) -> bool:
    """Whether a state leaf may lie on all devices: small, of a projection, or one worker's."""
    small = match.param_path is None or optkit.tree.leaf_bytes(match.leaf) <= 1024
    of_worker = "axis_name" in method.hyperparameters and "error" in match.owner.split("/")
    return small or match.is_basis or match.is_projected or of_worker


def test_no_large_state_lies_on_all_devices_unless_declared(method: Method) -> None:
    specs = {path: spec for path, (_, spec) in LARGE.items()}
    leaves = {path: size for path, (size, _) in LARGE.items()}
    if method.takes_adapters:
        del leaves["columns/kernel"]  # it would be a second B
    shapes = nested(
        {p: jax.ShapeDtypeStruct(s, jnp.float32) for p, s in method.shapes(leaves).items()}
    )
    placed = optkit.tree.map_with_path(lambda path, _: specs[path], shapes)
    state = jax.eval_shape(method.tx.init, shapes)
    wanted = optkit.state_sharding(method.tx, shapes, placed, mesh=mesh_of("auto"))
    assert jax.tree.structure(wanted) == jax.tree.structure(state)
    whole = [
        (match.owner, match.param_path)
        for match, place in zip(
            optkit.tree.match_state(state, shapes), jax.tree.leaves(wanted), strict=True
        )
        if place.is_fully_replicated
        and match.param_path != "norm/scale"
        and not _is_whole(match, method)
    ]
    assert not whole or method.entry.replicated, whole
    # Of rank 1, the example of a part, all is small.
    assert whole or not method.entry.replicated or method.entry.kind == "part"


@pytest.mark.sweep
def test_types_of_an_explicit_mesh_are_kept(method: Method) -> None:
    case = sharded(method.entry.name, "explicit")
    state, updates, after = case.traced
    _check_placed(case, [state, after])
    jax.tree.map(_assert_placed, updates, case._shardings(case.placed[0]))


@pytest.mark.sweep
@pytest.mark.slow
def test_an_explicit_mesh_runs(method: Method) -> None:
    case = sharded(method.entry.name, "explicit")
    check_equal(case)
    check_stable(case)

"""Inside shard_map: what jit computes, or an error; never the answer for a device's own part."""

import functools
from typing import Any

import jax
import pytest

import optkit
from tests.conformance.hlo import collectives
from tests.conformance.methods import Method, one_of_each
from tests.conformance.methods import method as method_named
from tests.conformance.test_sharding import LEAVES, mesh_of, sharded, well_conditioned
from tests.conformance.trees import assert_close, copy, filled, nested

# One norm of all leaves, sums of rows and columns, whole matrices, entries alone.
QUICK = ("adafactor", "clip_by_global_norm", "lion", "muon")


class Mapped:
    """A method's arguments as whole arrays, and the partitions of their parts."""

    def __init__(self, method: Method) -> None:
        shapes = method.shapes({path: size for path, (size, _) in LEAVES.items()})
        self.method, self.mesh = method, mesh_of("auto")
        self.specs = nested({path: LEAVES[path][1] for path in shapes})
        self.params = filled(shapes, 0)
        self.grads = jax.tree.map(well_conditioned, filled(shapes, 1))
        self.state = method.tx.init(self.params)
        places = optkit.state_sharding(method.tx, self.params, self.specs, mesh=self.mesh)
        self.of_state = jax.tree.map(lambda place: place.spec, places)
        self.args = (self.grads, self.state, self.params)

    def over(self, tx: Any, check_vma: bool = True) -> Any:
        """The update of a transformation on parts."""
        return jax.shard_map(
            tx.update,
            mesh=self.mesh,
            in_specs=(self.specs, self.of_state, self.specs),
            out_specs=(self.specs, self.of_state),
            check_vma=check_vma,
        )

    def refuses(self, check_vma: bool) -> bool:
        """Whether the method says what is wrong, naming itself and the remedy."""
        try:
            jax.eval_shape(self.over(self.method.tx, check_vma), *self.args)
        except (ValueError, TypeError) as error:
            said = str(error)
            assert "axis_name=()" in said or "optkit.inside(tx, specs)" in said, said
            assert "shard_map over" in said
            return True
        return False

    @functools.cached_property
    def whole(self) -> Any:
        return self.method.update(self.method.tx, *self.args)

    def check_inside(self) -> None:
        found = jax.jit(self.over(optkit.inside(self.method.tx, self.specs)))(*self.args)
        assert_close(copy(jax.device_get(found)), jax.device_get(self.whole))

    def check_bare(self) -> None:
        found = jax.jit(self.over(self.method.tx))(*self.args)
        assert_close(copy(jax.device_get(found)), jax.device_get(self.whole))


@functools.lru_cache(maxsize=2)
def mapped(name: str) -> Mapped:
    return Mapped(method_named(name))


@pytest.mark.sweep
def test_what_needs_no_exchange_runs_and_all_else_refuses(method: Method) -> None:
    case = mapped(method.entry.name)
    if case.refuses(check_vma=True):
        return
    compiled = sharded(method.entry.name, "auto").compiled
    assert collectives(compiled, scalars=True) == {}
    if method.entry.name in QUICK:
        case.check_bare()


@pytest.mark.sweep
@pytest.mark.slow
@pytest.mark.parametrize("name", one_of_each())
def test_methods_compute_inside_what_they_do_outside(name: str) -> None:
    case = mapped(name)
    case.check_inside()
    assert case.refuses(check_vma=True) == case.refuses(check_vma=False)
    if not case.refuses(check_vma=True):
        case.check_bare()


@pytest.mark.parametrize("name", QUICK)
def test_parts_give_what_whole_leaves_do(name: str) -> None:
    mapped(name).check_inside()

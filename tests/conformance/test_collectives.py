"""How many exchanges between devices a step compiles to, and that more leaves need no more."""

import math

import pytest
from jax.sharding import PartitionSpec as P

from tests.conformance.exchanges import HISTORIES, MATRICES, NUMBERS, STEP
from tests.conformance.hlo import collectives, sent_bytes
from tests.conformance.methods import MATRIX_RECIPES, Method
from tests.conformance.methods import method as method_named
from tests.conformance.test_sharding import (
    AXES,
    LEAVES,
    LEAVES_2X2X2,
    LEAVES_4X2,
    Sharded,
    check_equal,
    sharded,
)

MATRIX = [
    *MATRIX_RECIPES,
    "lmo",
    "orthogonalize",
    "scale_by_dion",
    "scale_by_norm_ratio",
    "scale_by_row_col",
    "select_submatrix",
]
# For all leaves of one shape, measured: whole matrices move to single devices, and back.
EXCHANGES = {"all-to-all": 2}
# Dion brings back the update and what it takes out of the buffer, and gathers Q; Dion2 and 3 gather
# a number or two of each row: whether it was chosen, and its moment.
MORE = {
    "dion": {"all-to-all": 3, "all-gather": 1},
    "dion2": {"all-to-all": 2, "all-gather": 1},
    "dion3": {"all-to-all": 2, "all-gather": 1},
    "scale_by_dion": {"all-to-all": 3, "all-gather": 1},
    "select_submatrix": {"all-to-all": 2, "all-gather": 1},
}
# And norms of matrices that lie on several devices, a few numbers each: a maximum and a sum. By
# columns of fan_in split over devices: a sum, and the gathering of the columns.
_NORMS = {"rows": {"all-reduce": 2}, "columns": {"all-reduce": 2}}
# The rows' moments, one array.
_ROWS = {"rows": {"all-gather": 1}, "columns": {"all-gather": 1}}
# A maximum, a sum of squares, and the mean of the cosh.
_COSH = {"rows": {"all-reduce": 3}, "columns": {"all-reduce": 3}}
# Sums of channels whose inputs are split over devices, all of them at once.
_CHANNELS = {"leaves": {"all-reduce": 1}}
SUMS = {
    **dict.fromkeys(("adago", "adamuon"), _NORMS),
    "hybrid_auon": _COSH,
    **dict.fromkeys(("normuon", "normuon_dion"), _ROWS),
    **dict.fromkeys(("namo", "scale_by_norm_ratio", "mars_m", "mars_shampoo"), _NORMS),
    # The direction's maximum, its sum with that of the weights, and the sum after the step.
    "hyperp": {"rows": {"all-reduce": 3}, "columns": {"all-reduce": 3}},
    "namo_d": {"rows": {"all-reduce": 1, "all-gather": 1}, "columns": {"all-reduce": 2}},
}


def _many(count: int, size: tuple[int, ...], spec: P) -> dict:
    return {f"layer{i}/kernel": (size, spec) for i in range(count)}


@pytest.mark.sweep
def test_a_step_exchanges_what_it_needs(method: Method) -> None:
    name = method.entry.name
    assert collectives(sharded(name, "auto").compiled) == STEP.get(name, {})


def _counts() -> tuple[int, int]:
    """Bytes of a number for each leaf, row and column, and of all matrices."""
    numbers, entries = len(LEAVES), 0
    for size, _ in LEAVES.values():
        batch = math.prod(size[:-2])
        numbers += batch * sum(size[-2:])
        entries += math.prod(size) if len(size) > 1 else 0
    return 4 * numbers, 4 * entries


@pytest.mark.sweep
def test_a_step_sends_no_more_than_its_class(method: Method) -> None:
    name, compiled = method.entry.name, sharded(method.entry.name, "auto").compiled
    numbers, entries = _counts()
    if "axis_name" in method.hyperparameters:
        return  # made for inside shard_map: tests/distributed counts what workers send
    if name in NUMBERS:
        assert 0 < sent_bytes(compiled, 8) <= numbers
    elif name in MATRICES:
        times = 32 if name in HISTORIES else 4  # of 20 gradients, by default
        assert 0 < sent_bytes(compiled, 8) <= times * entries
    else:
        assert collectives(compiled, scalars=True) == {}


@pytest.mark.sweep
@pytest.mark.slow
@pytest.mark.parametrize("kind", AXES)
@pytest.mark.parametrize("name", MATRIX)
def test_sharded_stacks_exchange_nothing(name: str, kind: str) -> None:
    case = Sharded(method_named(name), _many(2, (8, 2, 3), P("x", None, None)), kind)
    assert collectives(case.compiled) == {}


@pytest.mark.sweep
@pytest.mark.slow
@pytest.mark.parametrize("split", ["rows", "columns"])
@pytest.mark.parametrize("name", MATRIX)
def test_exchanges_do_not_grow_with_the_number_of_leaves(name: str, split: str) -> None:
    kind = "auto" if name != "muon_rms" else "explicit"
    size, spec = ((8, 16), P("x", None)) if split == "rows" else ((16, 8), P(None, "x"))
    counts = [
        collectives(Sharded(method_named(name), _many(count, size, spec), kind).compiled)
        for count in (4, 8)
    ]
    assert counts == [MORE.get(name, EXCHANGES) | SUMS.get(name, {}).get(split, {})] * 2


@pytest.mark.parametrize("kind", AXES)
@pytest.mark.parametrize(
    "name",
    [
        "lion",
        "muon",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("hyperp", "skip_spikes")),
    ],
)
def test_two_mesh_axes_give_the_same_numbers(name: str, kind: str) -> None:
    check_equal(Sharded(method_named(name), LEAVES_4X2, kind, (4, 2)))


def test_columns_that_are_padded_for_all_devices_are_cut_off_again() -> None:
    leaves = {"both/kernel": ((4, 12), P("y", "x"))}  # 12 columns, of which 8 devices hold 2 each
    check_equal(Sharded(method_named("muon"), leaves, "explicit", (4, 2)))


@pytest.mark.parametrize("name", ["adafactor", "muon"])
def test_three_mesh_axes_and_leaves_they_do_not_divide_give_the_same_numbers(name: str) -> None:
    check_equal(Sharded(method_named(name), LEAVES_2X2X2, "auto", (2, 2, 2)))


def test_the_counter_reads_every_form() -> None:
    class Text:
        def as_text(self) -> str:
            return "\n".join(
                (
                    "  %a = (f32[1,2]{1,0}, f32[1,2]{1,0}) all-to-all(%x, %y), replica_groups={}",
                    "  %b = f32[8,2]{1,0} all-gather(%x), dimensions={0}",
                    "  ROOT %c = (f32[], f32[]) all-reduce(%x, %y), to_apply=%add",
                    "  %d = f32[4]{0} all-reduce-start(%x), to_apply=%add",
                    "  %e = f32[4]{0} add(%all-gather.1, %x)",
                )
            )

    assert collectives(Text()) == {"all-to-all": 1, "all-gather": 1, "all-reduce": 1}
    assert collectives(Text(), scalars=True)["all-reduce"] == 2

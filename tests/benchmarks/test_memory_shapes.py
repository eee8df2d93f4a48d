"""State bytes of whole models are those of the methods' formulas, exactly."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import optkit
from benchmarks.memory_shapes import gpt2_small, llama_7b
from optkit.codecs import TopK
from optkit.tree import leaves_with_paths, matrix_views, roles, tree_bytes

MODELS = {"gpt2": gpt2_small(), "llama": llama_7b()}
COUNTS = {"gpt2": (124_439_808, 84_934_656, 48), "llama": (6_738_415_616, 6_476_005_376, 224)}
LAYERS = {"gpt2": ("h", 12), "llama": ("layers", 32)}
LORA_RANK = 16
WORKERS = 8


def shape_of(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def adapted(tree, singular):
    """The same tree with factors beside each kernel, and singular values between them."""
    if not isinstance(tree, dict):
        return tree
    out = {name: adapted(child, singular) for name, child in tree.items()}
    if "kernel" in tree:
        fan_in, fan_out = tree["kernel"].shape
        out |= {"lora_a": shape_of(fan_in, LORA_RANK), "lora_b": shape_of(LORA_RANK, fan_out)}
        out |= {"lora_e": shape_of(LORA_RANK)} if singular else {}
    return out


def part_of(model, tree):
    """What is optimised: a "whole" model, its "layers", or a whole one with adapters in those."""
    layers = LAYERS[model][0]
    if tree == "layers":
        return {layers: MODELS[model][layers]}
    if tree == "whole":
        return MODELS[model]
    return MODELS[model] | {layers: adapted(MODELS[model][layers], tree == "singular")}


class Sizes:
    """Numbers of entries, from shapes and the name of the subtree of layers alone: no ``plan``."""

    def __init__(self, model: str, tree: str = "whole") -> None:
        whole = jax.tree.leaves(MODELS[model] if tree != "layers" else part_of(model, tree))
        hidden = jax.tree.leaves(MODELS[model][LAYERS[model][0]])
        self.matrices = [leaf.shape for leaf in hidden if len(leaf.shape) == 2]
        self.held = sum(map(math.prod, self.matrices))
        self.total = sum(math.prod(leaf.shape) for leaf in whole)
        self.rest = self.total - self.held
        self.leaves = len(whole)
        self.vectors = sum(leaf.shape[0] for leaf in whole if len(leaf.shape) == 1)
        # Of all leaves of two axes, embeddings and head among them.
        self.lines = sum(sum(leaf.shape) for leaf in whole if len(leaf.shape) == 2)
        self.inputs = sum(leaf.shape[0] for leaf in whole if len(leaf.shape) == 2)

    @cached_property
    def sides(self) -> int:
        return sum(map(sum, self.matrices))

    def low(self, rank: int | None = None) -> int:
        return sum((rank or min(s) // 4) * max(s) for s in self.matrices)

    def basis(self, rank: int | None = None) -> int:
        return sum((rank or min(s) // 4) * min(s) for s in self.matrices)

    def galore(self, rank: int | None = None, each: float = 4) -> float:
        return each * (2 * self.low(rank) + self.basis(rank) + 2 * self.rest)


@dataclass(frozen=True, eq=False)
class Case:
    """A method at some options.

    ``want`` counts bytes after the specification. ``published`` are the billions of bytes in its
    table, for GPT-2 small and Llama-7B; "~" before a number that is rounded another way there, and
    ``plus`` what it counts on top of the state.
    """

    name: str
    want: Callable[[Sizes], float] = lambda s: 0
    published: tuple[str | None, str | None] = (None, None)
    options: dict[str, Any] = field(default_factory=dict)
    tree: str = "whole"
    plus: Callable[[Sizes], float] = lambda s: 0
    defaults: bool = True  # the catalogue's bytes are of these options
    build: Callable[[], Any] | None = None
    slow: tuple[str, ...] = ()  # models for which there are many codes to trace

    def make(self) -> Any:
        return self.build() if self.build else getattr(optkit, self.name)(**self.options)


def of_rank(name, rank, published, more=0.0, stored=True, **options):
    """GaLore and its kin at a rank that is not their default."""
    want = lambda s: s.galore(rank) - (0 if stored else 4 * s.basis(rank)) + more * len(s.matrices)  # noqa: E731
    return Case(name, want, published, {"rank": rank, **options}, defaults=False)


def galore_of_8_bits(rank, published, slow):
    """Moments of 8 bits in blocks of 256, a bfloat16 basis, and 8 bits for all other leaves."""
    adam = lambda: optkit.quantize_state(optkit.scale_by_adam(), min_size=0)  # noqa: E731
    return Case(
        "low_rank",
        lambda s: 2 * (1 + 4 / 256) * (s.low(rank) + s.rest) + 2 * s.basis(rank),
        published,
        build=lambda: optkit.low_rank(adam(), rank, stored_as=jnp.bfloat16),
        defaults=False,
        slow=slow,
    )


BF16 = {"state_dtype": jnp.bfloat16}
MASTER = lambda s: s.total  # noqa: E731  # weights in float8, a byte each
GALORE = [
    Case("galore_adamw", lambda s: s.galore(), (None, "18.8")),
    of_rank("galore_adamw", 256, ("0.580", "6.28")),
    of_rank("galore_adamw", 128, ("0.448", None)),
    Case("galore_adamw", lambda s: s.galore(each=2), (None, "9.40"), BF16, defaults=False),
    *(
        Case(
            "galore_adamw",
            lambda s, r=rank: s.galore(r, each=2),
            published,
            {"rank": rank, **BF16},
            defaults=False,
        )
        for rank, published in ((256, ("0.290", "3.14")), (128, ("0.224", None)))
    ),
    galore_of_8_bits(256, ("0.157", "1.82"), slow=("llama",)),
    galore_of_8_bits(128, ("0.118", None), slow=(*MODELS,)),
    # 4 bytes of each matrix's last norm, which the table has for Fira only.
    Case("fira", lambda s: s.galore() + 4 * len(s.matrices)),
    of_rank("fira", 256, ("0.580", "6.28"), more=4),
    Case(  # one moment only
        "fira",
        lambda s: 4 * (s.low() + s.basis() + s.rest + len(s.matrices)),
        options={"inner": "rmsprop"},
        defaults=False,
    ),
    Case("apollo", lambda s: 8 * (s.low() + s.rest) + 4 * len(s.matrices)),
    of_rank("apollo", 256, ("0.543", "5.34"), more=4, stored=False),
    of_rank("apollo", 256, ("0.580", "6.28"), more=4, basis="svd"),
    Case(
        "apollo_mini",
        lambda s: 8 * (s.low(1) + s.rest) + 4 * len(s.matrices),
        ("0.317", "2.11"),
    ),
    Case("natural_galore", lambda s: s.galore() + 4 * 20 * s.low(), slow=(*MODELS,)),
    Case("ldadam", lambda s: s.galore() + 4 * s.held),
    Case(
        "ldadam",
        lambda s: s.galore(256) + 4 * s.held,
        ("0.920", "32.2"),
        {"rank": 256},
        defaults=False,
    ),
    Case("frugal", lambda s: 2 * s.held + 8 * s.rest, ("0.486", "15.05")),
    Case("frugal", lambda s: 8 * s.rest, ("0.316", "2.10"), {"density": 0.0}, defaults=False),
]
FACTORED = [
    Case("adamw", lambda s: 8 * s.total, ("0.996", "53.9")),
    Case("adafactor", lambda s: 4 * (s.lines + s.vectors), ("0.0013", "0.0113")),
    Case(
        "adafactor",
        lambda s: 4 * (s.lines + s.vectors + s.total),
        ("0.499", "26.97"),
        {"b1": 0.9},
        defaults=False,
    ),
    Case("sm3", lambda s: 4 * (s.lines + s.vectors)),
    Case(
        "sm3",
        lambda s: 4 * (s.lines + s.vectors + s.total),
        ("0.499", "26.97"),
        {"b1": 0.9},
        defaults=False,
    ),
    # The table has one number, "about 4N", for it and the two above.
    Case("came", lambda s: 4 * s.total + 8 * s.lines + 4 * s.vectors, ("~0.499", "~26.97")),
]
ERRORS = [
    Case("eco_adamw", lambda s: 8 * s.total, ("1.12", "60.6"), plus=MASTER),
    Case("eco_adamw", lambda s: 12 * s.total, options={"exact": True}, defaults=False),
    Case("eco_sgdm", lambda s: 4 * s.total, ("0.622", "33.7"), plus=MASTER),
    *(
        Case(name, lambda s: 4 * s.total, ("0.498", "26.95"), {"compressor": TopK(1)})
        for name in ("error_feedback", "ef21")
    ),
    Case("onebit_adam", lambda s: 16 * s.total),
    # One worker serves no chunk; 12 of a leaf are its ratio, factor and scale.
    Case("onebit_lamb", lambda s: 16 * s.total + 12 * s.leaves),
    Case("powersgd_mean", lambda s: 4 * (s.total - s.vectors) + 4 * 2 * s.inputs),
    Case(
        "powersgd_mean",
        lambda s: 4 * s.held + 4 * 4 * s.sides,
        ("0.342", "25.9"),
        {"rank": 4, "schedule": "alternating"},
        tree="layers",
        defaults=False,
    ),
]


def adalora():
    """Around AdamW on factors and singular values, all else frozen."""
    others = lambda path, leaf: "lora_" not in path  # noqa: E731
    return optkit.adalora(optkit.freeze(others, optkit.adamw()), target_rank=4, total_steps=100)


CODES = [
    Case(name, want, published, {"min_size": 0}, defaults=False, slow=(*MODELS,))
    for name, want, published in (
        ("adamw_8bit", lambda s: 2 * s.total * (1 + 4 / 256), ("0.253", "13.69")),
        ("adamw_fp8", lambda s: 2 * s.total * (1 + 4 / 256), ("0.253", "13.69")),
        ("adamw_4bit", lambda s: s.total * (1 + 8 / 128), ("0.132", "7.16")),
    )
]
ADAPTERS = [
    Case("lora_plus", lambda s: 8 * 16 * s.sides, ("0.019", "0.320"), {"ratio": 16.0}, "adapters"),
    Case("altlora", lambda s: 8 * 16 * s.sides, ("0.019", "0.320"), tree="adapters"),
    Case("altlora_plus", lambda s: 12 * 16 * s.sides, tree="adapters"),
    Case("lora_pro", lambda s: 8 * s.held, ("~0.680", "51.8"), tree="adapters"),
    Case("loqt", lambda s: 8 * s.low(16), tree="one factor"),
    Case(
        "adalora",
        lambda s: 16 * 16 * (s.sides + len(s.matrices)),
        tree="singular",
        build=adalora,
    ),
]


def cases():
    """Every case for both models."""
    for case in (*GALORE, *FACTORED, *ERRORS, *CODES, *ADAPTERS):
        said = "-".join(str(value) for value in case.options.values())
        for model, published in zip(MODELS, case.published, strict=True):
            marks = [pytest.mark.slow] if model in case.slow else []
            name = "-".join(filter(None, [case.name, said, published, model]))
            yield pytest.param(case, model, published, id=name, marks=marks)


@functools.cache
def state_bytes(case, model):
    """Of the whole state, from shapes alone."""
    return tree_bytes(jax.eval_shape(case.make().init, part_of(model, case.tree)))


@functools.cache
def shared_bytes(case, model="gpt2"):
    """Counters, which no model has more of than another; and that ``plan`` counts the rest."""
    plan = optkit.plan(case.make(), part_of(model, case.tree))
    assert plan.state_bytes == state_bytes(case, model)
    assert plan.shared_bytes < 100
    return plan.shared_bytes


def owned_bytes(case, model):
    """State bytes without counters."""
    return state_bytes(case, model) - shared_bytes(case)


@functools.cache
def described(model, tree):
    """(role, size, matrices) of all leaves; adapters as the catalogue reads them."""
    params = part_of(model, tree)
    leaves, kinds = leaves_with_paths(params), dict(leaves_with_paths(roles(params)))
    shapes = {path: leaf.shape for path, leaf in leaves}
    out = []
    for path, leaf in leaves:
        parent, _, name = path.rpartition("/")
        if name.startswith("lora_"):
            fan_in, fan_out = shapes[f"{parent}/kernel"]
            short = "lora_a" if fan_in <= fan_out else "lora_b"
            role = "frozen" if tree == "one factor" and name == short else "adapter"
            out.append((role, leaf.size, [(1, fan_out, fan_in)] if name == "lora_a" else []))
        elif tree in ("whole", "layers"):  # else all but adapters is frozen
            views = [view for _, view in matrix_views({path: leaf})] if leaf.ndim > 1 else []
            matrices = [(math.prod(v.batch_shape), v.fan_out, v.fan_in) for v in views]
            out.append((str(kinds[path]), leaf.size, matrices))
    return out


def bytes_of_catalogue(case, model):
    """The catalogue's formulas, of wrappers those of AdamW with them."""
    entry, out = optkit.catalogue.get(case.name), 0.0
    entries = [entry, optkit.catalogue.get("adamw")] if entry.kind == "wrapper" else [entry]
    for leaf in described(model, case.tree):
        out += sum(own.bytes_of_leaf(*leaf) for own in entries)
    return out


def check_published(count, published):
    """Rounds as the table does."""
    number = published.removeprefix("~")
    digits = len(number.partition(".")[2])
    if published == number:
        assert f"{count / 1e9:.{digits}f}" == number
    else:
        assert abs(count / 1e9 - float(number)) < 10**-digits


@pytest.mark.parametrize("model", MODELS)
def test_the_trees_have_the_published_sizes(model):
    sizes = Sizes(model)
    assert (sizes.total, sizes.held, len(sizes.matrices)) == COUNTS[model]


@pytest.mark.sweep
@pytest.mark.parametrize(("case", "model", "published"), [*cases()])
def test_bytes_are_those_of_the_formula(case, model, published):
    sizes = Sizes(model, case.tree)
    assert owned_bytes(case, model) == case.want(sizes)
    if case.defaults:
        assert bytes_of_catalogue(case, model) == case.want(sizes)
    if published is not None:
        check_published(case.want(sizes) + case.plus(sizes), published)


@pytest.mark.parametrize("model", ["gpt2", pytest.param("llama", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("name", "each", "leaf", "published"),
    [
        ("onebit_adam", 12 + 4 / WORKERS, 0, {"gpt2": "1.56", "llama": "84.2"}),
        ("onebit_lamb", 16 + 4 / WORKERS, 12, {}),
    ],
)
def test_a_worker_serves_a_chunk_of_the_errors(model, name, each, leaf, published):
    """No leaf has to be filled up: all sizes are multiples of 64."""
    sizes, params = Sizes(model), MODELS[model]
    init = getattr(optkit, name)(axis_name="workers").init
    mapped = jax.vmap(init, (None,), axis_name="workers", axis_size=WORKERS)
    counter = optkit.plan(getattr(optkit, name)(), params).shared_bytes
    own = tree_bytes(jax.eval_shape(mapped, params)) / WORKERS - counter
    assert own == each * sizes.total + leaf * sizes.leaves
    if model in published:
        check_published(own, published[model])


@pytest.mark.parametrize("model", MODELS)
def test_badam_keeps_one_layer(model):
    """Its table counts a float32 copy of the active layer too, which is master_weights' here."""
    held = Sizes(model).held // LAYERS[model][1]
    assert 8 * held <= owned_bytes(Case("badam"), model) <= 8 * held * 1.01


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("model", "rank", "published"),
    [
        ("gpt2", 256, 0.143),
        ("gpt2", 128, 0.112),
        pytest.param("llama", 1024, 4.32, marks=pytest.mark.slow),  # many codes to trace
        pytest.param("llama", 256, 1.48, marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_bytes_of_q_galore_are_those_of_the_table_and_of_what_waits(model, rank, published):
    """The table's, what leaves below 4096 entries have more, and 4 min(sides) + 28 of a matrix."""
    sizes = Sizes(model)
    small = sum(leaf.size for leaf in jax.tree.leaves(MODELS[model]) if leaf.size < 4096)
    table = 2 * (sizes.low(rank) + sizes.rest) * (1 + 4 / 256)
    table += sizes.basis(rank) * (0.5 + 8 / 256)
    waiting = sum(4 * min(sides) + 28 for sides in sizes.matrices)
    more = small * (8 - 2 * (1 + 4 / 256))
    case = Case("q_galore", options={"rank": rank})
    assert state_bytes(case, model) - shared_bytes(case, model) == table + more + waiting
    assert abs(table / 1e9 - published) < 0.006 * published
    if model == "gpt2":
        case = Case("q_galore", options={"rank": rank, "store_weights": True})
        stored = owned_bytes(case, model)
        assert stored - (table + more + waiting) == sizes.held * (1 + 8 / 256)

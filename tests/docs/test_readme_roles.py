"""The README's table of roles says what the rules do."""

import re

import jax
import jax.numpy as jnp
import pytest

import optkit
from tests.docs.modules import ROOT

ROWS = re.findall(
    r"^\| (`(?:bias|embedding|head|conv|expert|stacked)`.*?) \| (.*?) \| (.*?) \|$",
    (ROOT / "README.md").read_text(encoding="utf-8"),
    re.MULTILINE,
)
RANKS = {"norm": (1,), "embedding": (2,), "head": (2,), "conv": (3, 4, 5), "expert": (3, 4)}


def code(cell: str) -> list[str]:
    return re.findall(r"`(.*?)`", cell)


def role_of(path: str, rank: int) -> str:
    return str(optkit.tree.rule_of(path, jnp.zeros((1,) * rank)).role)


NAMES = [
    (role, name, rank)
    for roles, leaves, _ in ROWS
    for role in code(roles)
    for name in code(leaves.split("below", 1)[-1].split(";")[0])
    for rank in RANKS.get(role, ())
]


def test_the_table_is_found() -> None:
    assert [role for roles, _, _ in ROWS for role in code(roles)] == [
        "bias", "norm", "embedding", "head", "conv", "expert", "stacked", "matrix"
    ]  # fmt: skip
    assert len(NAMES) > 30


@pytest.mark.parametrize(("role", "name", "rank"), NAMES)
def test_names_have_the_role_that_the_table_gives(role: str, name: str, rank: int) -> None:
    last = "weight" if role == "norm" else "kernel"
    variants = [name.replace("*", ""), name.replace("*", "my_"), name.upper()]
    # Names of Hugging Face's tables are no classes that Flax would number.
    variants += [] if name in {"embed_tokens", "wte", "wpe", "vocab"} else [f"{name}_1"]
    for filled in variants:
        filled = filled.strip("_").replace("*", "x")
        assert role_of(f"model/{filled}/{last}", rank) == role


def test_leaves_that_have_a_role_by_themselves() -> None:
    assert role_of("a/bias", 2) == "bias"
    assert role_of("a/scale", 1) == "norm"
    assert role_of("a/embedding", 2) == "embedding"
    assert [role_of("a/w", rank) for rank in range(6)] == [
        "bias", "bias", "matrix", "stacked", "stacked", "stacked"
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["Dense_2", "out", "output", "decoder"])
def test_a_last_layer_of_another_name_is_a_hidden_matrix(name: str) -> None:
    assert role_of(f"{name}/kernel", 2) == "matrix"
    shapes = {name: {"kernel": jax.ShapeDtypeStruct((8, 4), jnp.float32)}}
    methods = [
        optkit.plan(optkit.muon(roles=rules), shapes).rows[0].method
        for rules in ((), ((f"{name}/**", "head"),))
    ]
    assert methods == ["muon", "adamw"]


def test_who_serves_a_role_is_told() -> None:
    for roles, _, served in ROWS:
        expected = served == "matrix method"
        assert all((role in optkit.MATRIX_ROLES) is expected for role in code(roles))

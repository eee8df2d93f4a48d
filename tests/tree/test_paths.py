"""Path strings over the containers that models come in, and what rules match."""

import fnmatch
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from optkit.tree import leaves_with_paths, map_with_path, matches, values_by_path
from optkit.tree.paths import wildcards


class Attention(NamedTuple):
    query: object
    key: object
    value: object


class Pair(NamedTuple):
    w: object
    w2: object


def paths(tree):
    return [path for path, _ in leaves_with_paths(tree)]


def test_paths_of_plain_containers():
    tree = {"b": [1, (2, {"x": 3})], "a": Pair(4, None), "m": optax.MaskedNode(), 7: 5}
    tree = {str(key): value for key, value in tree.items()}
    assert leaves_with_paths(tree) == [
        ("7", 5),
        ("a/w", 4),
        ("b/0", 1),
        ("b/1/0", 2),
        ("b/1/1/x", 3),
    ]
    assert paths(3.0) == [""]


def test_paths_of_modules_agree_between_module_state_and_pure_state():
    class Block(nnx.Module):
        def __init__(self):
            self.up = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
            self.layers = nnx.List([nnx.Linear(2, 2, rngs=nnx.Rngs(0))])

    state = nnx.state(Block(), nnx.Param)
    wanted = ["layers/0/bias", "layers/0/kernel", "up/bias", "up/kernel"]
    assert paths(state) == wanted
    assert paths(nnx.to_pure_dict(state)) == wanted
    params = jax.eval_shape(nn.Dense(3).init, jax.random.key(0), jnp.ones((1, 2)))
    assert paths(params) == ["params/bias", "params/kernel"]


@pytest.mark.parametrize("query", [1, None, optax.MaskedNode()], ids=["leaf", "none", "masked"])
def test_a_field_named_value_is_kept_whatever_part_of_the_tree_is_there(query):
    assert paths(Attention(query, None, 2))[-1] == "value"
    assert paths({"a": Attention(query, {"w": 1}, 2)})[-1] == "a/value"


def test_map_with_path_gives_each_leaf_its_path_and_its_partners():
    tree = {"a": Attention(1, 2, 3), "b": (4,)}
    out = map_with_path(
        lambda path, x, y: (path, x + y), tree, jax.tree.map(lambda x: 10 * x, tree)
    )
    assert out["a"].value == ("a/value", 33) and out["b"][0] == ("b/0", 44)


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("kernel", "a/kernel", True),
        ("kernel", "a/my_kernel", False),
        ("*kernel", "a/my_kernel/b", True),
        ("a/kernel", "a/kernel", True),
        ("a/kernel", "x/a/kernel", False),
        ("a/*/kernel", "a/b/kernel", True),
        ("a/*/kernel", "a/b/c/kernel", False),
        ("a/**/kernel", "a/kernel", True),
        ("a/**/kernel", "a/b/c/kernel", True),
        ("a/**", "a", True),
        ("a/**", "a/b/c", True),
        ("a/**", "ab/c", False),
        ("**/kernel", "kernel", True),
        ("**/kernel", "a/xkernel", False),
        ("**", "", True),
        ("**", "a/b", True),
        ("l?/w", "l1/w", True),
        ("l?/w", "l/w", False),
        ("l?/w", "l//w", False),
        ("a.b", "axb", False),
        ("a+/w", "aa/w", False),
        ("re:^a.*w$", "a/b/w", True),
        ("re:b", "a/b/w", True),
        ("re:^b", "a/b/w", False),
        ("Kernel", "a/kernel", False),
    ],
)
def test_matching_follows_the_stated_rules(pattern, path, expected):
    assert matches(pattern, path) is expected


@given(
    pattern=st.lists(st.text("ab*?", min_size=1, max_size=3), min_size=1, max_size=3),
    path=st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=3),
)
def test_globs_without_double_stars_match_component_by_component(pattern, path):
    pattern = [part.replace("**", "*") for part in pattern]
    if len(pattern) == 1:
        expected = any(fnmatch.fnmatchcase(part, pattern[0]) for part in path)
    else:
        expected = len(pattern) == len(path) and all(map(fnmatch.fnmatchcase, path, pattern))
    assert matches("/".join(pattern), "/".join(path)) is expected


@given(st.lists(st.sampled_from("ab"), min_size=2, max_size=4))
def test_wildcards_are_what_a_pattern_leaves_open(path):
    path = "/".join(path)
    whole = wildcards("**/*", path)
    assert whole is not None and "".join(whole) == path
    for pattern in ("a", "?/**", "**/b", "re:a(.*)b"):
        assert (wildcards(pattern, path) is not None) is matches(pattern, path)


def test_an_invalid_expression_is_named_with_the_remedy():
    with pytest.raises(ValueError, match=r"re:\(kernel.*not a valid regular expression.*glob"):
        matches("re:(kernel", "a")


def test_values_by_path_takes_the_entry_above_and_never_a_neighbour():
    assert values_by_path(Pair(0, {"x": 0}), Pair(1, 2)) == {"w": 1, "w2/x": 2}
    assert values_by_path([0] * 11, [*range(11)]) == {str(i): i for i in range(11)}
    assert values_by_path({"a": 0, "b": 0}, {"a": 1}) == {"a": 1}
    assert values_by_path({"a": {"b": 0}}, True) == {"a/b": True}

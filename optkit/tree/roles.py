"""What each leaf of a model is: its role, decided by path and rank, first matching rule wins."""

import enum
import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from optax.contrib import MuonDimensionNumbers

from optkit.tree.dims import AnyDims
from optkit.tree.paths import PyTree, leaves_with_paths, matches


class Role(enum.StrEnum):
    """What a leaf does in the model; matrix methods serve the ``MATRIX_ROLES``."""

    EMBEDDING = "embedding"
    HEAD = "head"
    NORM = "norm"
    BIAS = "bias"
    CONV = "conv"
    EXPERT = "expert"
    STACKED = "stacked"
    MATRIX = "matrix"


MATRIX_ROLES: tuple[Role, ...] = (Role.MATRIX, Role.STACKED, Role.EXPERT, Role.CONV)


@dataclass(frozen=True)
class RoleRule:
    """One line of the role table.

    Attributes:
      pattern: glob or ``re:`` expression, see ``optkit.tree.matches``.
      role: the role given to the leaves that match.
      ranks: ranks that the rule applies to; empty for all.
      dims: which axes are the matrix's input and output; None for the role's usual ones.
    """

    pattern: str
    role: Role
    ranks: tuple[int, ...] = ()
    dims: AnyDims | None = None

    def applies(self, path: str, rank: int) -> bool:
        """Tells whether the rule names a leaf of this path and rank."""
        return (not self.ranks or rank in self.ranks) and matches(self.pattern, path)


def _component(*names: str) -> str:
    """A regular expression for a path that has one of the names as a component, in any case."""
    return rf"re:(?i)(^|/)({'|'.join(names)})(_?\d+)?(/|$)"


_STACKED_RANKS = tuple(range(3, 10))
_NORM = r"\w*norm(s|alization)?(\d+|_\w+)?|ln(_\w+)?|bn"
_TABLE = r"(?!patch)\w*emb(ed|edding|eddings|edder)?(_?\d+)?|embed_(tokens?|in|positions?)"
_EMBED = rf"({_TABLE}|wte|wpe|vocab)"
_HEAD = (
    r"((lm|cls|classification|output|value|policy)_?)?head|logits(_dense)?|to_logits|embed_out"
    "|classifier|readout|unembed(ding)?"
)
_CONV = r"\w*conv\w*|patch_?embed\w*|downsample|stem"
_QKV = "re:(?i)(^|/)(query|key|value)/kernel$"
_OUT = r"re:(?i)(attn|attention)\w*/out/kernel$"
_HEADS_IN, _HEADS_OUT = MuonDimensionNumbers(-3, (-2, -1)), MuonDimensionNumbers((-3, -2), -1)
# Names are those of Flax linen and nnx and of the common JAX code bases (MaxText, Levanter,
# EasyDeL, big_vision, Transformers). A leaf's own name decides before its container's.
DEFAULT_RULES: tuple[RoleRule, ...] = (
    RoleRule(r"re:(?i)(^|/)(\w+_)?bias$", Role.BIAS),
    RoleRule("re:(?i)(^|/)scale$", Role.NORM),
    RoleRule(_component(_NORM), Role.NORM, ranks=(0, 1)),
    # Only the norm's own leaves: a pre-norm block has matrices somewhere below it.
    RoleRule(rf"re:(?i)(^|/)({_NORM})(_?\d+)?(/(?!kernel$)[^/]+)?$", Role.NORM, ranks=(2,)),
    # Tables and learned tokens, with or without a leading axis of 1.
    RoleRule(
        r"re:(?i)(^|/)((?!patch)\w*emb(ed)?(ding)?s?|pos(ition)?(al)?_?(emb|enc)\w*|cls"
        r"|\w*_tokens?|registers?|probe|wte|wpe)$",
        Role.EMBEDDING,
    ),
    # A kernel further down is a projection (of time steps, of image features), not the table.
    RoleRule(rf"re:(?i)(^|/){_EMBED}/(kernel|(.*/)?(?!kernel$)[^/]+)$", Role.EMBEDDING, ranks=(2,)),
    # One head of an attention is a hidden matrix, whatever its number.
    RoleRule(r"re:(?i)(attn|attention|multi_?head|mha).*/heads?(_?\d+)?/", Role.MATRIX, ranks=(2,)),
    RoleRule(_component(_HEAD), Role.HEAD, ranks=(2,)),
    # Scanned layers have their container's name without a number behind it: (layers, in, out).
    RoleRule(
        r"re:(?i)(^|/)(layers|blocks|scan\w*)/(?!\d+/)(.*/)?(query|key|value|out)/kernel$",
        Role.STACKED,
        ranks=(3,),
    ),
    # Flax attention keeps the heads on an axis of their own, behind that of scanned layers.
    RoleRule(_QKV, Role.MATRIX, ranks=(3,), dims=_HEADS_IN),
    RoleRule(_QKV, Role.STACKED, ranks=(4, 5), dims=_HEADS_IN),
    RoleRule(_OUT, Role.MATRIX, ranks=(3,), dims=_HEADS_OUT),
    RoleRule(_OUT, Role.STACKED, ranks=(4, 5), dims=_HEADS_OUT),
    RoleRule(_component(_CONV), Role.CONV, ranks=(3, 4, 5)),
    # Patches: a convolution that its model calls an embedding.
    RoleRule(r"re:(?i)(^|/)\w*emb(ed)?(ding)?s?/kernel$", Role.CONV, ranks=(4, 5)),
    RoleRule(_component(r"\w*experts?\w*"), Role.EXPERT, ranks=_STACKED_RANKS),
    RoleRule("re:(?i)(^|/)out/kernel$", Role.MATRIX, ranks=(3,), dims=_HEADS_OUT),
    RoleRule("**", Role.STACKED, ranks=_STACKED_RANKS),
    RoleRule("**", Role.MATRIX, ranks=(2,)),
    RoleRule("**", Role.BIAS),
)

RuleLike = RoleRule | tuple[str, Role | str] | tuple[str, Role | str, AnyDims]


def _as_rules(rules: Iterable[RuleLike]) -> tuple[RoleRule, ...]:
    out = []
    for rule in rules:
        if isinstance(rule, RoleRule):
            out.append(rule)
            continue
        pattern, role, *dims = rule
        if role not in set(Role):
            raise ValueError(
                f"rule {pattern!r} names the role {role!r}; the roles are {', '.join(Role)}"
            )
        out.append(RoleRule(pattern, Role(role), dims=dims[0] if dims else None))
    return tuple(out)


@functools.lru_cache(maxsize=65536)
def _find(path: str, rank: int, rules: tuple[RoleRule, ...]) -> RoleRule:
    # The table ends with a rule that takes everything, so the search always succeeds.
    return next(rule for rule in (*rules, *DEFAULT_RULES) if rule.applies(path, rank))


def rule_of(path: str, leaf: Any, rules: Iterable[RuleLike] = ()) -> RoleRule:
    """Returns the first rule, the user's before the built-in ones, that names a leaf.

    Args:
      path: the leaf's path string.
      leaf: an array or ``ShapeDtypeStruct``.
      rules: ``(pattern, role)`` or ``(pattern, role, dims)`` tuples, or ``RoleRule``s.

    Returns:
      The rule.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> optkit.tree.rule_of("Dense_0/kernel", jnp.zeros((2, 3))).role
      <Role.MATRIX: 'matrix'>
    """
    return _find(path, np.ndim(leaf), _as_rules(rules))


def roles(params: PyTree, rules: Iterable[RuleLike] = ()) -> PyTree:
    """Returns the role of every leaf.

    Args:
      params: parameters or their shapes.
      rules: your ``(pattern, role)`` pairs, tried in order before the built-in table.

    Returns:
      A tree of ``Role`` shaped like ``params``.

    Raises:
      ValueError: a rule names an unknown role or holds an invalid expression.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"embed": {"embedding": jnp.zeros((9, 4))}, "up": {"kernel": jnp.zeros((4, 8))}}
      >>> for path, role in optkit.tree.leaves_with_paths(optkit.roles(params, [("up", "head")])):
      ...   print(path, role)
      embed/embedding embedding
      up/kernel head
    """
    user = _as_rules(rules)
    leaves = [_find(path, np.ndim(leaf), user).role for path, leaf in leaves_with_paths(params)]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


Selector = str | Role | Callable[[str, Any], bool] | Sequence["Selector"]


def selects(selector: Selector, path: str, leaf: Any, rules: Iterable[RuleLike] = ()) -> bool:
    """Tells whether a selector names a leaf.

    Args:
      selector: a role (``Role.HEAD`` or ``"head"``), a glob or ``re:`` expression on the path, a
        function of (path, leaf), or a sequence of those of which one must hold.
      path: the leaf's path string.
      leaf: an array or ``ShapeDtypeStruct``.
      rules: the user's role rules.

    Returns:
      True if the leaf is named.

    Raises:
      TypeError: the selector is of none of these kinds.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> optkit.tree.selects(("norm", "**/up/*"), "mlp/up/kernel", jnp.zeros((2, 2)))
      True
    """
    if isinstance(selector, str):
        # A word that is a role means the role; write `re:` or a glob for a path of that name.
        if selector in set(Role):
            return rule_of(path, leaf, rules).role == selector
        return matches(selector, path)
    if callable(selector):
        return bool(selector(path, leaf))
    if isinstance(selector, Sequence):
        return any(selects(part, path, leaf, rules) for part in selector)
    raise TypeError(
        f"cannot select leaves by {selector!r}: give a role ({', '.join(Role)}), a glob, a 're:' "
        "expression, a function of (path, leaf), or a sequence of those"
    )

"""Which moments of a state have both signs and which none: by the names of their fields."""

import fnmatch
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

Kind = Literal["signed", "unsigned", "keep"]
StateRules: TypeAlias = Sequence[tuple[str, Kind]]

# Names of fields, in the states of Optax and optkit, that hold what a codec may round.
RULES: dict[Kind, tuple[str, ...]] = {
    "signed": (
        *("mu", "m", "momentum", "trace", "exp_avg", "velocity", "memory", "utility"),
        *("graft_momentum", "curvature"),  # Hutchinson's estimates are negative, too
    ),
    "unsigned": ("nu", "nu_max", "exp_avg_sq", "moment", "e_g", "e_x"),
    # Weights, and sums that codes of few bits would round back to what they were.
    "keep": (
        "master",
        "acc_grads",
        "gathered",
        "z",
        "anchor",
        "sum_of_squares",
        "total",
        "last",
        "average",
    ),
}


def _kind(owner: str, rules: StateRules) -> Kind | None:
    """Which kind of moment the state below an owner's path is; None if no rule names it."""
    field = owner.rsplit("/", 1)[-1].lstrip(".")
    for pattern, kind in rules:
        if _names(pattern, owner):
            return kind
    return next((kind for kind, fields in RULES.items() if field in fields), None)


def _names(pattern: str, owner: str) -> bool:
    """Tells whether a rule's pattern names a state: its field, or with a slash its whole path."""
    field = owner.rsplit("/", 1)[-1].lstrip(".")
    return fnmatch.fnmatchcase(owner if "/" in pattern else field, pattern)


def check_named(rules: StateRules, owners: set[str]) -> None:
    """Refuses a rule that names no state: misspelt, it would leave the moment to another one."""
    lost = [pattern for pattern, _ in rules if not any(_names(pattern, own) for own in owners)]
    if owners and lost:
        fields = sorted({own.rsplit("/", 1)[-1].lstrip(".") for own in owners})
        raise ValueError(
            f"rules: {', '.join(map(repr, lost))} names no state of a parameter; the fields are "
            + ", ".join(map(repr, fields))
        )


def check_rules(rules: StateRules) -> None:
    """Refuses what is not a list of pairs of a pattern and a kind."""
    if any(not isinstance(rule, tuple | list) or len(rule) != 2 for rule in rules):
        raise ValueError(f"rules={rules!r} must be a list of pairs, such as [('nu', 'unsigned')]")
    for pattern, kind in rules:
        if kind not in get_args(Kind):
            raise ValueError(
                f"rule {pattern!r} -> {kind!r}: a moment is {', '.join(map(repr, get_args(Kind)))}"
            )


def kind_of(match: Any, rules: StateRules) -> Kind:
    """Returns the kind of a moment; raises ValueError if nothing says, or a rule what is wrong."""
    owner, field = match.owner, match.owner.rsplit("/", 1)[-1]
    kind = _kind(owner, rules)
    if kind is None:
        raise ValueError(
            f"no rule tells whether state {owner!r} of leaf {match.param_path!r} has negative "
            f'entries; give rules=[({field!r}, "signed")], "unsigned" or "keep"'
        )
    if kind == "unsigned" and _kind(owner, ()) == "signed":
        raise ValueError(
            f"rules call state {owner!r} of leaf {match.param_path!r} unsigned, and {field!r} has "
            'both signs: its negative entries would be lost; give "signed"'
        )
    return kind

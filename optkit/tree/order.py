"""Which layer comes before which: the layers of a model from input to output."""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from optkit.tree.paths import PyTree, leaves_with_paths, matches
from optkit.tree.roles import Role, RuleLike, Selector, rule_of, selects
from optkit.tree.selection import masked_paths

# Names without a number. Embeddings, heads and norms are found by role as well.
_FIRST = re.compile(
    r"(?i)(input\w*|in_proj|stem|patch\w*|first|ln_pre|norm_pre|pre_norm|\w*emb\w*norm\w*)"
)
_LAST = re.compile(r"(?i)(output\w*|out|out_proj|readout|pooler|classifier|logits|last|final\w*)")
# Several inner parts whose order is in their names.
_KNOWN = ("encoder", "second", "third", "fourth", "bottleneck", "middle", "mid", "decoder")
_NUMBERED = re.compile(r"(.*?)[_.-]?(\d+)")


@dataclass(frozen=True)
class LayerOrder:
    """The layers of a model, counted from 1 at the input; ``print`` it.

    Attributes:
      names: one name a layer, from input to output.
      layer_of: path of each leaf -> number of its layer; in flattening order.
      shapes: path of each leaf -> its shape.
    """

    names: tuple[str, ...]
    layer_of: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def count(self) -> int:
        """Number of layers."""
        return len(self.names)

    def __str__(self) -> str:
        table = [("layer", "name", "leaf", "shape")]
        for number, name in enumerate(self.names, 1):
            own = [path for path, layer in self.layer_of.items() if layer == number]
            for path in own or [""]:
                shape = "x".join(map(str, self.shapes.get(path, ()))) or "scalar"
                table.append((str(number), name, path or "(no leaf)", shape if path else ""))
        widths = [max(len(line[i]) for line in table) for i in range(4)]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
            for line in table
        ]
        return "\n".join([lines[0], "-" * (sum(widths) + 6), *lines[1:]])


def layer_order(
    params: PyTree,
    order: Sequence[Selector] | None = None,
    *,
    roles: Sequence[RuleLike] = (),
) -> LayerOrder:
    """Returns which leaf is in which layer, counted from the input to the output.

    Without ``order`` the names tell: embeddings, stem and input are the first layer; then comes one
    layer for each number (``blocks/0``, ``Dense_3``; 10 after 9; convolutions before other numbered
    layers; a norm is in the layer of its number; an encoder before its decoder); the head, final
    norm and output are the last. A container without an order inside is one layer, and so is a
    stack of scanned layers, whose leaves hold all of them.

    Args:
      params: parameters, gradients or their shapes.
      order: selectors from input to output, one a layer, each as ``optkit.route`` takes them; a
        leaf is in the layer of the first that names it. A role may name no leaf, and its layer
        then is empty.
      roles: your own ``(pattern, role)`` rules.

    Returns:
      A ``LayerOrder``; ``print`` shows it.

    Raises:
      ValueError: the names do not tell the order; a selector of ``order`` is a pattern that names
        no leaf; a leaf that no selector names.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"Dense_0": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)},
      ...           "head": {"kernel": jnp.ones((3, 1))}}
      >>> print(optkit.layer_order(params))
      layer  name     leaf            shape
      -------------------------------------
      1      Dense_0  Dense_0/bias    3
      1      Dense_0  Dense_0/kernel  2x3
      2      head     head/kernel     3x1
    """
    leaves = leaves_with_paths(params)
    shapes = {path: tuple(np.shape(leaf)) for path, leaf in leaves}
    if order is not None:
        names, layer_of = _by_selectors(params, leaves, order, roles)
    else:
        parts = [(path.split("/"), path, leaf) for path, leaf in leaves]
        layers = _with_vectors(shapes, _layers("", parts, tuple(roles), root=True))
        names = tuple("+".join(dict.fromkeys(layer.values())) for layer in layers)
        found = {path: number for number, layer in enumerate(layers, 1) for path in layer}
        layer_of = {path: found[path] for path, _ in leaves}
    return LayerOrder(names, layer_of, shapes)


def _by_selectors(
    params: PyTree,
    leaves: list[tuple[str, Any]],
    order: Sequence[Selector],
    roles: Sequence[RuleLike],
) -> tuple[tuple[str, ...], dict[str, int]]:
    if isinstance(order, str) or not order:
        raise ValueError(f"order={order!r} must be a list of selectors, one a layer, input first")
    layer_of = {}
    for path, leaf in leaves:
        number = next((i for i, s in enumerate(order, 1) if selects(s, path, leaf, roles)), None)
        if number is None:
            raise ValueError(
                f"order={order!r} has no layer for leaf {path!r}; name it, or add a last selector "
                '"**" for all that is left'
            )
        layer_of[path] = number
    known = [path for path, _ in leaves] + masked_paths(params)
    for selector in order:
        is_pattern = isinstance(selector, str) and selector not in set(Role)
        if is_pattern and leaves and not any(matches(str(selector), path) for path in known):
            raise ValueError(
                f"order={order!r}: {selector!r} names no leaf; the leaves are {', '.join(known)}"
            )
    names: list[str] = []
    for title in map(_title, order):
        same = sum(name.rsplit("#", 1)[0] == title for name in names)
        names.append(f"{title}#{same + 1}" if same else title)
    return tuple(names), layer_of


def _title(selector: Selector) -> str:
    if isinstance(selector, str):
        return str(selector)
    if callable(selector):
        return getattr(selector, "__name__", "function")
    return "+".join(_title(part) for part in selector)


Part = tuple[list[str], str, Any]  # components of the path below a container, whole path, leaf
Layer = dict[str, str]  # path -> name of the unit that it is in


class _Unclear(ValueError):
    """The names of some children do not tell in which order they are computed."""

    def __init__(self, names: Iterable[str]) -> None:
        # A word that is a role would name the role.
        shown = [
            f"{name}/**" if "/" in name or name in set(Role) else name
            for name in itertools.islice(names, 6)
        ]
        super().__init__(
            f"the names do not tell in which order the layers {', '.join(map(repr, shown))} are "
            "computed; say it from input to output, for example "
            f"order=[{', '.join(map(repr, shown))}, '**']"
        )


def _layers(
    above: str, parts: list[Part], roles: tuple[RuleLike, ...], root: bool
) -> Iterator[Layer]:
    """The layers inside a container, from input to output."""
    children: dict[str, list[Part]] = {}
    for components, path, leaf in parts:
        children.setdefault(components[0], []).append((components[1:], path, leaf))
    zones: dict[str, list[str]] = {"first": [], "numbered": [], "middle": [], "last": []}
    for name, inside in children.items():
        zones[_zone(name, inside, roles)].append(name)

    def layer(names: Iterable[str]) -> Layer:
        return {path: f"{above}{name}" for name in names for _, path, _ in children[name]}

    middle = zones["middle"]
    if len(middle) <= 1 and not zones["first"] and _is_module(parts):
        # Kernel and bias; at the root there is no other name than theirs.
        yield {path: above.rstrip("/") or path for _, path, _ in parts}
        return
    if zones["first"]:
        yield layer(zones["first"])
    if zones["numbered"]:
        loose = [f"{above}{name}" for name in middle]
        yield from map(layer, _by_number(above, zones["numbered"], children, roles, loose))
    elif len(middle) > 1 and not set(middle) <= set(_KNOWN):
        raise _Unclear(f"{above}{name}" for name in middle)
    else:
        for name in sorted(middle, key=lambda name: (*_KNOWN, name).index(name)):
            whole = _is_scanned(children[name], roles)
            if whole or not all(components for components, _, _ in children[name]):
                yield layer([name])
                continue
            top = root and len(children) == 1
            try:
                yield from list(_layers(f"{above}{name}/", children[name], roles, top))
            except _Unclear:
                if top:
                    raise
                yield layer([name])
    if zones["last"]:
        yield layer(zones["last"])


def _with_vectors(shapes: Mapping[str, tuple[int, ...]], layers: Iterable[Layer]) -> list[Layer]:
    """Joins a layer of vectors, such as the norm before a head, with the layer behind it."""
    out: list[Layer] = []
    held: Layer = {}
    for layer in layers:
        held = {**held, **layer}
        if any(len(shapes[path]) >= 2 for path in layer):
            out.append(held)
            held = {}
    if held and out:
        out[-1] = {**out[-1], **held}
    return out or [held]


def _roles(inside: list[Part], roles: tuple[RuleLike, ...]) -> set[Role]:
    return {rule_of(path, leaf, roles).role for _, path, leaf in inside if np.ndim(leaf) >= 2}


def _is_scanned(inside: list[Part], roles: tuple[RuleLike, ...]) -> bool:
    """Whether each leaf holds all layers, so that no cut falls between leaves."""
    found = _roles(inside, roles)
    return Role.STACKED in found and found <= {Role.STACKED, Role.EXPERT, Role.NORM}


def _zone(name: str, inside: list[Part], roles: tuple[RuleLike, ...]) -> str:
    found = _roles(inside, roles)
    if found == {Role.EMBEDDING} or _FIRST.fullmatch(name):
        return "first"
    if found == {Role.HEAD} or _LAST.fullmatch(name):
        return "last"
    if _NUMBERED.fullmatch(name):
        return "numbered"
    return "middle" if found else "last"


def _is_module(inside: list[Part]) -> bool:
    """Whether a container holds leaves only, such as kernel and bias, and none is numbered."""
    return all(len(c) == 1 for c, _, _ in inside) and not any(
        _NUMBERED.fullmatch(c[0]) for c, _, _ in inside
    )


def _by_number(
    above: str,
    names: list[str],
    children: Mapping[str, list[Part]],
    roles: tuple[RuleLike, ...],
    loose: list[str],
) -> Iterator[list[str]]:
    """The numbered children of a container, one list a layer."""
    families: dict[str, dict[int, str]] = {}
    for name in names:
        found = _NUMBERED.fullmatch(name)
        assert found is not None
        families.setdefault(found[1], {})[int(found[2])] = name
    kinds: dict[str, set[Role]] = {
        family: _roles([part for name in members.values() for part in children[name]], roles)
        for family, members in families.items()
    }
    conv = [f for f, kind in kinds.items() if kind == {Role.CONV}]
    other = [f for f, kind in kinds.items() if kind and f not in conv]
    if loose or len(conv) > 1 or len(other) > 1:
        unclear = [*loose, *(f"{above}{min(families[f].values())}" for f in (*conv, *other))]
        raise _Unclear(unclear)
    order = [(family, n) for family in (*conv, *other) for n in sorted(families[family])]
    layers = [[families[family][n]] for family, n in order]
    # Norms and other vectors beside them go with the layer of their number, or the last one.
    beside = [f for f in families if f not in conv and f not in other]
    for family in beside:
        for n, name in families[family].items():
            if layers:
                layers[next((i for i, (_, k) in enumerate(order) if k == n), -1)].append(name)
    if not layers:
        numbers = sorted({n for family in beside for n in families[family]})
        layers = [[families[f][n] for f in beside if n in families[f]] for n in numbers]
    yield from layers

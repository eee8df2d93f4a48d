"""Adapters to one transformation, everything else to another."""

from typing import Any, Literal, TypeAlias

import optax

from optkit.lora.find import AdapterTree
from optkit.lora.naming import Naming
from optkit.transforms.adam import scale_by_adam
from optkit.transforms.base import Transformation, check_gradients, check_transformation
from optkit.transforms.hyperparams import ScalarOrSchedule, check_choice
from optkit.transforms.recording import RouteRecord
from optkit.transforms.route import Rules, assign, build_route
from optkit.transforms.step import Mask, decay_mask, descend
from optkit.tree import PyTree

Other: TypeAlias = optax.GradientTransformation | Literal["frozen", "adamw"]


def checking_mask(mask: Mask, inner: optax.GradientTransformation) -> Transformation:
    """Refuses at init a mask that does not fit, be there a decay for it or not."""
    inner = check_transformation("inner", inner)

    def init_fn(params: PyTree) -> PyTree:
        decay_mask(mask, params, ())
        return inner.init(params)

    return Transformation(init_fn, inner.update)


def split_adapters(
    name: str,
    inner: optax.GradientTransformation,
    other: Other,
    naming: Naming,
    learning_rate: ScalarOrSchedule,
    state_dtype: Any | None = None,
) -> Transformation:
    """Sends adapters to one transformation and all other leaves elsewhere.

    Args:
      name: of the adapters' route, in plans and state.
      inner: transformation of the adapters.
      other: "frozen", "adamw" (at the same learning rate) or a whole optimizer of one's own.
      naming: how adapters are named.
      learning_rate: of "adamw".
      state_dtype: of "adamw".
    """
    routes = {name: check_transformation(name, inner)}
    if isinstance(other, str):
        check_choice("other", other, ("frozen", "adamw"))
        rest = other
        if rest == "adamw":
            routes[rest] = descend(scale_by_adam(state_dtype=state_dtype), learning_rate)
    else:
        rest = "other"
        routes[rest] = check_transformation(rest, other)

    def build(tree: PyTree) -> Transformation:
        paths = frozenset(path for parts in naming.paths(tree) for path in parts.values())
        rules: Rules = [(lambda path, leaf: path in paths, name), ("**", rest)]
        return build_route(routes, rules, (), lambda params: RouteRecord(assign(params, rules, ())))

    def init_fn(params: PyTree) -> PyTree:
        AdapterTree(naming, params)  # to refuse a tree that does not fit
        return build(params).init(params)

    def update_fn(
        updates: PyTree, state: PyTree, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, PyTree]:
        # Before adapters are looked for: a gradient that is missing is not an adapter that is.
        check_gradients(updates, params)
        return build(updates).update(updates, state, params, **extra_args)

    return Transformation(init_fn, update_fn)

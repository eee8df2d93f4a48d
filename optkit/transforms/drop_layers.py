"""Trains the last layers of a model only, from a layer that is drawn anew for each step."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optkit.catalogue import register
from optkit.transforms.base import Transformation, check_same_leaves, check_transformation, prng_key
from optkit.transforms.cuts import CutLaw, Sampling, check_cut, static_cut, switch
from optkit.transforms.hyperparams import check_choice
from optkit.transforms.partial_update import PartialUpdate, only
from optkit.tree import LayerOrder, PyTree, RuleLike, Selector, layer_order


class DropLayersState(NamedTuple):
    """State of ``drop_layers``."""

    inner: PyTree  # state of the inner transformation; clock="layer": {name of a layer: state}
    key: jax.Array  # PRNG key, the same for ever: the number of the step is folded in
    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    cut: jax.Array  # int32 scalar, the first layer that the next update trains, from 1


@register(
    kind="wrapper",
    family="layers",
    paper=("Drop-Muon: Update Less, Converge Faster", "2510.02239", 2025),
    state_bytes={"*": 0},
    tags=("layers", "progressive", "muon"),
    chain="inner on the layers from a drawn one to the last",
    example={"order": ("embedding", ("matrix", "stacked", "expert", "conv"), "**")},
)
def drop_layers(
    inner: optax.GradientTransformation,
    *,
    order: Sequence[Selector] | None = None,
    sampling: Sampling = "uniform",
    shift_steps: int | None = None,
    clock: Literal["global", "layer"] = "global",
    key: int | jax.Array = 0,
    roles: Sequence[RuleLike] = (),
) -> Transformation:
    r"""Updates only the layers from a drawn one to the last; what lies before it is left as it is.

    Layers are numbered 1..b from the input (``print(optkit.layer_order(params))``). With the cut
    ``s`` of this step, drawn when the last one ended:

    1. ``u_i <- inner(g_i)`` for the layers ``i >= s``;
    2. ``u_i = 0`` for the layers ``i < s``, whose state stays bit for bit what it was;
    3. draw the next ``s`` with probabilities ``p_s`` from the key and the number of the step.

    Layer ``i`` is updated in a fraction ``p_1 + ... + p_i`` of the steps. One branch of a
    ``lax.switch`` runs, so that what it costs to update a frozen layer is saved; the backward pass
    through it is saved by gradients that stop at the same layer:

      >>> import jax, jax.numpy as jnp, optax, optkit
      >>> params = {"dense_0": {"kernel": jnp.eye(2)}, "dense_1": {"kernel": jnp.eye(2)}}
      >>> loss = lambda p, x: (x @ p["dense_0"]["kernel"] @ p["dense_1"]["kernel"]).sum()
      >>> tx, gradients = optkit.drop_layers(optkit.muon()), optkit.partial_value_and_grad(loss)
      >>> @jax.jit
      ... def step(state, params, x):
      ...   value, g = gradients(params, optkit.next_cut(state), x)
      ...   updates, state = tx.update(g, state, params)
      ...   return state, optax.apply_updates(params, updates)

    Both then have a branch for each cut, and the program is some ``b/2`` times as long. For more
    than a few layers draw on the host and compile a program a cut: give ``step`` a static argument
    ``cut``, pass it to ``gradients`` and as ``tx.update(g, state, params, cut=cut)``, and call it
    with ``cut=int(optkit.next_cut(state))``. Coarser layers (``order``) and a mapping as
    ``sampling`` reduce the number of programs or branches.

    Args:
      inner: a whole optimizer, decay and learning rate included: what is chained behind would move
        frozen layers. It sees the trained layers only, so a norm over all leaves is one over
        those; its state has to be kept leaf by leaf.
      order: selectors from input to output, one a layer, see ``optkit.layer_order``; None reads the
        order off the names, and raises where they do not tell.
      sampling: "uniform"; "epoch_shifted", weights that go linearly from ``b+1-s`` at the first
        step to ``s`` after ``shift_steps``; a fixed cut (1 is ``inner`` itself); one probability a
        layer; a mapping from cut to probability; or a function ``(count, b) -> (b,) weights`` of
        finished updates.
      shift_steps: steps of "epoch_shifted".
      clock: "global" shares counters: schedules and debiasing go by the steps of the training, and
        the learning rate is recorded once. Statistics of a layer that was frozen for long are then
        younger than debiasing takes them to be, which makes its first step 0.45 times as long with
        Adam's betas (0.9, 0.95) and 3.2 times with (0.9, 0.999), for which there is "layer": every
        layer keeps counters of its own, which rest while it is frozen, and so do its schedules.
      key: seed or PRNG key; replicas that share it draw the same cuts.
      roles: your own ``(pattern, role)`` rules, for ``order``.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: those of ``inner``, a key and two
      counters. Takes the extra argument ``cut``, a Python int or an int32 scalar, in place of the
      drawn one.

    Raises:
      ValueError: an unknown law, probabilities that do not add up to 1; at init names that do not
        tell the order, or a law for another number of layers; at the first update an inner state
        that is not kept leaf by leaf.
      TypeError: ``inner`` is no transformation.

    Example:
      >>> tx = optkit.drop_layers(optax.sgd(1.0), sampling=2)
      >>> u, state = tx.update(params, tx.init(params), params)
      >>> float(u["dense_0"]["kernel"].sum()), float(u["dense_1"]["kernel"].sum())
      (0.0, -2.0)
      >>> int(optkit.next_cut(state))
      2

    Reference:
      Gruntkowska, Maziane, Qu and Richtárik, Drop-Muon, arXiv 2510.02239. Written from the paper's
      equations as a summary gives them: there is no public reference code to compare with. The
      weights of "epoch_shifted" are ours; the paper names the idea. Clocks are not its topic.
    """
    check_choice("clock", clock, ("global", "layer"))
    inner = check_transformation("inner", inner)
    law = CutLaw(sampling, shift_steps)
    law.check()

    def layers_of(tree: PyTree) -> LayerOrder:
        return layer_order(tree, order, roles=roles)

    def init_fn(params: PyTree) -> DropLayersState:
        layers = layers_of(params)
        start = jnp.zeros((), jnp.int32)
        own = jnp.copy(prng_key(key))
        if clock == "global":
            state = inner.init(params)
        else:
            numbers = list(layers.layer_of.values())
            state = {
                name: inner.init(only(params, [number == n for number in numbers]))
                for n, name in enumerate(layers.names, 1)
            }
        return DropLayersState(state, own, start, law.draw(own, start, layers))

    def update_fn(
        updates: PyTree,
        state: DropLayersState,
        params: PyTree | None = None,
        *,
        cut: int | jax.Array | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, DropLayersState]:
        if params is not None:
            check_same_leaves(updates, params, "parameters", shapes=True)
        layers = layers_of(updates)
        cuts = list(law.probabilities(layers))
        if cut is None:
            cut = state.cut
        else:
            known = static_cut(cut)
            cuts = list(range(1, layers.count + 1)) if known is None else [known]
            for given in cuts:
                check_cut(given, layers)
        work = PartialUpdate(inner, clock, layers, updates, state.inner, params, extra_args)
        out, new = switch(cut, cuts, layers, work.branch)
        count = state.count + 1
        return out, DropLayersState(new, state.key, count, law.draw(state.key, count, layers))

    return Transformation(init_fn, update_fn)


def next_cut(state: PyTree) -> jax.Array:
    """Returns the first layer that the next update of ``drop_layers`` trains, counted from 1.

    Args:
      state: an optimizer state with one ``DropLayersState`` anywhere in it.

    Returns:
      An int32 scalar. ``int(...)`` of it waits for the step that drew it.

    Raises:
      ValueError: there is none in the state, or several.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> tx = optax.chain(optkit.drop_layers(optkit.lion(1e-3), sampling=1))
      >>> int(optkit.next_cut(tx.init({"w0": jnp.ones(2)})))
      1
    """
    is_it = lambda x: isinstance(x, DropLayersState)  # noqa: E731
    found = [x for x in jax.tree.leaves(state, is_leaf=is_it) if is_it(x)]
    if len(found) != 1:
        raise ValueError(
            f"the state holds {len(found)} states of drop_layers instead of one; give the state "
            "that belongs to the drop_layers in question"
        )
    return found[0].cut

"""Where the backward pass of a step ends: the laws that cuts are drawn by, and gradients to match.

A cut ``s`` trains the layers ``s, ..., b`` of ``b`` and leaves those before it alone.
"""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from optkit.transforms.hyperparams import check_static_int
from optkit.tree import LayerOrder, PyTree, RuleLike, Selector, layer_order

Law = Callable[[jax.Array, int], jax.Array]
Sampling = str | int | Sequence[float] | Mapping[int, float] | Law


def static_cut(cut: Any) -> int | None:
    """Returns a cut as a Python int, or None if it is only known when the program runs."""
    try:
        return operator.index(cut)
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerIntegerConversionError):
        return None


def check_cut(cut: int, layers: LayerOrder) -> None:
    """Raises ValueError unless a cut is the number of a layer."""
    if not 1 <= cut <= layers.count:
        raise ValueError(
            f"cut={cut} is no layer: there are {layers.count}, counted from 1: "
            f"{', '.join(map(repr, layers.names))}"
        )


@dataclass(frozen=True)
class CutLaw:
    """Draws a cut for each step.

    Attributes:
      sampling: as ``optkit.drop_layers`` takes it.
      shift_steps: steps over which "epoch_shifted" shifts.
    """

    sampling: Sampling
    shift_steps: int | None = None

    def check(self) -> None:
        """Raises if the law cannot be drawn from, as far as that is known without a model."""
        given = self.sampling
        if (given == "epoch_shifted") != (self.shift_steps is not None):
            raise ValueError(
                f"sampling={given!r} with shift_steps={self.shift_steps!r}: shift_steps says over "
                "how many steps 'epoch_shifted' moves to deep cuts; give both or neither"
            )
        if self.shift_steps is not None:
            check_static_int("shift_steps", self.shift_steps)
        if isinstance(given, str) and given not in ("uniform", "epoch_shifted"):
            raise ValueError(
                f"sampling={given!r} is not 'uniform', 'epoch_shifted', a cut, one probability a "
                "layer, a mapping from cut to probability, or a function"
            )
        if isinstance(given, str) or callable(given):
            return
        if isinstance(given, Mapping):
            for cut in given:
                check_static_int("a cut of sampling", cut)
            values: list[Any] = list(given.values())
        elif isinstance(given, Sequence):
            values = list(given)
        else:
            check_static_int("sampling", given)
            return
        good = all(math.isfinite(p) and p >= 0.0 for p in values)
        if not good or not math.isclose(sum(values), 1.0, rel_tol=1e-4):
            raise ValueError(f"sampling={given!r} must be probabilities that add up to 1")

    def probabilities(self, layers: LayerOrder, count: Any = 0) -> dict[int, Any]:
        """Returns the probability of each cut that can be drawn at a step."""
        b, given = layers.count, self.sampling
        if isinstance(given, int):
            check_cut(given, layers)
            return {given: 1.0}
        if isinstance(given, Mapping):
            for cut in given:
                check_cut(cut, layers)
            return {cut: p for cut, p in sorted(given.items()) if p > 0.0}
        if isinstance(given, Sequence) and not isinstance(given, str):
            if len(given) != b:
                raise ValueError(
                    f"sampling has {len(given)} probabilities for {b} layers: "
                    f"{', '.join(map(repr, layers.names))}; give one a layer"
                )
            return {cut: p for cut, p in enumerate(given, 1) if p > 0.0}
        if callable(given):
            weights = jnp.asarray(given(count, b), jnp.float32)
            if weights.shape != (b,):
                raise ValueError(
                    f"the sampling function returned shape {weights.shape} for {b} layers; it has "
                    "to return one weight a layer"
                )
        elif given == "epoch_shifted":
            assert self.shift_steps is not None
            done = jnp.minimum(jnp.asarray(count, jnp.float32) / self.shift_steps, 1.0)
            up = jnp.arange(1, b + 1, dtype=jnp.float32)
            weights = (1.0 - done) * up[::-1] + done * up
        else:
            return {cut: 1.0 / b for cut in range(1, b + 1)}
        shares = weights / jnp.sum(weights)
        return {cut: shares[cut - 1] for cut in range(1, b + 1)}

    def draw(self, key: jax.Array, count: jax.Array, layers: LayerOrder) -> jax.Array:
        """Returns the cut of the update after ``count`` finished ones, int32."""
        chances = self.probabilities(layers, count)
        cuts = jnp.asarray(list(chances), jnp.int32)
        if len(chances) == 1:
            return cuts[0]
        p = jnp.stack([jnp.asarray(x, jnp.float32) for x in chances.values()])
        # The draw depends on key and step only: every replica has the same one.
        logits = jnp.where(p > 0, jnp.log(jnp.where(p > 0, p, 1.0)), -jnp.inf)
        return cuts[jax.random.categorical(jax.random.fold_in(key, count), logits)]


def switch(
    cut: Any, cuts: Sequence[int], layers: LayerOrder, branch: Callable[[int], Callable[[], Any]]
) -> Any:
    """Runs the branch of a cut: of a Python int or concrete array at once, else by ``lax.switch``.

    Args:
      cut: a Python int, or an int32 scalar.
      cuts: increasing cuts that may come up; for another one the next lower is taken.
      layers: cuts between which no layer has a leaf share a branch.
      branch: returns the function that runs for a cut.

    Returns:
      What the branch returns.
    """
    held = sorted(set(layers.layer_of.values()))
    lowest: dict[int | None, int] = {}
    for s in cuts:
        lowest.setdefault(next((number for number in held if number >= s), None), s)
    starts = list(lowest.values())
    known = starts[0] if len(starts) == 1 else static_cut(cut)
    if known is not None:
        return branch(known)()
    index = jnp.sum(cut >= jnp.asarray(starts, jnp.int32)) - 1
    return jax.lax.switch(index, [branch(s) for s in starts])


def partial_value_and_grad(
    loss: Callable[..., Any],
    order: Sequence[Selector] | None = None,
    *,
    cuts: Sequence[int] | None = None,
    has_aux: bool = False,
    roles: Sequence[RuleLike] = (),
) -> Callable[..., tuple[Any, PyTree]]:
    """``jax.value_and_grad`` whose backward pass stops at a layer.

    1. Layers are numbered from the input as by ``optkit.layer_order``; those below the cut are held
       constant;
    2. ``value, g <- value_and_grad(loss)`` for the leaves of layer ``cut`` and above;
    3. ``g = 0`` for the leaves below it.

    What lies below the cut is neither kept for the backward pass nor passed through by it. With a
    Python int (a static argument of ``jit``) each cut is a program of its own; with an array, such
    as ``optkit.next_cut(state)`` inside ``jit``, one program holds all of them in a ``lax.switch``,
    whose size and compile time grow with the number of cuts.

    Args:
      loss: function of (params, ...) to a scalar, or to (scalar, aux).
      order: as given to ``optkit.drop_layers``; None reads it off the names.
      cuts: the cuts that an array may hold, if not all; those that the sampling draws.
      has_aux: ``loss`` returns an auxiliary value as well.
      roles: your own ``(pattern, role)`` rules.

    Returns:
      A function ``(params, cut, ...) -> (value, gradients)``; the value is ``(value, aux)`` with
      ``has_aux``, gradients are a tree like params.

    Raises:
      ValueError: when called, a cut that is no layer, or an order that does not fit params.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"dense_0": {"kernel": jnp.eye(2)}, "dense_1": {"kernel": jnp.eye(2)}}
      >>> loss = lambda p, x: (x @ p["dense_0"]["kernel"] @ p["dense_1"]["kernel"]).sum()
      >>> value, g = optkit.partial_value_and_grad(loss)(params, 2, jnp.ones((1, 2)))
      >>> float(value), float(g["dense_0"]["kernel"].sum()), float(g["dense_1"]["kernel"].sum())
      (2.0, 0.0, 4.0)

    Reference:
      Gruntkowska et al., Drop-Muon, arXiv 2510.02239.
    """
    allowed = None if cuts is None else sorted(set(cuts))

    def run(params: PyTree, cut: Any, *args: Any, **kwargs: Any) -> tuple[Any, PyTree]:
        layers = layer_order(params, order, roles=roles)
        for given in (cut, *(allowed or ())):
            if isinstance(given, int):
                check_cut(given, layers)
        leaves: list[Any] = jax.tree.leaves(params)
        structure = jax.tree.structure(params)
        numbers = list(layers.layer_of.values())

        def branch(s: int) -> Callable[[], tuple[Any, PyTree]]:
            trained = [i for i, number in enumerate(numbers) if number >= s]

            def value(active: list[Any]) -> Any:
                whole = list(leaves)
                for i, leaf in zip(trained, active, strict=True):
                    whole[i] = leaf
                return loss(jax.tree.unflatten(structure, whole), *args, **kwargs)

            def differentiate() -> tuple[Any, PyTree]:
                active = [leaves[i] for i in trained]
                out, some = jax.value_and_grad(value, has_aux=has_aux)(active)
                grads = [jnp.zeros_like(leaf) for leaf in leaves]
                for i, g in zip(trained, some, strict=True):
                    grads[i] = g
                return out, jax.tree.unflatten(structure, grads)

            return differentiate

        if isinstance(cut, int):
            return branch(cut)()
        return switch(cut, allowed or range(1, layers.count + 1), layers, branch)

    return run

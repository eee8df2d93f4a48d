"""Statistics of layers, read off the program that computes a loss."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from optkit.curvature.calling import loss_of
from optkit.curvature.diagonal import Estimate
from optkit.tree import PyTree, leaves_with_paths

# What a kernel may pass before it meets its inputs.
_PASSING = frozenset({"convert_element_type", "copy", "copy_p"})
_CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "checkpoint": "jaxpr", "remat2": "jaxpr"}


class LayerMeans(NamedTuple):
    """Statistics of one layer."""

    inputs: jax.Array  # like the axes that the kernel sums over: mean over all rows
    outputs: jax.Array  # like the other axes: sum over all rows of the loss's gradient


def layer_means(loss_fn: Callable[..., Any], *args: Any, has_aux: bool = False) -> Estimate:
    """The mean input of each linear layer, and the sum of the gradients of its outputs.

    The loss is traced, whatever library its model is written with (flax.linen, flax.nnx or none);
    each product of an array with a leaf of the parameters, cast or not, is a layer. One forward and
    one backward pass that ends at the outputs of layers, without gradients of kernels. Of a mean
    loss over n rows the sum is the mean of n times the gradients, MKOR's ``d``. A layer that is
    used several times has the mean of all its inputs.

    Layers inside of ``jax.lax.scan``, ``jax.vmap`` over kernels, and convolutions are not seen.

    Nothing is computed until an optimizer asks, so that steps without refresh pay nothing.

    Args:
      loss_fn: ``(params, *args) -> loss``.
      *args: what it takes beside the parameters, such as a batch; a fraction of the batch does.
      has_aux: ``loss_fn`` returns ``(loss, anything)``.

    Returns:
      ``estimate(params, key) -> {path of the kernel: LayerMeans}``, float32; the key is not used.

    Example:
      >>> import jax, jax.numpy as jnp, optkit
      >>> x = jnp.array([[1.0, 2.0], [3.0, 4.0]])
      >>> estimate = optkit.curvature.layer_means(lambda p: jnp.mean((x @ p["up"])[:, 0]))
      >>> means = estimate({"up": jnp.ones((2, 2))}, jax.random.key(0))["up"]
      >>> means.inputs.tolist(), means.outputs.tolist()
      ([2.0, 3.0], [1.0, 0.0])
    """
    loss = loss_of(loss_fn, args, has_aux)

    def estimate(params: PyTree, key: jax.Array) -> dict[str, LayerMeans]:
        del key
        program = jax.make_jaxpr(loss)(params)
        leaves = [leaf for _, leaf in leaves_with_paths(params)]
        marks = [
            _Kernel(path, tuple(range(np.ndim(leaf)))) if np.ndim(leaf) >= 2 else None
            for path, leaf in leaves_with_paths(params)
        ]
        products: dict[str, _Product] = {}

        def run(shifts: dict[str, jax.Array] | None) -> tuple[jax.Array, dict[str, jax.Array]]:
            """The loss with a shift added to the outputs of each layer, and the mean inputs."""
            sums: dict[str, list[tuple[jax.Array, int]]] = {}

            def meet(path: str, value: Any, x: jax.Array, product: _Product) -> Any:
                if products.setdefault(path, product).inputs != product.inputs:
                    return value  # the other way round, such as a tied head
                sums.setdefault(path, []).append(product.summed_inputs(x))
                return value if shifts is None else product.shifted(value, shifts[path])

            (value,), _ = _evaluate(program.jaxpr, program.consts, leaves, marks, meet)
            means = {
                path: sum((s for s, _ in each[1:]), each[0][0]) / max(1, sum(n for _, n in each))
                for path, each in sums.items()
            }
            return value, means

        jax.eval_shape(lambda: run(None))
        zeros = {path: jnp.zeros(each.shape, jnp.float32) for path, each in products.items()}
        gradients, means = jax.grad(run, has_aux=True)(zeros)
        return {path: LayerMeans(means[path], gradients[path]) for path in products}

    return estimate


class _Kernel(NamedTuple):
    """A leaf of the parameters on its way to its inputs."""

    path: str
    axes: tuple[int, ...]  # those of the leaf, in their present order


class _Product(NamedTuple):
    """How inputs meet a kernel, all in the order of the kernel's own axes."""

    inputs: tuple[int, ...]  # axes of the kernel that are summed over
    summed: tuple[int, ...]  # axes of the inputs that they meet
    shape: tuple[int, ...]  # of its other axes
    order: tuple[int, ...]  # where those of the product are among them
    behind: bool  # whether they are the last axes of the product, and not the first

    def summed_inputs(self, x: jax.Array) -> tuple[jax.Array, int]:
        """The sum of all rows of the inputs, and their number."""
        over = tuple(a for a in range(x.ndim) if a not in self.summed)
        total, left = jnp.sum(x.astype(jnp.float32), axis=over), sorted(self.summed)
        ordered = jnp.transpose(total, [left.index(a) for a in self.summed])
        return ordered, int(np.prod([x.shape[a] for a in over]))

    def shifted(self, value: jax.Array, shift: jax.Array) -> jax.Array:
        """The product with one shift for all rows."""
        own = jnp.transpose(shift, self.order)
        others = (1,) * (value.ndim - own.ndim)
        own = own.reshape(*others, *own.shape) if self.behind else own.reshape(*own.shape, *others)
        # Spread before it is cast, so that gradients are summed in float32.
        return value + jnp.broadcast_to(own, value.shape).astype(value.dtype)


def _evaluate(
    jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], marks: Sequence[Any], meet: Any
) -> tuple[list[Any], list[Any]]:
    """Runs a program; ``marks`` name arguments that are kernels, ``meet`` sees their products."""
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))
    marked: dict[Any, _Kernel] = {
        var: mark for var, mark in zip(jaxpr.invars, marks, strict=True) if mark is not None
    }

    def read(x: Any) -> Any:
        return x.val if isinstance(x, core.Literal) else env[x]

    def mark_of(x: Any) -> _Kernel | None:
        return None if isinstance(x, core.Literal) else marked.get(x)

    for eqn in jaxpr.eqns:
        given, names = [read(x) for x in eqn.invars], [mark_of(x) for x in eqn.invars]
        inner = eqn.params.get(_CALLS.get(eqn.primitive.name, ""))
        if inner is not None:
            body, held = getattr(inner, "jaxpr", inner), getattr(inner, "consts", ())
            values, found = _evaluate(body, held, given, names, meet)
        else:
            values, found = _run(jaxpr, eqn, given), [None] * len(eqn.outvars)
            if eqn.primitive.name in _PASSING:
                found = names[:1]
            elif eqn.primitive.name == "transpose" and names[0] is not None:
                axes = tuple(names[0].axes[a] for a in eqn.params["permutation"])
                found = [_Kernel(names[0].path, axes)]
            elif eqn.primitive.name == "dot_general" and any(names):
                values = [_met(eqn, given, names, values[0], meet)]
        env.update(zip(eqn.outvars, values, strict=True))
        marked.update({x: n for x, n in zip(eqn.outvars, found, strict=True) if n is not None})
    return [read(x) for x in jaxpr.outvars], [mark_of(x) for x in jaxpr.outvars]


def _run(jaxpr: Any, eqn: Any, given: list[Any]) -> list[Any]:
    """What one equation computes."""
    made = [x for x in eqn.outvars if not isinstance(x, core.DropVar)]
    slots = {x: value for x, value in zip(eqn.invars, given, strict=True) if type(x) is core.Var}
    part = jaxpr.replace(constvars=[], invars=list(slots), outvars=made, eqns=[eqn])
    values = iter(core.jaxpr_as_fun(core.ClosedJaxpr(part, []))(*slots.values()))
    return [None if isinstance(x, core.DropVar) else next(values) for x in eqn.outvars]


def _met(eqn: Any, given: list[Any], marks: list[Any], value: Any, meet: Any) -> Any:
    """Hands a product with a kernel on, unless it is one of two kernels or of batches of them."""
    (contracted, batched) = eqn.params["dimension_numbers"]
    side = 0 if marks[0] is not None else 1
    if all(mark is not None for mark in marks) or batched[0]:
        return value
    path, axes = marks[side]
    pairs = sorted(
        (axes[a], b) for a, b in zip(contracted[side], contracted[1 - side], strict=True)
    )
    free = [axes[a] for a in range(len(axes)) if a not in contracted[side]]
    product = _Product(
        tuple(a for a, _ in pairs),
        tuple(b for _, b in pairs),
        tuple(given[side].shape[axes.index(a)] for a in sorted(free)),
        tuple(sorted(free).index(a) for a in free),
        side == 1,
    )
    return meet(path, value, given[1 - side], product)

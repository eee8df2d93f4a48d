"""Estimates of the diagonal of a loss's curvature, computed when an optimizer asks for them."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from optkit.curvature.calling import logits_of, loss_of
from optkit.tree import PyTree, leaves_with_paths, upcast, zeros_like_params

# (parameters, PRNG key) -> a tree like the parameters, or statistics of layers.
Estimate = Callable[[PyTree, jax.Array], PyTree]
Probe = Literal["rademacher", "gaussian"]


@dataclass(frozen=True)
class Constant:
    """What ``constant`` returns."""

    value: float

    def __call__(self, params: PyTree, key: jax.Array) -> PyTree:
        """The value for each entry, in float32 or better."""
        del key
        return jax.tree.map(lambda p: jnp.full_like(upcast(p), self.value), params)


def constant(value: float = 1.0) -> Estimate:
    """The same curvature everywhere, at no cost: for ablations, and for what is known beforehand.

    Args:
      value: the curvature of each entry.

    Returns:
      ``estimate(params, key)``, equal for equal values.

    Example:
      >>> import jax, jax.numpy as jnp, optkit
      >>> optkit.curvature.constant(2.0)({"w": jnp.zeros(2)}, jax.random.key(0))["w"].tolist()
      [2.0, 2.0]
    """
    return Constant(float(value))


def at(estimate: Estimate, params: PyTree) -> Estimate:
    """Binds an estimate to a whole model, for optimizers that are given a part of its leaves.

    ``optkit.route``, ``optax.masked`` and their like hand each transformation its own leaves only,
    with which no loss can be computed.

    Args:
      estimate: any estimate.
      params: all parameters, those of this update.

    Returns:
      An estimate that computes with ``params`` whatever it is given.

    Example:
      >>> import jax, jax.numpy as jnp, optkit
      >>> params = {"w": jnp.ones(2), "v": jnp.ones(1)}
      >>> estimate = optkit.curvature.hutchinson(lambda p: p["w"] @ p["w"])
      >>> whole = optkit.curvature.at(estimate, params)
      >>> whole({"w": None, "v": params["v"]}, jax.random.key(0))["w"].tolist()
      [2.0, 2.0]
    """
    return lambda _, key: estimate(params, key)


def _clipped(tree: PyTree, limit: float | None) -> PyTree:
    """Shortens a tree to a global norm, as gradients are clipped."""
    if limit is None:
        return tree
    norm = jnp.sqrt(sum((jnp.sum(jnp.square(x)) for x in jax.tree.leaves(tree)), jnp.zeros(())))
    scale = jnp.where(norm > limit, limit / norm, 1.0)
    return jax.tree.map(lambda x: x * scale, tree)


def gauss_newton_bartlett(
    logits_fn: Callable[..., jax.Array],
    *args: Any,
    where: jax.Array | None = None,
    batch_size: float | jax.Array | None = None,
    clip: float | None = None,
) -> Estimate:
    """The Gauss-Newton diagonal of a cross entropy, from one gradient on labels that it samples.

    1. ``logits = logits_fn(params, *args)``, and ``y ~ Categorical(logits)`` for each row;
    2. ``ghat`` is the gradient of the mean cross entropy of ``y``, none through the sample;
    3. the estimate is ``B*ghat**2``, B the number of rows; its mean is the diagonal of the
       Gauss-Newton matrix of the mean loss, and it is never negative.

    Nothing is computed until an optimizer asks, so that steps without refresh pay nothing.

    Args:
      logits_fn: ``(params, *args) -> logits``, an array ``(..., classes)``.
      *args: what it takes beside the parameters, such as the inputs of a batch; a fraction of the
        batch does.
      where: rows that count, an array of bools like ``logits[..., 0]``; None for all.
      batch_size: what to take for B, None for the number of rows that count.
      clip: global norm to which ``ghat`` is shortened before it is squared; None for none. The
        paper's runs clip it to 1, as they do their gradients.

    Returns:
      ``estimate(params, key)``, a float32 tree like the parameters.

    Raises:
      TypeError: when it is computed: ``logits_fn`` returns no logits.
      ValueError: ``clip`` not above 0; when it is computed: ``where`` of another shape.

    Example:
      >>> import jax, jax.numpy as jnp, optkit
      >>> x = jnp.eye(2)
      >>> estimate = optkit.curvature.gauss_newton_bartlett(lambda p, x: x @ p["w"], x)
      >>> estimate({"w": jnp.zeros((2, 2))}, jax.random.key(0))["w"].tolist()
      [[0.125, 0.125], [0.125, 0.125]]

    Reference:
      Liu et al., Sophia, arXiv 2305.14342, algorithm 2. Its code squares ``ghat`` here and
      multiplies by B in each step.
    """
    if clip is not None and not clip > 0:
        raise ValueError(f"clip={clip!r} must be a norm above 0, or None for none")

    def estimate(params: PyTree, key: jax.Array) -> PyTree:
        def loss(params: PyTree) -> tuple[jax.Array, jax.Array]:
            logits = upcast(logits_of(logits_fn, params, args))
            labels = jax.random.categorical(key, jax.lax.stop_gradient(logits))
            likely = jax.nn.log_softmax(logits)
            said = jnp.take_along_axis(likely, labels[..., None], axis=-1)[..., 0]
            if where is not None and where.shape != said.shape:
                raise ValueError(
                    f"where has shape {where.shape} and the logits have rows {said.shape}: give "
                    "one bool a row"
                )
            counts = jnp.ones_like(said) if where is None else where.astype(said.dtype)
            rows = jnp.maximum(jnp.sum(counts), 1.0)
            return -jnp.sum(said * counts) / rows, rows

        ghat, rows = jax.grad(loss, has_aux=True)(params)
        size = rows if batch_size is None else batch_size
        ghat = _clipped(jax.tree.map(upcast, ghat), clip)
        return jax.tree.map(lambda g: size * g * g, ghat)

    return estimate


def _probe(params: PyTree, key: jax.Array, kind: Probe) -> PyTree:
    """Independent numbers of variance 1, of a leaf's own dtype, that depend on key and path."""
    draw = jax.random.normal if kind == "gaussian" else jax.random.rademacher
    leaves = [
        draw(jax.random.fold_in(key, zlib.crc32(path.encode())), p.shape, p.dtype)
        for path, p in leaves_with_paths(params)
    ]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def hutchinson(
    loss_fn: Callable[..., Any],
    *args: Any,
    probe: Probe = "rademacher",
    samples: int = 1,
    has_aux: bool = False,
) -> Estimate:
    """The diagonal of a loss's Hessian, from products of the Hessian with random vectors.

    ``z*(H z)``, z of independent entries of variance 1, averaged over ``samples``; ``H z`` is a
    derivative of the gradient along z, which costs about two gradients. Its mean is the diagonal;
    entries may be negative. With signs ("rademacher") a diagonal Hessian is found exactly, and the
    variance is the sum of squares off the diagonal; with normal numbers it is larger.

    Nothing is computed until an optimizer asks, so that steps without refresh pay nothing.

    Args:
      loss_fn: ``(params, *args) -> loss``.
      *args: what it takes beside the parameters, such as a batch.
      probe: "rademacher" or "gaussian".
      samples: how many vectors, one after the other.
      has_aux: ``loss_fn`` returns ``(loss, anything)``.

    Returns:
      ``estimate(params, key)``, a float32 tree like the parameters.

    Raises:
      ValueError: an unknown probe, or ``samples`` below 1.

    Example:
      >>> import jax, jax.numpy as jnp, optkit
      >>> estimate = optkit.curvature.hutchinson(lambda p: jnp.sum(p["w"] ** 4))
      >>> estimate({"w": jnp.array([1.0, 2.0])}, jax.random.key(0))["w"].tolist()
      [12.0, 48.0]

    Reference:
      Hutchinson, 1990; Liu et al., Sophia, arXiv 2305.14342, algorithm 1, draws normal numbers;
      optax.contrib.sophia signs.
    """
    if probe not in ("rademacher", "gaussian"):
        raise ValueError(f"probe={probe!r} is not one of 'rademacher', 'gaussian'")
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise ValueError(f"samples={samples!r} must be an integer of at least 1")

    def estimate(params: PyTree, key: jax.Array) -> PyTree:
        gradient = jax.grad(loss_of(loss_fn, args, has_aux))

        def one(index: Any, total: PyTree) -> PyTree:
            z = _probe(params, jax.random.fold_in(key, index), probe)
            _, product = jax.jvp(gradient, (params,), (z,))
            return jax.tree.map(
                lambda t, a, b: t + upcast(a) * upcast(b) / samples, total, z, product
            )

        start = zeros_like_params(params)
        return one(0, start) if samples == 1 else jax.lax.fori_loop(0, samples, one, start)

    return estimate


def hessian_diagonal(loss_fn: Callable[..., Any], *args: Any, has_aux: bool = False) -> Estimate:
    """The exact diagonal of a loss's Hessian, one Hessian-vector product per parameter.

    For tests and for models of some hundred parameters.

    Args:
      loss_fn: ``(params, *args) -> loss``.
      *args: what it takes beside the parameters.
      has_aux: ``loss_fn`` returns ``(loss, anything)``.

    Returns:
      ``estimate(params, key)``, a float32 tree like the parameters; the key is not used.

    Example:
      >>> import jax, jax.numpy as jnp, optkit
      >>> estimate = optkit.curvature.hessian_diagonal(lambda p: p[0] * p[1] + p[1] ** 3)
      >>> estimate(jnp.array([1.0, 2.0]), jax.random.key(0)).tolist()
      [0.0, 12.0]
    """

    def estimate(params: PyTree, key: jax.Array) -> PyTree:
        del key
        gradient = jax.grad(loss_of(loss_fn, args, has_aux))
        leaves, structure = jax.tree.flatten(params)
        out = []
        for index, leaf in enumerate(leaves):

            def along(entry: jax.Array, index: int = index, leaf: jax.Array = leaf) -> jax.Array:
                hot = (jnp.arange(leaf.size) == entry).astype(leaf.dtype).reshape(leaf.shape)
                z = [hot if i == index else jnp.zeros_like(x) for i, x in enumerate(leaves)]
                _, product = jax.jvp(gradient, (params,), (jax.tree.unflatten(structure, z),))
                return jnp.sum(upcast(jax.tree.leaves(product)[index]) * upcast(hot))

            found = jax.lax.map(along, jnp.arange(leaf.size)) if leaf.size else upcast(leaf)
            out.append(found.reshape(leaf.shape))
        return jax.tree.unflatten(structure, out)

    return estimate

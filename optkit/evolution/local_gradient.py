"""Guesses of gradients by losses of a network's blocks, through which no gradient crosses."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from optkit.catalogue import register
from optkit.evolution.forward_gradient import scaled, weighed
from optkit.transforms.hyperparams import check_choice, check_number
from optkit.tree import PyTree

Array = jax.Array
Block = Callable[[PyTree, Array], Array]


def local_losses(
    blocks: Sequence[Block], heads: Sequence[Block], loss: Callable[[Array, Any], Array]
) -> Callable[[Sequence[PyTree], Sequence[PyTree], Any], Array]:
    """Makes the function of all blocks' own losses, through which no gradient crosses a block.

    Args:
      blocks: ``block(params, x) -> x`` on batches; the last one returns the network's output.
      heads: ``head(params, x) -> output`` for each block but the last.
      loss: ``loss(output, labels) -> (n,)`` losses of the examples.

    Returns:
      ``f(params, head_params, (x, labels)) -> (blocks, n)``, the network's own loss in the last
      row. Its gradient for ``head_params`` is what the heads train on.

    Raises:
      ValueError: a number of heads that is not that of the blocks less one.

    Example:
      >>> import jax.numpy as jnp
      >>> from optkit.evolution import local_losses
      >>> dense = lambda w, x: x @ w
      >>> f = local_losses([dense, dense], [dense], lambda out, y: (out[:, 0] - y) ** 2)
      >>> w = jnp.ones((1, 1))
      >>> f([2 * w, 3 * w], [w], (jnp.ones((1, 1)), jnp.zeros(1))).tolist()
      [[4.0], [36.0]]
    """
    _check_heads(blocks, heads)

    def f(params: Sequence[PyTree], head_params: Sequence[PyTree], batch: Any) -> Array:
        x, labels = batch
        rows = []
        for block, own, head, theirs in zip(
            blocks, params, (*heads, _same), (*head_params, None), strict=True
        ):
            x = block(own, jax.lax.stop_gradient(x))
            rows.append(loss(head(theirs, x), labels))
        return jnp.stack(rows)

    return f


def local_guess(
    blocks: Sequence[Block], heads: Sequence[Block], loss: Callable[[Array, Any], Array]
) -> Callable[..., tuple[PyTree, PyTree]]:
    """Makes guesses of the gradients of blocks' own losses, and the true one of the last block.

    Args:
      blocks: as of ``local_losses``.
      heads: as of ``local_losses``.
      loss: as of ``local_losses``.

    Returns:
      ``guess(params, (x, labels), head_params) -> (guess, gradient of head_params)`` for
      ``forward_gradient(..., per="block", has_aux=True)``; both of mean losses.

    Example:
      >>> import jax.numpy as jnp
      >>> from optkit.evolution import local_guess
      >>> dense = lambda w, x: x @ w
      >>> guess = local_guess([dense, dense], [dense], lambda out, y: (out[:, 0] - y) ** 2)
      >>> w = jnp.ones((1, 1))
      >>> [g.item() for g in guess([2 * w, 3 * w], (jnp.ones((1, 1)), jnp.zeros(1)), [w])[0]]
      [4.0, 24.0]
    """
    f = local_losses(blocks, heads, loss)

    def total(params: PyTree, head_params: PyTree, batch: Any) -> Array:
        return jnp.sum(jnp.mean(f(params, head_params, batch), axis=1))

    def guess(params: PyTree, batch: Any, head_params: PyTree) -> tuple[PyTree, PyTree]:
        made: tuple[PyTree, PyTree] = jax.grad(total, (0, 1))(params, head_params, batch)
        return made

    return guess


@register(
    kind="gradient",
    family="evolution",
    paper=("Can Forward Gradient Match Backpropagation?", "2306.06968", 2023),
    state_bytes={"*": 0},
    tags=("forward gradient", "jvp", "local losses"),
    chain="<dL/dout, l>/|l|^2 l of each block's own loss, carried back inside it",
)
def activation_gradient(
    blocks: Sequence[Block],
    heads: Sequence[Block],
    loss: Callable[[Array, Any], Array],
    *,
    project: Literal["per_sample", "sign"] = "per_sample",
    eps: float = 0.0,
) -> Callable[..., tuple[tuple[Array, PyTree], PyTree]]:
    """Makes gradients of guesses for what blocks put out, carried backward inside each block alone.

    For each block but the last: ``l_n`` is the gradient of its own loss for its output, ``c_n`` the
    slope of the network's loss along ``l_n`` over ``|l_n|^2 + eps``, by one forward pass of the
    blocks behind; ``c_n l_n`` goes backward through the block. The last block has its true
    gradient. No example may depend on another of its batch.

    Args:
      blocks: as of ``local_losses``.
      heads: as of ``local_losses``.
      loss: as of ``local_losses``.
      project: "sign" takes the sign of the slope for ``c_n``.
      eps: beside the squared norm.

    Returns:
      ``f(params, (x, labels), head_params) -> ((value, gradient of head_params), gradient)``, of
      mean losses, lists or tuples as they were given, ready for any Optax chain.

    Raises:
      ValueError: another name, or heads that do not fit the blocks.

    Example:
      >>> import jax.numpy as jnp
      >>> from optkit.evolution import activation_gradient
      >>> dense = lambda w, x: x @ w
      >>> f = activation_gradient([dense, dense], [dense], lambda out, y: (out[:, 0] - y) ** 2)
      >>> w = jnp.ones((1, 1))
      >>> (value, _), gradient = f([2 * w, 3 * w], (jnp.ones((1, 1)), jnp.zeros(1)), [w])
      >>> [g.item() for g in gradient]  # the only direction there is: the true gradient
      [36.0, 24.0]

    Reference:
      Can Forward Gradient Match Backpropagation?, https://arxiv.org/abs/2306.06968.
    """
    check_choice("project", project, ("per_sample", "sign"))
    check_number("eps", eps, low=0.0)
    _check_heads(blocks, heads)

    def behind(at: int, params: Sequence[PyTree], x: Array, labels: Any) -> Array:
        for block, own in zip(blocks[at + 1 :], params[at + 1 :], strict=True):
            x = block(own, x)
        return loss(x, labels)

    def guessed(at: int, params: Any, head: PyTree, x: Array, labels: Any) -> tuple[Any, PyTree]:
        """Gradients of a block and of its head."""
        out, back = jax.vjp(lambda own: blocks[at](own, x), params[at])
        own_loss = lambda h, a: jnp.sum(loss(heads[at](h, a), labels))  # noqa: E731
        of_head, local = jax.grad(own_loss, (0, 1))(head, out)
        unit, size = scaled(local.reshape(local.shape[0], -1))
        ahead = unit.reshape(out.shape).astype(out.dtype)
        _, slope = jax.jvp(lambda a: behind(at, params, a, labels), (out,), (ahead,))
        weight = weighed(slope, unit, size, project, eps=eps)
        carried = (weight[:, None] * unit).reshape(out.shape).astype(out.dtype)
        return out, jax.tree.map(lambda g: g / out.shape[0], (back(carried)[0], of_head))

    def f(params: Any, batch: Any, head_params: Any) -> tuple[tuple[Array, PyTree], PyTree]:
        x, labels = batch
        found, of_heads = [], []
        for at in range(len(heads)):
            x, (own, of_head) = guessed(at, params, head_params[at], x, labels)
            found.append(own)
            of_heads.append(of_head)
        last = lambda own: jnp.mean(loss(blocks[-1](own, x), labels))  # noqa: E731
        value, own = jax.value_and_grad(last)(params[-1])
        return (value, type(head_params)(of_heads)), type(params)([*found, own])

    return f


def _same(params: PyTree, x: Array) -> Array:
    del params
    return x


def _check_heads(blocks: Sequence[Block], heads: Sequence[Block]) -> None:
    if len(heads) != len(blocks) - 1:
        raise ValueError(
            f"{len(blocks)} blocks and {len(heads)} heads: give one for each block but the last"
        )

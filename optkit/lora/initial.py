"""LoRA-SB: adapters that start with a first step of full fine-tuning behind them."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from optkit.linalg import canonical_sign
from optkit.transforms.hyperparams import check_number, check_static_int
from optkit.transforms.route import assign, only
from optkit.tree import MATRIX_ROLES, Dims, MatrixLayout, PyTree, RuleLike, Selector, map_groups
from optkit.tree.selection import check_selects


def _leading(d: jax.Array, rank: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Left vectors with canonical signs, singular values, right vectors in rows."""
    u, values, v = jnp.linalg.svd(d, full_matrices=False)
    left = canonical_sign(u[..., :rank])
    turned = jnp.sum(left * u[..., :rank], axis=-2)  # 1 or -1
    return left, values[..., :rank], v[..., :rank, :] * turned[..., None]


def lora_sb_init(
    gradients: PyTree,
    rank: int,
    *,
    learning_rate: float = 1.0,
    where: Selector = MATRIX_ROLES,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
) -> PyTree:
    """Returns adapters ``W + B R A`` whose product is a first step of sign descent on W.

    Of each kernel, G its gradient summed over some samples:

    1. ``D = -learning_rate * sign(G)``;
    2. ``U S V^T`` = the r leading singular values and vectors of D;
    3. ``B = U``, ``R = diag(S)``, ``A = V^T``: ``B R A`` is the best approximation of D of rank r.

    Train R alone, with AdamW, and freeze A, B and W: as ``B^T B = I = A A^T`` the gradient of R is
    ``B^T G A^T``, so that steps of R are those of W, projected, without any scale to be set.

    Args:
      gradients: gradients of the kernels, summed or averaged over samples (the paper: about 0.1% of
        them).
      rank: r.
      learning_rate: the length of the first step an entry; the reference divides the learning rate
        by the number of warm-up steps.
      where: kernels that get an adapter: hidden matrices, or any selector.
      dims: which axes are input and output, see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.

    Returns:
      A tree like ``gradients``, at each chosen kernel ``{"lora_a": (..., fan_in, r), "lora_r":
      (..., r, r), "lora_b": (..., r, fan_out)}`` in float32, which adds ``x @ lora_a @ lora_r @
      lora_b`` to the kernel's outputs, and None at other leaves.

    Raises:
      ValueError: a rank above a kernel's side (names the leaf), or ``where`` names nothing.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> grads = {"up": {"kernel": jnp.ones((4, 6)), "bias": jnp.ones(6)}}
      >>> start = optkit.lora.lora_sb_init(grads, 1, learning_rate=0.1)["up"]["kernel"]
      >>> (start["lora_a"] @ start["lora_r"] @ start["lora_b"]).round(3).tolist()[0]
      [-0.1..., -0.1..., -0.1..., -0.1..., -0.1..., -0.1...]

    Reference:
      Ponkshe et al., LoRA-SB, arXiv 2411.19557. Its code approximates the decomposition in
      bfloat16; this is exact, and signs of singular vectors are fixed.
    """
    check_static_int("rank", rank)
    check_number("learning_rate", learning_rate, low=0.0)
    check_selects("where", where, gradients, roles)
    labels = list(assign(gradients, [(where, "lora"), ("**", "rest")], roles).values())
    layout = MatrixLayout(only(gradients, labels, "lora"), dims, roles)
    for path, view in zip(layout.paths, layout.views, strict=True):
        if rank > min(view.fan_in, view.fan_out):
            raise ValueError(
                f"rank={rank} is above what leaf {path!r} of fan_in {view.fan_in} and fan_out "
                f"{view.fan_out} has; give a smaller one, or leave it out by where="
            )
    signs = [
        -learning_rate * jnp.sign(jnp.asarray(g, jnp.float32))
        for g in layout.split(only(gradients, labels, "lora"), "out")
    ]
    found = map_groups(lambda d: _leading(d, rank), signs)
    started = [
        {
            "lora_a": right.mT,
            "lora_r": values[..., None] * jnp.broadcast_to(jnp.eye(rank), (*values.shape, rank)),
            "lora_b": left.mT,
        }
        for left, values, right in found
    ]
    inside = iter(layout.structure.flatten_up_to(layout.pack(started)))
    leaves = [next(inside) if label == "lora" else None for label in labels]
    return jax.tree.unflatten(jax.tree.structure(gradients), leaves)

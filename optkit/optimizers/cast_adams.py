"""CAST's AdamS: training towards N:M sparsity without a jump."""

from collections.abc import Sequence
from typing import Any, get_args

import jax

from optkit.catalogue import register
from optkit.linalg.sparsity import check_groups
from optkit.transforms import Transformation, descend, split_matrices
from optkit.transforms.adams import Pattern, SecondMoment, adams
from optkit.transforms.hyperparams import (
    ScalarOrSchedule,
    check_choice,
    check_number,
    check_static_int,
)
from optkit.transforms.step import Mask
from optkit.tree import MATRIX_ROLES, Dims, RuleLike


@register(
    kind="recipe",
    family="adaptive",
    paper=(
        "CAST: Continuous and Differentiable Semi-Structured Sparsity-Aware Training for Large "
        "Language Models",
        "2509.25996",
        2025,
    ),
    state_bytes={**dict.fromkeys(MATRIX_ROLES, 9), "*": 8},
    tags=("adam", "sparsity", "n:m", "pruning"),
    chain="N:M mask of p > l1 decay of masked entries inside m/sqrt(v) > learning rate",
)
def cast_adams(
    learning_rate: ScalarOrSchedule = 2e-5,
    *,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    l1_decay: ScalarOrSchedule = 4e-7,
    total_steps: int | jax.Array = 7500,
    pattern: tuple[int, int] = (2, 4),
    mask_interval: int | jax.Array = 10,
    second_moment: SecondMoment = "momentum",
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask = None,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
    state_dtype: Any | None = None,
) -> Transformation:
    """Adam that leads all but N of M neighbouring weights to zero over the whole training run.

    For hidden matrices, with ``t`` the number of finished updates and ``c = 1-b**(t+1)``:

    1. every ``mask_interval`` updates, first of all: of each group of M neighbouring inputs of an
       output, the N weights of largest magnitude are kept (of equal ones the earlier);
    2. ``mu <- b1*mu + (1-b1)*g``; ``a = min(t/total_steps, 1)``;
    3. ``s = mu`` of kept weights, ``(1-a)*mu + a*l1_decay*sign(p)`` of the others;
    4. ``nu <- b2*nu + (1-b2)*s**2``; ``p <- p - lr*(s/c1) / (sqrt(nu/c2) + eps)``.

    Embeddings, heads, norms and biases stay dense: ``s = mu``. Once ``(1-a)*mu`` is
    small beside ``a*l1_decay``, a masked weight moves by about ``lr`` to zero at each update,
    whatever ``l1_decay`` is, and then swings around it by as much: let the learning rate fall,
    and at the end set to zero what ``optkit.linalg.nm_mask`` leaves out. A kept weight does not
    see ``l1_decay``.

    Without matrix work: beyond Adam M comparisons and 5 FLOPs a weight. Choose it to turn a dense
    model into an N:M sparse one with some further training. The paper claims a perplexity 0.09
    above the dense LLaMA2-7B at 2:4 with 2% of its training tokens, with scales of column blocks
    and a distillation loss beside it, which are the model's and the loss's. In
    ``python -m benchmarks.claims nm_sparsity``, a perceptron on digits, pruning changes nothing
    after it, and the sparse loss ends 0.76 (+- 0.21) below that of Adam pruned at the end at 1:8,
    at 2:4 within the spread over seeds; but Adam pruned after two thirds of the steps and trained
    on is as good at both. In a small regression pruning by magnitude ruins what Adam has found and
    changes nothing after this with ``l1_decay=1e-2``, but with 1e-4 it does harm, too: the decay
    acts where it is not small beside the momentum (slow test in
    ``tests/optimizers/test_cast_adams.py``).

    Args:
      learning_rate: a number or a schedule.
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      eps: added to the root.
      l1_decay: strength of the decay, next to the momentum's size; too small for bfloat16
        parameters to feel: use ``optkit.master_weights``.
      total_steps: updates until the masked weights no longer follow their gradients.
      pattern: N and M: weights kept of a group, and its size. A last group that is shorter counts
        as filled up with zeros.
      mask_interval: updates between two masks.
      second_moment: what is squared for leaves that stay dense: "momentum" as for the matrices,
        which the recorded run does, or "gradient", which is Adam.
      weight_decay: coefficient, of decoupled decay; the paper has none.
      mask: leaves that decay.
      dims: see ``optkit.orthogonalize``; says which side of a matrix is its input.
      roles: your own ``(pattern, role)`` rules; they say what stays dense.
      state_dtype: dtype of both moments; float32 for 16-bit parameters if None.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 8 per float32 parameter, and 1 per
      weight of a hidden matrix for the mask.

    Raises:
      ValueError: an option out of range.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"kernel": jnp.array([[4.0], [-3.0], [2.0], [-1.0]])}
      >>> tx = optkit.cast_adams(0.1, l1_decay=1.0, total_steps=1)
      >>> state = tx.init(params)
      >>> for _ in range(2):
      ...   u, state = tx.update({"kernel": jnp.zeros((4, 1))}, state, params)
      >>> (u["kernel"][:, 0] < 0).tolist(), (u["kernel"][:, 0] > 0).tolist()
      ([False, False, True, False], [False, False, False, True])

    Reference:
      CAST, arXiv 2509.25996, its algorithm 1. No code of its authors is public: the recorded
      trajectory is a third party's reading of it, and so is this. The second moment is that of
      ``s``, for kept weights too, where Adam takes the gradient's.
    """
    check_number("b1", b1, low=0.0, high=1.0, open_high=True)
    check_number("b2", b2, low=0.0, high=1.0, open_high=True)
    check_number("eps", eps, low=0.0)
    check_number("l1_decay", l1_decay, low=0.0)
    for name, value in (("total_steps", total_steps), ("mask_interval", mask_interval)):
        if not isinstance(value, jax.Array):  # a number that was injected
            check_static_int(name, value)
    if not isinstance(pattern, tuple) or len(pattern) != 2:
        raise ValueError(f"pattern={pattern!r} must be two numbers, (N, M), such as (2, 4)")
    check_groups(*pattern)
    check_choice("second_moment", second_moment, get_args(SecondMoment))

    matrices, rest = (
        adams(b1, b2, eps, chosen, second_moment, dims=dims, roles=roles, state_dtype=state_dtype)
        for chosen in (Pattern(*pattern, mask_interval, total_steps, l1_decay), None)
    )
    direction = split_matrices(
        matrices, rest, names=("cast_adams", "adams"), dims=dims, roles=roles
    )
    return descend(direction, learning_rate, weight_decay=weight_decay, mask=mask, roles=roles)

"""BAdam: AdamW on one layer at a time."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax

from optkit.catalogue import register
from optkit.transforms import (
    Transformation,
    decay_weights,
    descend,
    rotate_blocks,
    scale_by_adam,
)
from optkit.transforms.blocks import Blocks, Draw, Order
from optkit.transforms.entries import Entries, rotate_entries
from optkit.transforms.hyperparams import ScalarOrSchedule
from optkit.transforms.step import Mask, decay_mask
from optkit.tree import PyTree, Role, RuleLike
from optkit.tree.roles import rule_of


def _check_no_blocks(**given: Any) -> None:
    """Raises ValueError for an option of blocks where entries are chosen."""
    default = {"blocks": "layers", "order": "descending", "first_short": False, "draw": None}
    for name, value in given.items():
        if value != default[name]:
            raise ValueError(
                f"{name}={value!r} is of blocks, and ratio chooses entries of every leaf; leave "
                "one of them out"
            )


def _built(build: Callable[[PyTree], Transformation]) -> Transformation:
    """A transformation that depends on what leaves there are; refuses wrong options at once."""
    build({})
    return Transformation(
        lambda params: build(params).init(params),
        lambda updates, state, params=None, **extra: build(updates).update(
            updates, state, params, **extra
        ),
    )


@register(
    kind="recipe",
    family="memory",
    paper=(
        "BAdam: A Memory Efficient Full Parameter Optimization Method for LLMs",
        "2404.02827",
        2024,
    ),
    state_bytes={"*": 8},
    tags=("adam", "block coordinate descent"),
    chain="rotate_blocks(scale_by_adam > decay) > learning rate",
    example={"blocks": ("**",)},
)
def badam(
    learning_rate: ScalarOrSchedule = 1e-5,
    *,
    blocks: Blocks = "layers",
    refresh_every: int | jax.Array = 100,
    order: Order = "descending",
    first_short: bool = False,
    ratio: float | None = None,
    entries: Entries = "adjacent",
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule = 0.01,
    mask: Mask = None,
    key: int | jax.Array | None = None,
    draw: Draw | None = None,
    roles: Sequence[RuleLike] = (),
    state_dtype: Any | None = None,
) -> Transformation:
    """AdamW on one block of leaves at a time; all others rest, and have no state.

    1. every ``refresh_every`` steps the next block becomes active, and Adam begins anew;
    2. on the active block ``W <- (1 - lr*weight_decay)*W - lr*u``, u Adam's direction.

    With ``ratio`` a share of the entries of *every* leaf is active in place of a block, drawn anew
    at each turn, and eps stands beside the uncorrected root:
    ``u = sqrt(1-b2**n)/(1-b1**n) * m/(sqrt(v) + eps)``. Decay is of those entries only.

    Choose it to fine-tune all weights of a large model on one device: the state is that of one
    layer. Leaves of no block (by default embeddings, head and the last norm) stay as they are.
    Evidence: scores above LoRA's in fine-tuning Llama are the paper's claim. The one table here
    that has it is a regression that needs every direction,
    ``python -m benchmarks.claims low_rank``: with a block of the weights at a time it ends at a
    loss of 2e-2, GaLore at 7e-3 and AdamW at 5e-14.

    Args:
      learning_rate: a number or a schedule; it does not begin anew.
      blocks: "layers" (one a number in the paths), "leaves", or one selector a block, see
        ``optkit.rotate_blocks``.
      refresh_every: steps of each turn.
      order: of the blocks, see there; "epochs" is the code's random order.
      first_short: the first turn is one step shorter, as in the code.
      ratio: share of each leaf's entries, ``int(ratio*size)`` and at least one, that is active
        instead of a block; leaves are flattened for it, and sharded ones gathered.
        None for blocks.
      entries: those of ``ratio``: "adjacent", a run in reading order that begins anywhere and goes
        on at the beginning after the last entry, or "scatter", each one for itself.
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      eps: added to the root.
      weight_decay: coefficient.
      mask: leaves that decay; None for all but norms and biases. The code means that, too, but
        decays all: ``"**"``.
      key: seed or PRNG key of a random order, and of entries; None for 0.
      draw: what stands in for the order, see ``optkit.rotate_blocks``.
      roles: your own ``(pattern, role)`` rules.
      state_dtype: dtype of the moments; float32 for 16-bit parameters if None.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 8 per parameter of one block of
      each kind: of L equal layers, an L-th of Adam's. With ``ratio`` 8 an active entry, and 4
      (``"scatter"``) or 4 a leaf of where they are.

    Raises:
      ValueError: an option out of range, a leaf in two blocks, or layers without numbers; an option
        of blocks beside ``ratio``.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"layers": {str(i): {"kernel": jnp.ones((4, 4))} for i in range(8)}}
      >>> optkit.plan(optkit.badam(1e-5), params).state_bytes < 8 * 16 + 32
      True

    Reference:
      Luo et al., BAdam, arXiv 2404.02827. It keeps float32 copies of the active block, as
      ``optkit.master_weights`` does of all. ``ratio`` is its code's BlockOptimizerRatio, which was
      not run here: where runs begin, that moments begin anew with each turn, and which weights
      decay are read into it, not found there.
    """
    without_decay = isinstance(weight_decay, int | float) and weight_decay == 0

    def decays(path: str, leaf: Any) -> bool:
        return rule_of(path, leaf, roles).role not in (Role.NORM, Role.BIAS)

    chosen = decays if mask is None else mask
    if ratio is not None:
        _check_no_blocks(blocks=blocks, order=order, first_short=first_short, draw=draw)
        adam = scale_by_adam(b1, b2, eps, eps_mode="uncorrected", state_dtype=state_dtype)

        def of_entries(tree: PyTree) -> Transformation:
            links = [adam]
            if not without_decay:
                # The vectors of active entries have no roles; the leaves that they are of have.
                links.append(decay_weights(weight_decay, mask=decay_mask(chosen, tree, roles)))
            inner = optax.chain(*links)
            return rotate_entries(inner, ratio, entries, refresh_every=refresh_every, key=key)

        return descend(_built(of_entries), learning_rate)
    links = [scale_by_adam(b1, b2, eps, state_dtype=state_dtype)]
    if not without_decay:
        links.append(decay_weights(weight_decay, mask=chosen, roles=roles))
    direction = rotate_blocks(
        optax.chain(*links),
        blocks,
        refresh_every=refresh_every,
        order=order,
        first_short=first_short,
        key=key,
        draw=draw,
        roles=roles,
    )
    return descend(direction, learning_rate)

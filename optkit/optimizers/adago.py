"""AdaGO: Muon with AdaGrad's step size, one number a matrix."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optkit import linalg
from optkit.catalogue import StateBytes, register
from optkit.optimizers._shared import adam_for_the_rest, matrix_recipe
from optkit.transforms import Transformation, momentum, orthogonalize
from optkit.transforms.hyperparams import ScalarOrSchedule, check_number, recorded, value_at
from optkit.transforms.orthogonalize import Method
from optkit.transforms.step import Decay, Mask
from optkit.tree import Dims, MatrixLayout, PyTree, RuleLike, map_groups, upcast
from optkit.tree.costs import Sharding


class AdagoState(NamedTuple):
    """State of the direction of ``adago``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    accumulated: PyTree  # float32, (*batch,) a matrix leaf: v^2, the sum of clipped squared norms
    direction: PyTree  # state of momentum and orthogonalization
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


def _adaptive_step(
    direction: optax.GradientTransformation,
    learning_rate: ScalarOrSchedule,
    *,
    gamma: ScalarOrSchedule,
    floor: ScalarOrSchedule,
    initial: float,
    dims: Dims,
    roles: Sequence[RuleLike],
) -> Transformation:
    """Multiplies a direction by ``max(floor/lr, min(norm(g), gamma)/v)``, v from the gradients.

    It stands alone because the floor is on the step with its learning rate, which comes later in
    the chain, and because the norms are those of the gradient, which the direction does not keep.
    """
    check_number("gamma", gamma, low=1e-30)
    check_number("floor", floor, low=0.0)
    check_number("initial", initial, low=1e-30)
    inner = optax.with_extra_args_support(direction)

    def init_fn(params: PyTree) -> AdagoState:
        count = jnp.zeros((), jnp.int32)
        zeros = MatrixLayout(params, dims, roles).zeros(params, lambda view: ())
        start = jax.tree.map(lambda x: x + initial, zeros)
        return AdagoState(
            count, start, inner.init(params), recorded(count, gamma=gamma, floor=floor)
        )

    def update_fn(
        updates: PyTree, state: AdagoState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, AdagoState]:
        out, directed = inner.update(updates, state.direction, params, **extra_args)
        most, least = value_at(gamma, state.count), value_at(floor, state.count)
        rate = jnp.asarray(value_at(learning_rate, state.count), jnp.float32)
        # A learning rate of 0 stops the training, floor or not.
        lowest = jnp.where(rate > 0, least / jnp.where(rate > 0, rate, 1.0), 0.0)

        def step(x: jax.Array, g: jax.Array, v2: jax.Array) -> tuple[jax.Array, jax.Array]:
            norm = jnp.minimum(linalg.frobenius_norm(g, keepdims=False).astype(v2.dtype), most)
            new = v2 + jnp.square(norm)
            size = jnp.maximum(lowest, norm / jnp.sqrt(new))
            return x * size[..., None, None], new

        layout = MatrixLayout(updates, dims, roles)
        grads = layout.split(jax.tree.map(upcast, updates))
        parts = layout.split(jax.tree.map(upcast, out))
        held = layout.unpack(state.accumulated)
        done = map_groups(step, parts, grads, held, move=False)
        new = [v for _, v in done]
        out = layout.merge([x for x, _ in done])
        out = jax.tree.map(lambda x, u: x.astype(u.dtype), out, updates)
        record = recorded(state.count, gamma=gamma, floor=floor)
        return out, AdagoState(state.count + 1, layout.pack(new), directed, record)

    return Transformation(init_fn, update_fn)


_ONE = StateBytes(4, lambda fan_out, fan_in: 4, "4 a matrix")


@register(
    kind="recipe",
    family="matrix",
    paper=("AdaGrad Meets Muon: Adaptive Stepsizes for Orthogonal Updates", "2509.02981", 2025),
    state_bytes={"matrix": _ONE, "stacked": _ONE, "expert": _ONE, "conv": _ONE, "*": 8},
    tags=("muon", "adagrad", "newton-schulz", "confidence medium"),
    chain="momentum > orthogonalize > max(floor/lr, min(norm(g), gamma)/v) > decay > lr; adamw on "
    "the rest",
)
def adago(
    learning_rate: ScalarOrSchedule = 0.05,
    *,
    b1: ScalarOrSchedule = 0.95,
    nesterov: bool = False,
    gamma: ScalarOrSchedule = 10.0,
    floor: ScalarOrSchedule = 5e-4,
    initial: float = 1e-6,
    coefficients: str | Sequence[Sequence[float]] = "jordan",
    steps: int | None = None,
    eps: float | None = None,
    method: Method = "auto",
    weight_decay: ScalarOrSchedule = 0.0,
    decay: Decay = "decoupled",
    mask: Mask = None,
    adam_learning_rate: ScalarOrSchedule = 3e-4,
    adam_weight_decay: ScalarOrSchedule = 0.0,
    other: optax.GradientTransformation | None = None,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
    state_dtype: Any | None = None,
    dtype: Any | None = None,
    group_bytes: int | None = None,
    sharding: Sharding = "auto",
) -> Transformation:
    """Muon whose step shrinks by the gradient norms seen so far; confidence medium.

    For each hidden matrix, and each matrix of a stack by itself:

    1. ``v2 <- v2 + min(norm(g), gamma)**2``, from ``initial`` on; ``v = sqrt(v2)``;
    2. ``m <- b1*m + (1-b1)*g``; ``O = NS(m)``;
    3. ``a = max(floor, lr*min(norm(g), gamma)/v)``; ``W <- W - a*O``, after
       ``W <- (1 - lr*weight_decay)*W``, which is ours.

    With gradients of one size the step falls as ``lr/sqrt(t)``, down to ``floor``, so that no
    schedule is needed; a small gradient takes a small step, which Muon's does not. The size of
    gradients means something here: it is compared with ``gamma`` and ``sqrt(initial)``.

    Embeddings, head, norms and biases go to AdamW with betas (0.9, 0.95) and eps 1e-10, or to
    ``other``. Beyond Muon a step takes about ``3*A*B`` operations, no products of matrices.

    Choose it where no learning rate schedule can be planned. Evidence: the paper's claim to beat
    Muon and Adam on CIFAR-10 and a regression was not repeated by us. There is no reference code,
    and a third party's divides by v2 in step 3, which does not fit the paper's analysis.

    Args:
      learning_rate: largest step of the matrices, a number or a schedule.
      b1: decay rate of the momentum.
      nesterov: look one step ahead.
      gamma: norm that gradients count for at most.
      floor: least step, of the size of a learning rate; the paper's eps. A learning rate of 0
        overrules it.
      initial: first value of ``v2``.
      coefficients: Newton-Schulz coefficients, a name or rows.
      steps: Newton-Schulz steps; None for the set's own number.
      eps: added to the norm in Newton-Schulz; None divides safely at any scale.
      method: how to orthogonalize, see ``optkit.orthogonalize``.
      weight_decay: coefficient for the matrices.
      decay: kind of decay, see ``optkit.decay_weights``.
      mask: matrices that decay.
      adam_learning_rate: step of AdamW on the other leaves.
      adam_weight_decay: its decay.
      other: a whole optimizer for the other leaves instead.
      dims: which axes are input and output, see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.
      state_dtype: dtype of the moments; float32 for 16-bit parameters if None. ``v2`` is float32
        always: in 16 bits its sum stands still after some 250 steps.
      dtype: dtype of the iteration; None for float32.
      group_bytes: bytes of one stack of matrices.
      sharding: how their work is spread over a mesh, see ``optkit.orthogonalize``.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 4 per matrix parameter and 4 per
      matrix, else 8.

    Raises:
      ValueError: an option out of range; at init a leaf that cannot be read as ``dims`` says.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"dense": {"kernel": jnp.eye(2)}}
      >>> tx = optkit.adago(1.0, method="svd")
      >>> state = tx.init(params)
      >>> for _ in range(4):
      ...   u, state = tx.update(params, state, params)
      >>> round(float(u["dense"]["kernel"][0, 0]), 3)  # 1 / sqrt(4)
      -0.5

    Reference:
      Zhang, Liu and Schaeffer, AdaGrad Meets Muon, arXiv 2509.02981, from its update rule alone.
    """
    reading: dict[str, Any] = {"dims": dims, "roles": roles}
    direction = optax.chain(
        momentum(b1, nesterov=nesterov, state_dtype=state_dtype),
        orthogonalize(
            method,
            coefficients=coefficients,
            steps=steps,
            eps=eps,
            dtype=dtype,
            group_bytes=group_bytes,
            sharding=sharding,
            **reading,
        ),
    )
    sized = _adaptive_step(
        direction, learning_rate, gamma=gamma, floor=floor, initial=initial, **reading
    )
    rest = adam_for_the_rest(
        other,
        adam_learning_rate,
        eps=1e-10,
        state_dtype=state_dtype,
        weight_decay=adam_weight_decay,
    )
    return matrix_recipe(
        "adago",
        (sized,),
        learning_rate,
        rest,
        weight_decay=weight_decay,
        decay=decay,
        mask=mask,
        **reading,
    )

"""AuON: momentum divided by the root mean square of its cosh, and its hybrid with Muon."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import optax

from optkit.catalogue import register
from optkit.optimizers._shared import matrix_recipe
from optkit.transforms import Transformation, descend, momentum, orthogonalize, scale_by_cosh_rms
from optkit.transforms.hyperparams import ScalarOrSchedule, check_choice
from optkit.transforms.orthogonalize import Method
from optkit.transforms.step import Decay, Mask
from optkit.tree import Dims, RuleLike
from optkit.tree.costs import Sharding

Form = Literal["code", "paper"]
_PAPER = ("AuON: A Linear-time Alternative to Semi-Orthogonal Momentum Updates", "2509.24320", 2025)


class _Form(NamedTuple):
    gamma: float
    normalize: bool
    steps: int | None  # Newton-Schulz steps of the hybrid; None for the coefficients' own number


_FORMS = {"code": _Form(1.5, False, None), "paper": _Form(1.0, True, 1)}


def _form(name: Form) -> _Form:
    check_choice("form", name, get_args(Form))
    return _FORMS[name]


@register(
    kind="recipe",
    family="normalised",
    paper=_PAPER,
    state_bytes={"*": 4},
    tags=("auon", "momentum", "normalised"),
    chain="momentum > scale_by_cosh_rms > decay > learning rate",
)
def auon(
    learning_rate: ScalarOrSchedule = 0.24,
    *,
    b1: ScalarOrSchedule = 0.95,
    nesterov: bool = True,
    form: Form = "code",
    gamma: float | None = None,
    eps: float | None = None,
    weight_decay: ScalarOrSchedule = 0.0,
    decay: Decay = "decoupled",
    mask: Mask = None,
    roles: Sequence[RuleLike] = (),
    state_dtype: Any | None = None,
) -> Transformation:
    """Nesterov momentum divided by a number between 1 and cosh(gamma).

    For each hidden matrix, and every other leaf as a whole, with N entries:

    1. ``m <- b1*m + (1-b1)*g``; ``u = (1-b1)*g + b1*m``;
    2. ``z = u/norm(u)``; ``R = sqrt(mean(cosh(gamma*z)**2))``;
    3. "code": ``W <- (1 - lr*weight_decay)*W - lr*u/R`` with gamma 1.5;
       "paper": ``W <- (1 - lr*weight_decay)*W - lr*z/R`` with gamma 1.

    A leaf whose u is zero decays and does not move. As ``R = 1 + gamma**2/(2N)`` nearly, the code's
    form is SGD with Nesterov momentum on all but tiny leaves, and the paper's is the same with each
    matrix divided by its Frobenius norm: choose it for its cost, ``7*N`` operations, and not in the
    hope of Muon's results. The paper's own table has AuON far behind AdamW and Muon (loss 0.43
    against 0.069 and 0.0375). In ``python -m benchmarks.claims hybrid_auon``, a byte language
    model, the code's form ends within 0.01 bits a byte of SGD with momentum (3.263 and 3.272), the
    paper's at 3.201, and Muon at 2.923.

    Args:
      learning_rate: a number or a schedule; the authors' examples have 0.08 too.
      b1: decay rate of the momentum.
      nesterov: look one step ahead.
      form: the published code, or the paper.
      gamma: factor in the cosh; None for that of the form.
      eps: added to the norm (the code: 1e-7); None divides safely at any scale.
      weight_decay: coefficient.
      decay: kind of decay, see ``optkit.decay_weights``.
      mask: leaves that decay.
      roles: your own ``(pattern, role)`` rules: they say which leaves are stacks.
      state_dtype: dtype of ``m``; float32 for 16-bit parameters if None.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 4 per parameter.

    Raises:
      ValueError: an option out of range or unknown.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params, tx = {"w": jnp.zeros(4096)}, optkit.auon(1.0, b1=0.0)
      >>> u, _ = tx.update({"w": jnp.ones(4096)}, tx.init(params), params)
      >>> round(float(u["w"][0]), 3)  # plain SGD
      -1.0

    Reference:
      Maity, AuON, arXiv 2509.24320. Of a stack of matrices the code takes one norm, we one each.
    """
    own = _form(form)
    direction = optax.chain(
        momentum(b1, nesterov=nesterov, state_dtype=state_dtype),
        scale_by_cosh_rms(
            own.gamma if gamma is None else gamma, normalize=own.normalize, eps=eps, roles=roles
        ),
    )
    return descend(
        direction, learning_rate, weight_decay=weight_decay, decay=decay, mask=mask, roles=roles
    )


@register(
    kind="recipe",
    family="matrix",
    paper=_PAPER,
    state_bytes={"*": 4},
    tags=("auon", "muon", "newton-schulz"),
    chain="momentum > orthogonalize > scale_by_cosh_rms > decay > learning rate; auon on the rest",
)
def hybrid_auon(
    learning_rate: ScalarOrSchedule = 0.24,
    *,
    b1: ScalarOrSchedule = 0.95,
    nesterov: bool = True,
    form: Form = "code",
    gamma: float | None = None,
    coefficients: str | Sequence[Sequence[float]] = "jordan",
    steps: int | None = None,
    eps: float | None = None,
    method: Method = "auto",
    weight_decay: ScalarOrSchedule = 0.0,
    decay: Decay = "decoupled",
    mask: Mask = None,
    other: optax.GradientTransformation | None = None,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
    state_dtype: Any | None = None,
    dtype: Any | None = None,
    group_bytes: int | None = None,
    sharding: Sharding = "auto",
) -> Transformation:
    """AuON behind an orthogonalization: Muon without a shape factor, or one step towards it.

    For hidden matrices:

    1. ``m <- b1*m + (1-b1)*g``; ``u = (1-b1)*g + b1*m``;
    2. ``O = NS(u)``: five steps ("code") or one ("paper");
    3. ``z = O/norm(O)``; ``R = sqrt(mean(cosh(gamma*z)**2))``;
    4. "code": ``W <- (1 - lr*weight_decay)*W - lr*O/R`` with gamma 1.5;
       "paper": ``W <- (1 - lr*weight_decay)*W - lr*z/R`` with gamma 1.

    All other leaves go to ``optkit.auon`` of the same options, as in the published code, or to
    ``other``. ``R`` is 1 but for tiny matrices: "code" is Muon without its shape factor. "paper"
    takes a fifth of Muon's matrix work: ``4*m**2*n + 2*m**3`` operations a matrix with sides m and
    n, m the shorter.

    Choose "paper" where Newton-Schulz is what a step waits for. Evidence: the paper's table has
    Hybrid (0.042) behind Muon (0.0375) and before AdamW (0.069). In
    ``python -m benchmarks.claims hybrid_auon``, a byte language model, the one step of "paper" ends
    at 3.152 bits a byte, the five of "code" at 2.945, AuON without any at 3.201 and Muon at 2.923;
    AdamW is not in it.

    Args:
      learning_rate: a number or a schedule.
      b1: decay rate of the momentum.
      nesterov: look one step ahead.
      form: the published code, or the paper.
      gamma: factor in the cosh; None for that of the form.
      coefficients: Newton-Schulz coefficients, a name or rows.
      steps: Newton-Schulz steps; None for the set's own number ("code") or 1 ("paper").
      eps: added to both norms (the code: 1e-7); None divides safely at any scale.
      method: how to orthogonalize, see ``optkit.orthogonalize``.
      weight_decay: coefficient for all leaves.
      decay: kind of decay, see ``optkit.decay_weights``.
      mask: matrices that decay.
      other: a whole optimizer for the other leaves instead.
      dims: which axes are input and output, see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.
      state_dtype: dtype of ``m``; float32 for 16-bit parameters if None.
      dtype: dtype of the iteration; None for float32.
      group_bytes: bytes of one stack of matrices.
      sharding: how their work is spread over a mesh, see ``optkit.orthogonalize``.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 4 per parameter.

    Raises:
      ValueError: an option out of range; at init a leaf that cannot be read as ``dims`` says.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"dense": {"kernel": jnp.eye(64)}}
      >>> tx = optkit.hybrid_auon(1.0, method="svd")
      >>> u, _ = tx.update(params, tx.init(params), params)
      >>> round(float(u["dense"]["kernel"][0, 0]), 2)
      -1.0

    Reference:
      Maity, AuON, arXiv 2509.24320. The paper prints R without its root in the hybrid's section; we
      take the root in both forms. Embeddings and heads are matrices to the code and not to us.
    """
    own = _form(form)
    reading: dict[str, Any] = {"dims": dims, "roles": roles}
    chosen = own.gamma if gamma is None else gamma
    links = (
        momentum(b1, nesterov=nesterov, state_dtype=state_dtype),
        orthogonalize(
            method,
            coefficients=coefficients,
            steps=own.steps if steps is None else steps,
            eps=eps,
            dtype=dtype,
            group_bytes=group_bytes,
            sharding=sharding,
            **reading,
        ),
        scale_by_cosh_rms(chosen, normalize=own.normalize, eps=eps, **reading),
    )
    decaying: dict[str, Any] = {"weight_decay": weight_decay, "decay": decay}
    rest = auon(
        learning_rate,
        b1=b1,
        nesterov=nesterov,
        form=form,
        gamma=gamma,
        eps=eps,
        roles=roles,
        state_dtype=state_dtype,
        **decaying,
    )
    route = ("auon", rest) if other is None else ("other", other)
    return matrix_recipe(
        "hybrid_auon", links, learning_rate, route, mask=mask, **decaying, **reading
    )

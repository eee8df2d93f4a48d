"""Utility-based perturbed gradient descent, plain and behind Adam."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from optkit.catalogue import register
from optkit.transforms import Transformation, descend, scale_by_adam, utility_gate
from optkit.transforms.hyperparams import ScalarOrSchedule
from optkit.transforms.noise import Key
from optkit.transforms.step import Decay, Mask
from optkit.transforms.utility_gate import Profile
from optkit.tree import Dims, RuleLike

_PAPER = (
    "Addressing Loss of Plasticity and Catastrophic Forgetting in Continual Learning",
    "2302.03281",
    2023,
)


@register(
    kind="recipe",
    family="continual",
    paper=_PAPER,
    state_bytes={"*": 4},
    tags=("upgd", "plasticity", "noise"),
    chain="utility_gate > decay > learning rate",
)
def upgd(
    learning_rate: ScalarOrSchedule = 1e-2,
    *,
    b: ScalarOrSchedule = 0.999,
    sigma: ScalarOrSchedule = 1e-3,
    profile: Profile = "paper_global",
    rows: Literal["fan_in", "last_axis"] = "fan_in",
    weight_decay: ScalarOrSchedule = 0.0,
    decay: Decay = "decoupled",
    mask: Mask = None,
    key: Key = None,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
    state_dtype: Any | None = None,
) -> Transformation:
    """Gradient descent that protects useful weights and perturbs useless ones.

    With ``n`` the number of the update, counted from 1, and ``z`` standard normal:

    1. ``U <- b*U - (1-b)*g*p``; ``V = U/(1-b**n)``;
    2. ``w = 1 - sigmoid(V/eta)``, ``eta`` and ``k`` by the profile, see ``optkit.utility_gate``;
    3. ``p <- (1 - lr*weight_decay)*p - lr*k*(g + sigma*z)*w``.

    Extra work: some ten operations and a normal number per parameter, no matrix products. When to
    choose: streams of tasks, where plain methods forget the old ones or cease to learn new ones; on
    a single task the gate only makes steps shorter. That it alone improves from task to task on
    label-permuted CIFAR-10, EMNIST and mini-ImageNet is the paper's claim. In
    ``python -m benchmarks.claims plasticity``, where labels of digits are drawn anew 25 times, it
    is no better than SGD: its loss in the last quarter is 1.840 against 1.836, and has grown by
    0.250 since the first one against 0.158.

    On a stream of small regressions that differ by a permutation of their inputs it learns faster
    than SGD with decay, and faster still with the profile "experiment_local"; the noise changed
    nothing there (slow test in ``tests/optimizers/test_upgd.py``).

    Args:
      learning_rate: a number or a schedule; the gate halves steps or so. The reference's README
        has 1e-5.
      b: decay rate of the utility; the reference's experiments default to 0, its README to 0.999.
      sigma: deviation of the noise, in the gradient's units; the experiments default to 1.
      profile: which of the reference's forms, see ``optkit.utility_gate``.
      rows: what a local profile calls a row.
      weight_decay: coefficient; the README has 1e-3.
      decay: kind of decay, see ``optkit.decay_weights``.
      mask: leaves that decay.
      key: seed or PRNG key of the noise; None for 0. ``update(..., noise=tree)`` takes recorded
        numbers.
      dims: matrix axes of a local profile.
      roles: your own ``(pattern, role)`` rules for a local profile.
      state_dtype: dtype of ``U``; float32 for 16-bit parameters if None.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 4 per float32 parameter, and a key.

    Raises:
      ValueError: an option out of range or unknown, or params not given to update.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params, tx = {"w": jnp.array([1.0, 2.0])}, optkit.upgd(1.0, sigma=0.0)
      >>> u, _ = tx.update({"w": jnp.array([-1.0, -1.0])}, tx.init(params), params)
      >>> [round(float(x), 3) for x in u["w"]]
      [0.378, 0.269]

    Reference:
      Elsayed and Mahmood, arXiv 2302.03281 (ICLR 2024).
    """
    gate = utility_gate(
        b=b,
        sigma=sigma,
        profile=profile,
        rows=rows,
        key=key,
        dims=dims,
        roles=roles,
        state_dtype=state_dtype,
    )
    return descend(gate, learning_rate, weight_decay=weight_decay, decay=decay, mask=mask)


@register(
    kind="recipe",
    family="continual",
    paper=_PAPER,
    state_bytes={"*": 12},
    tags=("upgd", "plasticity", "noise", "adam"),
    chain="utility_gate(scale_by_adam) > decay > learning rate",
)
def upgd_adam(
    learning_rate: ScalarOrSchedule = 1e-3,
    *,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-5,
    b: ScalarOrSchedule = 0.999,
    sigma: ScalarOrSchedule = 1e-3,
    profile: Profile = "paper_global",
    rows: Literal["fan_in", "last_axis"] = "fan_in",
    weight_decay: ScalarOrSchedule = 0.0,
    decay: Decay = "decoupled",
    mask: Mask = None,
    key: Key = None,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
    state_dtype: Any | Mapping[str, Any] | None = None,
) -> Transformation:
    """Adam whose steps are held back at useful weights and stirred at useless ones.

    With ``n`` the number of the update, counted from 1, and ``z`` standard normal:

    1. ``mu <- b1*mu + (1-b1)*g``; ``nu <- b2*nu + (1-b2)*g**2``;
       ``a = (mu/c1)/(sqrt(nu/c2) + eps)``;
    2. ``U <- b*U - (1-b)*g*p``, of the raw gradient; ``V = U/(1-b**n)``;
    3. ``w = 1 - sigmoid(V/eta)``, ``eta`` and ``k`` by the profile, see ``optkit.utility_gate``;
    4. ``p <- (1 - lr*weight_decay)*p - lr*k*(a + sigma*z)*w``.

    Extra work: some ten operations and a normal number per parameter beside Adam's. When to choose:
    streams of tasks on which Adam is what one would use otherwise, as in reinforcement learning,
    for which the authors have it. The reference's form is profile="readme_global".

    Args:
      learning_rate: a number or a schedule.
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      eps: added to the root.
      b: decay rate of the utility.
      sigma: deviation of the noise, where Adam's steps are of size 1.
      profile: which of the reference's forms, see ``optkit.utility_gate``.
      rows: what a local profile calls a row.
      weight_decay: coefficient.
      decay: kind of decay, see ``optkit.decay_weights``.
      mask: leaves that decay.
      key: seed or PRNG key of the noise; None for 0. ``update(..., noise=tree)`` takes recorded
        numbers.
      dims: matrix axes of a local profile.
      roles: your own ``(pattern, role)`` rules for a local profile.
      state_dtype: dtype of all three averages, or ``{"mu": ..., "nu": ..., "utility": ...}``;
        float32 for 16-bit parameters if None.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 12 per float32 parameter, and a
      key.

    Raises:
      ValueError: an option out of range or unknown, or params not given to update.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params, tx = {"w": jnp.array([1.0, 2.0])}, optkit.upgd_adam(1.0, sigma=0.0)
      >>> u, _ = tx.update({"w": jnp.array([-3.0, -3.0])}, tx.init(params), params)
      >>> [round(float(x), 3) for x in u["w"]]
      [0.378, 0.269]

    Reference:
      Elsayed and Mahmood, arXiv 2302.03281 (ICLR 2024), AdaptiveUPGD of its code.
    """
    dtypes, own = state_dtype, state_dtype
    if isinstance(state_dtype, Mapping):
        dtypes = {name: value for name, value in state_dtype.items() if name != "utility"}
        own = state_dtype.get("utility")
    gate = utility_gate(
        scale_by_adam(b1, b2, eps, state_dtype=dtypes),
        b=b,
        sigma=sigma,
        profile=profile,
        rows=rows,
        key=key,
        dims=dims,
        roles=roles,
        state_dtype=own,
    )
    return descend(gate, learning_rate, weight_decay=weight_decay, decay=decay, mask=mask)

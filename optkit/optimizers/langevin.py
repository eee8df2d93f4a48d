"""Samplers: SGLD, pSGLD, and Adam with Langevin noise in two forms."""

from typing import Any

import optax

from optkit.catalogue import register
from optkit.transforms import Transformation, descend, langevin_noise, scale_by_adam
from optkit.transforms.hyperparams import ScalarOrSchedule
from optkit.transforms.langevin import adam_drift, adam_preconditioner, scale_by_mean_square
from optkit.transforms.noise import Key
from optkit.transforms.step import Decay, Mask

_LMC = (
    "Provable and Practical: Efficient Exploration in Reinforcement Learning via Langevin Monte "
    "Carlo",
    "2305.18246",
    2023,
)


@register(
    kind="recipe",
    family="sampling",
    paper=("Bayesian Learning via Stochastic Gradient Langevin Dynamics", None, 2011),
    state_bytes={"*": 0},
    tags=("langevin", "noise", "bayes"),
    chain="langevin_noise(decay > learning rate)",
)
def sgld(
    learning_rate: ScalarOrSchedule = 1e-3,
    *,
    temperature: ScalarOrSchedule = 1e-6,
    weight_decay: ScalarOrSchedule = 0.0,
    decay: Decay = "coupled",
    mask: Mask = None,
    key: Key = None,
) -> Transformation:
    """Gradient descent with just the noise that makes it sample the posterior.

    1. ``p <- p - lr*(g + weight_decay*p) + sqrt(2*lr*temperature)*z``, ``z`` standard normal.

    For a mean loss over N examples and ``temperature=1/N`` the parameters come to be distributed as
    ``exp(-N*loss)``, the posterior; ``weight_decay`` is then a Gaussian prior of precision
    ``N*weight_decay``. On a loss ``h*p**2/2`` the variance is ``temperature/(h*(1 - lr*h/2))``,
    which shows what a finite learning rate does; noise of small batches comes on top.

    Extra work: a normal number per parameter. When to choose: to average predictions over samples,
    after the learning rate has fallen; to explore; not to reach the lowest loss.

    Args:
      learning_rate: a number or a schedule.
      temperature: 1/N for a posterior, smaller for a "cold" one; 0 is plain gradient descent.
      weight_decay: coefficient.
      decay: kind of decay, see ``optkit.decay_weights``; the default is a prior.
      mask: leaves that decay.
      key: seed or PRNG key; None for 0. ``update(..., noise=tree)`` takes recorded numbers.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 0 per parameter, and a key.

    Raises:
      ValueError: an option out of range.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params, tx = {"w": jnp.ones(2)}, optkit.sgld(0.5, temperature=0.0)
      >>> tx.update({"w": jnp.array([1.0, -2.0])}, tx.init(params), params)[0]["w"].tolist()
      [-0.5, 1.0]

    Reference:
      Welling and Teh, 2011; their step size is ``2*lr/N`` here.
    """
    step = descend(
        optax.identity(), learning_rate, weight_decay=weight_decay, decay=decay, mask=mask
    )
    return langevin_noise(step, learning_rate, temperature=temperature, key=key)


@register(
    kind="recipe",
    family="sampling",
    paper=(
        "Preconditioned Stochastic Gradient Langevin Dynamics for Deep Neural Networks",
        "1512.07666",
        2015,
    ),
    state_bytes={"*": 4},
    tags=("langevin", "noise", "bayes"),
    chain="langevin_noise(g / (eps + sqrt(nu)) > decay > learning rate)",
)
def psgld(
    learning_rate: ScalarOrSchedule = 1e-3,
    *,
    b2: ScalarOrSchedule = 0.99,
    eps: ScalarOrSchedule = 1e-5,
    temperature: ScalarOrSchedule = 1e-6,
    weight_decay: ScalarOrSchedule = 0.0,
    decay: Decay = "coupled",
    mask: Mask = None,
    key: Key = None,
    state_dtype: Any | None = None,
) -> Transformation:
    """SGLD with RMSprop's preconditioner: wide steps and wide noise where gradients are small.

    1. ``nu <- b2*nu + (1-b2)*g**2``, not debiased; ``G = 1/(eps + sqrt(nu))``;
    2. ``p <- p - lr*G*g + sqrt(2*lr*temperature*G)*z``, ``z`` standard normal.

    What the moving ``G`` would add to the drift is left out, as the paper does in practice: the
    distribution is exact only as far as ``G`` stands still.

    Extra work: a normal number and a few operations per parameter. When to choose: SGLD where
    curvatures of parameters differ much.

    Args:
      learning_rate: a number or a schedule.
      b2: decay rate of the squared gradients.
      eps: ``lambda`` of the paper.
      temperature: 1/N for the posterior of N examples.
      weight_decay: coefficient.
      decay: kind of decay, see ``optkit.decay_weights``. A "coupled" one enters ``nu``, where the
        paper has the likelihood's gradient alone.
      mask: leaves that decay.
      key: seed or PRNG key; None for 0. ``update(..., noise=tree)`` takes recorded numbers.
      state_dtype: dtype of ``nu``; float32 for 16-bit parameters if None.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 4 per float32 parameter, and a key.

    Raises:
      ValueError: an option out of range.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params, tx = {"w": jnp.ones(2)}, optkit.psgld(0.5, b2=0.75, eps=0.0, temperature=0.0)
      >>> tx.update({"w": jnp.array([4.0, -0.5])}, tx.init(params), params)[0]["w"].tolist()
      [-1.0, 1.0]

    Reference:
      Li et al., arXiv 1512.07666.
    """
    direction, preconditioner = scale_by_mean_square(b2, eps, state_dtype)
    return langevin_noise(
        descend(direction, learning_rate, weight_decay=weight_decay, decay=decay, mask=mask),
        learning_rate,
        temperature=temperature,
        preconditioner=preconditioner,
        key=key,
    )


@register(
    kind="recipe",
    family="sampling",
    paper=_LMC,
    state_bytes={"*": 8},
    tags=("langevin", "noise", "adam"),
    chain="langevin_noise(decay > scale_by_adam > learning rate)",
)
def langevin_adam(
    learning_rate: ScalarOrSchedule = 1e-3,
    *,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    temperature: ScalarOrSchedule = 1e-4,
    weight_decay: ScalarOrSchedule = 0.0,
    decay: Decay = "coupled",
    mask: Mask = None,
    key: Key = None,
    state_dtype: Any | None = None,
) -> Transformation:
    """Adam, and noise that its own preconditioner shapes.

    With ``c1 = 1-b1**n``, ``c2 = 1-b2**n`` and ``z`` standard normal:

    1. ``g <- g + weight_decay*p``; ``mu``, ``nu`` as Adam;
    2. ``p <- p - lr*(mu/c1)/(sqrt(nu/c2) + eps)``;
    3. ``p <- p + sqrt(2*lr*temperature*G)*z``, ``G = sqrt(c2)/c1/(sqrt(nu) + eps)``.

    An entry that never had a gradient has ``G`` of the order 1/eps, and is stirred by 1e+4 times
    the root of ``2*lr*temperature``: raise eps if such entries matter.

    Extra work: a normal number and a few operations per parameter beside Adam's. When to choose:
    exploration in reinforcement learning, for which the authors have it; there is no law that it
    samples exactly.

    Args:
      learning_rate: a number or a schedule.
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      eps: added to both roots.
      temperature: the square of the reference's noise_scale, whose default is 0.01.
      weight_decay: coefficient.
      decay: kind of decay, see ``optkit.decay_weights``.
      mask: leaves that decay.
      key: seed or PRNG key; None for 0. ``update(..., noise=tree)`` takes recorded numbers.
      state_dtype: dtype of both moments, or ``{"mu": ..., "nu": ...}``.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 8 per float32 parameter, and a key.

    Raises:
      ValueError: an option out of range.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params, tx = {"w": jnp.ones(2)}, optkit.langevin_adam(0.5, temperature=0.0)
      >>> u, _ = tx.update({"w": jnp.array([4.0, -0.5])}, tx.init(params), params)
      >>> [round(float(x), 3) for x in u["w"]]
      [-0.5, 0.5]

    Reference:
      Ishfaq et al., arXiv 2305.18246 (ICLR 2024), LangevinAdam of its code.
    """
    adam = scale_by_adam(b1, b2, eps, state_dtype=state_dtype)
    return langevin_noise(
        descend(adam, learning_rate, weight_decay=weight_decay, decay=decay, mask=mask),
        learning_rate,
        temperature=temperature,
        preconditioner=adam_preconditioner(b1, b2, eps),
        key=key,
    )


@register(
    kind="recipe",
    family="sampling",
    paper=_LMC,
    state_bytes={"*": 8},
    tags=("langevin", "noise", "adam"),
    chain="langevin_noise(decay > g + a mu/(sqrt(nu) + eps) > learning rate)",
)
def adam_sgld(
    learning_rate: ScalarOrSchedule = 1e-4,
    *,
    drift: ScalarOrSchedule = 1.0,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    temperature: ScalarOrSchedule = 1e-4,
    weight_decay: ScalarOrSchedule = 0.0,
    decay: Decay = "coupled",
    mask: Mask = None,
    key: Key = None,
    state_dtype: Any | None = None,
) -> Transformation:
    """SGLD with Adam's direction as a bias of its drift.

    1. ``g <- g + weight_decay*p``; ``mu <- b1*mu + (1-b1)*g``; ``nu <- b2*nu + (1-b2)*g**2``,
       neither debiased;
    2. ``p <- p - lr*g - lr*drift*mu/(sqrt(nu) + eps) + sqrt(2*lr*temperature)*z``.

    As ``nu`` is not debiased, the first bias is ``(1-b1)/sqrt(1-b2)`` long, 3.2 with the defaults.

    Extra work: a normal number per parameter beside Adam's. When to choose: exploration in
    reinforcement learning, for which its authors have it.

    Args:
      learning_rate: a number or a schedule.
      drift: ``a``; the authors try 1, 0.1 and 0.01, and 0 is SGLD.
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      eps: added to the root.
      temperature: the square of the reference's noise_scale: 0.01 by default there, 1e-8 to 1e-6
        in its Atari runs.
      weight_decay: coefficient.
      decay: kind of decay, see ``optkit.decay_weights``.
      mask: leaves that decay.
      key: seed or PRNG key; None for 0. ``update(..., noise=tree)`` takes recorded numbers.
      state_dtype: dtype of both moments; float32 for 16-bit parameters if None.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 8 per float32 parameter, and a key.

    Raises:
      ValueError: an option out of range.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params, tx = {"w": jnp.ones(1)}, optkit.adam_sgld(1.0, b1=0.5, b2=0.75, temperature=0.0)
      >>> tx.update({"w": jnp.array([4.0])}, tx.init(params), params)[0]["w"].tolist()
      [-5.0]

    Reference:
      Ishfaq et al., arXiv 2305.18246 (ICLR 2024), aSGLD of its code, after arXiv 2009.09535.
    """
    direction = adam_drift(drift, b1, b2, eps, state_dtype)
    step = descend(direction, learning_rate, weight_decay=weight_decay, decay=decay, mask=mask)
    return langevin_noise(step, learning_rate, temperature=temperature, key=key)

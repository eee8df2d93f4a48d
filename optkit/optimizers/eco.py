"""SGD and AdamW without master weights."""

from typing import Literal

import jax

from optkit.catalogue import register
from optkit.codecs import Codec
from optkit.transforms import Transformation, descend, eco, momentum, scale_by_adam
from optkit.transforms.hyperparams import ScalarOrSchedule
from optkit.transforms.step import Decay, Mask
from optkit.tree import Selector


@register(
    kind="recipe",
    family="precision",
    paper=("ECO: Quantized Training without Full-Precision Master Weights", "2601.22101", 2026),
    state_bytes={"*": 4},
    tags=("quantization", "momentum", "fp8"),
    chain="eco(momentum > decay > learning rate)",
)
def eco_sgdm(
    learning_rate: ScalarOrSchedule = 1e-2,
    *,
    b1: ScalarOrSchedule = 0.9,
    kind: Literal["ema", "heavy_ball"] = "ema",
    weight_decay: ScalarOrSchedule = 0.0,
    decay: Decay = "decoupled",
    mask: Mask = None,
    codec: Codec | None = None,
    rounding: Literal["nearest", "stochastic"] = "stochastic",
    exact: bool = False,
    leaves: Selector | None = None,
    key: int | jax.Array = 0,
) -> Transformation:
    """SGD with momentum whose weights stay on the grid of a codec, without float32 copies.

    1. ``m <- b1*m + (1-b1)*g``; 2. ``w = p - lr*m``; ``p' = round(w)``; ``e = w - p'``;
    3. ``m <- m + (1/lr)*(1 - 1/b1)*e``.

    No matrix work; ``optkit.eco`` around momentum. Take it where values have to stay on float8's
    grid and 4 bytes a parameter of master weights are too many; that the loss suffers little is the
    paper's claim. In ``python -m benchmarks.claims eco``, a quadratic, the squared gradient at the
    end does not depend on the rate, whereas without it that is 1.4 times as large at a rate of 0.3
    and 46 times at 0.003, all rounded at random to a grid whose step is drawn anew at each update;
    on a fixed grid rounding at random alone does as well.

    Args:
      learning_rate: a number or a schedule.
      b1: decay rate of the momentum.
      kind: average or heavy ball, see ``optkit.momentum``.
      weight_decay: coefficient.
      decay: kind of decay, see ``optkit.decay_weights``.
      mask: leaves that decay.
      codec: grid of the weights; float8 with a scale for each leaf if None.
      rounding: "stochastic" or "nearest".
      exact: also keep the last error, see ``optkit.eco``.
      leaves: which leaves are rounded; those of at least two axes if None.
      key: seed or PRNG key of stochastic rounding.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 4 per parameter, 8 if ``exact``.

    Raises:
      ValueError: an option out of range, or params not given to update.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tx = optkit.eco_sgdm(1.0, b1=0.5, rounding="nearest")
      >>> p = {"w": jnp.array([[448.0, 16.0]])}
      >>> u, state = tx.update({"w": jnp.array([[0.0, -2.0]])}, tx.init(p), p)
      >>> u["w"].tolist()  # 17 is rounded to 16
      [[0.0, 0.0]]

    Reference:
      ECO, arXiv 2601.22101, Algorithm 2.
    """
    inner = descend(
        momentum(b1, kind=kind), learning_rate, weight_decay=weight_decay, decay=decay, mask=mask
    )
    return eco(inner, codec, rounding=rounding, exact=exact, leaves=leaves, key=key)


@register(
    kind="recipe",
    family="precision",
    paper=("ECO: Quantized Training without Full-Precision Master Weights", "2601.22101", 2026),
    state_bytes={"*": 8},
    tags=("quantization", "adam", "fp8"),
    chain="eco(scale_by_adam > decay > learning rate)",
)
def eco_adamw(
    learning_rate: ScalarOrSchedule = 1e-3,
    *,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule = 1e-2,
    decay: Decay = "decoupled",
    mask: Mask = None,
    codec: Codec | None = None,
    rounding: Literal["nearest", "stochastic"] = "stochastic",
    exact: bool = False,
    leaves: Selector | None = None,
    key: int | jax.Array = 0,
) -> Transformation:
    """AdamW whose weights stay on the grid of a codec, without float32 copies.

    1. ``mu <- b1*mu + (1-b1)*g``; ``nu <- b2*nu + (1-b2)*g**2``; ``d = sqrt(nu/c2) + eps``;
    2. ``w = (1 - lr*weight_decay)*p - lr*(mu/c1)/d``; ``p' = round(w)``; ``e = w - p'``;
    3. ``mu <- mu + (c1/lr)*(1 - 1/b1)*d*e``, ``c1 = 1-b1**n``, ``c2 = 1-b2**n``.

    No matrix work; ``optkit.eco`` around ``optkit.adamw``. Take it where weights have to stay in
    float8 and 4 bytes a parameter of master weights are too many; that the loss suffers little is
    the paper's claim. In ``python -m benchmarks.claims eco``, a small byte language model with
    float8 weights, it ends 0.7% above float32 if rounded at random and 3.4% if to the nearest.
    Rounding at random without it was as good (-0.2%), and to the nearest not worse beyond the
    spread over seeds (5.4%); that it is needed shows on a quadratic, see ``optkit.eco_sgdm``.

    Args:
      learning_rate: a number or a schedule.
      b1: decay rate of the first moment, which takes the errors.
      b2: decay rate of the second moment.
      eps: added to the root.
      weight_decay: coefficient.
      decay: kind of decay, see ``optkit.decay_weights``.
      mask: leaves that decay.
      codec: grid of the weights; float8 with a scale for each leaf if None.
      rounding: "stochastic" or "nearest".
      exact: also keep the last error, see ``optkit.eco``.
      leaves: which leaves are rounded; those of at least two axes if None.
      key: seed or PRNG key of stochastic rounding.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 8 per parameter, 12 if ``exact``.

    Raises:
      ValueError: an option out of range, or params not given to update.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tx = optkit.eco_adamw(1.0, weight_decay=0.0, rounding="nearest")
      >>> p = {"w": jnp.array([[448.0, 16.0]])}
      >>> u, state = tx.update({"w": jnp.array([[0.0, -2.0]])}, tx.init(p), p)
      >>> u["w"].tolist()  # 17 is rounded to 16
      [[0.0, 0.0]]

    Reference:
      ECO, arXiv 2601.22101, Algorithm 3.
    """
    inner = descend(
        scale_by_adam(b1, b2, eps),
        learning_rate,
        weight_decay=weight_decay,
        decay=decay,
        mask=mask,
    )
    return eco(inner, codec, rounding=rounding, exact=exact, leaves=leaves, key=key)

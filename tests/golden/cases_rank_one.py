"""Case of MKOR: recorded statistics of layers against factors and parameters."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optkit
from optkit.transforms.mkor import MkorState
from tests.golden.cases_diagonal import state_of
from tests.golden.replay import Comparison, Golden, case, difference, torch_dims

_TOLERANCE = 1e-5  # the given one


def _base(hyper: dict[str, Any]) -> optax.GradientTransformation:
    """The file's base optimizer, torch's."""
    decay, rate = hyper.get("weight_decay", 0.0), hyper["lr"]
    name = str(hyper.get("optimizer", "sgd")).lower()
    betas, eps = hyper.get("betas", (0.9, 0.999)), hyper.get("eps", 1e-8)
    if name == "sgd":
        options = {"nesterov": hyper.get("nesterov", False)}
        ball = optkit.momentum(hyper["momentum"], kind="heavy_ball", **options)
        direction = ball if hyper.get("momentum") else optax.identity()
        return optkit.descend(direction, rate, weight_decay=decay, decay="coupled")
    kind = "coupled" if name == "adam" else "decoupled"
    adam = optkit.scale_by_adam(*betas, eps)
    return optkit.descend(adam, rate, weight_decay=decay, decay=kind)


@case("mkor")
def mkor(golden: Golden) -> Iterator[Comparison]:
    hyper, constants = golden.hyper, golden.hyper.get("code_constants", {})
    params: Any = jax.tree.map(jnp.asarray, golden.tree("p0"))
    left_out = hyper.get("sgd_layers") or ()
    kernels = [name for name, p in params.items() if p.ndim >= 2 and name not in left_out]
    tx = optkit.mkor(
        _base(hyper),
        decay=constants.get("inverse_ema", 0.95),
        every=hyper["inv_freq"],
        warmup_steps=hyper.get("warmup_steps", 0),
        clip=hyper.get("clipping_value", 100.0),
        threshold=constants.get("max_abs_threshold", 2.0),
        layers=tuple(kernels),
        bias=lambda path: f"{path}_bias",
        dims=torch_dims(params),
    )

    @jax.jit
    def step(grads: Any, statistics: Any, state: Any, params: Any) -> Any:
        updates, state = tx.update(grads, state, params, statistics=statistics)
        return state, optax.apply_updates(params, updates)

    def means(t: int) -> dict[str, Any]:
        """A file need not record what it does not use."""
        a, d = golden.tree(f"a/{t}"), golden.tree(f"gout/{t}")
        sizes = {name: np.array(params[name].shape) for name in kernels}
        return {
            name: (a.get(name, np.zeros(n[1])), d.get(name, np.zeros(n[0])))
            for name, n in sizes.items()
        }

    state = tx.init(params)
    for t in range(golden.steps):
        state, params = step(golden.tree(f"g/{t}"), means(t), state, params)
        held = state_of(state, MkorState)
        found = (("p", params), ("Rinv", held.kronecker.right), ("Linv", held.kronecker.left))
        for prefix, tree in found:
            for name, want in golden.tree(f"{prefix}/{t}").items():
                yield Comparison(difference(tree[name], want), _TOLERANCE)

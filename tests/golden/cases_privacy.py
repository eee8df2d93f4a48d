"""Cases of private training: recorded gradients of examples, and the noise that was added."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optkit
from tests.golden.meshes import ALL, EACH, along, axis_of, forms, laid
from tests.golden.replay import Comparison, Golden, case, difference

TOLERANCE = 2e-6


def by_step(golden: Golden, prefix: str, params: Any) -> Any:
    """Recorded numbers of all steps, as a function of the step."""
    tables = {
        leaf: jnp.asarray(
            np.stack([golden.arrays[f"{prefix}/{t}/{leaf}"] for t in range(golden.steps)])
        )
        for leaf in params
    }
    return lambda count: {leaf: table[count] for leaf, table in tables.items()}


def itself(params: Any, example: Any) -> Any:
    """The recorded gradient of an example."""
    del params
    return example


def compared(golden: Golden, t: int, params: Any) -> Comparison:
    want = golden.tree(f"p/{t}")
    return Comparison(max(difference(params[leaf], x) for leaf, x in want.items()), TOLERANCE)


@case("dp_aggregate")
def dp_aggregate(golden: Golden) -> Iterator[Comparison]:
    """Optax's aggregate: with its own keys as an aggregate, and with its noise as DP-SGD."""
    hyper, first = golden.hyper, golden.tree("p0")
    batch = golden.arrays[f"gex/0/{next(iter(first))}"].shape[0]
    noise = by_step(golden, "noise", first)
    sgd = optax.sgd(hyper["lr"], momentum=hyper.get("momentum"), nesterov=hyper.get("nesterov", 0))
    for mesh in forms(batch):
        lengths = {
            "clip": hyper["clip"],
            "noise_multiplier": hyper["noise_multiplier"],
            "axis_name": axis_of(mesh),
        }
        gradient = optkit.privacy.private_gradient(
            itself, is_gradient=True, expected_batch=batch, microbatch=max(1, batch // 2), **lengths
        )
        chains = [
            optax.chain(
                optkit.aggregate.as_transform(
                    optkit.aggregate.dp_mean(**lengths, key=hyper["key"], **options), batch
                ),
                sgd,
            )
            for options in ({"dialect": "optax"}, {"expected": batch, "noise": noise})
        ]

        def step(
            t: Any,
            examples: Any,
            states: Any,
            params: Any,
            chains: Any = chains,
            by: Any = gradient,
        ) -> Any:
            out = []
            for tx, state, own in zip(chains, states[:-1], params[:-1], strict=True):
                updates, state = tx.update(examples, state, own)
                out.append((state, optax.apply_updates(own, updates)))
            drawn, inner = states[-1]
            grads, drawn = by(params[-1], examples, drawn, noise=noise(t))
            updates, inner = sgd.update(grads, inner, params[-1])
            out.append(((drawn, inner), optax.apply_updates(params[-1], updates)))
            return tuple(zip(*out, strict=True))

        run = jax.jit(along(step, mesh, (ALL, EACH, ALL, ALL), ALL))
        params = tuple([jax.tree.map(jnp.asarray, first)] * 3)
        last = gradient.init(hyper["key"]), sgd.init(first)
        states = (*(tx.init(first) for tx in chains), last)
        for t in range(golden.steps):
            states, params = run(t, golden.tree(f"gex/{t}"), states, params)
            for own in params:
                yield compared(golden, t, own)


@case("dp_brem")
def dp_brem(golden: Golden) -> Iterator[Comparison]:
    """DP-BREM with the noise of the file; lengths below 0 clip nothing, as in the code."""
    hyper, first = golden.hyper, golden.tree("p0")
    rounds = golden.meta.get("T", golden.steps)
    clients = golden.meta["clients"]

    def length(value: float, final: float) -> Any:
        if value < 0:
            return np.inf
        return optax.linear_schedule(value, final * value, rounds) if hyper["decay"] else value

    method = optkit.privacy.dp_brem(
        itself,
        optax.sgd(length(hyper["lr"], hyper.get("lr_decay_final_ratio", 1.0))),
        is_gradient=True,
        example_clip=length(hyper["R"], 0.3),
        clip=length(hyper["C"], 0.3),
        noise_multiplier=hyper["sigma"] if hyper["R"] > 0 else 0.0,
        b1=hyper["beta"],
        key=0,
        noise=by_step(golden, "noise", first) if hyper["sigma"] > 0 else None,
    )
    run = jax.jit(method.step)
    for mesh in forms(clients):
        params = jax.tree.map(jnp.asarray, first)
        state = method.init(params, clients)
        for t in range(golden.steps):
            examples = {
                leaf: np.stack([golden.arrays[f"gex/{t}/{i}/{leaf}"] for i in range(clients)])
                for leaf in first
            }
            present = np.isin(np.arange(clients), golden.arrays[f"selected/{t}"])
            params, state = run(params, state, laid(examples, mesh), present=present)
            yield compared(golden, t, params)
            for leaf, want in golden.tree(f"server_momentum/{t}").items():
                yield Comparison(difference(state.server.aggregate.centre[leaf], want), TOLERANCE)

"""Cases of methods that train low-rank adapters."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optkit
from optkit.lora import ScaleByLoraProState
from tests.golden.replay import TOLERANCE, Comparison, Golden, case, difference, trajectory

# The files' names, and their layout: A (r, fan_in), B (fan_out, r).
NAMES: dict[str, Any] = {"a": "*_A", "b": "*_B", "layout": "peft"}


@case("lora_pro", "lora_pro_fixed")
def lora_pro(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    fixed = golden.meta.get("method", golden.stem) == "lora_pro_fixed"
    tx = optkit.lora_pro(
        hyper["lr"],
        b1=hyper["beta1"],
        b2=hyper["beta2"],
        eps=hyper["eps"],
        scale=hyper["scaling"],
        delta=hyper["delta"],
        counter="fixed" if fixed else "official",
        first_step="zero_b" if fixed else "general",
        weight_decay=hyper.get("weight_decay", 0.0),
        **NAMES,
    )

    @jax.jit
    def step(grads: Any, state: Any, params: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return updates, state, optax.apply_updates(params, updates)

    params: Any = jax.tree.map(jnp.asarray, golden.tree("p0"))
    state = tx.init(params)
    for t in range(golden.steps):
        updates, state, params = step(golden.tree(f"g/{t}"), state, params)
        for name, want in golden.tree(f"p/{t}").items():
            yield Comparison(difference(params[name], want), TOLERANCE)
        for name, want in golden.tree(f"adj/{t}").items():
            yield Comparison(
                hyper["lr"] * difference(updates[name] / -hyper["lr"], want), TOLERANCE
            )
    held = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, ScaleByLoraProState))
    own = next(x for x in held if isinstance(x, ScaleByLoraProState))
    for prefix, moment in (("m", own.mu), ("v", own.nu)):
        for name, want in golden.tree(prefix).items():
            yield Comparison(difference(moment[f"{name}_A"], want), TOLERANCE)


@case("altlora", "altlora_plus")
def altlora(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    b1, b2 = hyper["betas"]
    is_plus = golden.meta.get("method", golden.stem) == "altlora_plus"
    options = {"b2": b2, "eps": hyper["eps"]} if is_plus else {}
    tx = (optkit.altlora_plus if is_plus else optkit.altlora)(
        hyper["lr"],
        b1=b1,
        delta=hyper["reg"],
        schedule=hyper["schedule"],
        weight_decay=hyper.get("weight_decay", 0.0),
        decay="after",
        scale=hyper.get("scaling", 1.0),
        **options,
        **NAMES,
    )
    yield from trajectory(golden, tx)


@case("adalora_allocator")
def adalora(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    tx = optkit.adalora(
        optax.sgd(hyper["sgd_lr"]),
        target_rank=hyper["target_rank"],
        total_steps=hyper["total_step"],
        init_warmup=hyper["init_warmup"],
        final_warmup=hyper["final_warmup"],
        interval=hyper["mask_interval"],
        b1=hyper["beta1"],
        b2=hyper["beta2"],
        a="*.lora_A",
        b="*.lora_B",
        e="*.lora_E",
        layout="peft",
    )
    step = jax.jit(tx.update)
    params: Any = jax.tree.map(jnp.asarray, golden.tree("p0"))
    state = tx.init(params)
    found = optkit.lora.adapters(params, "*.lora_A", "*.lora_B", layout="peft")
    for t in range(golden.steps):
        updates, state = step(golden.tree(f"g/{t}"), state, params)
        params = optax.apply_updates(params, updates)
        for name, want in golden.tree(f"p/{t}").items():
            yield Comparison(difference(params[name], want), TOLERANCE)
            yield Comparison(float(jnp.sum((params[name] == 0) != (want == 0))), 0.5)
        budget = optkit.lora.adalora_budget(
            t + 1,
            whole=sum(x.rank for x in found),
            target=hyper["target_rank"] * len(found),
            total_steps=hyper["total_step"],
            init_warmup=hyper["init_warmup"],
            final_warmup=hyper["final_warmup"],
        )
        if f"budget/{t}" in golden.arrays:
            yield Comparison(abs(budget - int(golden.arrays[f"budget/{t}"])), 0.5)
    for prefix, held in (("ipt", state.importance), ("unc", state.uncertainty)):
        for name, want in golden.tree(prefix).items():
            yield Comparison(difference(held[name], want), TOLERANCE)

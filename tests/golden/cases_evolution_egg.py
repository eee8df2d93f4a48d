"""Case of the integer language model and integer EGGROLL: every number, bit for bit."""

import functools
import math
from collections.abc import Iterator
from statistics import NormalDist
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optkit.evolution import integer
from optkit.evolution.integer.noise import integer_noises, population_leaf
from tests.golden.replay import Comparison, Golden, case

# Names in the file -> names of ours.
NAMES = {
    "emb": "embed",
    "head": "head",
    "ln_out.weight": "norm",
    "blocks.ln1.weight": "blocks/norm1",
    "blocks.ln2.weight": "blocks/norm2",
    "blocks.mlp.0.weight": "blocks/up",
    "blocks.mlp.1.weight": "blocks/down",
    **{f"blocks.att.{name}": f"blocks/{name}" for name in ("Wf", "Uf", "bf", "Wh", "Uh", "bh")},
}


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """A tree like ours of arrays by the file's names."""
    out: dict[str, Any] = {"blocks": {}}
    for name, value in flat.items():
        node, _, leaf = NAMES[name].rpartition("/")
        (out[node] if node else out)[leaf] = value
    return out


def flat(tree: dict[str, Any]) -> dict[str, Any]:
    """The other way round."""
    return {
        name: tree[path] if "/" not in path else tree["blocks"][path.split("/")[1]]
        for name, path in NAMES.items()
    }


def equal(got: Any, want: np.ndarray) -> Comparison:
    """How many entries differ; none may."""
    got = np.asarray(got)
    same = got.shape == want.shape
    return Comparison(float(np.sum(got.astype(np.int64) != want)) if same else np.inf, 0.5)


def table_bits(golden: Golden) -> int:
    """The table has a power of two of places where a slice begins, and entries behind them."""
    return int(math.log2(golden.arrays["noise_table"].shape[0]))


def score_bits(golden: Golden) -> int:
    """Bits of scores and quantiles, a constant of its own there: told by the thresholds."""
    alphas, fixed = golden.hyper["alpha_per_step"], golden.hyper["fixed_point"]
    for bits in (4, fixed):
        quantiles = [int(2**bits * NormalDist().inv_cdf(1 - a / 2)) for a in alphas]
        if quantiles == [int(golden.arrays[f"threshold/{t}"]) for t in range(golden.steps)]:
            return bits
    raise ValueError("the recorded thresholds are those of no score_bits that we know")


@case("egg_int8")
def egg_int8(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    members, fixed, bits = hyper["population"], hyper["fixed_point"], score_bits(golden)
    es = integer.egg(
        members,
        sigma_shift=hyper["sigma_shift"],
        alpha=lambda step: jnp.asarray(hyper["alpha_per_step"], jnp.float32)[step],
        rank=hyper["rank"],
        use_clt=hyper["use_clt"],
        noise_reuse=hyper["noise_reuse"],
        table_bits=table_bits(golden),
        table=golden.arrays["noise_table"],
        unmoved="down",
        fixed_point=fixed,
        score_bits=bits,
    )
    tx = optax.chain(es, optax.scale(-1))
    params = jax.tree.map(jnp.asarray, nested(golden.tree("p0")))
    keys = nested({k: jax.random.wrap_key_data(v) for k, v in golden.tree("key").items()})
    hidden, state = integer.egg_hidden(params, members), tx.init(params)
    read = jax.jit(functools.partial(integer.egg_logits, fixed_point=fixed))
    score = jax.jit(functools.partial(integer.egg_scores, fixed_point=fixed, score_bits=bits))

    @jax.jit
    def populate(params: Any, epoch: jax.Array) -> Any:
        plan = integer_noises(params, hyper["rank"], "blocks/**")
        leaves, structure = jax.tree.flatten(params)
        table, mask = jnp.asarray(golden.arrays["noise_table"]), 2 ** table_bits(golden) - 1
        pairs = jnp.arange(members // 2, dtype=jnp.int32)
        drawn = [
            noise.draw(table, mask, key, epoch, pairs)
            for noise, key in zip(plan, jax.tree.leaves(keys), strict=True)
        ]
        shift = fixed + hyper["sigma_shift"]
        both = zip(leaves, drawn, strict=True)
        return jax.tree.unflatten(structure, [population_leaf(p, d, shift) for p, d in both])

    step = jax.jit(tx.update)
    for t in range(golden.steps):
        epoch = t // hyper["noise_reuse"] if hyper["noise_reuse"] else 0
        population = populate(params, jnp.int32(epoch))
        yield from _noise(golden, t, population)
        tokens = jnp.asarray(golden.arrays[f"tokens/{t}"])
        logits, _ = read(population, tokens[:, 0], hidden)
        yield equal(logits, golden.arrays[f"logits0/{t}"])
        clean, _ = read(params, tokens[:, 0], jnp.zeros_like(hidden))
        yield equal(clean, golden.arrays[f"logits_clean/{t}"])
        scores, hidden = score(population, tokens, hidden)
        yield equal(scores, golden.arrays[f"score/{t}"])
        yield equal(hidden, golden.arrays[f"state/{t}"])
        yield equal(integer.pair_signs(scores, members), golden.arrays[f"shaped/{t}"])
        updates, state = step(scores, state, params, members=population)
        params = optax.apply_updates(params, updates)
        for name, value in flat(params).items():
            yield equal(value, golden.arrays[f"p/{t}/{name}"])


def _noise(golden: Golden, t: int, population: Any) -> Iterator[Comparison]:
    """The file has all members, the odd ones with the sign on A or E."""
    for name, leaf in flat(population).items():
        pairs_axis = leaf.base.ndim - (1 if leaf.b is None else 2)
        signs = np.array([1, -1]).reshape(2, *[1] * (leaf.a.ndim - pairs_axis - 1))
        both = np.expand_dims(np.asarray(leaf.a, np.int32), pairs_axis + 1) * signs
        both = both.reshape(*leaf.a.shape[:pairs_axis], -1, *leaf.a.shape[pairs_axis + 1 :])
        kind = "E" if leaf.b is None else "A"
        yield equal(both, golden.arrays[f"{kind}/{t}/{name}"])
        if leaf.b is not None:
            twice = np.repeat(np.asarray(leaf.b), 2, axis=pairs_axis)
            yield equal(twice, golden.arrays[f"B/{t}/{name}"])

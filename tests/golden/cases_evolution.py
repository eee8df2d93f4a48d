"""Cases of population methods: the noise of a file is fed, and so are its fitnesses."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optkit
from optkit.evolution import Factors, Perturbed, shaping
from optkit.evolution.noise import leaf_noises
from tests.golden.replay import TOLERANCE, Comparison, Golden, case, difference, torch_dims

LOST = 8e37  # above this a file means NaN


@case("fitness_shaping")
def fitness_shaping(golden: Golden) -> Iterator[Comparison]:
    functions = {
        "centered_rank": shaping.centered_rank,
        "standardize": shaping.standardize,
        "normalize": shaping.normalize,
        "nes_weights": lambda f: -shaping.nes_utilities(f, ties="floor"),
    }
    for name, fitness in golden.tree("f").items():
        losses = jnp.asarray(np.where(fitness > LOST, np.nan, fitness))
        for kind, function in functions.items():
            want = golden.arrays[f"{kind}/{name}"]
            # The files minimise. What they leave as NaN has a weight here.
            got = np.where(want > LOST, want, -np.asarray(function(-losses)))
            yield Comparison(difference(got, want), TOLERANCE)


def solver(hyper: dict[str, Any]) -> optax.GradientTransformation:
    """The optimizer that a file names, as text (evosax) or by name and arguments (EGGROLL)."""
    if "optimizer" in hyper:
        name, _, given = hyper["optimizer"].removeprefix("optax.").rstrip(")").partition("(")
        made = [x.partition("=") for x in given.split(",") if x.strip()]
        args = [float(key) for key, equals, _ in made if not equals]
        kwargs = {key.strip(): float(value) for key, equals, value in made if equals}
        return getattr(optkit if name == "clipup" else optax, name)(*args, **kwargs)
    return getattr(optax, hyper["solver"])(hyper["lr"], **hyper.get("solver_kwargs", {}))


def cut(flat: np.ndarray, like: dict[str, Any]) -> dict[str, jax.Array]:
    """Rows of numbers as leaves, in the order of the sorted names."""
    out, start = {}, 0
    for name in sorted(like):
        size = like[name].size
        out[name] = jnp.asarray(flat[:, start : start + size].reshape(-1, *like[name].shape))
        start += size
    return out


def neighbours(fitness: np.ndarray) -> np.ndarray:
    """Fitnesses of halves (all +, all -) in the order of pairs."""
    return fitness.reshape(2, -1).T.reshape(-1)


@case("openai_es", "pgpe", "ars", "snes")
def evosax(golden: Golden) -> Iterator[Comparison]:
    hyper, method = golden.hyper, golden.meta.get("method", golden.stem)
    params: Any = jax.tree.map(jnp.asarray, golden.tree("p0"))
    population, shape = hyper["population"], hyper.get("shaping", "centered_rank")
    common: dict[str, Any] = {"maximize": False, "key": 1}
    if method == "openai_es":
        es: Any = optkit.openai_es(population, sigma=hyper["std"], shaping=shape, **common)
    elif method == "ars":
        elite = hyper["elite_ratio"]
        es = optkit.ars(population, sigma=hyper["std"], elite=elite, **common)
    elif method == "pgpe":
        es = optkit.pgpe(
            population,
            std=hyper["std_init"],
            std_learning_rate=hyper["std_lr"],
            max_change=hyper["std_max_change"],
            shaping=shape,
            **common,
        )
    else:
        rate = hyper.get("lr_std")
        rate = rate if isinstance(rate, int | float) else None
        std = hyper["std_init"]
        es = optkit.snes(population, std=std, std_learning_rate=rate, ties="floor", **common)
    tx = optax.chain(es, solver(hyper))
    paired = es.drawing.antithetic

    @jax.jit
    def step(fitness: Any, noise: Any, state: Any, params: Any) -> Any:
        updates, state = tx.update(fitness, state, params, noise=noise)
        return state, optax.apply_updates(params, updates)

    state = tx.init(params)
    for t in range(golden.steps):
        z, fitness = golden.arrays[f"z/{t}"], golden.arrays[f"f/{t}"]
        noise = cut(z[: len(z) // 2] if paired else z, params)
        given = neighbours(fitness) if paired else fitness
        state, params = step(jnp.asarray(given), noise, state, params)
        for name, want in golden.tree(f"p/{t}").items():
            yield Comparison(difference(params[name], want), TOLERANCE)
        std = golden.arrays[f"state/{t}/std"]
        if std.ndim:
            held = es.state(state).es_std
            for name, want in cut(std[None], params).items():
                yield Comparison(difference(held[name], np.asarray(want[0])), TOLERANCE)


@case("mezo")
def mezo(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    decays = {
        name: not any(word in name for word in ("bias", "layer_norm", "layernorm"))
        for name in golden.tree("p0")
    }
    es = optkit.mezo(sigma=hyper["zo_eps"])
    decay = optax.add_decayed_weights(hyper["weight_decay"], mask=decays)
    tx = optax.chain(es, decay, optax.sgd(hyper["lr"]))
    params: Any = jax.tree.map(jnp.asarray, golden.tree("p0"))
    state = tx.init(params)
    for t in range(golden.steps):
        losses = [golden.arrays[f"loss_{side}/{t}"] for side in ("plus", "minus")]
        # The files' losses have float64; their difference alone matters, and that fits in float32.
        fitness = jnp.asarray(np.array([losses[0] - losses[1], 0.0]), jnp.float32)
        noise = jax.tree.map(lambda x: jnp.asarray(x)[None], golden.tree(f"z/{t}"))
        updates, state = tx.update(fitness, state, params, noise=noise)
        params = optax.apply_updates(params, updates)
        for name, want in golden.tree(f"p/{t}").items():
            yield Comparison(difference(params[name], want), TOLERANCE)


def _eggroll_noise(golden: Golden, t: int) -> dict[str, Any]:
    """Of each pair the noise of the member with +; the second has it where the first has none."""
    a, b = golden.tree(f"A/{t}"), golden.tree(f"B/{t}")
    noise: dict[str, Any] = {
        name: Factors(jnp.asarray(a[name][::2]), jnp.asarray(b[name][::2]), (0,), (1,))
        for name in a
    }
    return noise | {k: jnp.asarray(v[::2]) for k, v in golden.tree(f"E/{t}").items()}


@case("eggroll", "eggroll_openes", "eggroll_sign", "eggroll_bs")
def eggroll(golden: Golden) -> Iterator[Comparison]:
    hyper, method = golden.hyper, golden.meta.get("method", golden.stem)
    baseline, size = method == "eggroll_bs", hyper["population"]
    params: Any = jax.tree.map(jnp.asarray, golden.tree("p0"))
    dims = torch_dims(params)
    low_rank = method != "eggroll_openes"
    groups = hyper["group_size"] or None
    es = optkit.population_perturb(
        size,
        sigma=hyper["sigma"],
        noise="low_rank" if low_rank else "gaussian",
        rank=hyper.get("rank", 1),
        shaping=lambda f: shaping.z_score(f, groups=groups),
        scale="reference",
        signs=method == "eggroll_sign",
        baseline=baseline,
        noise_reuse=hyper["noise_reuse"],
        dims=dims,
        compat="hyperscalees",
    )
    clip = [optax.clip_by_global_norm(hyper["trust_region_norm"])] if baseline else []
    rest = optax.chain(*clip, solver(hyper))

    @jax.jit
    def step(fitness: Any, noise: Any, held: Any, state: Any, params: Any) -> Any:
        gradient, held = es.update(fitness, held, params, noise=noise)
        updates, state = rest.update(gradient, state, params)
        return gradient, held, state, optax.apply_updates(params, updates)

    held, state = es.init(params), rest.init(params)
    decay = hyper.get("sigma_decay_per_step")
    for t in range(golden.steps):
        if f"sigma/{t}" in golden.arrays:
            held = held._replace(es_sigma=jnp.asarray(golden.arrays[f"sigma/{t}"]))
        noise = _eggroll_noise(golden, t)
        lazy = es.drawing.lazy(
            params, noise, es.drawing.scales(held.es_sigma, np.arange(size // 2))
        )
        yield from _eggroll_forward(golden, t, lazy, low_rank)
        fitness = jnp.asarray(golden.arrays[f"f/{t}"])
        weights = golden.arrays[f"shaped/{t}"]
        yield Comparison(difference(es.judge(fitness), weights), TOLERANCE)
        gradient, held, state, params = step(fitness, noise, held, state, params)
        for name, want in golden.tree(f"pg/{t}").items():
            yield Comparison(difference(gradient[name], want), TOLERANCE)
        for name, want in golden.tree(f"p/{t}").items():
            yield Comparison(difference(params[name], want), TOLERANCE)
        if decay is not None:
            held = held._replace(es_sigma=held.es_sigma * decay)
        yield from _eggroll_draws(golden, t, noise, dims, low_rank, baseline)


def _eggroll_forward(golden: Golden, t: int, lazy: Any, low_rank: bool) -> Iterator[Comparison]:
    """The recorded products of perturbed weights, by ``Perturbed`` weights in full."""
    for name, want in golden.tree(f"y/{t}").items():
        weights = _members(lazy[name])
        for x, result, rule in (
            ("x", want, "bi,noi->nbo"),
            ("xT", f"yT/{t}/{name}", "bo,noi->nbi"),
        ):
            wanted = golden.arrays[result] if isinstance(result, str) else result
            got = jnp.einsum(rule, golden.arrays[f"{x}/{name}"], weights)
            yield Comparison(difference(got, wanted), 2e-5)
    for name in golden.tree(f"E/{t}"):
        if f"{name}_noisy/{t}" in golden.arrays:
            yield Comparison(
                difference(_members(lazy[name]), golden.arrays[f"{name}_noisy/{t}"]), TOLERANCE
            )


def _members(leaf: Any) -> jax.Array:
    if not isinstance(leaf, Perturbed):
        return leaf.value
    pairs = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), (leaf.a, leaf.b))
    each = lambda a, b, s: Perturbed(leaf.base, a, b, s, leaf.left, leaf.right).materialize()  # noqa: E731
    return jax.vmap(each)(*pairs, leaf.scale)


def _eggroll_draws(
    golden: Golden, t: int, noise: Any, dims: Any, low_rank: bool, baseline: bool
) -> Iterator[Comparison]:
    """The draws themselves, from the recorded keys of the leaves."""
    hyper = golden.hyper
    params = golden.tree("p0")
    law = "low_rank" if low_rank else "gaussian"
    plan = leaf_noises(params, law, hyper.get("rank", 1), dims=dims, compat="hyperscalees")
    epoch = t // hyper["noise_reuse"] if hyper["noise_reuse"] else 0
    for leaf in plan:
        data = golden.arrays.get(f"key/{leaf.path}")
        if data is None:
            continue
        key = jax.random.fold_in(jax.random.wrap_key_data(jnp.asarray(data)), epoch)
        drawn = leaf.draw(key, jnp.arange(hyper["population"] // 2, dtype=jnp.uint32))
        first = int(baseline)  # without noise, whatever was drawn
        for got, want in zip(*map(jax.tree.leaves, (drawn, noise[leaf.path])), strict=True):
            yield Comparison(difference(got[first:], np.asarray(want[first:])), TOLERANCE)

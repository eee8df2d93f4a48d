"""The cases of federated servers: recorded displacements in, the server's parameters out."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optkit
from optkit.aggregate import Aggregate
from tests.golden.meshes import ALL, EACH, along, axis_of, forms, laid, started
from tests.golden.replay import TOLERANCE, Comparison, Golden, case, difference, trajectory

# Of weights of some 3 that are averaged in float32.
MEANS = 1e-6
Build = Callable[..., Aggregate]  # of axis_name=


def sent(golden: Golden, t: int, clients: int) -> dict[str, jax.Array]:
    """What clients of a round sent, (N, ...); zeros for those that are not in the file."""
    params = golden.tree("p0")
    each = [golden.tree(f"d/{t}/{i}") for i in range(clients)]
    return {
        leaf: jnp.stack([jnp.asarray(one.get(leaf, np.zeros_like(p))) for one in each])
        for leaf, p in params.items()
    }


def clients_of(golden: Golden) -> int:
    numbers = golden.meta.get("clients", len(golden.hyper.get("n_samples", ())))
    return int(numbers)


def follow(
    golden: Golden, build: Build, tx: optax.GradientTransformation, rounds: list[dict[str, Any]]
) -> Iterator[Comparison]:
    """Feeds the rounds to a server and compares its parameters after each, in both forms."""
    clients = clients_of(golden)
    for mesh in forms(clients):
        server = optkit.server_step(build(axis_name=axis_of(mesh)), tx)
        params, state, step = running(golden, server, clients, mesh)
        for t, given in enumerate(rounds):
            given = {name: jnp.asarray(value) for name, value in given.items()}
            params, state = step(params, state, sent(golden, t, clients), given)
            yield compared(golden, t, params)


def running(golden: Golden, server: Any, clients: int, mesh: Any) -> tuple[Any, Any, Any]:
    """Parameters, a server's state, and its step, whose clients may lie along a mesh."""
    params = {leaf: jnp.asarray(p) for leaf, p in golden.tree("p0").items()}
    state, specs = started(lambda count: server.init(params, count), clients, mesh)

    def step(params: Any, state: Any, displacement: Any, given: Any) -> Any:
        return server.step(params, state, displacement, **given)

    return params, state, jax.jit(along(step, mesh, (ALL, specs, EACH, EACH), (ALL, specs)))


def compared(golden: Golden, t: int, params: Any) -> Comparison:
    want = golden.tree(f"p/{t}")
    return Comparison(max(difference(params[k], v) for k, v in want.items()), TOLERANCE)


def attendance(golden: Golden) -> list[dict[str, Any]]:
    table = golden.arrays["participation"] != 0
    return [{"present": table[:, t]} for t in range(golden.steps)]


def probabilities(golden: Golden) -> Any:
    """As the code has them: the given ones over and over."""
    if golden.hyper.get("estimate"):
        return "estimated"
    given = np.asarray(golden.hyper["participation_probs"], np.float64)
    return tuple(np.resize(given, clients_of(golden)))


@case("fedavg", "fedvarp", "fedstale")
def stale(golden: Golden) -> Iterator[Comparison]:
    hyper = golden.hyper
    common = {"shares": tuple(hyper["n_samples"]), "participation": probabilities(golden)}
    beta = hyper.get("beta") or 0.0
    if beta == 1.0:
        build: Build = functools.partial(optkit.aggregate.fedvarp, **common)
    else:
        build = functools.partial(optkit.aggregate.fedstale, beta, **common)
    yield from follow(golden, build, optax.sgd(hyper["server_lr"]), attendance(golden))


@case("fedvarp_participant_mean", "mifa", "fedau")
def participants(golden: Golden) -> Iterator[Comparison]:
    hyper, name = golden.hyper, golden.meta.get("method", golden.stem)
    longest = hyper.get("K")
    gap = None if longest is None else int(longest)
    build: Build = {
        "fedvarp_participant_mean": functools.partial(
            optkit.aggregate.fedvarp, form="participants"
        ),
        "mifa": optkit.aggregate.mifa,
        "fedau": functools.partial(optkit.aggregate.fedau, gap),
    }[name]
    yield from follow(golden, build, optax.sgd(hyper["server_lr"]), attendance(golden))


@case("fedavgm_flwr", "fedadam_flwr", "fedyogi_flwr", "fedadagrad_flwr")
def flower(golden: Golden) -> Iterator[Comparison]:
    hyper, name = golden.hyper, golden.meta.get("method", golden.stem)
    if name == "fedavgm_flwr":
        tx = optax.sgd(hyper["server_learning_rate"], momentum=hyper["server_momentum"])
    else:
        known = {"b1": "beta_1", "b2": "beta_2", "tau": "tau"}
        options = {ours: hyper[theirs] for ours, theirs in known.items() if theirs in hyper}
        rule = name.removeprefix("fed").removesuffix("_flwr")
        tx = optkit.fedopt(hyper["eta"], rule=rule, dialect="flwr", **options)
    weight, clients = np.asarray(hyper["n_samples"], np.float32), clients_of(golden)
    alone = {"present": jnp.arange(clients) == 0}
    for mesh in forms(clients):
        rule = optkit.aggregate.mean(axis_name=axis_of(mesh))

        def direction(sent: Any, weight: Any, rule: Aggregate = rule) -> Any:
            return rule.apply(sent, (), weight=weight).direction

        mean = jax.jit(along(direction, mesh, (EACH, EACH), ALL))
        params, state, step = running(golden, optkit.server_step(rule, tx), clients, mesh)
        for t in range(golden.steps):
            displacement = sent(golden, t, clients)
            ours, params = mean(displacement, weight), jax.device_get(params)
            theirs = {k: float32_mean(params[k], d, weight, name) for k, d in displacement.items()}
            for k, d in theirs.items():
                yield Comparison(difference(ours[k], d), MEANS)
            # One client reports it, so that the server steps along these very digits.
            first = {k: jnp.stack([d] + [0 * d] * (clients - 1)) for k, d in theirs.items()}
            params, state = step(params, state, first, alone)
            yield compared(golden, t, params)


def float32_mean(p: np.ndarray, sent: Any, weight: np.ndarray, name: str) -> np.ndarray:
    """The mean displacement as Flower rounds it, which averages the clients' weights instead.

    What that loses, some 1e-7 of a weight, an adaptive server divides by the entry's own size.
    """
    ends = np.asarray(p - np.asarray(sent))
    if name == "fedavgm_flwr":
        total = sum(end * w for end, w in zip(ends, weight, strict=True)) / np.sum(weight)
    else:
        shares = np.float64(weight) / np.float64(weight).sum()  # a product in float64, rounded
        total = sum(np.float32(end * share) for end, share in zip(ends, shares, strict=True))
    return np.asarray(p - total, np.float32)


@case("fedfix", "fedasync_weighted", "fedbuff_weighted")
def asynchronous(golden: Golden) -> Iterator[Comparison]:
    hyper, clients = golden.hyper, clients_of(golden)
    name, _, number = hyper["scheme"].partition("-")
    scheme = {"FL": "sync", "Async": "async", "FedFix": "fedfix", "FedBuff": "fedbuff"}[name]
    slower = float(hyper["time_scenario"].split("-")[1])
    times = 1 - np.arange(clients) * slower / 100 / max(clients - 1, 1)
    yield Comparison(difference(times, golden.arrays["tau"]), 1e-12)
    options: dict[str, Any] = {}
    if scheme == "fedfix":
        options = {"interval": float(number)}
    if scheme == "fedbuff":
        options = {"count": int(number)}
    plan = optkit.async_schedule(times, hyper["T_time"], scheme, **options)
    recorded = golden.arrays["schedule"]
    yield Comparison(difference(plan.version[: len(recorded)], recorded), 0.5)
    identical = hyper.get("weights", "weight") == "identical"
    if scheme == "fedbuff":
        options["duration"] = hyper["T_time"]
    weights = optkit.async_weights(
        times, hyper["n_samples"], scheme, identical=identical, **options
    )
    yield Comparison(difference(weights, golden.arrays["agg_weights"]), 1e-12)
    always = optkit.federated.constant_staleness()
    build = functools.partial(optkit.aggregate.fedbuff, 1, reduce="sum", staleness_weight=always)
    rounds = [
        {"present": plan.present[t], "weight": weights, "staleness": plan.staleness[t]}
        for t in range(golden.steps)
    ]
    yield from follow(golden, build, optax.sgd(hyper["server_lr"]), rounds)


@case("fedlex")
def fedlex(golden: Golden) -> Iterator[Comparison]:
    base = golden.tree("p0")
    count = len({key.split("/")[1] for key in golden.arrays if key.startswith("scout/")})
    scouts = {k: np.stack([golden.arrays[f"scout/{s}/{k}"] for s in range(count)]) for k in base}
    kinds: dict[str, Any] = {"MinMax": "minmax", "RobustScaler": "robust"}
    for mesh in forms(count):
        guidance = optkit.fold_guidance(
            laid(scouts, mesh), base, kinds[golden.hyper["normalization"]]
        )
        for leaf, want in golden.tree("guidance").items():
            size = max(1.0, float(np.max(np.abs(want))))  # a robust one is no fraction
            yield Comparison(difference(guidance[leaf], want) / size, 1e-6)
    # From here on there are no clients.
    guidance = jax.device_get(guidance)
    tx = optax.chain(optkit.scale_by_tree(guidance), optax.adam(golden.hyper["lr"]))
    yield from trajectory(golden, tx)


@case("fedamd")
def fedamd(golden: Golden) -> Iterator[Comparison]:
    hyper, clients = golden.hyper, clients_of(golden)

    def grad_fn(params: Any, batch: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            error = batch["x"] @ params["w"].T - batch["y"]
            return jnp.mean(0.5 * jnp.sum(jnp.square(error), axis=-1))

        return jax.grad(loss)(params)

    first = [golden.tree(f"init/{i}") for i in range(clients)]
    server = optkit.server_step(optkit.aggregate.mean(), optax.sgd(hyper["server_lr"]))
    method = optkit.fedamd(grad_fn, hyper["lr"], server=server)
    step = jax.jit(method.round)
    for mesh in forms(clients):

        def stack(trees: Any, mesh: Any = mesh) -> Any:
            return laid(jax.tree.map(lambda *x: np.stack(x), *trees), mesh)

        params = {k: jnp.asarray(v) for k, v in golden.tree("p0").items()}
        state = method.init(params, stack(first))
        for t in range(golden.steps):
            # Who does not work with a batch is not in the file; what stands there is not read.
            large = stack([golden.tree(f"big/{t}/{i}") or first[i] for i in range(clients)])
            small = stack([mini_batches(golden, t, i) for i in range(clients)])
            masks = {
                "present": golden.arrays["participants"][t] != 0,
                "anchor": golden.arrays["anchors"][t] != 0,
            }
            params, state = step(params, state, large, small, **masks)
            yield compared(golden, t, params)


def mini_batches(golden: Golden, t: int, client: int) -> dict[str, np.ndarray]:
    """The K batches of a miner, (K, batch, ...); zeros for others."""
    steps = golden.hyper["K"]
    found = [golden.tree(f"mini/{t}/{client}/{k}") for k in range(steps)]
    if all(found):
        return {name: np.stack([one[name] for one in found]) for name in found[0]}
    size = golden.hyper["batch"]
    large = golden.tree("init/0")
    return {k: np.zeros((steps, size, *v.shape[1:]), v.dtype) for k, v in large.items()}

"""The servers' steps in NumPy float64, a client at a time, to write files with other settings."""

from typing import Any

import numpy as np

SHAPES = {"w": (3, 2), "b": (2,)}
Arrays = dict[str, np.ndarray]


def _start(random: np.random.Generator) -> Arrays:
    return {k: np.float32(random.standard_normal(shape)) for k, shape in SHAPES.items()}


def _sent(out: Arrays, random: np.random.Generator, t: int, clients: int) -> list[Arrays]:
    each = []
    for i in range(clients):
        d = {k: np.float32(0.1 * random.standard_normal(shape)) for k, shape in SHAPES.items()}
        out |= {f"d/{t}/{i}/{k}": v for k, v in d.items()}
        each.append({k: np.float64(v) for k, v in d.items()})
    return each


def _write(out: Arrays, prefix: str, tree: Arrays) -> None:
    out |= {f"{prefix}/{k}": np.float32(v) for k, v in tree.items()}


def estimate(table: np.ndarray, longest: float) -> np.ndarray:
    """FedAU's weights that round t uses, (T, N), by the lists of gaps before it."""
    rounds, clients = table.shape
    out = np.ones((rounds, clients))
    for i in range(clients):
        gaps, since = [], 0
        for t in range(rounds):
            out[t, i] = np.mean(gaps) if gaps else 1.0
            since += 1
            if table[t, i] or since == longest:
                gaps.append(since)
                since = 0
    return out


def participation(method: str, hyper: dict[str, Any], clients: int, rounds: int) -> Arrays:
    """FedAvg, FedVARP, FedStale, FedAU and MIFA."""
    random = np.random.default_rng(len(method) + clients)
    table = random.random((rounds, clients)) < 0.5
    table[2] = False
    out: Arrays = {"participation": np.int64(table.T)}
    x = {k: np.float64(v) for k, v in _start(random).items()}
    _write(out, "p0", x)
    shares = np.float64(hyper.get("n_samples", np.ones(clients)))
    shares /= shares.sum()
    weight = estimate(table, hyper.get("K", np.inf))
    if "n_samples" in hyper and not hyper["estimate"]:
        weight = np.tile(1 / np.resize(hyper["participation_probs"], clients), (rounds, 1))
    beta = {"fedau": 0.0}.get(method, hyper.get("beta", 1.0)) or 0.0
    h = [{k: np.zeros(shape) for k, shape in SHAPES.items()} for _ in range(clients)]
    for t in range(rounds):
        d, who = _sent(out, random, t, clients), np.flatnonzero(table[t])
        for k in SHAPES:
            if method == "mifa":
                for i in who:
                    h[i][k] = d[i][k]
                u = sum(h[i][k] for i in range(clients)) / clients
            else:
                mean = method == "fedvarp_participant_mean"
                u = beta * sum(shares[i] * h[i][k] for i in range(clients))
                for i in who:
                    own = 1 / len(who) if mean else shares[i] * weight[t, i]
                    u = u + own * (d[i][k] - beta * h[i][k])
                for i in who:
                    h[i][k] = d[i][k]
            if len(who) or method == "mifa":
                x[k] = x[k] - hyper["server_lr"] * u
        _write(out, f"p/{t}", x)
    return out


def asynchronous(hyper: dict[str, Any], clients: int, rounds: int) -> Arrays:
    """FedFix, Async and FedBuff by a list of events."""
    random = np.random.default_rng(clients)
    name, _, number = hyper["scheme"].partition("-")
    slower = float(hyper["time_scenario"].split("-")[1])
    tau = np.array([1 - i * slower / 100 / (clients - 1) for i in range(clients)])
    ready, version, rows, end = tau.copy(), [0] * clients, [], hyper["T_time"]
    while True:
        if name == "FedFix":
            now = (len(rows) + 1) * float(number)
            who = [i for i in range(clients) if ready[i] <= now]
            done = now > end
        else:
            count = int(number or 1)
            who = sorted(range(clients), key=lambda i: (ready[i], i))[:count]
            now, done = max(ready[i] for i in who), min(ready) > end
        if done:
            break
        rows.append([version[i] if i in who else -1 for i in range(clients)])
        for i in who:
            ready[i], version[i] = now + tau[i], len(rows)
    p = np.float64(hyper["n_samples"]) / np.sum(hyper["n_samples"])
    fraction = np.mean(np.array(rows) >= 0, axis=0)
    weights = {
        ("Async", "weight"): np.sum(1 / tau) * tau * p,
        ("Async", "identical"): np.ones(clients),
        ("FedFix", "weight"): np.ceil(tau / float(number or 1)) * p,
        ("FedBuff", "weight"): p / fraction,
        ("FedBuff", "identical"): np.full(clients, 1 / float(number or 1)),
    }[name, hyper["weights"]]
    schedule = np.array(rows[:rounds])
    out: Arrays = {"tau": tau, "agg_weights": weights, "schedule": schedule}
    x = {k: np.float64(v) for k, v in _start(random).items()}
    _write(out, "p0", x)
    for t in range(rounds):
        d = _sent(out, random, t, clients)
        for k in SHAPES:
            for i in np.flatnonzero(schedule[t] >= 0):
                x[k] = x[k] - hyper["server_lr"] * weights[i] * d[i][k]
        _write(out, f"p/{t}", x)
    return out


def fedlex(hyper: dict[str, Any], scouts: int, steps: int) -> Arrays:
    """Guidance, then Adam of guided gradients."""
    random = np.random.default_rng(scouts)
    out: Arrays = {}
    base = _start(random)
    _write(out, "p0", base)
    for k, shape in SHAPES.items():
        ends = np.float32(base[k] + random.standard_normal((scouts, *shape)))
        out |= {f"scout/{s}/{k}": ends[s] for s in range(scouts)}
        far = np.mean((np.float64(ends) - base[k]) ** 2, axis=0)
        if hyper["normalization"] == "MinMax":
            guidance = (far - far.min()) / (far.max() - far.min())
        else:
            middle = sorted(far.ravel())[(far.size - 1) // 2]
            guidance = (far - middle) / np.subtract(*np.quantile(far, [0.75, 0.25]))
        out[f"guidance/{k}"] = np.float32(guidance)
        x, m, v = np.float64(base[k]), np.zeros(shape), np.zeros(shape)
        for t in range(steps):
            g = np.float32(random.standard_normal(shape))
            out[f"g/{t}/{k}"] = g
            c = guidance * g
            m, v = 0.9 * m + 0.1 * c, 0.999 * v + 0.001 * c**2
            root = np.sqrt(v / (1 - 0.999 ** (t + 1))) + 1e-8
            x = x - hyper["lr"] * (m / (1 - 0.9 ** (t + 1))) / root
            out[f"p/{t}/{k}"] = np.float32(x)
    return out


def fedamd(hyper: dict[str, Any], clients: int, rounds: int) -> Arrays:
    """Linear regression in closed loop."""
    random = np.random.default_rng(clients)
    out: Arrays = {"p0/w": np.float32(random.standard_normal((2, 3)))}
    w = np.float64(out["p0/w"])

    def batch(name: str, size: int) -> tuple[np.ndarray, np.ndarray]:
        pair = random.standard_normal((size, 3)), random.standard_normal((size, 2))
        out.update({f"{name}/{k}": np.float32(v) for k, v in zip("xy", pair, strict=True)})
        return np.float64(out[f"{name}/x"]), np.float64(out[f"{name}/y"])

    def slope(w: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.asarray((x @ w.T - y).T @ x / len(x))

    cached = [slope(w, *batch(f"init/{i}", hyper["big_batch"])) for i in range(clients)]
    masks = random.random((2, rounds, clients)) < np.array([0.7, hyper["p"]])[:, None, None]
    masks[1, 1] = True  # a round without miners
    out |= {"participants": np.int64(masks[0]), "anchors": np.int64(masks[0] & masks[1])}
    for t in range(rounds):
        g, sent = np.mean(cached, axis=0), []
        for i in np.flatnonzero(masks[0, t]):
            if masks[1, t, i]:
                cached[i] = slope(w, *batch(f"big/{t}/{i}", hyper["big_batch"]))
                continue
            before, y, d = w, w, g
            for k in range(hyper["K"]):
                data = batch(f"mini/{t}/{i}/{k}", hyper["batch"])
                d = d - slope(before, *data) + slope(y, *data)
                before, y = y, y - hyper["lr"] * d
            sent.append(w - y)
        if sent:
            w = w - hyper["server_lr"] * np.mean(sent, axis=0)
        out[f"p/{t}/w"] = np.float32(w)
    return out


def flower(method: str, hyper: dict[str, Any], rounds: int) -> Arrays:
    """FedAvgM and the adaptive servers; clients' weights and means in Flower's float32."""
    random = np.random.default_rng(rounds)
    weight = np.float64(hyper["n_samples"])
    out: Arrays = {}
    start = _start(random)
    _write(out, "p0", start)
    ends = {k: np.float64(v) for k, v in start.items()}
    m, v = ({k: np.zeros(shape) for k, shape in SHAPES.items()} for _ in range(2))
    b1, b2 = hyper.get("beta_1", 0.0), hyper.get("beta_2", 0.0)
    for t in range(rounds):
        d = _sent(out, random, t, len(weight))
        for k in SHAPES:
            u = -sum(w * one[k] for w, one in zip(weight / weight.sum(), d, strict=True))
            if method == "fedavgm_flwr":
                m[k] = hyper["server_momentum"] * m[k] + u
                ends[k] = ends[k] + hyper["server_learning_rate"] * m[k]
                continue
            m[k] = b1 * m[k] + (1 - b1) * u
            v[k] = {
                "fedadam_flwr": b2 * v[k] + (1 - b2) * u**2,
                "fedyogi_flwr": v[k] - (1 - b2) * u**2 * np.sign(v[k] - u**2),
                "fedadagrad_flwr": v[k] + u**2,
            }[method]
            eta = hyper["eta"]
            if method == "fedadam_flwr":
                eta *= np.sqrt(1 - b2 ** (t + 2)) / (1 - b1 ** (t + 2))
            ends[k] = ends[k] + eta * m[k] / (np.sqrt(v[k]) + hyper["tau"])
        _write(out, f"p/{t}", ends)
    return out

"""Slow float64 NumPy forms of FRUGAL, BAdam, LDAdam, Adafactor, CAME and SM3, and files of them."""

from collections.abc import Callable
from typing import Any

import numpy as np

SHAPES = {"wide": (6, 9), "tall": (9, 5), "square": (6, 6), "bias": (7,)}
CONV = SHAPES | {"conv": (3, 2, 4, 5)}
STEPS = 8
_ZERO_AT = 4
Arrays = dict[str, np.ndarray]


def inputs(seed: int, shapes: dict[str, tuple[int, ...]]) -> Arrays:
    """Parameters and gradients of float32 values; one leaf has a zero gradient."""
    random = np.random.default_rng(seed)
    arrays = {
        f"p0/{k}": (0.5 * random.standard_normal(s)).astype(np.float32) for k, s in shapes.items()
    }
    for t in range(STEPS):
        for k, s in shapes.items():
            g = 0.1 * random.standard_normal(s) * (k != "square" or t != _ZERO_AT)
            arrays[f"g/{t}/{k}"] = g.astype(np.float32)
    return arrays


def torch_adam(state: dict, g: np.ndarray, hyper: dict[str, Any]) -> np.ndarray:
    """Direction with eps beside the corrected root."""
    b1, b2 = hyper["betas"]
    state["n"] = n = state.get("n", 0) + 1
    state["m"] = b1 * state.get("m", 0.0) + (1 - b1) * g
    state["v"] = b2 * state.get("v", 0.0) + (1 - b2) * g**2
    return state["m"] / (1 - b1**n) / (np.sqrt(state["v"] / (1 - b2**n)) + hyper["eps"])


# FRUGAL.


def stateful(state: dict, r: np.ndarray, hyper: dict[str, Any]) -> np.ndarray:
    """What the part with state is stepped along."""
    if "momentum" in hyper:
        held = state.get("buf", r)
        state["buf"] = hyper["momentum"] * held + (1 - hyper.get("dampening", 0.0)) * r
        return state["buf"]
    if "eps" in hyper:
        return torch_adam(state, r, hyper)
    b1, b2 = hyper["betas"]
    m = state.get("m", 0.0 * r)
    state["m"] = b2 * m + (1 - b2) * r
    return np.sign(b1 * m + (1 - b1) * r)


class Selection:
    """What is selected of one matrix: how to get there and back, and what a file records."""

    def __init__(self, g: np.ndarray, hyper: dict[str, Any], random: Any) -> None:
        (m, n), rho = g.shape, hyper["density"]
        self.shape, self.record, self.flat = (m, n), {}, None
        self.kind = hyper.get("proj_type") or hyper["coord_choice"]
        places = np.arange(m * n).reshape(m, n)
        if self.kind in ("columns", "rows"):
            size = n if self.kind == "columns" else m
            idx = random.permutation(size)[: int(rho * size)]
            self.flat = places[:, idx] if self.kind == "columns" else places[idx]
            self.record["idx"] = idx
        elif self.kind == "randk":
            self.flat = random.permutation(m * n)[: int(rho * m * n)]
            self.record["rows"], self.record["cols"] = self.flat // n, self.flat % n
        else:
            self._basis(g, hyper["proj_side"], rho, random)

    def _basis(self, g: np.ndarray, side: str, rho: float, random: Any) -> None:
        m, n = self.shape
        right = {"std": m >= n, "reverse_std": m < n, "right": True, "left": False}.get(side)
        both = side == "full"
        rank = round(rho * (min(m, n) if both else n if right else m))
        left_vectors, _, right_vectors = np.linalg.svd(g)
        self.sides = {}
        for name, size, vectors in (("left", m, left_vectors.T), ("right", n, right_vectors)):
            if not both and (name == "right") != right:
                continue
            rows = {
                "svd": lambda vectors=vectors: vectors[:rank],
                "random": lambda size=size: np.linalg.qr(random.standard_normal((size, rank)))[0].T,
                "randperm": lambda size=size: np.eye(size)[random.permutation(size)[:rank]],
            }[self.kind]()
            if self.kind == "svd":
                largest = np.take_along_axis(rows, np.abs(rows).argmax(1)[:, None], 1)
                rows = rows * np.sign(largest)
            rows = np.float32(rows)
            self.record[f"proj{'/' + name if both else ''}"] = rows if name == "right" else rows.T
            self.sides[name] = np.float64(rows)

    def down(self, g: np.ndarray) -> np.ndarray:
        if self.flat is not None:
            return g.ravel()[self.flat]
        g = self.sides["left"] @ g if "left" in self.sides else g
        return g @ self.sides["right"].T if "right" in self.sides else g

    def up(self, x: np.ndarray) -> np.ndarray:
        if self.flat is not None:
            whole = np.zeros(self.shape)
            whole.flat[self.flat] = x
            return whole
        x = self.sides["left"].T @ x if "left" in self.sides else x
        return x @ self.sides["right"] if "right" in self.sides else x

    def rest(self, g: np.ndarray) -> np.ndarray:
        """What is not selected; exactly 0 where unit vectors reach."""
        if self.flat is not None:
            return np.where(self.up(np.ones(self.flat.shape)) > 0, 0.0, g)
        rest = g - self.up(self.down(g))
        if self.kind == "randperm" and len(self.sides) == 1:
            rest = np.where(self.up(self.down(np.ones(self.shape))) > 0.5, 0.0, rest)
        return rest


def _active(names: list[str], period: int, hyper: dict[str, Any], random: Any) -> set[str]:
    """Whole leaves of a period."""
    count = round(hyper["density"] * len(names))
    if hyper["block_order"] == "random":
        return {names[i] for i in random.permutation(len(names))[:count]}
    start = period * count
    order = names if hyper["block_order"] == "ascending" else names[::-1]
    return {order[(start + i) % len(names)] for i in range(count)}


def frugal(arrays: Arrays, hyper: dict[str, Any], seed: int) -> None:
    """Fills in what is selected, and the parameters."""
    random = np.random.default_rng(seed)
    params = {k[3:]: np.float64(v) for k, v in arrays.items() if k.startswith("p0/")}
    matrices = [k for k, p in params.items() if p.ndim == 2]
    states: dict[str, dict] = {k: {} for k in params}
    chosen: dict[str, Selection] = {}
    lr, reset = hyper["lr"], hyper.get("reset_statistics", True)
    rule = hyper.get("inactive_update_rule", "sign_sgd")
    free = {"sign_sgd": np.sign, "sgd": lambda x: x, "no": lambda x: 0.0 * x}[rule]
    for t in range(STEPS):
        fresh = t % hyper["update_gap"] == 0
        if fresh and "block_order" in hyper:
            active = _active(matrices, t // hyper["update_gap"], hyper, random)
        for k, p in params.items():
            g = np.float64(arrays[f"g/{t}/{k}"])
            p = (1 - lr * hyper["weight_decay"]) * p
            if k not in matrices:
                # Not the reference's first buffer, a copy of the parameter.
                if "momentum" in hyper and "buf" not in states[k]:
                    states[k]["buf"] = 0.0 * g
                params[k] = p - lr * stateful(states[k], g, hyper)
            else:
                if fresh and (reset or "block_order" in hyper):
                    states[k] = {}
                rate = lr * hyper.get("proj_params_lr_scale", 1.0)
                slow = rate * hyper.get("inactive_lr_scale", 1.0)
                if "block_order" in hyper:
                    arrays[f"active/{t}/{k}"] = np.asarray(k in active)
                    inside = k in active
                    params[k] = p - (
                        rate * stateful(states[k], g, hyper) if inside else slow * free(g)
                    )
                else:
                    if fresh:
                        chosen[k] = Selection(g, hyper, random)
                    for name, value in chosen[k].record.items():
                        kind, *side = name.split("/")
                        arrays["/".join([kind, str(t), k, *side])] = value
                    direction = chosen[k].up(stateful(states[k], chosen[k].down(g), hyper))
                    params[k] = p - rate * direction - slow * free(chosen[k].rest(g))
            arrays[f"p/{t}/{k}"] = np.float32(params[k])


# BAdam.


def badam(arrays: Arrays, hyper: dict[str, Any], seed: int) -> None:
    """One block at a time; the first turn is a step shorter."""
    random = np.random.default_rng(seed)
    params = {k[3:]: np.float64(v) for k, v in arrays.items() if k.startswith("p0/")}
    blocks, every, mode = hyper["blocks"], hyper["switch_block_every"], hyper["switch_mode"]
    left: list[int] = []

    def following(block: int | None) -> int:
        if mode == "fixed":
            return 0
        if mode == "random":
            if not left:
                left.extend(random.permutation(len(blocks)).tolist())
            return left.pop()
        step = 1 if mode == "ascending" else -1
        return (
            (0 if step > 0 else len(blocks) - 1) if block is None else (block + step) % len(blocks)
        )

    block = following(None)
    states: dict[str, dict] = {k: {} for k in params}
    for t in range(STEPS):
        for k, p in params.items():
            arrays[f"active/{t}/{k}"] = np.asarray(k in blocks[block])
            if k in blocks[block]:
                p = (1 - hyper["lr"] * hyper["weight_decay"]) * p
                g = np.float64(arrays[f"g/{t}/{k}"])
                params[k] = p - hyper["lr"] * torch_adam(states[k], g, hyper)
            arrays[f"p/{t}/{k}"] = np.float32(params[k])
        if (t + 2) % every == 0:
            block, states = following(block), {k: {} for k in params}


# Leaf by leaf: (state, W, g, number of the update, hyperparameters) -> new W.


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(x**2)))


def _means(state: dict, names: str, q: np.ndarray, weight: float) -> None:
    """Averages of the means over columns and over rows, or of q itself."""
    parts = {names[0]: q.mean(-1), names[1]: q.mean(-2)} if q.ndim >= 2 else {names[2]: q}
    for name, part in parts.items():
        held = state.get(name, 0.0 * part)
        state[name] = held + weight * (part - held)


def _root(row: np.ndarray, column: np.ndarray) -> np.ndarray:
    ratio = row / row.mean(-1, keepdims=True)
    return 1 / np.sqrt(ratio[..., :, None] * column[..., None, :])


def adafactor_hf(state: dict, w: np.ndarray, g: np.ndarray, n: int, hyper: dict) -> np.ndarray:
    """As Transformers have it."""
    eps, eps2 = hyper["eps"]
    _means(state, "rcv", g**2 + eps, float(n) ** hyper["decay_rate"])
    u = g * (_root(state["r"], state["c"]) if g.ndim >= 2 else 1 / np.sqrt(state["v"]))
    u = u / max(1.0, _rms(u) / hyper["clip_threshold"])
    rate = hyper["lr"]
    if hyper["relative_step"]:
        rate = min(1e-6 * n if hyper["warmup_init"] else 1e-2, 1 / np.sqrt(n))
    if hyper["scale_parameter"]:
        rate *= max(eps2, _rms(w))
    u = rate * u
    if hyper["beta1"] is not None:
        u = state["m"] = hyper["beta1"] * state.get("m", 0.0) + (1 - hyper["beta1"]) * u
    return w - hyper["weight_decay"] * rate * w - u


def adafactor_torch(state: dict, w: np.ndarray, g: np.ndarray, n: int, hyper: dict) -> np.ndarray:
    """As torch has it."""
    eps, eps2 = hyper["eps"]
    eps = float(np.finfo(np.float32).eps) if eps is None else eps
    rate = max(eps2, _rms(w)) * min(hyper["lr"], 1 / np.sqrt(n))
    w = (1 - hyper["lr"] * hyper["weight_decay"]) * w
    _means(state, "rcv", g**2, float(n) ** hyper["beta2_decay"])
    if g.ndim >= 2:
        mean = np.maximum(state["r"].mean(-1), eps)[..., None, None]
        v = state["r"][..., :, None] * state["c"][..., None, :] / mean
    else:
        v = state["v"]
    u = g / np.sqrt(np.maximum(v, eps**2))
    return w - rate / max(1.0, _rms(u) / hyper["d"]) * u


def came(state: dict, w: np.ndarray, g: np.ndarray, n: int, hyper: dict) -> np.ndarray:
    """Averages begin at 0 and are not corrected."""
    del n
    (eps, eps2), (b1, b2, b3) = hyper["eps"], hyper["betas"]
    _means(state, "rcv", g**2 + eps, 1 - b2)
    u = g * (_root(state["r"], state["c"]) if g.ndim >= 2 else 1 / np.sqrt(state["v"]))
    u = u / max(1.0, _rms(u) / hyper["clip_threshold"])
    m = state["m"] = b1 * state.get("m", 0.0) + (1 - b1) * u
    if g.ndim >= 2:
        _means(state, "RC_", (u - m) ** 2 + eps2, 1 - b3)
        m = m * _root(state["R"], state["C"])
    return (1 - hyper["lr"] * hyper["weight_decay"]) * w - hyper["lr"] * m


def sm3(state: dict, w: np.ndarray, g: np.ndarray, n: int, hyper: dict) -> np.ndarray:
    """One accumulator an axis."""
    del n
    beta = hyper["beta"]
    accumulators = state.setdefault("a", [np.zeros(size) for size in g.shape])
    axes = range(g.ndim)
    shapes = [[-1 if i == axis else 1 for i in axes] for axis in axes]
    v = np.zeros(g.shape) + np.inf
    for a, shape in zip(accumulators, shapes, strict=True):
        v = np.minimum(v, a.reshape(shape))
    v = (beta * v if beta > 0 else v) + (1 - beta) * g**2
    for axis in axes:
        most = v.max(tuple(i for i in axes if i != axis))
        accumulators[axis] = np.maximum(accumulators[axis], most) if beta > 0 else most
    u = g / np.sqrt(v + hyper["eps"])
    if hyper["momentum"] > 0:
        mu = hyper["momentum"]
        u = state["m"] = mu * state.get("m", 0.0) + (1 - mu) * u
    return w - hyper["lr"] * u


def ldadam(state: dict, w: np.ndarray, g: np.ndarray, n: int, hyper: dict) -> np.ndarray:
    """In the form with the short side first."""
    (b1, b2), lr = hyper["betas"], hyper["lr"]
    w = (1 - lr * hyper["weight_decay"]) * w
    if g.ndim < 2:
        return w - lr * torch_adam(state, g, hyper)
    turned = g.shape[0] > g.shape[1]
    g = g + state.get("error", 0.0)
    x, rank, done = (g.T if turned else g), hyper["rank"], n - 1
    if done == 0:
        p = _leading(x, rank)
        q, m, v = 0 * p, np.zeros((rank, x.shape[1])), np.zeros((rank, x.shape[1]))
    else:
        q, m, v = state["p"], state["m"], state["v"]
        blend = hyper["rho"] * q @ m / (1 - b1**done) + (1 - hyper["rho"]) * x
        if hyper["proj_method"] == "svd":
            p = _leading(blend, rank)
        else:
            p, upper = np.linalg.qr(blend @ (blend.T @ q))
            p = p * np.sign(np.diag(upper))
    low, cosines = p.T @ x, p.T @ q
    carried = cosines @ m
    error = x - p @ low + b1 / (1 - b1) * (q @ m - p @ carried)
    if done:
        c1, c2 = 1 - b1**done, 1 - b2**done
        v = np.abs(c2 * (cosines**2 @ (v / c2 - (m / c1) ** 2) + (carried / c1) ** 2))
    m, v = b1 * carried + (1 - b1) * low, b2 * v + (1 - b2) * low**2
    state.update(p=p, m=m, v=v)
    if hyper["error_feedback"]:
        state["error"] = error.T if turned else error
    direction = m / (1 - b1**n) / (np.sqrt(v / (1 - b2**n)) + hyper["eps"])
    u = p @ direction
    return w - lr * (u.T if turned else u)


def _leading(x: np.ndarray, rank: int) -> np.ndarray:
    u = np.linalg.svd(x)[0][:, :rank]
    return u * np.sign(np.take_along_axis(u, np.abs(u).argmax(0)[None], 0))


LEAVES: dict[str, Callable[..., np.ndarray]] = {
    "adafactor_hf": adafactor_hf,
    "adafactor_torch": adafactor_torch,
    "came": came,
    "sm3": sm3,
    "ldadam": ldadam,
}


def trajectory(method: str, hyper: dict[str, Any], seed: int) -> Arrays:
    """Inputs, what was drawn, and what the method makes of them."""
    has_conv = method in ("adafactor_hf", "adafactor_torch", "came")
    arrays = inputs(seed, CONV if has_conv else SHAPES)
    if method == "badam":
        badam(arrays, hyper, seed + 1)
    elif method.startswith("frugal"):
        frugal(arrays, hyper, seed + 1)
    else:
        names = [k[3:] for k in arrays if k.startswith("p0/")]
        for k in names:
            w, state = np.float64(arrays[f"p0/{k}"]), {}
            for t in range(STEPS):
                w = LEAVES[method](state, w, np.float64(arrays[f"g/{t}/{k}"]), t + 1, hyper)
                arrays[f"p/{t}/{k}"] = np.float32(w)
    return arrays

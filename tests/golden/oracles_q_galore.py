"""A slow float64 NumPy form of Q-GaLore, and files of other settings made with it."""

from typing import Any

import numpy as np

SHAPES = {"wide": (8, 12), "tall": (12, 8), "square": (8, 8), "bias": (7,)}
STEPS = 9


def inputs(seed: int, noise: float) -> dict[str, np.ndarray]:
    """Parameters, gradients that turn the more the noisier they are, and uniform numbers."""
    random = np.random.default_rng(seed)
    arrays = {
        f"p0/{k}": (0.5 * random.standard_normal(s)).astype(np.float32) for k, s in SHAPES.items()
    }
    common = {k: random.standard_normal(s) for k, s in SHAPES.items()}
    for t in range(STEPS):
        for k, s in SHAPES.items():
            g = 0.1 * (common[k] + noise * random.standard_normal(s))
            arrays[f"g/{t}/{k}"] = g.astype(np.float32)
    return arrays


def quantized(x: np.ndarray, group: int, bits: int, u: np.ndarray | None = None) -> tuple:
    """(codes, scales, zeros, value) of the reference's affine groups; at random with numbers u."""
    rows, top = x.reshape(-1, group), 2**bits - 1
    low, high = rows.min(1, keepdims=True), rows.max(1, keepdims=True)
    scale = np.maximum(high - low, 1e-5) / top
    zero = np.clip(-np.round(low / scale), 0, top)
    y = rows / scale
    steps = np.round(y) if u is None else np.where(u < y - np.floor(y), np.ceil(y), np.floor(y))
    codes = np.clip(steps + zero, 0, top)
    value = ((codes - zero) * scale).reshape(x.shape)
    return codes.reshape(x.shape).astype(np.uint8), scale, zero, value


def basis(g: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """The basis as the reference holds it, (r, n) or (m, r), and its first vector."""
    left, _, right = np.linalg.svd(g, full_matrices=False)
    vectors = right[:rank] if g.shape[0] >= g.shape[1] else left[:, :rank].T
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(1)[:, None], 1)
    vectors = vectors * np.sign(largest)
    return (vectors if g.shape[0] >= g.shape[1] else vectors.T), vectors[0]


def refreshed(state: dict, g: np.ndarray, t: int, hyper: dict[str, Any]) -> None:
    """Takes a new basis if it is time, and decides when the next one is due."""
    if "proj" in state and t % state["gap"]:
        return
    p, first = basis(g, hyper["rank"])
    state["svd_count"] = state.get("svd_count", 0) + 1
    if "first" in state:
        state["queue"] = [*state["queue"], float(first @ state["first"])][-hyper["queue_size"] :]
        full = len(state["queue"]) == hyper["queue_size"]
        if full and np.mean(state["queue"]) >= hyper["cos_threshold"]:
            state["gap"] = int(hyper["gamma_proj"] * state["gap"])
    state["first"] = first
    if hyper["quant"]:
        names = ("proj_codes", "proj_scales", "proj_zeros", "proj")
        held = quantized(p, hyper["quant_group_size"], hyper["quant_n_bit"])
        state.update(zip(names, held, strict=True))
    else:
        state["proj"] = p


def direction(state: dict, g: np.ndarray, hyper: dict[str, Any]) -> np.ndarray:
    """Adam's, with eps beside the corrected root."""
    b1, b2 = hyper["betas"]
    state["n"] = n = state.get("n", 0) + 1
    state["m"] = b1 * state.get("m", 0.0) + (1 - b1) * g
    state["v"] = b2 * state.get("v", 0.0) + (1 - b2) * g**2
    return state["m"] / (1 - b1**n) / (np.sqrt(state["v"] / (1 - b2**n)) + hyper["eps"])


def trajectory(hyper: dict[str, Any], seed: int, noise: float) -> dict[str, np.ndarray]:
    """Inputs, and what the method makes of them."""
    arrays = inputs(seed, noise)
    random = np.random.default_rng(seed + 1)
    lr, decay, group = hyper["lr"], hyper["weight_decay"], hyper["group_size"]
    params: dict[str, np.ndarray] = {k: np.float64(arrays[f"p0/{k}"]) for k in SHAPES}
    states: dict[str, dict] = {k: {"gap": hyper["update_proj_gap"], "queue": []} for k in SHAPES}
    for k, p in params.items():
        if p.ndim == 2:
            *held, params[k] = quantized(p, group, 8)
            arrays.update(zip((f"{n}0/{k}" for n in _WEIGHT), held, strict=True))
    for t in range(STEPS):
        for k, p in params.items():
            g, state = np.float64(arrays[f"g/{t}/{k}"]), states[k]
            if p.ndim < 2:
                params[k] = (1 - lr * decay) * p - lr * direction(state, g, hyper)
                arrays[f"p/{t}/{k}"] = np.float32(params[k])
                continue
            refreshed(state, g, t, hyper)
            q, right = state["proj"], p.shape[0] >= p.shape[1]
            u = direction(state, g @ q.T if right else q.T @ g, hyper)
            stepped = p - lr * hyper["scale"] * (u @ q if right else q @ u)
            stepped = stepped - lr * decay * stepped
            drawn = np.float32(random.random((p.size // group, group)))
            arrays[f"rand/{t}/{k}"] = drawn
            *held, params[k] = quantized(
                stepped, group, 8, drawn if hyper["stochastic_round"] else None
            )
            arrays.update(zip((f"{n}/{t}/{k}" for n in _WEIGHT), held, strict=True))
            arrays[f"p/{t}/{k}"] = np.float32(params[k])
            for name in ("gap", "queue", "svd_count", "proj", *_CODES):
                if name in state:
                    arrays[f"{name}/{t}/{k}"] = np.asarray(state[name])
    for k in ("wide", "tall", "square"):
        arrays[f"m/{k}"], arrays[f"v/{k}"] = states[k]["m"], states[k]["v"]
    return arrays


_WEIGHT = ("codes", "scales", "zeros")
_CODES = ("proj_codes", "proj_scales", "proj_zeros")

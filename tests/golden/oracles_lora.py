"""Slow float64 NumPy forms of the methods for low-rank adapters, and files of them."""

import json

import numpy as np

SHAPES = {"w1": (6, 5), "w2": (6, 5)}


def solve_sylvester(p, q, right):
    """X of P X + X Q = C by its Kronecker form."""
    eye_p, eye_q = np.eye(len(p)), np.eye(len(q))
    system = np.kron(p, eye_q) + np.kron(eye_p, q.T)
    return np.linalg.solve(system, right.ravel()).reshape(right.shape)


def adjust(a, b, ga, gb, h, first, closest):
    s, ridge = h["scaling"], h["delta"] * np.eye(len(a))
    ai = np.linalg.pinv(a @ a.T + ridge)
    if first:
        return ga, gb @ ai / s**2
    bi = np.linalg.pinv(b.T @ b + ridge)
    x = np.zeros_like(ai)
    if closest:
        x = solve_sylvester(b.T @ b, a @ a.T, -bi @ ga @ a.T / s**2)
    outside = np.eye(len(b)) - b @ bi @ b.T
    return bi @ ga / s**2 + x @ a, outside @ gb @ ai / s**2 - b @ x


def lora_pro(a, b, ga, gb, state, t, h):
    s, lr, b1, b2 = h["scaling"], h["lr"], h["beta1"], h["beta2"]
    fixed = h["method"] == "lora_pro_fixed"
    first, n = fixed and t == 0, t + (1 if fixed else 2)
    m, v = state.get("m", 0.0), state.get("v", 0.0)
    da, db = adjust(a, b, ga, gb, h, first, False)
    e = s * (b @ da + db @ a)
    m, v = b1 * m + (1 - b1) * e, b2 * v + (1 - b2) * e**2
    state.update(m=m, v=v)
    u = m / (1 - b1**n) / (np.sqrt(v / (1 - b2**n)) + h["eps"])
    da, db = adjust(a, b, s * b.T @ u, s * u @ a.T, h, first, True)
    return a - lr * da, b - lr * db


def altlora(a, b, ga, gb, state, t, h):
    """One factor after the other, B's by transposes."""
    (b1, b2), lr, wd = h["betas"], h["lr"], h["weight_decay"]
    factors, grads = {"a": a, "b": b.T}, {"a": ga, "b": gb.T}
    own = {"alternate": ["ab"[t % 2]], "joint": ["a", "b"]}[h["schedule"]]
    for name in own:
        other = factors["b" if name == "a" else "a"]
        m, v, old, k = state.get(name, (0 * factors[name], 0.0, 0 * other, 0))
        inverse = np.linalg.inv(other @ other.T + h["reg"] * np.eye(len(other)))
        g, carried = inverse @ grads[name], inverse @ other @ old.T @ m
        step = b1 * carried + (1 - b1) * g
        kept, v = step, b2 * v + (1 - b2) * g**2
        if h["method"] == "altlora_plus":
            kept = b1 * m + (1 - b1) * g
            step = step / (np.sqrt(v) + h["eps"])
        state[name] = kept, v, other, k + 1
        moved = factors[name] - lr / (1 - b1 ** (k + 1)) * step
        factors[name] = (1 - lr * wd) * moved
    return factors["a"], factors["b"].T


METHODS = dict.fromkeys(("lora_pro", "lora_pro_fixed"), lora_pro) | dict.fromkeys(
    ("altlora", "altlora_plus"), altlora
)


def write(file, method, hyper, *, steps, said=None, seed=0):
    """Writes a trajectory; ``said`` is what the file claims to be its hyperparameters."""
    random = np.random.default_rng(seed)
    draw = lambda shape, size: size * random.standard_normal(shape)  # noqa: E731
    rank, arrays, at, states = hyper["rank"], {}, {}, {}
    for name, (m, n) in SHAPES.items():
        zero = hyper.get("B_init_zero", False)
        at[name] = draw((rank, n), 0.5), draw((m, rank), 0.0 if zero else 0.5)
        arrays |= {f"p0/{name}_A": at[name][0], f"p0/{name}_B": at[name][1]}
    for t in range(steps):
        for name, (a, b) in at.items():
            a, b = np.float64(np.float32(a)), np.float64(np.float32(b))
            g, s = draw(SHAPES[name], 0.1), hyper.get("scaling", 1.0)
            ga, gb = s * b.T @ g, s * g @ a.T
            arrays |= {f"g/{t}/{name}_A": ga, f"g/{t}/{name}_B": gb}
            own = hyper | {"method": method}
            at[name] = METHODS[method](a, b, ga, gb, states.setdefault(name, {}), t, own)
            arrays |= {f"p/{t}/{name}_A": at[name][0], f"p/{t}/{name}_B": at[name][1]}
    meta = json.dumps({"method": method, "hyperparameters": said or hyper})
    np.savez(file, meta=meta, **{k: np.float32(x) for k, x in arrays.items()})


def adalora_step(params, grads, state, g, h):
    """The allocator after a step of SGD, on triplets of all layers."""
    whole = sum(p.size for k, p in params.items() if k.endswith("E"))
    target = h["target_rank"] * sum(k.endswith("E") for k in params)
    first, last, total = h["init_warmup"], h["final_warmup"], h["total_step"]
    params = {k: p - h["sgd_lr"] * grads[k] for k, p in params.items()}
    if g < total - last:
        for k, p in params.items():
            i, u = state.get(k, (0.0, 0.0))
            sense = np.abs(p * grads[k])
            i = h["beta1"] * i + (1 - h["beta1"]) * sense
            state[k] = i, h["beta2"] * u + (1 - h["beta2"]) * np.abs(sense - i)
    left = 1 - (g - first) / (total - last - first)
    budget = int(target + (whole - target) * left**3)
    budget = whole if g <= first else target if g > total - last else budget
    scores = {}
    for k in params:
        if k.endswith("E"):
            e, a, b = (np.prod(state[k[:-1] + x], axis=0) for x in "EAB")
            scores[k] = e + a.mean(1, keepdims=True) + b.mean(0)[:, None]
    found = {"budget": budget}
    if g > total - last or (g > first and g % h["mask_interval"] == 0):
        limit = np.sort(np.concatenate([s.ravel() for s in scores.values()]))
        limit = limit[whole - budget - 1] if budget < whole else -np.inf
        params |= {k: np.where(s <= limit, 0.0, params[k]) for k, s in scores.items()}
    return params, found


def write_adalora(file, hyper, *, steps, said=None, seed=0):
    """Writes a trajectory of the allocator on three layers."""
    random, r, state = np.random.default_rng(seed), hyper["lora_r"], {}
    shapes = {}
    for layer, (m, n) in enumerate([(6, 5), (4, 7), (5, 5)]):
        for part, shape in (("A", (r, n)), ("E", (r, 1)), ("B", (m, r))):
            shapes[f"l{layer}.lora_{part}"] = shape
    params = {k: np.float32(0.5 * random.standard_normal(s)) for k, s in shapes.items()}
    arrays = {f"p0/{k}": p for k, p in params.items()}
    for t in range(steps):
        grads = {k: np.float32(0.1 * random.standard_normal(s)) for k, s in shapes.items()}
        params = {k: np.float64(np.float32(p)) for k, p in params.items()}
        params, found = adalora_step(params, grads, state, t + 1, hyper)
        arrays |= {f"g/{t}/{k}": g for k, g in grads.items()}
        arrays |= {f"p/{t}/{k}": np.float32(p) for k, p in params.items()}
        arrays[f"budget/{t}"] = np.int64(found["budget"])
    for k, (i, u) in state.items():
        arrays |= {f"ipt/{k}": np.float32(i), f"unc/{k}": np.float32(u)}
    meta = json.dumps({"method": "adalora_allocator", "hyperparameters": said or hyper})
    np.savez(file, meta=meta, **arrays)


ADA = {
    "target_rank": 1, "init_warmup": 1, "final_warmup": 3, "mask_interval": 1, "beta1": 0.6,
    "beta2": 0.7, "total_step": 9, "lora_r": 3, "sgd_lr": 0.05,
}  # fmt: skip
PRO = {
    "lr": 0.02, "scaling": 0.5, "rank": 2, "beta1": 0.8, "beta2": 0.95, "eps": 1e-4,
    "delta": 1e-6, "B_init_zero": False,
}  # fmt: skip

ALT = {
    "lr": 0.02, "betas": [0.8, 0.9], "eps": 1e-2, "weight_decay": 0.1, "reg": 1e-3, "rank": 2,
    "schedule": "alternate",
}  # fmt: skip

# name -> (method, hyperparameters)
VARIANTS = {
    "pro": ("lora_pro", PRO),
    "pro_from_zero": ("lora_pro", PRO | {"B_init_zero": True}),
    "pro_fixed": ("lora_pro_fixed", PRO),
    "pro_fixed_from_zero": ("lora_pro_fixed", PRO | {"B_init_zero": True, "scaling": 4.0}),
    "pro_of_rank_1": ("lora_pro_fixed", PRO | {"rank": 1, "delta": 1e-3}),
    "alt": ("altlora", ALT),
    "alt_joint": ("altlora", ALT | {"schedule": "joint"}),
    "alt_plus": ("altlora_plus", ALT | {"rank": 1}),
    "alt_plus_joint": ("altlora_plus", ALT | {"schedule": "joint"}),
}
WRONG = [
    ("alt", "betas", [0.9, 0.9]),
    ("alt", "reg", 0.1),
    ("alt_joint", "weight_decay", 0.0),
    ("alt_joint", "schedule", "alternate"),
    ("alt_plus", "betas", [0.8, 0.99]),
    ("alt_plus", "eps", 1e-4),
    ("pro", "scaling", 1.0),
    ("pro", "beta2", 0.9),
    ("pro", "delta", 0.1),
    ("pro_fixed", "beta1", 0.9),
    ("pro_fixed", "eps", 1e-2),
]

"""Files of other hyperparameters than the stored ones replay too, and with their own only."""

import json

import numpy as np
import pytest

from tests.golden.replay import replay

SHAPES = {"wide": (4, 6), "bias": (5,)}
LAYERS = {"wide": (4, 6), "tall": (5, 3)}  # (fan_out, fan_in); the first has a bias


def adam(state, g, t, b1=0.8, b2=0.9, eps=1e-8):
    state["m"] = b1 * state.get("m", 0) + (1 - b1) * g
    state["v"] = b2 * state.get("v", 0) + (1 - b2) * g**2
    return state["m"] / (1 - b1**t) / (np.sqrt(state["v"] / (1 - b2**t)) + eps)


def sophia_g(random, steps, h):
    (b1, b2), every = h["betas"], h["hessian_interval"]
    p = {k: random.standard_normal(s) for k, s in SHAPES.items()}
    m, v = ({k: np.zeros(s) for k, s in SHAPES.items()} for _ in range(2))
    yield "p0", p
    for t in range(steps):
        g, ghat = (
            {k: np.float32(random.standard_normal(s)) for k, s in SHAPES.items()} for _ in "ab"
        )
        yield f"g/{t}", g
        for k in p:
            p[k] = p[k] * (1 - h["lr"] * h["weight_decay"])
            m[k] = b1 * m[k] + (1 - b1) * g[k]
            ratio = np.minimum(np.abs(m[k]) / (h["rho"] * h["bs"] * v[k] + 1e-15), 1)
            p[k] = p[k] - h["lr"] * np.sign(m[k]) * ratio
        if t % every == every - 1:
            ghat = {k: np.float32(0.1 * x) for k, x in ghat.items()}
            yield f"ghat/{t}", ghat
            v = {k: b2 * v[k] + (1 - b2) * np.float64(ghat[k]) ** 2 for k in v}
            yield f"h/{t}", v
        yield f"p/{t}", p
        yield f"m/{t}", m


def sophia_h(random, steps, h):
    p = {k: random.standard_normal(s) for k, s in SHAPES.items()}
    m, v = ({k: np.zeros(s) for k, s in SHAPES.items()} for _ in range(2))
    yield "p0", p
    limit = np.inf if h["clip_threshold"] is None else h["clip_threshold"]
    for t in range(steps):
        g, hdiag = (
            {k: np.float32(random.standard_normal(s)) for k, s in SHAPES.items()} for _ in "ab"
        )
        yield f"g/{t}", g
        yield f"hdiag/{t}", hdiag
        for k in p:
            m[k] = h["b1"] * m[k] + (1 - h["b1"]) * g[k]
            under = np.maximum(h["gamma"] * v[k], h["eps"])
            u = np.clip(m[k] / (1 - h["b1"] ** (t + 1)) / under, -limit, limit)
            p[k] = p[k] - h["learning_rate"] * (u + h["weight_decay"] * p[k])
            if t % h["update_interval"] == 0:
                v[k] = h["b2"] * v[k] + (1 - h["b2"]) * np.float64(hdiag[k])
        yield f"p/{t}", p
        yield f"h/{t}", v


def mkor(random, steps, h):
    names = (*LAYERS, "wide_bias")
    p = {k: random.standard_normal(LAYERS.get(k, 4)) for k in names}
    sides, resets, states = {}, {k: [True, True] for k in LAYERS}, {k: {} for k in names}
    yield "p0", p
    for t in range(steps):
        g = {k: np.float32(random.standard_normal(p[k].shape)) for k in names}
        yield f"g/{t}", g
        u = {k: np.float64(x) for k, x in g.items()}
        a = {
            k: np.float32(np.append(random.standard_normal(n), [1.0] * (k == "wide")))
            for k, (_, n) in LAYERS.items()
        }
        d = {k: np.float32(random.standard_normal(n)) for k, (n, _) in LAYERS.items()}
        yield f"a/{t}", a
        yield f"gout/{t}", d
        for k in LAYERS:
            for i, v in enumerate((a[k], d[k])):
                if t % h["inv_freq"] and t >= h["warmup_steps"]:
                    continue
                v = np.clip(np.float64(v), -h["clipping_value"], h["clipping_value"])
                if resets[k][i]:
                    sides[k, i], resets[k][i] = np.eye(len(v)), False
                    continue
                b = 0.95 * sides[k, i] + 0.05 * np.eye(len(v))
                sides[k, i] = b - np.outer(b @ v, b @ v) / (1 + v @ b @ v)
            whole = np.column_stack([u[k], u["wide_bias"]]) if k == "wide" else u[k]
            moved = sides[k, 1] @ whole @ sides[k, 0]
            n, norm = LAYERS[k][1], np.linalg.norm
            scale = (norm(whole[:, :n]) + norm(whole[:, n:])) / (
                norm(moved[:, :n]) + norm(moved[:, n:])
            )
            u[k] = scale * moved[:, :n]
            if k == "wide":
                u["wide_bias"] = scale * moved[:, n]
        for k in names:
            p[k] = p[k] - h["lr"] * adam(states[k], u[k] + h["weight_decay"] * p[k], t + 1)
        yield f"p/{t}", p
        yield f"Rinv/{t}", {k: sides[k, 0] for k in LAYERS}
        yield f"Linv/{t}", {k: sides[k, 1] for k in LAYERS}


SETTINGS = {
    "sophia_g": (
        sophia_g,
        {"lr": 0.01, "betas": [0.8, 0.7], "rho": 0.3, "weight_decay": 0.2, "bs": 64}
        | {"hessian_interval": 4},
        ("rho", 0.1),
    ),
    "sophia_h": (
        sophia_h,
        {"learning_rate": 0.01, "b1": 0.8, "b2": 0.7, "eps": 0.05, "weight_decay": 0.2}
        | {"gamma": 0.5, "clip_threshold": None, "update_interval": 4},
        ("update_interval", 3),
    ),
    "mkor": (
        mkor,
        {"inv_freq": 3, "warmup_steps": 2, "clipping_value": 1.5, "optimizer": "adam", "lr": 0.01}
        | {"betas": [0.8, 0.9], "eps": 1e-8, "weight_decay": 0.1},
        ("warmup_steps", 0),
    ),
}


def write(file, oracle, hyper, said, steps=9):
    arrays = {}
    for prefix, tree in oracle(np.random.default_rng(0), steps, hyper):
        arrays |= {f"{prefix}/{k}": np.float32(x) for k, x in tree.items()}
    np.savez(file, meta=json.dumps({"method": file.stem, "hyperparameters": said}), **arrays)


@pytest.mark.sweep
@pytest.mark.parametrize("name", SETTINGS)
def test_files_of_other_settings_replay(name, tmp_path):
    oracle, hyper, (key, value) = SETTINGS[name]
    file = tmp_path / f"{name}.npz"
    write(file, oracle, hyper, hyper)
    result = replay(file)
    assert (result.verdict, result.steps) == ("PASS", 9), str(result)
    write(file, oracle, hyper, hyper | {key: value})
    assert replay(file).verdict == "FAIL"

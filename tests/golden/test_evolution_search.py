"""Files of searches and of truncated unrolls with other sizes, constants and optimizers replay."""

import json

import numpy as np
import pytest

from tests.evolution.oracles_search import Cma
from tests.golden.replay import replay

SHAPES = {"bias": (3,), "wide": (2, 2)}
SIZE = 7


def cut(rows: np.ndarray) -> dict[str, np.ndarray]:
    out, start = {}, 0
    for name in sorted(SHAPES):
        end = start + int(np.prod(SHAPES[name]))
        out[name] = rows[..., start:end].reshape(*rows.shape[:-1], *SHAPES[name])
        start = end
    return out


def save(file, meta, arrays):
    np.savez(file, meta=json.dumps(meta), **arrays)
    return replay(file)


@pytest.mark.parametrize("method", ["cma_es", "cma_es_evosax"])
def test_cma(method, tmp_path):
    evosax = method == "cma_es_evosax"
    dtype, rng = (np.float32 if evosax else np.float64), np.random.default_rng(3)
    oracle = Cma(rng.normal(size=SIZE).astype(dtype), 0.4, 9)
    names = dict(std="sigma", C="c", p_std="ps", p_c="pc")
    if not evosax:
        names = dict(_sigma="sigma", _C="c", _p_sigma="ps", _pc="pc")
    arrays = {f"p0/{k}": v for k, v in cut(oracle.mean.astype(dtype)).items()}
    for t in range(7):
        x = oracle.mean + oracle.sigma * rng.normal(size=(9, SIZE)) @ oracle.root()[0]
        x, f = x.astype(dtype), rng.normal(size=9).astype(dtype)
        oracle.tell(x, f)
        arrays[f"f/{t}"] = f
        for group, value in (("x", x), ("p", oracle.mean)):
            arrays |= {f"{group}/{t}/{k}": v.astype(dtype) for k, v in cut(value).items()}
        arrays |= {f"state/{t}/{k}": np.asarray(getattr(oracle, v)) for k, v in names.items()}
    hyper = {"population": 9, "std_init" if evosax else "sigma": 0.4}
    if not evosax:
        hyper |= {"c1": oracle.c1, "cmu": oracle.cmu, "mu_eff": oracle.mu, "cm": 1.0}
        arrays["weights"] = np.array(oracle.w)
    meta = {"method": method, "dtype": np.dtype(dtype).name, "hyperparameters": hyper}
    result = save(tmp_path / f"{method}.npz", meta, arrays)
    assert (result.steps, result.verdict) == (7, "PASS"), str(result)


@pytest.mark.parametrize("method", ["pes", "nres"])
def test_truncated_unrolls(method, tmp_path):
    rng = np.random.default_rng(4)
    sigma, horizon, truncation, rate = 0.2, 25, 7, 0.3
    params, inner = rng.normal(size=SIZE).astype(np.float32), 0
    arrays = {f"p0/{k}": v for k, v in cut(params).items()}
    sums, eps = np.zeros((4, SIZE)), np.zeros((4, SIZE))
    for t in range(9):
        if method == "pes" or inner == 0:
            eps = sigma * rng.normal(size=(4, SIZE))
        sums = sums + eps if method == "pes" else eps
        f = rng.normal(size=8).astype(np.float32)
        both = np.concatenate([sums, -sums])
        params = params - rate * (f @ both) / (8 * sigma**2)
        inner += truncation
        if inner >= horizon:
            inner, sums = 0, np.zeros((4, SIZE))
        arrays[f"pert/{t}"] = np.concatenate([eps, -eps]).astype(np.float32)
        arrays[f"buf/{t}"], arrays[f"f/{t}"] = both.astype(np.float32), f
        arrays[f"inner/{t}"] = np.int32(inner)
        arrays |= {f"p/{t}/{k}": v.astype(np.float32) for k, v in cut(params).items()}
    hyper = {"population": 8, "T": horizon, "K": truncation, "std": sigma}
    hyper["optimizer"] = f"optax.sgd({rate})"
    meta = {"method": method, "dtype": "float32", "hyperparameters": hyper}
    result = save(tmp_path / f"{method}.npz", meta, arrays)
    assert (result.steps, result.verdict) == (9, "PASS"), str(result)

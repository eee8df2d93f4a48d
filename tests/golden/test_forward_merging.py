"""Files of projections and merges with other shapes and numbers than the stored ones replay too."""

import json

import numpy as np
import pytest

from tests.golden.replay import replay

SHAPES = {"kernel": (3, 2, 4), "bias": (2,)}


def projections(file, hyper, *, said=None):
    """Projections of random gradients in float64, one guess all zero."""
    rng, arrays = np.random.default_rng(3), {}
    for t in range(3):
        for name, shape in SHAPES.items():
            draw = rng.standard_normal((2, hyper["samples"], *shape)).astype(np.float32)
            target, guess = draw[0], draw[1] * (0 if (t, name) == (1, "bias") else 1)
            arrays[f"target/{t}/{name}"], arrays[f"guess/{t}/{name}"] = target, guess
            a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (target, guess))
            slope = (a * b).sum(1)
            whole = a.sum(0) @ b.sum(0) / (b.sum(0) @ b.sum(0) + hyper["eps"]) * b.sum(0)
            made = {
                "weight": (slope / ((b * b).sum(1) + hyper["eps"])) @ b,
                "avg": whole,
                "sign": np.sign(slope) @ b,
                "span": a.sum(0) @ np.linalg.pinv(b, 1e-6) @ b,
            }
            for key, value in made.items():
                arrays[f"{key}/{t}/{name}"] = value.reshape(shape).astype(np.float32)
    meta = {"method": "forward_gradient", "hyperparameters": hyper if said is None else said}
    np.savez(file, meta=json.dumps(meta), **arrays)


# The span of five samples is all of a bias of two numbers.
@pytest.mark.sweep
@pytest.mark.parametrize("hyper", [{"eps": 0.5, "samples": 5}, {"eps": 1e-16, "samples": 1}])
def test_projections_of_other_files_replay(hyper, tmp_path):
    projections(tmp_path / "forward_gradient.npz", hyper)
    assert replay(tmp_path / "forward_gradient.npz").verdict == "PASS"


def test_projections_replay_with_their_own_eps_only(tmp_path):
    hyper = {"eps": 0.5, "samples": 5}
    projections(tmp_path / "forward_gradient.npz", hyper, said=hyper | {"eps": 0.4})
    assert replay(tmp_path / "forward_gradient.npz").verdict == "FAIL"


def merges(file, adapters, *, said=None):
    """Merges by Python's own rounding; a share of 0.9 of 15 entries lies next to a half."""
    rng, arrays = np.random.default_rng(4), {}
    factors = [
        {n: (rng.standard_normal((r, k)), rng.standard_normal((m, r))) for n, r, k, m in LEAVES}
        for _ in range(adapters)
    ]
    for i, own in enumerate(factors):
        for n, (a, b) in own.items():
            arrays[f"lora_A/{i}/{n}"], arrays[f"lora_B/{i}/{n}"] = np.float32(a), np.float32(b)
    for t, share in enumerate((0.9, 0.7, 0.3, 1e-3, 1.0, 0.0, 0.5)):
        alpha = np.full(adapters, share, np.float32)
        beta = rng.uniform(-1.5, 1.5, adapters).astype(np.float32)
        arrays[f"alpha/{t}"], arrays[f"beta/{t}"] = alpha, beta
        for n, *_ in LEAVES:
            kept = [kept_largest(arrays[f"lora_A/{i}/{n}"], alpha[i]) for i in range(adapters)]
            a = sum(w * x.astype(np.float64) for w, x in zip(beta, kept, strict=True))
            b = sum(beta[i] * arrays[f"lora_B/{i}/{n}"].astype(np.float64) for i in range(adapters))
            arrays[f"merged/{t}/{n}.lora_A.weight"] = np.float32(a)
            arrays[f"merged/{t}/{n}.lora_B.weight"] = np.float32(b)
    hyper = {"adapters": adapters if said is None else said}
    meta = json.dumps({"method": "evo_merging", "hyperparameters": hyper})
    np.savez(file, meta=meta, **arrays)


LEAVES = (("layers.0.q", 3, 5, 4), ("layers.0.v", 2, 7, 3))


def kept_largest(x, alpha):
    if alpha <= 0 or alpha >= 1:
        return x * (alpha >= 1)
    count = max(1, round(float(alpha) * x.size))
    return np.where(np.abs(x) >= np.sort(np.abs(x), axis=None)[-count], x, 0)


@pytest.mark.sweep
@pytest.mark.parametrize("adapters", [1, 3])
def test_merges_of_other_files_replay(adapters, tmp_path):
    merges(tmp_path / "evo_merging.npz", adapters)
    assert replay(tmp_path / "evo_merging.npz").verdict == "PASS"

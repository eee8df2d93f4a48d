"""Integer EGG in NumPy, one member and one byte at a time, in the layout of the golden file."""

import itertools
import math
from statistics import NormalDist
from typing import Any

import jax
import numpy as np

from tests.golden.replay import Golden

BLOCK = ("Wf", "Uf", "Wh", "Uh")
SCORE_BITS = 4


def clip(x: np.ndarray) -> np.ndarray:
    return np.clip(x, -127, 127)


def shapes(width: int, layers: int, vocab: int) -> dict[str, tuple[int, ...]]:
    """Leaf shapes by the file's names."""
    out: dict[str, tuple[int, ...]] = {"emb": (vocab, width), "head": (vocab, width)}
    out |= {f"blocks.att.{name}": (layers, width, width) for name in BLOCK}
    out |= {f"blocks.{name}": (layers, width) for name in ("att.bf", "att.bh")}
    out |= {f"blocks.{name}.weight": (layers, width) for name in ("ln1", "ln2")}
    out["blocks.mlp.0.weight"] = (layers, 4 * width, width)
    out["blocks.mlp.1.weight"] = (layers, width, 4 * width)
    return {**out, "ln_out.weight": (width,)}


class Member:
    """Parameters and signed noise of one member; no noise for the unperturbed model."""

    def __init__(self, params: dict, noise: dict | None, fixed: int, sigma_shift: int) -> None:
        self.params, self.noise = params, noise
        self.fixed, self.shift = fixed, fixed + sigma_shift

    def _of(self, name: str, layer: int | None) -> tuple[np.ndarray, Any]:
        here = () if layer is None else (layer,)
        p = self.params[name][here].astype(np.int64)
        if self.noise is None:
            return p, None
        return p, [x[here].astype(np.int64) for x in self.noise[name]]

    def mm(self, name: str, x: np.ndarray, layer: int | None = None) -> np.ndarray:
        w, noise = self._of(name, layer)
        out = w @ x
        if noise is not None:
            a, b = noise
            out = out + ((a @ (b.T @ x)) >> self.shift)
        return clip(out // (2**self.fixed * math.isqrt(w.shape[1])))

    def vec(self, name: str, layer: int | None = None) -> np.ndarray:
        p, noise = self._of(name, layer)
        return p if noise is None else clip(p + (noise[0] >> self.shift))

    def norm(self, name: str, x: np.ndarray, layer: int | None = None) -> np.ndarray:
        mean = max(1, max(1, int(np.abs(x).sum())) // x.size)
        return clip((x * self.vec(name, layer)) // mean)

    def read(self, token: int, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logits and the new state."""
        if token == 0:
            state = np.zeros_like(state)
        emb, noise = self._of("emb", None)
        y = emb[token]
        if noise is not None:
            y = clip(y + ((noise[0][token] @ noise[1].T) >> self.shift))
        after = []
        for i, s in enumerate(state.astype(np.int64)):
            u = self.norm("blocks.ln1.weight", y, i)
            names = [f"blocks.att.{x}" for x in ("Wf", "Uf", "bf", "Wh", "Uh", "bh")]
            f = clip(self.mm(names[0], u, i) + self.mm(names[1], s, i) + self.vec(names[2], i))
            g = ((f + 127) * s) >> 8
            h = clip(self.mm(names[3], u, i) + self.mm(names[4], g, i) + self.vec(names[5], i))
            s = s + (((f + 127) * (h - s)) >> 8)
            y = clip(s + y)
            inner = self.mm("blocks.mlp.0.weight", self.norm("blocks.ln2.weight", y, i), i)
            y = clip(self.mm("blocks.mlp.1.weight", inner, i) + y)
            after.append(s)
        return self.mm("head", self.norm("ln_out.weight", y)), np.stack(after)

    def score(self, tokens: np.ndarray, state: np.ndarray) -> tuple[int, np.ndarray]:
        total = 0
        for token, target in itertools.pairwise(tokens):
            logits, state = self.read(int(token), state)
            weights = [int(2.0 ** (SCORE_BITS + (int(v) + 128) / 2**SCORE_BITS)) for v in logits]
            log = int(2**SCORE_BITS * math.log2(sum(weights) / 2**SCORE_BITS))
            total += int(logits[target]) + 128 - log
        return total, state


def draw(golden: dict, hyper: dict, shape: dict, table: np.ndarray, mask: int, t: int) -> dict:
    """Signed noise of all members by name: (A, B) or (E,), members before the own axes."""
    epoch = t // hyper["noise_reuse"] if hyper["noise_reuse"] else 0
    rank, out = hyper["rank"], {}
    for name, full in shape.items():
        layers = full[:1] if name.startswith("blocks") else ()
        own = full[len(layers) :]
        keys = golden[f"key/{name}"].reshape(-1, 2)
        each: list = []
        for key in keys:
            folded = jax.random.fold_in(jax.random.wrap_key_data(key), epoch)
            word = int(jax.random.key_data(folded)[0])
            for member in range(hyper["population"]):
                pair, sign = member >> 1, 1 - 2 * (member & 1)
                start = (word ^ (((pair >> 16) ^ pair) * 0x45D9F3B)) & mask
                size = sum(own) * rank if len(own) == 2 else 2 * own[0]
                cut = table[start : start + size].astype(np.int64)
                if len(own) == 2:
                    rows = cut.reshape(sum(own), rank)
                    each.append((sign * rows[own[1] :], rows[: own[1]]))
                else:
                    each.append((sign * cut.reshape(-1, 2).prod(axis=1),))
        lead = (*layers, hyper["population"])
        out[name] = tuple(np.stack(x).reshape(*lead, *x[0].shape) for x in zip(*each, strict=True))
    return out


def moved(
    hyper: dict, param: np.ndarray, noise: tuple, shaped: np.ndarray, bound: int
) -> np.ndarray:
    """A leaf after its update: the votes of the members with a plus."""
    total = np.zeros(param.shape, np.int64)
    stacked = noise[0].ndim - (2 if len(noise) == 1 else 3)
    for pair, vote in enumerate(shaped):
        own = [np.take(x, 2 * pair, axis=stacked).astype(np.int64) for x in noise]
        if not hyper["use_clt"]:
            own = [np.sign(x) for x in own]
        total += vote * (own[0] if len(own) == 1 else own[0] @ np.swapaxes(own[1], -1, -2))
    unit = 4 ** hyper["fixed_point"] if hyper["use_clt"] else 1
    bound = bound * math.isqrt(len(shaped)) * unit
    step = np.where(total > 0, 1, -1)
    still = np.abs(total) * 2 ** hyper["fixed_point"] < bound
    return clip(np.where(still, param, param + step)).astype(np.int8)


def record(hyper: dict, *, vocab: int = 11, table_bits: int = 10, seed: int = 0) -> Golden:
    """Runs the method and writes down what the file has."""
    rng = np.random.default_rng(seed)
    count, length = hyper["population"], hyper["tokens_per_update"]
    fixed, width, layers = hyper["fixed_point"], hyper["n_embd"], hyper["n_layer"]
    shape = shapes(width, layers, vocab)
    extra = 8 * width * hyper["rank"] + vocab
    table = np.trunc(clip(16 * rng.standard_normal(2**table_bits + extra))).astype(np.int8)
    params = {
        name: clip(np.round(2**fixed * rng.standard_normal(size))).astype(np.int8)
        for name, size in shape.items()
    }
    arrays: dict[str, Any] = {"noise_table": table}
    arrays |= {f"p0/{name}": value for name, value in params.items()}
    for name, size in shape.items():
        lead = size[:1] if name.startswith("blocks") else ()
        arrays[f"key/{name}"] = rng.integers(0, 2**32, (*lead, 2), np.uint32)
    state = np.zeros((count, layers, width), np.int64)
    for t, alpha in enumerate(hyper["alpha_per_step"]):
        streams = rng.integers(0, vocab, (count // hyper["group_size"], length + 1))
        tokens = np.repeat(streams, hyper["group_size"], axis=0).astype(np.uint8)
        noise = draw(arrays, hyper, shape, table, 2**table_bits - 1, t)
        logits, clean, scores, after = [], [], [], []
        for m in range(count):
            own = {
                name: [np.take(x, m, axis=int(name.startswith("blocks"))) for x in parts]
                for name, parts in noise.items()
            }
            member = Member(params, own, fixed, hyper["sigma_shift"])
            plain = Member(params, None, fixed, hyper["sigma_shift"])
            logits.append(member.read(int(tokens[m, 0]), state[m])[0])
            clean.append(plain.read(int(tokens[m, 0]), np.zeros_like(state[m]))[0])
            total, new = member.score(tokens[m], state[m])
            scores.append(total)
            after.append(new)
        state = np.stack(after)
        score = np.array(scores)
        shaped = np.sign(score[::2] - score[1::2])
        bound = int(2**SCORE_BITS * NormalDist().inv_cdf(1 - alpha / 2))
        params = {n: moved(hyper, p, noise[n], shaped, bound) for n, p in params.items()}
        step = {"tokens": tokens, "logits0": np.stack(logits), "logits_clean": np.stack(clean)}
        step |= {"score": score, "state": state, "shaped": shaped, "threshold": np.array(bound)}
        arrays |= {f"{key}/{t}": value for key, value in step.items()}
        arrays |= {f"p/{t}/{name}": value for name, value in params.items()}
        for name, parts in noise.items():
            kinds = ("E",) if len(parts) == 1 else ("A", "B")
            arrays |= {f"{k}/{t}/{name}": x for k, x in zip(kinds, parts, strict=True)}
    return Golden("egg_int8", {"method": "egg_int8", "hyperparameters": hyper}, arrays)

"""Does a model of bytes that has int8 weights only learn without a gradient, and how far?

The curve of ``benchmarks.egg_int8`` (EGG of arXiv 2511.16652, width 64, 82 kB, 1024 members, 32
bytes a stream and update) for several seeds, by updates and not by seconds: the share of weights
that move falls linearly to 0 over all of them. The number to beat is the entropy of the held-out
text's bytes, which counting alone reaches.
"""

import numpy as np

from benchmarks.claims.engine import Outcome, Setting, spread
from benchmarks.egg_int8 import Run
from optkit.tasks import int8_bytes

MEMBERS, TOKENS, ALPHA = 1024, 32, 0.4
# Parts of all updates at which the model is looked at.
UPDATES, PARTS = 1500, (0.0, 0.05, 0.15, 0.4, 1.0)


def curve(task: int8_bytes.Int8Bytes, members: int, seed: int, points: list[int]) -> list[float]:
    """Returns held-out bits a byte after so many updates."""
    run, bits = Run(task, members, ALPHA, seed), []
    for point in points:
        while run.updates < point:
            run.update(max(1e-3, ALPHA * (1.0 - run.updates / points[-1])))
        bits.append(task.evaluate(run.params)["bits_per_byte"])
    return bits


def experiment(setting: Setting) -> Outcome:
    """Learns from each seed, and looks at the model now and then."""
    members, tokens = setting.pick((MEMBERS, TOKENS), (32, 4))
    sizes = setting.pick({"width": 64}, {"width": 16, "held_out_texts": 4, "held_out_tokens": 16})
    updates = setting.pick(UPDATES, 20)
    points = [round(part * updates) for part in PARTS]
    task = int8_bytes.build(streams=members // 2, tokens=tokens, **sizes)
    curves = np.array([curve(task, members, seed, points) for seed in setting.seeds])
    counting, final = task.unigram(), curves[:, -1]
    looked = list(zip(points, curves.T, strict=True))
    below = next((point for point, bits in looked if bits.max() < counting), None)
    return Outcome(
        claim="evolution of int8 weights, with no gradient, ends below the entropy of single bytes "
        "from every seed",
        holds=bool(final.max() < counting),
        finding=f"{final.mean():.3f} bits a byte after {updates} updates; counting bytes reaches "
        f"{counting:.3f}, which all runs are below at update {below}",
        header=("updates", "bits a byte"),
        rows=tuple((f"{point}", spread(bits)) for point, bits in looked),
        seeds=setting.seeds,
    )

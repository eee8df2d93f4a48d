"""What an int8 model learns without a gradient, and how fast: ``python -m benchmarks.egg_int8``.

The byte model EGG (width 64, one block: 82 kB) on the modules of Python's standard library, learnt
by ``optkit.egg`` with 1024 members: each pair reads a stream of its own, 32 bytes an update. The
share of weights that move falls linearly from ``--alpha`` to 0 over ``--seconds`` of running time,
to which evaluation and the compilation of the update do not count.

The curve is held-out bits a byte; beside it stands the entropy of the held-out text's bytes, which
counting alone reaches. Last, the fitness of a population is timed against the same model with the
same noise in float32, taking turns.
"""

import functools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks import common
from optkit.evolution import integer
from optkit.evolution.integer import IntegerPerturbed
from optkit.tasks import int8_bytes

POINTS = 8  # of the curve


def float_scores(params: Any, tokens: jax.Array, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log-likelihood of texts under the model in float32, saturating and dividing but not rounding.

    Args:
      params: population of ``IntegerPerturbed`` leaves in float32.
      tokens: uint8 ``(pairs, length + 1)``.
      hidden: float32 ``(members, layers, width)``.

    Returns:
      float32 ``(members,)`` in bits, and the new state.
    """
    pairs = tokens.shape[0]
    sign = jnp.array([1.0, -1.0])[None, :, None]

    def clip(x: jax.Array) -> jax.Array:
        return jnp.clip(x, -127.0, 127.0)

    def vec(w: IntegerPerturbed) -> jax.Array:
        return clip(w.base[None, None] + sign * w.a[:, None] / 2**w.shift)

    def dot(x: jax.Array, w: IntegerPerturbed) -> jax.Array:
        inner = jnp.einsum("pkn,pnr->pkr", x, w.b) * sign / 2**w.shift
        noise = inner * w.a[:, None, :, 0]
        return clip((x @ w.base.T + noise) / (16 * w.base.shape[1] ** 0.5))

    def norm(x: jax.Array, w: IntegerPerturbed) -> jax.Array:
        mean = jnp.mean(jnp.abs(x), axis=-1, keepdims=True)
        return clip(x * vec(w) / jnp.maximum(mean, 1.0))

    def block(w: Any, x: jax.Array, state: jax.Array) -> tuple[jax.Array, jax.Array]:
        u = norm(x, w["norm1"])
        gate = clip(dot(u, w["Wf"]) + dot(state, w["Uf"]) + vec(w["bf"])) + 127.0
        kept = gate * state / 256
        new = clip(dot(u, w["Wh"]) + dot(kept, w["Uh"]) + vec(w["bh"]))
        state = state + gate * (new - state) / 256
        x = clip(state + x)
        return clip(dot(dot(norm(x, w["norm2"]), w["up"]), w["down"]) + x), state

    def step(carry: Any, pair: Any) -> tuple[Any, None]:
        total, state = carry
        token, target = pair
        state = jnp.where((token == 0)[:, None, None, None], 0.0, state)
        embed = params["embed"]
        row = embed.a[jnp.arange(pairs), token][:, None] * sign / 2**embed.shift
        x = clip(embed.base[token][:, None] + row * embed.b[:, None, :, 0])
        states = []
        for layer in range(state.shape[2]):
            own = jax.tree.map(lambda w, layer=layer: w[layer], params["blocks"])
            x, after = block(own, x, state[:, :, layer])
            states.append(after)
        logits = dot(norm(x, params["norm"]), params["head"]) / 16
        log = jax.nn.log_softmax(logits * jnp.log(2.0), axis=-1) / jnp.log(2.0)
        chosen = jnp.take_along_axis(log, target[:, None, None].astype(jnp.int32), axis=-1)
        return (total + chosen[..., 0], jnp.stack(states, axis=2)), None

    start = (jnp.zeros((pairs, 2)), hidden.reshape(pairs, 2, *hidden.shape[1:]))
    (total, state), _ = jax.lax.scan(step, start, (tokens[:, :-1].T, tokens[:, 1:].T))
    return total.reshape(-1), state.reshape(hidden.shape)


class Run:
    """A run of one strategy on the task."""

    def __init__(self, task: int8_bytes.Int8Bytes, members: int, alpha: float, seed: int) -> None:
        self.task, self.members, self.alpha = task, members, alpha
        self.params = task.init(jax.random.key(seed))
        self.hidden = task.hidden(self.params, members)
        self.updates, self.seconds = 0, 0.0
        self.state = integer.egg(members).init(self.params)

        @functools.partial(jax.jit, donate_argnums=(1, 2, 3))
        def step(share: Any, state: Any, params: Any, hidden: Any, tokens: Any) -> Any:
            es = integer.egg(members, alpha=share)
            fitness, hidden = task.fitness(es.perturb(params, state), tokens, hidden)
            updates, state = es.update(fitness, state, params)
            updates = optax.tree.scale(-1, updates)
            return state, optax.apply_updates(params, updates), hidden

        self.step = step

    def update(self, share: float) -> None:
        """Takes one update and adds its time, but for that of the first one, which compiles."""
        tokens = jnp.asarray(self.task.batch(self.updates))
        begin = time.perf_counter()
        out = self.step(jnp.float32(share), self.state, self.params, self.hidden, tokens)
        self.state, self.params, self.hidden = jax.block_until_ready(out)
        self.seconds += (time.perf_counter() - begin) * (self.updates > 0)
        self.updates += 1

    def curve(self, seconds: float, points: int) -> Iterator[dict[str, float]]:
        """Learns for some seconds; yields what is held out at the start and at some points."""
        for point in range(points + 1):
            while self.seconds < seconds * (point / points) ** 2:
                self.update(max(1e-3, self.alpha * (1.0 - self.seconds / seconds)))
            bits = self.task.evaluate(self.params)["bits_per_byte"]
            yield {"updates": self.updates, "seconds": self.seconds, "bits_per_byte": bits}


def ratio(run: Run, rounds: int, clock: str) -> dict[str, float]:
    """Returns seconds of the fitness of a population in int8 and in float32."""
    population = jax.jit(integer.egg(run.members).perturb)(run.params, run.state)
    tokens = jnp.asarray(run.task.batch(1))
    as_float = jax.tree.map(lambda x: x.astype(jnp.float32), population)
    hidden = run.hidden.astype(jnp.float32)
    exact, rounded = jax.jit(float_scores), jax.jit(integer.egg_scores)
    runs: dict[str, Callable[[], Any]] = {
        "int8": lambda: rounded(population, tokens, run.hidden),
        "float32": lambda: exact(as_float, tokens, hidden),
    }
    seconds = common.interleave(runs, rounds, clock)
    return {name: statistics.median(values) for name, values in seconds.items()}


def as_text(report: dict[str, Any]) -> str:
    """Returns the curve and the lines below it."""
    table = common.table(
        ("updates", "seconds", "bits a byte"),
        [
            (str(r["updates"]), f"{r['seconds']:.1f}", f"{r['bits_per_byte']:.3f}")
            for r in report["curve"]
        ],
    )
    forward = report["forward"]
    return (
        f"{table}\n\nentropy of single bytes, held out: {report['unigram']:.3f} bits\n"
        f"updates a second: {report['updates_per_second']:.2f}\n"
        f"fitness of the population: int8 {1e3 * forward['int8']:.1f} ms, float32 "
        f"{1e3 * forward['float32']:.1f} ms, ratio {forward['int8'] / forward['float32']:.2f}"
    )


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints."""
    parser = common.parser("egg_int8", __doc__)
    parser.add_argument("--seconds", type=float, default=150.0, help="running time of updates")
    parser.add_argument("--population", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=32, help="bytes a stream and update")
    parser.add_argument("--alpha", type=float, default=0.4, help="share that moves at first")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(arguments)
    members, tokens, seconds, points = args.population, args.tokens, args.seconds, POINTS
    sizes: dict[str, Any] = {"width": 64}
    if args.quick:
        members, tokens, seconds, points = 32, 4, 0.2, 2
        sizes = {"width": 16, "held_out_texts": 4, "held_out_tokens": 16}
    task = int8_bytes.build(streams=members // 2, tokens=tokens, **sizes)
    run = Run(task, members, args.alpha, args.seed)
    report: dict[str, Any] = {"curve": list(run.curve(seconds, points)), "unigram": task.unigram()}
    report["updates_per_second"] = (run.updates - 1) / run.seconds
    report["forward"] = ratio(run, 1 if args.quick else 7, args.clock)
    common.report(report, as_text(report), as_json=args.json)


if __name__ == "__main__":
    main()

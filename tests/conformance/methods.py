"""Every method of the catalogue, built to be tested, with the results that contracts share."""

import collections
import functools
import inspect
import os
import typing
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optkit
from optkit.catalogue import Entry
from optkit.tree import leaves_with_paths
from tests.conformance import trees

RATE = 0.05
DESCENT_STEPS = 40
# Which kernels of the tests' trees methods of adapters take for the A and B of one.
ADAPTERS = {
    "a": r"re:^(\d*/?)(?:down|rows)/kernel$",
    "b": r"re:^(\d*/?)(?:up|columns)/kernel$",
}


def unit_statistics(params: Any, key: Any) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Mean inputs and output gradients of 1 for all that may be a layer."""
    del key
    out = {}
    for path, leaf in leaves_with_paths(params):
        if leaf.ndim >= 2 and leaf.size:
            rule = optkit.tree.rule_of(path, leaf)
            view = optkit.tree.matrix_view(leaf, rule.dims, role=rule.role)
            sizes = ((*view.batch_shape, n) for n in (view.fan_in, view.fan_out))
            a, d = (jnp.ones(size) for size in sizes)
            out[path] = a, d
    return out


def _product(params: jax.Array, batch: jax.Array) -> jax.Array:
    return jnp.sum(params * batch)


# What differs from the catalogue's example in the tests, and why.
OPTIONS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("lora_pro", "scale_by_lora_pro"), ADAPTERS),
    # In every other step a factor rests, or it follows where the other one's rate has led.
    "adalora": ADAPTERS | {"e": r"re:^(\d*/?)norm/scale$"},
    # The other way round: a law of decay looks at up/kernel, and knows the rate of A.
    "lora_plus": {"a": ADAPTERS["b"], "b": ADAPTERS["a"], "layout": "peft", "ratio": 2.0},
    "altlora": ADAPTERS | {"schedule": "simultaneous"},
    # Its average is not corrected, as CAME's; the rounding of a preconditioned entry that is
    # nearly 0 is lifted by as much as the entry.
    "altlora_plus": ADAPTERS | {"schedule": "simultaneous", "b2": 0.95, "eps": 0.1},
    "lift": {"filter_rank": 2, "interval": 2},  # of small matrices too; masks that are chosen anew
    "adamuon": {"update_rms": 1.0},  # by default a fifth of RATE an entry: too short a way
    # One direction must not be all of the way.
    "natural_galore": {"refresh_every": 2, "state_on_refresh": "reset", "damping": 1.0},
    # The inverse of two gradients that are nearly the same lifts their rounding.
    "scale_by_natural_fisher": {"damping": 1.0},
    "galore_adamw": {"refresh_every": 2, "state_on_refresh": "reset"},
    # Descent starts at zeros, to which no step of a sensible size is relative.
    "adafactor": {"scale_parameter": False},
    "fira": {"refresh_every": 2},
    # Steps large enough to be differences of weights, and no rounding that jumps.
    "q_galore": {
        "refresh_every": 2,
        "state_on_refresh": "transport",
        "lazy": optkit.LazyRefresh(2.0),
        "scale": 1.0,
        "weight_codec": optkit.codecs.IdentityCodec(),
    },
    "galore_adafactor": {"scale_parameter": False, "refresh_every": 2},
    # Averages that are not corrected: as a float32 array a rate near 1 is another rate.
    "came": {"b2": 0.999, "b3": 0.9999},
    # Of small matrices they choose one or two rows, where Polar Express is ill-conditioned.
    "dion2": {"fraction": 0.5, "coefficients": "jordan"},
    "dion3": {"fraction": 0.5, "coefficients": "jordan"},
    "select_submatrix": {"fraction": 0.5, "coefficients": "jordan"},
    # A grid of all numbers: rounding to a coarse one jumps, and tests of its own see to that.
    "eco": {"codec": optkit.codecs.IdentityCodec()},
    "quantize_params": {"codec": optkit.codecs.IdentityCodec()},
    "eco_adamw": {"codec": optkit.codecs.IdentityCodec()},
    # Updates are differences of weights, exact to a last bit of those: an average's are too small.
    "eco_sgdm": {"codec": optkit.codecs.IdentityCodec(), "kind": "heavy_ball"},
    # The library's other setting: Polar Express lifts a rounding of small singular values a
    # thousandfold, and the moments that are compared are squares of what comes out.
    "normuon_dion": {"coefficients": "quintic_you"},
    # What a user gives them first: functions.
    "activation_gradient": {"blocks": [_product] * 2, "heads": [_product], "loss": _product},
    "forward_gradient": {"loss": _product, "guess": jax.grad(_product)},
    "fedamd": {"grad_fn": jax.grad(_product)},
    "private_gradient": {
        "loss_fn": _product,
        "clip": 1.0,
        "noise_multiplier": 0.0,
        "expected_batch": 2.0,
    },
    "dp_brem": {
        "loss_fn": _product,
        "tx": optax.sgd(RATE),
        "example_clip": 1.0,
        "clip": 1.0,
        "noise_multiplier": 0.0,
        "key": 0,
    },
    # RATE multiplies the step that it finds, and the first one is what rates are chosen by.
    "oasis": {"first_step": 1.0},
    "scale_by_oasis": {"first_step": 1.0},
    # The catalogue's bytes are those of a leaf by itself, without the bias beside it.
    "mkor": {"statistics": unit_statistics, "bias": None},
    "mkor_h": {"statistics": unit_statistics, "bias": None},
    "momentum": {"kind": "heavy_ball"},  # an average has no dampening to be scheduled
    # Their matrices are so small that the default would sketch all of them.
    "muon_randomized": {"rank": 0.5, "oversampling": 0},
    # The balls must hold the targets of the descent tests, and the steps must not leap over them.
    "scion": {"scale": 4.0, "head_scale": 4.0, "embedding_scale": 4.0},
    "powersgd_mean": {"min_compression_rate": 0.0},  # low-rank factors of small matrices do not pay
    "skip_spikes": {"window": 32},  # the history is shared state: 4 bytes a value
    # Eagerly each lax.cond compiles anew; tests/monitoring sees to measurements that are skipped.
    # And each iteration sends a number for each row.
    "diagnose": {"every": 1, "iterations": 1},
    # AdaGrad: by default small gradients do nothing and steps fall as 1/t, both on purpose. A root
    # of eps between rounding and most gradients lifts the rounding of a mean that is nearly 0.
    "classp": {"threshold": 0.0, "power": 2.0, "eps": 0.1},
    "hdet": {"learning_rate": 1.0},  # around a transformation a factor of its updates
    # Cold, so that they descend; not debiased, Adam's first steps are 3 to 6 times RATE.
    "adam_sgld": {"temperature": 1e-8, "drift": 0.1},
    "langevin_adam": {"temperature": 1e-8},
    "superpositional": {"correct": True},
    # Roots in the few steps of a test; those of small eigenvalues lift the rounding of a factor.
    "scale_by_shampoo": {"refresh_every": 2, "eps": 1.0},
    "shampoo": {"refresh_every": 2, "eps": 1.0},
    "scale_by_shampoo_google": {"start": 1, "eps": 1.0, "method": "eigh"},
    "shampoo_google": {"start": 1, "eps": 1.0, "method": "eigh"},
    # A first gradient that makes a basis and nothing else moves nothing. Bases are followed once
    # their statistics have full rank, and decay of moved weights is not linear in the rate.
    "soap": {"first_step": "step", "refresh_every": 3, "eps": 0.1, "decay": "decoupled"},
    "in_rotated_basis": {"refresh_every": 2},
    # A descent test takes the gradient for weights to choose a rate: all utilities are negative,
    # and the paper's maximum turns their order round.
    "upgd": {"profile": "safe"},
}
# Their updates of 16-bit leaves are float32: a 16-bit difference cannot carry the step.
FLOAT32_UPDATES = (
    "adamw_kahan",
    "eco",
    "eco_adamw",
    "eco_sgdm",
    "kahan",
    "master_weights",
    "q_galore",
    "quantize_params",
    "stochastic_round",
)
# What rounding withholds from 16-bit parameters has their dtype.
COMPENSATED = ("adamw_kahan", "kahan")
# Their steps are arcs of spheres: weights keep their norm, and half the learning rate is half the
# step only up to its square.
ON_SPHERES = ("hyperp",)
# Half the learning rate is half the step, but not half of its noise.
ROOT_OF_RATE = ("adam_sgld", "langevin_adam", "psgld", "sgld")
# Their momentum looks at how the rate has changed: files of tests/golden with a schedule show that.
SEE_THE_RATE = ("am_adamw",)
BASES: dict[str, Callable[[], optax.GradientTransformation]] = {
    "sign": lambda: optkit.lion(RATE),
    "adaptive": lambda: optkit.adamw(RATE),
    "matrix": lambda: optkit.muon(RATE),
    "optax": lambda: optax.adam(RATE),
}
# Their inner transformation points along the gradient, as no whole optimizer does.
TAKE_DIRECTIONS = ("cautious", "sign_from_grad")
TRACES: collections.Counter = collections.Counter()


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def step(tx: optax.GradientTransformation, state: Any, params: Any, grads: Any) -> tuple:
    """One training step; the state and the parameters are donated."""
    TRACES[tx] += 1
    updates, state = tx.update(grads, state, params)
    return state, optax.apply_updates(params, updates), updates


@functools.partial(jax.jit, static_argnums=0)
def update(tx: optax.GradientTransformation, grads: Any, state: Any, params: Any) -> tuple:
    """One compiled update that donates nothing."""
    return tx.update(grads, state, params)


@functools.cache
def turned_round(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same object for the same optimizer, so that what is built around it is cached too."""
    return optax.chain(tx, optax.scale(-1.0))


def takes_schedule(parameter: inspect.Parameter) -> bool:
    """Tells whether a factory's parameter is annotated as a number or a schedule."""
    members = typing.get_args(parameter.annotation)
    kinds = [typing.get_origin(member) or member for member in members]
    return float in kinds and collections.abc.Callable in kinds


class Method:
    """One method of the catalogue (a wrapper around one base), and its short run, made once."""

    def __init__(self, entry: Entry, base: str = "adaptive") -> None:
        self.entry, self.base = entry, base

    def __str__(self) -> str:
        return self.entry.name

    @property
    def is_float32(self) -> bool:
        return self.entry.name in FLOAT32_UPDATES

    @property
    def takes_adapters(self) -> bool:
        return self.entry.family == "lora"

    @property
    def is_linear_in_rate(self) -> bool:
        return self.entry.name not in (*ON_SPHERES, *ROOT_OF_RATE)

    @property
    def is_on_spheres(self) -> bool:
        return self.entry.name in ON_SPHERES

    @functools.cached_property
    def hyperparameters(self) -> dict[str, inspect.Parameter]:
        return self.entry.hyperparameters()

    def build(self, **options: Any) -> Any:
        """Builds the transformation; a wrapper goes around its base."""
        inner = None if self.entry.kind != "wrapper" else BASES[self.base]()
        return self.around(inner, **options)

    def around(self, inner: optax.GradientTransformation | None, **options: Any) -> Any:
        """Builds a wrapper around any transformation; others are built as they are."""
        given = {**self.entry.example, **OPTIONS.get(self.entry.name, {}), **options}
        if self.entry.kind == "recipe":
            given.setdefault("learning_rate", RATE)
        if self.entry.kind != "wrapper":
            return self.entry.factory(**given)
        if self.entry.name in TAKE_DIRECTIONS:
            inner = turned_round(inner)
        if "transformations" in self.hyperparameters:
            given.setdefault("transformations", {"inner": inner, "other": inner})
            given.setdefault("rules", [("bias", "other"), ("**", "inner")])
            return self.entry.factory(**given)
        return self.entry.factory(inner, **given)

    @functools.cached_property
    def tx(self) -> Any:
        return self.build()

    def shapes(self, shapes: trees.Shapes) -> trees.Shapes:
        """The part of a tree that the method takes, whole adapters where it takes adapters."""
        if self.takes_adapters and "up/kernel" in shapes:
            rank, width = shapes["up/kernel"]
            shapes = {"down/kernel": (width, rank), "norm/scale": (rank,), **shapes}
        return trees.only_matrices(shapes) if self.entry.matrices_only else shapes

    def whole(self, *paths: str) -> tuple[str, ...]:
        """These leaves, and those without which the method cannot serve them."""
        parts = ("up/kernel", "down/kernel", "norm/scale")
        return (*paths, *parts) if self.takes_adapters and {*parts} & {*paths} else paths

    def params(self, shapes: trees.Shapes = trees.SMALL, **options: Any) -> Any:
        return trees.filled(self.shapes(shapes), 0, **options)

    def grads(self, time: int, shapes: trees.Shapes = trees.SMALL, **options: Any) -> Any:
        return trees.filled(self.shapes(shapes), 1 + time, **options)

    def update(self, tx: Any, grads: Any, state: Any, params: Any, **extra: Any) -> tuple:
        """One update without jit: its operations are compiled already, for other methods."""
        # Every lax.cond would compile anew at each call; this way its branch runs as Python.
        with jax.disable_jit(self.entry.family == "accumulation"):
            return tx.update(grads, state, params, **extra)

    def run(self, tx: Any, steps: int = 2, **options: Any) -> tuple[list, Any]:
        """Runs some steps without jit; returns the updates and the last state."""
        params, updates = self.params(**options), []
        state = tx.init(params)
        for time in range(steps):
            out, state = self.update(tx, self.grads(time, **options), state, params)
            params = optax.apply_updates(params, out)
            updates.append(out)
        return updates, state

    @functools.cached_property
    def eager(self) -> tuple[list, Any]:
        """Updates of two steps without jit, and the state after them."""
        return self.run(self.tx)

    @functools.cached_property
    def compiled(self) -> list[tuple]:
        """(state, params, updates) after each of three compiled steps from fresh donated values."""
        params = self.params()
        state, out, before = self.tx.init(params), [], TRACES[self.tx]
        for time in range(3):
            state, params, updates = step(self.tx, state, params, self.grads(time))
            out.append(trees.copy((state, params, updates)))
        self.traces = TRACES[self.tx] - before
        return out

    @functools.cached_property
    def lean(self) -> Any:
        """The first update of a larger tree, without jit."""
        return self.run(self.tx, steps=1, shapes=trees.LEAN)[0][0]

    def distance(self, params: Any) -> jax.Array:
        """Half the square of the distance from the target of ``scanned``, its loss."""
        target = self.grads(0)
        apart = jax.tree.map(lambda p, x: jnp.sum(jnp.square(p - x)), params, target)
        return 0.5 * sum(jax.tree.leaves(apart), jnp.zeros(()))

    @functools.cached_property
    def scanned(self) -> tuple:
        """(states, params, updates) of a compiled scan that descends ``|p - target|^2 / 2``."""
        target, params = self.grads(0), self.params()

        def body(carry: tuple, _: None) -> tuple:
            state, params = carry
            grads = jax.tree.map(jnp.subtract, params, target)
            updates, state = self.tx.update(grads, state, params, value_fn=self.distance)
            params = optax.apply_updates(params, updates)
            return (state, params), (state, params, updates)

        run = jax.jit(lambda *carry: jax.lax.scan(body, carry, length=DESCENT_STEPS)[1])
        return run(self.tx.init(params), params)


@functools.cache
def method(name: str, base: str = "adaptive") -> Method:
    """One object a method in each process, so that its results are made once."""
    return Method(optkit.catalogue.get(name), base)


# Every how many-th method and stored run is tested: all, but by `make test-latest`, since what
# another JAX breaks it breaks for many methods alike.
EVERY = int(os.environ.get("OPTKIT_EVERY_METHOD", "1"))


def names(*kinds: str) -> list[str]:
    return [entry.name for entry in optkit.catalogue.entries() if entry.kind in kinds][::EVERY]


ALL = names("recipe", "part", "wrapper")
RECIPES = names("recipe")
WRAPPERS = names("wrapper")
MATRIX_RECIPES = [e.name for e in optkit.catalogue.entries(kind="recipe", family="matrix")]


def one_of_each() -> list[str]:
    """One method of each family and kind; thorough runs take all."""
    if os.environ.get("OPTKIT_HYPOTHESIS_PROFILE") == "thorough":
        return ALL
    entries = [optkit.catalogue.get(name) for name in reversed(ALL)]
    return sorted({(entry.family, entry.kind): entry.name for entry in entries}.values())

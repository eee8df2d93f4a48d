"""A wrapper that measures every few steps and changes nothing."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optkit.catalogue import LeafBytes, StateBytes, register
from optkit.linalg.norms import norm_over
from optkit.linalg.one_by_one import one_by_one
from optkit.monitoring.singular import matrices_of, top_singular
from optkit.transforms.base import (
    Transformation,
    check_transformation,
    need_params,
    update_inner,
)
from optkit.transforms.hyperparams import check_static_int
from optkit.tree import (
    MatrixLayout,
    MatrixView,
    PyTree,
    RuleLike,
    leaves_with_paths,
    map_groups,
    upcast,
)
from optkit.tree.sharding import place_like, place_statistic, zeros_beside

_SIZES = ("gradient_rms", "update_rms", "weight_rms")
_MATRIX = ("top_singular", "stable_rank")
_MONITORS = ("win_rate",)
_ITERATIONS = 4


class DiagnoseState(NamedTuple):
    """State of ``diagnose``."""

    inner: PyTree  # state of the inner transformation
    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    # Measured last, by name: trees like the parameters. A float32 scalar a leaf; of hidden matrices
    # one a matrix, with what only they have; "spectrum" is (*batch, short), falling.
    values: dict[str, PyTree]
    vectors: PyTree  # (*batch, short) float32, top singular vectors of hidden matrices


def _only(tree: PyTree, keep: Sequence[bool]) -> PyTree:
    leaves = jax.tree.leaves(tree)
    kept = [x if on else optax.MaskedNode() for x, on in zip(leaves, keep, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(tree), kept)


def root_mean_square(x: jax.Array) -> jax.Array:
    """Of a whole leaf, a float32 scalar; 0 of an empty one."""
    norm = norm_over(upcast(x), tuple(range(jnp.ndim(x)))) / math.sqrt(max(1, x.size))
    return norm.reshape(()).astype(jnp.float32)


class _Matrices(NamedTuple):
    """The hidden matrices among the leaves of a tree."""

    keep: list[bool]  # which leaves they are
    only: PyTree  # they alone, masked nodes elsewhere
    layout: MatrixLayout

    @staticmethod
    def of(params: PyTree, roles: tuple[RuleLike, ...]) -> "_Matrices":
        keep = matrices_of(params, roles)
        only = _only(params, keep)
        return _Matrices(keep, only, MatrixLayout(only, None, roles))

    def split(self, tree: PyTree) -> list[jax.Array]:
        """Returns those of a tree like the parameters."""
        return [upcast(x) for x in self.layout.split(_only(tree, self.keep))]

    def among(self, tree: PyTree, packed: PyTree, rest: Callable[[Any], jax.Array]) -> PyTree:
        """Returns a tree like another one: of matrices what is packed, of the rest a function."""
        own = iter(self.layout.structure.flatten_up_to(packed))
        pairs = zip(jax.tree.leaves(tree), self.keep, strict=True)
        leaves = [next(own) if on else rest(x) for x, on in pairs]
        return jax.tree.unflatten(jax.tree.structure(tree), leaves)

    def zeros(self, shape_of: Callable[[MatrixView], tuple[int, ...]]) -> PyTree:
        """Returns float32 zeros for each matrix, packed."""
        fresh = self.layout.zeros(self.only, shape_of)
        return jax.tree.map(lambda x: x.astype(jnp.float32), fresh)


@register(
    kind="wrapper",
    family="diagnostics",
    state_bytes={
        **dict.fromkeys(
            ("matrix", "stacked", "expert", "conv"),
            StateBytes(0, lambda rows, columns: 20 + 4 * min(rows, columns), "20 and 4 a row"),
        ),
        "*": LeafBytes(0, lambda size: 12, "12 a leaf"),
    },
    tags=("metrics", "spectrum", "monitoring"),
    chain="inner, measured every few steps",
)
def diagnose(
    inner: optax.GradientTransformation,
    every: int = 10,
    *,
    iterations: int = _ITERATIONS,
    spectrum: bool = False,
    roles: Sequence[RuleLike] = (),
) -> Transformation:
    """Measures gradients, updates and weights every few steps; the updates are those of ``inner``.

    1. ``u, s <- inner(g)``;
    2. at step 1, ``every + 1``, ...: root mean squares of ``g``, ``u`` and ``p`` for each leaf, of
       hidden matrices for each matrix; of each hidden matrix ``p`` the largest singular value, by
       ``iterations`` of the power method from where it was last time, and the stable rank
       ``norm(p)**2 / top_singular**2``; with ``spectrum`` all singular values.

    ``optkit.diagnostics(state)`` reads what was measured last; before the first step all of it is
    0. Between measurements a step costs nothing (``lax.cond``); under ``vmap`` both branches run,
    so give ``every=1`` there. Around everything, learning rate and all, ``u`` is what the weights
    move by.

    Args:
      inner: any transformation.
      every: steps from one measurement to the next.
      iterations: of the power method; a warm start needs few.
      spectrum: all singular values of hidden matrices, too: a decomposition of each.
      roles: your own ``(pattern, role)`` rules; they say what is a hidden matrix.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes beside the inner one's: 12 a leaf;
      of hidden matrices 20 and 4 for each row of the shorter side, 8 with ``spectrum``.

    Raises:
      ValueError: a number out of range, or params not given to update.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> tx = optkit.diagnose(optax.sgd(0.5))
      >>> params = {"up": 2.0 * jnp.eye(4)}
      >>> u, state = tx.update({"up": jnp.ones((4, 4))}, tx.init(params), params)
      >>> for name, value in optkit.diagnostics(state).items():
      ...   print(name, round(value, 3))
      up/gradient_rms 1.0
      up/stable_rank 4.0
      up/top_singular 2.0
      up/update_rms 0.5
      up/update_to_weight 0.5
      up/weight_rms 1.0
    """
    inner = check_transformation("inner", inner)
    check_static_int("every", every)
    check_static_int("iterations", iterations)
    roles = tuple(roles)

    def init_fn(params: PyTree) -> DiagnoseState:
        found = _Matrices.of(params, roles)
        number = found.zeros(lambda view: ())
        sides = found.zeros(lambda view: (min(view.fan_in, view.fan_out),))
        sizes = found.among(params, number, lambda p: zeros_beside(p, (), jnp.float32))
        values = dict.fromkeys(_SIZES, sizes) | dict.fromkeys(_MATRIX, number)
        if spectrum:
            values["spectrum"] = sides
        # No two leaves of fresh state may share a buffer.
        values = jax.tree.map(lambda x: x + 0, values)
        return DiagnoseState(inner.init(params), jnp.zeros((), jnp.int32), values, sides)

    def measure(grads: PyTree, out: PyTree, params: PyTree, vectors: PyTree) -> tuple[Any, Any]:
        found = _Matrices.of(params, roles)
        layout, matrices = found.layout, found.split(params)
        others = found.split(grads), found.split(out), layout.unpack(vectors)
        work = functools.partial(_of_matrices, iterations=iterations)
        done = map_groups(work, matrices, *others, move=False)
        *columns, vectors = (layout.pack([each[index] for each in done]) for index in range(6))
        values = dict(zip((*_SIZES, *_MATRIX), columns, strict=True))
        for name, tree in zip(_SIZES, (grads, out, params), strict=True):
            values[name] = found.among(tree, values[name], root_mean_square)
        if spectrum:
            values["spectrum"] = layout.pack(map_groups(_singular_values, matrices))
        return values, vectors

    def update_fn(
        updates: PyTree, state: DiagnoseState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, DiagnoseState]:
        params = need_params(params, "diagnose")
        out, new = update_inner(inner, updates, state.inner, params, extra_args)

        def now(held: Any) -> Any:
            found = measure(updates, out, params, state.vectors)
            return jax.tree.map(place_like, found, held)

        held = (state.values, state.vectors)
        if every == 1:
            held = now(held)
        else:
            held = jax.lax.cond(state.count % every == 0, now, lambda x: x, held)
        return out, DiagnoseState(new, state.count + 1, *held)

    return Transformation(init_fn, update_fn)


def _of_matrices(
    p: jax.Array, g: jax.Array, u: jax.Array, v: jax.Array, *, iterations: int
) -> tuple[jax.Array, ...]:
    """Of each matrix three sizes, the top singular value, the stable rank and the vector."""
    area = math.sqrt(p.shape[-1] * p.shape[-2])
    norms = [jnp.squeeze(norm_over(x, (-2, -1)), (-2, -1)) for x in (g, u, p)]
    sigma, v = top_singular(p, v.astype(p.dtype), iterations=iterations)
    ratio = norms[2] / jnp.where(sigma > 0, sigma, 1.0)
    found = (*(norm / area for norm in norms), sigma, ratio * ratio, v)
    return tuple(place_statistic(x.astype(jnp.float32), p) for x in found)


def _singular_values(x: jax.Array) -> jax.Array:
    return one_by_one(functools.partial(jnp.linalg.svd, compute_uv=False), x).astype(jnp.float32)


def _states(node: Any) -> Iterator[DiagnoseState]:
    if isinstance(node, DiagnoseState):
        yield node
    if isinstance(node, dict):
        for child in node.values():
            yield from _states(child)
    elif isinstance(node, tuple | list):
        for child in node:
            yield from _states(child)


def _monitored(node: Any, route: str = "") -> Iterator[tuple[str, Any]]:
    """What other methods keep as a measurement, preceded by the routes above it."""
    if isinstance(node, dict):
        for key, child in node.items():
            yield from _monitored(child, f"{route}{key}/")
    elif isinstance(node, tuple | list):
        for name in _MONITORS:
            if getattr(node, name, None) is not None:
                yield f"{route}{name}", getattr(node, name)
        for child in node:
            yield from _monitored(child, route)


def _numbers(state: PyTree) -> Iterator[tuple[str, str, np.ndarray]]:
    """Path, name and value of everything measured; a stack's matrices apart."""
    for found in _states(state):
        for name, tree in jax.device_get(found.values).items():
            own = 1 if name == "spectrum" else 0
            for path, value in leaves_with_paths(tree):
                batch = value.shape[: value.ndim - own]
                for index in np.ndindex(batch):
                    where = f"{path}[{','.join(map(str, index))}]" if batch else path
                    yield where, name, value[index]


def diagnostics(state: PyTree) -> dict[str, float]:
    """Returns what ``optkit.diagnose`` measured last, for a log or a dashboard.

    Names are ``path/metric``, of a matrix of a stack ``path[layer]/metric``: ``gradient_rms``,
    ``update_rms``, ``weight_rms``, ``update_to_weight`` (their ratio), and of hidden matrices
    ``top_singular`` and ``stable_rank``; with ``spectrum`` also ``median_singular`` and
    ``effective_rank``, the exponential of the entropy of the squared singular values' shares.

    What other methods monitor is there, too, where they are asked to: Sophia's ``win_rate``.

    Args:
      state: an optimizer state, such as one of ``diagnose``; numbers are fetched from its device.

    Returns:
      ``{name: value}``, sorted; empty where there is none.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> tx = optkit.diagnose(optax.sgd(0.1))
      >>> params = {"gain": jnp.full(3, 2.0)}
      >>> _, state = tx.update({"gain": jnp.ones(3)}, tx.init(params), params)
      >>> round(optkit.diagnostics(state)["gain/update_to_weight"], 3)
      0.05
    """
    out: dict[str, float] = {}
    for where, name, value in _numbers(state):
        if name == "spectrum":
            out[f"{where}/median_singular"] = float(np.median(value)) if value.size else 0.0
            out[f"{where}/effective_rank"] = _effective_rank(value)
        else:
            out[f"{where}/{name}"] = float(value)
    for name in [name for name in out if name.endswith("/update_rms")]:
        weight = out[name.removesuffix("update_rms") + "weight_rms"]
        ratio = out[name] / weight if weight else 0.0
        out[name.removesuffix("update_rms") + "update_to_weight"] = ratio
    out |= {name: float(jax.device_get(value)) for name, value in _monitored(state)}
    return dict(sorted(out.items()))


def spectra(state: PyTree) -> dict[str, np.ndarray]:
    """Returns the singular values that ``optkit.diagnose(..., spectrum=True)`` measured last.

    Args:
      state: an optimizer state.

    Returns:
      ``{path: falling singular values}``, of a matrix of a stack ``path[layer]``.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> tx = optkit.diagnose(optax.sgd(0.1), spectrum=True)
      >>> params = {"up": jnp.diag(jnp.array([1.0, 3.0]))}
      >>> _, state = tx.update(params, tx.init(params), params)
      >>> optkit.monitoring.spectra(state)["up"].tolist()
      [3.0, 1.0]
    """
    return {where: value for where, name, value in _numbers(state) if name == "spectrum"}


def _effective_rank(values: np.ndarray) -> float:
    squares = np.square(np.asarray(values, np.float64))
    total = squares.sum()
    if not total > 0 or not np.isfinite(total):
        return 0.0
    shares = squares[squares > 0] / total
    return float(np.exp(-np.sum(shares * np.log(shares))))

"""Second moments of matrices from those of their rows and columns: Adafactor's direction."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from optkit.catalogue import StateBytes, register
from optkit.linalg.norms import LARGEST
from optkit.transforms.base import Transformation, check_gradients, map_leaves, map_updates
from optkit.transforms.hyperparams import (
    Scalar,
    ScalarOrSchedule,
    check_choice,
    check_number,
    recorded,
    value_at,
)
from optkit.transforms.route import only
from optkit.tree import Dims, MatrixLayout, PyTree, RuleLike, upcast, zeros_like_params
from optkit.tree.sharding import place_statistic, zeros_beside

Factoring = Literal["hf", "torch"]
# Instead of all parameters, what rows and columns are: of leaves below rank 2 nothing is saved.
FACTORED = StateBytes(
    4, lambda rows, columns: 4 * (rows + columns - rows * columns), "4 (rows + columns)"
)
_TORCH_EPS = float(jnp.finfo(jnp.float32).eps)


class ScaleByFactoredRmsState(NamedTuple):
    """State of ``scale_by_factored_rms``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    rows: PyTree  # float32 (*batch, fan_out) at leaves of rank 2 and more, masked elsewhere
    columns: PyTree  # float32 (*batch, fan_in) there
    whole: PyTree  # like the other leaves, float32 for 16-bit parameters
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


class ClipRmsState(NamedTuple):
    """State of ``clip_rms``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


def root_mean_square(x: jax.Array) -> jax.Array:
    """Root of the mean square of a whole leaf."""
    return jnp.sqrt(jnp.sum(jnp.square(x)) / max(x.size, 1))


def clip_rms(clip_threshold: ScalarOrSchedule) -> Transformation:
    """``u / max(1, rms(u)/clip_threshold)`` of each leaf."""
    check_number("clip_threshold", clip_threshold, low=1e-30)

    def state_at(count: jax.Array, used: jax.Array) -> ClipRmsState:
        return ClipRmsState(count, recorded(used, clip_threshold=clip_threshold))

    def init_fn(params: PyTree) -> ClipRmsState:
        del params
        count = jnp.zeros((), jnp.int32)
        return state_at(count, count)

    def update_fn(
        updates: PyTree, state: ClipRmsState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, ClipRmsState]:
        del params, extra_args
        most = value_at(clip_threshold, state.count)
        leaf = lambda u: u / jnp.maximum(1.0, root_mean_square(u) / most)  # noqa: E731
        return map_updates(leaf, updates), state_at(state.count + 1, state.count)

    return Transformation(init_fn, update_fn)


class Factors:
    """A tree cut into matrices, whose statistics are factored, and leaves of lower rank."""

    def __init__(self, tree: PyTree, dims: Dims, roles: Sequence[RuleLike]) -> None:
        labels = ["matrix" if jnp.ndim(x) >= 2 else "vector" for x in jax.tree.leaves(tree)]
        self.tree, self._labels = tree, labels
        self.matrices = only(tree, labels, "matrix")
        self.vectors = only(tree, labels, "vector")
        self.layout = MatrixLayout(self.matrices, dims, roles)

    def split(self, tree: PyTree) -> list[jax.Array]:
        """Returns the matrices of another such tree as ``(*batch, fan_out, fan_in)``."""
        return self.layout.split(only(tree, self._labels, "matrix"), "out")

    def vectors_of(self, tree: PyTree) -> PyTree:
        """Returns the leaves of lower rank of another such tree."""
        return only(tree, self._labels, "vector")

    def zeros(self, dtype: Any = None) -> tuple[PyTree, PyTree, PyTree]:
        """Returns fresh statistics of rows, of columns, and of the other leaves."""
        leaves = self.layout.structure.flatten_up_to(self.matrices)
        found = dict(zip(dict.fromkeys(self.layout.paths), leaves, strict=True))
        pairs = list(zip(self.layout.paths, self.layout.views, strict=True))
        sides = (lambda view: view.fan_out), (lambda view: view.fan_in)
        rows, columns = (
            self.layout.pack(
                [zeros_beside(found[p], (*v.batch_shape, size(v)), jnp.float32) for p, v in pairs]
            )
            for size in sides
        )
        return rows, columns, zeros_like_params(self.vectors, dtype)

    def join(self, matrices: Sequence[jax.Array], vectors: PyTree) -> PyTree:
        """Returns the whole tree from both parts."""
        merged = iter(jax.tree.leaves(self.layout.merge(matrices, "out")))
        others = iter(jax.tree.leaves(vectors))
        out = [next(merged) if name == "matrix" else next(others) for name in self._labels]
        return jax.tree.unflatten(jax.tree.structure(self.tree), out)

    def pack(self, values: Sequence[jax.Array]) -> PyTree:
        """Returns new statistics of rows or columns, placed as they were."""
        matrices = self.layout.split(self.matrices, "out")
        return self.layout.pack(list(map(place_statistic, values, matrices)))


def squares(g: jax.Array) -> jax.Array:
    """Squares that do not overflow: larger entries count as 1e15."""
    return jnp.square(jnp.clip(g, -LARGEST, LARGEST))


def mean_of(q: jax.Array, axis: int) -> jax.Array:
    """The mean, and 0 of nothing."""
    return jnp.sum(q, axis=axis) / max(q.shape[axis], 1)


def roots(rows: jax.Array, columns: jax.Array) -> jax.Array:
    """``1/sqrt(rows columns^T / mean(rows))`` of statistics that are not 0."""
    mean = mean_of(rows, -1)[..., None]
    share = rows / jnp.where(mean == 0, 1.0, mean)
    of_rows = jax.lax.rsqrt(jnp.where(share == 0, 1.0, share))
    return (
        of_rows[..., :, None] * jax.lax.rsqrt(jnp.where(columns == 0, 1.0, columns))[..., None, :]
    )


@register(
    kind="part",
    family="accumulator",
    paper=("Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", "1804.04235", 2018),
    state_bytes={"*": FACTORED},
    tags=("adafactor", "factored"),
    chain="r, c <- means of g^2 over columns, rows -> g / sqrt(r c / mean(r))",
)
def scale_by_factored_rms(
    decay_rate: ScalarOrSchedule = -0.8,
    *,
    eps: Scalar | None = None,
    dialect: Factoring = "hf",
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
    state_dtype: Any | None = None,
) -> Transformation:
    """Divides matrices by the root of a second moment that is a product of rows and columns.

    With n the number of the update and ``w = n**decay_rate``, for leaves of rank 2 and more, read
    as matrices of fan_out rows:

    1. ``r <- (1-w)*r + w*mean over columns of (g**2 + eps)``; ``c`` likewise over rows;
    2. ``u = g / sqrt(r c^T / mean(r))``.

    "torch" adds no eps to squares, and divides by ``sqrt(max(r c^T / max(mean(r), eps), eps**2))``.
    Leaves of lower rank have ``v <- (1-w)*v + w*(g**2 + eps)`` and ``u = g/sqrt(v)``.

    Args:
      decay_rate: exponent, at most 0: the first update counts in full.
      eps: see above; None for 1e-30, and for float32's 1.2e-7 in "torch".
      dialect: "hf" (Transformers, fairseq, Optax) or "torch" (``torch.optim.Adafactor``).
      dims: which axes are input and output; other axes of a leaf are a batch of matrices. The
        references always take the last two.
      roles: your own ``(pattern, role)`` rules.
      state_dtype: dtype of v; r and c stay in float32.

    Returns:
      An ``optax.GradientTransformationExtraArgs``; keeps dtypes. State bytes: 4 per row and per
      column of a matrix; 4 per parameter of other leaves.

    Raises:
      ValueError: an option out of range, or a leaf that cannot be read as ``dims`` says.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tx = optkit.scale_by_factored_rms()
      >>> g = {"w": jnp.outer(jnp.array([1.0, -2.0]), jnp.array([3.0, 1.0, 4.0]))}
      >>> u, state = tx.update(g, tx.init(g))
      >>> u["w"].round(4).tolist()  # squares of rank one are factored exactly
      [[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]]

    Reference:
      Shazeer and Stern, Adafactor, arXiv 1804.04235. Entries beyond 1e15 count as that, since their
      squares would overflow.
    """
    check_number("decay_rate", decay_rate, high=0.0)
    check_choice("dialect", dialect, get_args(Factoring))
    small = (1e-30 if dialect == "hf" else _TORCH_EPS) if eps is None else eps

    def weight(count: jax.Array) -> jax.Array:
        return jnp.power((count + 1).astype(jnp.float32), value_at(decay_rate, count))

    return factored_moments(
        weight,
        {"decay_rate": decay_rate, "eps": small},
        dialect=dialect,
        dims=dims,
        roles=roles,
        state_dtype=state_dtype,
    )


def factored_moments(
    weight_at: Callable[[jax.Array], Scalar],
    numbers: dict[str, ScalarOrSchedule],
    *,
    dialect: Factoring = "hf",
    dims: Dims,
    roles: Sequence[RuleLike],
    state_dtype: Any,
) -> Transformation:
    """``scale_by_factored_rms`` with any law of the weight of a new square.

    Args:
      weight_at: that weight, by the number of finished updates.
      numbers: what is recorded; "eps" is what squares are added to.
      dialect: see ``scale_by_factored_rms``, also for the others.
      dims: see there.
      roles: see there.
      state_dtype: see there.

    Returns:
      A transformation.
    """
    check_number("eps", numbers["eps"], low=0.0)

    def init_fn(params: PyTree) -> ScaleByFactoredRmsState:
        count = jnp.zeros((), jnp.int32)
        statistics = Factors(params, dims, roles).zeros(state_dtype)
        return ScaleByFactoredRmsState(count, *statistics, recorded(count, False, **numbers))

    def update_fn(
        updates: PyTree,
        state: ScaleByFactoredRmsState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ScaleByFactoredRmsState]:
        del extra_args
        check_gradients(updates, params)
        e, weight = value_at(numbers["eps"], state.count), weight_at(state.count)
        factors = Factors(updates, dims, roles)
        added = e if dialect == "hf" else 0.0

        def blend(old: jax.Array, new: jax.Array) -> jax.Array:
            return old + weight * (new - old)

        grads = [upcast(x) for x in factors.split(updates)]
        means = [squares(g) + added for g in grads]
        old = (factors.layout.unpack(tree) for tree in (state.rows, state.columns))
        rows, columns = (
            [blend(held, mean_of(q, axis)) for held, q in zip(tree, means, strict=True)]
            for tree, axis in zip(old, (-1, -2), strict=True)
        )

        def direction(g: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
            if dialect == "hf":
                return g * roots(row, column)
            mean = jnp.maximum(mean_of(row, -1), e)[..., None, None]
            product = row[..., :, None] * column[..., None, :] / jnp.where(mean == 0, 1.0, mean)
            product = jnp.maximum(product, e * e)
            return g * jax.lax.rsqrt(jnp.where(product == 0, 1.0, product))

        vectors = factors.vectors
        whole = map_leaves(
            lambda g, v: blend(upcast(v), squares(upcast(g)) + added).astype(v.dtype),
            vectors,
            state.whole,
        )

        def plain(g: jax.Array, v: jax.Array) -> jax.Array:
            floor = jnp.maximum(upcast(v), e * e) if dialect == "torch" else upcast(v)
            return upcast(g) * jax.lax.rsqrt(jnp.where(floor == 0, 1.0, floor))

        out = factors.join(
            list(map(direction, grads, rows, columns)), map_leaves(plain, vectors, whole)
        )
        out = map_leaves(lambda u, g: u.astype(g.dtype), out, updates)
        new = recorded(state.count, False, **numbers)
        packed = factors.pack(rows), factors.pack(columns), whole
        return out, ScaleByFactoredRmsState(state.count + 1, *packed, new)

    return Transformation(init_fn, update_fn)

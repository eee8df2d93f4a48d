"""Merging of checkpoints: of one run, or of models that began at the same weights."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from optkit.transforms.hyperparams import check_choice, check_number, check_static_int
from optkit.tree import PyTree, leaves_with_paths, upcast

__all__ = ["merge_checkpoints", "merge_weights", "metric_merge_weights", "wsm_merge_weights"]

Checkpoint: TypeAlias = PyTree | str | Path
Leaves: TypeAlias = dict[str, Any]


def merge_weights(
    count: int, kind: Literal["uniform", "linear", "ema"] = "uniform", *, decay: float = 0.8
) -> tuple[float, ...]:
    """Returns the weights of a merge of checkpoints, the oldest first; their sum is 1.

    With ``k`` checkpoints: "uniform" ``1/k``; "linear" in proportion to ``1, 2, ..., k``; "ema"
    those of ``th <- decay*th + (1-decay)*w`` that starts at the oldest.

    Args:
      count: number of checkpoints.
      kind: see above.
      decay: of "ema", in [0, 1).

    Returns:
      One weight a checkpoint.

    Raises:
      ValueError: an unknown kind or a number out of range.

    Example:
      >>> import optkit
      >>> optkit.merge_weights(3, "ema", decay=0.5)
      (0.25, 0.25, 0.5)

    Reference:
      Li et al., Model Merging in Pre-training of Large Language Models, arXiv 2505.12082: on
      checkpoints of a constant learning rate the plain mean is as good as the others.
    """
    check_static_int("count", count)
    check_choice("kind", kind, ("uniform", "linear", "ema"))
    check_number("decay", decay, low=0.0, high=1.0, open_high=True)
    if kind == "uniform":
        return (1.0 / count,) * count
    if kind == "linear":
        return tuple(2.0 * (j + 1) / (count * (count + 1)) for j in range(count))
    first = decay ** (count - 1)
    return (first, *((1.0 - decay) * decay ** (count - 1 - j) for j in range(1, count)))


def wsm_merge_weights(profile: Sequence[float]) -> tuple[float, ...]:
    """Returns the merge of checkpoints that acts as a decay of the learning rate.

    With the checkpoints ``th_0, ..., th_k`` of a constant learning rate, and a decay profile
    ``1 >= w_1 >= ... >= w_k >= 0``, the weights ``c_0 = 1 - w_1``, ``c_j = w_j - w_{j+1}``,
    ``c_k = w_k`` give exactly ``sum_j c_j*th_j = th_0 + sum_i w_i*(th_i - th_{i-1})``: the steps
    from checkpoint to checkpoint, scaled as by a decay. (A decay would have taken other gradients
    on its way.) The plain mean is the linear decay.

    Args:
      profile: the shares ``w``, one for each checkpoint but the oldest.

    Returns:
      One weight a checkpoint, the oldest first; their sum is 1.

    Raises:
      ValueError: a profile that is empty, rises, or leaves [0, 1].

    Example:
      >>> import optkit
      >>> optkit.wsm_merge_weights([0.75, 0.5, 0.25])
      (0.25, 0.25, 0.25, 0.25)

    Reference:
      Tian et al., WSM: Decay-Free Learning Rate Schedule via Checkpoint Merging, arXiv 2507.17634.
    """
    shares = [1.0, *map(float, profile), 0.0]
    falls = all(a >= b for a, b in itertools.pairwise(shares))
    if len(shares) == 2 or not falls:
        raise ValueError(
            f"profile={tuple(profile)!r} is no decay: give shares that do not rise, from 1 to 0"
        )
    return tuple(a - b for a, b in itertools.pairwise(shares))


def metric_merge_weights(
    values: Sequence[float], power: float = 1.0, *, by: Literal["loss", "step"] = "loss"
) -> tuple[float, ...]:
    """Returns merge weights from the checkpoints' losses or steps: metrics-weighted averaging.

    In proportion to ``loss**-power`` or ``step**power``; ``power=0`` is the plain mean. **Low
    confidence**: the paper has one such exponent, and its exact formula was not found; this
    parametrisation is ours.

    Args:
      values: a loss or a step above 0 of each checkpoint.
      power: how much better checkpoints are preferred, at least 0.
      by: what the values are.

    Returns:
      One weight a checkpoint; their sum is 1.

    Raises:
      ValueError: no values, or one that is not finite and above 0.

    Example:
      >>> import optkit
      >>> optkit.metric_merge_weights([2.0, 1.0, 1.0])
      (0.2, 0.4, 0.4)

    Reference:
      Metrics-weighted averaging of checkpoints, arXiv 2504.18580.
    """
    check_choice("by", by, ("loss", "step"))
    check_number("power", power, low=0.0)
    given = np.asarray(values, np.float64)
    if given.ndim != 1 or not given.size or not np.all(np.isfinite(given) & (given > 0)):
        raise ValueError(f"values={values!r} must be finite numbers above 0, one a checkpoint")
    logs = (-power if by == "loss" else power) * np.log(given)
    raw = np.exp(logs - logs.max())
    return tuple(map(float, raw / raw.sum()))


def _read(checkpoint: Checkpoint) -> PyTree:
    """Returns a tree as it is, or reads an ``.npz`` file or a checkpoint of Orbax."""
    if not isinstance(checkpoint, str | Path):
        return checkpoint
    path = Path(checkpoint)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as stored:
            # NumPy knows no bfloat16: it gives two bytes back.
            return {
                name: x.view(jnp.bfloat16) if (x := stored[name]).dtype == "V2" else x
                for name in stored.files
            }
    if not path.is_dir():
        raise ValueError(f"{path} is neither an .npz file nor a checkpoint's directory")
    import orbax.checkpoint

    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path.resolve())


def _called(checkpoint: Checkpoint, index: int) -> str:
    return str(checkpoint) if isinstance(checkpoint, str | Path) else f"checkpoints[{index}]"


def _check(first: Leaves, other: Leaves, name: str, first_name: str) -> None:
    """Raises ValueError with the paths at which a checkpoint does not fit the first one."""
    lines = [f"  {path}: in {first_name}, not in {name}" for path in first if path not in other]
    lines += [f"  {path}: in {name}, not in {first_name}" for path in other if path not in first]
    lines += [
        f"  {path}: shape {jnp.shape(x)} in {first_name}, {jnp.shape(other[path])} in {name}"
        for path, x in first.items()
        if path in other and jnp.shape(x) != jnp.shape(other[path])
    ]
    if lines:
        text = "\n".join(lines)
        raise ValueError(
            f"the checkpoints do not have the same leaves:\n{text}\nmerge checkpoints of one model"
        )


def _weights(weights: Sequence[Any] | None, count: int) -> list[Any]:
    if count == 0:
        raise ValueError("merge_checkpoints needs checkpoints: checkpoints=() is empty")
    if weights is None:
        return list(merge_weights(count))
    given = list(weights)
    if len(given) != count:
        raise ValueError(f"{len(given)} weights for {count} checkpoints; give one each")
    for weight in given:
        check_number("weights", weight)
    if not any(isinstance(weight, jax.Array) for weight in given):
        total = float(sum(given))
        if abs(total - 1.0) > 1e-6:
            raise ValueError(
                f"the weights sum to {total:g}, which would scale the model: divide them by it, or "
                "give the rest to the base of task vectors"
            )
    return given


def _added(path: str, total: Any, x: Any, weight: Any) -> Any:
    """Returns a sum in float32 or better with one more term; leaves of integers must be equal."""
    if jnp.issubdtype(jnp.asarray(x).dtype, jnp.inexact):
        term = weight * upcast(jnp.asarray(x))
        return term if total is None else total + term
    if total is not None and (isinstance(x, jax.core.Tracer) or not np.array_equal(total, x)):
        raise ValueError(f"{path or '(root)'}: integers that differ have no mean; leave them out")
    return x


def merge_checkpoints(
    checkpoints: Sequence[Checkpoint], weights: Sequence[float | jax.Array] | None = None
) -> PyTree:
    """Merges weights leaf by leaf, matched by path: ``sum_j c_j*w_j``.

    * Checkpoints of one run: ``c`` from ``merge_weights``, ``wsm_merge_weights`` or
      ``metric_merge_weights``. Checkpoints of a constant learning rate, merged, come near the model
      that a decay would have given.
    * Task vectors, ``base + sum_i s_i*(w_i - base)``: the base first, with ``1 - sum_i s_i``.

    Weights of models that did not begin at the same ones mean nothing together, and batch
    statistics have to be computed anew. One checkpoint is in memory at a time.

    Args:
      checkpoints: trees of arrays; or files, ``.npz`` with a leaf an array, or directories of
        Orbax's ``StandardCheckpointer``.
      weights: one each, of sum 1, of any sign; None for the plain mean.

    Returns:
      A tree like the first, dtypes kept, arithmetic in float32; of an ``.npz`` a dict by path.
      Without state.

    Raises:
      TypeError: one tree or path in place of a list.
      ValueError: leaves that are missing or of another shape, with their paths; weights of another
        number or sum; integers that differ; a path that holds no checkpoint.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> run = [{"w": jnp.array([x])} for x in (4.0, 2.0, 0.0)]
      >>> optkit.merge_checkpoints(run)["w"].tolist()
      [2.0]
      >>> optkit.merge_checkpoints(run, optkit.wsm_merge_weights([0.5, 0.0]))["w"].tolist()
      [3.0]

    Reference:
      arXiv 2505.12082 and 2507.17634, see ``merge_weights``; task vectors: Ilharco et al., Editing
      Models with Task Arithmetic, arXiv 2212.04089.
    """
    if isinstance(checkpoints, str | Path | Mapping) or not isinstance(checkpoints, Sequence):
        raise TypeError(
            "checkpoints must be a list of trees or files, such as [first, second], and is of type "
            f"{type(checkpoints).__name__}"
        )
    chosen = _weights(weights, len(checkpoints))
    first_name = _called(checkpoints[0], 0)
    like: Any = None  # the first tree's shapes and dtypes
    wanted: Leaves = {}
    totals: Leaves = {}
    for index, (checkpoint, weight) in enumerate(zip(checkpoints, chosen, strict=True)):
        tree = _read(checkpoint)
        leaves = dict(leaves_with_paths(tree))
        if index == 0:
            # JAX's dtypes: NumPy's numbers of 64 bits may be more than it keeps.
            like = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), tree
            )
            wanted = dict(leaves_with_paths(like))
        _check(wanted, leaves, _called(checkpoint, index), first_name)
        # What has no weight may hold what is not finite.
        if not isinstance(weight, jax.Array) and weight == 0:
            continue
        for path, x in leaves.items():
            totals[path] = _added(path, totals.get(path), x, weight)
    merged = [jnp.asarray(totals[path]).astype(leaf.dtype) for path, leaf in wanted.items()]
    structure: Any = jax.tree.structure(like)
    return jax.tree.unflatten(structure, merged)

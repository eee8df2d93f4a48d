"""Functions of whole sets of weights: extrapolation along a training run, and merging of models."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from optkit.transforms.base import check_same_leaves
from optkit.transforms.hyperparams import (
    Scalar,
    check_choice,
    check_number,
    check_static_number,
)
from optkit.tree import Dims, PyTree, Role, RuleLike, dims_by_path, map_with_path, upcast
from optkit.tree.dims import is_dims
from optkit.tree.matrices import matrix_view
from optkit.tree.roles import rule_of

__all__ = [
    "LineSearch",
    "accept_line_search",
    "breadcrumbs",
    "extrapolate",
    "mask_task_vector",
]


def extrapolate(params: PyTree, reference: PyTree, weight: Scalar) -> PyTree:
    """Returns weights moved on, along the way that leads to them from a reference.

    ``p + weight*(p - p_ref)``. A weight of 0 is ``params``, -1 the reference; between the two it
    interpolates. Two methods are this formula:

    * EffOPD moves on along the training's own way: ``p_ref`` is an older checkpoint;
    * Neon moves away from a model that was trained on its own samples: with ``params`` the model
      and ``reference`` its self-trained copy it is ``(1+w)*theta - w*theta_self``.

    Args:
      params: a tree of arrays.
      reference: a tree of the same leaves and shapes.
      weight: how far, in units of the distance; a number or a scalar array.

    Returns:
      A tree like ``params``, dtypes kept; arithmetic in float32.

    Raises:
      ValueError: the weight is not finite, or the trees differ; lists the paths.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> now, before = {"w": jnp.array([2.0, 0.0])}, {"w": jnp.array([1.0, 1.0])}
      >>> optkit.extrapolate(now, before, 2.0)["w"].tolist()
      [4.0, -2.0]

    Reference:
      EffOPD: Learning to Foresee, arXiv 2605.11739; Neon: Negative Extrapolation from
      Self-Training, arXiv 2510.03597.
    """
    check_number("weight", weight)
    check_same_leaves(params, reference, "reference", shapes=True)

    def leaf(p: jax.Array, r: jax.Array) -> jax.Array:
        wide = upcast(p)
        return (wide + weight * (wide - upcast(r))).astype(p.dtype)

    return jax.tree.map(leaf, params, reference)


_Carry = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def _while_loop(
    going: Callable[[_Carry], jax.Array], step: Callable[[_Carry], _Carry], carry: _Carry
) -> _Carry:
    """``jax.lax.while_loop`` in Python."""
    while going(carry):
        carry = step(carry)
    return carry


class LineSearch(NamedTuple):
    """What ``accept_line_search`` found."""

    params: PyTree  # the accepted weights
    weight: jax.Array  # float32 scalar, how far was gone; 0 if nothing was accepted
    score: jax.Array  # float32 scalar, score of params
    evaluations: jax.Array  # int32 scalar, calls of the score, that of the base included


def accept_line_search(
    score: Callable[[PyTree], jax.Array],
    params: PyTree,
    reference: PyTree,
    weights: Sequence[float] = (2.0, 4.0, 6.0, 8.0, 10.0),
    *,
    on_device: bool = True,
) -> LineSearch:
    """Extrapolates as far as a score does not fall.

    1. ``best = score(params)``;
    2. for each ``w`` in turn: the candidate is ``p + w*(p - p_ref)``, always from the same ``p``;
       it is accepted while its score is at least ``best``, which it then sets; the first one that
       fails ends the search.

    EffOPD calls it at the steps 1, 2, 4, 8, ... with the checkpoint of half as many steps for a
    reference, goes on from the accepted weights and leaves the optimizer's state as it is. One
    checkpoint is all that it keeps.

    Args:
      score: pure function of the weights, larger is better; NaN fails.
      params: the base, a tree of arrays.
      reference: where the way began, a tree of the same leaves and shapes.
      weights: candidates in order. EffOPD's paper writes ``2k`` for k = 1..5, the default; a
        third-party code doubles.
      on_device: run the search as one loop on the device, under ``jit`` too, for which JAX has to
        trace the score; False calls it from Python, as for one that generates text.

    Returns:
      A ``LineSearch``; its score is never below that of ``params``.

    Raises:
      ValueError: no weights, one that is not finite, or trees that differ.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> score = lambda p: -jnp.abs(p["w"] - 6.0).sum()
      >>> found = optkit.accept_line_search(score, {"w": jnp.ones(1)}, {"w": jnp.zeros(1)})
      >>> found.params["w"].tolist(), float(found.weight), int(found.evaluations)
      ([7.0], 6.0, 5)

    Reference:
      EffOPD: Learning to Foresee, arXiv 2605.11739.
    """
    if not len(weights):
        raise ValueError("accept_line_search needs candidates: weights=() is empty")
    for weight in weights:
        check_number("weights", weight)
    check_same_leaves(params, reference, "reference", shapes=True)
    steps = jnp.asarray(weights, jnp.float32)
    loop = jax.lax.while_loop if on_device else _while_loop

    def scored(weight: jax.Array) -> jax.Array:
        return jnp.asarray(score(extrapolate(params, reference, weight)), jnp.float32)

    def going(carry: _Carry) -> jax.Array:
        index, _, _, passed = carry
        return passed & (index < len(weights))

    def look(carry: _Carry) -> _Carry:
        index, reached, best, _ = carry
        found = scored(steps[index])
        passed = found >= best
        return (
            index + 1,
            jnp.where(passed, steps[index], reached),
            jnp.where(passed, found, best),
            passed,
        )

    base = jnp.asarray(score(params), jnp.float32)
    start = (jnp.zeros((), jnp.int32), jnp.zeros(()), base, jnp.array(True))
    tried, reached, best, _ = loop(going, look, start)
    return LineSearch(extrapolate(params, reference, reached), reached, best, tried + 1)


Over = Literal["inputs", "leaf"]


def _middle(rows: jax.Array, beta: float, gamma: float) -> jax.Array:
    """Keeps of each row (..., n) what follows its largest entries, in order of magnitude."""
    size = rows.shape[-1]
    first = int(size * gamma)
    order = jnp.argsort(jnp.abs(rows), axis=-1, stable=True, descending=True)
    place = jnp.argsort(order, axis=-1)  # of each entry, from the largest
    return jnp.where((place >= first) & (place < first + int(size * beta)), rows, 0)


def mask_task_vector(
    delta: PyTree,
    beta: float = 0.15,
    gamma: float = 0.006,
    *,
    over: Over = "inputs",
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
) -> PyTree:
    """Returns a difference of weights without its largest entries and without its small ones.

    Of each row of ``n`` entries, those of the largest magnitude, ``int(n*gamma)`` of them, become
    0; of the rest the ``int(n*beta)`` largest stay; all others become 0. Of equal magnitudes the
    earlier counts as larger; NaN as the smallest.

    Args:
      delta: a tree of arrays: fine-tuned weights less those they began with.
      beta: share that stays, in [0, 1].
      gamma: share of the outliers, in [0, 1]. Rows shorter than 1/gamma lose none.
      over: what a row is: "inputs", all inputs of an output of a matrix, as in the published code;
        "leaf", all of a leaf, as in the paper. Of embeddings, norms and biases it is the last
        axis. A leaf that ``dims`` says is no matrix is one row; scalars stay.
      dims: see ``optkit.orthogonalize``; says which side of a matrix is its input.
      roles: your own ``(pattern, role)`` rules.

    Returns:
      A tree like ``delta``, dtypes kept.

    Raises:
      ValueError: a share outside of [0, 1], or a choice that does not exist.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> delta = {"bias": jnp.array([1.0, -9.0, 3.0, -4.0, 2.0])}
      >>> optkit.mask_task_vector(delta, 0.4, 0.2)["bias"].tolist()
      [0.0, 0.0, 3.0, -4.0, 0.0]

    Reference:
      Model Breadcrumbs, arXiv 2312.06795. Its code takes the last axis of each leaf, which of a
      convolution in PyTorch's layout is the width of the kernel; we take all inputs.
    """
    for name, share in (("beta", beta), ("gamma", gamma)):
        check_static_number(name, share)
        check_number(name, share, low=0.0, high=1.0)
    check_choice("over", over, get_args(Over))
    rules, named = tuple(roles), dims_by_path(delta, dims)

    def leaf(path: str, d: jax.Array) -> jax.Array:
        own = dims if dims is None or is_dims(dims) else (named or {}).get(path)
        if d.ndim == 0 or d.size == 0:
            return d
        if d.ndim == 1 or over == "leaf" or (named is not None and own is None):
            return _middle(d.reshape(-1), beta, gamma).reshape(d.shape)
        rule = rule_of(path, d, rules)
        if dims is None and rule.role in (Role.EMBEDDING, Role.NORM, Role.BIAS):
            return _middle(d, beta, gamma)
        view = matrix_view(d, own if own is not None else rule.dims, path=path, role=rule.role)
        return view.merge(_middle(view.split(d, "out"), beta, gamma), "out")

    return map_with_path(leaf, delta)


def breadcrumbs(
    params: PyTree,
    finetuned: Sequence[PyTree],
    alpha: Scalar = 0.2,
    *,
    beta: float = 0.15,
    gamma: float = 0.006,
    over: Over = "inputs",
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
) -> PyTree:
    """Merges models that were fine-tuned on several tasks into one, without training.

    1. ``d_i = p_i - p``, the vector of task i, of which ``mask_task_vector`` keeps neither the
       outliers nor the small entries;
    2. ``p + alpha*sum_i d_i``.

    With ``gamma=0, beta=1`` it is task arithmetic. The paper claims that the masks let more tasks
    be merged, and that one choice of the three numbers serves many; not reproduced here.

    Args:
      params: the weights that all began with, a tree of arrays.
      finetuned: one tree a task, of the same leaves and shapes.
      alpha: weight of the sum; a number or a scalar array.
      beta: share of the entries that stays.
      gamma: share of the largest ones, which do not.
      over: "inputs" or "leaf", of which the shares are; see ``optkit.mask_task_vector``.
      dims: see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.

    Returns:
      A tree like ``params``, dtypes kept; arithmetic in float32. Without state.

    Raises:
      ValueError: a number out of range, no tasks, or trees that differ; lists the paths.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> start = {"bias": jnp.zeros(4)}
      >>> tasks = [{"bias": jnp.array([9.0, 2.0, 1.0, 0.0])}, {"bias": jnp.array([0.0, 1, 9, 2])}]
      >>> optkit.breadcrumbs(start, tasks, 0.5, beta=0.25, gamma=0.25)["bias"].tolist()
      [0.0, 1.0, 0.0, 1.0]

    Reference:
      Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse Masks, arXiv 2312.06795.
    """
    check_number("alpha", alpha)
    if not len(finetuned):
        raise ValueError("breadcrumbs needs fine-tuned weights: finetuned is empty")
    vectors = []
    for index, tuned in enumerate(finetuned):
        check_same_leaves(params, tuned, f"finetuned[{index}]", shapes=True)
        delta = jax.tree.map(lambda p, q: upcast(q) - upcast(p), params, tuned)
        vectors.append(mask_task_vector(delta, beta, gamma, over=over, dims=dims, roles=roles))
    return jax.tree.map(
        lambda p, *ds: (upcast(p) + alpha * sum(ds)).astype(p.dtype), params, *vectors
    )

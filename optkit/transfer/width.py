"""How hyperparameters of a narrow model carry over to a wide one, of a shallow to a deep one."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from optkit.monitoring.diagnose import root_mean_square
from optkit.monitoring.singular import top_singular_values
from optkit.schedules.hyperp import positive
from optkit.transfer.kinds import Growth, KindRule, growths, is_still
from optkit.transfer.laws import Laws, LeafLaw
from optkit.transforms.hyperparams import check_choice, check_number
from optkit.tree import PyTree, RuleLike, Selector, leaves_with_paths, selects, upcast
from optkit.tree.selection import check_selects

Output = Literal["rate", "multiplier"]
_STILL = "base and params have the same shapes: every factor is 1"
_ATTENTION = "attention logits are to be q.k * sqrt(d_base)/d, d the size of a head, where it grows"


def mup(
    base: PyTree,
    params: PyTree,
    *,
    output: Output = "rate",
    optimizer: str = "adam",
    wider: PyTree | None = None,
    rules: Sequence[KindRule] = (),
    roles: Sequence[RuleLike] = (),
) -> Laws:
    """Returns the factors of muP: a learning rate tuned on a narrow model serves a wide one.

    With ``m`` how many times as wide the inputs of a leaf are as in the base model:

    * ``input`` (only its outputs grow: embeddings, first layers) and ``vector``: all factors 1;
    * ``hidden`` (both sides grow): learning rate ``1/m``, initial deviation ``1/sqrt(m)``;
    * ``output`` (only its inputs grow): with "rate" learning rate and initial deviation ``1/m``;
      with "multiplier" the model multiplies its logits by ``1/m``, and rate and deviation stay.

    Gradients shrink as ``1/m`` except those of an "output" leaf with "rate", hence Adam's ``eps``
    does, too. Weight decay is left alone: ``W <- W - lr*f_lr*(u + wd*W)`` decays hidden matrices
    ``1/m`` as fast; multiply by ``optkit.transfer.weight_decay_transfer`` to change that. Attention
    over heads that grow needs scores divided by their size instead of its root; in the model.

    Kinds are read off the two shapes: an axis of another size in ``params`` grows. A tied embedding
    counts as input, and its use as a head then needs the factor ``1/m`` in the model.

    Args:
      base: parameters, or shapes, of the model that was tuned.
      params: those of the model to be trained, of the same depth.
      output: how output leaves are kept in size.
      optimizer: "adam", whose table also serves other methods with updates whose size is not the
        gradient's (Lion, Adafactor without relative steps). SGD has another one, which is not here,
        and so has Muon: its updates of hidden matrices take one rate at all widths once they are
        scaled by ``sqrt(fan_out/fan_in)``, so route those to it without a factor.
      wider: shapes of any other width, which tell what grows where ``params`` is the base itself.
      rules: your own ``(selector, kind)``, tried first.
      roles: your own ``(pattern, role)`` rules.

    Returns:
      ``Laws``; nothing is allocated. Where ``params`` is the base itself all factors are 1, which
      a note says.

    Raises:
      ValueError: trees of other leaves or ranks, a leaf that can be read in two ways, or another
        optimizer.

    Example:
      >>> import jax, jax.numpy as jnp, optkit
      >>> shapes = lambda d: {"in": jnp.zeros((3, d)), "up": jnp.zeros((d, d)), "b": jnp.zeros(d),
      ...                     "out": jnp.zeros((d, 2))}
      >>> print(optkit.transfer.mup(shapes(4), shapes(16)))
      path  shape  kind    width    lr  init std   eps
      ------------------------------------------------
      b     16     vector      4     1         1  0.25
      in    3x16   input       4     1         1  0.25
      out   16x2   output      4  0.25      0.25     1
      up    16x16  hidden      4  0.25       0.5  0.25

    Reference:
      Yang et al., Tensor Programs V, arXiv 2203.03466, the table for Adam. Confidence: medium-high,
      their code was not read; ``optkit check transfer`` measures whether it holds for a model.
    """
    check_choice("output", output, get_args(Output))
    if optimizer != "adam":
        raise ValueError(
            f"optimizer={optimizer!r}: only the table for 'adam' is here, which serves all methods "
            "whose updates do not scale with the gradient; SGD's differs in every row"
        )
    found = growths(base, params, wider=wider, rules=rules, roles=roles)
    rows = [_mup(growth, output) for growth in found]
    heads = any(_has_heads(growth.path) and growth.kind == "hidden" for growth in found)
    still = is_still(base, params, None)
    return Laws(rows, (_STILL,) * still + (_ATTENTION,) * heads)


def _has_heads(path: str) -> bool:
    return any(word in path.lower() for word in ("attn", "attention", "query"))


def _mup(growth: Growth, output: Output) -> LeafLaw:
    m = growth.width
    factors = {"eps": 1.0 / m}
    if growth.kind == "hidden":
        factors |= {"learning_rate": 1.0 / m, "init": m**-0.5}
    elif growth.kind == "output":
        by_rate = {"learning_rate": 1.0 / m, "init": 1.0 / m, "eps": 1.0}
        factors |= by_rate if output == "rate" else {"forward": 1.0 / m}
    return LeafLaw(growth.path, growth.shape, growth.kind, m, **factors)


def weight_decay_transfer(
    base: PyTree,
    params: PyTree,
    *,
    exponent: float = 0.5,
    wider: PyTree | None = None,
    rules: Sequence[KindRule] = (),
    roles: Sequence[RuleLike] = (),
) -> Laws:
    """Returns the factors by which AdamW's weight decay follows the width, for use beside muP's.

    Hidden matrices: ``m**exponent``, ``m`` the growth of their inputs; inputs and vectors
    (embeddings, gains, biases): 0; outputs: 1. The top singular value of a hidden matrix in the
    steady state goes as ``sqrt(lr/wd)*m**0.75``; with muP's rate ``1/m``, ``sqrt(m)`` is what
    leaves it where it is. The coefficient is AdamW's, which the learning rate multiplies:
    ``W <- W - lr*f_lr*(u + wd*f_wd*W)``. ``mup(...) * weight_decay_transfer(...)`` is the paper's
    whole rule; ``optkit.transfer.top_singular_ratios`` measures whether it holds.

    At our scale (``python -m benchmarks.claims width_transfer``: a byte model of widths 32 to 128,
    which has not come to a steady state) the best rate stays under muP with any exponent, and
    moves by two grid points without it; top singular values grow by 1.39, 1.19 and 0.95 with
    exponents 0, 0.5 and 1: it is 1 that keeps them there.

    Args:
      base: parameters, or shapes, of the model that was tuned, with this decay.
      params: those of the model to be trained.
      exponent: of ``m``; 0.5 is the paper's, 1 keeps ``lr*wd`` under muP, 0 keeps ``wd``.
      wider: shapes of any other width; needed where ``params`` is the base itself.
      rules: your own ``(selector, kind)``, tried first.
      roles: your own ``(pattern, role)`` rules.

    Returns:
      ``Laws`` with factors on the decay only.

    Raises:
      ValueError: as ``mup``; and if no leaf grows, so that kinds are unknown.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> shapes = lambda d: {"up": jnp.zeros((d, d)), "b": jnp.zeros(d)}
      >>> laws = optkit.transfer.weight_decay_transfer(shapes(4), shapes(16))
      >>> {path: law.weight_decay for path, law in laws.items()}
      {'b': 0.0, 'up': 2.0}

    Reference:
      Fan et al., Robust Layerwise Scaling Rules by Proper Weight Decay Tuning, arXiv 2510.15262. It
      names embeddings, gains and biases as vector-like; the factor 1 of output layers is ours.
      Confidence: medium-high.
    """
    check_number("exponent", exponent)
    found = growths(base, params, wider=wider, rules=rules, roles=roles)
    if not rules and is_still(base, params, wider):
        raise ValueError(
            "base and params have the same shapes, so that nothing tells a first layer from a "
            "hidden one; give wider=, the shapes of the model at any other width"
        )
    factors = {"hidden": None, "output": 1.0, "input": 0.0, "vector": 0.0, "fixed": 1.0}

    def decay(growth: Growth) -> float:
        known = factors[growth.kind]
        return growth.width**exponent if known is None else known

    rows = [LeafLaw(g.path, g.shape, g.kind, g.width, weight_decay=decay(g)) for g in found]
    return Laws(rows)


def depth_mup(params: PyTree, *, depth: int, base_depth: int, branches: Selector) -> Laws:
    """Returns the factors of depth-muP: what a shallow model was tuned with serves a deep one.

    Leaves of residual branches: learning rate ``sqrt(base_depth/depth)``; the model multiplies the
    output of each branch by the same number, which is a note below the table and no factor of a
    leaf. All others: 1.

    Args:
      params: parameters of the model to be trained, or their shapes.
      depth: its residual blocks.
      base_depth: those of the base model.
      branches: which leaves lie in residual branches: globs, roles or a function, such as
        "blocks".

    Returns:
      ``Laws``.

    Raises:
      ValueError: a depth that is not positive, or a selector that names no leaf.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"blocks": [{"up": jnp.zeros((2, 2))}] * 4, "head": jnp.zeros((2, 3))}
      >>> laws = optkit.transfer.depth_mup(params, depth=4, base_depth=1, branches="blocks")
      >>> laws["blocks/3/up"].learning_rate, laws["head"].learning_rate
      (0.5, 1.0)

    Reference:
      Yang et al., Tensor Programs VI, arXiv 2310.02244, for Adam and blocks of one layer.
    """
    check_selects("branches", branches, params)
    factor = math.sqrt(positive("base_depth", base_depth) / positive("depth", depth))
    note = f"the output of each residual branch is to be multiplied by {factor:.4g}"
    return Laws.of(
        params,
        learning_rate=lambda path, leaf: factor if selects(branches, path, leaf) else 1.0,
        notes=(note,) if factor != 1.0 else (),
    )


def match_init(params: PyTree, base: PyTree, laws: Laws) -> PyTree:
    """Returns initial parameters with the deviations that the laws ask for.

    A leaf with a factor on its deviation is scaled to ``init`` times the root mean square that it
    has in the base model, whatever initialisation the model came with, fan-in or a constant.
    Vectors, and leaves that do not grow, stay.

    Args:
      params: fresh parameters of the model to be trained.
      base: fresh parameters of the base model, by the same initialisation.
      laws: as of ``mup``.

    Returns:
      Parameters like ``params``; leaves of zeros stay zero.

    Raises:
      ValueError: laws of another model.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> base, params = {"up": jnp.ones((2, 2))}, {"up": jnp.ones((8, 8))}
      >>> laws = optkit.transfer.mup(base, params)
      >>> float(optkit.transfer.match_init(params, base, laws)["up"][0, 0])
      0.5
    """
    laws.check(params)
    held = dict(leaves_with_paths(base))

    def leaf(path: str, p: jax.Array) -> jax.Array:
        law = laws[path]
        if law.kind not in ("input", "hidden", "output") or not p.size:
            return p
        now, before = (root_mean_square(x) for x in (p, held[path]))
        factor = law.init * before / jnp.where(now > 0, now, 1.0)
        return (upcast(p) * factor).astype(p.dtype)

    leaves = [leaf(path, p) for path, p in leaves_with_paths(params)]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def top_singular_ratios(
    models: Mapping[int, PyTree], *, roles: tuple[RuleLike, ...] = ()
) -> dict[str, dict[int, float]]:
    """Returns the top singular value of each hidden matrix at several widths, over the first one's.

    The diagnostic of ``weight_decay_transfer``: in the steady state of training, that is after
    ``lr*wd*steps`` of 2 or more, a decay that follows the width rightly leaves the ratios at 1.

    Args:
      models: width -> trained parameters, the base model's first.
      roles: your own ``(pattern, role)`` rules, which say what is a hidden matrix.

    Returns:
      Path -> width -> ratio; of a stack of matrices the mean of theirs.

    Raises:
      ValueError: fewer than two models, or models whose matrices have other paths.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> optkit.transfer.top_singular_ratios({2: {"up": jnp.eye(2)}, 4: {"up": 3.0 * jnp.eye(4)}})
      {'up': {2: 1.0, 4: 3.0}}

    Reference:
      Fan et al., arXiv 2510.15262.
    """
    if len(models) < 2:
        raise ValueError("give the trained parameters of at least two widths")
    found = {
        width: {p: float(np.mean(v)) for p, v in top_singular_values(tree, roles=roles).items()}
        for width, tree in models.items()
    }
    first = next(iter(found.values()))
    for width, table in found.items():
        lost = sorted({*table} ^ {*first})
        if lost:
            raise ValueError(f"the model of width {width} differs from the first in {lost[0]!r}")
    return {
        path: {width: round(table[path] / first[path], 6) for width, table in found.items()}
        for path in first
    }

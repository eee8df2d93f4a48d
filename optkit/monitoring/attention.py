"""Statistics of attention: how alike its heads are, how widely they look, how large scores get."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

_TINY = 1e-12  # inside the logarithm, of the reference


def attention_statistics(
    layers: jax.Array | Iterable[jax.Array] | Mapping[str, jax.Array],
) -> dict[str, jax.Array]:
    """Returns how alike the heads of a model are, and the entropies of what they look at.

    Of each layer's probabilities ``A``:

    1. similarity ``S = cos(A_h, A_k)`` of the flattened patterns of every two heads;
    2. entropy of a head: mean of ``-sum_j A_ij log(A_ij + 1e-12)`` over its rows;
    3. over layers the means of: ``mean_similarity``, of S off its diagonal; ``spectral_gap``,
       between the two largest eigenvalues of S; ``entropy_mean``, ``entropy_std`` (of the
       population) and ``entropy_range``, over the heads.

    Measurements, and nothing is claimed of what they foretell: the authors of the reference report
    that on runs held out they predicted no more than loss and norm of the weights do.

    Args:
      layers: probabilities of each layer, (batch, heads, queries, keys), rows that sum to 1; one
        array for a model of one layer.

    Returns:
      Five float32 scalars by name. Of a single head similarity and gap are 0. Works under ``jit``.

    Raises:
      ValueError: no layer, or one that is not of rank 4.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> eye = jnp.broadcast_to(jnp.eye(3), (1, 2, 3, 3))
      >>> found = optkit.monitoring.attention_statistics([eye])
      >>> {name: round(float(value), 3) + 0.0 for name, value in found.items()}
      {'mean_similarity': 1.0, 'spectral_gap': 2.0, 'entropy_mean': 0.0, ...}

    Reference:
      Weight Decay Regimes in Grokking Transformers, arXiv 2605.20441, and its reference
      lucky-verma/grokking-diagnostics.
    """
    several: Any = layers.values() if isinstance(layers, Mapping) else layers
    given: list[jax.Array] = [several] if hasattr(several, "ndim") else list(several)
    for index, layer in enumerate(given):
        if jnp.ndim(layer) != 4:
            raise ValueError(
                f"attention of layer {index} has shape {jnp.shape(layer)}; give probabilities of "
                "shape (batch, heads, queries, keys)"
            )
    if not given:
        raise ValueError("there are no layers; give the attention probabilities of at least one")
    each = [_of_layer(layer) for layer in given]
    return {name: jnp.mean(jnp.stack([one[name] for one in each])) for name in each[0]}


def attention_diagnostics(scores: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns what each layer and each head attends to, by the names of ``optkit.diagnostics``.

    Of each layer's scores ``s``:

    1. ``A = softmax(s)`` over keys, in float32;
    2. ``path/mean_similarity`` and the other four of ``attention_statistics``, of this layer alone;
    3. of each head ``path[head]/entropy``, mean of ``-sum_j A_ij log(A_ij + 1e-12)`` over its rows,
       and ``path[head]/max_logit``, the largest score: attention that collapses, or queries and
       keys that grow without bound, are seen here before they are seen in the loss.

    Args:
      scores: by the path of a layer, what its softmax is taken of, (batch, heads, queries, keys);
        minus infinity where a query may not look. Every row has a finite one.

    Returns:
      Float32 scalars by name, nats where they are entropies. Works under ``jit``.

    Raises:
      ValueError: no layer, or one that is not of rank 4.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> scores = jnp.stack([jnp.zeros((2, 2)), 100.0 * jnp.eye(2)])[None]
      >>> found = optkit.monitoring.attention_diagnostics({"mix": scores})
      >>> for name in sorted(found)[:4]:
      ...   print(name, round(float(found[name]), 3) + 0.0)
      mix/entropy_mean 0.347
      mix/entropy_range 0.693
      mix/entropy_std 0.347
      mix/mean_similarity 0.707
      >>> float(found["mix[1]/max_logit"])
      100.0
    """
    if not scores:
        raise ValueError("there are no layers; give the attention scores of at least one")
    out: dict[str, jax.Array] = {}
    for path, layer in scores.items():
        if jnp.ndim(layer) != 4:
            raise ValueError(
                f"attention of {path} has shape {jnp.shape(layer)}; give scores of shape "
                "(batch, heads, queries, keys)"
            )
        layer = jnp.asarray(layer, jnp.float32)
        a = jax.nn.softmax(layer, axis=-1)
        out |= {f"{path}/{name}": value for name, value in _of_layer(a).items()}
        heads = zip(_entropies(a), jnp.max(layer, axis=(0, 2, 3)), strict=True)
        for index, (entropy, largest) in enumerate(heads):
            out |= {f"{path}[{index}]/entropy": entropy, f"{path}[{index}]/max_logit": largest}
    return out


def _entropies(a: jax.Array) -> jax.Array:
    """Of each head, in nats."""
    return jnp.mean(-jnp.sum(a * jnp.log(a + _TINY), axis=-1), axis=(0, 2))


def _of_layer(a: jax.Array) -> dict[str, jax.Array]:
    a = a.astype(jnp.float32)
    heads = a.shape[1]
    flat = jnp.swapaxes(a, 0, 1).reshape(heads, -1)
    norms = jnp.sqrt(jnp.sum(flat * flat, axis=-1, keepdims=True))
    unit = flat / jnp.maximum(norms, _TINY)
    similarity = jnp.matmul(unit, unit.T, precision="highest")
    entropy = _entropies(a)
    pairs = heads * (heads - 1)
    off = jnp.sum(similarity) - jnp.trace(similarity)
    values = jnp.linalg.eigvalsh(similarity)
    return {
        "mean_similarity": off / pairs if pairs else jnp.zeros(()),
        "spectral_gap": values[-1] - values[-2] if heads > 1 else jnp.zeros(()),
        "entropy_mean": jnp.mean(entropy),
        "entropy_std": jnp.std(entropy),
        "entropy_range": jnp.max(entropy) - jnp.min(entropy),
    }

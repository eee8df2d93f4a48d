"""Reading and writing the memory chunk by chunk."""

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from optkit.fast_weights.state import (
    FastWeights,
    LactState,
    check_tokens,
    check_weights,
    lact_init,
    spread,
)
from optkit.linalg import Coefficients, newton_schulz
from optkit.linalg.norms import accumulation_dtype, check_matrix, norm_over


def lact_apply(
    weights: FastWeights, q: jax.Array, *, precision: lax.PrecisionLike = None
) -> jax.Array:
    """Reads the memory: f(q) = w1 (silu(w0 q) * (w2 q)) for each token.

    Args:
      weights: the fast weights, with the leading axes of q.
      q: queries (..., tokens, dk), floating point; products are taken in their dtype.
      precision: of the products, as in `jax.numpy.matmul`.

    Returns:
      (..., tokens, dv) in the dtype of q.

    Example:
      >>> weights = FastWeights(jnp.zeros((3, 2)), jnp.ones((1, 3)), jnp.ones((3, 2)))
      >>> lact_apply(weights, jnp.ones((4, 2))).shape
      (4, 1)
    """
    times = partial(_product, dtype=q.dtype, precision=precision)
    hidden = jax.nn.silu(times(q, weights.w0.mT)) * times(q, weights.w2.mT)
    return times(hidden, weights.w1.mT).astype(q.dtype)


def lact_chunk_update(
    state: LactState,
    k: jax.Array,
    v: jax.Array,
    lr: tuple[jax.Array, jax.Array, jax.Array],
    momentum: jax.Array | None = None,
    *,
    ortho: Callable[[jax.Array], jax.Array] | None,
    norm_eps: float = 1e-5,
    precision: lax.PrecisionLike = None,
) -> LactState:
    """Writes one chunk into the memory: one step down the inner loss -sum_t <f(k_t), v_t>.

    With g = w0 k, h = w2 k, s = sigmoid(g) and b = w1^T v of each token, the direction is
    D0 = sum lr0 (b h s (1 + g (1 - s))) k^T, D1 = sum lr1 v (g s h)^T, D2 = sum lr2 (b g s) k^T.
    Then D <- D + mean(momentum) D_before, w <- w + ortho(D), and each row of w gets the norm that
    it had at first: w <- w / (||w|| + norm_eps) ||w_first||. D is kept as it was before ortho.

    Args:
      state: from `lact_init` or the chunk before.
      k: keys (..., tokens, dk), floating point; products are taken in their dtype and summed in
        float32 at least. Leading axes are those of the state.
      v: values (..., tokens, dv).
      lr: learning rates of each token for w0, w1 and w2, three arrays (..., tokens, 1); or one for
        each input of the weight, (..., tokens, dk), (..., tokens, dh) and (..., tokens, dk).
      momentum: of each token, (..., tokens, 1), if the state keeps momentum; None otherwise.
      ortho: makes the step of a direction (..., m, n), such as `newton_schulz`; None takes the
        direction itself.
      norm_eps: added to the row norms, in the units of the weights.
      precision: of the products, as in `jax.numpy.matmul`.

    Returns:
      The state after the chunk.

    Raises:
      ValueError: an array of a wrong shape, momentum for a state that keeps none or none for one
        that does, or a norm_eps that is not positive.
      TypeError: an array that is not floating point.

    Example:
      >>> from optkit.fast_weights import draw_fast_weights
      >>> first = lact_init(draw_fast_weights(jax.random.key(0), 8, 16, 4))
      >>> k, v, rate = jnp.ones((5, 8)), jnp.ones((5, 4)), jnp.ones((5, 1))
      >>> then = lact_chunk_update(first, k, v, (rate,) * 3, ortho=newton_schulz)
      >>> bool(jnp.all(lact_apply(then.weights, k) > lact_apply(first.weights, k)))
      True
    """
    check_tokens(state.weights, k, v, lr, momentum)
    if (momentum is None) != (state.momentum is None):
        raise ValueError(
            "the state keeps momentum: give that of each token, (..., tokens, 1)"
            if momentum is None
            else "the state keeps no momentum: make it by lact_init(weights, momentum=True)"
        )
    if not norm_eps > 0.0:
        raise ValueError(f"norm_eps={norm_eps!r} must be positive: a row of zeros has norm 0")
    times = partial(_product, dtype=k.dtype, precision=precision)
    kept = state.weights.w0.dtype
    gate, hidden = times(k, state.weights.w0.mT), times(k, state.weights.w2.mT)
    back = times(v, state.weights.w1)
    sigma = jax.nn.sigmoid(gate)
    step = FastWeights(
        w0=times((back * hidden * sigma * (1.0 + gate * (1.0 - sigma))).mT, k * lr[0]),
        w1=times(v.mT, gate * sigma * hidden * lr[1]),
        w2=times((back * gate * sigma).mT, k * lr[2]),
    )
    step = FastWeights(*[d.astype(kept) for d in step])
    total = state.momentum
    if momentum is not None and total is not None:
        mean = jnp.mean(momentum.astype(kept), axis=-2, keepdims=True)
        step = total = FastWeights(*[d + mean * m for d, m in zip(step, total, strict=True)])
    if ortho is not None:
        step = FastWeights(*map(ortho, step))
    main = state.weights if state.main is None else state.main
    main = FastWeights(*map(operator.add, main, step))
    weights = FastWeights(*[
        w * (norm / (norm_over(w, (-1,)) + norm_eps))
        for w, norm in zip(main, state.norms, strict=True)
    ])  # fmt: skip
    return LactState(weights, state.norms, None if state.main is None else main, total)


def lact(
    weights: FastWeights,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    lr: tuple[jax.Array, jax.Array, jax.Array],
    momentum: jax.Array | None = None,
    *,
    chunk_size: int = 2048,
    muon: bool = True,
    prenorm: bool = False,
    coefficients: Coefficients = "quintic_you",
    steps: int | None = None,
    eps: float = 1e-7,
    compute_dtype: DTypeLike | None = None,
    norm_eps: float = 1e-5,
    remat: bool = True,
    precision: lax.PrecisionLike = None,
) -> jax.Array:
    """Reads each chunk with weights that the chunks before have written, by Muon.

    Chunk after chunk: `lact_apply` answers the queries with the present weights, and then
    `lact_chunk_update` writes keys and values into them. The last chunk, of 1 to chunk_size tokens,
    is only read, so that a sequence of at most chunk_size tokens meets the first weights alone.
    Tokens of one chunk don't see each other (give them attention over a window of that size), and
    their order does not matter to the chunks after. Everything is differentiable: gradients
    reach the first weights, queries, keys, values, rates and momenta.

    Extra work: with D = dk = dv, H = dh and m, n the smaller and the larger of the two, five
    Newton-Schulz steps add 3 (20 m^2 n + 10 m^3) FLOPs a chunk to the 18 D H chunk_size of reading
    and writing: for H = D the share 5 D / chunk_size, so that 50 D tokens bring it to a tenth.

    When to choose: sequences much longer than a window of attention, and a memory that grows with
    the weights, not with the tokens. Muon needs no tuning of the rates' size, and directions
    that came up seldom are written as strongly as frequent ones.

    Evidence: in `examples/associative_recall.py` (256 pairs in 4 chunks, keys by Zipf's law) Muon
    recalls 67% over 100 training steps, the bare gradient 52% with rates chosen for it and 22% with
    all rates 1; at the end 90%, 90% and 55%: it learns earlier, but well chosen rates catch up.
    That it beats other recurrent memories on views, text and video, and gradient descent inside,
    is the paper's claim.

    Args:
      weights: the first fast weights; leading axes () or (heads,) serve all of (batch, heads).
      q: queries (..., tokens, dk), floating point, such as L2-normalised ones. Products are taken
        in the dtypes of q and k, everything else in float32 at least.
      k: keys (..., tokens, dk).
      v: values (..., tokens, dv).
      lr: rates of each token, as in `lact_chunk_update`, such as softplus(x + c) with
        softplus(c) = 0.001. Muon erases a factor common to all tokens.
      momentum: of each token, (..., tokens, 1), such as a sigmoid; None keeps no sum of gradients.
      chunk_size: tokens between two updates.
      muon: replace each summed gradient by its Newton-Schulz factor, a step of size 1.
      prenorm: normalise only the copy that is applied, and go on summing in an unnormalised one.
      coefficients: as in `newton_schulz`.
      steps: as in `newton_schulz`.
      eps: as in `newton_schulz`.
      compute_dtype: of the iteration, as in `newton_schulz`; the paper's code has bfloat16.
      norm_eps: added to row norms, in the units of the weights.
      remat: recompute a chunk in the backward pass, which then keeps the state of each chunk but no
        activations.
      precision: of all products, as in `jax.numpy.matmul`.

    Returns:
      (..., tokens, dv) in the dtype of q. The memory of the backward pass is one `LactState` a
      chunk, 4 bytes a fast weight, twice that with momentum or prenorm, three times with both.

    Raises:
      ValueError: shapes that do not fit, chunk_size below 1, or a norm_eps that is not positive.
      TypeError: arrays that are not floating point.

    Example:
      >>> import optkit
      >>> weights = optkit.fast_weights.draw_fast_weights(
      ...     jax.random.key(0), 8, 16, 8, batch_shape=(2,)
      ... )
      >>> x = jax.random.normal(jax.random.key(1), (3, 2, 10, 8))  # batch, heads, tokens
      >>> rate = jnp.ones((3, 2, 10, 1))
      >>> lact(weights, x, x, x, (rate, rate, rate), chunk_size=4).shape
      (3, 2, 10, 8)

    Reference: Zhang et al., Test-Time Training Done Right, arXiv 2505.23884. Its code iterates in
    bfloat16 (compute_dtype). Its form for views stops the gradient of the first row norms, takes
    the set "jordan" and chooses what is read and written: build that from `lact_chunk_update`.
    """
    weights = check_weights(weights)
    check_matrix(q, "lact's q")
    batch, tokens = q.shape[:-2], q.shape[-2]
    weights = spread(weights, batch)
    check_tokens(weights, k, v, lr, momentum, q)
    if not (isinstance(chunk_size, int) and chunk_size >= 1):
        raise ValueError(f"chunk_size={chunk_size!r}: give a number of tokens, at least 1")
    ortho = partial(
        newton_schulz,
        coefficients=coefficients,
        steps=steps,
        eps=eps,
        compute_dtype=compute_dtype,
        precision=precision,
    )

    options: dict[str, Any] = {"norm_eps": norm_eps, "precision": precision}

    def chunk(state: LactState, inputs: Any) -> tuple[LactState, jax.Array]:
        query, *written = inputs
        answer = lact_apply(state.weights, query, precision=precision)
        return lact_chunk_update(state, *written, ortho=ortho if muon else None, **options), answer

    count = max(tokens - 1, 0) // chunk_size
    full = count * chunk_size

    def split(x: jax.Array) -> jax.Array:
        x = x[..., :full, :].reshape(*x.shape[:-2], count, chunk_size, x.shape[-1])
        return jnp.moveaxis(x, -3, 0)

    state = lact_init(weights, momentum=momentum is not None, prenorm=prenorm)
    # A scan keeps its iterations apart by itself.
    body = jax.checkpoint(chunk, prevent_cse=False) if remat else chunk
    state, read = lax.scan(body, state, jax.tree.map(split, (q, k, v, lr, momentum)), length=count)
    read = jnp.moveaxis(read, 0, -3).reshape(*batch, full, v.shape[-1])
    last = lact_apply(state.weights, q[..., full:, :], precision=precision)
    return jnp.concatenate([read, last], axis=-2)


def _product(
    left: jax.Array, right: jax.Array, *, dtype: DTypeLike, precision: lax.PrecisionLike
) -> jax.Array:
    """The product of operands rounded to a dtype, summed in float32 at least."""
    wide = accumulation_dtype(dtype)
    left, right = left.astype(dtype), right.astype(dtype)
    return jnp.matmul(left, right, precision=precision, preferred_element_type=wide)

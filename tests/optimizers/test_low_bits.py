"""Recipes with low-bit states: the references' options against an oracle, bytes, training."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optkit
from optkit.codecs import TableCodec

STEP = jax.jit(lambda tx, g, s, p: tx.update(g, s, p), static_argnums=0)
SHAPE = (6, 40)


def grads(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(4)
    return [np.float32(0.1 * rng.standard_normal(SHAPE)) for _ in range(count)]


def round_trip(x: np.ndarray, codec: TableCodec) -> np.ndarray:
    """Flattened blocks, the nearest entry, in float64 but for the scale and the quotient."""
    flat = np.float32(x).ravel()
    pad = -len(flat) % codec.block
    blocks = np.append(flat, np.zeros(pad, np.float32)).reshape(-1, codec.block)
    scale = np.max(np.abs(blocks), axis=1, keepdims=True)
    if codec.floor:
        scale = np.where(scale == 0, 0, np.maximum(scale, np.float32(codec.floor)))
    y = blocks / np.where(scale == 0, 1, scale)
    entries = codec.entries
    middles = (entries[:-1] + entries[1:]) / np.float32(2)
    side = "left" if codec.ties == "lower" else "right"
    read = entries[np.searchsorted(middles, y, side)] * scale
    return read.ravel()[: len(flat)].reshape(x.shape)


def adam(codec: TableCodec, decay: str, wd: float, lr: float = 0.01) -> list[np.ndarray]:
    b1, b2, eps = 0.8, 0.95, 1e-6
    p, m, v, out = np.ones(SHAPE), np.zeros(SHAPE), np.zeros(SHAPE), []
    for n, g in enumerate(grads(5), start=1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * np.float64(g) ** 2
        u = m / (1 - b1**n) / (np.sqrt(v / (1 - b2**n)) + eps)
        p = (p - lr * u) * (1 - lr * wd) if decay == "after" else p * (1 - lr * wd) - lr * u
        m, v = round_trip(m, codec), round_trip(v, codec.for_sign(False))
        out.append(p)
    return out


TORCHAO = {"floor": 1e-12, "ties": "upper"}


@pytest.mark.parametrize("decay", ["decoupled", "after"])
@pytest.mark.parametrize(
    ("recipe", "options", "codec"),
    [
        (optkit.adamw_8bit, {}, TableCodec(block=32)),
        (optkit.adamw_8bit, {"dialect": "torchao"}, TableCodec(block=16, **TORCHAO)),
        (optkit.adamw_4bit, {}, TableCodec(bits=4, exponent_bits=3, block=16, **TORCHAO)),
    ],
    ids=["bitsandbytes", "torchao", "4 bits"],
)
def test_adam_follows_the_references(
    recipe: Any, options: dict, codec: TableCodec, decay: Any
) -> None:
    tx = recipe(
        0.01, b1=0.8, b2=0.95, eps=1e-6, weight_decay=0.3, decay=decay, block=codec.block,
        min_size=0, layout="flat", **options,
    )  # fmt: skip
    params = jnp.ones(SHAPE)
    state = tx.init(params)
    for g, want in zip(grads(5), adam(codec, decay, 0.3), strict=True):
        updates, state = STEP(tx, g, state, params)
        params = optax.apply_updates(params, updates)
        # One code in a thousand may be off at a boundary, and it moves one parameter.
        off = np.abs(np.float64(params) - want)
        assert np.mean(off > 5e-6) <= 0.005


def test_torchao_keeps_what_its_blocks_do_not_divide() -> None:
    params = {"even": jnp.zeros((64, 64)), "odd": jnp.zeros((65, 65))}
    for recipe, small in ((optkit.adamw_8bit, 4096), (optkit.adamw_4bit, 4096)):
        dialect = {"dialect": "torchao"} if recipe is optkit.adamw_8bit else {}
        rows = {r.path: r.state_bytes for r in optkit.plan(recipe(**dialect), params).rows}
        assert rows["odd"] == 8 * 65 * 65
        assert rows["even"] < 3 * small
    rows = {r.path: r.state_bytes for r in optkit.plan(optkit.adamw_8bit(), params).rows}
    assert rows["odd"] == 2 * (65 * 65 + 4 * -(-65 * 65 // 256))


@pytest.mark.parametrize(
    ("name", "each"),
    [
        ("adamw_8bit", 2.03125),
        ("adamw_4bit", 1.0625),
        ("adamw_fp8", 2.03125),
        ("lion_8bit", 1.015625),
    ],
)
def test_the_catalogue_says_the_bytes_of_large_leaves(name: str, each: float) -> None:
    entry = optkit.catalogue.get(name)
    params = {"w": jax.ShapeDtypeStruct((512, 768), jnp.float32)}
    (row,) = optkit.plan(entry.factory(), params).rows
    assert row.state_bytes == entry.bytes_of_leaf("matrix", 512 * 768) == each * 512 * 768


@functools.cache
def trained(name: str) -> float:
    """What is left of a least-squares loss after 200 steps."""
    rng = np.random.default_rng(0)
    x, target = (np.float32(rng.standard_normal(shape)) for shape in ((128, 32), (32, 128)))
    tx = getattr(optkit, name)(0.02, weight_decay=0.0)

    def loss(w: jax.Array) -> jax.Array:
        return jnp.mean(jnp.square(x @ (w - target)))

    def body(carry: tuple, _: None) -> tuple:
        w, s = carry
        u, s = tx.update(jax.grad(loss)(w), s, w)
        return (w + u, s), None

    start = jnp.zeros((32, 128))
    run = jax.jit(lambda w: jax.lax.scan(body, (w, tx.init(w)), length=200)[0][0])
    return float(loss(run(start)) / loss(start))


@pytest.mark.parametrize(
    ("name", "like", "least"),
    [
        ("adamw_8bit", "adamw", 0.01),
        ("adamw_fp8", "adamw", 0.01),
        ("adamw_4bit", "adamw", 0.05),  # rougher
        ("lion_8bit", "lion", 0.01),
    ],
)
def test_they_descend_about_as_far_as_in_float32(name: str, like: str, least: float) -> None:
    assert trained(like) < 0.05
    assert trained(name) < 2.0 * trained(like) + least


def test_a_block_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="block=1 cannot be served"):
        optkit.adamw_8bit(block=1)
    with pytest.raises(ValueError, match="block=0 must be"):
        optkit.adamw_fp8(block=0)

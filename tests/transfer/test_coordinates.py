"""The coordinate check on a perceptron: flat under muP, and not with one rate for all leaves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optkit
from optkit import transfer

WIDTHS = (16, 64, 256)
RATE = 0.002


def init(key: jax.Array, width: int) -> dict:
    """Fan-in initialisation; the last layer smaller, so that it does not drown what it learns."""
    keys = jax.random.split(key, 3)
    sizes = {"in": (8, width), "up": (width, width), "out": (width, 4)}
    return {
        name: jax.random.normal(k, shape) / np.sqrt(shape[0])
        for k, (name, shape) in zip(keys, sizes.items(), strict=True)
    }


def activations(params: dict, batch: tuple) -> dict:
    x = batch[0]
    seen = {}
    for name in ("in", "up", "out"):
        x = x @ params[name]
        seen[name] = x
        x = jnp.tanh(x)
    return seen


def loss(params: dict, batch: tuple) -> jax.Array:
    return jnp.mean(jnp.square(activations(params, batch)["out"] - batch[1]))


def batch(seed: int, step: int) -> tuple:
    rng = np.random.default_rng([seed, step])
    x = rng.normal(size=(16, 8)).astype(np.float32)
    return x, np.tanh(x[:, :4])


def build(width: int, law: str) -> transfer.Trial:
    shapes = lambda w: jax.eval_shape(lambda k: init(k, w), jax.random.key(0))  # noqa: E731
    laws = transfer.mup(shapes(WIDTHS[0]), shapes(width))
    if law == "standard":
        return transfer.Trial(
            lambda key: init(key, width), optkit.adamw(RATE), loss, batch, activations
        )
    tx = laws.route(lambda f: optkit.adamw(RATE * f.learning_rate, eps=1e-8 * f.eps))

    def scaled(key: jax.Array) -> dict:
        return transfer.match_init(init(key, width), init(key, WIDTHS[0]), laws)

    return transfer.Trial(scaled, tx, loss, batch, activations)


@functools.cache
def checked(law: str) -> transfer.Coordinates:
    return transfer.coordinate_check(lambda w: build(w, law), WIDTHS, steps=3, seeds=(0,))


def test_mup_is_flat() -> None:
    found = checked("mup")
    assert found.flat, str(found)
    assert max(map(abs, found.slopes.values())) < 0.25
    # The updates of hidden matrices are what shrinks: by construction, as 1/width.
    assert found.update_slopes["up"] == pytest.approx(-1.0, abs=0.15)
    assert found.update_slopes["in"] == pytest.approx(0.0, abs=0.05)


def test_one_rate_for_all_is_not_flat() -> None:
    found = checked("standard")
    assert not found.flat and found.slopes["out"] > 0.5
    assert "not flat" in found.verdict and "grows" in str(found)
    assert found.update_slopes["up"] == pytest.approx(0.0, abs=0.15)


def test_record_is_json_and_complete() -> None:
    record = checked("mup").record()
    assert record["flat"] is True and record["widths"] == list(WIDTHS)
    assert np.shape(record["changes"]["up"]) == (3, len(WIDTHS))
    assert set(record["slopes"]) == {"in", "up", "out"}


def test_slopes_are_those_of_powers() -> None:
    """Sizes that are exact powers of the width have their exponents for slopes."""
    widths = np.array([2.0, 8.0, 64.0])
    powers = {str(k): widths[None] ** k for k in (-0.5, 0.0, 0.2, 1.0)}
    found = transfer.Coordinates((2, 8, 64), 1, {}, powers, {})
    assert found.slopes == pytest.approx({name: float(name) for name in powers})
    assert set(found.steep) == {"-0.5", "1.0"}


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two"):
        transfer.coordinate_check(lambda w: build(w, "mup"), (8, 8))
    with pytest.raises(TypeError, match=r"must return an optkit\.transfer\.Trial"):
        transfer.coordinate_check(lambda w: 3, (16, 32))

    def other(width: int) -> transfer.Trial:
        trial = build(width, "standard")
        return trial._replace(activations=lambda p, b: {f"layer{width}": activations(p, b)["in"]})

    with pytest.raises(ValueError, match="differ between widths: layer16, layer4"):
        transfer.coordinate_check(other, (4, 16), steps=1, seeds=(0,))

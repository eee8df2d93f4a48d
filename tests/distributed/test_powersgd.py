"""PowerSGD: nothing is lost, ranks, lossless cases, both execution forms, what is sent."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

import optkit
from tests.conformance.hlo import sent_bytes
from tests.distributed.workers import AXIS, follow, gradients, mesh_of, on_devices, start

SHAPES = {"w/kernel": (6, 5), "v/kernel": (4, 7), "layers/kernel": (2, 4, 6), "w/bias": (5,)}
MATRICES = [name for name in SHAPES if name.endswith("kernel")]
SCHEDULES = ("paper", "alternating")


def average(**options: Any) -> Any:
    return optkit.powersgd_mean(AXIS, **{"min_compression_rate": 0.0, "rank": 2, **options})


def errors(state: Any) -> dict[str, np.ndarray]:
    return {k: np.float64(v) for k, v in state.error.of_worker.items() if v is not None}


@pytest.mark.sweep
@pytest.mark.parametrize("iterations", [1, 2])
@pytest.mark.parametrize("schedule", SCHEDULES)
@settings(max_examples=4)
@given(seed=st.integers(0, 2**16))
def test_what_was_averaged_and_what_waits_is_all_there_was(
    schedule: str, iterations: int, seed: int
) -> None:
    grads = gradients(seed, 4, 3, SHAPES)
    out, states = follow(average(schedule=schedule, iterations=iterations), grads)
    before = {name: 0.0 for name in MATRICES}
    for u, g, state in zip(out, grads, states, strict=True):
        after = errors(state)
        for name in MATRICES:
            assert np.all(u[name] == u[name][:1])  # the same on all workers
            got = u[name][0] + np.mean(after[name], 0)
            np.testing.assert_allclose(got, np.mean(g[name] + before[name], 0), atol=1e-5)
            rank = np.linalg.matrix_rank(np.float64(u[name][0]), tol=1e-4)
            assert np.all(rank <= 2 * (iterations if schedule == "alternating" else 1))
        np.testing.assert_allclose(u["w/bias"][0], g["w/bias"].mean(0), atol=1e-6)
        before = after


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_mean_of_low_rank_comes_through_whole(schedule: str) -> None:
    """Workers share the range of rank 2; one factor finds it in the first pass over it."""
    random = np.random.default_rng(0)
    sides = random.standard_normal((6, 2)), random.standard_normal((2, 5))
    own = [{"w": np.float32(sides[0] @ random.standard_normal((3, 2, 2)) @ sides[1])}] * 2
    out, _ = follow(average(schedule=schedule), own)
    total = sum(np.float64(u["w"][0]) for u in out)
    if schedule == "paper":
        np.testing.assert_allclose(out[0]["w"][0], own[0]["w"].mean(0), atol=1e-5)
    else:  # P is random at first: what it misses waits for the second step
        np.testing.assert_allclose(total, 2 * own[0]["w"].mean(0), atol=1e-5)


def test_full_rank_is_the_plain_mean() -> None:
    grads = gradients(1, 3, 2, {"w": (4, 4)})
    out, states = follow(average(rank=4), grads)
    for u, g in zip(out, grads, strict=True):
        np.testing.assert_allclose(u["w"][0], g["w"].mean(0), atol=2e-5)
    # What waits at a worker is how far it was from the mean: a sum that is 0 over the workers.
    np.testing.assert_allclose(errors(states[-1])["w"].sum(0), 0.0, atol=2e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_signs_and_bases_of_factors_do_not_matter(schedule: str) -> None:
    """Any invertible mix of a factor's columns spans the same."""
    grads, results = gradients(2, 3, 2, {"w": (6, 5)}), []
    tx = average(schedule=schedule)
    for mix in (np.eye(2), np.diag([-1.0, 3.0]), np.array([[1.0, 2.0], [0.0, -1.0]])):
        state = start(tx, grads[0])
        changed = {
            field: {"w": getattr(state, field)["w"] @ np.float32(mix)}
            for field in ("left", "basis")
            if getattr(state, field) is not None
        }
        results.append(follow(tx, grads, state._replace(**changed))[0])
    for other in results[1:]:
        for u, want in zip(other, results[0], strict=True):
            np.testing.assert_allclose(u["w"], want["w"], atol=2e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_gradients_that_are_zero_at_first_do_not_end_it(schedule: str) -> None:
    grads = gradients(3, 6, 2, {"w": (6, 5)})
    grads[:2] = [{"w": np.zeros_like(g["w"])} for g in grads[:2]]
    out, _ = follow(average(schedule=schedule), grads)
    assert not np.any(out[0]["w"]) and not np.any(out[1]["w"])
    assert all(np.linalg.norm(u["w"]) > 0.5 for u in out[2:])


def test_plain_averages_come_first_and_leave_nothing() -> None:
    grads = gradients(4, 4, 3, SHAPES)
    out, states = follow(average(start_step=2, schedule="alternating"), grads)
    for u, g in zip(out[:2], grads, strict=False):
        for name in SHAPES:
            np.testing.assert_allclose(u[name][0], g[name].mean(0), atol=1e-6)
    assert not any(map(np.any, errors(states[1]).values()))
    assert all(map(np.any, errors(states[2]).values()))
    # Then it goes on as if it began there.
    late, _ = follow(average(schedule="alternating"), grads[2:])
    np.testing.assert_allclose(out[3]["w/kernel"], late[1]["w/kernel"], atol=1e-5)


def test_matrices_that_do_not_pay_are_averaged_plainly() -> None:
    """torch's rule: (m + n) r rate < m n; the authors' later one has half of the left side."""
    shapes = {"wide": (8, 12), "square": (8, 8), "gain": ()}
    params = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    for schedule, rank, want in (
        ("paper", 1, {"wide", "square"}),  # 40 < 96, 32 < 64
        ("paper", 2, {"wide"}),  # 80 < 96, 64 = 64
        ("alternating", 2, {"wide", "square"}),
        ("alternating", 4, {"wide"}),
        ("paper", 3, set()),
    ):
        state = optkit.powersgd_mean(rank=rank, schedule=schedule).init(params)
        assert {k for k, v in state.error.of_worker.items() if v is not None} == want
    dims = {"wide": None, "square": optkit.MatrixDims(), "gain": None}
    assert average(dims=dims).init(params).error.of_worker["wide"] is None


def test_stacked_layers_and_blocks_are_matrices_of_their_own() -> None:
    grads = gradients(5, 2, 2, {"layers/kernel": (3, 6, 5)})
    state = start(average(), grads[0])
    out, _ = follow(average(), grads, state)
    for layer in range(3):
        own = state._replace(
            basis={"w": state.basis["layers/kernel"][:, layer]},
            error=optkit.distributed.PerWorker({"w": np.zeros((2, 6, 5), np.float32)}),
        )
        alone, _ = follow(average(), [{"w": g["layers/kernel"][:, layer]} for g in grads], own)
        for u, want in zip(out, alone, strict=True):
            np.testing.assert_allclose(u["layers/kernel"][:, layer], want["w"], atol=1e-5)
    fused = {"qkv": optkit.MatrixDims(output_blocks=(4, 2, 2))}
    tx = average(dims=fused)
    out, states = follow(tx, gradients(6, 2, 2, {"qkv": (5, 8)}))
    assert [b.shape for b in states[0].basis["qkv"]] == [(2, 5, 2), (2, 2, 5, 2)]
    assert np.linalg.matrix_rank(out[0]["qkv"][0][:, :4], tol=1e-4) == 2


def test_without_memory_or_warm_start() -> None:
    grads = gradients(7, 2, 2, {"w": (6, 5)})
    out, states = follow(average(error_feedback=False), grads)
    assert states[0].error is None
    fresh, _ = follow(average(error_feedback=False), grads[1:], states[0])
    np.testing.assert_array_equal(out[1]["w"], fresh[0]["w"])
    cold = average(warm_start=False)
    same = [grads[0], grads[0]]
    first, held = follow(cold, same)
    drawn = held[0].basis["w"] - held[1].basis["w"]
    assert np.any(np.abs(drawn) > 1e-3) and np.all(np.isfinite(first[1]["w"]))


def test_16_bit_gradients_lose_nothing_either() -> None:
    grads = [
        {"w": np.asarray(jnp.asarray(g["w"], jnp.bfloat16))}
        for g in gradients(8, 3, 2, {"w": (6, 5)})
    ]
    out, states = follow(average(), grads)
    assert all(u["w"].dtype == jnp.bfloat16 for u in out)
    sent = sum(np.float64(u["w"][0]) for u in out) + errors(states[-1])["w"].mean(0)
    np.testing.assert_allclose(sent, sum(np.float64(g["w"]).mean(0) for g in grads), atol=1e-5)


# ---- devices


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.slow
def test_eight_devices_do_what_a_vmapped_axis_does(schedule: str) -> None:
    # More of one shape than are worked through in a block. (Not below a condition: jaxlib 0.10 may
    # crash on large ones with collectives once their program comes from the compilation cache.)
    many = 9 if schedule == "paper" else 0
    shapes = {**SHAPES, **{f"more{i}/kernel": (6, 5) for i in range(many)}}
    grads = gradients(9, 2, 8, shapes)
    tx = average(schedule=schedule, start_step=0 if many else 1)
    want, states = follow(tx, grads)
    got, state, _ = on_devices(tx, grads)
    for u, v in zip(got, want, strict=True):
        for name in shapes:
            np.testing.assert_allclose(u[name], v[name][0], atol=1e-5)
    for name, e in errors(states[-1]).items():
        np.testing.assert_allclose(errors(state)[name].reshape(e.shape), e, atol=1e-5)


def test_what_is_sent_is_what_the_formula_says() -> None:
    shapes = {"a": (16, 24), "b": (16, 24), "bias": (24,)}
    rank, workers = 2, 8
    for schedule, floats in (("paper", 2 * rank * 40), ("alternating", None)):
        tx = average(schedule=schedule)
        params = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        sent = optkit.wire_bytes(tx, params, workers, AXIS)
        assert sent.plain == pytest.approx(2 * 7 / 8 * 4 * (2 * 16 * 24 + 24))
        if floats:
            want = 2 * 7 / 8 * 4 * (floats + 24)
            assert (sent.least, sent.most) == pytest.approx((want, want))
            _, _, compiled = on_devices(tx, gradients(0, 1, workers, shapes))
            assert sent_bytes(compiled, workers) == pytest.approx(want)
        else:  # one factor or the other
            ends = [2 * 7 / 8 * 4 * (2 * rank * side + 24) for side in (16, 24)]
            assert (sent.least, sent.most) == pytest.approx(tuple(ends))
    late = optkit.wire_bytes(average(start_step=3), params, workers, AXIS)
    assert late.most == pytest.approx(late.plain) and late.least < late.plain / 2


def test_workers_without_an_axis_are_refused() -> None:
    def update(axis_name: Any) -> Any:
        tx = optkit.powersgd_mean(axis_name, rank=1, min_compression_rate=0.0)

        def step(g: jax.Array) -> jax.Array:
            return tx.update({"w": g}, tx.init({"w": g}))[0]["w"]

        return jax.jit(jax.shard_map(step, mesh=mesh_of(2), in_specs=P(AXIS), out_specs=P(AXIS)))

    g = np.ones((8, 4), np.float32)
    with pytest.raises(ValueError, match=r"leaf 'w' differs along \['workers'\]: give axis_name"):
        update(None)(g)
    np.testing.assert_allclose(update(())(g), g, atol=1e-6)  # each on its own, on purpose


def test_gradients_that_are_summed_already_are_refused() -> None:
    """shard_map sums the gradient of what does not vary, behind which no mean makes sense."""
    tx = average()

    def step(p: jax.Array, x: jax.Array, varies: bool) -> jax.Array:
        at = jax.lax.pcast(p, AXIS, to="varying") if varies else p
        g = jax.grad(lambda w: jnp.sum(w * x))(at)
        return tx.update({"w": g}, tx.init({"w": p}))[0]["w"]

    p, x = np.ones((4, 4), np.float32), np.ones((8, 4), np.float32)
    for varies in (True, False):
        mapped = jax.shard_map(
            lambda p, x, varies=varies: step(p, x, varies),
            mesh=mesh_of(2),
            in_specs=(P(), P(AXIS)),
            out_specs=P(),
        )
        if varies:
            np.testing.assert_allclose(jax.jit(mapped)(p, x), 1.0, atol=1e-5)
        else:
            with pytest.raises(ValueError, match=r"summed them already.*pcast\(params, 'workers'"):
                jax.jit(mapped)(p, x)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rank": 0}, "rank=0 must be an integer"),
        ({"schedule": "papre"}, "did you mean 'paper'"),
        ({"start_step": -1}, "start_step=-1"),
        ({"min_compression_rate": -1.0}, "min_compression_rate=-1.0 is below"),
        ({"warm_start": False, "schedule": "alternating"}, "needs schedule='paper'"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        optkit.powersgd_mean(AXIS, **options)
    with pytest.raises(TypeError, match="axis_name=3 must be the name"):
        optkit.powersgd_mean(3)  # type: ignore[arg-type]


def test_first_factors_have_to_fit() -> None:
    tx = average(init_factor=lambda path, which, shape: np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"leaf 'w' a basis of shape \(2, 2\); .*\(5, 2\)"):
        tx.init({"w": np.zeros((5, 6), np.float32)})

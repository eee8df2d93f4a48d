"""Routing: roles decide who serves which leaf, frozen leaves keep no state, a plan shows it all."""

import jax
import jax.numpy as jnp
import optax

import optkit


def init(key: jax.Array) -> dict:
    """Returns parameters of a small decoder; names are those of Flax."""
    keys = iter(jax.random.split(key, 8))

    def normal(*shape: int) -> jax.Array:
        return 0.1 * jax.random.normal(next(keys), shape)

    return {
        "embed": {"embedding": normal(64, 16)},
        "block": {
            "query": {"kernel": normal(16, 4, 4)},  # heads: one 16x16 matrix by its role
            "experts": {"kernel": normal(3, 16, 32)},  # a batch of three matrices
            "norm": {"scale": jnp.ones(16)},
        },
        "adapter": {"kernel": normal(16, 16), "bias": jnp.zeros(16)},
        "head": {"kernel": normal(16, 64)},
    }


def main() -> None:
    """Prints the plans of two optimizers and checks that frozen leaves stay as they were."""
    params = init(jax.random.key(0))
    print("muon, as it comes: hidden matrices to Muon, everything else to AdamW\n")
    print(optkit.plan(optkit.muon(), params))

    tx = optkit.route(
        {"muon": optkit.muon_rms(1e-3), "lion": optkit.lion(1e-4), "adamw": optax.adamw(1e-3)},
        [
            ("embed/**", "frozen"),  # first match wins
            (optkit.MATRIX_ROLES, "muon"),
            (("head", "adapter/**"), "lion"),
            ("**", "adamw"),
        ],
        roles=[("adapter/kernel", "head")],  # your own role rules come before the built-in ones
    )
    print("\nroutes of your own\n")
    print(plan := optkit.plan(tx, params))

    gradients = jax.tree.map(jnp.ones_like, params)
    updates, _ = tx.update(gradients, tx.init(params), params)
    moved = optax.apply_updates(params, updates)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), params, moved)
    print("\nunchanged:", [path for path, same in optkit.tree.leaves_with_paths(same) if same])
    assert [row.path for row in plan.rows if row.method == "frozen"] == ["embed/embedding"]


if __name__ == "__main__":
    main()

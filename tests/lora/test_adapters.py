"""How adapters are found, and what is refused with the leaf and the remedy."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import optkit
from optkit.lora import adapters, delta


def tree(**shapes):
    return {name: jnp.ones(shape) for name, shape in shapes.items()}


def test_an_nnx_model_has_its_adapters_found_by_their_own_names():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.up = nnx.LoRALinear(6, 4, lora_rank=2, rngs=rngs)
            self.blocks = nnx.List([nnx.LoRA(4, 3, 5, rngs=rngs)])

    params = nnx.state(Model(nnx.Rngs(0)))
    found = {x.a: (x.b, x.rank, x.fan_in, x.fan_out) for x in adapters(params)}
    assert found == {
        "blocks/0/lora_a": ("blocks/0/lora_b", 3, 4, 5),
        "up/lora/lora_a": ("up/lora/lora_b", 2, 6, 4),
    }


@pytest.mark.parametrize("name", ["lora_pro", "altlora", "lora_plus"])
def test_an_nnx_optimizer_trains_the_adapters_of_a_model_and_leaves_its_kernel(name):
    model = nnx.LoRALinear(6, 4, lora_rank=2, rngs=nnx.Rngs(0))
    x, kernel = jnp.ones((3, 6)), model.kernel[...]
    optimizer = nnx.Optimizer(model, getattr(optkit, name)(0.1), wrt=nnx.LoRAParam)
    loss = lambda m: jnp.mean((m(x) - 1.0) ** 2)  # noqa: E731
    before = loss(model)
    for _ in range(3):
        grads = nnx.grad(loss, argnums=nnx.DiffState(0, nnx.LoRAParam))(model)
        optimizer.update(model, grads)
    assert loss(model) < before
    np.testing.assert_array_equal(model.kernel[...], kernel)


def test_leading_axes_are_a_batch():
    (found,) = adapters({"layers": tree(lora_a=(5, 2, 6, 3), lora_b=(5, 2, 3, 4))})
    assert (found.batch, found.rank, found.fan_in, found.fan_out) == ((5, 2), 3, 6, 4)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("*_A", "*_B"),
        (r"re:^(.*)_A$", r"re:^(.*)_B$"),
        (("x_A", "y_A"), ("x_B", "y_B")),
        ("**/?_A", "**/?_B"),
    ],
)
def test_wildcards_pair_a_with_b(a, b):
    params = {"in": tree(y_B=(4, 2), x_A=(3, 8), x_B=(6, 3), y_A=(2, 9), other=(3,))}
    found = [(x.a, x.b, x.rank) for x in adapters(params, a, b, layout="peft")]
    assert found == [("in/x_A", "in/x_B", 3), ("in/y_A", "in/y_B", 2)]


REFUSED = [
    (tree(lora_a=(4, 2)), {}, r"'lora_a' is the A of .* whose B .*lora_b.* name it by b="),
    (tree(lora_b=(4, 2)), {}, r"'lora_b' is the B of .* whose A .* name it by a="),
    (tree(lora_a=(4, 2), lora_b=(3, 4)), {}, r"'lora_a' of shape \(4, 2\).*'lora_b'.*rank.*'peft'"),
    (tree(lora_a=(4, 2), lora_b=(5, 2, 4)), {}, r"one rank and batch"),
    (tree(lora_a=(4,), lora_b=(2, 4)), {}, r"'lora_a' of shape \(4,\) is no A .*rank 2"),
    (tree(kernel=(4, 2)), {}, r"name no adapter; the leaves are 'kernel'\. Give .*required=False"),
    (tree(lora_a=(4, 2), lora_b=(2, 4)), {"layout": "torch"}, r"layout='torch' is not one of"),
    (tree(x=(4, 2)), {"a": ("p", "q"), "b": "r"}, r"not as many patterns"),
    (tree(x=(4, 2)), {"a": ""}, r"a='' must be a pattern"),
    (tree(x=(4, 2)), {"a": "x", "b": "x"}, r"name one leaf twice"),
    (tree(p=(4, 2), q=(4, 2), r=(2, 4)), {"a": "re:p|q", "b": "r"}, r"'p' and 'q' are both the A"),
    (
        tree(lora_a=(4, 2), lora_b=(2, 4), lora_e=(3,)),
        {"e": "lora_e"},
        r"'lora_e' of shape \(3,\) has not the 2 singular values",
    ),
    (
        tree(lora_a=(4, 2), lora_b=(2, 4)),
        {"e": "lora_e"},
        r"'lora_a' and 'lora_b' are an adapter without singular values: e='lora_e' .* by e=",
    ),
]


@pytest.mark.parametrize(("params", "options", "message"), REFUSED)
def test_what_is_no_adapter_is_named(params, options, message):
    with pytest.raises(ValueError, match=message):
        adapters(params, **options)


def test_a_tree_may_have_none_if_that_is_said_and_an_empty_one_always():
    assert adapters(tree(kernel=(4, 2)), required=False) == []
    assert adapters({}) == adapters({"gone": None}) == []


def test_a_mask_that_hides_one_factor_is_told_so():
    params = tree(lora_a=(4, 2), lora_b=(2, 4))
    tx = optkit.freeze("lora_a", optkit.lora_pro(0.1))
    with pytest.raises(ValueError, match=r"'lora_b' is the B .* a mask or route hides it"):
        tx.init(params)


@pytest.mark.parametrize("layout", ["flax", "peft"])
def test_delta_is_what_the_model_adds(layout):
    rng = np.random.default_rng(0)
    x, a, b = (rng.standard_normal(s).astype(np.float32) for s in ((5, 6), (6, 2), (2, 4)))
    scale = {"up/**": 0.5, "**": 9.0}
    stored = (a, b) if layout == "flax" else (a.T, b.T)
    (got,) = delta(
        {"up": dict(zip(("lora_a", "lora_b"), stored, strict=True))}, scale, layout=layout
    ).values()
    np.testing.assert_allclose(x @ (got if layout == "flax" else got.T), 0.5 * x @ a @ b, rtol=1e-5)


def test_scales_that_serve_nothing_are_refused():
    params = tree(lora_a=(4, 2), lora_b=(2, 4))
    for wrong in (0.0, float("inf"), "1", {"up/**": 0.0}):
        with pytest.raises(ValueError, match="scale"):
            optkit.lora_pro(0.1, scale=wrong)
    with pytest.raises(ValueError, match=r"no pattern for the adapter 'x/lora_a'"):
        delta({"x": params, "up": params}, {"up/**": 1.0})


@pytest.mark.parametrize("name", ["lora_pro", "altlora", "scale_by_lora_pro"])
def test_a_misspelt_pattern_of_a_scale_is_told_at_init(name):
    factor = tree(lora_a=(4, 2), lora_b=(2, 4))
    params = {"down": factor, "up": factor}
    build = getattr(optkit, name)
    with pytest.raises(ValueError, match=r"'dwn/\*' names no adapter; did you mean 'down'\? The A"):
        build(scale={"dwn/*": 2.0, "**": 1.0}).init(params)
    with pytest.raises(ValueError, match=r"no pattern for the adapter 'up/lora_a'"):
        build(scale={"down/*": 2.0}).init(params)
    # One mapping serves two transformations of which each sees its own adapters.
    each = build(scale={"down/*": 2.0, "up/*": 1.0})
    optkit.route({"one": each, "two": each}, [("down", "one"), ("**", "two")]).init(params)


RECIPES = ["lora_pro", "altlora", "altlora_plus", "lora_plus", "loqt"]


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_refuse_a_mask_that_names_nothing_and_the_wrong_layout_alike(name):
    params = tree(lora_a=(4, 2), lora_b=(2, 6))
    for weight_decay in (0.0, 0.1):
        tx = getattr(optkit, name)(weight_decay=weight_decay, mask="lora_c")
        with pytest.raises(ValueError, match="mask='lora_c' names no leaf; did you mean 'lora_"):
            tx.init(params)
    with pytest.raises(ValueError, match="layout='flax' reads them the other way round"):
        getattr(optkit, name)(layout="peft").init(params)


def test_other_leaves_rest_train_or_are_given():
    params = {"up": tree(lora_a=(4, 2), lora_b=(2, 4), kernel=(4, 4)), "bias": jnp.ones(4)}
    for other, moved in (("frozen", 0.0), ("adamw", -0.1), (optkit.signsgd(0.3), -0.3)):
        tx = optkit.lora_pro(0.1, other=other)
        updates, _ = tx.update(params, tx.init(params), params)
        np.testing.assert_allclose(updates["bias"], moved, rtol=1e-5)
        np.testing.assert_allclose(updates["up"]["kernel"], moved, rtol=1e-5)
        assert np.any(updates["up"]["lora_b"])
    with pytest.raises(ValueError, match="other='froze' is not one of 'frozen', 'adamw'; did you"):
        optkit.lora_pro(0.1, other="froze")

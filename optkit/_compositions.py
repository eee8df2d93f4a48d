"""Methods that are no factory of their own: what they are composed of, or where they are."""

_MEAN = "optkit.server_step(optkit.aggregate.mean(), {})"
_SUM = (
    'optkit.aggregate.fedbuff(1, reduce="sum", '
    "staleness_weight=optkit.federated.constant_staleness())"
)
_TIMED = f"{_SUM} with the weights of optkit.async_weights(times, samples, {{}})"

# By name: what to write.
COMPOSITIONS = {
    "dc_asgd": "optkit.federated.dc_asgd, or optkit.federated.adaptive_dc_asgd, on each arrival",
    "dp_sgd": "optkit.privacy.private_gradient in place of jax.grad, before any optimizer",
    "evo_merge": "optkit.evolution.evo_merge(loss, adapters), a search over merges",
    "fedadagrad": _MEAN.format('optkit.fedopt(0.1, rule="adagrad")'),
    "fedadam": _MEAN.format('optkit.fedopt(0.1, rule="adam")'),
    "fedasync": _TIMED.format('"async"'),
    "fedavg": _MEAN.format("optax.sgd(1.0)"),
    "fedavgm": _MEAN.format("optax.sgd(1.0, momentum=0.9)"),
    "fedfix": _TIMED.format('"fedfix", interval=0.5'),
    "fedlex": "optkit.scale_by_tree(optkit.fold_guidance(scouts, base)), before a client's Adam",
    "fedyogi": _MEAN.format('optkit.fedopt(0.1, rule="yogi")'),
}

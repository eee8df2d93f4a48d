"""MAX-SAT: random clauses of which as many as possible are to hold; a sign is all that counts."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from optkit.tasks import base

_LITERALS = 3


@dataclass(frozen=True)
class Instance:
    """A formula: clauses of three literals of different variables.

    Attributes:
      variables: int32 (clauses, 3).
      signs: bool (clauses, 3); the literal holds if its variable is of this sign.
      members: int32 (variables, most), the clauses that a variable is in, then the number of
        clauses for places that are empty.
    """

    variables: np.ndarray
    signs: np.ndarray
    members: np.ndarray

    def unsatisfied(self, values: jax.Array) -> jax.Array:
        """Returns how many clauses do not hold, int32; positive values are true."""
        held = (values > 0)[self.variables] == self.signs
        return jnp.sum(~jnp.any(held, axis=-1), dtype=jnp.int32)

    def changed(self, values: jax.Array, index: jax.Array, new: jax.Array) -> jax.Array:
        """Returns how many more clauses do not hold once some variables have new values.

        Only the clauses of these variables are looked at, so that a probe that moves two of a
        hundred thousand variables costs no more than one that moves two of ten.

        Args:
          values: ``(variables,)`` as they are.
          index: ``(k,)`` different variables, those beyond the last ignored.
          new: ``(k,)`` their new values.
        """
        count, clauses = values.shape[0], self.variables.shape[0]
        true = values > 0
        found = jnp.asarray(self.members)[jnp.minimum(index, count - 1)]  # (k, most)
        known = (index < count)[:, None] & (found < clauses)
        at = jnp.minimum(found, clauses - 1)
        variables, signs = jnp.asarray(self.variables)[at], jnp.asarray(self.signs)[at]
        same = variables[..., None] == index[None, None, None]  # (k, most, 3, k)
        # A clause of several of the variables counts once: for the first of them.
        own = jnp.arange(index.shape[0])
        first = ~jnp.any(same.any(2) & (own[None] < own[:, None])[:, None], axis=-1)
        before = true[variables]
        after = jnp.where(same.any(-1), (same & (new > 0)[None, None, None]).any(-1), before)
        lost = [~jnp.any(now == signs, axis=-1) for now in (before, after)]
        return jnp.sum(jnp.where(known & first, lost[1].astype(jnp.int32) - lost[0], 0))


def instance(variables: int, ratio: float, seed: int) -> Instance:
    """Draws a formula: ``int(ratio*variables)`` clauses, variables and signs uniform."""
    random = np.random.default_rng(seed)
    clauses = int(ratio * variables)
    chosen = random.integers(variables, size=(clauses, _LITERALS))
    while True:
        ordered = np.sort(chosen, axis=1)
        double = (ordered[:, 1:] == ordered[:, :-1]).any(1)
        if not double.any():
            break
        chosen[double] = random.integers(variables, size=(int(double.sum()), _LITERALS))
    signs = random.random((clauses, _LITERALS)) < 0.5
    owner = np.repeat(np.arange(clauses), _LITERALS)
    order = np.argsort(chosen.reshape(-1), kind="stable")
    counts = np.bincount(chosen.reshape(-1), minlength=variables)
    place = np.arange(order.size) - np.repeat(np.cumsum(counts) - counts, counts)
    members = np.full((variables, max(1, counts.max())), clauses, np.int32)
    members[chosen.reshape(-1)[order], place] = owner[order]
    return Instance(chosen.astype(np.int32), signs, members)


def build(*, variables: int = 1000, ratio: float = 4.27, instance_seed: int = 0) -> base.Task:
    """Builds "maxsat": make as many clauses of a random 3-SAT formula hold as possible.

    The loss is the share of clauses that do not hold, a function of the signs of the parameters;
    there is nothing to hold out.

    Args:
      variables: of the formula, and parameters.
      ratio: clauses per variable; at 4.27 random formulas cease to be satisfiable.
      instance_seed: decides the formula.
    """
    base.check_positive("maxsat", variables=variables, ratio=ratio)
    if variables < _LITERALS or int(ratio * variables) < 1 or instance_seed < 0:
        raise base.TaskOptionError(
            f"task 'maxsat': variables={variables} must be at least {_LITERALS}, "
            f"ratio={ratio} times it at least 1, and instance_seed={instance_seed} 0 or above"
        )
    formula = instance(variables, ratio, instance_seed)
    clauses = len(formula.variables)

    def init(key: jax.Array) -> base.Params:
        return {"values": 0.1 * jax.random.normal(key, (variables,), jnp.float32)}

    def loss(params: base.Params, batch: base.Batch) -> tuple[jax.Array, base.Metrics]:
        del batch
        share = formula.unsatisfied(params["values"]).astype(jnp.float32) / clauses
        return share, {"unsatisfied": share}

    whole = jax.jit(loss)

    def sample(seed: int, step: int) -> base.Batch:
        base.generator(seed, step)  # refuses what is below 0
        return {"step": np.asarray([seed, step])}

    def evaluate(params: base.Params) -> dict[str, float]:
        share = float(whole(params, {})[0])
        return {"loss": share, "unsatisfied": share}

    return base.Task(
        name="maxsat",
        description=f"random 3-SAT of {variables} variables and {clauses} clauses",
        metric="unsatisfied",
        init=jax.jit(init),
        loss=loss,
        batch=sample,
        evaluate=evaluate,
        default_steps=100,
        parameters=variables,
    )

"""Who reports when if each client needs its own time, and what each report has to count."""

import dataclasses
from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np

from optkit.aggregate.participation import per_client
from optkit.transforms.hyperparams import check_choice, check_number, check_static_int

Scheme: TypeAlias = Literal["sync", "async", "fedfix", "fedbuff"]
_SCHEMES = ("sync", "async", "fedfix", "fedbuff")


@dataclasses.dataclass(frozen=True, eq=False)
class AsyncSchedule:
    """Who reports at which step of the server, on the host.

    Attributes:
      at: float64 (T,), when each step is made, in the unit of the clients' times.
      version: int64 (T, N), the step before which the parameters were sent that client i started
        from, 0 for the first ones; -1 where it does not report.
    """

    at: np.ndarray
    version: np.ndarray

    @property
    def present(self) -> np.ndarray:
        """Bool (T, N)."""
        return self.version >= 0

    @property
    def staleness(self) -> np.ndarray:
        """int64 (T, N), steps made in between; 0 for absent clients."""
        steps = np.arange(len(self.version))[:, None]
        return np.where(self.present, steps - self.version, 0)


def _check_scheme(scheme: str, interval: float | None, count: int | None, clients: int) -> None:
    check_choice("scheme", scheme, _SCHEMES)
    if scheme == "fedfix" and (interval is None or not interval > 0):
        raise ValueError(f"scheme='fedfix' steps every interval={interval!r}: give a positive time")
    if scheme == "fedbuff":
        if count is None:
            raise ValueError("scheme='fedbuff' steps at every count-th report: give count=")
        check_static_int("count", count)
        if count > clients:
            raise ValueError(f"count={count!r} is more than the {clients} clients that report")


def _first(returns: np.ndarray, count: int) -> np.ndarray:
    """Who comes next; of equal ones the code takes those that its partition finds."""
    return np.argpartition(returns, count)[:count] if count < returns.size else np.arange(count)


def async_schedule(
    times: Sequence[float] | np.ndarray,
    duration: float,
    scheme: Scheme,
    *,
    interval: float | None = None,
    count: int | None = None,
) -> AsyncSchedule:
    """Returns who reports when, if each client needs its own time; on the host.

    All start at 0 from the first parameters. Who reports gets the new ones and starts again:

    * "sync": a step when all are ready;
    * "async": a step at every report;
    * "fedfix": a step every ``interval``, of those that are ready by then;
    * "fedbuff": a step at every ``count``-th report; those that were ready earlier wait for it.

    Args:
      times: (N,), how long each client works.
      duration: steps up to this time.
      scheme: see above.
      interval: for "fedfix".
      count: for "fedbuff", at most N.

    Returns:
      An ``AsyncSchedule``; its rows ``present`` and ``staleness`` are what ``Server.step`` takes.

    Raises:
      ValueError: a number out of range, or missing for the scheme.

    Example:
      >>> import optkit
      >>> plan = optkit.async_schedule([1.0, 0.4], 2.0, "fedfix", interval=0.5)
      >>> plan.version.tolist()
      [[-1, 0], [0, 1], [-1, 2], [2, 3]]
      >>> plan.staleness.tolist()
      [[0, 0], [1, 0], [0, 0], [1, 0]]

    Reference:
      Fraboni et al., arXiv 2206.10189, and the code of its authors.
    """
    needed = per_client("times", times)
    clients = needed.size
    _check_scheme(scheme, interval, count, clients)
    check_number("duration", duration, low=0.0)
    if scheme == "sync":
        steps = int(duration / needed.max())
        version = np.repeat(np.arange(steps)[:, None], clients, axis=1)
        return AsyncSchedule(needed.max() * np.arange(1, steps + 1), version)
    returns, sent = needed.copy(), np.zeros(clients, np.int64)
    at: list[float] = []
    rows: list[np.ndarray] = []

    def report(who: np.ndarray, now: float) -> None:
        row = np.full(clients, -1, np.int64)
        row[who] = sent[who]
        rows.append(row)
        at.append(now)
        returns[who] = now + needed[who]
        sent[who] = len(rows)

    if scheme == "fedfix" and interval is not None:
        for step in range(1, int(duration / interval) + 1):
            report(np.flatnonzero(returns <= step * interval), step * interval)
    else:
        while returns.min() <= duration:
            who = np.argmin(returns, keepdims=True) if count is None else _first(returns, count)
            report(who, float(returns[who].max()))
    return AsyncSchedule(np.array(at), np.array(rows, np.int64).reshape(-1, clients))


def async_weights(
    times: Sequence[float] | np.ndarray,
    shares: Sequence[float] | np.ndarray,
    scheme: Scheme,
    *,
    interval: float | None = None,
    count: int | None = None,
    duration: float | None = None,
    identical: bool = False,
) -> np.ndarray:
    """Returns what each client's reports have to count, so that all count as their shares.

    Who is fast reports more often, and counts less each time; ``a_i`` is the share of client i in
    all data, ``t_i`` its time:

    * "sync": ``d_i = a_i``;
    * "async": ``d_i = sum_j(1/t_j)*t_i*a_i``, or 1 where identical;
    * "fedfix": ``d_i = ceil(t_i/interval)*a_i``;
    * "fedbuff": ``d_i = a_i`` over the fraction of steps that client i is in, or ``1/count`` where
      identical.

    They are weights of a sum, not of a mean: ``optkit.aggregate.fedbuff(1, reduce="sum",
    staleness_weight=optkit.federated.constant_staleness())``.

    Args:
      times: (N,), how long each client works.
      shares: (N,) of any positive scale, such as numbers of examples.
      scheme: see ``async_schedule``.
      interval: for "fedfix".
      count: for "fedbuff".
      duration: for "fedbuff", the time over which fractions are counted.
      identical: do not correct; for "async" and "fedbuff".

    Returns:
      float64 (N,).

    Raises:
      ValueError: a number out of range or missing, or a client that reports in no step.

    Example:
      >>> import optkit
      >>> optkit.async_weights([1.0, 0.4], [1, 1], "fedfix", interval=0.5).tolist()
      [1.0, 0.5]

    Reference:
      Fraboni et al., arXiv 2206.10189, and the code of its authors.
    """
    needed, given = per_client("times", times), per_client("shares", shares)
    if needed.shape != given.shape:
        raise ValueError(f"times has {needed.size} clients and shares has {given.size}")
    _check_scheme(scheme, interval, count, needed.size)
    share = given / given.sum()
    if identical and scheme not in ("async", "fedbuff"):
        raise ValueError(f"identical=True is for 'async' and 'fedbuff', not scheme={scheme!r}")
    if scheme == "async":
        return np.ones_like(share) if identical else np.sum(1 / needed) * needed * share
    if scheme == "fedfix" and interval is not None:
        return np.asarray(np.ceil(needed / interval) * share)
    if scheme == "fedbuff" and count is not None:
        if identical:
            return np.full_like(share, 1.0 / count)
        if duration is None:
            raise ValueError("scheme='fedbuff' counts in which steps clients are: give duration=")
        plan = async_schedule(needed, duration, scheme, count=count)
        fraction = plan.present.mean(axis=0) if len(plan.at) else np.zeros_like(share)
        if (fraction == 0).any():
            raise ValueError(
                f"client {int(fraction.argmin())} reports in no step up to duration={duration!r}: "
                "give a longer one"
            )
        return np.asarray(share / fraction)
    return share

"""The options of a subspace, checked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from optkit.codecs import Codec
from optkit.transforms.base import Transformation, prng_key
from optkit.transforms.hyperparams import check_choice, check_static_int
from optkit.transforms.low_rank.lazy import LazyRefresh
from optkit.transforms.low_rank.projection import (
    FROM_GRADIENT,
    KINDS,
    SIDES,
    BasisKind,
    Draw,
    Rank,
    Side,
    check_rank,
)
from optkit.transforms.low_rank.stored import row_codec
from optkit.tree import Dims, RuleLike


@dataclass(frozen=True)
class Subspace:
    """What a user asked for, checked; the same for all leaves.

    Attributes are options of ``low_rank`` but for ``kind``, its ``basis``; ``least``, the smallest
    rank that a share may come to; and ``name``, what the caller calls the rank.
    """

    rank: Rank
    kind: BasisKind
    side: Side = "std"
    refresh_every: int | jax.Array = 200
    stagger: bool = False
    key: int | jax.Array | None = None
    draw: Draw | None = None
    dims: Dims = None
    roles: Sequence[RuleLike] = ()
    stored_as: Any = None
    precision: Any = "highest"
    group_bytes: int | None = None
    lazy: LazyRefresh | None = None
    basis_optimizer: Transformation | None = None
    least: int = 1
    name: str = "rank"

    def __post_init__(self) -> None:
        """Refuses options out of range, and those that contradict each other."""
        check_choice("basis", self.kind, KINDS)
        check_choice("side", self.side, SIDES)
        check_rank(self.rank, self.kind, self.side, self.name)
        if not isinstance(self.refresh_every, jax.Array):  # an injected one may change
            check_static_int("refresh_every", self.refresh_every)
        if isinstance(self.stored_as, Codec) and (not self.from_gradient or self.online):
            raise ValueError(
                f"stored_as={self.stored_as.name!r}: there are codes of bases that are computed "
                "from a gradient and kept, such as basis='svd', not of "
                + ("drawn ones" if self.draw is not None else f"basis={self.kind!r}")
            )
        row_codec(self.stored_as)  # to refuse one that does not fit
        first = self.draw is None and self.kind in ("svd", "randomized_svd")
        if self.lazy is not None and not isinstance(self.lazy, LazyRefresh):
            raise TypeError(f"lazy={self.lazy!r} must be an optkit.LazyRefresh, or None")
        if self.lazy is not None and not first:
            raise ValueError(
                "lazy needs first singular vectors: basis='svd' or 'randomized_svd', not "
                + ("drawn bases" if self.draw is not None else f"basis={self.kind!r}")
            )
        if self.online and self.stagger:
            raise ValueError("basis='online' moves at every step; leave out stagger")
        if self.basis_optimizer is not None and not self.online:
            raise ValueError(
                f"basis_optimizer moves basis='online'; basis={self.kind!r} has no use for it"
            )

    @property
    def online(self) -> bool:
        """Whether bases move at every step, by an optimizer of their own."""
        return self.draw is None and self.kind == "online"

    @property
    def random(self) -> jax.Array:
        """The PRNG key."""
        return prng_key(self.key)

    @property
    def codec(self) -> Codec | None:
        """What stores bases, if they are not kept as floats."""
        return row_codec(self.stored_as)

    @property
    def from_gradient(self) -> bool:
        """Whether a basis is computed from the gradient, and so has to be kept."""
        return self.draw is None and self.kind in FROM_GRADIENT

    @property
    def stored(self) -> bool:
        """Whether bases lie in the state: others are drawn anew, from the same key, every step.

        Random entries are too many to be sorted at every step.
        """
        return self.from_gradient or (self.draw is None and self.kind == "randk")

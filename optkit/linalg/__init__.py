"""Functions on arrays (..., m, n): Newton-Schulz and its coefficients, Gram form, exact polar."""

from optkit.linalg.balance import Order, balance, line_norms, to_rms
from optkit.linalg.bases import (
    RandomKind,
    canonical_sign,
    leading_basis,
    random_basis,
    randomized_basis,
    subspace_gradient,
    tracked_basis,
    unit_vectors,
)
from optkit.linalg.coefficients import (
    COEFFICIENTS,
    Coefficients,
    CoefficientSet,
    Row,
    as_coefficient_set,
    get_coefficients,
    polar_express_coefficients,
)
from optkit.linalg.decayed import decayed_mask
from optkit.linalg.eigenbasis import eigenbasis, refreshed_eigenbasis
from optkit.linalg.factor import Method, factor_flops, orthogonal_factor
from optkit.linalg.gram import gram_factor_flops, gram_newton_schulz
from optkit.linalg.kronecker import apply_along, tensor_gram
from optkit.linalg.largest import largest_in, largest_of, largest_of_each
from optkit.linalg.newton_schulz import newton_schulz
from optkit.linalg.normalise import EpsMode, Precondition
from optkit.linalg.norms import frobenius_norm
from optkit.linalg.polar import polar
from optkit.linalg.randomized import (
    Side,
    SketchKind,
    draw_sketch,
    randomized_factor,
    sketch_size,
)
from optkit.linalg.rank_one import RankOneMode, rank_one_inverse
from optkit.linalg.resets import default_resets, reset_growth, tune_resets
from optkit.linalg.roots import (
    InverseRoot,
    RootMethod,
    inverse_root,
    largest_eigenvalue,
)
from optkit.linalg.rounded import newton_schulz_rounded
from optkit.linalg.sparsity import nm_mask
from optkit.linalg.split import can_split, split_factor
from optkit.linalg.subspace import QrMethod, orthonormalize, power_iteration
from optkit.linalg.symmetric import symmetric_product
from optkit.linalg.whitening import (
    fit_whitening,
    kron_apply,
    kron_solve_transposed,
    norm_lower_bound,
)

__all__ = [
    "COEFFICIENTS",
    "CoefficientSet",
    "Coefficients",
    "EpsMode",
    "InverseRoot",
    "Method",
    "Order",
    "Precondition",
    "QrMethod",
    "RandomKind",
    "RankOneMode",
    "RootMethod",
    "Row",
    "Side",
    "SketchKind",
    "apply_along",
    "as_coefficient_set",
    "balance",
    "can_split",
    "canonical_sign",
    "decayed_mask",
    "default_resets",
    "draw_sketch",
    "eigenbasis",
    "factor_flops",
    "fit_whitening",
    "frobenius_norm",
    "get_coefficients",
    "gram_factor_flops",
    "gram_newton_schulz",
    "inverse_root",
    "kron_apply",
    "kron_solve_transposed",
    "largest_eigenvalue",
    "largest_in",
    "largest_of",
    "largest_of_each",
    "leading_basis",
    "line_norms",
    "newton_schulz",
    "newton_schulz_rounded",
    "nm_mask",
    "norm_lower_bound",
    "orthogonal_factor",
    "orthonormalize",
    "polar",
    "polar_express_coefficients",
    "power_iteration",
    "random_basis",
    "randomized_basis",
    "randomized_factor",
    "rank_one_inverse",
    "refreshed_eigenbasis",
    "reset_growth",
    "sketch_size",
    "split_factor",
    "subspace_gradient",
    "symmetric_product",
    "tensor_gram",
    "to_rms",
    "tracked_basis",
    "tune_resets",
    "unit_vectors",
]

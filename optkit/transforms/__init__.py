"""The parts: directions, accumulators and wrappers; each an Optax transformation."""

from optkit.transforms.accumulate import AccumulateState, accumulate_gradients
from optkit.transforms.adam import ScaleByAdamState, ScaleByAmsgradState, scale_by_adam
from optkit.transforms.adaptive_memory import AdaptiveMemoryState, adaptive_memory
from optkit.transforms.alignment_brake import AlignmentBrakeState, alignment_brake
from optkit.transforms.averages import (
    LatestSwaState,
    SwaState,
    WeightEmaState,
    averaged_params,
    swa,
    weight_ema,
)
from optkit.transforms.balls import NormBall
from optkit.transforms.base import Transformation
from optkit.transforms.blocks import (
    RotateBlocksState,
    rotate_blocks,
)
from optkit.transforms.came import (
    ScaleByConfidenceState,
    scale_by_came,
)
from optkit.transforms.cautious import cautious, sign_from_grad
from optkit.transforms.clip import clip_by_global_norm
from optkit.transforms.clip_leaf import clip_leaf_norm
from optkit.transforms.conducive import conducive_gradient
from optkit.transforms.cosh_rms import scale_by_cosh_rms
from optkit.transforms.cuts import partial_value_and_grad
from optkit.transforms.delay import DelayGradientsState, delay_gradients
from optkit.transforms.dion import ScaleByDionState, scale_by_dion
from optkit.transforms.drop_layers import DropLayersState, drop_layers, next_cut
from optkit.transforms.eco import EcoState, eco
from optkit.transforms.elastic import (
    ElasticPriorState,
    OnlineElasticPriorState,
    elastic_prior,
    online_elastic_prior,
)
from optkit.transforms.entry_moment import ScaleByEntryMomentState, scale_by_entry_moment
from optkit.transforms.error_feedback import (
    Ef21State,
    ErrorFeedbackState,
    ef21,
    error_feedback,
)
from optkit.transforms.ess import ScaleByEssState, effective_share, opob_baseline, scale_by_ess
from optkit.transforms.factored import (
    ScaleByFactoredRmsState,
    scale_by_factored_rms,
)
from optkit.transforms.graft import GraftState, graft
from optkit.transforms.grid import QuantizeParamsState, quantize_params, stored_params
from optkit.transforms.guards import (
    SkipNonfiniteState,
    SkipSpikesState,
    global_norm,
    skip_nonfinite,
    skip_spikes,
)
from optkit.transforms.hyperparams import ScaleByLearningRateState, get_hyperparam, hyperparams
from optkit.transforms.kahan import KahanState, kahan
from optkit.transforms.kappa import scale_by_kappa
from optkit.transforms.langevin import LangevinNoiseState, langevin_noise
from optkit.transforms.lmo import lmo
from optkit.transforms.low_rank import (
    LazyRefresh,
    LazyRefreshState,
    LimitNormGrowthState,
    LowRankState,
    ScaleByLdadamState,
    limit_norm_growth,
    low_rank,
    scale_by_ldadam,
    scale_by_subspace_norm,
    split,
)
from optkit.transforms.masked_decay import MaskedDecayState, add_masked_decay
from optkit.transforms.mkor import (
    MkorHState,
    MkorState,
    mkor,
    mkor_h,
)
from optkit.transforms.momentum import MomentumState, blend_momentum, momentum
from optkit.transforms.natural_fisher import (
    ScaleByNaturalFisherState,
    scale_by_natural_fisher,
)
from optkit.transforms.norm_ratio import ScaleByNormRatioState, scale_by_norm_ratio
from optkit.transforms.normal_plane import normal_plane, project_away
from optkit.transforms.oasis import ScaleByOasisState, scale_by_oasis
from optkit.transforms.orthogonalize import orthogonalize
from optkit.transforms.precision import (
    MasterWeightsState,
    StochasticRoundState,
    in_float32,
    master_weights,
    round_stochastically,
    stochastic_round,
)
from optkit.transforms.project_radial import ProjectRadialState, project_radial
from optkit.transforms.project_to_norm import ProjectToNormState, project_to_norm
from optkit.transforms.psgd_kron import ScaleByPsgdKronState, scale_by_psgd_kron
from optkit.transforms.psgd_step import psgd_update_probability
from optkit.transforms.quantize import QuantizeState, quantize_state
from optkit.transforms.rms import ScaleByRmsState, scale_by_rms
from optkit.transforms.rotated_basis import RotatedBasisState, in_rotated_basis
from optkit.transforms.route import FROZEN, RouteState, route
from optkit.transforms.row_col import scale_by_row_col
from optkit.transforms.row_moment import ScaleByRowMomentState, scale_by_row_moment
from optkit.transforms.schedule_free import (
    ScheduleFreeState,
    schedule_free,
    schedule_free_eval_params,
    schedule_free_train_params,
)
from optkit.transforms.shampoo import ScaleByShampooState, scale_by_shampoo
from optkit.transforms.shampoo_google import (
    ScaleByShampooGoogleState,
    scale_by_shampoo_google,
)
from optkit.transforms.shape_scale import scale_by_shape
from optkit.transforms.sine_modulation import SineModulationState, sine_modulation
from optkit.transforms.sketching import OrthogonalizeState
from optkit.transforms.sm3 import (
    ScaleBySm3State,
    scale_by_sm3,
)
from optkit.transforms.sophia import ScaleBySophiaState, scale_by_sophia
from optkit.transforms.sphere import SphereProjectState, sphere_project
from optkit.transforms.split import freeze, split_matrices
from optkit.transforms.step import DecayState, decay_weights, descend, scale_by_learning_rate
from optkit.transforms.submatrix import SelectSubmatrixState, select_submatrix
from optkit.transforms.threshold_gate import (
    ScaleByGradientSumState,
    ThresholdGateState,
    scale_by_gradient_sum,
    threshold_gate,
)
from optkit.transforms.utility_gate import UtilityGateState, utility_gate
from optkit.transforms.variance_reduce import VarianceReduceState, variance_reduce

__all__ = [
    "FROZEN",
    "AccumulateState",
    "AdaptiveMemoryState",
    "AlignmentBrakeState",
    "DecayState",
    "DelayGradientsState",
    "DropLayersState",
    "EcoState",
    "Ef21State",
    "ElasticPriorState",
    "ErrorFeedbackState",
    "GraftState",
    "KahanState",
    "LangevinNoiseState",
    "LatestSwaState",
    "LazyRefresh",
    "LazyRefreshState",
    "LimitNormGrowthState",
    "LowRankState",
    "MaskedDecayState",
    "MasterWeightsState",
    "MkorHState",
    "MkorState",
    "MomentumState",
    "NormBall",
    "OnlineElasticPriorState",
    "OrthogonalizeState",
    "ProjectRadialState",
    "ProjectToNormState",
    "QuantizeParamsState",
    "QuantizeState",
    "RotateBlocksState",
    "RotatedBasisState",
    "RouteState",
    "ScaleByAdamState",
    "ScaleByAmsgradState",
    "ScaleByConfidenceState",
    "ScaleByDionState",
    "ScaleByEntryMomentState",
    "ScaleByEssState",
    "ScaleByFactoredRmsState",
    "ScaleByGradientSumState",
    "ScaleByLdadamState",
    "ScaleByLearningRateState",
    "ScaleByNaturalFisherState",
    "ScaleByNormRatioState",
    "ScaleByOasisState",
    "ScaleByPsgdKronState",
    "ScaleByRmsState",
    "ScaleByRowMomentState",
    "ScaleByShampooGoogleState",
    "ScaleByShampooState",
    "ScaleBySm3State",
    "ScaleBySophiaState",
    "ScheduleFreeState",
    "SelectSubmatrixState",
    "SineModulationState",
    "SkipNonfiniteState",
    "SkipSpikesState",
    "SphereProjectState",
    "StochasticRoundState",
    "SwaState",
    "ThresholdGateState",
    "Transformation",
    "UtilityGateState",
    "VarianceReduceState",
    "WeightEmaState",
    "accumulate_gradients",
    "adaptive_memory",
    "add_masked_decay",
    "alignment_brake",
    "averaged_params",
    "blend_momentum",
    "cautious",
    "clip_by_global_norm",
    "clip_leaf_norm",
    "conducive_gradient",
    "decay_weights",
    "delay_gradients",
    "descend",
    "drop_layers",
    "eco",
    "ef21",
    "effective_share",
    "elastic_prior",
    "error_feedback",
    "freeze",
    "get_hyperparam",
    "global_norm",
    "graft",
    "hyperparams",
    "in_float32",
    "in_rotated_basis",
    "kahan",
    "langevin_noise",
    "limit_norm_growth",
    "lmo",
    "low_rank",
    "master_weights",
    "mkor",
    "mkor_h",
    "momentum",
    "next_cut",
    "normal_plane",
    "online_elastic_prior",
    "opob_baseline",
    "orthogonalize",
    "partial_value_and_grad",
    "project_away",
    "project_radial",
    "project_to_norm",
    "psgd_update_probability",
    "quantize_params",
    "quantize_state",
    "rotate_blocks",
    "round_stochastically",
    "route",
    "scale_by_adam",
    "scale_by_came",
    "scale_by_cosh_rms",
    "scale_by_dion",
    "scale_by_entry_moment",
    "scale_by_ess",
    "scale_by_factored_rms",
    "scale_by_gradient_sum",
    "scale_by_kappa",
    "scale_by_ldadam",
    "scale_by_learning_rate",
    "scale_by_natural_fisher",
    "scale_by_norm_ratio",
    "scale_by_oasis",
    "scale_by_psgd_kron",
    "scale_by_rms",
    "scale_by_row_col",
    "scale_by_row_moment",
    "scale_by_shampoo",
    "scale_by_shampoo_google",
    "scale_by_shape",
    "scale_by_sm3",
    "scale_by_sophia",
    "scale_by_subspace_norm",
    "schedule_free",
    "schedule_free_eval_params",
    "schedule_free_train_params",
    "select_submatrix",
    "sign_from_grad",
    "sine_modulation",
    "skip_nonfinite",
    "skip_spikes",
    "sphere_project",
    "split",
    "split_matrices",
    "stochastic_round",
    "stored_params",
    "swa",
    "threshold_gate",
    "utility_gate",
    "variance_reduce",
    "weight_ema",
]

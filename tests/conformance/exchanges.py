"""What one step of the leaves of test_sharding.py exchanges between eight devices, as measured.

Those are two matrices cut by rows and one by columns, one shape group where a method does not tell
rows from columns; a stack; vectors. All-reduces of single numbers are not counted. A method that is
missing exchanges nothing; the second matrix shows that exchanges are of shapes, and not of leaves.
"""


def _of(names: str, **counts: int) -> dict[str, dict[str, int]]:
    """Gives several methods the same counts, written all_to_all for all-to-all."""
    return {name: {k.replace("_", "-"): n for k, n in counts.items()} for name in names.split()}


STEP = {
    # Whole matrices move to single devices, and back.
    **_of("cautious_muon lmo muon muon_dion muon_rms orthogonalize scion", all_to_all=2),
    # Rows and columns apart.
    **_of("drop_muon muon_randomized reg scale_by_row_col", all_to_all=4),
    # And the moments of rows, or which rows were chosen, a number or two each.
    **_of("normuon normuon_dion dion3", all_to_all=4, all_gather=2),
    **_of("dion2 select_submatrix", all_to_all=2, all_gather=1),
    # What it takes out of the buffer comes back, too; Q is gathered.
    **_of("dion scale_by_dion", all_to_all=3, all_gather=1),
    # Norms of matrices that lie on several devices: a maximum and a sum.
    **_of("adago adamuon mars_m mars_shampoo namo scale_by_norm_ratio", all_to_all=2, all_reduce=2),
    **_of("namo_d", all_to_all=2, all_reduce=2, all_gather=1),
    **_of("alignment_brake project_to_norm scale_by_entry_moment", all_reduce=2),
    # And one sum more: the mean of the cosh, the norm after the step.
    **_of("auon scale_by_cosh_rms sphere_project", all_reduce=3),
    **_of("hybrid_auon hyperp", all_to_all=2, all_reduce=3),
    # Sums of channels whose inputs are split over devices, and of the others.
    **_of("adamp project_radial sgdp", all_reduce=2),
    **_of("scale_by_row_moment", all_gather=1, all_reduce=1),
    # A refresh moves whole gradients to single devices, and bases back.
    **_of("fira galore_adamw low_rank q_galore", all_to_all=2, all_gather=2),
    **_of("galore_adafactor", all_to_all=2, all_gather=5),
    # A product of histories, and what is made of it.
    **_of("natural_galore", all_to_all=2, all_gather=2, all_reduce=1),
    **_of("scale_by_natural_fisher", all_gather=1, all_reduce=1),
    # Gradients and inverses move to single devices, gradients back; a refresh leaves inverses where
    # their rows are, and sends products with a vector.
    **_of("mkor mkor_h", all_to_all=6, all_gather=3, all_reduce=2),
    # Direction and what the error loses come back; the moments lie on all devices.
    **_of("ldadam scale_by_ldadam", all_to_all=3, all_gather=3),
    # Made for gradients that are whole on each worker: its products are grouped one by one, since
    # averages over workers stand between them.
    **_of("powersgd_mean", all_to_all=6, all_gather=6),
    # Leaves flattened on each device.
    **_of("compressed_mean onebit_adam onebit_mean", all_gather=8, collective_permute=2),
    # And of all leaves as one array, cut up again.
    **_of("onebit_lamb", all_gather=5, collective_permute=17),
    # Projections of sides that lie on several devices.
    **_of("frugal split", all_reduce=1),
    # Sums over rows or columns that lie on several devices, and statistics that lie on all.
    **_of("scale_by_factored_rms", all_gather=3, all_reduce=1),
    **_of("adafactor", all_gather=3, all_reduce=3),
    **_of("came scale_by_came", all_gather=6, all_reduce=4),
    **_of("scale_by_sm3 sm3", all_gather=3, all_reduce=1),
    # Groups of neighbouring inputs that are cut over devices, 3 a leaf; whole ones stay.
    **_of("add_masked_decay cast_adams", all_gather=6),
    # Whole matrices for the next choice, and active entries of each leaf on every device.
    **_of("lift", all_to_all=1, all_gather=6),
    # Whole adapters to single devices and back; the moments of what they adapt lie on all.
    **_of("lora_pro scale_by_lora_pro", all_to_all=4, all_gather=4),
    # Two Gram matrices of split factors and the largest entries of both.
    **_of("altlora altlora_plus", all_reduce=3),
    # Means over rows and columns of adapters that are split.
    **_of("adalora", all_reduce=1),
    # Norms of gradients, updates and weights, and products with a vector.
    **_of("diagnose", all_reduce=5),
    # Matrices, probes and factors where these are fitted; matrices and factors for the update.
    **_of("psgd_kron scale_by_psgd_kron", all_to_all=13, all_gather=4),
    # Gradients, directions, statistics and bases; what a refresh turns or orders, for each side.
    **_of("soap", all_to_all=35, all_gather=11),
    # And parameters, since what it is put around decays them.
    **_of("in_rotated_basis", all_to_all=41, all_gather=11),
    # Gradients, directions, factors and roots; a maximum and a sum for the norms of all layers;
    # layers whose roots have a turn each, on all devices.
    **_of("shampoo", all_to_all=13, all_gather=17, all_reduce=2),
    **_of(
        "scale_by_shampoo scale_by_shampoo_google shampoo_google",
        all_to_all=13,
        all_gather=5,
        all_reduce=2,
    ),
    # Counts that find the cutoff of all leaves.
    **_of("id3", all_reduce=3),
}


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Classes. A method that is in neither works entry by entry: nothing, not a single number.
# Numbers of leaves, rows and columns.
NUMBERS = _names(
    """
    adafactor adalora adamp adaptive_memory add_masked_decay alignment_brake altlora
    altlora_plus am_adamw am_msgd apollo apollo_mini auon came cast_adams cautious
    cautious_adamw cautious_lion clip_by_global_norm clip_leaf_norm clipup diagnose ef21
    error_feedback frugal graft id3 limit_norm_growth mars_adamw mars_lion normal_plane
    normalized_momentum oasis project_radial project_to_norm scale_by_came scale_by_cosh_rms
    scale_by_entry_moment scale_by_factored_rms scale_by_oasis scale_by_row_moment scale_by_sm3 sgdp
    skip_nonfinite skip_spikes sm3 sphere_project split upgd upgd_adam utility_gate
    """
)
# Whole matrices, or what they are projected to;
MATRICES = _names(
    """
    adago adamuon cautious_muon dion dion2 dion3 drop_muon fira galore_adafactor
    galore_adamw hybrid_auon hyperp ldadam lift lmo lora_pro low_rank mars_m mars_shampoo mkor
    mkor_h
    muon muon_dion muon_randomized muon_rms namo namo_d natural_galore normuon normuon_dion
    orthogonalize q_galore reg scale_by_dion scale_by_ldadam scale_by_lora_pro
    scale_by_natural_fisher scale_by_norm_ratio scale_by_row_col scion select_submatrix
    in_rotated_basis psgd_kron scale_by_psgd_kron scale_by_shampoo scale_by_shampoo_google
    shampoo shampoo_google soap
    """
)
# among them histories of matrices, squares of their sides, and moments of the weights that adapters
# stand for.
HISTORIES = _names(
    """
    lora_pro natural_galore scale_by_lora_pro scale_by_natural_fisher
    in_rotated_basis psgd_kron scale_by_psgd_kron scale_by_shampoo scale_by_shampoo_google
    shampoo shampoo_google soap
    """
)

"""Which leaf is what, and how leaves become batches of matrices; knows no optimizer."""

from optkit.tree.accounting import StateLeaf, leaf_bytes, match_state, tree_bytes
from optkit.tree.axes import AxisLayout, AxisView
from optkit.tree.costs import MatrixFunction, MatrixSharding
from optkit.tree.dims import Dims, MatrixDims, dims_by_path
from optkit.tree.dtypes import accumulator_dtype, compute_dtype, upcast, zeros_like_params
from optkit.tree.export import export_state, reset_state, restore_state
from optkit.tree.groups import GROUP_BYTES, map_groups
from optkit.tree.layout import MatrixLayout, matrix_views
from optkit.tree.matrices import MatrixView, matrix_blocks, matrix_view
from optkit.tree.order import LayerOrder, layer_order
from optkit.tree.paths import (
    PyTree,
    leaves_with_paths,
    map_with_path,
    matches,
    path_string,
    values_by_path,
)
from optkit.tree.placement import state_sharding
from optkit.tree.roles import (
    DEFAULT_RULES,
    MATRIX_ROLES,
    Role,
    RoleRule,
    RuleLike,
    Selector,
    roles,
    rule_of,
    selects,
)
from optkit.tree.tensor_blocks import BlockKind, BlockLayout, BlockView, merge_dims

__all__ = [
    "DEFAULT_RULES",
    "GROUP_BYTES",
    "MATRIX_ROLES",
    "AxisLayout",
    "AxisView",
    "BlockKind",
    "BlockLayout",
    "BlockView",
    "Dims",
    "LayerOrder",
    "MatrixDims",
    "MatrixFunction",
    "MatrixLayout",
    "MatrixSharding",
    "MatrixView",
    "PyTree",
    "Role",
    "RoleRule",
    "RuleLike",
    "Selector",
    "StateLeaf",
    "accumulator_dtype",
    "compute_dtype",
    "dims_by_path",
    "export_state",
    "layer_order",
    "leaf_bytes",
    "leaves_with_paths",
    "map_groups",
    "map_with_path",
    "match_state",
    "matches",
    "matrix_blocks",
    "matrix_view",
    "matrix_views",
    "merge_dims",
    "path_string",
    "reset_state",
    "restore_state",
    "roles",
    "rule_of",
    "selects",
    "state_sharding",
    "tree_bytes",
    "upcast",
    "values_by_path",
    "zeros_like_params",
]

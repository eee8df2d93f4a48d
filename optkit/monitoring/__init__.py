"""Measurements of a run that change nothing in it: sizes, ratios, spectra, attention."""

from optkit.monitoring.attention import attention_diagnostics, attention_statistics
from optkit.monitoring.diagnose import DiagnoseState, diagnose, diagnostics, spectra
from optkit.monitoring.singular import top_singular, top_singular_values

__all__ = [
    "DiagnoseState",
    "attention_diagnostics",
    "attention_statistics",
    "diagnose",
    "diagnostics",
    "spectra",
    "top_singular",
    "top_singular_values",
]

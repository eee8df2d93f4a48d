"""Moments in few bits, read, worked on and stored again without being written out in full."""

from optkit.kernels.block_codec.api import Implementation, update_stored, why_not

__all__ = ["Implementation", "update_stored", "why_not"]

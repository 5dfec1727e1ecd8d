"""Masks to shares and sums of shares back to sums of masks (DESIGN §5)."""

from .mask_codec import MaskCodec
from .seeded import SeededShares

__all__ = ["MaskCodec", "SeededShares"]

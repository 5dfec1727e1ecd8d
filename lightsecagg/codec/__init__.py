"""Masks to shares and sums of shares back to sums of masks (DESIGN §5)."""

from lightsecagg.codec.mask_codec import MaskCodec
from lightsecagg.codec.seeded import SeededShares, derived_receivers, seeded_receivers

__all__ = ["MaskCodec", "SeededShares", "derived_receivers", "seeded_receivers"]

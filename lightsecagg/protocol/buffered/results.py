"""What a list of updates yields."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lightsecagg.protocol.buffered.buffer import Upload


@dataclass(frozen=True)
class Contribution:
    """One update in a list: whose, which, how often it counted, and how many versions old it was."""

    client: int
    upload: int
    weight: int
    staleness: int


@dataclass(frozen=True)
class ListResult:
    """What a list yields.

    Attributes:
        mean: (d,) float64, the mean of its updates, each by its weight times its client's; zeros where
            ``total_weight`` is 0.
        total_weight: Σ weight · n.
        version: the global version that the list was made at.
        entries: what stands in it.
    """

    mean: npt.NDArray[np.float64]
    total_weight: int
    version: int
    entries: tuple[Contribution, ...]


def contributions(version: int, chosen: Iterable[Upload], weights: Iterable[int]) -> tuple[Contribution, ...]:
    """What stands in a list, in its order."""
    return tuple(
        Contribution(upload.name.client, upload.name.upload, weight, version - upload.name.version)
        for upload, weight in zip(chosen, weights, strict=True)
    )

"""``MaskCodec``: the paper's encoding of a mask into N shares, and the one-shot decoding of summed shares.

Source: So et al., LightSecAgg, MLSys 2022, section 4.1; evaluation points as in DESIGN §5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from lightsecagg.codec.lagrange import interpolation_matrix
from lightsecagg.codec.seeded import SeededShares
from lightsecagg.errors import ParameterError
from lightsecagg.field import Elements, PrimeField
from lightsecagg.kernels import Product, modular_matrix
from lightsecagg.parameters import Parameters
from lightsecagg.randomness import expand


class MaskCodec:
    """Lagrange coding of masks for one choice of N, U, T.

    Client j has the point β_j = j, data row k the point α_k = C + k. Stateless between calls and safe to
    share between threads.

    Args:
        field: GF(p) with p > C + U.
        parameters: N, U, T.
        capacity: C ≥ N, clients that may ever take part; N by default.

    Raises:
        ParameterError: the field has too few points, or the capacity is below N.
    """

    def __init__(self, field: PrimeField, parameters: Parameters, *, capacity: int | None = None) -> None:
        self.field = field
        self.parameters = parameters
        self.capacity = parameters.num_clients if capacity is None else capacity
        if self.capacity < parameters.num_clients:
            raise ParameterError(f"capacity must be at least N = {parameters.num_clients}, found {capacity}")
        if field.order <= self.capacity + parameters.target_survivors:
            raise ParameterError(
                f"a field of order {field.order} has too few points for {self.capacity} clients and "
                f"U = {parameters.target_survivors}; wanted a prime above "
                f"{self.capacity + parameters.target_survivors}"
            )

    def share_length(self, dimension: int) -> int:
        """m = ⌈d / (U − T)⌉, elements of one share of a mask of ``dimension`` elements."""
        return self.parameters.share_length(dimension)

    @property
    def data_points(self) -> range:
        """α_1..α_U: where the polynomial takes the mask's U − T rows, then the T noise rows."""
        return range(self.capacity + 1, self.capacity + self.parameters.target_survivors + 1)

    @property
    def mask_points(self) -> range:
        """α_1..α_{U−T}: where the polynomial takes the mask's rows."""
        return self.data_points[: self.parameters.target_survivors - self.parameters.privacy_threshold]

    @cached_property
    def _encoder(self) -> Product:
        return modular_matrix(
            self.field.order, interpolation_matrix(self.field, self.data_points, self.clients)
        )

    def encode(self, mask: Elements, noise: Elements) -> Elements:
        """The paper's form: shares of a given mask, hidden by given noise.

        Args:
            mask: (d,) uint32.
            noise: (T, m) uint32, uniform and used once.

        Returns:
            (N, m) uint32; row j − 1 is client j's share.

        Raises:
            ParameterError: a shape does not fit, or a value is not below p.
        """
        length = self.share_length(mask.size)
        if mask.ndim != 1 or noise.shape != (self.parameters.privacy_threshold, length):
            raise ParameterError(
                f"wanted a mask of shape (d,) and noise of shape ({self.parameters.privacy_threshold}, "
                f"{length}), found {mask.shape} and {noise.shape}"
            )
        self._check_elements(mask, noise)
        data = np.zeros((self.parameters.target_survivors, length), dtype=np.uint32)
        rows = len(self.mask_points)
        data[:rows].reshape(-1)[: len(mask)] = mask
        data[rows:] = noise
        return self._encoder.product(data)

    @property
    def clients(self) -> range:
        """Everybody's numbers, 1..N."""
        return range(1, self.parameters.num_clients + 1)

    def seeded(
        self, owner: int, seeds: Mapping[int, bytes], cohort: Sequence[int] | None = None
    ) -> SeededShares:
        """The seeded form: a mask that follows from seeds, and the shares of it that are not seeds.

        Args:
            owner: the client whose mask it is.
            seeds: receiver number to 32 secret random bytes, for exactly ``seeded_receivers`` of the cohort.
            cohort: the clients among whom it is shared, at least U, ascending; all N by default.

        Raises:
            ParameterError: the owner, the cohort or the seeds do not fit.
        """
        return SeededShares(self, owner, self.clients if cohort is None else cohort, seeds)

    def share_of(self, seed: bytes, dimension: int) -> Elements:
        """The share, (m,) uint32, that a seeded receiver's 32-byte seed stands for."""
        return expand(seed, self.field, 0, self.share_length(dimension))

    def decode(self, aggregate_shares: Mapping[int, Elements], dimension: int) -> Elements:
        """The sum of masks out of the same sum of their shares, from any U or more clients.

        Args:
            aggregate_shares: client number to (m,) uint32; the U lowest numbers are used.
            dimension: d, length of the masks.

        Returns:
            (d,) uint32.

        Raises:
            ParameterError: fewer than U shares, an unknown client number, or a share that does not fit.
        """
        wanted = self.parameters.target_survivors
        if len(aggregate_shares) < wanted:
            raise ParameterError(
                f"wanted the shares of at least U = {wanted} clients, found {len(aggregate_shares)}"
            )
        numbers = sorted(aggregate_shares)[:wanted]
        if numbers[0] < 1 or max(aggregate_shares) > self.capacity:
            raise ParameterError(
                f"client numbers must be in 1..{self.capacity}, found {sorted(aggregate_shares)}"
            )
        length = self.share_length(dimension)
        if any(share.shape != (length,) for share in aggregate_shares.values()):
            found = sorted({share.shape for share in aggregate_shares.values()})
            raise ParameterError(f"wanted shares of shape ({length},), found {found}")
        self._check_elements(*aggregate_shares.values())
        rows = np.stack([aggregate_shares[number] for number in numbers])
        return self.decoder(numbers).product(rows).reshape(-1)[:dimension]

    def decoder(self, numbers: Sequence[int]) -> Product:
        """The (U − T, U) matrix that makes the mask's rows of the shares of the U clients ``numbers``."""
        return modular_matrix(self.field.order, interpolation_matrix(self.field, numbers, self.mask_points))

    def _check_elements(self, *arrays: Elements) -> None:
        if not all(array.dtype == np.uint32 and self.field.contains(array) for array in arrays):
            raise ParameterError(f"wanted uint32 elements below {self.field.order}")

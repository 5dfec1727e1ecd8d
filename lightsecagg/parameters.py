"""N, U and T: which choices are feasible, what each promises, and the planner that picks them from rates.

Source: So et al., LightSecAgg, MLSys 2022, section 4; the promises are those of SECURITY.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal

from lightsecagg.errors import ParameterError

MAX_CLIENTS = 1024
"""Largest cohort of one round: the bounds of the arithmetic and of the wire format are proved up to here."""


@dataclass(frozen=True)
class Parameters:
    """The numbers of one round: N ≥ U > T ≥ 0 and N ≥ 2.

    Args:
        num_clients: N, clients in the cohort, numbered 1..N.
        target_survivors: U, answers that suffice to decode.
        privacy_threshold: T, any T clients and the server together learn nothing but the sum.

    Raises:
        ParameterError: the numbers do not fit together.
    """

    num_clients: int
    target_survivors: int
    privacy_threshold: int

    def __post_init__(self) -> None:
        n, u, t = self.num_clients, self.target_survivors, self.privacy_threshold
        if not 2 <= n <= MAX_CLIENTS:
            raise ParameterError(f"num_clients (N) must be in 2..{MAX_CLIENTS}, found {n}")
        if not 0 <= t < u <= n:
            raise ParameterError(
                "wanted N ≥ U > T ≥ 0, found "
                f"num_clients N = {n}, target_survivors U = {u}, privacy_threshold T = {t}; "
                "raise U or lower T"
            )

    @classmethod
    def from_rates(cls, num_clients: int, dropout_rate: float, collusion_rate: float) -> Parameters:
        """Plan U and T so that every promise holds.

        D = ⌊dropout · N⌋ and T = ⌊collusion · N⌋ (at least 1 from N = 3 on); then D is lowered until
        U ≥ T + 2 and 2U > N + T. Rates are read as decimals: 0.29 · 100 is 29.

        Raises:
            ParameterError: even D = 0 does not do; the message names the largest collusion rate that does.
        """
        for name, rate in (("dropout_rate", dropout_rate), ("collusion_rate", collusion_rate)):
            if not 0 <= rate < 1:
                raise ParameterError(f"{name} must be at least 0 and below 1, found {rate}")
        n = num_clients
        if not 2 <= n <= MAX_CLIENTS:
            raise ParameterError(f"num_clients (N) must be in 2..{MAX_CLIENTS}, found {n}")
        threshold = math.floor(Decimal(str(collusion_rate)) * n)
        if n >= 3:
            threshold = max(threshold, 1)
        for dropouts in range(math.floor(Decimal(str(dropout_rate)) * n), -1, -1):
            survivors = n - dropouts
            if survivors >= threshold + 2 and 2 * survivors > n + threshold:
                return cls(n, survivors, threshold)
        raise ParameterError(
            f"collusion_rate {collusion_rate} means T = {threshold} of {n} clients, and then not even "
            f"U = {n} leaves two honest updates in the sum; the largest collusion rate that does is "
            f"{n - 2}/{n} = {math.ceil((n - 2) / n * 10**4) / 10**4}"
        )

    @property
    def dropout_tolerance(self) -> int:
        """D = N − U, clients that may vanish in a round."""
        return self.num_clients - self.target_survivors

    @property
    def unique_survivor_set(self) -> bool:
        """Promise 3: 2U > N + T, so two survivor sets can never both be certified."""
        return 2 * self.target_survivors > self.num_clients + self.privacy_threshold

    @property
    def hides_each_update(self) -> bool:
        """U ≥ T + 2: beside T colluders the sum always holds at least two honest updates."""
        return self.target_survivors >= self.privacy_threshold + 2

    def share_length(self, dimension: int) -> int:
        """m = ⌈d / (U − T)⌉, elements of one encoded mask."""
        return -(-dimension // (self.target_survivors - self.privacy_threshold))

    def warnings(self) -> list[str]:
        """What this choice does not promise or tolerate, in words for people."""
        found = []
        if self.privacy_threshold == 0:
            found.append("T = 0: the server together with a single client can learn the other updates")
        if not self.hides_each_update:
            found.append(
                f"U = T + 1 = {self.target_survivors}: the sum may hold one honest update beside "
                f"{self.privacy_threshold} colluders, who then know it"
            )
        if not self.unique_survivor_set:
            found.append(
                f"2U ≤ N + T ({2 * self.target_survivors} ≤ {self.num_clients + self.privacy_threshold}): "
                "a server that lies about who survived may have two survivor sets certified"
            )
        if self.dropout_tolerance == 0:
            found.append("D = 0: a round tolerates no loss; one client that vanishes aborts it")
        return found

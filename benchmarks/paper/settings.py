"""What is compared: the paper's models, dropout rates and bandwidths (So et al., MLSys 2022, section 7)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from benchmarks.paper.costs import Network
from lightsecagg.parameters import Parameters
from lightsecagg.quantize import FixedPoint

CLIENTS = 200
DROPOUT_RATES = (0.1, 0.3, 0.5)
MODELS = {
    7_850: "logistic regression",
    1_206_590: "CNN",
    3_111_462: "MobileNetV3",
    5_288_548: "EfficientNet-B0",
}
QUANTIZER = FixedPoint(clip=8.0, fraction_bits=16, max_weight=1000)

USER_BANDWIDTHS = (98 * 10**6, 320 * 10**6, 802 * 10**6)
"""4G, the paper's own machines, and 5G."""
SERVER_BANDWIDTHS = (10 * 10**9, 100 * 10**9)
"""With the first, 200 clients at once get 50 Mb/s each, whatever their own lines could; the second shows what
these would make of it."""
NETWORKS = tuple(Network(user, server) for server in SERVER_BANDWIDTHS for user in USER_BANDWIDTHS)
USUAL_NETWORK = Network(USER_BANDWIDTHS[1], SERVER_BANDWIDTHS[0])

_CNN_TRAINING_SECONDS = 22.8


def training_seconds(dimension: int) -> float:
    """Training of one round: the paper's 22.8 s for the CNN, from memory; in proportion for others.

    The paper's clients were far slower than today's machines, so these are long; what is called
    aggregation-only does not depend on them.
    """
    return _CNN_TRAINING_SECONDS * dimension / 1_206_590


@dataclass(frozen=True)
class Setting:
    """One row of the comparison: N, U, T, and D = N − U clients that drop out before they upload."""

    label: str
    parameters: Parameters

    @property
    def colluders(self) -> int:
        """T: how many colluders SecAgg and SecAgg+ have to withstand too."""
        return self.parameters.privacy_threshold


def paper_settings(num_clients: int, rates: Sequence[float]) -> list[Setting]:
    """T = N/2 at each dropout rate, with U = N − D as large as it may be; then the planner's choice.

    With T = N/2 a rate of 50 % means one dropout less than N/2, or U would not exceed T.
    """
    threshold = num_clients // 2
    rows = []
    for rate in rates:
        dropouts = min(math.floor(Fraction(str(rate)) * num_clients), num_clients - threshold - 1)
        rows.append(Setting(f"{rate:.0%}", Parameters(num_clients, num_clients - dropouts, threshold)))
    return [*rows, Setting("30% (planned)", Parameters.from_rates(num_clients, 0.3, 0.3))]

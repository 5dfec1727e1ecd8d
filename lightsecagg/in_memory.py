"""``secure_mean``: a whole secure round in memory, through real bytes, with clients that vanish on demand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral

import numpy as np
import numpy.typing as npt

from lightsecagg.errors import ParameterError, RoundAborted
from lightsecagg.field import PrimeField
from lightsecagg.identity import Identity
from lightsecagg.parameters import Parameters
from lightsecagg.protocol.actions import Aborted
from lightsecagg.protocol.client import ClientRound
from lightsecagg.protocol.collecting import RoundResult
from lightsecagg.protocol.server import ServerRound
from lightsecagg.protocol.terms import Floors, Run, vector_terms
from lightsecagg.quantize import FixedPoint
from lightsecagg.simulation.losses import MOMENTS, LossyNetwork, Moment


def secure_mean(
    updates: Sequence[npt.NDArray[np.floating]],
    weights: Sequence[int] | None = None,
    *,
    parameters: Parameters | None = None,
    clip: float = 8.0,
    fraction_bits: int = 16,
    lost: Mapping[int, Moment] | None = None,
) -> RoundResult:
    """The weighted mean of the updates of the clients that survive, by one LightSecAgg round in memory.

    Args:
        updates: one (d,) float array for each of the N ≥ 2 clients, numbered from 1 in this order.
        weights: integers ≥ 0, one a client; 1 for None.
        parameters: N, U, T; planned for 30 % dropouts and 30 % colluders if None.
        clip: coordinates are clipped to ±clip.
        fraction_bits: bits after the binary point; a coordinate is exact to 2^-fraction_bits of the largest
            weight's share.
        lost: client number to the moment at which it vanishes.

    Returns:
        The mean as (d,) float64 (zeros where the survivors' weights are all 0), the total weight, and the
        survivors' numbers.

    Raises:
        ParameterError: the arguments do not fit together.
        UpdateError: an update holds NaN or infinity.
        RoundAborted: more than N − U clients were lost.
    """
    num_clients = len(updates)
    vectors = [np.asarray(update, dtype=np.float64) for update in updates]
    _check(vectors, weights, lost or {})
    if parameters is None:
        parameters = Parameters.from_rates(num_clients, 0.3, 0.3)
    counts = [1] * num_clients if weights is None else [int(weight) for weight in weights]
    quantizer = FixedPoint(clip, fraction_bits, max(1, *counts))
    terms = vector_terms(quantizer, len(vectors[0]), num_clients=num_clients)
    field = PrimeField(terms.order)
    run = Run.new("secure_mean")
    floors = Floors(min_clients=2, min_privacy_threshold=0)
    numbers = range(1, num_clients + 1)
    clients = {n: ClientRound(Identity.generate(), n, run, terms, floors=floors) for n in numbers}
    server = ServerRound(run, 1, parameters, terms, [client.member for client in clients.values()])
    quantized = {n: quantizer.quantize(field, vectors[n - 1], counts[n - 1]) for n in numbers}
    network = LossyNetwork(server, clients, quantized.__getitem__, lost or {}, terms)
    network.run()
    if isinstance(network.outcome, Aborted):
        raise RoundAborted(network.outcome.reason)
    return server.finish()


def _check(
    vectors: Sequence[npt.NDArray[np.float64]], weights: Sequence[int] | None, lost: Mapping[int, Moment]
) -> None:
    if len(vectors) < 2:
        raise ParameterError(f"wanted the updates of at least 2 clients, found {len(vectors)}")
    if any(vector.ndim != 1 or vector.shape != vectors[0].shape for vector in vectors):
        raise ParameterError(
            f"wanted updates of one shape (d,), found {[vector.shape for vector in vectors]}"
        )
    if weights is not None:
        if len(weights) != len(vectors):
            raise ParameterError(f"wanted {len(vectors)} weights, one a client, found {len(weights)}")
        if not all(isinstance(weight, Integral) and weight >= 0 for weight in weights):
            raise ParameterError(f"weights must be integers ≥ 0, found {list(weights)}")
    for number, moment in lost.items():
        if not 1 <= number <= len(vectors) or moment not in MOMENTS:
            raise ParameterError(
                f"lost maps client numbers 1..{len(vectors)} to one of {MOMENTS}, found {number}: {moment!r}"
            )

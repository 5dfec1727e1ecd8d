"""Secure aggregation for federated learning: the server learns the clients' average and nothing else.

LightSecAgg (So et al., MLSys 2022, arXiv 2109.14236). ``secure_mean`` is the shortest way in; ``ClientRound``
and ``ServerRound`` embed the protocol in a system that has its own network.
"""

from lightsecagg.codec import MaskCodec, derived_receivers, seeded_receivers
from lightsecagg.errors import (
    AbortReason,
    CommError,
    ConfigError,
    LightSecAggError,
    LocalProtocolError,
    ParameterError,
    Reason,
    RoundAborted,
    UpdateError,
)
from lightsecagg.field import PrimeField
from lightsecagg.identity import Identity, Roster
from lightsecagg.in_memory import secure_mean
from lightsecagg.parameters import Parameters
from lightsecagg.protocol.actions import (
    Aborted,
    ClientDropped,
    Finished,
    Left,
    Ready,
    RoundOver,
    Send,
    StageReached,
    Stream,
    UploadCompleted,
    What,
)
from lightsecagg.protocol.client import ClientRound
from lightsecagg.protocol.collecting import RoundResult
from lightsecagg.protocol.server import ServerRound
from lightsecagg.protocol.terms import Floors, Run, vector_terms
from lightsecagg.quantize import FixedPoint

__all__ = [
    "AbortReason",
    "Aborted",
    "ClientDropped",
    "ClientRound",
    "CommError",
    "ConfigError",
    "Finished",
    "FixedPoint",
    "Floors",
    "Identity",
    "Left",
    "LightSecAggError",
    "LocalProtocolError",
    "MaskCodec",
    "ParameterError",
    "Parameters",
    "PrimeField",
    "Ready",
    "Reason",
    "Roster",
    "RoundAborted",
    "RoundOver",
    "RoundResult",
    "Run",
    "Send",
    "ServerRound",
    "StageReached",
    "Stream",
    "UpdateError",
    "UploadCompleted",
    "What",
    "derived_receivers",
    "secure_mean",
    "seeded_receivers",
    "vector_terms",
]

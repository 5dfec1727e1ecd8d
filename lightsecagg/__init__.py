"""Secure aggregation for federated learning: the server learns the clients' average and nothing else.

LightSecAgg (So et al., MLSys 2022, arXiv 2109.14236). ``secure_mean`` is the shortest way in; ``ClientRound``
and ``ServerRound`` embed the protocol in a system that has its own network.
"""

from .codec import MaskCodec
from .errors import (
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
from .field import PrimeField
from .identity import Identity, Roster
from .in_memory import secure_mean
from .parameters import Parameters
from .protocol.actions import (
    Aborted,
    ClientDropped,
    Finished,
    Left,
    Ready,
    Send,
    StageReached,
    Stream,
    UploadCompleted,
    UploadGranted,
    What,
)
from .protocol.client import ClientRound
from .protocol.collecting import RoundResult
from .protocol.server import ServerRound
from .protocol.terms import Floors, Run, vector_terms
from .quantize import FixedPoint

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
    "RoundResult",
    "Run",
    "Send",
    "ServerRound",
    "StageReached",
    "Stream",
    "UpdateError",
    "UploadCompleted",
    "UploadGranted",
    "What",
    "secure_mean",
    "vector_terms",
]

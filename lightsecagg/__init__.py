"""Secure aggregation for federated learning: the server learns the clients' average and nothing else.

LightSecAgg (So et al., MLSys 2022, arXiv 2109.14236). ``secure_mean`` is the shortest way in; ``ClientRound``
and ``ServerRound`` embed the protocol in a system that has its own network, and so do ``Holder``,
``ClientUpload`` and ``BufferedServer`` where clients train at their own pace.
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
    UpdateRefused,
    UploadCompleted,
    What,
)
from lightsecagg.protocol.buffered.client import ClientUpload
from lightsecagg.protocol.buffered.holder import Holder
from lightsecagg.protocol.buffered.results import ListResult
from lightsecagg.protocol.buffered.server import BufferedServer
from lightsecagg.protocol.client import ClientRound
from lightsecagg.protocol.collecting import RoundResult
from lightsecagg.protocol.messages import Buffering
from lightsecagg.protocol.server import ServerRound
from lightsecagg.protocol.terms import Floors, Run, buffered_vector_terms, vector_terms
from lightsecagg.quantize import FixedPoint

__all__ = [
    "AbortReason",
    "Aborted",
    "BufferedServer",
    "Buffering",
    "ClientDropped",
    "ClientRound",
    "ClientUpload",
    "CommError",
    "ConfigError",
    "Finished",
    "FixedPoint",
    "Floors",
    "Holder",
    "Identity",
    "Left",
    "LightSecAggError",
    "ListResult",
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
    "UpdateRefused",
    "UploadCompleted",
    "What",
    "buffered_vector_terms",
    "derived_receivers",
    "secure_mean",
    "seeded_receivers",
    "vector_terms",
]

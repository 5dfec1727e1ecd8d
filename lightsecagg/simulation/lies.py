"""What liars among the simulated clients send."""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec

from lightsecagg.errors import Reason
from lightsecagg.identity import SIGNATURE_BYTES
from lightsecagg.protocol import messages as m
from lightsecagg.protocol.wire import encode, from_client
from lightsecagg.randomness import SEED_BYTES
from lightsecagg.sealing import TAG_BYTES

_SEALED_SEED = SEED_BYTES + TAG_BYTES
_NEVER = 2**40  # no round, upload or list has this number


def spoil(
    message: m.SealedSeeds | m.EncodedMask, victims: frozenset[int], seeded: Sequence[int]
) -> m.SealedSeeds | m.EncodedMask | None:
    """A dealer's message with the shares of ``victims`` in it spoilt; None where none of theirs is in it.

    Args:
        message: honest.
        victims: client numbers.
        seeded: the dealer's seeded receivers, itself first.
    """
    spoilt = bytearray(message.data)
    if isinstance(message, m.EncodedMask):
        if message.receiver not in victims:
            return None
        spoilt[-1] ^= 1
        return m.EncodedMask(message.mask, message.receiver, message.index, memoryview(spoilt))
    places = [place for place, receiver in enumerate(seeded[1:]) if receiver in victims]
    for place in places:
        spoilt[place * _SEALED_SEED] ^= 1
    return m.SealedSeeds(message.mask, memoryview(spoilt)) if places else None


def nonsense(rng: random.Random, number: int, other: int) -> bytes:
    """A message that no client sends in any state of an asynchronous run.

    Args:
        rng: which one it is.
        number: the client that sends it.
        other: another client.
    """
    future, foreign = m.MaskName(number, 0, _NEVER), m.MaskName(other, 0, 1)
    return rng.choice(
        (
            b"\xc1",
            encode(m.UpdateReady(_NEVER)),
            encode(m.MaskedUpdate(_NEVER, 1, 0, memoryview(b""))),
            encode(m.Withdraw(_NEVER, Reason.TRAINING_FAILED)),
            encode(m.ShareHeld(future)),
            encode(m.SealedSeeds(future, memoryview(b""))),
            encode(m.SealedSeeds(foreign, memoryview(b""))),
            encode(m.EncodedMask(foreign, number, 0, memoryview(b""))),
            encode(m.Endorse(_NEVER, bytes(SIGNATURE_BYTES))),
            encode(m.AggregateEncodedMask(_NEVER, 0, memoryview(b""))),
            encode(m.SharesHeld(_NEVER, b"")),
        )
    )


def mangle(raw: bytes | memoryview) -> bytes | None:
    """What the client sends, made wrong so that the server sees it; None for what has nothing to be wrong."""
    match message := from_client(raw):
        case m.SealedSeeds() | m.EncodedMask() | m.MaskedUpdate() | m.AggregateEncodedMask():
            return encode(msgspec.structs.replace(message, data=memoryview(bytes(message.data) + b"\0")))
        case m.Endorse(number, signature):
            return encode(m.Endorse(number, bytes([signature[0] ^ 1]) + signature[1:]))
        case _:
            return None

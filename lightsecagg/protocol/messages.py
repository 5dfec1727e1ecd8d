"""Every message of the protocol, one frozen type each; ``wire`` turns them into bytes and back.

Types are arrays on the wire, in the order of their fields, led by a number. Numbers of clients are their
places 1..N in the cohort; bitmaps have bit j − 1 for client j, lowest bit first.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from lightsecagg.errors import Reason
from lightsecagg.identity import PUBLIC_BYTES, SIGNATURE_BYTES
from lightsecagg.parameters import MAX_CLIENTS
from lightsecagg.sealing import ROUND_KEY_BYTES

NONCE_BYTES = 32
HASH_BYTES = 32
MAX_ENTRIES = 16384
MAX_LISTED = 4096

Count = Annotated[int, Meta(ge=0, lt=2**53)]
Number = Annotated[int, Meta(ge=1, le=MAX_CLIENTS)]
Rank = Annotated[int, Meta(ge=1, lt=2**31)]
Nonce = Annotated[bytes, Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
Hash = Annotated[bytes, Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]
PublicKey = Annotated[bytes, Meta(min_length=PUBLIC_BYTES, max_length=PUBLIC_BYTES)]
AgreementKey = Annotated[bytes, Meta(min_length=ROUND_KEY_BYTES, max_length=ROUND_KEY_BYTES)]
Signature = Annotated[bytes, Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]
Bitmap = Annotated[bytes, Meta(max_length=MAX_CLIENTS // 8)]
Name = Annotated[str, Meta(max_length=512)]
Text = Annotated[str, Meta(max_length=2048)]
Data = bytes | memoryview
"""Contents of a part: bytes when it is made, a view of the message it came in when it is read."""


class Message(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of all messages."""


class Entry(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One floating entry of the model's state, in the agreed order."""

    name: Name
    shape: Annotated[tuple[Count, ...], Meta(max_length=32)]
    dtype: Annotated[str, Meta(max_length=32)]


class Buffering(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What an asynchronous run adds to the terms; all of it is fixed for the run.

    ``weights`` has the weight of an update that is 0, 1, 2 … versions old; older ones are refused.
    """

    capacity: Number
    target_survivors: Number
    privacy_threshold: Annotated[int, Meta(ge=0, le=MAX_CLIENTS)]
    buffer_size: Count
    weights: tuple[Count, ...]


class Terms(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What every client of a run must have configured alike; a client compares them with its own."""

    mode: Name
    order: Count
    clip: float
    fraction_bits: Count
    max_weight: Count
    rounding: Name
    layout: Annotated[tuple[Entry, ...], Meta(max_length=MAX_ENTRIES)]
    application: Hash = bytes(HASH_BYTES)
    """Hash of whatever else all clients must see alike, as the application decides; zeros for nothing."""
    buffering: Buffering | None = None
    """In asynchronous runs."""


class Member(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One client of a cohort; its number is its place there."""

    rank: Rank
    identity: PublicKey
    sequence: Count
    key: AgreementKey
    signature: Signature


class MaskName(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Which mask a share is of: whose, for which global version, for which upload.

    In a synchronous round the version is the round's number and the upload 0; in an asynchronous run uploads
    are numbered through the whole run.
    """

    client: Number
    version: Count
    upload: Count


# Joining.


class Challenge(Message, frozen=True, tag=1):
    """Server: what a Hello must sign."""

    nonce: Nonce
    run_nonce: Nonce


class Hello(Message, frozen=True, tag=2):
    """Client: who wants to take part, and with what settings."""

    run: Name
    rank: Count
    version: Count
    identity: PublicKey
    settings: Annotated[dict[Name, Text], Meta(max_length=256)]
    layout: Annotated[tuple[Entry, ...], Meta(max_length=MAX_ENTRIES)]
    signature: Signature


class Welcome(Message, frozen=True, tag=3):
    """Server: you take part; these settings come from me."""

    settings: Annotated[dict[Name, Text], Meta(max_length=256)]


class Refused(Message, frozen=True, tag=4):
    """Server: you do not take part, or no longer; ``detail`` names the setting or entry at fault."""

    reason: Reason
    detail: Text = ""


class RoundKeyMessage(Message, frozen=True, tag=5):
    """Client: the X25519 key that its next round will use."""

    sequence: Count
    key: AgreementKey
    signature: Signature


# Opening a round.


class RoundStart(Message, frozen=True, tag=10):
    """Server: a round, everything its clients must see alike; the digest is taken over it."""

    round: Count
    terms: Terms
    target_survivors: Number
    privacy_threshold: Annotated[int, Meta(ge=0, le=MAX_CLIENTS)]
    cohort: Annotated[tuple[Member, ...], Meta(min_length=2, max_length=MAX_CLIENTS)]
    model_length: Count
    model_hash: Hash


class ModelPart(Message, frozen=True, tag=11):
    """Server: bytes of the model, in order."""

    round: Count
    index: Count
    data: memoryview


class UploadStart(Message, frozen=True, tag=12):
    """Server, asynchronous: train on this version; deal the mask of this upload to this cohort.

    To its client an upload is a round: ``round`` is the upload's number, and so it is in the messages that
    follow, to the ``RoundEnd``.
    """

    round: Count
    version: Count
    cohort: Annotated[tuple[Member, ...], Meta(min_length=2, max_length=MAX_CLIENTS)]
    model_length: Count
    model_hash: Hash


# Sharing.


class SealedSeeds(Message, frozen=True, tag=20):
    """Client: sealed seeds for the U − 1 clients that follow it cyclically, one after another."""

    mask: MaskName
    data: memoryview


class SealedSeed(Message, frozen=True, tag=21):
    """Server: the receiver's own sealed seed out of a ``SealedSeeds``."""

    mask: MaskName
    data: memoryview


class EncodedMask(Message, frozen=True, tag=22):
    """Client, relayed as it is: one sealed part of a derived share."""

    mask: MaskName
    receiver: Number
    index: Count
    data: memoryview


class ReportShares(Message, frozen=True, tag=23):
    """Server: sharing is over, say what you hold."""

    round: Count


class SharesHeld(Message, frozen=True, tag=24):
    """Client: whose shares arrived whole and opened."""

    round: Count
    held: Bitmap


class Candidates(Message, frozen=True, tag=25):
    """Server: who may upload."""

    round: Count
    candidates: Bitmap


class ShareOffer(Message, frozen=True, tag=26):
    """Server, asynchronous: a share of this mask comes, sealed for this key of the receiver's."""

    mask: MaskName
    dealer: Member
    key: AgreementKey
    cohort: Bitmap
    model_hash: Hash


class ShareHeld(Message, frozen=True, tag=27):
    """Client, asynchronous: this share arrived whole and opened."""

    mask: MaskName


# Uploading.


class UpdateReady(Message, frozen=True, tag=30):
    """Client: training is done."""

    round: Count


class UploadGrant(Message, frozen=True, tag=31):
    """Server: send your masked update, from its first part on, under this number."""

    round: Count
    grant: Count


class MaskedUpdate(Message, frozen=True, tag=32):
    """Client: one part of x + z."""

    round: Count
    grant: Count
    index: Count
    data: memoryview


# Recovery.


class SurvivorSet(Message, frozen=True, tag=40):
    """Server: the clients whose updates are in the sum."""

    round: Count
    survivors: Bitmap


class Endorse(Message, frozen=True, tag=41):
    """Client: its one signature of the round, over the digest and the survivor set."""

    round: Count
    signature: Signature


class Certificate(Message, frozen=True, tag=42):
    """Server: U signatures over one survivor set, in the order of the endorsers' numbers."""

    round: Count
    survivors: Bitmap
    endorsers: Bitmap
    signatures: Annotated[bytes, Meta(max_length=MAX_CLIENTS * SIGNATURE_BYTES)]


class AggregateEncodedMask(Message, frozen=True, tag=43):
    """Client: one part of Σ_{i∈S} [z_i]_j."""

    round: Count
    index: Count
    data: memoryview


class Listed(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An update in a list, and how often it counts."""

    client: Number
    upload: Count
    weight: Count


class UpdateList(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The updates that go into one step of the model, from global version ``version`` on."""

    number: Count
    version: Count
    entries: Annotated[tuple[Listed, ...], Meta(min_length=1, max_length=MAX_LISTED)]


class ListAnnounced(Message, frozen=True, tag=44):
    """Server, asynchronous: stand for this list."""

    list: UpdateList


class ListCertificate(Message, frozen=True, tag=45):
    """Server, asynchronous: U signatures over one list, in the order of the endorsers' numbers."""

    list: UpdateList
    endorsers: Bitmap
    identities: Annotated[bytes, Meta(max_length=MAX_CLIENTS * PUBLIC_BYTES)]
    signatures: Annotated[bytes, Meta(max_length=MAX_CLIENTS * SIGNATURE_BYTES)]


class Spent(Message, frozen=True, tag=46):
    """Server, asynchronous: no list will name these masks any more."""

    masks: Annotated[tuple[tuple[Number, Count], ...], Meta(max_length=MAX_LISTED)]


# Closing.


class RoundEnd(Message, frozen=True, tag=50):
    """Server: the round is over; ``outcome`` is "done", or the reason why there is no sum."""

    round: Count
    outcome: Annotated[str, Meta(max_length=64)]


class Leave(Message, frozen=True, tag=51):
    """Client: out of this round, still in the run."""

    round: Count
    reason: Reason


class Withdraw(Message, frozen=True, tag=54):
    """Client, asynchronous: nothing comes of this upload; it still holds its shares of the others'."""

    round: Count
    reason: Reason


class Finish(Message, frozen=True, tag=52):
    """Server: the run is over."""

    outcome: Annotated[str, Meta(max_length=64)]


class FinishAcknowledged(Message, frozen=True, tag=53):
    """Client: it knows that the run is over."""


# The pair without masks (``plain``); no secure client accepts or sends these.


class PlainStart(Message, frozen=True, tag=60):
    """Server: a round of plain averaging."""

    round: Count
    model_length: Count
    model_hash: Hash


class PlainReady(Message, frozen=True, tag=62):
    """Client: free for the next round of plain averaging."""


class PlainUpdate(Message, frozen=True, tag=61):
    """Client: one part of its weighted update, in the clear."""

    round: Count
    grant: Count
    index: Count
    data: memoryview


FromServer = (
    Challenge
    | Welcome
    | Refused
    | RoundStart
    | UploadStart
    | ModelPart
    | ShareOffer
    | SealedSeed
    | EncodedMask
    | ReportShares
    | Candidates
    | UploadGrant
    | SurvivorSet
    | Certificate
    | ListAnnounced
    | ListCertificate
    | Spent
    | RoundEnd
    | Finish
    | PlainStart
)
FromClient = (
    Hello
    | RoundKeyMessage
    | SealedSeeds
    | EncodedMask
    | SharesHeld
    | ShareHeld
    | UpdateReady
    | MaskedUpdate
    | Endorse
    | AggregateEncodedMask
    | Leave
    | Withdraw
    | FinishAcknowledged
    | PlainReady
    | PlainUpdate
)


def bitmap(numbers: set[int] | frozenset[int], num_clients: int) -> bytes:
    """A set of client numbers as ⌈N/8⌉ bytes."""
    bits = sum(1 << (number - 1) for number in numbers)
    return bits.to_bytes(-(-num_clients // 8), "little")


def members(bits: bytes, num_clients: int) -> frozenset[int] | None:
    """The inverse of ``bitmap``; None where the length is wrong or a bit beyond N is set."""
    value = int.from_bytes(bits, "little")
    if len(bits) != -(-num_clients // 8) or value >> num_clients:
        return None
    return frozenset(number for number in range(1, num_clients + 1) if value >> (number - 1) & 1)


def as_plain(value: object) -> object:
    """A message or part of one as plain Python lists and values, for digests."""
    return msgspec.to_builtins(value, builtin_types=(bytes,))


def round_of(message: Message) -> int | None:
    """The round that a message belongs to, or None where it belongs to the run."""
    if isinstance(message, SealedSeeds | SealedSeed | EncodedMask | ShareOffer | ShareHeld):
        return message.mask.version
    return getattr(message, "round", None)

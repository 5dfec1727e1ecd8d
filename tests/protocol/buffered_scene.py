"""An asynchronous run in memory: its clients with every secret known, under a server of the test's own."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from lightsecagg.errors import Reason
from lightsecagg.field import Elements, PrimeField
from lightsecagg.identity import Identity, Roster
from lightsecagg.protocol import messages as m
from lightsecagg.protocol.actions import Action, Ready, RoundOver, What
from lightsecagg.protocol.buffered.client import ClientUpload
from lightsecagg.protocol.buffered.holder import Holder
from lightsecagg.protocol.buffered.views import list_digest, run_digest, sign_list, upload_digest
from lightsecagg.protocol.collecting import ShareTally
from lightsecagg.protocol.model import model_streams
from lightsecagg.protocol.terms import Floors, Run, make_buffered_terms, make_member
from lightsecagg.protocol.wire import encode, from_client, from_server
from lightsecagg.quantize import FixedPoint
from lightsecagg.randomness import Entropy
from lightsecagg.sealing import RoundKey
from tests.protocol.scene import change, flat, reason_of, said

QUANTIZER = FixedPoint(8.0, 10, 100)
WEIGHTS = (4, 2, 1)
STRANGER = Identity(b"\x55" * 32)


class Clients:
    """The clients of one run, at the slots ``present``; every slot has an identity, whoever is there."""

    def __init__(
        self,
        capacity: int = 5,
        u: int = 4,
        t: int = 1,
        *,
        size: int = 4,
        weights: Sequence[int] = WEIGHTS,
        dimension: int = 9,
        order: int = 2**24 - 3,
        quantizer: FixedPoint = QUANTIZER,
        present: Iterable[int] | None = None,
        floors: Floors | None = None,
        with_roster: bool = False,
        seed: int = 1,
        entropy: Entropy | None = None,
    ) -> None:
        self.source = random.Random(seed)
        self.slots = range(1, capacity + 1)
        self.present = sorted(self.slots if present is None else present)
        self.quantizer = quantizer
        self.field = PrimeField(order)
        self.dimension = dimension
        self.weights = tuple(weights)
        buffering = m.Buffering(capacity, u, t, size, self.weights)
        layout = [m.Entry("update", (dimension,), "float64")]
        self.terms = make_buffered_terms(quantizer, layout, buffering, field=self.field)
        self.protocol_run = Run("scene", random.Random(7).randbytes(32))
        self.digest = run_digest(self.protocol_run, self.terms)
        self.identities = {i: Identity(random.Random(100 + i).randbytes(32)) for i in self.slots}
        self.roster = Roster({i: self.identities[i].public for i in self.slots}) if with_roster else None
        self.floors = floors or Floors(2, 0, min_buffer_clients=t + 2)
        self.entropy = entropy or random.Random(f"secrets {seed}").randbytes
        self.holders: dict[int, Holder] = {}
        self.turns: dict[int, ClientUpload] = {}
        self.integers: dict[tuple[int, int], list[int]] = {}
        """(client, upload) to what was handed over for it, weight last."""
        self._sequence = 0

    def join(self, number: int, before: Holder | None = None, **changes: object) -> None:
        """A new process of this client, which knows nothing of any before it; or the same one that left."""
        options = {"floors": self.floors, "roster": self.roster, **changes}
        self.holders[number] = Holder(
            self.identities[number], number, self.protocol_run, self.terms, before=before, **options
        )
        if before is None:
            self.turns.pop(number, None)
        self.renew(number, **changes)

    def renew(self, number: int, **changes: object) -> None:
        """The client is free: its next upload's machine, with a fresh key."""
        before = self.turns.get(number)
        self._sequence += 1
        options = {"floors": self.floors, "roster": self.roster, **changes}
        self.turns[number] = ClientUpload(
            self.holders[number],
            self.identities[number],
            number,
            self.protocol_run,
            self.terms,
            sequence=self._sequence,
            after_round=0 if before is None else before.highest_round,
            entropy=self.entropy,
            **options,
        )

    def update(self, number: int) -> Elements:
        """What the client has trained for its present upload: new integers, as large as its weight allows."""
        weight = self.source.randint(1, self.quantizer.max_weight)
        scale = Fraction(self.quantizer.clip) * 2**self.quantizer.fraction_bits
        most = int(scale * weight / self.quantizer.max_weight)
        values = [
            self.source.choice((most, -most, self.source.randint(-most, most))) for _ in range(self.dimension)
        ]
        upload = self.turns[number].round_number
        assert upload is not None
        self.integers[number, upload] = [*values, weight]
        return self.field.elements([*values, weight])

    def bits(self, numbers: Iterable[int]) -> bytes:
        return m.bitmap(frozenset(numbers), len(self.slots))


@dataclass(frozen=True)
class Dealt:
    """One upload, and what its dealer sent of its mask: by receiver, as a server would pass it on."""

    start: m.UploadStart
    name: m.MaskName
    dealer: m.Member
    digest: bytes
    shares: dict[int, list[m.Message]]

    @property
    def key(self) -> tuple[int, int]:
        """(client, upload)."""
        return self.name.client, self.name.upload

    @property
    def cohort(self) -> tuple[int, ...]:
        return tuple(member.rank for member in self.start.cohort)

    def key_of(self, receiver: int) -> bytes:
        """For which of the receiver's keys its share is sealed."""
        return next(member.key for member in self.start.cohort if member.rank == receiver)


class Puppet(Clients):
    """The run under a server that says to whom it wants what it wants."""

    def __init__(self, *numbers: int, **options) -> None:
        super().__init__(*numbers, **options)
        self.dealt: list[Dealt] = []
        self._started = 0
        for number in self.present:
            self.join(number)

    @staticmethod
    def model(version: int) -> bytes:
        return b"the model of version %d" % version

    def start(self, version: int = 0, among: Iterable[int] | None = None, **changes: object) -> m.UploadStart:
        """What begins an upload, with those of ``among`` for its cohort."""
        self._started += 1
        model = self.model(version)
        cohort = tuple(self.turns[i].member for i in sorted(self.present if among is None else among))
        start = m.UploadStart(self._started, version, cohort, len(model), hashlib.sha256(model).digest())
        return change(start, **changes)

    def deal(
        self,
        client: int,
        version: int = 0,
        *,
        among: Iterable[int] | None = None,
        to: Iterable[int] | None = None,
        leaves: bool = True,
        number: int | None = None,
    ) -> Dealt:
        """The honest course of one upload; its shares go ``to`` all of the cohort, or to these.

        Args:
            leaves: whether the masked update leaves whole.
            number: the upload's, where it is not the next one.
        """
        changes = {} if number is None else {"round": number}
        start, turn, model = self.start(version, among, **changes), self.turns[client], self.model(version)
        assert Ready(What.SHARING) in turn.receive(encode(start))
        *early, last = (
            turn.receive(send.message) for send in flat(model_streams(start.round, [client], model))
        )
        assert (any(early), last) == (False, [Ready(What.TRAINING)])
        name = m.MaskName(client, version, start.round)
        cohort = frozenset(member.rank for member in start.cohort)
        digest = upload_digest(self.digest, name, turn.member, cohort, start.model_hash)
        dealt = Dealt(start, name, turn.member, digest, self._shares(turn, name, start))
        list(turn.upload(self.update(client)))
        if leaves:
            flat(turn.receive(encode(m.UploadGrant(start.round, 1))))
        assert turn.receive(encode(m.RoundEnd(start.round, "done"))) == [RoundOver("done")]
        self.renew(client)
        for receiver in dealt.cohort if to is None else to:
            if receiver != client:
                self.give(dealt, receiver)
        self.dealt.append(dealt)
        return dealt

    def _shares(
        self, turn: ClientUpload, name: m.MaskName, start: m.UploadStart
    ) -> dict[int, list[m.Message]]:
        cohort = [member.rank for member in start.cohort]
        tally = ShareTally(turn.holder.codec, name, cohort, self.dimension + 1)
        shares: dict[int, list[m.Message]] = {}
        for send in turn.shares():
            message = from_client(send.message)
            is_part = isinstance(message, m.EncodedMask)
            for passed in (
                [tally.relay_part(message, send.message)] if is_part else tally.relay_seeds(message)
            ):
                shares.setdefault(passed.to, []).append(from_server(passed.message))
        return shares

    def give(self, dealt: Dealt, receiver: int) -> None:
        """Offer the receiver its share and pass it on; it is held."""
        assert self.tell(receiver, self.offer(dealt, receiver)) == []
        replies = [said(self.tell(receiver, message)) for message in dealt.shares[receiver]]
        assert replies == [[]] * (len(replies) - 1) + [[m.ShareHeld(dealt.name)]]

    def offer(self, dealt: Dealt, receiver: int) -> m.ShareOffer:
        """The honest offer of a share."""
        return m.ShareOffer(
            dealt.name, dealt.dealer, dealt.key_of(receiver), self.bits(dealt.cohort), dealt.start.model_hash
        )

    def stranger_at(self, slot: int) -> m.Member:
        """The signed entry of an identity that none of the slots has."""
        return make_member(STRANGER, self.protocol_run, slot, 1, RoundKey(self.entropy).public)

    def tell(self, client: int, message: m.Message) -> list[Action]:
        return self.turns[client].receive(encode(message))

    def updates(
        self,
        dealt: Iterable[Dealt],
        number: int = 1,
        version: int | None = None,
        weights: Sequence[int] | None = None,
    ) -> m.UpdateList:
        """The list of these uploads, honestly weighted unless ``weights`` says otherwise."""
        names = [each.name for each in dealt]
        version = max(name.version for name in names) if version is None else version
        if weights is None:
            weights = [self.weights[min(version - name.version, len(self.weights) - 1)] for name in names]
        entries = zip(names, weights, strict=True)
        return m.UpdateList(number, version, tuple(m.Listed(n.client, n.upload, w) for n, w in entries))

    def view(
        self, updates: m.UpdateList, *, run: bytes | None = None, uploads: Sequence[bytes] | None = None
    ) -> bytes:
        """The digest of a list; of another ``run``, or of other ``uploads``, where these are given."""
        if uploads is None:
            known = {each.key: each.digest for each in self.dealt}
            uploads = [known.get((entry.client, entry.upload), bytes(32)) for entry in updates.entries]
        return list_digest(run or self.digest, updates, uploads)

    def signature(self, client: int, updates: m.UpdateList, **view) -> bytes:
        """The client's over this view of a list."""
        return sign_list(self.identities[client], self.view(updates, **view))

    def certificate(
        self,
        updates: m.UpdateList,
        endorsers: Iterable[int] | None = None,
        *,
        signed: m.UpdateList | None = None,
        **view,
    ) -> m.ListCertificate:
        """U signatures, or those of ``endorsers``; over ``signed`` where that is another list."""
        survivors = self.terms.buffering.target_survivors
        numbers = sorted(self.present[:survivors] if endorsers is None else endorsers)
        signatures = [self.signature(i, signed or updates, **view) for i in numbers]
        identities = b"".join(self.identities[i].public for i in numbers)
        return m.ListCertificate(updates, self.bits(numbers), identities, b"".join(signatures))


def dealt(*clients: int, **options) -> Puppet:
    """Slots 1..5 (U = 4, T = 1, K = 4, weights 4, 2, 1); these clients, or all, uploaded at version 0."""
    puppet = Puppet(**options)
    for client in clients or puppet.present:
        puppet.deal(client)
    return puppet


def refuses(puppet: Puppet, client: int, message: m.Message, reason: Reason) -> None:
    """The client leaves for this reason; it holds nothing, and answers nothing any more."""
    actions = puppet.tell(client, message)
    assert reason_of(actions) is reason
    assert [type(reply) for reply in said(actions)] == [m.Leave]
    assert puppet.holders[client].is_closed
    assert puppet.holders[client].held == frozenset()
    if puppet.dealt:
        later = puppet.updates(puppet.dealt[: puppet.terms.buffering.buffer_size], 99)
        assert puppet.tell(client, m.ListAnnounced(later)) == []
        assert puppet.tell(client, puppet.certificate(later)) == []


def endorsed(puppet: Puppet, client: int, updates: m.UpdateList) -> m.Endorse:
    """The client's signature, which it gives on hearing of the list."""
    (reply,) = said(puppet.tell(client, m.ListAnnounced(updates)))
    assert reply == m.Endorse(updates.number, puppet.signature(client, updates))
    return reply


def answered(puppet: Puppet, client: int, certificate: m.ListCertificate) -> bool:
    """Whether the client answers; it does not leave."""
    replies = said(puppet.tell(client, certificate))
    assert all(isinstance(reply, m.AggregateEncodedMask) for reply in replies)
    return bool(replies)

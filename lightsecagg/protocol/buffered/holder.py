"""``Holder``: what one client holds of the uploads of an asynchronous run, and the lists it stands for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from lightsecagg.codec import MaskCodec
from lightsecagg.codec.seeded import is_seeded
from lightsecagg.errors import Reason, RemoteProtocolError
from lightsecagg.field import PrimeField
from lightsecagg.identity import Identity, Roster, Verifier, verify
from lightsecagg.protocol import messages as m
from lightsecagg.protocol.actions import SERVER, Action, Send, Stream
from lightsecagg.protocol.buffered.checks import Held, Slots, check_list, check_list_certificate, check_offer
from lightsecagg.protocol.buffered.views import list_digest, run_digest, sign_list, upload_digest
from lightsecagg.protocol.holding import Share, ShareForm, sum_parts
from lightsecagg.protocol.terms import Floors, Run, buffered_parameters, vector_length
from lightsecagg.protocol.uploads import OutgoingUpload
from lightsecagg.protocol.wire import encode
from lightsecagg.sealing import RoundKey
from lightsecagg.spans import Spans, no_spans

MESSAGES = (
    m.ShareOffer,
    m.SealedSeed,
    m.EncodedMask,
    m.ListAnnounced,
    m.ListCertificate,
    m.Spent,
)
"""What the server sends to holders, at any time."""

Name = tuple[int, int]
"""(client, upload)"""


@dataclass
class _Holding:
    """A share of one upload, and what it is a share of."""

    share: Share
    known: Held
    is_told: bool = False


@dataclass
class _Stand:
    """The last list that the client stood for."""

    updates: m.UpdateList | None = None
    digest: bytes = b""
    chosen: list[tuple[Share, int]] = field(default_factory=list)
    """What its answer is made of, until it is given."""
    is_wanted: bool = False
    """Whether its answer is on its way; where the list ends first, so does the answer."""


class Holder:
    """One client in one run, for as long as the server knows it. Not thread-safe; the iterators it gives own
    their data and may be pulled in another thread.

    A share that does not open, or is not what its offer says, is not held, and blames nobody. Only what no
    honest server sends raises.

    Args:
        identity: the client's long-term key pair.
        slot: its rank, which is its number for the whole run.
        run: the run's id and nonce.
        terms: what it has configured and every client must have alike.
        floors: what it demands of a list.
        roster: who may take part; None for an open run.
        before: the holder that the client had in this session, and left with; what was under way to that one
            is nothing to this.
        verifier: checks what the other clients signed.
        spans: is told what takes how long.

    Raises:
        ParameterError: the terms are none of an asynchronous run.
    """

    def __init__(
        self,
        identity: Identity,
        slot: int,
        run: Run,
        terms: m.Terms,
        *,
        floors: Floors,
        roster: Roster | None = None,
        before: Holder | None = None,
        verifier: Verifier = verify,
        spans: Spans = no_spans,
    ) -> None:
        assert terms.buffering is not None, "terms of an asynchronous run"
        self._identity = identity
        self._slot = slot
        self._run = run
        self._buffering = terms.buffering
        self._floors = floors
        self._verifier = verifier
        self._spans = spans
        self.parameters = buffered_parameters(terms.buffering)
        """C in the place of N, U and T of the run."""
        self.codec = MaskCodec(PrimeField(terms.order), self.parameters)
        self.digest = run_digest(run, terms)
        """Of all that is fixed for the run."""
        self.slots = Slots(terms.buffering.capacity, (slot, identity.public), roster)
        self.newest = 0
        """The newest global version that this client has heard of from its own starts and lists."""
        self._form = ShareForm(self.codec, vector_length(terms))
        self._keys: list[RoundKey] = []
        self._holdings: dict[Name, _Holding] = {}
        self._own: dict[int, OutgoingUpload[Any] | None] = {}
        self._seen: dict[int, int] = {}
        self._before = 0 if before is None else before.last_seen
        self._models: dict[int, bytes] = {}
        self._stand = _Stand()
        self.is_closed = False
        """Whether the client has left: nothing is held any more."""

    def __repr__(self) -> str:
        return f"Holder(slot={self._slot}, <secret>)"

    @property
    def held(self) -> frozenset[Name]:
        """Whose shares are here, whole and opened."""
        return frozenset(name for name, holding in self._holdings.items() if holding.share.is_whole)

    @property
    def last_seen(self) -> int:
        """The highest number of an upload that this client was offered a share of, or dealt itself."""
        return max([self._before, *self._seen.values()])

    def publish(self, key: RoundKey) -> None:
        """A fresh key of this client's: shares may come sealed for it, and for the one before it."""
        self._keys = [*self._keys[-1:], key]

    def begin(self, start: m.UploadStart, digest: bytes, seed: bytes) -> None:
        """The client deals a mask of its own, of which it keeps a share; its older keys are erased.

        The server has seen the newest key: it offers no share for an older one any more.
        """
        self._keys = self._keys[-1:]
        self.newest = max(self.newest, start.version)
        self._forget_old()
        share = Share(self._form, None, seeded=True)
        share.keep(seed)
        known = Held(start.version, self._identity.public, digest)
        self._holdings[self._slot, start.round] = _Holding(share, known, is_told=True)
        self._own[start.round] = None
        self._seen[self._slot] = start.round

    def uploading(self, number: int, upload: OutgoingUpload[Any]) -> None:
        """This is the client's own upload ``number`` as it leaves."""
        if number in self._own:
            self._own[number] = upload

    def check_model(self, version: int, model_hash: bytes) -> None:
        """A version has one model, whoever is told of it.

        Raises:
            RemoteProtocolError: another model was named before (``model_mismatch``).
        """
        if self._models.setdefault(version, model_hash) != model_hash:
            raise RemoteProtocolError(Reason.MODEL_MISMATCH, f"two models for version {version}")

    def receive(self, message: m.FromServer) -> list[Action]:
        """Take one of ``MESSAGES``.

        Raises:
            RemoteProtocolError: no honest server sends it; the client is to leave.
        """
        if self.is_closed:
            if isinstance(message, m.ShareOffer):  # the next holder is not to wonder at the share
                self._before = max(self._before, message.mask.upload)
            return []
        match message:
            case m.ShareOffer():
                self._take_offer(message)
                return []
            case m.SealedSeed(mask, data):
                return self._take_share(mask, lambda share: share.take_seed(data))
            case m.EncodedMask(mask, receiver, index, data):
                if receiver != self._slot:
                    raise RemoteProtocolError(Reason.PROTOCOL_VIOLATION, "a share for somebody else")
                return self._take_share(mask, lambda share: share.take_part(index, data))
            case m.ListAnnounced():
                return self._endorse(message.list)
            case m.ListCertificate():
                return self._answer(message)
            case m.Spent():
                self._forget(message.masks)
                return []
            case _:  # pragma: no cover - MESSAGES are these
                raise AssertionError(message)

    def close(self) -> None:
        """Leave: erase everything (best effort: Python frees, it does not overwrite)."""
        self.is_closed = True
        self._keys.clear()
        self._holdings.clear()
        self._own.clear()
        self._stand.is_wanted = False
        self._stand = _Stand()

    def _take_offer(self, offer: m.ShareOffer) -> None:
        name = offer.mask
        cohort = check_offer(offer, self._slot, self.parameters, self.slots, self._run, self._verifier)
        if name.upload <= self._seen.get(name.client, -1):
            raise RemoteProtocolError(Reason.PROTOCOL_VIOLATION, "an upload that was offered before")
        self._seen[name.client] = name.upload
        if len(self._holdings) >= self._most:
            raise RemoteProtocolError(Reason.PROTOCOL_VIOLATION, "more uploads than a run can have open")
        key = next((key for key in self._keys if key.public == offer.key), None)
        if key is None or not self._is_recent(name.version) or not self._can_remember(name.version):
            return  # erased, or of no use: not held
        self.check_model(name.version, offer.model_hash)
        digest = upload_digest(self.digest, name, offer.dealer, cohort, offer.model_hash)
        try:
            keys = key.agree(offer.dealer.key, digest, name.upload, self._slot, name.client)
        except ValueError:
            return
        survivors = self.parameters.target_survivors
        seeded = is_seeded(name.client, self._slot, sorted(cohort), survivors)
        share = Share(self._form, keys, seeded=seeded)
        self._holdings[name.client, name.upload] = _Holding(
            share, Held(name.version, offer.dealer.identity, digest)
        )

    @property
    def _most(self) -> int:
        """More uploads than an honest server has open: one a slot, two buffers full, those of a list."""
        return 2 * self._buffering.capacity + 3 * self._buffering.buffer_size

    def _is_recent(self, version: int) -> bool:
        return version > self.newest - len(self._buffering.weights)

    def _can_remember(self, version: int) -> bool:
        """Whether the version's model is known, or may be; to forget another's would let it be told anew."""
        return version in self._models or len(self._models) < self._most + len(self._buffering.weights)

    def _take_share(self, mask: m.MaskName, take: Callable[[Share], None]) -> list[Action]:
        if mask.upload > max(self._before, self._seen.get(mask.client, -1)):
            raise RemoteProtocolError(Reason.PROTOCOL_VIOLATION, "a share that was not offered")
        holding = self._holdings.get((mask.client, mask.upload))
        if holding is None:
            return []  # spent, or not held
        if mask.version != holding.known.version:
            raise RemoteProtocolError(
                Reason.PROTOCOL_VIOLATION, "a share of another version than was offered"
            )
        take(holding.share)
        if holding.share.is_spoilt:
            del self._holdings[mask.client, mask.upload]
        elif holding.share.is_whole and not holding.is_told:
            holding.is_told = True
            return [Send(SERVER, encode(m.ShareHeld(mask)))]
        return []

    def _endorse(self, updates: m.UpdateList) -> list[Action]:
        if updates == self._stand.updates or self._is_of_before(updates):
            return []
        self._stand_for(updates, self._check(updates))
        with self._spans("endorse"):
            signature = sign_list(self._identity, self._stand.digest)
        return [Send(SERVER, encode(m.Endorse(updates.number, signature)))]

    def _answer(self, certificate: m.ListCertificate) -> list[Action]:
        updates = certificate.list
        if self._is_of_before(updates):
            return []
        is_new = updates != self._stand.updates
        digest = self._check(updates) if is_new else self._stand.digest
        check_list_certificate(certificate, self.parameters, self.slots, digest, self._verifier)
        if is_new:
            self._stand_for(updates, digest)
        chosen, self._stand.chosen = self._stand.chosen, []
        if not chosen:
            return []
        self._stand.is_wanted = True
        parts = sum_parts(self._form, chosen, self._spans)
        return [Stream(SERVER, self._answer_parts(self._stand, updates.number, parts), is_urgent=True)]

    @staticmethod
    def _answer_parts(stand: _Stand, number: int, parts: Iterator[memoryview]) -> Iterator[Send]:
        for index, data in enumerate(parts):
            if not stand.is_wanted:
                return  # the list has ended
            yield Send(SERVER, encode(m.AggregateEncodedMask(number, index, data)))

    def _is_of_before(self, updates: m.UpdateList) -> bool:
        """Whether the list was for the holder before this one, with whom its shares are gone."""
        return any(entry.upload <= self._before for entry in updates.entries)

    def _check(self, updates: m.UpdateList) -> bytes:
        """The list's digest, if the client may stand for it."""
        check_list(
            updates,
            self._buffering,
            self._floors,
            {name: holding.known for name, holding in self._holdings.items() if holding.share.is_whole},
            after=-1 if self._stand.updates is None else self._stand.updates.number,
            newest=self.newest,
            own=self._slot,
            uploaded={number for number, upload in self._own.items() if upload and upload.is_whole},
        )
        uploads = (self._holdings[entry.client, entry.upload].known.digest for entry in updates.entries)
        return list_digest(self.digest, updates, uploads)

    def _stand_for(self, updates: m.UpdateList, digest: bytes) -> None:
        """From here on these shares serve this list or none: another list with one of them finds it gone."""
        chosen = []
        for entry in updates.entries:
            chosen.append((self._holdings.pop((entry.client, entry.upload)).share, entry.weight))
            if entry.client == self._slot:
                self._own.pop(entry.upload, None)
        self._stand.is_wanted = False
        self._stand = _Stand(updates, digest, chosen)
        self.newest = max(self.newest, updates.version)
        self._forget_old()

    def _forget(self, masks: tuple[Name, ...]) -> None:
        for client, upload in masks:
            self._holdings.pop((client, upload), None)
            if client == self._slot:
                self._own.pop(upload, None)
        listed = self._stand.updates
        if listed and {(entry.client, entry.upload) for entry in listed.entries} & set(masks):
            self._stand.chosen = []
            self._stand.is_wanted = False

    def _forget_old(self) -> None:
        """Erase what no list can name any more: lists weigh by versions that do not fall."""
        old = [name for name, holding in self._holdings.items() if not self._is_recent(holding.known.version)]
        self._forget(tuple(old))
        self._models = {version: seen for version, seen in self._models.items() if self._is_recent(version)}

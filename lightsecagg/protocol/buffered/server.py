"""``BufferedServer``: the server of an asynchronous run with masks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from lightsecagg.codec import MaskCodec
from lightsecagg.errors import (
    AbortReason,
    LocalProtocolError,
    ParameterError,
    Reason,
    RemoteProtocolError,
    RoundAborted,
)
from lightsecagg.field import Elements, PrimeField
from lightsecagg.kernels import loops
from lightsecagg.packing import add_packed, check_packed
from lightsecagg.protocol import messages as m
from lightsecagg.protocol.actions import Action, Ready, Send, StageReached, What
from lightsecagg.protocol.attendance import Presence
from lightsecagg.protocol.buffered.buffer import Rules, Upload, add_weighted, listed
from lightsecagg.protocol.buffered.machine import BufferMachine
from lightsecagg.protocol.buffered.results import ListResult, contributions
from lightsecagg.protocol.buffered.views import is_list_signed, list_digest, run_digest, upload_digest
from lightsecagg.protocol.collecting import Answers, ShareTally, unmask
from lightsecagg.protocol.model import model_streams
from lightsecagg.protocol.terms import Run, buffered_parameters, most_summands, quantizer_of, vector_length
from lightsecagg.protocol.transitions import FROM_BUFFERED_CLIENT, BufferStage
from lightsecagg.protocol.uploads import UploadDesk
from lightsecagg.protocol.wire import encode, part_elements
from lightsecagg.quantize import SumOutOfRangeError
from lightsecagg.spans import Spans, no_spans


class BufferedServer(BufferMachine):
    """The server of one asynchronous run with masks (its use: see ``BufferMachine``). Not thread-safe.

    Args:
        run: the run's id and nonce.
        terms: what all clients have configured alike.
        min_clients: fewest clients to whom a mask is dealt; U at least.
        min_buffer_clients: fewest distinct clients in a list, as the clients demand.
        strict_weights: whether they demand T + 2 distinct clients beside each weight.
        upload_slots: masked updates that may be on their way at a time.
        spans: is told what takes how long.

    Raises:
        ParameterError: the numbers do not fit together.
    """

    _rows = FROM_BUFFERED_CLIENT

    def __init__(
        self,
        run: Run,
        terms: m.Terms,
        *,
        min_clients: int = 2,
        min_buffer_clients: int = 1,
        strict_weights: bool = False,
        upload_slots: int = 4,
        spans: Spans = no_spans,
    ) -> None:
        buffering = terms.buffering
        if buffering is None:
            raise ParameterError("wanted the terms of an asynchronous run, found those of a synchronous one")
        self.parameters = buffered_parameters(buffering)
        self._quantizer = quantizer_of(terms)
        field = PrimeField(terms.order)
        self._quantizer.check(field, most_summands(buffering))
        self._length = vector_length(terms)
        self._part = part_elements(field)
        desk = UploadDesk(self._length, self._part, partial(check_packed, field), self._take_in, upload_slots)
        rules = Rules(
            buffering.buffer_size,
            buffering.weights,
            min_buffer_clients,
            self.parameters.privacy_threshold + 2 if strict_weights else 1,
            self.parameters.target_survivors,
        )
        super().__init__(buffering.capacity, rules, desk)
        if rules.least > rules.size:
            raise ParameterError(
                f"a buffer of {rules.size} updates holds no list of {rules.least} clients; enlarge the buffer"
            )
        self._spans = spans
        self._codec = MaskCodec(field, self.parameters)
        self._digest = run_digest(run, terms)
        self._least = max(min_clients, self.parameters.target_survivors, 2)
        self._members: dict[int, m.Member] = {}
        self._tallies: dict[tuple[int, int], ShareTally] = {}
        self._list: m.UpdateList | None = None
        self._holders: frozenset[int] = frozenset()
        self._list_digest = b""
        self._endorsements: dict[int, tuple[bytes, bytes]] = {}
        self._misses: dict[int, int] = {}
        self._debts: dict[int, int] = {}
        self._total: Elements = np.zeros(0, dtype=np.uint32)
        self._answers = Answers(self._codec, self._length)

    @property
    def needed(self) -> int:
        return max(self._least, self.rules.least)

    @property
    def can_decode(self) -> bool:
        return (
            self._stage is BufferStage.RECOVERING
            and len(self._answers.whole) >= self.parameters.target_survivors
        )

    def finish(self) -> ListResult:
        if not self.can_decode or self._list is None:
            raise LocalProtocolError("finish() wants can_decode: U whole answers")
        entries = contributions(
            self._list.version, self._chosen, [entry.weight for entry in self._list.entries]
        )
        try:
            with self._spans("decode"):
                mean, total_weight = unmask(
                    self._codec,
                    self._quantizer,
                    self._total,
                    self._answers.decode(),
                    sum(entry.weight for entry in entries),
                )
        except SumOutOfRangeError as error:
            raise RoundAborted(AbortReason.SUM_OUT_OF_RANGE, str(error)) from None
        self._move(BufferStage.PUBLISHING)
        return ListResult(mean, total_weight, self._list.version, entries)

    def deadline(self) -> list[Action]:
        match self._stage:
            case BufferStage.ENDORSING:
                is_lesson = self._learn(self._holders - self._endorsements.keys())
                return self.abort(AbortReason.TOO_FEW_ENDORSEMENTS, is_lesson=is_lesson)
            case BufferStage.RECOVERING if not self.can_decode:
                is_lesson = self._learn(self._holders - self._answers.whole)
                return self.abort(AbortReason.TOO_FEW_ANSWERS, is_lesson=is_lesson)
            case BufferStage.RECOVERING:
                return [Ready(What.DECODE)]
            case _:
                return []

    def _learn(self, silent: frozenset[int]) -> bool:
        """Build no list on those who were silent, until they have answered for others.

        A dealer could deal so that exactly U hold its update, itself among them, and say nothing to its list.
        Who fails again owes more answers. Where too few are left without them, nobody is to blame.

        Returns:
            whether the next list goes without them.
        """
        for number in silent:
            self._misses[number] = self._debts[number] = self._misses.get(number, 0) + 1
        self._forgive_if_few()
        return not silent.isdisjoint(self._debts)

    def _forgive_if_few(self) -> None:
        if len(self._alive() - self._debts.keys()) < self.needed:
            self._debts.clear()

    def stalled(self) -> list[Action]:
        if self._stage is BufferStage.COLLECTING:
            self._debts.clear()  # those who owe nothing make no list, and so nobody else can pay
        return super().stalled()

    def _choose(self, present: frozenset[int]) -> list[Upload] | None:
        return super()._choose(present - self._debts.keys())

    def _is_held(self, upload: Upload) -> bool:
        return len(upload.holders - self._debts.keys()) >= self.rules.quorum

    def _occupy(self, number: int, member: m.Member | None) -> None:
        assert member is not None, "a run with masks has keys"
        self._members[number] = member

    def _vacate(self, number: int) -> list[Action]:
        del self._members[number]
        self._holders -= {number}
        self._answers.forget(number)
        self._forgive_if_few()
        actions: list[Action] = []
        for upload in [u for u in self._buffer if len(u.holders) < self.rules.quorum]:
            actions += self._evict(upload, Reason.TOO_FEW_HOLDERS)
        for other, upload in list(self._uploads.items()):
            if len(upload.cohort) < self.rules.quorum:
                actions += self._refuse(other, Reason.TOO_FEW_HOLDERS)
        return actions

    def _may_start(self, number: int) -> bool:
        return super()._may_start(number) and len(self._present_members()) >= self._least

    def _present_members(self) -> list[m.Member]:
        return [self._members[number] for number in sorted(self._up())]

    def _begin_upload(self, upload: Upload, member: m.Member | None) -> list[Action]:
        assert member is not None, "a run with masks has keys"
        number, name = upload.name.client, upload.name
        cohort = self._present_members()
        upload.cohort = frozenset(other.rank for other in cohort)
        upload.holders = {number}
        self._tallies[upload.key] = ShareTally(self._codec, name, sorted(upload.cohort), self._length)
        bits = m.bitmap(upload.cohort, self.parameters.num_clients)
        upload.digest = upload_digest(self._digest, name, member, upload.cohort, self._model_hash)
        start = m.UploadStart(name.upload, name.version, tuple(cohort), len(self._model), self._model_hash)
        actions: list[Action] = [Send(number, encode(start))]
        for other in cohort:
            if other.rank != number:
                offer = m.ShareOffer(name, member, other.key, bits, self._model_hash)
                actions.append(Send(other.rank, encode(offer)))
        return [*actions, *model_streams(name.upload, [number], self._model)]

    def _spend(self, uploads: Sequence[Upload]) -> list[Action]:
        for upload in uploads:
            self._tallies.pop(upload.key, None)
        return super()._spend(uploads)

    def _take(self, number: int, message: m.FromClient, raw: bytes | memoryview) -> list[Action]:
        match message:
            case m.SealedSeeds(mask):
                sends = self._tallies[mask.client, mask.upload].relay_seeds(message)
                return self._relay(mask, sends)
            case m.EncodedMask(mask):
                return self._relay(mask, [self._tallies[mask.client, mask.upload].relay_part(message, raw)])
            case m.ShareHeld(mask):
                return self._take_report(number, mask)
            case m.UpdateReady():
                return self._desk.ready(number, waits=self._presence[number] is Presence.UP)
            case m.MaskedUpdate():
                return self._take_update(number, message)
            case m.Withdraw():
                return self._withdraw(number, message.reason)
            case m.Endorse():
                return self._take_signature(number, message)
            case m.AggregateEncodedMask():
                return self._take_answer(number, message)
            case m.Leave():
                return self._leave(number, message.reason)
            case _:  # pragma: no cover - `judge` lets nothing else through
                raise AssertionError(message)

    def _relay(self, mask: m.MaskName, sends: Sequence[Send]) -> list[Action]:
        """To those of the cohort who are not gone: who came back holds nothing, and is no longer in it."""
        cohort = self._uploads[mask.client].cohort
        return [send for send in sends if send.to in cohort]

    def _take_report(self, number: int, mask: m.MaskName) -> list[Action]:
        upload, tally = self._known[mask.client, mask.upload], self._tallies[mask.client, mask.upload]
        if mask != upload.name or number not in upload.cohort - upload.holders or not tally.has_all(number):
            raise RemoteProtocolError(Reason.PROTOCOL_VIOLATION, "a share that this client cannot hold")
        was_held = self._is_held(upload)
        upload.holders.add(number)
        # In the buffer each holder counts: lists are of updates that the same clients hold.
        is_buffered = self._uploads.get(mask.client) is not upload
        self._is_stirred |= is_buffered or self._is_held(upload) is not was_held
        return []

    def _begin_list(self, chosen: Sequence[Upload], weights: Sequence[int]) -> list[Action]:
        field = self._codec.field
        with self._spans("sum"):
            self._total = np.zeros(self._length, dtype=np.uint32)
            add_weighted(
                self._total,
                self._part,
                chosen,
                weights,
                partial(add_packed, field),
                lambda piece: loops(len(piece)).add(piece, piece, field.order),
            )
        self._list = m.UpdateList(self.list_number, self.version, listed(chosen, self.version, self.rules))
        self._list_digest = list_digest(self._digest, self._list, (upload.digest for upload in chosen))
        self._holders = self._alive().intersection(*(upload.holders for upload in chosen))
        self._endorsements = {}
        self._answers = Answers(self._codec, self._length)
        self._move(BufferStage.ENDORSING)
        return self._send_to(self._holders, encode(m.ListAnnounced(self._list)))

    def _take_signature(self, number: int, message: m.Endorse) -> list[Action]:
        if number not in self._holders or number in self._endorsements:
            raise RemoteProtocolError(Reason.PROTOCOL_VIOLATION, "an endorsement that was not asked for")
        identity = self._members[number].identity
        if not is_list_signed(identity, message.signature, self._list_digest):
            raise RemoteProtocolError(Reason.BAD_SIGNATURE, "an endorsement that does not verify")
        self._endorsements[number] = identity, message.signature
        return []

    def _take_answer(self, number: int, message: m.AggregateEncodedMask) -> list[Action]:
        if number not in self._holders:
            raise RemoteProtocolError(Reason.PROTOCOL_VIOLATION, "an answer that was not asked for")
        if self.can_decode:
            self.late_messages += 1
            return []
        self._answers.take(number, message.index, message.data)
        if number in self._debts and number in self._answers.whole:
            self._pay(number)
        return []

    def _pay(self, number: int) -> None:
        self._debts[number] -= 1
        if not self._debts[number]:
            del self._debts[number]
            self._is_stirred = True

    def _advance(self) -> list[Action]:
        wanted, left = self.parameters.target_survivors, len(self._holders)
        match self._stage:
            case BufferStage.COLLECTING:
                return self._offer_list()
            case BufferStage.ENDORSING if left < wanted:
                return self.abort(AbortReason.TOO_FEW_ENDORSEMENTS)
            case BufferStage.ENDORSING if len(self._endorsements) >= wanted:
                return self._certify()
            case BufferStage.RECOVERING if self.can_decode:
                return self._offer(What.DECODE)
            case BufferStage.RECOVERING if len(self._answers.whole | self._holders) < wanted:
                return self.abort(AbortReason.TOO_FEW_ANSWERS)
            case _:
                return []

    def _certify(self) -> list[Action]:
        assert self._list is not None
        endorsers = sorted(self._endorsements)[: self.parameters.target_survivors]
        identities, signatures = zip(*(self._endorsements[number] for number in endorsers), strict=True)
        certificate = m.ListCertificate(
            self._list,
            m.bitmap(set(endorsers), self.parameters.num_clients),
            b"".join(identities),
            b"".join(signatures),
        )
        self._move(BufferStage.RECOVERING)
        return [
            StageReached(self._stage.value),
            *self._send_to(self._holders, encode(certificate)),
        ]

    def _end_list(self) -> list[Action]:
        self._list, self._holders = None, frozenset()
        self._total = np.zeros(0, dtype=np.uint32)
        self._answers = Answers(self._codec, self._length)
        return super()._end_list()

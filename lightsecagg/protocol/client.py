"""``ClientRound``: a client's side of one secure round."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from lightsecagg.codec import MaskCodec
from lightsecagg.errors import LocalProtocolError, Reason, RemoteProtocolError, UpdateError
from lightsecagg.field import Elements, PrimeField
from lightsecagg.identity import Identity, Roster, Verifier, verify
from lightsecagg.kernels import loops
from lightsecagg.labels import ENDORSEMENT
from lightsecagg.packing import pack
from lightsecagg.parameters import Parameters
from lightsecagg.protocol import messages as m
from lightsecagg.protocol.actions import SERVER, Action, Ready, Send, Stream, What
from lightsecagg.protocol.checks import check_certificate, check_same, check_start, check_survivors
from lightsecagg.protocol.client_machine import ClientMachine, Running
from lightsecagg.protocol.dealing import Dealing
from lightsecagg.protocol.holding import Holding
from lightsecagg.protocol.model import ModelAssembly
from lightsecagg.protocol.terms import (
    Floors,
    Run,
    cohort_digest,
    make_member,
    quantizer_of,
    vector_length,
)
from lightsecagg.protocol.transitions import CLIENT_MOVES, FROM_SERVER, ClientStage, move
from lightsecagg.protocol.uploads import OutgoingUpload
from lightsecagg.protocol.wire import encode, part_elements
from lightsecagg.quantize import WeightedUpdate
from lightsecagg.randomness import Entropy, system_entropy
from lightsecagg.sealing import PairKeys, RoundKey
from lightsecagg.spans import Spans, no_spans


@dataclass(kw_only=True)
class _Running(Running):
    number: int
    parameters: Parameters
    cohort: tuple[m.Member, ...]
    digest: bytes
    dealing: Dealing
    holding: Holding
    is_dealt: bool = False
    signed: frozenset[int] | None = None


class ClientRound(ClientMachine[m.RoundStart, _Running]):
    """One client, one round, one mask, one update. Not thread-safe; the iterators it gives own their data and
    may be pulled in another thread.

    Whatever the server says is checked against the client's own settings (DESIGN §3, promise 4); on a breach
    the client leaves the round with a reason and erases what it holds.

    Args:
        identity: the client's long-term key pair.
        rank: its name in the run.
        run: the run's id and nonce.
        terms: what it has configured and every client must have alike.
        floors: what it demands of a round.
        roster: who may take part; None for an open run.
        sequence: number of this round key, unique in the run.
        after_round: the highest round number seen so far.
        entropy: source of every secret.
        verifier: checks what the other clients signed.
        spans: is told what takes how long.
    """

    _rows = FROM_SERVER
    _opening = m.RoundStart

    def __init__(
        self,
        identity: Identity,
        rank: int,
        run: Run,
        terms: m.Terms,
        *,
        floors: Floors | None = None,
        roster: Roster | None = None,
        sequence: int = 0,
        after_round: int = 0,
        entropy: Entropy = system_entropy,
        verifier: Verifier = verify,
        spans: Spans = no_spans,
    ) -> None:
        super().__init__(after_round)
        self._identity = identity
        self._run = run
        self._terms = terms
        self._floors = floors or Floors()
        self._roster = roster
        self._entropy = entropy
        self._verifier = verifier
        self._spans = spans
        self._round_key: RoundKey | None = RoundKey(entropy)
        self._length = vector_length(terms)
        self.member = make_member(identity, run, rank, sequence, self._round_key.public)
        """The client's entry in a cohort: what it publishes ahead of the round."""

    def __repr__(self) -> str:
        return f"ClientRound(rank={self.member.rank}, round={self.round_number}, stage={self._stage.value})"

    @property
    def parameters(self) -> Parameters | None:
        """N, U and T of the round, while it runs."""
        return None if self._running is None else self._running.parameters

    @property
    def can_upload(self) -> bool:
        """Whether ``upload()`` may be called: the shares are out, and no update was given."""
        return self._running is not None and self._running.dealing.has_mask

    def round_key(self) -> Send:
        """What tells the server this client's key, ahead of the round."""
        member = self.member
        return Send(SERVER, encode(m.RoundKeyMessage(member.sequence, member.key, member.signature)))

    def shares(self) -> Iterator[Send]:
        """The client's shares for the others, computed as they are pulled; once, after ``Ready(SHARING)``.

        Raises:
            LocalProtocolError: not now, or not again.
        """
        running = self._running
        if running is None or running.is_dealt:
            raise LocalProtocolError("shares() is for once, after Ready(SHARING)")
        running.is_dealt = True
        return (
            Send(SERVER, encode(message))
            for message in running.dealing.messages(lambda: self._stage is not ClientStage.SHARING)
        )

    def upload(self, update: Elements | WeightedUpdate) -> Iterator[Send]:
        """Hand over the one update of this round; its parts follow as a ``Stream`` when a grant comes.

        Args:
            update: (d,) floats and their weight, which are quantized as they go under the mask; or
                (d + 1,) uint32, as ``FixedPoint.quantize`` gives it. It must not change afterwards.

        Raises:
            LocalProtocolError: the round is not running, an update was given before, or ``shares()`` was not
                pulled to its end.
            UpdateError: the update has another shape or type.
        """
        running = self._running
        if running is None or running.upload is not None:
            raise LocalProtocolError("upload() is for once, while the round runs")
        self._check_update(update)
        field, number = PrimeField(self._terms.order), running.round
        running.upload = OutgoingUpload(
            update,
            partial(self._conceal, running.dealing.take_mask()),
            self._length,
            part_elements(field),
            partial(pack, field),
            lambda grant, index, data: m.MaskedUpdate(number, grant, index, data),
            self._spans,
        )
        return iter([Send(SERVER, encode(m.UpdateReady(number)))])

    def _check_update(self, update: Elements | WeightedUpdate) -> None:
        if isinstance(update, WeightedUpdate):
            if update.values.shape != (self._length - 1,):
                raise UpdateError(f"wanted shape ({self._length - 1},), found {update.values.shape}")
            quantizer_of(self._terms).check_update(update.values, update.weight)
            return
        if update.shape != (self._length,) or update.dtype != np.uint32:
            raise UpdateError(
                f"wanted uint32 of shape ({self._length},), found {update.dtype} of shape {update.shape}"
            )
        if not PrimeField(self._terms.order).contains(update):
            raise UpdateError(f"an element of the update is not below the order {self._terms.order}")

    def _conceal(self, mask: Elements, update: Elements | WeightedUpdate) -> Elements:
        """The masked update, in the mask's own memory."""
        with self._spans("mask"):
            if isinstance(update, WeightedUpdate):
                field, quantizer = PrimeField(self._terms.order), quantizer_of(self._terms)
                quantizer.add_to(field, mask, update.values, update.weight, self._entropy)
            else:
                loops(len(mask)).add(mask, np.ascontiguousarray(update), self._terms.order)
        return mask

    def _take(self, running: _Running, message: m.FromServer) -> list[Action]:
        match message:
            case m.SealedSeed() | m.EncodedMask() if message.mask.upload:
                raise RemoteProtocolError(Reason.PROTOCOL_VIOLATION, "a share of no mask of this round")
            case m.SealedSeed():
                running.holding.take_seed(message.mask.client, message.data)
                return []
            case m.EncodedMask():
                if message.receiver != running.number:
                    raise RemoteProtocolError(Reason.PROTOCOL_VIOLATION, "a share for somebody else")
                running.holding.take_part(message.mask.client, message.index, message.data)
                return []
            case m.ReportShares():
                return self._report(running)
            case m.Candidates():
                self._stage = move(CLIENT_MOVES, self._stage, ClientStage.CANDIDATES)
                return []
            case m.SurvivorSet():
                return self._endorse(running, message)
            case m.Certificate():
                return self._answer(running, message)
            case _:  # pragma: no cover - `judge` lets nothing else through
                raise AssertionError(message)

    def _start(self, start: m.RoundStart) -> list[Action]:
        parameters = check_start(
            start, self._terms, self._floors, self.member, self._run, self._roster, self._verifier
        )
        digest = cohort_digest(self._run, start)
        number = start.cohort.index(self.member) + 1
        keys = self._agree(start, digest, number)
        codec = MaskCodec(PrimeField(self._terms.order), parameters)
        name = m.MaskName(number, start.round, 0)
        dealing = Dealing(codec, name, self._length, keys, self._entropy, self._spans)
        holding = Holding(codec, number, self._length, keys)
        holding.keep_own(dealing.own_seed)
        self._running = running = _Running(
            round=start.round,
            assembly=ModelAssembly(start.model_length, start.model_hash),
            number=number,
            parameters=parameters,
            cohort=start.cohort,
            digest=digest,
            dealing=dealing,
            holding=holding,
        )
        self._stage = move(CLIENT_MOVES, self._stage, ClientStage.SHARING)
        return [Ready(What.SHARING), *self._offer_training(running)]

    def _agree(self, start: m.RoundStart, digest: bytes, own: int) -> dict[int, PairKeys]:
        round_key, self._round_key = self._round_key, None
        assert round_key is not None
        try:
            return {
                number: round_key.agree(member.key, digest, start.round, own, number)
                for number, member in enumerate(start.cohort, start=1)
                if number != own
            }
        except ValueError:
            raise RemoteProtocolError(Reason.BAD_COHORT, "a round key is no usable X25519 key") from None

    def _report(self, running: _Running) -> list[Action]:
        self._stage = move(CLIENT_MOVES, self._stage, ClientStage.REPORTED)
        held = m.bitmap(running.holding.held, running.parameters.num_clients)
        return [Send(SERVER, encode(m.SharesHeld(running.round, held)))]

    def _check_survivors(self, running: _Running, bits: bytes) -> frozenset[int]:
        if running.signed is not None:
            return check_same(bits, running.parameters, running.signed)
        return check_survivors(
            bits,
            running.parameters,
            running.holding.held,
            own=running.number,
            uploaded=running.upload is not None and running.upload.is_whole,
        )

    def _endorse(self, running: _Running, message: m.SurvivorSet) -> list[Action]:
        survivors = self._check_survivors(running, message.survivors)
        if running.signed is not None:
            return []
        if running.upload is not None:
            running.upload.halt()  # what is not in the sum by now need not be sent
        self._stage = move(CLIENT_MOVES, self._stage, ClientStage.ENDORSED)
        running.signed = survivors
        with self._spans("endorse"):
            signature = self._identity.sign(ENDORSEMENT, running.digest, message.survivors)
        return [Send(SERVER, encode(m.Endorse(running.round, signature)))]

    def _answer(self, running: _Running, certificate: m.Certificate) -> list[Action]:
        survivors = self._check_survivors(running, certificate.survivors)
        check_certificate(certificate, running.parameters, running.cohort, running.digest, self._verifier)
        if self._stage is ClientStage.ANSWERED:
            return []
        running.signed = survivors
        self._stage = move(CLIENT_MOVES, self._stage, ClientStage.ANSWERED)
        number = running.round
        parts = running.holding.answer(survivors, self._spans)
        return [
            Stream(
                SERVER,
                (
                    Send(SERVER, encode(m.AggregateEncodedMask(number, index, data)))
                    for index, data in enumerate(parts)
                ),
            )
        ]

    def _end(self) -> None:
        if self._running is not None:
            self._running.holding.erase()
        self._round_key = None
        super()._end()

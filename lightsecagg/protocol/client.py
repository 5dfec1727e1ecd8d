"""``ClientRound``: a client's side of one secure round."""

from __future__ import annotations

from dataclasses import dataclass

from lightsecagg.codec import MaskCodec
from lightsecagg.errors import Reason, RemoteProtocolError
from lightsecagg.field import PrimeField
from lightsecagg.labels import ENDORSEMENT
from lightsecagg.parameters import Parameters
from lightsecagg.protocol import messages as m
from lightsecagg.protocol.actions import SERVER, Action, Ready, Send, Stream, What
from lightsecagg.protocol.checks import check_certificate, check_same, check_start, check_survivors
from lightsecagg.protocol.dealing import Dealing
from lightsecagg.protocol.holding import Holding
from lightsecagg.protocol.masking import MaskedRunning, MaskingClient
from lightsecagg.protocol.model import ModelAssembly
from lightsecagg.protocol.terms import (
    cohort_digest,
)
from lightsecagg.protocol.transitions import CLIENT_MOVES, FROM_SERVER, ClientStage, move
from lightsecagg.protocol.wire import encode


@dataclass(kw_only=True)
class _Running(MaskedRunning):
    number: int
    parameters: Parameters
    cohort: tuple[m.Member, ...]
    digest: bytes
    holding: Holding
    signed: frozenset[int] | None = None


class ClientRound(MaskingClient[m.RoundStart, _Running]):
    """One client, one synchronous round (its use: see ``MaskingClient``). Not thread-safe."""

    _rows = FROM_SERVER
    _opening = m.RoundStart

    @property
    def parameters(self) -> Parameters | None:
        """N, U and T of the round, while it runs."""
        return None if self._running is None else self._running.parameters

    def _shares_matter(self, running: _Running) -> bool:
        return super()._shares_matter(running) and self._stage is ClientStage.SHARING

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
        peers = {peer: member.key for peer, member in enumerate(start.cohort, start=1) if peer != number}
        keys = self._agree(peers, digest, start.round, number)
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
                is_urgent=True,
            )
        ]

    def _end(self) -> None:
        if self._running is not None:
            self._running.holding.erase()
        super()._end()

"""``ServerRound``: the server's side of one secure round."""

from __future__ import annotations

import hashlib
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
from lightsecagg.field import PrimeField
from lightsecagg.identity import verify
from lightsecagg.labels import ENDORSEMENT
from lightsecagg.packing import add_packed, check_packed
from lightsecagg.parameters import Parameters
from lightsecagg.protocol import messages as m
from lightsecagg.protocol.actions import (
    Action,
    ClientDropped,
    Ready,
    Send,
    StageReached,
    UploadCompleted,
    What,
)
from lightsecagg.protocol.attendance import Presence
from lightsecagg.protocol.collecting import Answers, RoundResult, ShareTally, unmask
from lightsecagg.protocol.cover import settle
from lightsecagg.protocol.model import model_streams
from lightsecagg.protocol.server_machine import ServerMachine
from lightsecagg.protocol.terms import Run, cohort_digest, cohort_flaw, quantizer_of, vector_length
from lightsecagg.protocol.transitions import FROM_CLIENT, ServerStage
from lightsecagg.protocol.uploads import RunningSum, UploadDesk
from lightsecagg.protocol.wire import encode, part_elements
from lightsecagg.quantize import SumOutOfRangeError
from lightsecagg.spans import Spans, no_spans


class ServerRound(ServerMachine):
    """The server of one secure round (its use: see ``ServerMachine``). Not thread-safe.

    A stage that fewer than U clients can still finish aborts at once.

    Args:
        run: the run's id and nonce.
        round_number: above every number used in the run.
        parameters: N, U, T.
        terms: what all clients have configured alike.
        cohort: the clients' entries, ranks ascending; client numbers are the places from 1.
        model: the global model, opaque.
        upload_slots: masked updates that may be on their way at a time.
        spans: is told what takes how long.

    Raises:
        ParameterError: the numbers, the field and the cohort do not fit together.
    """

    _rows = FROM_CLIENT
    _first = ServerStage.SHARING

    def __init__(
        self,
        run: Run,
        round_number: int,
        parameters: Parameters,
        terms: m.Terms,
        cohort: Sequence[m.Member],
        model: bytes = b"",
        *,
        upload_slots: int = 4,
        spans: Spans = no_spans,
    ) -> None:
        if len(cohort) != parameters.num_clients:
            raise ParameterError(
                f"wanted N = {parameters.num_clients} clients in the cohort, found {len(cohort)}"
            )
        if (flaw := cohort_flaw(cohort)) is not None:
            raise ParameterError(f"the cohort is malformed: {flaw}")
        self._quantizer = quantizer_of(terms)
        field = PrimeField(terms.order)
        self._quantizer.check(field, parameters.num_clients)
        length = vector_length(terms)
        part = part_elements(field)
        self._sum = RunningSum(np.zeros(length, dtype=np.uint32), part, partial(add_packed, field), spans)
        desk = UploadDesk(length, part, partial(check_packed, field), self._sum.take, upload_slots)
        super().__init__(round_number, parameters.num_clients, parameters.target_survivors, desk)
        self.parameters = parameters
        self._spans = spans
        self._codec = MaskCodec(field, parameters)
        self._model = model
        self._start = m.RoundStart(
            round_number,
            terms,
            parameters.target_survivors,
            parameters.privacy_threshold,
            tuple(cohort),
            len(model),
            hashlib.sha256(model).digest(),
        )
        self._digest = cohort_digest(run, self._start)
        names = (m.MaskName(number, round_number, 0) for number in self._codec.clients)
        self._tallies = [ShareTally(self._codec, name, self._codec.clients, length) for name in names]
        self._dealt: set[int] = set()  # whose shares all went through
        self._reports: dict[int, frozenset[int]] = {}
        self._holders: frozenset[int] = frozenset()  # whose reports cover every update that is in
        self._candidates: frozenset[int] = frozenset()
        self._unconfirmed: frozenset[int] = frozenset()
        self._survivors: frozenset[int] = frozenset()
        self._signatures: dict[int, bytes] = {}
        self._answers = Answers(self._codec, length)

    @property
    def survivors(self) -> frozenset[int]:
        """S once it is frozen; until then the clients whose updates are in."""
        return self._survivors or self._desk.inside

    @property
    def missing(self) -> frozenset[int]:
        """Whom the present stage still waits for, and who may still come."""
        alive = self._alive()
        match self._stage:
            case ServerStage.SHARING:
                return alive - self._dealt
            case ServerStage.REPORTING:
                return alive - self._reports.keys()
            case ServerStage.UPLOADING:
                return (self._candidates & alive) - self._desk.inside
            case ServerStage.ENDORSING:
                return (self._holders & alive) - self._signatures.keys()
            case ServerStage.RECOVERING:
                return (self._holders & alive) - self._answers.whole
            case _:
                return frozenset()

    @property
    def unconfirmed(self) -> frozenset[int]:
        return self._unconfirmed

    @property
    def can_freeze(self) -> bool:
        """Whether S may be fixed now: |S| ≥ U and at least U clients that hold all of it are not gone."""
        wanted = self.parameters.target_survivors
        return (
            self._stage is ServerStage.UPLOADING
            and len(self._desk.inside) >= wanted
            and len(self._holders & self._alive()) >= wanted
        )

    @property
    def can_close(self) -> bool:
        if not self.missing.isdisjoint(self._up()):
            return False
        match self._stage:
            case ServerStage.SHARING | ServerStage.REPORTING:
                return len(self._alive() - self.missing) >= self.parameters.target_survivors
            case _:
                return self.can_freeze

    @property
    def can_decode(self) -> bool:
        """Whether U whole answers are here: ``finish()`` yields the result."""
        return (
            self._stage is ServerStage.RECOVERING
            and len(self._answers.whole) >= self.parameters.target_survivors
        )

    def start(self) -> list[Action]:
        """Open the round: everybody hears of it, then gets the model."""
        opening = encode(self._start)
        actions: list[Action] = [StageReached(self._stage.value)]
        actions += [Send(number, opening) for number in self._presence]
        actions += model_streams(self.round_number, self._presence, self._model)
        return actions

    def deadline(self) -> list[Action]:
        """Close the present stage with those who finished it, or abort where they are too few."""
        match self._stage:
            case ServerStage.SHARING:
                return self._ask_for_reports()
            case ServerStage.REPORTING:
                return self._announce_candidates()
            case ServerStage.UPLOADING:
                return self.freeze() if self.can_freeze else self.abort(AbortReason.TOO_FEW_UPDATES)
            case ServerStage.ENDORSING:
                return self.abort(AbortReason.TOO_FEW_ENDORSEMENTS)
            case ServerStage.RECOVERING:
                return [Ready(What.DECODE)] if self.can_decode else self.abort(AbortReason.TOO_FEW_ANSWERS)
            case _:
                return []

    def freeze(self) -> list[Action]:
        """Fix S as the clients whose updates are in, and ask its holders to sign it.

        Raises:
            LocalProtocolError: ``can_freeze`` is false.
        """
        if not self.can_freeze:
            raise LocalProtocolError("freeze() wants can_freeze: U updates in, and U holders of them")
        self._survivors = self._desk.inside
        self._desk.admit(())
        self._move(ServerStage.ENDORSING)
        message = encode(m.SurvivorSet(self.round_number, self._bits(self._survivors)))
        return [StageReached(self._stage.value), *self._send_to(self._holders, message), *self._settle()]

    def finish(self) -> RoundResult:
        """Decode Σz, subtract it, and average; ``end()`` then tells the clients. Again: the same result.

        Raises:
            LocalProtocolError: ``can_decode`` is false.
            RoundAborted: the round was aborted, or its sum lies where no honest sum can.
        """
        if self._abort_reason is not None:
            raise RoundAborted(self._abort_reason)
        if self._result is not None:
            return self._result
        if not self.can_decode:
            raise LocalProtocolError("finish() wants can_decode: U whole answers")
        try:
            with self._spans("decode"):
                mean, total_weight = unmask(
                    self._codec,
                    self._quantizer,
                    self._sum.total,
                    self._answers.decode(),
                    len(self._survivors),
                )
        except SumOutOfRangeError as error:
            self._abort_reason = AbortReason.SUM_OUT_OF_RANGE
            self._move(ServerStage.ABORTED)
            raise RoundAborted(self._abort_reason, str(error)) from None
        self._result = RoundResult(mean, total_weight, tuple(sorted(self._survivors)))
        self._move(ServerStage.DONE)
        return self._result

    def _dealers(self) -> frozenset[int]:
        """Clients that are left and whose shares all went through."""
        return self._alive() & self._dealt

    def _bits(self, numbers: frozenset[int]) -> bytes:
        return m.bitmap(numbers, self.parameters.num_clients)

    def _take(self, number: int, message: m.FromClient, raw: bytes | memoryview) -> list[Action]:
        match message:
            case m.SealedSeeds():
                return self._relay(number, self._tallies[number - 1].relay_seeds(message))
            case m.EncodedMask():
                return self._relay(number, [self._tallies[number - 1].relay_part(message, raw)])
            case m.SharesHeld():
                return self._take_report(number, message)
            case m.UpdateReady():
                return self._desk.ready(number, waits=self._presence[number] is Presence.UP)
            case m.MaskedUpdate():
                return self._take_update(number, message)
            case m.Endorse():
                return self._take_signature(number, message)
            case m.AggregateEncodedMask():
                return self._take_answer(number, message)
            case m.Leave():
                return self._drop(ClientDropped(number, message.reason, left=True))
            case _:  # pragma: no cover - `judge` lets nothing else through
                raise AssertionError(message)

    def _relay(self, sender: int, sends: list[Send]) -> list[Action]:
        if self._tallies[sender - 1].is_all:
            self._dealt.add(sender)
        return [send for send in sends if self._presence[send.to] is not Presence.GONE]

    def _take_report(self, number: int, message: m.SharesHeld) -> list[Action]:
        if number in self._reports:
            raise RemoteProtocolError(Reason.PROTOCOL_VIOLATION, "a second report")
        held = m.members(message.held, self.parameters.num_clients)
        if held is None:
            raise RemoteProtocolError(Reason.MALFORMED, "a report that is no set of this cohort")
        self._reports[number] = held
        return []

    def _take_update(self, number: int, message: m.MaskedUpdate) -> list[Action]:
        actions = self._take_part(number, message)
        if UploadCompleted(number) in actions:
            self._holders = frozenset(n for n in self._holders if number in self._reports[n])
        return actions

    def _take_signature(self, number: int, message: m.Endorse) -> list[Action]:
        if number in self._signatures or number not in self._holders:
            raise RemoteProtocolError(Reason.PROTOCOL_VIOLATION, "an endorsement that was not asked for")
        identity = self._start.cohort[number - 1].identity
        if not verify(identity, message.signature, ENDORSEMENT, self._digest, self._bits(self._survivors)):
            raise RemoteProtocolError(Reason.BAD_SIGNATURE, "an endorsement that does not verify")
        self._signatures[number] = message.signature
        return []

    def _take_answer(self, number: int, message: m.AggregateEncodedMask) -> list[Action]:
        if number not in self._holders:
            raise RemoteProtocolError(Reason.PROTOCOL_VIOLATION, "an answer that was not asked for")
        if self.can_decode:
            self.late_messages += 1
            return []
        self._answers.take(number, message.index, message.data)
        return []

    def _settle(self) -> list[Action]:
        """What follows from the present state: a step on, an abort, or an offer to the caller."""
        if self._is_over():
            return []
        if (hopeless := self._hopeless()) is not None:
            return self.abort(hopeless)
        match self._stage:
            case ServerStage.ENDORSING:
                enough = len(self._signatures) >= self.parameters.target_survivors
                return self._certify() if enough else []
            case ServerStage.RECOVERING:
                return self._offer(What.DECODE) if self.can_decode else []
        return self._offer_close() if self.missing else self._everybody_finished()

    def _everybody_finished(self) -> list[Action]:
        match self._stage:
            case ServerStage.SHARING:
                return self._ask_for_reports()
            case ServerStage.REPORTING:
                return self._announce_candidates()
            case _:
                return self._offer(What.FREEZE)

    def _drop(self, dropped: ClientDropped) -> list[Action]:
        self._answers.forget(dropped.number)
        return super()._drop(dropped)

    def _hopeless(self) -> AbortReason | None:
        """Why fewer than U clients can still finish the present stage and those after it, or None."""
        alive, wanted = self._alive(), self.parameters.target_survivors
        match self._stage:
            case ServerStage.SHARING | ServerStage.REPORTING if len(alive) < wanted:
                return AbortReason.TOO_FEW_SHARED
            case ServerStage.REPORTING if len(self._dealers()) < wanted:
                return AbortReason.TOO_FEW_SHARED
            case ServerStage.UPLOADING if len(self._desk.inside | (self._candidates & alive)) < wanted:
                return AbortReason.TOO_FEW_UPDATES
            case ServerStage.UPLOADING | ServerStage.ENDORSING if len(self._holders & alive) < wanted:
                return AbortReason.TOO_FEW_ENDORSEMENTS
            case ServerStage.RECOVERING if len(self._answers.whole | (self._holders & alive)) < wanted:
                return AbortReason.TOO_FEW_ANSWERS
            case _:
                return None

    def _ask_for_reports(self) -> list[Action]:
        self._move(ServerStage.REPORTING)
        message = encode(m.ReportShares(self.round_number))
        return [StageReached(self._stage.value), *self._send_to(self._presence, message), *self._settle()]

    def _announce_candidates(self) -> list[Action]:
        alive = self._alive()
        candidates = self._dealers()
        answerers = frozenset(self._reports.keys() & alive)
        complaints = [(i, j) for j in answerers for i in candidates - self._reports[j]]
        cover = settle(candidates, answerers, complaints)
        candidates, answerers = candidates - cover.senders, answerers - cover.receivers
        if min(len(candidates), len(answerers)) < self.parameters.target_survivors:
            return self.abort(AbortReason.TOO_FEW_SHARED)
        self._candidates, self._unconfirmed = candidates, cover.senders
        self._holders = frozenset(self._reports)
        self._move(ServerStage.UPLOADING)
        message = encode(m.Candidates(self.round_number, self._bits(candidates)))
        actions: list[Action] = [StageReached(self._stage.value), *self._send_to(self._presence, message)]
        actions += self._desk.admit(candidates)
        return [*actions, *self._settle()]

    def _certify(self) -> list[Action]:
        endorsers = sorted(self._signatures)[: self.parameters.target_survivors]
        certificate = m.Certificate(
            self.round_number,
            self._bits(self._survivors),
            self._bits(frozenset(endorsers)),
            b"".join(self._signatures[n] for n in endorsers),
        )
        self._move(ServerStage.RECOVERING)
        return [
            StageReached(self._stage.value),
            *self._send_to(self._holders, encode(certificate)),
            *self._settle(),
        ]

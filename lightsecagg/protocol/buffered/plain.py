"""``PlainBufferedServer``: buffered asynchronous averaging without masks (FedBuff), for comparison.

Its clients are those of plain rounds: to them an upload is a round. Source: Nguyen et al., "Federated
learning with buffered asynchronous aggregation", AISTATS 2022.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lightsecagg.errors import LocalProtocolError, Reason
from lightsecagg.protocol import messages as m
from lightsecagg.protocol.actions import Action, Send, What
from lightsecagg.protocol.attendance import Presence
from lightsecagg.protocol.buffered.buffer import Rules, Upload, add_weighted
from lightsecagg.protocol.buffered.machine import BufferMachine
from lightsecagg.protocol.buffered.results import ListResult, contributions
from lightsecagg.protocol.model import model_streams
from lightsecagg.protocol.plain import PLAIN_PART, add_floats, mean_of, read_floats
from lightsecagg.protocol.transitions import FROM_PLAIN_BUFFERED_CLIENT, BufferStage
from lightsecagg.protocol.uploads import UploadDesk
from lightsecagg.protocol.wire import encode
from lightsecagg.spans import Spans, no_spans


class PlainBufferedServer(BufferMachine):
    """The server of one asynchronous run without masks (its use: see ``BufferMachine``). Not thread-safe.

    Args:
        capacity: slots, and so client numbers, are 1..capacity.
        rules: what a list must be.
        dimension: d, coordinates of an update.
        max_weight: the weight that counts as 1.
        min_clients: fewest clients with whom the run goes on.
        upload_slots: updates that may be on their way at a time.
        spans: is told what takes how long.
    """

    _rows = FROM_PLAIN_BUFFERED_CLIENT

    def __init__(
        self,
        capacity: int,
        rules: Rules,
        dimension: int,
        max_weight: int,
        *,
        min_clients: int = 1,
        upload_slots: int = 4,
        spans: Spans = no_spans,
    ) -> None:
        desk = UploadDesk(dimension + 1, PLAIN_PART, read_floats, self._take_in, upload_slots)
        super().__init__(capacity, rules, desk)
        self._length = dimension + 1
        self._max_weight = max_weight
        self._least = max(min_clients, rules.least)
        self._spans = spans
        self._total: npt.NDArray[np.float64] = np.zeros(0)
        self._weights: Sequence[int] = ()

    @property
    def needed(self) -> int:
        return self._least

    @property
    def can_decode(self) -> bool:
        return self._stage is BufferStage.RECOVERING

    def finish(self) -> ListResult:
        if not self.can_decode:
            raise LocalProtocolError("finish() wants can_decode: freeze() first")
        mean, weight = mean_of(self._total, self._max_weight)
        self._move(BufferStage.PUBLISHING)
        return ListResult(
            mean, weight, self.version, contributions(self.version, self._chosen, self._weights)
        )

    def deadline(self) -> list[Action]:
        return []

    def _occupy(self, number: int, member: m.Member | None) -> None:
        pass

    def _vacate(self, number: int) -> list[Action]:  # noqa: ARG002
        return []

    def _begin_upload(self, upload: Upload, member: m.Member | None) -> list[Action]:  # noqa: ARG002
        number = upload.name.client
        opening = m.PlainStart(upload.name.upload, len(self._model), self._model_hash)
        return [
            Send(number, encode(opening)),
            *model_streams(upload.name.upload, [number], self._model),
        ]

    def _take(self, number: int, message: m.FromClient, raw: bytes | memoryview) -> list[Action]:  # noqa: ARG002
        match message:
            case m.UpdateReady():
                return self._desk.ready(number, waits=self._presence[number] is Presence.UP)
            case m.PlainUpdate():
                return self._take_update(number, message)
            case m.Leave():
                return self._leave(number, message.reason)
            case _:  # pragma: no cover - `judge` lets nothing else through
                raise AssertionError(message)

    def _leave(self, number: int, reason: Reason) -> list[Action]:
        if reason in (Reason.NOT_FINITE, Reason.TRAINING_FAILED) and number in self._uploads:
            return self._withdraw(number, reason)  # a client without masks has no other word for it
        return super()._leave(number, reason)

    def _begin_list(self, chosen: Sequence[Upload], weights: Sequence[int]) -> list[Action]:
        self._total, self._weights = np.zeros(self._length), weights
        with self._spans("sum"):
            add_weighted(self._total, PLAIN_PART, chosen, weights, add_floats, _double)
        self._move(BufferStage.RECOVERING)
        return []

    def _advance(self) -> list[Action]:
        match self._stage:
            case BufferStage.COLLECTING:
                return self._offer_list()
            case BufferStage.RECOVERING:
                return self._offer(What.DECODE)
            case _:
                return []


def _double(piece: npt.NDArray[np.float64]) -> None:
    piece *= 2

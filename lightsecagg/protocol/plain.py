"""The pair without masks: plain federated averaging, for comparison.

Its machines are separate from the secure pair's, and its messages are others: a client configured for secure
aggregation has no way to send what these send.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from lightsecagg.errors import (
    AbortReason,
    LocalProtocolError,
    NotFiniteError,
    Reason,
    RemoteProtocolError,
    RoundAborted,
    UpdateError,
)
from lightsecagg.protocol import messages as m
from lightsecagg.protocol.actions import (
    SERVER,
    Action,
    ClientDropped,
    Send,
    StageReached,
    What,
)
from lightsecagg.protocol.attendance import Presence
from lightsecagg.protocol.client_machine import ClientMachine, Running
from lightsecagg.protocol.collecting import RoundResult
from lightsecagg.protocol.model import ModelAssembly, model_streams
from lightsecagg.protocol.server_machine import ServerMachine
from lightsecagg.protocol.transitions import (
    CLIENT_MOVES,
    FROM_PLAIN_CLIENT,
    FROM_PLAIN_SERVER,
    ClientStage,
    ServerStage,
    move,
)
from lightsecagg.protocol.uploads import OutgoingUpload, RunningSum, UploadDesk
from lightsecagg.protocol.wire import PART_BYTES, encode
from lightsecagg.spans import Spans, no_spans

Floats = npt.NDArray[np.float32]

PLAIN_PART = PART_BYTES // 4
"""float32 coordinates in a part."""


def weighted(update: npt.NDArray[np.floating], weight: int, max_weight: int) -> Floats:
    """What a plain client uploads: w · x and n, (d + 1,) float32, as in ``FixedPoint.quantize`` but not
    quantized.

    Raises:
        UpdateError: the update is not one-dimensional or not finite (``NotFiniteError``).
    """
    if update.ndim != 1:
        raise UpdateError(f"wanted an update of shape (d,), found {update.shape}")
    if not np.isfinite(update).all():
        raise NotFiniteError("the update holds NaN or infinity")
    vector = np.empty(len(update) + 1, dtype=np.float32)
    vector[-1] = min(weight, max_weight)
    factor = np.float64(min(weight, max_weight) / max_weight)
    np.multiply(update, factor, out=vector[:-1], dtype=np.float64, casting="same_kind")
    return vector


class PlainServerRound(ServerMachine):
    """The server of one plain round (its use: see ``ServerMachine``). Not thread-safe.

    Args:
        round_number: above every number used in the run.
        num_clients: clients in the cohort.
        target_survivors: updates without which the round aborts.
        dimension: d, coordinates of an update.
        max_weight: the weight that counts as 1.
        model: the global model, opaque.
        upload_slots: updates that may be on their way at a time.
        spans: is told what takes how long.
    """

    _rows = FROM_PLAIN_CLIENT
    _first = ServerStage.UPLOADING

    def __init__(
        self,
        round_number: int,
        num_clients: int,
        target_survivors: int,
        dimension: int,
        max_weight: int,
        model: bytes,
        *,
        upload_slots: int = 4,
        spans: Spans = no_spans,
    ) -> None:
        self._sum = RunningSum(np.zeros(dimension + 1, dtype=np.float64), PLAIN_PART, add_floats, spans)
        desk = UploadDesk(dimension + 1, PLAIN_PART, read_floats, self._sum.take, upload_slots)
        super().__init__(round_number, num_clients, target_survivors, desk)
        self._max_weight = max_weight
        self._model = model
        self._survivors: frozenset[int] = frozenset()

    @property
    def survivors(self) -> frozenset[int]:
        return self._survivors or self._desk.inside

    @property
    def missing(self) -> frozenset[int]:
        return self._alive() - self._desk.inside if self._stage is ServerStage.UPLOADING else frozenset()

    @property
    def can_freeze(self) -> bool:
        return self._stage is ServerStage.UPLOADING and len(self._desk.inside) >= self._target_survivors

    @property
    def can_close(self) -> bool:
        return self.can_freeze and not self.missing & self._up()

    @property
    def can_decode(self) -> bool:
        return self._stage is ServerStage.COUNTING

    def start(self) -> list[Action]:
        opening = m.PlainStart(self.round_number, len(self._model), hashlib.sha256(self._model).digest())
        actions: list[Action] = [StageReached(self._stage.value)]
        actions += self._send_to(self._presence, encode(opening))
        actions += model_streams(self.round_number, self._presence, self._model)
        return [*actions, *self._desk.admit(self._presence)]

    def deadline(self) -> list[Action]:
        if self._stage is not ServerStage.UPLOADING:
            return []
        return self.freeze() if self.can_freeze else self.abort(AbortReason.TOO_FEW_UPDATES)

    def freeze(self) -> list[Action]:
        if not self.can_freeze:
            raise LocalProtocolError("freeze() wants can_freeze: enough updates in")
        self._survivors = self._desk.inside
        self._desk.admit(())
        self._move(ServerStage.COUNTING)
        return [StageReached(self._stage.value), *self._settle()]

    def finish(self) -> RoundResult:
        if self._abort_reason is not None:
            raise RoundAborted(self._abort_reason)
        if self._result is None:
            if not self.can_decode:
                raise LocalProtocolError("finish() wants can_decode: freeze() first")
            mean, weight = mean_of(self._sum.total, self._max_weight)
            self._result = RoundResult(mean, weight, tuple(sorted(self._survivors)))
            self._move(ServerStage.DONE)
        return self._result

    def _take(self, number: int, message: m.FromClient, raw: bytes | memoryview) -> list[Action]:  # noqa: ARG002
        match message:
            case m.UpdateReady():
                return self._desk.ready(number, waits=self._presence[number] is Presence.UP)
            case m.PlainUpdate():
                return self._take_part(number, message)
            case m.Leave():
                return self._drop(ClientDropped(number, message.reason, left=True))
            case _:  # pragma: no cover - `judge` lets nothing else through
                raise AssertionError(message)

    def _settle(self) -> list[Action]:
        match self._stage:
            case ServerStage.COUNTING:
                return self._offer(What.DECODE)
            case ServerStage.UPLOADING:
                if len(self._desk.inside | self._alive()) < self._target_survivors:
                    return self.abort(AbortReason.TOO_FEW_UPDATES)
                return self._offer_close() if self.missing else self._offer(What.FREEZE)
            case _:
                return []


def mean_of(total: npt.NDArray[np.float64], max_weight: int) -> tuple[npt.NDArray[np.float64], int]:
    """The mean, (d,), and the total weight out of a sum of what ``weighted`` made; zeros for no weight."""
    weight = round(float(total[-1]))
    return (total[:-1] * (max_weight / weight) if weight else np.zeros(len(total) - 1)), weight


def read_floats(data: memoryview, count: int) -> Floats:
    """A checked part: (count,) float32.

    Raises:
        RemoteProtocolError: it has another length, or is not finite.
    """
    if len(data) != 4 * count:
        raise RemoteProtocolError(Reason.BAD_LENGTH, "a part of an update of a wrong length")
    vector = np.frombuffer(data, dtype="<f4")
    if not np.isfinite(vector).all():
        raise RemoteProtocolError(Reason.BAD_ELEMENT, "an update that is not finite")
    return vector


def add_floats(total: npt.NDArray[np.float64], part: Floats) -> None:
    """Add a part to a slice of the sum."""
    total += part


class PlainClientRound(ClientMachine[m.PlainStart, Running]):
    """One client, one plain round; used like ``ClientRound``, without shares. Not thread-safe.

    Args:
        dimension: d, coordinates of an update.
        after_round: the highest round number seen so far.
        max_model_bytes: longest model it takes.
        spans: is told what takes how long.
    """

    _rows = FROM_PLAIN_SERVER
    _opening = m.PlainStart

    def __init__(
        self,
        dimension: int,
        *,
        after_round: int = 0,
        max_model_bytes: int = 2**32,
        spans: Spans = no_spans,
    ) -> None:
        super().__init__(after_round)
        self._length = dimension + 1
        self._max_model_bytes = max_model_bytes
        self._spans = spans

    @property
    def can_upload(self) -> bool:
        return self._running is not None and self._running.upload is None

    def round_key(self) -> Send:
        return Send(SERVER, encode(m.PlainReady()))

    def upload(self, update: Floats) -> Iterator[Send]:
        """Hand over the one update of this round, (d + 1,) float32 as ``weighted`` gives it."""
        if self._running is None or self._running.upload is not None:
            raise LocalProtocolError("upload() is for once, while the round runs")
        if update.shape != (self._length,) or update.dtype != np.float32:
            raise UpdateError(
                f"wanted float32 of shape ({self._length},), found {update.dtype} {update.shape}"
            )
        number = self._running.round
        self._running.upload = OutgoingUpload(
            update,
            lambda vector: vector,
            self._length,
            PLAIN_PART,
            lambda piece: piece.astype("<f4", copy=False).view(np.uint8).data,
            lambda grant, index, data: m.PlainUpdate(number, grant, index, data),
            self._spans,
        )
        return iter([Send(SERVER, encode(m.UpdateReady(number)))])

    def _start(self, start: m.PlainStart) -> list[Action]:
        if start.model_length > self._max_model_bytes:
            raise RemoteProtocolError(Reason.BELOW_FLOOR, "a model longer than this client takes")
        assembly = ModelAssembly(start.model_length, start.model_hash)
        self._running = running = Running(round=start.round, assembly=assembly)
        self._stage = move(CLIENT_MOVES, self._stage, ClientStage.CANDIDATES)
        return self._offer_training(running)

    def _take(self, running: Running, message: m.FromServer) -> list[Action]:  # noqa: ARG002
        raise AssertionError(message)  # pragma: no cover - `judge` lets nothing else through

"""``ClientUpload``: a client's side of one upload of an asynchronous run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lightsecagg.errors import Reason, RemoteProtocolError
from lightsecagg.field import Elements
from lightsecagg.parameters import Parameters
from lightsecagg.protocol import messages as m
from lightsecagg.protocol.actions import SERVER, Action, Left, Ready, RoundOver, Send, What
from lightsecagg.protocol.buffered.checks import check_upload_start
from lightsecagg.protocol.buffered.holder import MESSAGES, Holder
from lightsecagg.protocol.buffered.views import upload_digest
from lightsecagg.protocol.dealing import Dealing
from lightsecagg.protocol.masking import MaskedRunning, MaskingClient
from lightsecagg.protocol.model import ModelAssembly
from lightsecagg.protocol.terms import is_signed
from lightsecagg.protocol.transitions import CLIENT_MOVES, FROM_BUFFERED_SERVER, ClientStage, move
from lightsecagg.protocol.wire import encode
from lightsecagg.quantize import WeightedUpdate


@dataclass(kw_only=True)
class _Running(MaskedRunning):
    version: int


class ClientUpload(MaskingClient[m.UploadStart, _Running]):
    """One client, one upload: to the client it is a round (its use: see ``MaskingClient``). Not thread-safe.

    What comes of other clients' uploads and of lists goes to the ``Holder``, which outlives it; after
    ``RoundOver`` the next upload's machine takes the messages. ``Left`` means that the client has left the
    lists too and joins them anew with a new holder.

    Args:
        holder: the client's, of this run.
        others: as for ``MaskingClient``.
    """

    _rows = FROM_BUFFERED_SERVER
    _opening = m.UploadStart

    def __init__(self, holder: Holder, *args: Any, **others: Any) -> None:
        super().__init__(*args, **others)
        assert self._round_key is not None
        holder.publish(self._round_key)
        self.holder = holder

    @property
    def parameters(self) -> Parameters:
        """C in the place of N, U and T of the run."""
        return self.holder.parameters

    def upload(self, update: Elements | WeightedUpdate) -> Iterator[Send]:
        ready = super().upload(update)
        if self._running is not None and self._running.upload is not None:
            self.holder.uploading(self._running.round, self._running.upload)
        return ready

    def withdraw(self, reason: Reason) -> list[Action]:
        """Nothing comes of this upload; what is held of the others' stays."""
        running = self._running
        if running is None:
            return []
        self._end()
        return [Send(SERVER, encode(m.Withdraw(running.round, reason))), RoundOver(reason.value)]

    def leave(self, reason: Reason, detail: str = "") -> list[Action]:
        if self.holder.is_closed:
            return []
        self.holder.close()
        if self._stage is not ClientStage.OVER:
            self._end()
        return [Send(SERVER, encode(m.Leave(self.highest_round, reason))), Left(reason, detail)]

    def _accept(self, message: m.FromServer) -> list[Action]:
        if isinstance(message, MESSAGES):
            return self.holder.receive(message)
        is_over = self._stage is ClientStage.OVER
        if isinstance(message, m.UploadStart) and (is_over or self._is_of_before(message)):
            self.highest_round = max(self.highest_round, message.round)  # its model is late too
            self.late_messages += 1
            return []
        return super()._accept(message)

    def _is_of_before(self, start: m.UploadStart) -> bool:
        """Whether the server began this upload before it heard that the client had left."""
        own = self.member
        return any(
            each.identity == own.identity and each.sequence < own.sequence and self._is_signed(each)
            for each in start.cohort
        )

    def _is_signed(self, member: m.Member) -> bool:
        return is_signed(member, self._run, self._verifier)

    def _start(self, start: m.UploadStart) -> list[Action]:
        holder = self.holder
        if start.version < holder.newest:
            raise RemoteProtocolError(
                Reason.STALE_ROUND, f"version {start.version} is not the newest: {holder.newest}"
            )
        check_upload_start(
            start,
            self.member,
            holder.parameters,
            self._floors,
            holder.slots,
            self._is_signed,
        )
        holder.check_model(start.version, start.model_hash)
        own = self.member.rank
        name = m.MaskName(own, start.version, start.round)
        cohort = frozenset(member.rank for member in start.cohort)
        digest = upload_digest(holder.digest, name, self.member, cohort, start.model_hash)
        peers = {member.rank: member.key for member in start.cohort if member.rank != own}
        keys = self._agree(peers, digest, start.round, own)
        dealing = Dealing(holder.codec, name, self._length, keys, self._entropy, self._spans)
        holder.begin(start, digest, dealing.own_seed)
        self._running = running = _Running(
            round=start.round,
            version=start.version,
            assembly=ModelAssembly(start.model_length, start.model_hash),
            dealing=dealing,
        )
        self._stage = move(CLIENT_MOVES, self._stage, ClientStage.SHARING)
        return [Ready(What.SHARING), *self._offer_training(running)]

    def _take(self, running: _Running, message: m.FromServer) -> list[Action]:  # noqa: ARG002
        raise AssertionError(message)  # pragma: no cover - `judge` lets nothing else through

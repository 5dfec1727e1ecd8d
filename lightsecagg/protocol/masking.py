"""What every client that masks its update has: its key, its shares for the others, and one upload."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from lightsecagg.errors import LocalProtocolError, Reason, RemoteProtocolError, UpdateError
from lightsecagg.field import Elements, PrimeField
from lightsecagg.identity import Identity, Roster, Verifier, verify
from lightsecagg.kernels import loops
from lightsecagg.packing import pack
from lightsecagg.parameters import Parameters
from lightsecagg.protocol import messages as m
from lightsecagg.protocol.actions import SERVER, Send
from lightsecagg.protocol.client_machine import ClientMachine, Running
from lightsecagg.protocol.dealing import Dealing
from lightsecagg.protocol.terms import Floors, Run, make_member, quantizer_of, vector_length
from lightsecagg.protocol.uploads import OutgoingUpload
from lightsecagg.protocol.wire import encode, part_elements
from lightsecagg.quantize import WeightedUpdate
from lightsecagg.randomness import Entropy, system_entropy
from lightsecagg.sealing import PairKeys, RoundKey
from lightsecagg.spans import Spans, no_spans


@dataclass(kw_only=True)
class MaskedRunning(Running):
    """A round that has begun, with its mask."""

    dealing: Dealing
    is_dealt: bool = False


_Opening = TypeVar("_Opening", m.RoundStart, m.UploadStart)
_Running = TypeVar("_Running", bound=MaskedRunning)


class MaskingClient(ClientMachine[_Opening, _Running]):
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
        return (
            f"{type(self).__name__}(rank={self.member.rank}, round={self.round_number}, "
            f"stage={self._stage.value})"
        )

    @property
    @abstractmethod
    def parameters(self) -> Parameters | None:
        """N, U and T, once they are known."""

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
        messages = running.dealing.messages(lambda: not self._shares_matter(running))
        return (Send(SERVER, encode(message)) for message in messages)

    def _shares_matter(self, running: _Running) -> bool:
        """Whether what is left of the shares need still be sent."""
        return self._running is running

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

    def _agree(self, peers: Mapping[int, bytes], digest: bytes, number: int, own: int) -> dict[int, PairKeys]:
        """The pair keys with the other clients of the cohort; spends the round key.

        Args:
            peers: client number to the key it published.
            digest: what all of them must see alike.
            number: of the round.
            own: this client's number.

        Raises:
            RemoteProtocolError: a key is none.
        """
        round_key, self._round_key = self._round_key, None
        assert round_key is not None
        try:
            return {peer: round_key.agree(key, digest, number, own, peer) for peer, key in peers.items()}
        except ValueError:
            raise RemoteProtocolError(Reason.BAD_COHORT, "a round key is no usable X25519 key") from None

    def _end(self) -> None:
        self._round_key = None
        super()._end()

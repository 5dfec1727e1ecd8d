"""How a client joins a run: challenge, hello, welcome or refusal (promises 4 and 6)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from lightsecagg.errors import Reason, RemoteProtocolError
from lightsecagg.identity import SIGNATURE_BYTES, Identity, Roster, verify
from lightsecagg.labels import HELLO, PROTOCOL_VERSION
from lightsecagg.protocol import messages as m
from lightsecagg.protocol.terms import Run
from lightsecagg.protocol.wire import encode, from_client, from_server
from lightsecagg.randomness import Entropy, system_entropy

_MOST_DETAIL = 2000  # characters: what differs is for people, and a client may send anything


class JoiningRefusedError(RemoteProtocolError):
    """The applicant does not take part.

    Attributes:
        detail: the setting or entry at fault, for people.
    """

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.detail = detail


@dataclass(frozen=True)
class Applicant:
    """Whom a Hello proved to be there."""

    rank: int
    identity: bytes


def _signed_fields(hello: m.Hello, run_nonce: bytes, nonce: bytes) -> tuple[bytes | int | str, ...]:
    described = msgspec.msgpack.encode([hello.settings, m.as_plain(hello.layout)])
    return (
        hello.run,
        run_nonce,
        nonce,
        hello.rank,
        hello.version,
        hello.identity,
        hashlib.sha256(described).digest(),
    )


class ServerJoining:
    """The server's side of one connection's joining. One object, one Hello.

    Args:
        run: the run that may be joined.
        worker_num: ranks are 1..worker_num.
        settings: what must agree, key path to value.
        layout: the model's entries.
        roster: who may take part; None for an open run.
        entropy: source of the challenge.
    """

    def __init__(
        self,
        run: Run,
        worker_num: int,
        settings: Mapping[str, str],
        layout: Sequence[m.Entry],
        roster: Roster | None = None,
        entropy: Entropy = system_entropy,
    ) -> None:
        self._run = run
        self._worker_num = worker_num
        self._settings = settings
        self._layout = tuple(layout)
        self._roster = roster
        self._nonce = entropy(m.NONCE_BYTES)

    def challenge(self) -> bytes:
        """The first message of the connection."""
        return encode(m.Challenge(self._nonce, self._run.nonce))

    def receive(self, message: bytes | memoryview) -> Applicant:
        """Take the Hello.

        Raises:
            JoiningRefusedError: the applicant does not take part; ``refusal`` makes its answer.
        """
        try:
            hello = from_client(message)
        except RemoteProtocolError as error:
            raise JoiningRefusedError(error.reason) from None
        if not isinstance(hello, m.Hello):
            raise JoiningRefusedError(Reason.PROTOCOL_VIOLATION, "wanted a Hello first")
        if hello.version != PROTOCOL_VERSION:
            raise JoiningRefusedError(
                Reason.WRONG_VERSION,
                f"protocol version {PROTOCOL_VERSION} at the server, {hello.version} at the client",
            )
        if hello.run != self._run.run_id:
            raise JoiningRefusedError(
                Reason.WRONG_RUN,
                f"this server runs {self._run.run_id!r}: start with that, or look for another server",
            )
        if not 1 <= hello.rank <= self._worker_num:
            raise JoiningRefusedError(
                Reason.RANK_OUT_OF_RANGE, f"ranks are 1..{self._worker_num} (device_args.worker_num)"
            )
        fields = _signed_fields(hello, self._run.nonce, self._nonce)
        if not verify(hello.identity, hello.signature, HELLO, *fields):
            raise JoiningRefusedError(Reason.BAD_SIGNATURE, "the Hello is not signed by its identity")
        if self._roster is not None and not self._roster.admits(hello.rank, hello.identity):
            raise JoiningRefusedError(
                Reason.UNKNOWN_IDENTITY, f"not in the server's roster as rank {hello.rank}"
            )
        self._compare(hello)
        return Applicant(hello.rank, hello.identity)

    def _compare(self, hello: m.Hello) -> None:
        differing = []
        for key in sorted(self._settings.keys() | hello.settings.keys()):
            ours, theirs = self._settings.get(key), hello.settings.get(key)
            if ours != theirs:
                differing.append(f"{key}: {ours or 'unset'} at the server, {theirs or 'unset'} at the client")
        if differing:  # all of them: one may follow from another
            raise JoiningRefusedError(Reason.SETTINGS_DIFFER, "; ".join(differing)[:_MOST_DETAIL])
        for ours_entry, theirs_entry in zip(self._layout, hello.layout, strict=False):
            if ours_entry != theirs_entry:
                raise JoiningRefusedError(
                    Reason.LAYOUT_DIFFERS,
                    f"entry {_shown(ours_entry)} at the server, {_shown(theirs_entry)} at the client",
                )
        if len(self._layout) != len(hello.layout):
            first = max(self._layout, hello.layout, key=len)[min(len(self._layout), len(hello.layout))]
            raise JoiningRefusedError(
                Reason.LAYOUT_DIFFERS, f"entry {_shown(first)} is there on one side only"
            )


def _shown(entry: m.Entry) -> str:
    return f"{entry.name} {entry.dtype}{list(entry.shape)}"


def welcome(settings: Mapping[str, str]) -> bytes:
    """The message that lets an applicant in, with the settings that come from the server."""
    return encode(m.Welcome(dict(settings)))


def refusal(reason: Reason, detail: str = "") -> bytes:
    """The message that turns an applicant, or later a client, away."""
    return encode(m.Refused(reason, detail))


@dataclass(frozen=True)
class Joined:
    """The client takes part.

    Attributes:
        run: the run it joined.
        settings: what the server sets.
    """

    run: Run
    settings: Mapping[str, str]


class ClientJoining:
    """The client's side of one joining. One object, one Welcome.

    Args:
        identity, rank: who joins.
        run_id: which run it wants.
        settings: what must agree, key path to value.
        layout: its model's entries.
    """

    def __init__(
        self,
        identity: Identity,
        rank: int,
        run_id: str,
        settings: Mapping[str, str],
        layout: Sequence[m.Entry],
    ) -> None:
        self._identity = identity
        self._rank = rank
        self._run_id = run_id
        self._settings = dict(settings)
        self._layout = tuple(layout)
        self._run: Run | None = None

    def receive(self, message: bytes | memoryview) -> bytes | Joined:
        """The Hello to send, or that the client has joined.

        Raises:
            JoiningRefusedError: the server turned it away.
            RemoteProtocolError: the server broke the protocol.
        """
        decoded = from_server(message)
        match decoded:
            case m.Challenge() if self._run is None:
                self._run = Run(self._run_id, decoded.run_nonce)
                return self._hello(decoded.nonce, self._run)
            case m.Welcome() if self._run is not None:
                return Joined(self._run, decoded.settings)
            case m.Refused():
                raise JoiningRefusedError(decoded.reason, decoded.detail)
            case _:
                raise RemoteProtocolError(
                    Reason.PROTOCOL_VIOLATION, f"a {type(decoded).__name__} cannot come while joining"
                )

    def _hello(self, nonce: bytes, run: Run) -> bytes:
        hello = m.Hello(
            self._run_id,
            self._rank,
            PROTOCOL_VERSION,
            self._identity.public,
            self._settings,
            self._layout,
            bytes(SIGNATURE_BYTES),
        )
        signature = self._identity.sign(HELLO, *_signed_fields(hello, run.nonce, nonce))
        return encode(msgspec.structs.replace(hello, signature=signature))

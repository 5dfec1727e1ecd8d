"""Sans-IO: one peer's ordered exactly-once stream of frames, over carriers that lose, repeat, reorder, break.

The time is an argument (`now`, seconds of any steady clock); a driver moves the bytes. Presence, resume and
the goodbyes live here, the counters of the two directions in `stream.py`, the wire form in `frame.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from lightsecagg.comm.frame import (
    MAX_FRAME,
    MAX_PAYLOAD,
    SESSION_SIZE,
    Buffer,
    Data,
    Frame,
    Kind,
    decode,
    decode_code,
    encode,
    encode_code,
    encode_resumes,
    is_of_other_version,
)
from lightsecagg.comm.stream import OnArrival, Receiving, Sending, Verdict
from lightsecagg.errors import CommError, ConfigError

LINK_LOST = "link_lost"  # AWAY for the whole reconnect window
WRONG_VERSION = "wrong_version"  # the peer's frames are of another version
SERVER_FULL = "server_full"  # it has as many sessions as it keeps
SERVER_CLOSING = "server_closing"  # it is ending; there may be another one soon

_ANSWER = 1  # the sequence of a BYE that answers one, and is not answered itself


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSettings:
    """Times in seconds and sizes in bytes, the same kind of link at both ends (the values may differ)."""

    heartbeat_interval: float = 2.0  # an idle link says something this often
    heartbeat_timeout: float = 10.0  # silence after which the peer is AWAY
    reconnect_window: float = 30.0  # time AWAY after which the peer is GONE
    retransmit_timeout: float = 2.0  # least time without acknowledgement after which frames are sent again
    window_bytes: int = 8 * 2**20  # what a peer may send before the application has consumed it
    relay_buffer: int = 64 * 2**20  # what may be queued for a peer before `send` blocks
    connect_timeout: float = 300.0  # how long a client looks for its server
    close_timeout: float = 5.0  # how long closing waits for what is queued
    max_peers: int = 2048  # sessions that a hub keeps at a time

    def __post_init__(self) -> None:
        for name in ("heartbeat_interval", "heartbeat_timeout", "reconnect_window", "retransmit_timeout"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}: wanted more than 0 seconds, found {getattr(self, name)}")
        if self.heartbeat_timeout <= self.heartbeat_interval:
            raise ConfigError(
                f"heartbeat_timeout: wanted more than heartbeat_interval ({self.heartbeat_interval} s), "
                f"found {self.heartbeat_timeout}; with several intervals one lost heartbeat is no absence"
            )
        for name, least in (("window_bytes", MAX_FRAME), ("relay_buffer", MAX_FRAME), ("max_peers", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: wanted {least} or more, found {getattr(self, name)}")


@dataclass(slots=True)
class LinkStats:
    """Counted on the wire: headers, heartbeats and repetitions included."""

    bytes_sent: int = 0
    bytes_received: int = 0
    frames_sent: int = 0
    frames_received: int = 0
    retransmissions: int = 0
    malformed: int = 0  # frames that were ignored: damaged, of another session, or against the rules


@dataclass(frozen=True, slots=True)
class Opened:
    """The session began."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """The next payload of the peer's stream; a view that keeps the frame it came in."""

    payload: memoryview


@dataclass(frozen=True, slots=True)
class PeerAway:
    """The carrier broke, or nothing was heard for `heartbeat_timeout`."""


@dataclass(frozen=True, slots=True)
class PeerBack:
    """The peer was AWAY and was heard again; nothing was lost."""


@dataclass(frozen=True, slots=True)
class PeerGone:
    """The session ended at the peer's wish, or was lost for good. The last event of a link."""

    reason: str


LinkEvent = Opened | Delivered | PeerAway | PeerBack | PeerGone


class Link:
    """One session with one peer. Not thread-safe.

    After every call the driver puts `next_frame` on the carrier until that is None, and calls `tick` no later
    than `next_wakeup` says.
    """

    def __init__(self, session: bytes, settings: LinkSettings, *, opens: bool) -> None:
        """`opens`: whether this is the client's end, which opens the session on every carrier."""
        if len(session) != SESSION_SIZE:
            raise ValueError(f"a session token has {SESSION_SIZE} bytes, found {len(session)}")
        self.session = session
        self._settings = settings
        self._opens = opens
        self._sending = Sending(settings.retransmit_timeout)
        self._receiving = Receiving(settings.window_bytes)
        self._stats = LinkStats()
        self._has_carrier = False
        self._is_open = False  # on this carrier
        self._established = False  # on any carrier so far
        self._last_heard = self._last_sent = 0.0
        self._say_open_at = 0.0
        self._accept_pending = False
        self._away_since: float | None = None
        self._silent = False
        self._bye: str | None = None  # our goodbye, repeated until the peer answers it
        self._say_bye_at = 0.0
        self._bye_said = False
        self._answer: bytes | None = None  # the frame that answers the peer's goodbye
        self._rejected: str | None = None
        self._gone: str | None = None

    # What the owner asks.

    @property
    def stats(self) -> LinkStats:
        """The counters so far; the same object every time."""
        self._stats.retransmissions = self._sending.retransmissions
        return self._stats

    @property
    def queued_bytes(self) -> int:
        """Cost of the payloads that the peer has not acknowledged, sent or not."""
        return self._sending.queued_bytes

    @property
    def is_established(self) -> bool:
        """Whether the peer has accepted this session at any time."""
        return self._established

    @property
    def is_open(self) -> bool:
        """Whether the session is open on the present carrier."""
        return self._is_open

    @property
    def is_silent(self) -> bool:
        """Whether nothing was heard on the present carrier for `heartbeat_timeout`: another may do better."""
        return self._silent

    @property
    def gone(self) -> str | None:
        """Why the session is over, or None."""
        return self._gone

    @property
    def rejected(self) -> str | None:
        """The code of the last rejection; a later attempt may succeed as long as `gone` is None."""
        return self._rejected

    @property
    def is_finished(self) -> bool:
        """Whether the session is over and nothing is left to be put on the carrier."""
        return self._gone is not None and self._answer is None

    # What the owner does.

    def send(self, payload: Buffer, on_arrival: OnArrival | None = None) -> None:
        """Queue a payload; its buffer must not change until it was acknowledged, which `on_arrival` tells.

        Raises:
            ValueError: it is longer than MAX_PAYLOAD.
            CommError: the session is over.
        """
        if len(payload) > MAX_PAYLOAD:
            raise ValueError(
                f"a payload has at most {MAX_PAYLOAD} bytes, found {len(payload)}: send it in parts"
            )
        if self._gone is not None or self._bye is not None:
            raise CommError(f"the session is over ({self._gone or self._bye})")
        self._sending.push(payload, on_arrival)

    def consumed(self, size: int, now: float) -> None:
        """The application took a delivered payload of `size` bytes: its credit goes back to the peer."""
        self._receiving.consume(size, now)

    def say_bye(self, reason: str, now: float) -> None:
        """End the session; what is still queued is not sent. `gone` is set once the peer has answered."""
        encode_code(reason)
        if self._gone is None and self._bye is None:
            self._bye = reason
            self._say_bye_at = now

    def carrier_up(self, now: float, *, is_reliable: bool = False) -> None:
        """A carrier is there (in place of the last one, if there was one).

        `is_reliable`: it loses nothing before it breaks, so time alone is no reason to send anything again:
        on a slow line a frame takes longer than any timeout.
        """
        self._has_carrier = True
        self._is_open = False
        self._silent = False
        self._accept_pending = False
        self._last_heard = self._last_sent = self._say_open_at = now
        self._receiving.restart()
        self._sending.awaits_patiently = is_reliable

    def carrier_down(self, now: float) -> list[LinkEvent]:
        """The carrier broke. After our goodbye that is an answer too: the peer has no use for it any more."""
        self._has_carrier = self._is_open = self._silent = False
        return self._end(LINK_LOST) if self._bye_said else self._go_away(now)

    def tick(self, now: float) -> list[LinkEvent]:
        """Let the time do its work: silence makes AWAY, the end of the reconnect window makes GONE."""
        if self._gone is not None:
            return []
        events: list[LinkEvent] = []
        if self._has_carrier and now >= self._last_heard + self._settings.heartbeat_timeout:
            self._silent = True
            events += self._go_away(now)
        if self._away_since is not None and now >= self._away_since + self._settings.reconnect_window:
            events += self._end(LINK_LOST)
        return events

    def next_wakeup(self, *, may_send: bool) -> float | None:
        """When to call `tick`, and `next_frame` where the carrier takes frames at present (`may_send`)."""
        if self._gone is not None:
            return None
        times: list[float | None] = []
        if self._away_since is not None:
            times.append(self._away_since + self._settings.reconnect_window)
        if self._has_carrier:
            if not self._silent:
                times.append(self._last_heard + self._settings.heartbeat_timeout)
            if may_send and not self._is_open and self._opens:
                times.append(self._say_open_at)
            elif may_send and self._is_open:
                times.append(self._last_sent + self._settings.heartbeat_interval)
                times.append(self._receiving.acknowledge_at)
                if self._bye is not None:
                    times.append(self._say_bye_at)
                elif self._away_since is None:
                    times.append(self._sending.resend_at)
        return min((time for time in times if time is not None), default=None)

    # What goes out.

    def next_frame(self, now: float) -> bytes | None:
        """The next frame to put on the carrier now, or None."""
        if not self._has_carrier:
            return None
        if self._gone is not None:
            answer, self._answer = self._answer, None
            return self._count_sent(answer, now) if answer is not None else None
        if not self._is_open:
            if self._opens and now >= self._say_open_at:
                self._say_open_at = now + self._settings.retransmit_timeout
                return self._frame(Kind.OPEN, now, payload=encode_resumes(self._established))
            return None
        if self._accept_pending:
            self._accept_pending = False
            return self._frame(Kind.ACCEPT, now)
        if self._receiving.gap_pending:
            self._receiving.gap_pending = False
            return self._frame(Kind.GAP, now)
        if self._bye is not None:
            if now >= self._say_bye_at:
                self._say_bye_at = now + self._settings.retransmit_timeout
                self._bye_said = True
                return self._frame(Kind.BYE, now, payload=encode_code(self._bye))
        elif self._away_since is None and (item := self._sending.pop(now)) is not None:
            return self._frame(Kind.DATA, now, sequence=item[0], payload=item[1])
        acknowledge_at = self._receiving.acknowledge_at
        if acknowledge_at is not None and now >= acknowledge_at:
            return self._frame(Kind.ACK, now)
        if now >= self._last_sent + self._settings.heartbeat_interval:
            return self._frame(Kind.ACK, now)
        return None

    def _frame(self, kind: Kind, now: float, *, sequence: int = 0, payload: Buffer = b"") -> bytes:
        data = encode(
            kind,
            self.session,
            sequence=sequence,
            acknowledged=self._receiving.received,
            credit=self._receiving.credit,
            payload=payload,
        )
        self._receiving.announced()
        return self._count_sent(data, now)

    def _count_sent(self, data: bytes, now: float) -> bytes:
        self._last_sent = now
        self._stats.frames_sent += 1
        self._stats.bytes_sent += len(data)
        return data

    # What comes in.

    def receive(self, data: Data, now: float) -> list[LinkEvent]:
        """A frame from the carrier; one that is damaged or against the rules only counts as malformed."""
        self._stats.frames_received += 1
        self._stats.bytes_received += len(data)
        frame = decode(data)
        if frame is None or not self._is_acceptable(frame):
            self._stats.malformed += 1
            joins = self._opens and not self._established and self._gone is None
            return self._end(WRONG_VERSION) if joins and is_of_other_version(data, self.session) else []
        if self._gone is not None:
            if frame.kind is Kind.BYE:
                self._answer_bye(frame)  # again: the first answer was lost
            return []
        if frame.kind is Kind.REJECT:
            return self._take_reject(decode_code(frame.payload) or LINK_LOST)
        events = self._hear(frame, now)
        if frame.kind is Kind.BYE:
            self._answer_bye(frame)
            events += self._end(decode_code(frame.payload) or LINK_LOST)
        elif frame.kind is Kind.GAP:
            self._sending.answer_gap(frame.acknowledged, now)
        elif frame.kind is Kind.DATA:
            events += self._take(frame, now)
        return events

    def _take_reject(self, code: str) -> list[LinkEvent]:
        self._rejected = code
        is_for_now = code in (SERVER_FULL, SERVER_CLOSING) and not self._established
        return [] if is_for_now else self._end(code)

    def _is_acceptable(self, frame: Frame) -> bool:
        if frame.session != self.session or not self._sending.is_possible(frame.acknowledged):
            return False
        if frame.kind is Kind.OPEN:
            return not self._opens
        if frame.kind is Kind.ACCEPT:
            return self._opens and self._has_carrier
        if frame.kind in (Kind.REJECT, Kind.BYE) and decode_code(frame.payload) is None:
            return False
        # A server opens on OPEN only. At a client any frame of the session proves that ACCEPT was lost.
        return self._has_carrier if self._opens else self._is_open and frame.kind is not Kind.REJECT

    def _hear(self, frame: Frame, now: float) -> list[LinkEvent]:
        """What every frame says: the peer lives, the session is open, and its counters."""
        events: list[LinkEvent] = []
        self._last_heard = now
        self._silent = False
        if not self._established:
            self._established = True
            events.append(Opened())
        if self._away_since is not None:
            self._away_since = None
            self._sending.resume(now)
            events.append(PeerBack())
        self._sending.update(frame.acknowledged, frame.credit, now)
        if not self._is_open:
            self._is_open = True
            self._sending.restart(now)
        if frame.kind is Kind.OPEN:
            self._accept_pending = True
        return events

    def _take(self, frame: Frame, now: float) -> list[LinkEvent]:
        verdict = self._receiving.take(frame.sequence, len(frame.payload), now)
        if verdict is Verdict.IN_ORDER:
            return [Delivered(frame.payload)]
        if verdict is Verdict.BEYOND_CREDIT:
            self._stats.malformed += 1
        return []

    # Comings and goings.

    def _go_away(self, now: float) -> list[LinkEvent]:
        if not self._established or self._away_since is not None or self._gone is not None:
            return []
        self._away_since = now
        return [PeerAway()]

    def _answer_bye(self, frame: Frame) -> None:
        if frame.sequence != _ANSWER:
            self._answer = encode(Kind.BYE, self.session, sequence=_ANSWER, payload=encode_code("goodbye"))

    def _end(self, reason: str) -> list[LinkEvent]:
        """The session is over; who said goodbye needs no event to know."""
        self._gone = self._bye or reason
        self._sending.clear()
        return [] if self._bye is not None else [PeerGone(reason)]

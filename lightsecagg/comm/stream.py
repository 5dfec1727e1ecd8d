"""The two halves of a link's stream: what is sent until acknowledged, what is received until consumed.

Sans-IO like the link that owns them: the time is an argument. Costs are frame bytes, header included, so that
a flood of empty payloads is bounded by credit and by the queue's limit as well.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum, auto

from lightsecagg.comm.frame import HEADER_SIZE, MAX_FRAME, Buffer

_ACK_DELAY = 0.02  # seconds in which a DATA frame of ours may carry the acknowledgement for free
_MAX_BACK_OFF = 8  # times the first retransmission timeout

OnArrival = Callable[[], None]


class Sending:
    """One direction's payloads: queued, in flight within the peer's credit, kept until acknowledged.

    Go-back-N: a gap signal, a silence of the retransmission timeout or a new carrier moves everything that
    is in flight back to the queue's front. The queue is bounded by whoever calls `push`.
    """

    def __init__(self, retransmit_timeout: float) -> None:
        self.queued_bytes = 0
        self.acknowledged = 0
        self.retransmissions = 0
        self.awaits_patiently = False  # nothing counts as lost before the carrier breaks
        self._unsent: deque[tuple[int, Buffer]] = deque()
        self._unacknowledged: deque[tuple[int, Buffer]] = deque()
        self._on_arrival: deque[tuple[int, OnArrival]] = deque()
        self._pushed = 0  # sequence of the last payload that was queued
        self._highest_sent = 0
        self._acknowledged_cost = 0
        self._sent_cost = 0  # of all acknowledged and in flight
        self._credit = 0
        self._gap_answered: int | None = None
        self._first_timeout = self._timeout = retransmit_timeout
        self._round_trip: tuple[float, float] | None = None  # smoothed mean and deviation (RFC 6298)
        self._timed: tuple[int, float] | None = None  # the frame whose round trip is being measured
        self._last_progress = 0.0

    def push(self, payload: Buffer, on_arrival: OnArrival | None = None) -> None:
        """Queue a payload; its buffer must not change until it was acknowledged.

        Args:
            on_arrival: called once the peer has acknowledged it; never, where the session ends before.
        """
        self._pushed += 1
        if on_arrival is not None:
            self._on_arrival.append((self._pushed, on_arrival))
        self._unsent.append((self._pushed, payload))
        self.queued_bytes += HEADER_SIZE + len(payload)

    def pop(self, now: float) -> tuple[int, Buffer] | None:
        """The next sequence number and payload to put on the wire, if credit allows one."""
        resend_at = self.resend_at
        if resend_at is not None and now >= resend_at:
            self._timeout = min(2 * self._timeout, _MAX_BACK_OFF * self._first_timeout)
            self._rewind(now)
        if not self._unsent:
            return None
        sequence, payload = self._unsent[0]
        cost = HEADER_SIZE + len(payload)
        if self._sent_cost + cost > self._credit:
            return None
        self._unacknowledged.append(self._unsent.popleft())
        self._sent_cost += cost
        self._last_progress = now
        if sequence <= self._highest_sent:
            self.retransmissions += 1
        else:
            self._highest_sent = sequence
            if self._timed is None:
                self._timed = (sequence, now)
        return sequence, payload

    @property
    def resend_at(self) -> float | None:
        """When what is in flight counts as lost."""
        is_timed = bool(self._unacknowledged) and not self.awaits_patiently
        return self._last_progress + self._timeout if is_timed else None

    def is_possible(self, acknowledged: int) -> bool:
        """Whether the peer can have received so many frames."""
        return acknowledged <= self._highest_sent

    def update(self, acknowledged: int, credit: int, now: float) -> None:
        """The peer's counters from any frame; older ones than the last change nothing."""
        self._credit = max(self._credit, credit)
        if acknowledged <= self.acknowledged:
            return
        for pending in (self._unacknowledged, self._unsent):  # after a rewind both may hold what arrived
            while pending and pending[0][0] <= acknowledged:
                cost = HEADER_SIZE + len(pending.popleft()[1])
                self._acknowledged_cost += cost
                self.queued_bytes -= cost
        self.acknowledged = acknowledged
        self._sent_cost = max(self._sent_cost, self._acknowledged_cost)
        self._last_progress = now
        self._measure(acknowledged, now)
        while self._on_arrival and self._on_arrival[0][0] <= acknowledged:
            self._on_arrival.popleft()[1]()

    def answer_gap(self, acknowledged: int, now: float) -> None:
        """The peer misses the frame after `acknowledged`; the timeout sees to a second loss of it."""
        if acknowledged == self.acknowledged and self._gap_answered != acknowledged:
            self._gap_answered = acknowledged
            self._rewind(now)

    def restart(self, now: float) -> None:
        """A new carrier: what is in flight was lost with the old one, as far as anybody knows."""
        self._gap_answered = None
        self._timeout = self._first_timeout
        self._rewind(now)

    def resume(self, now: float) -> None:
        """The peer is heard again on the same carrier: what is in flight may still be on its way."""
        self._last_progress = now

    def clear(self) -> None:
        """The session is over: let go of the payloads."""
        self._unsent.clear()
        self._unacknowledged.clear()
        self._on_arrival.clear()
        self.queued_bytes = 0

    def _rewind(self, now: float) -> None:
        self._unsent.extendleft(reversed(self._unacknowledged))
        self._unacknowledged.clear()
        self._sent_cost = self._acknowledged_cost
        self._timed = None  # an acknowledgement would not tell which copy it answers (Karn)
        self._last_progress = now

    def _measure(self, acknowledged: int, now: float) -> None:
        if self._timed is not None and acknowledged >= self._timed[0]:
            sample = now - self._timed[1]
            mean, deviation = self._round_trip or (sample, sample / 2)
            deviation += (abs(sample - mean) - deviation) / 4
            mean += (sample - mean) / 8
            self._round_trip = (mean, deviation)
            self._timed = None
        mean, deviation = self._round_trip or (0.0, 0.0)
        self._timeout = max(self._first_timeout, mean + 4 * deviation)


class Verdict(Enum):
    """What became of an arriving DATA frame."""

    IN_ORDER = auto()
    REPEATED = auto()
    TOO_EARLY = auto()  # a frame before it is missing
    BEYOND_CREDIT = auto()  # the peer sent what it was not allowed to


class Receiving:
    """The other direction: counts what arrived in order, and grants credit as the application consumes.

    Until the application has consumed something, the peer may send one frame of full size and no more: a
    stranger who connects and floods costs that much and not a window.
    """

    def __init__(self, window_bytes: int) -> None:
        self.received = 0
        self.gap_pending = False
        self.acknowledge_at: float | None = None
        self._full_window = window_bytes
        self._window = MAX_FRAME
        self._received_cost = 0
        self._consumed_cost = 0
        self._announced = (0, 0)
        self._received_cost_announced = 0
        self._gap_signalled: int | None = None

    @property
    def credit(self) -> int:
        """Cumulative cost of the frames that the peer may send."""
        return self._consumed_cost + self._window

    def take(self, sequence: int, size: int, now: float) -> Verdict:
        """Account for a DATA frame with a payload of `size` bytes."""
        if sequence <= self.received:
            self.acknowledge_at = now  # the peer resends: it has not heard of this frame's arrival
            return Verdict.REPEATED
        if sequence > self.received + 1:
            if self._gap_signalled != self.received:
                self._gap_signalled = self.received
                self.gap_pending = True
            return Verdict.TOO_EARLY
        cost = HEADER_SIZE + size
        if self._received_cost + cost > self.credit:
            return Verdict.BEYOND_CREDIT
        self.received = sequence
        self._received_cost += cost
        self.gap_pending = False
        self._schedule(self._received_cost - self._received_cost_announced, now)
        return Verdict.IN_ORDER

    def consume(self, size: int, now: float) -> None:
        """The application took a delivered payload of `size` bytes."""
        self._consumed_cost += HEADER_SIZE + size
        self._window = self._full_window
        self._schedule(self.credit - self._announced[1], now)

    def announced(self) -> None:
        """A frame with the present counters went out."""
        self._announced = (self.received, self.credit)
        self._received_cost_announced = self._received_cost
        self.acknowledge_at = None

    def restart(self) -> None:
        """A new carrier: a gap on the old one is no gap any more."""
        self._gap_signalled = None
        self.gap_pending = False

    def _schedule(self, unannounced: int, now: float) -> None:
        due = now if unannounced >= self._window // 2 else now + _ACK_DELAY
        self.acknowledge_at = due if self.acknowledge_at is None else min(self.acknowledge_at, due)

"""One pair of links alone, over a simulated carrier with every fault: one seed is one schedule."""

from __future__ import annotations

import heapq
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightsecagg.comm.frame import HEADER_SIZE, MAX_FRAME, MAX_PAYLOAD, Kind, decode, encode, encode_reject
from lightsecagg.comm.link import (
    Delivered,
    Link,
    LinkEvent,
    LinkSettings,
    Opened,
    PeerAway,
    PeerBack,
    PeerGone,
)
from lightsecagg.comm.stream import Sending
from lightsecagg.errors import CommError, ConfigError

SESSION = bytes(range(16))
SETTINGS = LinkSettings(window_bytes=2 * MAX_FRAME)


def open_pair(link_settings: LinkSettings = SETTINGS) -> tuple[Link, Link]:
    client, server = Link(SESSION, link_settings, opens=True), Link(SESSION, link_settings, opens=False)
    client.carrier_up(0.0)
    server.carrier_up(0.0)
    assert exchange(client, server, 0.0) == ([Opened()], [Opened()])
    return client, server


def exchange(client: Link, server: Link, now: float) -> tuple[list[LinkEvent], list[LinkEvent]]:
    """Move frames both ways, without faults and without time, until neither has one."""
    at_client: list[LinkEvent] = []
    at_server: list[LinkEvent] = []
    moved = True
    while moved:
        moved = False
        while (frame := client.next_frame(now)) is not None:
            at_server += server.receive(frame, now)
            moved = True
        while (frame := server.next_frame(now)) is not None:
            at_client += client.receive(frame, now)
            moved = True
    return at_client, at_server


def frames_of(link: Link, now: float) -> list[bytes]:
    return list(iter(lambda: link.next_frame(now), None))


# The simulation.


@dataclass(frozen=True)
class Weather:
    drop: float = 0.0
    duplicate: float = 0.0
    corrupt: float = 0.0
    jitter: float = 0.0  # seconds; frames overtake each other
    cuts: int = 0


class Simulation:
    """Two links with their applications; every draw comes from one generator, the time is simulated."""

    def __init__(self, seed: int, weather: Weather, link_settings: LinkSettings, payloads: int) -> None:
        self.rng = random.Random(seed)
        self.weather = weather
        self.window = link_settings.window_bytes
        self.now = 0.0
        self.agenda: list[tuple[float, int, Callable[[], None]]] = []
        self.entries = 0
        self.links = [Link(SESSION, link_settings, opens=True), Link(SESSION, link_settings, opens=False)]
        self.sent: list[list[bytes]] = [[], []]
        self.delivered: list[list[bytes]] = [[], []]
        self.unconsumed: list[list[int]] = [[], []]
        self.presence: list[list[LinkEvent]] = [[], []]
        self.carrier = self.carriers = 0  # the number of the present one, 0 for none
        self.at(0, self.connect)
        for side in range(2):
            for _ in range(payloads):
                self.at(self.rng.uniform(0, 2), partial(self.submit, side))
        for _ in range(weather.cuts):
            self.at(self.rng.uniform(0, 4), self.cut)

    def at(self, delay: float, action: Callable[[], None]) -> None:
        self.entries += 1
        heapq.heappush(self.agenda, (self.now + delay, self.entries, action))

    def submit(self, side: int) -> None:
        payload = self.rng.randbytes(self.rng.choice((0, 1, 40, 400, 4000)))
        self.sent[side].append(payload)
        self.links[side].send(payload)

    def connect(self) -> None:
        self.carriers += 1
        self.carrier = self.carriers
        for link in self.links:
            link.carrier_up(self.now)

    def cut(self) -> None:
        if self.carrier:
            self.carrier = 0
            for side, link in enumerate(self.links):
                self.note(side, link.carrier_down(self.now))
            self.at(self.rng.uniform(0, 1), self.connect)

    def note(self, side: int, events: list[LinkEvent]) -> None:
        for event in events:
            if isinstance(event, Delivered):
                self.delivered[side].append(event.payload)
                self.unconsumed[side].append(len(event.payload))
                assert sum(size + HEADER_SIZE for size in self.unconsumed[side]) <= self.window
                self.at(self.rng.uniform(0, 0.2), partial(self.consume, side))
            else:
                self.presence[side].append(event)

    def consume(self, side: int) -> None:
        self.links[side].consumed(self.unconsumed[side].pop(0), self.now)

    def transmit(self, side: int, frame: bytes) -> None:
        weather, rng = self.weather, self.rng
        if rng.random() < weather.drop:
            return
        if rng.random() < weather.corrupt:
            at = rng.randrange(len(frame))
            frame = frame[:at] + bytes([frame[at] ^ rng.randint(1, 255)]) + frame[at + 1 :]
        for _ in range(1 + (rng.random() < weather.duplicate)):
            self.at(
                0.01 + rng.uniform(0, weather.jitter), partial(self.arrive, 1 - side, frame, self.carrier)
            )

    def arrive(self, side: int, frame: bytes, carrier: int) -> None:
        if carrier == self.carrier:
            self.note(side, self.links[side].receive(frame, self.now))

    def is_done(self) -> bool:
        return not self.agenda and self.delivered == self.sent[::-1]

    def run(self, most_seconds: float) -> None:
        while not self.is_done():
            while self.agenda and self.agenda[0][0] <= self.now:
                heapq.heappop(self.agenda)[2]()
            for side, link in enumerate(self.links):
                self.note(side, link.tick(self.now))
                for frame in frames_of(link, self.now):
                    self.transmit(side, frame)
            wakeups = [link.next_wakeup(may_send=True) for link in self.links]
            times = [time for time in wakeups if time is not None] + [entry[0] for entry in self.agenda[:1]]
            if times:
                assert min(times) > self.now or self.agenda, "a wake-up in the past would spin"
                self.now = max(self.now, min(times))
            assert self.now < most_seconds, [len(payloads) for payloads in self.delivered]


weathers = st.builds(
    Weather,
    drop=st.sampled_from((0.0, 0.05, 0.3)),
    duplicate=st.sampled_from((0.0, 0.3)),
    corrupt=st.sampled_from((0.0, 0.1)),
    jitter=st.sampled_from((0.0, 0.05, 0.5)),
    cuts=st.integers(0, 5),
)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), weather=weathers)
def test_any_weather_delivers_exactly_what_was_sent(seed: int, weather: Weather) -> None:
    # A window that a handful of payloads fills: credit runs out again and again, and its news get lost.
    tight = replace(SETTINGS, reconnect_window=1e6, retransmit_timeout=0.3)
    simulation = Simulation(seed, weather, tight, payloads=40)
    for link in simulation.links:
        link._receiving._window = link._receiving._full_window = 3 * 4096
    simulation.window = 3 * 4096
    simulation.run(most_seconds=600)
    if not weather.corrupt:
        assert [link.stats.malformed for link in simulation.links] == [0, 0], "a frame went beyond its credit"
    for events in simulation.presence:
        assert events[0] == Opened()
        assert not any(isinstance(event, PeerGone) for event in events)
        away, back = events.count(PeerAway()), events.count(PeerBack())
        assert back <= away <= back + 1


def test_fair_weather_needs_no_retransmission() -> None:
    simulation = Simulation(1, Weather(), SETTINGS, payloads=100)
    simulation.run(most_seconds=60)
    assert [link.stats.retransmissions for link in simulation.links] == [0, 0]
    assert [link.stats.malformed for link in simulation.links] == [0, 0]


def test_slow_carrier_is_not_taken_for_a_lossy_one() -> None:
    """At 3 s a way, well above the first retransmission timeout, the measured round trip takes over."""
    client, server = open_pair()
    arrivals: list[tuple[float, Link, bytes]] = []
    now = 0.0
    for step in range(2000):
        now = step * 0.1
        if step % 10 == 0 and step < 1000:
            client.send(b"x" * 100)
        for sender, receiver in ((client, server), (server, client)):
            arrivals += [(now + 1.5, receiver, frame) for frame in frames_of(sender, now)]
        for _, receiver, frame in [arrival for arrival in arrivals if arrival[0] <= now]:
            receiver.consumed(100, now) if receiver.receive(frame, now) else None
        arrivals = [arrival for arrival in arrivals if arrival[0] > now]
    assert client.queued_bytes == 0
    assert client.stats.retransmissions < 10


# Credit.


def test_nothing_is_sent_again_on_a_carrier_that_loses_nothing_until_it_breaks() -> None:
    """A frame that takes a minute on a slow line is not sent twice."""
    client, server = open_pair()
    client.carrier_up(1.0, is_reliable=True)
    server.carrier_up(1.0, is_reliable=True)
    exchange(client, server, 1.0)
    client.send(b"a mebibyte on a slow line")
    (slow,) = frames_of(client, 1.0)
    minutes = [client.next_frame(now) for now in range(2, 121)]
    assert {frame and decode(frame).kind for frame in minutes} == {None, Kind.ACK}  # type: ignore[union-attr]
    client.carrier_down(121.0)
    for link in (client, server):
        link.carrier_up(122.0, is_reliable=True)
    _, at_server = exchange(client, server, 122.0)
    assert Delivered(b"a mebibyte on a slow line") in at_server  # type: ignore[arg-type]
    assert server.receive(slow, 123.0) == []
    assert client.stats.retransmissions == 1


def test_window_is_never_exceeded_and_opens_as_the_application_consumes() -> None:
    client, server = open_pair(LinkSettings(window_bytes=2 * MAX_FRAME))
    for _ in range(10):
        client.send(bytes(MAX_PAYLOAD))
    _, events = exchange(client, server, 1.0)
    assert len(events) == 1, "a stranger gets one frame's worth of credit"
    server.consumed(MAX_PAYLOAD, 1.0)
    _, events = exchange(client, server, 1.0)
    assert len(events) == 2, "then the window"
    _, events = exchange(client, server, 1.1)
    assert events == []
    for _ in range(7):
        server.consumed(MAX_PAYLOAD, 1.2)
        _, events = exchange(client, server, 1.3)
        assert len(events) == 1
    assert client.queued_bytes == 0


def test_heartbeats_and_goodbye_pass_without_credit() -> None:
    client, server = open_pair()
    for _ in range(3):
        client.send(bytes(MAX_PAYLOAD))
    exchange(client, server, 1.0)
    assert client.queued_bytes == 2 * MAX_FRAME
    for now in range(2, 60, 2):
        assert exchange(client, server, float(now)) == ([], [])
        assert client.tick(float(now)) == server.tick(float(now)) == []
    client.say_bye("goodbye", 60.0)
    assert exchange(client, server, 60.0) == ([], [PeerGone("goodbye")])


def test_late_acknowledgement_after_a_rewind_keeps_count_of_the_credit() -> None:
    sending = Sending(retransmit_timeout=1.0)
    sending.update(0, 2 * MAX_FRAME, 0.0)
    for _ in range(3):
        sending.push(bytes(MAX_PAYLOAD))
    assert [item and item[0] for item in (sending.pop(0.0), sending.pop(0.0), sending.pop(0.0))] == [
        1,
        2,
        None,
    ]
    resent = sending.pop(1.0)
    assert resent is not None and resent[0] == 1
    sending.update(2, 2 * MAX_FRAME, 1.1)  # both had arrived
    assert sending.pop(1.1) is None
    sending.update(2, 3 * MAX_FRAME, 1.2)
    last = sending.pop(1.2)
    assert last is not None and last[0] == 3


def test_frame_beyond_the_credit_is_ignored() -> None:
    client, server = open_pair()
    client._sending.update(0, 2**60, 0.0)  # a peer that does not care for credit
    for _ in range(4):
        client.send(bytes(MAX_PAYLOAD))
    _, events = exchange(client, server, 1.0)
    assert len(events) == 1
    assert server.stats.malformed > 0


def test_empty_payloads_cost_credit_too() -> None:
    client, server = open_pair()
    for _ in range(MAX_FRAME // HEADER_SIZE + 100):
        client.send(b"")
    _, events = exchange(client, server, 1.0)
    assert len(events) == MAX_FRAME // HEADER_SIZE


# Limits.


def test_payload_at_the_limit_passes_and_one_byte_more_is_refused() -> None:
    client, server = open_pair()
    client.send(bytes(MAX_PAYLOAD))
    with pytest.raises(ValueError, match=str(MAX_PAYLOAD)):
        client.send(bytes(MAX_PAYLOAD + 1))
    assert client.queued_bytes == MAX_FRAME
    assert exchange(client, server, 1.0)[1] == [Delivered(bytes(MAX_PAYLOAD))]


def test_frame_over_the_limit_is_ignored() -> None:
    _, server = open_pair()
    frame = encode(Kind.DATA, SESSION, sequence=1, payload=bytes(MAX_PAYLOAD + 1))
    assert server.receive(frame, 1.0) == []
    assert server.stats.malformed == 1


@given(st.binary(max_size=200))
def test_garbage_is_counted_and_changes_nothing(data: bytes) -> None:
    client, server = open_pair()
    assert client.receive(data, 1.0) == server.receive(data, 1.0) == []
    assert client.stats.malformed == server.stats.malformed == 1
    client.send(b"still here")
    assert exchange(client, server, 1.0)[1] == [Delivered(b"still here")]


@given(st.integers(0, 2**16), st.integers(1, 255))
def test_one_altered_byte_anywhere_is_noticed(where: int, flip: int) -> None:
    frame = bytearray(encode(Kind.DATA, SESSION, sequence=7, payload=b"payload" * 20))
    assert decode(bytes(frame)) is not None
    frame[where % len(frame)] ^= flip
    assert decode(bytes(frame)) is None


@pytest.mark.parametrize(
    "frame",
    [
        encode(Kind.DATA, bytes(16), sequence=1, payload=b"of another session"),
        encode(Kind.ACK, SESSION, acknowledged=5, credit=2**40),  # of what was never sent
        encode(Kind.BYE, SESSION, payload=b"Not a code!"),
        encode(Kind.BYE, SESSION, payload=b"x" * 65),
        encode(Kind.ACCEPT, SESSION),  # a server accepts, it is not accepted
        encode_reject(SESSION, "unknown_session"),
    ],
)
def test_frame_against_the_rules_is_ignored_by_a_server(frame: bytes) -> None:
    _, server = open_pair()
    assert server.receive(frame, 1.0) == []
    assert server.stats.malformed == 1
    assert server.gone is None


# Presence.


def test_silence_makes_away_then_gone() -> None:
    client, _ = open_pair()
    frames_of(client, 0.0)
    assert client.tick(9.9) == []
    assert client.tick(10.0) == [PeerAway()]
    assert client.is_silent
    assert client.tick(39.9) == []
    assert client.tick(40.0) == [PeerGone("link_lost")]
    with pytest.raises(CommError, match="link_lost"):
        client.send(b"")


def test_any_frame_in_time_prevents_away() -> None:
    client, server = open_pair()
    for now in range(8, 100, 8):
        server.send(b"data, no heartbeat")
        exchange(client, server, float(now))
        assert client.tick(float(now)) == []


def test_broken_carrier_makes_away_at_once_and_resume_brings_everything() -> None:
    client, server = open_pair()
    client.send(b"arrives")
    exchange(client, server, 1.0)
    client.send(b"lost on the way")
    server.send(b"lost as well")
    assert len(frames_of(client, 2.0)) == len(frames_of(server, 2.0)) == 1
    assert client.carrier_down(2.0) == server.carrier_down(2.0) == [PeerAway()]
    client.send(b"queued while away")
    client.carrier_up(20.0)
    server.carrier_up(20.0)
    at_client, at_server = exchange(client, server, 20.0)
    assert at_client == [PeerBack(), Delivered(b"lost as well")]
    assert at_server == [PeerBack(), Delivered(b"lost on the way"), Delivered(b"queued while away")]


def test_new_carrier_in_place_of_a_living_one_is_no_absence() -> None:
    client, server = open_pair()
    client.send(b"in flight")
    frames_of(client, 1.0)
    client.carrier_up(1.0)
    server.carrier_up(1.0)
    assert exchange(client, server, 1.0) == ([], [Delivered(b"in flight")])


def test_nothing_but_heartbeats_is_sent_to_an_absent_peer() -> None:
    _, server = open_pair()
    server.tick(10.0)
    server.send(b"waits")
    kinds = [decode(frame) for now in range(10, 30) for frame in frames_of(server, float(now))]
    assert {frame.kind for frame in kinds if frame is not None} == {Kind.ACK}


def test_server_that_lost_its_memory_ends_the_session() -> None:
    client, _ = open_pair()
    client.carrier_down(1.0)
    client.carrier_up(2.0)
    (opening,) = frames_of(client, 2.0)
    assert decode(opening) is not None
    assert client.receive(encode_reject(SESSION, "unknown_session"), 2.0) == [PeerGone("unknown_session")]
    assert client.is_finished


def test_lost_open_and_lost_accept_are_repeated() -> None:
    client, server = Link(SESSION, SETTINGS, opens=True), Link(SESSION, SETTINGS, opens=False)
    client.carrier_up(0.0)
    server.carrier_up(0.0)
    assert len(frames_of(client, 0.0)) == 1  # lost
    assert frames_of(client, 1.0) == []
    (opening,) = frames_of(client, 2.0)
    assert server.receive(opening, 2.0) == [Opened()]
    assert len(frames_of(server, 2.0)) == 1  # the ACCEPT, lost
    assert exchange(client, server, 4.0) == ([Opened()], [])


def test_data_before_a_lost_accept_opens_the_client() -> None:
    client, server = Link(SESSION, SETTINGS, opens=True), Link(SESSION, SETTINGS, opens=False)
    client.carrier_up(0.0)
    server.carrier_up(0.0)
    (opening,) = frames_of(client, 0.0)
    server.receive(opening, 0.0)
    server.send(b"first")
    _, data = frames_of(server, 0.0)
    assert client.receive(data, 0.0) == [Opened(), Delivered(b"first")]


# Goodbyes.


def test_goodbye_is_repeated_until_answered() -> None:
    client, server = open_pair()
    client.say_bye("stopped_by_user", 1.0)
    assert len(frames_of(client, 1.0)) == 1  # lost
    assert client.gone is None
    (bye,) = frames_of(client, 3.0)
    assert server.receive(bye, 3.0) == [PeerGone("stopped_by_user")]
    assert not server.is_finished
    assert len(frames_of(server, 3.0)) == 1  # the answer, lost
    assert server.is_finished
    assert exchange(client, server, 5.0) == ([], [])
    assert client.gone == "stopped_by_user"
    assert client.is_finished and server.is_finished


def test_frame_of_another_version_ends_a_session_that_it_names_and_no_other() -> None:
    def of_another_version(session: bytes) -> bytes:
        head = encode(Kind.REJECT, session)[: HEADER_SIZE - 4]
        head = head[:2] + bytes([head[2] + 1]) + head[3:]
        return head + zlib.crc32(head).to_bytes(4, "big")

    client = Link(SESSION, SETTINGS, opens=True)
    client.carrier_up(0.0)
    assert client.receive(of_another_version(bytes(16)), 0.0) == []
    assert client.gone is None
    assert client.receive(of_another_version(SESSION), 0.0) == [PeerGone("wrong_version")]

    established, _ = open_pair()
    assert established.receive(of_another_version(SESSION), 0.0) == []
    assert established.gone is None


def test_both_may_say_goodbye_at_once() -> None:
    client, server = open_pair()
    client.say_bye("goodbye", 1.0)
    server.say_bye("run_over", 1.0)
    assert exchange(client, server, 1.0) == ([], [])
    assert client.is_finished and server.is_finished


def test_carrier_that_ends_after_the_goodbye_is_an_answer() -> None:
    client, _ = open_pair()
    client.say_bye("goodbye", 1.0)
    frames_of(client, 1.0)
    assert client.carrier_down(1.1) == []
    assert client.gone == "goodbye"


def test_nothing_is_sent_after_the_goodbye() -> None:
    client, _ = open_pair()
    client.say_bye("goodbye", 1.0)
    with pytest.raises(CommError, match="goodbye"):
        client.send(b"too late")
    with pytest.raises(ValueError, match="reason code"):
        open_pair()[0].say_bye("Not a code!", 1.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"heartbeat_interval": 0.0},
        {"heartbeat_interval": 10.0, "heartbeat_timeout": 10.0},
        {"window_bytes": MAX_FRAME - 1},
        {"relay_buffer": 0},
        {"max_peers": 0},
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"wanted .* found"):
        LinkSettings(**wrong)  # type: ignore[arg-type]

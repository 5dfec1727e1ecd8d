"""The transport contract: the same tests over every carrier, in fair weather and in foul."""

from __future__ import annotations

import asyncio
import random
import time
import zlib
from typing import TYPE_CHECKING

import pytest

from lightsecagg.comm.base import (
    MAX_PAYLOAD,
    Arrived,
    Away,
    Back,
    Gone,
    Payload,
)
from lightsecagg.comm.driver import Carrier
from lightsecagg.comm.frame import HEADER_SIZE, MAX_FRAME, Kind, encode
from lightsecagg.errors import CommError

if TYPE_CHECKING:
    from conftest import Client, Network

    from lightsecagg.comm.server import LinkHub

MIB = 2**20


async def payloads(network: Network, hub: LinkHub, count: int) -> list[bytes]:
    return [(await network.expect(hub, Payload)).data for _ in range(count)]


async def echo(hub: LinkHub) -> None:
    """Send every payload back to where it came from, until the hub is closed."""
    while True:
        try:
            event = await hub.receive()
        except CommError:
            return
        if isinstance(event, Payload):
            await hub.send(event.peer, event.data)


# What is sent arrives.


async def test_payloads_arrive_once_and_in_order_both_ways(network: Network) -> None:
    hub, client, peer = await network.pair()
    up = [b"up %d" % number for number in range(200)]
    down = [b"down %d" % number for number in range(200)]
    for one, other in zip(up, down, strict=True):
        await client.transport.send(one)
        await hub.send(peer, other)
    assert await payloads(network, hub, 200) == up
    assert [await client.payload() for _ in down] == down


async def test_every_size_up_to_the_limit_arrives_intact(network: Network) -> None:
    hub, client, _ = await network.pair()
    rng = random.Random(1)
    sent = [rng.randbytes(size) for size in (0, 1, HEADER_SIZE, 65_537, MIB, MAX_PAYLOAD - 1, MAX_PAYLOAD, 0)]
    echoing = asyncio.create_task(echo(hub))
    for data in sent:
        await network.soon(client.transport.send(data))
        assert await client.payload() == data
    await hub.close()
    await network.soon(echoing)


async def test_any_buffer_can_be_sent(network: Network) -> None:
    hub, client, _ = await network.pair()
    words = memoryview(bytes(range(16))).cast("I")
    for data in (bytearray(b"array"), memoryview(b"view"), words, memoryview(b"").cast("B"), bytearray()):
        await client.transport.send(data)
    assert await payloads(network, hub, 5) == [b"array", b"view", bytes(range(16)), b"", b""]


async def test_one_byte_over_the_limit_is_refused_before_it_is_queued(network: Network) -> None:
    hub, client, peer = await network.pair()
    too_long = bytes(MAX_PAYLOAD + 1)
    with pytest.raises(ValueError, match="in parts"):
        await client.transport.send(too_long)
    with pytest.raises(ValueError, match="in parts"):
        await hub.send(peer, too_long)
    with pytest.raises(ValueError, match="in parts"):
        hub.try_send(peer, too_long)
    assert client.transport.queued_bytes == hub.queued_bytes(peer) == 0
    await client.transport.send(b"fine")
    assert await payloads(network, hub, 1) == [b"fine"]


async def test_long_stream_arrives_both_ways_at_once(network: Network) -> None:
    count = 256 if network.is_fair else 12
    hub, client, _ = await network.pair()
    rng = random.Random(2)
    sent = [rng.randbytes(MIB) for _ in range(4)]
    echoing = asyncio.create_task(echo(hub))

    async def send_all() -> None:
        for number in range(count):
            await client.transport.send(sent[number % 4])

    sending = asyncio.create_task(send_all())
    for number in range(count):
        assert await client.payload() == sent[number % 4]
    await network.soon(sending)
    await hub.close()
    await network.soon(echoing)


async def test_many_peers_are_told_apart(network: Network) -> None:
    hub = await network.hub()
    members = [await network.join(hub) for _ in range(20)]
    assert [peer for _, peer in members] == list(range(1, 21))
    echoing = asyncio.create_task(echo(hub))

    async def talk(client: Client, peer: int) -> None:
        for number in range(10):
            await client.transport.send(b"%d %d" % (peer, number))
        for number in range(10):
            assert await client.payload() == b"%d %d" % (peer, number)

    await network.soon(asyncio.gather(*(talk(client, peer) for client, peer in members)))
    await hub.close()
    await network.soon(echoing)


# Back-pressure.


async def test_slow_client_holds_up_nobody_else_and_costs_bounded_memory(network: Network) -> None:
    sizes = {"relay_buffer": 4 * MAX_FRAME, "window_bytes": 2 * MAX_FRAME}
    hub, slow, slow_peer = await network.pair(**sizes)
    quick, quick_peer = await network.join(hub, **sizes)
    data = bytes(MIB)

    async def send_all() -> None:
        for _ in range(20):
            await hub.send(slow_peer, data)

    sending = asyncio.create_task(send_all())
    for _ in range(10):
        await hub.send(quick_peer, data)
        assert await quick.payload() == data
    assert not sending.done()
    assert not hub.try_send(slow_peer, data)
    assert 4 * MAX_FRAME < hub.queued_bytes(slow_peer) <= 5 * MAX_FRAME
    assert sum(isinstance(event, Payload) for event in slow.transport._events._queue) <= 2
    for _ in range(20):
        assert await slow.payload() == data
    await network.soon(sending)


async def test_hub_that_is_not_read_holds_the_client_up(network: Network) -> None:
    sizes = {"relay_buffer": 2 * MAX_FRAME, "window_bytes": 2 * MAX_FRAME}
    hub, client, _ = await network.pair(**sizes)
    data = bytes(MIB)

    async def send_all() -> None:
        for _ in range(20):
            await client.transport.send(data)

    sending = asyncio.create_task(send_all())
    done, _ = await asyncio.wait({sending}, timeout=0.3)
    assert not done
    assert client.transport.queued_bytes <= 3 * MAX_FRAME
    assert sum(isinstance(event, Payload) for event in hub._events._queue) <= 2
    assert await payloads(network, hub, 20) == [data] * 20
    await network.soon(sending)


async def test_a_peer_whose_credit_is_held_waits_until_it_is_given(network: Network) -> None:
    sizes = {"relay_buffer": 2 * MAX_FRAME, "window_bytes": 2 * MAX_FRAME}
    hub, client, peer = await network.pair(**sizes)
    data = bytes(MIB)

    async def send_all() -> None:
        for _ in range(8):
            await client.transport.send(data)

    async def take_holding() -> None:
        while not isinstance(await hub.receive(holds_credit=True), Payload):
            pass

    sending = asyncio.create_task(send_all())
    assert await payloads(network, hub, 1) == [data]
    for _ in range(2):  # the window
        await network.soon(take_holding())
    third = asyncio.create_task(take_holding())
    done, _ = await asyncio.wait({third}, timeout=0.3)
    assert not done
    hub.give_credit(peer + 1, len(data))  # nobody
    for _ in range(3):
        hub.give_credit(peer, len(data))
    await network.soon(third)
    assert await payloads(network, hub, 4) == [data] * 4
    await network.soon(sending)


async def test_the_arrival_of_a_payload_is_told_once_it_was_acknowledged(network: Network) -> None:
    hub, client, peer = await network.pair()
    arrived: list[int] = []
    for number in range(5):
        await hub.send(peer, b"%d" % number, lambda number=number: arrived.append(number))
        await hub.send(peer, b"and another")
    for _ in range(10):
        await client.payload()
    while len(arrived) < 5:
        await client.transport.send(b"echo")  # what carries the acknowledgement at the latest
        await network.expect(hub, Payload)
    assert arrived == [0, 1, 2, 3, 4]
    assert hub.queued_bytes(peer) == 0


async def test_idle_link_stays_up_without_credit(fair_network: Network) -> None:
    hub, client, peer = await fair_network.pair(heartbeat_interval=0.02, heartbeat_timeout=0.5)
    for _ in range(3):
        await hub.send(peer, bytes(MIB))  # of which the client takes none
    assert client.carrier is not None
    write, enough, frames = client.carrier.write, asyncio.Event(), []

    async def count(frame: bytes) -> None:
        frames.append(len(frame))
        if len(frames) == 50:  # a second of heartbeats, twice the timeout
            enough.set()
        await write(frame)

    client.carrier.write = count
    await fair_network.soon(enough.wait())
    assert max(frames) == HEADER_SIZE
    assert isinstance(await client.transport.receive(), Payload)
    assert client.transport._events.empty()
    assert hub._events.empty()


# Absence and loss.


async def test_broken_connection_is_resumed_and_nothing_is_lost(network: Network) -> None:
    hub, client, peer = await network.pair()
    sent = [b"%d" % number + bytes(10_000) for number in range(300)]

    async def send_all() -> None:
        for number, data in enumerate(sent):
            await client.transport.send(data)
            await hub.send(peer, data)
            if number % 100 == 50:
                await client.cut()

    sending = asyncio.create_task(send_all())
    assert await payloads(network, hub, len(sent)) == sent
    assert [await client.payload() for _ in sent] == sent
    await network.soon(sending)
    assert client.carriers > 1


async def test_broken_connection_is_away_at_once_then_back(fair_network: Network) -> None:
    hub, client, peer = await fair_network.pair(heartbeat_interval=10.0, heartbeat_timeout=100.0)
    await client.cut()
    assert await fair_network.soon(hub.receive()) == Away(peer)
    assert await fair_network.soon(hub.receive()) == Back(peer)
    assert await fair_network.soon(client.transport.receive()) == Away(0)
    assert await fair_network.soon(client.transport.receive()) == Back(0)


async def test_killed_client_is_away_then_gone(fair_network: Network) -> None:
    hub, client, peer = await fair_network.pair(reconnect_window=0.3)
    await client.cut(stay_offline=True)
    assert await fair_network.soon(hub.receive()) == Away(peer)
    await hub.send(peer, b"for nobody")
    assert await fair_network.soon(hub.receive()) == Gone(peer, "link_lost")
    assert hub.queued_bytes(peer) == 0
    with pytest.raises(CommError, match=f"peer {peer} is gone"):
        await hub.send(peer, b"for nobody")
    assert await fair_network.soon(client.transport.receive()) == Away(0)
    assert await fair_network.soon(client.transport.receive()) == Gone(0, "link_lost")
    with pytest.raises(CommError, match="link_lost"):
        await client.transport.receive()
    with pytest.raises(CommError, match="link_lost"):
        await client.transport.send(b"for nobody")


async def test_sender_that_waits_for_a_lost_peer_is_told(fair_network: Network) -> None:
    hub, client, peer = await fair_network.pair(reconnect_window=0.3, relay_buffer=MAX_FRAME)
    await client.cut(stay_offline=True)
    while hub.try_send(peer, bytes(MIB)):
        pass
    with pytest.raises(CommError, match="link_lost"):
        await fair_network.soon(hub.send(peer, b"waits"))


async def test_frozen_client_is_away_by_its_silence_and_carries_on(fair_network: Network) -> None:
    hub, client, peer = await fair_network.pair(heartbeat_interval=0.1, heartbeat_timeout=0.8)
    assert client.carrier is not None
    client.carrier.freeze()
    await hub.send(peer, b"while frozen")
    assert await fair_network.soon(hub.receive()) == Away(peer)
    client.carrier.thaw()
    assert await fair_network.soon(hub.receive()) == Back(peer)
    assert await client.payload() == b"while frozen"
    await client.transport.send(b"well again")
    assert await payloads(fair_network, hub, 1) == [b"well again"]


async def test_own_sleep_does_not_pass_for_the_silence_of_the_peer(fair_network: Network) -> None:
    hub, client, _ = await fair_network.pair(heartbeat_interval=0.1, heartbeat_timeout=0.8)
    time.sleep(1.2)  # noqa: ASYNC251 (the loop is to be held up)
    ticked = asyncio.Event()
    asyncio.get_running_loop().call_later(0.6, ticked.set)  # past the tick that was put off
    await ticked.wait()
    assert hub._events.empty()
    assert client.transport._events.empty()


async def test_frozen_connection_is_replaced_by_the_client(fair_network: Network) -> None:
    hub, client, peer = await fair_network.pair(heartbeat_interval=0.1, heartbeat_timeout=0.8)
    assert client.carrier is not None
    client.carrier.freeze()  # for good: a cable was pulled, and only a new connection helps
    await hub.send(peer, b"while frozen")
    assert await client.payload() == b"while frozen"
    assert client.carriers == 2


async def test_client_that_comes_back_too_late_is_not_known(fair_network: Network) -> None:
    hub = await fair_network.hub(reconnect_window=0.2)
    client, peer = await fair_network.join(hub)
    await client.cut(stay_offline=True)
    assert (await fair_network.expect(hub, Gone)).peer == peer
    client.is_offline = False
    assert (await fair_network.expect(client.transport, Gone)).reason == "unknown_session"


async def test_restarted_server_does_not_know_the_session(fair_network: Network) -> None:
    hub, client, _ = await fair_network.pair()
    client.is_offline = True
    await hub.unlisten()  # no goodbye: the process was killed
    await fair_network.expect(client.transport, Away)
    client.is_offline = False
    again = await fair_network.hub()
    assert (await fair_network.expect(client.transport, Gone)).reason == "unknown_session"
    _, peer = await fair_network.join(again)
    assert peer == 1


# Goodbyes.


async def test_goodbye_comes_after_everything_sent_and_carries_its_reason(network: Network) -> None:
    hub, client, peer = await network.pair()
    for number in range(50):
        await client.transport.send(b"%d" % number)
    await network.soon(client.transport.close("below_floor"))
    assert await payloads(network, hub, 50) == [b"%d" % number for number in range(50)]
    gone = await network.expect(hub, Gone)
    assert gone.peer == peer
    if network.is_fair:  # a lost goodbye shows as a lost link
        assert gone.reason == "below_floor"
    with pytest.raises(CommError):
        await client.transport.send(b"too late")
    with pytest.raises(CommError):
        await client.transport.receive()


async def test_hub_closes_one_peer_with_a_reason(fair_network: Network) -> None:
    hub, client, peer = await fair_network.pair()
    other, other_peer = await fair_network.join(hub)
    await client.transport.send(b"never read")
    await hub.send(peer, b"last words")
    await fair_network.soon(hub.close_peer(peer, "rank_taken"))
    await fair_network.soon(hub.close_peer(peer, "rank_taken"))
    assert await client.payload() == b"last words"
    assert await fair_network.soon(client.transport.receive()) == Gone(0, "rank_taken")
    await other.transport.send(b"next event")
    assert await fair_network.soon(hub.receive()) == Payload(other_peer, b"next event")
    with pytest.raises(CommError, match=f"peer {peer} is gone"):
        hub.try_send(peer, b"too late")


async def test_closing_the_hub_says_goodbye_to_all(fair_network: Network) -> None:
    hub = await fair_network.hub()
    members = [await fair_network.join(hub) for _ in range(5)]
    for _, peer in members:
        await hub.send(peer, b"the end")
    waiting = asyncio.create_task(hub.receive())
    await fair_network.soon(hub.close("run_over"))
    with pytest.raises(CommError, match="closed"):
        await fair_network.soon(waiting)
    for client, _ in members:
        assert await client.payload() == b"the end"
        assert await fair_network.soon(client.transport.receive()) == Gone(0, "run_over")
    await hub.close()


async def test_close_during_send_ends_in_bounded_time(fair_network: Network) -> None:
    hub, client, peer = await fair_network.pair(relay_buffer=MAX_FRAME, close_timeout=0.3)

    async def send_for_ever() -> None:
        while True:
            await client.transport.send(bytes(MIB))

    sending = asyncio.create_task(send_for_ever())
    done, _ = await asyncio.wait({sending}, timeout=0.2)
    assert not done, "the hub takes nothing, so the client waits"
    closing = asyncio.create_task(client.transport.close())
    with pytest.raises(CommError, match="being closed"):
        await fair_network.soon(sending)
    assert not closing.done(), "what was queued before has its time"
    await fair_network.soon(closing)
    assert await fair_network.expect(hub, Gone) == Gone(peer, "goodbye")


async def test_close_does_not_wait_for_a_frozen_peer(fair_network: Network) -> None:
    hub, client, peer = await fair_network.pair(close_timeout=0.2)
    assert client.carrier is not None
    client.carrier.freeze()
    await hub.send(peer, b"for nobody")
    await fair_network.soon(hub.close(), seconds=5)


# Beginnings.


async def test_client_may_start_before_the_server(fair_network: Network) -> None:
    said: list[str] = []
    hub = await fair_network.hub()  # to learn a free port
    await hub.close()
    client = fair_network.client()
    waits = asyncio.Event()

    def on_waiting(text: str) -> None:
        said.append(text)
        waits.set()

    client.transport._on_waiting = on_waiting
    connecting = asyncio.create_task(client.transport.connect())
    await fair_network.soon(waits.wait())
    again = await fair_network.hub()
    await fair_network.soon(connecting)
    await fair_network.expect(again, Arrived)
    assert len(said) == 1
    assert "waiting for the server at" in said[0]


async def test_transport_is_used_once(fair_network: Network) -> None:
    _, client, _ = await fair_network.pair()
    with pytest.raises(CommError, match="used once"):
        await client.transport.connect()


async def test_client_gives_up_with_a_reason(fair_network: Network) -> None:
    hub = await fair_network.hub()
    await hub.close()
    client = fair_network.client(connect_timeout=0.3)
    with pytest.raises(CommError, match=r"no server at .* after 0.3 s .*check that the server runs"):
        await client.transport.connect()
    with pytest.raises(CommError):
        await client.transport.receive()


async def test_two_servers_cannot_have_one_address(fair_network: Network) -> None:
    await fair_network.hub()
    with pytest.raises(CommError, match=r"comm_args\..*(name|port|run)"):
        await fair_network.hub()


async def test_client_waits_while_the_server_has_as_many_sessions_as_it_keeps(fair_network: Network) -> None:
    hub = await fair_network.hub(max_peers=2)
    first, _ = await fair_network.join(hub)
    await fair_network.join(hub)
    hasty = fair_network.client(connect_timeout=0.5)
    with pytest.raises(CommError, match="server_full"):
        await fair_network.soon(hasty.transport.connect())
    third = fair_network.client()
    said = asyncio.Event()
    third.transport._on_waiting = lambda _text: said.set()
    connecting = asyncio.create_task(third.transport.connect())
    await fair_network.soon(said.wait())
    await first.transport.close()
    await fair_network.expect(hub, Gone)
    await fair_network.soon(connecting)


class Restamped(Carrier):
    """Makes frames pass for another version's, with the checksum that those would have."""

    def __init__(self, carrier: Carrier, *, answers: bool) -> None:
        self._carrier = carrier
        self._answers = answers

    @staticmethod
    def stamp(frame: bytes) -> bytes:
        head = frame[:2] + bytes([frame[2] + 1]) + frame[3 : HEADER_SIZE - 4]
        payload = frame[HEADER_SIZE:]
        return head + zlib.crc32(payload, zlib.crc32(head)).to_bytes(4, "big") + payload

    async def read(self) -> bytes | None:
        frame = await self._carrier.read()
        return self.stamp(frame) if frame and self._answers else frame

    async def write(self, frame: bytes) -> None:
        await self._carrier.write(self.stamp(frame))

    async def finish(self) -> None:
        await self._carrier.finish()

    async def close(self) -> None:
        await self._carrier.close()


@pytest.mark.parametrize("answers", [False, True], ids=["at the server", "at the client"])
async def test_peer_of_another_version_is_told_so(fair_network: Network, answers: bool) -> None:
    hub, client, _ = await fair_network.pair()
    other = fair_network.client()
    dial = other.transport._dial

    async def restamped() -> Carrier:
        return Restamped(await dial(), answers=answers)

    other.transport._dial = restamped
    with pytest.raises(
        CommError, match=r"another version of lightsecagg \(wrong_version\): install the same"
    ):
        await fair_network.soon(other.transport.connect())
    await client.transport.send(b"undisturbed")
    assert await fair_network.soon(hub.receive()) == Payload(1, b"undisturbed")


async def test_garbage_from_a_stranger_disturbs_nobody(fair_network: Network) -> None:
    hub, client, _ = await fair_network.pair()
    stranger = await fair_network.client().transport._dial()
    rng = random.Random(3)

    async def babble() -> None:
        while True:
            await stranger.write(rng.randbytes(rng.randrange(200)))

    with pytest.raises(ConnectionError):
        await fair_network.soon(babble())
    assert await fair_network.soon(stranger.read()) is None
    await stranger.close()
    await client.transport.send(b"undisturbed")
    assert await fair_network.soon(hub.receive()) == Payload(1, b"undisturbed")


async def test_garbage_within_a_session_is_counted(fair_network: Network) -> None:
    hub, client, peer = await fair_network.pair()
    assert client.carrier is not None
    write, token = client.carrier.write, client.transport._link.session
    garbage = [b"?", b"garbage", encode(Kind.DATA, bytes(16)), encode(Kind.OPEN, token, acknowledged=99)]

    async def write_garbage_first(frame: bytes) -> None:
        while garbage:
            await write(garbage.pop(0))
        await write(frame)

    client.carrier.write = write_garbage_first  # a carrier has one writer
    await client.transport.send(b"undisturbed")
    assert await fair_network.soon(hub.receive()) == Payload(peer, b"undisturbed")
    assert hub.stats(peer).malformed == 4


async def test_statistics_count_what_went_over_the_wire(fair_network: Network) -> None:
    hub, client, peer = await fair_network.pair()
    for _ in range(5):
        await client.transport.send(bytes(MIB))
    await payloads(fair_network, hub, 5)
    sent, received = client.transport.stats, hub.stats(peer)
    assert 5 * (MIB + HEADER_SIZE) <= received.bytes_received <= sent.bytes_sent < 5 * MIB + 10_000
    assert received.frames_received >= 6
    assert sent.retransmissions == received.malformed == 0
    assert hub.stats(99).bytes_received == 0

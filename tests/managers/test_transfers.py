"""Long outputs to clients: a few at a time, the newest one for each, and none once it is stopped."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator

import pytest

from lightsecagg.managers import transfers
from lightsecagg.managers.inbox import Client
from lightsecagg.managers.outbox import OnArrival, Outbox
from lightsecagg.managers.transfers import Transfers
from lightsecagg.protocol.actions import Send

PATIENCE = 20.0


class Receiver:
    """A client whose messages arrive when the test says so; until then nothing more is handed over."""

    def __init__(self, rank: int) -> None:
        self.got: list[bytes | memoryview] = []
        self._under_way: deque[OnArrival] = deque()
        self._changed = asyncio.Condition()
        self.client = Client(rank, b"", rank, Outbox(self._deliver))
        self.client.sender = asyncio.create_task(self.client.outbox.run())

    async def _deliver(self, message: bytes | memoryview, on_arrival: OnArrival | None) -> None:
        assert on_arrival is not None
        async with self._changed:
            self.got.append(message)
            self._under_way.append(on_arrival)
            self._changed.notify_all()
            await self._changed.wait_for(lambda: not self._under_way)

    async def has(self, messages: int) -> None:
        """Wait until so many messages were handed over."""
        async with asyncio.timeout(PATIENCE), self._changed:
            await self._changed.wait_for(lambda: len(self.got) == messages)

    async def take(self) -> None:
        """Let the next message arrive, once it is there."""
        async with asyncio.timeout(PATIENCE), self._changed:
            await self._changed.wait_for(lambda: bool(self._under_way))
            self._under_way.popleft()()
            self._changed.notify_all()


def model(name: str, parts: int = 3) -> Iterator[Send]:
    return (Send(1, f"{name}{place}".encode()) for place in range(parts))


@pytest.fixture(autouse=True)
def one_place_and_long_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers, "_TRANSFERS", 1)
    monkeypatch.setattr(transfers, "_TURN", PATIENCE)


async def test_the_next_transfer_begins_when_the_last_message_of_the_one_before_has_arrived() -> None:
    first, second, under_way = Receiver(1), Receiver(2), Transfers()
    under_way.send(first.client, model("a", 2))
    under_way.send(second.client, model("b", 1))
    await first.take()
    await first.has(2)
    assert not second.got
    await first.take()
    await second.has(1)
    assert (first.got, second.got) == ([b"a0", b"a1"], [b"b0"])
    under_way.close()


async def test_a_newer_model_takes_the_place_of_the_older_one() -> None:
    receiver, under_way = Receiver(1), Transfers()
    under_way.send(receiver.client, model("a"))
    await receiver.has(1)
    under_way.send(receiver.client, model("b", 2))
    await receiver.take()
    await receiver.take()
    await receiver.has(3)
    # What was handed to the carrier before goes out; of the older one nothing more is pulled.
    assert receiver.got == [b"a0", b"b0", b"b1"]
    under_way.close()


async def test_a_transfer_that_is_stopped_gives_its_place_on_at_once() -> None:
    first, second, under_way = Receiver(1), Receiver(2), Transfers()
    under_way.send(first.client, model("a"))
    under_way.send(second.client, model("b", 1))
    under_way.stop(first.client)
    await second.take()
    assert (first.got, second.got) == ([], [b"b0"])
    under_way.close()


async def test_a_transfer_that_is_stopped_before_its_turn_sends_nothing_and_holds_nobody_up() -> None:
    first, second, third, under_way = Receiver(1), Receiver(2), Receiver(3), Transfers()
    under_way.send(first.client, model("a", 1))
    under_way.send(second.client, model("b", 1))
    under_way.send(third.client, model("c", 1))
    under_way.stop(second.client)
    await first.take()
    await third.take()
    assert (first.got, second.got, third.got) == ([b"a0"], [], [b"c0"])
    under_way.close()

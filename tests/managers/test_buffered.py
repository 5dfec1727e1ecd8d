"""What an asynchronous run asks of the session: slots for the whole run, and every client in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from lightsecagg.errors import Reason
from lightsecagg.identity import Identity
from lightsecagg.managers.inbox import Client as SessionClient
from lightsecagg.managers.inbox import ClientEvent, FromClient, Inbox, KeyPublished, Status, StatusChanged
from lightsecagg.managers.outbox import Outbox
from lightsecagg.managers.participation import RefusedError
from lightsecagg.managers.scheme import Free
from lightsecagg.managers.session import Session
from lightsecagg.protocol import messages as m
from lightsecagg.protocol.wire import from_client
from lightsecagg.tracking import events
from tests.managers.test_runs import PATIENCE, Stage, make_settings


class Door:
    """A session of permanent slots, to which clients come and from which they go."""

    def __init__(self, stage: Stage, session: Session) -> None:
        self._stage = stage
        self.session = session
        self.credit: list[tuple[int, int]] = []
        self._running: set[asyncio.Task[None]] = set()

    async def come(self, rank: int, identity: Identity) -> asyncio.Task[None]:
        """Join, or raise as the client does that is turned away."""
        before = self.session.clients.get(rank)
        running = asyncio.create_task(self._stage.client(rank, identity).run())
        self._running.add(running)
        joined = asyncio.create_task(
            self.session.until(lambda: self.session.clients.get(rank) is not before, PATIENCE)
        )
        await asyncio.wait({running, joined}, return_when=asyncio.FIRST_COMPLETED)
        joined.cancel()
        if running.done():
            running.result()
        return running

    async def go(self, rank: int, running: asyncio.Task[None]) -> None:
        """Say goodbye, and wait until the server knows it."""
        client = self.session.clients[rank]
        running.cancel()
        await self.session.until(lambda: client.status is Status.GONE, PATIENCE)

    async def close(self) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)


@asynccontextmanager
async def open_door(folder: Path, *, permanent: bool = True, **secure: Any) -> AsyncIterator[Door]:
    stage = Stage(folder, make_settings(3, **secure))
    session = stage.server()._session
    session.permanent_slots = permanent
    door = Door(stage, session)
    give_credit = session.hub.give_credit

    def note(peer: int, size: int) -> None:
        door.credit.append((peer, size))
        give_credit(peer, size)

    session.hub.give_credit = note  # type: ignore[method-assign]
    await session.hub.start()
    pump = asyncio.create_task(session.pump())
    try:
        async with asyncio.timeout(PATIENCE):
            yield door
    finally:
        await door.close()
        pump.cancel()
        await asyncio.gather(pump, return_exceptions=True)
        await session.close()
        await session.hub.close()


async def heard(inbox: Inbox, count: int) -> list[ClientEvent]:
    found: list[ClientEvent] = []
    while len(found) < count:
        await inbox.wait()
        found += inbox.take()
    return found


def stranger(rank: int = 1) -> SessionClient:
    return SessionClient(rank, b"", rank, Outbox(lambda _, __: asyncio.sleep(0)))


async def test_slot_is_its_first_holders_for_the_run_and_nobody_elses(tmp_path: Path) -> None:
    first, other = Identity.generate(), Identity.generate()
    async with open_door(tmp_path) as door:
        await door.go(1, await door.come(1, first))
        with pytest.raises(RefusedError, match=r"rank 1 belongs to another identity .* take a free rank"):
            await door.come(1, other)
        await door.come(2, other)
        await door.come(1, first)
        assert {rank: client.identity for rank, client in door.session.clients.items()} == {
            1: first.public,
            2: other.public,
        }
        refused = door._stage.recorder.of(events.ClientRefused)
        assert [(event.rank, event.reason) for event in refused] == [(1, Reason.RANK_TAKEN.value)]


async def test_identity_has_one_slot_for_the_run(tmp_path: Path) -> None:
    own = Identity.generate()
    async with open_door(tmp_path) as door:
        await door.go(1, await door.come(1, own))
        with pytest.raises(RefusedError, match=r"this identity is rank 1 for this run .* start as that rank"):
            await door.come(2, own)
        await door.come(1, own)


async def test_in_a_synchronous_run_a_rank_that_was_left_is_free(tmp_path: Path) -> None:
    first, other = Identity.generate(), Identity.generate()
    async with open_door(tmp_path, permanent=False) as door:
        await door.go(1, await door.come(1, first))
        await door.come(1, other)
        await door.come(2, first)
        assert door.session.clients[1].identity == other.public


async def test_a_runner_of_all_hears_of_each_key_and_of_who_takes_a_rank_over_in_order(
    tmp_path: Path,
) -> None:
    own = Identity.generate()
    async with open_door(tmp_path) as door:
        door.session.inbox = inbox = Inbox(None)
        running = await door.come(1, own)
        before = await heard(inbox, 1)
        former = door.session.clients[1]
        await door.go(1, running)
        await door.come(1, own)
        found = [*before, *await heard(inbox, 2)]
        present = door.session.clients[1]
        assert present is not former
        match found:
            case [
                KeyPublished(first, Free(first_member)),
                StatusChanged(gone, Status.GONE),
                KeyPublished(second, Free(second_member)),
            ]:
                assert (first, gone, second) == (former, former, present)
                assert first_member is not None and second_member is not None
                assert first_member.key != second_member.key
            case _:
                pytest.fail(str(found))
        assert former.free is None and present.free is None, "a key is taken once"


async def test_credit_for_a_key_is_held_until_the_runner_is_done_with_it(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:
        door.session.inbox = inbox = Inbox(None)
        await door.come(1, Identity.generate())
        [published] = await heard(inbox, 1)
        assert isinstance(published, KeyPublished)
        assert isinstance(from_client(published.message), m.RoundKeyMessage)
        given = (published.client.peer, len(published.message))
        assert given not in door.credit
        door.session.done_with([published])
        assert given in door.credit


async def test_a_round_leaves_keys_to_the_next_one(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:
        door.session.inbox = inbox = Inbox([stranger(3)])
        await door.come(1, Identity.generate())
        await door.session.until(lambda: door.session.clients[1].free is not None, PATIENCE)
        assert not inbox.take()


def test_inbox_of_a_round_takes_its_cohorts_events_but_no_keys() -> None:
    member, outsider = stranger(1), stranger(2)
    inbox = Inbox([member])
    assert inbox.put(FromClient(member, b"of the round"))
    assert not inbox.put(FromClient(outsider, b"of another"))
    assert not inbox.put(KeyPublished(member, Free(None), b"for the next"))
    inbox.tell(StatusChanged(member, Status.AWAY))
    inbox.tell(StatusChanged(outsider, Status.AWAY))
    assert [type(event) for event in inbox.take()] == [FromClient, StatusChanged]


def test_inbox_of_all_takes_everybodys_events_until_it_is_closed() -> None:
    inbox, client = Inbox(None), stranger()
    key = KeyPublished(client, Free(None), b"key")
    assert inbox.put(key)
    assert inbox.put(FromClient(client, b"message"))
    inbox.tell(StatusChanged(client, Status.GONE))
    assert len(inbox.close()) == 3
    assert not inbox.put(key)
    assert not inbox.concerns(client)

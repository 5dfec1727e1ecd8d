"""Long outputs a few at a time, and nobody waits for a slow one for long."""

from __future__ import annotations

import asyncio
from functools import partial

from lightsecagg.managers.turns import Done, Turns

PATIENCE = 20.0


class Log:
    """Who began, and how each says that it is done."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self.done: dict[str, Done] = {}
        self.changed = asyncio.Event()

    def take(self, *names: str) -> None:
        for name in names:
            self._turns.take(partial(self._begin, name))

    def _begin(self, name: str, done: Done) -> None:
        self.done[name] = done
        self.changed.set()

    @property
    def begun(self) -> str:
        return "".join(self.done)


async def test_as_many_begin_as_there_are_places_and_the_next_when_one_is_done() -> None:
    log = Log(turns := Turns(2, PATIENCE))
    log.take("a", "b", "c", "d")
    assert log.begun == "ab"
    log.done["b"]()
    assert log.begun == "abc"
    log.done["b"]()  # again: its place was given on
    assert log.begun == "abc"
    log.done["a"]()
    assert log.begun == "abcd"
    turns.close()


async def test_one_that_is_done_at_once_gives_its_place_on_at_once() -> None:
    begun: list[int] = []

    def at_once(number: int, done: Done) -> None:
        begun.append(number)
        done()

    turns = Turns(1, PATIENCE)
    for number in range(100):
        turns.take(partial(at_once, number))
    assert begun == list(range(100))


async def test_a_slow_one_keeps_the_next_waiting_for_its_turn_only() -> None:
    log = Log(turns := Turns(1, 0.01))
    log.take("a")
    log.changed.clear()
    log.take("b")
    assert log.begun == "a"
    async with asyncio.timeout(PATIENCE):
        await log.changed.wait()
    assert log.begun == "ab"
    log.done["a"]()  # its turn was over: no third place comes of it
    log.take("c")
    assert log.begun == "ab"
    turns.close()


async def test_nothing_begins_once_closed() -> None:
    log = Log(turns := Turns(1, PATIENCE))
    log.take("a", "b")
    turns.close()
    log.done["a"]()
    assert log.begun == "a"

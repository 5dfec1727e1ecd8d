"""What is under way between clients, and whose credit waits for it."""

from __future__ import annotations

import asyncio

import pytest

from lightsecagg.managers import relay as relay_module
from lightsecagg.managers.relay import Relay

PATIENCE = 20.0


class Stage:
    """A relay of 100 bytes to all and to each, and what it does."""

    def __init__(self, stall_timeout: float = PATIENCE) -> None:
        self.given: list[tuple[int, int]] = []
        self.given_up: list[int] = []
        self.changed = asyncio.Event()
        self.relay = Relay(100, 100, stall_timeout, self._give, self._give_up)

    def _give(self, peer: int, size: int) -> None:
        self.given.append((peer, size))
        self.changed.set()

    def _give_up(self, peer: int) -> None:
        self.given_up.append(peer)
        self.relay.forget(peer)
        self.changed.set()

    async def next(self) -> None:
        self.changed.clear()
        async with asyncio.timeout(PATIENCE):
            await self.changed.wait()


async def test_credit_comes_back_at_once_while_the_budget_lasts() -> None:
    stage = Stage()
    stage.relay.begin(1, 2, 60)
    stage.relay.begin(3, 4, 40)
    assert stage.given == [(1, 60), (3, 40)]


async def test_beyond_the_budget_credit_waits_for_arrivals_first_come_first() -> None:
    stage = Stage()
    first = stage.relay.begin(1, 2, 90)
    second, third = stage.relay.begin(3, 4, 60), stage.relay.begin(5, 6, 10)
    assert stage.given == [(1, 90)]
    first()
    assert stage.given == [(1, 90), (3, 60), (5, 10)]
    second()
    third()
    stage.relay.begin(7, 2, 100)
    assert stage.given[-1] == (7, 100)


async def test_a_receiver_that_is_gone_holds_nobody_up_and_late_arrivals_count_for_nothing() -> None:
    stage = Stage()
    arrived = stage.relay.begin(1, 2, 80)
    stage.relay.begin(3, 2, 80)
    stage.relay.begin(5, 4, 50)
    assert stage.given == [(1, 80)]
    stage.relay.forget(2)
    assert sorted(stage.given) == [(1, 80), (3, 80), (5, 50)]
    stage.relay.begin(7, 2, 40)  # the number anew
    arrived()
    stage.relay.begin(9, 6, 60)
    assert stage.given[-1] == (7, 40)  # 150 are under way: what arrived late took nothing off
    stage.relay.close()
    assert stage.given[-1] == (9, 60)


async def test_what_is_under_way_to_an_absent_receiver_holds_nobody_up() -> None:
    stage = Stage()
    stage.relay.begin(1, 2, 90)
    stage.relay.begin(3, 4, 50)
    assert stage.given == [(1, 90)]
    stage.relay.set_absent(2, True)
    stage.relay.set_absent(2, True)
    assert stage.given[-1] == (3, 50)
    stage.relay.begin(5, 4, 50)
    assert stage.given[-1] == (5, 50)
    stage.relay.set_absent(2, False)
    stage.relay.begin(7, 6, 1)
    assert stage.given[-1] == (5, 50)
    stage.relay.close()


async def test_one_that_is_slower_than_the_others_is_set_apart_until_it_has_taken_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relay_module, "_LOOK", 0.01)
    monkeypatch.setattr(relay_module, "_SLOW", 0.2)
    stage = Stage()
    for receiver in (6, 8):
        stage.relay.begin(1, receiver, 1)()
    stage.given.clear()
    drip, rest = stage.relay.begin(1, 2, 10), stage.relay.begin(1, 2, 80)
    quick = stage.relay.begin(3, 4, 60)
    while len(stage.given) < 3:
        await stage.next()
    assert stage.given == [(1, 10), (1, 80), (3, 60)]
    quick()
    drip()  # it still has 80
    stage.relay.begin(5, 6, 90)
    assert stage.given[-1] == (5, 90)
    rest()
    stage.relay.begin(1, 2, 60)  # from here on it is like the others: 150 are under way
    assert stage.given[-1] == (5, 90)
    stage.relay.close()


async def test_receivers_that_are_all_slow_together_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "_LOOK", 0.01)
    monkeypatch.setattr(relay_module, "_SLOW", 0.02)
    stage = Stage()
    stage.relay.begin(1, 2, 90)
    stage.relay.begin(3, 4, 60)
    await asyncio.sleep(0.1)  # ten looks, in which nothing may happen
    assert stage.given == [(1, 90)]
    stage.relay.close()


async def test_credit_for_what_one_receiver_cannot_take_waits_until_it_takes_some() -> None:
    stage = Stage()
    arrivals = [stage.relay.begin(sender, 2, 60) for sender in (1, 3)]
    stage.relay.set_absent(2, True)
    stage.relay.begin(5, 4, 10)
    assert stage.given == [(1, 60), (5, 10)]
    arrivals[0]()
    assert stage.given[-1] == (3, 60)
    stage.relay.close()


async def test_one_that_is_full_and_takes_but_a_little_is_given_up() -> None:
    stage = Stage(stall_timeout=0.05)
    arrivals = [stage.relay.begin(1, 2, 40) for _ in range(3)]
    arrivals[0]()  # 80 are left, and soon it is full again
    stage.relay.begin(1, 2, 40)
    while not stage.given_up:
        await stage.next()
    assert stage.given_up == [2]
    assert len(stage.given) == 4
    stage.relay.begin(3, 4, 100)
    assert stage.given[-1] == (3, 100)


async def test_one_that_takes_half_in_time_is_not_given_up() -> None:
    stage = Stage(stall_timeout=0.05)
    arrivals = [stage.relay.begin(1, 2, 30) for _ in range(4)]
    for arrived in arrivals[:3]:
        arrived()
    await asyncio.sleep(0.1)  # twice the timeout, in which nothing may happen
    assert stage.given_up == []
    assert len(stage.given) == 4
    stage.relay.close()

"""What is under way between clients, and whose credit waits for it."""

from __future__ import annotations

import pytest

from lightsecagg.managers.relay import Relay


@pytest.fixture
def given() -> list[tuple[int, int]]:
    return []


@pytest.fixture
def relay(given: list[tuple[int, int]]) -> Relay:
    return Relay(100, lambda peer, size: given.append((peer, size)))


def test_credit_comes_back_at_once_while_the_budget_lasts(relay: Relay, given: list[tuple[int, int]]) -> None:
    relay.begin(1, 2, 60)
    relay.begin(3, 4, 40)
    assert given == [(1, 60), (3, 40)]


def test_beyond_the_budget_credit_waits_for_arrivals_first_come_first(
    relay: Relay, given: list[tuple[int, int]]
) -> None:
    first = relay.begin(1, 2, 100)
    second, third = relay.begin(3, 2, 60), relay.begin(4, 2, 10)
    assert given == [(1, 100)]
    first()
    assert given == [(1, 100), (3, 60), (4, 10)]
    second()
    third()
    relay.begin(5, 2, 100)
    assert given[-1] == (5, 100)


def test_a_receiver_that_is_gone_holds_nobody_up_and_late_arrivals_count_for_nothing(
    relay: Relay, given: list[tuple[int, int]]
) -> None:
    arrived = relay.begin(1, 2, 150)
    relay.begin(3, 4, 50)
    assert given == []
    relay.forget(2)
    assert given == [(1, 150), (3, 50)]
    arrived()
    relay.begin(5, 4, 60)
    assert given[-1] == (3, 50)  # 110 are under way to 4: what arrived late took nothing off


def test_an_absent_receiver_takes_a_budget_of_its_own_and_then_the_others(
    relay: Relay, given: list[tuple[int, int]]
) -> None:
    relay.begin(1, 2, 150)
    relay.set_absent(2, True)
    assert given == [(1, 150)]  # 50 beyond its own budget count
    relay.begin(3, 4, 50)
    assert given[-1] == (3, 50)
    relay.begin(3, 4, 1)
    assert len(given) == 2
    relay.set_absent(2, False)
    assert len(given) == 2
    relay.forget(2)
    assert given[-1] == (3, 1)

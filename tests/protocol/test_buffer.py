"""What the server's buffer makes of the updates that wait: a list that keeps the rules, or none yet.

The choice is greedy: from some update on the oldest of each client first, as long as enough clients hold
all. It promises that a list keeps the rules; where no share is amiss and weights may stand alone, that there
is one whenever one can be made; and that an update which goes with few others keeps none of them waiting.
"""

from __future__ import annotations

import random
from functools import partial
from itertools import combinations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lightsecagg.field import PrimeField
from lightsecagg.kernels import loops
from lightsecagg.packing import add_packed, check_packed
from lightsecagg.protocol.buffered.buffer import Rules, Upload, add_weighted, choose, listed
from lightsecagg.protocol.messages import Listed, MaskName
from lightsecagg.protocol.plain import add_floats
from tests.core import oracle
from tests.core.strategies import MANY, SOME, elements, orders

WEIGHTS = (4, 2, 1)
VERSION = 7
EVERYBODY = frozenset(range(1, 7))


def upload(client: int, number: int, age: int = 0, holders: frozenset[int] = EVERYBODY) -> Upload:
    return Upload(MaskName(client, VERSION - age, number), EVERYBODY, set(holders))


def waiting_of(*clients: int, ages: tuple[int, ...] = ()) -> list[Upload]:
    """Updates of these clients in the order in which they came, held by everybody."""
    return [
        upload(client, number, age)
        for number, (client, age) in enumerate(zip(clients, ages or (0,) * len(clients), strict=True), 1)
    ]


def keeps(chosen: list[Upload], waiting: list[Upload], rules: Rules, present: frozenset[int]) -> bool:
    """Whether it is a list by the rules, each of them said again."""
    clients = {each.name.client for each in chosen}
    beside = {}
    for each in chosen:
        beside.setdefault(WEIGHTS[VERSION - each.name.version], set()).add(each.name.client)
    common = present.intersection(*(each.holders for each in chosen))
    return (
        len(chosen) == rules.size
        and all(each in waiting for each in chosen)
        and len({id(each) for each in chosen}) == rules.size
        and len(clients) >= rules.least_clients
        and all(len(crowd) >= rules.least_a_weight for crowd in beside.values())
        and len(common) >= rules.quorum
    )


def can_be_made(waiting: list[Upload], rules: Rules, present: frozenset[int]) -> bool:
    """Whether any list can, by trying all."""
    return any(keeps(list(chosen), waiting, rules, present) for chosen in combinations(waiting, rules.size))


holder_sets = st.sets(st.integers(1, 6)).map(frozenset)
places = st.tuples(st.integers(1, 4), st.integers(0, 2))


@st.composite
def rules_of(draw: st.DrawFn, strict: bool) -> Rules:
    size = draw(st.integers(1, 5))
    least = draw(st.integers(1, size))
    alone = draw(st.integers(1, 3)) if strict else 1
    return Rules(size, WEIGHTS, least, alone, draw(st.integers(0, 6)))


@given(st.lists(st.tuples(places, holder_sets), max_size=8), rules_of(strict=True), holder_sets)
@MANY
def test_a_list_that_is_chosen_keeps_every_rule(
    found: list[tuple[tuple[int, int], frozenset[int]]], rules: Rules, present: frozenset[int]
) -> None:
    waiting = [
        upload(client, number, age, holders) for number, ((client, age), holders) in enumerate(found, 1)
    ]
    chosen = choose(waiting, VERSION, rules, present)
    assert chosen is None or keeps(chosen, waiting, rules, present)


@given(st.lists(places, max_size=8), rules_of(strict=False), holder_sets)
@MANY
def test_without_complaints_there_is_a_list_just_where_one_can_be_made(
    found: list[tuple[int, int]], rules: Rules, present: frozenset[int]
) -> None:
    waiting = [upload(client, number, age) for number, (client, age) in enumerate(found, 1)]
    chosen = choose(waiting, VERSION, rules, present)
    assert (chosen is not None) == can_be_made(waiting, rules, present)


def test_distinct_clients_come_first_each_with_its_oldest_update_then_the_oldest_of_the_rest() -> None:
    waiting = waiting_of(1, 1, 2, 1, 3, 2)
    order = [each.name.upload for each in choose(waiting, VERSION, Rules(5, WEIGHTS, 3), EVERYBODY) or []]
    assert order == [1, 3, 5, 2, 4]
    assert choose(waiting, VERSION, Rules(5, WEIGHTS, 4), EVERYBODY) is None


def test_as_many_as_the_quorum_must_be_there_and_hold_all_of_it() -> None:
    rules = Rules(3, WEIGHTS, 3, quorum=4)
    waiting = waiting_of(1, 2, 3)
    assert choose(waiting, VERSION, rules, frozenset({1, 2, 3, 4})) == waiting
    assert choose(waiting, VERSION, rules, frozenset({1, 2, 3})) is None
    waiting[0].holders = {1, 2, 3, 4}
    waiting[1].holders = {2, 3, 4, 5}
    assert choose(waiting, VERSION, rules, EVERYBODY) is None  # only 2, 3 and 4 hold both
    later = [*waiting, upload(4, 4)]
    chosen = choose(later, VERSION, rules, EVERYBODY)
    assert chosen == [waiting[0], waiting[2], later[3]]


def test_a_run_without_masks_asks_nobody_who_holds_what() -> None:
    waiting = [upload(client, client, 0, frozenset()) for client in (1, 2, 3)]
    assert choose(waiting, VERSION, Rules(3, WEIGHTS, 3), frozenset()) == waiting
    assert choose(waiting, VERSION, Rules(3, WEIGHTS, 3, quorum=1), EVERYBODY) is None


def test_weights_with_too_few_distinct_clients_are_left_out_where_the_others_suffice() -> None:
    waiting = waiting_of(1, 2, 3, 4, 1, ages=(2, 0, 0, 0, 0))
    loose, strict = Rules(4, WEIGHTS, 3), Rules(4, WEIGHTS, 3, least_a_weight=3)
    assert choose(waiting, VERSION, loose, EVERYBODY) == waiting[:4]
    assert choose(waiting, VERSION, strict, EVERYBODY) == waiting[1:]
    assert choose(waiting[:4], VERSION, strict, EVERYBODY) is None
    paired = waiting_of(1, 2, 3, 4, 5, 6, ages=(0, 1, 0, 1, 0, 1))
    assert choose(paired, VERSION, Rules(6, WEIGHTS, 3, least_a_weight=3), EVERYBODY) == paired


def test_an_update_that_goes_with_no_other_keeps_no_others_waiting() -> None:
    rules = Rules(2, WEIGHTS, 2, quorum=2)
    waiting = waiting_of(1, 2, 3)
    waiting[0].holders = {1, 2}
    waiting[1].holders, waiting[2].holders = {3, 4}, {3, 4}
    assert choose(waiting, VERSION, rules, EVERYBODY) == waiting[1:]
    waiting[2].holders = {5, 6}
    assert choose(waiting, VERSION, rules, EVERYBODY) is None


@given(st.integers(1, 4), st.integers(0, 3), st.data())
@SOME
def test_those_held_alike_make_a_list_whatever_comes_before_them(
    size: int, misfits: int, data: st.DataObject
) -> None:
    """Each misfit is held by a quorum of which one never answers for the others."""
    rules, honest = Rules(size, WEIGHTS, size, quorum=4), frozenset({1, 2, 3, 4})
    threes = st.sampled_from(list(combinations(honest, 3)))
    waiting = [upload(6, number, 0, frozenset({*data.draw(threes), 6})) for number in range(1, misfits + 1)]
    waiting += [upload(client, 10 + client, 0, honest) for client in range(1, size + 1)]
    chosen = choose(waiting, VERSION, rules, EVERYBODY)
    assert chosen is not None
    assert can_be_made(waiting, rules, EVERYBODY)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32))
@example(12, 7, 0)
@SOME
def test_a_full_buffer_makes_a_list_however_unevenly_it_was_filled(size: int, least: int, seed: int) -> None:
    """Without complaints. With 0 for the seed, as few clients as may fill it do."""
    least, source = min(least, size), random.Random(seed)
    rules = Rules(size, WEIGHTS, least, quorum=4)
    clients: list[int] = []
    while len(clients) < rules.room:
        may = [client for client in range(1, 30) if clients.count(client) < rules.each]
        clients.append(source.choice(may[:8]) if seed else may[0])
    chosen = choose(waiting_of(*clients), VERSION, rules, EVERYBODY)
    assert chosen is not None
    assert len({each.name.client for each in chosen}) >= least


def test_rules_say_how_old_is_too_old_and_what_a_list_holds() -> None:
    rules = Rules(3, WEIGHTS, 3)
    fresh, old, oldest, gone = waiting_of(1, 2, 3, 4, ages=(0, 1, 2, 3))
    assert [rules.is_too_old(each, VERSION) for each in (fresh, old, oldest, gone)] == [False] * 3 + [True]
    assert listed([oldest, fresh, old], VERSION, rules) == (Listed(3, 3, 1), Listed(1, 1, 4), Listed(2, 2, 2))


# The weighted sum of masked updates.


@st.composite
def updates_of(draw: st.DrawFn) -> tuple[int, int, list[list[int]], list[int]]:
    """(p, coordinates in a part, updates, weights)."""
    p, length = draw(orders), draw(st.integers(1, 25))
    rows = draw(st.lists(elements(p, length), min_size=1, max_size=5))
    weight = st.integers(1, 9) | st.sampled_from([16, 31, 100, 2**16])
    return p, draw(st.integers(1, 8)), rows, draw(st.lists(weight, min_size=len(rows), max_size=len(rows)))


@given(updates_of())
@example((2**32 - 5, 3, [[2**32 - 6] * 7] * 3, [2**16, 2**16 - 1, 1]))
@MANY
def test_updates_are_summed_as_often_as_they_weigh_exactly(
    case: tuple[int, int, list[list[int]], list[int]],
) -> None:
    p, part, rows, weights = case
    field = PrimeField(p)
    chosen = waiting_of(*range(1, len(rows) + 1))
    for each, row in zip(chosen, rows, strict=True):
        pieces = [row[at : at + part] for at in range(0, len(row), part)]
        each.parts = [check_packed(field, oracle.pack(piece, p), len(piece)) for piece in pieces]
    total = np.zeros(len(rows[0]), dtype=np.uint32)
    add_weighted(
        total,
        part,
        chosen,
        weights,
        partial(add_packed, field),
        lambda piece: loops(len(piece)).add(piece, piece, p),
    )
    columns = zip(*rows, strict=True)
    assert total.tolist() == [sum(w * x for w, x in zip(weights, c, strict=True)) % p for c in columns]


@pytest.mark.parametrize("weights", [[1, 1], [4, 1], [2, 5]])
def test_floats_are_summed_as_often_as_they_weigh(weights: list[int]) -> None:
    chosen = waiting_of(1, 2)
    rows = [[0.5, -1.25, 3.0], [8.0, 0.0, -0.5]]
    for each, row in zip(chosen, rows, strict=True):
        each.parts = [np.array(row[:2], dtype="<f4"), np.array(row[2:], dtype="<f4")]
    total = np.zeros(3)

    def double(piece: np.ndarray) -> None:
        piece *= 2

    add_weighted(total, 2, chosen, weights, add_floats, double)
    assert total.tolist() == [weights[0] * a + weights[1] * b for a, b in zip(*rows, strict=True)]

"""Privacy by exhaustion: in a small field, count every outcome that colluders can see together with the mask.

A column of the codec is one experiment, so a mask with a column for every choice of the random values runs
all of them at once, through the product's own matrices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations, product

import numpy as np
import pytest

from lightsecagg.codec import MaskCodec, SeededShares, seeded
from lightsecagg.codec.lagrange import interpolation_matrix
from lightsecagg.codec.seeded import seeded_receivers
from lightsecagg.field import PrimeField
from lightsecagg.kernels import ModularMatrix
from lightsecagg.parameters import Parameters

CASES = [
    # p, N, U, T
    (5, 2, 2, 1),
    (7, 2, 2, 1),
    (7, 3, 3, 1),  # two data points and one noise point
    (7, 3, 3, 2),
    (7, 3, 2, 1),  # one client may drop
    (7, 3, 3, 0),
    (7, 3, 2, 0),
    (11, 4, 3, 1),
    (11, 4, 3, 2),
    (11, 5, 3, 2),
    (11, 4, 4, 2),
]

Experiment = tuple[np.ndarray, dict[int, np.ndarray]]
"""(U − T, p^U) mask values and, by client number, (p^U,) share values, one column for each outcome."""


def every_choice(p: int, rows: int) -> np.ndarray:
    """(rows, p^rows): all columns there are."""
    return np.array(list(product(range(p), repeat=rows)), dtype=np.uint32).T.copy()


def paper_experiment(p: int, n: int, u: int, t: int) -> Experiment:
    """All masks and all noise."""
    codec = MaskCodec(PrimeField(p), Parameters(n, u, t))
    columns = every_choice(p, u)
    mask, noise = columns[: u - t], columns[u - t :]
    return mask, dict(enumerate(codec.encode(mask.reshape(-1), noise), start=1))


def seeded_experiment(
    monkeypatch: pytest.MonkeyPatch,
    p: int,
    n: int,
    u: int,
    t: int,
    owner: int,
    cohort: Sequence[int] | None = None,
) -> Experiment:
    """All values of the U freely chosen shares; the product derives the mask and the other shares.

    ``cohort`` is those of the n to whom the mask is dealt; all by default.
    """
    columns, cohort = every_choice(p, u), range(1, n + 1) if cohort is None else cohort
    receivers = seeded_receivers(owner, cohort, u)
    rows = {bytes([receiver] * 32): columns[k] for k, receiver in enumerate(receivers)}
    monkeypatch.setattr(
        seeded,
        "expand_into",
        lambda seed, field, start, out: np.copyto(out, rows[seed][start : start + len(out)]),
    )
    codec = MaskCodec(PrimeField(p), Parameters(n, u, t))
    dealer = SeededShares(codec, owner, cohort, {receiver: bytes([receiver] * 32) for receiver in receivers})
    mask, derived = dealer.whole((u - t) * columns.shape[1])
    shares = derived | {receiver: columns[k] for k, receiver in enumerate(receivers)}
    assert sorted(shares) == list(cohort)
    return mask.reshape(u - t, -1), shares


def view(experiment: Experiment, colluders: Iterable[int]) -> Counter[tuple[int, ...]]:
    """How often each (colluders' shares, mask) comes about."""
    mask, shares = experiment
    return Counter(map(tuple, np.vstack([*(shares[j] for j in colluders), mask]).T.tolist()))


def is_uniform(seen: Counter[tuple[int, ...]], p: int) -> bool:
    """Whether every outcome that can be thought of comes about, all equally often."""
    return len(seen) == p ** len(next(iter(seen))) and len(set(seen.values())) == 1


def is_secret(seen: Counter[tuple[int, ...]], p: int, colluders: int) -> bool:
    """Whether all masks are possible, equally often, whatever the colluders' shares turn out to be."""
    by_shares: dict[tuple[int, ...], Counter[tuple[int, ...]]] = {}
    for outcome, count in seen.items():
        by_shares.setdefault(outcome[:colluders], Counter())[outcome[colluders:]] += count
    return all(is_uniform(masks, p) for masks in by_shares.values())


def colluding(experiment: Experiment, sizes: Iterable[int]) -> list[tuple[int, ...]]:
    return [chosen for size in sizes for chosen in combinations(sorted(experiment[1]), size)]


def hold(experiment: Experiment, p: int, u: int, t: int) -> None:
    """Up to T colluders learn nothing; T + 1 learn something, so the count can tell."""
    for chosen in colluding(experiment, range(t + 1)):
        seen = view(experiment, chosen)
        assert sum(seen.values()) == p**u
        assert is_uniform(seen, p), f"{chosen} learn something"
        assert is_secret(seen, p, len(chosen))
    for chosen in colluding(experiment, [t + 1]):
        seen = view(experiment, chosen)
        assert not is_uniform(seen, p), f"{chosen} learn nothing"
        assert not is_secret(seen, p, len(chosen))


@pytest.mark.parametrize(("p", "n", "u", "t"), CASES)
def test_in_the_papers_form_t_colluders_learn_nothing_and_one_more_do(p: int, n: int, u: int, t: int) -> None:
    hold(paper_experiment(p, n, u, t), p, u, t)


@pytest.mark.parametrize(("p", "n", "u", "t"), CASES)
def test_in_the_seeded_form_t_colluders_learn_nothing_and_one_more_do(
    monkeypatch: pytest.MonkeyPatch, p: int, n: int, u: int, t: int
) -> None:
    for owner in range(1, n + 1):
        hold(seeded_experiment(monkeypatch, p, n, u, t, owner), p, u, t)


@pytest.mark.parametrize(("p", "n", "u", "t"), CASES)
def test_both_forms_have_one_distribution(
    monkeypatch: pytest.MonkeyPatch, p: int, n: int, u: int, t: int
) -> None:
    everyone = range(1, n + 1)
    paper = view(paper_experiment(p, n, u, t), everyone)
    assert all(
        view(seeded_experiment(monkeypatch, p, n, u, t, owner), everyone) == paper for owner in everyone
    )


COHORTS = [
    # p, capacity, U, T, to whom the mask is dealt
    (7, 4, 2, 1, (1, 3, 4)),
    (7, 4, 2, 1, (2, 4)),
    (11, 7, 2, 1, (1, 4, 7)),
    (11, 7, 3, 1, (2, 3, 5, 7)),
    (11, 7, 3, 2, (1, 2, 6)),
    (11, 7, 3, 2, (1, 3, 4, 6, 7)),
    (11, 7, 3, 0, (3, 4, 6)),
]


@pytest.mark.parametrize(("p", "capacity", "u", "t", "cohort"), COHORTS)
def test_dealt_to_some_of_the_slots_t_of_them_learn_nothing_and_one_more_do(
    monkeypatch: pytest.MonkeyPatch, p: int, capacity: int, u: int, t: int, cohort: tuple[int, ...]
) -> None:
    """As asynchronous runs deal: the points are those of all slots, and the cohort has gaps."""
    for owner in cohort:
        hold(seeded_experiment(monkeypatch, p, capacity, u, t, owner, cohort), p, u, t)


@pytest.mark.parametrize(("p", "capacity", "u", "t", "cohort"), COHORTS)
def test_dealt_to_some_of_the_slots_the_shares_are_those_of_the_papers_form(
    monkeypatch: pytest.MonkeyPatch, p: int, capacity: int, u: int, t: int, cohort: tuple[int, ...]
) -> None:
    paper = view(paper_experiment(p, capacity, u, t), cohort)
    for owner in cohort:
        assert view(seeded_experiment(monkeypatch, p, capacity, u, t, owner, cohort), cohort) == paper


def experiment_at(p: int, n: int, u: int, t: int, data_points: Sequence[int]) -> Experiment:
    """The paper's form with data points of one's own."""
    columns = every_choice(p, u)
    wanted = [j for j in range(1, n + 1) if j not in data_points]
    matrix = ModularMatrix(p, interpolation_matrix(PrimeField(p), list(data_points), wanted))
    shares = dict(zip(wanted, matrix.product(columns), strict=True))
    shares |= {j: columns[data_points.index(j)] for j in range(1, n + 1) if j in data_points}
    return columns[: u - t], shares


def noiseless(p: int, n: int, u: int, t: int) -> Experiment:
    """Noise that is always zero."""
    codec = MaskCodec(PrimeField(p), Parameters(n, u, t))
    mask = every_choice(p, u)[: u - t]
    noise = np.zeros((t, mask.shape[1]), dtype=np.uint32)
    return mask, dict(enumerate(codec.encode(mask.reshape(-1), noise), start=1))


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(lambda: experiment_at(7, 3, 3, 1, [1, 5, 6]), id="a data point at a client's point"),
        pytest.param(lambda: noiseless(7, 3, 3, 1), id="no noise"),
    ],
)
def test_a_broken_encoding_is_found_out(broken: Callable[[], Experiment]) -> None:
    with pytest.raises(AssertionError, match="learn something"):
        hold(broken(), 7, 3, 1)
    hold(experiment_at(7, 3, 3, 1, [4, 5, 6]), 7, 3, 1)

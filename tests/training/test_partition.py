"""How the samples of a data set are dealt to clients."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightsecagg.errors import ConfigError
from lightsecagg.training.partition import partition

STORED_HOMO = [[1, 8, 10, 11], [0, 6, 7, 9], [2, 3, 4, 5]]
STORED_HETERO = [[0, 1, 3, 7], [2, 4, 5, 8], [6, 9, 10, 11]]

labels_and_parts = st.lists(st.integers(0, 5), min_size=1, max_size=120).flatmap(
    lambda labels: st.tuples(st.just(np.array(labels)), st.integers(1, len(labels)))
)


@given(
    labels_and_parts,
    st.sampled_from(["homo", "hetero"]),
    st.sampled_from([1e-300, 0.01, 0.5, 100.0]),
    st.integers(0, 2**32),
)
def test_parts_are_disjoint_cover_everything_and_are_never_empty(
    case: tuple[np.ndarray, int], method: str, alpha: float, seed: int
) -> None:
    labels, num_parts = case
    parts = partition(labels, num_parts, method, alpha, seed)
    assert len(parts) == num_parts
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    sizes = [len(part) for part in parts]
    if method == "homo":
        assert max(sizes) - min(sizes) <= 1
    else:
        assert min(sizes) >= min(10, len(labels) // num_parts)
    assert all(part.dtype == np.int64 and np.array_equal(part, np.sort(part)) for part in parts)


@pytest.mark.parametrize("method", ["homo", "hetero"])
def test_the_seed_alone_decides_the_parts(method: str) -> None:
    labels = np.arange(200) % 10
    first, again, other = (partition(labels, 5, method, 0.5, seed) for seed in (3, 3, 4))
    assert all(map(np.array_equal, first, again))
    assert not all(map(np.array_equal, first, other))


def test_the_parts_of_a_seed_never_change() -> None:
    """Processes with another NumPy must get the same parts, so these numbers are stored."""
    labels = np.arange(12) % 3
    assert [part.tolist() for part in partition(labels, 3, "homo", seed=1)] == STORED_HOMO
    assert [part.tolist() for part in partition(labels, 3, "hetero", 0.5, seed=1)] == STORED_HETERO


def test_a_small_alpha_skews_the_labels_and_a_large_one_does_not() -> None:
    labels = np.arange(5000) % 10

    def largest_share(alpha: float) -> float:
        parts = partition(labels, 5, "hetero", alpha, seed=2)
        return float(np.mean([np.bincount(labels[part]).max() / len(part) for part in parts]))

    assert largest_share(0.1) > 0.3
    assert largest_share(1000.0) < 0.15


@pytest.mark.parametrize(
    ("num_parts", "method", "alpha", "message"),
    [
        (5, "homo", 0.5, r"client_num_in_total: wanted 1\.\.4, .* found 5"),
        (0, "homo", 0.5, r"client_num_in_total: wanted 1\.\.4, .* found 0"),
        (2, "iid", 0.5, "partition_method: wanted homo or hetero, found 'iid'"),
        (2, "hetero", 0.0, "partition_alpha: wanted a number above 0, found 0.0"),
        (2, "hetero", float("nan"), "partition_alpha"),
    ],
)
def test_what_cannot_be_split_is_refused(num_parts: int, method: str, alpha: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        partition(np.zeros(4, np.int64), num_parts, method, alpha)

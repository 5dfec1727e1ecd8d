"""Which client holds which samples of a shared data set, the same in every process by seed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lightsecagg.errors import ConfigError
from lightsecagg.training.base import IntArray

METHODS = ("homo", "hetero")

LEAST_SAMPLES = 10  # a smaller part trains nothing; FedML draws anew below the same number
MAX_DRAWS = 20  # then samples are moved: with small alpha and many parts no draw ever does


def partition(
    labels: IntArray, num_parts: int, method: str = "homo", alpha: float = 0.5, seed: int = 0
) -> list[IntArray]:
    """Split samples 0..n - 1 into parts, disjoint, together all of them, none empty.

    Args:
        labels: (n,) integers, the samples' labels; "homo" uses their number only.
        num_parts: how many parts.
        method: "homo" (uniformly at random, sizes differ by at most one) or "hetero" (each label is spread
            over the parts in proportions drawn from a Dirichlet distribution; Hsu et al., 2019).
        alpha: the Dirichlet concentration: the smaller, the fewer labels a part has.
        seed: at least 0; the same in all processes of a run.

    Returns:
        For each part the (size,) int64 sample indices, ascending. Under "hetero" each part has at least
        min(10, n // num_parts) samples.

    Raises:
        ConfigError: an unknown method, alpha not above 0, or more parts than samples.
    """
    if method not in METHODS:
        raise ConfigError(f"data_args.partition_method: wanted {' or '.join(METHODS)}, found {method!r}")
    if method == "hetero" and not 0 < alpha < np.inf:
        raise ConfigError(f"data_args.partition_alpha: wanted a number above 0, found {alpha!r}")
    if not 1 <= num_parts <= len(labels):
        raise ConfigError(
            f"train_args.client_num_in_total: wanted 1..{len(labels)}, as many parts as there are samples, "
            f"found {num_parts}"
        )
    # RandomState, because its streams are frozen: clients with other NumPy versions get the same parts.
    random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(seed)))
    if method == "homo":
        parts = np.array_split(random.permutation(len(labels)), num_parts)
    else:
        parts = _by_label(labels, num_parts, alpha, random)
    return [np.sort(part).astype(np.int64, copy=False) for part in parts]


def _by_label(
    labels: IntArray, num_parts: int, alpha: float, random: np.random.RandomState
) -> list[IntArray]:
    least = min(LEAST_SAMPLES, len(labels) // num_parts)
    for _ in range(MAX_DRAWS):
        parts = _draw(labels, num_parts, alpha, random)
        if min(map(len, parts)) >= least:
            return parts
    return _topped_up(parts, least)


def _draw(labels: IntArray, num_parts: int, alpha: float, random: np.random.RandomState) -> list[IntArray]:
    pieces: list[list[IntArray]] = [[] for _ in range(num_parts)]
    for label in np.unique(labels):
        samples = random.permutation(np.flatnonzero(labels == label))
        ends = np.cumsum(_proportions(num_parts, alpha, random)) * len(samples)
        cuts = np.minimum(ends[:-1], len(samples)).astype(np.int64)
        for own, piece in zip(pieces, np.split(samples, cuts), strict=True):
            own.append(piece)
    return [np.concatenate(own) for own in pieces]


def _proportions(num_parts: int, alpha: float, random: np.random.RandomState) -> npt.NDArray[np.float64]:
    """One Dirichlet draw, also where alpha is so small that every gamma variate underflows to 0."""
    weights: npt.NDArray[np.float64] = random.standard_gamma(alpha, num_parts)
    total = weights.sum()
    if total == 0:
        weights[random.randint(num_parts)] = total = 1.0  # the limit for alpha -> 0: all to one part
    weights /= total
    return weights


def _topped_up(parts: list[IntArray], least: int) -> list[IntArray]:
    """Move samples from the largest parts to those with fewer than ``least``."""
    kept = [part.tolist() for part in parts]
    sizes = np.array([len(part) for part in parts])
    for receiver in np.flatnonzero(sizes < least):
        while sizes[receiver] < least:
            giver = int(sizes.argmax())
            kept[receiver].append(kept[giver].pop())
            sizes[receiver] += 1
            sizes[giver] -= 1
    return [np.array(part, np.int64) for part in kept]

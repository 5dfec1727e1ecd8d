"""What the code should compute, said again in plain Python integers and from the design alone.

Nothing here imports the package. ``python tests/core/oracle.py`` writes the stored vectors anew; they change
only when a format changes, and then its name must change too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import ECB

VECTORS = Path(__file__).parent.parent / "vectors"
PRIMES = (13, 32749, 2**16 - 15, 2**24 - 3, 2**31 - 1, 2**32 - 5)
BLOCK = 16384

# Numbers.


def is_prime(number: int) -> bool:
    """By trial division."""
    if number < 2:
        return False
    divisor = 2
    while divisor * divisor <= number:
        if number % divisor == 0:
            return False
        divisor += 1
    return True


def next_prime(number: int) -> int:
    """The smallest prime above ``number``."""
    number += 1
    while not is_prime(number):
        number += 1
    return number


def previous_prime(number: int) -> int:
    """The largest prime below ``number``."""
    number -= 1
    while not is_prime(number):
        number -= 1
    return number


# Polynomials.


@lru_cache(maxsize=4096)
def lagrange_weights(points: tuple[int, ...], wanted: int, p: int) -> tuple[int, ...]:
    """The coefficients with which the values at ``points`` make the value at ``wanted``."""
    weights = []
    for k, point in enumerate(points):
        top, bottom = 1, 1
        for other_k, other in enumerate(points):
            if other_k != k:
                top = top * (wanted - other) % p
                bottom = bottom * (point - other) % p
        weights.append(top * pow(bottom, -1, p) % p)
    return tuple(weights)


def evaluate(values: Mapping[int, Sequence[int]], wanted: int, p: int) -> list[int]:
    """The row at ``wanted`` of the polynomial that takes the rows ``values`` at their points."""
    points = tuple(sorted(values))
    weights = lagrange_weights(points, wanted, p)
    rows = [values[point] for point in points]
    return [
        sum(w * v for w, v in zip(weights, column, strict=True)) % p for column in zip(*rows, strict=True)
    ]


def share_length(d: int, u: int, t: int) -> int:
    length = 0
    while length * (u - t) < d:
        length += 1
    return length


def encode(
    mask: Sequence[int], noise: Sequence[Sequence[int]], n: int, u: int, t: int, p: int, capacity: int
) -> list[list[int]]:
    """The paper's shares of clients 1..N: β_j = j, α_k = C + k, mask rows first, then noise rows."""
    m = share_length(len(mask), u, t)
    padded = [*mask, *([0] * (m * (u - t) - len(mask)))]
    rows = [padded[k * m : (k + 1) * m] for k in range(u - t)] + [list(row) for row in noise]
    assert len(rows) == u
    values = {capacity + 1 + k: row for k, row in enumerate(rows)}
    return [evaluate(values, client, p) for client in range(1, n + 1)] if m else [[] for _ in range(n)]


def decode(shares: Mapping[int, Sequence[int]], d: int, u: int, t: int, p: int, capacity: int) -> list[int]:
    """The mask out of exactly U shares."""
    assert len(shares) == u
    flat: list[int] = []
    for k in range(1, u - t + 1):
        flat += evaluate(shares, capacity + k, p)
    return flat[:d]


def seeded_receivers(owner: int, n: int, u: int) -> list[int]:
    """The owner and the U − 1 clients after it, where 1 comes after N."""
    receivers, client = [], owner
    for _ in range(u):
        receivers.append(client)
        client = 1 if client == n else client + 1
    return receivers


def seeded(
    seeds: Mapping[int, bytes], d: int, n: int, u: int, t: int, p: int, capacity: int
) -> tuple[list[int], dict[int, list[int]]]:
    """The mask, and the shares of all N clients, of someone whose free choices are the seeds' expansions."""
    m = share_length(d, u, t)
    values = {client: expand(seed, p, 0, m) for client, seed in seeds.items()}
    shares = {client: values.get(client) or evaluate(values, client, p) for client in range(1, n + 1)}
    return decode(values, d, u, t, p, capacity), shares


# Randomness.


def key_stream_words(seed: bytes, block: int, first: int, count: int) -> list[int]:
    """Words [first, first + count) of AES-256-CTR, each counter block written out and encrypted by itself."""
    assert first % 4 == 0
    assert count % 4 == 0
    encryptor = Cipher(AES256(seed), ECB()).encryptor()
    counters = b"".join(
        ((block << 64) + i).to_bytes(16, "big") for i in range(first // 4, (first + count) // 4)
    )
    stream = encryptor.update(counters)
    return [int.from_bytes(stream[i : i + 4], "little") for i in range(0, len(stream), 4)]


@lru_cache(maxsize=256)
def expansion_block(seed: bytes, p: int, block: int) -> tuple[int, ...]:
    """All elements of one block: words masked to the bits of p − 1, those that are ≥ p skipped."""
    mask = 2 ** (p - 1).bit_length() - 1
    elements: list[int] = []
    position = 0
    while len(elements) < BLOCK:
        words = key_stream_words(seed, block, position, BLOCK)
        elements += [word & mask for word in words if word & mask < p]
        position += BLOCK
    return tuple(elements[:BLOCK])


def expand(seed: bytes, p: int, start: int, stop: int) -> list[int]:
    """Elements [start, stop), looked up one by one."""
    return [expansion_block(seed, p, i // BLOCK)[i % BLOCK] for i in range(start, stop)]


# Packing.


def pack(elements: Iterable[int], p: int) -> bytes:
    width = 1
    while 256**width < p:
        width += 1
    return b"".join(element.to_bytes(width, "little") for element in elements)


# Means.


def clipped(value: float, clip: float) -> Fraction:
    return max(-Fraction(clip), min(Fraction(clip), Fraction(value)))


def weighted_mean(
    updates: Sequence[Sequence[float]], weights: Sequence[int], clip: float, max_weight: int
) -> list[Fraction]:
    """Σ n·x / Σ n of the clipped updates, exactly; zeros where Σ n is 0."""
    counted = [min(weight, max_weight) for weight in weights]
    total = sum(counted)
    return [
        sum((n * clipped(x, clip) for n, x in zip(counted, column, strict=True)), Fraction(0)) / (total or 1)
        for column in zip(*updates, strict=True)
    ]


# Covers.


def minimum_cover_sizes(edges: set[tuple[int, int]]) -> tuple[int, list[tuple[set[int], set[int]]]]:
    """The size of the smallest covers of a bipartite graph, and all of them, by trying every set."""
    nodes = [("s", i) for i in sorted({i for i, _ in edges})] + [
        ("r", j) for j in sorted({j for _, j in edges})
    ]
    for size in range(len(nodes) + 1):
        found = []
        for chosen in combinations(nodes, size):
            senders = {number for role, number in chosen if role == "s"}
            receivers = {number for role, number in chosen if role == "r"}
            if all(i in senders or j in receivers for i, j in edges):
                found.append((senders, receivers))
        if found:
            return size, found
    raise AssertionError("all nodes cover all edges")


# Stored vectors.


def seed_named(name: str) -> bytes:
    """A fixed seed for tests: the SHA-256 of its name."""
    return hashlib.sha256(f"lightsecagg test seed {name}".encode()).digest()


def expansion_vectors() -> list[dict[str, Any]]:
    """For every prime: elements at the start, across a block's end and far off, and a hash of 40,000."""
    vectors = []
    for p in PRIMES:
        for name in ("a", "b"):
            seed = seed_named(name)
            whole = expand(seed, p, 0, 40_000)
            vectors.append(
                {
                    "seed": seed.hex(),
                    "order": p,
                    "ranges": [
                        {"start": start, "elements": expand(seed, p, start, stop)}
                        for start, stop in ((0, 8), (BLOCK - 4, BLOCK + 4), (7 * BLOCK + 11, 7 * BLOCK + 15))
                    ],
                    "sha256_of_first_40000_packed": hashlib.sha256(pack(whole, p)).hexdigest(),
                }
            )
    return vectors


CODEC_CASES = (
    # N, U, T, d, p, capacity, owner
    (4, 3, 1, 7, 13, 4, 2),
    (5, 4, 1, 10, 32749, 5, 5),
    (6, 5, 2, 4, 2**16 - 15, 6, 3),
    (10, 7, 3, 25, 2**24 - 3, 10, 9),
    (7, 7, 2, 12, 2**31 - 1, 9, 1),
    (9, 6, 4, 11, 2**32 - 5, 12, 7),
    (3, 2, 0, 5, 2**32 - 5, 3, 3),
)


def codec_vectors() -> list[dict[str, Any]]:
    """Both forms: mask and noise to shares, and seeds to mask and derived shares."""
    vectors = []
    for n, u, t, d, p, capacity, owner in CODEC_CASES:
        m = share_length(d, u, t)
        mask = expand(seed_named("mask"), p, 0, d)
        noise = [expand(seed_named(f"noise {k}"), p, 0, m) for k in range(t)]
        seeds = {j: seed_named(f"share {owner} to {j}") for j in seeded_receivers(owner, n, u)}
        seeded_mask, shares = seeded(seeds, d, n, u, t, p, capacity)
        vectors.append(
            {
                "num_clients": n,
                "target_survivors": u,
                "privacy_threshold": t,
                "dimension": d,
                "order": p,
                "capacity": capacity,
                "paper": {"mask": mask, "noise": noise, "shares": encode(mask, noise, n, u, t, p, capacity)},
                "seeded": {
                    "owner": owner,
                    "seeds": {str(j): seed.hex() for j, seed in seeds.items()},
                    "mask": seeded_mask,
                    "derived": {str(j): share for j, share in shares.items() if j not in seeds},
                },
            }
        )
    return vectors


STORED: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "expansion.json": expansion_vectors,
    "codec.json": codec_vectors,
}


def stored(name: str) -> list[dict[str, Any]]:
    vectors: list[dict[str, Any]] = json.loads((VECTORS / name).read_text())
    return vectors


def write_vectors() -> None:
    for name, make in STORED.items():
        lines = ",\n".join(json.dumps(vector) for vector in make())
        (VECTORS / name).write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    write_vectors()

"""SecAgg (Bonawitz et al., CCS 2017) and SecAgg+ (Bell et al., CCS 2020): one protocol on two kinds of graph.

Client i uploads x_i + PRG(b_i) + Σ_{j>i} PRG(s_ij) − Σ_{j<i} PRG(s_ij) modulo 2^32, j over its neighbours and
s_ij agreed by X25519. It shares b_i and its private key among its neighbours; of each client the server gets
one of the two back: b_i of those in the sum, the key of those that dropped out.

Everything honest parties compute is here. Left out is what holds against a server that lies, signatures on
keys and on the survivors' list, as it is left out of LightSecAgg where the two are compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from benchmarks.baselines import shamir
from benchmarks.baselines.graph import Graph
from benchmarks.baselines.masks import MaskAdder, Vector
from lightsecagg.field import Elements
from lightsecagg.randomness import SEED_BYTES, Entropy, system_entropy
from lightsecagg.sealing import PairKeys, RoundKey, seal, unseal

_CONTEXT = b"benchmark"  # stands where a real round has its digest
_KIND = "baseline shares"
_SEED, _KEY = 0, 1  # the two secrets of a client, in the order in which they are shared
_SHARES_BYTES = 2 * shamir.SHARE_BYTES


class TooFewSharesError(Exception):
    """So many clients dropped out that a secret cannot be recovered; there is no sum."""


class Keys(NamedTuple):
    """What a client publishes: the X25519 keys that its shares and its masks are agreed with."""

    channel: bytes
    mask: bytes


class PairMask(NamedTuple):
    """A mask that is still in the sum, because one end of the pair dropped out."""

    private: X25519PrivateKey
    peer: bytes
    negative: bool  # as the survivor added it

    def __repr__(self) -> str:
        return "PairMask(<secret>)"


class Revealed(NamedTuple):
    """One client's shares that the server asked for: one of each owner's two secrets."""

    owners: Sequence[int]
    shares: Elements  # (owners, limbs)

    def __repr__(self) -> str:
        return f"Revealed({len(self.owners)} owners, <secret>)"


class Client:
    """One client in one round; its methods are called in the order in which they stand.

    Args:
        number: 1..N.
        neighbours: whom it masks and shares with.
        threshold: shares that give a secret back.
        entropy: source of every secret.
    """

    def __init__(
        self, number: int, neighbours: Sequence[int], threshold: int, entropy: Entropy = system_entropy
    ) -> None:
        self.number = number
        self._neighbours = neighbours
        self._threshold = threshold
        self._entropy = entropy
        self._channel = RoundKey(entropy)
        self._private = X25519PrivateKey.from_private_bytes(entropy(32))
        self._seed = entropy(SEED_BYTES)
        self._pairs: dict[int, PairKeys] = {}
        self._held: dict[int, Elements] = {}
        self.keys = Keys(self._channel.public, self._private.public_key().public_bytes_raw())

    def __repr__(self) -> str:
        return f"Client({self.number}, <secret>)"

    def share(self, keys: Mapping[int, Keys]) -> dict[int, bytes]:
        """Sealed shares of the two secrets, one message for each neighbour; one share stays here."""
        self._pairs = {
            peer: self._channel.agree(keys[peer].channel, _CONTEXT, 1, self.number, peer)
            for peer in self._neighbours
        }
        secrets = [self._seed, self._private.private_bytes_raw()]
        own, *others = shamir.share(secrets, [self.number, *self._neighbours], self._threshold, self._entropy)
        self._held[self.number] = own
        return {
            peer: seal(self._pairs[peer].outgoing, 0, True, shares.tobytes(), _KIND, _SHARES_BYTES)
            for peer, shares in zip(self._neighbours, others, strict=True)
        }

    def take(self, sender: int, sealed: bytes) -> None:
        """A neighbour's shares.

        Raises:
            ValueError: they do not open.
        """
        data = unseal(self._pairs[sender].incoming, 0, True, sealed, _KIND, _SHARES_BYTES)
        if data is None:
            raise ValueError(f"the shares of client {sender} for client {self.number} do not open")
        self._held[sender] = np.frombuffer(data, dtype=np.uint32).reshape(2, shamir.LIMBS)

    def mask(self, keys: Mapping[int, Keys], dimension: int) -> Vector:
        """What hides the update: its own mask and the pairwise ones with those that shared, summed."""
        adder = MaskAdder()
        total = np.zeros(dimension, dtype=np.uint32)
        adder.add(total, self._seed)
        for peer in self._neighbours:
            if peer in self._held:
                seed = _agreed_seed(self._private, keys[peer].mask)
                adder.add(total, seed, negative=peer < self.number)
        return total

    def reveal(self, survivors: frozenset[int]) -> Revealed:
        """Shares of the seeds of the neighbours in the sum, and of the keys of those that are not.

        Raises:
            TooFewSharesError: fewer survivors than the threshold; a client does not help to open such a sum.
        """
        if len(survivors) < self._threshold:
            raise TooFewSharesError(
                f"wanted a sum of at least t = {self._threshold} clients, found {len(survivors)}"
            )
        owners = list(self._held)
        shares = [self._held[owner][_SEED if owner in survivors else _KEY] for owner in owners]
        return Revealed(owners, np.array(shares))


class Server:
    """The server of one round: a running sum, and what takes the masks off it.

    Args:
        graph: who masks with whom.
        threshold: shares that give a secret back.
        keys: what the clients that shared have published.
        dimension: coordinates of an update.
    """

    def __init__(self, graph: Graph, threshold: int, keys: Mapping[int, Keys], dimension: int) -> None:
        self._graph = graph
        self._threshold = threshold
        self._keys = keys
        self._adder = MaskAdder()
        self.total = np.zeros(dimension, dtype=np.uint32)
        self._inside: set[int] = set()

    @property
    def survivors(self) -> frozenset[int]:
        """Whose updates are in the sum."""
        return frozenset(self._inside)

    def add(self, number: int, masked: Vector) -> None:
        """A client's masked update."""
        self.total += masked
        self._inside.add(number)

    def unmask(self, answers: Mapping[int, Revealed]) -> Vector:
        """The exact sum of the survivors' updates modulo 2^32.

        Raises:
            TooFewSharesError: a secret has fewer shares than the threshold.
        """
        secrets = self.recover(answers)
        self.remove_own_masks(secrets)
        for pair in self.pair_masks(secrets):
            self.remove_pair_mask(pair)
        return self.total

    def recover(self, answers: Mapping[int, Revealed]) -> dict[int, bytes]:
        """Each client's secret: the seed of a survivor, the private key of one that dropped out."""
        clients = max(self._graph) + 1
        table = np.zeros((clients, clients, shamir.LIMBS), dtype=np.uint32)
        present = np.zeros((clients, clients), dtype=bool)
        for holder, revealed in answers.items():
            table[revealed.owners, holder] = revealed.shares
            present[revealed.owners, holder] = True
        owners = np.array(sorted(self._needed()))
        counts = present[owners].sum(axis=1)
        if counts.min() < self._threshold:
            raise TooFewSharesError(
                f"wanted t = {self._threshold} shares of client {owners[counts.argmin()]}'s secret, "
                f"found {counts.min()}"
            )
        # The first t holders of each owner: a stable sort brings those that are there to the front.
        holders = np.argsort(~present[owners], axis=1, kind="stable")[:, : self._threshold]
        secrets = shamir.recover(holders, table[owners[:, None], holders])
        return dict(zip(owners.tolist(), secrets, strict=True))

    def _needed(self) -> set[int]:
        """The survivors, and those that dropped out with a survivor for a neighbour."""
        dropped = self._keys.keys() - self._inside
        return self._inside | {owner for owner in dropped if self._inside.intersection(self._graph[owner])}

    def remove_own_masks(self, secrets: Mapping[int, bytes]) -> None:
        """Take the survivors' own masks off the sum."""
        for survivor in self._inside:
            self._adder.add(self.total, secrets[survivor], negative=True)

    def pair_masks(self, secrets: Mapping[int, bytes]) -> Iterator[PairMask]:
        """The masks between survivors and those that dropped out."""
        for dropped in secrets.keys() - self._inside:
            private = X25519PrivateKey.from_private_bytes(secrets[dropped])
            for survivor in self._inside.intersection(self._graph[dropped]):
                yield PairMask(private, self._keys[survivor].mask, dropped < survivor)

    def remove_pair_mask(self, pair: PairMask) -> None:
        """Agree anew on one pair's seed, and take its mask off the sum."""
        seed = _agreed_seed(pair.private, pair.peer)
        self._adder.add(self.total, seed, negative=not pair.negative)


def _agreed_seed(private: X25519PrivateKey, peer: bytes) -> bytes:
    """s_ij, as the paper has it: SHA-256 of the Diffie–Hellman element."""
    return hashlib.sha256(private.exchange(X25519PublicKey.from_public_bytes(peer))).digest()

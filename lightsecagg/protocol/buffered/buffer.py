"""The server's buffer: updates that wait for their list, and the choice of those that stand in the next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lightsecagg.kernels import spread
from lightsecagg.protocol.messages import Listed, MaskName
from lightsecagg.protocol.uploads import Vector


@dataclass(eq=False)
class Upload:
    """One client's upload, from its start to the end of its list.

    Attributes:
        name: whose, of which version, which upload.
        cohort: to whom its mask is dealt; empty in a run without masks.
        holders: who holds a share of it.
        digest: of the upload, as its dealer and its holders see it.
        parts: the vector's checked parts, once it is in the buffer.
    """

    name: MaskName
    cohort: frozenset[int] = frozenset()
    holders: set[int] = field(default_factory=set)
    digest: bytes = b""
    parts: Sequence[Vector] = ()

    @property
    def key(self) -> tuple[int, int]:
        """(client, upload)."""
        return self.name.client, self.name.upload


@dataclass(frozen=True)
class Rules:
    """What a list must be.

    Attributes:
        size: K, updates in it.
        weights: of updates 0, 1, 2 … versions old; older ones stand in no list.
        least_clients: fewest distinct clients in it.
        least_a_weight: fewest distinct clients beside each weight.
        quorum: holders of all of it who must be there; 0 in a run without masks.
    """

    size: int
    weights: tuple[int, ...]
    least_clients: int
    least_a_weight: int = 1
    quorum: int = 0

    @property
    def least(self) -> int:
        """Fewest distinct clients that any list has."""
        return max(self.least_clients, self.least_a_weight)

    @property
    def each(self) -> int:
        """Updates of one client that may wait at a time.

        With more, they could take the places of other clients in a list, or a full buffer could be one of too
        few clients. Those of ``least`` clients still make a list: least · each ≥ size.
        """
        others = self.least - 1
        most = (self.room - 1) // others if others else self.size
        return max(1, min(self.size - others, most))

    @property
    def room(self) -> int:
        """Updates that may wait: for one list, and while another is being decoded."""
        return 2 * self.size

    def is_too_old(self, upload: Upload, version: int) -> bool:
        """Whether the update can stand in no list from ``version`` on."""
        return version - upload.name.version >= len(self.weights)

    def weight(self, upload: Upload, version: int) -> int:
        """s(version − the update's own)."""
        return self.weights[version - upload.name.version]


def choose(
    waiting: Sequence[Upload], version: int, rules: Rules, present: frozenset[int]
) -> list[Upload] | None:
    """The updates of the next list, or None where there is none yet.

    Args:
        waiting: in the order in which they came, none too old.
        version: the newest.
        rules: what a list must be.
        present: clients that could answer for it.
    """
    usable = list(waiting)
    while len(usable) >= rules.size:
        chosen = _held_alike(_distinct_first(usable), rules, present)
        if chosen is None:
            return None
        crowds = _crowds(chosen, version, rules)
        lonely = [weight for weight, clients in crowds.items() if clients < rules.least_a_weight]
        if not lonely:
            return chosen
        # One at a time: in its place there may be enough beside another.
        rarest = min(lonely, key=_crowds(usable, version, rules).__getitem__)
        usable = [upload for upload in usable if rules.weight(upload, version) != rarest]
    return None


def _crowds(uploads: Sequence[Upload], version: int, rules: Rules) -> Counter[int]:
    """How many distinct clients stand beside each weight."""
    return Counter(w for w, _ in {(rules.weight(u, version), u.name.client) for u in uploads})


def _distinct_first(uploads: Sequence[Upload]) -> list[Upload]:
    """One update of each client, then the others; each in the order in which they came."""
    seen: set[int] = set()
    first: list[Upload] = []
    others: list[Upload] = []
    for upload in uploads:
        (others if upload.name.client in seen else first).append(upload)
        seen.add(upload.name.client)
    return first + others


def _held_alike(uploads: Sequence[Upload], rules: Rules, present: frozenset[int]) -> list[Upload] | None:
    """As many as a list takes, of enough clients, so that a quorum of those who are present holds all.

    An update that goes with no other must not keep the others waiting: any of them may be a list's first.
    """
    for first in range(len(uploads) - rules.size + 1):
        chosen = _with_common_holders(uploads[first:], rules, present)
        if len(chosen) == rules.size and len({u.name.client for u in chosen}) >= rules.least_clients:
            return chosen
    return None


def _with_common_holders(uploads: Sequence[Upload], rules: Rules, present: frozenset[int]) -> list[Upload]:
    """The first update, and each further one as long as a quorum of those who are present holds all."""
    chosen: list[Upload] = []
    common = set(present)
    for upload in uploads:
        if len(chosen) < rules.size and (not rules.quorum or len(common & upload.holders) >= rules.quorum):
            chosen.append(upload)
            common &= upload.holders
    return chosen


def listed(chosen: Sequence[Upload], version: int, rules: Rules) -> tuple[Listed, ...]:
    """The list's entries."""
    return tuple(
        Listed(upload.name.client, upload.name.upload, rules.weight(upload, version)) for upload in chosen
    )


def add_weighted(
    total: Vector,
    part: int,
    chosen: Sequence[Upload],
    weights: Sequence[int],
    add: Callable[[Vector, Vector], None],
    double: Callable[[Vector], None],
) -> None:
    """total += Σ weight · update, by Horner's rule; ``total`` is zeros.

    Args:
        total: as long as the updates.
        part: coordinates in a part.
        chosen, weights: the updates, and as many integers ≥ 1.
        add: adds a part to a slice of ``total``.
        double: doubles a slice of ``total``.
    """

    def add_places(start: int, stop: int) -> None:
        for place in range(start, stop):
            piece = total[place * part : (place + 1) * part]
            for bit in reversed(range(max(weights).bit_length())):
                double(piece)
                for upload, weight in zip(chosen, weights, strict=True):
                    if weight >> bit & 1:
                        add(piece, upload.parts[place])

    spread(add_places, len(chosen[0].parts), 1)

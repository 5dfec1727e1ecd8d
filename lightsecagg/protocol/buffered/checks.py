"""What a client of an asynchronous run checks before it deals, signs a list, or answers (DESIGN §4).

Pure functions; whatever protects the client comes from its own configuration. Each raises
``RemoteProtocolError`` with the reason for which the client leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass

from lightsecagg.errors import Reason, RemoteProtocolError
from lightsecagg.identity import PUBLIC_BYTES, SIGNATURE_BYTES, Roster, Verifier, verify
from lightsecagg.parameters import Parameters
from lightsecagg.protocol import messages as m
from lightsecagg.protocol.buffered.views import is_list_signed
from lightsecagg.protocol.checks import below_floors
from lightsecagg.protocol.terms import Floors, Run, cohort_flaw, is_signed


@dataclass(frozen=True)
class Held:
    """What a client knows of an update whose share it holds.

    Attributes:
        version: the global version it was trained on, as its dealer sealed it.
        identity: its dealer's.
        digest: of the upload, as this client sees it.
    """

    version: int
    identity: bytes
    digest: bytes


class Slots:
    """Whose the slots of a run are, as one client knows it: each belongs to one identity for good.

    Args:
        capacity: slots are 1..capacity.
        own: the client's slot and identity.
        roster: who may take part; without one, whoever was seen first at a slot.
    """

    def __init__(self, capacity: int, own: tuple[int, bytes], roster: Roster | None) -> None:
        self._capacity = capacity
        self._roster = roster
        self._known = dict([own])

    def learn(self, slot: int, identity: bytes) -> None:
        """Somebody is said to be at ``slot``.

        Raises:
            RemoteProtocolError: it is another's, or this identity is at another slot, or not in the roster.
        """
        if not 1 <= slot <= self._capacity:
            raise RemoteProtocolError(Reason.BAD_COHORT, f"slots are 1..{self._capacity}")
        if self._roster is not None and not self._roster.admits(slot, identity):
            raise RemoteProtocolError(Reason.UNKNOWN_IDENTITY, "someone is not in the roster")
        if self._known.get(slot, identity) != identity:
            raise RemoteProtocolError(Reason.BAD_COHORT, "a slot changed its identity")
        if slot not in self._known and identity in self._known.values():
            raise RemoteProtocolError(Reason.BAD_COHORT, "an identity stands at two slots")
        self._known[slot] = identity


def check_upload_start(
    start: m.UploadStart,
    own: m.Member,
    parameters: Parameters,
    floors: Floors,
    slots: Slots,
    signed: Callable[[m.Member], bool],
) -> None:
    """Whether the client may deal a mask to this cohort, for an update from this model.

    Args:
        start: what the server announced.
        own: the client's entry, with the key that it has not spent.
        parameters: of the run.
        floors: the client's own.
        slots: learns who is where.
        signed: whether an entry's key is signed by its identity for this run.
    """
    if (flaw := cohort_flaw(start.cohort)) is not None:
        raise RemoteProtocolError(Reason.BAD_COHORT, flaw)
    if len(start.cohort) < parameters.target_survivors:
        raise RemoteProtocolError(Reason.BAD_COHORT, "fewer than U clients to deal to")
    if (below := below_floors(floors, parameters, len(start.cohort), start.model_length)) is not None:
        raise RemoteProtocolError(Reason.BELOW_FLOOR, below)
    if own not in start.cohort:
        raise RemoteProtocolError(Reason.NOT_MY_KEY, "the cohort lacks this client's unspent key")
    for member in start.cohort:
        slots.learn(member.rank, member.identity)
        if not signed(member):
            raise RemoteProtocolError(Reason.BAD_SIGNATURE, "an upload key is not signed by its identity")


def check_offer(
    offer: m.ShareOffer, own: int, parameters: Parameters, slots: Slots, run: Run, verifier: Verifier = verify
) -> frozenset[int]:
    """The cohort of an upload of which the client is offered a share."""
    cohort = m.members(offer.cohort, parameters.num_clients)
    if (
        cohort is None
        or len(cohort) < parameters.target_survivors
        or not {own, offer.mask.client} <= cohort
        or offer.mask.client == own
        or offer.dealer.rank != offer.mask.client
    ):
        raise RemoteProtocolError(Reason.BAD_COHORT, "a share of no cohort that this client is in")
    slots.learn(offer.dealer.rank, offer.dealer.identity)
    if not is_signed(offer.dealer, run, verifier):
        raise RemoteProtocolError(Reason.BAD_SIGNATURE, "an upload key is not signed by its identity")
    return cohort


def check_list(
    updates: m.UpdateList,
    buffering: m.Buffering,
    floors: Floors,
    held: Mapping[tuple[int, int], Held],
    *,
    after: int,
    newest: int,
    own: int,
    uploaded: Container[int],
) -> None:
    """Whether the client may stand for this list.

    Args:
        updates: the list.
        buffering: the run's numbers.
        floors: the client's own.
        held: (client, upload) to the updates whose shares it holds, in no list that it signed before.
        after: the number of the last list it stood for.
        newest: the newest version it knows of.
        own: its slot.
        uploaded: numbers of its own uploads that left whole.
    """
    if updates.number <= after or updates.version < newest:
        raise RemoteProtocolError(
            Reason.STALE_LIST,
            f"list {updates.number} at version {updates.version}; wanted above {after} and at least {newest}",
        )
    names = [(entry.client, entry.upload) for entry in updates.entries]
    if len(names) > buffering.buffer_size or len(set(names)) != len(names):
        raise RemoteProtocolError(Reason.BAD_LIST, "the list is longer than the buffer, or repeats an update")
    for entry in updates.entries:
        found = held.get((entry.client, entry.upload))
        if found is None:
            raise RemoteProtocolError(Reason.BAD_LIST, "the list names a share that is not held here")
        if entry.client == own and entry.upload not in uploaded:
            raise RemoteProtocolError(Reason.BAD_LIST, "the list names this client, which did not upload")
        staleness = updates.version - found.version
        if not 0 <= staleness < len(buffering.weights) or entry.weight != buffering.weights[staleness]:
            raise RemoteProtocolError(
                Reason.BAD_LIST, "a weight of the list is not that of its update's staleness"
            )
    _check_crowd(updates, buffering, floors, held)


def _check_crowd(
    updates: m.UpdateList, buffering: m.Buffering, floors: Floors, held: Mapping[tuple[int, int], Held]
) -> None:
    """Enough distinct clients stand in the list, and beside each weight."""
    crowds: dict[int, set[bytes]] = {}
    for entry in updates.entries:
        crowds.setdefault(entry.weight, set()).add(held[entry.client, entry.upload].identity)
    everybody = set().union(*crowds.values())
    alone = buffering.privacy_threshold + 2
    least = max(floors.min_buffer_clients, alone)
    if len(everybody) < least:
        raise RemoteProtocolError(
            Reason.BELOW_FLOOR, f"{len(everybody)} clients in the list; min_buffer_clients is {least}"
        )
    if floors.strict_weights and min(map(len, crowds.values())) < alone:
        raise RemoteProtocolError(
            Reason.BELOW_FLOOR, f"fewer than T + 2 = {alone} clients share a weight (strict_weights)"
        )


def check_list_certificate(
    certificate: m.ListCertificate,
    parameters: Parameters,
    slots: Slots,
    digest: bytes,
    verifier: Verifier = verify,
) -> None:
    """U distinct clients of the run signed this very list.

    Args:
        certificate: what the server sent.
        parameters: of the run.
        slots: learns who is where.
        digest: of the list, as this client sees it.
    """
    endorsers = m.members(certificate.endorsers, parameters.num_clients)
    if (
        endorsers is None
        or len(endorsers) != parameters.target_survivors
        or len(certificate.signatures) != SIGNATURE_BYTES * len(endorsers)
        or len(certificate.identities) != PUBLIC_BYTES * len(endorsers)
    ):
        raise RemoteProtocolError(Reason.BAD_CERTIFICATE, "the certificate is not made of U signatures")
    for place, slot in enumerate(sorted(endorsers)):
        identity = certificate.identities[place * PUBLIC_BYTES : (place + 1) * PUBLIC_BYTES]
        signature = certificate.signatures[place * SIGNATURE_BYTES : (place + 1) * SIGNATURE_BYTES]
        if not is_list_signed(identity, signature, digest, verifier):
            raise RemoteProtocolError(
                Reason.BAD_CERTIFICATE, "a signature of the certificate does not verify"
            )
        slots.learn(slot, identity)

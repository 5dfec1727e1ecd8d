"""What makes a certificate: U signatures of distinct clients over the very list (DESIGN §4)."""

from __future__ import annotations

import itertools

import pytest

from lightsecagg.errors import Reason
from lightsecagg.labels import ENDORSEMENT
from lightsecagg.protocol import messages as m
from lightsecagg.protocol.buffered.views import run_digest, sign_list
from lightsecagg.protocol.terms import Run
from tests.protocol.buffered_scene import STRANGER, Puppet, answered, dealt, endorsed, refuses
from tests.protocol.scene import change, said


def of_other_terms(puppet: Puppet) -> bytes:
    return run_digest(puppet.protocol_run, change(puppet.terms, fraction_bits=puppet.terms.fraction_bits + 1))


def of_another_run(puppet: Puppet) -> bytes:
    return run_digest(Run("scene", bytes(32)), puppet.terms)


def joined(parts: list[bytes]) -> bytes:
    return b"".join(parts)


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def forged(name: str, puppet: Puppet, updates: m.UpdateList) -> m.ListCertificate:
    """A certificate that clients 1..4 did not make, or not so."""
    good = puppet.certificate(updates)
    identities, signatures = cut(good.identities, 32), cut(good.signatures, 64)
    label = puppet.identities[4].sign(ENDORSEMENT, puppet.view(updates))
    uploads = [each.digest for each in puppet.dealt[:4]]
    other = puppet.dealt[4].key
    entries = (*updates.entries[:3], m.Listed(*other, 4))
    return {
        "none": lambda: puppet.certificate(updates, []),
        "one too few": lambda: puppet.certificate(updates, [1, 2, 3]),
        "one too many": lambda: puppet.certificate(updates, [1, 2, 3, 4, 5]),
        "a signature cut short": lambda: change(good, signatures=good.signatures[:-1]),
        "a signature too many": lambda: change(good, signatures=good.signatures + signatures[0]),
        "an identity too few": lambda: change(good, identities=joined(identities[:3])),
        "an identity too many": lambda: change(good, identities=good.identities + identities[0]),
        "a signature twice": lambda: change(good, signatures=joined([*signatures[:3], signatures[2]])),
        "in another order": lambda: change(good, signatures=joined(signatures[::-1])),
        "a longer bitmap": lambda: change(good, endorsers=good.endorsers + b"\0"),
        "a slot that is not": lambda: change(good, endorsers=b"\x27"),
        "over another number": lambda: puppet.certificate(updates, signed=change(updates, number=7)),
        "over another version": lambda: puppet.certificate(updates, signed=change(updates, version=1)),
        "over another entry": lambda: puppet.certificate(updates, signed=change(updates, entries=entries)),
        "over another order of entries": lambda: puppet.certificate(
            updates, signed=change(updates, entries=updates.entries[::-1])
        ),
        "over other weights": lambda: puppet.certificate(
            updates, signed=puppet.updates(puppet.dealt[:4], weights=[4, 4, 4, 2])
        ),
        "over another mask": lambda: puppet.certificate(updates, uploads=[*uploads[:3], bytes(32)]),
        "over the masks exchanged": lambda: puppet.certificate(updates, uploads=uploads[::-1]),
        "over fewer masks": lambda: puppet.certificate(updates, uploads=uploads[:3]),
        "from a run of other terms": lambda: puppet.certificate(updates, run=of_other_terms(puppet)),
        "from another run": lambda: puppet.certificate(updates, run=of_another_run(puppet)),
        "under another label": lambda: change(good, signatures=joined([*signatures[:3], label])),
        "an endorser twice": lambda: change(
            good,
            identities=joined([*identities[:3], identities[2]]),
            signatures=joined([*signatures[:3], signatures[2]]),
        ),
        "two slots exchanged": lambda: change(
            good,
            identities=joined([*identities[:2], identities[3], identities[2]]),
            signatures=joined([*signatures[:2], signatures[3], signatures[2]]),
        ),
        "a stranger at a slot": lambda: change(
            good,
            identities=joined([*identities[:3], STRANGER.public]),
            signatures=joined([*signatures[:3], sign_list(STRANGER, puppet.view(updates))]),
        ),
    }[name]()


MISPLACED = {"an endorser twice", "two slots exchanged", "a stranger at a slot"}
FORGERIES = [
    *("none", "one too few", "one too many", "a signature cut short", "a signature too many"),
    *("an identity too few", "an identity too many", "a signature twice", "in another order"),
    *("a longer bitmap", "a slot that is not", "over another number", "over another version"),
    *("over another entry", "over another order of entries", "over other weights"),
    *("over another mask", "over the masks exchanged", "over fewer masks"),
    *("from a run of other terms", "from another run", "under another label", *sorted(MISPLACED)),
]


@pytest.mark.parametrize("with_roster", [True, False], ids=["roster", "open"])
@pytest.mark.parametrize("has_signed", [True, False], ids=["signed", "unsigned"])
@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_certificate_without_u_signatures_of_distinct_clients_gets_no_answer(
    forgery: str, has_signed: bool, with_roster: bool
) -> None:
    puppet = dealt(with_roster=with_roster)
    updates = puppet.updates(puppet.dealt[:4])
    if has_signed:
        endorsed(puppet, 5, updates)
    reason = Reason.BAD_CERTIFICATE
    if forgery in MISPLACED:
        reason = Reason.UNKNOWN_IDENTITY if with_roster else Reason.BAD_COHORT
    refuses(puppet, 5, forged(forgery, puppet, updates), reason)
    assert answered(puppet, 4, puppet.certificate(updates))


def test_a_slot_that_a_client_never_heard_of_is_held_against_the_roster_or_against_the_others() -> None:
    """Without a roster the server can invent a client: what only promise 6 rules out."""
    someone = {"stranger": STRANGER, "client 3 again": None}
    for who, with_roster in itertools.product(someone, (True, False)):
        puppet = Puppet(6, 4, 1, present=range(1, 6), with_roster=with_roster)
        updates = puppet.updates([puppet.deal(i) for i in (1, 2, 3)])
        puppet.identities[6] = someone[who] or puppet.identities[3]
        certificate = puppet.certificate(updates, [1, 2, 3, 6])
        if with_roster:
            refuses(puppet, 5, certificate, Reason.UNKNOWN_IDENTITY)
        elif who == "client 3 again":
            refuses(puppet, 5, certificate, Reason.BAD_COHORT)
        else:
            assert answered(puppet, 5, certificate)


def test_signatures_over_one_of_two_masks_under_one_number_are_none_over_the_other() -> None:
    """Client 1, in the server's pay and started anew, deals an upload again under another mask."""
    puppet = Puppet()
    others = [puppet.deal(client) for client in (2, 3)]
    one = puppet.deal(1, to=(2, 3))
    puppet.join(1)
    two = puppet.deal(1, number=one.name.upload, to=(4, 5))
    assert (one.key, one.digest != two.digest) == (two.key, True)
    updates = puppet.updates([*others, one])
    views = {i: [each.digest for each in (*others, one if i in (2, 3) else two)] for i in range(1, 6)}
    signed = {}
    for client in (2, 3, 4, 5):
        (reply,) = said(puppet.tell(client, m.ListAnnounced(updates)))
        assert reply.signature == puppet.signature(client, updates, uploads=views[client])
        signed[client] = reply.signature
    for client in (2, 4):  # client 1 signs whatever is wanted
        bought = puppet.signature(1, updates, uploads=views[client])
        endorsers = (1, 2, 3, 4) if client == 2 else (1, 3, 4, 5)
        signatures = [bought, *(signed[i] for i in endorsers if i != 1)]
        certificate = change(puppet.certificate(updates, endorsers), signatures=joined(signatures))
        refuses(puppet, client, certificate, Reason.BAD_CERTIFICATE)
    for client in (3, 5):  # nothing but the server's knowing all secrets would do
        assert answered(puppet, client, puppet.certificate(updates, uploads=views[client]))

"""What the clients of an asynchronous run must see alike: the run, and each upload they hold a share of."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import msgspec

from lightsecagg.identity import Identity, Verifier, verify
from lightsecagg.labels import LIST_DIGEST, LIST_ENDORSEMENT, PROTOCOL_VERSION, RUN_DIGEST, UPLOAD_DIGEST
from lightsecagg.protocol.messages import MaskName, Member, Terms, UpdateList, as_plain
from lightsecagg.protocol.terms import Run, vector_length


def run_digest(run: Run, terms: Terms) -> bytes:
    """SHA-256 over what is fixed for an asynchronous run; each client takes it from its own settings."""
    everything = [
        RUN_DIGEST,
        PROTOCOL_VERSION,
        run.run_id,
        run.nonce,
        vector_length(terms),
        as_plain(terms),
    ]
    return hashlib.sha256(msgspec.msgpack.encode(everything)).digest()


def upload_digest(
    run: bytes, name: MaskName, dealer: Member, cohort: frozenset[int], model_hash: bytes
) -> bytes:
    """SHA-256 over one upload, which salts the keys of its shares (promise 5).

    So a share opens only for who was told the same mask's name, and with it the same global version, the
    same cohort, and the same model of that version.

    Args:
        run: the run's digest.
        name: client, version and upload.
        dealer: the client's entry.
        cohort: whom it deals shares to, itself among them.
        model_hash: SHA-256 of the model it trains on.
    """
    everything = [UPLOAD_DIGEST, run, as_plain(name), as_plain(dealer), sorted(cohort), model_hash]
    return hashlib.sha256(msgspec.msgpack.encode(everything)).digest()


def list_digest(run: bytes, updates: UpdateList, uploads: Iterable[bytes]) -> bytes:
    """SHA-256 over a list as a holder of all of it sees it, which is what it signs.

    A client that was started anew may deal another mask under a number that it had before: by the uploads'
    digests, signatures over one of the masks are none over the other.

    Args:
        run: the run's digest.
        updates: the list.
        uploads: the digest of each of its uploads, in its order.
    """
    everything = [LIST_DIGEST, run, as_plain(updates), list(uploads)]
    return hashlib.sha256(msgspec.msgpack.encode(everything)).digest()


def sign_list(identity: Identity, digest: bytes) -> bytes:
    """A holder's signature over its one list of this number."""
    return identity.sign(LIST_ENDORSEMENT, digest)


def is_list_signed(public: bytes, signature: bytes, digest: bytes, verifier: Verifier = verify) -> bool:
    """Whether ``public`` signed the list with this digest."""
    return verifier(public, signature, LIST_ENDORSEMENT, digest)

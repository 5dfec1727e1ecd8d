"""What a client checks of what the server says, before it takes part, signs or answers (promises 3, 4 and 6).

Pure functions; whatever protects the client comes from its own configuration. Each raises
``RemoteProtocolError`` with the reason for which the client leaves the round.
"""

from __future__ import annotations

from collections.abc import Sequence

from lightsecagg.codec import MaskCodec
from lightsecagg.errors import ParameterError, Reason, RemoteProtocolError
from lightsecagg.field import PrimeField
from lightsecagg.identity import SIGNATURE_BYTES, Roster, Verifier, verify
from lightsecagg.labels import ENDORSEMENT
from lightsecagg.parameters import Parameters
from lightsecagg.protocol import messages as m
from lightsecagg.protocol.terms import (
    Floors,
    Run,
    cohort_flaw,
    differing_term,
    is_signed,
    outside_roster,
    parameters_of,
)


def check_start(
    start: m.RoundStart,
    terms: m.Terms,
    floors: Floors,
    own: m.Member,
    run: Run,
    roster: Roster | None,
    verifier: Verifier = verify,
) -> Parameters:
    """N, U and T of a round that the client may take part in.

    Args:
        start: what the server announced.
        terms, floors, roster: the client's own.
        own: its entry, with the round key that it has not spent.
        run: the run it joined.
        verifier: checks the members' signatures.
    """
    if (name := differing_term(terms, start.terms)) is not None:
        raise RemoteProtocolError(Reason.TERMS_DIFFER, f"the server's {name} is not this client's")
    try:
        parameters = parameters_of(start)
        MaskCodec(PrimeField(start.terms.order), parameters)
    except ParameterError as error:
        raise RemoteProtocolError(Reason.BAD_COHORT, str(error)) from None
    if (below := below_floors(floors, parameters, len(start.cohort), start.model_length)) is not None:
        raise RemoteProtocolError(Reason.BELOW_FLOOR, below)
    if (flaw := cohort_flaw(start.cohort)) is not None:
        raise RemoteProtocolError(Reason.BAD_COHORT, flaw)
    if own not in start.cohort:
        raise RemoteProtocolError(Reason.NOT_MY_KEY, "the cohort lacks this client's unspent key")
    if not all(is_signed(member, run, verifier) for member in start.cohort):
        raise RemoteProtocolError(Reason.BAD_SIGNATURE, "a round key is not signed by its identity")
    if roster is not None and outside_roster(start.cohort, roster):
        raise RemoteProtocolError(Reason.UNKNOWN_IDENTITY, "someone in the cohort is not in the roster")
    return parameters


def below_floors(floors: Floors, parameters: Parameters, num_clients: int, model_length: int) -> str | None:
    """What of a round is below the client's floors, or None."""
    if num_clients < floors.min_clients:
        return f"{num_clients} clients; min_clients is {floors.min_clients}"
    if parameters.privacy_threshold < floors.min_privacy_threshold:
        return f"T = {parameters.privacy_threshold}; min_privacy_threshold is {floors.min_privacy_threshold}"
    if floors.unique_survivor_set and not parameters.unique_survivor_set:
        return "2U ≤ N + T: two survivor sets could both be certified"
    if model_length > floors.max_model_bytes:
        return f"a model of {model_length} bytes; {floors.max_model_bytes} are expected at most"
    return None


def check_survivors(
    bits: bytes, parameters: Parameters, held: frozenset[int], *, own: int, uploaded: bool
) -> frozenset[int]:
    """The survivor set that a client which has signed none may stand for.

    Args:
        bits: the set, as the server sent it.
        held: whose shares the client holds.
        own: its number.
        uploaded: whether its own update left whole.
    """
    survivors = _survivors(bits, parameters)
    if len(survivors) < parameters.target_survivors:
        raise RemoteProtocolError(Reason.BAD_SURVIVOR_SET, "the survivor set is smaller than U")
    if not survivors <= held:
        raise RemoteProtocolError(
            Reason.BAD_SURVIVOR_SET, "the survivor set names shares that are not held here"
        )
    if own in survivors and not uploaded:
        raise RemoteProtocolError(
            Reason.BAD_SURVIVOR_SET, "the survivor set names this client, which did not upload"
        )
    return survivors


def check_same(bits: bytes, parameters: Parameters, signed: frozenset[int]) -> frozenset[int]:
    """The survivor set that was signed; a client stands for one in a round."""
    survivors = _survivors(bits, parameters)
    if survivors != signed:
        raise RemoteProtocolError(Reason.SECOND_SURVIVOR_SET, "another survivor set than the signed one")
    return survivors


def check_certificate(
    certificate: m.Certificate,
    parameters: Parameters,
    cohort: Sequence[m.Member],
    digest: bytes,
    verifier: Verifier = verify,
) -> None:
    """U distinct members of the cohort signed this survivor set, in this very round."""
    endorsers = m.members(certificate.endorsers, parameters.num_clients)
    if (
        endorsers is None
        or len(endorsers) != parameters.target_survivors
        or len(certificate.signatures) != SIGNATURE_BYTES * len(endorsers)
    ):
        raise RemoteProtocolError(Reason.BAD_CERTIFICATE, "the certificate is not made of U signatures")
    for place, endorser in enumerate(sorted(endorsers)):
        signature = certificate.signatures[place * SIGNATURE_BYTES : (place + 1) * SIGNATURE_BYTES]
        if not verifier(cohort[endorser - 1].identity, signature, ENDORSEMENT, digest, certificate.survivors):
            raise RemoteProtocolError(
                Reason.BAD_CERTIFICATE, "a signature of the certificate does not verify"
            )


def _survivors(bits: bytes, parameters: Parameters) -> frozenset[int]:
    survivors = m.members(bits, parameters.num_clients)
    if survivors is None:
        raise RemoteProtocolError(Reason.BAD_SURVIVOR_SET, "the survivor set is no set of this cohort")
    return survivors

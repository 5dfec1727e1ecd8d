"""Exceptions, each saying whose fault it is, and the reasons that travel on the wire and stand in metrics.

No message of an exception ever holds a key, a seed, a share, a mask or an update.
"""

from __future__ import annotations

from enum import StrEnum


class LightSecAggError(Exception):
    """Base of everything this package raises on purpose."""


class ConfigError(LightSecAggError):
    """A setting is wrong: the message names the file or key path, what was wanted and what was found."""


class ParameterError(LightSecAggError, ValueError):
    """A number given to the library cannot work; the message names the way out."""


class UpdateError(LightSecAggError, ValueError):
    """A model update cannot be aggregated: wrong shape, or not finite."""


class NotFiniteError(UpdateError):
    """A model update holds NaN or infinity."""


class LocalProtocolError(LightSecAggError):
    """The caller misused a protocol machine: a call that its present state does not allow."""


class RemoteProtocolError(LightSecAggError):
    """The peer sent what no order of delivery can explain.

    Attributes:
        reason: what is told to the peer and counted.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class CommError(LightSecAggError):
    """The network failed: a link could not be opened, or was lost for good."""


class RoundAborted(LightSecAggError):
    """A round ended without a sum.

    Attributes:
        reason: why (one of the ``AbortReason`` values).
    """

    def __init__(self, reason: AbortReason, message: str = "") -> None:
        super().__init__(f"round aborted: {reason.value}{': ' + message if message else ''}")
        self.reason = reason


class RunStopped(LightSecAggError):
    """The whole run ends here with a reason; the model of the last good round stays on disk."""


class AbortReason(StrEnum):
    """Why a round ended without a sum."""

    TOO_FEW_SHARED = "too_few_shared"  # fewer than U candidates or answerers after the reports
    TOO_FEW_UPDATES = "too_few_updates"  # fewer than U masked updates came in
    TOO_FEW_ENDORSEMENTS = "too_few_endorsements"  # fewer than U clients signed the survivor set
    TOO_FEW_ANSWERS = "too_few_answers"  # fewer than U aggregate encoded masks came in
    SUM_OUT_OF_RANGE = "sum_out_of_range"  # a decoded coordinate or weight lies where no honest sum can
    STOPPED = "stopped"  # the caller ended the round


class Reason(StrEnum):
    """Why a client is out of a round or a run; these codes, and nothing more, go over the wire."""

    # The client is gone.
    GOODBYE = "goodbye"  # it said BYE
    LINK_LOST = "link_lost"  # its link did not come back within the reconnect window
    STALLED = "stalled"  # its relay buffer stayed full for stall_timeout
    AWAY = "away"  # its link was broken when a step closed; it may be back in the next round
    UNCONFIRMED = "unconfirmed"  # some of its shares did not open; whose fault that is cannot be known
    LATE = "late"  # it was there, but not finished when a step closed
    # The client left of its own accord.
    BELOW_FLOOR = "below_floor"  # the cohort or the threshold is below the client's own floors
    TERMS_DIFFER = "terms_differ"  # mode, field, quantizer or layout are not the client's own
    BAD_COHORT = "bad_cohort"  # the cohort is malformed, or names identities twice
    UNKNOWN_IDENTITY = "unknown_identity"  # an identity is not in the roster
    BAD_SIGNATURE = "bad_signature"  # a signature does not verify
    STALE_ROUND = "stale_round"  # the round number is not above all that were seen
    NOT_MY_KEY = "not_my_key"  # the cohort's entry for the client is not its current unspent key
    MODEL_MISMATCH = "model_mismatch"  # the model's bytes do not match the announced hash
    BAD_SURVIVOR_SET = "bad_survivor_set"  # the survivor set is too small or holds shares the client lacks
    BAD_CERTIFICATE = "bad_certificate"  # the certificate is not signed by U members
    SECOND_SURVIVOR_SET = "second_survivor_set"  # a survivor set other than the one that was signed
    BAD_LIST = "bad_list"  # a list names what is not held here, or weighs it wrongly
    STALE_LIST = "stale_list"  # a list's number or version is not above those before it
    NOT_FINITE = "not_finite"  # the update held NaN or infinity
    TRAINING_FAILED = "training_failed"  # local training raised; the traceback stays with the client
    STOPPED_BY_USER = "stopped_by_user"  # Ctrl-C at the client
    # An update that the server did not take.
    STALE = "stale"  # it was trained on a version that is too old by now
    TOO_FEW_HOLDERS = "too_few_holders"  # fewer than U clients hold its shares
    CROWDED_OUT = "crowded_out"  # the buffer was full, and no list could be made with it
    # The peer broke the protocol.
    PROTOCOL_VIOLATION = "protocol_violation"  # a message that its sender could not have sent in this state
    MALFORMED = "malformed"  # bytes that are no message, or a field out of its bounds
    BAD_LENGTH = "bad_length"  # a part or share of a length that does not follow from the cohort
    BAD_ELEMENT = "bad_element"  # a field element that is not below p
    # Refusals at joining.
    WRONG_RUN = "wrong_run"  # another run id
    WRONG_VERSION = "wrong_version"  # another protocol version
    RANK_OUT_OF_RANGE = "rank_out_of_range"  # a rank outside 1..worker_num
    NOT_AUTHENTICATED = (
        "not_authenticated"  # the carrier knows it under another name than its rank's, or none
    )
    RANK_TAKEN = "rank_taken"  # the rank's holder is up, or is another identity
    REPLACED = "replaced"  # the same identity joined anew from another process
    SETTINGS_DIFFER = "settings_differ"  # a setting that must agree does not
    LAYOUT_DIFFERS = "layout_differs"  # an entry's name, shape or dtype differs
    RUN_OVER = "run_over"  # the run has finished
    REFUSED_FOR_RUN = (
        "refused_for_run"  # the client left for its floors, or was expelled, earlier in this run
    )

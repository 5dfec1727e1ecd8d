"""Every legal move of the machines, as data: all rules about what may come when live here.

A row says what becomes of a message in a stage. What is not listed is illegal: no order of delivery explains
it, and its sender is dropped. This module does not know which side it plays.
"""

from __future__ import annotations

from enum import StrEnum, auto
from typing import TypeVar

from lightsecagg.errors import LocalProtocolError, Reason, RemoteProtocolError
from lightsecagg.protocol import messages as m


class Verdict(StrEnum):
    """What becomes of a message."""

    TAKE = auto()  # it moves the machine
    LATE = auto()  # its sender could have sent it before it heard of the change: ignored and counted


class ServerStage(StrEnum):
    """Where a round stands at the server."""

    SHARING = "sharing"  # clients deal their masks
    REPORTING = "reporting"  # clients say whose shares they hold
    UPLOADING = "uploading"  # candidates upload masked updates, a few at a time
    ENDORSING = "endorsing"  # holders sign the survivor set
    RECOVERING = "recovering"  # holders send aggregate encoded masks
    COUNTING = "counting"  # plain rounds only: S is fixed and its sum is here
    DONE = "done"
    ABORTED = "aborted"


class Phase(StrEnum):
    """The stages as the design counts them."""

    COLLECT = "collect"
    ENDORSE = "endorse"
    RECOVER = "recover"
    DONE = "done"
    ABORTED = "aborted"


PHASE_OF = {
    ServerStage.SHARING: Phase.COLLECT,
    ServerStage.REPORTING: Phase.COLLECT,
    ServerStage.UPLOADING: Phase.COLLECT,
    ServerStage.ENDORSING: Phase.ENDORSE,
    ServerStage.RECOVERING: Phase.RECOVER,
    ServerStage.COUNTING: Phase.RECOVER,
    ServerStage.DONE: Phase.DONE,
    ServerStage.ABORTED: Phase.ABORTED,
}

SERVER_MOVES: dict[ServerStage, frozenset[ServerStage]] = {
    ServerStage.SHARING: frozenset({ServerStage.REPORTING, ServerStage.ABORTED}),
    ServerStage.REPORTING: frozenset({ServerStage.UPLOADING, ServerStage.ABORTED}),
    ServerStage.UPLOADING: frozenset({ServerStage.ENDORSING, ServerStage.COUNTING, ServerStage.ABORTED}),
    ServerStage.ENDORSING: frozenset({ServerStage.RECOVERING, ServerStage.ABORTED}),
    ServerStage.RECOVERING: frozenset({ServerStage.DONE, ServerStage.ABORTED}),
    ServerStage.COUNTING: frozenset({ServerStage.DONE, ServerStage.ABORTED}),
    ServerStage.DONE: frozenset(),
    ServerStage.ABORTED: frozenset(),
}


class BufferStage(StrEnum):
    """Where an asynchronous run stands at the server: what becomes of the next list."""

    COLLECTING = "collecting"  # updates come into the buffer
    ENDORSING = "endorsing"  # holders sign the list
    RECOVERING = "recovering"  # holders send the weighted sums of their shares
    PUBLISHING = "publishing"  # the sum is decoded; the next version is being made of it


BUFFER_MOVES: dict[BufferStage, frozenset[BufferStage]] = {
    # a run without masks has nothing to endorse
    BufferStage.COLLECTING: frozenset({BufferStage.ENDORSING, BufferStage.RECOVERING}),
    BufferStage.ENDORSING: frozenset({BufferStage.RECOVERING, BufferStage.COLLECTING}),
    BufferStage.RECOVERING: frozenset({BufferStage.PUBLISHING, BufferStage.COLLECTING}),
    BufferStage.PUBLISHING: frozenset({BufferStage.COLLECTING}),
}


class UpdateState(StrEnum):
    """A client's own column beside its shares: what became of its update."""

    TRAINING = auto()
    READY = auto()
    GRANTED = auto()
    IN = auto()


UPDATE_MOVES: dict[UpdateState, frozenset[UpdateState]] = {
    UpdateState.TRAINING: frozenset({UpdateState.READY}),
    UpdateState.READY: frozenset({UpdateState.GRANTED}),
    UpdateState.GRANTED: frozenset({UpdateState.READY, UpdateState.IN}),
    UpdateState.IN: frozenset(),
}


class ClientStage(StrEnum):
    """Where a round stands at a client."""

    KEYED = "keyed"  # the round key is made, the round has not begun
    SHARING = "sharing"  # it deals its mask and takes the others' shares
    REPORTED = "reported"  # it said whose shares it holds
    CANDIDATES = "candidates"  # it knows who may upload
    ENDORSED = "endorsed"  # it signed a survivor set
    ANSWERED = "answered"  # it answered on a certificate; nothing of others is held any more
    OVER = "over"  # ended or left


CLIENT_MOVES: dict[ClientStage, frozenset[ClientStage]] = {
    # a round without masks goes to CANDIDATES at once: everybody may upload
    ClientStage.KEYED: frozenset({ClientStage.SHARING, ClientStage.CANDIDATES, ClientStage.OVER}),
    ClientStage.SHARING: frozenset({ClientStage.REPORTED, ClientStage.OVER}),
    ClientStage.REPORTED: frozenset({ClientStage.CANDIDATES, ClientStage.OVER}),
    ClientStage.CANDIDATES: frozenset({ClientStage.ENDORSED, ClientStage.ANSWERED, ClientStage.OVER}),
    ClientStage.ENDORSED: frozenset({ClientStage.ANSWERED, ClientStage.OVER}),
    ClientStage.ANSWERED: frozenset({ClientStage.OVER}),
    ClientStage.OVER: frozenset(),
}

Stage = ServerStage | BufferStage | ClientStage
_State = TypeVar("_State", ServerStage, BufferStage, ClientStage, UpdateState)
Rows = dict[type[m.Message], tuple[frozenset[Stage], frozenset[Stage]]]

_S, _C = ServerStage, ClientStage
_SERVER_ENDED = frozenset({_S.DONE, _S.ABORTED})
_AFTER_UPLOADS = frozenset({_S.ENDORSING, _S.RECOVERING}) | _SERVER_ENDED
_AFTER_REPORTS = frozenset({_S.UPLOADING}) | _AFTER_UPLOADS
_AFTER_SHARING = frozenset({_S.REPORTING}) | _AFTER_REPORTS

FROM_CLIENT: Rows = {
    # message: (stages in which the server takes it, stages in which it is late)
    m.SealedSeeds: (frozenset({_S.SHARING}), _AFTER_SHARING),
    m.EncodedMask: (frozenset({_S.SHARING}), _AFTER_SHARING),
    m.SharesHeld: (frozenset({_S.REPORTING}), _AFTER_REPORTS),
    m.UpdateReady: (frozenset({_S.SHARING, _S.REPORTING, _S.UPLOADING}), _AFTER_UPLOADS),
    m.MaskedUpdate: (frozenset({_S.UPLOADING}), _AFTER_UPLOADS),
    m.Endorse: (frozenset({_S.ENDORSING}), frozenset({_S.RECOVERING}) | _SERVER_ENDED),
    m.AggregateEncodedMask: (frozenset({_S.RECOVERING}), _SERVER_ENDED),
    m.Leave: (frozenset({_S.SHARING}) | (_AFTER_SHARING - _SERVER_ENDED), _SERVER_ENDED),
}

FROM_PLAIN_CLIENT: Rows = {
    # a round without masks has one stage
    m.UpdateReady: (frozenset({_S.UPLOADING}), frozenset({_S.COUNTING}) | _SERVER_ENDED),
    m.PlainUpdate: (frozenset({_S.UPLOADING}), frozenset({_S.COUNTING}) | _SERVER_ENDED),
    m.Leave: (frozenset({_S.UPLOADING, _S.COUNTING}), _SERVER_ENDED),
}

_B = BufferStage
_ALWAYS = frozenset(BufferStage)

# Uploads go on whatever becomes of the lists; which upload a message is of decides whether it is late.
FROM_BUFFERED_CLIENT: Rows = {
    m.SealedSeeds: (_ALWAYS, frozenset()),
    m.EncodedMask: (_ALWAYS, frozenset()),
    m.ShareHeld: (_ALWAYS, frozenset()),
    m.UpdateReady: (_ALWAYS, frozenset()),
    m.MaskedUpdate: (_ALWAYS, frozenset()),
    m.Withdraw: (_ALWAYS, frozenset()),
    m.Endorse: (frozenset({_B.ENDORSING}), frozenset({_B.RECOVERING, _B.PUBLISHING, _B.COLLECTING})),
    m.AggregateEncodedMask: (frozenset({_B.RECOVERING}), frozenset({_B.PUBLISHING, _B.COLLECTING})),
    m.Leave: (_ALWAYS, frozenset()),
}

FROM_PLAIN_BUFFERED_CLIENT: Rows = {
    m.UpdateReady: (_ALWAYS, frozenset()),
    m.PlainUpdate: (_ALWAYS, frozenset()),
    m.Leave: (_ALWAYS, frozenset()),
}

_RUNNING = frozenset({_C.SHARING, _C.REPORTED, _C.CANDIDATES, _C.ENDORSED, _C.ANSWERED})
_ENDED = frozenset({_C.OVER})

FROM_SERVER: Rows = {
    # message: (stages in which the client takes it, stages in which it is late)
    # in a running round it is a later one, which ends this one
    m.RoundStart: (frozenset({_C.KEYED}) | _RUNNING, _ENDED),
    m.ModelPart: (_RUNNING, _ENDED),
    m.SealedSeed: (frozenset({_C.SHARING}), _ENDED),
    m.EncodedMask: (frozenset({_C.SHARING}), _ENDED),
    m.ReportShares: (frozenset({_C.SHARING}), _ENDED),
    m.Candidates: (frozenset({_C.REPORTED}), _ENDED),
    m.UploadGrant: (frozenset({_C.CANDIDATES}), _ENDED),
    m.SurvivorSet: (frozenset({_C.CANDIDATES, _C.ENDORSED, _C.ANSWERED}), _ENDED),
    m.Certificate: (frozenset({_C.CANDIDATES, _C.ENDORSED, _C.ANSWERED}), _ENDED),
    m.RoundEnd: (_RUNNING, _ENDED),
}


# What comes to a client of an asynchronous run about its own upload; what it holds of the others' is the
# holder's, at any time.
FROM_BUFFERED_SERVER: Rows = {
    m.UploadStart: (frozenset({_C.KEYED, _C.SHARING}), _ENDED),
    m.ModelPart: (frozenset({_C.SHARING}), _ENDED),
    m.UploadGrant: (frozenset({_C.SHARING}), _ENDED),
    m.RoundEnd: (frozenset({_C.SHARING}), _ENDED),
}

FROM_PLAIN_SERVER: Rows = {
    m.PlainStart: (frozenset({_C.KEYED, _C.CANDIDATES}), _ENDED),
    m.ModelPart: (frozenset({_C.CANDIDATES}), _ENDED),
    m.UploadGrant: (frozenset({_C.CANDIDATES}), _ENDED),
    m.RoundEnd: (frozenset({_C.CANDIDATES}), _ENDED),
}


def judge(rows: Rows, stage: Stage, message: m.Message) -> Verdict:
    """What becomes of ``message`` in ``stage``.

    Raises:
        RemoteProtocolError: nothing does: its sender broke the protocol.
    """
    take, late = rows.get(type(message), (frozenset(), frozenset()))
    if stage in take:
        return Verdict.TAKE
    if stage in late:
        return Verdict.LATE
    raise RemoteProtocolError(
        Reason.PROTOCOL_VIOLATION, f"a {type(message).__name__} cannot come while {stage.value}"
    )


def move(moves: dict[_State, frozenset[_State]], old: _State, new: _State) -> _State:
    """``new``, where the table lets ``old`` go there.

    Raises:
        LocalProtocolError: it does not.
    """
    if new not in moves[old]:
        raise LocalProtocolError(f"no move leads from {old.value} to {new.value}")
    return new

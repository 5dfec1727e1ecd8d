"""Events as values, and their way to several trackers of which one may fail."""

from __future__ import annotations

import dataclasses
from typing import get_args

import pytest

from lightsecagg.tracking.events import Broadcast, ClientJoined, ClientLost, Event, Notice, Tracker


class Recorder(Tracker):
    def __init__(self) -> None:
        self.events: list[Event] = []
        self.closed = 0

    def emit(self, event: Event) -> None:
        self.events.append(event)

    def close(self) -> None:
        self.closed += 1


class Failing(Recorder):
    """Fails from the second event on, and when it is closed."""

    def emit(self, event: Event) -> None:
        super().emit(event)
        if len(self.events) > 1:
            raise BrokenPipeError("text that may hold anything")

    def close(self) -> None:
        super().close()
        raise BrokenPipeError


def test_broadcast_tells_everybody_in_order_and_closes_all() -> None:
    first, second = Recorder(), Recorder()
    broadcast = Broadcast([first, second])
    events = [ClientJoined(rank=1), ClientLost(rank=1, reason="goodbye")]
    for event in events:
        broadcast.emit(event)
    broadcast.close()
    broadcast.close()
    assert first.events == second.events == events
    assert first.closed == second.closed == 1


def test_tracker_that_fails_is_left_out_and_the_others_hear_of_it() -> None:
    failing, sound = Failing(), Recorder()
    broadcast = Broadcast([failing, sound])
    events = [ClientJoined(rank=rank) for rank in (1, 2, 3)]
    for event in events:
        broadcast.emit(event)
    broadcast.close()
    warning = Notice(
        text="Failing stopped working (BrokenPipeError); the run goes on without it", level="warning"
    )
    assert sound.events == [events[0], events[1], warning, events[2]]
    assert failing.events == events[:2]
    assert (failing.closed, sound.closed) == (1, 1)


def test_last_tracker_that_fails_ends_nothing() -> None:
    broadcast = Broadcast([Failing()])
    broadcast.emit(ClientJoined(rank=1))
    broadcast.emit(ClientJoined(rank=2))
    broadcast.emit(ClientJoined(rank=3))
    broadcast.close()


@pytest.mark.parametrize("event_type", get_args(Event))
def test_events_are_immutable_values_of_named_fields(event_type: type) -> None:
    assert event_type.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert all(field.kw_only for field in dataclasses.fields(event_type))

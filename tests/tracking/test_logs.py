"""Log records of the package as notices."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from lightsecagg.tracking.events import Event, Notice, Tracker
from lightsecagg.tracking.logs import show_logs


class Recorder(Tracker):
    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event) -> None:
        self.events.append(event)

    def close(self) -> None:
        pass


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    logger = logging.getLogger("lightsecagg")
    before = logger.handlers
    recorder = Recorder()
    show_logs(recorder)
    yield recorder
    logger.handlers = before


def test_warnings_become_notices_and_lesser_records_do_not(recorder: Recorder) -> None:
    logging.getLogger("lightsecagg").warning("the broker at %s is lost", "host")
    logging.getLogger("lightsecagg.comm").info("a detail")
    assert recorder.events == [Notice(text="the broker at host is lost", level="warning")]


def test_traceback_goes_to_stderr_and_not_into_the_notice(
    recorder: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        raise ValueError("the sample count was 7")
    except ValueError:
        logging.getLogger("lightsecagg.managers").exception("sending failed")
    assert recorder.events == [Notice(text="sending failed", level="warning")]
    assert "the sample count was 7" in capsys.readouterr().err


def test_a_later_tracker_takes_the_place_of_an_earlier_one(recorder: Recorder) -> None:
    later = Recorder()
    show_logs(later)
    logging.getLogger("lightsecagg").warning("once")
    assert (len(recorder.events), len(later.events)) == (0, 1)

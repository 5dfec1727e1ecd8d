"""The live picture: where a run stands, in rounds or in versions, with few clients and with many."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from lightsecagg.tracking.events import (
    ClientJoined,
    ClientLost,
    Event,
    PhaseStarted,
    RoundAborted,
    RoundCompleted,
    RoundStarted,
    UpdateRefused,
    UploadDone,
)
from lightsecagg.tracking.panel import Picture


def drawn(picture: Picture, width: int = 100) -> str:
    console = Console(file=StringIO(), width=width, record=True)
    console.print(picture.render())
    return console.export_text()


def of_type(run: list[Event], *types: type) -> list[Event]:
    return [event for event in run if isinstance(event, types)]


def test_picture_shows_round_phase_and_where_each_client_is(run: list[Event]) -> None:
    picture = Picture()
    for event in run:
        if isinstance(event, RoundCompleted):
            break
        picture.emit(event)
    text = drawn(picture)
    assert "round 3  uploading" in text
    assert "client 1  update is in" in text
    assert "client 4  lost (link_lost) while sharing" in text
    picture.emit(run[-5])
    picture.emit(run[-4])
    text = drawn(picture)
    assert "client 1  in the average" in text
    assert "client 4  lost (link_lost) while sharing" in text
    assert "91.4 %" in text


def test_picture_tells_who_is_left_out_and_who_is_back() -> None:
    picture = Picture()
    cohort = {"num_clients": 3, "target_survivors": 2, "privacy_threshold": 0}
    picture.emit(RoundStarted(round=1, cohort=(1, 2, 3), **cohort))
    picture.emit(ClientLost(rank=3, reason="goodbye", round=1, phase="recovering"))
    picture.emit(
        RoundCompleted(round=1, survivors=(1, 3), seconds={}, bytes_per_client=1.0, bytes_by_phase={})
    )
    text = drawn(picture)
    assert "client 1  in the average" in text
    assert "client 2  not in the average" in text
    assert "client 3  lost (goodbye) while recovering" in text
    picture.emit(RoundStarted(round=2, cohort=(1, 2, 3), **cohort))
    assert "client 3  in the round" in drawn(picture)


def test_picture_of_many_clients_counts_them_and_names_the_lost() -> None:
    picture = Picture()
    for rank in range(1, 201):
        picture.emit(ClientJoined(rank=rank))
    for rank in range(1, 51):
        picture.emit(ClientLost(rank=rank, reason="stalled"))
    picture.emit(UploadDone(round=1, rank=200, done=1, of=150))
    lines = drawn(picture).splitlines()
    assert len(lines) < 30
    text = "\n".join(lines)
    assert "149 clients" in text
    assert "client 16" in text
    assert "client 17" not in text
    assert "34 more" in text


def buffered_picture(run: list[Event], until: Event | None = None) -> Picture:
    """The picture after ``until``, or at the end."""
    picture = Picture()
    for event in run:
        picture.emit(event)
        if event is until:
            break
    return picture


def row(picture: Picture, client: str) -> str:
    """The words of a client's row, one space between them."""
    (line,) = [line for line in drawn(picture).splitlines() if f" {client} " in line]
    return " ".join(line.strip("│").split())


def test_picture_of_an_asynchronous_run_shows_the_buffer_and_what_became_of_updates(
    buffered_run: list[Event],
) -> None:
    uploads = of_type(buffered_run, UploadDone)
    picture = buffered_picture(buffered_run, uploads[2])
    text = drawn(picture)
    assert "version 1  collecting: 3 of 3 updates are in the buffer" in text
    assert row(picture, "client 1") == "client 1 training 2"
    assert row(picture, "client 2") == "client 2 training 1"
    assert row(picture, "client 4") == "client 4 lost (link_lost)"
    picture = buffered_picture(buffered_run)
    assert drawn(picture).splitlines()[1:] == [
        f"│ {line:<96} │"
        for line in (
            "version 2  done",
            "",
            "                              buffered  used  staleness  refused",
            "client 1  training                         3          0",
            "client 2  training                         1          0",
            "client 3  training                         1          1        1",
            "client 4  training                         1          1",
            "client 5  training",
            "",
            "version   1       2",
            "accuracy  50.0 %  91.4 %",
        )
    ] + ["╰" + "─" * 98 + "╯"]


def test_picture_begins_a_new_list_with_an_empty_buffer_whatever_became_of_the_last(
    buffered_run: list[Event],
) -> None:
    for ending in (RoundCompleted, RoundAborted):
        picture = buffered_picture(buffered_run, of_type(buffered_run, ending)[0])
        assert "collecting" not in drawn(picture)
        picture.emit(PhaseStarted(round=2, phase="collecting"))
        assert "collecting: 0 of 3 updates are in the buffer" in drawn(picture)


def test_picture_counts_updates_that_come_before_the_last_list_is_averaged(buffered_run: list[Event]) -> None:
    picture = buffered_picture(buffered_run, of_type(buffered_run, PhaseStarted)[2])
    picture.emit(UploadDone(round=2, rank=3, done=1, of=3))
    picture.emit(of_type(buffered_run, RoundCompleted)[0])
    picture.emit(PhaseStarted(round=2, phase="collecting"))
    assert "collecting: 1 of 3 updates are in the buffer" in drawn(picture)
    assert row(picture, "client 3") == "client 3 training 1"
    assert row(picture, "client 1") == "client 1 training 2 0"  # used and their age; none of the new list's


def test_picture_tells_who_joined_late_and_who_is_back(buffered_run: list[Event]) -> None:
    joins = of_type(buffered_run, ClientJoined)
    assert "client 1  waiting" in drawn(buffered_picture(buffered_run, joins[3]))
    assert "client 5  joined" in drawn(buffered_picture(buffered_run, joins[4]))
    assert "client 4  back" in drawn(buffered_picture(buffered_run, joins[5]))
    (before,) = of_type(buffered_run, RoundAborted)
    assert "client 4  lost (link_lost)" in drawn(buffered_picture(buffered_run, before))


def test_update_that_arrives_after_its_client_was_lost_does_not_bring_it_back(
    buffered_run: list[Event],
) -> None:
    picture = buffered_picture(buffered_run, of_type(buffered_run, ClientLost)[0])
    picture.emit(UploadDone(round=1, rank=4, done=3, of=3))
    assert row(picture, "client 4") == "client 4 lost (link_lost) 1"
    picture.emit(RoundStarted(round=2, cohort=(4,), num_clients=5, target_survivors=3, privacy_threshold=1))
    assert "client 4  training" in drawn(picture)


def test_picture_of_many_clients_adds_up_what_became_of_their_updates(buffered_run: list[Event]) -> None:
    picture = Picture()
    picture.emit(buffered_run[0])
    cohort = tuple(range(1, 41))
    picture.emit(
        RoundStarted(round=1, cohort=cohort, num_clients=40, target_survivors=30, privacy_threshold=1)
    )
    picture.emit(ClientLost(rank=9, reason="stalled", round=1, phase="collecting"))
    for event in buffered_run:
        if isinstance(event, RoundCompleted | UpdateRefused):
            picture.emit(event)
    picture.emit(UploadDone(round=3, rank=17, done=1, of=3))
    text = drawn(picture)
    assert row(picture, "39 clients") == "39 clients training 1 6 1"
    assert "client 9    lost (stalled)" in text
    assert "client 17" not in text

"""What people see of a run: plain lines where nobody watches, a panel at a terminal, a summary at the end."""

from __future__ import annotations

import subprocess
import sys
from io import StringIO

import pytest
from rich.console import Console

from lightsecagg.tracking.events import (
    ClientJoined,
    ClientRefused,
    Evaluated,
    Event,
    Notice,
    PhaseStarted,
    RoundCompleted,
    RunFinished,
    RunStarted,
)
from lightsecagg.tracking.terminal import Terminal


class CountingFile(StringIO):
    """Text as a pipe's reader gets it: only what was flushed."""

    flushed = ""

    def flush(self) -> None:
        self.flushed = self.getvalue()


def plain() -> tuple[Terminal, CountingFile]:
    file = CountingFile()
    return Terminal(Console(file=file, width=80)), file


def live(clock: float = 0.0) -> tuple[Terminal, CountingFile]:
    file = CountingFile()
    console = Console(
        file=file, width=100, height=60, force_terminal=True, force_interactive=True, color_system=None
    )
    return Terminal(console, monotonic=lambda: clock), file


def of_type(run: list[Event], *types: type) -> list[Event]:
    return [event for event in run if isinstance(event, types)]


def test_plain_lines_tell_the_whole_run(run: list[Event]) -> None:
    terminal, file = plain()
    for event in run:
        terminal.emit(event)
    terminal.close()
    assert file.getvalue().splitlines() == [
        "run my_run  server at 127.0.0.1:8890, secure aggregation, N 5, U 4, T 1",
        "warning: no roster: the run is open",
        "client 1 joined",
        "client 2 joined",
        "client 3 joined",
        "client 4 joined",
        "client 5 joined",
        "refused client 6 (rank_out_of_range): ranks are 1..5",
        "refused a client (malformed)",
        "round 3  started with clients 1 2 3 4 5 (N 5, U 4, T 1)",
        "round 3  sharing",
        "round 3  lost client 4 (link_lost) while sharing",
        "round 3  uploading",
        "round 3  update 1 of 4 is in (client 1)",
        "round 3  update 2 of 4 is in (client 2)",
        "round 3  update 3 of 4 is in (client 3)",
        "round 3  update 4 of 4 is in (client 5)",
        "round 3  done: clients 1 2 3 5 in the average, accuracy 91.4 %, loss 0.3123  (0.8 s)",
        "round 4  started with clients 1 2 3 5 (N 4, U 3, T 1)",
        "round 4  aborted: too_few_shared",
        "run stopped: too_few_shared  (1 rounds, 12.0 s)",
        "  outcome                     stopped: too_few_shared after 12.0 s",
        "  rounds                      1 completed, 1 aborted (round 4 too_few_shared)",
        "  accuracy                    91.4 %",
        "  bytes per client and round  123.5 kB",
        "  time per phase and round    sharing 0.2 s, uploading 0.5 s, recovering 50 ms",
        "  in every average            clients 1 2 3 5",
        "  lost                        round 3, client 4 (link_lost) while sharing",
        "  model                       runs/my_run/model.npz",
        "  log                         runs/my_run/events.jsonl",
    ]


def test_each_plain_line_is_out_before_the_next_event(run: list[Event]) -> None:
    terminal, file = plain()
    for event in run[:5]:
        seen = file.flushed
        terminal.emit(event)
        assert file.flushed.startswith(seen)
        assert file.flushed.count("\n") == seen.count("\n") + 1


def test_round_without_an_evaluation_is_told_with_the_next_event_or_at_the_end(run: list[Event]) -> None:
    (done,) = of_type(run, RoundCompleted)
    line = "round 3  done: clients 1 2 3 5 in the average  (0.8 s)"
    terminal, file = plain()
    terminal.emit(done)
    terminal.emit(PhaseStarted(round=4, phase="sharing"))
    assert file.getvalue().splitlines() == [line, "round 4  sharing"]
    terminal, file = plain()
    terminal.emit(done)
    terminal.close()
    terminal.close()
    assert file.getvalue().splitlines() == [line]


def test_evaluation_of_another_round_keeps_a_line_of_its_own(run: list[Event]) -> None:
    (done,) = of_type(run, RoundCompleted)
    terminal, file = plain()
    terminal.emit(done)
    terminal.emit(Evaluated(round=2, accuracy=0.5))
    terminal.emit(Evaluated(round=2))
    assert file.getvalue().splitlines()[1:] == ["round 2  accuracy 50.0 %", "round 2  evaluated"]


def test_client_shows_plain_lines_even_at_a_terminal(run: list[Event]) -> None:
    terminal, file = live()
    started = run[0]
    assert isinstance(started, RunStarted)
    fields = {name: getattr(started, name) for name in started.__dataclass_fields__}
    terminal.emit(RunStarted(**{**fields, "role": "client", "secure": False}))
    terminal.emit(PhaseStarted(round=1, phase="sharing"))
    assert "\x1b[?25l" not in file.getvalue()  # no hidden cursor: nothing is live
    assert file.getvalue().splitlines() == [
        "run my_run  client, server at 127.0.0.1:8890, plain averaging, updates are not masked",
        "round 1  sharing",
    ]


def test_server_at_a_terminal_shows_a_panel_and_leaves_lines_and_a_summary(run: list[Event]) -> None:
    terminal, file = live()
    for event in run[:-1]:
        terminal.emit(event)
    before = file.getvalue()
    assert "\x1b[?25l" in before
    assert "run my_run, secure aggregation" in before
    assert "lost client 4 (link_lost) while sharing" in before
    assert "done: clients 1 2 3 5 in the average, accuracy 91.4 %" in before
    assert "client 1 joined" not in before  # the panel has it
    terminal.emit(run[-1])
    after = file.getvalue().removeprefix(before)
    assert "\x1b[?25h" in after  # the cursor is back
    for text in (
        "summary",
        "123.5 kB",
        "runs/my_run/model.npz",
        "round 3, client 4 (link_lost) while sharing",
    ):
        assert text in after


def test_closing_in_the_middle_gives_the_terminal_back(run: list[Event]) -> None:
    terminal, file = live()
    terminal.emit(run[0])
    terminal.close()
    terminal.close()
    assert "\x1b[?25h" in file.getvalue()
    terminal.emit(Notice(text="stopped by Ctrl-C"))
    assert file.getvalue().endswith("stopped by Ctrl-C\n")


def test_bursts_are_drawn_once_in_a_while_and_changes_of_phase_at_once(run: list[Event]) -> None:
    terminal, file = live(clock=5.0)
    terminal.emit(run[0])
    drawn_once = file.getvalue()
    terminal.emit(ClientJoined(rank=1))
    assert file.getvalue() == drawn_once
    terminal.emit(PhaseStarted(round=1, phase="sharing"))
    assert file.getvalue() != drawn_once


@pytest.mark.parametrize("make", [plain, live])
def test_text_of_others_neither_styles_nor_moves_anything(make: object, run: list[Event]) -> None:
    terminal, file = make()  # type: ignore[operator]
    terminal.emit(run[0])
    terminal.emit(ClientRefused(rank=1, reason="malformed", detail="[red]x[/red] \x1b[2J\r\nround 9  done"))
    terminal.close()
    assert "refused client 1 (malformed): [red]x[/red]  [2J  round 9  done\n" in file.getvalue()
    assert "\x1b[2J" not in file.getvalue()


def test_reader_that_goes_away_does_not_end_the_run() -> None:
    program = """
import sys
from lightsecagg.tracking.events import ClientJoined
from lightsecagg.tracking.terminal import Terminal
terminal = Terminal()
sys.stdin.read()  # until the reader of our output is gone
for rank in range(3):
    terminal.emit(ClientJoined(rank=rank))
terminal.close()
print("the run goes on", file=sys.stderr)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == "the run goes on\n"
    assert process.returncode == 0


def test_plain_lines_tell_a_whole_asynchronous_run(buffered_run: list[Event]) -> None:
    terminal, file = plain()
    for event in buffered_run:
        terminal.emit(event)
    terminal.close()
    lines = file.getvalue().splitlines()
    assert lines[: lines.index("run completed  (2 versions, 12.0 s)")] == [
        "run my_run  server at 127.0.0.1:8890, secure aggregation, N 5, U 3, T 1, a buffer of 3 updates",
        "client 1 joined",
        "client 2 joined",
        "client 3 joined",
        "client 4 joined",
        "version 1  the buffer begins to fill; clients 1 2 3 4 are there",
        "version 1  collecting",
        "version 1  update 1 of 3 is in the buffer (client 1)",
        "version 1  update 2 of 3 is in the buffer (client 2)",
        "version 1  lost client 4 (link_lost) while collecting",
        "version 1  update 3 of 3 is in the buffer (client 1)",
        "version 1  endorsing",
        "version 1  recovering",
        "version 1  done: clients 1 1 2 in the average, staleness 0 0 0  (1.5 s)",
        "version 2  the buffer begins to fill; clients 1 2 3 are there",
        "version 2  collecting",
        "client 5 joined",
        "version 1  accuracy 50.0 %",
        "version 2  update 1 of 3 is in the buffer (client 1)",
        "version 2  update 2 of 3 is in the buffer (client 2)",
        "version 2  refused the update of client 3 (stale)",
        "version 2  update 3 of 3 is in the buffer (client 5)",
        "version 2  endorsing",
        "version 2  recovering",
        "version 2  the list failed: too_few_answers; its updates are lost",
        "version 2  the buffer begins to fill; clients 1 2 3 5 are there",
        "version 2  collecting",
        "client 4 joined",
        "version 2  update 1 of 3 is in the buffer (client 3)",
        "version 2  update 2 of 3 is in the buffer (client 1)",
        "version 2  update 3 of 3 is in the buffer (client 4)",
        "version 2  endorsing",
        "version 2  recovering",
        "version 2  done: clients 1 3 4 in the average, staleness 0 1 1, accuracy 91.4 %  (1.5 s)",
    ]
    assert "round" not in file.getvalue()


def test_version_that_is_held_at_the_end_is_told_as_a_version(buffered_run: list[Event]) -> None:
    terminal, file = plain()
    terminal.emit(buffered_run[0])
    terminal.emit(next(event for event in buffered_run if isinstance(event, RoundCompleted)))
    terminal.close()
    assert file.getvalue().splitlines()[1:] == [
        "version 1  done: clients 1 1 2 in the average, staleness 0 0 0  (1.5 s)"
    ]


def test_late_accuracies_and_late_clients_have_lines_above_the_panel(buffered_run: list[Event]) -> None:
    terminal, file = live()
    for event in buffered_run:
        terminal.emit(event)
    text = file.getvalue()
    assert "version 1  accuracy 50.0 %\n" in text
    assert "client 5 joined\n" in text
    assert "client 4 joined\n" in text
    assert "client 3 joined\n" not in text  # before the run began: the panel has it
    assert "version 2  refused the update of client 3 (stale)\n" in text
    assert "version 2  the list failed: too_few_answers; its updates are lost\n" in text
    assert "update 1 of 3" not in text  # the panel has it


def test_summary_of_a_client_has_no_rows_about_what_it_cannot_know() -> None:
    terminal, file = plain()
    terminal.emit(RunFinished(rounds=2, aborted=0, outcome="completed", seconds=200.0))
    assert file.getvalue().splitlines() == [
        "run completed  (2 rounds, 3 min 20 s)",
        "  outcome  completed after 3 min 20 s",
        "  rounds   2 completed",
    ]

"""Deterministic simulation (DESIGN §9): thousands of random schedules, and proof that they can fail."""

import pytest

from lightsecagg.protocol.holding import Holding
from lightsecagg.protocol.server import ServerRound
from lightsecagg.protocol.uploads import RunningSum, UploadDesk
from lightsecagg.simulation import soak
from lightsecagg.simulation.schedule import ScheduleError, play

CHUNKS, CHUNK = 21, 100


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_every_schedule_ends_in_the_exact_sum_or_in_an_abort_that_its_losses_explain(chunk: int) -> None:
    count, tally, failures = soak.play_batch(range(chunk * CHUNK, (chunk + 1) * CHUNK))
    assert failures == []
    assert count == CHUNK
    # The schedules are worth something only if they reach both ends, from inside the budget too.
    assert tally["exact"] > CHUNK / 2
    assert tally["guaranteed"] > CHUNK / 4
    assert tally["exact"] + tally["guaranteed"] < 4 * CHUNK
    assert sum(tally[reason] for reason in REASONS) > CHUNK / 10


REASONS = ("too_few_shared", "too_few_updates", "too_few_endorsements", "too_few_answers")


def test_the_schedules_reach_every_reason_for_an_abort() -> None:
    _, tally, _ = soak.play_batch(range(100))
    assert all(tally[reason] > 0 for reason in REASONS)


def test_a_seed_replays_exactly() -> None:
    first, second = [], []
    assert play(11, first.append) == play(11, second.append)
    assert first == second
    assert len(first) > 50
    other = []
    play(12, other.append)
    assert other != first


def flawed(seeds: range) -> str:
    """The first flaw that these seeds show, or nothing."""
    return next((failures[0] for seed in seeds if (failures := soak.play_batch([seed])[2])), "")


def test_the_simulation_notices_a_survivor_that_is_summed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    take = RunningSum.take

    def doubled(self, number, parts):
        take(self, number, parts)
        if number == 2:
            self.total[0] += 1

    monkeypatch.setattr(RunningSum, "take", doubled)
    assert "Error" in flawed(range(20))


def test_the_simulation_notices_a_server_that_waits_where_too_few_are_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ServerRound, "_hopeless", lambda self: None)
    assert "can finish it" in flawed(range(60))


def test_the_simulation_notices_a_server_that_aborts_within_the_budget(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hopeless = ServerRound._hopeless

    def timid(self):
        from lightsecagg.errors import AbortReason

        alive = len(self._alive())
        return AbortReason.TOO_FEW_SHARED if alive < self.parameters.num_clients else hopeless(self)

    monkeypatch.setattr(ServerRound, "_hopeless", timid)
    assert "aborted (too_few_shared)" in flawed(range(60))


def test_the_simulation_notices_a_client_that_answers_with_a_share_too_few(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer = Holding.answer
    monkeypatch.setattr(Holding, "answer", lambda self, s: answer(self, s - {min(s)} if len(s) > 1 else s))
    assert flawed(range(10))


def test_the_simulation_notices_grants_that_follow_the_freeze(monkeypatch: pytest.MonkeyPatch) -> None:
    admit = UploadDesk.admit
    monkeypatch.setattr(UploadDesk, "admit", lambda self, numbers: admit(self, numbers) if numbers else [])
    assert "left an honest server" in flawed(range(60))


def test_the_command_prints_failing_seeds_and_replays_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert soak.main(["--seed", "3"]) == 0
    assert "all promises held" in capsys.readouterr().out
    monkeypatch.setattr(ServerRound, "_hopeless", lambda self: None)
    failing = next(seed for seed in range(60) if flawed(range(seed, seed + 1)))
    with pytest.raises(ScheduleError, match=f"seed {failing}: .*--seed {failing}"):
        play(failing)
    assert soak.main(["--seed", str(failing)]) == 1
    assert f"FAILED seed {failing}" in capsys.readouterr().out


def test_the_command_spreads_schedules_over_processes(capsys: pytest.CaptureFixture[str]) -> None:
    assert soak.main(["--schedules", "51", "--workers", "2"]) == 0
    printed = capsys.readouterr().out
    assert "51/51 schedules, 0 failed" in printed
    assert "exact" in printed

"""Asynchronous runs in one process: versions, who comes late or leaves, and what ends a run."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightsecagg.errors import ConfigError, RunStopped
from lightsecagg.identity import Identity
from lightsecagg.managers.scheme import plan
from lightsecagg.managers.schemes import plan_buffering
from lightsecagg.managers.server import Server
from lightsecagg.managers.workload import Workload
from lightsecagg.protocol.actions import Action
from lightsecagg.protocol.buffered.server import BufferedServer
from lightsecagg.protocol.messages import Endorse
from lightsecagg.randomness import system_entropy
from lightsecagg.sealing import RoundKey
from lightsecagg.settings import Settings
from lightsecagg.tracking import events
from lightsecagg.training.base import Array, Evaluation
from lightsecagg.training.state import read
from tests.e2e.e2e_plugins import DIMENSION, KnownTrainer, known_delta
from tests.managers import blocking
from tests.managers.test_runs import PATIENCE, Recorder, Stage, make_settings, play, with_trainer

ONE_OF_SIX = {"targeted_number_active_clients": 4, "privacy_guarantee": 1, "min_buffer_clients": 5}

ENOUGH = 100_000
"""Versions that no test waits for."""


def make_async(workers: int, versions: int, *, plain: bool = False, **secure: Any) -> Settings:
    settings = make_settings(workers, mode="async", finish_timeout=5.0, **secure)
    optimizer = "FedAvg" if plain else "LSA"
    changed = {"comm_round": versions, "federated_optimizer": optimizer, "server_lr": 0.5}
    return settings.model_copy(update={"train_args": settings.train_args.model_copy(update=changed)})


class Watcher(Recorder):
    """Keeps every event, and says when there are enough of a kind."""

    def __init__(self) -> None:
        super().__init__()
        self._changed = asyncio.Event()

    def emit(self, event: events.Event) -> None:
        super().emit(event)
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    async def completed(self, count: int) -> None:
        """Wait until so many versions are made."""
        await self.until(lambda: len(self.of(events.RoundCompleted)) >= count)


class Play:
    """A server, and clients that keep their identities."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.stage = Stage(folder, settings)
        self.watcher = self.stage.recorder = Watcher()
        self.server: Server = self.stage.server()
        self.serving = asyncio.create_task(self.server.run())
        self._identities: dict[int, Identity] = {}
        self.clients: dict[int, asyncio.Task[None]] = {}

    def come(self, *ranks: int) -> None:
        for rank in ranks:
            identity = self._identities.setdefault(rank, Identity.generate())
            self.clients[rank] = asyncio.create_task(self.stage.client(rank, identity).run())

    async def go(self, *ranks: int) -> None:
        for rank in ranks:
            self.clients[rank].cancel()
            await asyncio.gather(self.clients.pop(rank), return_exceptions=True)

    async def end(self) -> list[Any]:
        """What became of the server and of each client."""
        return await asyncio.gather(self.serving, *self.clients.values(), return_exceptions=True)

    def used(self, *, after: int = 0) -> set[int]:
        """Whose updates are in the versions that came after the first so many."""
        done = self.watcher.of(events.RoundCompleted)[after:]
        return {rank for event in done for rank in event.survivors}


@pytest.mark.parametrize("plain", [True, False])
async def test_model_is_what_the_versions_means_add_up_to(tmp_path: Path, plain: bool) -> None:
    settings = make_async(5, 6, plain=plain)
    stage = Stage(tmp_path, settings)
    clients = [stage.client(rank) for rank in range(1, 6)]
    assert await play(stage.server(), clients) == [None] * 6
    done = stage.recorder.of(events.RoundCompleted)
    assert [event.round for event in done] == [1, 2, 3, 4, 5, 6]
    workload, wanted = Workload.load(settings), np.zeros(DIMENSION)
    for event in done:
        silos = [workload.local_data(rank - 1) for rank in event.survivors]  # staleness weighs nothing here
        sizes = [len(silo) for silo in silos]
        wanted += 0.5 * np.average([known_delta(silo) for silo in silos], axis=0, weights=sizes)
    # What travels is n / max_weight of an update, 20 / 1000: as float32, or rounded to 16 fraction bits.
    rounding = 2.0**-23 if plain else 2.0**-17
    assert np.allclose(read(stage.folder.model)["w"], wanted, rtol=0, atol=6 * 0.5 * rounding * 1000 / 20)
    started = [event.round for event in stage.recorder.of(events.RoundStarted)]
    assert started == [1, 2, 3, 4, 5, 6]
    assert all(len(event.staleness or ()) == len(event.survivors) for event in done)
    uploads = stage.recorder.of(events.UploadDone)
    assert {event.of for event in uploads} == {len(done[0].survivors)}


async def test_version_number_is_on_disk_before_anybody_hears_of_the_version(tmp_path: Path) -> None:
    stage = Stage(tmp_path, make_async(3, 2))
    stored: list[int] = []

    def observe(what: str) -> None:
        if what == "take UploadStart" and not stored:
            stored.append(int((stage.folder.path / "round").read_text()))

    clients = [stage.client(rank, observer=observe) for rank in (1, 2, 3)]
    assert await play(stage.server(), clients) == [None] * 4
    assert stored == [1]
    assert int((stage.folder.path / "round").read_text()) == 2


@pytest.mark.parametrize("plain", [True, False])
async def test_clients_join_late_and_leave_and_return_while_versions_go_on(
    tmp_path: Path, plain: bool
) -> None:
    run = Play(tmp_path, make_async(6, 60, plain=plain, min_joined=5))
    async with asyncio.timeout(PATIENCE):
        run.come(1, 2, 3, 4, 5)
        await run.watcher.completed(5)
        assert run.used() <= {1, 2, 3, 4, 5}
        run.come(6)
        await run.watcher.until(lambda: 6 in run.used())
        await run.go(2)
        await run.watcher.until(lambda: bool(run.watcher.of(events.ClientLost)))
        without = len(run.watcher.of(events.RoundCompleted))
        await run.watcher.completed(without + 5)
        run.come(2)
        await run.watcher.until(lambda: 2 in run.used(after=without + 5))
        assert await run.end() == [None] * 7
    assert {event.rank for event in run.watcher.of(events.ClientLost)} == {2}
    assert [event.rank for event in run.watcher.of(events.ClientJoined)].count(2) == 2


async def test_run_begins_as_soon_as_enough_are_there_and_not_before(tmp_path: Path) -> None:
    run = Play(tmp_path, make_async(6, 3, min_joined=5))
    async with asyncio.timeout(PATIENCE):
        run.come(1, 2, 3, 4)
        assert await run.server._session.until(lambda: len(run.server._session.free()) == 4, PATIENCE)
        assert not run.watcher.of(events.RoundStarted)
        run.come(5)
        assert await run.end() == [None] * 6
    assert run.watcher.of(events.RoundStarted)[0].cohort == (1, 2, 3, 4, 5)


@pytest.mark.parametrize(
    ("workers", "secure", "wanted"),
    [
        (3, {"privacy_guarantee": 2}, r"device_args.worker_num: wanted at least 4, the clients in a list"),
        (6, {"min_joined": 4}, r"min_joined: wanted at least 5, without whom no list is made, found 4"),
        (6, ONE_OF_SIX | {"min_joined": 4}, r"min_joined: wanted at least 5, .* found 4"),
    ],
)
def test_numbers_that_can_never_make_a_list_are_refused_at_the_start(
    tmp_path: Path, workers: int, secure: dict[str, Any], wanted: str
) -> None:
    with pytest.raises(ConfigError, match=wanted):
        Stage(tmp_path, make_async(workers, 2, **secure)).server()
    Stage(tmp_path, make_async(6, 2, **ONE_OF_SIX, min_joined=5)).server()


@pytest.mark.parametrize("workers", [3, 4, 5, 9, 40])
def test_buffer_is_planned_alike_with_and_without_masks(workers: int) -> None:
    secure, plain = (make_async(workers, 2, plain=plain) for plain in (False, True))
    sizes = {plan_buffering(each, plan(each, workers)).buffer_size for each in (secure, plain)}
    assert len(sizes) == 1


async def test_server_says_at_the_start_what_weights_reveal(tmp_path: Path) -> None:
    found = {}
    for name, changes in {
        "weighted": {"staleness": "polynomial(1)"},
        "alike": {},
        "in company": {"staleness": "polynomial(1)", "strict_weights": True},
    }.items():
        stage = Stage(tmp_path / name, make_async(3, 1, **changes))
        assert await play(stage.server(), [stage.client(rank) for rank in (1, 2, 3)]) == [None] * 4
        found[name] = [event.text for event in stage.recorder.of(events.Notice)]
    assert any("the server learns its update" in text for text in found["weighted"])
    assert not any("the server learns its update" in text for text in found["alike"] + found["in company"])


async def test_run_ends_with_a_reason_when_too_few_are_left_for_too_long(tmp_path: Path) -> None:
    run = Play(tmp_path, make_async(5, ENOUGH, key_timeout=0.5))
    async with asyncio.timeout(PATIENCE):
        run.come(1, 2, 3, 4, 5)
        await run.watcher.completed(2)
        await run.go(1, 2)
        results = await run.end()
    assert isinstance(results[0], RunStopped)
    assert "3 clients are left; at least 4 are needed (client 1" in str(results[0])
    assert "within 0.5 s (secure_aggregation_args.key_timeout)" in str(results[0])
    told = [event.text for event in run.watcher.of(events.Notice)]
    assert told.count("3 clients are there, and 4 are needed: waiting for the others") == 1
    assert all("ended the run early" in str(result) for result in results[1:])
    assert Counter(event.rank for event in run.watcher.of(events.ClientLost)) == {1: 1, 2: 1}


async def test_run_goes_on_when_those_who_were_too_few_are_enough_again(tmp_path: Path) -> None:
    run = Play(tmp_path, make_async(5, 30))
    async with asyncio.timeout(PATIENCE):
        run.come(1, 2, 3, 4, 5)
        await run.watcher.completed(2)
        await run.go(1, 2)
        await run.watcher.until(lambda: len(run.watcher.of(events.ClientLost)) == 2)
        run.come(1)
        assert await run.end() == [None] * 5


async def test_run_ends_with_a_reason_when_no_update_comes_in(tmp_path: Path) -> None:
    blocking.may_train.clear()
    settings = with_trainer(make_async(3, 2, upload_timeout=0.5), "tests.managers.blocking:BlockingTrainer")
    run = Play(tmp_path, settings)
    async with asyncio.timeout(PATIENCE):
        run.come(1, 2, 3)
        results = await run.end()
    assert isinstance(results[0], RunStopped)
    assert "no part of an update came in for 0.5 s" in str(results[0])
    assert "0 of 3 updates are in the buffer" in str(results[0])


async def test_a_list_whose_endorsements_stay_out_fails_and_the_next_one_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = BufferedServer._take_signature

    def lose_the_first_list(machine: BufferedServer, number: int, message: Endorse) -> list[Action]:
        return [] if machine.list_number == 1 else take(machine, number, message)

    monkeypatch.setattr(BufferedServer, "_take_signature", lose_the_first_list)
    run = Play(tmp_path, make_async(5, 3, recovery_timeout=0.5))
    async with asyncio.timeout(PATIENCE):
        run.come(1, 2, 3, 4, 5)
        assert await run.end() == [None] * 6
    aborted = run.watcher.of(events.RoundAborted)
    assert [(event.round, event.reason) for event in aborted] == [(1, "too_few_endorsements")]
    assert [event.round for event in run.watcher.of(events.RoundStarted)] == [1, 1, 2, 3]
    assert [event.round for event in run.watcher.of(events.RoundCompleted)] == [1, 2, 3]


async def test_run_ends_when_too_many_lists_in_a_row_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BufferedServer, "_take_signature", lambda machine, number, message: [])
    run = Play(tmp_path, make_async(5, 3, recovery_timeout=0.2, max_aborts=2))
    async with asyncio.timeout(PATIENCE):
        run.come(1, 2, 3, 4, 5)
        results = await run.end()
    assert isinstance(results[0], RunStopped)
    assert "2 lists in a row failed, the last one with too_few_endorsements" in str(results[0])


may_measure = threading.Event()


class SlowlyMeasuredTrainer(KnownTrainer):
    """Its evaluation lasts until the test has seen enough versions; the accuracy is the first coordinate."""

    def evaluate(self, x: Array, y: Array) -> Evaluation:
        assert may_measure.wait(PATIENCE)
        return Evaluation(float(self._state["w"][0]), None, len(y))


async def test_versions_go_on_while_the_model_is_measured_and_the_last_one_is_waited_for(
    tmp_path: Path,
) -> None:
    may_measure.clear()
    settings = make_async(5, 8, plain=True)
    often = settings.validation_args.model_copy(update={"frequency_of_the_test": 1})
    settings = with_trainer(settings, "tests.managers.test_asynchronous_runs:SlowlyMeasuredTrainer")
    run = Play(tmp_path, settings.model_copy(update={"validation_args": often}))
    async with asyncio.timeout(PATIENCE):
        run.come(1, 2, 3, 4, 5)
        await run.watcher.completed(8)
        assert not run.watcher.of(events.Evaluated)
        may_measure.set()
        assert await run.end() == [None] * 6
    measured = {event.round: event.accuracy for event in run.watcher.of(events.Evaluated)}
    assert sorted(measured) == [1, 8]
    assert measured[8] == read(run.stage.folder.model)["w"][0] != measured[1]


async def test_client_with_another_ones_key_takes_no_part_until_it_has_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is signed by the copier all right, and everybody would leave a cohort in which it stands twice."""
    original, copies = RoundKey.__init__, chain([True, True], repeat(False))

    def copied(self: RoundKey, entropy: Any = None) -> None:
        original(self, (lambda _: bytes(range(32))) if next(copies) else (entropy or system_entropy))

    monkeypatch.setattr(RoundKey, "__init__", copied)
    run = Play(tmp_path, make_async(6, 10, min_joined=5))
    async with asyncio.timeout(PATIENCE):
        run.come(*range(1, 7))
        results = await run.end()
    assert results[0] is None
    said = [event.text for event in run.watcher.of(events.Notice)]
    assert sum("published the key of client" in text for text in said) == 1
    assert len(run.used()) == 5


async def test_ctrl_c_at_the_server_ends_the_run_for_all(tmp_path: Path) -> None:
    run = Play(tmp_path, make_async(5, ENOUGH))
    async with asyncio.timeout(PATIENCE):
        run.come(1, 2, 3, 4, 5)
        await run.watcher.completed(3)
        run.serving.cancel()
        results = await run.end()
    assert isinstance(results[0], asyncio.CancelledError)
    assert all("ended the run early (stopped)" in str(result) for result in results[1:])
    assert run.stage.folder.model.exists(), "the last good model stands"

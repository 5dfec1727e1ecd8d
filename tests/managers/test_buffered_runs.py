"""Asynchronous runs in one process, to the last coordinate: what is averaged, refused, answered and kept."""

from __future__ import annotations

import asyncio
import gc
import resource
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from lightsecagg.errors import ConfigError
from lightsecagg.identity import Identity, encode_key
from lightsecagg.managers.inbox import Client as SessionClient
from lightsecagg.managers.outbox import OnArrival
from lightsecagg.managers.participation import Participation, RefusedError
from lightsecagg.managers.server import Server
from lightsecagg.managers.workload import Workload
from lightsecagg.protocol import messages as m
from lightsecagg.protocol.wire import from_client
from lightsecagg.settings import Settings
from lightsecagg.simulation.schedule import short_parts
from lightsecagg.tracking import events
from lightsecagg.training.base import Array, Dataset, LocalData, TrainingStopped, TrainResult, TrainSettings
from lightsecagg.training.state import read
from tests.e2e.e2e_plugins import PullingTrainer
from tests.e2e.processes import versions
from tests.managers.test_asynchronous_runs import ENOUGH, Play, make_async
from tests.managers.test_runs import PATIENCE, Recorder, Stage, play, with_trainer

PULLING = "tests.e2e.e2e_plugins:PullingTrainer"
HERE = "tests.managers.test_buffered_runs"


class Gated(PullingTrainer):
    """Each training waits for a pass."""

    passes: ClassVar[threading.Semaphore]

    def train(self, data: LocalData, settings: TrainSettings, should_stop: Callable[[], bool]) -> TrainResult:
        while not self.passes.acquire(timeout=0.01):
            if should_stop():
                raise TrainingStopped("stopped at the gate")
        return super().train(data, settings, should_stop)


class GatedHere(Gated):
    """At one gate."""


class GatedThere(Gated):
    """At another."""


class FailsOnce(PullingTrainer):
    """Its first training raises."""

    has_failed: ClassVar[bool]

    def train(self, data: LocalData, settings: TrainSettings, should_stop: Callable[[], bool]) -> TrainResult:
        if not self.has_failed:
            type(self).has_failed = True
            raise RuntimeError("out of patience")
        return super().train(data, settings, should_stop)


class GatedWide(GatedThere):
    """Its updates take 200 kB each, and about as much masked."""

    def __init__(self, dataset: Dataset, seed: int) -> None:
        super().__init__(dataset, seed)
        self._state["w"] = np.zeros(50_000, np.float32)


@pytest.fixture(autouse=True)
def closed_gates() -> None:
    for trainer in (GatedHere, GatedThere):
        trainer.passes = threading.Semaphore(0)


def gated(settings: Settings, name: str) -> Settings:
    return with_trainer(settings, f"{HERE}:Gated{name}")


class Snapshots(Recorder):
    """Reads the model file after every version."""

    def __init__(self, model: Path) -> None:
        super().__init__()
        self._model = model
        self.found: list[Array] = []

    def emit(self, event: events.Event) -> None:
        super().emit(event)
        if isinstance(event, events.RoundCompleted):
            self.found.append(read(self._model)["w"])


@pytest.mark.parametrize("plain", [True, False])
async def test_model_after_every_version_is_what_its_list_says(tmp_path: Path, plain: bool) -> None:
    settings = with_trainer(
        make_async(
            5,
            12,
            plain=plain,
            staleness="hinge(1, 0)",
            staleness_values=(1, 3, 7),
            buffer_size=4,
            max_weight=22,
        ),
        PULLING,
    )
    unequal = settings.data_args.model_copy(update={"partition_method": "hetero"})
    stage = Stage(tmp_path, settings.model_copy(update={"data_args": unequal}))
    taken = stage.recorder = Snapshots(stage.folder.model)
    assert await play(stage.server(), [stage.client(rank) for rank in range(1, 6)]) == [None] * 6
    workload = Workload.load(stage.settings)
    sizes = [len(workload.local_data(silo)) for silo in range(5)]
    assert min(sizes) < 22 < max(sizes), "the largest weight is one that some have and some have not"
    done = taken.of(events.RoundCompleted)
    assert any(len(set(event.staleness)) > 1 for event in done), "updates of several versions in a list"
    weights = (7, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1)  # the nearest to 7 / (τ + 1)
    wanted = versions(
        [(event.survivors, event.staleness) for event in done],
        stage.settings,
        lambda rank: workload.local_data(rank - 1),
        weights,
    )
    for found, (model, slack) in zip(taken.found, wanted, strict=True):
        np.testing.assert_allclose(found, model, rtol=0, atol=slack)


@pytest.mark.parametrize("strict", [True, False])
async def test_with_strict_weights_no_list_has_a_weight_of_few_clients(tmp_path: Path, strict: bool) -> None:
    numbers = {"targeted_number_active_clients": 4, "privacy_guarantee": 1, "buffer_size": 3}
    settings = make_async(5, ENOUGH, **numbers, staleness="polynomial(1)", strict_weights=strict)
    # What waits beside too few is given up when nothing else comes in for so long.
    secure = settings.secure_aggregation_args.model_copy(update={"report_timeout": 0.2})
    run = Play(tmp_path, gated(settings.model_copy(update={"secure_aggregation_args": secure}), "There"))
    late = run.stage.client(1, settings=gated(settings, "Here"))
    async with asyncio.timeout(PATIENCE):
        run.clients[1] = asyncio.create_task(late.run())
        run.come(2, 3, 4, 5)
        GatedThere.passes.release(10_000)
        await run.watcher.completed(3)
        GatedHere.passes.release()
        await run.watcher.until(lambda: any(done.rank == 1 for done in run.watcher.of(events.UploadDone)))
        await run.watcher.completed(len(run.watcher.of(events.RoundCompleted)) + 5)
        run.serving.cancel()
        await run.end()
    few = 0
    for event in run.watcher.of(events.RoundCompleted):
        crowds: dict[int, set[int]] = {}
        for rank, age in zip(event.survivors, event.staleness, strict=True):
            crowds.setdefault((4, 2, 1)[min(age, 2)], set()).add(rank)
        few += any(len(ranks) < 3 for ranks in crowds.values())
    assert few == 0 if strict else few > 0


async def test_client_whose_update_is_too_late_is_told_and_takes_the_new_version(tmp_path: Path) -> None:
    run = Play(
        tmp_path,
        make_async(4, ENOUGH, targeted_number_active_clients=3, privacy_guarantee=1, max_staleness=0),
    )
    slow = run.stage.client(1, settings=gated(run.stage.settings, "Here"))
    async with asyncio.timeout(PATIENCE):
        run.clients[1] = asyncio.create_task(slow.run())
        run.come(2, 3, 4)
        await run.watcher.until(
            lambda: sum(event.rank == 1 for event in run.watcher.of(events.UpdateRefused)) >= 4
        )
        assert 1 not in run.used()
        GatedHere.passes.release(1000)
        await run.watcher.until(lambda: 1 in run.used())
        run.serving.cancel()
        await run.end()
    assert {event.reason for event in run.watcher.of(events.UpdateRefused)} == {"stale"}
    said = said_by(slow)
    assert sum(text.endswith("stale") for text in said) >= 4
    assert sum("max_staleness" in text for text in said) == 1
    told = [event.text for event in run.watcher.of(events.Notice)]
    assert sum("3 updates in a row of client 1 were not used: more versions" in text for text in told) == 1
    assert all(set(event.staleness) == {0} for event in run.watcher.of(events.RoundCompleted))


def said_by(client: Any) -> list[str]:
    return [event.text for event in client._tracker.of(events.Notice)]


@pytest.mark.parametrize(
    ("own", "named"),
    [
        ({"buffer_size": 5}, r"buffer_size: 4 at the server, 5 at the client"),
        ({"privacy_guarantee": 2}, r"privacy_guarantee: 1 at the server, 2 at the client"),
        ({"targeted_number_active_clients": 4}, r"targeted_number_active_clients: 3 at the server, 4"),
        ({"staleness": "hinge(1, 2)"}, r"staleness: polynomial\(1\) at the server, hinge\(1, 2\) at"),
        ({"staleness_values": (1, 3, 4)}, r"staleness_values: 1, 2, 4 at the server, 1, 3, 4 at"),
        ({"max_staleness": 3}, r"max_staleness: 10 at the server, 3 at the client"),
        ({"rounding": "nearest"}, r"rounding: stochastic at the server, nearest at the client"),
    ],
)
async def test_client_of_other_settings_is_refused_by_their_name(
    tmp_path: Path, own: dict[str, Any], named: str
) -> None:
    numbers = {"targeted_number_active_clients": 3, "privacy_guarantee": 1, "buffer_size": 4}
    run = Play(tmp_path, make_async(5, ENOUGH, **numbers, staleness="polynomial(1)"))
    secure = run.stage.settings.secure_aggregation_args.model_copy(update=own)
    differing = run.stage.settings.model_copy(update={"secure_aggregation_args": secure})
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(RefusedError, match=f"settings_differ .*secure_aggregation_args.{named}"):
            await run.stage.client(1, settings=differing).run()
        run.serving.cancel()
        await run.end()


async def test_training_that_failed_is_tried_again_where_no_list_can_be_made_without_it(
    tmp_path: Path,
) -> None:
    FailsOnce.has_failed = False
    stage = Stage(tmp_path, make_async(3, 2, report_timeout=0.2))
    failing = with_trainer(stage.settings, f"{HERE}:FailsOnce")
    clients = [stage.client(1, settings=failing), stage.client(2), stage.client(3)]
    assert await play(stage.server(), clients) == [None] * 4
    refused = stage.recorder.of(events.UpdateRefused)
    assert [(event.rank, event.reason) for event in refused] == [(1, "training_failed")]
    done = stage.recorder.of(events.RoundCompleted)
    assert [set(event.survivors) for event in done] == [{1, 2, 3}] * 2


async def test_client_that_demands_more_of_a_list_leaves_and_is_not_asked_again(tmp_path: Path) -> None:
    numbers = {"targeted_number_active_clients": 4, "privacy_guarantee": 1, "buffer_size": 4}
    run = Play(tmp_path, gated(make_async(5, ENOUGH, **numbers), "There"))
    demanding = make_async(5, ENOUGH, **numbers, min_buffer_clients=4)
    async with asyncio.timeout(PATIENCE):
        careful = asyncio.create_task(run.stage.client(1, settings=gated(demanding, "Here")).run())
        idle = run.stage.client(2, settings=gated(run.stage.settings, "Here"))
        run.clients[2] = asyncio.create_task(idle.run())
        run.come(3, 4, 5)
        GatedThere.passes.release(10_000)
        with pytest.raises(RefusedError, match="below_floor"):
            await careful
        await run.watcher.completed(len(run.watcher.of(events.RoundCompleted)) + 1)
        run.serving.cancel()
        await run.end()
    assert [(lost.rank, lost.reason) for lost in run.watcher.of(events.ClientLost)] == [(1, "below_floor")]
    assert run.used() == {3, 4, 5}


def test_client_that_demands_less_than_the_protocol_is_told_before_it_joins(tmp_path: Path) -> None:
    settings = make_async(5, 2, targeted_number_active_clients=4, min_buffer_clients=2)
    with pytest.raises(ConfigError, match=r"min_buffer_clients: wanted at least T \+ 2 = 3, found 2"):
        Stage(tmp_path, settings).client(1)


async def test_run_with_a_roster_takes_its_own_and_no_strangers(tmp_path: Path) -> None:
    known = {rank: Identity.generate() for rank in range(1, 6)}
    roster = tmp_path / "roster"
    roster.write_text("".join(f"{rank} {encode_key(i.public)}\n" for rank, i in known.items()))
    stage = Stage(tmp_path, make_async(5, 5, roster=str(roster)))
    server = asyncio.create_task(stage.server().run())
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(RefusedError, match="unknown_identity"):
            await stage.client(1).run()
        results = await asyncio.gather(*(stage.client(rank, known[rank]).run() for rank in known))
        await server
    assert results == [None] * 5


async def test_answer_that_the_server_waits_for_outlives_the_clients_own_upload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Client 1 uploads over a slow line while the others' list is made, which needs its answer."""
    settings = make_async(4, 1, targeted_number_active_clients=3, privacy_guarantee=1)
    stage = Stage(tmp_path, settings)
    certified, renewed, seen = asyncio.Event(), asyncio.Event(), Counter[str]()
    deliver, renew = Participation._deliver, Participation._renew

    def observe(what: str) -> None:
        seen[what] += 1
        if seen["send ShareHeld"] == 3:
            GatedHere.passes.release()
        if what == "send MaskedUpdate":
            GatedThere.passes.release(3)
        if what == "take ListCertificate":
            certified.set()

    async def note(self: Participation, ended: Any) -> None:
        await renew(self, ended)
        if self._context.rank == 1:
            renewed.set()

    async def obstruct(self: Participation, message: bytes | memoryview, arrival: OnArrival | None) -> None:
        match self._context.rank, from_client(message):
            case 1, m.MaskedUpdate(index=5):  # the last one
                await certified.wait()
            case 1, m.AggregateEncodedMask(index=0):
                await renewed.wait()
            case 2, m.AggregateEncodedMask():
                return
            case _:
                pass
        await deliver(self, message, arrival)

    monkeypatch.setattr(Participation, "_deliver", obstruct)
    monkeypatch.setattr(Participation, "_renew", note)
    clients = [stage.client(1, settings=gated(settings, "Here"), observer=observe)]
    clients += [stage.client(rank, settings=gated(settings, "There")) for rank in (2, 3, 4)]
    with short_parts(4):
        assert await play(stage.server(), clients) == [None] * 5
    assert seen["send AggregateEncodedMask"] == 3, "an answer of several parts"
    assert 1 not in stage.recorder.of(events.RoundCompleted)[0].survivors


class Quiet(events.Tracker):
    """Keeps no event."""

    def emit(self, event: events.Event) -> None:
        pass

    def close(self) -> None:
        pass


def in_use() -> tuple[int, int]:
    """Objects with references to others, and bytes of memory, of this process."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return len(gc.get_objects()), pages * resource.getpagesize()


async def test_memory_of_server_and_clients_does_not_grow_with_the_versions(tmp_path: Path) -> None:
    stage = Stage(tmp_path, gated(make_async(3, ENOUGH, staleness="polynomial(0.5)"), "Wide"))
    stage.folder.prepare()
    seen, changed = Counter[str](), asyncio.Event()

    def observe(what: str) -> None:
        seen[what] += 1
        changed.set()

    clients = [stage.client(rank, observer=observe) for rank in (1, 2, 3)]
    for client in clients:
        client._tracker = client._context.tracker = Quiet()
    server = Server(stage.settings, stage.folder, Quiet())

    async def in_use_after(versions: int) -> tuple[int, int]:
        """When all is said about these versions, and every client waits at the gate."""
        said = {"take ModelPart": versions + 1, "send ShareHeld": 2 * (versions + 1), "take Spent": versions}
        GatedThere.passes.release(3 * (versions - seen["take Spent"] // 3))
        while any(seen[what] < 3 * count for what, count in said.items()):
            changed.clear()
            await changed.wait()
        return in_use()

    running = [asyncio.create_task(one.run()) for one in (server, *clients)]
    async with asyncio.timeout(3 * PATIENCE):
        objects, size = await in_use_after(30)
        later_objects, later_size = await in_use_after(230)
        running[0].cancel()
        await asyncio.gather(*running, return_exceptions=True)
    assert later_objects - objects < 600, "three objects of each version are kept"
    assert later_size - size < 20e6, "half a vector of each version is kept"


async def test_server_keeps_nothing_of_processes_that_came_and_went(tmp_path: Path) -> None:
    run = Play(tmp_path, make_async(4, ENOUGH, targeted_number_active_clients=3, min_joined=3))
    joined = partial(run.watcher.of, events.ClientJoined)
    lost = partial(run.watcher.of, events.ClientLost)
    async with asyncio.timeout(PATIENCE):
        run.come(1, 2, 3)
        for visits in range(1, 13):
            run.come(4)
            await run.watcher.until(lambda: sum(event.rank == 4 for event in joined()) == visits)  # noqa: B023
            await run.go(4)
            await run.watcher.until(lambda: len(lost()) == visits)  # noqa: B023
        await run.watcher.completed(len(run.watcher.of(events.RoundCompleted)) + 2)
        gc.collect()
        own = {identity.public for identity in run._identities.values()}
        known = [thing for thing in gc.get_objects() if type(thing) is SessionClient]
        kept = sorted(client.rank for client in known if client.identity in own)
        run.serving.cancel()
        await run.end()
    assert kept == [1, 2, 3, 4], "of the last one that had rank 4 is known why it went"

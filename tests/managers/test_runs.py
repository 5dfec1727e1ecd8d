"""Server and clients in one process over the local carrier: what overlaps, what stops, what is kept."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from itertools import chain, repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lightsecagg.comm.base import make_transport
from lightsecagg.errors import CommError, ConfigError, RunStopped
from lightsecagg.identity import Identity, encode_key
from lightsecagg.managers.carrier import GIVEN, link_settings
from lightsecagg.managers.checkpoint import RunFolder
from lightsecagg.managers.client import Client
from lightsecagg.managers.inbox import Client as SessionClient
from lightsecagg.managers.inbox import FromClient, Inbox
from lightsecagg.managers.outbox import Outbox
from lightsecagg.managers.participation import RefusedError
from lightsecagg.managers.rounds import RoundRunner
from lightsecagg.managers.scheme import plan
from lightsecagg.managers.server import Server
from lightsecagg.protocol.collecting import RoundResult
from lightsecagg.protocol.server import ServerRound
from lightsecagg.randomness import system_entropy
from lightsecagg.sealing import RoundKey
from lightsecagg.settings import Settings
from lightsecagg.tracking import events
from tests.managers import blocking

PATIENCE = 30.0


class Recorder(events.Tracker):
    """Keeps every event."""

    def __init__(self) -> None:
        self.events: list[events.Event] = []

    def emit(self, event: events.Event) -> None:
        self.events.append(event)

    def close(self) -> None:
        pass

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


def make_settings(workers: int, **secure: Any) -> Settings:
    return Settings.model_validate(
        {
            "data_args": {"dataset": "tests.e2e.e2e_plugins:tiny", "partition_method": "homo"},
            "model_args": {"trainer": "tests.e2e.e2e_plugins:KnownTrainer"},
            "train_args": {"comm_round": 2},
            "secure_aggregation_args": secure,
            "device_args": {"worker_num": workers},
            "comm_args": {"backend": "LOCAL"},
        }
    )


def with_trainer(settings: Settings, name: str) -> Settings:
    return settings.model_copy(
        update={"model_args": settings.model_args.model_copy(update={"trainer": name})}
    )


class Stage:
    """One run in a folder of its own."""

    def __init__(self, folder: Path, settings: Settings, run_id: str = "r1") -> None:
        self.folder = RunFolder(folder, run_id, settings)
        self.settings = settings
        self.recorder = Recorder()

    def server(self) -> Server:
        self.folder.prepare()
        return Server(self.settings, self.folder, self.recorder)

    def client(self, rank: int, identity: Identity | None = None, **options: Any) -> Client:
        settings = options.pop("settings", self.settings)
        return Client(settings, self.folder, rank, identity or Identity.generate(), Recorder(), **options)


async def play(server: Server, clients: list[Client]) -> list[Any]:
    async with asyncio.timeout(PATIENCE):
        return await asyncio.gather(server.run(), *(c.run() for c in clients), return_exceptions=True)


async def test_masks_are_dealt_and_exchanged_while_training_runs(tmp_path: Path) -> None:
    blocking.may_train.clear()
    settings = with_trainer(make_settings(5), "tests.managers.blocking:BlockingTrainer")
    stage = Stage(tmp_path, settings)
    seen: Counter[str] = Counter()

    def observe(what: str) -> None:
        seen[what] += 1
        # N = 5, U = 4: each client deals its seeds and one derived share, and then reports.
        dealt = [seen[f"send {name}"] for name in ("SealedSeeds", "EncodedMask", "SharesHeld")]
        if dealt == [5, 5, 5] and not seen["send UpdateReady"]:
            blocking.may_train.set()

    clients = [stage.client(rank, observer=observe) for rank in range(1, 6)]
    assert await play(stage.server(), clients) == [None] * 6
    assert blocking.may_train.is_set()
    assert len(stage.recorder.of(events.RoundCompleted)) == 2


async def test_training_of_an_aborted_round_is_stopped_and_its_update_not_sent(tmp_path: Path) -> None:
    blocking.may_train.clear()
    blocking.stopped.clear()
    settings = make_settings(3, upload_timeout=0.5, max_aborts=1)
    stage = Stage(tmp_path, settings)
    slow = with_trainer(settings, "tests.managers.blocking:BlockingTrainer")
    seen: Counter[str] = Counter()
    slow_client = stage.client(1, settings=slow, observer=lambda what: seen.update([what]))
    results = await play(stage.server(), [slow_client, stage.client(2), stage.client(3)])
    assert isinstance(results[0], RunStopped)
    assert "too_few_updates" in str(results[0])
    assert seen["send SharesHeld"] == 1
    assert not seen["send UpdateReady"] + seen["send MaskedUpdate"]
    assert blocking.stopped.wait(PATIENCE)
    assert stage.folder.model.exists(), "the model of the last good round stands"


async def test_round_numbers_are_on_disk_before_they_are_announced(tmp_path: Path) -> None:
    stage = Stage(tmp_path, make_settings(3))
    stored: list[int] = []

    def observe(what: str) -> None:
        if what == "take RoundStart":
            stored.append(int((stage.folder.path / "round").read_text()))

    clients = [stage.client(rank, observer=observe) for rank in (1, 2, 3)]
    assert await play(stage.server(), clients) == [None] * 4
    assert stored == [1, 1, 1, 2, 2, 2]


async def test_roster_lets_its_own_in_and_turns_strangers_and_impostors_away(tmp_path: Path) -> None:
    known = {rank: Identity.generate() for rank in (1, 2, 3)}
    roster = tmp_path / "roster"
    roster.write_text("".join(f"{rank} {encode_key(i.public)}\n" for rank, i in known.items()))
    stage = Stage(tmp_path, make_settings(3, roster=str(roster), require_unique_survivor_set=True))
    server = asyncio.create_task(stage.server().run())
    for stranger in (stage.client(1), stage.client(1, known[2])):
        with pytest.raises(RefusedError, match="unknown_identity"):
            await stranger.run()
    async with asyncio.timeout(PATIENCE):
        results = await asyncio.gather(*(stage.client(rank, known[rank]).run() for rank in known))
        await server
    assert results == [None] * 3
    refused = stage.recorder.of(events.ClientRefused)
    assert [event.reason for event in refused] == ["unknown_identity"] * 2
    assert not any("no roster" in event.text for event in stage.recorder.of(events.Notice))


async def test_client_whose_floors_the_round_does_not_meet_is_not_asked_again(tmp_path: Path) -> None:
    stage = Stage(tmp_path, make_settings(5))
    careful = make_settings(5, min_clients=5, min_privacy_threshold=2, collusion_rate=0.4, dropout_rate=0.1)
    clients = [stage.client(rank, settings=careful if rank == 1 else stage.settings) for rank in range(1, 6)]
    results = await play(stage.server(), clients)
    assert isinstance(results[1], RefusedError)
    assert "below_floor" in str(results[1])
    assert results[0] is None
    assert results[2:] == [None] * 4
    assert [event.survivors for event in stage.recorder.of(events.RoundCompleted)] == [(2, 3, 4, 5)] * 2


async def test_server_stops_with_a_reason_when_too_few_join(tmp_path: Path) -> None:
    stage = Stage(tmp_path, make_settings(3, join_timeout=0.5))
    results = await play(stage.server(), [stage.client(1)])
    assert isinstance(results[0], RunStopped)
    assert "1 of 3 clients joined within 0.5 s" in str(results[0])
    assert isinstance(results[1], RunStopped)


async def test_more_silos_and_clients_than_a_round_takes_are_drawn_anew_each_round(tmp_path: Path) -> None:
    settings = make_settings(6).model_copy(
        update={
            "train_args": make_settings(6).train_args.model_copy(
                update={"client_num_per_round": 3, "client_num_in_total": 10, "comm_round": 6}
            )
        }
    )
    stage = Stage(tmp_path, settings)
    clients = [stage.client(rank) for rank in range(1, 7)]
    assert await play(stage.server(), clients) == [None] * 7
    cohorts = [event.cohort for event in stage.recorder.of(events.RoundStarted)]
    assert {len(cohort) for cohort in cohorts} == {3}
    assert len(set(cohorts)) > 1


@pytest.mark.parametrize(
    ("clients", "numbers"),
    [
        (2, (2, 0)),
        (3, (3, 1)),
        (4, (3, 1)),
        (5, (4, 1)),
        (6, (5, 1)),
        (7, (5, 2)),
        (8, (6, 2)),
        (9, (7, 2)),
        (10, (7, 3)),
    ],
)
def test_plan_follows_the_table_of_fedml_compat(clients: int, numbers: tuple[int, int]) -> None:
    found = plan(make_settings(10), clients)
    assert (found.target_survivors, found.privacy_threshold) == numbers


def test_explicit_numbers_are_kept_and_refused_where_they_no_longer_fit() -> None:
    settings = make_settings(5, targeted_number_active_clients=4, privacy_guarantee=2)
    assert (plan(settings, 5).target_survivors, plan(settings, 5).privacy_threshold) == (4, 2)
    with pytest.raises(ConfigError, match="raise U or lower T"):
        plan(settings, 3)


async def test_two_clients_with_one_round_key_never_meet_in_a_cohort(
    tmp_path: Path, monkeypatch: Any
) -> None:
    """A copied key is signed by the copier all right; it must not end the run."""
    fixed = bytes(range(32))
    original = RoundKey.__init__

    def copied(self: RoundKey, entropy: Any = None) -> None:
        original(self, (lambda _: fixed) if next(copies) else (entropy or system_entropy))

    copies = chain([True, True], repeat(False))  # the first keys of the first two clients are one
    monkeypatch.setattr(RoundKey, "__init__", copied)
    stage = Stage(tmp_path, make_settings(5, join_timeout=1, min_joined=4))
    clients = [stage.client(rank) for rank in range(1, 6)]
    results = await play(stage.server(), clients)
    assert results == [None] * 6
    assert [len(event.cohort) for event in stage.recorder.of(events.RoundStarted)] == [4, 5]


async def test_clients_given_different_training_settings_do_not_train_together(tmp_path: Path) -> None:
    """Else a server could freeze all but one client, and the sum would be that client's update."""
    stage = Stage(tmp_path, make_settings(5))
    server = stage.server()
    frozen = stage.settings.train_args.model_copy(update={"learning_rate": 1e-300}).model_dump_json()
    admit = server._session._newcomers._admit

    def admit_and_freeze(peer: int, rank: int, identity: bytes) -> None:
        server._session.given = {GIVEN: frozen} if rank == 1 else given
        admit(peer, rank, identity)

    given = dict(server._session.given)
    server._session._newcomers._admit = admit_and_freeze  # type: ignore[method-assign]
    results = await play(server, [stage.client(rank) for rank in range(1, 6)])
    assert isinstance(results[1], RefusedError)
    assert "terms_differ" in str(results[1])
    assert [event.survivors for event in stage.recorder.of(events.RoundCompleted)] == [(2, 3, 4, 5)] * 2


async def test_strangers_that_come_and_go_end_nothing(tmp_path: Path) -> None:
    stage = Stage(tmp_path, make_settings(3))
    server = stage.server()
    running = asyncio.create_task(server.run())
    link = link_settings(stage.settings)
    for _ in range(20):
        stranger = make_transport("LOCAL", {"name": "r1"}, link)
        await stranger.connect()
        await stranger.close()
    talker = make_transport("LOCAL", {"name": "r1"}, link)
    await talker.connect()
    await talker.send(b"GET / HTTP/1.1")
    await talker.close()
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*(stage.client(rank).run() for rank in (1, 2, 3)), running)


async def test_evaluation_that_fails_costs_the_accuracy_and_not_the_run(tmp_path: Path) -> None:
    settings = with_trainer(make_settings(3), "tests.managers.blocking:UnmeasurableTrainer")
    blocking.may_train.set()
    stage = Stage(tmp_path, settings)
    assert await play(stage.server(), [stage.client(rank) for rank in (1, 2, 3)]) == [None] * 4
    assert any("could not be evaluated" in event.text for event in stage.recorder.of(events.Notice))


async def test_weights_above_the_largest_are_told_to_their_own_client_only(tmp_path: Path) -> None:
    stage = Stage(tmp_path, make_settings(3, max_weight=10))
    clients = [stage.client(rank) for rank in (1, 2, 3)]
    assert await play(stage.server(), clients) == [None] * 4
    said = [event.text for event in clients[0]._tracker.of(events.Notice)]  # type: ignore[attr-defined]
    assert any("samples count as 10" in text for text in said)
    assert any(f"{len(clients[0]._context.workload.local_data(0))} samples" in text for text in said)
    assert not any("samples" in event.text for event in stage.recorder.of(events.Notice))


async def test_a_loss_while_the_round_ends_is_told_all_the_same(tmp_path: Path) -> None:
    """Its last event may reach nobody: the round takes no more of them."""
    stage = Stage(tmp_path, make_settings(4))
    server = stage.server()
    clients = {rank: asyncio.create_task(stage.client(rank).run()) for rank in range(1, 5)}
    finish = ServerRound.finish

    def lose_somebody_and_finish(machine: ServerRound) -> RoundResult:
        if machine.round_number == 1:
            loop.call_soon_threadsafe(clients[1].cancel)
            assert gone.wait(PATIENCE)
        return finish(machine)

    loop, gone = asyncio.get_running_loop(), threading.Event()
    lost = server._session._lost

    def losing(client: Any, reason: Any) -> None:
        lost(client, reason)
        gone.set()

    server._session._lost = losing  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ServerRound, "finish", lose_somebody_and_finish)
        async with asyncio.timeout(PATIENCE):
            await server.run()
            await asyncio.gather(*clients.values(), return_exceptions=True)
    assert [event.rank for event in stage.recorder.of(events.ClientLost)] == [1]
    assert [event.cohort for event in stage.recorder.of(events.RoundStarted)] == [(1, 2, 3, 4), (2, 3, 4)]


async def test_a_round_that_is_over_gives_back_what_it_did_not_take_and_takes_no_more() -> None:
    client = SessionClient(1, b"", 1, Outbox(lambda _, __: asyncio.sleep(0)))
    inbox = Inbox([client])
    message = FromClient(client, b"late")
    assert inbox.put(message)
    assert inbox.close() == [message]
    assert not inbox.put(message)
    assert not inbox.take()


def test_a_roster_that_lacks_a_rank_is_told_before_the_run(tmp_path: Path) -> None:
    roster = tmp_path / "roster"
    roster.write_text(f"1 {encode_key(Identity.generate().public)}\n")
    with pytest.raises(ConfigError, match="lacks rank 2, 3"):
        Stage(tmp_path, make_settings(3, roster=str(roster))).server()


async def test_clipping_is_told_to_the_client_whose_update_is_clipped(tmp_path: Path) -> None:
    stage = Stage(tmp_path, make_settings(3, clip=0.5))
    clients = [stage.client(rank) for rank in (1, 2, 3)]
    assert await play(stage.server(), clients) == [None] * 4
    for client in clients:
        said = [event.text for event in client._tracker.of(events.Notice)]  # type: ignore[attr-defined]
        assert sum("coordinates of the update were clipped to ±0.5" in text for text in said) == 1


async def test_run_in_which_nobody_joined_gives_its_run_id_back(tmp_path: Path) -> None:
    stage = Stage(tmp_path, make_settings(3, join_timeout=0.2))
    assert isinstance((await play(stage.server(), []))[0], RunStopped)
    stage.folder.check_unused()


def test_a_split_that_cannot_be_made_is_told_before_the_run(tmp_path: Path) -> None:
    settings = make_settings(3)
    many = settings.train_args.model_copy(update={"client_num_in_total": 101})
    with pytest.raises(ConfigError, match="client_num_in_total"):
        Stage(tmp_path, settings.model_copy(update={"train_args": many})).server()


async def test_model_file_of_earlier_runs_stands_until_a_round_is_done(tmp_path: Path) -> None:
    named = tmp_path / "global.npz"
    settings = make_settings(3, join_timeout=0.2)
    model_args = settings.model_args.model_copy(update={"global_model_file_path": named})
    named.write_bytes(b"an earlier run's")
    own = Stage(tmp_path, settings)
    own.folder.prepare()
    own.folder.model.write_bytes(b"of a run that never began")
    await play(own.server(), [])
    assert own.folder.model.read_bytes() != b"of a run that never began"
    again = Stage(tmp_path, settings.model_copy(update={"model_args": model_args}), "r2")
    await play(again.server(), [])
    assert named.read_bytes() == b"an earlier run's"
    told = [event.text for event in again.recorder.of(events.Notice)]
    assert any(f"{named} exists: this run does not start from it" in text for text in told)


async def test_round_number_is_known_as_soon_as_the_round_has_begun(tmp_path: Path) -> None:
    """A session may be lost before the round ends; its number must not be taken again even then."""
    stage = Stage(tmp_path, make_settings(3))
    seen: list[int] = []

    def observe(what: str) -> None:
        if what == "send SealedSeeds":
            seen.append(client._context.highest_round)

    client = stage.client(1, observer=observe)
    assert await play(stage.server(), [client, stage.client(2), stage.client(3)]) == [None] * 4
    assert seen == [1, 2]


async def test_client_whose_round_was_aborted_stops_training_and_is_there_for_the_next(
    tmp_path: Path,
) -> None:
    blocking.may_train.clear()
    blocking.stopped.clear()
    settings = make_settings(3, upload_timeout=0.5)
    stage = Stage(tmp_path, settings)
    seen: Counter[str] = Counter()

    def observe(what: str) -> None:
        seen[what] += 1
        if seen["take RoundStart"] == 2:
            assert blocking.stopped.is_set()
            blocking.may_train.set()

    slow = with_trainer(settings, "tests.managers.blocking:BlockingTrainer")
    clients = [stage.client(1, settings=slow, observer=observe), stage.client(2), stage.client(3)]
    assert await play(stage.server(), clients) == [None] * 4
    assert [event.reason for event in stage.recorder.of(events.RoundAborted)] == ["too_few_updates"]
    assert [event.survivors for event in stage.recorder.of(events.RoundCompleted)] == [(1, 2, 3)] * 2


async def test_stranger_that_is_gone_before_it_is_answered_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(tmp_path, make_settings(3))
    server = stage.server()
    answer, refused = server._hub.try_send, []

    def gone_at_first(peer: int, data: bytes) -> bool:
        if not refused:
            refused.append(peer)
            raise CommError(f"peer {peer} is gone")
        return answer(peer, data)

    monkeypatch.setattr(server._hub, "try_send", gone_at_first)
    running = asyncio.create_task(server.run())
    stranger = make_transport("LOCAL", {"name": "r1"}, link_settings(stage.settings))
    await stranger.connect()
    await stranger.close()
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*(stage.client(rank).run() for rank in (1, 2, 3)), running)
    assert refused


def test_bytes_of_a_client_that_is_gone_take_nothing_from_the_others() -> None:
    first, second = (
        SessionClient(rank, b"", rank, Outbox(lambda _, __: asyncio.sleep(0))) for rank in (1, 2)
    )
    counts = {first: 100, second: 100}
    session: Any = SimpleNamespace(bytes_of=counts.__getitem__)
    none: Any = None
    runner = RoundRunner(none, session, [first, second], make_settings(3), Recorder(), none)
    counts.update({first: 150, second: 160})
    assert runner._passed_bytes() == 110
    counts.update({first: 0, second: 200})
    assert runner._passed_bytes() == 40
